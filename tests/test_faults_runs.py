"""Runs resume after kills and moves; statistics of micro-batches; what is written for users."""

import json
import shutil

import jax
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_stop import Stop
from tiny_sweep import summary

from vit_jax.cli.train import Results
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder
from vit_jax.training.sweep import make_row, make_variants, run_sweep

SHORT = dict(train__batch_size=256, train__epochs=1.0, log__tensorboard=False)


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Use one of the eight devices, which is faster here."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda: mesh)
        yield


def run(workdir, hooks=None, stop=None, **overrides):
    """Train the variant "base" in this process; return the folder of its first run."""
    config = make_config(**SHORT | overrides)
    if config.init_from:  # which defines what make_config sets
        for key in ("patch_size", "hidden_size", "depth", "num_heads", "mlp_dim"):
            config.model[key] = 0
        config.data.image_size = 0
    variants = make_variants(config, {}, set())
    run_sweep("demo", variants, {}, {}, workdir, None, stop or Stop(), hooks=hooks)
    return workdir / "base" / "seed_0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folders of two finished runs of different seeds."""
    root = tmp_path_factory.mktemp("weights")
    return [run(root / str(seed), seed=seed).with_name(f"seed_{seed}") for seed in (0, 1)]


def test_the_checksum_of_initial_weights_decides_not_their_path(weights, tmp_path, capsys):
    rates = dict(optim__schedule="constant")
    runs = tmp_path / "runs"
    tuned = run(runs, init_from=str(weights[0]), **rates)
    moved = shutil.copytree(weights[0], tmp_path / "moved")
    capsys.readouterr()
    run(runs, init_from=str(moved), **rates)
    assert "already finished, skipped" in capsys.readouterr().out
    run(runs, init_from=str(moved), train__epochs=2.0, **rates)  # lengthened
    record = run_folder.read_config(tuned)
    assert record["config"]["init_from"] == str(moved) and len(record["stages"]) == 1
    for other in (str(weights[1]), ""):
        with pytest.raises(UserError, match=f"init_from={other or 'nothing'} has other weights"):
            run(runs, init_from=other, train__epochs=2.0, **rates)


def test_stages_of_earlier_versions_are_read(tmp_path):
    stage = summary(0, 0.5) | {"epochs": 5.0, "steps": 15}
    old = summary(0, 0.75) | {"name": "base", "legs": [stage]}
    (tmp_path / "summary.json").write_text(json.dumps(old))
    found = run_folder.read_finished(tmp_path, {})
    assert found["stages"] == [stage] and "legs" not in found
    row = make_row("base", {}, [found])
    row["legs"] = row.pop("stages")
    results = {"experiment": "demo", "rows": [row]}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert "| base, 5 epochs |" in Results.read(tmp_path).table
