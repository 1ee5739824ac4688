"""The Python API on the digits: the snippet of docs/api.md, every kind of image, and errors."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import COMMAND_ENVIRONMENT, ROOT
from golden_files import GOLDEN
from PIL import Image

import vit_jax
from vit_jax import pretrained
from vit_jax.cli import predict
from vit_jax.config import get_config
from vit_jax.data.sources import read_digits
from vit_jax.explanation import analysis, attribution

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")

TINY = {
    "model.hidden_size": 16,
    "model.mlp_dim": 32,
    "train.epochs": 1,
    "train.num_seeds": 1,
    "optim.warmup_epochs": 0.0,
    "train.eval_every_epochs": 1.0,
    "log.explain_images": 0,
}
PIXELS, LABELS = read_digits()
DIGITS = PIXELS[:5, ..., None]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of the snippet's training, in a temporary folder."""
    config = vit_jax.load_config("configs/digits_patch.py", TINY, variant="patch_4")
    return vit_jax.train(config, workdir=tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def model(results):
    return vit_jax.load_model(results.workdir / "patch_4" / "seed_0")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The digits as PNG files."""
    folder = tmp_path_factory.mktemp("digits")
    for i, pixels in enumerate(DIGITS):
        Image.fromarray(pixels[..., 0]).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def test_importing_is_instant_and_changes_nothing(tmp_path):
    code = "import sys, vit_jax; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    code += "; print(set(vit_jax.__all__) <= set(dir(vit_jax)), callable(vit_jax.train))"
    code += "; from vit_jax.explanation import attribution; print(callable(vit_jax.explain))"
    root = pathlib.Path(vit_jax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r}); {code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split("\n")[:3] == ["[]", "True True", "True"]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        vit_jax.trian  # noqa: B018


def test_train_returns_the_rows_of_the_table(results):
    assert [row["variant"] for row in results.rows] == ["patch_4"]
    summary = json.loads((results.best_run / "summary.json").read_text())
    assert results.rows[0]["test_accuracy"]["mean"] == summary["test_accuracy"]
    assert results.best_run == results.workdir / "patch_4" / "seed_0"
    assert results.table in (results.workdir / "results.md").read_text()
    assert results.table in repr(results) and results.table in results._repr_markdown_()
    assert (results.workdir / "report.html").exists()


def test_training_again_reads_finished_runs(results, capsys):
    config = vit_jax.load_config("configs/digits_patch.py", TINY, variant="patch_4")
    assert vit_jax.train(config, results.workdir).rows == results.rows
    assert "already finished, skipped" in capsys.readouterr().out


def test_a_sweep_is_written_in_python_and_its_curves_are_those_of_the_log(tmp_path):
    config = vit_jax.get_config()
    config.data.update(name="digits", image_size=8, channels=1)
    config.augment.kind = "none"
    config.model.update(patch_size=4, hidden_size=16, depth=1, num_heads=2, mlp_dim=32)
    config.train.update(epochs=2.0, num_seeds=2)
    config.log.explain_images = 0
    variants = {"low": {"optim.learning_rate": 1e-4}, "high": {"optim.learning_rate": 1e-2}}
    results = vit_jax.train(vit_jax.Experiment("rates", config, variants), tmp_path)
    assert [row["variant"] for row in results.rows] == list(variants)
    curves = results.curves("val/accuracy")
    assert list(curves) == list(variants)
    for row in results.rows:
        epochs, values = curves[row["variant"]]
        assert epochs.tolist() == [1, 2] and values.shape == (2, 2)
        assert values.max(1).tolist() == row["val_accuracy"]["values"]  # of the best checkpoint
    with pytest.raises(vit_jax.UserError, match="'val/acuracy' was not logged; did you mean val/"):
        results.curves("val/acuracy")


def test_train_works_outside_the_main_thread_and_restores_signal_handlers(tmp_path):
    config = vit_jax.load_config("configs/digits_patch.py", TINY | {"model.patch_size": 4}).config
    before = signal.getsignal(signal.SIGINT)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(vit_jax.train(config, str(tmp_path / "a")))
    )
    thread.start()
    thread.join()
    assert [row["variant"] for row in found[0].rows] == ["base"]
    assert signal.getsignal(signal.SIGINT) is before
    moved = (tmp_path / "a").rename(tmp_path / "b")
    assert vit_jax.train(config, moved).rows == found[0].rows
    assert signal.getsignal(signal.SIGINT) is before


def test_arrays_files_and_pil_images_give_the_probabilities_of_the_command(
    model, results, paths, capsys
):
    found = model.predict(DIGITS)
    assert found.shape == (5, 10)
    np.testing.assert_allclose(found.sum(1), 1)
    pil_images = [Image.open(path) for path in paths]
    texts, mixed = [str(path) for path in paths], [*paths[:2], *DIGITS[2:]]
    for images in (paths, texts, pil_images, list(DIGITS), mixed):
        np.testing.assert_array_equal(model.predict(images), found)
    np.testing.assert_allclose(vit_jax.predict(results.best_run, paths[3]), found[3:4], atol=1e-6)
    for single in (DIGITS[3], DIGITS[3, ..., 0], str(paths[3]), Image.open(paths[3])):
        np.testing.assert_allclose(model.predict(single), found[3:4], atol=1e-6)
    assert predict.main([str(results.best_run), *map(str, paths), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    for answer, best in zip(answers, model.top5(DIGITS), strict=True):
        assert answer["top5"] == pytest.approx(dict(best), abs=1e-6)
        assert list(answer["top5"]) == [name for name, _ in best]
    assert sum(model.predict(PIXELS[:70, ..., None]).argmax(1) == LABELS[:70]) > 7


def test_predict_adds_an_explanation(model, results, paths, tmp_path, capsys):
    base = [str(results.best_run), str(paths[0])]
    flags = ["--json", "--explain=grad_cam", "--target=3", f"--overlay={tmp_path / 'o'}"]
    assert predict.main([*base, *flags]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    expected = model.explain(paths[0], "grad_cam", target="3")[0]
    np.testing.assert_allclose(answer["relevance"], expected, rtol=1e-5)
    with Image.open(tmp_path / "o" / f"0000_{paths[0].stem}.png") as image:
        assert image.width > 2.5 * image.height
    for flags, message in (
        (["--explain=rise"], "--explain has no effect without --overlay or --json"),
        (["--target=3"], "--target has no effect without --explain"),
        (["--json", "--explain=rollout", "--target=3"], "target has no effect with"),
        (["--json", "--explain=lime"], "method='lime' is unknown"),
    ):
        assert predict.main([*base, *flags]) == 1
        assert message in capsys.readouterr().err


def test_larger_images_are_resized_as_in_evaluation(model, tmp_path):
    large = np.random.default_rng(0).integers(0, 256, (20, 13, 1), np.uint8)
    Image.fromarray(large[..., 0]).save(tmp_path / "large.png")
    np.testing.assert_array_equal(model.predict(large), model.predict(tmp_path / "large.png"))
    Image.fromarray(large.repeat(3, 2)).save(
        tmp_path / "colour.png"
    )  # files are converted to greyscale
    found = model.predict(tmp_path / "colour.png")
    np.testing.assert_array_equal(found, model.predict(large))


def test_features_and_attention_have_the_documented_shapes(model, results):
    config = model.config.model
    features = model.features(DIGITS)
    kernel, bias = (np.asarray(model.variables["params"]["head"][k]) for k in ("kernel", "bias"))
    logits = features @ kernel + bias
    assert features.shape == (5, 16) and (model.predict(DIGITS).argmax(1) == logits.argmax(1)).all()
    attention = model.attention(DIGITS)
    assert attention.shape == (5, config.depth, config.num_heads, 5, 5)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    maps = {}
    for method in ("gradient_rollout", "rollout", "last_layer"):
        maps[method] = model.explain(DIGITS, method)
        assert maps[method].shape == (5, 2, 2) and (maps[method] >= 0).all()
    last = attention[:, -1].mean(1)[:, 0, 1:].reshape(5, 2, 2)
    np.testing.assert_allclose(maps["last_layer"], last, atol=1e-6)
    fused = list(attention.swapaxes(0, 1))
    expected = attribution.rollout(fused, "max", 0.5)[:, 0, 1:].reshape(5, 2, 2)
    found = model.explain(DIGITS, "rollout", fusion="max", discard=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (np.abs(model.explain(DIGITS, discard=0.5) - maps["gradient_rollout"]) > 1e-4).any()
    np.testing.assert_array_equal(vit_jax.explain(model, DIGITS), maps["gradient_rollout"])


def test_explanations_follow_the_target(model):
    predicted = model.predict(DIGITS).argmax(1)
    of_prediction = model.explain(DIGITS)
    np.testing.assert_allclose(model.explain(DIGITS, target=predicted), of_prediction, atol=1e-6)
    names = [model.class_names[i] for i in predicted]
    np.testing.assert_allclose(model.explain(DIGITS, target=names), of_prediction, atol=1e-6)
    by_name = model.explain(DIGITS, target="3")
    for target in (3, jax.numpy.array(3)):
        np.testing.assert_array_equal(by_name, model.explain(DIGITS, target=target))
    assert np.abs(by_name - model.explain(DIGITS, target="4")).max() > 1e-4


def test_evaluation_is_that_of_the_run(model, results, tmp_path):
    report = model.evaluate()
    assert report["accuracy"] == results.rows[0]["test_accuracy"]["mean"]
    assert vit_jax.evaluate(results.best_run, split="val")["count"] < report["count"] == 359
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        for i in np.flatnonzero(LABELS == label)[:2]:
            Image.fromarray(PIXELS[i]).save(tmp_path / str(label) / f"{i}.png")
    for folder in (tmp_path, str(tmp_path)):
        assert model.evaluate(folder, split="all")["count"] == 20
    with pytest.raises(vit_jax.UserError, match="has no test split: give split=all"):
        model.evaluate(tmp_path)


def test_other_data_are_evaluated_on_their_own_test_images(results, tmp_path):
    for split, each in (("train", 3), ("test", 1)):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            for i in np.flatnonzero(LABELS == label)[:each]:
                Image.fromarray(PIXELS[i]).save(tmp_path / split / str(label) / f"{i}.png")
    model = vit_jax.load_model(results.best_run)
    model.config.data.test_split = "hold_out"
    assert model.evaluate(tmp_path)["count"] == 10
    shutil.rmtree(tmp_path / "train")  # published for tests only
    assert model.evaluate(tmp_path)["count"] == model.evaluate(tmp_path, "test")["count"] == 10
    with pytest.raises(vit_jax.UserError, match="has only the split test: give split=all"):
        model.evaluate(tmp_path, "val")
    with pytest.raises(vit_jax.UserError, match="data.test_examples has no effect"):
        model.evaluate(tmp_path, overrides={"data.test_examples": 5})


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (DIGITS.astype(np.float32) / 255, "images are float32: give uint8 pixels from 0 to 255"),
        (DIGITS.repeat(3, 3), r"the shape \[8, 8, 3\]: give \[height, width, 1\]"),
        (PIXELS[:5], r"the shape \[5, 8, 8\]"),
        ([], "there are no images"),
        ({"image": DIGITS}, "images are a dict"),
        ([3], "images are int64"),
        ("nowhere.png", "nowhere.png cannot be read as an image"),
    ],
)
def test_invalid_images_are_refused(model, images, words):
    with pytest.raises(vit_jax.UserError, match=words):
        model.predict(images)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m, run: m.explain(DIGITS, "saliency"),
            "use one of gradient_rollout, chefer, rollout, last_lay",
        ),
        (lambda m, run: m.explain(DIGITS, target=10), "target=10 is not a class: use 0 to 9"),
        (lambda m, run: m.explain(DIGITS, target="ten"), "target='ten' is not a class"),
        (
            lambda m, run: m.explain(DIGITS, "integrated_gradients", baseline=np.zeros(3)),
            "must be mean or black",
        ),
        (lambda m, run: m.explain(DIGITS, "rollout", fusion="sum"), "must be mean or max or min"),
        (lambda m, run: m.explain(DIGITS, "rollout", discard=1), "a fraction from 0 to below 1"),
        (lambda m, run: m.explain(DIGITS, "chefer", discard=0.5), "discard is not an option"),
        (lambda m, run: m.explain(DIGITS, "rise", seed=2**70), "at least 0, below 2..32"),
        (lambda m, run: m.explain(DIGITS, target=[1, 2]), "there are 2 targets for 5 images"),
        (lambda m, run: m.explain(DIGITS, "rollout", target=1), "target has no effect with"),
        (lambda m, run: m.evaluate(split="tset"), "use one of train, val, test, all"),
        (lambda m, run: m.evaluate("folder"), "data.name=folder needs data.dir"),
        (lambda m, run: m.evaluate(DIGITS), "data is a ndarray: give a folder or the name"),
        (lambda m, run: vit_jax.train(None), "None is neither an Experiment"),
        (
            lambda m, run: vit_jax.train(vit_jax.Experiment("x", get_config(), ["a"])),
            "neither an Experiment, whose variants are a dict",
        ),
        (
            lambda m, run: m.evaluate(overrides={"data.split_seed": 7}),
            "data.split_seed=7 would split the images of the run differently",
        ),
        (
            lambda m, run: m.evaluate(split="all", overrides={"data.test_examples": 5}),
            "data.test_examples has no effect on an evaluation of all images",
        ),
        (
            lambda m, run: vit_jax.load_model(run, class_names=list("9876543210")),
            "class_names are the classes of .* in another order than it records",
        ),
        (lambda m, run: m.evaluate(pathlib.Path("nowhere")), "data.dir=nowhere is not a folder"),
        (lambda m, run: m.evaluate(overrides={"optim.b1": 0.5}), "optim.b1 has no effect"),
        (lambda m, run: vit_jax.load_model("nowhere"), "nowhere does not exist"),
        (lambda m, run: vit_jax.load_model(run, gelu="erf"), "model.gelu has no effect"),
        (lambda m, run: vit_jax.load_model(run.parents[1]), "did you mean .*patch_4/seed_0"),
        (lambda m, run: vit_jax.train("nowhere.py"), "nowhere.py is not a file"),
        (lambda m, run: vit_jax.train(get_config(), run), "model.hidden_size must be set"),
    ],
)
def test_mistakes_are_single_line_errors(model, results, call, words):
    with pytest.raises(vit_jax.UserError, match=words) as caught:
        call(model, results.best_run)
    assert "\n" not in str(caught.value)


def test_a_notebook_shows_a_mistake_without_a_traceback(command, tmp_path):
    code = "import vit_jax; vit_jax.load_config('nowhere.py')"
    done = command("-m", "IPython", "--no-banner", "-c", code, IPYTHONDIR=str(tmp_path))
    assert done.stdout == "UserError: --config=nowhere.py is not a file\n"


def test_a_weight_file_gives_the_model_of_its_converted_checkpoint(tmp_path):
    file = GOLDEN / "timm" / "model.safetensors"
    with pytest.raises(vit_jax.UserError, match="number of attention heads"):
        vit_jax.load_model(file)
    answers = dict(num_heads=3, gelu="erf", pool="cls", image_size=12)
    model = vit_jax.load_model(str(file), **answers, mean=[0.5, 0.4, 0.3])
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 3), np.uint8)
    given = pretrained.settings_of(answers)
    pretrained.save(pretrained.convert(file, given), tmp_path / "weights")
    converted = vit_jax.load_model(tmp_path / "weights")
    assert model.predict(images).shape == (3, 7)
    assert (
        np.abs(converted.predict(images) - model.predict(images)).max() > 1e-5
    )  # data.mean differs
    same = vit_jax.load_model(file, **answers)
    np.testing.assert_array_equal(same.predict(images), converted.predict(images))
    with pytest.raises(vit_jax.UserError, match="records no dataset"):
        model.evaluate()


def test_weights_without_a_head_have_features_and_attention():
    model = vit_jax.load_model(GOLDEN / "hf_bare" / "model.safetensors", num_heads=3)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    assert model.features(images).shape == (2, 48)
    assert model.attention(images).shape[2:] == (3, 10, 10)
    assert model.explain(images, "rollout").shape == (2, 3, 3)
    for call in (model.predict, model.explain):
        with pytest.raises(vit_jax.UserError, match="has no head"):
            call(images)
    pets = images, ["cat", "dog"]  # classes of no head
    found = analysis.probe_layers(model, pets, pets, pets, k=1)
    assert all(probe["knn"][-1] == 1 for probe in found.values())
    for labels, words in (([0, "dog"], "names and numbers"), ([0], "1 labels for 2 images")):
        with pytest.raises(vit_jax.UserError, match=words):
            analysis.probe_layers(model, pets, pets, (images, labels))


def test_a_resnet_has_no_attention():
    model = vit_jax.load_model(GOLDEN / "resnet18" / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    assert model.predict(images).shape == (2, 7) and model.features(images).shape == (2, 32)
    for call in (model.attention, model.explain):
        with pytest.raises(vit_jax.UserError, match="is a resnet18, which has no attention"):
            call(images)


LONG = TINY | {"train.epochs": 3000}
TRAIN = f"""
import signal, vit_jax
config = vit_jax.load_config("configs/digits_patch.py", {LONG}, "patch_4")
before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
try:
    vit_jax.train(config, WORKDIR)
except KeyboardInterrupt as error:
    print(error, signal.getsignal(signal.SIGINT) is before)
"""


def test_ctrl_c_stops_after_the_step_saved(tmp_path):
    lines = []
    with subprocess.Popen(
        [sys.executable, "-u", "-c", TRAIN.replace("WORKDIR", repr(str(tmp_path)))],
        cwd=ROOT,
        env=os.environ | COMMAND_ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            lines.append(line)
            if "first step after" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert "stopping after this step; press Ctrl-C again to quit now\n" in lines
    *_, stopped, last = lines
    assert "stopped by SIGINT at step" in stopped and "saved" in stopped
    assert last == "training stopped: the same call resumes True\n"
    assert list((tmp_path / "patch_4" / "seed_0" / "checkpoints").glob("[0-9]*"))
