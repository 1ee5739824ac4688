"""Weights at rest and on their way into a model: converted checkpoints and finished runs."""

import dataclasses
import functools
import json
import pathlib
import re

from vit_jax.config import current_names, flatten, get_config, with_overrides
from vit_jax.config.rules import validate
from vit_jax.pretrained import files, formats, tables
from vit_jax.pretrained.formats import Arrays, flat_weights, nested_weights
from vit_jax.pretrained.resize import (
    RULE_NAMES,
    RULES,
    resize_patches,
    resize_positions,
    resize_side,
)
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import write_atomically
from vit_jax.storage import checkpoint, run_folder

# The settings that weights were trained with and that a model must have to use them.
KEYS = {
    "vit": (
        *("patch_size", "hidden_size", "depth", "num_heads", "mlp_dim", "attention", "patchify"),
        *("pos_embed", "pool", "qkv_bias", "gelu", "norm_eps", "representation_size"),
    ),
    "resnet18": ("hidden_size", "stem"),
}
PLAIN = {"augment.kind": "none"}  # which goes with images of any size
DATA_KEYS = ("data.image_size", "data.channels", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a model and what they are.

    Attributes:
      arrays: {our path: float32 array}; those of BatchNorm's statistics begin with "batch_stats/".
      info: the contents of model.json: "format"; "source", a file's name; "settings", those of
        `KEYS` and `DATA_KEYS`; "num_classes"; "class_names" or None; "resize", a key of RULE_NAMES;
        "assumed", the settings that no file told; "checksum".
    """

    arrays: Arrays
    info: dict

    @property
    def variables(self) -> dict:
        """What the model is applied with: {"params", "batch_stats"}."""
        params, batch_stats = nested_weights(self.arrays)
        return {"params": params, "batch_stats": batch_stats}


def convert(source: pathlib.Path, given: dict) -> Weights:
    """Reads a weight file of another project.

    Args:
      source: .npz or .safetensors; the JSON files beside it are read too.
      given: {"model.num_heads" | "model.gelu" | "model.norm_eps" | "data.mean" | "data.std":
        value}, which come before what the files say.

    Raises:
      UserError: the file cannot be read, or does not fit one known layout in every key.
    """
    is_npz = source.suffix == ".npz"
    arrays = formats.canonical(files.read_arrays(source), is_npz)
    name = formats.detect(set(arrays), is_npz, source)
    side = {} if is_npz else files.read_side_settings(source)
    said = side | given
    settings, num_classes = formats.describe(name, arrays, said.get("model.num_heads"), source)
    for key, value in side.items():
        told = settings.get(key, value)
        if key.startswith("model.") and told != value:
            raise UserError(
                f"the config.json beside {source} is that of another model: it has {key}={value}, "
                f"the weights have {told}"
            )
    assumed = dict(tables.SETTINGS[name])
    assumed["data.mean"], assumed["data.std"] = assumed.pop("normalization")
    assumed = {key if "." in key else f"model.{key}": value for key, value in assumed.items()}
    for key, value in assumed.items():
        settings[key] = said.get(key, value)
    if useless := sorted(given.keys() - settings.keys()):
        raise UserError(f"{useless[0]} has no effect on {source}, which is a {name}")
    if name in ("timm", "hf", "torchvision"):  # whose arrays do not tell it
        assumed["model.num_heads"] = settings["model.num_heads"]
    _check_settings(settings, source)
    ours = formats.to_ours(name, arrays, formats.shapes(settings, num_classes), source)
    class_names = side.get("class_names")
    info = {
        "format": name,
        "source": source.name,
        "settings": settings,
        "num_classes": num_classes,
        "class_names": class_names if class_names and len(class_names) == num_classes else None,
        "resize": RULES.get(name, "timm"),
        "assumed": sorted(assumed.keys() - said.keys()),
    }
    return Weights(ours, info)


def _check_settings(settings, source):
    """Raises UserError if no model can have the settings that files tell."""
    told = f"the files of {source}"
    try:
        validate(with_overrides(get_config(), settings | {"train.steps": 1} | PLAIN, told))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def save(weights: Weights, folder: pathlib.Path) -> None:
    """Writes a converted checkpoint: model.json and an orbax checkpoint.

    Raises UserError if the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: choose another destination, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    checksum = checkpoint.save_arrays(folder / "weights", weights.variables)
    text = json.dumps(weights.info | {"checksum": checksum}, indent=2)
    write_atomically(folder / "model.json", text + "\n")


def describe(weights: Weights) -> str:
    """Returns a few lines about weights, for people."""
    info = weights.info
    count = sum(array.size for array in weights.arrays.values())
    lines = [f"{info['source']}: {info['format']} layout, {count:,} parameters"]
    for key, value in info["settings"].items():
        assumed = (
            "  (usual for this kind; not told by the files)"
            if key in info.get("assumed", ())
            else ""
        )
        lines.append(f"  {key} = {value}{assumed}")
    return "\n".join([*lines, f"  classes: {info['num_classes'] or 'no head'}"])


def read_info(folder: pathlib.Path) -> dict:
    """Returns what the weights in a folder are, as `Weights.info`, without reading them.

    Args:
      folder: a converted checkpoint, or the folder of a finished run (VARIANT/seed_0).

    Raises:
      UserError: it is neither, or damaged.
    """
    path = folder / "model.json"
    if not path.exists():
        return _run_info(folder)
    try:
        info = json.loads(path.read_text())
        settings = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in current_names(info["settings"]).items()
        }
        info |= {"settings": settings, "checksum": int(info["checksum"])}
        _check_names(info["class_names"], info["num_classes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: convert the weights again") from None
    _check_settings(settings, path)
    return info


def _check_names(names, count):
    """Raises TypeError if names are not `count` texts, or None, as far as is known."""
    of_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if type(count) is not int or (names is not None and not (of_texts and len(names) == count)):
        raise TypeError


def _run_info(folder):
    record = run_folder.read_config(folder) if folder.is_dir() else None
    if record is None:
        inside = sorted(folder.glob("*/seed_*/config.json")) + sorted(folder.glob("seed_*/config*"))
        hint = f"; did you mean {inside[0].parent}?" if inside else ""
        raise UserError(
            f"{folder} is neither a converted checkpoint (with model.json) nor the folder of a "
            f"run{hint}"
        )
    summary = run_folder.read_finished(folder, record)
    if summary is None:
        raise UserError(f"the run in {folder} is not finished: run its command again first")
    config, path = flatten(run_folder.config_of(folder, record)), folder / "config.json"
    try:
        data = record["data"]
        class_names, rule = data["classes"], data.get("weights", {}).get("resize", RULES["vit_jax"])
        _check_names(class_names, len(class_names))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: it does not tell the classes") from None
    name = config["model.name"]
    keys = ("model.name", *(f"model.{key}" for key in KEYS.get(name, ())), *DATA_KEYS)
    settings = {key: config[key] for key in keys}
    _check_settings(settings, path)
    return {
        "format": "vit_jax",
        "source": str(folder),
        "settings": settings,
        "num_classes": len(class_names),
        "class_names": class_names,
        "resize": rule,
        "step": summary["best_step"],
        "eval_crop": config["data.eval_crop"],
    }


def load(folder: pathlib.Path) -> Weights:
    """Reads the weights of a converted checkpoint, or of a run's selected checkpoint.

    Raises:
      UserError: the folder is neither, or damaged.
    """
    info = read_info(folder)
    if info["format"] == "vit_jax":
        variables, checksum = checkpoint.load_run(folder / "checkpoints", info["step"])
        info = info | {"checksum": checksum}
    else:
        variables = checkpoint.load_arrays(folder / "weights", info["checksum"])
    arrays = flat_weights(variables["params"], variables["batch_stats"])
    formats.check_finite(arrays, folder)
    return Weights(arrays, info)


def check_whole(weights: Weights) -> None:
    """Raises UserError if weights are not those of the model that their settings describe."""
    info = weights.info
    wanted = formats.shapes(info["settings"], info["num_classes"])
    found = {path: array.shape for path, array in weights.arrays.items()}
    if differing := sorted(path for path in wanted | found if wanted.get(path) != found.get(path)):
        path = differing[0]
        raise UserError(
            f"the weights of {info['source']} are not those of its settings: {path} should have "
            f"the shape {wanted.get(path)}, and has {found.get(path)}"
        )


@functools.lru_cache(maxsize=1)
def load_once(folder: pathlib.Path) -> Weights:
    """Returns `load(folder)`, read once for all variants of a sweep."""
    return load(folder)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights that fit a model.

    Attributes:
      arrays: {our path: array}, for all paths of the model but those of the fresh head.
      rows: of the table to show: (what happened, paths, why).
      identity: {"checksum", "resize"} of the weights.
    """

    arrays: Arrays
    rows: list[tuple[str, list[str], str]]
    identity: dict


def fit(
    weights: Weights, shapes: dict[str, tuple], class_names: list[str], has_cls: bool
) -> Fitted:
    """Fits weights to a model of perhaps other image and patch size and other classes.

    Args:
      weights: to fit.
      shapes: {our path: shape} of the model.
      class_names: of the data. A head for other classes is left fresh.
      has_cls: whether the first position is the class token's.

    Raises:
      UserError: lists all that fits neither way.
    """
    stored, info = weights.arrays, weights.info
    arrays, problems, rows = {}, [], {"loaded": [], "resized": [], "reset": [], "ignored": []}
    keep_head, why_reset = _keeps_head(info, class_names, "pre_logits/kernel" in shapes)
    resizings = []
    for path, shape in shapes.items():
        if path.startswith("head/") and not keep_head:
            rows["reset"].append(path)
        elif path not in stored:
            problems.append(f"{path} is missing")
        elif stored[path].shape == shape:
            arrays[path] = stored[path]
            rows["loaded"].append(path)
        elif (resized := _resized(path, stored[path], shape, has_cls, info["resize"])) is not None:
            arrays[path], note = resized
            rows["resized"].append(path)
            resizings.append(f"{_size(stored[path])} to {_size(arrays[path])}, {note}")
        else:
            problems.append(f"{path} has the shape {stored[path].shape} instead of {shape}")
    for path in stored:
        if path not in shapes and path.startswith("pre_logits/"):
            rows["ignored"].append(path)
        elif path not in shapes and not (path.startswith("head/") and not keep_head):
            problems.append(f"{path} has no place in the model")
    if problems:
        raise UserError(
            f"the weights of {info['source']} do not fit the model: {'; '.join(problems)}"
        )
    notes = {
        "loaded": "",
        "resized": "; ".join(resizings),
        "reset": why_reset,
        "ignored": "the layer before the head is used with model.representation_size="
        f"{info['settings'].get('model.representation_size')} only",
    }
    return Fitted(
        arrays,
        [(what, paths, notes[what]) for what, paths in rows.items() if paths],
        {key: info[key] for key in ("checksum", "resize")},
    )


def _keeps_head(info, class_names, has_pre_logits):
    """Returns whether the head fits the data, and why not."""
    there, here = info["num_classes"], len(class_names)
    if not there:
        return False, f"no head came with the weights; {here} classes here"
    if there != here:
        return False, f"{here} classes here, {there} there"
    if info["class_names"] not in (None, class_names):
        return False, "the classes have other names"
    if info["settings"].get("model.representation_size") and not has_pre_logits:
        return False, "the layer that it was trained on is left out"
    return True, ""


def _size(array):
    return "x".join(map(str, array.shape))


def _resized(path, array, shape, has_cls, rule):
    """Returns a resized array and how, None where there is no way."""
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        return None
    if path == tables.POSITIONS:
        return resize_positions(array, shape[1], has_cls, rule), RULE_NAMES[rule]
    if re.search(r"posembed_input/(row|column)_embedding$", path):
        return resize_side(array, shape[0], rule), RULE_NAMES[rule]
    if path == "embedding/kernel" and len(shape) == 4 and array.shape[2] == shape[2]:
        return resize_patches(array, shape[0]), "pseudo-inverse, FlexiViT"
    return None


def table(fitted: Fitted, folder) -> str:
    """Returns a table of what happened to the weights of `folder`, for people."""
    lines = [f"weights from {folder}:"]
    for what, paths, why in fitted.rows:
        some = ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
        lines.append(f"  {what:8}{len(paths):4} arrays: {some}" + (f" ({why})" if why else ""))
    return "\n".join(lines)
