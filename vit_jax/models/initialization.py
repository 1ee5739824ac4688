"""Initialisations that draw several parameters jointly."""

import math
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


POSITIONS = "Transformer/posembed_input/pos_embedding"
# Neighbour of a 3 x 3 window that a head attends to, by head.
ORDER = (4, 1, 5, 3, 7, 0, 2, 6, 8)


def impulse_parameters(shapes: Mapping[str, tuple], seed: int) -> dict[str, np.ndarray]:
    """Draw attention kernels whose heads attend to one neighbour each, like a convolution.

    Impulse initialisation (Zheng et al. 2024, arXiv:2404.01139): query and key kernels of rank k
    fit target scores, 1000 where the key is the head's neighbour of the query and small noise
    elsewhere, for the normalised position table as input; each then has the Frobenius norm 7.
    Positions are scaled by 18. Value and output kernels are those of `mimetic_kernels`.

    Args:
      shapes: {path: shape} of a ViT's parameters, as of `mimetic_kernels`, without a class token
        and with a learned table of positions of a square grid.
      seed: random seed.

    Returns:
      {path: float32 array} of the position table and the kernels.
    """
    drawn = mimetic_kernels(shapes, seed)
    rng = np.random.default_rng((seed, len(drawn)))
    table = rng.normal(scale=0.02, size=shapes[POSITIONS])
    positions = table[0] - table[0].mean(-1, keepdims=True)
    positions /= positions.std(-1, keepdims=True)
    for path in [path for path in drawn if path.endswith("/query/kernel")]:
        width, heads, rank = shapes[path]
        u, s, vt = np.linalg.svd(positions, full_matrices=False)
        # The positions are centred: the last of `width` singular values would be 0.
        count = min(rank, len(s), width - 1)
        inverse = (vt[:count].T / s[:count]) @ u[:, :count].T  # [d, n]
        scores = np.stack([_impulse_scores(rng, head, len(positions)) for head in range(heads)])
        queries, keys = _factors(inverse @ scores @ inverse.T)
        keys = keys.swapaxes(1, 2)
        for name, factors in (("query", queries), ("key", keys)):
            kernel = factors[:, :, :rank]  # [h, d, k]
            kernel *= 7 / np.linalg.norm(kernel, axis=(1, 2), keepdims=True)
            drawn[path.replace("query", name)] = kernel.swapaxes(0, 1)
    drawn[POSITIONS] = 18 * table
    return {path: array.astype(np.float32) for path, array in drawn.items()}


def _impulse_scores(rng, head, n):
    """Draw the target scores [n, n] of a head on a square grid of n patches."""
    side = math.isqrt(n)
    down, right = (step - 1 for step in divmod(ORDER[head % 9], 3))
    y, x = np.divmod(np.arange(n), side)
    scores = 3 * np.clip(rng.normal(scale=0.6, size=(n, n)), -2, 2)
    inside = (0 <= y + down) & (y + down < side) & (0 <= x + right) & (x + right < side)
    queries = np.flatnonzero(inside)
    scores[queries, queries + down * side + right] = 1000
    return scores


def draw_target(rng: np.random.Generator, shape: tuple, noise: float, identity: float):
    """Draw target products [..., d, d]: noise * Z + identity * I."""
    width = shape[-1]
    return noise * (rng.normal(size=shape) * width**-0.5) + identity * np.eye(width)


def _factors(products):
    """Factor matrices [..., d, d] into pairs with equal singular values."""
    u, s, vt = np.linalg.svd(products)
    root = np.sqrt(s)
    return u * root[..., None, :], root[..., None] * vt
