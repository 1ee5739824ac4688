"""The benchmark runs, and says what it measured; how fast is not tested."""

import importlib
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def test_calls_are_measured_in_turns(command, tmp_path):
    script, found = ROOT / "scripts" / "benchmark.py", tmp_path / "found.json"
    options = ("--model=digits_vit", "--batch-size=4", "--rounds=1", f"--json={found}")
    done = command(str(script), "calls", *options)
    assert done.returncode == 0, done.stderr
    assert [line[:10].strip() for line in done.stdout.splitlines()[-2:]] == [
        "one call",
        "many calls",
    ]
    line = json.loads(found.read_text())
    assert (line["mode"], line["model"], line["one call"]["ratio"]) == ("calls", "digits_vit", 1)
    assert line["many calls"]["seconds"] > 0


def test_resnet18_has_nothing_to_explain(command):
    done = command(str(ROOT / "scripts" / "benchmark.py"), "explain", "--model=resnet18")
    assert done.returncode == 2 and "no attention to explain" in done.stderr


def test_operations_are_those_that_the_literature_counts(monkeypatch):
    """DeiT-B, a ViT-B/16 at 224, has 17.5 G multiply-adds (Liu et al. 2021, Swin, Table 1)."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    modes = importlib.import_module("benchmark_modes")
    keys = dict(zip(modes.KEYS, modes.MODELS["vit_b"], strict=True))
    spec = keys | {"model": "vit_b", "num_classes": 1000}
    assert modes.flops_per_image("infer", spec) == pytest.approx(2 * 17.5e9, rel=5e-3)
    assert modes.flops_per_image("step", spec) == 3 * modes.flops_per_image("infer", spec)
    assert modes.flops_per_image("explain", spec) == 0
