"""Evaluation over a whole dataset and the per-class report."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from vit_jax.evaluation.labels import mean_average_precision, softmax
from vit_jax.evaluation.metrics import Sums
from vit_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of an evaluation; logits and labels are None unless requested."""

    loss: float  # mean over examples
    accuracy: float  # of several labels per image: fraction that a threshold of 1/2 gets right
    count: int  # number of examples
    logits: np.ndarray | None = None  # float32 [count, classes]
    labels: np.ndarray | None = None  # int [count], or [count, classes]

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """The loss, and the accuracy; of several labels per image, "label_accuracy" and "map"."""
        if self.labels is None or self.logits is None or self.labels.ndim == 1:
            return {"loss": self.loss, "accuracy": self.accuracy}
        found = mean_average_precision(self.logits, self.labels)
        return {"loss": self.loss, "label_accuracy": self.accuracy, "map": found}

    @property
    def score(self) -> float:
        """The metric that selects a checkpoint: the accuracy, or the mAP."""
        return self.metrics.get("map", self.accuracy)


def evaluate(
    eval_step: Callable,
    variables: dict,
    sums: Sums,
    batches: Iterable[dict],
    stop: Callable[[], bool] = lambda: False,
    keep: bool = False,
) -> Result | None:
    """Evaluate a model on batches, counting every unmasked example once.

    Args:
      eval_step: jitted (variables, sums, batch) -> (sums, logits).
      variables: {"params", "batch_stats"} of the model.
      sums: empty, on the devices of the batches: those of the host would be another program.
      batches: dicts of "image", "label" and "mask".
      stop: called before every batch; True aborts the evaluation, which then returns None.
      keep: whether to return logits and labels.
    """
    outputs = []
    for batch in batches:
        if stop():
            return None
        sums, logits = sharding.block_on_cpu(eval_step(variables, sums, batch))
        if keep:
            outputs.append(sharding.to_host((logits, batch["label"], batch["mask"])))
    result = _result(jax.device_get(sums))
    if keep:
        logits, labels, mask = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
        result = dataclasses.replace(result, logits=logits[mask], labels=labels[mask])
    return result


def evaluate_together(
    eval_step: Callable,
    variables: dict,
    sums: Sums,
    batches: Iterable[dict],
    stop: Callable[[], bool] = lambda: False,
) -> list[Result] | None:
    """Evaluate stacked models on the same batches, as `evaluate` but without logits.

    Args:
      eval_step: jitted (variables, sums, batch) -> sums, vectorised over variables and sums.
      variables: {"params", "batch_stats"} of the models, with arrays [count, ...].
      sums: [count], as in `evaluate`.
      batches: as in `evaluate`.
      stop: as in `evaluate`.
    """
    for batch in batches:
        if stop():
            return None
        sums = sharding.block_on_cpu(eval_step(variables, sums, batch))
    sums = jax.device_get(sums)
    return [_result(jax.tree.map(lambda x, i=i: x[i], sums)) for i in range(len(sums.loss.count))]


def _result(sums):
    means = sums.compute()
    return Result(float(means["loss"]), float(means["accuracy"]), int(sums.loss.count))


def make_report(logits: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict:
    """Compute classification metrics of logits [n, c] and labels [n], overall and per class.

    Returns:
      {"count", "accuracy", "accuracy_interval", "top5_accuracy", "top5_interval" (where c > 5),
      "expected_calibration_error", "macro_recall", "macro_f1", "classes": {name: {"precision",
      "recall", "f1", "accuracy", "support"}}, "confusion": c x c counts, rows are the true classes,
      "calibration": `calibration_bins`, "mistakes": [{"index", "label", "predicted",
      "probability"}] of the at most 12 most confident mistakes}. Intervals are Wilson's at 95 %.
      Macro values are means over the classes with images. The accuracy of a class is its recall.
      Undefined values, such as the precision of a class that is never predicted, are 0; those of
      classes without images are None.
    """
    from sklearn import metrics  # takes a second to import

    count, numbers = len(labels), np.arange(len(class_names))
    predicted = logits.argmax(1)
    correct = int((predicted == labels).sum())
    report = {
        "count": count,
        "accuracy": correct / count,
        "accuracy_interval": wilson_interval(correct, count),
    }
    if len(class_names) > 5:
        # Ties go to the lower class index, as in argmax.
        top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        hits = int((top5 == labels[:, None]).any(1).sum())
        report |= {"top5_accuracy": hits / count, "top5_interval": wilson_interval(hits, count)}
    score: Any = metrics.precision_recall_fscore_support  # its annotations are too narrow
    precision, recall, f1, support = score(labels, predicted, labels=numbers, zero_division=0.0)
    classes = {}
    for i, name in enumerate(class_names):
        values = {"precision": precision[i], "recall": recall[i], "f1": f1[i]}
        values = {k: float(v) if support[i] else None for k, v in values.items()}
        classes[name] = values | {"accuracy": values["recall"], "support": int(support[i])}
    probabilities = softmax(logits)
    return report | {
        "expected_calibration_error": calibration_error(probabilities, labels),
        "macro_recall": float(recall[support > 0].mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "classes": classes,
        "confusion": metrics.confusion_matrix(labels, predicted, labels=numbers).tolist(),
        "calibration": calibration_bins(probabilities, labels),
        "mistakes": _confident_mistakes(probabilities, labels, 12),
    }


def _confident_mistakes(probabilities, labels, count):
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    columns = (wrong, labels[wrong], predicted[wrong], confidence[wrong])
    keys = ("index", "label", "predicted", "probability")
    return [
        dict(zip(keys, row, strict=True))
        for row in zip(*(c.tolist() for c in columns), strict=True)
    ]


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a fraction (Wilson 1927)."""
    z = 1.959963984540054
    fraction, scale = successes / count, 1 + z**2 / count
    middle = (fraction + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_bins(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> dict[str, list]:
    """Average confidence and accuracy in bins of equal width of the confidence.

    Returns:
      {"count", "confidence", "accuracy": [bins]}; the means of an empty bin are None.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    report: dict[str, list] = {"count": counts.tolist()}
    for name, values in (("confidence", confidence), ("accuracy", correct)):
        sums = np.bincount(index, values, bins)
        report[name] = [
            float(total / n) if n else None for total, n in zip(sums, counts, strict=True)
        ]
    return report


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5).

    The mean gap between confidence and accuracy over `bins` bins of equal width.
    """
    found = calibration_bins(probabilities, labels, bins)
    gaps = [n * abs(c - a) for n, c, a in zip(*found.values(), strict=True) if n]
    return float(sum(gaps) / len(labels))
