"""The golden weight files of other projects: copied, converted and compared."""

import pathlib
import shutil

import numpy as np

from vit_jax import pretrained

GOLDEN = pathlib.Path(__file__).parent / "golden"
HEADS = {"model.num_heads": 3}
TIMM = HEADS | {"model.gelu": "erf", "model.pool": "cls", "data.image_size": 12}
# What the files do not record.
GIVEN = {"timm": TIMM, "timm_mean": TIMM | {"model.pool": "mean"}, "resnet18": {}}
SOURCES = {
    "timm": "timm/model.safetensors",
    "timm_mean": "timm_mean/model.safetensors",
    "npz": "npz/model.npz",
    "hf": "hf/model.safetensors",
    "hf_bare": "hf_bare/model.safetensors",
    "torchvision": "torchvision/model.safetensors",
    "resnet18": "resnet18/model.safetensors",
}


def copy(tmp_path, *parts):
    """Copy golden files to a folder whose name does not identify them; return the weight file."""
    folder = tmp_path / "w"
    folder.mkdir(exist_ok=True)
    for part in parts:
        shutil.copy(GOLDEN / part, folder)
    return next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".npz"))


def convert(name):
    """Convert the file of a name in SOURCES."""
    return pretrained.convert(GOLDEN / SOURCES[name], GIVEN.get(name, HEADS))


def assert_same(found, expected):
    """The arrays are bit-identical."""
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype == np.float32, key
        np.testing.assert_array_equal(found[key].view(np.uint32), array.view(np.uint32), key)
