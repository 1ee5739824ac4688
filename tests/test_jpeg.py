"""JPEG compression of small images is reported with quality and subsampling."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from tiny_datasets import settings

import vit_jax
from vit_jax.data import load_data
from vit_jax.data.jpeg import describe_compression
from vit_jax.runtime import sharding


def encoded(size=32, mode="RGB", seed=0, **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_quality_is_estimated(quality):
    files = [encoded(format="JPEG", quality=quality)] * 3
    text = describe_compression(files)
    found = int(text.split("quality ")[1].split()[0].rstrip(","))
    assert abs(found - quality) <= 2


@pytest.mark.parametrize(("subsampling", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_subsampling_is_named(subsampling, name):
    text = describe_compression([encoded(format="JPEG", quality=75, subsampling=subsampling)])
    assert f"with {name} chroma subsampling" in text


def test_grey_images_have_no_chroma():
    text = describe_compression([encoded(mode="L", format="JPEG", quality=75)])
    assert "chroma" not in text and "quality 75" in text


@pytest.mark.parametrize("options", [dict(format="PNG"), dict(format="JPEG", size=65)])
def test_lossless_and_larger_images_are_not_reported(options):
    assert describe_compression([encoded(**options)]) is None


def make_folder(root, **options):
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            path = root / name / f"{number}.jpg"
            path.write_bytes(encoded(seed=10 * label + number, **options))
    return settings(name="folder", dir=str(root), val_size=2, test_size=2)


@pytest.mark.parametrize("resident", ["always", "never"])
def test_a_dataset_of_small_jpeg_files_has_a_note(tmp_path, capsys, resident):
    config = make_folder(tmp_path, format="JPEG", quality=75)
    (tmp_path / "ant/9.jpg").write_bytes(encoded(format="PNG", seed=20))
    config.device_resident = resident
    data = load_data(config, sharding.make_mesh())
    (note,) = data.notes
    assert "JPEG of about quality 75 with 4:2:0 chroma subsampling, which costs accuracy" in note
    assert capsys.readouterr().out.count(f"note: {note}\n") == 1
    assert set(data.fingerprint) == {"classes", "examples", "checksum", "files", "test"}


def test_lossless_and_embedded_images_have_no_note(tmp_path, capsys):
    for config in (make_folder(tmp_path, format="PNG"), settings(name="digits", channels=1)):
        assert load_data(config, sharding.make_mesh()).notes == ()
    assert "note: " not in capsys.readouterr().out


def test_damaged_files_are_ignored():
    files = [encoded(format="JPEG")] * 4 + [b"", b"\xff\xd8\xff", encoded(format="JPEG")[:300]]
    assert "quality 75" in describe_compression(files)
    assert describe_compression(files[3:]) is None and describe_compression([]) is None


def test_the_note_is_in_the_report(one_device, no_figures, tmp_path):
    """One step of training on small JPEG files, which the report describes once."""
    make_folder(tmp_path / "images", format="JPEG", quality=75)
    data = {"name": "folder", "dir": str(tmp_path / "images"), "val_size": 2, "test_size": 2}
    data |= {"image_size": 32, "channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    small = {"model.hidden_size": 16, "model.mlp_dim": 32, "model.depth": 1}
    train = {"train.epochs": 1, "train.batch_size": 16, "optim.warmup_epochs": 0.0}
    train |= {"log.explain_images": 0}
    overrides = {f"data.{key}": value for key, value in data.items()} | small | train
    config = vit_jax.load_config("configs/digits_patch.py", overrides, variant="patch_4")
    results = vit_jax.train(config, workdir=tmp_path / "runs")
    record = json.loads((tmp_path / "runs/patch_4/seed_0/config.json").read_text())
    (note,) = record["notes"]
    assert "JPEG of about quality 75" in note
    assert (results.workdir / "report.html").read_text().count("JPEG of about quality 75") == 1
