"""Probabilities of logits; several labels per image: average precision, thresholds, report."""

import numpy as np

METRICS = {"accuracy": "accuracy", "map": "mAP"}  # {in the keys of JSON files: in prose}


def metric_of(row: dict) -> str:
    """Name the metric of a row of results.json or of a summary.json, a key of METRICS."""
    return "map" if "test_map" in row else "accuracy"


def score_of(row: dict, split: str):
    """Look up the accuracy or mAP on a split, in a row of results.json or in a summary.json."""
    return row[f"{split}_{metric_of(row)}"]


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute the probability of each label from its logit, float64."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the probabilities [n, c] of logits [n, c], float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """Compute probabilities by `sigmoid` for several labels per image, else by `softmax`."""
    return sigmoid(logits) if multi_label else softmax(logits)


def _ranked(scores, labels):
    """Rank by falling score: the distinct scores, and the numbers of images and hits up to each."""
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order], dtype=np.int64)
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # of equal scores
    return ranked[last], last + 1, hits[last]


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the average precision of each class, float64 [c]; NaN without a positive label.

    The sum of the precisions at every distinct score, weighted by the increase of the recall,
    without interpolation, as `average_precision_score` of scikit-learn.

    Args:
      scores: logits or probabilities, [n, c].
      labels: 0 or 1, [n, c].
    """
    found = np.full(labels.shape[1], np.nan)
    for i in np.flatnonzero(labels.any(0)):
        _, accepted, hits = _ranked(scores[:, i], labels[:, i])
        found[i] = np.sum(np.diff(hits, prepend=0) / hits[-1] * (hits / accepted))
    return found


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Average `average_precision` over the classes with a positive label; 0 without any."""
    found = average_precision(scores, labels)
    return float(np.nanmean(found)) if labels.any() else 0.0


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """Choose the threshold of each class with the highest F1.

    A label applies if its probability is at least the threshold. The threshold lies halfway between
    the lowest accepted probability and the next one; of equal F1, the highest is chosen. It is 0.5
    for a class without a positive label.

    Args:
      probabilities: of the validation images, [n, c].
      labels: 0 or 1, [n, c].
    """
    thresholds = [0.5] * labels.shape[1]
    for i in np.flatnonzero(labels.any(0)).tolist():
        scores, accepted, hits = _ranked(probabilities[:, i], labels[:, i])
        best = int(np.argmax(2 * hits / (accepted + hits[-1])))  # F1
        below = scores[best + 1] if best + 1 < len(scores) else 0.0
        thresholds[i] = float((scores[best] + below) / 2)
    return thresholds


def make_label_report(
    logits: np.ndarray, labels: np.ndarray, class_names: list[str], thresholds: list[float]
) -> dict:
    """Compute the metrics of several labels per image, overall and per class.

    Args:
      logits: [n, c].
      labels: 0 or 1, [n, c].
      class_names: c names.
      thresholds: of the probabilities, c values.

    Returns:
      {"count", "map", "micro_f1", "macro_f1", "label_accuracy" (fraction of labels that are right),
      "exact_match" (fraction of images of which all are), "classes": {name: {"average_precision",
      "precision", "recall", "f1", "threshold", "support"}}}. mAP and macro F1 are means over the
      classes with images, the others have None. The precision of a class that is never predicted
      is 0.
    """
    predicted, truth = sigmoid(logits) >= np.array(thresholds), labels.astype(bool)
    hits, accepted, support = (a.sum(0) for a in (predicted & truth, predicted, truth))
    values = {
        "average_precision": average_precision(logits, labels),
        "precision": hits / np.maximum(accepted, 1),
        "recall": hits / np.maximum(support, 1),
        "f1": 2 * hits / np.maximum(accepted + support, 1),
    }
    classes = {}
    for i, name in enumerate(class_names):
        row = {key: float(column[i]) if support[i] else None for key, column in values.items()}
        classes[name] = row | {"threshold": thresholds[i], "support": int(support[i])}
    right = predicted == truth
    return {
        "count": len(labels),
        "map": mean_average_precision(logits, labels),
        "micro_f1": float(2 * hits.sum() / max(1, accepted.sum() + support.sum())),
        "macro_f1": float(values["f1"][support > 0].mean()) if support.any() else 0.0,
        "label_accuracy": float(right.mean()),
        "exact_match": float(right.all(1).mean()),
        "classes": classes,
    }
