"""Write the measured tables of the documents from the work folders of finished experiments.

    python scripts/write_results.py runs/cifar_patch_cpu runs/digits_patch
    python scripts/write_results.py --add runs/cifar_patch_cpu
    python scripts/write_results.py --name cifar_patch_long runs/cifar_patch_long
    python scripts/write_results.py

Each work folder is condensed into docs/results/NAME.json, which is committed. NAME is that of its
config or, for a second table of the config, what `--name` says. The figures NAME_curves.png and
NAME_minutes.png are written where a document shows them. With `--add`, the variants of the folder
are added to those of the file, and the figures stay as they are. Then, with or without folders,
every block between `<!-- results: NAME -->` and `<!-- /results -->` in README.md and docs/ is
written from those files: the table of an experiment or, with the NAME `index`, all configs with
their best accuracy. A block without such a file stays as it is.
"""

import argparse
import ast
import json
import pathlib
import re
import shlex
import shutil
import sys
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vit_jax import plots  # noqa: E402
from vit_jax.config.loading import load_config  # noqa: E402
from vit_jax.evaluation.differences import add_differences  # noqa: E402
from vit_jax.report import table as tables  # noqa: E402
from vit_jax.runtime.errors import UserError  # noqa: E402
from vit_jax.storage.writers import read_jsonl  # noqa: E402

BLOCK = re.compile(r"(<!-- results: ([\w]+) -->\n).*?(<!-- /results -->)", re.DOTALL)
INDEX_HEAD = (
    "| config | what it compares | best test accuracy, % | profile | epochs | seeds "
    "| time per run | hardware |"
)


def collect(workdir: pathlib.Path) -> dict:
    """Condense a finished experiment to what the documents show.

    Raises:
      UserError: the folder holds no finished experiment that was started from the command line.
    """
    try:
        results = json.loads((workdir / "results.json").read_text())
        command = shlex.join(map(shorten, shlex.split(results["command"])))
    except (OSError, ValueError, KeyError):
        raise UserError(f"{workdir} holds no results.json with the command of a run") from None
    rows, records, devices = [], [], set()
    for row in results["rows"]:
        folders = [workdir / row["variant"] / f"seed_{seed}" for seed in row["seeds"]]
        summaries = [json.loads((path / "summary.json").read_text()) for path in folders]
        records += [json.loads((path / "config.json").read_text()) for path in folders]
        row["passes"] = summaries[0]["epochs"]
        row["minutes"] = sum(s["wall_seconds"] for s in summaries) / len(summaries) / 60
        devices |= {hardware(summary["device"]) for summary in summaries}
        rows.append(row)
    selects = {record["config"]["train.select"] for record in records}
    return {
        "command": command,
        "rows": rows,
        **totals(rows),
        **({"diverged": results["diverged"]} if "diverged" in results else {}),
        "select": selects.pop() if len(selects) == 1 else "variant",
        "hardware": ", ".join(sorted(devices)),
        "jax": records[0]["versions"]["jax"],
        "commits": sorted({short_commit(record["git_commit"]) for record in records}),
        "examples": records[0]["data"]["examples"],
        "notes": records[0].get("notes", []),
    }


def totals(rows: list[dict]) -> dict:
    """Sum up the minutes, the runs and the reused runs of rows."""
    return {
        "minutes": sum(row["minutes"] * len(row["seeds"]) for row in rows),
        "runs": sum(len(row["seeds"]) for row in rows),
        "reused": len({path for row in rows for path in row.get("reused_from", [])}),
    }


def add_variants(measured: dict, added: dict) -> dict:
    """Add the variants of a later run of an experiment; rows of the same name are replaced.

    The numbers of seeds may differ: the command of the table has the larger one.

    Raises:
      UserError: the commands, the sizes of the splits or `train.select` differ, or the config lacks
        a variant.
    """
    command, other = (_drop_flag(one["command"], "variants") for one in (measured, added))
    alike = [_drop_flag(one, "config.train.num_seeds") for one in (command, other)]
    pairs = [alike, *((measured[key], added[key]) for key in ("examples", "select"))]
    for before, now in pairs:
        if before != now:
            raise UserError(f"the runs to add differ from the measured ones: {now}, not {before}")
    seeds = [max(len(row["seeds"]) for row in one["rows"]) for one in (measured, added)]
    command = other if seeds[1] > seeds[0] else command
    experiment = load_config(":".join(filter(None, split_config(command))))
    found = {row["variant"]: row for row in measured["rows"] + added["rows"]}
    names = list(experiment.variants or ["base"])
    if unknown := found.keys() - set(names):
        raise UserError(f"{min(unknown)} is not a variant of {experiment.name}")
    rows = [found[name] for name in names if name in found]
    for row in rows:
        row.pop("difference", None)
    add_differences(rows, experiment.ladder)
    if len(rows) < len(names):
        command += f" --variants={','.join(row['variant'] for row in rows)}"
    joined = {key: _union(measured[key], added[key]) for key in ("hardware", "jax")}
    joined["commits"] = sorted({*measured["commits"], *added["commits"]})
    diverged = {*measured.get("diverged", []), *added.get("diverged", [])} - found.keys()
    joined |= {"diverged": sorted(diverged)} if diverged else {}
    joined["notes"] = list(dict.fromkeys(measured["notes"] + added["notes"]))
    return measured | totals(rows) | joined | {"command": command, "rows": rows}


def _drop_flag(command, name):
    words = shlex.split(command)
    return shlex.join(word for word in words if not word.startswith(f"--{name}="))


def _union(text, other):
    return ", ".join(sorted({*text.split(", "), *other.split(", ")}))


def shorten(word: str) -> str:
    """Reduce the absolute paths of `--flag=PATH,PATH` to their last two parts."""
    flag, equals, value = word.partition("=")
    paths = [
        "/".join(pathlib.PurePath(path).parts[1:][-2:]) if path.startswith("/") else path
        for path in value.split(",")
    ]
    return flag + equals + ",".join(paths)


def write_experiment(name: str) -> list[str]:
    """Write the block of one experiment."""
    measured = read_measured(name)
    rows = tables.sorted_rows(measured)
    lines = [f"    {measured['command']}", ""]
    lines += tables.markdown(columns(measured, rows)).splitlines()
    seeds = sorted({seed for row in measured["rows"] for seed in row["seeds"]})
    examples = measured["examples"]
    text = tables.legend(rows, seeds, measured["select"])
    lines += ["", *textwrap.wrap(f"{text} {tables.diverged(measured)}", 100), ""]
    facts = [
        f"Data: {examples['train']:,} training, {examples['val']:,} validation and "
        f"{examples['test']:,} test images.{_notes(measured)}",
        f"Hardware: {measured['hardware']}; JAX {measured['jax']}; {duration(measured['minutes'])} "
        f"for {measured['runs']} runs{_reused(measured)}, training and evaluation.",
        f"Code: commit {', '.join(measured['commits'])}.",
    ]
    for fact in facts:
        lines += textwrap.wrap(fact, 100, initial_indent="- ", subsequent_indent="  ")
    return lines


def columns(measured: dict, rows: list[dict]) -> dict[str, list[str]]:
    """Format the table of an experiment as {head: cells}, as the documents show it."""
    shown = tables.columns(rows)
    for head in ("minutes", "images/s"):
        shown.pop(head, None)
    by_name = {row["variant"]: row for row in measured["rows"]}
    full = [by_name[row["variant"].split(", ")[0]] for row in rows]  # not of a shorter length
    shown["epochs"] = [
        f"{round(row.get('epochs', one['passes']), 2):g}"
        for row, one in zip(rows, full, strict=True)
    ]
    shown["seeds"] = [f"{len(row['seeds'])}" for row in full]
    shown["time per run"] = [duration(row["minutes"]) for row in full]
    return shown


def _reused(measured):
    count = measured["reused"]
    verb = "is that" if count == 1 else "are those"
    return f", of which {count} {verb} of another experiment" if count else ""


def duration(minutes: float) -> str:
    """Format a duration in the unit that suits it."""
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def short_commit(commit: str | None) -> str:
    """Shorten the hash of a commit, and keep the mark of code that was not committed."""
    return re.sub(r"^([0-9a-f]{7})[0-9a-f]*", r"\1", commit or "unknown")


def hardware(device: str) -> str:
    """Spell out the `device` of a summary: "2 x cpu (AMD EPYC)" is two CPU cores."""
    count, _, kind = device.partition(" x ")
    cores = "core" if count == "1" else "cores"
    return f"{count} CPU {cores}{kind.removeprefix('cpu')}" if kind.startswith("cpu") else device


def write_short(name: str) -> list[str]:
    """Write the block of one experiment for the README."""
    measured = read_measured(name)
    rows = tables.sorted_rows(measured)
    lines = [
        "| variant | test accuracy, % | epochs | seeds | time per run |",
        "|---|--:|--:|--:|--:|",
    ]
    shown = columns(measured, rows)
    cells = ("variant", "test", "epochs", "seeds", "time per run")
    lines += [f"| {' | '.join(row)} |" for row in zip(*(shown[c] for c in cells), strict=True)]
    text = f"Hardware: {measured['hardware']}.{_notes(measured)} [Details](docs/results/{name}.md)."
    return [*lines, "", *textwrap.wrap(text, 100), "", f"    {measured['command']}"]


def _notes(measured):
    return "".join(f" {note[0].upper()}{note[1:].rstrip('.')}." for note in measured["notes"])


def write_index() -> list[str]:
    """Write the block of all configs, in alphabetical order."""
    lines = [INDEX_HEAD, "|---|---|--:|---|--:|--:|--:|---|"]
    for path in sorted((ROOT / "configs").glob("[a-z]*.py")):
        measured, name = read_measured(path.stem), path.stem
        compares = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0].rstrip(".")
        page = ROOT / "docs" / "results" / f"{name}.md"
        result = f"[see the page](results/{name}.md)" if page.exists() else "not measured"
        cells = [f"`configs/{path.name}`", compares, result, *[""] * 5]
        if measured:
            best = max(measured["rows"], key=lambda row: row["val_accuracy"]["mean"])
            variant = f" ({best['variant']})" if len(measured["rows"]) > 1 else ""
            result = f"[{tables.percent(best['test_accuracy'])}](results/{name}.md){variant}"
            _, profile = split_config(measured["command"])
            effort = [profile, f"{best['passes']:.3g}", str(len(best["seeds"]))]
            cells[2:] = [result, *effort, duration(best["minutes"]), measured["hardware"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def read_measured(name: str) -> dict | None:
    """Read docs/results/NAME.json; None if there is none."""
    path = ROOT / "docs" / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def render(path: pathlib.Path) -> str:
    """Render a document with its blocks up to date."""

    def block(match):
        start, name, end = match.groups()
        if name != "index" and read_measured(name) is None:
            return match.group()  # not measured again yet
        write = write_short if path.name == "README.md" else write_experiment
        lines = write_index() if name == "index" else write(name)
        return "\n".join([start, *lines, "", end])

    return BLOCK.sub(block, path.read_text())


def documents() -> list[pathlib.Path]:
    """List the documents that may have blocks."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def split_config(command: str) -> tuple[str, str]:
    """Name the config of a command, without folder and suffix, and its profile, often ""."""
    value = next(word for word in shlex.split(command) if word.startswith("--config="))
    path, _, profile = value.removeprefix("--config=").partition(":")
    return pathlib.Path(path).stem, profile


def write_figures(workdir: pathlib.Path, name: str, rows: list[dict]) -> None:
    """Copy curves.png, and draw the accuracy over minutes, where a document shows them."""
    curves, minutes = (
        ROOT / "docs" / "results" / f"{name}_{figure}.png" for figure in ("curves", "minutes")
    )
    shown = "".join(document.read_text() for document in documents())
    if curves.name in shown:
        shutil.copy(workdir / "curves.png", curves)
    if minutes.name in shown:
        runs = {
            row["variant"]: [
                read_jsonl(workdir / row["variant"] / f"seed_{seed}" / "metrics.jsonl")
                for seed in row["seeds"]
            ]
            for row in rows
        }
        plots.save_narrow_curves(minutes, "accuracy", runs, "minutes")


def main() -> None:
    """Collect the given work folders, then write all blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", nargs="*", type=pathlib.Path, help="of a finished experiment")
    parser.add_argument("--add", action="store_true", help="keep the variants measured before")
    parser.add_argument("--name", help="of the table (default: that of the config)")
    args = parser.parse_args()
    if args.name and len(args.workdir) != 1:
        parser.error("--name needs exactly one work folder")
    try:
        for workdir in args.workdir:
            measured = collect(workdir)
            name = args.name or split_config(measured["command"])[0]
            before = read_measured(name) if args.add else None
            if before:
                measured = add_variants(before, measured)
                print(f"figures of {name}: as before, without the added variants")
            else:
                write_figures(workdir, name, measured["rows"])
            path = ROOT / "docs" / "results" / f"{name}.json"
            path.write_text(json.dumps(measured, indent=1) + "\n")
        for path in documents():
            if (text := render(path)) != path.read_text():
                path.write_text(text)
                print(f"written: {path.relative_to(ROOT)}")
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
