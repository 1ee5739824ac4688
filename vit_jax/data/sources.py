"""Where labelled images come from: TFDS array_record sets, image folders, embedded digits."""

import importlib.util
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vit_jax.data import decoded
from vit_jax.data.examples import Examples
from vit_jax.data.images import IMAGE_SUFFIXES, identity_of, read_image, stored_size, to_array
from vit_jax.data.tfds import Tfds
from vit_jax.runtime.errors import UserError, join_names, single_line, truncate_repr
from vit_jax.runtime.files import warn

VALIDATION_NAMES = ("validation", "valid", "val")


class Source(Protocol):
    """A data set with named classes and, perhaps, named splits."""

    class_names: list[str]
    split_names: list[str]  # empty if the set comes in one piece

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split ("" for the one piece)."""
        ...

    def overlap(self, one: str, other: str) -> bool:
        """Returns whether two splits share examples."""
        ...


def open_source(config) -> Source:
    """Opens the set that `config.data` names; raises UserError if that cannot be done."""
    if config.name == "digits":
        return Digits(config)
    if config.name == "folder":
        return Folder(config)
    return Tfds(config)


class Digits:
    """scikit-learn's embedded handwritten digits: 1,797 images of 8x8 pixels."""

    def __init__(self, config):
        """Loads the digits at the wanted size and number of channels."""
        self._pixels, self._labels = read_digits()
        self.class_names, self.split_names = [str(digit) for digit in range(10)], []
        self._size, self._channels = stored_size(config), config.channels

    def examples(self, split: str) -> Examples:
        """Returns all digits."""
        labels = self._labels
        return Examples(
            len(labels),
            lambda wanted: [(self._read(i), labels[i]) for i in wanted],
            lambda: labels,
        )

    def _read(self, i):
        return to_array(Image.fromarray(self._pixels[i]), self._size, self._channels)

    def overlap(self, one: str, other: str) -> bool:
        """Returns True: there is one split only."""
        return True


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's images [1797, 8, 8] as uint8, 0 to 255, and their int32 labels."""
    # Its own reader is slow to come by: the import takes two seconds, the file 20 milliseconds.
    package: Any = importlib.util.find_spec("sklearn")
    file = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",")  # pixels of 0 to 16, and the label
    pixels = np.rint(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16))
    return pixels.astype(np.uint8), rows[:, -1].astype(np.int32)


class Folder:
    """An image folder, `{train,valid,test}/<class>/*` or flat `<class>/*`."""

    def __init__(self, config):
        """Lists the classes and files; raises UserError where they make no data set."""
        self._config, self._root = config, pathlib.Path(os.path.expanduser(config.dir))
        if not os.path.isdir(self._root):  # which, unlike Path.is_dir, bears any text
            raise UserError(f"data.dir={config.dir} is not a folder")
        top = _folders(self._root)
        split_layout = config.train_split in top
        known = {"train", "test", *VALIDATION_NAMES, config.train_split}
        like_splits = [n for n in top if n.lower() in {"training", "testing", *known}]
        if not split_layout and like_splits:
            raise UserError(
                f"{self._root} holds {', '.join(like_splits)} but no folder "
                f"{config.train_split!r} of training images (data.train_split)"
            )
        self.split_names = [name for name in top if name in known] if split_layout else []
        first = self._root / config.train_split if split_layout else self._root
        self.class_names = _folders(first)
        if len(self.class_names) < 2:
            names = ", ".join(self.class_names) or "none"
            raise UserError(
                f"{first} holds fewer than two class folders ({names}): give each class a "
                "folder of images"
            )
        for name in self.class_names:
            if single_line(name) != name:  # it would break tables, or could not be printed
                raise UserError(
                    f"the class folder {first / name} has a line break, another control character "
                    "or no UTF-8 in its name: rename it"
                )

        if not any(_holds_images(first / name) for name in self.class_names):
            warn(
                f"{first}: its class folders ({join_names(self.class_names)}) hold no images "
                "but further folders, whose images are all used: is data.dir one level too high?"
            )

    def examples(self, split: str) -> Examples:
        """Returns the images of `split`, "" for a flat folder."""
        root = self._root / split
        if not os.path.isdir(root):
            raise UserError(f"data.dir={self._root} has no folder {truncate_repr(split)} of images")
        if _folders(root) != self.class_names:
            differing = ", ".join(sorted(set(_folders(root)) ^ set(self.class_names)))
            raise UserError(f"{root} and the training images differ in their classes: {differing}")
        files, labels, others = [], [], []
        for label, name in enumerate(self.class_names):
            inside = sorted(
                path
                for path in (root / name).rglob("*")
                if path.is_file()
                and not any(part.startswith(".") for part in path.relative_to(root).parts)
            )
            found = [path for path in inside if path.suffix.lower() in IMAGE_SUFFIXES]
            others += [path for path in inside if path.suffix.lower() not in IMAGE_SUFFIXES]
            if not found:
                kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
                raise UserError(f"class folder {root / name} holds no image ({kinds})")
            files += found
            labels += [label] * len(found)
        if others:
            text = f"{root}: left out {len(others)} files of other kinds, such as {others[0]}"
            print(single_line(text))
        if self._config.skip_corrupt:
            files, labels = self._readable(root, files, labels)
        labels = np.array(labels, np.int32)

        def identity():
            state = decoded.state_of(files) if self._config.keep_decoded else None
            return state and identity_of(self._config, str(root.resolve()), state, labels.tolist())

        return Examples(
            len(files),
            lambda wanted: [(self._read(files[i]), labels[i]) for i in wanted],
            lambda: labels,
            identity,
        )

    def overlap(self, one: str, other: str) -> bool:
        """Returns whether two splits share images."""
        return (self._root / one).resolve() == (self._root / other).resolve()

    def _read(self, path):
        try:
            return read_image(path, stored_size(self._config), self._config.channels)
        except UserError as error:
            hint = "mend or remove it, or set data.skip_corrupt=True"
            raise UserError(f"{error}: {hint}") from None

    def _readable(self, root, files, labels):
        def readable(path):
            try:
                self._read(path)
            except UserError:
                return False
            return True

        with ThreadPoolExecutor(self._config.num_threads) as pool:
            good = list(pool.map(readable, files))
        skipped = [str(path) for path, ok in zip(files, good, strict=True) if not ok]
        if skipped:
            text = f"{root}: skipped {len(skipped)} unreadable of {len(files)} files: "
            print(single_line(text + join_names(skipped)))
        left = {label for label, ok in zip(labels, good, strict=True) if ok}
        for label, name in enumerate(self.class_names):
            if label not in left:
                raise UserError(f"class folder {root / name} holds no readable image")
        return (
            [path for path, ok in zip(files, good, strict=True) if ok],
            [label for label, ok in zip(labels, good, strict=True) if ok],
        )


def _holds_images(folder):
    """Returns whether there are images in a folder itself."""
    paths = (path for path in folder.iterdir() if not path.name.startswith("."))
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in paths)


def _folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
