"""Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), with official parameter names."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.config import has_cls
from vit_jax.models.attention import LAYER_NAMES, Attention, head_width
from vit_jax.models.embedding import PatchDropout, embed_patches
from vit_jax.models.layers import Dropout, Kernel, build_norm, dense, gelu

_KERNEL_INIT = nn.linear.default_kernel_init


def sinusoidal_1d(length: int, width: int) -> np.ndarray:
    """Compute the fixed position table [length, width] of Vaswani et al. 2017, section 3.5."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * frequencies  # [length, width / 2]
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(length, width).astype(np.float32)


def sincos_2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Compute the fixed position table [rows * columns, width] of big_vision.

    With w_i = 10000^(-i / (width / 4 - 1)): sin and cos of w_i * column, then of w_i * row.
    """
    frequencies = 10000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.mgrid[:rows, :columns]
    x, y = x.reshape(-1, 1) * frequencies, y.reshape(-1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


class PositionEmbedding(nn.Module):
    """Add a position to every token of a grid of patches, after the class token if there is one.

    The kinds are "learned_1d" (one table, class token included), "learned_2d" (a table of rows plus
    one of columns), "sinusoidal" (fixed, 1-D order, class token first) and "sincos_2d" (fixed). The
    2-D kinds leave the class token unchanged.
    """

    kind: str
    grid: tuple[int, int]
    has_cls: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [b, n, d] to tokens [b, n, d]."""
        (rows, columns), (_, n, d) = self.grid, x.shape
        init = nn.initializers.normal(0.02)
        if self.kind == "learned_1d":
            table = self.param("pos_embedding", init, (1, n, d))[0]
        elif self.kind == "sinusoidal":
            table = sinusoidal_1d(n, d)
        else:
            if self.kind == "learned_2d":
                by_row = self.param("row_embedding", init, (rows, d))
                by_column = self.param("column_embedding", init, (columns, d))
                table = (by_row[:, None] + by_column[None]).reshape(-1, d)
            else:
                table = sincos_2d(rows, columns, d)
            table = jnp.pad(table, ((int(self.has_cls), 0), (0, 0)))
        # Broadcast first, as in `dense`.
        return x + jnp.broadcast_to(jnp.asarray(table, jnp.float32), x.shape).astype(x.dtype)


class MlpBlock(nn.Module):
    """Two dense layers with a GELU in between, per token.

    SwiGLU (Shazeer 2020, arXiv:2002.05202) multiplies the hidden layer by SiLU of a further dense
    layer, "gate", in place of GELU.
    """

    config: Mapping[str, Any]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Map tokens [b, n, d] to tokens [b, n, d]."""
        (b, n, d), rate = x.shape, self.config["dropout_rate"]

        def layer(x, features, name):
            init = nn.initializers.normal(1e-6)
            kernel = Kernel(x.shape[1:], (features,), bias_init=init, name=name)
            return dense(x, *kernel(), self.dtype)

        x = x.reshape(b * n, d)
        hidden = layer(x, self.config["mlp_dim"], "Dense_0")
        if self.config["mlp"] == "swiglu":
            x = nn.silu(layer(x, self.config["mlp_dim"], "gate")) * hidden
        else:
            x = gelu(hidden, self.config["gelu"])
        x = Dropout(rate)(x.reshape(b, n, -1), keys)
        x = layer(x.reshape(b * n, -1), d, "Dense_1").reshape(b, n, d)
        return Dropout(rate)(x, keys)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block with stochastic depth (Huang et al. 2016).

    LayerScale (Touvron et al. 2021, arXiv:2103.17239) multiplies each residual branch by a learned
    factor per channel.
    """

    config: Mapping[str, Any]
    grid: tuple[int, int]
    drop_path_rate: float
    dtype: jnp.dtype
    fused_attention: bool = False

    @nn.compact
    def __call__(self, x, keys, layer, added=None, edit=None) -> tuple[jax.Array, dict]:
        """Map tokens [b, n, d] to tokens and the intermediates of the attention.

        `keys` [b], None without dropout, are the block's own; `layer` is its index from 0; `added`
        [b, h, n, n], or None, is added to the attention weights; `edit` has the block's own
        entries of `VisionTransformer`'s, or is None.
        """
        config, dtype = self.config, self.dtype
        name, fused = LAYER_NAMES[config["attention"]], self.fused_attention
        attend = Attention(config, self.grid, dtype, fused, name=name)
        norm = functools.partial(build_norm, config, dtype)
        drop_path = functools.partial(Dropout, self.drop_path_rate, whole=True)
        y, attended = attend(norm()(x), keys, layer, added, edit and edit["heads"])
        # Dropout's keys depend on the order in which its modules are made.
        x = x + drop_path()(
            _scaled(self, "layer_scale_0", Dropout(config["dropout_rate"])(y, keys)), keys
        )
        y = MlpBlock(config, dtype)(norm()(x), keys)
        if edit:
            mask, value = edit["mlp"]
            y, attended = jnp.where(mask, value.astype(y.dtype), y), attended | {"mlp": y}
        return x + drop_path()(_scaled(self, "layer_scale_1", y), keys), attended


def _scaled(block, name, x):
    """Multiply by the LayerScale `name` of a block, if its config has one."""
    if not (initial := block.config["layer_scale_init"]):
        return x
    scale = block.param(name, nn.initializers.constant(initial), x.shape[-1:])
    # Broadcast first: the gradient is then summed in float32.
    return x * jnp.broadcast_to(scale, x.shape).astype(x.dtype)


def _apply(block, remat, params, *inputs):
    apply = block.apply
    if remat:
        keep_dense = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        apply = jax.checkpoint(apply, policy=keep_dense if remat == "dense" else None)
    return apply({"params": params}, *inputs)


# Blocks are traced once and shared, which halves the tracing time.
_apply_shared = jax.jit(_apply, static_argnums=(0, 1))


class Encoder(nn.Module):
    """Position embedding, encoder blocks and final norm.

    Registers (Darcet et al. 2024, arXiv:2309.16588) follow the class token and have no position. A
    norm precedes the blocks if `pre_norm` is set.
    """

    config: Mapping[str, Any]
    grid: tuple[int, int]
    dtype: jnp.dtype
    remat: bool | str
    fused_attention: bool

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        keys: jax.Array | None,
        added: Sequence[jax.Array] | None,
        added_tokens: Mapping[int, jax.Array],
        edit: Any = None,
    ) -> tuple[jax.Array, dict]:
        """Map tokens [b, n, d] to tokens [b, n, d] and the intermediates."""
        config, dtype, depth = self.config, self.dtype, self.config["depth"]
        blocks = edit and edit.get("blocks")
        kind, first = config["pos_embed"], int(has_cls(config))
        if kind not in ("none", "rope_2d", "relative_bias"):  # these two act within attention
            x = PositionEmbedding(kind, self.grid, bool(first), name="posembed_input")(x)
        if count := config["num_registers"]:
            init = nn.initializers.normal(0.02)
            registers = self.param("registers", init, (1, count, x.shape[-1]))
            registers = jnp.tile(registers, (len(x), 1, 1)).astype(x.dtype)
            x = jnp.concatenate([x[:, :first], registers, x[:, first:]], 1)
        x = Dropout(config["dropout_rate"])(x, keys)
        first += config["num_registers"]
        x = PatchDropout(config["patch_drop_rate"], first)(x, keys)
        if config["pre_norm"]:
            x = build_norm(config, dtype, "pre_norm")(x)
        # Not in bfloat16: XLA would round at the boundaries of the shared function, and capturing
        # intermediates would change the logits.
        apply = _apply_shared if dtype == jnp.float32 else _apply
        x = x + added_tokens[0] if 0 in added_tokens else x
        tokens, attended = [x], []
        for i, params in enumerate(self._params_of_blocks(x)):
            drop_path_rate = config["drop_path_rate"] * i / max(1, depth - 1)
            rates = drop_path_rate, dtype, self.fused_attention
            block = EncoderBlock(config, self.grid, *rates, parent=None)
            own = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, i)
            own_added, own_edit = added and added[i], blocks and blocks[i]
            x, seen = apply(block, self.remat, params, x, own, i, own_added, own_edit)
            x = x + added_tokens[i + 1] if i + 1 in added_tokens else x
            tokens.append(x)
            attended.append(seen)
        if edit and "tokens" in edit:
            x = edit["tokens"].astype(x.dtype)  # the compiler removes the blocks
        if not config["fc_norm"]:
            x = build_norm(config, dtype, "encoder_norm")(x)
        intermediates = {key: [seen[key] for seen in attended] for key in attended[0]}
        return x, {"tokens": tokens} | intermediates

    def _params_of_blocks(self, x):
        """Return the parameters of each block; initialise all blocks in one vmap."""
        names = [f"encoderblock_{i}" for i in range(self.config["depth"])]
        if not self.is_initializing():
            return [self.get_variable("params", name) for name in names]
        block = EncoderBlock(self.config, self.grid, 0.0, self.dtype, parent=None)
        keys = jax.random.split(self.make_rng("params"), len(names))
        stacked = jax.vmap(lambda key: block.init(key, x, None, 0)["params"])(keys)
        return [
            self.param(name, lambda _, i: jax.tree.map(lambda a: a[i], stacked), i)
            for i, name in enumerate(names)
        ]


class MAPHead(nn.Module):
    """Multi-head attention pooling of SigLIP (Zhai et al. 2023, arXiv:2303.15343), with its names.

    A learned query, "probe", attends to the tokens; an MLP with a residual connection follows.
    """

    config: Mapping[str, Any]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map tokens [b, n, d] to features [b, d]."""
        config, dtype, (b, _, d) = self.config, self.dtype, x.shape
        init = nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, d)).astype(x.dtype)
        attend = nn.MultiHeadDotProductAttention(
            config["num_heads"],
            qkv_features=config["num_heads"] * head_width(config),
            kernel_init=init,
            dtype=dtype,
            name="MultiHeadDotProductAttention_0",
        )
        x = attend(jnp.tile(probe, (b, 1, 1)), x)
        y = MlpBlock(config, dtype, name="MlpBlock_0")(
            build_norm(config, dtype, "LayerNorm_0")(x), None
        )
        return (x + y)[:, 0]


def pool_tokens(config: Mapping[str, Any], x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Pool tokens [b, n, d] as `config["pool"]` says, without the registers: [b, d or 2 d].

    "seq" is the sequence pooling of CCT: a mean of patches, weighted by the softmax of a dense
    layer. "cls_mean" concatenates class token and mean, as linear probes of DINOv2 do. "cls_dist"
    concatenates class token and first register, the distillation token of DeiT: one head for both
    equals the mean of its two heads. "max" and "avgmax", the mean of "mean" and "max", are timm's.
    To be called within a compact method.
    """
    kind, cls = config["pool"], x[:, 0]
    patches = x[:, int(has_cls(config)) + config["num_registers"] :]
    if kind == "cls":
        return cls
    if kind == "cls_dist":
        return x[:, :2].reshape(len(x), -1)
    if kind == "map":
        return MAPHead(config, dtype, name="MAPHead_0")(patches)
    if kind == "seq":
        weights = jax.nn.softmax(nn.Dense(1, dtype=dtype, name="sequence_pool")(patches), 1)
        return (weights * patches).sum(1)
    mean = patches.mean(1)
    if kind in ("max", "avgmax"):
        # Not patches.max(1): its gradient compares recomputed, differently rounded values on a CPU.
        largest = jnp.take_along_axis(patches, patches.argmax(1, keepdims=True), 1)[:, 0]
        return largest if kind == "max" else (mean + largest) / 2
    return jnp.concatenate([cls, mean], -1) if kind == "cls_mean" else mean


class VisionTransformer(nn.Module):
    """Image classifier; for the attributes see `models.build`.

    Parameters and logits are float32, whatever the compute dtype.
    """

    config: Mapping[str, Any]
    num_classes: int
    dtype: jnp.dtype
    remat: bool | str
    fused_attention: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        train: bool = False,
        capture: bool = False,
        keys: jax.Array | None = None,
        added: Sequence[jax.Array] | None = None,
        added_tokens: Mapping[int, jax.Array] | None = None,
        edit: Mapping[str, Any] | None = None,
    ):
        """Classify normalised images [b, height, width, channels].

        Dropout and drop path act with `train` and random `keys` of the images [b]. For gradients,
        `added` are depth arrays [b, h, n, n] added to the attention weights, and `added_tokens`
        arrays [b, n, d] added to the tokens with these indices in "tokens".

        `edit` replaces activations. Its "blocks" are depth dicts {"heads": (mask, value), "mlp":
        (mask, value)}: where the mask is True, the value replaces the heads' outputs [b, h, n,
        width] before the output layer, or the MLP's output [b, n, d]; both broadcast. Its "tokens"
        [m, k, d] replace the residual stream before the final norm: the logits are theirs, with
        any m, and any k that the pooling accepts.

        Returns:
          float32 logits [b, num_classes]; with `capture` also a dict of "tokens" (depth + 1
          arrays [b, n, d]: after the embedding and after each block), "attention" (depth arrays
          [b, h, n, n], rows are queries) and "features" [b, d'], the head's input. Differential
          attention has negative weights too, and adds "softmax_maps" (depth arrays
          [b, h, 2, n, n]): the two maps whose difference "attention" is. With edited "blocks",
          also "heads" and "mlp": their outputs before the replacement.
        """
        # [b, rows, columns, d]
        x = embed_patches(self.config, images.astype(self.dtype), self.dtype)
        b, rows, columns, d = x.shape
        x = x.reshape(b, rows * columns, d)
        config = self.config
        if has_cls(config):
            cls = self.param("cls", nn.initializers.zeros, (1, 1, d))
            x = jnp.concatenate([jnp.tile(cls, (b, 1, 1)).astype(x.dtype), x], 1)
        fused = self.fused_attention and not capture and added is None and edit is None
        options = self.dtype, self.remat, fused
        encoder = Encoder(config, (rows, columns), *options, name="Transformer")
        tokens = added_tokens or {}
        x, intermediates = encoder(x, keys if train else None, added, tokens, edit)
        x = pool_tokens(config, x, self.dtype)
        if config["fc_norm"]:
            x = build_norm(config, self.dtype, "fc_norm")(x)
        if size := config["representation_size"]:
            x = jnp.tanh(nn.Dense(size, dtype=self.dtype, name="pre_logits")(x))
        init = nn.initializers.zeros if config["head_zero_init"] else _KERNEL_INIT
        head = nn.Dense(self.num_classes, kernel_init=init, name="head")
        logits = head(x.astype(jnp.float32))
        return (logits, intermediates | {"features": x}) if capture else logits


def attention_gradients(
    model: nn.Module, variables: dict, images: jax.Array, classes: jax.Array | None = None
) -> tuple[jax.Array, dict, list[jax.Array]]:
    """Compute the gradients of a class logit with respect to all attention weights of a ViT.

    These are the weights that multiply the values (for differential attention, the difference),
    treated as independent variables: the softmax is not differentiated. The
    images of a batch do not affect each other, so one backward pass serves all.

    Args:
      model: a VisionTransformer; others raise ValueError.
      variables: {"params": ...}.
      images: normalised [b, height, width, channels].
      classes: int [b]; None: the predicted classes.

    Returns:
      float32 logits [b, num_classes]; the intermediates, as with `capture`; and the gradients,
      depth arrays [b, h, n, n] in the model's dtype.
    """
    apply = functools.partial(model.apply, capture=True)
    seen = jax.eval_shape(apply, variables, images)[1]
    if "attention" not in seen:
        raise ValueError(f"{type(model).__name__} has no attention")

    def of_class(added):
        logits, seen = apply(variables, images, added=added)
        index = logits.argmax(-1) if classes is None else jnp.asarray(classes)
        return jnp.take_along_axis(logits, index[:, None], 1).sum(), (logits, seen)

    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in seen["attention"]]
    gradients, (logits, seen) = jax.grad(of_class, has_aux=True)(zeros)
    return logits, seen, gradients
