"""Findings about a dataset: what would mislead a training, what costs accuracy, what to know."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vit_jax.data import checks
from vit_jax.data.bands import uses_bands
from vit_jax.data.duplicates import SIDE, exact_pairs, near_pairs
from vit_jax.data.images import FULL_RANGE
from vit_jax.data.jpeg import describe_inspected
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.data.survey import Survey, survey
from vit_jax.runtime.errors import single_line

# What a finding means for a training: only the first one makes `vit-jax check-data` fail.
MISLEADS, COSTS, NOTE = "misleads training", "costs accuracy", "note"
_SPLITS = {"train": "training", "val": "validation", "test": "test"}
MOST_CLIPPED = 0.01  # fraction of an image's levels outside the level range of the dataset
IMBALANCED = 10  # times as many training images in the largest class as in the smallest


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding about a dataset.

    Attributes:
      kind: MISLEADS, COSTS or NOTE.
      text: a sentence.
      groups: images that show it, each group a list of rows of the survey.
    """

    kind: str
    text: str
    groups: Sequence[Sequence[int]] = ()


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything that is known about a dataset.

    Attributes:
      config: the settings `config.data` of the dataset.
      class_names: names of the classes.
      survey: the records of all images.
      findings: the most serious first.
      counts: {split: number of images of each class}.
      mean: of the training pixels in [0, 1], per channel.
      std: of the same pixels.
      num_compared: number of images that are large enough to be compared for near duplicates.
    """

    config: Any
    class_names: list[str]
    survey: Survey
    findings: list[Finding]
    counts: dict[str, list[int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_compared: int

    @property
    def misleads(self) -> bool:
        """Whether a training on this dataset would be misled."""
        return any(finding.kind == MISLEADS for finding in self.findings)


def diagnose(config, size_is_given: bool = True) -> Diagnosis:
    """Read all images of the dataset of `config.data` and check them.

    The splits are those of a training with this config, with what it holds out. Images smaller than
    `image_size` are noted if `size_is_given`. Raises UserError if the dataset has no valid layout.
    """
    source = open_source(config)
    splits = make_splits(source, config)
    by_name = {"train": splits.train, "val": splits.val, "test": splits.test}
    found = survey(by_name, config, source.level_range)
    names = splits.class_names
    large = [i for i in found.readable if min(found.records[i].size) >= SIDE]
    findings = [
        *_unreadable(found),
        *_duplicates(found, large),
        *_classes(found, names),
        *(Finding(COSTS, text) for text in source.warnings),
        *_images(found, config, source.level_range),
        *(_small(found, config) if size_is_given else ()),
    ]
    kinds = (MISLEADS, COSTS, NOTE)
    labels = {name: found.labels[found.split == name] for name in by_name}
    return Diagnosis(
        config,
        names,
        found,
        sorted(findings, key=lambda one: kinds.index(one.kind)),
        {k: checks.count_labels(v, len(names)).tolist() for k, v in labels.items()},
        *_constants(found),
        len(large),
    )


def _constants(found):
    """Compute mean and standard deviation of the training pixels, per channel."""
    rows = [i for i in found.readable if found.split[i] == "train"]
    if not rows:
        return (), ()
    mean: Any = np.mean([found.records[i].mean for i in rows], axis=0, dtype=np.float64)
    square = np.mean([found.records[i].mean_square for i in rows], axis=0, dtype=np.float64)
    std: Any = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple(mean.round(4).tolist()), tuple(std.round(4).tolist())


def _unreadable(found) -> Iterator[Finding]:
    bad = [i for i, record in enumerate(found.records) if record.problem]
    if bad:
        shown = "; ".join(f"{found.names[i]}: {found.records[i].problem}" for i in bad[:5])
        more = "; ..." * (len(bad) > 5)
        text = f"unreadable images: {len(bad)} ({shown}{more}); repair or remove them"
        yield Finding(MISLEADS, single_line(text))


def _classes(found, names) -> Iterator[Finding]:
    for text in checks.describe_names(names):
        yield Finding(MISLEADS, text)
    for split in found.splits:
        kind = MISLEADS if split == "train" else COSTS
        labels = {split: found.labels[found.split == split]}
        yield from (Finding(kind, text) for text in checks.describe_missing(names, labels))
    counts = checks.count_labels(found.labels[found.split == "train"], len(names))
    if counts.min() and counts.max() >= IMBALANCED * counts.min():
        most, least = int(counts.argmax()), int(counts.argmin())
        yield Finding(
            COSTS,
            f"the training classes are imbalanced: {names[most]} has {counts[most]} images, "
            f"{names[least]} {counts[least]}; accuracy on the small classes is lower",
        )


def _duplicates(found, large) -> Iterator[Finding]:
    """Find duplicates across splits, in one split, and with two labels."""
    rows = found.readable
    exact = rows[exact_pairs(np.array([found.records[i].digest for i in rows], np.int64))]
    thumbnails = [found.records[i].thumbnail for i in large]
    near = np.empty((0, 2), int)
    if large:
        near = np.array(large)[near_pairs(np.stack(thumbnails))]
    digests = np.array([record.digest for record in found.records])
    near = near[digests[near[:, 0]] != digests[near[:, 1]]]
    for what, pairs in (("exact copies", exact), ("near duplicates", near)):
        yield from _across(found, what, pairs)
        yield from _contradictory(found, what, pairs)
        same = found.split[pairs[:, 0]] == found.split[pairs[:, 1]]
        agree = _agree(found, pairs)
        for split in found.splits:
            inside = pairs[same & agree & (found.split[pairs[:, 0]] == split)]
            if len(inside):
                count = len(np.unique(inside[:, 1]))
                yield Finding(
                    NOTE,
                    f"{what} within the {_SPLITS[split]} images: {count}; they count more than "
                    "other images",
                    inside.tolist(),
                )


def _agree(found, pairs):
    """Whether the images of each pair have the same label, or labels."""
    same = found.labels[pairs[:, 0]] == found.labels[pairs[:, 1]]
    return same if same.ndim == 1 else same.all(1)


def _across(found, what, pairs):
    for one, other in itertools.combinations(found.splits, 2):
        splits = found.split[pairs]
        is_one, is_other = (splits == one).any(1), (splits == other).any(1)
        across = pairs[is_one & is_other]
        if not len(across):
            continue
        members = np.unique(across[found.split[across] == other])
        total = int((found.split == other).sum())
        yield Finding(
            MISLEADS,
            f"{what} of {_SPLITS[one]} images among the {_SPLITS[other]} images: {len(members)} of "
            f"{total}; the accuracy is too high: remove them from one of the splits",
            across.tolist(),
        )


def _contradictory(found, what, pairs):
    wrong = pairs[~_agree(found, pairs)]
    if len(wrong):
        yield Finding(
            MISLEADS,
            f"pairs of {what} with different labels: {len(wrong)}; at least one label of each is "
            "wrong, or the image shows both classes: correct or remove it",
            wrong.tolist(),
        )


def _images(found, config, level_range) -> Iterator[Finding]:
    """Find what the images themselves are like."""
    records = {i: found.records[i] for i in found.readable.tolist()}
    if text := describe_inspected([record.jpeg for record in records.values()]):
        yield Finding(COSTS if "costs" in text else NOTE, text)
    deep = [i for i, record in records.items() if record.levels]
    if deep:
        lows, highs = zip(*(records[i].levels or (0, 0) for i in deep), strict=True)
        low, high = (level_range or FULL_RANGE)[:2]
        become = "ranges of each band" if len(level_range) > 2 else f"{low:g} to {high:g}"
        yield Finding(
            NOTE,
            f"images with more than 8 bits per channel: {len(deep):,}, with levels from "
            f"{min(lows):g} to {max(highs):g}; {become} become black to white (data.level_range)",
        )
    # Of bands and unusual floats without a given range, the decided one clips 1 % on purpose.
    by_percentiles = uses_bands(config.channels) or any(x % 1 for x in level_range)
    checked = deep if config.level_range or not by_percentiles else []
    clipped = [i for i in checked if records[i].clipped > MOST_CLIPPED]
    if clipped:
        yield Finding(
            MISLEADS,
            f"images with more than {100 * MOST_CLIPPED:g} % of their levels outside "
            f"data.level_range: {len(clipped):,}; they are clipped: widen it, or convert "
            "the images",
            [[i] for i in clipped],
        )
    clear = [i for i, record in records.items() if record.is_transparent]
    if clear:
        levels = ",".join(f"{level:g}" for level in config.background)
        yield Finding(
            NOTE,
            f"transparent images: {len(clear):,}; they are composited on "
            f"data.background={levels}; if their subjects are as bright, choose another",
            [[i] for i in clear],
        )
    blank = [i for i, record in records.items() if _is_blank(record)]
    if blank:
        text = f"images of a single colour, which show nothing: {len(blank):,}; remove them"
        yield Finding(COSTS, text, [[i] for i in blank])


def _small(found, config) -> Iterator[Finding]:
    records = [found.records[i] for i in found.readable]
    small = [record for record in records if min(record.size) < config.image_size]
    if small and len(small) < len(records):
        yield Finding(
            NOTE,
            f"images smaller than data.image_size={config.image_size}: {len(small):,}; they are "
            "enlarged",
        )


def _is_blank(record):
    variance = record.mean_square - record.mean**2
    return np.ptp(record.thumbnail) == 0 and variance.max() < 1e-5


def summarise(found: Survey) -> dict[str, str]:
    """Describe the formats, modes and sizes of the images that can be read."""
    records = [found.records[i] for i in found.readable]

    def most(values):
        listed = Counter(values).most_common(8)
        return ", ".join(f"{value} ({count:,})" for value, count in listed)

    sides = np.array([record.size for record in records]) if records else np.zeros((1, 2), int)
    low, middle, high = (f(sides, 0).astype(int) for f in (np.min, np.median, np.max))
    return {
        "Formats": most(record.format for record in records),
        "Modes": most(record.mode for record in records),
        "Width": f"{low[0]:,} to {high[0]:,} pixels, median {middle[0]:,}",
        "Height": f"{low[1]:,} to {high[1]:,} pixels, median {middle[1]:,}",
    }
