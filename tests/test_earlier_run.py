"""This version resumes, evaluates, visualises and exports a run of version 0.1.0.

tests/golden/earlier_run.zip contains a run that commit c91de3c trained for 15 of 20 steps (sweep/),
its config file (earlier.py), and the results of the same run uninterrupted (expected/).
"""

import json
import pathlib
import zipfile

import pytest

GOLDEN = pathlib.Path(__file__).parent / "golden" / "earlier_run.zip"
CLOCK = {"wall_seconds", "train/images_per_second", "images_per_second", "device"}


@pytest.fixture(scope="module")
def resumed(command, tmp_path_factory):
    """Resume the run; return its folder."""
    folder = tmp_path_factory.mktemp("earlier")
    zipfile.ZipFile(GOLDEN).extractall(folder)
    done = command(
        *("-m", "vit_jax.main", f"--config={folder / 'earlier.py'}", f"--workdir={folder}/sweep"),
        "--config.sharding.cpu_devices=1",
    )
    assert done.returncode == 0, done.stderr
    assert "from step 15" in done.stdout
    return folder


def rows(path):
    rows = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def test_it_resumes_to_nearly_the_same_results(resumed):
    """Its last five steps have other draws of dropout than version 0.1.0 had."""
    run, expected = resumed / "sweep/base/seed_0", resumed / "expected"
    for row, same in zip(
        rows(run / "metrics.jsonl"), rows(expected / "metrics.jsonl"), strict=True
    ):
        assert row.keys() == same.keys()
        redrawn = {"train/accuracy", "train/grad_norm"} if row["step"] > 15 else set()
        for key in row.keys() - redrawn:
            assert row[key] == pytest.approx(same[key], rel=1e-4), key
    found, same = (json.loads((f / "summary.json").read_text()) for f in (run, expected))
    for key in same.keys() - CLOCK:
        assert found[key] == (
            same[key] if isinstance(same[key], str) else pytest.approx(same[key], abs=0.01)
        ), key
    assert (resumed / "sweep" / "report.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("scripts/evaluate.py", "RUN"),
        ("scripts/visualize.py", "RUN", "attention_rollout", "--out=OUT"),
        ("scripts/convert_weights.py", "RUN", "OUT.npz", "--to=npz"),
    ],
    ids=["evaluate", "visualize", "export"],
)
def test_commands_accept_the_run(resumed, arguments, command, tmp_path):
    places = {"RUN": str(resumed / "sweep/base/seed_0"), "OUT": str(tmp_path / "out")}
    for name, path in places.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
