"""Runs with schedule-free AdamW: averaged weights are evaluated, saved and exported."""

import json

import numpy as np
import pytest
from tiny_configs import make_config
from tiny_runs import last_state, run

from vit_jax import pretrained
from vit_jax.evaluation.classifier import Classifier
from vit_jax.runtime.errors import UserError
from vit_jax.storage.writers import read_jsonl

FREE = dict(optim__name="schedule_free_adamw", optim__schedule="constant", optim__warmup_steps=4)

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(tmp_path_factory.mktemp("whole"), train__epochs=6.0, **FREE)


def flat(params):
    return pretrained.flat_weights(params, {})


def find_z(tree):
    """Find the iterates z in a restored optimizer state."""
    if isinstance(tree, dict):
        return tree["z"] if "z" in tree else find_z(list(tree.values()))
    found = [find_z(value) for value in tree] if isinstance(tree, list) else []
    return next((value for value in found if value is not None), None)


def test_averaged_weights_are_evaluated_saved_and_loaded(whole):
    state, summary = last_state(whole), json.loads((whole / "summary.json").read_text())
    y, x, z = (flat(tree) for tree in (state["params"], state["ema"]["params"], find_z(state)))
    for path in y:
        np.testing.assert_allclose(y[path], 0.1 * z[path] + 0.9 * x[path], atol=1e-6)
    assert np.abs(y["head/kernel"] - x["head/kernel"]).max() > 1e-4
    assert summary["best_step"] == 30  # the last, of which `state` is
    for path, array in pretrained.load(whole).arrays.items():
        np.testing.assert_array_equal(array, x[path], path)
    result = Classifier(whole).evaluate()
    assert result["accuracy"] == summary["test_accuracy"]
    losses = [
        row["train/loss"] for row in read_jsonl(whole / "metrics.jsonl") if "train/loss" in row
    ]
    assert losses[-1] < losses[0] - 0.5


def test_a_resumed_run_equals_an_uninterrupted_one(whole, tmp_path):
    run(tmp_path, train__epochs=3.0, **FREE)
    folder = run(tmp_path, train__epochs=6.0, **FREE)
    states = (last_state(f) for f in (whole, folder))
    (params, averages, z), found = (
        (flat(s["params"]), flat(s["ema"]["params"]), flat(find_z(s))) for s in states
    )
    for one, other in zip((params, averages, z), found, strict=True):
        for path in one:
            np.testing.assert_array_equal(one[path], other[path], path)


def test_averages_start_from_given_weights(whole, tmp_path):
    """Also z, which is in the optimizer state: a learning rate of 0 moves nothing."""
    keys = FREE | dict(optim__learning_rate=0.0, freeze="head", train__epochs=1.0)
    folder = run(tmp_path, init_from=str(whole), **keys)
    before, after = (pretrained.load(f).arrays for f in (whole, folder))
    for path, array in before.items():
        np.testing.assert_allclose(after[path], array, rtol=1e-5, atol=1e-7)
    z = find_z(last_state(folder))
    np.testing.assert_array_equal(z["head"]["kernel"], before["head/kernel"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optim__schedule": "cosine"}, "set optim.schedule=constant, not cosine"),
        ({"optim__b1": 0.0}, "needs an optim.b1 of at least 0.1"),
        ({"optim__ema_decay": 0.9}, "which averages weights itself"),
        ({"optim__layer_decay": 0.5}, "optim.layer_decay=0.5 cannot be combined"),
        ({"model__name": "resnet18"}, "running statistics of BatchNorm"),
        ({"optim__lion_b1": 0.5}, "no effect with optim.name=schedule_free_adamw"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        make_config(**FREE | overrides)
