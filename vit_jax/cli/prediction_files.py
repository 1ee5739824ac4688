"""Predictions as files: a CSV of probabilities, and copies of the images in class folders."""

import csv
import filecmp
import itertools
import pathlib
import re
import shutil
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from vit_jax.runtime.errors import UserError, truncate_repr

UNSURE = "unsure"  # folder of the images below `--below`


class CsvFile:
    """A CSV file of class probabilities, which replaces an earlier one once it is complete.

    Its columns are "image", "predicted", "probability" (of that class; of several labels, of each)
    and the classes; with a limit, "unsure" too.
    """

    def __init__(
        self,
        path: pathlib.Path,
        class_names: Sequence[str],
        below: float | None,
        labels_of: Callable[[np.ndarray], list[tuple[str, float]]],
    ):
        """Open a temporary file next to `path`; raises OSError.

        Args:
          path: of the CSV file.
          class_names: in the order of the probabilities.
          below: images whose highest probability is lower are unsure; None: no column for that.
          labels_of: probabilities [classes] -> the (label, probability) that apply; several are
            separated by semicolons.
        """
        self._path, self._below, self._labels_of = path, below, labels_of
        self._part = path.with_name(path.name + ".part")
        # File names need not be UTF-8.
        self._file = self._part.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._file)
        unsure = [] if below is None else ["unsure"]
        self._writer.writerow(["image", "predicted", "probability", *unsure, *class_names])

    def add(self, path: pathlib.Path, probabilities: np.ndarray) -> None:
        """Write the row of an image; probabilities [classes] keep every bit."""
        numbers, unsure = probabilities.tolist(), []
        if self._below is not None:
            unsure = ["yes" if max(numbers) < self._below else "no"]
        labels = self._labels_of(probabilities)
        predicted, own = (";".join(str(one[i]) for one in labels) for i in (0, 1))
        self._writer.writerow([path, predicted, own, *unsure, *numbers])

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._part.replace(self._path)

    def close(self) -> None:
        """Remove what is not finished."""
        self._file.close()
        self._part.unlink(missing_ok=True)


class ClassFolders:
    """Copies of images in a folder for each predicted class; files are never overwritten."""

    def __init__(
        self,
        folder: pathlib.Path,
        class_names: Sequence[str],
        below: float | None,
        given: Sequence[pathlib.Path],
    ):
        """Check the folder names.

        Args:
          folder: of the class folders.
          class_names: in the order of the probabilities.
          below: images whose highest probability is lower go to the folder "unsure"; None: none.
          given: folders and files that are classified.

        Raises:
          UserError: classes share a folder name, or the copies would be classified next time.
        """
        self._folder, self._below = folder, below
        self._names = [_folder_name(name) for name in class_names]
        used = [*self._names, *([] if below is None else [UNSURE])]
        # A file system may ignore case and Unicode normal forms.
        keys = [unicodedata.normalize("NFC", name).casefold() for name in used]
        if shared := {name for name, key in zip(used, keys, strict=True) if keys.count(key) > 1}:
            raise UserError(
                f"--sort-into={folder}: several classes would share the folder "
                f"{truncate_repr(min(shared))}, on some disks at least: rename them with "
                "--class-names"
            )
        for path in given:
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise UserError(
                    f"--sort-into={folder} lies in {path}, whose images are classified: give a "
                    "folder outside of it"
                )

    def add(self, path: pathlib.Path, probabilities: np.ndarray) -> None:
        """Copy an image; one with another content under its name gets the next free number."""
        best = int(probabilities.argmax())
        is_unsure = self._below is not None and probabilities[best] < self._below
        folder = self._folder / (UNSURE if is_unsure else self._names[best])
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            suffix = f"_{number}" if number > 1 else ""
            target = folder / f"{path.stem}{suffix}{path.suffix}"
            try:
                _copy(path, target)
                return
            except FileExistsError:
                if target.is_file() and filecmp.cmp(path, target, shallow=False):
                    return  # of an earlier call


def _copy(path, target):
    """Copy a file with its dates; raises FileExistsError instead of overwriting another."""
    with target.open("xb") as file:
        try:
            with path.open("rb") as source:
                shutil.copyfileobj(source, file)
        except BaseException:  # Ctrl-C too
            target.unlink()
            raise
    shutil.copystat(path, target)


def _folder_name(name):
    """Replace what a folder name cannot contain."""
    return re.sub(r"^\.|[/\\\0]", "_", name) or "_"
