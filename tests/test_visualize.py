"""Figures and error messages of `vit-jax visualize`."""

import matplotlib.backends.backend_agg
import matplotlib.figure
import numpy as np
import pytest
from golden_files import GOLDEN
from PIL import Image
from tiny_weights import save_weights

from vit_jax import plots
from vit_jax.cli import visualize
from vit_jax.explanation.figures import Viewer
from vit_jax.explanation.model import Model
from vit_jax.plots.results import save


def test_contact_sheet_shows_originals_and_augmented_images(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    flags = ["--config=configs/digits_augment.py", f"--out={path}", "--rows=4", "--draws=2"]
    assert visualize.main(["augment", *flags, "--config.seed=3"]) == 0
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    # 4 rows and 1 + 5 * 2 columns of digits on black, separated by white.
    dark = pixels < 20
    edges = [(np.diff((dark.mean(axis) > 0.05).astype(int)) > 0).sum() for axis in (0, 1)]
    assert edges[0] >= 11 and edges[1] >= 4
    assert pixels[:5].min() == pixels[-5:].min() == 255


def test_contact_sheet_of_a_variant_called_original(tmp_path):
    config = tmp_path / "named.py"
    config.write_text(
        "from vit_jax.config.presets import digits_vit as get_config\n"
        'def sweep():\n    return {"original": {}, "still": {"augment.flip": False}}\n'
    )
    path = tmp_path / "sheet.png"
    assert visualize.main(["augment", f"--config={config}", f"--out={path}", "--draws=1"]) == 0
    with Image.open(path) as image:
        dark = np.asarray(image.convert("L")) < 20
    assert (np.diff((dark.mean(0) > 0.05).astype(int)) > 0).sum() >= 3  # columns


def test_contact_sheet_shows_the_pixels_of_every_variant(tmp_path, monkeypatch):
    config = tmp_path / "sizes.py"
    config.write_text(
        "from vit_jax.config.presets import digits_vit as get_config\n"
        "def sweep():\n"
        '    return {"small": {"augment.kind": "baseline"}, "large": {"data.image_size": 16},\n'
        '            "still": {}, "again": {"data.split_seed": 1}}\n'
    )
    drawn = {}
    monkeypatch.setattr(
        plots, "save_contact_sheet", lambda out, names, groups: drawn.update(groups)
    )
    flags = [f"--config={config}", f"--out={tmp_path / 'sheet.png'}", "--draws=3", "--rows=2"]
    assert visualize.main(["augment", *flags]) == 0
    assert {title: images.shape[1:4] for title, images in drawn.items()} == {
        "original": (1, 8, 8),
        "small": (3, 8, 8),
        "large": (3, 16, 16),
        "still": (3, 8, 8),
    }
    assert (drawn["still"] == drawn["original"]).all()
    assert (drawn["small"] != drawn["original"]).any((2, 3, 4)).mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs"),
        (["augment"], "--config"),
        (["augment", "--config=nowhere.py"], "nowhere.py is not a file"),
        (["augment", "--config=configs/digits_augment.py", "--rows=0"], "--rows=0"),
        (["augment", "--config=configs/digits_augment.py", "more"], "unrecognised argument 'more'"),
        (["augment", "--config=configs/digits_augment.py", "--config.seed=a"], "seed"),
        (["augment", "--config=configs/digits_augment.py", "--config.seeds=1"], "mean seed?"),
        (["augment", "--config=configs/digits_augment.py", "--out=nowhere/a.png"], "nowhere"),
        (["augment", "--config=configs/digits_augment.py", "--out=a.txt"], "ending in .png"),
    ],
)
def test_mistakes_are_single_line_errors(arguments, message, capsys):
    assert visualize.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image_files")
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i}.png")
    return [str(folder / f"{i}.png") for i in range(2)]


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def drawn(folder):
    """List the figures in a folder; each must have a plausible size and contrast."""
    found = set()
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 100, path
            assert np.asarray(image.convert("L")).std() > 5, path
        found.add(str(path.relative_to(folder)))
    return found


OF_ANY_VIT = {
    "attention_rollout/attention_rollout.png",
    "last_layer_attention/last_layer.png",
    "all_layers_attention/all_layers.png",
    "all_layers_attention/attention_distance.png",
    "kernels/first_layer.png",
    "feature_maps/00.png",
    "feature_maps/01.png",
}
SIMILARITY = "positional_embeddings/similarity.png"


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({}, {SIMILARITY}),
        ({"model__pool": "mean", "model__pos_embed": "rope_2d", "model__hidden_size": 24}, set()),
        (
            {
                "model__attention": "differential",
                "model__pos_embed": "learned_2d",
                "model__pool": "cls_mean",
            },
            {SIMILARITY, "last_layer_attention/differential_maps.png"},
        ),
    ],
    ids=["plain", "mean", "differential"],
)
def test_figures_of_a_vit(tmp_path, image_files, settings, more):
    if settings.get("model__pos_embed") == "rope_2d":
        settings |= {"model__num_heads": 3}
    run = str(save_weights(tmp_path / "w", **settings, model__depth=2))
    assert visualize.main([run, f"--out={tmp_path / 'f'}", "--images", *image_files]) == 0
    assert drawn(tmp_path / "f") == OF_ANY_VIT | more


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_methods_are_compared(name, tmp_path, image_files, capsys):
    width = {"model__depth": 1} if name == "vit" else {"model__hidden_size": 4}
    run = str(save_weights(tmp_path / "w", model__name=name, **width))
    base = [run, "explanations", f"--out={tmp_path / 'f'}", "--images", *image_files]
    found = []
    for target in ("class 0", "class 1"):
        assert visualize.main([*base, "--methods", "input_x_gradient", f"--target={target}"]) == 0
        found.append((tmp_path / "f" / "explanations" / "explanations.png").read_bytes())
    assert found[0] != found[1]
    assert visualize.main([*base, "--methods", "input_x_gradient", "--target=1"]) == 0  # its number
    assert (tmp_path / "f" / "explanations" / "explanations.png").read_bytes() == found[1]
    assert drawn(tmp_path / "f") == {"explanations/explanations.png"}
    if name == "resnet18":
        capsys.readouterr()
        assert visualize.main([*base, "--methods", "chefer"]) == 1
        assert "is a resnet18, which has no attention" in capsys.readouterr().err


def test_figures_of_a_weight_file_without_a_head(tmp_path, image_files, capsys):
    bare, whole = (str(GOLDEN / name / "model.safetensors") for name in ("hf_bare", "hf"))
    out = f"--out={tmp_path / 'f'}"
    images = ["--images", *image_files]
    assert visualize.main([bare, out, *images]) == 0
    assert drawn(tmp_path / "f") == OF_ANY_VIT | {SIMILARITY}
    assert visualize.main([bare, whole, f"--out={tmp_path / 'both'}", *images]) == 0
    assert len(drawn(tmp_path / "both")) == 2
    given = [whole, "attention_rollout", f"--out={tmp_path / 'whole'}"]
    assert visualize.main([*given, *images]) == 0
    rollout = "attention_rollout/attention_rollout.png"
    widths = [read(tmp_path / name / rollout).shape[1] for name in ("f", "whole")]
    assert widths[0] < widths[1]  # without gradient rollout
    weights = f"--out={tmp_path / 'weights'}"
    assert visualize.main([bare, "kernels", "positional_embeddings", weights]) == 0
    assert drawn(tmp_path / "weights") == {"kernels/first_layer.png", SIMILARITY}
    inside = ["token_norms", "layer_similarity"]
    assert visualize.main([bare, *inside, out, *images, *image_files]) == 0  # four images
    assert all((tmp_path / "f" / name / f"{name}.json").exists() for name in inside)
    capsys.readouterr()
    for arguments, message in (
        ([bare, *images], "give --out=DIR for the figures of the file"),
        ([bare, "ablation", out, *images], "model.safetensors has no ablation: it has attention"),
        ([bare, "explanations", out, *images], "has no explanations"),
        ([bare, out, *images, "--target=cat"], "has no head"),
        ([bare, "kernels", out, "--methods", "rise"], "has no head"),
        ([bare, out], "has no dataset"),
    ):
        assert visualize.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("num_classes", [3, 0])
def test_figures_of_a_resnet(tmp_path, image_files, num_classes, capsys):
    shape = {"model__name": "resnet18", "model__hidden_size": 4}
    run = str(save_weights(tmp_path / "w", num_classes, **shape))
    flags = [f"--out={tmp_path / 'f'}", "--images", *image_files]
    assert visualize.main([run, *flags]) == 0
    kernels = "kernels/first_layer.png"
    assert drawn(tmp_path / "f") == {kernels, "feature_maps/00.png", "feature_maps/01.png"}
    assert visualize.main([run, "token_norms", *flags]) == 1
    assert "w has no token_norms" in capsys.readouterr().err


def test_models_are_compared_layer_by_layer(tmp_path, image_files):
    runs = [str(save_weights(tmp_path / f"w{d}", model__depth=d)) for d in (1, 2)]
    assert visualize.main([*runs, f"--out={tmp_path / 'f'}", "--images", *image_files]) == 0
    assert drawn(tmp_path / "f") == {"00.png", "01.png"}


def test_many_images_are_seen_as_each_alone(tmp_path):
    model = Model(save_weights(tmp_path / "w", model__depth=1))
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 1), np.uint8)
    viewer = Viewer.of(model)
    together = viewer.see(model.variables, images, ["a"] * 10)
    alone = viewer.see(model.variables, images[9:], ["a"])
    np.testing.assert_allclose(
        together.inside["attention"][0][9:], alone.inside["attention"][0], atol=1e-6
    )
    np.testing.assert_allclose(together.gradients[0][9:], alone.gradients[0], atol=1e-6)
    assert together.predictions[9:] == alone.predictions


def test_mistakes_about_models_are_single_line_errors(tmp_path, image_files, capsys):
    vit = str(save_weights(tmp_path / "vit", model__depth=1))
    resnet = str(save_weights(tmp_path / "r", model__name="resnet18", model__hidden_size=4))
    images = ["--images", image_files[0]]
    for arguments, message in (
        (["kernels"], "give a run, a converted checkpoint or a weight file"),
        ([vit], "has no dataset"),
        ([vit, "rollouts", *images], "rollouts is neither a path nor one of"),
        ([vit, vit, *images], "give --out"),
        ([vit, "kernels", "--methods", "rise"], "--methods has no effect on kernels"),
        ([vit, "kernels", *images], "--images has no effect on kernels"),
        ([vit, "kernels", "--classes", "a"], "--classes has no effect with --images, or without"),
        (
            [vit, "explanations", *images, "--methods", "rollout", "--target=1"],
            "--target has no effect on rollout",
        ),
        ([vit, "curves"], "vit has no curves: it has attention_rollout"),
        ([vit, "--classes", "a", *images], "--classes has no effect with --images"),
        ([vit, f"--out={image_files[0]}", *images], "is not a folder"),
        ([resnet, "attention_rollout", *images], "r has no attention_rollout"),
        ([vit, resnet, f"--out={tmp_path / 'o'}", *images], "has no attention to compare"),
        ([vit, "--images", str(tmp_path / "no.png")], "cannot be read as an image"),
    ):
        assert visualize.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("width", [4, 11])
def test_a_title_fits_its_figure(width, tmp_path):
    figure = matplotlib.figure.Figure(figsize=(width, 3), layout="constrained")
    title = "WIDE Letters, attention of the class token in all heads; " * 4
    save(figure, tmp_path / "figure.png", title)
    canvas = matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    (title,) = figure.texts
    extent = title.get_window_extent()
    assert extent.x0 >= 0 and extent.x1 <= figure.bbox.x1
