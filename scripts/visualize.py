"""Run `vit-jax visualize` from a clone, without installation."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from vit_jax.cli.app import main  # noqa: E402

sys.exit(main(["visualize", *sys.argv[1:]]))
