"""Load datasets, split them and feed batches to the devices."""

import dataclasses
import zlib

import numpy as np
from jax.sharding import Mesh

from vit_jax.data import bands, checks, relabel
from vit_jax.data.batches import ResidentBatches, StreamingBatches
from vit_jax.data.examples import MOST_SAMPLED, spread
from vit_jax.data.images import describe_transparency, stored_size
from vit_jax.data.jpeg import describe_compression
from vit_jax.data.labels import table_identity, table_path
from vit_jax.data.sources import open_source
from vit_jax.data.splits import describe_folds, describe_sizes, make_splits
from vit_jax.runtime import processes
from vit_jax.runtime.errors import join_names, single_line
from vit_jax.runtime.files import warn
from vit_jax.runtime.sharding import on_cpu

__all__ = ["Data", "ResidentBatches", "StreamingBatches", "load_data"]


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset ready for use; each split yields batches and has a length.

    `fingerprint` identifies the dataset and its splits, see `_fingerprint`; `notes` describe
    defects of the data that cost accuracy; `decided` are settings that were decided by the data.
    """

    class_names: list[str]
    fingerprint: dict
    train: ResidentBatches | StreamingBatches
    val: ResidentBatches | StreamingBatches
    test: ResidentBatches | StreamingBatches
    notes: tuple[str, ...] = ()
    decided: dict = dataclasses.field(default_factory=dict)


def load_data(config, mesh: Mesh, min_classes: int = 2) -> Data:
    """Open the dataset that `config` (the settings `config.data`) describes.

    `min_classes` is the smallest number of class folders: 1 for an evaluation.

    Raises:
      UserError: the dataset is missing, unreadable, or too small for its splits.
    """
    with processes.first_before_others():  # the first process prepares a missing dataset
        source = open_source(config, min_classes)
        splits = make_splits(source, config)
    by_name = {"train": splits.train, "val": splits.val, "test": splits.test}
    resident = is_resident(config, sum(map(len, by_name.values())), mesh)
    print(
        f"{config.name}: {len(splits.class_names)} classes ({join_names(splits.class_names)}), "
        + ", ".join(f"{len(split):,} {name}" for name, split in by_name.items())
        + f" examples, {'device-resident' if resident else 'streamed'}",
        flush=True,
    )
    if resident and config.num_workers:
        warn(f"data.num_workers={config.num_workers} has no effect on device-resident data")
    labels, digests, some_labels, batches = {}, {}, {}, {}
    for name, split in by_name.items():
        if resident:
            images, labels[name] = split.load_all(config.num_threads)
            digests[name] = checks.digest(images)
            batches[name] = ResidentBatches(images, labels[name], mesh)
            del images  # before the next split takes memory
        else:
            batches[name] = StreamingBatches(split, mesh, config.num_threads, config.num_workers)
    processes.wait()  # machines may read at different speeds
    fingerprint = _fingerprint(splits.class_names, by_name, labels)
    notes = list(_describe_images(splits.train, source.level_range, config))
    if config.name == "folder" and config.labels:
        fingerprint["labels"] = table_identity(table_path(config))
    if config.relabel:
        corrections = relabel.read(config.relabel)
        fingerprint["relabel"] = corrections.identity
        count = len(corrections.changed)
        notes.append(f"data.relabel={config.relabel} corrects labels of images: {count}")
    if config.num_folds:
        notes.append(describe_folds(source, config, len(splits.train) + len(splits.test)))
    warnings = [*source.warnings, *checks.describe_names(splits.class_names)]
    if min_classes > 1:  # not an evaluation, which holds out nothing
        warnings += describe_sizes(source, config)
    if not resident and processes.is_first():
        digests, some_labels = checks.digest_files(by_name, config.num_threads)
        if digests:  # the labels of files are known
            labels = {name: split.labels for name, split in by_name.items()}
    warnings += checks.describe_missing(splits.class_names, labels)
    warnings += checks.describe_duplicates(digests, labels if resident else some_labels)
    for text in notes:
        print(single_line(f"note: {text}"), flush=True)
    for text in warnings:
        warn(text)
    decided = {"data.level_range": source.level_range} if source.level_range else {}
    return Data(
        splits.class_names, fingerprint, **batches, notes=(*notes, *warnings), decided=decided
    )


def is_resident(config, num_images: int, mesh: Mesh) -> bool:
    """Whether `num_images` images of all splits are device-resident with the settings `config`."""
    if config.device_resident != "auto":
        return config.device_resident == "always"
    num_bytes = num_images * stored_size(config) ** 2 * config.channels
    if on_cpu(mesh):
        num_bytes *= mesh.size  # the copies share one memory
    return num_bytes <= config.device_resident_max_gib * 2**30


def _describe_images(train, level_range, config):
    """Describe what a sample of the training images has in common."""
    if not bands.uses_bands(config.channels):
        files = train.read_encoded(sorted(set(spread(len(train), MOST_SAMPLED))))
        yield from filter(
            None, (describe_compression(files), describe_transparency(files, config.background))
        )
    else:
        shown = [i + 1 for i in bands.shown_bands(config.channels, config.rgb_bands)]
        names = f"the bands {', '.join(map(str, shown))} as RGB" if shown[1:] else "band 1 as grey"
        yield f"images have {config.channels} channels: figures show {names} (data.rgb_bands)"
    if len(level_range) > 2:
        yield (
            "each band has its own levels that become black and white (data.level_range) in images "
            "with more than 8 bits per channel, levels outside are clipped"
        )
    elif level_range:
        low, high = level_range
        yield (
            f"the levels {low:g} to {high:g} become black to white (data.level_range) in images "
            "with more than 8 bits per channel, levels outside are clipped"
        )


def _fingerprint(class_names, by_name, labels):
    """Collect the classes, the sizes of the splits and checksums.

    "checksum" is that of eight examples of each split, "files" that of the labels and sizes of all
    files, or if the examples are no files, of `labels`, those of each split if they are known;
    "test" that of the names of the test images.
    """
    checksum = files = 0
    sizes = {k: one.sizes for k, one in by_name.items()} if processes.is_first() else {}
    if known := {name: found for name, found in sizes.items() if found is not None}:
        for name, found in known.items():
            files = zlib.crc32(found.astype(np.int64).tobytes(), files)
            files = zlib.crc32(by_name[name].labels.tobytes(), files)
    else:
        for found in labels.values():
            files = zlib.crc32(found.tobytes(), files)
    for split in by_name.values():
        for image, label in split.read(spread(len(split), 8)):
            content = bytes([label % 256]) if np.ndim(label) == 0 else label.tobytes()
            checksum = zlib.crc32(image.tobytes(), zlib.crc32(content, checksum))
    sizes = {name: len(split) for name, split in by_name.items()}
    test = zlib.crc32("\0".join(by_name["test"].names).encode(errors="surrogateescape"))
    fingerprint = {"classes": class_names, "examples": sizes, "checksum": checksum, "test": test}
    processes.wait()  # the first one has read the sizes of all files
    files = int(processes.from_first(np.uint32(files)))
    return fingerprint | ({"files": files} if files else {})
