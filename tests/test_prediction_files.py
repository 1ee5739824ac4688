"""`predict` writes a CSV, and sorts images into class folders."""

import csv

import numpy as np
import pytest
from PIL import Image
from tiny_weights import save_weights

from vit_jax.cli import predict
from vit_jax.data.sources import read_digits
from vit_jax.evaluation.classifier import Classifier

NAMES = "ant,bee,c/t"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights") / "vit", model__depth=1)


@pytest.fixture
def photos(tmp_path):
    """70 digits in nested folders, of which the same names recur, and two files that fail."""
    root, (pixels, _) = tmp_path / "photos", read_digits()
    for i in range(70):
        folder = root / f"{i // 35}" / f"{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(folder / f"{i % 35}.png")
    (root / "0" / "broken.png").write_bytes(b"no image")
    (root / "1" / "worse\n.jpg").write_bytes(b"")
    return root


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(source, *arguments):
    return predict.main([str(source), f"--class-names={NAMES}", *map(str, arguments)])


def test_the_csv_has_the_probabilities_of_the_api_and_bad_files_are_listed(
    source, photos, tmp_path, capsys
):
    out = tmp_path / "out.csv"
    assert run(source, photos, f"--csv={out}", "--below=0.5") == 1
    captured = capsys.readouterr()
    assert captured.out.endswith("70 of 72 images classified\n")
    broken, worse, error = captured.err.splitlines()
    assert "broken.png cannot be read" in broken and "worse\\n.jpg cannot be read" in worse
    assert error == "error: 2 of 72 files, listed above, are left out"
    rows = read(out)
    assert list(rows[0]) == ["image", "predicted", "probability", "unsure", *NAMES.split(",")]
    paths = [row["image"] for row in rows]
    assert paths == sorted(map(str, photos.rglob("[0-9]*.png")), key=lambda p: p.split("/"))
    found = np.array([[float(row[name]) for name in NAMES.split(",")] for row in rows])
    expected = Classifier(source).predict(paths)
    np.testing.assert_array_equal(found, expected)
    for row, one in zip(rows, expected, strict=True):
        assert row["predicted"] == NAMES.split(",")[one.argmax()]
        assert float(row["probability"]) == one.max()
        assert row["unsure"] == ("yes" if one.max() < 0.5 else "no")
    assert not list(tmp_path.glob("*.part"))


def test_images_are_sorted_into_class_folders_and_nothing_is_overwritten(source, photos, tmp_path):
    out, table = tmp_path / "sorted", tmp_path / "out.csv"
    run(source, photos, f"--csv={table}")
    rows = read(table)
    limit = float(np.median([float(row["probability"]) for row in rows]))
    taken = out / "ant" / "0.png"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    contents = []
    for _ in range(2):  # the second call adds nothing
        assert run(source, photos, f"--sort-into={out}", f"--below={limit!r}") == 1
        contents.append({p: p.read_bytes() for p in out.rglob("*") if p.is_file()})
    assert contents[0] == contents[1] and contents[0][taken] == b"mine"
    del contents[0][taken]
    expected = {}
    for row in rows:
        name = "unsure" if float(row["probability"]) < limit else row["predicted"].replace("/", "_")
        with open(row["image"], "rb") as file:
            expected.setdefault(name, []).append(file.read())
    found = {}
    for path, content in contents[0].items():
        found.setdefault(path.parent.name, []).append(content)
    assert {name: sorted(images) for name, images in found.items()} == {
        name: sorted(images) for name, images in expected.items()
    }
    assert len(expected) > 1 and sum(map(len, expected.values())) == 70


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--below=0.5"], "--below has no effect without --csv or --sort-into"),
        (["--csv=a.csv", "--below=1.5"], "--below=1.5 must be a probability"),
        (["--csv=a.csv", "--json"], "replace --json"),
        (["--csv=."], "--csv=. is a folder: name a file"),
        (["--sort-into=PHOTOS/sorted"], "lies in"),
        (["--sort-into=out", "--class-names=a/b,a_b,c"], "would share the folder 'a_b'"),
        (["--sort-into=out", "--class-names=Cat,cat,c"], "would share the folder 'Cat'"),
        (["--csv=a.csv", "--class-names=names.txt"], "names.txt is not a file: give one"),
        (["--sort-into=out", "--below=0.5", "--class-names=unsure,b,c"], "the folder 'unsure'"),
    ],
)
def test_contradictory_flags_are_refused(source, photos, flags, message, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    flags = [flag.replace("PHOTOS", str(photos)) for flag in flags]
    assert run(source, photos, *flags) == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in photos.parent.iterdir()} == {"photos"}
