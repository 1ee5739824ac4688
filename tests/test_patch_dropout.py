"""Runs that end without patch dropout resume exactly, and their compute is counted."""

import json

import pytest
from tiny_configs import make_config
from tiny_runs import run_configs
from tiny_stop import Stop

from vit_jax.runtime.errors import UserError
from vit_jax.storage import checkpoint
from vit_jax.training.hooks import Hooks

pytestmark = pytest.mark.usefixtures("one_device")

# The run has 10 steps: 8 of them with patch dropout.
SETTINGS = dict(
    augment__kind="none",
    model__patch_size=2,
    model__patch_drop_rate=0.5,
    train__patch_drop_percent=75.0,
    train__num_seeds=2,
    log__tensorboard=False,
    log__explain_images=0,
    log__every_steps=3,
)


class StopAt(Hooks):
    """Ask to stop after a step."""

    def __init__(self, step):
        self.step, self.stop = step, Stop()

    def on_event(self, event, step):
        if event == "step" and step == self.step:
            self.stop.number = 15


def run(workdir, hooks=None, **overrides):
    hooks = hooks or StopAt(-1)
    configs = {"base": make_config(**SETTINGS | overrides)}
    run_configs(configs, workdir, hooks.stop, hooks=hooks)
    return [workdir / "base" / f"seed_{seed}" for seed in (0, 1)]


def results_of(folder):
    clock = ("wall_seconds", "images_per_second", "train/images_per_second")
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    rows = [*rows, json.loads((folder / "summary.json").read_text())]
    rows = [{key: value for key, value in row.items() if key not in clock} for row in rows]
    return rows, checkpoint.load_run(folder / "checkpoints", "last")[1]


@pytest.mark.parametrize("vmap_seeds", ["never", "always"])
def test_a_run_resumes_exactly_before_and_after_the_change(vmap_seeds, tmp_path, capsys):
    keys = dict(train__vmap_seeds=vmap_seeds, train__multi_step="always")
    whole = run(tmp_path / "a" / "whole", **keys)
    capsys.readouterr()
    for step in (3, 8):
        with pytest.raises(SystemExit):
            run(tmp_path / "b" / "killed", StopAt(step), **keys)
    killed = run(tmp_path / "b" / "killed", **keys)
    assert capsys.readouterr().out.count("step without patch dropout") > 0
    for one, other in zip(whole, killed, strict=True):
        assert results_of(one) == results_of(other)


def test_the_compute_is_that_of_both_parts(tmp_path):
    (mixed, _), (dropped, _), (plain, _) = (
        run(
            tmp_path / str(i), **{"model__patch_drop_rate": rate, "train__patch_drop_percent": part}
        )
        for i, (rate, part) in enumerate(((0.5, 75.0), (0.5, 100.0), (0.0, 100.0)))
    )
    mixed, dropped, plain = (
        json.loads((folder / "summary.json").read_text()) for folder in (mixed, dropped, plain)
    )
    steps = plain["steps"]
    assert mixed["pflop"] * steps == pytest.approx(8 * dropped["pflop"] + 2 * plain["pflop"])
    assert mixed["gflop_per_image"] == pytest.approx(mixed["pflop"] * 1e6 / steps / 128)
    assert dropped["pflop"] < 0.65 * plain["pflop"]


def test_a_run_with_a_change_is_not_lengthened(tmp_path):
    run(tmp_path / "runs", train__num_seeds=1)
    with pytest.raises(UserError, match="patch_drop_percent=75.0 cannot be lengthened"):
        run(tmp_path / "runs", train__num_seeds=1, train__epochs=2.0)


def test_a_change_without_patch_dropout_is_refused():
    with pytest.raises(UserError, match="patch_drop_percent=75.0 has no effect with model.patch_d"):
        make_config(train__patch_drop_percent=75.0)
