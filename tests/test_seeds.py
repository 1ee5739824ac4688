"""Vectorised seeds give the results of separate seeds."""

import dataclasses
import errno
import io
import json
import pathlib

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_configs import make_config
from tiny_net import Net
from tiny_steps import make_steps
from tiny_stop import Stop

from vit_jax import models
from vit_jax.data import ResidentBatches, load_data
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.storage import checkpoint, run_folder
from vit_jax.storage.writers import read_jsonl
from vit_jax.training import clock, loop
from vit_jax.training.hooks import Hooks
from vit_jax.training.seeds import SeedAxis, seed_groups
from vit_jax.training.setup import make_setup, one_image
from vit_jax.training.step import make_train_step

SHORT = dict(
    train__epochs=2.0,  # five steps each
    train__batch_size=256,
    train__eval_batch_size=512,
    model__dropout_rate=0.1,
    optim__name="sgd",
    optim__learning_rate=0.1,
    optim__ema_decay=0.9,
    optim__schedule="reduce_on_plateau",
    optim__plateau_patience=0,
    optim__plateau_threshold=0.9,  # so that every evaluation is a plateau
    log__every_steps=2,
    log__figures_every=2,
)


def make_mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.fixture(scope="module")
def digits():
    return {n: load_data(make_config().data, make_mesh(n)) for n in (2, 4)}


@pytest.fixture(scope="module")
def run(digits):
    """Make a function that trains seeds 0 and 1 in a folder and returns their folders."""
    steps = {
        n: make_steps(make_config(**SHORT), digits[2], make_mesh(2), n, multi_step=None)
        for n in (1, 2)
    }  # traced once

    def train_seeds(workdir, vectorised=True, stop=None, patches=(), hooks=None):
        stop = stop or Stop()
        folders = {seed: workdir / f"seed_{seed}" for seed in (0, 1)}
        with pytest.MonkeyPatch.context() as patch:
            for owner, name, value in patches:
                patch.setattr(owner, name, value)
            for group in [folders] if vectorised else [{k: v} for k, v in folders.items()]:
                loop.train(steps[len(group)], digits[2], group, "base", stop, hooks or ImageHooks())
        return list(folders.values())

    return train_seeds


class ImageHooks(Hooks):
    """Log an image of the head's bias at every second evaluation."""

    def on_evaluation(self, run, trainer, variables, count):
        if count % 2 == 0:
            bias = variables()["params"]["head"]["bias"]
            image = (1000 * np.abs(bias)).astype(np.uint8)[None, :, None]
            run.writer.write_images(trainer.step, {"bias": image})


def log_entries(folder):
    """Read metrics.jsonl without times."""
    clock = ("wall_seconds", "train/images_per_second")
    rows = read_jsonl(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def summary_of(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("wall_seconds", "images_per_second")}


def images_of(folder):
    events = EventAccumulator(str(folder), {"images": 0})
    events.Reload()
    assert [event.step for event in events.Images("bias")] == [10]  # every second evaluation
    with Image.open(io.BytesIO(events.Images("bias")[0].encoded_image_string)) as image:
        return np.asarray(image).tolist()


@pytest.fixture(scope="module")
def vectorised(run, tmp_path_factory):
    """The folders of two vectorised seeds, each on one device."""
    return run(tmp_path_factory.mktemp("vectorised"))


def test_vectorised_seeds_write_the_files_of_separate_seeds(run, vectorised, tmp_path):
    for one, other in zip(vectorised, run(tmp_path, vectorised=False), strict=True):
        rows, found = log_entries(other), log_entries(one)
        assert [row.keys() for row in found] == [row.keys() for row in rows]
        assert {"val/loss", "train/loss"} < set().union(*rows)
        for row, same in zip(found, rows, strict=True):
            assert row == pytest.approx(same, rel=1e-4)
        summaries = [list(summary_of(folder).items()) for folder in (one, other)]
        for (key, value), (_, same) in zip(*summaries, strict=True):
            assert value == (same if isinstance(same, str) else pytest.approx(same, rel=1e-4)), key
        reports = [json.loads((f / "test_report.json").read_text()) for f in (one, other)]
        assert reports[0]["confusion"] == reports[1]["confusion"]
        states = [checkpoint.load_run(f / "checkpoints", "last")[0] for f in (one, other)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *states)
        assert (one / "config.json").exists()
    assert images_of(vectorised[0]) != images_of(vectorised[1])


class Killed(BaseException):
    """A stand-in for SIGKILL."""


def interrupted(run, workdir, moment, step):
    """Run until `step` is half saved, or until a signal in its evaluation or after it."""
    stop, save, saved = Stop(), checkpoint.Checkpoints.save, []

    class Interrupting(ImageHooks):
        def on_event(self, event, at):
            if at == step and event == {"eval": "evaluate", "step": "step"}.get(moment):
                stop.number = 15

    def half_saved(self, at, state, notes, accuracy, lines):
        saved.append(at)
        if moment == "save" and saved.count(step) == 2:  # at the second seed
            raise Killed
        save(self, at, state, notes, accuracy, lines)

    patches = [(checkpoint.Checkpoints, "save", half_saved)]
    with pytest.raises((Killed, SystemExit)):
        run(workdir, stop=stop, patches=patches, hooks=Interrupting())
    folders = [workdir / f"seed_{seed}" for seed in (0, 1)]
    return [run_folder.last_saved_step(folder) for folder in folders]


def test_seeds_saved_at_different_steps_resume_exactly(run, vectorised, tmp_path, capsys):
    saved = [
        interrupted(run, tmp_path, moment, step)
        for moment, step in (("eval", 5), ("save", 5), ("step", 7), ("save", 10))
    ]
    # In the evaluation; between the two saves; both mid-epoch; the first at the end.
    assert saved == [[5, 5], [5, 5], [7, 7], [10, 7]]
    capsys.readouterr()
    for one, other in zip(run(tmp_path), vectorised, strict=True):
        assert log_entries(one) == log_entries(other)
        assert summary_of(one) == summary_of(other)
        states = [checkpoint.load_run(f / "checkpoints", "last") for f in (one, other)]
        assert states[0][1] == states[1][1]  # bit-identical
    assert "base seeds 0-1: resuming from step 7" in capsys.readouterr().out


@pytest.mark.parametrize(("failing", "saved"), [(1, [5, 0]), (2, [10, 5])])
def test_no_seed_continues_after_the_save_of_another_failed(
    run, vectorised, failing, saved, tmp_path
):
    write_sums, begun = checkpoint.write_sums, []

    def full(folder, *args):
        begun.extend(["seed_1"] * ("seed_1" in str(folder)))
        if "seed_1" in str(folder) and len(begun) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_sums(folder, *args)

    with pytest.raises(UserError, match="seed_1/checkpoints: a checkpoint cannot be written"):
        run(tmp_path, patches=[(checkpoint, "write_sums", full)])
    folders = [tmp_path / f"seed_{seed}" for seed in (0, 1)]
    assert [run_folder.last_saved_step(folder) for folder in folders] == saved
    assert not (folders[0] / "summary.json").exists()
    for one, other in zip(run(tmp_path), vectorised, strict=True):
        assert log_entries(one) == log_entries(other)


@pytest.mark.parametrize("vectorised", [True, False], ids=["vectorised", "separate"])
def test_multi_step_dispatch_equals_single_steps(run, vectorised, tmp_path):
    """Log steps are 2, 4, 6, 8 and 10; evaluations are at 5 and 10."""
    found = {}
    for seconds in (0.0, 1000.0):
        calls, batches = [], ResidentBatches.train_at_once

        def counted(*args, calls=calls, batches=batches):
            for count, batch in batches(*args):
                calls.append(count)
                yield count, batch

        patches = [(clock, "CALL_SECONDS", seconds)]
        patches.append((ResidentBatches, "train_at_once", counted))
        folders = run(tmp_path / str(seconds), vectorised, patches=patches)
        found[seconds] = [calls, *map(log_entries, folders)]
    (single, *rows), (multi, *same) = found.values()
    times = 1 if vectorised else 2
    assert single == [1] * 10 * times
    assert multi == [1, 1, 2, 1, 1, 2, 2] * times  # the first two measure the time of a step
    assert rows == same


@pytest.mark.parametrize("devices", [2, 4])
def test_vectorised_batches_are_those_of_each_seed(digits, devices):
    mesh = make_mesh(devices)
    spec = PartitionSpec("data") if devices == 2 else PartitionSpec(None, "data")
    config = make_config(data__device_resident="never").data
    for data in (digits[devices], load_data(config, mesh)):
        both = list(data.train.train((0, 1), 4, 6, 256))
        for seed in (0, 1):
            single = list(data.train.train(seed, 4, 6, 256))
            for one, other in zip(both, single, strict=True):
                assert one["image"].sharding.spec == spec
                own = {key: np.asarray(value)[seed] for key, value in one.items()}
                jax.tree.map(np.testing.assert_array_equal, own, other)


@pytest.mark.parametrize("devices", [2, 4])
def test_a_vectorised_step_equals_that_of_each_seed(digits, devices, monkeypatch):
    """Two devices have two seeds each; four devices shard the batches of two seeds."""
    config = make_config(
        augment__kind="none",
        optim__name="sgd",
        optim__ema_decay=0.9,
        train__accumulation_steps=1,
        train__batch_size=64,
    )
    numbers, mesh = range(4 if devices == 2 else 2), make_mesh(devices)
    monkeypatch.setattr(models, "build", lambda *args: Net())
    train_set, val_set = digits[devices].train, digits[devices].val
    single = make_steps(config, digits[devices], mesh)
    # Statistics of the whole batch, not per device.
    train_step = make_train_step(Net(), single.setup.optimizer(), config)
    single = dataclasses.replace(
        single, train=jax.jit(train_step, out_shardings=sharding.replicated(mesh))
    )
    keys = [jax.random.key(seed) for seed in numbers]
    # On the host, because training donates the state.
    states = [jax.device_get(single.init(key, one_image(config))) for key in keys]

    def trained(steps, numbers):
        state = steps.axis.device_put([states[i] for i in numbers])
        key = steps.axis.stack([keys[i] for i in numbers])
        batches = steps.batches(train_set, list(numbers), 0, lambda step: min(2, 3 - step))
        done = 0
        for count, batch in batches:
            state = sharding.block_on_cpu(steps.train(state, key, batch))
            done += count
            if done == 3:
                break
        results = steps.evaluate(state.eval_variables, val_set.evaluate(64), lambda: False)
        return [steps.axis.take(state, i) for i in range(len(numbers))], results

    separate = [trained(single, [i]) for i in numbers]
    for multi_step in (False, True):
        steps = make_steps(config, digits[devices], mesh, len(numbers), multi_step)
        for own, result, (one, expected) in zip(*trained(steps, numbers), separate, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), own, one[0]
            )
            assert result.accuracy == expected[0].accuracy and result.count == len(val_set)
            assert result.loss == pytest.approx(expected[0].loss, rel=1e-5)
    assert separate[0][1][0].loss != separate[1][1][0].loss
    assert np.abs(one[0].batch_stats["BatchNorm_0"]["mean"]).max() > 0


def test_which_seeds_are_vectorised(digits, tmp_path):
    def grouped(devices=2, **overrides):
        setup = make_setup(make_config(**overrides), digits[devices], make_mesh(devices))
        return [list(group) for group in seed_groups(setup, folders)]

    folders = {seed: pathlib.Path(tmp_path, str(seed)) for seed in (0, 1)}
    vectorised, separate = [[0, 1]], [[0], [1]]
    assert grouped() == vectorised
    assert grouped(devices=4) == separate  # slower if vectorised, on a CPU
    assert grouped(train__vmap_seeds="never") == separate
    assert grouped(model__name="resnet18") == separate
    assert grouped(model__patchify="conv_stem") == separate
    always = dict(train__vmap_seeds="always", train__num_seeds=2)
    assert grouped(devices=4, **always) == vectorised
    (tmp_path / "1" / "checkpoints" / "10").mkdir(parents=True)
    assert grouped(train__eval_every_epochs=1.0) == vectorised
    assert grouped(train__eval_every_epochs=0.5) == separate  # the first seed is far behind
    head = dict(freeze="head", augment__kind="none")
    assert grouped(**head) == separate
    with pytest.raises(
        UserError, match="train.vmap_seeds=always cannot be combined with cached features"
    ):
        grouped(**head, **always)
    (tmp_path / "1" / "config.json").write_text("{}")
    assert grouped(train__eval_every_epochs=1.0) == separate  # the first seed was added later


def test_vectorised_seeds_that_do_not_fit_in_memory_are_an_error(run, tmp_path):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    failing = [(checkpoint.Checkpoints, "save", fail)]
    with pytest.raises(
        UserError, match="too small for 2 vectorised seeds: set train.vmap_seeds=never"
    ):
        run(tmp_path, patches=failing)
    with pytest.raises(jax.errors.JaxRuntimeError):  # for a single seed, main reports it
        run(tmp_path, vectorised=False, patches=failing)


def test_extracting_a_seed_is_bit_exact():
    stacked = SeedAxis(make_mesh(2), 4)
    state = stacked.device_put([np.float32([-0.0, seed]) for seed in range(4)])
    for seed in range(4):
        own = stacked.take(state, seed)
        assert own.sharding.is_fully_replicated and own[1] == seed
        assert np.signbit(own[0])
