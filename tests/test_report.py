"""report.html: complete, self-contained, well-formed, also where files are missing."""

import html.parser
import json
import pathlib
import re
import shutil

import pytest
from markupsafe import escape
from tiny_sweep import NASTY, make_sweep, summary, write_explanation, write_sweep

from vit_jax.report import Sweep, write_report
from vit_jax.training.rows import make_row

VOID = {"meta", "link", "img", "br", "hr"}


class Page(html.parser.HTMLParser):
    """The elements of a page; raises AssertionError where they are not nested."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.tables, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if {"th", "td"} & set(self.open[-2:]):  # in a link too
            self.tables[-1][-1][-1] += data.replace("\xa0", " ")

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())  # also at no-break spaces

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_sweep(folder)
    return folder


@pytest.fixture(scope="module")
def page(workdir):
    return Page((workdir / "report.html").read_text())


def test_table_equals_that_of_results_md(workdir, page):
    lines = (workdir / "results.md").read_text().splitlines()
    expected = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    table, published = page.tables[0], page.tables[1]
    assert table == expected[:3] and published == expected[3:]
    assert [row[0] for row in table[1:]] == [
        "patch_2.of-a-variant-with-quite-a-long-name",  # best first
        "patch_4",
    ]
    best, other = (dict(zip(table[0], row, strict=True)) for row in table[1:])
    assert other["parameters"] == "1,234, 12 trained" and best["test"] == "85.00 ± 7.07"
    assert (best["GFLOP/image"], best["PFLOP"], best["minutes"]) == ("0.0123", "4.5", "0.5")
    name = f"difference from {best['variant']}, points, 95 % interval"
    # Half the interval of -0.1, -0.15: 12.7062 * 0.0353553 / sqrt(2) = 0.317655.
    assert (best[name], other[name]) == ("", "≈ -12.50 (-44.27 to +19.27)")
    assert "which cannot be distinguished from it" in page.text


def test_best_variant_is_the_headline(page):
    for words in (
        "Best variant on validation: patch_2.of-a-variant-with-quite-a-long-name",
        "Test accuracy 85.00 ± 7.07 % mean ± standard deviation over seeds 0, 1",
        "Chosen from 2 variants by validation accuracy.",
        "Test report of patch_2.of-a-variant-with-quite-a-long-name, seed 0",
        "looks at",
        "On 64 test images of 16 patches",
        "No pair of classes is confused more than once.",
        "Best validation accuracy: 66.67 % at epoch 3",
    ):
        assert words in page.text
    assert ["dog", "100.00", "66.67", "80.00", "3"] in page.tables[4]


def test_every_run_has_a_row_and_a_link(page):
    name = "patch_2.of-a-variant-with-quite-a-long-name"
    assert page.tables[2][0] == ["run", "test", "val", "train", "epoch", "minutes"]
    assert [row[:2] for row in page.tables[2][1:]] == [
        [f"{name}, seed 0", "80.00"],
        [f"{name}, seed 1", "90.00"],
        ["patch_4, seed 0", "70.00"],
        ["patch_4, seed 1", "75.00"],
    ]
    links = [attributes["href"] for attributes in page.all("a")]
    assert links[1:3] == [f"./{name}/seed_1/", "./patch_4/seed_0/"]


def test_mistakes_and_calibration_are_shown(page):
    assert "Most confident mistakes" in page.text and "dog → cat 99 %" in page.text
    alts = [image["alt"] for image in page.all("img")]
    assert "test image of dog" in alts
    assert any(alt.startswith("Reliability diagram") for alt in alts)
    assert "expected calibration error" in page.text


def test_explained_variant_has_enough_patches(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "sweep")
    sweep = make_sweep(tmp_path / "sweep")[0]
    best, other = (row["variant"] for row in sweep.ranking)
    assert sweep.explained == sweep.chosen == best  # of unknown models, the best
    for variant, size in ((best, 4), (other, 2)):  # 4 and 16 patches
        for path in (tmp_path / "sweep" / variant).glob("*/config.json"):
            record = json.loads(path.read_text())
            model = {"model.name": "vit", "data.image_size": 8, "model.patch_size": size}
            path.write_text(json.dumps(record | {"config": record["config"] | model}))
    sweep = make_sweep(tmp_path / "sweep")[0]
    assert (sweep.chosen, sweep.explained) == (best, other)
    write_explanation(sweep.explanation)
    write_report(sweep)
    page = Page((tmp_path / "sweep" / "report.html").read_text())
    assert f"What {other}, seed 1, looks at" in page.text
    assert f"The best variant, {best}, has only 4 patches; {other} has 16." in page.text


def test_best_run_is_not_chosen_on_the_test_set():
    sweep = make_sweep(pathlib.Path("runs"))[0]
    last = sweep.ranking[-1]
    last["val_accuracy"]["mean"] = 0.95
    assert last["test_accuracy"]["mean"] < sweep.ranking[0]["test_accuracy"]["mean"]
    assert sweep.best_folder == pathlib.Path("runs", last["variant"], "seed_1")


def test_page_says_how_to_reproduce_it(page):
    for words in (
        "python -m vit_jax.main --config=configs/demo.py",
        "'--workdir=my runs'",
        "9.9.9",
        "0123abcd",
        "1 x test",
        "2.0 minutes",
        "seeds 0, 1",
        "1,000 training",
        "The images are stored as JPEG.",
    ):
        assert words in page.text
    differing = next(table for table in page.tables[1:] if table[0][0] == "variant")
    assert differing[0] == ["variant", "model.patch_size"]
    assert [row[1] for row in differing[1:]] == ["1", "0"]


def test_nothing_is_fetched(workdir, page):
    links = page.all("a")  # followed by a click only
    assert links and all(link["href"].startswith("./") for link in links)
    for tag, attributes in ((tag, found) for tag, found in page.elements if tag != "a"):
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, name)
    style = (workdir / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert not page.all("script") and not any(
        name.startswith("on") for _, attributes in page.elements for name in attributes
    )


def test_names_are_escaped(workdir, page):
    text = (workdir / "report.html").read_text()
    assert "<script" not in text and str(escape(NASTY)) in text
    assert any(NASTY in row for table in page.tables for row in table)  # but displayed


def test_page_is_accessible(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.all("html") == [{"lang": "en"}]
    images = page.all("img")
    # accuracies, accuracy, loss, accuracy over time, confusion, mistake, reliability, light and
    # dark heat maps, scores
    assert len(images) == 10
    assert "Curves of the accuracy over minutes." in {image["alt"] for image in images}
    assert all(image["alt"] and image["src"].startswith("data:image/png") for image in images)


def test_stages_of_a_run_are_rows(tmp_path):
    longer = summary(0, 0.9) | {"epochs": 20.0, "stages": [summary(0, 0.95) | {"epochs": 5.0}]}
    results = {"experiment": "demo", "rows": [make_row("a", {}, [longer])]}
    write_report(Sweep(tmp_path, results, {"a": [longer]}, {}, "best"))
    page = Page((tmp_path / "report.html").read_text())
    assert [row[0] for row in page.tables[0]] == ["variant", "a, 5 epochs", "a, 20 epochs"]
    assert "90.00 %" in page.text and "At its last length, 20 epochs" in page.text


def test_the_explained_variant_is_one_that_attention_explains(workdir, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(workdir, folder)
    pools = {"patch_4": "cls", "patch_2.of-a-variant-with-quite-a-long-name": "map"}
    for path in folder.glob("*/*/config.json"):
        record = json.loads(path.read_text())
        pool = {"model.name": "vit", "model.pool": pools[path.parts[-3]]}
        record["config"] |= pool | {"data.image_size": 32, "model.patch_size": 4}
        path.write_text(json.dumps(record))
    sweep = make_sweep(folder)[0]
    assert sweep.chosen.startswith("patch_2") and sweep.explained == "patch_4"
    write_explanation(sweep.explanation)
    write_report(sweep)
    text = Page((folder / "report.html").read_text()).text
    assert f"Attention does not explain the best variant, {sweep.chosen}; patch_4 is the" in text


@pytest.mark.parametrize("missing", ["test_report.json", "metrics.jsonl", "config.json", "figures"])
def test_some_results_may_be_missing(workdir, tmp_path, missing):
    folder = tmp_path / "sweep"
    shutil.copytree(workdir, folder)
    for path in list(folder.glob(f"*/*/{missing}")):
        path.rename(path.with_name("elsewhere"))
    write_report(make_sweep(folder)[0])
    page = Page((folder / "report.html").read_text())
    assert len(page.tables[0]) == 3 and "Best variant" in page.text
    curves, report = missing != "metrics.jsonl", missing not in ("test_report.json", "figures")
    figures = 2 * (missing not in ("test_report.json", "figures"))  # confusion, reliability
    explanation = 3 * (missing != "figures")
    assert len(page.all("img")) == 1 + 3 * curves + report + figures + explanation
    assert ("Settings" in page.text) == (missing != "config.json")


def test_a_single_run(tmp_path):
    groups = {"base": [summary(0, 0.8, speed=None) | {"steps": 0, "epochs": 0.0, "best_step": 0}]}
    results = {"experiment": "demo", "rows": [make_row("base", {}, groups["base"])]}
    write_report(Sweep(tmp_path, results, groups, {}, "last"))
    page = Page((tmp_path / "report.html").read_text())
    assert page.tables[0][1] == ["base", "80.00", "90.00", "99.00", "1,234", "0.5", ""]
    assert page.tables[1][1] == ["base, seed 0", "80.00", "90.00", "99.00", "-", "0.5"]
    assert "images/s" not in page.text.split("Results")[0]
    assert not page.all("img") and "main --config" not in page.text
    assert "±" not in page.text
