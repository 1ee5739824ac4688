"""Layers that are faster than Flax's or independent of how a batch is sharded."""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Dropout with a random key per image, independent of the sharding of the batch.

    With `whole`, all values of an image share one draw (stochastic depth, Huang et al. 2016).
    """

    rate: float
    whole: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, keys: jax.Array | None) -> jax.Array:
        """Map x [b, ...] to the same shape, with the images' keys [b]; without keys, to itself."""
        if keys is None or not self.rate:
            return x
        own = zlib.crc32("/".join(self.path).encode())  # unlike hash(), the same in every process
        n, *rest = (1,) * (x.ndim - 1) if self.whole else x.shape[1:]

        def draw(key):
            # Drawing bits dominates the cost of dropout: `random.bits` would combine the two words
            # of each key. No bitcast to narrower words, which TPUs pad to 128 lanes.
            keys = jax.random.split(jax.random.fold_in(key, own), (-(-n // 2), *rest))
            words = jax.random.key_data(keys)
            return jnp.concatenate([words[..., 0], words[..., 1]])[:n]

        mask = jax.vmap(draw)(keys) >= jnp.uint32(int(self.rate * 2**32))
        return jnp.where(mask, x / (1 - self.rate), 0).astype(x.dtype)


class Kernel(nn.Module):
    """Parameters of a dense layer.

    `inputs` and `features` are the shapes of an input, such as (patch, patch, channels), and of an
    output, such as (heads, width); `kernel_init` initialises the kernel as a matrix. See `dense`.
    """

    inputs: Sequence[int]
    features: Sequence[int]
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Return the kernel as a matrix [inputs, outputs] and the bias [outputs], 0 if disabled."""
        rows, columns = math.prod(self.inputs), math.prod(self.features)

        def init(key, shape):
            return self.kernel_init(key, (rows, columns)).reshape(shape)

        kernel = self.param("kernel", init, (*self.inputs, *self.features))
        bias = jnp.zeros(columns)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, tuple(self.features))
        return kernel.reshape(rows, columns), bias.reshape(columns)


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Compute x @ kernel + bias of x [n, inputs] in `dtype`.

    The gradients of kernel and bias are summed and returned in float32, over devices too.
    """
    x = x.astype(dtype)
    x = _on_own_device(x)
    product = x @ kernel if dtype == jnp.float32 else _product_in_dtype(x, kernel)
    product = _on_own_device(product)
    # Broadcast first: the gradient is then summed after its conversion to float32.
    return product + jnp.broadcast_to(bias, product.shape).astype(dtype)


def _on_own_device(x):
    """Keep the rows of a batch [n, ...] on their device, if the compiler shards the computation.

    Else, for small batches, it leaves the weights where they are and shards the features: the
    all-to-alls cannot overlap with computation, and sums over devices are in bfloat16.
    """
    if "data" not in jax.sharding.get_abstract_mesh().auto_axes:
        return x
    return jax.lax.with_sharding_constraint(x, jax.P("data"))


@jax.custom_vjp
def _product_in_dtype(x, kernel):
    return x @ kernel.astype(x.dtype)


def _product_forward(x, kernel):
    # Not by `_product_in_dtype`, in which policies of `jax.checkpoint` would not see the product.
    return x @ kernel.astype(x.dtype), (x, kernel)


def _product_backward(inputs, dy):
    x, kernel = inputs
    gradient = jnp.matmul(x.T, dy, preferred_element_type=jnp.float32)
    return dy @ kernel.astype(x.dtype).T, gradient.astype(kernel.dtype)


_product_in_dtype.defvjp(_product_forward, _product_backward)


class LayerNorm(nn.LayerNorm):
    """Flax's LayerNorm, with an explicit gradient in other dtypes than float32.

    Of Flax's, XLA:GPU writes float32 intermediates to memory. The tokens are flat, as in dense
    layers: else XLA:GPU transposes them in between.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise x [..., d]."""
        if self.dtype == jnp.float32:
            return super().__call__(x)
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        flat = x.astype(self.dtype).reshape(-1, *shape)
        return _normalize(flat, scale, bias, self.epsilon).reshape(x.shape)


@jax.custom_vjp
def _normalize(x, scale, bias, epsilon):
    return _normalize_forward(x, scale, bias, epsilon)[0]


def _normalize_forward(x, scale, bias, epsilon):
    y = x.astype(jnp.float32)
    mean, square = y.mean(-1, keepdims=True), jnp.square(y).mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.maximum(0, square - jnp.square(mean)) + epsilon)
    y = (y - mean) * (factor * scale) + bias
    return y.astype(x.dtype), (x, scale, mean, factor)


def _normalize_backward(saved, dy):
    x, scale, mean, factor = saved
    gradient = dy.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * factor
    scaled = gradient * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    dx = factor * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), (gradient * normal).sum(0), gradient.sum(0), None


_normalize.defvjp(_normalize_forward, _normalize_backward)


def build_norm(config: Mapping[str, Any], dtype: jnp.dtype, name: str | None = None) -> nn.Module:
    """Build the norm `config["norm"]`: LayerNorm, or RMSNorm (Zhang & Sennrich 2019)."""
    norm = nn.RMSNorm if config["norm"] == "rms" else LayerNorm
    return norm(epsilon=config["norm_eps"], dtype=dtype, name=name)


def gelu(x: jax.Array, kind: str) -> jax.Array:
    """Apply GELU: "tanh" and "quick" (x * sigmoid(1.702 x)) approximate "erf".

    The gradient in other dtypes than float32 is computed in float32 from x alone.
    """
    return _gelu(x, kind) if x.dtype == jnp.float32 else _gelu_recomputed(x, kind)


def _gelu(x, kind):
    if kind == "quick":
        return x * jax.nn.sigmoid(1.702 * x)
    return gelu_exact(x) if kind == "erf" else nn.gelu(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu_recomputed(x, kind):
    return _gelu(x, kind)


def _gelu_backward(kind, x, dy):
    def gradient_at(x, dy):
        _, gradient = jax.vjp(lambda x: _gelu(x, kind), x.astype(jnp.float32))
        return gradient(dy.astype(jnp.float32))[0].astype(x.dtype)

    def apart(x, dy):
        barrier = jax.lax.optimization_barrier
        return barrier(gradient_at(*barrier((x, dy))))

    # Barriers keep XLA:GPU from storing values of the forward pass, and a float32 gradient; on a
    # TPU they would keep it from fusing the gradient with products.
    return (jax.lax.platform_dependent(x, dy, cuda=apart, default=gradient_at),)


_gelu_recomputed.defvjp(lambda x, kind: (_gelu(x, kind), x), _gelu_backward)


def gelu_exact(x: jax.Array) -> jax.Array:
    """Compute x * Phi(x) (Hendrycks & Gimpel 2016) in float32, as PyTorch does.

    jax.nn.gelu uses erfc instead of erf: more exact for large negative x, where the result is
    nearly 0, but half as fast on a CPU.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Convolve images [b, height, width, c] with square kernels [size, size, c, d].

    On a CPU, the gradient of the kernel, and that of the images for few outputs or a stride, are
    computed as matrix products: XLA's gradients run at a fraction of their speed there.
    """
    return _convolution(x, kernel, stride, padding)


def _convolution(x, kernel, stride, padding):
    sides, order = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=order)


def _convolve_backward(stride, padding, inputs, dy):
    sizes = dict(stride=stride, padding=padding)
    by_products = functools.partial(_gradients_by_products, **sizes)
    # Of the devices that the program is lowered for.
    return jax.lax.platform_dependent(
        *inputs, dy, cpu=by_products, default=functools.partial(_gradients_by_xla, **sizes)
    )


def _gradients_by_xla(x, kernel, dy, stride, padding):
    return jax.vjp(lambda x, k: _convolution(x, k, stride, padding), x, kernel)[1](dy)


def _gradients_by_products(x, kernel, dy, stride, padding):
    # Flipping the kernel is not worth it for few outputs, and with a stride the transposed
    # convolution multiplies by zeros.
    if math.prod(dy.shape[1:3]) < 64 or stride > 1:
        (dx,) = jax.linear_transpose(lambda x: _product(x, kernel, stride, padding), x)(dy)
    else:
        # With an explicit flip: XLA may fuse the flip of its gradient into the convolution, which
        # takes ten times as long within a loop.
        flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        dx = _convolution(dy, flipped, 1, kernel.shape[0] - 1 - padding)
    return dx, _kernel_gradient(x, dy, kernel.shape, stride, padding).astype(kernel.dtype)


def _product(x, kernel, stride, padding):
    """Convolve as matrix products of patches and kernel (im2col)."""
    size, columns = kernel.shape[0], kernel.shape[-1]
    height, width = ((n + 2 * padding - size) // stride + 1 for n in x.shape[1:3])

    def of_chunk(x):
        return _patches(x, size, stride, padding) @ kernel.reshape(-1, columns)

    y = jax.lax.map(of_chunk, _split(x, height * width))
    return y.reshape(-1, height, width, columns)


def _kernel_gradient(x, dy, shape, stride, padding):
    """Compute the gradient of the kernel, [size, size, c, d], from patches and `dy`."""
    positions, d = math.prod(dy.shape[1:3]), dy.shape[-1]

    def add(total, chunk):
        x, dy = chunk
        # In this order, the product is 1.5 times as fast as its transpose.
        patches = _patches(x, shape[0], stride, padding)
        product = jnp.matmul(dy.reshape(-1, d).T, patches, preferred_element_type=jnp.float32)
        return total + product, None

    zeros = jnp.zeros((d, math.prod(shape[:3])), jnp.float32)  # also of bfloat16 images
    total, _ = jax.lax.scan(add, zeros, (_split(x, positions), _split(dy, positions)))
    return total.T.reshape(shape)


def _split(x, positions):
    """Reshape images [b, ...] with this many kernel positions each to [chunks, images, ...].

    Chunks are just large enough for an efficient product, so that patches stay in the CPU cache.
    """
    b, fitting = len(x), max(1, 512 // positions)
    chunks = next(n for n in range(-(-b // fitting), b + 1) if b % n == 0)
    return x.reshape(chunks, -1, *x.shape[1:])


def _patches(x, size, stride, padding):
    """Extract patches [positions, size * size * c] from images [b, height, width, c]."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    shifts = [(i, j) for i in range(size) for j in range(size)]
    shifted = [x[:, i : i + rows : stride, j : j + columns : stride] for i, j in shifts]
    return jnp.concatenate(shifted, -1).reshape(-1, size * size * x.shape[-1])


convolve.defvjp(
    lambda x, kernel, *sizes: (convolve(x, kernel, *sizes), (x, kernel)), _convolve_backward
)
