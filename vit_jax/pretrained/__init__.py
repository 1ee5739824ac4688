"""Pretrained weights of other projects and of finished runs: conversion, loading and export."""

from vit_jax.pretrained.conversion import OPTIONS as OPTIONS
from vit_jax.pretrained.conversion import convert as convert
from vit_jax.pretrained.conversion import convert_with_note as convert_with_note
from vit_jax.pretrained.conversion import load as load
from vit_jax.pretrained.conversion import load_once as load_once
from vit_jax.pretrained.conversion import read_info as read_info
from vit_jax.pretrained.conversion import settings_of as settings_of
from vit_jax.pretrained.export import export as export
from vit_jax.pretrained.formats import flat_weights as flat_weights
from vit_jax.pretrained.formats import nested_weights as nested_weights
from vit_jax.pretrained.formats import shapes as shapes
from vit_jax.pretrained.weights import DATA_KEYS as DATA_KEYS
from vit_jax.pretrained.weights import Fitted as Fitted
from vit_jax.pretrained.weights import Weights as Weights
from vit_jax.pretrained.weights import check_order as check_order
from vit_jax.pretrained.weights import check_shapes as check_shapes
from vit_jax.pretrained.weights import describe as describe
from vit_jax.pretrained.weights import fit as fit
from vit_jax.pretrained.weights import identity_of as identity_of
from vit_jax.pretrained.weights import save as save
from vit_jax.pretrained.weights import table as table
