"""The project's texts use the field's words."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vit_jax", "scripts", "configs", "tests", "docs", "notebooks")
ENDINGS = {".py", ".md", ".html", ".css", ".js", ".ipynb"}
PATTERNS = {
    r'"""Returns\b|\breturns? what\b': "open a docstring with an imperative or a noun phrase",
    r"\blikewise\b": "repeat what is meant",
    r"\b(afresh|anew)\b": "from scratch, re-initialised, again",
    r"\bbeside\b": "next to, compared with",
    r"\b(borne|suffers?|in vain|unspeakable|sober)\b": "tolerated, fail, garbage, invalid, bounded",
    r"\b(is|are|was|were) told\b|\btold (of|in)\b|\btells?\b(?!\()": "documented, logged, reported",
    r"\bprograms? (speaks?|knows?|wants?)\b": "programs log, print, read, write, return",
    r"\ba text\b": "a string",
    r"\bwhole numbers?\b": "an integer",
    r"\bpictures?\b": "an image; a figure if it is a plot",
    r"\bcarved?\b": "split, held out",
    r"\bdata sets?\b": "dataset",
    r"\b(at_once|(seeds|steps) at once|several steps in a call)\b": "vectorised, multi-step",
    r"\b(goes|go|going|went) on\b": "resumes, continues",
    r"\bof (its|their) own\b": "in a subprocess; own",
    r"\b(first|second|third|a|the|each|both) legs?\b": "stage",
    r"\bhead's inputs\b": "features",
    r"\bweights to begin with\b": "initial weights",
    r"\bwhat is promised\b": "guarantees",
    r"\bis no flag\b|\bset: set it\b": "unrecognised flag; must be set",
    r"\b(in|is) one sentence\b": "a single-line error",
    r"\bheld on the devices?\b|\bresident images\b": "device-resident",
    r"\brate of learning\b": "learning rate",
}


def texts():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    paths = [path for path in paths if path.suffix in ENDINGS and path != Path(__file__)]
    return [*paths, *ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_word_that_the_field_does_not_use(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in texts()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]
    assert not found, f"write: {PATTERNS[pattern]}\n" + "\n".join(found)
