"""The head's inputs in the place of the images, where nothing but the head is trained."""

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from vit_jax.data import Data, ResidentBatches
from vit_jax.runtime import sharding
from vit_jax.runtime.progress import Progress, say
from vit_jax.storage.checkpoint import checksum
from vit_jax.training.setup import Program


def of_data(
    program: Program,
    data: Data,
    variables: dict,
    title: str,
    first_process: bool,
    exit_if_stopped: Callable,
) -> Data:
    """Returns the data with features [n, d] instead of images, on the devices.

    Those of the latest weights are kept in the program: other seeds may begin with the same.

    Args:
      program: with a `feature_step`.
      data: of images.
      variables: of the model.
      title: of the run, for people.
      first_process: whether this one shows progress.
      exit_if_stopped: called after every batch.
    """
    trunk = {key: value for key, value in variables["params"].items() if key != "head"}
    key = int(checksum((trunk, variables["batch_stats"])))
    if key not in program.features:
        parts = {name: getattr(data, name) for name in ("train", "val", "test")}
        total = sum(map(len, parts.values()))
        progress = Progress(f"{title} features", 0, total, first_process, "image")
        cached, started = {}, time.monotonic()
        for name, part in parts.items():
            cached[name] = _of_part(program, part, variables, progress, exit_if_stopped)
        progress.close()
        if first_process:
            say(f"{title}: features of {total:,} images: {time.monotonic() - started:.1f} s")
        program.features.clear()
        program.features[key] = dataclasses.replace(data, **cached)
    return program.features[key]


def _of_part(program, part, variables, progress, exit_if_stopped):
    found = []
    # Of a size that the run cannot change, so that the features keep every bit.
    for batch in part.evaluate(program.config.train.batch_size):
        exit_if_stopped()
        features = sharding.settle(program.feature_step(variables, batch))
        mask, labels = sharding.to_host((batch["mask"], batch["label"]))
        found.append((np.asarray(features)[mask], labels[mask]))
        progress.advance(int(mask.sum()))
    features, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    return ResidentBatches.of_features(features, labels, program.mesh)
