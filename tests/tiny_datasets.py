"""Small datasets for tests: folders, and archives in the official formats."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

from vit_jax.config import get_config
from vit_jax.data.prepare import DATASETS

CLASSES = ("ant", "bee", "cat")


def settings(**keys):
    """Make `config.data` with overrides, by default for 8x8 pixels."""
    config = get_config().data
    config.update({"image_size": 8, "num_threads": 2} | keys)
    return config


def make_folder(root, splits=("",), per_class=4, classes=CLASSES):
    """Write `per_class` images per class, each with a unique grey level."""
    level = 0
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(per_class):
                path = root / split / name / f"{number}.png"
                Image.new("RGB", (8, 8), (level, level, level)).save(path)
                level += 1
    return root


def levels(examples):
    """Read the grey level of each image, its identity."""
    return [int(image[0, 0, 0]) for image, _ in examples.read(range(len(examples)))]


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def cifar10_members(per_batch=20):
    """Make the archive's members and {split: (images [n, 32, 32, 3], labels [n])}."""
    rng = np.random.default_rng(0)
    files, batches_of = {}, {"train": [], "test": []}
    for name in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        images = rng.integers(0, 256, (per_batch, 32, 32, 3), np.uint8)
        labels = rng.permutation(np.arange(per_batch) % 10).astype(np.uint8)
        pixels = images.transpose(0, 3, 1, 2).reshape(per_batch, -1)
        files[name] = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        batches_of["test" if name == "test_batch.bin" else "train"].append((images, labels))
    # As in the official archive, batches are not in order.
    members = {f"cifar-10-batches-bin/{name}": files[name] for name in sorted(files, reverse=True)}
    members["cifar-10-batches-bin/readme.html"] = b"<html>"
    content = {
        split: tuple(np.concatenate(column) for column in zip(*batches, strict=True))
        for split, batches in batches_of.items()
    }
    return members, content


def make_cifar10(path, per_batch=20):
    """Write an archive of 5 * per_batch training and per_batch test images; return its path."""
    return make_tar(path, cifar10_members(per_batch)[0])


def idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def write_tfds(root, features, splits, name="shapes", version="1.0.0"):
    """Write a TFDS dataset of TFRecord files, as TFDS does with TensorFlow.

    Args:
      root: data directory.
      features: {key: TFDS feature}.
      splits: {split: [{key: bytes, integer, or list of numbers, as stored}]}.
      name: of the dataset.
      version: of the dataset.
    """
    import tensorflow_datasets as tfds
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    from tensorflow_datasets.proto import tf_example_pb2

    folder = root / name / version
    folder.mkdir(parents=True)
    tfds.features.FeaturesDict(features).save_config(folder)
    infos = []
    for split, examples in splits.items():
        records = []
        for example in examples:
            message = tf_example_pb2.Example()
            for key, value in example.items():
                feature = message.features.feature[key]
                values = value if isinstance(value, list) else [value]
                kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
                stored = getattr(feature, kind[type(values[0])] if values else "int64_list")
                stored.value.extend(values)
                stored.SetInParent()  # without values too
            content = message.SerializeToString()
            length = struct.pack("<Q", len(content))
            sums = [struct.pack("<I", masked_crc32c(data)) for data in (length, content)]
            records.append(length + sums[0] + content + sums[1])
        (folder / f"{name}-{split}.tfrecord-00000-of-00001").write_bytes(b"".join(records))
        size = sum(map(len, records))
        infos.append({"name": split, "numBytes": size, "shardLengths": [len(records)]})
        infos[-1]["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": name, "version": version, "fileFormat": "tfrecord", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def mnist_files():
    """Make {file name: bytes} and {split: (images [n, 28, 28], labels [n])}."""
    rng = np.random.default_rng(1)
    files, content = {}, {}
    for split, prefix, count in (("train", "train", 30), ("test", "t10k", 10)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(images)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(labels)
        content[split] = (images, labels)
    return files, content


def jpeg(size=(64, 64), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg")
    return file.getvalue()


def eurosat_members(folder="2750"):
    return {
        f"{folder}/{name}/{name}_{number}.jpg": jpeg(seed=2 * label + number)
        for label, name in enumerate(DATASETS["eurosat"].class_names)
        for number in (1, 2)
    }
