"""The pictures that scripts/visualize.py draws, and its complaints."""

import numpy as np
import pytest
from PIL import Image

from scripts import visualize


def test_contact_sheet_shows_originals_and_draws(tmp_path, capsys):
    path = tmp_path / "sheet.png"
    flags = ["--config=configs/digits_augment.py", f"--out={path}", "--rows=4", "--draws=2"]
    assert visualize.main(["augment", *flags, "--config.seed=3"]) == 0
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    # 4 rows and 1 + 5 * 2 columns of digits on black, with white between them.
    dark = pixels < 20
    edges = [(np.diff((dark.mean(axis) > 0.05).astype(int)) > 0).sum() for axis in (0, 1)]
    assert edges[0] >= 11 and edges[1] >= 4
    assert pixels[:5].min() == pixels[-5:].min() == 255


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "command"),
        (["augment"], "--config"),
        (["augment", "--config=nowhere.py"], "nowhere.py is not a file"),
        (["augment", "--config=configs/digits_augment.py", "--rows=0"], "--rows=0"),
        (["augment", "--config=configs/digits_augment.py", "more"], "'more' is no argument"),
        (["augment", "--config=configs/digits_augment.py", "--config.seed=a"], "seed"),
        (["augment", "--config=configs/digits_augment.py", "--config.seeds=1"], "mean seed?"),
        (["augment", "--config=configs/digits_augment.py", "--out=nowhere/a.png"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, sentence, capsys):
    assert visualize.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
