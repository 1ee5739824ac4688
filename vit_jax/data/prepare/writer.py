"""Write a dataset with the TFDS writer, without TensorFlow."""

import contextlib
import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vit_jax.data.prepare.datasets import Dataset
from vit_jax.data.prepare.download import progress
from vit_jax.data.prepare.parsers import Examples


def write(dataset: Dataset, splits: dict[str, Examples], folder: Path) -> Path:
    """Write the dataset below `folder` and return the folder of its version."""
    features = {
        "image": tfds.features.Image(shape=dataset.shape, encoding_format=dataset.encoding),
        "label": tfds.features.ClassLabel(names=dataset.class_names),
    }
    if dataset.text_feature:
        features[dataset.text_feature] = tfds.features.Text()
    configs = [tfds.core.BuilderConfig(name=dataset.config)] if dataset.config else []

    # If registered, the class would clash with the stock one of the same name.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset.name
        VERSION = tfds.core.Version(dataset.version)
        BUILDER_CONFIGS = configs

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=dataset.description,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in splits}

        def _generate_examples(self, split):
            examples, label = splits[split].items(), f"{dataset.name} {split}"
            for key, example in progress(examples, desc=label, unit=" images"):
                yield key, example | {"image": encode(example["image"])}

    tfds.disable_progress_bar()  # we show our own
    builder = Builder(data_dir=folder)
    # TFDS announces a download that does not happen.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_path)


def encode(image: np.ndarray | bytes) -> bytes:
    """Encode an array as PNG; return bytes, an encoded image, unchanged."""
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")  # [h, w, 1] is [h, w] to Pillow
    return file.getvalue()
