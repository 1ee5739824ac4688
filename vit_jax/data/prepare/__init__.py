"""Prepare TFDS `array_record` datasets from the official archives of CIFAR-10, MNIST and EuroSAT.

The stock TFDS builders need TensorFlow to encode images. Here the TFDS writer gets every image as
PNG or JPEG bytes, so TensorFlow is never imported. Names, versions, features, example keys (and
with them the order on disk) are those of TFDS: `tfds.data_source(name)` reads the result.
"""

import os
import shutil
from pathlib import Path

from vit_jax.data.prepare.datasets import DATASETS, Dataset
from vit_jax.data.prepare.download import download_all
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import expand, lock, read_json, sha256

NAMES = tuple(DATASETS)


def default_data_dir() -> Path:
    """Find the folder of all datasets, as TFDS does: $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    return expand(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def prepare(name: str, data_dir: str | Path, archive: str | Path | None = None) -> Path:
    """Prepare the dataset `name` (one of `NAMES`) in `data_dir` and return its folder.

    Without `archive` the official files are downloaded to `data_dir`/downloads/`name` and stay
    there; a broken download resumes. `archive` is the official file, or a folder, zip or tar with
    the same content, whose structure is checked. The dataset appears under its name only when it
    is complete, and is not prepared again; several processes may prepare it concurrently.

    Raises `UserError` for an unknown name, a failed download, a wrong checksum, an archive that
    is damaged or of another dataset, or a folder that cannot be written.
    """
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: use one of {', '.join(NAMES)}")
    return prepare_dataset(DATASETS[name], data_dir, archive)


def prepare_dataset(
    dataset: Dataset, data_dir: str | Path, archive: str | Path | None = None
) -> Path:
    """Prepare a dataset that need not be one of `NAMES`, as `prepare` does."""
    data_dir = expand(data_dir).absolute()
    target = data_dir / dataset.name / dataset.config / dataset.version
    title = f"{dataset.name} {dataset.version}"
    if _is_complete(target):
        print(f"{title} is already prepared in {target}", flush=True)
        return target
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        path = data_dir / f".prepare-{dataset.name}.lock"
        with lock(path, f"waiting for another process to prepare {title}", wait=True):
            if not _is_complete(target):
                _prepare_locked(dataset, data_dir, target, archive)
    except OSError as error:
        raise UserError(f"{title} cannot be prepared in {data_dir}: {error}") from error
    print(f"{title} is prepared in {target}", flush=True)
    return target


def _prepare_locked(dataset, data_dir, target, archive):
    from vit_jax.data.prepare.writer import write  # imports TFDS, which costs a second

    if target.exists():
        raise UserError(
            f"{target} exists but is not a complete array_record dataset: move it away or choose"
            " another data_dir"
        )
    if archive is None:
        source = download_all(dataset.name, dataset.archives, data_dir)
    elif not (source := expand(archive)).exists():
        raise UserError(f"the archive {source} does not exist")
    elif not (source.is_dir() or source.is_file()):  # reading a pipe would block
        raise UserError(f"the archive {source} is neither a file nor a folder")
    splits = dataset.parse(source)
    if source.is_file() and sha256(source) not in {file.sha256 for file in dataset.archives}:
        print(f"note: {source} is not the official file, but has its structure", flush=True)

    scratch = data_dir / f".prepare-{dataset.name}"
    shutil.rmtree(scratch, ignore_errors=True)  # left behind by a killed process
    try:
        written = write(dataset, splits, scratch)
        if dataset.config:
            # TFDS reads the name of the default config from a file next to the configs.
            metadata = Path(dataset.name, ".config", "metadata.json")
            (data_dir / metadata).parent.mkdir(parents=True, exist_ok=True)
            os.replace(scratch / metadata, data_dir / metadata)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(written, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_complete(folder):
    info = read_json(folder / "dataset_info.json")
    num_shards = sum(len(split.get("shardLengths", [])) for split in info.get("splits", []))
    shards = list(folder.glob("*.array_record-*-of-*"))
    return info.get("fileFormat") == "array_record" and len(shards) == num_shards
