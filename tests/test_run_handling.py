"""Runs resume after kills and moves; statistics of micro-batches; what is written for users."""

import contextlib
import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_configs import make_config
from tiny_net import Net
from tiny_runs import run_configs
from tiny_stop import Stop
from tiny_sweep import summary
from tiny_weights import save_weights

from vit_jax import pretrained
from vit_jax.cli import predict, visualize
from vit_jax.cli.hooks import ReportHooks
from vit_jax.cli.train import Results
from vit_jax.data import decoded, load_data
from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.explanation.attribution import explanation
from vit_jax.explanation.figures import Viewer
from vit_jax.explanation.model import Model
from vit_jax.models import has_cls
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError, describe_error
from vit_jax.storage import checkpoint, run_folder
from vit_jax.storage.writers import read_jsonl
from vit_jax.training import clock, optim
from vit_jax.training.hooks import Hooks
from vit_jax.training.rows import make_row
from vit_jax.training.setup import make_setup, one_image
from vit_jax.training.step import make_init, make_train_step
from vit_jax.training.variants import make_variants

RESNET = dict(model__name="resnet18", augment__kind="none")
SHORT = dict(train__batch_size=256, train__epochs=1.0, log__tensorboard=False)


pytestmark = pytest.mark.usefixtures("one_device")


def run(workdir, hooks=None, stop=None, **overrides):
    """Train the variant "base" in this process; return the folder of its first run."""
    config = make_config(**SHORT | overrides)
    if config.init_from:  # which defines what make_config sets
        for key in ("patch_size", "hidden_size", "depth", "num_heads", "mlp_dim"):
            config.model[key] = 0
        config.data.image_size = 0
    variants = make_variants(config, {}, set())
    stop = stop or Stop()
    # The folders of other tests lie next to the workdir.
    run_configs(variants, workdir, stop, hooks=hooks, reuse=False)
    return workdir / "base" / "seed_0"


@pytest.fixture(scope="module")
def digits(one_device):
    return load_data(make_config().data, sharding.make_mesh())


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
    record = json.loads((moved / "config.json").read_text())
    record["data"]["classes"][0] = "nought"  # another head would be loaded, with the same arrays
    (moved / "config.json").write_text(json.dumps(record))
    (moved / "SHA256SUMS").unlink()
    for other in (str(weights[1]), str(moved), ""):
        with pytest.raises(UserError, match=rf"present ones \({other or 'no init_from'}\)"):
            run(runs, init_from=other, train__epochs=2.0, **rates)


def test_new_seeds_are_not_averaged_with_lengthened_ones(weights, tmp_path):
    """Their learning rate decays once, that of a lengthened run twice."""
    with pytest.raises(
        UserError, match="of .*seed_0 decays twice, .* first train that seed .*--config.seed=1"
    ):
        run(weights[0].parents[1], train__epochs=2.0, train__num_seeds=2)
    # Killed while it was lengthened: the settings are those of the longer run.
    folder = shutil.copytree(weights[0].parents[1], tmp_path / "runs") / "base" / "seed_0"
    record = json.loads((folder / "config.json").read_text())
    record["config"]["train.epochs"] = 2.0
    record["stages"] = [json.loads((folder / "summary.json").read_text())]
    (folder / "config.json").write_text(json.dumps(record))
    for name in ("summary.json", "SHA256SUMS"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="decays twice"):
        run(folder.parents[1], train__epochs=2.0, train__num_seeds=2)


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


def test_subsets_of_val_and_test_are_stratified_and_limit_the_features(tmp_path, capsys):
    sizes = {"train": 600, "val": 40, "test": 30}
    keys = {f"data__{split}_examples": count for split, count in sizes.items()}
    config = make_config(**keys).data
    splits = make_splits(open_source(config), config)
    whole = make_splits(open_source(config), make_config().data)
    for split, count in sizes.items():
        labels = getattr(splits, split).labels
        assert len(labels) == count and np.ptp(np.bincount(labels)) <= 3
    assert len(whole.test) == 359
    one, two = (s.test.read([i])[0][0] for s, i in ((splits, 0), (splits, 29)))
    rest = [image for image, _ in whole.test.read(range(359))]
    assert all(any(np.array_equal(a, b) for b in rest) for a in (one, two))
    folder = run(tmp_path, freeze="head", augment__kind="none", **keys)
    assert "computing the features of 670 images" in capsys.readouterr().out
    assert json.loads((folder / "test_report.json").read_text())["count"] == 30
    assert Classifier(folder).evaluate()["count"] == 30
    with pytest.raises(UserError, match="data.val_examples=999, but only 144 are left in val"):
        run(tmp_path / "b", data__val_examples=999)


def test_variants_share_the_features_of_a_frozen_trunk(tmp_path, capsys):
    config = make_config(**SHORT, freeze="head", augment__kind="none")
    sweep = {f"rate_{rate}": {"optim.learning_rate": rate} for rate in (0.1, 0.2)}
    variants = make_variants(config, sweep, set())
    run_configs(variants, tmp_path, sweep=sweep, reuse=False)
    assert capsys.readouterr().out.count("computing the features") == 1
    one, two = (
        json.loads((tmp_path / name / "seed_0" / "summary.json").read_text()) for name in sweep
    )
    assert one["train_accuracy"] != two["train_accuracy"]


def test_files_have_the_permissions_of_the_umask(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded, "SLOW_SECONDS", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0o027)
    try:
        for kind, name in (("timm", "timm"), ("hf", "hf"), ("npz", "a.npz")):
            pretrained.export(pretrained.load(weights[0]), kind, tmp_path / name)
        pretrained.save(pretrained.convert(tmp_path / "a.npz", {}), tmp_path / "converted")
        decoded.cached("name", lambda: (np.zeros(3),))
        run(tmp_path / "runs", ReportHooks(), log__explain_images=2)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_a_model_of_one_patch_is_reported_without_explanations(tmp_path):
    found = run(tmp_path / "runs", ReportHooks(), log__explain_images=2, model__patch_size=8)
    assert (tmp_path / "runs" / "report.html").exists()
    assert not (found / "figures" / "explanation").exists()


def test_a_chosen_class_of_own_images_is_explained(tmp_path, capsys):
    source = save_weights(tmp_path / "vit", num_classes=3, model__depth=2)
    resnet = save_weights(tmp_path / "r", model__name="resnet18", model__hidden_size=4)
    image = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(image)
    base = [str(source), "attention_rollout", "--images", str(image)]
    found = []
    for target in ("class 0", "class 1"):
        out = tmp_path / target
        assert visualize.main([*base, f"--target={target}", f"--out={out}"]) == 0
        found.append((out / "attention_rollout" / "attention_rollout.png").read_bytes())
    assert found[0] != found[1]
    model = Model(source)
    seen = Viewer.of(model).see(model.variables, model.read_images([image]), ["image"], 1)
    assert seen.predictions[0].split("\n")[1].startswith("class 1 ")
    maps = explanation(
        "gradient rollout",
        seen.inside["attention"],
        seen.gradients,
        model.grid,
        has_cls(model.config.model),
    )
    np.testing.assert_allclose(maps, model.explain([image], target="class 1"), rtol=1e-5)
    capsys.readouterr()
    own = ["--images", str(image), "--target=class 1", f"--out={tmp_path / 'o'}"]
    for arguments, message in (
        ([*base, "--target=horse"], "target='horse' is not a class"),
        ([str(source), "feature_maps", *own], "no effect on feature_maps: draw explanations"),
        ([str(resnet), *own], "no effect on kernels, feature_maps"),
        ([str(source), str(source), *own], "no effect on the comparison"),
    ):
        assert visualize.main(arguments) == 1
        assert message in capsys.readouterr().err


def test_errors_list_the_runs_near_a_path_that_is_none(weights, tmp_path, capsys):
    for name in ("photos/base/seed_0", "photos/deep/seed_1", "pets/base/seed_0"):
        shutil.copytree(weights[0], tmp_path / name)
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    for missing, near in (
        ("photos/base/seed_1", "photos/base/seed_0"),
        ("photos/bse/seed_0", "photos/base/seed_0"),
        ("photo/base/seed_0", "photos/base/seed_0"),
        ("pet/seed_0", "pets/base/seed_0"),
        ("photos/deep", "photos/deep/seed_1"),
        ("pets", "pets/base/seed_0"),
    ):
        for main, arguments in ((predict.main, [image]), (visualize.main, [])):
            if (tmp_path / missing).exists() and main == visualize.main:
                continue
            assert main([str(tmp_path / missing), *map(str, arguments)]) == 1
            assert f"did you mean {tmp_path / near}" in capsys.readouterr().err, missing
    with pytest.raises(UserError, match=f"there is {tmp_path / 'pets/base/seed_0'}"):
        Classifier(tmp_path / "pets" / ("x" * 200))


class Killed(BaseException):
    """A stand-in for SIGKILL."""


class KillAt(Hooks):
    """Kill a run after a step."""

    def __init__(self, step):
        self._step = step

    def on_event(self, event, step):
        """Raise Killed."""
        if event == "step" and step == self._step:
            raise Killed


def results_of(folder):
    clock = ("wall_seconds", "images_per_second", "train/images_per_second")
    rows = read_jsonl(folder / "metrics.jsonl")
    rows.append(json.loads((folder / "summary.json").read_text()))
    rows = [{key: value for key, value in row.items() if key not in clock} for row in rows]
    return rows, checkpoint.load_run(folder / "checkpoints", "last")[1]


@pytest.mark.parametrize("vectorised", ["never", "always"])
def test_checkpoints_by_time_resume_exactly(vectorised, tmp_path, capsys):
    """An epoch has five steps; the time between checkpoints is over after every step."""
    settings = dict(
        train__epochs=2.0,
        train__num_seeds=1 + (vectorised == "always"),
        train__vmap_seeds=vectorised,
        train__multi_step="never",
        log__every_steps=2,
    )
    whole = run(tmp_path / "whole", train__save_every_minutes=0.0, **settings)
    assert sorted(os.listdir(whole / "checkpoints")) == ["10", "5"]
    folder = tmp_path / "b" / "killed" / "base" / "seed_0"
    for step in (3, 7):
        with pytest.raises(Killed):
            run(tmp_path / "b" / "killed", KillAt(step), train__save_every_minutes=1e-9, **settings)
        assert run_folder.last_saved_step(folder) == step
    assert "5" in os.listdir(folder / "checkpoints")  # the best one
    capsys.readouterr()
    run(tmp_path / "b" / "killed", **settings)
    assert "resuming from step 7" in capsys.readouterr().out
    for seed in range(settings["train__num_seeds"]):
        one, other = (f.with_name(f"seed_{seed}") for f in (folder, whole))
        assert results_of(one) == results_of(other)


def test_steps_that_become_slow_delay_no_checkpoint(monkeypatch, tmp_path):
    """The first estimate is of a prefetched batch; log entries measure the speed again."""
    estimates = iter([1000, 0])
    monkeypatch.setattr(clock.Clock, "steps_in", lambda self, seconds: next(estimates, 1000))
    settings = dict(train__epochs=2.0, train__multi_step="never", log__every_steps=2)
    with pytest.raises(Killed):
        run(tmp_path, KillAt(4), train__save_every_minutes=1.0, **settings)
    assert run_folder.last_saved_step(tmp_path / "base" / "seed_0") == 3


def test_a_signal_in_the_closing_evaluation_loses_no_finished_work(tmp_path):
    """The process may end at once there, also in compiled code: see test_signals.py."""

    class Stopping(Stop):
        may_end = False

        @contextlib.contextmanager
        def immediate(self):
            self.may_end = True
            yield
            self.may_end = False

    class Stopper(Hooks):
        seen = 0

        def on_event(self, event, step):
            if event == "save":
                assert not stop.may_end
            if event == "final_evaluation":
                assert stop.may_end
                self.seen += 1
                stop.number = 15 * (self.seen == 2)  # at the second seed

    settings = dict(train__num_seeds=2, train__vmap_seeds="always")
    stop = Stopping()
    with pytest.raises(SystemExit):
        run(tmp_path, Stopper(), stop, **settings)
    first, second = (tmp_path / "base" / f"seed_{seed}" / "summary.json" for seed in (0, 1))
    finished = first.read_bytes()
    assert run_folder.last_saved_step(second.parent) == 5 and not second.exists()
    run(tmp_path, **settings)
    assert first.read_bytes() == finished and second.exists()


def norm_step(micro_batches):
    """Take a training step of a network with BatchNorm; return the statistics before and after."""
    config, model = make_config(augment__kind="none", optim__name="sgd"), Net()
    optimizer = optim.make_optimizer(config.optim, lambda step: 0.1)
    state = make_init(model, optimizer, config)(jax.random.key(0), one_image(config))
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
    batch = {"image": images, "label": np.arange(32, dtype=np.int32) % 10}
    step = make_train_step(model, optimizer, config, micro_batches=micro_batches)
    after = jax.jit(step)(state, jax.random.key(1), batch)
    return [s.batch_stats["BatchNorm_0"]["mean"] for s in (state, after)]


def test_running_statistics_are_updated_once_per_batch():
    (_, whole), (_, parts) = norm_step(1), norm_step(8)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert np.abs(whole).max() > 1e-3


def test_micro_batches_too_small_for_batch_norm_are_refused(digits):
    def setup(batch, micro_batches, **overrides):
        sizes = dict(train__batch_size=batch, train__accumulation_steps=micro_batches)
        return make_setup(make_config(**RESNET | sizes | overrides), digits, sharding.make_mesh())

    for batch, micro_batches, best in ((64, 32, 8), (60, 30, 6), (8, 8, 1)):
        with pytest.raises(UserError, match=f"needs 8: use train.accumulation_steps={best}$"):
            setup(batch, micro_batches)
    setup(64, 8)
    setup(64, 32, freeze="head")  # its norms use running statistics
    setup(4, 1)
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: full")
    assert "for a ViT, raise train.accumulation_steps" in describe_error(full, training=True)


def test_the_devices_that_have_started_fit_the_batch():
    """In a notebook, of eight devices, four divide a batch of 20."""
    assert len(sharding.choose_devices(0, 20)) == 4 and len(sharding.choose_devices(8, 64)) == 8
    with pytest.raises(UserError, match="cpu_devices=3, but JAX has started with 8 CPU devices"):
        sharding.choose_devices(3, 60)
