"""Image folders: class folders, alone or in folders of splits."""

import contextlib
import functools
import os
import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vit_jax.data import decoded
from vit_jax.data.checks import match_names
from vit_jax.data.examples import MOST_SAMPLED, Examples, spread
from vit_jax.data.images import (
    IMAGE_SUFFIXES,
    decide_levels,
    identity_of,
    is_image,
    options_of,
    read_image,
    sample_levels,
)
from vit_jax.data.readable import find_readable
from vit_jax.runtime.errors import UserError, join_names, single_line, truncate_repr
from vit_jax.runtime.files import warn

# The usual names of splits in lower case, those preferred first.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
IGNORED = ("__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN")


def find_split(split: str, names: Iterable[str]) -> str:
    """Find the usual name of "train", "val" or "test" among names, in any case; "" if none is."""
    for usual in SPLIT_NAMES[split]:
        if found := sorted((n for n in names if n.lower() == usual), key=lambda n: n != usual):
            return found[0]
    return ""


def is_class_folder(folder: pathlib.Path, data_config) -> bool:
    """Whether images in a folder would be those of a class of `config.data`."""
    root = pathlib.Path(os.path.expanduser(data_config.dir)).resolve()
    inside = folder.resolve()
    if data_config.name != "folder" or data_config.labels or root not in (inside, *inside.parents):
        return False
    rest = inside.relative_to(root).parts
    subfolders = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    split = data_config.train_split
    split = find_split("train", subfolders) if split == "train" else split
    return not any(map(is_hidden, rest)) and (not split or rest[:1] == (split,))


def hold_out_hint(data_config, split: str, train_split: str) -> str:
    """Advise on a split of `config.data` without usable examples."""
    if split == train_split:
        return "name another with data.train_split"
    key = "val" if split == data_config.val_split or find_split("val", [split]) else "test"
    return f"set data.{key}_split=hold_out to hold it out from the training examples"


def walk(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, bool]]:
    """Yield (path, whether it is a file) of all below a folder that is not hidden.

    Links are followed; a folder that several of them lead to is read once. What is not a file is a
    dead link, a link to a folder that contains it, or a device.
    """
    start, seen = folder.resolve(), set()

    def visit(folder, above):
        with os.scandir(folder) as opened:
            # Sorted, folders before links: what is reached twice has the same path everywhere.
            entries = sorted(opened, key=lambda entry: (entry.is_symlink(), entry.name))
        for entry in entries:
            path = folder / entry.name
            kind = path if entry.is_symlink() else entry  # an entry raises for a circle of links
            if is_hidden(entry.name):
                continue
            if not kind.is_dir():
                yield path, kind.is_file()
            elif (real := path.resolve()) in above:
                yield path, False
            elif real not in seen:
                seen.add(real)
                yield from visit(path, above | {real})

    return visit(folder, {start, *start.parents})


def list_images(folder: pathlib.Path) -> tuple[list[pathlib.Path], list, list]:
    """List the images, the other files, and what is not a file, below a folder, each sorted."""
    images, others, broken = [], [], []
    for path, is_file in walk(folder):
        (broken if not is_file else images if is_image(path) else others).append(path)
    return sorted(images), sorted(others), sorted(broken)


def describe_suffixes(paths: Iterable[pathlib.Path]) -> str:
    """Count files by suffix, as "20 files of .xcf, 1 file without a suffix"."""
    counts = Counter(path.suffix.lower() for path in paths)
    hint = " (read if pillow-heif is installed)" if {".heic", ".heif"} & counts.keys() else ""
    described = (
        f"{n} file{'s' * (n > 1)} {f'of {suffix}' if suffix else 'without a suffix'}"
        for suffix, n in counts.most_common(5)
    )
    return ", ".join(described) + hint


def is_hidden(name: str) -> bool:
    """Whether a file or folder holds no data, by its name: hidden, or made by a system."""
    return name.startswith(".") or name in IGNORED


class Folder:
    """An image folder, `{train,valid,test}/<class>/*` or flat `<class>/*`."""

    def __init__(self, config, min_classes: int = 2):
        """Find the splits and the classes; raises UserError if the layout is invalid."""
        self._config, self._root = config, pathlib.Path(os.path.expanduser(config.dir))
        if not os.path.isdir(self._root):  # unlike Path.is_dir, it accepts any string
            raise UserError(f"data.dir={config.dir} is not a folder")
        _check_links(self._root)
        top = _folders(self._root)
        self.train_split = self._find_train(top, min_classes)
        first = self._root / self.train_split
        given = (config.val_split, config.test_split)
        usual = {find_split(split, top) for split in SPLIT_NAMES}
        named = [n for n in top if n in (*given, *usual) and n != self.train_split]
        self.split_names = [self.train_split, *named] if self.train_split else []
        self.class_names = _folders(first)
        if len(self.class_names) < min_classes:
            names, least = ", ".join(self.class_names) or "none", ("one", "two")[min_classes - 1]
            raise UserError(
                f"{first} contains fewer than {least} class folders ({names}): give each class a "
                "folder of images, or set data.labels or data.label_pattern"
            )
        for name in self.class_names:
            if single_line(name) != name:  # would break tables, or cannot be printed
                raise UserError(
                    f"the class folder {first / name} has a line break, another control character "
                    "or invalid UTF-8 in its name: rename it"
                )
        inside = {name: _folders(first / name) for name in self.class_names}
        deep = [n for n in inside if inside[n] and not _has_direct_images(first / n)]
        if len(deep) == len(inside) or any(inside[name][1:] for name in deep):
            warn(
                f"{first}: class folders ({join_names(deep)}) contain no images but subfolders, "
                "whose images are all used: is data.dir one level too high?"
            )
        self._lists = {}  # {split: its files and labels}
        self.warnings = list(self._describe_unused(top))

    def _find_train(self, top, min_classes):
        """Find the folder of training images, "" for a flat folder; raises UserError."""
        given = self._config.train_split
        if given != "train":
            if not os.path.isdir(self._root / given):
                raise UserError(f"data.train_split={given} is not a folder in {self._root}")
            return given
        usual = {split: name for split in SPLIT_NAMES if (name := find_split(split, top))}
        others = [name for name in top if name not in usual.values()]
        # A class may be called "test", but not together with "train".
        like_classes = all(_is_class(self._root / name) for name in usual.values())
        if like_classes and not ("train" in usual and len(usual) > 1):
            if not usual or any(_has_direct_images(self._root / name) for name in others):
                return ""
        if min_classes == 1 and len(usual) == 1:
            return next(iter(usual.values()))  # of test or validation images
        if "train" not in usual:
            raise UserError(
                f"{self._root} contains {', '.join(usual.values())} but no folder 'train' of "
                "training images (data.train_split)"
            )
        return usual["train"]

    def _describe_unused(self, top):
        """Describe images next to those that are used."""
        config, used = self._config, set(self.class_names)
        if self.train_split:
            used = {self.train_split.rstrip("/")}
            for split in ("val", "test"):
                given = config[f"{split}_split"]
                used.add(find_split(split, top) if given == "auto" else given.rstrip("/"))
            unused = [n for n in top if n not in used and _has_images(self._root / n)]
            if unused:
                yield (
                    f"{self._root}: the images of {join_names(unused)} are not used: "
                    "data.train_split, data.val_split and data.test_split name the folders in use"
                )
        for folder in sorted({self._root, self._root / self.train_split}):
            if loose := sum(p.is_file() and is_image(p) for p in _visible(folder)):
                yield f"{folder}: {loose} images outside class folders are not used"
        parent, name = self._root.resolve().parent, self._root.resolve().name
        if find_split("train", [name]):
            named = (find_split(split, _folders(parent)) for split in ("val", "test"))
            for name in filter(None, named):
                if _has_images(parent / name):
                    yield (
                        f"data.dir={config.dir}: the images of the folder {name} next to it are "
                        f"not used: set data.dir={parent} to use both"
                    )

    def _list(self, split):
        """List the image files of `split` and their labels, once; raises UserError."""
        if split not in self._lists:
            self._lists[split] = self._find(split)
        return self._lists[split]

    def _find(self, split):
        root = self._root / split
        if not os.path.isdir(root):
            raise UserError(f"data.dir={self._root} has no folder {truncate_repr(split)} of images")
        _check_links(root)
        is_train, names = split == self.train_split, _folders(root)
        labels_of = match_names(names, self.class_names)
        folders = {label: name for name, label in zip(names, labels_of, strict=True)}
        unknown = [n for n, label in zip(names, labels_of, strict=True) if label is None]
        if unknown := [name for name in unknown if _has_images(root / name)]:
            raise UserError(
                f"{root} has classes that the training images do not have: {join_names(unknown)}"
            )
        files, labels, others, broken = [], [], [], []
        for label, name in enumerate(self.class_names):
            folder = root / folders.get(label, name)
            images, *left = list_images(folder) if folder.is_dir() else ([], [], [])
            if is_train and not images:
                found = describe_suffixes(left[0])
                found = f": {found} are not supported" if found else ""
                raise UserError(f"class folder {folder} contains no image ({_kinds()}){found}")
            files += images
            labels += [label] * len(images)
            others += left[0]
            broken += left[1]
        if not files:
            raise UserError(
                f"{root} contains no images in class folders"
                f"{', only unlabelled ones' if _has_images(root) else ''}: remove it, or "
                f"{hold_out_hint(self._config, split, self.train_split)}"
            )
        if others:
            text = f"{root}: ignored {describe_suffixes(others)}, such as {others[0]}; formats "
            print(single_line(f"{text}that are read: {_kinds()}"))
        if broken:
            warn(
                f"{root}: {len(broken)} links lead nowhere or in a circle, or are no files, such "
                f"as {broken[0]}"
            )
        return files, np.array(labels, np.int32)

    @functools.cached_property
    def level_range(self) -> tuple[float, ...]:
        """The level range of images with more than 8 bits; () if no training image has more."""
        config = self._config
        return config.level_range or decide_levels(self._sample_levels(), config.channels)

    def _sample_levels(self):
        files, _ = self._list(self.train_split)
        for i in sorted(set(spread(len(files), MOST_SAMPLED))):
            with contextlib.suppress(Exception):  # of many types
                levels = sample_levels(files[i], self._config)
                if levels is not None:
                    yield levels

    def examples(self, split: str) -> Examples:
        """List the images of `split`, "" for a flat folder."""
        (files, labels), root = self._list(split), self._root / split

        def identity():
            if not self._config.cache_decoded:
                return None
            state = decoded.state_of(files)
            where = str(root.resolve())
            return identity_of(self._config, self.level_range, where, state, labels.tolist())

        if self._config.skip_corrupt:
            names, name = self.class_names, identity()
            good = find_readable(self._read, files, labels, root, self._config, names, name)
            files, labels = [files[i] for i in good], labels[good]
        place = root if root.is_dir() else self._root  # splits of a table need no folder
        return Examples(
            len(files),
            lambda indices: [(self._read(files[i]), labels[i]) for i in indices],
            lambda: labels,
            identity,
            lambda indices: [files[i].read_bytes() for i in indices],
            lambda: _sizes(files, self._config.num_threads),
            lambda indices: [single_line(os.path.relpath(files[i], place)) for i in indices],
        )

    def overlap(self, one: str, other: str) -> bool:
        """Whether two splits share images."""
        return (self._root / one).resolve() == (self._root / other).resolve()

    def _read(self, path):
        options: Any = options_of(self._config) | {"level_range": self.level_range}
        try:
            return read_image(path, max_pixels=self._config.max_pixels, **options)
        except UserError as error:
            hint = "repair or remove it, or set data.skip_corrupt=True"
            raise UserError(f"{error}: {hint}") from None


def _sizes(files, num_threads):
    """Get the sizes of files in bytes, in several threads: network disks are slow to answer."""

    def of(rows):
        return [os.stat(files[i]).st_size for i in rows]

    chunks = np.array_split(np.arange(len(files)), num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        return np.array([size for some in pool.map(of, chunks) for size in some], np.int64)


def _kinds():
    return ", ".join(suffix[1:] for suffix in IMAGE_SUFFIXES)


def _check_links(folder):
    """Raise UserError for a dead link among splits or classes, as of a disk that is not mounted."""
    for path in _visible(folder):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere: repair or remove it")


def _visible(folder):
    return (path for path in folder.iterdir() if not is_hidden(path.name))


def _folders(root):
    with os.scandir(root) as entries:  # without a system call for each image
        return sorted(
            entry.name
            for entry in entries
            # An entry raises for a circle of links.
            if not is_hidden(entry.name)
            and (pathlib.Path(entry.path) if entry.is_symlink() else entry).is_dir()
        )


def _has_images(folder):
    return any(is_file and is_image(path) for path, is_file in walk(folder))


def has_class_folders(folder: pathlib.Path) -> bool:
    """Whether a folder has subfolders with images."""
    return any(_has_images(folder / name) for name in _folders(folder))


def holds_photos(folder: pathlib.Path) -> bool:
    """Whether a folder has several class folders with images, itself or in that of a split."""
    with contextlib.suppress(OSError):
        train = find_split("train", _folders(folder))
        places = (folder, folder / train) if train else (folder,)
        return any(sum(_has_direct_images(p / n) for n in _folders(p)) > 1 for p in places)
    return False


def _has_direct_images(folder):
    return any(path.is_file() and is_image(path) for path in _visible(folder))


def _is_class(folder):
    """Whether a folder has images, and none of its subfolders has any."""
    inside = (folder / name for name in _folders(folder))
    return _has_direct_images(folder) and not any(map(_has_images, inside))
