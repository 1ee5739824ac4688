"""The benchmark runs and prints what it measures; speeds are not tested."""

import importlib
import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import pytest

from vit_jax.explanation.methods import METHODS
from vit_jax.runtime import sharding

ROOT = pathlib.Path(__file__).parents[1]


def test_multi_step_benchmark_prints_and_appends_its_results(command, tmp_path):
    script, found = ROOT / "scripts" / "benchmark.py", tmp_path / "found.json"
    options = ("--model=digits_vit", "--batch-size=4", "--rounds=1", f"--json={found}")
    done = command(str(script), "calls", *options)
    assert done.returncode == 0, done.stderr
    assert [line[:10].strip() for line in done.stdout.splitlines()[-2:]] == [
        "one call",
        "32 calls",
    ]
    line = json.loads(found.read_text())
    assert (line["mode"], line["model"], line["one call"]["ratio"]) == ("calls", "digits_vit", 1)
    assert line["32 calls"]["seconds"] > 0 and line["batch_size"] == 4


def test_input_benchmark_streams_the_images_that_it_makes(command):
    options = ("--model=digits_vit", "--make-images=40x30", "--scaled-decoding", "--rounds=1")
    done = command(str(ROOT / "scripts" / "benchmark.py"), "input", *options)
    assert done.returncode == 0, done.stderr
    assert "1,022 train, 1 val, 1 test examples, streamed" in done.stdout
    names = ["vit_jax", "without augment", "decoding alone"]
    lines = done.stdout.splitlines()[-3:]
    assert [line[:15].strip() for line in lines] == names
    assert all(line.endswith(" images/s per core") for line in lines)


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--model=resnet18", "use a ViT"), ("--method=saliency", "use gradient_rollout, chefer")],
)
def test_what_explain_cannot_measure_is_an_error(command, argument, message):
    done = command(str(ROOT / "scripts" / "benchmark.py"), "explain", argument)
    assert done.returncode == 2 and message in done.stderr


def test_methods_with_a_peer_are_methods(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    modes = importlib.import_module("benchmark_modes")
    assert set(modes.EXPLAINED_BY_PEERS) < set(METHODS)


def test_flops_per_image_agree_with_the_literature(monkeypatch):
    """DeiT-B, a ViT-B/16 at 224, has 17.5 G multiply-adds (Liu et al. 2021, Swin, Table 1)."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    modes = importlib.import_module("benchmark_modes")
    keys = dict(zip(modes.KEYS, modes.MODELS["vit_b"], strict=True))
    spec = keys | {"model": "vit_b", "num_classes": 1000}
    assert modes.flops_per_image("infer", spec) == pytest.approx(2 * 17.5e9, rel=5e-3)
    embedding = 2 * 14**2 * 16 * 16 * 3 * 768  # needs no gradient of the images
    forward = modes.flops_per_image("infer", spec)
    assert modes.flops_per_image("step", spec) == 3 * forward - embedding
    assert modes.flops_per_image("explain", spec) == 0


@pytest.mark.parametrize("works", [True, False])
def test_parts_of_the_gpu_measurement_that_fail_are_reported(tmp_path, works, monkeypatch):
    """Without a peer's environment; the Python here only succeeds or fails."""
    command = [ROOT / "scripts" / "measure_gpu.sh", tmp_path / "found"]
    environment = os.environ | {"PYTHON": shutil.which("true" if works else "false")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == (not works)
    lines = done.stdout.splitlines()
    assert sum(" failed, or took more than " in line for line in lines) == (0 if works else 6)
    assert sum(line.endswith(" s") for line in lines) == 6
    monkeypatch.syspath_prepend(ROOT / "scripts")
    modes = importlib.import_module("benchmark_modes")
    called = re.findall(r"benchmark\.py (\w+) --model=(\w+)", done.stdout)
    assert len(called) == 5
    assert {mode for mode, _ in called} < set(modes.MODES)
    assert {model for _, model in called} < set(modes.MODELS)


def test_the_gpu_measurement_needs_a_folder():
    done = subprocess.run([ROOT / "scripts" / "measure_gpu.sh"], capture_output=True, text=True)
    assert done.returncode and "usage: scripts/measure_gpu.sh FOLDER" in done.stderr
    assert not done.stdout


def test_a_step_has_a_lower_bound_on_known_devices(one_device, monkeypatch, capsys):
    from vit_jax.runtime import targets

    monkeypatch.syspath_prepend(ROOT / "scripts")
    modes = importlib.import_module("benchmark_modes")
    monkeypatch.setattr(sharding, "start", lambda *arguments: None)
    spec = dict(zip(modes.KEYS, modes.MODELS["digits_vit"], strict=True), model="digits_vit")
    steps, images, _ = modes.make_steps(modes.make_config(spec | {"batch_size": 8}))
    assert modes.lower_bound(steps, len(images)) == {}  # unknown devices
    target = targets.Target("1 x h100", targets.CHIPS["h100"], jax.devices()[:1], {})
    monkeypatch.setattr(targets, "this_machine", lambda: target)
    found = 1000 * modes.lower_bound(steps, len(images))["bound_seconds"]
    assert f"lower bound on 1 x h100: {found:.2f} ms (FLOPs" in capsys.readouterr().out
