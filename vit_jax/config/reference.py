"""Settings reference for --help and docs/settings.md, generated from the schema.

python -m vit_jax.config.reference > docs/settings.md
"""

import math

from vit_jax.config.schema import SECTIONS
from vit_jax.config.setting import COUNTABLE, SMALLEST, Setting

_PAGE = """# Settings

    python -m vit_jax.main --config=configs/cifar_patch.py --config.train.epochs=50

Every setting with its default: a config file changes some of them, the variants of its `sweep()`
and `--config.SECTION.KEY=VALUE` others. `0` and `""` stand for "not set"; give a duration in one of
steps, epochs or percent of the run. *Applies to*: the setting has an effect with these values of
another one only. *Resume*: what the same command may change when it resumes a run. This page is
generated: `python -m vit_jax.config.reference > docs/settings.md`.
"""
_RESUME = {
    "same": "",
    "any": "any value",
    "longer": "a larger value, once finished",
    "moved": "another path of the same contents",
}


def settings_page() -> str:
    """Render docs/settings.md."""
    parts = [_PAGE.rstrip()]
    for section, table in SECTIONS.items():
        parts.append(f"\n## {section or 'Run'}\n")
        parts.append("| setting | default | meaning | values | applies to | resume |")
        parts.append("|---|---|---|---|---|---|")
        for name, setting in table.items():
            key = f"{section}.{name}".removeprefix(".")
            other, values = setting.applies or ("", ())
            cells = (
                f"`{key}`",
                f"`{_quoted(setting.default)}`",
                setting.help,
                _allowed(setting),
                f"`{other}`: {', '.join(values)}" if other else "",
                _RESUME[setting.resume],
            )
            parts.append(f"| {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


def settings_help() -> str:
    """List every setting with its default and meaning, by section, for --help."""
    lines = ["settings, with their defaults; docs/settings.md also lists allowed values:"]
    for section, table in SECTIONS.items():
        lines.append("")
        for name, setting in table.items():
            start = f"--config.{section}.{name}".replace("..", ".")
            choices = f" ({', '.join(map(str, setting.choices))})" * bool(setting.choices)
            lines.append(f"  {start}={_quoted(setting.default)}\n      {setting.help}{choices}")
    return "\n".join(lines)


def _quoted(value):
    return f'"{value}"' if isinstance(value, str) else str(value)


def _allowed(setting: Setting) -> str:
    """Format the choices or bounds of a setting; "" for any value of its type."""
    if setting.choices:
        return ", ".join(map(str, setting.choices))
    if isinstance(setting.default, bool | str) or setting.low == -math.inf:
        return ""
    high = "< 1" if 0.999 < setting.high < 1 else f"≤ {setting.high:,}"
    low = "> 0" if setting.low == SMALLEST else f"≥ {setting.low}"
    return low if setting.high >= COUNTABLE else f"{low}, {high}"


if __name__ == "__main__":
    print(settings_page(), end="")
