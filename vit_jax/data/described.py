"""Data that are described only by their classes and sizes, for programs that are not run."""

import dataclasses
from typing import Any

import numpy as np
from jax.sharding import Mesh

from vit_jax.config import Config, with_overrides
from vit_jax.data import Data, is_resident, prepare
from vit_jax.data.examples import Examples
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import warn

# Number of classes and of the images of each labelled split: https://www.tensorflow.org/datasets.
KNOWN = {
    "cifar10": (10, {"train": 50_000, "test": 10_000}),
    "cifar100": (100, {"train": 50_000, "test": 10_000}),
    "eurosat": (10, {"train": 27_000}),
    "fashion_mnist": (10, {"train": 60_000, "test": 10_000}),
    "food101": (101, {"train": 75_750, "validation": 25_250}),
    "imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "mnist": (10, {"train": 60_000, "test": 10_000}),
    "oxford_flowers102": (102, {"train": 1020, "validation": 1020, "test": 6149}),
    "oxford_iiit_pet": (37, {"train": 3680, "test": 3669}),
}


@dataclasses.dataclass(frozen=True)
class DescribedSplit:
    """A split without images."""

    labels: np.ndarray  # int [n], or uint8 [n, classes]
    resident: bool  # whether the images would be device-resident

    def __len__(self):
        return len(self.labels)


class _Described:
    """A source of `sources.Source`'s interface whose images cannot be read."""

    level_range: tuple[float, ...] = ()
    warnings: list[str] = []

    def __init__(self, config, num_classes, sizes):
        named = prepare.DATASETS.get(config.name.partition("/")[0])
        numbered = [f"class_{i}" for i in range(num_classes)]
        is_named = named is not None and len(named.class_names) == num_classes
        self.class_names = list(named.class_names) if named and is_named else numbered
        self.split_names = [name for name in sizes if name]
        self.train_split = config.train_split
        self._config, self._sizes = config, sizes

    def examples(self, split):
        """Describe a split whose classes are of one size."""
        if split not in self._sizes:
            raise UserError(
                f"the size of split {split!r} is not known: give --num-classes and --num-images"
            )
        labels = (np.arange(self._sizes[split]) % len(self.class_names)).astype(np.int32)
        if self._config.multi_label:
            labels = np.eye(len(self.class_names), dtype=np.uint8)[labels]
        return Examples(len(labels), lambda indices: [], lambda: labels)

    def overlap(self, one, other):
        """Whether two splits are the same."""
        return one == other


def describe_data(config: Config, mesh: Mesh, num_classes: int = 0, num_images: int = 0) -> Data:
    """Describe the dataset of a config without reading or downloading images.

    Args:
      config: resolved.
      mesh: of the devices that the images would be on.
      num_classes: of the dataset.
      num_images: of the dataset, from which validation and test are held out. 0: the numbers of the
        dataset itself where it is on this machine, else those of `KNOWN`.

    Raises:
      UserError: nothing is known about the dataset.
    """
    source: Any = _find_source(config, num_classes, num_images)
    splits = make_splits(source, config.data)
    by_name = {name: getattr(splits, name) for name in ("train", "val", "test")}
    resident = is_resident(config.data, sum(map(len, by_name.values())), mesh)
    described: Any = {
        name: DescribedSplit(split.labels, resident) for name, split in by_name.items()
    }
    return Data(splits.class_names, {}, **described)


def _find_source(config, num_classes, num_images):
    if bool(num_classes) != bool(num_images):
        raise UserError("--num-classes and --num-images need each other: give both or neither")
    if num_images:
        return _Described(config.data, num_classes, {"": num_images})
    local = with_overrides(config, {"data.download": False}, "the command")
    try:
        return open_source(local.data)
    except UserError as error:
        name = config.data.name.partition("/")[0].partition(":")[0]
        if name in KNOWN:
            warn(f"{error}; the published sizes of {name} are taken")
            return _Described(config.data, *KNOWN[name])
        raise UserError(
            f"{config.data.name} is not on this machine ({error}): describe it with "
            "--num-classes and --num-images"
        ) from None
