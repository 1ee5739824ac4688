"""Classes of unequal size: weights, focal loss, balanced sampling, long-tailed subsets."""

import json

import jax
import numpy as np
import pytest
from tiny_configs import make_config
from tiny_runs import run_configs
from tiny_steps import make_steps

from vit_jax.data import ResidentBatches, StreamingBatches, load_data
from vit_jax.data.batches import balanced_indices
from vit_jax.data.examples import Examples
from vit_jax.evaluation.differences import paired_difference
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training.loss import find_class_weights, make_loss
from vit_jax.training.variants import make_variants

pytestmark = pytest.mark.usefixtures("one_device")

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 3)).astype(np.float32)
TARGETS = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
TARGETS[5] = (0.25, 0, 0.75)  # mixed
LABELS = np.repeat([0, 1, 3], [60, 30, 10])  # class 2 has no examples


def loss_of(weights=None, **settings):
    config = make_config(**{f"train__{key}": value for key, value in settings.items()})
    return make_loss(config, weights)


def test_class_weights_multiply_the_losses():
    weights = np.array([1, 2, 4], np.float32)
    plain = np.asarray(loss_of(label_smoothing=0.1)(LOGITS, TARGETS))
    weighted = loss_of(weights, label_smoothing=0.1)(LOGITS, TARGETS)
    np.testing.assert_allclose(weighted, plain * [1, 2, 4, 1, 2, 3.25], rtol=1e-6)


def test_balanced_weights_give_all_classes_the_same_total():
    config = make_config(train__class_weights="balanced")
    weights = find_class_weights(config, lambda: LABELS, 4)
    np.testing.assert_allclose(weights, [100 / 180, 100 / 90, 0, 100 / 30], rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1)
    assert find_class_weights(make_config(), None, 4) is None
    given = make_config(train__class_weights="1,2, 0.5")
    assert find_class_weights(given, None, 3).tolist() == [1, 2, 0.5]
    with pytest.raises(UserError, match="train.class_weights=1,2, 0.5 has 3 weights for 4 classes"):
        find_class_weights(given, None, 4)


def test_focal_loss():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -(TARGETS * (1 - p) ** 2 * np.log(p)).sum(1)
    np.testing.assert_allclose(loss_of(focal_gamma=2.0)(LOGITS, TARGETS), expected, rtol=1e-4)
    near = loss_of(focal_gamma=1e-6)(LOGITS, TARGETS)
    np.testing.assert_allclose(near, loss_of()(LOGITS, TARGETS), rtol=1e-3)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_gradient_of_the_focal_loss_is_finite_where_a_class_is_certain(gamma):
    loss = loss_of(focal_gamma=gamma)
    gradients = jax.grad(lambda logits: loss(logits, TARGETS).sum())(1e4 * LOGITS)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train__class_weights": "1,x"}, "train.class_weights='1,x' is neither balanced nor"),
        ({"train__class_weights": "0,0"}, "train.class_weights='0,0' is neither"),
        ({"train__class_weights": "1,-1"}, "train.class_weights='1,-1' is neither"),
        ({"train__class_weights": "balanced", "train__sampling": "balanced"}, "give one"),
        ({"data__imbalance_ratio": 2.0, "data__examples_per_class": 3}, "give one"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_config(**settings)


def by_class(labels):
    return np.argsort(labels, kind="stable"), np.unique(labels, return_counts=True)[1]


def test_balanced_batches_have_equal_class_frequencies():
    """Within four standard deviations of the binomial distribution; so do the examples."""
    draws = [balanced_indices(3, step, *by_class(LABELS), 50) for step in range(200)]
    indices = np.concatenate(draws)
    for label in (0, 1, 3):
        count = (LABELS[indices] == label).sum()
        assert abs(count - 10_000 / 3) < 4 * np.sqrt(10_000 * 1 / 3 * 2 / 3)
    expected = 10_000 / 3 / np.bincount(LABELS)[LABELS]
    assert (abs(np.bincount(indices, minlength=100) - expected) < 5 * np.sqrt(expected)).all()


def test_a_balanced_batch_is_a_function_of_seed_and_step():
    arguments = (*by_class(LABELS), 16)
    batch = balanced_indices(3, 7, *arguments)
    assert batch.tolist() == balanced_indices(3, 7, *arguments).tolist()
    assert batch.tolist() != balanced_indices(3, 8, *arguments).tolist()
    both = balanced_indices((3, 4), 7, *arguments)
    assert both.tolist() == [batch.tolist(), balanced_indices(4, 7, *arguments).tolist()]


def test_streamed_and_device_resident_batches_are_the_same():
    images = np.arange(100, dtype=np.uint8)[:, None, None, None]
    labels = LABELS.astype(np.int32)
    examples = Examples(
        100, lambda wanted: [(images[i], labels[i]) for i in wanted], lambda: labels
    )
    mesh = sharding.make_mesh()
    resident = ResidentBatches(images, labels, mesh)
    streamed = StreamingBatches(examples, mesh, num_threads=2)
    assert resident.labels.tolist() == streamed.labels.tolist()
    for seed in (3, (3, 4)):
        batches = resident.train(seed, 5, 8, 16, balanced=True)
        for one, other in zip(batches, streamed.train(seed, 5, 8, 16, balanced=True), strict=True):
            assert np.array_equal(one["image"], other["image"])
            assert np.array_equal(one["label"], other["label"])
    _, many = next(resident.train_at_once(3, 5, 8, 16, lambda step: 3, balanced=True))
    expected = [balanced_indices(3, step, *by_class(labels), 16) for step in (5, 6, 7)]
    assert np.array_equal(many["rows"][:3], expected)


def test_the_classes_of_a_long_tailed_subset_shrink_by_the_ratio():
    config = make_config(data__imbalance_ratio=20.0).data
    whole = load_data(make_config().data, sharding.make_mesh())
    subset = load_data(config, sharding.make_mesh())
    counts, smallest = np.bincount(subset.train.labels), np.bincount(whole.train.labels).min()
    expected = [smallest * 20 ** (-label / 9) for label in range(10)]
    assert abs(counts - expected).max() <= 0.5
    for split in ("val", "test"):
        assert getattr(subset, split).labels.tolist() == getattr(whole, split).labels.tolist()
    with pytest.raises(UserError, match="data.imbalance_ratio=300 leaves no training example"):
        load_data(make_config(data__imbalance_ratio=300.0).data, sharding.make_mesh())


def test_class_weights_raise_the_macro_recall_of_imbalanced_classes(tmp_path):
    """By a mean over five paired seeds whose 95 % interval is above 0, at a ratio of 20."""
    config = make_config(
        data__imbalance_ratio=20.0,
        augment__kind="none",
        optim__learning_rate=1e-2,
        train__epochs=0.0,
        train__steps=120,
        train__num_seeds=5,
        train__eval_every_epochs=0.0,
        train__select="last",
        log__tensorboard=False,
        log__every_steps=0,
    )
    sweep = {"plain": {}, "weights": {"train.class_weights": "balanced"}}
    run_configs(make_variants(config, sweep, set()), tmp_path, sweep=sweep)
    rows = {}
    for name in sweep:
        reports = [tmp_path / name / f"seed_{seed}" / "test_report.json" for seed in range(5)]
        recalls = [json.loads(path.read_text())["macro_recall"] for path in reports]
        rows[name] = {"seeds": list(range(5)), "test_accuracy": {"values": recalls}}
    assert paired_difference(rows["weights"], rows["plain"])["low"] > 0


@pytest.mark.parametrize("multi_step", [False, True])
def test_the_setting_of_sampling_decides_the_batches(multi_step):
    config = make_config(train__sampling="balanced", train__batch_size=16)
    mesh = sharding.make_mesh()
    data = load_data(config.data, mesh)
    steps = make_steps(config, data, mesh, multi_step=multi_step)
    labels = np.asarray(data.train.labels)
    expected = balanced_indices(3, 5, *by_class(labels), 16)
    _, batch = next(steps.batches(data.train, [3], 5, lambda step: 1))
    found = batch["rows"][0] if multi_step else batch["label"]
    np.testing.assert_array_equal(found, expected if multi_step else labels[expected])
