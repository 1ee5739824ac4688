"""data.html: what a dataset consists of and what is wrong with it, on one self-contained page."""

import pathlib
from typing import Any

import numpy as np

from vit_jax.data.bands import show
from vit_jax.data.examples import describe_label
from vit_jax.report.page import encode_png, render, thumbnail
from vit_jax.runtime.files import write_atomically

SHEET = 96  # images of the contact sheet
MOST_PER_CLASS = 8
MOST_GROUPS = 12  # of images that are shown with a finding


def write_data_page(path: pathlib.Path, name: str, diagnosis: Any) -> None:
    """Write the page of a `data.doctor.Diagnosis`; `name` is that of the dataset."""
    from vit_jax.data.doctor import COSTS, MISLEADS, NOTE, summarise

    found, counts = diagnosis.survey, diagnosis.counts
    bad = [i for i, record in enumerate(found.records) if record.problem]
    page = render(
        "data.html",
        name=name,
        diagnosis=diagnosis,
        kinds={MISLEADS: "Misleads training", COSTS: "Costs accuracy", NOTE: "Notes"},
        groups=[_draw_groups(finding, diagnosis) for finding in diagnosis.findings],
        count=len(found.records),
        totals={split: int((found.split == split).sum()) for split in counts},
        classes=[
            (label, *(f"{values[i]:,}" for values in counts.values()))
            for i, label in enumerate(diagnosis.class_names)
        ],
        images=summarise(found)
        | {"Compared for near duplicates": f"{diagnosis.num_compared:,} of at least 32 pixels"},
        num_bad=len(bad),
        bad=[(found.names[i], found.records[i].problem) for i in bad[:100]],
        constants={
            "data.mean": _numbers(diagnosis.mean),
            "data.std": _numbers(diagnosis.std),
        },
        sheet=_contact_sheet(diagnosis),
        most_classes=SHEET,
    )
    write_atomically(path, page)


def _numbers(values):
    return ",".join(f"{value:g}" for value in values)


def _draw(diagnosis, row, caption):
    found = diagnosis.survey
    label = describe_label(found.labels[row], diagnosis.class_names)
    alt = f"{found.split[row]} image of {label}"
    return encode_png(thumbnail(show(found.read(row), diagnosis.config))), alt, caption


def _draw_groups(finding, diagnosis):
    """Draw some of the images that show a finding, those of a pair next to each other."""
    found, rows = diagnosis.survey, []
    for group in finding.groups[:MOST_GROUPS]:
        rows += group
    names = diagnosis.class_names
    captions = [f"{describe_label(found.labels[i], names)}: {found.names[i]}" for i in rows]
    return [_draw(diagnosis, i, text) for i, text in zip(rows, captions, strict=True)]


def _contact_sheet(diagnosis):
    """Draw training images of up to SHEET classes, at random with a fixed seed."""
    found, names = diagnosis.survey, diagnosis.class_names
    readable = found.readable
    rows = readable[found.split[readable] == "train"]
    per_class = min(MOST_PER_CLASS, max(1, SHEET // len(names)))
    rng, images = np.random.default_rng(0), []
    for label, name in enumerate(names[:SHEET]):
        labels = found.labels[rows]
        own = rows[labels[:, label] > 0 if labels.ndim == 2 else labels == label]
        for row in rng.permutation(own)[:per_class].tolist():
            images.append(_draw(diagnosis, row, name))
    return images
