"""Sources of labelled images: TFDS and Hugging Face datasets, image folders, embedded digits."""

import importlib.util
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data.examples import Examples
from vit_jax.data.folders import Folder
from vit_jax.data.huggingface import HuggingFace
from vit_jax.data.images import options_of, to_array
from vit_jax.data.labelled import open_labelled
from vit_jax.data.tfds import Tfds


def dataset_name(config) -> str:
    """Name the dataset of `config.data`: its folder, or its name in TFDS or on Hugging Face."""
    return config.dir if config.name == "folder" else config.name


class Digits:
    """scikit-learn's embedded handwritten digits: 1,797 images of 8x8 pixels."""

    level_range: tuple[float, ...] = ()  # 8 bits
    train_split = ""
    warnings: list[str] = []

    def __init__(self, config):
        self.class_names, self.split_names = [str(digit) for digit in range(10)], []
        self._config = config

    def examples(self, split: str) -> Examples:
        """Open all digits, the only split, ""."""
        pixels, labels = read_digits()
        options = options_of(self._config)

        def read(i):
            return to_array(Image.fromarray(pixels[i]), **options), int(labels[i])

        return Examples(len(labels), lambda indices: list(map(read, indices)), lambda: labels)

    def overlap(self, one: str, other: str) -> bool:
        """Whether two splits share examples."""
        return True


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Read scikit-learn's images [1797, 8, 8] as uint8, 0 to 255, and their int32 labels."""
    # scikit-learn's reader takes two seconds to import, the file 20 milliseconds to parse.
    package: Any = importlib.util.find_spec("sklearn")
    file = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # pixels of 0 to 16, and the label
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16))
    return pixels.astype(np.uint8), rows[:, -1].astype(np.int32)


Source = Digits | Folder | HuggingFace | Tfds


def open_source(config, min_classes: int = 2) -> Source:
    """Open the dataset of `config.data`; raises UserError if it is missing or invalid.

    `min_classes` is the smallest number of class folders: 1 for an evaluation, whose dataset may
    also be a test split only.
    """
    if config.name == "folder":
        has_labels = config.labels or config.label_pattern
        return (open_labelled if has_labels else Folder)(config, min_classes)
    if config.name.startswith("hf:"):
        return HuggingFace(config, min_classes)
    return Digits(config) if config.name == "digits" else Tfds(config, min_classes)
