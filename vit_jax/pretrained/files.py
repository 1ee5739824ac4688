"""Read and write weight files of other projects, without executing their content."""

import collections
import io
import json
import math
import pathlib
import zipfile
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.pretrained import preprocessing
from vit_jax.pretrained.architectures import MODEL_TYPES, block_settings
from vit_jax.pretrained.names import Arrays
from vit_jax.pretrained.tables import HF_GELUS, TIMM_GELUS, TIMM_POOLS
from vit_jax.runtime.errors import UserError, first_line, single_line, truncate_repr
from vit_jax.runtime.files import apply_umask

assert ml_dtypes  # registers bfloat16 with NumPy, which safetensors then reads

# Limit of an unpacked .npz, or 20 times the file size if larger: weights hardly compress.
UNPACKED_BYTES = 2**28
LARGEST_BYTES = 2**36  # ten times the largest ViTs
# Arguments of timm's models that are read, recorded by the arrays, or without effect in evaluation.
_TIMM_ARGS = {
    *(
        "act_layer",
        "channels",
        "class_token",
        "depth",
        "drop_path_rate",
        "drop_rate",
        "dynamic_img_size",
    ),
    *("embed_dim", "fc_norm", "final_norm", "fix_init", "global_pool", "img_size", "in_chans"),
    *("mlp_ratio", "no_embed_class", "num_classes", "num_heads", "patch_size", "proj_drop_rate"),
    *("attn_drop_rate", "pos_drop_rate", "qkv_bias", "strict_img_size", "weight_init"),
    *("distilled", "init_values", "norm_layer", "pre_norm", "qk_norm", "reg_tokens"),
}
_GELUS = {theirs: ours for names in (TIMM_GELUS, HF_GELUS) for ours, theirs in names.items()}
_GELUS |= {"gelu_new": "tanh", "gelu_fast": "tanh"}  # of older files
_NORMS = {None: None, "layernorm": "layer", "rmsnorm": "rms"}

# JSON files next to the weights: of the model and of its preprocessing.
SIDE_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
SIDE_BYTES = 2**24  # limit of a JSON file next to the weights, usually a few kB


def read_arrays(path: pathlib.Path) -> Arrays:
    """Read {key: array} from an .npz or .safetensors file.

    Raises UserError if it is missing, damaged, a pickle, a zip bomb, or not a weight file.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty")
    if size > LARGEST_BYTES:
        raise UserError(f"{path} is too large: {size:,} bytes, at most {LARGEST_BYTES:,} are read")
    with path.open("rb") as file:
        start = file.read(9)
    is_safetensors = start[8:] == b"{"  # after the header's length
    if path.suffix != ".npz" and not is_safetensors and start.startswith((b"PK", b"\x80")):
        raise UserError(
            f"{path} is a pickle, which can execute arbitrary code when loaded: if you trust it, "
            "load it in PyTorch and save it with safetensors.torch.save_file(state_dict, "
            "'model.safetensors')"
        )
    if path.suffix not in (".npz", ".safetensors"):
        raise UserError(f"{path} is neither .npz nor .safetensors")
    try:
        if path.suffix == ".npz":
            arrays = _read_npz(path, max(UNPACKED_BYTES, 20 * size))
        else:
            with safetensors.safe_open(path, "np") as file:
                arrays = {key: file.get_tensor(key) for key in file.keys()}
    except (MemoryError, UserError):
        raise
    except Exception as error:  # zip, NumPy and safetensors raise many types
        raise UserError(f"{path} is damaged or not a weight file ({first_line(error)})") from None
    for key, array in arrays.items():
        bfloat16 = array.dtype.kind == "V" and array.dtype.itemsize == 2
        if array.dtype.kind not in "fiub" and not bfloat16:
            raise UserError(f"{path}: {key} has dtype {array.dtype}, which is not numeric")
    return arrays


def _read_npz(path, limit):
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > limit:
            raise UserError(
                f"{path} is too large: {total:,} bytes when unpacked, at most {limit:,} are read"
            )
        for member in archive.infolist():
            key = member.filename.removesuffix(".npy")
            if key in arrays:
                raise ValueError(f"it contains {key} twice")
            with archive.open(member) as file:
                arrays[key] = _parse_npy(file.read(member.file_size), member.filename)
    return arrays


def _parse_npy(content, name):
    """Parse an .npy file; unlike NumPy, never allocate by the header's shape alone."""
    file = io.BytesIO(content)
    readers = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
    major, _ = np.lib.format.read_magic(file)
    if major not in readers:
        raise ValueError(f"{name} has an unknown version")
    try:
        shape, is_fortran, dtype = readers[major](file)
    except MemoryError:  # from Python's parser, if nested too deeply
        raise ValueError(f"{name} has an invalid header") from None
    if any(side < 0 for side in shape):  # reshape would compute it from the others
        raise ValueError(f"{name} has the shape {shape}")
    if dtype.hasobject:
        raise ValueError(f"{name} contains Python objects, which can execute arbitrary code")
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if is_fortran else "C")


def read_side_settings(path: pathlib.Path) -> dict[str, Any]:
    """Read settings such as "data.mean" from JSON next to a .safetensors file.

    Reads config.json of transformers or timm, and preprocessor_config.json or processor_config.json
    of transformers. Further keys are "class_names"; "architecture" and "num_features" of timm;
    "model_type", "pooler_act" and "multi_label" of transformers. "data.image_size" is (height,
    width).

    Raises UserError if a file is damaged or describes an unsupported model.
    """
    config_path, pre_path, both_path = (path.with_name(name) for name in SIDE_FILES)
    config, pre = _read_json(config_path), _read_json(pre_path)
    if not pre:  # transformers 5 writes the processors of images and text to one file
        pre, pre_path = _read_json(both_path).get("image_processor") or {}, both_path
    found = _checked(_side_settings, config_path, config)
    if _pretrained_cfg(config):
        return found
    return _checked(preprocessing.read_processor, pre_path, pre, found.get("model_type")) | found


def _checked(read, path, *args):
    try:
        return read(*args, path)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise UserError(f"{path} is not in the format of timm or transformers: {error}") from None


def _pretrained_cfg(config):
    """Find timm's description of weights, which earlier versions wrote without nesting."""
    return config.get("pretrained_cfg") or (config if "input_size" in config else {})


def _side_settings(config, config_path):
    cfg, args = _pretrained_cfg(config), config.get("model_args") or {}
    for key, value in args.items():
        if value and key not in _TIMM_ARGS:
            raise UserError(
                f"{config_path} has the unsupported model_args {key}={truncate_repr(value)}"
            )
    model_type = config.get("model_type")
    # Image-text models have the config of the image tower within theirs.
    config = MODEL_TYPES.get(model_type, {}) | (config.get("vision_config") or {}) | config
    if count := config.get("num_patches"):  # of SigLIP 2
        config["image_size"] = math.isqrt(count) * config["patch_size"]
    pool = args.get("global_pool") or config.get("global_pool")
    activation = config.get("hidden_act") or args.get("act_layer")
    blocks = block_settings(config.get("architecture") or "", args.get("norm_layer"))
    is_gated = blocks.get("model.mlp") == "swiglu"
    for what, value, known in (
        ("pooling", pool, TIMM_POOLS),
        ("pooler_act", config.get("pooler_act"), ("tanh",)),
        ("activation", activation, ("silu",) if is_gated else _GELUS),
        ("norm_layer", args.get("norm_layer"), _NORMS),
    ):
        if value and value not in known:
            listed = ", ".join(filter(None, known))
            raise UserError(
                f"{config_path} has the unsupported {what} {truncate_repr(value)}: {listed} "
                "are supported"
            )
    found = {
        "model_type": model_type,
        "architecture": config.get("architecture"),
        "pooler_act": config.get("pooler_act"),
        "num_features": config.get("num_features"),
        "model.hidden_size": config.get("hidden_size"),
        "model.depth": config.get("num_hidden_layers") or args.get("depth"),
        "model.patch_size": config.get("patch_size") or args.get("patch_size"),
        "model.num_heads": config.get("num_attention_heads") or args.get("num_heads"),
        "model.norm_eps": config.get("layer_norm_eps"),
        "model.norm": _NORMS[args.get("norm_layer")],
        "model.pool": TIMM_POOLS.get(pool or ""),
        "model.fc_norm": False if args.get("fc_norm") is False else None,
        "model.gelu": _GELUS[activation] if activation and not is_gated else None,
        "data.image_size": sides(
            config.get("image_size") or args.get("img_size") or cfg.get("input_size")
        ),
        "data.mean": _floats(cfg.get("mean")),
        "data.std": _floats(cfg.get("std")),
        **preprocessing.read_timm(cfg),
        "class_names": _class_names(cfg, config),
        "multi_label": config.get("problem_type") == "multi_label_classification" or None,
    }
    return blocks | {key: value for key, value in found.items() if value is not None}


def _class_names(cfg, config):
    """Read the class names of timm or transformers; None without."""
    names = cfg.get("label_names") or config.get("label_names") or cfg.get("labels")
    labels = {int(number): name for number, name in (config.get("id2label") or {}).items()}
    if any(name != f"LABEL_{number}" for number, name in labels.items()):
        names = [labels[number] for number in sorted(labels)]
    if not names:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the class names are not a list of strings")
    names, counts = [single_line(name) for name in names], collections.Counter(names)
    # ImageNet has two classes called crane.
    return [f"{name} ({i})" if counts[name] > 1 else name for i, name in enumerate(names)]


def _floats(values):
    return tuple(map(float, values)) if values else None


def sides(size) -> tuple[int, int] | None:
    """Convert a side, [side], [height, width] or [channels, height, width] to (height, width).

    Raises TypeError, ValueError or IndexError for anything else.
    """
    if size is None:
        return None
    size = [size] if isinstance(size, int) else size
    height, width = [*size, *size][-2:] if len(size) == 1 else size[-2:]
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise ValueError(f"the image size {truncate_repr(size)} is not in pixels")
    return height, width


def _read_json(path):
    if not path.exists():
        return {}
    if not path.is_file() or path.stat().st_size > SIDE_BYTES:
        raise UserError(f"{path} is not a file of at most {SIDE_BYTES:,} bytes")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def write_safetensors(folder: pathlib.Path, arrays: Arrays, configs: dict[str, dict]) -> None:
    """Write model.safetensors and JSON files {name: content} to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(contiguous, path, {"format": "pt"})  # transformers requires "pt"
    apply_umask(path)
    for name, content in configs.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
