"""Main command, `python -m vit_jax.main`; see `vit_jax.cli.train` and --help."""

from vit_jax.cli.train import run

__all__ = ["run"]

if __name__ == "__main__":
    run()
