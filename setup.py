"""Package the experiments of configs/ as vit_jax.configs; pyproject.toml has the rest."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vit_jax", "vit_jax.*"]), "vit_jax.configs"],
    package_dir={"vit_jax.configs": "configs"},
)
