"""Execute the notebooks offline on the CPU, each with a fresh kernel in a temporary folder.

    python notebooks/execute.py                     # all; a failing cell is an error
    python notebooks/execute.py quickstart --store  # one of them, and store its outputs

The package is not installed again: the first cell of a notebook finds it.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = pathlib.Path(__file__).resolve().parent
OFFLINE = {"JAX_PLATFORMS": "cpu", "PIP_NO_INDEX": "1"}


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """Execute a notebook; raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, nbformat.NO_CONVERT)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],  # each kernel warns of its plain TCP
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata.language_info = {"name": "python"}  # without the version of this Python
    return notebook


def main() -> int:
    """Execute the notebooks given, or all; return 1 if one of them fails."""
    parser = argparse.ArgumentParser(description="Execute the notebooks.")
    parser.add_argument("names", nargs="*", help="names without .ipynb; default: all")
    parser.add_argument("--store", action="store_true", help="store the outputs")
    options = parser.parse_args()
    os.environ.update(OFFLINE)
    paths = [FOLDER / f"{name}.ipynb" for name in options.names] or sorted(FOLDER.glob("*.ipynb"))
    started, failed = time.monotonic(), 0
    for path in paths:
        before = time.monotonic()
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            failed += 1
            print(f"{path.name}: failed\n{error}", flush=True)
            continue
        print(f"{path.name}: {time.monotonic() - before:.0f} s", flush=True)
        if options.store:
            nbformat.write(notebook, path)
    print(f"{len(paths)} notebooks: {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
