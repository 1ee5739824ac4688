"""Where a Hugging Face dataset is: a folder, the cache of Hugging Face's packages, or the Hub."""

import os
import pathlib
from typing import Any

from vit_jax.data.arrow import Files, find_files, find_missing
from vit_jax.data.prepare import NAMES
from vit_jax.runtime.errors import UserError, first_line, single_line
from vit_jax.runtime.files import read_json, warn

# Names without an owner, as `datasets.load_dataset` accepts them.
REPOSITORIES = {
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}


def locate(config) -> Files:
    """Find the files of each split of the dataset `hf:NAME_OR_FOLDER`, or download them.

    `data.dir`, if set, is a folder of local copies, or the copy itself, if it has the name of the
    dataset. Otherwise NAME is a folder, a dataset in the cache of Hugging Face's packages, or one
    on the Hub, in this order.

    Raises:
      UserError: there is no such dataset, or it cannot be downloaded.
    """
    text = config.name.removeprefix("hf:")
    name, _, variant = text.partition(":")
    if config.dir:
        base = pathlib.Path(os.path.expanduser(config.dir))
        tried = [base / text, base / name]
        if base.name in (text, pathlib.PurePath(name).name):
            tried.append(base)
    else:
        tried = [pathlib.Path(os.path.expanduser(one)) for one in (text, name)]
    for folder in tried:
        if os.path.isdir(folder):
            if files := find_files(folder, "" if folder.name == text else variant):
                if missing := find_missing(files):
                    raise UserError(f"{missing.parent} is incomplete: it has no {missing.name}")
                return files
            raise UserError(
                f"{folder} contains no Parquet or Arrow files of a Hugging Face dataset: give the "
                "folder that save_to_disk wrote, or one of Parquet files"
            )
    if config.dir:
        missing = f"contains no folder {name}" if os.path.isdir(base) else "is not a folder"
        raise UserError(f"data.dir={config.dir} {missing}")
    if name.startswith(("/", ".", "~")):
        raise UserError(f"data.name={config.name}: {tried[0]} is not a folder")
    repository = REPOSITORIES.get(name, name)
    for own in dict.fromkeys((repository, name)):
        if files := _find_cached(own, variant):
            return files
    return _download(config, repository, variant)


def _home():
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return pathlib.Path(os.path.expanduser(home))


def _find_cached(repository, variant):
    """Find the newest copy of a repository in the caches of the Hub and of `datasets`."""
    given = os.environ.get("HF_DATASETS_CACHE")
    base = pathlib.Path(os.path.expanduser(given)) if given else _home() / "datasets"
    found = [
        path.parent
        for path in (base / repository.replace("/", "___")).glob("*/*/*/dataset_info.json")
        if not path.parent.name.endswith(".incomplete")
        and (not variant or path.parts[-4] == variant)
    ]
    if len(names := sorted({path.parts[-3] for path in found})) > 1:
        raise UserError(
            f"{repository} has several configurations in {base} ({', '.join(names)}): append one "
            f"to data.name, as hf:NAME:{names[0]}"
        )
    for folder in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        splits = read_json(folder / "dataset_info.json").get("splits")
        files = find_files(folder)
        if files and isinstance(splits, dict) and set(splits) == set(files):
            return files
    given = os.environ.get("HF_HUB_CACHE")
    base = pathlib.Path(os.path.expanduser(given)) if given else _home() / "hub"
    snapshots = (base / f"datasets--{repository.replace('/', '--')}" / "snapshots").glob("*")
    for folder in sorted(snapshots, key=lambda path: path.stat().st_mtime, reverse=True):
        files = find_files(folder, variant)
        if files and not find_missing(files):  # else its download did not finish
            if not any("train" in split for split in files):
                warn(
                    f"{folder} has no training split, only {', '.join(files)}: if the dataset has "
                    "one, remove the folder to download it"
                )
            return files
    return {}


def _download(config, repository, variant):
    """Download a dataset with the package `datasets`; raises UserError."""
    problem = f"data.name={config.name} is neither a folder nor in {_home()}"
    official = f"; data.name={repository.partition('/')[2]} reads the official archive"
    official *= repository.partition("/")[2] in NAMES
    local = f"give a copy, as hf:FOLDER{official}"
    if not config.download:
        raise UserError(f"{problem}, and data.download=False forbids the download: {local}")
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"{problem}: install the package that downloads it (pip install datasets pyarrow), or "
            f"{local}"
        ) from None
    print(
        single_line(f"{config.name} is not on this machine: downloading {repository}"), flush=True
    )
    try:
        loaded: Any = datasets.load_dataset(repository, variant or None)
        return {
            str(split): [pathlib.Path(file["filename"]) for file in one.cache_files]
            for split, one in loaded.items()
        }
    except Exception as error:  # of many types
        raise UserError(
            f"{problem}, and cannot be downloaded ({first_line(error)}): {local}"
        ) from None
