"""Resize position embeddings and patch kernels to another image or patch size.

Every rule is linear and separable: a matrix [new, old] for each side of the grid.
"""

import numpy as np

_RULES = {
    **{"npz": "official", "torchvision": "torchvision"},
    **dict.fromkeys(("hf", "hf_dinov2", "hf_clip"), "hf"),
}
RULE_NAMES = {
    "official": "linear between aligned corners, the official rule",
    "timm": "bicubic with antialiasing, timm's rule",
    "hf": "bicubic without antialiasing, Hugging Face's rule",
    "torchvision": "bicubic between aligned corners, torchvision's rule",
    "siglip2": "linear with antialiasing, the rule of SigLIP 2",
}


def rule_of(name: str, project: str | None, has_registers: bool) -> str:
    """Choose the rule of RULE_NAMES for position embeddings: that of the code of the weights.

    Args:
      name: the format.
      project: as in `preprocessing.usual`.
      has_registers: of DINOv2, whose code antialiases the positions of models with registers only.
    """
    if project in ("siglip2", "siglip2_vision_model"):
        return "siglip2"
    if name == "hf_dinov2" and has_registers:
        return "timm"
    if project == "official":  # of DeiT, DINO, DINOv2 and MAE
        return "timm" if has_registers else "hf"
    return _RULES.get(name, "timm")


def resize_matrix(rule: str, new: int, old: int) -> np.ndarray:
    """Compute the matrix [new, old] that resizes one side of a grid.

    "official" is scipy.ndimage.zoom(order=1), as in interpolate_posembed of
    google-research/vision_transformer. "timm" is PyTorch's bicubic interpolation with
    antialias=True (a = -0.5, the kernel widened where the grid shrinks), "hf" that without
    (a = -0.75, the border repeated), "torchvision" the latter with align_corners=True, as in
    interpolate_embeddings of torchvision. "siglip2" is PyTorch's bilinear interpolation with
    antialias=True.
    """
    places = (np.arange(new) + 0.5) * old / new - 0.5
    if rule in ("official", "torchvision"):
        places = np.arange(new) * ((old - 1) / max(1, new - 1))
    if rule == "official":
        return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))
    if rule in ("timm", "siglip2"):
        x = (places[:, None] - np.arange(old)) / max(1.0, old / new)
        weights = _cubic(x, -0.5) if rule == "timm" else np.maximum(0, 1 - np.abs(x))
        return weights / weights.sum(1, keepdims=True)
    matrix, first = np.zeros((new, old)), np.floor(places).astype(int)
    for offset in range(-1, 3):
        columns = first + offset
        rows = np.arange(new), columns.clip(0, old - 1)
        np.add.at(matrix, rows, _cubic(places - columns, -0.75))
    return matrix


def _cubic(x, a):
    """Evaluate the cubic convolution kernel of Keys 1981."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def resize_positions(
    table: np.ndarray, tokens: int, has_cls: bool, rule: str, grid: tuple[int, int] | None = None
) -> np.ndarray:
    """Resize learned positions [1, n, d] of a grid, by default square, to a square: [1, tokens, d].

    The position of the class token is unchanged.
    """
    cls, patches = table[:, : int(has_cls)], table[0, int(has_cls) :]
    old, new = (round(n**0.5) for n in (len(patches), tokens - int(has_cls)))
    rows, columns = grid or (old, old)
    matrices = (resize_matrix(rule, new, rows), resize_matrix(rule, new, columns))
    square = patches.reshape(rows, columns, -1)
    resized = np.einsum("ij,kl,jld->ikd", *matrices, square, optimize=True)
    resized = resized.reshape(1, new * new, -1).astype(np.float32)
    return np.concatenate([cls, resized], 1)


def resize_patches(kernel: np.ndarray, patch: int) -> np.ndarray:
    """Resize a patch embedding [p, p, channels, d] to [patch, patch, channels, d].

    A patch that is enlarged with the image then has the same token (exactly, where p <= patch):
    the kernel is multiplied by the pseudo-inverse of the transposed resizing (Beyer et al. 2023,
    FlexiViT, arXiv:2212.08013, equation 2; resizing as in `resize_matrix`, "timm").
    """
    # The pseudo-inverse of a Kronecker product is that of its factors.
    matrix = np.linalg.pinv(resize_matrix("timm", patch, len(kernel)).T)  # [patch, old]
    return np.einsum("ij,kl,jlcd->ikcd", matrix, matrix, kernel, optimize=True).astype(np.float32)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the RGB kernel [p, p, 3, d] of the first layer to [p, p, channels, d].

    Channel i has the weights of channel i mod 3, times 3 / channels, as `adapt_input_conv` of timm:
    the activations of an image whose channels are alike keep about their size.
    """
    repeated = kernel[:, :, np.arange(channels) % kernel.shape[2]]
    return (repeated * (kernel.shape[2] / channels)).astype(np.float32)
