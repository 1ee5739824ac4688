"""Weights of other projects and of finished runs: converted, fitted to a model, written back."""

from vit_jax.pretrained.export import export
from vit_jax.pretrained.formats import flat_weights, nested_weights, shapes
from vit_jax.pretrained.weights import (
    DATA_KEYS,
    Fitted,
    Weights,
    check_whole,
    convert,
    describe,
    fit,
    load,
    load_once,
    read_info,
    save,
    table,
)

__all__ = [
    "DATA_KEYS",
    "Fitted",
    "Weights",
    "check_whole",
    "convert",
    "describe",
    "export",
    "fit",
    "flat_weights",
    "load",
    "load_once",
    "nested_weights",
    "read_info",
    "save",
    "shapes",
    "table",
]
