"""Datasets: opened, split, and fed to the devices in batches."""

import dataclasses
import zlib

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.batches import ResidentBatches, StreamingBatches
from vit_jax.data.images import stored_size
from vit_jax.data.jpeg import describe_compression
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.runtime import processes
from vit_jax.runtime.errors import join_names

__all__ = ["Data", "ResidentBatches", "StreamingBatches", "load_data"]


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset ready for use; each split yields batches and has a length.

    `fingerprint` differs for another dataset or another split, as far as a sample shows; `notes`
    are sentences on what costs accuracy.
    """

    class_names: list[str]
    fingerprint: dict
    train: ResidentBatches | StreamingBatches
    val: ResidentBatches | StreamingBatches
    test: ResidentBatches | StreamingBatches
    notes: tuple[str, ...] = ()


def load_data(config, mesh: Mesh) -> Data:
    """Open the dataset that `config` (the settings `config.data`) describes.

    Raises:
      UserError: the dataset is missing, unreadable, or too small for its splits.
    """
    with processes.first_before_others():  # the first prepares a missing dataset
        splits = make_splits(open_source(config), config)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    num_bytes = sum(map(len, parts.values())) * stored_size(config) ** 2 * config.channels
    if jax.default_backend() == "cpu":
        num_bytes *= mesh.size  # the copies share one memory
    fits = num_bytes <= config.device_resident_max_gib * 2**30
    resident = config.device_resident == "always" or (config.device_resident == "auto" and fits)
    print(
        f"{config.name}: {len(splits.class_names)} classes ({join_names(splits.class_names)}), "
        + ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
        + f" examples, {'to be held on the device' if resident else 'streamed'}",
        flush=True,
    )
    batches = {
        name: ResidentBatches(*part.load_all(config.num_threads), mesh)
        if resident
        else StreamingBatches(part, mesh, config.num_threads)
        for name, part in parts.items()
    }
    processes.wait()  # one machine may read faster than another
    fingerprint = _fingerprint(splits.class_names, parts)
    note = describe_compression(splits.train.read_encoded(_spread(splits.train, 64)))
    if note:
        print(f"note: {note}", flush=True)
    return Data(splits.class_names, fingerprint, **batches, notes=(note,) if note else ())


def _spread(examples, count):
    return np.linspace(0, len(examples) - 1, count).astype(int).tolist()


def _fingerprint(class_names, parts):
    """Collect the classes, the sizes of the splits and a checksum of eight examples of each."""
    checksum = 0
    for part in parts.values():
        for image, label in part.read(_spread(part, 8)):
            checksum = zlib.crc32(image.tobytes(), zlib.crc32(bytes([label % 256]), checksum))
    sizes = {name: len(part) for name, part in parts.items()}
    return {"classes": class_names, "examples": sizes, "checksum": checksum}
