"""Fonts for the characters that matplotlib's default font lacks, such as Chinese class names."""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import matplotlib.figure
import matplotlib.font_manager
import matplotlib.text
from matplotlib.ft2font import FT2Font


@contextlib.contextmanager
def fonts_for(figure: matplotlib.figure.Figure) -> Iterator[None]:
    """Draw a figure with installed fonts that have its characters; one that none has is a box.

    Dollar signs are drawn: names of classes and files are not formulas.
    """
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels()  # sets their text
    texts: list = figure.findobj(matplotlib.text.Text)
    fallbacks = _fallbacks(frozenset("".join(text.get_text() for text in texts)))
    for text in texts:
        text.set_parse_math(False)
        if fallbacks:
            text.set_fontfamily([*text.get_fontfamily(), *fallbacks])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")
        yield


@functools.lru_cache
def _fallbacks(characters):
    """List fonts that have what the default font lacks, greedily: as few as possible."""
    missing = {ord(character) for character in characters if character.isprintable()}
    default = matplotlib.font_manager.FontProperties()
    missing -= _covered(matplotlib.font_manager.findfont(default), missing)
    if not missing:
        return []
    entries = matplotlib.font_manager.fontManager.ttflist
    fonts = {
        entry.name: entry.fname
        for entry in sorted(entries, key=lambda entry: entry.weight == 400)  # regular ones last
        if entry.style == "normal" and not entry.name.startswith("Last Resort")  # boxes
    }
    covered, names = {name: _covered(fonts[name], missing) for name in sorted(fonts)}, []
    while missing:
        name = max(covered, key=lambda name: len(covered[name] & missing))
        if not covered[name] & missing:
            break
        missing -= covered[name]
        names.append(name)
    return names


def _covered(path, codes):
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):  # removed or damaged since matplotlib listed it
        return set()
    return {code for code in codes if font.get_char_index(code)}
