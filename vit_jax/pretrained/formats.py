"""Convert arrays between our format and those of other projects, by the tables."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax import models
from vit_jax.config import get_config
from vit_jax.pretrained import tables
from vit_jax.pretrained.architectures import HEADS, SUPPORTED
from vit_jax.pretrained.names import Arrays
from vit_jax.pretrained.tables import (
    ATTENTION,
    BLOCK,
    DENSE_0,
    DENSE_1,
    FINAL_NORM,
    HIDDEN,
    NORM_0,
    POSITIONS,
    PRE_NORM,
    PROBE,
    QKV,
    REGISTERS,
    SCALES,
)
from vit_jax.runtime.errors import UserError


def detect(keys: set[str], is_npz: bool, source) -> str:
    """Detect the format of a file's canonical keys; raises UserError if it is unknown."""
    for name, typical in tables.TYPICAL.items():
        if keys.issuperset(typical) and is_npz == (name == "npz"):
            return name
    contents = some(sorted(keys)) or "no array of an image model"
    raise UserError(f"{source} has no known layout: it contains {contents}; use {SUPPORTED}")


def some(items: list[str], separator: str = ", ") -> str:
    """Join the first four items, with the number of further ones."""
    more = f" and {len(items) - 4} more" if len(items) > 4 else ""
    return separator.join(items[:4]) + more


def describe(
    name: str, arrays: Arrays, known: dict, source
) -> tuple[dict, int, tuple[int, int] | None]:
    """Derive what the arrays record.

    Args:
      name: the format.
      arrays: the canonical arrays.
      known: settings from elsewhere; "data.image_size" is (height, width), and "image_sides" are
        those that the positions may be of.
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
    grid, sides = None, known.get("image_sides", [None])
    if name != "npz" and POSITIONS not in found:
        raise UserError(
            f"{source} has no position embedding, such as DINOv3 and other ViTs with rotary "
            f"positions, which are not supported: use {SUPPORTED}"
        )
    if POSITIONS in found:
        prefixes = (0, int("cls" in found), ("cls" in found) + found.registers)
        grid = _grid(found.get(POSITIONS, 3).shape[1], prefixes, patch, sides, source)
    image_side = sides[0] and sides[0][0]
    heads = found.get(f"{QKV}/kernel", 3).shape[1] if name == "npz" else None
    norm = re.escape(found.rows[f"{NORM_0}/scale"][0]).replace(r"\{i\}", r"\d+")
    num_classes = found.length("head/bias")
    settings = {
        "model.name": "vit",
        "model.patch_size": patch,
        "model.hidden_size": width,
        "model.depth": sum(bool(re.fullmatch(norm, key)) for key in arrays),
        "model.num_heads": _num_heads(name, width, heads, known.get("model.num_heads"), source),
        "model.attention": "softmax",
        "model.patchify": "conv",
        "model.pos_embed": "learned_1d" if grid else known.get("model.pos_embed"),
        "model.qkv_bias": f"{QKV}/bias" in found,
        "model.representation_size": found.length("pre_logits/bias"),
        # A grid that is not square is resized to a square one of as many patches.
        "data.image_size": round(math.prod(grid) ** 0.5) * patch if grid else image_side,
        "data.channels": channels,
    }
    settings |= _parts(found, width) | _pooling(name, found, known, width)
    settings = {key: value for key, value in settings.items() if value is not None}
    return settings, num_classes, grid


def _parts(found, width):
    """Derive the settings of the parts of blocks."""
    packed = f"{HIDDEN}/bias" in found.rows
    hidden = len(found.get(f"{HIDDEN if packed else DENSE_0}/bias", 1))
    is_gated = packed and hidden == 2 * (found.get(f"{DENSE_1}/kernel", 2).size // width)
    return {
        "model.mlp_dim": hidden // 2 if is_gated else hidden,
        "model.mlp": "swiglu" if is_gated else "gelu",
        "model.norm": "layer" if f"{NORM_0}/bias" in found else "rms",
        "model.pre_norm": f"{PRE_NORM}/scale" in found,
        "model.qk_norm": f"{ATTENTION}/query_norm/scale" in found,
        "model.layer_scale_init": 1e-5 if SCALES[0] in found else 0.0,  # any value but 0
        "model.num_registers": found.registers,
    }


def _pooling(name, found, known, width):
    """Derive the settings of the pooling; for `known`, see `describe`."""
    has_cls = "cls" in found
    has_fc_norm = "fc_norm/scale" in found and f"{FINAL_NORM}/scale" not in found
    classes, other = found.length("head/bias"), known.get("model.pool")
    other = other if other in ("max", "avgmax") else "mean"
    if not has_fc_norm and f"{FINAL_NORM}/scale" not in found:
        raise UserError(
            f"{found.source} has no final norm, such as RADIO and InternViT, which are not "
            f"supported: use {SUPPORTED}"
        )
    if PROBE in found:
        pool = "map"
    elif classes and found.get("head/kernel", 2).size == 2 * width * classes:
        pool = "cls_mean" if name == "hf_dinov2" else "cls_dist"
    elif has_cls and not has_fc_norm and not classes and known.get("model.pool") == "cls_mean":
        pool = "cls_mean"  # without a head, the weights leave the choice
    elif has_cls and not has_fc_norm and known.get("model.fc_norm", True):
        pool = "cls"
    elif has_cls and not has_fc_norm and known.get("model.pool") in (None, "cls"):
        pool = "cls"
    else:
        pool = other
    return {
        "model.pool": pool,
        "model.class_token": has_cls and not pool.startswith("cls"),
        "model.fc_norm": has_fc_norm,
    }


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
        self._arrays, self.source = arrays, source

    def _key(self, path):
        return _key(self.rows[path][0], 0, "query") if path in self.rows else None

    def __contains__(self, path):
        return self._key(path) in self._arrays

    def get(self, path, ndim):
        key = self._key(path)
        if key not in self._arrays:
            raise UserError(f"{self.source}: {key} is missing")
        shape = self._arrays[key].shape
        if len(shape) != ndim:
            raise UserError(f"{self.source}: {key} has the shape {shape}, not {ndim} dimensions")
        return self.rows[path][1].to_ours(self._arrays[key], shape)

    @property
    def registers(self):
        return self.get(REGISTERS, 3).shape[1] if REGISTERS in self else 0

    def length(self, path):
        return len(self.get(path, 1)) if path in self else 0


def _key(key, i, part):
    """Fill the placeholders of a key of a table: the block, and a part of what is packed."""
    return key.format(i=i, q=part[:1], **dict.fromkeys(tables.PACKED, part))


def _grid(tokens, prefixes, patch, sides, source):
    """Compute the rows and columns of a position table.

    Args:
      prefixes: the possible numbers of positions before those of the patches.
      sides: the possible (height, width) of images; None: square.
    """
    for side, prefix in itertools.product(sides, prefixes):
        patches = max(0, tokens - prefix)
        if side is None and math.isqrt(patches) ** 2 == patches:
            return math.isqrt(patches), math.isqrt(patches)
        if side is not None and (side[0] // patch) * (side[1] // patch) == patches:
            return side[0] // patch, side[1] // patch
    what = f"{sides[0][0]}x{sides[0][1]} pixels" if sides[0] else "a square image"
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
    norm = re.compile(BLOCK.format(i=r"\d+") + "/(Layer|RMS)Norm_0/scale")
    depth = sum(bool(norm.fullmatch(path)) for path in ours)
    for path, key, layout in tables.TABLES[name]:
        for i in range(depth) if "{i}" in path else (0,):
            field = next((field for field in tables.PACKED if f"{{{field}}}" in path), "qkv")
            keys = {_key(path, i, part): _key(key, i, part) for part in tables.PACKED[field]}
            for their in dict.fromkeys(keys.values()):
                if paths := [p for p, k in keys.items() if k == their and p in ours]:
                    yield paths, their, layout


def fold_positions(name: str, arrays: Arrays, grid: tuple[int, int]) -> None:
    """Adapt, in place, positions of a grid to those of our model.

    A class token without a position gets zeros; the positions of registers are added to them.
    """
    keys = {path: _key(key, 0, "") for path, key, _ in tables.TABLES[name]}
    key, has_cls = keys[POSITIONS], keys["cls"] in arrays
    table = arrays[key]
    prefix = table.shape[1] - math.prod(grid)
    if prefix < has_cls:
        arrays[key] = np.pad(table, ((0, 0), (1, 0), (0, 0)))
    elif prefix > has_cls:
        arrays[keys[REGISTERS]] = arrays[keys[REGISTERS]] + table[:, has_cls:prefix]
        arrays[key] = np.delete(table, slice(has_cls, prefix), 1)


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
        if array is None and paths == ["embedding/bias"] and f"{PRE_NORM}/scale" in ours:
            array = np.zeros(wanted[key], np.float32)  # CLIP has none
        if array is None:
            problems.append(f"{key} is missing")
            continue
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
