"""report.html: complete, self-contained, well-formed, and valid if some results are missing."""

import html.parser
import pathlib
import re
import shutil

import pytest
from markupsafe import escape
from tiny_sweep import NASTY, make_sweep, summary, write_sweep

from vit_jax.report import Sweep, write_report
from vit_jax.training.sweep import make_row

VOID = {"meta", "link", "img", "br", "hr"}


class Page(html.parser.HTMLParser):
    """Parse a page; raises AssertionError if its elements are not nested."""

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
        if self.open and self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data.replace("\xa0", " ")

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

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
    assert table[2][1] == "1,234, 12 trained" and table[1][4] == "85.00 ± 7.07"


def test_best_run_is_described(page):
    for words in (
        "Best run: patch_2.of-a-variant-with-quite-a-long-name, seed 0",
        "80.00 %",  # the first of its seeds, which have equal validation accuracy
        "95 % interval",
        "Chosen of the variants and seeds by validation accuracy.",
        "Best epoch 2 of 3",
        "looks at",
        "On 64 test images of 16 patches",
        "Most often taken for another: dog as cat (1 of 3)",
        "Best validation accuracy: 66.67 % at epoch 3",
    ):
        assert words in page.text
    assert ["dog", "100.00", "66.67", "80.00", "66.67", "3"] in page.tables[3]


def test_best_run_is_not_chosen_on_the_test_set():
    sweep = make_sweep(pathlib.Path("runs"))[0]
    last = sweep.ranking[-1]
    last["val_accuracy"]["mean"] = 0.95
    assert last["test_accuracy"]["mean"] < sweep.ranking[0]["test_accuracy"]["mean"]
    assert sweep.best_folder == pathlib.Path("runs", last["variant"], "seed_1")


def test_report_says_how_to_reproduce_it(page):
    for words in (
        "python -m vit_jax.main --config=configs/demo.py",
        "'--workdir=my runs'",
        "9.9.9",
        "0123abcd",
        "1 x test",
        "2.0 minutes",
        "seeds 0, 1",
        "1,000 training",
    ):
        assert words in page.text
    differing = next(table for table in page.tables[1:] if table[0][0] == "variant")
    assert differing[0] == ["variant", "model.patch_size"]
    assert [row[1] for row in differing[1:]] == ["1", "0"]


def test_nothing_is_fetched(workdir, page):
    for tag, attributes in page.elements:
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
    assert len(images) == 6  # bars, accuracy, loss, confusion, heat maps, scores
    assert all(image["alt"] and image["src"].startswith("data:image/png") for image in images)


def test_stages_of_a_run_are_rows(tmp_path):
    longer = summary(0, 0.9) | {"epochs": 20.0, "legs": [summary(0, 0.95) | {"epochs": 5.0}]}
    results = {"experiment": "demo", "rows": [make_row("a", {}, [longer])]}
    write_report(Sweep(tmp_path, results, {"a": [longer]}, {}, "best"))
    page = Page((tmp_path / "report.html").read_text())
    assert [row[0] for row in page.tables[0]] == ["variant", "a, 5 epochs", "a, 20 epochs"]
    assert "90.00 %" in page.text and "At its last length, 20 epochs" in page.text


@pytest.mark.parametrize("missing", ["test_report.json", "metrics.jsonl", "config.json", "figures"])
def test_some_results_may_be_missing(workdir, tmp_path, missing):
    folder = tmp_path / "sweep"
    shutil.copytree(workdir, folder)
    for path in list(folder.glob(f"*/*/{missing}")):
        path.rename(path.with_name("elsewhere"))
    write_report(make_sweep(folder)[0])
    page = Page((folder / "report.html").read_text())
    assert len(page.tables[0]) == 3 and "Best run" in page.text
    curves, confusion = missing != "metrics.jsonl", missing not in ("test_report.json", "figures")
    explanation = 2 * (missing != "figures")
    assert len(page.all("img")) == 1 + 2 * curves + confusion + explanation
    assert ("Settings" in page.text) == (missing != "config.json")


def test_a_single_run(tmp_path):
    groups = {"base": [summary(0, 0.8, speed=None) | {"steps": 0, "epochs": 0.0, "best_step": 0}]}
    results = {"experiment": "demo", "rows": [make_row("base", {}, groups["base"])]}
    write_report(Sweep(tmp_path, results, groups, {}, "last"))
    page = Page((tmp_path / "report.html").read_text())
    assert page.tables[0][1] == ["base", "1,234", "99.00", "90.00", "80.00", ""]
    assert "not trained" in page.text and "images/s" not in page.text.split("Results")[0]
    assert not page.all("img") and "main --config" not in page.text
    assert "±" not in page.text
