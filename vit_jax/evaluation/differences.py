"""Differences between variants, paired by seed."""

import json
import math
from collections.abc import Sequence

import numpy as np

from vit_jax.config import Config, flatten
from vit_jax.evaluation.labels import metric_of, score_of


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
    that from the rung before, and none where that is missing; "ladder" marks the rows. Variants
    with another "test_images" have no difference.

    Args:
      rows: changed in place.
      ladder: the names of all rungs in order, whether or not `rows` has them.
    """
    best = max(rows, key=lambda row: score_of(row, "val")["mean"])
    found = {row["variant"]: row for row in rows}
    choice = {name: row.get("test_images") for name, row in found.items()}
    from_best = ((name, best["variant"]) for name in found)
    for name, before in zip(ladder[1:], ladder, strict=False) if ladder else from_best:
        both = name in found and before in found
        if name != before and both and choice[name] == choice[before]:
            row, other = found[name], found[before]
            row["difference"] = {"from": other["variant"]} | paired_difference(row, other)
    for row in rows if ladder else ():
        row["ladder"] = True


def compare_test_images(
    rows: list[dict], configs: dict[str, Config], images: dict[str, int | None]
) -> list[dict]:
    """Note in rows of results.json which ones were tested on different images.

    Args:
      rows: changed in place: each gets a number as "test_images", equal for equal images, unless
        all have the same, or a variant has no checksum.
      configs: of all variants.
      images: the checksum of the test images of each variant, or None.

    Returns:
      Cross-validations: of each group of variants that differ in `data.fold` only, with every fold,
      {"variants", and the key of the test score: {"mean", "std", "values"} of the folds}.
    """
    data = {row["variant"]: configs[row["variant"]].data for row in rows}
    distinct = list(dict.fromkeys(images[name] for name in data))
    for row in rows if len(distinct) > 1 and None not in distinct else ():
        row["test_images"] = distinct.index(images[row["variant"]])
    groups = {}
    for row in rows if any(one.num_folds for one in data.values()) else ():
        flat = flatten(configs[row["variant"]])
        for key in ("data.fold", "train.teacher"):  # each fold may have another teacher
            del flat[key]
        groups.setdefault(json.dumps(flat), []).append(row)
    key = f"test_{metric_of(rows[0])}"
    found = []
    for group in groups.values():
        first = data[group[0]["variant"]]
        folds = {data[row["variant"]].fold for row in group}
        if first.num_folds == len(folds) == len(group):
            means = [row[key]["mean"] for row in group]
            score = {"mean": float(np.mean(means)), "std": float(np.std(means, ddof=1))}
            names = [row["variant"] for row in group]
            found.append({"variants": names, key: score | {"values": means}})
    return found


def contains_zero(difference: dict) -> bool:
    """Whether the interval of a `paired_difference` contains 0; False without an interval."""
    return difference["low"] is not None and difference["low"] <= 0 <= difference["high"]


def _by_seed(row):
    """Map the seeds of a row to test accuracies; rows of earlier versions do not list them."""
    values = score_of(row, "test")["values"]
    return dict(zip(row.get("seeds", range(len(values))), values, strict=True))
