"""Accuracy and loss over a whole dataset, and the report on its classes."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from vit_jax.evaluation.metrics import Sums
from vit_jax.runtime import sharding


@dataclasses.dataclass(frozen=True)
class Result:
    """An evaluation; logits and labels are None if not kept."""

    loss: float  # mean over the examples
    accuracy: float
    count: int  # of the examples
    logits: np.ndarray | None = None  # float32 [count, classes]
    labels: np.ndarray | None = None  # int [count]


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict],
    stop: Callable[[], bool] = lambda: False,
    keep: bool = False,
) -> Result | None:
    """Evaluate a model on batches, every unmasked example once.

    Args:
      eval_step: jitted (variables, sums, batch) -> (sums, logits).
      variables: of the model, {"params", "batch_stats"}.
      batches: with "image", "label" and "mask".
      stop: asked before every batch; True abandons the evaluation, whose result is then None.
      keep: whether to keep logits and labels.
    """
    sums, kept = Sums.empty(), []
    for batch in batches:
        if stop():
            return None
        sums, logits = sharding.block_on_cpu(eval_step(variables, sums, batch))
        if keep:
            kept.append(sharding.to_host((logits, batch["label"], batch["mask"])))
    result = _result(jax.device_get(sums))
    if keep:
        logits, labels, mask = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
        result = dataclasses.replace(result, logits=logits[mask], labels=labels[mask])
    return result


def evaluate_together(
    eval_step: Callable,
    variables: dict,
    count: int,
    batches: Iterable[dict],
    stop: Callable[[], bool] = lambda: False,
) -> list[Result] | None:
    """Evaluate `count` models on the same batches, without logits, otherwise as `evaluate`.

    Args:
      eval_step: jitted (variables, sums, batch) -> sums, of stacked variables and sums.
      variables: of the models, {"params", "batch_stats"} with arrays [count, ...].
      count: of the models.
      batches: as in `evaluate`.
      stop: as in `evaluate`.
    """
    sums = jax.tree.map(lambda x: np.stack([x] * count), Sums.empty())
    for batch in batches:
        if stop():
            return None
        sums = sharding.block_on_cpu(eval_step(variables, sums, batch))
    sums = jax.device_get(sums)
    return [_result(jax.tree.map(lambda x, i=i: x[i], sums)) for i in range(count)]


def _result(sums):
    means = sums.compute()
    return Result(float(means["loss"]), float(means["accuracy"]), int(sums.loss.count))


def make_report(logits: np.ndarray, labels: np.ndarray, class_names: list[str]) -> dict:
    """Report how well logits [n, c] predict labels [n], class by class.

    Returns:
      {"count", "accuracy", "accuracy_interval", "top5_accuracy", "top5_interval" (where c > 5),
      "expected_calibration_error", "macro_f1", "classes": {name: {"precision", "recall", "f1",
      "accuracy", "support"}}, "confusion": c x c counts, rows are the true classes}. Intervals are
      Wilson's at 95 %. A class's accuracy is the fraction of its images that are recognised, which
      is its recall. Undefined values, such as the precision of a class that is never predicted,
      are 0; those of classes without images are None.
    """
    from sklearn import metrics  # costs a second, so only where it is used

    count, numbers = len(labels), np.arange(len(class_names))
    predicted = logits.argmax(1)
    correct = int((predicted == labels).sum())
    report = {
        "count": count,
        "accuracy": correct / count,
        "accuracy_interval": wilson_interval(correct, count),
    }
    if len(class_names) > 5:
        # Of equal logits, the earlier class comes first, as in argmax.
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
    return report | {
        "expected_calibration_error": calibration_error(softmax(logits), labels),
        "macro_f1": float(f1[support > 0].mean()),
        "classes": classes,
        "confusion": metrics.confusion_matrix(labels, predicted, labels=numbers).tolist(),
    }


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a fraction (Wilson 1927)."""
    z = 1.959963984540054
    fraction, scale = successes / count, 1 + z**2 / count
    middle = (fraction + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(fraction * (1 - fraction) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the probabilities [n, c] of logits [n, c], float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv:1706.04599, equation 5).

    That is the mean distance between confidence and accuracy, in `bins` bins of equal width.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, confidence - correct, bins)  # count * (confidence - accuracy)
    return float(np.abs(gaps).sum() / len(labels))
