"""AutoAugment, RandAugment and TrivialAugment: operations, their probabilities and magnitudes.

Magnitudes are torchvision's: they rise linearly from 0 to the largest, both included
(10 levels in AutoAugment, 31 in the others), and shear, translation, rotation and the four
enhancements have either sign with equal probability. Policies are made for a height and width.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vit_jax.augment.ops import GEOMETRIC, Ops, apply_ops, make_ops

ENHANCEMENTS = ("Brightness", "Color", "Contrast", "Sharpness")
SIGNED = (*GEOMETRIC, *ENHANCEMENTS)
# All operations, and the number of levels, of RandAugment and TrivialAugment.
ALL = ("Identity", *GEOMETRIC, *ENHANCEMENTS, "Posterize", "Solarize", "AutoContrast", "Equalize")
LEVELS = 31

# Cubuk et al. 2019 (AutoAugment), tables 7 and 9: pairs of operation, probability and level.
_TABLES = {
    "cifar10": """
        Invert 0.1 7, Contrast 0.2 6; Rotate 0.7 2, TranslateX 0.3 9
        Sharpness 0.8 1, Sharpness 0.9 3; ShearY 0.5 8, TranslateY 0.7 9
        AutoContrast 0.5 8, Equalize 0.9 2; ShearY 0.2 7, Posterize 0.3 7
        Color 0.4 3, Brightness 0.6 7; Sharpness 0.3 9, Brightness 0.7 9
        Equalize 0.6 5, Equalize 0.5 1; Contrast 0.6 7, Sharpness 0.6 5
        Color 0.7 7, TranslateX 0.5 8; Equalize 0.3 7, AutoContrast 0.4 8
        TranslateY 0.4 3, Sharpness 0.2 6; Brightness 0.9 6, Color 0.2 8
        Solarize 0.5 2, Invert 0.0 3; Equalize 0.2 0, AutoContrast 0.6 0
        Equalize 0.2 8, Equalize 0.6 4; Color 0.9 9, Equalize 0.6 6
        AutoContrast 0.8 4, Solarize 0.2 8; Brightness 0.1 3, Color 0.7 0
        Solarize 0.4 5, AutoContrast 0.9 3; TranslateY 0.9 9, TranslateY 0.7 9
        AutoContrast 0.9 2, Solarize 0.8 3; Equalize 0.8 8, Invert 0.1 3
        TranslateY 0.7 9, AutoContrast 0.9 1
    """,
    "imagenet": """
        Posterize 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6 5
        Equalize 0.8 8, Equalize 0.6 3; Posterize 0.6 7, Posterize 0.6 6
        Equalize 0.4 7, Solarize 0.2 4; Equalize 0.4 4, Rotate 0.8 8
        Solarize 0.6 3, Equalize 0.6 7; Posterize 0.8 5, Equalize 1.0 2
        Rotate 0.2 3, Solarize 0.6 8; Equalize 0.6 8, Posterize 0.4 6
        Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6 2
        Equalize 0.0 7, Equalize 0.8 8; Invert 0.6 4, Equalize 1.0 8
        Color 0.6 4, Contrast 1.0 8; Rotate 0.8 8, Color 1.0 2
        Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6 8
        ShearX 0.6 5, Equalize 1.0 9; Color 0.4 0, Equalize 0.6 3
        Equalize 0.4 7, Solarize 0.2 4; Solarize 0.6 5, AutoContrast 0.6 5
        Invert 0.6 4, Equalize 1.0 8; Color 0.6 4, Contrast 1.0 8
        Equalize 0.8 8, Equalize 0.6 3
    """,
}


def _parse(table):
    found = re.findall(r"(\w+) (\S+) (\d)", table)
    triples = [(name, float(rate), int(level)) for name, rate, level in found]
    return list(zip(triples[::2], triples[1::2], strict=True))


POLICIES = {name: _parse(table) for name, table in _TABLES.items()}


@dataclasses.dataclass(frozen=True)
class Policy:
    """Equally likely choices, each of one operation per slot.

    Attributes:
      ops: the operations; row 0 is the identity.
      rows: int32 [choices, slots, 2], rows of `ops`: with positive and with negative magnitude.
      rates: float32 [choices, slots], probabilities of applying the operation.
      joint: whether one choice fills all slots of an image, instead of one choice per slot.
    """

    ops: Ops
    rows: np.ndarray
    rates: np.ndarray
    joint: bool


def _magnitudes(name, levels, height, width, wide=False):
    """Compute an operation's magnitudes from weakest to strongest, float64 [levels].

    In the units of `make_ops`; the ranges are those of TrivialAugment "wide" (Müller & Hutter 2021,
    table 1) or of AutoAugment (Cubuk et al. 2019, table 6, translation relative to its 331 pixels).
    """
    if name == "Posterize":
        return 8 - np.rint(np.linspace(0, 6 if wide else 4, levels))
    if name == "Solarize":
        return np.linspace(255, 0, levels)
    largest = {
        "ShearX": 0.99 if wide else 0.3,
        "ShearY": 0.99 if wide else 0.3,
        "TranslateX": 32 if wide else 150 / 331 * width,
        "TranslateY": 32 if wide else 150 / 331 * height,
        "Rotate": 135 if wide else 30,
    } | dict.fromkeys(ENHANCEMENTS, 0.99 if wide else 0.9)
    return np.linspace(0, largest.get(name, 0), levels)


def make_autoaugment(name: str, height: int, width: int) -> Policy:
    """Make an AutoAugment policy of `POLICIES`: one of 25 pairs of operations per image."""
    slots = [
        [(op, _magnitudes(op, 10, height, width)[level]) for op, _, level in pair]
        for pair in POLICIES[name]
    ]
    rates = [[rate for _, rate, _ in pair] for pair in POLICIES[name]]
    return _make_policy(slots, rates, True, height, width)


def make_randaugment(num_ops: int, magnitude: int, height: int, width: int) -> Policy:
    """Make RandAugment (Cubuk et al. 2020): `num_ops` of 14 operations at one level, 0 to 30."""
    slots = [[(op, _magnitudes(op, LEVELS, height, width)[magnitude])] * num_ops for op in ALL]
    return _make_policy(slots, np.ones((len(ALL), num_ops)), False, height, width)


def make_trivialaugment(height: int, width: int) -> Policy:
    """Make TrivialAugment (Müller & Hutter 2021): one of 14 operations at any of 31 levels."""
    slots = [[(op, m)] for op in ALL for m in _magnitudes(op, LEVELS, height, width, wide=True)]
    return _make_policy(slots, np.ones((len(slots), 1)), True, height, width)


def _make_policy(slots, rates, joint, height, width):
    operations = {("Identity", 0.0): 0}  # name and magnitude -> row

    def row(name, magnitude):
        return operations.setdefault((name, float(magnitude)), len(operations))

    rows = [
        [(row(name, m), row(name, -m if name in SIGNED else m)) for name, m in pair]
        for pair in slots
    ]
    ops = make_ops(list(operations), height, width)
    return Policy(ops, np.array(rows, np.int32), np.array(rates, np.float32), joint)


def draw(key: Array, policy: Policy, count: int) -> tuple[Array, Array, Array]:
    """Draw the operations of `count` images.

    Returns indices into `policy.rows`, int32; whether the operation is applied; and whether its
    magnitude is negative, both bool. Each has the shape [count, slots].
    """
    lines, slots = policy.rates.shape
    choice_key, rate_key, sign_key = jax.random.split(key, 3)
    choices = jax.random.randint(choice_key, (count, 1 if policy.joint else slots), 0, lines)
    choices = jnp.broadcast_to(choices, (count, slots))
    rates = jnp.asarray(policy.rates)[choices, jnp.arange(slots)]
    applied = jax.random.uniform(rate_key, (count, slots)) < rates
    return choices, applied, jax.random.bernoulli(sign_key, shape=(count, slots))


def apply_policy(key: Array, images: Array, policy: Policy, fill: int) -> Array:
    """Apply each image's drawn operations; pixels from outside the image are `fill`."""
    choices, applied, negative = draw(key, policy, len(images))
    slots = jnp.arange(choices.shape[1])
    rows = jnp.asarray(policy.rows)[choices, slots, negative.astype(jnp.int32)]
    return apply_ops(images, policy.ops, jnp.where(applied, rows, 0), fill)
