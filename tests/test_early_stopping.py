"""Early stopping: the evaluation that ends a run, resuming, and what is reported."""

import json

import jax
import numpy as np
import pytest
from tiny_configs import make_config
from tiny_runs import last_state, run_configs
from tiny_stop import Stop

from vit_jax.cli.hooks import ReportHooks
from vit_jax.runtime.errors import UserError
from vit_jax.storage.writers import read_jsonl
from vit_jax.training.hooks import Hooks
from vit_jax.training.variants import make_variants

pytestmark = pytest.mark.usefixtures("one_device")


def run(workdir, hooks=None, stop=None, **overrides):
    """Train in this process; return the folder of the run."""
    settings = dict(
        augment__kind="none",
        optim__name="sgd",
        optim__learning_rate=1.0,
        train__epochs=0.0,
        train__steps=60,
        train__batch_size=256,
        train__eval_every_epochs=0.0,
        train__eval_every_steps=2,
        train__stop_after_evaluations=2,
        log__tensorboard=False,
        log__every_steps=1,
        log__explain_images=0,
    )
    variants = make_variants(make_config(**settings | overrides), {}, set())
    stop = stop or Stop()
    run_configs(variants, workdir, stop, hooks=hooks, reuse=False)
    return workdir / "base" / "seed_0"


def log_entries(folder):
    clock = ("wall_seconds", "train/images_per_second")
    entries = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in entry.items() if k not in clock} for entry in entries]


def accuracies(folder):
    entries = log_entries(folder)
    return {e["step"]: e["val/accuracy"] for e in entries if "val/accuracy" in e}


def summary_of(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("wall_seconds", "images_per_second")}


class Killed(BaseException):
    """The end of a killed process."""


class Killer(Hooks):
    """Ends the run at an event of a step, without saving."""

    def __init__(self, event, step):
        self.moment = event, step

    def on_event(self, event, step):
        if (event, step) == self.moment:
            raise Killed


@pytest.fixture(scope="module")
def stopped(one_device, tmp_path_factory):
    """The folder of a run that stopped early, with a report."""
    return run(tmp_path_factory.mktemp("stopped"), ReportHooks())


def test_a_run_without_improvement_ends_after_so_many_evaluations(tmp_path, capsys):
    """Without learning, the first evaluation, at step 2, is the best: two more follow it."""
    folder = run(tmp_path, optim__learning_rate=0.0)
    (best,) = set(accuracies(folder).values())
    assert list(accuracies(folder)) == [2, 4, 6]
    summary = summary_of(folder)
    assert (summary["steps"], summary["epochs"]) == (6, 6 / 5)
    reason = f"no val accuracy above {best:.4f}, that of step 2, in 2 evaluations"
    assert summary["stopped_early"] == reason
    assert f"base seed 0: stopped early at step 6: {reason}\n" in capsys.readouterr().out


def test_a_run_ends_at_the_evaluation_that_its_accuracies_imply(stopped, tmp_path):
    whole = run(tmp_path, train__stop_after_evaluations=0)
    best, since, end = -1.0, 0, 60
    for step, accuracy in accuracies(whole).items():
        best, since = (accuracy, 0) if accuracy > best else (best, since + 1)
        if since == 2:
            end = step
            break
    assert 6 < end < 60, "the test needs a run that improves, then stops early"
    assert "stopped_early" not in summary_of(whole)
    until = [entry for entry in log_entries(whole) if entry["step"] <= end]
    assert log_entries(stopped) == until
    summary = summary_of(stopped)
    assert summary["steps"] == end and summary["best_step"] == max(
        accuracies(stopped), key=lambda step: (accuracies(stopped)[step], step)
    )
    assert summary["pflop"] == pytest.approx(summary_of(whole)["pflop"] * end / 60)


@pytest.mark.parametrize("event", ["evaluate", "final_evaluation"])
def test_a_killed_run_ends_bit_identical(stopped, tmp_path, event):
    end = summary_of(stopped)["steps"]
    with pytest.raises(Killed):
        run(tmp_path, Killer(event, end))
    again = run(tmp_path)
    assert summary_of(again) == summary_of(stopped)
    assert log_entries(again) == log_entries(stopped)
    jax.tree.map(np.testing.assert_array_equal, last_state(again), last_state(stopped))


def test_a_signal_before_the_end_changes_nothing(stopped, tmp_path):
    class Signal(Hooks):
        def on_event(self, event, step):
            if event == "step" and step == 5:
                stop.number = 15

    stop = Stop()
    with pytest.raises(SystemExit):
        run(tmp_path, Signal(), stop)
    again = run(tmp_path)
    assert summary_of(again) == summary_of(stopped)
    jax.tree.map(np.testing.assert_array_equal, last_state(again), last_state(stopped))


def test_the_report_names_the_reason(stopped):
    summary, workdir = summary_of(stopped), stopped.parents[1]
    sentence = f"base, seed 0, stopped early at step {summary['steps']} "
    for name in ("results.md", "report.html"):
        text = (workdir / name).read_text()
        assert sentence in text and summary["stopped_early"] in text


def test_a_run_that_may_stop_early_cannot_be_lengthened(stopped):
    with pytest.raises(UserError, match="train.stop_after_evaluations=2 cannot be lengthened"):
        run(stopped.parents[1], train__steps=80)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train__eval_every_epochs": 0.0}, "stop_after_evaluations=1 needs evaluations"),
        ({"freeze": "none_trained"}, "has no effect with freeze=none_trained"),
        ({"train__num_seeds": 2, "train__vmap_seeds": "always"}, "stop_after_evaluations=1: use"),
    ],
)
def test_settings_without_evaluations_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_config(train__stop_after_evaluations=1, **settings)
