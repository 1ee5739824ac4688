"""Cached features instead of images, where nothing but the head is trained."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from vit_jax.data import Data, ResidentBatches
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.progress import Progress, print_line
from vit_jax.storage.checkpoint import checksum
from vit_jax.training.compiled import CompiledSteps


class FeatureCache:
    """Features for the latest data and frozen weights: seeds and variants may share them."""

    def __init__(self):
        self._key, self._data = None, None

    def get(
        self,
        steps: CompiledSteps,
        data: Data,
        variables: dict,
        title: str,
        exit_if_stopped: Callable[[], None],
    ) -> Data:
        """Replace the images of the data by device-resident features [n, d].

        `exit_if_stopped` is called before every batch.
        """
        trunk = {key: value for key, value in variables["params"].items() if key != "head"}
        config = steps.setup.config
        given = (config.data.to_json(), config.model.to_json())
        given += (config.train.dtype, config.train.batch_size)
        key = (checksum((trunk, variables["batch_stats"])), *given)
        if self._data is not None and key == self._key:
            return self._data
        self._data = None  # before the new ones take its memory
        splits = {name: getattr(data, name) for name in ("train", "val", "test")}
        total, first = sum(map(len, splits.values())), processes.is_first()
        if first:
            print_line(f"{title}: computing the features of {total:,} images")
        progress = Progress(f"{title} features", 0, total, first, "image")
        cached, started = {}, time.monotonic()
        for name, split in splits.items():
            columns = []
            # The batch size is one that the run cannot change, so that the features keep every bit.
            for batch in split.evaluate(config.train.batch_size):
                exit_if_stopped()
                features = sharding.block_on_cpu(steps.feature_step(variables, batch))
                mask, labels = sharding.to_host((batch["mask"], batch["label"]))
                columns.append((np.asarray(features)[mask], labels[mask]))
                progress.advance(int(mask.sum()))
            features, labels = (np.concatenate(column) for column in zip(*columns, strict=True))
            cached[name] = ResidentBatches(features, labels, steps.setup.mesh)
        progress.close()
        if first:
            seconds = time.monotonic() - started
            print_line(f"{title}: features of {total:,} images computed in {seconds:.1f} s")
        self._key, self._data = key, dataclasses.replace(data, **cached)
        return self._data
