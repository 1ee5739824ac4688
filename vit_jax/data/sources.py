"""Where labelled images come from: TFDS array_record sets, image folders, embedded digits."""

import functools
import importlib.util
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from vit_jax.data import decoded, prepare
from vit_jax.errors import UserError, one_line, shown

# What Pillow may take a file for, whatever it is called: not those that it hands to other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
VALIDATION_NAMES = ("validation", "valid", "val")
PIXELS = 1  # counts up when `to_array` begins to give other pixels: those kept are then made anew


class Examples:
    """Random access to labelled images.

    Attributes:
      labels: int32 [n].
      identity: a text that changes with the pixels or labels; None: they are not to be kept.
    """

    def __init__(
        self,
        count: int,
        read: Callable[[Sequence[int]], list[tuple[np.ndarray, int]]],
        labels: Callable[[], np.ndarray],
        identity: Callable[[], str | None] = lambda: None,
    ):
        """Wraps a reader.

        Args:
          count: number of examples.
          read: indices -> (uint8 [height, width, channels], label) each.
          labels: -> int32 [count]; called only when labels are needed without the pixels.
          identity: -> `identity`; called only before all are decoded.
        """
        self._count, self._read, self._labels, self._identity = count, read, labels, identity

    def __len__(self):
        return self._count

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """The labels, int32 [n]."""
        return self._labels()

    @functools.cached_property
    def identity(self) -> str | None:
        """A text that changes with the pixels or labels; None: they are not to be kept."""
        return self._identity()

    def read(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Reads and decodes some examples: (uint8 [height, width, channels], label) each."""
        return self._read(indices)

    def take(self, indices: np.ndarray) -> "Examples":
        """Returns the examples at `indices`, in that order."""
        return Examples(
            len(indices),
            lambda wanted: self._read([int(indices[i]) for i in wanted]),
            lambda: self.labels[indices],
            lambda: self.identity and decoded.identity(self.identity, indices.tolist()),
        )

    def decode_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images, uint8 [n, height, width, channels], and labels, int32 [n]."""
        chunks = [range(i, min(i + 256, len(self))) for i in range(0, len(self), 256)]
        # Filled in place: a stack at the end would need twice the room.
        images = np.empty((len(self), *self.read([0])[0][0].shape), np.uint8)
        labels = np.empty(len(self), np.int32)
        bar = tqdm(total=len(self), desc="decoding", unit="image", leave=False, disable=None)
        with ThreadPoolExecutor(num_threads) as pool, bar:
            for chunk, examples in zip(chunks, pool.map(self.read, chunks), strict=True):
                for i, (image, label) in zip(chunk, examples, strict=True):
                    images[i], labels[i] = image, label
                bar.update(len(chunk))
        return images, labels

    def load_all(self, num_threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns as `decode_all`, without decoding what an earlier start kept (`decoded`)."""
        if self.identity is None:
            return self.decode_all(num_threads)
        # Some are compared: dates may mislead, and the libraries that Pillow decodes with change.
        some = np.linspace(0, len(self) - 1, 8).astype(int).tolist()
        seen = self.read(some)

        def fits(images, labels):
            pairs = zip(some, seen, strict=True)
            return all(labels[i] == y and np.array_equal(images[i], x) for i, (x, y) in pairs)

        shapes = ((len(self), *seen[0][0].shape), np.uint8), ((len(self),), np.int32)
        images, labels = decoded.kept(
            self.identity, shapes, lambda: self.decode_all(num_threads), fits
        )
        return images, labels


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


def stored_size(config) -> int:
    """Returns the side, in pixels, that images have until they are on the device."""
    return config.stored_size or config.image_size


def _identity(config, *what) -> str:
    return decoded.identity(PIXELS, PIL.__version__, stored_size(config), config.channels, *what)


def to_array(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Returns uint8 [size, size, channels]: upright, converted, resized, centre-cropped.

    `image` itself may be turned upright.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits: Pillow would clip, not scale
        levels = np.nan_to_num(np.asarray(image, np.float64) / 257, nan=0.0)
        image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:  # of a palette: Pillow wants this step in between
        image = image.convert("RGBA")
    mode = "RGB" if channels == 3 else "L"
    if image.mode != mode:  # else it would be copied
        image = image.convert(mode)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels)


def read_image(path: pathlib.Path, size: int, channels: int) -> np.ndarray:
    """Returns a file's image as `to_array` makes it; raises UserError if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_array(image, size, channels)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many types for a broken file
        raise UserError(f"{path} cannot be read as an image ({error})") from None


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
            if one_line(name) != name:  # it would break tables, or could not be printed
                raise UserError(
                    f"the class folder {first / name} has a line break, another control character "
                    "or no UTF-8 in its name: rename it"
                )

    def examples(self, split: str) -> Examples:
        """Returns the images of `split`, "" for a flat folder."""
        root = self._root / split
        if not os.path.isdir(root):
            raise UserError(f"data.dir={self._root} has no folder {shown(split)} of images")
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
            print(one_line(text))
        if self._config.skip_corrupt:
            files, labels = self._readable(root, files, labels)
        labels = np.array(labels, np.int32)

        def identity():
            state = decoded.state_of(files) if self._config.keep_decoded else None
            return state and _identity(self._config, str(root.resolve()), state, labels.tolist())

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
            text = f"{root}: skipped {len(skipped)} unreadable of {len(files)} files: {skipped[0]}"
            print(one_line(text))
        left = {label for label, ok in zip(labels, good, strict=True) if ok}
        for label, name in enumerate(self.class_names):
            if label not in left:
                raise UserError(f"class folder {root / name} holds no readable image")
        return (
            [path for path, ok in zip(files, good, strict=True) if ok],
            [label for label, ok in zip(labels, good, strict=True) if ok],
        )


def _folders(root: pathlib.Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


class Tfds:
    """A TFDS image-classification set prepared as array_record."""

    def __init__(self, config):
        """Opens the set, preparing a known one if it is missing and there is a network."""
        self._config = config
        directory = os.path.expanduser(config.dir or prepare.default_data_dir())
        self._builder: Any = _open_builder(config, directory)
        features = self._builder.info.features
        labelled = "label" in features and hasattr(features["label"], "names")
        if "image" not in features or not labelled:
            raise UserError(
                f"data.name={config.name} is no image-classification set: it has the features "
                f"{', '.join(features)}, and 'image' and 'label' are needed"
            )
        self.class_names = [one_line(name) for name in features["label"].names]
        self.split_names = list(self._builder.info.splits)

    def examples(self, split: str) -> Examples:
        """Returns the examples of a TFDS split string such as "train[:90%]"."""
        import tensorflow_datasets as tfds

        files = self._state()  # before they are opened: later changes are to be noticed
        try:
            # The pixels are decoded by Pillow, as for folders.
            source = self._builder.as_data_source(
                split=split, decoders={"image": tfds.decode.SkipDecoding()}
            )
        except NotImplementedError:
            raise UserError(
                f"{self._builder.data_dir} is not stored as array_record: prepare it with "
                'file_format="array_record"'
            ) from None
        except Exception as error:  # tfds raises many types for a wrong split string
            raise UserError(
                f"split {split!r} of {self._config.name} cannot be read: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]} (it has "
                f"{', '.join(self.split_names)})"
            ) from None
        size, channels = stored_size(self._config), self._config.channels

        def read(wanted):
            try:
                examples = source.__getitems__(wanted)
                if any(e["label"] < 0 for e in examples):
                    raise UserError(f"split {split!r} of {self._config.name} has no labels")
                images = [Image.open(io.BytesIO(e["image"]), formats=FORMATS) for e in examples]
                return [
                    (to_array(image, size, channels), int(e["label"]))
                    for image, e in zip(images, examples, strict=True)
                ]
            except (UserError, MemoryError):
                raise
            except Exception as error:  # Pillow and array_record raise many types
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise UserError(
                    f"split {split!r} of {self._config.name} cannot be read: {reason}"
                ) from None

        def labels():
            chunks = [range(i, min(i + 4096, len(source))) for i in range(0, len(source), 4096)]
            try:
                found = [e["label"] for chunk in chunks for e in source.__getitems__(chunk)]
            except RuntimeError as error:
                raise UserError(
                    f"split {split!r} of {self._config.name} cannot be read: {error}"
                ) from None
            if min(found) < 0:
                raise UserError(f"split {split!r} of {self._config.name} has no labels")
            return np.array(found, np.int32)

        def kept_labels():
            name = files and decoded.identity("labels", split, files)
            (found,) = decoded.kept(name, [((len(source),), np.int32)], lambda: (labels(),))
            return found

        identity = files and _identity(self._config, split, files)
        return Examples(len(source), read, kept_labels, lambda: identity)

    def _state(self):
        """Returns what tells of a change of the files; None if nothing is to be kept."""
        if not self._config.keep_decoded:
            return None
        try:
            paths = [entry.path for entry in os.scandir(os.path.abspath(self._builder.data_dir))]
        except OSError:  # as of a remote disk
            return None
        return decoded.state_of(sorted(paths))

    def overlap(self, one: str, other: str) -> bool:
        """Returns whether two split strings share examples."""

        def spans(split):  # (file, first, last + 1)
            return [
                (i.filename, i.skip, i.skip + i.take if i.take >= 0 else i.examples_in_shard)
                for i in self._builder.info.splits[split].file_instructions
            ]

        try:
            pairs = itertools.product(spans(one), spans(other))
        except Exception:  # a wrong split string: `examples` tells of it
            return False
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a, b in pairs)


def _open_builder(config, directory):
    from tensorflow_datasets.core import read_only_builder  # costs a second

    def find():
        try:
            return read_only_builder.builder_from_files(config.name, data_dir=directory)
        except Exception:  # several types, none of which tells more than "not found"
            return None

    builder = find()
    name, _, variant = config.name.partition("/")
    known = name in prepare.NAMES and variant in ("", prepare.SETS[name].config)
    if builder is None and config.download and known:
        print(f"{config.name} is not in {directory}: preparing it", flush=True)
        prepare.prepare(name, directory)
        builder = find()
    if builder is None:
        raise UserError(
            f"data set {config.name!r} is not in {directory} (data.dir or TFDS_DATA_DIR): prepare "
            'it there with TFDS, file_format="array_record", or with scripts/prepare_data.py '
            f"({', '.join(prepare.NAMES)}); data.name=digits needs no files"
        )
    return builder
