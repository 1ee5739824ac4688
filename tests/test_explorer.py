"""explorer.html: the right numbers, in a browser too, its size, and refused input."""

import pathlib
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from golden_files import GOLDEN
from PIL import Image
from test_report_browser import TOO_WIDE, api, browser  # noqa: F401  (a fixture)
from tiny_sweep import NASTY
from tiny_weights import save_weights

from vit_jax.cli import explore
from vit_jax.config import get_config, with_overrides
from vit_jax.explanation import explorer
from vit_jax.explanation.model import Model, name_apart
from vit_jax.report.explorer import read_title, write_explorer

CELLS = "pane => [...pane.querySelectorAll('.grid button')].map(cell => cell.ariaLabel)"
HEAT = """pane => { const heat = pane.querySelector('.frame canvas');
  const canvas = new OffscreenCanvas(heat.width, heat.height);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(heat, 0, 0);
  return [...context.getImageData(0, 0, heat.width, heat.height).data]; }"""
HEADLESS = GOLDEN / "hf_bare" / "model.safetensors"
SETTINGS = {"data__image_size": 16, "data__channels": 1, "model__depth": 3}


def make_model(folder, **settings):
    """Make a model whose attention is far from uniform."""
    model = Model(save_weights(folder, **(SETTINGS | settings)))
    model.variables = jax.tree.map(lambda a: 8 * a, model.variables)
    return model


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, images):
    """Pages of one model and of two, and the models."""
    folder = tmp_path_factory.mktemp("explorer")
    models = [
        make_model(folder / "one"),
        make_model(folder / "two", model__depth=2, model__patch_size=8, model__pool="mean"),
    ]
    for count in (1, 2):
        contents = explorer.collect(models[:count], [images] * count, ["a.png", NASTY])
        write_explorer(folder / f"{count}.html", NASTY, contents)
    return SimpleNamespace(one=folder / "1.html", two=folder / "2.html", models=models)


class Shown:
    """A page in a browser, with its messages and requests."""

    def __init__(self, browser, path, **options):  # noqa: F811
        self.context = browser.new_context(**options)
        self.page, self.complaints, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.path = path

    def pane(self, number=0):
        return self.page.locator(".pane").nth(number)

    def cell(self, index, number=0):
        return self.pane(number).locator(".grid button").nth(index)

    def wait(self):
        """Wait for the update that the last event has scheduled."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => done()))")

    def check(self, expected, number=0):
        """Compare the patches' labels, and the colours of the heat map, with an array."""
        self.wait()
        labels = self.pane(number).evaluate(CELLS)
        found = [float(re.search(r": ([\d.]+)\s%", label)[1]) for label in labels]
        expected = 100 * np.ravel(expected)
        np.testing.assert_allclose(found, expected, atol=0.2)  # half of 1/255 of at most 100 %
        colours = np.reshape(self.pane(number).evaluate(HEAT), (-1, 4))
        assert list(colours[expected.argmax()]) == [253, 231, 37, 255]  # the end of the colour map
        green = colours[:, 1].astype(float)
        assert np.corrcoef(green, expected)[0, 1] > 0.95

    def close(self):
        assert self.complaints == []
        assert self.requests[0] == self.path.as_uri()
        assert all(url.startswith("data:") for url in self.requests[1:])
        self.context.close()


def test_numbers_in_a_browser(browser, pages, images):  # noqa: F811
    model, shown = pages.models[0], Shown(browser, pages.one)
    attention = model.attention(images)  # [n, depth, heads, 17, 17]
    shown.check(attention[0, -1, :, 0, 1:].mean(0))
    for index in (6, 9):
        shown.cell(index).hover()
        shown.check(attention[0, -1, :, 1 + index, 1:].mean(0))
        assert shown.pane().locator(".query").count() == 1
    rows = attention[0, -1].mean(0)
    assert abs(rows[7] - rows[10]).max() > 0.03  # the rows of different patches differ
    shown.page.locator("h1").hover()
    shown.check(rows[0, 1:])
    shown.page.locator("#block").press("Home")
    shown.page.locator("#head").select_option("head 2")
    shown.check(attention[0, 0, 1, 0, 1:])
    shown.page.locator("#images button").nth(1).click()
    shown.cell(3).click()
    shown.page.locator("h1").hover()
    shown.check(attention[1, 0, 1, 4, 1:])
    shown.close()


def test_classes_and_methods_in_a_browser(browser, pages, images):  # noqa: F811
    model, shown = pages.models[0], Shown(browser, pages.one)
    shown.page.locator("#method").select_option("rollout")
    shown.check(model.explain(images[0], "rollout"))
    assert shown.page.locator("#class").is_disabled()
    shown.page.locator("#method").select_option("gradient rollout")
    maps = [model.explain(images[0], "gradient_rollout", name) for name in model.class_names]
    assert abs(maps[0] - maps[1]).max() > 0.01
    for name, expected in zip(model.class_names, maps, strict=True):
        shown.page.locator("#class").select_option(name)
        shown.check(expected)
    lens = explorer.lens_probabilities(model, images)[0]
    shown.page.locator("#block").press("Home")
    shown.wait()
    bars = shown.pane().locator(".bars button").all_inner_texts()
    found = {name: float(text.split()[0]) for name, text in (bar.split("\n") for bar in bars)}
    expected = {name: 100 * lens[1, i] for i, name in enumerate(model.class_names)}
    assert found == pytest.approx(expected, abs=0.06)
    shown.pane().locator(".bars button", has_text="class 2").click()
    shown.check(maps[2])
    shown.close()


def test_keyboard_in_a_browser(browser, pages, images):  # noqa: F811
    shown = Shown(browser, pages.one)
    rows = pages.models[0].attention(images)[0, -1].mean(0)
    shown.page.locator("#view").focus()
    shown.page.keyboard.press("Tab")
    shown.check(rows[1, 1:])
    for key, index in (("ArrowRight", 1), ("ArrowDown", 5), ("End", 7), ("ArrowRight", 7)):
        shown.page.keyboard.press(key)
        shown.check(rows[1 + index, 1:])
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.page.evaluate(outline) == "solid"
    shown.page.keyboard.press("Escape")
    shown.check(rows[0, 1:])
    assert shown.page.evaluate("document.activeElement.id") == "view"
    shown.close()


def test_runs_of_the_same_name_are_told_apart():
    paths = [pathlib.Path("runs", name, "base", "seed_0") for name in ("one", "two")]
    models = [SimpleNamespace(path=path, name="base/seed_0") for path in paths]
    models.append(SimpleNamespace(path=pathlib.Path("weights/vit"), name="vit"))
    name_apart([models[0], models[0], models[2]])  # the same run twice
    assert [model.name for model in models] == ["base/seed_0", "base/seed_0", "vit"]
    name_apart(models)
    assert [model.name for model in models] == ["one/base/seed_0", "two/base/seed_0", "vit"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_two_models_in_a_browser(browser, pages, images, width, scheme):  # noqa: F811
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    shown = Shown(browser, pages.two, has_touch=True, **options)
    one, two = (model.attention(images)[0] for model in pages.models)
    shown.check(two[-1].mean((0, 1)), 1)  # what the head sees: the mean of all patches
    shown.cell(6).tap()  # row 2, column 3 of 4 x 4 patches: row 1, column 2 of 2 x 2
    shown.check(one[-1, :, 7, 1:].mean(0))
    shown.check(two[-1, :, 1].mean(0), 1)
    assert "It has 2 blocks" in shown.pane(1).inner_text()
    assert shown.page.evaluate(TOO_WIDE) == []
    assert shown.page.evaluate("document.scrollingElement.scrollWidth") <= width
    ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    shown.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"model__representation_size": 8},
        {"model__pool": "mean", "model__fc_norm": True},
        {"model__pool": "map", "model__num_registers": 2},
    ],
    ids=["pre_logits", "fc_norm", "map"],
)
def test_lens_ends_in_the_prediction(tmp_path, images, settings):
    model = make_model(tmp_path / "w", **settings)
    lens = explorer.lens_probabilities(model, images)
    assert lens.shape == (2, 4, 3)
    np.testing.assert_allclose(lens[:, -1], model.predict(images), atol=1e-5)


def test_classes_whose_names_begin_alike_stay_apart(tmp_path, images):
    path = save_weights(tmp_path / "w", model__depth=1, num_classes=3)
    names = [f"{'animalia chordata ' * 3}{kind}" for kind in ("cat", "dog", "fox")]
    model = Model(path, class_names=names)
    (run,) = explorer.collect([model], [images], ["one", "two"])["runs"]
    assert all(len(set(classes)) == 3 for classes in run["classes"])


def test_average_of_patches(monkeypatch, tmp_path, images):
    """Where the rows of all patches do not fit, those of neighbours are averaged."""
    model = make_model(tmp_path / "w")
    monkeypatch.setattr(explorer, "_STORAGE", ((False, (1, 3)),))
    (run,) = explorer.collect([model], [images], ["a", "b"])["runs"]
    assert run["patches"]["shape"] == [2, 3, 1, 8, 17]  # 4 rows of 2 averages
    scales = np.frombuffer(explorer.base64.b64decode(run["patches"]["scales"]), "<f4")
    values = np.frombuffer(explorer.base64.b64decode(run["patches"]["values"]), np.uint8)
    found = values.reshape(2, 3, 8, 17) * scales.reshape(2, 3, 8, 1)
    rows = model.attention(images).mean(2)[:, :, 1:]
    np.testing.assert_allclose(found[:, :, 2], rows[:, :, 4:7].mean(2), atol=2e-3)
    np.testing.assert_allclose(found[:, :, 3], rows[:, :, 7], atol=2e-3)
    assert "mean over heads" in run["stored"] and "1 \u00d7 3" in run["stored"]


def test_size_of_a_page(pages, images):
    """A page has at most the bytes that were computed; the one of a ViT-B/16 is below 6 MB."""
    config = pages.models[0].config
    stored = explorer.stored_bytes(config, 2, True, (1, 1))
    size = pages.one.stat().st_size
    assert size - explorer.PAGE < stored + 2 * 1000 < size  # with two small images
    sizes = {"depth": 12, "num_heads": 12, "patch_size": 16}
    overrides = {f"model.{key}": value for key, value in sizes.items()} | {"data.image_size": 224}
    vit_b = with_overrides(get_config(), overrides, "a test")
    storage = explorer.choose_storage(vit_b, 12, 12 * 30_000)
    assert storage == (False, (1, 2))
    values = 12 * 12 * (12 + 14 * 7) * 197  # of the class token, and of pairs of patches
    stored = explorer.stored_bytes(vit_b, 12, *storage)
    assert 4 / 3 * values < stored < explorer.LIMIT - 12 * 30_000 - explorer.PAGE
    assert explorer.choose_storage(vit_b, 6, 6 * 30_000) == (False, (1, 1))
    assert explorer.choose_storage(vit_b, 12, 24 * 30_000, runs=2) == (False, (2, 2))
    with pytest.raises(explorer.UserError, match="give at most"):
        explorer.choose_storage(vit_b, 1000, 0)


def test_titles_are_read_again(pages, tmp_path):
    assert read_title(pages.one) == NASTY
    assert read_title(tmp_path / "missing.html") == ""


def test_command(tmp_path, capsys):
    run, photos = save_weights(tmp_path / "w", **SETTINGS), tmp_path / "more_photos"
    photos.mkdir()
    files = [tmp_path / "cat.png", photos / "dog.png"]
    for file in files:
        Image.new("L", (20, 30), 99).save(file)
    out = tmp_path / "explorer.html"
    given = [str(run), "--images", str(files[0]), str(photos), f"--out={out}"]
    assert explore.main(given) == 0
    assert capsys.readouterr().out.endswith(f"wrote {out}\n")
    assert all(name in out.read_text() for name in ("cat.png", "dog.png"))
    assert re.findall(r"https?:[^\"]*", out.read_text()) == ["http://www.w3.org/2000/svg"]


def test_a_weight_file_is_explored(tmp_path):
    Image.new("RGB", (20, 30), (9, 99, 0)).save(tmp_path / "cat.png")
    out, file = tmp_path / "explorer.html", GOLDEN / "hf" / "model.safetensors"
    given = [str(file), "--images", str(tmp_path / "cat.png"), f"--out={out}"]
    assert explore.main(given) == 0
    assert "hf/model.safetensors" in out.read_text()


def test_mistakes_are_single_line_errors(tmp_path, capsys):
    vit = str(save_weights(tmp_path / "vit", model__depth=1))
    resnet = str(save_weights(tmp_path / "r", model__name="resnet18", model__hidden_size=4))
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    images = ["--images", str(tmp_path / "a.png")]
    for arguments, message in (
        ([], "runs"),
        ([str(tmp_path / "no"), *images], "no does not exist"),
        ([str(HEADLESS), *images], "give --out=FILE.html for two runs or a weight file"),
        ([str(HEADLESS), *images, f"--out={tmp_path / 'a.html'}"], "has no head"),
        ([vit], "has no dataset: give --images"),
        ([vit, vit, *images], "give --out=FILE.html for two runs"),
        ([vit, vit, vit, *images], "3 runs are given: give one or two"),
        ([vit, *images, f"--out={tmp_path / 'a.png'}"], "ending in .html"),
        ([vit, *images, f"--out={tmp_path / 'no' / 'a.html'}"], "no is not a folder"),
        ([resnet, *images], "r is a resnet18, which has no attention to explore"),
        ([vit, "--images", str(tmp_path / "empty")], "holds no image"),
        ([vit, "--images", str(tmp_path / "text.png")], "cannot be read as an image"),
        ([vit, "--images", str(tmp_path / "missing.png")], "is neither a file nor a folder"),
    ):
        assert explore.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
