"""`vit-jax check-data`: defects of every kind are found, and none in clean data."""

import io
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tiny_datasets import write_tfds
from tiny_images import encode, folder_config, noise, png16, save_noise, tfds_config

from vit_jax.cli import check_data
from vit_jax.data.doctor import COSTS, MISLEADS, NOTE, diagnose
from vit_jax.data.duplicates import SIDE, near_pairs
from vit_jax.data.sources import open_source, read_digits
from vit_jax.data.splits import make_splits

features = tfds.features


def scene(seed, side=96):
    """Make a smooth random image, which survives compression as photographs do."""
    low = noise(seed, (6, 6, 3))
    return Image.fromarray(low).resize((side, side), Image.Resampling.BICUBIC)


def make_photos(root, classes=("ant", "bee"), count=12):
    """Write a folder of three splits, of distinct images."""
    seed = 0
    for split in ("train", "valid", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                scene(seed).save(root / split / name / f"{i}.png")
                seed += 1
    return root


def findings(root, **keys):
    """Diagnose a folder; return [(kind, text)]."""
    return [(one.kind, one.text) for one in diagnose(folder_config(root, **keys)).findings]


def test_no_findings_on_clean_images(tmp_path):
    assert findings(make_photos(tmp_path / "photos"), image_size=32) == []


def test_the_splits_are_those_of_a_training_that_skips_images(tmp_path):
    save_noise(tmp_path / "photos", ["ant", "bee"], 12)
    config = folder_config(tmp_path / "photos", skip_corrupt=True)
    (tmp_path / "photos" / "ant" / "3.png").write_bytes(b"nothing")
    checked, splits = diagnose(config).survey, make_splits(open_source(config), config)
    assert len(checked.names) == 23
    for split in ("train", "val", "test"):
        names = np.array(checked.names)[checked.split == split]
        assert sorted(names) == sorted(getattr(splits, split).names)


def test_no_findings_on_clean_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check_data.main(["--config=digits_patch"]) == 0
    out = capsys.readouterr().out
    assert "1,797 images checked, training can start" in out
    assert not re.search(f"^({MISLEADS}|{COSTS}|{NOTE}):", out, re.MULTILINE)
    assert (tmp_path / "data.html").exists()


def _save(image, path, **options):
    image.save(path, **options)


def _copy(root, source, target):
    (root / target).write_bytes((root / source).read_bytes())


def _save_deep(root, name, high, count=12):
    for i in range(count):
        levels = noise(900 + i, (16, 16), high, np.uint16)
        (root / f"train/{name}/{i}.png").write_bytes(png16(levels))


PLANTS = {
    "unreadable": (
        lambda root: (root / "train/ant/0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken"),
        MISLEADS,
        r"unreadable images: 1 .train/ant/0.png",
    ),
    "truncated": (
        lambda root: (root / "test/bee/1.png").write_bytes(
            (root / "test/bee/1.png").read_bytes()[:700]
        ),
        MISLEADS,
        r"unreadable images: 1 .test/bee/1.png",
    ),
    "exact copy across splits": (
        lambda root: _copy(root, "train/ant/1.png", "test/ant/new.png"),
        MISLEADS,
        "exact copies of training images among the test images: 1 of 25",
    ),
    "same pixels in another format": (
        lambda root: _save(scene(1), root / "valid/ant/new.bmp"),
        MISLEADS,
        "exact copies of training images among the validation images: 1 of 25",
    ),
    "near duplicate across splits": (
        lambda root: _save(scene(1).resize((64, 64)), root / "test/ant/new.jpg", quality=60),
        MISLEADS,
        "near duplicates of training images among the test images: 1 of 25",
    ),
    "exact copy in a split": (
        lambda root: _copy(root, "train/ant/1.png", "train/ant/new.png"),
        NOTE,
        "exact copies within the training images: 1;",
    ),
    "near duplicate in a split": (
        lambda root: _save(scene(1), root / "train/ant/new.jpg", quality=60),
        NOTE,
        "near duplicates within the training images: 1;",
    ),
    "contradictory labels": (
        lambda root: _copy(root, "train/ant/1.png", "train/bee/new.png"),
        MISLEADS,
        "pairs of exact copies with different labels: 1;",
    ),
    "contradictory near duplicates": (
        lambda root: _save(scene(1), root / "train/bee/new.jpg", quality=60),
        MISLEADS,
        "pairs of near duplicates with different labels: 1;",
    ),
    "blank": (
        lambda root: Image.new("RGB", (96, 96), "red").save(root / "train/ant/new.png"),
        COSTS,
        "images of a single colour, which show nothing: 1;",
    ),
    "transparent": (
        lambda root: Image.fromarray(np.dstack([np.asarray(scene(99)), noise(3, (96, 96))])).save(
            root / "train/ant/new.png"
        ),
        NOTE,
        "transparent images: 1; they are composited on data.background=255",
    ),
    "imbalanced": (
        lambda root: [scene(1000 + i).save(root / f"train/ant/new{i}.png") for i in range(120)],
        COSTS,
        r"imbalanced: ant has 132 images, bee 12",
    ),
    "class names alike": (
        lambda root: save_noise(root / "train", ["ANT"]),
        MISLEADS,
        r"the names of separate classes differ in case",
    ),
    "missing in a split": (
        lambda root: [path.unlink() for path in (root / "test/ant").iterdir()],
        COSTS,
        r"class ant has 0 test images",
    ),
    "small": (
        lambda root: scene(77, 20).save(root / "train/ant/new.png"),
        NOTE,
        "images smaller than data.image_size=32: 1;",
    ),
    "unused": (
        lambda root: save_noise(root / "extra", ["ant"], 2),
        COSTS,
        r"the images of extra are not used",
    ),
    "16 bits": (
        lambda root: _save_deep(root, "ant", 4096),
        NOTE,
        "images with more than 8 bits per channel: 12, .*; 0 to 4095 become black to white",
    ),
}


@pytest.mark.parametrize("plant", PLANTS)
def test_plant_is_found(tmp_path, plant):
    change, kind, text = PLANTS[plant]
    root = make_photos(tmp_path / "photos")
    change(root)
    found = findings(root, image_size=32)
    assert [one for one in found if one[0] == kind and re.search(text, one[1])], found
    # A new class lacks test images, and its images are small, as are those of 16 bits.
    assert len(found) == {"class names alike": 4, "16 bits": 2}.get(plant, 1), found


def test_clipped_levels_are_found(tmp_path):
    root = make_photos(tmp_path / "photos")
    _save_deep(root, "ant", 4096)
    found = findings(root, image_size=32, level_range=(0, 2000))
    assert any(
        kind == MISLEADS and "more than 1 % of their levels outside data.level_range: 12;" in text
        for kind, text in found
    )


@pytest.mark.parametrize("channels", [3, 5])
def test_clipped_levels_of_arrays_are_found(tmp_path, channels):
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(6):
            levels = rng.integers(0, 3000, (40, 50, channels), np.uint16)
            np.save(tmp_path / name / f"{i}.npy", levels)
    own = dict(image_size=32, channels=channels)
    narrow = (0, 3000) * (channels - 1) + (0, 1500)  # of the last band
    for level_range, clipped in (((), 0), ((0, 1500), 12), (narrow if channels > 3 else (), 0)):
        found = [text for _, text in findings(tmp_path, level_range=level_range, **own)]
        assert any("more than 8 bits per channel: 12, with levels from" in text for text in found)
        outside = any("levels outside data.level_range" in text for text in found)
        assert outside == bool(clipped or level_range == narrow)
    assert diagnose(folder_config(tmp_path, **own)).survey.records[0].size == (50, 40)


def test_unusual_floats_are_not_called_clipped(tmp_path):
    """Their range is decided by percentiles, which clip 1 %."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(12):
            levels = rng.normal(-40, 15, (40, 40)).astype(np.float32)
            np.save(tmp_path / name / f"{i}.npy", levels)
    found = [text for _, text in findings(tmp_path, image_size=32, channels=1)]
    assert any("more than 8 bits" in text for text in found)
    assert not any("outside data.level_range" in text for text in found)


def test_compressed_small_images_are_found(tmp_path):
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        for i in range(12):
            scene(100 * label + i, 32).save(tmp_path / name / f"{i}.jpg", quality=75)
    kinds = dict(findings(tmp_path, image_size=32))
    assert "stored as JPEG of about quality 75" in kinds[COSTS]


def test_constants_and_counts(tmp_path):
    root = make_photos(tmp_path / "photos")
    found = diagnose(folder_config(root, image_size=96))
    pixels = np.stack(
        [np.asarray(Image.open(path)) for path in sorted((root / "train").rglob("*.png"))]
    )
    assert found.mean == pytest.approx((pixels / 255).mean((0, 1, 2)), abs=1e-4)
    assert found.std == pytest.approx((pixels / 255).std((0, 1, 2)), abs=1e-4)
    assert found.counts == {"train": [12, 12], "val": [12, 12], "test": [12, 12]}


def test_large_jpeg_is_measured_at_a_reduced_scale(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(10):
            image = scene(20 * (name == "bee") + i, 900)
            image.save(tmp_path / name / f"{i}.jpg", quality=95)
    (tmp_path / "bee/copy.jpg").write_bytes((tmp_path / "bee/1.jpg").read_bytes())
    found = diagnose(folder_config(tmp_path, image_size=64, test_size=0.3, val_size=0.2))
    assert {record.size for record in found.survey.records} == {(900, 900)}
    assert any("exact copies" in one.text for one in found.findings)
    rows = np.flatnonzero(found.survey.split == "train")
    pixels = np.stack([found.survey.read(row) for row in rows.tolist()]) / 255
    assert found.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=0.005)
    assert found.std == pytest.approx(pixels.std((0, 1, 2)), abs=0.005)


def test_duplicates_in_tfds_data(tmp_path):
    images = [encode(noise(i)) for i in range(20)]
    rows = [{"image": image, "label": i % 2} for i, image in enumerate(images)]
    write_tfds(
        tmp_path,
        {"image": features.Image(shape=(8, 8, 3)), "label": features.ClassLabel(num_classes=2)},
        {"train": rows, "test": [rows[3], rows[4] | {"label": 1}]},
    )
    config = tfds_config(tmp_path)
    texts = [one.text for one in diagnose(config).findings]
    assert any(
        "exact copies of training images among the test images: 2 of 2" in text for text in texts
    )
    assert any("exact copies with different labels: 1;" in text for text in texts)


def test_near_duplicates_are_all_found():
    """Every pair within the limits is found, however the bits that differ are spread."""
    originals = [np.asarray(scene(i, SIDE).convert("L")) for i in range(60)]
    shifted = [np.clip(one + noise(i, one.shape, 4), 0, 255) for i, one in enumerate(originals)]
    pairs = near_pairs(np.array([*originals, *shifted], np.uint8))
    assert pairs.tolist() == [[i, i + 60] for i in range(60)]


def test_enlarged_digits_are_no_near_duplicates():
    images = [Image.fromarray(one) for one in read_digits()[0]]
    thumbnails = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in images]
    assert not len(near_pairs(np.stack(thumbnails)))


def test_page_and_status(tmp_path, capsys):
    root = make_photos(tmp_path / "photos", ("<script>alert(1)", "bee"))
    page = tmp_path / "out.html"
    assert check_data.main([str(root), f"--out={page}"]) == 0
    assert "training can start" in capsys.readouterr().out
    (root / "train/bee/<i>.png").write_bytes(b"nothing")
    _copy(root, "train/bee/1.png", "test/bee/new.png")
    assert check_data.main([str(root), f"--out={page}"]) == 1
    out = capsys.readouterr().out
    assert "misleads training: unreadable images: 1" in out
    assert "training would be misled" in out
    text = page.read_text()
    assert "<script" not in text and "<i>.png" not in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    images = re.findall(r'<img[^>]* alt="([^"]+)"', text)
    assert len(images) == 2 + 16  # the pair of copies, and the contact sheet


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an image folder or --config=FILE, and not both"),
        (["photos", "--config=digits_patch"], "and not both"),
        (["photos", "--out=data.txt"], "ending in .html"),
        (["photos", "--out=nowhere/data.html"], "nowhere is not a folder"),
        (["nowhere"], "data.dir=nowhere is not a folder"),
        (["~nobody_here"], "~nobody_here begins with an unknown user"),
        (["photos", "--config.train.epochs=5"], "train.epochs has no effect on the check of"),
        (["photos", "--config.data.resize_mode=crop"], "not one of"),
    ],
)
def test_wrong_arguments(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_data.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_exact_copies_are_those_of_the_shown_pixels(tmp_path):
    """The same stored pixels of another orientation are another image, turned ones the same."""
    root, exif = make_photos(tmp_path / "photos"), Image.Exif()
    exif[0x0112] = 3
    scene(600).save(root / "train/ant/new.png")
    scene(600).save(root / "test/ant/turned.png", exif=exif)
    assert findings(root, image_size=32) == []
    scene(600).transpose(Image.Transpose.ROTATE_180).save(root / "test/ant/turned.png", exif=exif)
    (found,) = findings(root, image_size=32)
    assert "exact copies of training images among the test images: 1 of 25" in found[1]


def test_jpeg_of_other_colour_spaces_and_orientations(tmp_path):
    """A rotated copy that EXIF turns back is a near duplicate."""
    root = make_photos(tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    image = scene(1).transpose(Image.Transpose.ROTATE_90)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=90, exif=exif)
    (root / "test/ant/new.jpg").write_bytes(file.getvalue())
    scene(500).convert("CMYK").save(root / "train/bee/new.jpg")
    assert [text for _, text in findings(root, image_size=32)] == [
        "near duplicates of training images among the test images: 1 of 25; the accuracy is too "
        "high: remove them from one of the splits"
    ]
