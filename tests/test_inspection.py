"""Figures and JSON files of the analysis of a model, from `vit-jax visualize`."""

import json

import numpy as np
import pytest
from PIL import Image
from test_visualize import drawn
from tiny_runs import run
from tiny_weights import save_weights

import vit_jax
from vit_jax.cli import visualize

pytestmark = pytest.mark.usefixtures("one_device")

ANALYSES = {
    "ablation/ablation.png",
    "logit_lens/layers.png",
    "logit_lens/classes.png",
    "logit_lens/patches.png",
    "token_norms/norms.png",
    "token_norms/maps.png",
    "layer_similarity/similarity.png",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), {"two": {"model.depth": 2}})


def test_every_analysis_of_a_run(trained, tmp_path):
    kinds = ["ablation", "logit_lens", "token_norms", "layer_similarity", "probes"]
    out = tmp_path / "f"
    flags = [f"--out={out}", "--count=24"]
    assert visualize.main([str(trained), *kinds, *flags]) == 0
    assert drawn(out) == ANALYSES | {"probes/probes.png"}
    found = {kind: json.loads((out / kind / f"{kind}.json").read_text()) for kind in kinds}
    assert found["ablation"]["images"] == 24 and found["ablation"]["reference"] == "train"
    assert np.shape(found["ablation"]["heads"]["logit_error"]) == (2, 2)
    lens = found["logit_lens"]
    assert lens["accuracy"][-1] == found["ablation"]["accuracy"] and lens["classes"] == "labels"
    assert lens["layers"] == ["embedding", "block 1", "block 2"]
    np.testing.assert_allclose(np.diag(found["layer_similarity"]["cka"]), 1)
    assert found["probes"]["training_images"] == 96
    ridge = found["probes"]["probes"]["class token"]["ridge"]
    assert len(ridge) == 3 and ridge[-1] > ridge[0]


def test_layers_of_two_runs_are_compared(trained, tmp_path):
    out = tmp_path / "f"
    pair = [str(trained), str(trained), "layer_similarity"]
    words = [*pair, f"--out={out}", "--count=8", "--split=val"]
    assert visualize.main(words) == 0
    assert drawn(out) == {"similarity.png"}
    found = json.loads((out / "layer_similarity.json").read_text())
    assert np.shape(found["cka"]) == (3, 3) and found["split"] == "val" and found["images"] == 8


def test_layers_are_compared_on_the_same_validation_images(trained, tmp_path, capsys):
    keys = {"data__val_size": 0.2, "train__steps": 1, "train__epochs": 0.0}
    other = run(tmp_path, {"one": {}}, **keys)
    words = [str(trained), str(other), "layer_similarity", f"--out={tmp_path / 'f'}", "--count=8"]
    assert visualize.main([*words, "--split=val"]) == 1
    assert "different images: give --images" in capsys.readouterr().err
    assert visualize.main(words) == 0


def test_image_files_have_predicted_classes(trained, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    images, _ = vit_jax.load_model(trained).random_images(4)
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    out = tmp_path / "f"
    words = [str(trained), "ablation", "logit_lens", f"--out={out}", "--images", *map(str, paths)]
    assert visualize.main(words) == 0
    assert drawn(out) == {name for name in ANALYSES if name.startswith(("ablation", "logit"))}
    found = json.loads((out / "ablation" / "ablation.json").read_text())
    assert (found["classes"], found["accuracy"], found["images"]) == ("predicted", 1, 4)
    assert found["split"] == found["reference"] == "files"


def test_mistakes_are_single_line_errors(trained, tmp_path, capsys):
    resnet = save_weights(tmp_path / "r", model__name="resnet18", model__hidden_size=4)
    image, photo = ["--images", "no.png"], tmp_path / "photo.png"
    Image.new("L", (8, 8)).save(photo)
    one = two = str(trained)
    for words, message in (
        ([str(resnet), "ablation", *image], "r has no ablation: it has kernels"),
        ([str(resnet), "probes", *image], "r has no dataset, whose labels the probes need"),
        ([one, "probes", *image], "--images has no effect on probes"),
        ([one, "probes", "--split=val"], "--split has no effect on probes"),
        (
            [one, "kernels", "--count=9"],
            "--count has no effect without one of explanation_scores, ablation",
        ),
        ([one, "ablation", "--count=9", *image], "--count has no effect with --images"),
        ([one, "ablation", "--count=1"], "--count=1 must be at least 2"),
        ([one, "ablation", "--images", str(photo)], "the ablation needs at least 2 images"),
        ([one, "layer_similarity", "--count=3"], "layer_similarity needs 4 images, not 3"),
        ([one, two, "ablation", "--out=x"], "except layer_similarity of two runs"),
        ([one, two, "layer_similarity"], "give --out"),
        ([one, "ablation", "--split=all"], "--split"),
    ):
        assert visualize.main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
