"""report.html: a sweep on one self-contained page."""

import base64
import dataclasses
import importlib.resources
import io
import json
import pathlib
import shlex
import struct
from collections.abc import Iterable, Sequence

import jinja2

from vit_jax import plots
from vit_jax.report import run
from vit_jax.report import table as tables
from vit_jax.runtime.files import read_json
from vit_jax.storage.run_folder import run_path
from vit_jax.storage.writers import read_jsonl


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
      workdir: its folder.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
      published: source -> the order of variants that it found.
      select: `train.select`, which checkpoint was evaluated.
      arguments: of the command line; empty if it was not started from there.
    """

    workdir: pathlib.Path
    results: dict
    summaries: dict[str, list[dict]]
    published: dict[str, str]
    select: str
    arguments: Sequence[str] = ()

    @property
    def ranking(self) -> list[dict]:
        """The rows of results.json, at their last lengths, by test accuracy, the best first."""
        return sorted(self.results["rows"], key=lambda row: -row["test_accuracy"]["mean"])

    @property
    def chosen(self) -> str:
        """The variant with the best validation accuracy."""
        # Not the one that is best on the test set: that would flatter.
        return max(self.results["rows"], key=lambda row: row["val_accuracy"]["mean"])["variant"]

    @property
    def best(self) -> dict:
        """The summary of that variant's seed with the best validation accuracy."""
        summaries = self.summaries[self.chosen]
        return max(summaries, key=lambda summary: summary["val_accuracy"])

    @property
    def best_folder(self) -> pathlib.Path:
        """The folder of that run."""
        return run_path(self.workdir, self.chosen, self.best["seed"])

    @property
    def explanation(self) -> pathlib.Path:
        """The folder of that run's explanations."""
        return self.best_folder / "figures" / "explanation"

    @property
    def first_seed(self) -> int:
        """The first seed, whose curves are drawn."""
        return tables.collect(self.summaries, "seed")[0]

    def metrics(self) -> dict[str, list[dict]]:
        """Read metrics.jsonl of the first seed of each variant."""
        paths = {name: run_path(self.workdir, name, self.first_seed) for name in self.summaries}
        return {name: read_jsonl(path / "metrics.jsonl") for name, path in paths.items()}

    def records(self) -> dict[str, list[dict]]:
        """Read config.json of each variant and seed, the best first; {} where it is missing."""
        seeds = {name: [one["seed"] for one in group] for name, group in self.summaries.items()}
        return {
            name: [read_json(run_path(self.workdir, name, s) / "config.json") for s in seeds[name]]
            for name in (row["variant"] for row in self.ranking)
        }


def make_environment() -> jinja2.Environment:
    """Make the environment of the templates, which are package data."""
    folder = importlib.resources.files("vit_jax.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=jinja2.select_autoescape(["html"]),
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    environment.filters["percent"] = lambda fraction: f"{100 * fraction:.2f}"
    return environment


def make_page(sweep: Sweep) -> str:
    """Render report.html, in ASCII: lone surrogates and other locales do no harm."""
    template = make_environment().get_template("report.html")
    records, rows = sweep.records(), tables.sorted_rows(sweep.results)
    configs = {name: group[0]["config"] for name, group in records.items() if group[0]}
    differences = _differences(configs)
    shared = next(iter(configs.values()), {})
    folder, explanation = sweep.best_folder, sweep.explanation
    report, sentences, bars = read_json(folder / "test_report.json"), [], None
    if report:
        sentences = run.findings(report)
        sentences += run.describe_training(read_jsonl(folder / "metrics.jsonl"))
    if len(rows) > 1:
        bars = _draw(0.42, plots.save_bars, sweep.results["experiment"], rows)
    # Class names are small in a large confusion matrix.
    shrink = 0.75 if report and len(report["classes"]) > 25 else 0.5
    page = template.render(
        tables=tables,
        run=run,
        sweep=sweep,
        rows=rows,
        best=sweep.best,
        best_row=next(row for row in sweep.ranking if row["variant"] == sweep.chosen),
        seeds=_seeds(sweep),
        datasets=_datasets(records),
        bars=bars,
        curves=_curves(sweep),
        report=report,
        sentences=sentences,
        confusion=_image_of(folder / "figures" / "confusion.png", shrink),
        kernels=_image_of(folder / "figures" / "kernel_magnitudes.png"),
        scores=read_json(explanation / "scores.json"),
        rollout=_image_of(explanation / "attention_rollout.png"),
        score_curves=_image_of(explanation / "scores.png"),
        differences=differences,
        differing_rows=list(zip(configs, *differences.values(), strict=True)),
        settings={k: _text(v) for k, v in shared.items() if k not in {"seed", *differences}},
        command=[*map(shlex.quote, sweep.arguments)],
        environment=_environment_facts(sweep, records),
    )
    return page.encode("ascii", "xmlcharrefreplace").decode()


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _seeds(sweep):
    seeds = tables.collect(sweep.summaries, "seed")
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _image(png, shrink):
    """Embed a PNG that may shrink to a fraction of its width."""
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    return dict(data=data, width=width, height=height, min_width=round(shrink * width))


def _image_of(path, shrink=0.5):
    return _image(path.read_bytes(), shrink) if path.exists() else None


def _draw(shrink, save, *args):
    file = io.BytesIO()
    save(file, *args)
    return _image(file.getvalue(), shrink)


def _datasets(records):
    """Find (data, settings) of each dataset, of which there is mostly one."""
    found = {}
    for record in filter(None, sum(records.values(), [])):
        settings, data = record["config"], record["data"]
        key = json.dumps([settings["data.name"], settings["data.dir"], data["examples"]])
        found.setdefault(key, (data, settings))
    return list(found.values())


def _curves(sweep):
    """Draw {quantity: (image, names)} of the first seed of each variant that has metrics."""
    runs = {name: rows for name, rows in sweep.metrics().items() if rows}
    return {
        quantity: (_draw(0.38, plots.save_narrow_curves, quantity, runs), ", ".join(runs))
        for quantity in (("accuracy", "loss") if runs else ())
    }


def _differences(configs):
    """Find {key: [value of each variant]} of the settings in which variants differ."""
    keys = _unique(key for settings in configs.values() for key in settings if key != "seed")
    values = {key: [_text(c.get(key, "-")) for c in configs.values()] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _text(value):
    if isinstance(value, list):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return str(value) if value != "" else '""'


def _environment_facts(sweep, records):
    """List the hardware, time, commits and package versions of all runs."""
    facts = {
        "Hardware": ", ".join(tables.collect(sweep.summaries, "device")),
        "Time": f"{tables.minutes(sweep.summaries):.1f} minutes of training and evaluation, all "
        "runs together",
        "Runs": f"{sum(map(len, sweep.summaries.values()))}, with {_seeds(sweep)}",
    }
    # Each stage of a lengthened run may have its own commit and versions.
    made = filter(None, sum(records.values(), []))
    made = [stage for record in made for stage in (*record.get("legs", []), record)]
    if made:
        facts["Git commit"] = ", ".join(_unique(stage["git_commit"] or "unknown" for stage in made))
    for package in _unique(package for stage in made for package in stage["versions"]):
        versions = _unique(stage["versions"].get(package, "none") for stage in made)
        facts[package] = ", ".join(versions)
    return facts
