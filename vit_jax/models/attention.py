"""Attention layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class MultiHeadDotProductAttention(nn.Module):
    """Softmax self-attention (Vaswani et al. 2017), with the official ViT parameter names.

    Attributes:
      num_heads: number of heads h; must divide the width d.
      qkv_bias: whether the query, key and value layers have a bias.
      dropout_rate: dropout on the attention weights.
      dtype: of the computation; the softmax is taken in float32.
    """

    num_heads: int
    qkv_bias: bool
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps tokens [b, n, d] to tokens [b, n, d] and attention weights [b, h, n, n]."""
        b, n, d = x.shape
        flat = x.reshape(b * n, d)  # flat tokens: XLA:CPU transposes 3-D dense layers' gradients

        def project(name):
            layer = nn.DenseGeneral(
                (self.num_heads, d // self.num_heads),
                use_bias=self.qkv_bias,
                kernel_init=nn.initializers.xavier_uniform(),
                dtype=self.dtype,
                name=name,
            )
            # Heads before tokens: the batched products below then run on matrices as they lie.
            return layer(flat).reshape(b, n, self.num_heads, -1).swapaxes(1, 2)

        query, key, value = project("query"), project("key"), project("value")  # [b, h, n, d/h]
        query = query * (query.shape[-1] ** -0.5)
        scores = query @ key.swapaxes(-1, -2)  # [b, h, n, n]
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        dropped = nn.Dropout(self.dropout_rate)(weights, deterministic=not train)
        out = (dropped @ value).swapaxes(1, 2)  # [b, n, h, d/h]
        out = nn.DenseGeneral(
            d,
            axis=(-2, -1),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            name="out",
        )(out.reshape(b * n, self.num_heads, -1))
        return out.reshape(b, n, d), weights
