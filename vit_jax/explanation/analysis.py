"""Analysis of a trained model: ablation of heads and MLPs, logit lens, token norms, probes.

Every function takes a `Model` and images as `Model.read_images` does, and returns arrays. Layers
are the embedding and the blocks, in order.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.augment import preprocess
from vit_jax.evaluation.inputs import Images, as_list
from vit_jax.explanation import probes
from vit_jax.explanation.methods import token_layout
from vit_jax.explanation.model import Model, Target
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.progress import Progress

_BATCH_SIZE = 16
Labelled = tuple[Images, Target]  # images and the classes of each


def layer_names(model: Model) -> list[str]:
    """List "embedding", "block 1", ...; of a ResNet "stem", "layer1_0", ..."""
    if model.config.model.name != "vit":
        return ["stem", *(f"layer{stage}_{block}" for stage in range(1, 5) for block in range(2))]
    return ["embedding", *(f"block {i + 1}" for i in range(model.config.model.depth))]


def _require_vit(model, what):
    if model.config.model.name != "vit":
        raise UserError(f"{model.name} is a {model.config.model.name}, which has no {what}")


def require_one_class(model: Model, what: str) -> None:
    """Raise UserError if images of a model have several labels."""
    if model.config.data.multi_label:
        raise UserError(f"{what} needs one class per image: {model.name} has several")


def _first_patch(model):
    """Count the tokens before the patches."""
    _, has_cls, registers = token_layout(model.config)
    return has_cls + registers


def _edit(mask, means):
    """Make the `edit` that ablates where `mask`, bool [layers, heads + 1], is True."""
    pairs = zip(mask, means["heads"], means["mlp"], strict=True)
    return {
        "blocks": [
            {"heads": (row[:-1, None, None], heads), "mlp": (row[-1], mlp)}
            for row, heads, mlp in pairs
        ]
    }


def _no_edit(config):
    """Make an `edit` that changes nothing, and has the model return the outputs it could change."""
    zeros = {"heads": jnp.zeros(()), "mlp": jnp.zeros(())}
    means = {name: [zero] * config.depth for name, zero in zeros.items()}
    return _edit(np.zeros((config.depth, config.num_heads + 1), bool), means)


def mean_outputs(model: Model, images: Images, batch_size: int = _BATCH_SIZE) -> dict[str, list]:
    """Average the outputs of heads and MLPs over images, separately at every token.

    Returns:
      "heads": depth arrays [heads, tokens, width], before the output layer; "mlp": depth arrays
      [tokens, d].
    """
    _require_vit(model, "heads")
    module, config, given = model.make_model(), model.config, as_list(images)

    @jax.jit
    def sums(variables, images, kept):
        inputs, edit = preprocess(images, config), _no_edit(config.model)
        seen = module.apply(variables, inputs, capture=True, edit=edit)[1]
        return {
            name: [jnp.einsum("b...,b->...", a.astype(jnp.float32), kept) for a in seen[name]]
            for name in ("heads", "mlp")
        }

    total: Any = 0
    for batch, kept in _batches(model, given, batch_size):
        found = sums(model.variables, batch, kept)
        total = found if total == 0 else jax.tree.map(jnp.add, total, found)
    return jax.tree.map(lambda a: a / len(given), total)


def _batches(model, images, batch_size):
    """Yield (uint8 images, float32 mask), padded to the same size."""
    size = min(batch_size, len(images))
    for start in range(0, len(images), size):
        batch = model.read_images(images[start : start + size])
        kept = np.zeros(size, np.float32)
        kept[: len(batch)] = 1
        padding = [(0, size - len(batch))] + [(0, 0)] * 3
        yield jax.device_put(np.pad(batch, padding)), kept


def ablation(
    model: Model,
    images: Images,
    labels: Target | None = None,
    reference: Images | None = None,
    batch_size: int = _BATCH_SIZE,
) -> dict[str, Any]:
    """Measure how much a model depends on every attention head and every MLP, by mean ablation.

    One at a time, a head's output before the output layer, or an MLP's output, is replaced by its
    mean over `reference` at the same token. What is left of its effect does not depend on the
    image.

    Args:
      model: a ViT with a head.
      images: that are classified.
      labels: index or name of the class of each; None: the classes that the model predicts.
      reference: images whose outputs are averaged; None: `images`.
      batch_size: images per call.

    Raises UserError for a single image without others as `reference`: its mean is itself.

    Returns:
      "accuracy": of the unablated model. "heads" [depth, num_heads] and "mlps" [depth] are dicts of
      float64 arrays: "accuracy" and "logit", the mean changes of accuracy and of the logit of the
      class, and "accuracy_error" and "logit_error", the standard errors of these paired
      differences over images (nan for one image). "images" is their number.
    """
    _require_vit(model, "heads")
    require_one_class(model, "ablation")
    model.check_head()
    given = as_list(images)
    if reference is None and len(given) == 1:
        raise UserError("the ablation needs at least 2 images, over which it averages outputs")
    classes = None if labels is None else model.class_indices(labels, len(given))
    means = mean_outputs(model, given if reference is None else reference, batch_size)
    # The first mask ablates nothing, then one for each head and, last in its block, the MLP.
    depth, columns = model.config.model.depth, model.config.model.num_heads + 1
    masks = np.eye(1 + depth * columns, depth * columns, -1, bool).reshape(-1, depth, columns)
    logits, hits = [], []
    for start, outputs in enumerate(_ablated_logits(model, given, means, masks, batch_size)):
        if classes is None:
            own = outputs[0].argmax(-1)
        else:
            own = classes[start * batch_size : (start + 1) * batch_size]
        logits.append(outputs[:, np.arange(len(own)), own])
        hits.append(outputs.argmax(-1) == own)
    logit, hit = np.concatenate(logits, 1), np.concatenate(hits, 1)
    found: dict[str, Any] = {"images": len(given), "accuracy": float(hit[0].mean())}
    changes = {"accuracy": _changes(hit), "logit": _changes(logit)}
    for name, part in (("heads", np.s_[:, :-1]), ("mlps", np.s_[:, -1])):
        found[name] = {}
        for key, (mean, error) in changes.items():
            found[name][key] = mean.reshape(depth, columns)[part]
            found[name][f"{key}_error"] = error.reshape(depth, columns)[part]
    return found


def _ablated_logits(model, given, means, masks, batch_size):
    """Yield the logits [masks, b, classes] of every batch of images."""
    module, config = model.make_model(), model.config

    @jax.jit
    def classify(variables, means, images, mask):
        edit = _edit(mask, means)
        return module.apply(variables, preprocess(images, config), edit=edit)

    progress = Progress(
        f"{model.name}: ablating,", 0, len(masks) * -(-len(given) // batch_size), True, "batch"
    )
    for batch, kept in _batches(model, given, batch_size):
        outputs = []
        for mask in masks:
            logits = np.asarray(classify(model.variables, means, batch, mask))
            outputs.append(logits[kept > 0])
            progress.advance(1)
        yield np.stack(outputs)
    progress.close()


def _changes(values):
    """Compute the mean and standard error of differences from the first row of [k + 1, n]: [k]."""
    values = values.astype(np.float64)
    differences = values[1:] - values[0]
    count = differences.shape[1]
    if count < 2:
        return differences.mean(1), np.full(len(differences), np.nan)
    return differences.mean(1), differences.std(1, ddof=1) / np.sqrt(count)


def logit_lens(
    model: Model, images: Images, labels: Target | None = None, batch_size: int = _BATCH_SIZE
) -> dict[str, np.ndarray]:
    """Classify the tokens after every layer with the model's final norm, pooling and head.

    The logit lens (nostalgebraist 2020). For a patch, its token takes the place of all tokens, so
    that every kind of pooling returns it. The head was trained on the last layer only: before it,
    a low probability does not show that the information is missing.

    Args:
      model: a ViT with a head.
      images: that are classified.
      labels: index or name of the class of each; None: the classes that the model predicts.
      batch_size: images per call.

    Returns:
      "logits" float32 [n, depth + 1, classes] of the pooled tokens, the last of which are the
      model's; "classes" int32 [n]; and for each patch, [n, depth + 1, rows, columns], the
      "patch_probability" of that class and whether it is the patch's most probable one,
      "patch_correct".
    """
    _require_vit(model, "tokens")
    require_one_class(model, "logit_lens")
    model.check_head()
    given, module, first = as_list(images), model.make_model(), _first_patch(model)
    classes = () if labels is None else (model.class_indices(labels, len(given)),)

    def look(variables, inputs, *classes):
        logits, seen = module.apply(variables, inputs, capture=True)
        own = classes[0] if classes else logits.argmax(-1)
        found: dict[str, list] = {"logits": [], "patch_probability": [], "patch_correct": []}
        for tokens in seen["tokens"]:
            found["logits"].append(module.apply(variables, inputs, edit={"tokens": tokens}))
            b, n, d = tokens[:, first:].shape
            patches = jnp.tile(tokens[:, first:].reshape(b * n, 1, d), (1, first + 1, 1))
            of_patches: Any = module.apply(variables, inputs, edit={"tokens": patches})
            of_patches = of_patches.reshape(b, *model.grid, -1)
            chosen = (
                jax.nn.softmax(of_patches) * jax.nn.one_hot(own, logits.shape[-1])[:, None, None]
            )
            found["patch_probability"].append(chosen.sum(-1))
            found["patch_correct"].append(of_patches.argmax(-1) == own[:, None, None])
        stacked = {name: jnp.stack(layers, 1) for name, layers in found.items()}
        return stacked | {"classes": own}

    name = f"logit lens of the {'label' if classes else 'prediction'}"
    found: Any = model.apply(name, look, given, *classes, batch_size=batch_size)
    return found | {
        "classes": found["classes"].astype(np.int32),
        "patch_correct": found["patch_correct"] > 0,
    }


def token_norms(model: Model, images: Images, batch_size: int = _BATCH_SIZE) -> dict[str, Any]:
    """Compute the L2 norms of the tokens after every layer, before any final norm.

    Returns:
      "patches" float32 [n, depth + 1, rows, columns]; "others" [n, depth + 1, k] of the class token
      and registers; "threshold", the median of the last layer's patches over all images plus 10
      median absolute deviations; and "outliers", bool [n, rows, columns], the patches above it.
      Large, long-trained models use such tokens as registers (Darcet et al. 2024,
      arXiv:2309.16588).
    """
    _require_vit(model, "tokens")
    module, first = model.make_model(), _first_patch(model)

    def norms(variables, inputs):
        tokens = module.apply(variables, inputs, capture=True)[1]["tokens"]
        stacked = jnp.stack(tokens, 1).astype(jnp.float32)
        return jnp.linalg.norm(stacked, axis=-1)  # [b, layers, tokens]

    found = model.apply("token norms", norms, images, batch_size=batch_size)
    patches = found[..., first:].reshape(*found.shape[:2], *model.grid)
    last = patches[:, -1].astype(np.float64)
    median = np.median(last)
    threshold = float(median + 10 * np.median(np.abs(last - median)))
    others = found[..., :first]
    return {
        "patches": patches,
        "others": others,
        "threshold": threshold,
        "outliers": last > threshold,
    }


def layer_features(
    model: Model, images: Images, batch_size: int = _BATCH_SIZE
) -> dict[str, list[np.ndarray]]:
    """Compute features of every layer: {kind: an array [n, d] for each of `layer_names`}.

    The kinds are "mean of patches" and, where there is one, "class token"; of a ResNet "mean of
    positions".
    """
    module, is_vit = model.make_model(), model.config.model.name == "vit"
    if is_vit:
        first, has_cls = _first_patch(model), models.has_cls(model.config.model)

    def features(variables, inputs):
        seen = module.apply(variables, inputs, capture=True)[1]
        if not is_vit:
            maps = [seen["feature_maps"][name] for name in layer_names(model)]
            return {"mean of positions": [a.astype(jnp.float32).mean((1, 2)) for a in maps]}
        tokens = [a.astype(jnp.float32) for a in seen["tokens"]]
        found = {"class token": [a[:, 0] for a in tokens]} if has_cls else {}
        return found | {"mean of patches": [a[:, first:].mean(1) for a in tokens]}

    return model.apply("layer features", features, images, batch_size=batch_size)


def similarity(
    model: Model,
    images: Images,
    other: Model | None = None,
    unbiased: bool = True,
    other_images: Images | None = None,
) -> np.ndarray:
    """Compute linear CKA between the layers of a model, or of two: [layers, layers of the other].

    `other_images` are the same images, if the other model is given other arrays of them.
    The features are the means of patches, or of positions. For the other arguments see
    `probes.linear_cka`. Raises UserError for fewer than 4 images, which the unbiased form needs.
    """
    if unbiased and (count := len(as_list(images))) < 4:
        raise UserError(f"{count} images: give at least 4, or unbiased=False")
    given = [(model, images), (other, images if other_images is None else other_images)]
    found = [layer_features(*one) for one in given if one[0] is not None]
    means = [next(a for kind, a in one.items() if kind.startswith("mean")) for one in found]
    return probes.cka_matrix(means[0], means[-1], unbiased)


def _number_labels(splits):
    """Number the classes of all splits; return the int [n] of each split, and their count."""
    labels = [list(one[1]) for one in splits]
    for given, (images, _) in zip(labels, splits, strict=True):
        if len(given) != (count := len(as_list(images))):
            raise UserError(f"there are {len(given)} labels for {count} images: give one each")
    together = [label for given in labels for label in given]
    if len({isinstance(label, str) for label in together}) > 1:
        raise UserError("labels are names and numbers: give all in one way")
    classes, numbers = np.unique(np.asarray(together), return_inverse=True)
    return np.split(numbers, np.cumsum([len(given) for given in labels])[:-1]), len(classes)


def probe_layers(
    model: Model, train: Labelled, val: Labelled, test: Labelled, k: int = 20
) -> dict[str, dict[str, np.ndarray]]:
    """Classify images from the features of every layer, by nearest neighbours and ridge regression.

    Args:
      model: of which the features are used, not the head.
      train: images and the class of each, all as numbers or all as names, of the head or not.
      val: the same, to choose the ridge probe's lambda.
      test: the same, to measure the accuracy.
      k: number of neighbours; at most that of the training images.

    Returns:
      {kind of `layer_features`: {"knn": accuracies, "ridge": accuracies, "lambda": chosen}}, with
      float64 arrays [layers].
    """
    require_one_class(model, "probes")
    labels, num_classes = _number_labels([train, val, test])
    neighbours = min(k, len(as_list(train[0])))
    features = [layer_features(model, one[0]) for one in (train, val, test)]
    found = {}
    for kind in features[0]:
        rows: Sequence = []
        for x, y, z in zip(*(one[kind] for one in features), strict=True):
            near = probes.knn_predict(x, labels[0], z, num_classes, neighbours)
            ridge = probes.ridge_probe(x, labels[0], y, labels[1], z, num_classes)
            hits = [(p == labels[2]).mean() for p in (near, ridge["predictions"])]
            rows.append([*hits, ridge["lambda"]])
        found[kind] = dict(zip(("knn", "ridge", "lambda"), np.array(rows).T, strict=True))
    return found
