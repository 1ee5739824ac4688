"""Differences between variants, paired by seed."""

import math
from collections.abc import Sequence

import numpy as np

from vit_jax.evaluation.labels import score_of


def paired_difference(row: dict, other: dict) -> dict:
    """Compute the difference in test accuracy of two rows of results.json, over common seeds.

    A seed is that of initial weights, batch order and augmentation, so a pair shares them.

    Returns:
      {"mean", "low", "high", "pairs"}: fractions, with the 95 % interval of the mean (Student's t
      of the paired differences); low and high are None for fewer than two pairs, and the mean is
      that of all seeds without a pair.
    """
    ours, theirs = _by_seed(row), _by_seed(other)
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        mean = pairs[0] if pairs else np.mean([*ours.values()]) - np.mean([*theirs.values()])
        return {"mean": float(mean), "low": None, "high": None, "pairs": len(pairs)}
    import scipy.special  # costs a quarter of a second

    mean, std = float(np.mean(pairs)), float(np.std(pairs, ddof=1))
    half = float(scipy.special.stdtrit(len(pairs) - 1, 0.975)) * std / math.sqrt(len(pairs))
    return {"mean": mean, "low": mean - half, "high": mean + half, "pairs": len(pairs)}


def add_differences(rows: list[dict], ladder: Sequence[str] = ()) -> None:
    """Add to rows of results.json their "difference" from the best by validation accuracy.

    Its key "from" names the best variant, whose own row gets none. In a ladder, the difference is
    that from the rung before, and none where that is missing; "ladder" marks the rows.

    Args:
      rows: changed in place.
      ladder: the names of all rungs in order, whether or not `rows` has them.
    """
    best = max(rows, key=lambda row: score_of(row, "val")["mean"])
    found = {row["variant"]: row for row in rows}
    from_best = ((name, best["variant"]) for name in found)
    for name, before in zip(ladder[1:], ladder, strict=False) if ladder else from_best:
        if name != before and name in found and before in found:
            row, other = found[name], found[before]
            row["difference"] = {"from": other["variant"]} | paired_difference(row, other)
    for row in rows if ladder else ():
        row["ladder"] = True


def contains_zero(difference: dict) -> bool:
    """Whether the interval of a `paired_difference` contains 0; False without an interval."""
    return difference["low"] is not None and difference["low"] <= 0 <= difference["high"]


def _by_seed(row):
    """Map the seeds of a row to test accuracies; rows of earlier versions do not list them."""
    values = score_of(row, "test")["values"]
    return dict(zip(row.get("seeds", range(len(values))), values, strict=True))
