"""Scores of explanations, compared with random orders."""

import math

import jax.numpy as jnp
import numpy as np

from vit_jax.explanation import attribution, faithfulness, methods
from vit_jax.explanation.model import Model
from vit_jax.runtime.progress import Progress

STEPS = 10  # from no patch to all of them
BATCH = 16  # images at a time
CHANCE = 2  # random orders; with their reverses, whose SaCo is the negative, they are averaged
RANDOMISED = 16  # images whose maps are compared with those of randomised weights
OPTIONS = {
    "integrated_gradients": {"steps": 16},
    "rise": {"masks": 128},
}  # cheaper than the default
MOST_CORRELATED = 0.5  # of a map that depends on the weights, with that of randomised weights
SCORES = {"saco": 1, "deletion": -1, "insertion": 1}  # with the sign of what is better


def score(model: Model, images: np.ndarray) -> dict:
    """Score all methods of a model on stored images, against random orders.

    A patch that is deleted, or not yet inserted, has the image's own mean colour.

    Returns:
      {"images": n, "patches": int, "fractions": [k] of the patches, "methods": {name: scores},
      "residual": median of `Model.residual`, "most_correlated": MOST_CORRELATED, "trusted": name of
      the method to trust or None}. The
      scores are {"saco" | "deletion" | "insertion": values, "randomised": mean rank correlation of
      the map with that of shuffled weights}. The values have "auc", the mean over images of the
      coefficient or area; "gain", the mean over images of how much better it is than that of random
      orders; "auc_std" and "gain_std", their standard deviations over images with ddof 1, and
      "gain_error", the standard error of the mean gain (all null for one image); "better", the
      fraction of images with a gain; and of the curves "curve", [k] mean probabilities of the
      predicted class. The last method, "random", has gains of 0 and no "randomised".
    """
    n, grid = len(images), model.relevance_grid
    patches = grid[0] * grid[1]
    counts = attribution.replaced_counts(patches, min(STEPS, patches))
    randomised = slice(RANDOMISED)
    total = (2 * len(model.methods) + 2 * CHANCE) * n
    total += len(model.methods) * len(images[randomised])
    progress = Progress(f"{model.name}: scoring explanations,", 0, total, True, "image")
    evaluate = _evaluator(model, images, counts / patches, progress)
    target = model.predict(images).argmax(-1)
    maps = {key: _explain(model, images, key, target, progress) for key in model.methods}
    random = np.random.default_rng(0).random((CHANCE, n, *grid), np.float32)
    found = {methods.METHODS[key].name: evaluate(one) for key, one in maps.items()}
    orders = [evaluate(one) for one in (*random, *-random)]
    found["random"] = {key: np.mean([one[key] for one in orders], 0) for key in orders[0]}
    scored = {name: _summarise(one, found["random"], counts) for name, one in found.items()}
    shuffled = model.with_variables(faithfulness.shuffle_weights(model.variables))
    for key, before in maps.items():
        after = _explain(shuffled, images[randomised], key, target[randomised], progress)
        correlation = faithfulness.rank_correlation(before[randomised], after)
        scored[methods.METHODS[key].name]["randomised"] = float(correlation.mean())
    options = OPTIONS["integrated_gradients"]
    residual = model.residual(images[randomised], target[randomised], **options)
    progress.close()
    return {
        "images": n,
        "patches": patches,
        "fractions": (counts / patches).tolist(),
        "methods": scored,
        "residual": float(np.median(residual)),
        "most_correlated": MOST_CORRELATED,
        "trusted": choose_method(scored),
    }


def _evaluator(model, images, fractions, progress):
    """Make a function from maps to {"saco": [n], "deletion" | "insertion": [n, k]}."""
    module = model.make_model()

    def scores_of(variables, inputs, relevance):
        baseline = inputs.mean((1, 2), keepdims=True)

        def logits_fn(changed):
            return jnp.asarray(module.apply(variables, changed))

        probabilities_of = methods.probabilities_of(model.config)
        curves = attribution.deletion_insertion(
            logits_fn, inputs, relevance, baseline, len(fractions) - 1, probabilities_of
        )
        saco = faithfulness.saco(
            logits_fn, inputs, relevance, baseline, probabilities_of=probabilities_of
        )
        return jnp.concatenate([saco[:, None], curves["deletion"], curves["insertion"]], 1)

    def apply(some, relevance):
        return model.apply("scores", scores_of, some, relevance, batch_size=BATCH)

    def evaluate(relevance):
        found = _in_batches(apply, progress, images, relevance)
        curves = found[:, 1:].reshape(len(found), 2, -1)
        return {"saco": found[:, 0], "deletion": curves[:, 0], "insertion": curves[:, 1]}

    return evaluate


def _explain(model, images, key, target, progress):
    def explain(some, target):
        given = {"target": target} if methods.METHODS[key].of_class else {}
        return model.explain(some, key, **given, **OPTIONS.get(key, {}))

    return _in_batches(explain, progress, images, target)


def _in_batches(call, progress, *arrays):
    """Call with BATCH entries of the arrays at a time; concatenate the results."""
    found, count = [], len(arrays[0])
    for start in range(0, count, BATCH):
        # The last batch overlaps the one before it: another size would be compiled again.
        first = max(0, min(start, count - BATCH))
        batch = call(*(array[first : first + BATCH] for array in arrays))
        found.append(batch[start - first :])
        progress.advance(len(found[-1]))
    return np.concatenate(found)


def _summarise(values, chance, counts):
    summary = {}
    for key, sign in SCORES.items():
        summary[key] = {}
        single, random = values[key], chance[key]
        if key != "saco":
            summary[key]["curve"] = single.mean(0).tolist()
            single, random = (np.trapezoid(one, counts / counts[-1]) for one in (single, random))
        gain = sign * (single - random)
        for name, one in (("auc", single), ("gain", gain)):
            std = float(one.std(ddof=1)) if len(one) > 1 else None
            summary[key] |= {name: float(one.mean()), f"{name}_std": std}
        std = summary[key]["gain_std"]
        summary[key]["gain_error"] = None if std is None else std / math.sqrt(len(gain))
        summary[key]["better"] = float((gain > 0).mean())
    return summary


def choose_method(scored: dict) -> str | None:
    """Choose the method with the highest SaCo among those that pass both tests; None: none passes.

    The tests: SaCo exceeds that of random orders by more than two standard errors of the paired
    difference, and the rank correlation with the map of randomised weights is at most 0.5.
    """
    passed = [
        (one["saco"]["auc"], name)
        for name, one in scored.items()
        if one["saco"]["gain"] > 2 * (one["saco"]["gain_error"] or math.inf)
        and one.get("randomised", 1.0) <= MOST_CORRELATED
    ]
    return max(passed)[1] if passed else None
