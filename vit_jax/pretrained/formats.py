"""Convert arrays between our format and those of other projects, by the tables."""

import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import models
from vit_jax.config import get_config
from vit_jax.pretrained import tables
from vit_jax.pretrained.architectures import HEADS, SUPPORTED
from vit_jax.pretrained.tables import BLOCK, DENSE_0, POSITIONS, QKV
from vit_jax.runtime.errors import UserError

Arrays = dict[str, np.ndarray]

_WRAPPERS = ("module.", "model.", "_orig_mod.")  # of DataParallel, trainers and torch.compile
_PRE_LINEN = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
    "LayerNorm_2": "LayerNorm_1",
}


def detect(keys: set[str], is_npz: bool, source) -> str:
    """Detect the format of a file's canonical keys; raises UserError if it is unknown."""
    for name, table in tables.TABLES.items():
        typical = {theirs for ours, theirs, _ in table if ours in tables.TYPICAL}
        if typical & keys and is_npz == (name == "npz"):
            return name
    raise UserError(
        f"{source} has no known layout: it contains {some(sorted(keys))}; use {SUPPORTED}"
    )


def some(items: list[str], separator: str = ", ") -> str:
    """Join the first four items, with the number of further ones."""
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return separator.join(items[:4]) + more


def canonical(arrays: Arrays, is_npz: bool) -> Arrays:
    """Rename arrays to the keys of the tables, convert to float32, and drop non-weights.

    Removes the prefixes "opt/target/", "params/", "params/img/" and "vit.", and those of wrapped
    modules ("module.", "model.", "_orig_mod."); converts the numbering of pre-Linen Flax
    (MlpBlock_3 for the first MlpBlock), big_vision's stacked blocks, its positions outside the
    encoder and its bfloat16 as raw bytes, and torchvision's older names.
    """
    if is_npz:
        prefixes = ("opt/target/", "params/img/", "params/")
        prefix = next((p for p in prefixes if any(key.startswith(p) for key in arrays)), "")
        # Keys without the prefix belong to the optimizer.
        inside = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        arrays = dict(_linen(inside))
    else:
        while prefix := next((p for p in _WRAPPERS if all(k.startswith(p) for k in arrays)), ""):
            arrays = {key.removeprefix(prefix): value for key, value in arrays.items()}
        renamed = {r"^vit\.": "", r"mlp\.linear_1\.": "mlp.0.", r"mlp\.linear_2\.": "mlp.3."}
        for old, new in renamed.items():
            arrays = {re.sub(old, new, key): value for key, value in arrays.items()}
        # Only PyTorch uses num_batches_tracked.
        arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    return {
        key: np.asarray(x.view(ml_dtypes.bfloat16) if x.dtype.kind == "V" else x, np.float32)
        for key, x in arrays.items()
    }


def _linen(arrays):
    """Yield the arrays of an official file, without prefix, under Linen's names."""
    for key, value in arrays.items():
        key = _renumbered(key, _PRE_LINEN)
        key = POSITIONS if key == "pos_embedding" else key
        before, stacked, after = key.partition("Transformer/encoderblock/")
        if stacked and not before:
            yield from ((f"{BLOCK.format(i=i)}/{after}", block) for i, block in enumerate(value))
        else:
            yield key, value


def _renumbered(key, numbers):
    return "/".join(str(numbers.get(name, name)) for name in key.split("/"))


def official(arrays: Arrays) -> Arrays:
    """Rename arrays in the "npz" format to the numbering of the official files of 2020."""
    numbers = {new: old for old, new in _PRE_LINEN.items()}
    return {_renumbered(key, numbers): array for key, array in arrays.items()}


def describe(
    name: str, arrays: Arrays, known: dict, source
) -> tuple[dict, int, tuple[int, int] | None]:
    """Derive what the arrays record.

    Args:
      name: the format.
      arrays: the canonical arrays.
      known: settings from elsewhere; "data.image_size" is (height, width).
      source: the file, for messages.

    Returns:
      The settings {"model.depth": 12, ...}; the number of classes, 0 without a head; and the rows
      and columns of the position table, None without one.

    Raises:
      UserError: the arrays are not those of a ViT or ResNet18, or contradict `known`.
    """
    found = _Arrays(name, arrays, source)
    if name == "resnet18":
        return _describe_resnet(found, known), found.length("head/bias"), None
    patch, other_side, channels, width = found.get("embedding/kernel", 4).shape
    if patch != other_side or not patch:
        raise UserError(
            f"{source} has patches of {patch}x{other_side} pixels, which are not square"
        )
    grid, sides = None, known.get("data.image_size")
    if name != "npz" or POSITIONS in found:
        grid = _grid(found.get(POSITIONS, 3).shape[1], "cls" in found, patch, sides, source)
    image_side = sides and sides[0]
    heads = found.get(f"{QKV}/kernel", 3).shape[1] if name == "npz" else None
    norm = re.escape(found.rows[f"{BLOCK}/LayerNorm_0/scale"][0]).replace(r"\{i\}", r"\d+")
    settings = {
        "model.name": "vit",
        "model.patch_size": patch,
        "model.hidden_size": width,
        "model.depth": sum(bool(re.fullmatch(norm, key)) for key in arrays),
        "model.num_heads": _num_heads(name, width, heads, known.get("model.num_heads"), source),
        "model.mlp_dim": len(found.get(f"{DENSE_0}/bias", 1)),
        "model.attention": "softmax",
        "model.patchify": "conv",
        "model.pos_embed": "learned_1d" if grid else known.get("model.pos_embed"),
        "model.pool": "cls" if "cls" in found else "mean",
        "model.qkv_bias": f"{QKV}/bias" in found,
        "model.representation_size": found.length("pre_logits/bias"),
        # A grid that is not square is resized to a square one of as many patches.
        "data.image_size": round(math.prod(grid) ** 0.5) * patch if grid else image_side,
        "data.channels": channels,
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    return settings, found.length("head/bias"), grid


def _describe_resnet(found, known):
    size, _, channels, width = found.get("conv1/kernel", 4).shape
    return {
        "model.name": "resnet18",
        "model.hidden_size": width,
        "model.stem": "cifar" if size == 3 else "imagenet",
        "data.image_size": known.get("data.image_size", (32 if size == 3 else 224,))[0],
        "data.channels": channels,
    }


class _Arrays:
    """The canonical arrays of a format by the path of our parameter; of blocks, the first."""

    def __init__(self, name, arrays, source):
        self.rows = {ours: (theirs, layout) for ours, theirs, layout in tables.TABLES[name]}
        self._arrays, self._source = arrays, source

    def _key(self, path):
        return self.rows[path][0].format(i=0, qkv="query") if path in self.rows else None

    def __contains__(self, path):
        return self._key(path) in self._arrays

    def get(self, path, ndim):
        key = self._key(path)
        if key not in self._arrays:
            raise UserError(f"{self._source}: {key} is missing")
        shape = self._arrays[key].shape
        if len(shape) != ndim:
            raise UserError(f"{self._source}: {key} has the shape {shape}, not {ndim} dimensions")
        return self.rows[path][1].to_ours(self._arrays[key], ())

    def length(self, path):
        return len(self.get(path, 1)) if path in self else 0


def _grid(tokens, has_cls, patch, sides, source):
    """Compute the rows and columns of a position table; without `sides`, it must be square."""
    for patches in (tokens, max(0, tokens - has_cls)):
        if sides is None and math.isqrt(patches) ** 2 == patches:
            return math.isqrt(patches), math.isqrt(patches)
        if sides is not None and (sides[0] // patch) * (sides[1] // patch) == patches:
            return sides[0] // patch, sides[1] // patch
    what = "a square image" if sides is None else f"{sides[0]}x{sides[1]} pixels"
    raise UserError(
        f"{source} has {tokens} positions, which are not those of {what} in patches of "
        f"{patch}x{patch} pixels: give image_size as height and width"
    )


def _num_heads(name, width, found, given, source):
    if found and given not in (None, found):
        raise UserError(f"{source} has {found} attention heads, not {given}")
    number = found or given or HEADS.get(name, {}).get(width)
    if number is not None and (type(number) is not int or number < 1 or width % number):
        raise UserError(f"{number!r} attention heads do not divide the width of {source}, {width}")
    return number


def shapes(settings: dict, num_classes: int) -> dict[str, tuple]:
    """Compute {our path: shape} of the model of these settings, without head for 0 classes."""
    config = get_config()
    config.update_from_flattened_dict(settings)
    size, channels = config.data.image_size, config.data.channels
    model = models.build(config.model, max(1, num_classes))
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), image)
    flat = flat_weights(tree["params"], tree.get("batch_stats", {}))
    return {k: v.shape for k, v in flat.items() if num_classes or not k.startswith("head/")}


def flat_weights(params: dict, batch_stats: dict) -> dict:
    """Flatten to {"embedding/kernel": ..., "batch_stats/bn1/mean": ...}."""
    flat = flatten_dict(params, sep="/")
    return flat | {f"batch_stats/{k}": v for k, v in flatten_dict(batch_stats, sep="/").items()}


def nested_weights(flat: dict) -> tuple[dict, dict]:
    """Undo `flat_weights`: return the parameters and batch statistics."""
    tree = unflatten_dict(flat, sep="/")
    return tree, tree.pop("batch_stats", {})


def _rows(name, ours):
    """Yield (our paths, their key, layout) for a model with the paths `ours`."""
    depth = sum(bool(re.fullmatch(BLOCK.format(i=r"\d+") + "/LayerNorm_0/scale", p)) for p in ours)
    for path, key, layout in tables.TABLES[name]:
        for i in range(depth) if "{i}" in path else (0,):
            names = [dict(i=i, qkv=qkv) for qkv in ("query", "key", "value")]
            keys = {path.format(**name): key.format(**name) for name in names}
            for their in dict.fromkeys(keys.values()):
                if paths := [p for p, k in keys.items() if k == their and p in ours]:
                    yield paths, their, layout


def to_theirs(name: str, ours: Arrays) -> Arrays:
    """Convert {our path: array} to the arrays of a format."""
    return {
        key: np.concatenate([layout.to_theirs(ours[path]) for path in paths])
        for paths, key, layout in _rows(name, ours)
    }


def to_ours(name: str, arrays: Arrays, ours: dict[str, tuple], source) -> Arrays:
    """Convert the canonical arrays of a format to those of `ours`, {our path: shape}.

    Raises UserError that lists all missing, misshaped, unexpected and non-finite arrays.
    """
    arrays, result, problems = dict(arrays), {}, []
    template = {path: np.broadcast_to(np.float32(0), shape) for path, shape in ours.items()}
    wanted = {key: value.shape for key, value in to_theirs(name, template).items()}
    for paths, key, layout in _rows(name, ours):
        array = arrays.pop(key, None)
        if array is None:
            problems.append(f"{key} is missing")
            continue
        if paths == [POSITIONS] and array.shape[1:2] == (wanted[key][1] - 1,) and "cls" in ours:
            array = np.pad(array, ((0, 0), (1, 0), (0, 0)))  # no position for the class token
        if array.shape != wanted[key]:
            problems.append(f"{key} has the shape {array.shape} instead of {wanted[key]}")
            continue
        for path, piece in zip(paths, np.split(array, len(paths)), strict=True):
            result[path] = np.ascontiguousarray(layout.to_ours(piece, ours[path]))
    problems += [f"{key} is unexpected" for key in sorted(arrays)]
    if problems:
        raise UserError(f"{source} does not fit the {name} layout: {some(problems, '; ')}")
    check_finite(result, source)
    return result


def check_finite(arrays: Arrays, source) -> None:
    """Raise UserError if an array contains NaN or infinite values."""
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{source} contains NaN or infinite values in {some(bad)}")
