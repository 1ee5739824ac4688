"""Train every variant and seed of a config: the same as `python -m vit_jax.main`."""

import runpy
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Run vit_jax.main with these arguments; it exits with its own status if it fails."""
    sys.argv = ["vit-jax train", *argv]
    runpy.run_module("vit_jax.main", run_name="__main__", alter_sys=True)
    return 0
