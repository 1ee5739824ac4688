"""suspects.html: a gallery of the examples whose labels are most suspect."""

import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vit_jax.data.bands import show
from vit_jax.report.page import encode_png, render, thumbnail
from vit_jax.runtime.errors import single_line
from vit_jax.runtime.files import write_atomically

SHOWN = 60  # examples in the gallery
MOST_PAIRS = 20  # rows of the table


def write_suspects(
    path: pathlib.Path, run: Any, ranking: Sequence[Any], num_folds: int, rank_by: str
) -> None:
    """Write the page of a ranking of `evaluation.suspects.rank`.

    Args:
      path: of the page.
      run: the `Classifier` of the run.
      ranking: the most suspect first.
      num_folds: of the training images that are ranked too; 0: none.
      rank_by: the score that the ranking is sorted by.
    """
    names, data = run.class_names, run.config.data
    wrong = [one for one in ranking if one.is_suspect]
    pairs = Counter((one.label, one.predicted) for one in wrong if one.label != one.predicted)
    page = render(
        "suspects.html",
        name=single_line(run.name),
        count=len(ranking),
        wrong=len(wrong),
        splits=Counter(one.split for one in ranking),
        pairs=[
            (f"{names[label]} → {names[predicted]}", n)
            for (label, predicted), n in pairs.most_common(MOST_PAIRS)
        ],
        images=[_describe(one, names, data) for one in ranking[:SHOWN]],
        num_folds=num_folds,
        rank_by=rank_by.replace("_", "-"),
    )
    write_atomically(path, page)


def _describe(one, names, data):
    classes = f"{names[one.label]} → {names[one.predicted]}"
    caption = f"{classes} ({100 * one.self_confidence:.0f} %): {one.name}"
    alt = f"{one.split} image labelled {names[one.label]}"
    return encode_png(thumbnail(show(one.source.read([one.index])[0][0], data))), alt, caption
