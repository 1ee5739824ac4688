"""Input mode of `benchmark.py`: an epoch over an image folder."""

import pathlib
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from benchmark_modes import make_config, peers, timed
from PIL import Image

from vit_jax.runtime import processes, sharding

NUM_MADE = 1024
NUM_CLASSES = 8


def num_cores() -> int:
    """Get the number of cores, and of the peer's workers."""
    return len(processes.usable_cores())


def make_images(folder: pathlib.Path, width: int, height: int, count: int = NUM_MADE) -> None:
    """Write JPEG files `<class>/*.jpg` of random textures.

    They have about the 4.7 bits per pixel of ImageNet's photographs (110 kB at 500 x 375), on which
    the time of decoding depends: sums of noise at scales of 1 to 128 pixels, at quality 94.
    """
    rng, shape = np.random.default_rng(0), (2 * height, 2 * width, 3)
    texture = np.zeros(shape, np.float32)
    for scale in 2 ** np.arange(8):
        small = rng.normal(size=(shape[0] // scale + 1, shape[1] // scale + 1, 3))
        planes = [Image.fromarray(small[..., c].astype(np.float32)) for c in range(3)]
        resized = [plane.resize(shape[1::-1], Image.Resampling.BICUBIC) for plane in planes]
        texture += np.stack([np.asarray(plane) for plane in resized], -1) * scale**0.35
    grey = texture.mean(-1, keepdims=True)
    texture = grey + 0.4 * (texture - grey)
    texture = np.clip(120 + 55 * (texture - texture.mean()) / texture.std(), 0, 255)
    texture = texture.astype(np.uint8)
    for i in range(count):
        path = folder / str(i % NUM_CLASSES) / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        y, x = rng.integers(height + 1), rng.integers(width + 1)
        Image.fromarray(texture[y : y + height, x : x + width]).save(path, quality=94)


def start_input(spec, args):
    """Prepare epochs: with augmentation, without it, and of decoding alone."""
    import jax

    from vit_jax.augment import augment
    from vit_jax.data import load_data

    spec = spec | {"workers": num_cores(), "crop_min_area": args.crop_min_area}
    config = make_config(
        spec,
        data__name="folder",
        data__dir=spec["folder"],
        data__device_resident="never",
        data__interpolation="bilinear",  # as torchvision
        data__scaled_decoding=args.scaled_decoding,
        data__val_size=1,
        data__test_size=1,
        augment__kind="baseline",
        augment__crop_min_area=args.crop_min_area,
    )
    sharding.start(False, 0, spec["batch_size"])
    mesh = sharding.make_mesh()
    data = load_data(config.data, mesh)
    steps = len(data.train) // spec["batch_size"]
    program = jax.jit(
        lambda key, images, labels: augment(key, images, labels, len(data.class_names), config),
        out_shardings=sharding.split(mesh),
    )
    key, count = jax.random.key(0), steps * spec["batch_size"]
    files = sorted(pathlib.Path(spec["folder"]).glob("*/*"))[:count]

    def epoch(use):
        for batch in data.train.train(0, 0, steps, spec["batch_size"]):
            result = sharding.block_on_cpu(use(batch))
        return result

    def decode():
        with ThreadPoolExecutor(num_cores()) as pool:
            list(pool.map(lambda path: Image.open(path).load(), files))

    sides = {
        "vit_jax": timed(lambda: epoch(lambda b: program(key, b["image"], b["label"]))),
        "without augment": timed(lambda: epoch(lambda batch: batch)),
        "decoding alone": timed(decode),
    }
    return sides | peers("read_folder", spec, args, count=count), count


def parse_size(text):
    """Parse WIDTHxHEIGHT; raises ValueError."""
    width, height = map(int, text.split("x"))
    if min(width, height) < 1:
        raise ValueError(f"{text} has no pixels")
    return width, height


def with_images(args, measure):
    """Call `measure` with --folder, or with --make-images in a temporary folder."""
    if not args.make_images:
        return measure()
    with tempfile.TemporaryDirectory() as folder:
        make_images(pathlib.Path(folder), *args.make_images)
        args.folder = folder
        return measure()
