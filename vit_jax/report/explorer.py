"""explorer.html: attention and explanations of one or two models, on one interactive page."""

import base64
import hashlib
import html
import pathlib
import re

from vit_jax.report.page import make_environment, render
from vit_jax.runtime.files import write_atomically


def write_explorer(path: pathlib.Path, title: str, contents: dict) -> None:
    """Write a self-contained page; `contents` are those of `explanation.explorer.collect`.

    The Content-Security-Policy allows the script and the style by their hashes, and no request.
    """
    environment = make_environment()
    style, script = (
        "".join(environment.get_template(name).render() for name in names)
        for names in (("report.css", "explorer.css"), ("explorer.js",))
    )
    page = render(
        "explorer.html",
        title=title,
        contents=contents,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


def read_title(path: pathlib.Path) -> str:
    """Read the title of a page that `write_explorer` wrote; "" if there is none."""
    if not path.exists():
        return ""
    with path.open(encoding="ascii") as file:
        found = re.search(r'<meta name="explored" content="([^"]*)">', file.read(2000))
    return html.unescape(found[1]) if found else ""


def _hash(text):
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("ascii")).digest()).decode()
