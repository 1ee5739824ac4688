"""report.html in a browser: no requests, no broken images, nothing wider than a phone screen."""

import pathlib
import shutil
import types

import pytest
from tiny_configs import make_config
from tiny_images import folder_config, save_noise
from tiny_sweep import NASTY, write_sweep

from vit_jax.data.doctor import diagnose
from vit_jax.evaluation.suspects import Suspect
from vit_jax.report.data_page import write_data_page
from vit_jax.report.suspects import write_suspects

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# Elements wider than the page, except in scrollable boxes.
TOO_WIDE = """() => [...document.querySelectorAll('main *')]
  .filter(e => !e.parentElement.closest('.scroll'))
  .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 99))"""
LOADED = "() => [...document.images].map(image => image.complete && image.naturalWidth > 0)"
ROWS = "() => [...document.querySelector('table').tBodies[0].rows].map(r => r.cells[0].innerText)"


def find_chromium(playwright):
    """Find playwright's Chromium, else the system's; skip if there is none."""
    own = playwright.chromium.executable_path
    for path in (own if pathlib.Path(own).exists() else None, *map(shutil.which, NAMES)):
        if path is not None:
            return path
    pytest.skip(
        "no Chromium: install Debian's chromium-headless-shell, or run "
        "`python -m playwright install --only-shell chromium`"
    )


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(playwright))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_sweep(folder, [NASTY, "x" * 300] + [f"class {i}" for i in range(30)])
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_report_in_a_browser(browser, report, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    loaded = page.evaluate(LOADED)
    assert len(loaded) == 10 and all(loaded)
    assert page.evaluate(ROWS) == ["patch_2.of-a-variant-with-quite-a-long-name", "patch_4"]
    page.locator("summary").click()  # the collapsed settings
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    assert complaints == []
    assert requests[0] == report.as_uri()
    assert all(url.startswith("data:") for url in requests[1:])
    context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """data.html and suspects.html, with long names."""
    root = tmp_path_factory.mktemp("pages")
    names = [NASTY.replace("/", ""), "x" * 200]
    save_noise(root / "photos", names, 10)
    (root / "photos" / names[1] / f"{'y' * 200}.png").write_bytes(b"nothing")
    shutil.copy(root / "photos" / names[0] / "1.png", root / "photos" / names[1] / "copy.png")
    diagnosis = diagnose(folder_config(root / "photos"))
    write_data_page(root / "data.html", "z" * 300, diagnosis)
    source = diagnosis.survey.splits["test"]
    suspects = [
        Suspect("n" * 300, "test", 0, 1, 0.1, -0.5, True, source, i) for i in range(len(source) - 1)
    ]
    run = types.SimpleNamespace(name="z" * 300, class_names=names, config=make_config())
    write_suspects(root / "suspects.html", run, suspects, 0, "margin")
    return root


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["data", "suspects"])
def test_pages_of_the_data_in_a_browser(browser, pages, name, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    page, complaints, requests = context.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((pages / f"{name}.html").as_uri())
    loaded = page.evaluate(LOADED)
    assert len(loaded) >= 3 and all(loaded)
    assert page.evaluate("[...document.images].every(image => image.alt)")
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert complaints == [] and all(url.startswith("data:") for url in requests[1:])
    context.close()


def test_report_on_paper(browser, report):
    """In print, nothing is cut off and the background is light."""
    context = browser.new_context(viewport={"width": 700, "height": 990}, color_scheme="dark")
    page = context.new_page()
    page.goto(report.as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    hidden = "e => getComputedStyle(e).overflow != 'visible' || e.scrollHeight > e.clientHeight + 2"
    assert page.evaluate(f"[...document.querySelectorAll('.scroll')].filter({hidden}).length") == 0
    images = "[...document.images].map(image => image.getBoundingClientRect().right)"
    assert max(page.evaluate(images)) <= 700
    context.close()
