"""Data sets: opened, divided, and fed to the devices in batches."""

import dataclasses
import zlib

import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax.data.batches import ResidentBatches, StreamingBatches
from vit_jax.data.images import stored_size
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.runtime import processes
from vit_jax.runtime.errors import join_names

__all__ = ["Data", "ResidentBatches", "StreamingBatches", "load_data"]


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set ready for use; each part yields batches and has a length.

    `fingerprint` differs for another set or another division, as far as a sample of it shows.
    """

    class_names: list[str]
    fingerprint: dict
    train: ResidentBatches | StreamingBatches
    val: ResidentBatches | StreamingBatches
    test: ResidentBatches | StreamingBatches


def load_data(config, mesh: Mesh) -> Data:
    """Opens the set that `config` (the settings `config.data`) describes.

    Raises:
      UserError: the set is missing, unreadable, or too small for its splits.
    """
    with processes.first_before_others():  # it prepares a missing set
        splits = make_splits(open_source(config), config)
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    num_bytes = sum(map(len, parts.values())) * stored_size(config) ** 2 * config.channels
    if jax.default_backend() == "cpu":
        num_bytes *= mesh.size  # whose copies share one memory
    fits = num_bytes <= config.resident_max_gib * 2**30
    resident = config.resident == "always" or (config.resident == "auto" and fits)
    print(
        f"{config.name}: {len(splits.class_names)} classes ({join_names(splits.class_names)}), "
        + ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
        + f" examples, {'to be held on the device' if resident else 'streamed'}",
        flush=True,
    )
    kind = ResidentBatches if resident else StreamingBatches
    batches = {name: kind(part, mesh, config.num_threads) for name, part in parts.items()}
    processes.wait()  # one machine may read faster than another
    return Data(splits.class_names, _fingerprint(splits.class_names, parts), **batches)


def _fingerprint(class_names, parts):
    """Returns the classes, the sizes of the parts and a checksum of eight examples of each."""
    checksum = 0
    for part in parts.values():
        for image, label in part.read(np.linspace(0, len(part) - 1, 8).astype(int).tolist()):
            checksum = zlib.crc32(image.tobytes(), zlib.crc32(bytes([label % 256]), checksum))
    sizes = {name: len(part) for name, part in parts.items()}
    return {"classes": class_names, "examples": sizes, "checksum": checksum}
