"""The measured tables of the documents are those of the runs."""

import importlib.util
import json
import pathlib

import pytest

from vit_jax.runtime.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("tool", ROOT / "scripts" / "write_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accuracy(*values):
    return {"mean": sum(values) / len(values), "std": 0.01, "values": list(values)}


@pytest.fixture
def workdir(tmp_path):
    """The work folder of two variants, one of them with two seeds."""
    rows = []
    for name, seeds, test in (("narrow", 2, 0.5), ("wide", 1, 0.625)):
        row = {"variant": name, "overrides": {}, "seeds": list(range(seeds))}
        row |= {"num_params": 9, "num_trainable_params": 9}
        for split in ("train", "val", "test"):
            row[f"{split}_accuracy"] = accuracy(*[test] * seeds)
        rows.append(row | {"images_per_second": 5.0})
        for seed in range(seeds):
            folder = tmp_path / name / f"seed_{seed}"
            folder.mkdir(parents=True)
            summary = {"seed": seed, "epochs": 3.0, "wall_seconds": 240.0}
            summary["device"] = "2 x cpu (Some CPU)"
            (folder / "summary.json").write_text(json.dumps(summary))
            record = {
                "config": {"train.select": "best"},
                "versions": {"jax": "1.2"},
                "git_commit": "0123456789",
                "data": {"examples": {"train": 80, "val": 10, "test": 10}},
                "notes": ["small"],
            }
            (folder / "config.json").write_text(json.dumps(record))
    command = "python --config=configs/widths.py --config.init_from=/home/me/weights/vit_s,/a/b"
    results = {"experiment": "widths", "command": command, "rows": rows}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_a_work_folder_becomes_a_table(tool, workdir, monkeypatch):
    measured = tool.collect(workdir)
    assert tool.split_config(measured["command"])[0] == "widths"
    monkeypatch.setattr(tool, "read_measured", lambda name: measured)
    lines = tool.write_experiment("widths")
    assert lines[0] == "    python --config=configs/widths.py --config.init_from=weights/vit_s,a/b"
    wide, narrow = (line for line in lines if line.startswith(("| wide", "| narrow")))
    assert wide == "| wide | 62.50 ± 1.00 | 62.50 ± 1.00 | 62.50 ± 1.00 | 9 | 3 | 1 | 4 min |"
    assert narrow.endswith("| 3 | 2 | 4 min |")
    text = "\n".join(lines)
    assert "80 training, 10 validation and 10 test images. Small." in text
    assert "2 CPU cores (Some CPU); JAX 1.2; 12 min for 3 runs" in text
    assert "commit 0123456." in text


@pytest.mark.parametrize("figure", ["curves", "minutes"])
def test_figures_are_written_where_a_document_shows_them(tool, workdir, monkeypatch, figure):
    monkeypatch.setattr(tool, "ROOT", workdir / "project")
    folder = workdir / "project" / "docs" / "results"
    folder.mkdir(parents=True)
    (workdir / "project" / "README.md").write_text("")
    (folder / "widths.md").write_text(f"![Accuracy](widths_{figure}.png)")
    (workdir / "curves.png").write_bytes(b"curves")
    row = {"epoch": 1.0, "wall_seconds": 60.0, "val/accuracy": 0.5}
    for path in workdir.glob("*/seed_*"):
        (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    tool.write_figures(workdir, "widths", tool.collect(workdir)["rows"])
    assert [path.name for path in folder.glob("*.png")] == [f"widths_{figure}.png"]


def test_a_config_may_have_a_second_table(tool, workdir, monkeypatch):
    monkeypatch.setattr(tool, "ROOT", workdir / "project")
    page = workdir / "project" / "docs" / "results" / "widths.md"
    page.parent.mkdir(parents=True)
    (workdir / "project" / "README.md").write_text("")
    page.write_text("".join(f"<!-- results: {n} -->\n<!-- /results -->\n" for n in ("widths", "b")))
    monkeypatch.setattr("sys.argv", ["write_results.py", "--name", "b", str(workdir)])
    tool.main()
    first, second = page.read_text().split("<!-- /results -->\n")[:2]
    assert "| wide |" in second and "| wide |" not in first
    monkeypatch.setattr("sys.argv", ["write_results.py", "--name", "b"])
    with pytest.raises(SystemExit, match="2"):
        tool.main()


def test_one_core_is_no_plural(tool):
    assert tool.hardware("1 x cpu (A)") == "1 CPU core (A)"
    assert tool.hardware("2 x cpu (A)") == "2 CPU cores (A)"


def test_a_folder_without_results_is_refused(tool, tmp_path):
    with pytest.raises(UserError, match="holds no results.json with the command of a run"):
        tool.collect(tmp_path)


@pytest.mark.parametrize("name", ["digits_patch", "digits_ladder"])
def test_an_experiment_run_in_several_goes_becomes_one_table(tool, name):
    whole = tool.read_measured(name)
    parts = []
    for rows in (whole["rows"][1:], whole["rows"][:1]):
        rows = [{key: row[key] for key in row if key != "difference"} for row in rows]
        variants = f" --variants={','.join(row['variant'] for row in rows)}"
        parts.append(whole | {"command": whole["command"] + variants, "rows": rows})
    assert tool.add_variants(*parts) == whole
    assert tool.add_variants(parts[0], parts[0])["command"] == parts[0]["command"]
    seeds = " --config.train.num_seeds=9"
    accuracy = {"mean": 0.5, "std": 0.0, "values": 9 * [0.5]}
    more = [row | {"seeds": list(range(9)), "test_accuracy": accuracy} for row in parts[1]["rows"]]
    added = parts[1] | {"command": parts[1]["command"] + seeds, "rows": more}
    assert tool.add_variants(parts[0], added)["command"] == whole["command"] + seeds
    parts[1]["command"] += " --config.train.epochs=2"
    with pytest.raises(UserError, match="differ from the measured ones: .*train.epochs=2, not"):
        tool.add_variants(*parts)


def test_the_documents_show_the_measured_tables(tool):
    for path in tool.documents():
        assert tool.render(path) == path.read_text(), f"{path.name} is stale: make results"
