"""Load datasets, split them and feed batches to the devices."""

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

    `fingerprint` identifies the dataset and its splits by a sample of examples; `notes` describe
    defects of the data that cost accuracy.
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
    with processes.first_before_others():  # the first process prepares a missing dataset
        splits = make_splits(open_source(config), config)
    by_name = {"train": splits.train, "val": splits.val, "test": splits.test}
    num_bytes = sum(map(len, by_name.values())) * stored_size(config) ** 2 * config.channels
    if jax.default_backend() == "cpu":
        num_bytes *= mesh.size  # the copies share one memory
    fits = num_bytes <= config.device_resident_max_gib * 2**30
    resident = config.device_resident == "always" or (config.device_resident == "auto" and fits)
    print(
        f"{config.name}: {len(splits.class_names)} classes ({join_names(splits.class_names)}), "
        + ", ".join(f"{len(split):,} {name}" for name, split in by_name.items())
        + f" examples, {'device-resident' if resident else 'streamed'}",
        flush=True,
    )
    batches = {
        name: ResidentBatches(*split.load_all(config.num_threads), mesh)
        if resident
        else StreamingBatches(split, mesh, config.num_threads)
        for name, split in by_name.items()
    }
    processes.wait()  # machines may read at different speeds
    fingerprint = _fingerprint(splits.class_names, by_name)
    note = describe_compression(splits.train.read_encoded(_spread(splits.train, 64)))
    if note:
        print(f"note: {note}", flush=True)
    return Data(splits.class_names, fingerprint, **batches, notes=(note,) if note else ())


def _spread(examples, count):
    return np.linspace(0, len(examples) - 1, count).astype(int).tolist()


def _fingerprint(class_names, by_name):
    """Collect the classes, the sizes of the splits and a checksum of eight examples of each."""
    checksum = 0
    for split in by_name.values():
        for image, label in split.read(_spread(split, 8)):
            checksum = zlib.crc32(image.tobytes(), zlib.crc32(bytes([label % 256]), checksum))
    sizes = {name: len(split) for name, split in by_name.items()}
    return {"classes": class_names, "examples": sizes, "checksum": checksum}
