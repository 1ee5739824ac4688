"""Run `vit-jax launch` from a clone, without installation."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from vit_jax.cli.app import main  # noqa: E402

sys.exit(main(["launch", *sys.argv[1:]]))
