"""Images of every mode, depth and format are read right, or refused with a remedy."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_datasets import settings, write_tfds
from tiny_images import (
    encode,
    folder_config,
    grey,
    noise,
    png16,
    read,
    save_image,
    save_noise,
    tfds_config,
    tiny_training,
    train_on_noise,
)
from tiny_weights import save_weights

import vit_jax
from vit_jax.cli import predict
from vit_jax.data import load_data
from vit_jax.data.images import IMAGE_SUFFIXES, decide_range, read_image
from vit_jax.data.sources import open_source
from vit_jax.evaluation.classifier import Classifier
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device", "no_figures")

features = tfds.features


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the classes ant, bee and cat."""
    return train_on_noise(tmp_path_factory.mktemp("run"), ["ant", "bee", "cat"])


# transparency

SHAPE = np.zeros((8, 8, 4), np.uint8)  # black and opaque on the left, transparent black elsewhere
SHAPE[:, :4, 3] = 255


def transparent(kind):
    if kind in ("RGBA", "LA"):
        return Image.fromarray(SHAPE).convert(kind), {}
    if kind == "PA":
        return Image.fromarray(SHAPE).convert("PA"), {}
    image = Image.fromarray(np.where(SHAPE[..., 3] == 0, 1, 0).astype(np.uint8))
    if kind == "palette":
        image = image.convert("P")
        image.putpalette([0, 0, 0, 0, 0, 0])
    return image, {"transparency": 1}


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "transparent grey"])
@pytest.mark.parametrize("background", [(255,), (200, 100, 50)])
def test_transparent_images_are_composited_on_the_background(tmp_path, kind, background):
    save_noise(tmp_path, ["ant", "bee"])
    image, options = transparent(kind)
    image.save(tmp_path / "ant/0.png", **options)
    found = read(tmp_path, background=background)[0]
    colour = background * 3 if len(background) == 1 else background
    assert (found[:, :4] == 0).all() and (found[:, 4:] == colour).all()
    config = settings(background=background)
    path = tmp_path / "ant/0.png"
    classifier = vit_jax.load_model(save_weights(tmp_path / "weights", model__depth=1))
    classifier.config.data.update(config)
    with Image.open(path) as opened:
        for predicted in classifier.read_images([path, opened]):
            np.testing.assert_array_equal(predicted, found)


def test_transparent_images_are_counted_once(tmp_path, mesh, capsys):
    save_noise(tmp_path, ["ant", "bee"], 20)
    for name in ("ant", "bee"):
        Image.fromarray(noise(7, (8, 8, 4))).save(tmp_path / name / "0.png")
        Image.fromarray(noise(8)).convert("RGBA").save(tmp_path / name / "1.png")  # opaque
    data = load_data(folder_config(tmp_path, test_size=2, val_size=2), mesh)
    output = capsys.readouterr().out
    assert output.count("transparent: they are composited on data.background=255") == 1
    assert any("transparent" in note for note in data.notes)


def test_transparency_of_tfds_images_is_composited(tmp_path):
    examples = [{"image": encode(SHAPE), "label": i % 2} for i in range(20)]
    kinds = {
        "image": features.Image(shape=(8, 8, 4)),
        "label": features.ClassLabel(names=["a", "b"]),
    }
    write_tfds(tmp_path, kinds, {"train": examples})
    image, _ = open_source(tfds_config(tmp_path)).examples("train").read([0])[0]
    assert (image[:, :4] == 0).all() and (image[:, 4:] == 255).all()


# more than 8 bits


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)], ids=["grey", "colour"])
@pytest.mark.parametrize(
    ("top", "expected"), [(255, 255), (1000, 1023), (4095, 4095), (40000, 65535), (65535, 65535)]
)
def test_16_bit_images_are_scaled_by_the_range_of_the_dataset(tmp_path, shape, top, expected):
    images = [noise(i, shape, top + 1, np.uint16) for i in range(20)]
    images[0].flat[0] = top
    for i, array in enumerate(images):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        (tmp_path / "ab"[i % 2] / f"{i:02}.png").write_bytes(png16(array))
    source = open_source(folder_config(tmp_path))
    assert source.level_range == (0, expected)
    found = read(tmp_path)[0]
    wanted = images[0].astype(float) * 255 / expected
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    assert (abs(found - wanted) <= 1).all() and found.max() > 100


def test_16_bit_colours_of_an_opened_image_are_read_in_full(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png16(np.full((8, 8, 3), 200, np.uint16)))
    model = vit_jax.load_model(save_weights(tmp_path / "weights", model__depth=1))
    model.config.data.update(channels=3, level_range=(0.0, 255.0))
    with Image.open(path) as opened:
        from_file, from_image = model.read_images([path, opened])
        assert opened.size == (8, 8) and (from_image == from_file).all()
    assert (from_file == 200).all()


def test_a_sample_of_black_images_decides_nothing():
    assert decide_range([np.zeros((8, 8), np.uint16)]) == (0, 65535)


@pytest.mark.parametrize(("low", "high"), [(0, 1.1), (0, 10), (2000, 2100), (-100, 900)])
def test_unusual_floats_are_scaled_by_percentiles(low, high):
    image = np.linspace(low, high, 10_000, dtype=np.float32).reshape(100, 100)
    image[0, 0] = -3e38  # no data
    width = high - low
    found = decide_range([image, image[::-1]])
    np.testing.assert_allclose(found, (low + 0.005 * width, high - 0.005 * width), atol=width / 999)


FLOATS = [((0, 1), (0, 1)), ((-1, 1), (-1, 1)), ((0, 255), (0, 255))]


@pytest.mark.parametrize(("ends", "expected"), FLOATS)
def test_float_images_are_scaled_by_the_range_of_the_dataset(tmp_path, ends, expected):
    save_noise(tmp_path, ["ant", "bee"], 4)
    for name in ("ant", "bee"):
        for i in range(4):
            (tmp_path / name / f"{i}.png").unlink()
            array = np.linspace(*ends, 64, dtype=np.float32).reshape(8, 8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.tiff")
    assert open_source(folder_config(tmp_path)).level_range == expected
    found = read(tmp_path)[0]
    assert found.min() == 0 and found.max() == 255 and 100 < found.mean() < 155


def test_the_range_is_fixed_for_evaluation_and_prediction(tmp_path, capsys):
    """Other photographs are darker: scaled by their own range, they would be brighter."""
    for i in range(40):
        name = "ab"[i % 2]
        for root, top in (("train", 4000), ("dark", 1000)):
            (tmp_path / root / name).mkdir(parents=True, exist_ok=True)
            array = noise(i, (8, 8), top, np.uint16)
            Image.fromarray(array).save(tmp_path / root / name / f"{i}.png")
    config = tiny_training(tmp_path / "train")
    results = vit_jax.train(config, workdir=tmp_path / "runs")
    assert "the levels 0 to 4095 become black to white" in capsys.readouterr().out
    assert "levels 0 to 4095 become" in (results.workdir / "report.html").read_text()
    record = json.loads((results.best_run / "config.json").read_text())
    assert record["config"]["data.level_range"] == [0.0, 4095.0]
    model = vit_jax.load_model(results.best_run)
    images = model.read_images(sorted((tmp_path / "dark/a").iterdir()))
    assert 50 < images.max() < 65
    model.evaluate(tmp_path / "dark", split="all")
    vit_jax.train(config, workdir=tmp_path / "runs")  # accepts the decided setting
    assert "already finished" in capsys.readouterr().out
    bright = tmp_path / "bright.png"
    Image.fromarray(noise(0, (8, 8), 200, np.uint16)).save(bright)
    with pytest.raises(UserError, match="levels end at .* instead of 65535: convert it to 8 bits"):
        read_image(bright, 8, 3)


# formats

SAVED = {".heic": None, ".heif": None}  # if their plugin is installed, it is tested elsewhere


@pytest.mark.parametrize("suffix", [s for s in IMAGE_SUFFIXES if s not in SAVED] + [""])
def test_every_format_is_read_for_training_and_prediction(run, tmp_path, suffix):
    kind = {".jfif": "jpeg", ".jpe": "jpeg", "": "png"}.get(suffix)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(3):
            save_image(grey(100 + i), tmp_path / name / f"{i}{suffix}", kind)
    assert abs(read(tmp_path).astype(int) - 101).max() <= 5
    assert len(predict.list_images([tmp_path])) == 6
    assert Classifier(run).evaluate(tmp_path, split="all")["count"] == 6


def test_the_formats_that_are_met_most_are_read():
    wanted = {".tif", ".tiff", ".ppm", ".pgm", ".jfif", ".avif", ".jp2"}
    assert wanted <= set(IMAGE_SUFFIXES)


def test_files_of_other_formats_are_counted_by_suffix(tmp_path, capsys):
    save_noise(tmp_path, ["ant", "bee"], 2)
    for i in range(20):
        (tmp_path / f"ant/{i}.xcf").write_bytes(b"gimp xcf")
    (tmp_path / "ant/README").write_text("These are ants.")
    open_source(folder_config(tmp_path)).examples("")
    captured = capsys.readouterr()
    assert "ignored 20 files of .xcf, 1 file without a suffix" in captured.out
    assert "one level too high" not in captured.err
    for path in (tmp_path / "ant").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="ant contains no image .*: 20 files of .xcf.*supported"):
        open_source(folder_config(tmp_path)).examples("")
    with pytest.raises(UserError, match="holds no image .*, but 20 files of .xcf"):
        predict.list_images([tmp_path / "ant"])
    assert "one level too high" not in capsys.readouterr().err


def test_the_limit_of_pixels_can_be_set(run, tmp_path, capsys):
    path = tmp_path / "ant/x.png"
    save_noise(tmp_path, ["ant", "bee"], 2)
    Image.new("1", (3000, 2000)).save(path)
    with pytest.raises(UserError, match="if the file is trusted, raise data.max_pixels"):
        read(tmp_path, max_pixels=2_000_000)
    Image.open(path).close()  # what else reads images in this process is not limited
    assert len(read(tmp_path, max_pixels=12_000_000)) == 5
    assert predict.main([str(run), str(path), "--max_pixels=2000000"]) == 1
    assert "raise data.max_pixels" in capsys.readouterr().err
    assert predict.main([str(run), str(path), "--max_pixels=12000000"]) == 0
