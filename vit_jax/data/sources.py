"""Sources of labelled images: TFDS array_record datasets, image folders, embedded digits."""

import contextlib
import importlib.util
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import decoded
from vit_jax.data.examples import Examples
from vit_jax.data.images import IMAGE_SUFFIXES, identity_of, read_image, stored_size, to_array
from vit_jax.data.resizing import make_resize
from vit_jax.data.tfds import Tfds
from vit_jax.runtime.errors import UserError, join_names, single_line, truncate_repr
from vit_jax.runtime.files import warn

VALIDATION_NAMES = ("validation", "valid", "val")


class Digits:
    """scikit-learn's embedded handwritten digits: 1,797 images of 8x8 pixels."""

    def __init__(self, config):
        self.class_names, self.split_names = [str(digit) for digit in range(10)], []
        self._config = config

    def examples(self, split: str) -> Examples:
        """Open all digits, the only split, ""."""
        pixels, labels = read_digits()
        size, channels = stored_size(self._config), self._config.channels
        resize = make_resize(self._config)

        def read(i):
            return to_array(Image.fromarray(pixels[i]), size, channels, resize), int(labels[i])

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


class Folder:
    """An image folder, `{train,valid,test}/<class>/*` or flat `<class>/*`."""

    def __init__(self, config):
        self._resize = make_resize(config)
        self._config, self._root = config, pathlib.Path(os.path.expanduser(config.dir))
        if not os.path.isdir(self._root):  # unlike Path.is_dir, it accepts any string
            raise UserError(f"data.dir={config.dir} is not a folder")
        top = _folders(self._root)
        known = {"train", "test", *VALIDATION_NAMES, config.train_split}
        if config.train_split in top:
            self.split_names = [name for name in top if name in known]
            first = self._root / config.train_split
        else:
            self.split_names, first = [], self._root
            if like_splits := [n for n in top if n.lower() in {"training", "testing", *known}]:
                raise UserError(
                    f"{self._root} contains {', '.join(like_splits)} but no folder "
                    f"{config.train_split!r} of training images (data.train_split)"
                )
        self.class_names = _folders(first)
        if len(self.class_names) < 2:
            names = ", ".join(self.class_names) or "none"
            raise UserError(
                f"{first} contains fewer than two class folders ({names}): give each class a "
                "folder of images"
            )
        for name in self.class_names:
            if single_line(name) != name:  # would break tables, or cannot be printed
                raise UserError(
                    f"the class folder {first / name} has a line break, another control character "
                    "or invalid UTF-8 in its name: rename it"
                )
        if not any(_is_image(p) for name in self.class_names for p in (first / name).iterdir()):
            warn(
                f"{first}: its class folders ({join_names(self.class_names)}) contain no images "
                "but subfolders, whose images are all used: is data.dir one level too high?"
            )

    def examples(self, split: str) -> Examples:
        """List the images of `split`, "" for a flat folder."""
        root = self._root / split
        if not os.path.isdir(root):
            raise UserError(f"data.dir={self._root} has no folder {truncate_repr(split)} of images")
        if differing := set(_folders(root)) ^ set(self.class_names):
            names = ", ".join(sorted(differing))
            raise UserError(f"{root} and the training images differ in their classes: {names}")
        files, labels, others = [], [], []
        for label, name in enumerate(self.class_names):
            inside = _files(root / name)
            images = [path for path in inside if _is_image(path)]
            others += [path for path in inside if not _is_image(path)]
            if not images:
                kinds = ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
                raise UserError(f"class folder {root / name} contains no image ({kinds})")
            files += images
            labels += [label] * len(images)
        if others:
            text = f"{root}: ignored {len(others)} files that are not images, such as {others[0]}"
            print(single_line(text))
        labels = np.array(labels, np.int32)
        if self._config.skip_corrupt:
            files, labels = self._skip_corrupt(root, files, labels)

        def identity():
            if not self._config.cache_decoded:
                return None
            state = decoded.state_of(files)
            return identity_of(self._config, str(root.resolve()), state, labels.tolist())

        return Examples(
            len(files),
            lambda indices: [(self._read(files[i]), labels[i]) for i in indices],
            lambda: labels,
            identity,
            lambda indices: [files[i].read_bytes() for i in indices],
        )

    def overlap(self, one: str, other: str) -> bool:
        """Whether two splits share images."""
        return (self._root / one).resolve() == (self._root / other).resolve()

    def _read(self, path):
        try:
            size, channels = stored_size(self._config), self._config.channels
            return read_image(path, size, channels, self._resize)
        except UserError as error:
            hint = "repair or remove it, or set data.skip_corrupt=True"
            raise UserError(f"{error}: {hint}") from None

    def _skip_corrupt(self, root, files, labels):
        def readable(path):
            with contextlib.suppress(UserError):
                self._read(path)
                return True
            return False

        with ThreadPoolExecutor(self._config.num_threads) as pool:
            good = np.array(list(pool.map(readable, files)))
        if not good.all():
            skipped = [str(files[i]) for i in np.flatnonzero(~good)]
            text = f"{root}: skipped {len(skipped)} unreadable of {len(files)} files: "
            print(single_line(text + join_names(skipped)))
        for label in np.setdiff1d(labels, labels[good]):
            raise UserError(
                f"class folder {root / self.class_names[label]} contains no readable image"
            )
        return [files[i] for i in np.flatnonzero(good)], labels[good]


Source = Digits | Folder | Tfds


def open_source(config) -> Source:
    """Open the dataset of `config.data`; raises UserError if it is missing or invalid."""
    return {"digits": Digits, "folder": Folder}.get(config.name, Tfds)(config)


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _files(folder):
    """List the files below a folder, without hidden files and folders."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in paths if not any(n[0] == "." for n in p.relative_to(folder).parts))


def _folders(root):
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
