"""A tiny dataset with several labels per image: coloured stripes."""

import numpy as np
from PIL import Image
from tiny_datasets import write_tfds
from tiny_images import encode

CLASSES = ["red", "green", "blue"]


def stripes(count, seed=0):
    """Make images uint8 [n, 8, 8, 3] and labels [n, 3]: the channels that are bright."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((count, 3)) < (0.5, 0.3, 0.6)).astype(np.uint8)
    images = rng.integers(0, 120, (count, 8, 8, 3)) + 100 * labels[:, None, None]
    return images.astype(np.uint8), labels


def write_stripes(root, train=120, test=40):
    """Write the TFDS dataset "shapes" with the feature Sequence(ClassLabel) "labels"."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(8, 8, 3)),
        "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=CLASSES)),
    }

    def examples(count, seed):
        images, labels = stripes(count, seed)
        rows = (np.flatnonzero(row).tolist() for row in labels)
        return [
            {"image": encode(image), "labels": row} for image, row in zip(images, rows, strict=True)
        ]

    return write_tfds(root, features, {"train": examples(train, 0), "test": examples(test, 1)})


def write_images(root, count=40):
    """Write images of stripes, 0.png and so on, into a new folder; return their labels."""
    root.mkdir()
    images, labels = stripes(count)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / f"{i}.png")
    return labels
