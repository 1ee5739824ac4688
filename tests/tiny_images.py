"""Small images and datasets that tests write, and configs of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from tiny_datasets import settings

import vit_jax
from vit_jax.data.sources import open_source


def folder_config(root, **keys):
    return settings(name="folder", dir=str(root), **keys)


def encode(array, kind="png", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def save_image(array, path, kind=None):
    """Write an image in the format of its suffix, .npy too."""
    if path.suffix.lower() == ".npy":
        with path.open("wb") as file:  # np.save would append .npy to .NPY
            return np.save(file, array)
    Image.fromarray(array).save(path, kind)


def grey(level):
    return np.full((8, 8, 3), level, np.uint8)


def noise(seed, shape=(8, 8, 3), high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def save_noise(root, classes, count=10, start=0):
    """Write `count` distinct images per class."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = Image.fromarray(noise(start + 1000 * label + i))
            image.save(root / name / f"{i}.png")
    return root


def read(root, **keys):
    """Read all images of a flat folder, by path."""
    examples = open_source(folder_config(root, **keys)).examples("")
    return np.stack([image for image, _ in examples.read(range(len(examples)))])


def tfds_config(root, **keys):
    return settings(name="shapes", dir=str(root), **keys)


def png16(array):
    """Encode uint16 [h, w], [h, w, 3] or [h, w, 4], which Pillow cannot write in colour."""
    colour_type = 0 if array.ndim == 2 else {3: 2, 4: 6}[array.shape[-1]]

    def chunk(name, data):
        content = name + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", *array.shape[1::-1], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    data = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data


def tiny_training(root, **overrides):
    """Make the config of a training of one step on an image folder."""
    keys = {"data.name": "folder", "data.dir": str(root), "data.image_size": 8}
    keys |= {"model.depth": 1, "model.hidden_size": 8, "model.mlp_dim": 8, "model.num_heads": 2}
    keys |= {"model.patch_size": 4, "train.batch_size": 8, "train.steps": 2, "train.epochs": 0.0}
    keys |= {"train.num_seeds": 1, "optim.warmup_epochs": 0.0, "log.explain_images": 0}
    keys |= {"augment.crop_padding": 1, "train.eval_every_epochs": 0.0, "log.tensorboard": False}
    path = root.parent / "tiny.py"
    path.write_text("from vit_jax import config\nget_config = config.get_config\n")
    return vit_jax.load_config(path, keys | overrides)


def train_on_noise(root, classes):
    """Train on 20 distinct images per class; return the folder of the run."""
    save_noise(root / "photos", classes, 20)
    return vit_jax.train(tiny_training(root / "photos"), workdir=root / "runs").best_run
