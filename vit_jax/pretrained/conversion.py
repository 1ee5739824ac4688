"""Convert weight files of other projects."""

import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.config import PREPROCESSING
from vit_jax.config.schema import SCHEMA
from vit_jax.pretrained import architectures, files, formats, names, preprocessing, resize, tables
from vit_jax.pretrained import weights as folders
from vit_jax.pretrained.weights import Weights, check_order, check_settings
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.storage.checkpoint import checksum_on_cpu

# {option of the command and of `load_model`: setting}
OPTIONS = {
    **{name: name for name in ("architecture", "pooler_act", "class_names")},
    **{key: f"model.{key}" for key in ("num_heads", "gelu", "norm_eps", "pool", "pos_embed")},
    **{key: f"model.{key}" for key in ("mlp", "norm")},
    **{key: f"data.{key}" for key in ("image_size", "mean", "std")},
    **{key.removeprefix("data."): key for key in PREPROCESSING},
}


def convert(source: pathlib.Path, given: Mapping[str, Any]) -> Weights:
    """Convert a weight file of another project, .npz or .safetensors.

    JSON files next to it are read too, and an architecture that names the file or its folder.

    Args:
      source: the file.
      given: settings that override or complete those of the files: model.num_heads, .gelu,
        .norm_eps, .pool, .pos_embed, .mlp and .norm; data.mean, .std, .eval_crop, .resize_mode,
        .interpolation and .image_size, a side or (height, width); "architecture", a name in timm;
        "pooler_act"; "class_names", in the order of the head.

    Raises:
      UserError: the file cannot be read, does not fit one known layout in every key, or does not
        record a setting that is not given.
    """
    name, project, arrays, side = _read(source, given)
    is_big_vision = project == "big_vision"
    known = _known(name, arrays, side, given, source)
    if is_big_vision:  # has fixed positions if none are stored
        known = {"model.pos_embed": "sincos_2d"} | known
    settings, num_classes, grid = formats.describe(name, arrays, known, source)
    _check_contradictions(settings, side, given, source)
    needed = architectures.needed(name, settings, grid is None, is_big_vision)
    image_size = {"data.image_size": f"={settings['data.image_size']}"} if grid else {}
    architectures.ask([key for key in needed if key not in known], image_size, name, source)
    usual = _usual(name, settings, project)
    settings |= {key: known.get(key, value) for key, value in usual.items()}
    if grid:
        _fit_image_size(settings, known, grid)
    effective = {"class_names", *needed, *settings, *(["architecture"] * (name in _NAMED))}
    if settings.get("model.mlp") == "swiglu":  # has no GELU: the default stands for it
        settings["model.gelu"] = SCHEMA["model.gelu"].default
    if unused := sorted(given.keys() - effective):
        raise UserError(f"{unused[0]} has no effect on {source}, which is in the {name} format")
    check_settings(settings, source)
    rule = resize.rule_of(name, project, settings.get("model.num_registers", 0) > 0)
    if grid:
        formats.fold_positions(name, arrays, grid)
        _resize_grid(name, arrays, grid, settings, rule)
    _describe_processor(name, settings, side, source)
    info = {
        "format": name,
        "source": source.name,
        "settings": settings,
        "num_classes": num_classes,
        "class_names": _class_names(num_classes, side, given, source),
        "multi_label": side.get("multi_label", False),
        "resize": rule,
        "assumed": sorted(usual.keys() - known.keys()),
    }
    ours = formats.to_ours(name, arrays, formats.shapes(settings, num_classes), source)
    return Weights(ours, info)


def _read(source, given):
    """Read a weight file: its format, project, canonical arrays and the settings next to it."""
    architectures.refuse_shard(source)
    is_npz, raw = source.suffix == ".npz", files.read_arrays(source)
    arrays = names.canonical(raw, is_npz)
    architectures.refuse_unsupported(arrays, source)
    side = {} if is_npz else files.read_side_settings(source)
    architectures.refuse_model_type(side.get("model_type"), source)
    name = formats.detect(set(arrays), is_npz, source)
    project = architectures.project(name, raw, side.get("model_type"), source)
    if "architecture" in side and project == "official":
        project = None  # timm wrote the file
    return name, project, _without_projections(name, arrays, side, given), side


def read_info(source: pathlib.Path) -> dict:
    """Read the `Weights.info` of a converted checkpoint or finished run, or convert a file.

    Raises UserError if the source is neither, or damaged, or a file that needs options.
    """
    return _convert_once(source).info if source.is_file() else folders.read_info(source)


def load(source: pathlib.Path) -> Weights:
    """Read the weights of a converted checkpoint or of a run's selected checkpoint, or convert.

    Raises UserError if the source is neither, or damaged, or a file that needs options.
    """
    return _convert_once(source) if source.is_file() else folders.load(source)


def load_once(source: pathlib.Path) -> Weights:
    """Read weights as `load` does, once for all variants of a sweep while they do not change."""
    return _load_version(source, json.dumps(read_info(source)))


@functools.lru_cache(maxsize=2)  # initial weights, and those of a teacher
def _load_version(source, _):
    return load(source)


def convert_with_note(source: pathlib.Path, given: Mapping[str, Any]) -> Weights:
    """Convert a file as `convert` does, and print the settings that are assumed."""
    weights = convert(source, given)
    settings = weights.info["settings"]
    if assumed := [f"{key}={settings[key]}" for key in weights.info["assumed"]]:
        note = f"note: {source} does not record all settings; assumed: {', '.join(assumed)}"
        print(single_line(note), flush=True)
    return weights


def _convert_once(source):
    paths = (source, *(source.with_name(name) for name in files.SIDE_FILES))
    stats = [path.stat() if path.exists() else None for path in paths]
    return _convert_version(
        source, tuple(stat and (stat.st_mtime_ns, stat.st_size) for stat in stats)
    )


@functools.lru_cache(maxsize=2)  # read_info and load are called in turn
def _convert_version(source, _):
    weights = convert_with_note(source, {})
    info = weights.info | {"checksum": checksum_on_cpu(weights.variables)}
    return Weights(weights.arrays, info)


def settings_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Convert {option: value} of `OPTIONS` to the argument `given` of `convert`."""
    return {
        OPTIONS[name]: tuple(value) if name in ("mean", "std") else value
        for name, value in options.items()
    }


def _usual(name, settings, project):
    """Look up the settings of most models of a format, for files that do not record them."""
    usual = tables.SETTINGS[name] | preprocessing.usual(name, settings, project)
    if settings.get("model.pre_norm"):
        usual |= {"model.norm_eps": 1e-5}
    if settings.get("model.mlp") == "swiglu":
        del usual["model.gelu"]
    return usual


_NAMED = ("timm", "resnet18")  # formats of which an architecture's name completes a file


def _known(name, arrays, side, given, source):
    """Merge settings from the name of the architecture, the JSON files and the user.

    "image_sides" are the possible (height, width) of the images whose positions are stored, that
    of the user first.
    """
    known = side | given
    titles = (known.get("architecture"), source.stem, source.absolute().parent.name)
    titles = [title for title in titles if isinstance(title, str)]
    if name == "resnet18":
        known = architectures.resnet_facts(titles, source) | known
    elif name == "timm":
        architectures.refuse_names(titles, source)
        width = len(arrays["patch_embed.proj.weight"])
        if "architecture" in given and not architectures.facts(titles[:1], width):
            raise UserError(f"{source}: {titles[0]} is not a plain ViT of timm with width {width}")
        facts = architectures.facts(titles, width)
        is_changed = "fc_norm.weight" in arrays and "norm.weight" not in arrays
        if is_changed and facts.get("model.pool") == "cls":
            del facts["model.pool"]  # it is a mean or a maximum
        known = facts | known
    try:
        recorded, asked = (files.sides(one.get("data.image_size")) for one in (known | side, given))
    except (TypeError, ValueError, IndexError) as error:
        raise UserError(f"{source}: {error}") from None
    # Of another side, the positions can be resized.
    sides = [asked, *([] if asked and asked[0] != asked[1] else [recorded])]
    if sides := [one for one in sides if one]:
        known |= {"data.image_size": sides[0], "image_sides": sides}
    return known


def _without_projections(name, arrays, side, given):
    """Leave out dense layers that are no classifiers and have no effect here."""
    prefix = ""
    if name == "timm" and "norm_pre.weight" in arrays and "head.bias" in arrays:
        # The projection of CLIP has no bias, which timm makes one of zeros.
        named = side.get("class_names") or given.get("class_names")
        prefix = "" if named or arrays["head.bias"].any() else "head."
    elif given.get("model.pool") == "cls_mean":  # the pooler sees the class token only
        prefix = "pooler.dense."
    return {k: x for k, x in arrays.items() if not prefix or not k.startswith(prefix)}


def _fit_image_size(settings, known, grid):
    """Set the image size, in place, if it is not that of the positions in whole patches."""
    rows, columns = known.get("data.image_size") or (0, 0)
    size, patch = settings["data.image_size"], settings["model.patch_size"]
    if (rows // patch, columns // patch) != grid:
        settings["data.image_size"] = rows or size
    elif rows == columns > size:
        # The convolution of the other libraries ignores the last pixels. Here they are cropped, so
        # that images are resized to the same scale.
        resized = math.floor(rows / settings["data.eval_crop"] + 1e-9)
        settings["data.eval_crop"] = preprocessing.crop_fraction(size, resized)


def _describe_processor(name, settings, side, source):
    """Print a note on DINOv2 of Hugging Face whose processor makes images of another size."""
    size, crop = settings["data.image_size"], side.get("processor_side", 0)
    if name == "hf_dinov2" and crop not in (0, size):
        note = (
            f"note: {source} has positions for images of {size} pixels, but its processor makes "
            f"images of {crop}: give image_size={crop}, to vit-jax convert or load_model, for those"
        )
        print(single_line(note), flush=True)


def _check_contradictions(settings, side, given, source):
    """Raise UserError if what the arrays record differs from the JSON files or the user."""
    is_resnet = settings["model.name"] == "resnet18"
    if "num_features" in side:  # of the last stage of a ResNet
        width = side["num_features"]
        side["model.hidden_size"] = width / 8 if is_resnet and isinstance(width, int) else width
    if is_resnet and ("model.gelu" in side or side.get("model.pool", "mean") != "mean"):
        what = "GELU" if "model.gelu" in side else f"{side['model.pool']} pooling"
        raise UserError(f"{source} is a ResNet18 with {what}, which is not supported")
    for key, value in side.items():
        own = settings.get(key, value)
        if (key, value) == ("model.pool", "cls") and str(own).startswith("cls"):
            continue  # a pair of heads, or one for class token and mean
        if key.startswith("model.") and own != value:
            raise UserError(
                f"the config.json next to {source} belongs to another model: it has {key}={value}, "
                f"the weights have {own}"
            )
    if given.get("model.pool", "cls") != settings.get("model.pool", "cls") == "cls":
        raise UserError(f"{source} has a class token, with which other pooling is not supported")
    for key in ("model.pool", "model.pos_embed", "model.mlp", "model.norm"):
        if given.get(key, settings.get(key)) != settings.get(key):
            raise UserError(f"{source} has {key}={settings.get(key)}, not {given[key]}")


def _resize_grid(name, arrays, grid, settings, rule):
    """Resize positions of a grid [rows, columns], in place, to the square one of the settings."""
    side = settings["data.image_size"] // settings["model.patch_size"]
    if grid == (side, side):
        return
    key = next(theirs for ours, theirs, _ in tables.TABLES[name] if ours == tables.POSITIONS)
    has_cls = arrays[key].shape[1] > grid[0] * grid[1]
    arrays[key] = resize.resize_positions(arrays[key], side**2 + has_cls, has_cls, rule, grid)
    print(f"position embedding of {grid[0]}x{grid[1]} patches resized to {side}x{side}")


def _class_names(num_classes, side, given, source):
    names = given.get("class_names")
    if names is None:
        names = side.get("class_names") or []
        return names if len(names) == num_classes > 0 else None
    if len(names) != num_classes or len(set(names)) != num_classes:
        raise UserError(
            f"class_names has {len(set(names))} different names; the head of {source} has "
            f"{num_classes} classes"
        )
    check_order(names, side.get("class_names"), source)
    return [single_line(name) for name in names]
