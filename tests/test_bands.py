"""Images of any number of channels: TIFF files and stacks, .npy arrays, pretrained kernels."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_bands import save_scenes, scene, tiff
from tiny_configs import make_config
from tiny_images import folder_config, png16, tfds_config
from tiny_runs import last_state, run
from tiny_weights import save_weights

import vit_jax
from vit_jax import pretrained
from vit_jax.augment import augment
from vit_jax.cli.visualize import main as visualize
from vit_jax.data.bands import decide_ranges, scale_bands, shown_bands
from vit_jax.data.doctor import diagnose
from vit_jax.data.images import read_bands, read_image
from vit_jax.data.sources import open_source
from vit_jax.data.tiff import read_tiff
from vit_jax.pretrained.resize import adapt_channels
from vit_jax.report.data_page import write_data_page
from vit_jax.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("one_device")

MANY = 10**9
BANDS = dict(data__channels=13, data__name="folder")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return save_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("options", [{}, {"deflate": True}, {"deflate": True, "predictor": 2}])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_files_of_any_layout_are_read(order, options, planar, tile):
    array = scene(0, side=19)
    content = tiff(array, order, planar, tile=tile, **options)
    np.testing.assert_array_equal(read_tiff(content, MANY), array)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("options", [{}, {"deflate": True}])
def test_16_bit_colours_in_planes_are_those_of_interleaved_ones(options, orientation):
    array = scene(3, 3, 19)[:, :15] * 16
    array[:8] //= 2  # to see a turn
    tags = [(262, 2), (274, orientation)]  # RGB
    files = [tiff(array, planar=planar, tags=tags, **options) for planar in (False, True)]
    found = [read_image(io.BytesIO(content), 15, 3) for content in files]
    np.testing.assert_array_equal(*found)
    centre = array[2:17]
    expected = centre if orientation == 1 else np.rot90(centre, -1)
    np.testing.assert_allclose(found[1], expected / 257, atol=1)


def test_four_bands_of_a_16_bit_png_keep_their_levels():
    array = scene(4, 4, 19)  # 12 bits
    np.testing.assert_array_equal(read_bands(png16(array), 4, MANY), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_tiff_files_of_any_sample_type_are_read(dtype):
    array = scene(0, dtype=dtype)
    found = read_tiff(tiff(array), MANY)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "raw"])
def test_pillow_and_this_reader_agree(compression):
    """Files that Pillow writes, in the modes that it reads."""
    rgb = scene(1, 3, 40).astype(np.uint8)
    grey = scene(2, 1, 40)[..., 0]
    for array in (rgb, grey):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "tiff", compression=compression)
        found = read_tiff(file.getvalue(), MANY)
        np.testing.assert_array_equal(found.reshape(array.shape), array)


def test_pages_are_bands(tmp_path):
    pages = [Image.fromarray(band) for band in np.moveaxis(scene(0, 5), -1, 0)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_bands(tmp_path / "x.tif", 5, MANY), scene(0, 5))


def test_arrays_have_the_channels_first_or_last(tmp_path):
    array = scene(0)
    np.save(tmp_path / "last.npy", array)
    np.save(tmp_path / "first.npy", np.moveaxis(array, -1, 0))
    for name in ("last", "first"):
        np.testing.assert_array_equal(read_bands(tmp_path / f"{name}.npy", 13, MANY), array)


def jpeg_tiff():
    file = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(file, "TIFF", compression="jpeg")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(scene(0, 4)), "has the shape .8, 8, 4., but data.channels=13"),
        (tiff(scene(0))[:900], "cannot be read as an image"),
        (b"not an image", "cannot be read as an image"),
        (tiff(scene(0, side=40)), "raise data.max_pixels"),
        (tiff(scene(0), predictor=3), "its predictor 3 is not supported"),
        (jpeg_tiff(), "its compression is JPEG, which is not supported"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, content, message):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        read_image(tmp_path / "x.tif", 8, 13, max_pixels=1000)
    assert "x.tif" in str(raised.value)


def test_a_pickle_is_not_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / "x.npy", 8, 13)


def test_each_band_has_its_own_levels():
    low, high = np.zeros((10, 10, 2)), np.full((10, 10, 2), (100.0, 5000.0))
    levels = decide_ranges([low, high])
    np.testing.assert_allclose(levels, (0, 100, 0, 5000))
    np.testing.assert_array_equal(scale_bands(high / 2, levels)[0, 0], (127, 127))
    np.testing.assert_array_equal(scale_bands(high, (0.0, 200.0))[0, 0], (127, 255))
    assert (scale_bands(np.full((1, 1, 2), np.nan), levels) == 0).all()
    assert decide_ranges([np.zeros((2, 2, 3), np.uint8)]) == ()


def test_clouds_do_not_darken_the_other_images():
    ground = [np.full((64, 64, 1), 900.0 + i) for i in range(20)]
    cloud = np.full((64, 64, 1), 900.0)
    cloud[0, :5] = 20_000
    assert decide_ranges([*ground, cloud])[1] < 1000


def test_a_folder_of_bands_is_read(scenes):
    source = open_source(folder_config(scenes, channels=13))
    examples = source.examples("")
    assert len(source.level_range) == 26 and len(examples) == 24
    images = np.stack([image for image, _ in examples.read(range(24))])
    assert images.shape == (24, 8, 8, 13) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], scale_bands(scene(0), source.level_range))
    assert images[12:, ..., 4].mean() > images[:12, ..., 4].mean() + 100


def test_images_of_bands_are_checked(scenes, tmp_path):
    diagnosis = diagnose(folder_config(scenes, channels=13))
    assert not any("unreadable" in finding.text for finding in diagnosis.findings)
    assert len(diagnosis.mean) == len(diagnosis.std) == 13
    write_data_page(tmp_path / "data.html", "scenes", diagnosis)
    assert (tmp_path / "data.html").read_text().count("<img") >= 8


def test_bands_of_a_tfds_tensor_are_read(tmp_path):
    """As EuroSAT's "all" configuration stores them."""
    import tensorflow_datasets as tfds
    from tiny_datasets import write_tfds

    features = {
        "sentinel2": tfds.features.Tensor(shape=(8, 8, 13), dtype=np.float32),
        "label": tfds.features.ClassLabel(names=["field", "lake"]),
    }
    arrays = [scene(i, dtype=np.float32) for i in range(4)]
    rows = [{"sentinel2": array.ravel().tolist(), "label": i % 2} for i, array in enumerate(arrays)]
    write_tfds(tmp_path, features, {"train": rows})
    source = open_source(tfds_config(tmp_path, image_key="sentinel2", channels=13))
    found = source.examples("train").read([0, 3])
    np.testing.assert_array_equal(found[1][0], scale_bands(arrays[3], source.level_range))


def test_a_vit_trains_on_thirteen_bands(scenes, tmp_path, capsys):
    keys = BANDS | dict(data__dir=str(scenes), data__rgb_bands=(4, 3, 2), data__test_size=6)
    keys |= dict(train__batch_size=8, train__epochs=20.0, train__eval_every_epochs=10.0)
    keys |= dict(log__explain_images=2)
    folder = run(tmp_path / "runs", **keys)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test_accuracy"] == 1.0
    assert "figures show the bands 4, 3, 2 as RGB" in capsys.readouterr().out
    model = vit_jax.load_model(folder)
    file = scenes / "lake" / "0.tif"
    assert model.predict(file).argmax() == 1
    array = model.read_images(file)
    np.testing.assert_array_equal(array, model.read_images(scene(1000) + _brighter()))
    visualize([str(folder), "kernels", "attention_rollout", f"--out={tmp_path / 'drawn'}"])
    assert (tmp_path / "drawn" / "kernels" / "first_layer.png").exists()
    with pytest.raises(UserError, match="give .height, width, 13."):
        model.predict(np.zeros((8, 8, 3), np.uint8))


def _brighter():
    return np.array([3000 * (band == 4) for band in range(13)], np.uint16)


def test_augmentation_of_bands_moves_all_alike():
    config = make_config(**BANDS, data__dir="x", augment__brightness=0.5, augment__mixup_alpha=1.0)
    images = np.repeat(np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1), 13, 3)
    found, _ = augment(jax.random.key(0), images, np.zeros(1, np.int32), 2, config)
    assert found.shape == (1, 8, 8, 13)
    np.testing.assert_array_equal(found, np.broadcast_to(found[..., :1], found.shape))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"augment__kind": "randaugment"}, "needs RGB or grey images"),
        ({"augment__kind": "strong"}, "needs RGB or grey images"),
        ({"augment__saturation": 0.5}, "augment.saturation=0.5 needs RGB"),
        ({"augment__contrast": 0.5}, "augment.contrast=0.5 needs RGB"),
        ({"data__name": "digits", "data__dir": ""}, "data.name=digits needs RGB"),
        ({"data__rgb_bands": (4, 3)}, "three of the bands 1 to 13"),
        ({"data__rgb_bands": (4, 3, 14)}, "three of the bands 1 to 13"),
        ({"data__rgb_bands": (4.5, 3, 2)}, "three of the bands 1 to 13"),
        ({"data__level_range": (0.0, 1.0, 2.0)}, "two for each of 13 channels"),
        ({"data__channels": 3, "data__rgb_bands": (1, 2, 3)}, "has no effect"),
    ],
)
def test_settings_that_need_colours_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        make_config(**BANDS | {"data__dir": "x"} | keys)


def test_shown_bands():
    assert shown_bands(3) == [0, 1, 2] and shown_bands(1) == [0] and shown_bands(2) == [0]
    assert shown_bands(13) == [0, 1, 2] and shown_bands(13, (4, 3, 2.0)) == [3, 2, 1]


def test_rgb_kernels_are_adapted_as_by_timm():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3, 6)).astype(np.float32)
    found = adapt_channels(kernel, 13)
    for i in range(13):
        np.testing.assert_allclose(found[:, :, i], kernel[:, :, i % 3] * 3 / 13, rtol=1e-6)
    # The activations of grey images stay, where all colours occur equally often.
    np.testing.assert_allclose(
        adapt_channels(kernel, 12).sum(2), kernel.sum(2), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_pretrained_rgb_weights_are_fine_tuned_on_bands(scenes, tmp_path, name):
    """The first activations have 0.5 to 2 times the size of those of the RGB model."""
    size = dict(model__depth=1) if name == "vit" else dict(model__hidden_size=4)
    before = save_weights(tmp_path / "rgb", model__name=name, data__channels=3, **size)
    keys = BANDS | dict(data__dir=str(scenes), init_from=str(before), train__batch_size=8)
    if name == "resnet18":
        keys |= dict(model__name=name)
    after = run(tmp_path / "bands", **keys, train__steps=1, train__epochs=0.0)
    first = "embedding" if name == "vit" else "conv1"
    old = pretrained.load(before).arrays[f"{first}/kernel"]
    new = last_state(after)["params"][first]["kernel"]
    np.testing.assert_allclose(new, adapt_channels(np.asarray(old), 13), atol=0.05)
    grey = np.random.default_rng(0).normal(size=(64, *old.shape[:2], 1))
    sizes = [np.tensordot(np.repeat(grey, k.shape[2], 3), k, 3).std() for k in (old, new)]
    assert 0.5 < sizes[1] / sizes[0] < 2
    config = json.loads((after / "config.json").read_text())["config"]
    assert config["data.channels"] == 13 and len(config["data.mean"]) in (1, 13)
    assert vit_jax.load_model(after).predict(scenes / "lake" / "0.tif").shape == (1, 2)
