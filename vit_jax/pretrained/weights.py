"""Load converted checkpoints and finished runs, and fit their weights to a model."""

import dataclasses
import json
import operator
import pathlib
import re
import zlib

import jax
import numpy as np

from vit_jax.config import PREPROCESSING, current_names, flatten, get_config, with_overrides
from vit_jax.config.rules import validate
from vit_jax.config.schema import SCHEMA
from vit_jax.models import lora
from vit_jax.pretrained import formats, resize, tables
from vit_jax.pretrained.formats import Arrays, flat_weights, nested_weights
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import write_atomically
from vit_jax.storage import checkpoint, run_folder

# Model parts that are off by default.
PARTS = (
    *("mlp", "norm", "pre_norm", "layer_scale_init", "qk_norm", "head_dim", "num_registers"),
    *("class_token", "fc_norm"),
)
# Settings that a model must share with its weights.
KEYS = {
    "vit": (
        *("patch_size", "hidden_size", "depth", "num_heads", "mlp_dim", "attention", "patchify"),
        *("pos_embed", "pool", "qkv_bias", "gelu", "norm_eps", "representation_size"),
        *PARTS,
    ),
    "resnet18": ("hidden_size", "stem"),
}
DATA_KEYS = ("data.image_size", "data.channels", "data.mean", "data.std")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a model, {our path: float32 array}, and the contents of model.json.

    BatchNorm's statistics begin with "batch_stats/". `info` has "format"; "source", a file's name;
    "settings", those of `KEYS`, `DATA_KEYS` and `PREPROCESSING`; "num_classes"; "class_names" or
    None; "resize", a key of RULE_NAMES; "assumed", the settings that no file records; "checksum".
    Runs also have "step", "stored_size", "scaled_decoding", "level_range", "multi_label",
    "thresholds" and "data", the settings of their dataset.
    """

    arrays: Arrays
    info: dict

    @property
    def variables(self) -> dict:
        """The model's variables: {"params", "batch_stats"}."""
        params, batch_stats = nested_weights(self.arrays)
        return {"params": params, "batch_stats": batch_stats}


def check_settings(settings, source):
    """Raise UserError if no model can have these settings."""
    # A length and no augmentation make the config valid for any image size.
    settings = settings | {"train.steps": 1, "augment.kind": "none"}
    try:
        validate(with_overrides(get_config(), settings, f"the files of {source}"))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def save(weights: Weights, folder: pathlib.Path) -> None:
    """Write a converted checkpoint: model.json and an orbax checkpoint.

    Raises UserError if the folder is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already: choose another destination, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    checksum = checkpoint.save_arrays(folder / "weights", weights.variables)
    text = json.dumps(weights.info | {"checksum": checksum}, indent=2)
    write_atomically(folder / "model.json", text + "\n")


def describe(weights: Weights) -> str:
    """Describe weights in a few lines."""
    info = weights.info
    count = sum(array.size for array in weights.arrays.values())
    lines = [f"{info['source']}: {info['format']} layout, {count:,} parameters"]
    parts = {f"model.{key}": SCHEMA[f"model.{key}"].default for key in PARTS}
    for key, value in info["settings"].items():
        if value == parts.get(key):
            continue
        assumed = "  (assumed: not recorded in the files)" * (key in info.get("assumed", ()))
        lines.append(f"  {key} = {value}{assumed}")
    return "\n".join([*lines, f"  classes: {info['num_classes'] or 'no head'}"])


def read_info(folder: pathlib.Path) -> dict:
    """Read the `Weights.info` of a converted checkpoint or finished run, without the arrays.

    Raises UserError if the folder (such as VARIANT/seed_0) is neither, or damaged.
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
        count, names = operator.index(info["num_classes"]), info["class_names"]
        if names is not None and not (_are_strings(names) and len(names) == count):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: convert the weights again") from None
    check_settings(settings, path)
    return info


def identity_of(info: dict) -> dict:
    """Identify a model by its `Weights.info`: the "checksum" of its arrays and that of its "info".

    The latter is of the class names and of the settings, without which the arrays do not decide a
    prediction. Defaults are left out: a setting that is added later changes no identity.
    """
    texts = {key: json.dumps(value) for key, value in info["settings"].items()}
    given = {k: text for k, text in texts.items() if text != json.dumps(SCHEMA[k].default)}
    described = json.dumps([info["class_names"], given], sort_keys=True)
    return {"checksum": info["checksum"], "info": zlib.crc32(described.encode())}


def _are_strings(names):
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _run_info(folder):
    record = run_folder.read_config(folder) if folder.is_dir() else None
    if not folder.exists():
        raise UserError(f"{folder} does not exist{run_folder.suggest_runs(folder)}")
    if record is None:
        raise UserError(
            f"{folder} is neither a converted checkpoint (with model.json) nor the folder of a "
            f"run{run_folder.suggest_runs(folder)}"
        )
    summary = run_folder.read_finished(folder, record)
    if summary is None:
        raise UserError(f"the run in {folder} is not finished: run its command again first")
    config, data = flatten(run_folder.config_of(folder, record)), record["data"]
    path = folder / "config.json"
    if not _are_strings(data["classes"]):
        raise UserError(f"{path} is damaged: it does not list the classes")
    keys = [f"model.{key}" for key in ("name", *KEYS.get(config["model.name"], ()))]
    settings = {key: config[key] for key in (*keys, *DATA_KEYS, *PREPROCESSING)}
    check_settings(settings, path)
    return {
        "format": "vit_jax",
        "source": str(folder),
        "settings": settings,
        "num_classes": len(data["classes"]),
        "class_names": data["classes"],
        "resize": data.get("weights", {}).get("resize", "official"),
        "step": summary["best_step"],
        "stored_size": config["data.stored_size"],
        "scaled_decoding": config["data.scaled_decoding"],
        "level_range": config["data.level_range"],
        "multi_label": config["data.multi_label"],
        "thresholds": summary.get("thresholds"),  # of several labels per image
        "data": {k.removeprefix("data."): config[k] for k in config if k.startswith("data.")},
        "checksum": checkpoint.recorded_checksum(folder / "checkpoints", summary["best_step"]),
    }


def load(folder: pathlib.Path) -> Weights:
    """Read the weights of a converted checkpoint, or of a run's selected checkpoint.

    LoRA adapters of a run are merged.

    Raises UserError if the folder is neither, or damaged.
    """
    info = read_info(folder)
    if info["format"] == "vit_jax":
        variables, checksum = checkpoint.load_run(folder / "checkpoints", info["step"])
        config = run_folder.config_of(folder, run_folder.read_config(folder) or {})
        params = lora.merge(variables["params"], lora.scale_of(config))
        variables["params"] = jax.tree.map(np.asarray, params)
        info = info | {"checksum": checksum}
    else:
        variables = checkpoint.load_arrays(folder / "weights", info["checksum"])
        if "data.resize_mode" not in info["settings"]:
            print(
                f"note: {folder} was converted by an earlier version and lacks the preprocessing "
                "of its library: convert it again",
                flush=True,
            )
    arrays = flat_weights(variables["params"], variables["batch_stats"])
    formats.check_finite(arrays, folder)
    return Weights(arrays, info)


def check_shapes(weights: Weights) -> None:
    """Raise UserError if the weights do not have the shapes of the model in their settings."""
    info = weights.info
    wanted = formats.shapes(info["settings"], info["num_classes"])
    found = {path: array.shape for path, array in weights.arrays.items()}
    for path in sorted(wanted | found):
        if wanted.get(path) != found.get(path):
            raise UserError(
                f"the weights of {info['source']} do not match their settings: {path} should "
                f"have the shape {wanted.get(path)} but has {found.get(path)}"
            )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Weights fitted to a model: arrays for all paths except those of a re-initialised head."""

    arrays: Arrays
    rows: list[tuple[str, list[str], str]]  # table rows: (what was done, paths, why)
    identity: dict  # `identity_of` the weights, "resize", and "head" if it was sorted


def fit(
    weights: Weights,
    shapes: dict[str, tuple],
    class_names: list[str],
    has_cls: bool,
    keep_head: bool = False,
) -> Fitted:
    """Fit weights to a model of these shapes, {our path: shape}, possibly with other classes.

    Resizes position and patch embeddings (`has_cls`: the first position is the class token's),
    sorts a head for the same classes in another order, and re-initialises one for other classes, or
    for classes of unknown names unless `keep_head`. Raises UserError that lists the mismatches.
    """
    stored, info = weights.arrays, weights.info
    why_reset = _why_reset(info, class_names, "pre_logits/kernel" in shapes, keep_head)
    reordered = not why_reset and _is_permutation(info["class_names"], class_names)
    if reordered:
        order = [info["class_names"].index(name) for name in class_names]
        heads = [path for path in stored if path.startswith("head/")]
        stored = stored | {path: stored[path][..., order] for path in heads}
    arrays, problems, rows = {}, [], {"loaded": [], "resized": [], "reset": [], "ignored": []}
    resizings = []
    for path, shape in shapes.items():
        if path.startswith("head/") and why_reset:
            rows["reset"].append(path)
        elif path not in stored:
            problems.append(f"{path} is missing")
        elif stored[path].shape == shape:
            arrays[path] = stored[path]
            rows["loaded"].append(path)
        elif resized := _resized(path, stored[path], shape, has_cls, info["resize"]):
            arrays[path], note = resized
            rows["resized"].append(path)
            resizings.append(note)
        else:
            problems.append(f"{path} has the shape {stored[path].shape} instead of {shape}")
    for path in (path for path in stored if path not in shapes):
        if path.startswith("pre_logits/"):
            rows["ignored"].append(path)
        elif not (path.startswith("head/") and why_reset):
            problems.append(f"{path} is not in the model")
    if problems:
        raise UserError(
            f"the weights of {info['source']} do not fit the model: {formats.some(problems, '; ')}"
        )
    size = info["settings"].get("model.representation_size")
    ignored = f"the layer before the head needs model.representation_size={size}"
    notes = {"resized": "; ".join(resizings), "reset": why_reset, "ignored": ignored}
    notes["loaded"] = "the head's classes in the dataset's order" if reordered else ""
    table_rows = [(what, paths, notes.get(what, "")) for what, paths in rows.items() if paths]
    identity = identity_of(info) | {"resize": info["resize"]}
    # Runs of earlier versions, which did not sort heads, are other runs.
    return Fitted(arrays, table_rows, identity | ({"head": "sorted"} if reordered else {}))


def check_order(names: list[str], recorded: list[str] | None, source: object) -> None:
    """Raise UserError if names of the classes are those that `source` records, in another order."""
    if _is_permutation(recorded, names):
        raise UserError(
            f"class_names are the classes of {source} in another order than it records: omit them"
        )


def _is_permutation(names, others):
    """Whether two lists, or None, name the same distinct classes in different orders."""
    if names is None or names == others or len(set(names)) < len(names):
        return False
    return sorted(names) == sorted(others)


def _why_reset(info, class_names, has_pre_logits, keep_head):
    """Explain why the head does not fit the dataset; "" if it does, or is kept."""
    there, here, why = info["num_classes"], len(class_names), ""
    if not there:
        why = f"the weights have no head; the dataset has {here} classes"
    elif there != here:
        why = f"the weights have {there} classes, the dataset has {here}"
    elif info["settings"].get("model.representation_size") and not has_pre_logits:
        why = "the model lacks the layer before it"
    if why and keep_head:
        raise UserError(f"keep_head=True cannot be satisfied: {why}")
    if why or keep_head or info["class_names"] == class_names:
        return why
    if _is_permutation(info["class_names"], class_names):
        return ""
    if info["class_names"] is None:
        return "the weights record no class names; keep_head=True keeps it"
    return "the class names differ"


def _resized(path, array, shape, has_cls, rule):
    """Resize an array to a shape; return it and a note, or None if it cannot be resized."""
    if array.ndim != len(shape) or array.shape[-1] != shape[-1]:
        return None
    how = resize.RULE_NAMES[rule]
    if path == tables.POSITIONS:
        new = resize.resize_positions(array, shape[1], has_cls, rule)
    elif re.search(r"posembed_input/(row|column)_embedding$", path):
        matrix = resize.resize_matrix(rule, shape[0], len(array))
        new = (matrix @ array).astype(np.float32)
    elif path in ("embedding/kernel", "conv1/kernel") and array.ndim == 4:
        new, rules = array, []
        if array.shape[2] == 3 != shape[2]:
            new = resize.adapt_channels(array, shape[2])
            rules.append("RGB repeated over the channels, times 3 / channels, timm's rule")
        if path == "embedding/kernel" and len(array) != shape[0]:
            new = resize.resize_patches(new, shape[0])
            rules.append("pseudo-inverse, FlexiViT")
        if new.shape != shape:
            return None
        how = ", ".join(rules)
    else:
        return None
    before, after = ("x".join(map(str, a.shape)) for a in (array, new))
    return new, f"{before} to {after}, {how}"


def table(fitted: Fitted, folder) -> str:
    """Format a table of how the weights of `folder` were used."""
    lines = [f"weights from {folder}:"]
    for what, paths, why in fitted.rows:
        some = ", ".join(paths[:2]) + (f" and {len(paths) - 2} more" if len(paths) > 2 else "")
        lines.append(f"  {what:8}{len(paths):4} arrays: {some}" + (f" ({why})" if why else ""))
    return "\n".join(lines)
