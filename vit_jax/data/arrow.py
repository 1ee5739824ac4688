"""Arrow and Parquet files, as Hugging Face's `datasets` writes them, read without that package."""

import contextlib
import importlib
import itertools
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from vit_jax.data import decoded
from vit_jax.data.folders import SPLIT_NAMES, is_hidden
from vit_jax.runtime.errors import UserError, first_line, join_names, single_line
from vit_jax.runtime.files import apply_umask, cache_folder, read_json

LARGEST_IN_MEMORY = 2**28  # bytes of the Parquet files of a split; larger ones are memory-mapped
_WORDS = {name for names in SPLIT_NAMES.values() for name in names}
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
Files = dict[str, list[pathlib.Path]]  # those of each split


def require(module: str) -> Any:
    """Import a module of pyarrow; raises UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(
            "data.name=hf:... needs the package pyarrow: pip install datasets pyarrow"
        ) from None


def find_files(folder: pathlib.Path, variant: str = "") -> Files:
    """Find the files of each split in a folder; {} if it has none.

    The folder is one that `save_to_disk` of a `Dataset` or `DatasetDict` wrote, one of Parquet
    files, as on the Hub, or one of Arrow files, as in the cache of `datasets`. A dataset with
    several configurations has a folder of Parquet files each; `variant` names one.

    Raises:
      UserError: the folder is incomplete, or the configuration is not known.
    """
    if names := read_json(folder / "dataset_dict.json").get("splits"):
        return {str(name): _saved_files(folder / str(name)) for name in names}
    if (folder / "state.json").exists():
        name = read_json(folder / "state.json").get("_split")
        return {str(name or "train"): _saved_files(folder)}
    by_variant = defaultdict(list)
    for path in _below(folder, ".parquet"):
        parts = path.relative_to(folder).parts[:-1]
        own = [part for part in parts if part != "data" and not _split_in(part)]
        by_variant["/".join(own)].append(path)
    arrow = [path for path in _below(folder, ".arrow") if not path.name.startswith("cache-")]
    if not by_variant and arrow:
        by_variant[""] = [path for path in arrow if path.parent == folder]
    if variant and variant not in by_variant and by_variant:
        raise UserError(
            f"{folder} has no configuration {variant}: it has {', '.join(sorted(by_variant))}"
        )
    if not variant and len(by_variant) > 1:
        names = sorted(by_variant)
        raise UserError(
            f"{folder} has several configurations ({join_names(names)}): append one to data.name, "
            f"as hf:NAME:{names[-1]}"
        )
    files = defaultdict(list)
    paths = by_variant[variant] if variant else next(iter(by_variant.values()), [])
    for path in paths:
        files[_split_of(path, folder)].append(path)
    if len(files) > 1 and "" in files:
        raise UserError(
            f"{folder}: the name of {files[''][0].name} has no split, unlike that of other files"
        )
    return dict(files)


def find_missing(files: Files) -> pathlib.Path | None:
    """Find a file that numbers such as those in train-00000-of-00002.parquet show to be missing."""
    numbers = defaultdict(set)
    for path in itertools.chain.from_iterable(files.values()):
        if match := _SHARD.search(path.name):
            start = path.with_name(path.name[: match.start()])
            numbers[start, int(match[2]), path.suffix].add(int(match[1]))
    for (start, count, suffix), present in numbers.items():
        for number in set(range(count)) - present:
            return start.with_name(f"{start.name}-{number:05}-of-{count:05}{suffix}")
    return None


def _saved_files(folder):
    """List the files of a dataset that `save_to_disk` wrote; raises UserError."""
    state = read_json(folder / "state.json")
    if state.get("_indices_files"):
        raise UserError(f"{folder} is a selection of rows: save it with datasets 2 or later")
    files = [folder / str(entry["filename"]) for entry in state.get("_data_files", [])]
    if missing := [path for path in files if not path.is_file()]:
        raise UserError(f"{folder} is incomplete: it has no {missing[0].name}")
    if not files:
        raise UserError(f"{folder} is incomplete: its state.json is missing or names no files")
    return files


def _below(folder, suffix) -> Iterator[pathlib.Path]:
    for path in sorted(folder.rglob(f"*{suffix}")):
        if path.is_file() and not any(map(is_hidden, path.relative_to(folder).parts)):
            yield path


def _split_in(name):
    """Find the last word of a name that is the name of a split; "" if none is."""
    words = [word for word in re.split(r"[^A-Za-z]+", name) if word.lower() in _WORDS]
    return words[-1] if words else ""


def _split_of(path, folder):
    """Find the split of a file: in its name, else in those of its folders; "" if not named."""
    stem = re.sub(f"{_SHARD.pattern}.*$", "", path.stem)
    first = re.split(r"[^A-Za-z]+", stem)[0].lower()
    if path.suffix == ".parquet" and stem != path.stem and first in _WORDS:
        return stem  # "test_noisy" is another split than "test"
    parts = (stem, *reversed(path.relative_to(folder).parts[:-1]))
    named = next(filter(None, map(_split_in, parts)), "")
    return named or (stem if stem != path.stem else "")


def read_schema(path: pathlib.Path) -> Any:
    """Read the schema of an Arrow or Parquet file; raises UserError if it cannot be read."""
    with _reading([path]):
        if path.suffix == ".parquet":
            return require("pyarrow.parquet").read_schema(path)
        return _open_arrow(path).schema


def read_features(schema: Any, path: pathlib.Path) -> dict[str, dict]:
    """Read the features that `datasets` wrote into a file of this schema, or next to it.

    Returns a dict such as `{"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}`.
    """
    found = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    found = found or read_json(path.parent / "dataset_info.json").get("features")
    known = dict(found) if isinstance(found, dict) else {}
    for name, feature in known.items():
        if isinstance(feature, list) and len(feature) == 1:  # how some versions write sequences
            known[name] = {"_type": "Sequence", "feature": feature[0]}
    return {name: feature for name, feature in known.items() if isinstance(feature, dict)}


def open_table(files: Sequence[pathlib.Path], columns: Sequence[str]) -> Any:
    """Open columns of Arrow or Parquet files as a table, memory-mapped unless it is small.

    Parquet files of more than `LARGEST_IN_MEMORY` bytes, which cannot be read by row, are first
    copied to an Arrow file in the user's cache.

    Raises:
      UserError: a file cannot be read, or its columns differ from those of the first one.
    """
    with _reading(files):
        pa = require("pyarrow")
        if files[0].suffix != ".parquet":
            return pa.concat_tables([_open_arrow(path).select(columns) for path in files])
        if sum(path.stat().st_size for path in files) > LARGEST_IN_MEMORY:
            return _open_arrow(_copy_to_arrow(files, columns))
        parquet = require("pyarrow.parquet")
        return pa.concat_tables([parquet.ParquetFile(path).read(columns) for path in files])


@contextlib.contextmanager
def _reading(files):
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # pyarrow raises many types
        names = join_names(list(map(str, files)))
        raise UserError(f"{names} cannot be read ({first_line(error)})") from None


def _open_arrow(path):
    """Map an Arrow file, of the streaming or the file format, into memory."""
    pa, ipc = require("pyarrow"), require("pyarrow.ipc")
    source = pa.memory_map(str(path))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (ipc.open_file if is_file else ipc.open_stream)(source).read_all()


def _copy_to_arrow(files, columns):
    """Copy columns of Parquet files to an Arrow file in the cache, once; raises UserError."""
    ipc, parquet = require("pyarrow.ipc"), require("pyarrow.parquet")
    base = cache_folder()
    if base is None:
        raise UserError("Parquet files are copied to the user's cache: set XDG_CACHE_HOME")
    name = decoded.identity("arrow", decoded.state_of(files), list(columns))
    path = base / "arrow" / f"{name}.arrow"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(file.stat().st_size for file in files)
    print(
        single_line(f"copying {needed / 2**30:.1f} GiB of Parquet files to {path}, to read by row"),
        flush=True,
    )
    if needed > shutil.disk_usage(path.parent).free:
        raise UserError(f"{path.parent} has too little free space: set XDG_CACHE_HOME")
    descriptor, part = tempfile.mkstemp(".part", dir=path.parent)
    try:
        with open(descriptor, "wb") as opened, contextlib.ExitStack() as stack:
            writer = None
            for file in files:
                source = parquet.ParquetFile(file, memory_map=True)
                for batch in source.iter_batches(256, columns=list(columns)):
                    if writer is None:
                        writer = stack.enter_context(ipc.new_stream(opened, batch.schema))
                    writer.write_batch(batch)
        apply_umask(pathlib.Path(part))
        os.replace(part, path)
    except BaseException:  # Ctrl-C too
        pathlib.Path(part).unlink(missing_ok=True)
        raise
    return path
