"""report.html: a sweep on one self-contained page."""

import base64
import dataclasses
import functools
import importlib.resources
import io
import json
import pathlib
import shlex
import struct
import urllib.parse
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from vit_jax import plots
from vit_jax.config import EXPLAINED_POOLS, current_names, flatten, get_config, resolve
from vit_jax.config.schema import SCHEMA
from vit_jax.evaluation.labels import METRICS, metric_of, score_of
from vit_jax.report import run
from vit_jax.report import table as tables
from vit_jax.runtime.files import read_json
from vit_jax.storage.run_folder import run_path
from vit_jax.storage.writers import read_jsonl

ENOUGH_PATCHES = 16  # for a heat map to show something
_THUMBNAIL = 128  # pixels
SEEDS = ("seed", "train.num_seeds")  # of one run; the page names the seeds of all


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
      workdir: its folder.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
      published: source -> its order of variants.
      select: `train.select`, the checkpoint that was evaluated; "variant": not of all the same.
      arguments: of the command line; empty if called from Python.
    """

    workdir: pathlib.Path
    results: dict
    summaries: dict[str, list[dict]]
    published: dict[str, str]
    select: str
    arguments: Sequence[str] = ()

    @property
    def ranking(self) -> list[dict]:
        """The rows of results.json, without earlier lengths, sorted by test accuracy."""
        return sorted(self.results["rows"], key=lambda row: -score_of(row, "test")["mean"])

    @property
    def chosen(self) -> str:
        """The variant with the best validation accuracy."""
        # Choosing by test accuracy would bias the reported accuracy upwards.
        return max(self.results["rows"], key=lambda row: score_of(row, "val")["mean"])["variant"]

    @property
    def best(self) -> dict:
        """The summary of that variant's seed with the best validation accuracy."""
        return self._best_of(self.chosen)

    @property
    def best_folder(self) -> pathlib.Path:
        """The folder of that run."""
        return run_path(self.workdir, self.chosen, self.best["seed"])

    @functools.cached_property
    def num_patches(self) -> dict[str, int]:
        """The number of patches of each variant, 0 if rollout does not explain it."""
        patches = {}
        for name, records in self.records().items():
            settings = records[0].get("config", {})
            size, patch = (settings.get(k, 0) for k in ("data.image_size", "model.patch_size"))
            is_vit = settings.get("model.name") == "vit" and patch
            explained = is_vit and settings.get("model.pool", "cls") in EXPLAINED_POOLS
            patches[name] = (size // patch) ** 2 if explained else 0
        return patches

    @property
    def explained(self) -> str:
        """The variant whose attention is shown: the best that it explains, with enough patches."""

        def rank(row):
            patches = self.num_patches[row["variant"]]
            return min(patches, ENOUGH_PATCHES), score_of(row, "val")["mean"]

        return max(self.results["rows"], key=rank)["variant"]

    @property
    def explained_folder(self) -> pathlib.Path:
        """The folder of its seed with the best validation accuracy."""
        return run_path(self.workdir, self.explained, self._best_of(self.explained)["seed"])

    @property
    def explanation(self) -> pathlib.Path:
        """The folder of that run's explanations."""
        return self.explained_folder / "figures" / "explanation"

    def scores(self) -> dict:
        """Read that run's scores of explanations; {} if missing, or of an earlier version."""
        scores = read_json(self.explanation / "scores.json")
        return scores if "trusted" in scores else {}

    def _best_of(self, variant):
        return max(self.summaries[variant], key=lambda summary: score_of(summary, "val"))

    def metrics(self) -> dict[str, list[list[dict]]]:
        """Read metrics.jsonl of each variant and seed."""
        return {
            name: [
                read_jsonl(run_path(self.workdir, name, summary["seed"]) / "metrics.jsonl")
                for summary in group
            ]
            for name, group in self.summaries.items()
        }

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


def render(template: str, **context: Any) -> str:
    """Render a page, in ASCII, so that it does not depend on the locale."""
    page = make_environment().get_template(template).render(**context)
    return page.encode("ascii", "xmlcharrefreplace").decode()


def make_page(sweep: Sweep) -> str:
    """Render report.html."""
    records, rows = sweep.records(), tables.sorted_rows(sweep.results)
    defaults = flatten(resolve(get_config()))  # of settings that earlier versions lacked
    configs = {
        name: defaults | current_names(group[0]["config"])
        for name, group in records.items()
        if group[0]
    }
    differing, columns = _differences(configs), tables.columns(rows)
    shared = {k: v for k, v in next(iter(configs.values()), {}).items() if k not in differing}
    # Parts of a sweep may run on other machines; no such setting changes a result.
    free = {k for k, one in SCHEMA.items() if one.resume == "any"} - {"data.dir"}
    differences = {k: texts for k, texts in differing.items() if k not in free}
    report, metrics = (
        read_json(sweep.best_folder / "test_report.json"),
        read_jsonl(sweep.best_folder / "metrics.jsonl"),
    )
    return render(
        "report.html",
        tables=tables,
        run=run,
        sweep=sweep,
        rows=rows,
        columns=columns,
        cells=list(zip(*columns.values(), strict=True)),
        best=sweep.best,
        best_row=next(row for row in sweep.ranking if row["variant"] == sweep.chosen),
        seeds=_seeds(sweep.summaries),
        chosen_seeds=_seeds({"": sweep.summaries[sweep.chosen]}),
        datasets=_datasets(records),
        runs=list(_runs(sweep)),
        metric=METRICS[metric_of(rows[0])],
        score_of=score_of,
        accuracies=_draw(0.43, plots.save_accuracies, sweep.results["experiment"], rows)
        if len(rows) > 1
        else None,
        curves=_curves(sweep),
        training=run.describe_training(metrics),
        report=report,
        sentences=run.findings(report) if report else [],
        mistakes=_mistakes(sweep, report),
        scores=sweep.scores(),
        explorer=(sweep.workdir / "explorer.html").exists(),
        differences=differences,
        differing_rows=list(zip(configs, *differences.values(), strict=True)),
        settings={k: _text(v) for k, v in shared.items() if k not in SEEDS},
        command=[*map(shlex.quote, sweep.arguments)],
        environment=_environment_facts(sweep, records),
        **_figures(sweep, report),
    )


def _figures(sweep, report):
    """Read the figures of the best run, and of the one that is explained; None if missing."""
    folder = sweep.best_folder / "figures"
    # Class names are small in a large confusion matrix.
    shrink = 0.75 if report and len(report["classes"]) > 25 else 0.5
    return {
        "confusion": _image_of(folder / "confusion.png", shrink),
        "reliability": _image_of(folder / "reliability.png", 0.38),
        "kernels": _image_of(folder / "kernel_magnitudes.png"),
        "rollout": _image_of(sweep.explanation / "attention_rollout.png"),
        "rollout_dark": _image_of(sweep.explanation / "attention_rollout_dark.png"),
        "score_curves": _image_of(sweep.explanation / "scores.png"),
    }


def _runs(sweep):
    """Yield (relative link, cells below `run.RUN_HEAD`) of each run, the best variant first."""
    for row in sweep.ranking:
        for summary in sweep.summaries[row["variant"]]:
            path = run_path(pathlib.Path(), row["variant"], summary["seed"]).as_posix()
            link = urllib.parse.quote(path, errors="surrogateescape")
            yield f"./{link}/", run.run_cells(row["variant"], summary)


def _mistakes(sweep, report):
    """List (image, true class, predicted class, probability) of the most confident mistakes."""
    names, found = list(report.get("classes", ())), []
    for i, mistake in enumerate(report.get("mistakes", ())):
        image = _image_of(sweep.best_folder / "figures" / "mistakes" / f"{i:02d}.png")
        if image:
            classes = (names[mistake[key]] for key in ("label", "predicted"))
            found.append((image, *classes, mistake["probability"]))
    return found


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _seeds(summaries):
    seeds = tables.collect(summaries, "seed")
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def thumbnail(image: np.ndarray) -> bytes:
    """Encode uint8 [h, w, c] as a PNG of at most `_THUMBNAIL` pixels per side."""
    small = Image.fromarray(image[..., :3] if image.shape[-1] >= 3 else image[..., 0])
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "png")
    return file.getvalue()


def encode_png(png: bytes, shrink: float = 0.5) -> dict:
    """Encode a PNG for a page, where it may shrink to a fraction of its width."""
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    return dict(data=data, width=width, height=height, min_width=round(shrink * width))


def _image_of(path, shrink=0.5):
    return encode_png(path.read_bytes(), shrink) if path.exists() else None


def _draw(shrink, save, *args):
    file = io.BytesIO()
    save(file, *args)
    return encode_png(file.getvalue(), shrink)


def _datasets(records):
    """Collect (data, settings) of each dataset; usually there is one."""
    found = {}
    for record in filter(None, sum(records.values(), [])):
        settings, data = record["config"], record["data"]
        key = json.dumps([settings["data.name"], settings["data.dir"], data["examples"]])
        found.setdefault(key, (data, settings))
    return list(found.values())


def _curves(sweep):
    """Draw [(quantity, "epochs" or "minutes", image)] of the variants whose runs have metrics."""
    runs = {name: seeds for name, seeds in sweep.metrics().items() if any(seeds)}
    found = {key for seeds in runs.values() for rows in seeds for row in rows for key in row}
    quantities = [key for key in plots.QUANTITIES if {f"train/{key}", f"val/{key}"} & found]
    curves = [(key, "epochs") for key in quantities]
    if len(runs) > 1:  # whose epochs take different times
        curves += [(key, "minutes") for key in quantities[:1]]
    return [
        (plots.QUANTITIES[key], over, _draw(0.38, plots.save_narrow_curves, key, runs, over))
        for key, over in curves
    ]


def _differences(configs):
    """Find {key: [value of each variant]} of the settings in which variants differ."""
    keys = _unique(key for settings in configs.values() for key in settings if key not in SEEDS)
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
        "Runs": f"{sum(map(len, sweep.summaries.values()))}, with {_seeds(sweep.summaries)}",
    }
    made = list(filter(None, sum(records.values(), [])))
    notes = _unique(note for record in made for note in record.get("notes", []))
    if notes:
        facts["Data"] = " ".join(notes)
    # Each stage of a lengthened run may have its own commit and versions.
    made = [stage for record in made for stage in (*record.get("stages", []), record)]
    if made:
        facts["Git commit"] = ", ".join(_unique(stage["git_commit"] or "unknown" for stage in made))
    for package in _unique(package for stage in made for package in stage["versions"]):
        versions = _unique(stage["versions"].get(package, "none") for stage in made)
        facts[package] = ", ".join(versions)
    return facts
