"""The check of images for unreadable ones, for `data.skip_corrupt`."""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax.data import decoded
from vit_jax.data.checks import present
from vit_jax.runtime.errors import UserError, join_names, single_line
from vit_jax.runtime.progress import Progress


def find_readable(
    read: Callable,
    files: Sequence,
    labels: np.ndarray,
    where: object,
    config,
    class_names: list,
    identity: str | None,
) -> np.ndarray:
    """Find the indices of the images that `read` accepts, and print which others are skipped.

    What was found is cached under the `identity` of the images and of their decoding.

    Raises:
      UserError: a class has no other images.
    """

    def readable(file):
        with contextlib.suppress(UserError):
            read(file)
            return True
        return False

    def check():
        chunks = [files[i : i + 16] for i in range(0, len(files), 16)]
        progress, found = Progress("checking", 0, len(files), True, "image"), []
        with ThreadPoolExecutor(config.num_threads) as pool, contextlib.closing(progress):
            for some in pool.map(lambda chunk: list(map(readable, chunk)), chunks):
                found += some
                progress.advance(len(some))
        return (np.array(found, bool),)

    name = identity and decoded.identity("readable", identity, config.max_pixels)
    (good,) = decoded.cached(name, check)
    for i in np.flatnonzero(~good).tolist():
        good[i] = readable(files[i])  # the network or a missing decoder may have failed before
    if not good.all():
        skipped = [str(files[i]) for i in np.flatnonzero(~good).tolist()]
        text = f"{where}: skipped {len(skipped)} unreadable of {len(files)} files: "
        print(single_line(text + join_names(skipped)))
    for label in np.setdiff1d(present(labels), present(labels[good])):
        raise UserError(f"{where}: class {class_names[label]} contains no readable image")
    return np.flatnonzero(good)
