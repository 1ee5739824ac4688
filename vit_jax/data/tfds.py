"""TFDS sets in array_record files, read without TensorFlow."""

import io
import itertools
import os
from typing import Any

import numpy as np
from PIL import Image

from vit_jax.data import decoded, prepare
from vit_jax.data.examples import Examples
from vit_jax.data.images import FORMATS, identity_of, stored_size, to_array
from vit_jax.runtime.errors import UserError, first_line, single_line


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
        self.class_names = [single_line(name) for name in features["label"].names]
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
                f"{first_line(error)} (it has "
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
                reason = first_line(error)
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

        def cached_labels():
            name = files and decoded.identity("labels", split, files)
            return decoded.cached(name, lambda: (labels(),))[0]

        identity = files and identity_of(self._config, split, files)
        return Examples(len(source), read, cached_labels, lambda: identity)

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
            'it there with TFDS, file_format="array_record", or with `vit-jax prepare-data` '
            f"({', '.join(prepare.NAMES)}); data.name=digits needs no files"
        )
    return builder
