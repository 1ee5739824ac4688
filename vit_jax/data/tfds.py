"""TFDS datasets in array_record files, read without TensorFlow."""

import contextlib
import io
import itertools
import os
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import decoded, prepare
from vit_jax.data.examples import Examples
from vit_jax.data.images import FORMATS, identity_of, stored_size, to_array
from vit_jax.data.resizing import make_resize
from vit_jax.runtime.errors import UserError, first_line, single_line


class Tfds:
    """A TFDS image-classification dataset, prepared as array_record.

    A known dataset that is missing is downloaded and prepared.
    """

    def __init__(self, config):
        self._config = config
        directory = os.path.expanduser(config.dir or prepare.default_data_dir())
        self._builder: Any = _open_builder(config, directory)
        features = self._builder.info.features
        labelled = "label" in features and hasattr(features["label"], "names")
        if "image" not in features or not labelled:
            raise UserError(
                f"data.name={config.name} is not an image-classification dataset: it has the "
                f"features {', '.join(features)}, but needs 'image' and 'label'"
            )
        self.class_names = [single_line(name) for name in features["label"].names]
        self.split_names = list(self._builder.info.splits)

    def examples(self, split: str) -> Examples:
        """Open a TFDS split string such as "train[:90%]"."""
        import tensorflow_datasets as tfds

        files = None
        if self._config.cache_decoded:
            with contextlib.suppress(OSError):  # e.g. a remote path
                paths = [e.path for e in os.scandir(os.path.abspath(self._builder.data_dir))]
                files = decoded.state_of(sorted(paths))  # before they are opened
        with self._reading(split, f" (it has {', '.join(self.split_names)})"):
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
        size, channels = stored_size(self._config), self._config.channels
        resize = make_resize(self._config)

        def fetch(indices):
            with self._reading(split):
                examples = source.__getitems__(indices)
            if any(example["label"] < 0 for example in examples):
                raise UserError(f"split {split!r} of {self._config.name} has no labels")
            return examples

        def decode(example):
            image = Image.open(io.BytesIO(example["image"]), formats=FORMATS)
            return to_array(image, size, channels, resize), int(example["label"])

        def read(indices):
            examples = fetch(indices)
            with self._reading(split):
                return [decode(example) for example in examples]

        def read_labels():
            chunks = [range(i, min(i + 4096, len(source))) for i in range(0, len(source), 4096)]
            return (np.array([e["label"] for c in chunks for e in fetch(c)], np.int32),)

        label_name = files and decoded.identity("labels", split, files)
        identity = files and identity_of(self._config, split, files)
        return Examples(
            len(source),
            read,
            lambda: decoded.cached(label_name, read_labels)[0],
            lambda: identity,
            lambda indices: [example["image"] for example in fetch(indices)],
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

        def spans(split):  # (file, first, last + 1)
            return [
                (i.filename, i.skip, i.skip + i.take if i.take >= 0 else i.examples_in_shard)
                for i in self._builder.info.splits[split].file_instructions
            ]

        try:
            pairs = itertools.product(spans(one), spans(other))
        except Exception:  # an invalid split string, which `examples` reports
            return False
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a, b in pairs)


def _open_builder(config, directory):
    from tensorflow_datasets.core import read_only_builder  # costs a second

    def find():
        try:
            return read_only_builder.builder_from_files(config.name, data_dir=directory)
        except Exception:  # of several types, none more specific than "not found"
            return None

    builder = find()
    name, _, variant = config.name.partition("/")
    known = name in prepare.NAMES and variant in ("", prepare.DATASETS[name].config)
    if builder is None and config.download and known:
        print(f"{config.name} is not in {directory}: preparing it", flush=True)
        prepare.prepare(name, directory)
        builder = find()
    if builder is None:
        raise UserError(
            f"dataset {config.name!r} is not in {directory} (data.dir or TFDS_DATA_DIR): prepare "
            'it there with TFDS, file_format="array_record", or with `vit-jax prepare-data` '
            f"({', '.join(prepare.NAMES)}); data.name=digits needs no files"
        )
    return builder
