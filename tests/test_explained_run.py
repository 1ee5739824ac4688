"""Explanations of a trained run: better than chance, in the report and in TensorBoard."""

import html
import json
import shutil

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vit_jax
from vit_jax.cli import explore, visualize
from vit_jax.report.explorer import read_title

CONFIG = """
from vit_jax.config import presets

def get_config():
    config = presets.digits_vit()
    config.train.epochs, config.train.num_seeds = 10.0, 1
    config.log.figures_every = 2
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, command):
    """Train an experiment with one variant and return its folder."""
    folder = tmp_path_factory.mktemp("explained")
    (folder / "digits.py").write_text(CONFIG)
    arguments = [f"--config={folder / 'digits.py'}", f"--workdir={folder / 'runs'}"]
    done = command("-m", "vit_jax.main", *arguments)
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def test_report_follows_the_number_of_images(workdir, run, command, tmp_path):
    shutil.copytree(workdir, tmp_path / "runs")
    arguments = [f"--config={workdir.parent / 'digits.py'}", f"--workdir={tmp_path / 'runs'}"]
    done = command("-m", "vit_jax.main", *arguments, "--config.log.explain_images=0")
    assert done.returncode == 0 and "already finished" in done.stdout
    assert "heat maps" not in (tmp_path / "runs" / "report.html").read_text()
    assert not (tmp_path / "runs" / "explorer.html").exists()
    assert (run / "figures" / "explanation" / "scores.json").exists()


@pytest.fixture(scope="module")
def run(workdir):
    return workdir / "base" / "seed_0"


def read_scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_explanations_beat_chance_by_more_than_the_error(run):
    assert json.loads((run / "summary.json").read_text())["test_accuracy"] > 0.8
    scores = read_scores(run / "figures" / "explanation")
    assert scores["images"] == 64 and scores["patches"] == 16
    assert scores["fractions"][0] == 0 and scores["fractions"][-1] == 1
    methods = scores["methods"]
    for name in ("rollout", "gradient rollout", "Chefer", "integrated gradients", "RISE"):
        saco = methods[name]["saco"]
        assert saco["gain"] > 2 * saco["gain_error"] > 0 and saco["better"] > 0.7, name
        assert saco["gain_error"] == pytest.approx(saco["gain_std"] / 8)
        assert abs(methods[name]["randomised"]) < 0.5, name
    assert methods["random"]["saco"]["gain"] == 0 and "randomised" not in methods["random"]
    assert abs(methods["random"]["saco"]["auc"]) < 0.15
    assert methods[scores["trusted"]]["saco"]["auc"] > methods["rollout"]["saco"]["auc"] - 1e-6
    assert 0 < scores["residual"] < 0.2
    for name in ("rollout", "gradient rollout"):
        deletion, insertion = (scores["methods"][name][key] for key in ("deletion", "insertion"))
        assert deletion["gain"] > deletion["gain_std"] > 0 and deletion["better"] > 0.8
        assert insertion["gain"] > 0 and insertion["better"] > 0.7
    chance = scores["methods"]["random"]["deletion"]
    rollout = scores["methods"]["rollout"]["deletion"]
    assert rollout["gain"] == pytest.approx(chance["auc"] - rollout["auc"], abs=1e-6)


def test_report_has_the_scores(workdir, run):
    text = (workdir / "report.html").read_text()
    gain = read_scores(run / "figures" / "explanation")["methods"]["gradient rollout"]["deletion"]
    assert (
        f"The explanation to trust is {read_scores(run / 'figures' / 'explanation')['trusted']}"
        in text
    )
    assert f"{gain['gain']:.3f}\N{NO-BREAK SPACE}±" in html.unescape(text)
    assert "heat maps of what base, seed 0 attends to" in text


def test_report_links_the_explorer(workdir, run, tmp_path, command):
    assert 'href="./explorer.html"' in (workdir / "report.html").read_text()
    assert read_title(workdir / "explorer.html") == "digits: base seed 0"
    shutil.copytree(workdir, tmp_path / "runs")
    page = tmp_path / "runs" / "explorer.html"
    assert explore.main([str(run), str(run), f"--out={page}"]) == 0
    assert read_title(page) == "base/seed_0"
    arguments = [f"--config={workdir.parent / 'digits.py'}", f"--workdir={tmp_path / 'runs'}"]
    done = command("-m", "vit_jax.main", *arguments)
    assert done.returncode == 0 and "explorer.html shows base/seed_0: it is kept" in done.stdout
    assert read_title(page) == "base/seed_0"


def test_mistakes_are_the_test_images_of_the_report(workdir, run):
    mistakes = json.loads((run / "test_report.json").read_text())["mistakes"]
    paths = sorted((run / "figures" / "mistakes").glob("*.png"))
    assert mistakes and len(paths) == len(mistakes)
    assert "Most confident mistakes" in (workdir / "report.html").read_text()
    model = vit_jax.load_model(run)
    (probabilities,) = model.predict([paths[0]])
    assert probabilities.argmax() == mistakes[0]["predicted"] != mistakes[0]["label"]
    assert probabilities.max() == pytest.approx(mistakes[0]["probability"], abs=1e-3)


def test_figures_during_training_are_in_tensorboard(run):
    events = EventAccumulator(str(run), {"images": 0})
    events.Reload()
    assert sorted(events.Tags()["images"]) == ["attention_rollout", "similarity"]
    assert [event.step for event in events.Images("similarity")] == [200]  # every second evaluation
    assert events.Images("attention_rollout")[0].width > 100


def test_visualize_scores_and_draws_curves(run, tmp_path):
    out = tmp_path / "figures"
    before = read_scores(run / "figures" / "explanation")
    count = f"--count={before['images']}"
    assert visualize.main([str(run), "explanation_scores", "curves", f"--out={out}", count]) == 0
    again, before = read_scores(out / "explanation_scores")["methods"], before["methods"]
    for name in before:  # same images, hence same scores
        for key in ("saco", "deletion", "insertion"):
            np.testing.assert_allclose(again[name][key]["auc"], before[name][key]["auc"], atol=1e-4)
    assert (out / "curves" / "metrics.png").stat().st_size > 1000
