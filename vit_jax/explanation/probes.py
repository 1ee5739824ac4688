"""What representations contain: linear CKA, kNN and ridge probes. Arrays in, arrays out.

Representations are features [n, d] of the same n examples. CKA and ridge regression are computed
in float64: their sums over squared features lose too much in float32.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LAMBDAS = 2.0 ** np.arange(-10, 21)


def linear_cka(x: np.ndarray, y: np.ndarray, unbiased: bool = True) -> float:
    """Compute the linear centred kernel alignment of features [n, d] and [n, e].

    Kornblith et al. 2019 (arXiv:1905.00414): 1 for features that are equal up to rotation, scale
    and translation. The unbiased form (Song et al. 2012, equation 5; Nguyen et al. 2021,
    arXiv:2010.15327) is 0 in expectation for independent features and may be negative; the biased
    one is far above 0 unless n is much larger than d. nan for constant features.

    Raises:
      ValueError: different numbers of examples, or fewer than 4 for the unbiased form.
    """
    return float(cka_matrix([x], [y], unbiased)[0, 0])


def cka_matrix(
    xs: Sequence[np.ndarray], ys: Sequence[np.ndarray], unbiased: bool = True
) -> np.ndarray:
    """Compute `linear_cka` of each x with each y: float64 [len(xs), len(ys)]."""
    count, *others = {len(features) for features in (*xs, *ys)}
    if others:
        raise ValueError(f"features have {count} and {others[0]} examples")
    if unbiased and count < 4:
        raise ValueError(f"unbiased CKA needs 4 examples, not {count}")
    hsic = _unbiased_hsic if unbiased else lambda k, m: (k * m).sum()
    rows, columns = ([_gram(features) for features in side] for side in (xs, ys))
    own = [np.sqrt([max(0.0, hsic(k, k)) for k in side]) for side in (rows, columns)]
    products = np.array([[hsic(k, m) for m in columns] for k in rows])
    scale = np.outer(*own)
    return np.divide(products, scale, out=np.full_like(scale, np.nan), where=scale > 0)


def _gram(features):
    """Compute the Gram matrix [n, n] of centred features."""
    x = np.asarray(features, np.float64)
    # Exactly constant features must have exactly no variance.
    x = np.where((x == x[:1]).all(0), 0.0, x - x.mean(0))
    return x @ x.T


def _unbiased_hsic(k, m):
    n = len(k)
    k, m = (a - np.diag(np.diag(a)) for a in (k, m))
    crossed = 2 * (k.sum(0) @ m.sum(1)) / (n - 2)
    return (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - crossed


def knn_predict(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
    batch_size: int = 1024,
) -> np.ndarray:
    """Classify features [m, d] by their nearest neighbours among `train` [n, d]: int [m].

    As DINO (Caron et al. 2021, arXiv:2104.14294) does: each of the k neighbours of highest cosine
    similarity votes for its label [n] with exp(similarity / temperature).

    Raises:
      ValueError: k exceeds n.
    """
    if not 0 < k <= len(train):
        raise ValueError(f"k is {k}, not in 1 to {len(train)}")
    known, numbers = _normalised(train), jnp.asarray(labels)
    vote = functools.partial(_vote, num_classes=num_classes, k=k, temperature=temperature)
    batches = [test[i : i + batch_size] for i in range(0, len(test), batch_size)]
    return np.concatenate([np.asarray(vote(known, numbers, _normalised(one))) for one in batches])


def _normalised(features):
    x = jnp.asarray(features, jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames=("num_classes", "k", "temperature"))
def _vote(train, labels, test, num_classes, k, temperature):
    cosines = jnp.matmul(test, train.T, precision=jax.lax.Precision.HIGHEST)  # [m, n]
    nearest, indices = jax.lax.top_k(cosines, k)
    weights = jax.nn.softmax(nearest / temperature)[..., None]  # [m, k, 1]
    return (weights * jax.nn.one_hot(labels[indices], num_classes)).sum(1).argmax(-1)


def ridge_probe(
    train: np.ndarray,
    labels: np.ndarray,
    val: np.ndarray,
    val_labels: np.ndarray,
    test: np.ndarray,
    num_classes: int,
    lambdas: Sequence[float] | np.ndarray = LAMBDAS,
) -> dict[str, Any]:
    """Fit a linear classifier by ridge regression and classify features [m, d].

    Features are standardised by the mean and standard deviation of `train` [n, d]; targets are 1
    for the label and -1 otherwise; the intercept is not regularised. One eigendecomposition serves
    all lambdas, of which the one with the best accuracy on `val` is used, the largest of equals.

    Returns:
      "predictions" int [m], "lambda", and "val_accuracy" of every lambda, float64 [len(lambdas)].
    """
    x = np.asarray(train, np.float64)
    mean, std = x.mean(0), x.std(0)
    scale = np.where(std > 1e-9 * np.abs(mean), std, np.inf)  # constant features become 0
    x, val, test = ((np.asarray(a, np.float64) - mean) / scale for a in (x, val, test))
    targets = 2.0 * np.eye(num_classes)[labels] - 1
    intercept = targets.mean(0)
    values, vectors = np.linalg.eigh(x.T @ x)
    values, moments = values.clip(0), vectors.T @ (x.T @ (targets - intercept))  # [d], [d, c]
    val, test = val @ vectors, test @ vectors

    def classify(features, one):
        return (features @ (moments / (values + one)[:, None]) + intercept).argmax(-1)

    lambdas = np.sort(np.asarray(lambdas, np.float64))
    accuracies = np.array([(classify(val, one) == val_labels).mean() for one in lambdas])
    best = len(lambdas) - 1 - int(accuracies[::-1].argmax())
    return {
        "predictions": classify(test, lambdas[best]),
        "lambda": float(lambdas[best]),
        "val_accuracy": accuracies,
    }
