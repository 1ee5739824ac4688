"""TFDS datasets in array_record or TFRecord files, read without TensorFlow."""

import contextlib
import functools
import io
import itertools
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import bands, decoded, prepare
from vit_jax.data.examples import MOST_SAMPLED, Examples, spread
from vit_jax.data.folders import hold_out_hint, holds_photos
from vit_jax.data.images import (
    decide_levels,
    identity_of,
    open_image,
    options_of,
    read_bands,
    read_levels,
    scale_levels,
    to_array,
)
from vit_jax.data.tfrecord import Records
from vit_jax.runtime.errors import UserError, first_line, join_names, single_line, truncate_repr
from vit_jax.runtime.files import allow_many_files
from vit_jax.runtime.progress import Progress

MOST_CLASSES = 10_000  # of labels that are numbers or texts


class Tfds:
    """A TFDS image-classification dataset, prepared as array_record or TFRecord.

    A known dataset that is missing is downloaded and prepared.
    """

    warnings: list[str] = []

    def __init__(self, config, min_classes: int = 2):
        """Open the dataset; raises UserError if it is missing or of another kind."""
        self._config = config
        allow_many_files()  # every shard stays open
        directory = os.path.expanduser(config.dir or prepare.default_data_dir())
        self._builder: Any = _open_builder(config, directory)
        self._image, self._label = self._find_features()
        self.split_names, self.train_split = list(self._builder.info.splits), config.train_split
        if min_classes == 1 and self.train_split == "train" and len(self.split_names) == 1:
            (self.train_split,) = self.split_names  # perhaps of test or validation images

    def _find_features(self):
        """Get the features of images and labels; raises UserError if they are not supported."""
        features, config = self._builder.info.features, self._config
        listed = "no named features"
        if isinstance(features, dict) or hasattr(features, "items"):
            described = (f"{key} ({truncate_repr(one)})" for key, one in sorted(features.items()))
            listed = ", ".join(described)
        is_label, what_each = _is_label, "one class each"
        if config.multi_label:
            is_label, what_each = _is_label_sequence, "several labels each (data.multi_label=True)"
        is_image = functools.partial(_is_image, channels=config.channels)
        for key, is_supported in (("image_key", is_image), ("label_key", is_label)):
            name, found = config[key], None
            with contextlib.suppress(KeyError, TypeError):
                found = features[name]
            if found is None or not is_supported(found):
                what = f"is {truncate_repr(found)}" if found is not None else "is missing"
                hint = ""
                if found is not None and not config.multi_label and _is_label_sequence(found):
                    hint = "; for several labels per image, set data.multi_label=True"
                raise UserError(
                    f"data.name={config.name} cannot be read as images with {what_each}: "
                    f"data.{key}={name!r} {what}{hint}; its features are {listed}"
                )
        return features[config.image_key], features[config.label_key]

    @functools.cached_property
    def class_names(self) -> list[str]:
        """The names of the classes, or else the distinct labels of all splits."""
        if self._is_named:
            return [single_line(name) for name in self._classes.names]
        return [single_line(value) for value in self._values.tolist()]

    @property
    def _is_named(self):
        return bool(getattr(self._classes, "num_classes", None))

    @property
    def _classes(self):
        """The feature of a single label."""
        return self._label.feature if self._config.multi_label else self._label

    @functools.cached_property
    def _values(self):
        """The distinct labels, sorted, where they are no classes with names."""
        values = np.unique(np.concatenate([self._read_labels(name) for name in self.split_names]))
        if len(values) > MOST_CLASSES:
            raise UserError(
                f"data.label_key={self._config.label_key} of {self._config.name} has "
                f"{len(values):,} distinct values, more than {MOST_CLASSES:,}: these are no classes"
            )
        return values

    @functools.cached_property
    def level_range(self) -> tuple[float, ...]:
        """The level range of images with more than 8 bits; () if no training image has more."""
        config = self._config
        return config.level_range or decide_levels(self._sample_levels(), config.channels)

    def _sample_levels(self):
        split, key = self.train_split, self._config.image_key
        records: Any = self._records(split)
        for i in sorted(set(spread(len(records), MOST_SAMPLED))) if len(records) else ():
            with self._reading(split):
                image = self._open(records.__getitems__([i])[0][key])
                is_image = isinstance(image, Image.Image)
                levels = read_levels(image, self._config.max_pixels) if is_image else image
            if levels is not None and levels.dtype != np.uint8:
                yield levels

    def _open(self, value):
        """Open an image: a Pillow image, or an array of levels if it is stored as one."""
        several = bands.uses_bands(self._config.channels)
        if isinstance(value, np.ndarray):
            return bands.arrange(value, self._config.channels) if several else value
        if several:
            return read_bands(value, self._config.channels, self._config.max_pixels)
        image = open_image(io.BytesIO(value), self._config.max_pixels)
        if self._image.np_dtype == np.float32:  # the bits of a float are those of a pixel in RGBA
            return np.ascontiguousarray(image).view(np.float32)
        return image

    def _decode(self, value, options):
        image = self._open(value)
        if isinstance(image, np.ndarray) and not bands.uses_bands(options["channels"]):
            if image.dtype != np.uint8:
                image = scale_levels(image, options["level_range"])
            image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
        return to_array(image, max_pixels=self._config.max_pixels, **options)

    def _records(self, split):
        """Open the records of a split, with `__len__` and `__getitems__`."""
        import tensorflow_datasets as tfds

        # Encoded images are decoded by Pillow, as for folders.
        is_encoded = isinstance(self._image, tfds.features.Image)
        key = self._config.image_key
        decoders: Any = {key: tfds.decode.SkipDecoding()} if is_encoded else None
        with self._reading(split, f" (it has {', '.join(self.split_names)})"):
            try:
                return self._builder.as_data_source(split=split, decoders=decoders)
            except NotImplementedError:
                if "tfrecord" not in str(self._builder.info.file_format).lower():
                    kind = self._builder.info.file_format
                    raise UserError(
                        f"{self._builder.data_dir} is stored as {kind}: prepare it with "
                        'file_format="array_record" or "tfrecord"'
                    ) from None
            pieces = self._spans(split)
            return _Deserialised(Records(pieces), self._builder.info.features, decoders)

    def _spans(self, split):
        """List (path, first example, number of examples) of the files of a split."""
        return [
            (i.filename, i.skip, i.take if i.take >= 0 else i.examples_in_shard - i.skip)
            for i in self._builder.info.splits[split].file_instructions
        ]

    def _state(self):
        """Hash the state of the files, before they are opened; None if they are not local."""
        with contextlib.suppress(OSError):  # e.g. a remote path
            paths = [entry.path for entry in os.scandir(os.path.abspath(self._builder.data_dir))]
            return decoded.state_of(sorted(paths))

    def _read_labels(self, split):
        """Read the labels of a split as stored, or from the cache."""
        files, key = self._state() if self._config.cache_decoded else None, self._config.label_key
        records = self._records(split)

        def read():
            chunks = [range(i, min(i + 64, len(records))) for i in range(0, len(records), 64)]
            progress, values = Progress("reading", 0, len(records), True, "label"), []

            def labels_of(chunk):
                return [_plain(example[key]) for example in records.__getitems__(chunk)]

            with (
                self._reading(split),
                ThreadPoolExecutor(self._config.num_threads) as pool,
                contextlib.closing(progress),
            ):
                for some in pool.map(labels_of, chunks):
                    values += some
                    progress.advance(len(some))
                return (self._multi_hot(values) if several else np.array(values),)

        several = self._config.multi_label
        name = files and decoded.identity("labels" + " per image" * several, split, key, files)
        return decoded.cached(name, read)[0]

    def _multi_hot(self, values):
        """Mark the classes of sequences of labels: uint8 [n, classes]."""
        found = np.zeros((len(values), self._classes.num_classes), np.uint8)
        for row, labels in zip(found, values, strict=True):
            numbers = np.asarray(labels, np.int64)
            if (numbers < 0).any():
                raise UserError(f"an image of {self._config.name} has the label {numbers.min()}")
            row[numbers] = 1
        return found

    def examples(self, split: str) -> Examples:
        """Open a TFDS split string such as "train[:90%]"."""
        files = self._state() if self._config.cache_decoded else None
        records, config = self._records(split), self._config
        keys = (config.image_key, config.label_key)
        if not len(records):
            hint = hold_out_hint(config, split, self.train_split)
            raise UserError(f"split {split!r} of {config.name} is empty: {hint}")

        def fetch(indices):
            with self._reading(split):
                return records.__getitems__(indices)

        def numbers(values):
            if config.multi_label:
                return values if isinstance(values, np.ndarray) else self._multi_hot(values)
            labels = np.asarray(values)
            if not self._is_named:
                labels = np.searchsorted(self._values, labels)
            elif (labels < 0).any():
                hint = hold_out_hint(config, split, self.train_split)
                raise UserError(f"split {split!r} of {config.name} has no labels: {hint}")
            return labels.astype(np.int32)

        def read(indices):
            options = options_of(config) | {"level_range": self.level_range}
            examples = fetch(indices)
            labels = numbers([_plain(example[config.label_key]) for example in examples])
            with self._reading(split):
                images = [self._decode(e[config.image_key], options) for e in examples]
            return list(zip(images, labels if config.multi_label else labels.tolist(), strict=True))

        def read_encoded(indices):
            if self._image.np_dtype == np.float32:  # which look like RGBA
                return []
            values = [example[config.image_key] for example in fetch(indices)]
            return [value for value in values if isinstance(value, bytes)]

        return Examples(
            len(records),
            read,
            lambda: numbers(self._read_labels(split)),
            lambda: files and identity_of(config, self.level_range, *keys, split, files),
            read_encoded,
        )

    @contextlib.contextmanager
    def _reading(self, split, hint=""):
        """Raise UserError for the errors of tfds, array_record and Pillow, of many types."""
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:
            reason = f"cannot be read: {first_line(error)}{hint}"
            raise UserError(f"split {split!r} of {self._config.name} {reason}") from None

    def overlap(self, one: str, other: str) -> bool:
        """Whether two split strings share examples."""
        try:
            pairs = itertools.product(self._spans(one), self._spans(other))
        except Exception:  # an invalid split string, which `examples` reports
            return False
        return any(a[0] == b[0] and a[1] < b[1] + b[2] and b[1] < a[1] + a[2] for a, b in pairs)


class _Deserialised:
    """Examples of TFRecord files, with the interface of TFDS's data sources."""

    def __init__(self, records, features, decoders):
        self._records, self._features, self._decoders = records, features, decoders

    def __len__(self):
        return len(self._records)

    def __getitems__(self, indices):
        return [
            self._features.deserialize_example_np(self._records[i], decoders=self._decoders)
            for i in indices
        ]


def _is_image(feature, channels):
    if type(feature).__name__ not in ("Image", "Tensor"):  # e.g. Video, Sequence, LabeledImage
        return False
    shape = feature.shape
    is_plane = len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4, channels))
    return is_plane and np.dtype(feature.np_dtype).kind in "uifb"


def _is_label(feature):
    kind = type(feature).__name__
    if kind in ("ClassLabel", "Text"):
        return True
    is_scalar = kind in ("Tensor", "Scalar") and feature.shape == ()
    return is_scalar and np.dtype(feature.np_dtype).kind in "uib"


def _is_label_sequence(feature):
    one: Any = getattr(feature, "feature", None)
    return type(one).__name__ == "ClassLabel" and bool(one.num_classes)


def _plain(label):
    return label.decode(errors="replace") if isinstance(label, bytes) else label


def _open_builder(config, directory):
    from tensorflow_datasets.core import read_only_builder, registered  # costs a second

    def find():
        try:
            return read_only_builder.builder_from_files(config.name, data_dir=directory)
        except registered.DatasetNotFoundError:
            return None
        except Exception as error:  # of many types
            raise UserError(
                f"data.name={config.name} in {directory} cannot be read: {first_line(error)}"
            ) from None

    here, builder = pathlib.Path(directory).absolute(), find()
    name, _, variant = config.name.partition("/")
    hint = "" if builder else _describe_inside(name.partition(":")[0], here)
    known = name in prepare.NAMES and variant in ("", prepare.DATASETS[name].config)
    if builder is None and config.dir and not hint and holds_photos(here):
        hint = "that is a folder of images: set data.name=folder"
    if builder is None and config.download and known and not hint:
        print(f"{config.name} is not in {directory}: preparing it", flush=True)
        prepare.prepare(name, directory)
        builder = find()
    if builder is None:
        hint = hint or _describe_versions(name.partition(":")[0], here)
        hint = hint or (
            f"prepare it there with TFDS, or with `vit-jax prepare-data` "
            f"({', '.join(prepare.NAMES)}); data.name=digits needs no files"
        )
        raise UserError(
            f"dataset {config.name!r} is not in {directory} (data.dir or TFDS_DATA_DIR): {hint}"
        )
    return builder


def _describe_inside(name, here):
    """Describe that a folder is itself a dataset or in one; "" if it is not."""
    own = [folder for folder in (here, *here.parents) if folder.name == name]
    with contextlib.suppress(OSError, ValueError):  # not a path
        inside = (here, *here.glob("*")) if own else ()
        if any((folder / "dataset_info.json").exists() for folder in inside):
            return f"that is a folder of the dataset itself: set data.dir={own[0].parent}"
    return ""


def _describe_versions(name, here):
    """Describe the prepared versions of a dataset; "" if there are none."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # not a path
        found = sorted(path.parent for path in (here / name).glob("**/dataset_info.json"))
    if damaged := [folder for folder in found if not (folder / "features.json").exists()]:
        return f"{damaged[0]} has no features.json: prepare it again with TFDS 4 or later"
    names = [f"{folder.parent.relative_to(here)}:{folder.name}" for folder in found]
    return f"set data.name to one that is there: {join_names(names)}" if found else ""
