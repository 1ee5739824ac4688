"""From the arrays of another project's file to ours, and back, after the tables."""

import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import models
from vit_jax.config import MODEL_SIZES, get_config
from vit_jax.pretrained import tables
from vit_jax.pretrained.tables import BLOCK, DENSE_0, POSITIONS, QKV
from vit_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]


def detect(keys: set[str], is_npz: bool, source) -> str:
    """Returns the format of a file's keys, after `canonical`; raises UserError if it is none."""
    for name, key in tables.KNOWN_BY.items():
        if key in keys and is_npz == (name == "npz"):
            return name
    kinds = "the official ViT" if is_npz else "a ViT of timm, Hugging Face or torchvision, ResNet18"
    raise UserError(f"{source} holds no known kind of weights ({kinds}): it has {_some(keys)}")


def _some(keys):
    return ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def canonical(arrays: Arrays, is_npz: bool) -> Arrays:
    """Returns the arrays under the names of the tables, float32, without what carries no weights.

    Undone are the prefixes "opt/target/", "params/", "params/img/" and "vit."; the numbers of
    pre-Linen Flax (MlpBlock_3 for the first MlpBlock); big_vision's stacked blocks, its positions
    outside of the encoder, and its bfloat16 kept as raw bytes; torchvision's older names.
    """
    if is_npz:
        arrays = _unprefixed(arrays)
        arrays = {_linen(key): value for key, value in arrays.items()}
        if "pos_embedding" in arrays:
            arrays[POSITIONS] = arrays.pop("pos_embedding")
        arrays = dict(_unstacked(arrays))
    else:
        # The numbers of batches seen serve PyTorch alone.
        arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
        arrays = {re.sub(r"^vit\.", "", key): value for key, value in arrays.items()}
        older = {"mlp.linear_1.": "mlp.0.", "mlp.linear_2.": "mlp.3."}
        for old, new in older.items():
            arrays = {key.replace(old, new): value for key, value in arrays.items()}
    return {key: _float32(value) for key, value in arrays.items()}


def _unprefixed(arrays):
    for prefix in ("opt/target/", "params/img/", "params/"):
        inside = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        if inside:  # what lies outside is of the optimizer
            return inside
    return arrays


def _linen(key):
    numbers = {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    numbers |= {"MlpBlock_3": "MlpBlock_0", "LayerNorm_2": "LayerNorm_1"}
    return "/".join(str(numbers.get(part, part)) for part in key.split("/"))


def _unstacked(arrays):
    stacked = "Transformer/encoderblock/"
    for key, value in arrays.items():
        if key.startswith(stacked):
            for i, part in enumerate(value):
                yield f"{BLOCK.format(i=i)}/{key.removeprefix(stacked)}", part
        else:
            yield key, value


def _float32(array):
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:
        array = array.view(ml_dtypes.bfloat16)
    return np.asarray(array, np.float32)


def describe(name: str, arrays: Arrays, num_heads: int | None, source) -> tuple[dict, int]:
    """Returns the settings {"model.depth": 12, ...} of the model that canonical arrays belong to.

    Args:
      name: of the format.
      arrays: canonical.
      num_heads: given by the user or a file beside; None: of the named size.
      source: for the message.

    Returns:
      The settings, and the number of classes, 0 without a head.

    Raises:
      UserError: the arrays are not those of a ViT or ResNet18.
    """
    found = _Finder(name, arrays, source)
    num_classes = len(found("head/bias", 1)) if "head/bias" in found else 0
    if name == "resnet18":
        kernel = found("conv1/kernel", 4)
        stem, size = ("cifar", 32) if kernel.shape[0] == 3 else ("imagenet", 224)
        settings = {"model.name": name, "model.hidden_size": kernel.shape[-1], "model.stem": stem}
        settings |= {"data.image_size": size, "data.channels": kernel.shape[2]}
        return settings, num_classes
    patch, other_side, channels, width = found("embedding/kernel", 4).shape
    if patch != other_side:
        raise UserError(
            f"{source} has patches of {patch}x{other_side} pixels, which are no squares"
        )
    tokens = found(POSITIONS, 3).shape[1]
    grid = math.isqrt(tokens) if math.isqrt(tokens) ** 2 == tokens else math.isqrt(tokens - 1)
    heads_found = found(f"{QKV}/kernel", 3).shape[1] if name == "npz" else None
    has_tanh = "pre_logits/bias" in found
    return {
        "model.name": "vit",
        "model.patch_size": patch,
        "model.hidden_size": width,
        "model.depth": found.depth(),
        "model.num_heads": _num_heads(width, heads_found, num_heads, source),
        "model.mlp_dim": found(f"{DENSE_0}/kernel", 2).shape[-1],
        "model.attention": "softmax",
        "model.patchify": "conv",
        "model.pos_embed": "learned_1d",
        "model.pool": "cls" if "cls" in found else "mean",
        "model.qkv_bias": f"{QKV}/bias" in found,
        "model.representation_size": len(found("pre_logits/bias", 1)) if has_tanh else 0,
        "data.image_size": grid * patch,
        "data.channels": channels,
    }, num_classes


def _num_heads(width, found, given, source):
    named = {size[0]: size[2] for size in MODEL_SIZES.values()}
    named |= {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # So400m, H, g, G: Zhai et al. 2022
    if found and given not in (None, found):
        raise UserError(f"{source} has {found} attention heads, not {given}")
    number = found or given or named.get(width)
    if number is None:
        raise UserError(
            f"{source} does not record its number of attention heads: give num_heads, which "
            f"divides its width of {width}"
        )
    if type(number) is not int or number < 1 or width % number:
        raise UserError(f"{number!r} attention heads do not divide the width of {source}, {width}")
    return number


class _Finder:
    """Arrays of one format by our paths, of the first block."""

    def __init__(self, name, arrays, source):
        self._arrays, self._source = arrays, source
        self._table = {ours: (theirs, layout) for ours, theirs, layout in tables.TABLES[name]}

    def _key(self, path):
        key = self._table.get(path, ("", tables.SAME))[0]
        return key.format(i=0, qkv="query")

    def __contains__(self, path):
        return self._key(path) in self._arrays

    def __call__(self, path, ndim):
        """Returns an array of `ndim` dimensions, in a layout of ours that needs no shape."""
        if path not in self:
            raise UserError(f"{self._source} lacks {self._key(path)}")
        array = self._arrays[self._key(path)]
        if array.ndim != ndim:
            raise UserError(
                f"{self._source}: {self._key(path)} has the shape {array.shape}, not {ndim} "
                "dimensions"
            )
        return self._table[path][1].to_ours(array, ())

    def depth(self):
        before, after = self._table[f"{BLOCK}/LayerNorm_0/scale"][0].split("{i}")
        pattern = re.compile(re.escape(before) + r"\d+" + re.escape(after))
        return sum(bool(pattern.fullmatch(key)) for key in self._arrays)


def shapes(settings: dict, num_classes: int) -> dict[str, tuple]:
    """Returns {our path: shape} of the model that `settings` describe; without classes, no head."""
    config = get_config()
    config.update_from_flattened_dict(settings)
    size, channels = config.data.image_size, config.data.channels
    model = models.build(config.model, max(1, num_classes))
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)
    flat = flat_weights(tree["params"], tree.get("batch_stats", {}))
    return {k: v.shape for k, v in flat.items() if num_classes or not k.startswith("head/")}


def flat_weights(params: dict, batch_stats: dict) -> dict:
    """Returns {"embedding/kernel": ..., "batch_stats/bn1/mean": ...}."""
    flat = flatten_dict(params, sep="/")
    return flat | {f"batch_stats/{k}": v for k, v in flatten_dict(batch_stats, sep="/").items()}


def nested_weights(flat: dict) -> tuple[dict, dict]:
    """Returns the parameters and batch statistics that `flat_weights` was made of."""
    stats = {k.removeprefix("batch_stats/"): v for k, v in flat.items() if k.startswith("batch_")}
    params = {k: v for k, v in flat.items() if not k.startswith("batch_stats/")}
    return unflatten_dict(params, sep="/"), unflatten_dict(stats, sep="/")


def _lines(name, ours):
    """Yields (our paths, their key, layout) of a model with the paths `ours`."""
    depth = sum(bool(re.fullmatch(BLOCK.format(i=r"\d+") + "/LayerNorm_0/scale", p)) for p in ours)
    for path, key, layout in tables.TABLES[name]:
        for i in range(depth) if "{i}" in path else (0,):
            names = ("query", "key", "value") if "{qkv}" in path else ("",)
            paths = [path.format(i=i, qkv=qkv) for qkv in names]
            if paths[0] not in ours:
                continue
            if "{qkv}" in key or len(names) == 1:
                for p, qkv in zip(paths, names, strict=True):
                    yield (p,), key.format(i=i, qkv=qkv), layout
            else:
                yield tuple(paths), key.format(i=i), layout


def to_theirs(name: str, ours: Arrays) -> Arrays:
    """Returns the arrays of a format, from {our path: array}."""
    return {
        key: np.concatenate([layout.to_theirs(ours[path]) for path in paths])
        for paths, key, layout in _lines(name, ours)
    }


def to_ours(name: str, arrays: Arrays, ours: dict[str, tuple], source) -> Arrays:
    """Returns {our path: array} from the canonical arrays of a format.

    Args:
      name: of the format.
      arrays: canonical; each must serve exactly once.
      ours: {our path: shape}, each of which must be found.
      source: for the message.

    Raises:
      UserError: lists all that is missing, misshaped or left over.
    """
    arrays, result, problems = dict(arrays), {}, []
    template = {path: np.broadcast_to(np.float32(0), shape) for path, shape in ours.items()}
    wanted = {key: value.shape for key, value in to_theirs(name, template).items()}
    for paths, key, layout in _lines(name, ours):
        array = arrays.pop(key, None)
        if array is None:
            problems.append(f"{key} is missing")
            continue
        if paths == (POSITIONS,) and array.shape[1:2] == (wanted[key][1] - 1,) and "cls" in ours:
            array = np.pad(array, ((0, 0), (1, 0), (0, 0)))  # the class token had no position
        if array.shape != wanted[key]:
            problems.append(f"{key} has the shape {array.shape} instead of {wanted[key]}")
            continue
        for path, part in zip(paths, np.split(array, len(paths)), strict=True):
            result[path] = np.ascontiguousarray(layout.to_ours(part, ours[path]))
    problems += [f"{key} has no place" for key in sorted(arrays)]
    if problems:
        raise UserError(f"{source} does not fit the {name} layout: {'; '.join(problems)}")
    check_finite(result, source)
    return result


def check_finite(arrays: Arrays, source) -> None:
    """Raises UserError if an array holds a value that is NaN or infinite."""
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{source} holds values that are not finite numbers, in {_some(bad)}")
