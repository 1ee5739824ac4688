"""Suspect labels: examples ranked by how little a model that did not train on them agrees.

The scores and the estimate of wrong labels are those of confident learning (Northcutt, Jiang &
Chuang 2021, arXiv:1911.00068).
"""

import csv
import dataclasses
import io
import itertools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from vit_jax.data import relabel
from vit_jax.data.checks import match_names
from vit_jax.data.examples import Examples
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits, open_splits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.evaluation.labels import softmax
from vit_jax.runtime.errors import UserError, join_names

SCORES = ("self_confidence", "margin")
HEAD = (*relabel.COLUMNS[:3], "predicted", *SCORES, "suspect", "split", relabel.COLUMNS[3])


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Out-of-sample predictions of a split.

    Attributes:
      split: its name in the dataset of the run, "train", "val" or "test".
      examples: the examples, with the labels that the run has.
      probabilities: float64 [n, classes].
    """

    split: str
    examples: Examples
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Suspect:
    """An example with its scores.

    Attributes:
      name: of the example.
      split: "train", "val" or "test".
      label: the class that it has.
      predicted: the most probable class.
      self_confidence: probability of the class that it has.
      margin: that probability minus the largest one of another class.
      is_suspect: whether confident learning counts its label as wrong.
      source: the examples of its split.
      index: its index among them.
    """

    name: str
    split: str
    label: int
    predicted: int
    self_confidence: float
    margin: float
    is_suspect: bool
    source: Examples
    index: int


def predict_held_out(run: Classifier, folds: Iterable[Classifier] = ()) -> list[Predictions]:
    """Predict the validation and test images of a run, and the held-out fold of each of `folds`.

    An iterator of folds that makes each when asked keeps the weights of one at a time.
    """
    found = []
    own = [(run, "val", "val"), (run, "test", "test")]
    for model, split, name in itertools.chain(own, ((fold, "test", "train") for fold in folds)):
        config, _ = model.evaluation_of({}, split)
        splits = make_splits(open_source(config.data), config.data)
        if match_names(splits.class_names, model.class_names) != [*range(len(model.class_names))]:
            raise UserError(
                f"the dataset has the classes {join_names(splits.class_names)}, but "
                f"{run.name} was trained with {join_names(model.class_names)}: train again"
            )
        logits, _ = model.logits(config, split)
        found.append(Predictions(name, getattr(splits, split), softmax(logits)))
    return found


def find_wrong(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the labels that confident learning counts as wrong: bool [n].

    The threshold of a class is the mean probability of that class over the examples labelled so. An
    example counts as wrong if, of the classes that reach their threshold, the most probable one is
    not its label (equation 1 of the paper).

    Args:
      probabilities: out-of-sample, float [n, classes].
      labels: int [n].
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    own = np.bincount(labels, probabilities[np.arange(len(labels)), labels], len(counts))
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    return (confident.max(1) >= 0) & (confident.argmax(1) != labels)


def score(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute self-confidence and margin, float [n] each; a low score means a suspect label."""
    rows = np.arange(len(labels))
    own, others = probabilities[rows, labels], probabilities.copy()
    others[rows, labels] = -np.inf
    return own, own - others.max(1)


def rank(predictions: Sequence[Predictions], by: str = "self_confidence") -> list[Suspect]:
    """Rank all examples of the predictions by a score of `SCORES`, the most suspect first."""
    probabilities = np.concatenate([one.probabilities for one in predictions])
    labels = np.concatenate([one.examples.labels for one in predictions])
    scores: dict[str, np.ndarray] = dict(zip(SCORES, score(probabilities, labels), strict=True))
    wrong, predicted = find_wrong(probabilities, labels), probabilities.argmax(1)
    places = [(one, i) for one in predictions for i in range(len(one.examples))]
    return [
        Suspect(
            name=places[row][0].examples.names[places[row][1]],
            split=places[row][0].split,
            label=int(labels[row]),
            predicted=int(predicted[row]),
            self_confidence=float(scores["self_confidence"][row]),
            margin=float(scores["margin"][row]),
            is_suspect=bool(wrong[row]),
            source=places[row][0].examples,
            index=places[row][1],
        )
        for row in np.argsort(scores[by], kind="stable").tolist()
    ]


def to_csv(ranking: Sequence[Suspect], data_config) -> str:
    """Format a ranking as a file that `data.relabel` reads, the most suspect first.

    Args:
      ranking: of `rank`.
      data_config: `config.data` of the run. The corrections of the run's `relabel` are in the file
        too: those of examples that are not ranked come last.
    """
    source = open_source(data_config)
    names, splits = source.class_names, open_splits(source, data_config)
    given = {}
    for split in splits.values():
        given |= zip(split.names, split.labels.tolist(), strict=True)
    key = relabel.key_of(names, splits)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(HEAD)
    for one in ranking:
        scores = (f"{one.self_confidence:.4f}", f"{one.margin:.4f}", "yes" * one.is_suspect)
        classes = (names[one.label], names[given[one.name]], names[one.predicted])
        writer.writerow((one.name, *classes, *scores, one.split, key))
    ranked = {one.name for one in ranking}
    changed = relabel.read(data_config.relabel).changed if data_config.relabel else {}
    for name in sorted(changed.keys() - ranked):
        before, label = changed[name]
        writer.writerow((name, label, before, *[""] * 5, key))
    return file.getvalue()


def count_edits(path: pathlib.Path, data_config) -> int:
    """Count the labels that were edited in a file of `to_csv`, apart from the run's own `relabel`.

    0 if the file does not exist.
    """
    if not path.exists():
        return 0
    own = relabel.read(data_config.relabel).changed if data_config.relabel else {}
    return len(dict(relabel.read(path).changed.items() ^ own.items()))
