"""The pieces of report.html. Plain texts come in and are escaped here; HTML goes out."""

import base64
import html
import struct
from collections.abc import Iterable, Sequence

from vit_jax.report.style import CSS

# Nothing is fetched and no script runs, whatever a class or a path may be called.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(text: object) -> str:
    """Returns a text that is safe between tags and in quoted attributes."""
    return html.escape(str(text), quote=True)


def document(title: str, body: str) -> str:
    """Returns the whole page, in ASCII, so that no locale and no lone surrogate can spoil it."""
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{CSS}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
    return page.encode("ascii", "xmlcharrefreplace").decode()


def section(title: str, *parts: str) -> str:
    """Returns parts below a heading; nothing if all of them are empty."""
    body = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def heading(text: str) -> str:
    """Returns a heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str, quiet: bool = False) -> str:
    """Returns a paragraph; a quiet one is a note."""
    kind = ' class="quiet"' if quiet else ""
    return f"<p{kind}>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Returns a list."""
    return "<ul>\n" + "\n".join(f"<li>{escape(text)}</li>" for text in texts) + "\n</ul>"


def cards(facts: dict[str, tuple[str, str]]) -> str:
    """Returns figures to see at a glance: {name: (value, note)}, the first one larger."""
    items = []
    for i, (name, (value, note)) in enumerate(facts.items()):
        small = f" <small>{escape(note)}</small>" if note else ""
        kind = ' class="main"' if i == 0 else ""
        items.append(f"<div{kind}><dt>{escape(name)}</dt><dd>{escape(value)}{small}</dd></div>")
    return "<dl>\n" + "\n".join(items) + "\n</dl>"


def table(
    label: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    numbers: bool = False,
    best: bool = False,
    tall: bool = False,
) -> str:
    """Returns a table in a box of its own, which scrolls where the table is too wide.

    Args:
      label: what it holds, for screen readers.
      head: texts above the columns.
      rows: texts; the first of each names its row.
      numbers: whether the columns but the first are numbers.
      best: whether to stress the first row.
      tall: whether the box has a limited height.
    """
    kind = ' class="number"' if numbers else ""
    cells = "".join(
        f'<th scope="col"{kind if i else ""}>{escape(text)}</th>' for i, text in enumerate(head)
    )
    lines = [f"<thead><tr>{cells}</tr></thead>", "<tbody>"]
    for i, (name, *texts) in enumerate(rows):
        # In a narrow column a text may be broken, but no number parted from its spread.
        texts = [text.replace(" ± ", "\xa0±\xa0").replace("≈ ", "≈\xa0") for text in texts]
        cells = "".join(f"<td{kind}>{escape(text)}</td>" for text in texts)
        stress = ' class="best"' if best and i == 0 else ""
        lines.append(f'<tr{stress}><th scope="row">{escape(name)}</th>{cells}</tr>')
    return _box(label, "<table>\n" + "\n".join(lines) + "\n</tbody></table>", tall)


def facts(label: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Returns a table of names and values."""
    lines = [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in pairs
    ]
    body = '<table class="facts"><tbody>\n' + "\n".join(lines) + "\n</tbody></table>"
    return _box(label, body)


def _box(label, body, tall=False):
    # In the order of the tab key, since without a mouse it is scrolled with the arrow keys.
    kind = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{kind}" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"\n{body}\n</div>"
    )


def command(lines: Iterable[str]) -> str:
    """Returns lines to be typed."""
    text = escape(" \\\n  ".join(lines))
    attributes = 'class="scroll" role="region" aria-label="command" tabindex="0"'
    return f"<pre {attributes}><code>{text}</code></pre>"


def fold(title: str, body: str) -> str:
    """Returns what is shown on a click."""
    return f"<details>\n<summary>{escape(title)}</summary>\n{body}\n</details>"


def picture(png: bytes, alt: str, caption: str, least: float = 0.5) -> str:
    """Returns a PNG, within the page, in a box that scrolls where it would become too small.

    Args:
      png: the file's contents.
      alt: what it shows, for those who do not see it.
      caption: below it; "" for none.
      least: the width down to which it may shrink, as a share of its own.
    """
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    image = (
        f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" '
        f'style="min-width: {round(least * width)}px" alt="{escape(alt)}">'
    )
    below = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    box = f'<div class="scroll" role="region" aria-label="chart" tabindex="0">\n{image}\n</div>'
    return f"<figure>\n{box}\n{below}</figure>"


def side_by_side(*parts: str) -> str:
    """Returns parts beside one another, or below where there is no room."""
    return '<div class="pair">\n' + "\n".join(parts) + "\n</div>"
