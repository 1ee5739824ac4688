"""Initialisations that draw several parameters jointly."""

from collections.abc import Mapping

import numpy as np

_BLOCK = "encoderblock_"  # not the attention of a pooling head


def mimetic_kernels(shapes: Mapping[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """Draw attention kernels whose products resemble those of pretrained ViTs.

    Mimetic initialisation (Trockman & Kolter 2023, arXiv:2305.09828, section 4): for each attention
    map, the product of query and key kernels is the rank-limited best approximation of
    0.7 Z + 0.7 I; over the whole width, the product of value and output kernels is 0.4 Z - 0.4 I.
    Z has independent normal entries of variance 1 / width. Drawn once per run, with
    NumPy on the host.

    Args:
      shapes: {path: shape} of a ViT's parameters; "query" and "key" kernels [d, h, d / h],
        "value" kernels [d, v, d / v], "out" kernels [v, d / v, d].
      seed: random seed.

    Returns:
      {path: float32 kernel} of the query, key, value and output kernels.
    """
    drawn = {}
    for i, path in enumerate(path for path in shapes if _BLOCK in path and "/query/kernel" in path):
        rng, layer = np.random.default_rng((seed, i)), path.removesuffix("/query/kernel")
        width, num_maps, rank = shapes[path]
        # All maps batched: [h, d, d] -> [d, h, d / h].
        queries, keys = _factors(draw_target(rng, (num_maps, width, width), 0.7, 0.7))
        values, outs = _factors(draw_target(rng, (width, width), 0.4, -0.4))
        drawn[path] = queries[:, :, :rank].swapaxes(0, 1)
        drawn[f"{layer}/key/kernel"] = keys[:, :rank].transpose(2, 0, 1)
        drawn[f"{layer}/value/kernel"] = values.reshape(shapes[f"{layer}/value/kernel"])
        drawn[f"{layer}/out/kernel"] = outs.reshape(shapes[f"{layer}/out/kernel"])
    return {path: kernel.astype(np.float32) for path, kernel in drawn.items()}


def draw_target(rng: np.random.Generator, shape: tuple, noise: float, identity: float):
    """Draw target products [..., d, d]: noise * Z + identity * I."""
    width = shape[-1]
    return noise * (rng.normal(size=shape) * width**-0.5) + identity * np.eye(width)


def _factors(products):
    """Factor matrices [..., d, d] into pairs with equal singular values."""
    u, s, vt = np.linalg.svd(products)
    root = np.sqrt(s)
    return u * root[..., None, :], root[..., None] * vt
