"""Assertions on prepared datasets and on failed preparations."""

import numpy as np
import tensorflow_datasets as tfds
from tiny_datasets import cifar10_members


def read(name, data_dir, split):
    return list(tfds.data_source(name, data_dir=data_dir, split=split))


def assert_cifar10_is_prepared(data_dir):
    for split, (images, labels) in cifar10_members()[1].items():
        examples = read("cifar10", data_dir, split)
        examples.sort(key=lambda example: example["id"])
        ids = [example["id"].decode() for example in examples]
        assert ids == [f"{split}_{index:05d}" for index in range(len(images))]
        np.testing.assert_array_equal([example["label"] for example in examples], labels)
        np.testing.assert_array_equal([example["image"] for example in examples], images)


def assert_nothing_left(data_dir):
    """No complete or partial dataset; downloads and the empty lock file may remain."""
    left = [path.name for path in data_dir.iterdir()] if data_dir.exists() else []
    assert [name for name in left if name != "downloads" and not name.endswith(".lock")] == []
