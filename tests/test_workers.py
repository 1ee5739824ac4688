"""Streamed batches do not depend on worker processes; each process reads its own examples only."""

import types

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_huggingface import make_table, save_parquet
from tiny_datasets import make_folder, settings, write_tfds
from tiny_images import encode, noise, tfds_config

from vit_jax.data import StreamingBatches, load_data
from vit_jax.data.examples import Examples
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError


def make_config(kind, root):
    if kind == "folder":
        make_folder(root, per_class=20)
        return settings(name="folder", dir=str(root))
    if kind == "tfrecord":
        names = tfds.features.ClassLabel(names=["a", "b"])
        features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": names}
        rows = [{"image": encode(noise(i)), "label": i % 2} for i in range(60)]
        write_tfds(root, features, {"train": rows})
        return tfds_config(root)
    save_parquet(root / "train.parquet", make_table(count=60))
    return settings(name=f"hf:{root}")


def fetched(batches):
    return [{name: np.asarray(array) for name, array in batch.items()} for batch in batches]


@pytest.mark.parametrize(
    ("kind", "seed", "balanced"),
    [("folder", 3, False), ("tfrecord", (3, 4), False), ("parquet", 3, True)],
)
def test_worker_processes_do_not_change_batches(tmp_path, monkeypatch, kind, seed, balanced):
    monkeypatch.setenv("PYTHONPATH", "tests")
    config = make_config(kind, tmp_path)
    config.update(device_resident="never", val_size=4, test_size=4)
    found = []
    for workers in (0, 2):
        config.num_workers = workers
        train = load_data(config, sharding.make_mesh()).train
        found.append(fetched(train.train(seed, 2, 7, 16, balanced)))
    assert len(found[0]) == 5
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_an_error_in_a_worker_process_is_raised_here(tmp_path):
    config = make_config("folder", tmp_path)
    config.update(device_resident="never", val_size=4, test_size=4, num_workers=1)
    train = load_data(config, sharding.make_mesh()).train
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read as an image"):
        list(train.train(0, 0, 2, 16))


@pytest.mark.parametrize("balanced", [False, True])
def test_each_process_reads_its_own_examples_only(monkeypatch, balanced):
    images = noise(0, (64, 4, 4, 3))
    labels = np.arange(64, dtype=np.int32) % 4
    # In a TPU's ring, the devices of a process need not be neighbours.
    devices = [types.SimpleNamespace(process_index=i) for i in (0, 1, 1, 0)]
    ring, local_indices = types.SimpleNamespace(devices=np.array(devices)), sharding.local_indices
    parts = {}
    for count, rank in ((1, 0), (2, 0), (2, 1)):
        read = []

        def example(indices, read=read):
            read.extend(indices)
            return [(images[i], labels[i]) for i in indices]

        monkeypatch.setattr(jax, "process_count", lambda count=count: count)
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        monkeypatch.setattr(sharding, "shard_batch", lambda mesh, batch: batch)
        monkeypatch.setattr(sharding, "local_indices", lambda mesh, size: local_indices(ring, size))
        examples = Examples(64, example, lambda: labels)
        split = StreamingBatches(examples, sharding.make_mesh(), num_threads=2)
        batches = list(split.train(1, 0, 3, 16, balanced)) + list(split.evaluate(16))
        parts[count, rank] = [batch["image"] for batch in batches], sorted(read)
    whole, one, two = parts.values()
    for batch, first, second in zip(whole[0], one[0], two[0], strict=True):
        pieces = [first[:4], second, first[4:]]
        np.testing.assert_array_equal(batch, np.concatenate(pieces))
    assert sorted(one[1] + two[1]) == whole[1] and len(one[1]) == len(two[1])


def test_a_batch_is_transferred_before_it_is_needed(monkeypatch):
    images, labels, transferred = noise(0, (64, 4, 4, 3)), np.zeros(64, np.int32), []
    monkeypatch.setattr(sharding, "shard_batch", lambda mesh, batch: transferred.append(batch))
    examples = Examples(64, lambda indices: [(images[i], 0) for i in indices], lambda: labels)
    batches = StreamingBatches(examples, sharding.make_mesh(), num_threads=1).train(1, 0, 3, 16)
    counts = [len(transferred) for _ in batches]
    assert counts == [2, 3, 3]


def test_workers_without_effect_are_a_warning(capsys):
    load_data(settings(name="digits", num_workers=2), sharding.make_mesh())
    assert "data.num_workers=2 has no effect on device-resident data" in capsys.readouterr().err
