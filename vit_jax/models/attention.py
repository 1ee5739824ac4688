"""Attention layers: softmax and differential, with relative and rotary positions."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import has_cls
from vit_jax.models.layers import Dropout, Kernel, build_norm, dense

LAYER_NAMES = {
    "softmax": "MultiHeadDotProductAttention_0",
    "differential": "MultiHeadDifferentialAttention_0",
    "lsa": "LocalitySelfAttention_0",
}


def head_width(config: Mapping[str, Any]) -> int:
    """Compute the width of a head's values; differential queries and keys have half of it."""
    return config["head_dim"] or config["hidden_size"] // config["num_heads"]


def rotary_angles(rows: int, columns: int, width: int) -> np.ndarray:
    """Compute the angles [rows * columns, width / 2] that `rope_2d` rotates queries and keys by.

    "Axial" rotary positions (Heo et al. 2024, arXiv:2403.13298): the first half of the angles are
    w_i * column, the second w_i * row, with w_i = 100^(-i / (width / 4)), i < width / 4.
    """
    frequencies = 100.0 ** (-np.arange(width // 4) / (width // 4))
    y, x = np.mgrid[:rows, :columns]
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies
    return np.concatenate([x, y], 1).astype(np.float32)


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Rotate the pairs (i, i + width / 2) of x [..., n, width] by angles [m, width / 2].

    The first n - m tokens (class token and registers) are unchanged.
    """
    skipped = x.shape[-2] - angles.shape[0]
    angles = np.pad(angles, ((skipped, 0), (0, 0)))
    cos, sin = (jnp.asarray(f(angles), x.dtype) for f in (np.cos, np.sin))  # [n, width / 2]
    first, second = jnp.split(x, 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def relative_indices(rows: int, columns: int, has_cls: bool) -> np.ndarray:
    """Index the table of relative biases for every query and key, [n, n].

    The table has an entry for each of the (2 * rows - 1) * (2 * columns - 1) offsets (Swin, Liu et
    al. 2021) and, with a class token, three more: class to patch, patch to class, class to class
    (BEiT, Bao et al. 2022).
    """
    y, x = (a.reshape(-1) for a in np.mgrid[:rows, :columns])
    down = y[:, None] - y[None] + rows - 1
    right = x[:, None] - x[None] + columns - 1
    indices = down * (2 * columns - 1) + right
    if has_cls:
        offsets = (2 * rows - 1) * (2 * columns - 1)
        indices = np.pad(indices, ((1, 0), (1, 0)))
        indices[0, :], indices[:, 0], indices[0, 0] = offsets, offsets + 1, offsets + 2
    return indices


def fused_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: Any = "cudnn"
) -> jax.Array:
    """Compute softmax(query key' / sqrt(width)) value of arrays [b, h, n, width] in one kernel.

    The kernel does not write the attention weights to memory. It needs an even number of tokens for
    its gradient: one more is appended and masked. `implementation` is that of
    `jax.nn.dot_product_attention`.
    """
    n = query.shape[2]
    sides = ((0, 0), (0, n % 2), (0, 0), (0, 0))
    query, key, value = (jnp.pad(x.swapaxes(1, 2), sides) for x in (query, key, value))
    # Of an input: `jax.vmap` of the kernel needs lengths that are vectorised like the inputs.
    lengths = n + 0 * key[:, 0, 0, 0].astype(jnp.int32) if n % 2 else None
    x = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return x[:, :n].swapaxes(1, 2)


def can_fuse(config: Mapping[str, Any], dtype: jnp.dtype) -> bool:
    """Whether cuDNN's fused attention computes the attention of a model's config in `dtype`."""
    width = head_width(config)
    plain = config["attention"] == "softmax" and config["pos_embed"] != "relative_bias"
    return plain and jnp.dtype(dtype).itemsize == 2 and width % 8 == 0 and width <= 128


class RelativeBias(nn.Module):
    """A learned bias per attention map and offset, added to the attention scores."""

    num_heads: int
    grid: tuple[int, int]
    has_cls: bool

    @nn.compact
    def __call__(self) -> jax.Array:
        """Return the biases [num_heads, n, n]."""
        indices = relative_indices(*self.grid, self.has_cls)
        shape = (self.num_heads, int(indices.max()) + 1)
        table = self.param("table", nn.initializers.normal(0.02), shape)
        return table[:, indices]


class Attention(nn.Module):
    """Self-attention of the kind `config["attention"]`.

    "softmax" (Vaswani et al. 2017), or "differential" (Ye et al. 2024, arXiv:2410.05258), without
    its causal mask: each head takes the difference of two softmax maps, softmax(Q1 K1' / sqrt(w)) -
    lambda * softmax(Q2 K2' / sqrt(w)) with w = d / h / 2, multiplies values of width 2 w, and is
    normalised by RMSNorm times (1 - lambda_init); lambda is learned per layer (see
    `differential_lambdas`). The output layer has a bias if `qkv_bias` is set. "lsa" is locality
    self-attention (Lee et al. 2021, arXiv:2112.13492): no token attends to itself, and scores have
    a learned scale per head in place of 1 / sqrt(w). With `qk_norm`, queries and keys are
    normalised over the width of a head. The softmax is computed in float32.

    With `fused`, `fused_attention` computes softmax attention without dropout, and no weights are
    returned.
    """

    config: Mapping[str, Any]
    grid: tuple[int, int]
    dtype: jnp.dtype
    fused: bool = False

    @nn.compact
    def __call__(self, x, keys, layer, added, edit=None) -> tuple[jax.Array, dict]:
        """Map tokens [b, n, d] to tokens and intermediates; for the arguments see `EncoderBlock`.

        The intermediates are "attention", the weights [b, h, n, n] including `added`; for
        differential attention "softmax_maps" [b, h, 2, n, n], the two maps of each head; and with
        `edit` "heads" [b, h, n, width], the heads' outputs before it.
        """
        (b, n, d), h = x.shape, self.config["num_heads"]
        is_differential = self.config["attention"] == "differential"
        num_maps = 2 * h if is_differential else h
        width = head_width(self.config)
        widths = {name: (num_maps, h * width // num_maps) for name in ("query", "key")}
        query, key, value = self._heads(x, **widths, value=(h, width))
        if self.config["qk_norm"]:
            query = build_norm(self.config, self.dtype, "query_norm")(query)
            key = build_norm(self.config, self.dtype, "key_norm")(key)
        if self.config["pos_embed"] == "rope_2d":
            angles = rotary_angles(*self.grid, query.shape[-1])
            query, key = rotate(query, angles), rotate(key, angles)
        has_dropout = keys is not None and self.config["attention_dropout_rate"]
        fused = self.fused and added is None and not has_dropout
        if fused and can_fuse(self.config, self.dtype):
            x, seen = fused_attention(query, key, value), {}
        else:
            weights, seen = self._weights(query, key, layer)
            if added is not None:
                weights += added
            x = Dropout(self.config["attention_dropout_rate"])(weights, keys) @ value
            seen["attention"] = weights
        if is_differential:
            x = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name="head_norm")(x)
            x *= 1 - _initial_strength(layer)
        if edit:
            x, seen = jnp.where(edit[0], edit[1].astype(x.dtype), x), seen | {"heads": x}
        use_bias = self.config["qkv_bias"] or not is_differential
        out = Kernel((h, width), (d,), use_bias, name="out")()
        x = dense(x.swapaxes(1, 2).reshape(b * n, h * width), *out, self.dtype)
        return x.reshape(b, n, d), seen

    def _weights(self, query, key, layer):
        """Compute the weights [b, h, n, n] of queries and keys, and the intermediates."""
        if self.config["attention"] != "differential":
            return self._maps(query, key), {}
        maps = self._maps(query, key)
        b, _, n, _ = maps.shape
        maps = maps.reshape(b, -1, 2, n, n)
        init = nn.initializers.normal(0.1)
        vectors = {name: self.param(name, init, (query.shape[-1],)) for name in _LAMBDAS}
        strength = _strength(vectors, layer).astype(self.dtype)
        return maps[:, :, 0] - strength * maps[:, :, 1], {"softmax_maps": maps}

    def _heads(self, x, **heads):
        """Project tokens [b, n, d] to [b, heads, n, width] for each name=(heads, width)."""
        b, n, d = x.shape
        layers = [
            Kernel((d,), shape, self.config["qkv_bias"], name=name)()
            for name, shape in heads.items()
        ]
        # One fused product is faster than one per name. Flat tokens: XLA:CPU transposes the
        # gradients of 3-D dense layers. Heads before tokens: batched products then need no
        # transposition.
        kernel, bias = (jnp.concatenate(a, -1) for a in zip(*layers, strict=True))
        projected = jnp.split(dense(x.reshape(b * n, d), kernel, bias, self.dtype), len(heads), -1)
        return [
            y.reshape(b, n, *shape).swapaxes(1, 2)
            for y, shape in zip(projected, heads.values(), strict=True)
        ]

    def _maps(self, query, key):
        """Compute the softmax [b, h, n, n] of the scores of queries and keys [b, h, n, width]."""
        scale, is_lsa = query.shape[-1] ** -0.5, self.config["attention"] == "lsa"
        if is_lsa:
            initial = nn.initializers.constant(scale)
            scale = self.param("scale", initial, query.shape[1:2])[:, None, None]
            # Broadcast first: the gradient is then summed in float32.
            scale = jnp.broadcast_to(scale, query.shape).astype(query.dtype)
        scores = (query * scale) @ key.swapaxes(-1, -2)  # [b, h, n, n]
        scores = scores.astype(jnp.float32)
        if is_lsa:
            scores = jnp.where(jnp.eye(scores.shape[-1], dtype=bool), -jnp.inf, scores)
        if self.config["pos_embed"] == "relative_bias":
            table = RelativeBias(
                query.shape[1], self.grid, has_cls(self.config), name="relative_position_bias"
            )
            scores += table()
        return jax.nn.softmax(scores).astype(self.dtype)


_LAMBDAS = ("lambda_query_1", "lambda_key_1", "lambda_query_2", "lambda_key_2")


def _initial_strength(layer):
    return 0.8 - 0.6 * jnp.exp(-0.3 * layer)


def _strength(vectors, layer):
    query_1, key_1, query_2, key_2 = (vectors[name] for name in _LAMBDAS)
    first, second = jnp.exp((query_1 * key_1).sum()), jnp.exp((query_2 * key_2).sum())
    return first - second + _initial_strength(layer)


def differential_lambdas(params: dict) -> dict[str, jax.Array]:
    """Compute {block name: lambda} of a differential ViT's parameters; {} for other models.

    lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init, lambda_init = 0.8 - 0.6 exp(-0.3 layer)
    with layers from 0 (Ye et al. 2024, section 2.1).
    """
    layer = LAYER_NAMES["differential"]
    return {
        name: _strength(block[layer], int(name.rsplit("_", 1)[1]))
        for name, block in params.get("Transformer", {}).items()
        if name.startswith("encoderblock_") and layer in block
    }
