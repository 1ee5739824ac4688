"""Workflows: train, fine-tune from the run, evaluate, predict, lengthen."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from golden_files import GOLDEN
from PIL import Image
from sklearn.datasets import load_digits
from tiny_configs import make_config
from tiny_runs import MESH, SHORT, run

from vit_jax import config as settings
from vit_jax import pretrained
from vit_jax.cli import convert, evaluate, predict, visualize
from vit_jax.data import load_data
from vit_jax.data.sources import read_digits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.runtime.errors import UserError
from vit_jax.storage import checkpoint
from vit_jax.storage.writers import read_jsonl
from vit_jax.training.setup import make_setup
from vit_jax.training.variants import make_variants

pytestmark = pytest.mark.usefixtures("one_device")


def weights_of(folder):
    return pretrained.load(folder).arrays


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a finished run that evaluates its EMA weights."""
    return run(tmp_path_factory.mktemp("first"), optim__ema_decay=0.9)


@pytest.fixture(scope="module")
def tuned(first, tmp_path_factory):
    """The folder of a run that trained only a head on the weights of the first."""
    return run(tmp_path_factory.mktemp("tuned"), report=True, freeze="head", init_from=str(first))


def test_a_run_starts_from_the_weights_of_another(first, tuned):
    before, after = weights_of(first), weights_of(tuned)
    best = json.loads((first / "summary.json").read_text())["best_step"]
    state, _ = checkpoint.load_run(first / "checkpoints", best)
    np.testing.assert_array_equal(before["cls"], state["params"]["cls"])  # the EMA weights
    for path, array in before.items():
        assert np.array_equal(array, after[path]) != path.startswith("head/"), path
    summary, of_first = (
        json.loads((folder / "summary.json").read_text()) for folder in (tuned, first)
    )
    assert summary["num_trainable_params"] == 16 * 10 + 10 < summary["num_params"]
    # It starts where the first ended, including the head, as the classes are the same.
    losses = [read_jsonl(folder / "metrics.jsonl")[0]["train/loss"] for folder in (tuned, first)]
    assert losses[0] < losses[1] - 0.2
    assert summary["test_loss"] < of_first["test_loss"]
    text = (tuned.parents[1] / "results.md").read_text()
    assert "170 trained" in text
    record = json.loads((tuned / "config.json").read_text())
    assert record["data"]["weights"]["resize"] == "official"


def test_weights_of_other_splits_of_the_dataset_are_noted(first, tmp_path, capsys):
    other = run(tmp_path, freeze="none_trained", init_from=str(first), data__split_seed=5)
    note = f"init_from={first} was trained on this dataset with data.split_seed=0, not 5"
    assert f"{note}: its training images may include test or" in " ".join(
        capsys.readouterr().err.split()
    )
    assert any(note in one for one in json.loads((other / "config.json").read_text())["notes"])


def test_reports_of_a_run_and_of_its_evaluation_are_equal(tuned, tmp_path, capsys):
    assert evaluate.main([str(tuned), f"--out={tmp_path / 'out'}"]) == 0
    assert "Test report of" in capsys.readouterr().out
    assert evaluate.main([str(tuned), "--split=all"]) == 0
    every = json.loads((tuned / "evaluation" / "all" / "test_report.json").read_text())
    assert every["count"] == 1797
    one, other = (
        json.loads((f / "test_report.json").read_text()) for f in (tuned, tmp_path / "out")
    )
    assert one["count"] == 359
    for key in ("accuracy", "confusion", "classes"):
        assert one[key] == other[key]
    assert one["accuracy"] == json.loads((tuned / "summary.json").read_text())["test_accuracy"]
    assert "Best validation accuracy" in (tuned / "test_report.txt").read_text()
    for path in (tuned / "figures" / "confusion.png", tmp_path / "out" / "confusion.png"):
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_predictions_for_image_files(tuned, tmp_path, capsys):
    digits = load_digits()
    (tmp_path / "more").mkdir()
    for i in range(3):
        pixels = np.rint(digits.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "more" / f"{i}.png")
    single = tmp_path / "more" / "1.png"
    overlay = tmp_path / "overlay"
    flags = [str(single), str(tmp_path / "more"), "--json", f"--overlay={overlay}"]
    assert predict.main([str(tuned), *flags]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [pathlib.Path(a["image"]).name for a in answers] == ["1.png", "0.png", "1.png", "2.png"]
    assert answers[0]["top5"] == answers[2]["top5"] != answers[1]["top5"]
    for answer in answers:
        values = list(answer["top5"].values())
        assert len(values) == 5 and values == sorted(values, reverse=True) and sum(values) <= 1.001
    assert len(list(overlay.glob("*.png"))) == 4
    assert predict.main([str(tuned), str(single)]) == 0
    assert capsys.readouterr().out.count(" %  ") == 5
    for name in ("broken.png", "worse.png"):
        (tmp_path / "more" / name).write_bytes(b"not an image")
    assert predict.main([str(tuned), str(tmp_path / "more")]) == 1
    captured = capsys.readouterr()
    assert captured.out.count(" %  ") == 3 * 5 and captured.err.count("\n") == 1
    assert "broken.png cannot be read" in captured.err and "; 2 of 5 files cannot" in captured.err


def test_converted_weights_are_fine_tuned_at_another_size(tmp_path, capsys):
    weights = tmp_path / "w"
    assert convert.main([str(GOLDEN / "hf" / "model.safetensors"), str(weights)]) == 0
    size = {"data__image_size": 8, "data__channels": 3, "data__mean": (0.5,)}
    folder = run(tmp_path / "t", init_from=str(weights), freeze="last_1_blocks", **size)
    output = capsys.readouterr().out
    assert "1 arrays: Transformer/posembed_input/pos_embedding (1x10x48 to 1x5x48" in output
    assert "Hugging Face" in output and "reset" in output and "loaded" in output
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["model.gelu"], config["model.norm_eps"]) == ("erf", 1e-12)
    assert convert.main([str(folder), str(tmp_path / "back"), "--to=hf"]) == 0
    written = pretrained.convert(tmp_path / "back" / "model.safetensors", {})
    assert written.info["class_names"] == [str(i) for i in range(10)]
    for path, array in weights_of(folder).items():
        np.testing.assert_array_equal(written.arrays[path], array)


LONGER = dict(
    optim__ema_decay=0.9,
    model__dropout_rate=0.1,
    augment__kind="baseline",
    train__eval_every_epochs=5.0,
)


def final_state(folder):
    state, _ = checkpoint.load_run(folder / "checkpoints", "last")
    return pretrained.flat_weights(state["params"], state["batch_stats"])


def test_a_lengthened_run_equals_one_of_that_length(no_figures, tmp_path):
    constant = LONGER | dict(optim__schedule="constant")
    whole = run(tmp_path / "whole", train__epochs=10.0, **constant)
    first = run(tmp_path / "stages", train__epochs=5.0, **constant)
    earlier = json.loads((first / "summary.json").read_text())
    folder = run(tmp_path / "stages", report=True, train__epochs=10.0, **constant)
    found = final_state(folder)
    for path, array in final_state(whole).items():
        np.testing.assert_array_equal(found[path], array, path)
    clock = ("wall_seconds", "train/images_per_second")
    rows = [
        [
            {k: v for k, v in row.items() if k not in clock}
            for row in read_jsonl(f / "metrics.jsonl")
        ]
        for f in (whole, folder)
    ]
    assert rows[0] == rows[1]
    summary = json.loads((folder / "summary.json").read_text())
    assert len(summary["stages"]) == 1 and earlier.items() <= summary["stages"][0].items()
    assert summary["epochs"] == 10 and earlier["epochs"] == 5
    assert {"versions", "git_commit"} <= summary["stages"][0].keys()
    row = json.loads((tmp_path / "stages" / "results.json").read_text())["rows"][0]
    assert [stage["epochs"] for stage in (*row["stages"], row)] == [5, 10]
    text = (tmp_path / "stages" / "results.md").read_text()
    assert "| base, 5 epochs |" in text and "| base, 10 epochs |" in text
    assert "evaluated once per length of a run" in text
    for epochs, message in (
        (5.0, "was trained with train.epochs=10.0, now"),
        (10.001, "adds none"),
    ):
        with pytest.raises(UserError, match=message):
            run(tmp_path / "stages", train__epochs=epochs, **constant)
    (folder / "summary.json").write_text(json.dumps(earlier))  # killed during the second stage
    with pytest.raises(UserError, match="is not finished"):
        pretrained.load(folder)
    with pytest.raises(UserError, match="finish it before lengthening it to 20.0"):
        run(tmp_path / "stages", train__epochs=20.0, **constant)


def test_a_second_stage_follows_the_longer_schedule():
    """The learning rate of a step depends only on the present length of the run."""
    digits, rates = load_data(make_config().data, MESH), {}
    for schedule in ("constant", "cosine", "linear", "step"):
        for epochs in (5.0, 10.0):
            config = make_config(**SHORT | dict(optim__schedule=schedule, train__epochs=epochs))
            schedule_of = make_setup(config, digits, MESH).schedule()
            rates[schedule, epochs] = [float(schedule_of(step)) / 1e-2 for step in (0, 24, 25)]
    assert rates["constant", 10.0] == pytest.approx([1, 1, 1])
    assert rates["cosine", 5.0][1] < 0.01 and rates["cosine", 10.0][2] == pytest.approx(0.5)
    assert rates["linear", 5.0][1] < 0.05 and rates["linear", 10.0][2] == pytest.approx(0.5)
    assert rates["step", 5.0][1] == pytest.approx(0.01)
    assert rates["step", 10.0] == pytest.approx([1, 1, 0.1])


def test_another_dataset_is_evaluated_on_all_its_images(tuned, tmp_path, capsys):
    pixels, labels = read_digits()
    for i in range(40):
        for subfolder in ("flat", "parts/train", "parts/test") if i < 30 else ("flat",):
            folder = tmp_path / subfolder / str(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[i]).save(folder / f"{i}.png")
    few = tmp_path / "few"
    shutil.copytree(tuned, few)
    record = json.loads((few / "config.json").read_text())
    record["config"] |= {"data.train_examples": 600, "data.test_size": 100}
    (few / "config.json").write_text(json.dumps(record))
    (few / "SHA256SUMS").unlink()
    flat = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'flat'}"]
    assert evaluate.main([str(few), *flat, f"--out={tmp_path / 'o'}"]) == 1
    assert "flat has no test split: give split=all" in capsys.readouterr().err
    for subfolder, split, count in (
        ("flat", ["--split=all"], 40),
        ("parts", [], 30),
        ("parts", ["--split=all"], 60),
    ):
        data = ["--config.data.name=folder", f"--config.data.dir={tmp_path / subfolder}"]
        assert evaluate.main([str(few), *data, *split, f"--out={tmp_path / 'o'}"]) == 0
        assert json.loads((tmp_path / "o" / "test_report.json").read_text())["count"] == count
        title = capsys.readouterr().out.partition("Test report of ")[2].splitlines()[0]
        assert ("on all of" in title) == (count != 30)


def replaced(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_mistakes_are_single_line_errors(first, tuned, tmp_path, capsys):
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    for name in ("cat", "dog"):
        for i in range(10):
            shutil.copy(image, tmp_path / "photos" / name / f"{i}.png")
    shutil.copytree(tmp_path / "photos", tmp_path / "worse")
    shutil.copy(tmp_path / "broken.jpg", tmp_path / "worse" / "cat")
    convert.main([str(GOLDEN / "hf_bare" / "model.safetensors"), str(tmp_path / "bare")])
    convert.main([str(GOLDEN / "hf" / "model.safetensors"), str(tmp_path / "whole")])
    other_data = ["--config.data.name=folder", f"--config.data.dir={tmp_path / 'photos'}"]
    worse = [
        other_data[0],
        f"--config.data.dir={tmp_path / 'worse'}",
        f"--out={tmp_path / 'o'}",
        "--split=test",
    ]
    cases = [
        (predict, [first, tmp_path / "broken.jpg"], "cannot be read as an image"),
        (predict, [first, tmp_path / "nowhere"], "neither a file nor a folder"),
        (predict, [first, GOLDEN / "npz"], "holds no image"),
        (predict, [first.parents[1], image], "did you mean"),
        (predict, [tmp_path / "bare", image], "has no head"),
        (predict, [tmp_path, image], "neither a converted checkpoint"),
        (predict, [first, image, f"--csv={image}"], "a.png is the name of an image: name the CSV"),
        (evaluate, [tuned, f"--out={tuned}"], "is the folder of a run, whose own report would be"),
        (evaluate, [tuned, f"--out={image}"], "a.png is not a folder"),
        (evaluate, [tuned, *other_data, "--split=all"], "--out is missing"),
        (
            evaluate,
            [tuned, *other_data, f"--out={tmp_path / 'o'}", "--split=all"],
            "has 2 classes",
        ),
        (evaluate, [tuned, *worse], "cat/broken.jpg cannot be read as an image"),
        (evaluate, [tmp_path / "whole"], "records no dataset"),
        (evaluate, [tuned, "--config.optim.b1=0.5"], "has no effect on an evaluation"),
        (evaluate, [tuned, "--config.data.mean=(0.4,)"], "belongs to the model"),
        (evaluate, [tuned, "--split=some"], "invalid choice"),
        (convert, [first, tmp_path / "x"], "is a folder: give a file, or --to"),
        (visualize, [first, f"--images={tmp_path}"], "is a folder: give the images in it"),
        (predict, [first, image, f"--overlay={image}"], "a.png: File exists"),
        (convert, [GOLDEN / "hf", tmp_path / "x", "--to=timm"], "neither a converted"),
        (convert, [first, tmp_path / "bare", "--to=timm"], "exists already"),
        (
            convert,
            [first, tmp_path / "x", "--to=timm", "--gelu=erf"],
            "writes the settings of SOURCE",
        ),
    ]
    capsys.readouterr()
    for script, arguments, expected in cases:
        assert script.main([str(argument) for argument in arguments]) == 1, expected
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert expected in error, error


def test_a_run_of_an_older_version_gets_defaults_for_new_settings(first, tmp_path):
    older = tmp_path / "older"
    shutil.copytree(first, older)
    record = json.loads((older / "config.json").read_text())
    for key in ("data.eval_crop", "model.qkv_bias", "train.vmap_seeds"):
        del record["config"][key]
    (older / "config.json").write_text(json.dumps(record))
    (older / "SHA256SUMS").unlink()  # not written by older versions
    assert Classifier(older).config == Classifier(first).config
    assert pretrained.read_info(older) == pretrained.read_info(first) | {"source": str(older)}
    for change, expected in (
        ({"config": record["config"] | {"model.newer": 1}}, "unknown config key model.newer in"),
        ({"config": record["config"] | {"model.depth": "x"}}, "takes an integer, not 'x'"),
        (
            {"config": record["config"] | {"model.depth": 10**9}},
            "depth=1000000000 must be at most",
        ),
        ({"config": []}, "config.json is damaged"),
        ({"data": {"classes": [1, 2]}}, "config.json is damaged"),
    ):
        (older / "config.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=expected):
            Classifier(older)


def test_unusable_weights_are_refused(first, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(first, damaged)
    (damaged / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        run(tmp_path / "r", init_from=str(damaged))
    shutil.copy(first / "summary.json", damaged)
    for path in damaged.glob("checkpoints/*/state/ocdbt*/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    for path in damaged.glob("checkpoints/*/state/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="checkpoint in .* is damaged"):
        run(tmp_path / "r", init_from=str(damaged))
    with pytest.raises(UserError, match="neither a converted checkpoint"):
        run(tmp_path / "r", init_from=str(tmp_path))
    base = settings.with_overrides(
        settings.get_config(), {"init_from": str(first), "train.epochs": 1.0}, "a test"
    )
    for key, value in (("model.name", "resnet18"), ("model.hidden_size", 32)):
        with pytest.raises(UserError, match="contradicts the weights"):
            make_variants(settings.with_overrides(base, {key: value}, "a test"), {}, set())


def test_a_run_does_not_resume_with_other_initial_weights(first, tuned):
    record = tuned / "config.json"
    before = record.read_text()
    replaced(record, '"checksum": ', '"checksum": 1')
    sums = record.with_name("SHA256SUMS").read_text()
    record.with_name("SHA256SUMS").unlink()  # which would reveal the change
    (tuned / "summary.json").rename(tuned / "moved.json")
    try:
        with pytest.raises(UserError, match="was started with other"):
            run(tuned.parents[1], freeze="head", init_from=str(first))
    finally:
        record.write_text(before)
        record.with_name("SHA256SUMS").write_text(sums)
        (tuned / "moved.json").rename(tuned / "summary.json")
