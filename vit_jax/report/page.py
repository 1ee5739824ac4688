"""report.html: a sweep on one page, which needs no other file and no network."""

import dataclasses
import io
import json
import pathlib
import shlex
from collections.abc import Iterable, Sequence

from vit_jax import plots
from vit_jax.report import markup, run
from vit_jax.report import table as tables
from vit_jax.storage.writers import read_jsonl


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
      workdir: its folder.
      results: the contents of results.json.
      summaries: variant -> summary.json of each seed.
      published: source -> the order that it found.
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
        return self.workdir / self.chosen / f"seed_{self.best['seed']}"

    @property
    def explanation(self) -> pathlib.Path:
        """The folder of what that run looks at."""
        return self.best_folder / "figures" / "explanation"

    def records(self) -> dict[str, list[dict]]:
        """Returns config.json of each variant and seed, the best first; {} where it is missing."""
        return {
            row["variant"]: [
                _read(self.workdir / row["variant"] / f"seed_{summary['seed']}" / "config.json")
                for summary in self.summaries[row["variant"]]
            ]
            for row in self.ranking
        }


def make_page(sweep: Sweep) -> str:
    """Returns report.html."""
    name, records = sweep.results["experiment"], sweep.records()
    variant, best, folder = sweep.chosen, sweep.best, sweep.best_folder
    report = _read(folder / "test_report.json")
    body = [
        f"<header>\n<h1>{markup.escape(name)}</h1>",
        markup.paragraph(_introduction(sweep, records)),
        "</header>",
        _key_figures(sweep, best, report),
        _comparison(sweep),
        _curves(sweep),
        _best_run(folder, variant, best, report),
        _explanations(sweep.explanation, f"{variant}, seed {best['seed']}"),
        _settings(records),
        _repeat(sweep, records),
    ]
    return markup.document(f"{name}: report", "\n".join(filter(None, body)))


def _read(path):
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # or damaged: the page is not to suffer
        return {}


def _unique(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _seeds(sweep):
    seeds = tables.find_seeds(sweep.summaries)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _introduction(sweep, records):
    count = len(records)
    text = f"{count} variant{'s' * (count > 1)}, {_seeds(sweep)}."
    if differing := list(_differences(_configs(records))):
        text += f" The variants differ in {', '.join(differing)}."
    for data, settings in _unique_data(records):
        examples, parts = data["examples"], ("training", "validation", "test")
        counts = [f"{examples[key]:,}" for key in ("train", "val", "test")]
        sizes = [f"{size} {part}" for size, part in zip(counts, parts, strict=True)]
        source = settings["data.dir"] if settings["data.name"] == "folder" else None
        text += (
            f" Data: {source or settings['data.name']}, {len(data['classes'])} classes; "
            f"{', '.join(sizes)} images."
        )
    return text


def _unique_data(records):
    """Returns (data, settings) once for each set of images, of which there is mostly one."""
    found = {}
    for group in records.values():
        for record in filter(None, group):
            settings, data = record["config"], record["data"]
            key = json.dumps([settings["data.name"], settings["data.dir"], data["examples"]])
            found.setdefault(key, (data, settings))
    return list(found.values())


def _key_figures(sweep, best, report):
    top = next(row for row in sweep.ranking if row["variant"] == sweep.chosen)
    low, high = report.get("accuracy_interval", (None, None))
    interval = "" if low is None else f"95 % interval {100 * low:.2f} to {100 * high:.2f}"
    facts = {"Test accuracy": (f"{100 * best['test_accuracy']:.2f} %", interval)}
    facts["Validation accuracy"] = (f"{100 * best['val_accuracy']:.2f} %", "")
    facts["Training accuracy"] = (f"{100 * best['train_accuracy']:.2f} %", "")
    epoch, total = "not trained", ""
    if best["steps"]:
        epoch = f"{round(best['best_step'] * best['epochs'] / best['steps'], 2):g}"
        total = f"of {round(best['epochs'], 2):g}"
    which = {"best": "Best epoch", "last": "Last epoch"}[sweep.select]
    facts[which] = (epoch, total)
    trained = best["num_trainable_params"]
    part = "" if trained == best["num_params"] else f"{trained:,} trained"
    facts["Parameters"] = (f"{best['num_params']:,}", part)
    if best["images_per_second"] is not None:
        facts["Speed of training"] = (f"{best['images_per_second']:,.0f} images/s", "")
    facts["Time"] = (f"{best['wall_seconds'] / 60:.1f} minutes", "training and evaluation")
    facts["Device"] = (best["device"], "")
    notes = []
    counts = {"variants": len(sweep.ranking), "seeds": len(sweep.summaries[sweep.chosen])}
    if several := [what for what, count in counts.items() if count > 1]:
        notes += [f"Chosen of the {' and '.join(several)} by validation accuracy."]
    if top.get("legs"):
        notes += [f"At its last length, {top['epochs']:g} epochs; only of that are details kept."]
    return markup.section(
        f"Best run: {top['variant']}, seed {best['seed']}",
        markup.cards(facts),
        markup.paragraph(" ".join(notes), quiet=True) if notes else "",
    )


def _comparison(sweep):
    rows, name = tables.sorted_rows(sweep.results), sweep.results["experiment"]
    order = ", ".join(f"{row['variant']} {tables.percent(row['test_accuracy'])} %" for row in rows)
    chart = ""
    if len(rows) > 1:
        file = io.BytesIO()
        plots.save_bars(file, name, rows)
        chart = markup.picture(
            file.getvalue(), f"Bar chart of the test accuracy: {order}.", "", 0.42
        )
    orders = tables.orders(rows, sweep.published)
    published = markup.table("published orders", tables.PUBLISHED_HEAD, orders.items())
    return markup.section(
        "Results",
        markup.table(
            "results", tables.HEAD, tables.table_cells(rows), numbers=True, best=len(rows) > 1
        ),
        markup.paragraph(
            tables.legend(rows, tables.find_seeds(sweep.summaries), sweep.select), quiet=True
        ),
        chart,
        markup.heading("Beside what is published") + "\n" + published if orders else "",
    )


def _curves(sweep):
    seed = tables.find_seeds(sweep.summaries)[0]
    runs = {
        row["variant"]: read_jsonl(
            sweep.workdir / row["variant"] / f"seed_{seed}" / "metrics.jsonl"
        )
        for row in sweep.results["rows"]  # not the ranking: colours are to stay what they are
    }
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        return ""
    pictures = []
    for quantity in ("accuracy", "loss"):
        chart = io.BytesIO()
        plots.save_narrow_curves(chart, quantity, runs)
        alt = f"Curves of training and validation {quantity} over epochs: {', '.join(runs)}."
        pictures.append(markup.picture(chart.getvalue(), alt, quantity.capitalize(), 0.38))
    note = (
        f"Seed {seed}. Lines with marks: validation; thin lines: batches of the training, with "
        "their augmentation."
    )
    return markup.section(
        "Curves", markup.side_by_side(*pictures), markup.paragraph(note, quiet=True)
    )


def _best_run(folder, variant, best, report):
    name, parts = f"{variant}, seed {best['seed']}", []
    if report:
        parts += [markup.facts("test report", run.overall(report).items())]
        sentences = run.findings(report) + run.training(read_jsonl(folder / "metrics.jsonl"))
        parts += [markup.bullets(sentences)]
        right = sum(row[i] for i, row in enumerate(report["confusion"]))
        alt = (
            f"Confusion matrix of {name}: {right:,} of {report['count']:,} test images are on its "
            "diagonal; the classes most often confused are listed above it."
        )
        many = len(report["classes"]) > 25  # names are then small
        parts += [
            _figure(
                folder / "figures" / "confusion.png", alt, "Confusion matrix", 0.75 if many else 0.5
            )
        ]
        parts += [markup.heading("Class by class")]
        cells = run.class_cells(report)
        parts += [markup.table("classes", run.CLASS_HEAD, cells, numbers=True, tall=many)]
        note = "All but the images in %. A class's accuracy is the share of its images that are "
        parts += [markup.paragraph(f"{note}recognised, which is its recall.", quiet=True)]
    alt = f"Size of every layer's kernel of {name} before and after training."
    path = folder / "figures" / "kernel_magnitudes.png"
    parts += [_figure(path, alt, "Kernels before and after training")]
    return markup.section(f"Test report of {name}", *parts)


def _explanations(folder, name):
    found, parts = _read(folder / "scores.json"), []
    if found:
        alt = f"Test images beside heat maps of what {name} attends to in them."
        caption = "Attention rollout, and weighted by the class's gradient"
        parts += [_figure(folder / "attention_rollout.png", alt, caption)]
        alt = "Curves of the predicted class's probability as patches are removed or shown, for "
        alt += f"{', '.join(found['methods'])}; their areas are in the table below."
        parts += [_figure(folder / "scores.png", alt, "Are these the patches that matter?")]
        parts += [
            markup.table("explanations", run.SCORE_HEAD, run.score_cells(found), numbers=True)
        ]
        parts += [markup.paragraph(run.score_legend(found), quiet=True)]
    return markup.section(f"What {name}, looks at", *parts) if parts else ""


def _figure(path, alt, caption, least=0.5):
    return markup.picture(path.read_bytes(), alt, caption, least) if path.exists() else ""


def _configs(records):
    """Returns {variant: {key: value}} of the first seeds, without the seed."""
    return {
        variant: {key: value for key, value in group[0]["config"].items() if key != "seed"}
        for variant, group in records.items()
        if group[0]
    }


def _differences(configs):
    """Returns {key: [value of each variant]} of the settings in which variants differ."""
    keys = _unique(key for settings in configs.values() for key in settings)
    values = {key: [_text(c.get(key, "-")) for c in configs.values()] for key in keys}
    return {key: texts for key, texts in values.items() if len(set(texts)) > 1}


def _text(value):
    if isinstance(value, list):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return str(value) if value != "" else '""'


def _settings(records):
    configs = _configs(records)
    if not configs:
        return ""
    differing, parts = _differences(configs), []
    if differing:
        rows = [[name, *texts] for name, *texts in zip(configs, *differing.values(), strict=True)]
        parts += [markup.paragraph("In which the variants differ:")]
        parts += [markup.table("differing settings", ["variant", *differing], rows)]
    shared = next(iter(configs.values()))
    pairs = [(key, _text(value)) for key, value in shared.items() if key not in differing]
    title = f"The {len(pairs)} settings that {'all variants share' if differing else 'were used'}"
    parts += [markup.fold(title, markup.facts("settings", pairs))]
    return markup.section("Settings", *parts)


def _repeat(sweep, records):
    facts = {
        "Hardware": ", ".join(tables.devices(sweep.summaries)),
        "Time": f"{tables.minutes(sweep.summaries):.1f} minutes of training and evaluation, all "
        "runs together",
        "Runs": f"{sum(map(len, sweep.summaries.values()))}, with {_seeds(sweep)}",
    }
    # Each leg of a lengthened run may have been made with something else.
    made = [r for group in records.values() for r in filter(None, group)]
    made = [part for record in made for part in (*record.get("legs", []), record)]
    if made:
        commits = _unique(part["git_commit"] or "unknown" for part in made)
        facts["Git commit"] = ", ".join(commits)
        for package in _unique(package for part in made for package in part["versions"]):
            versions = _unique(part["versions"].get(package, "none") for part in made)
            facts[package] = ", ".join(versions)
    parts = []
    if sweep.arguments:
        lines = [shlex.quote(argument) for argument in sweep.arguments]
        parts += [markup.command([f"python -m vit_jax.main {lines[0]}", *lines[1:]])]
        parts += [
            markup.paragraph(
                "Typed in the project's folder. What is finished is not trained again; with "
                "another --workdir, everything is.",
                quiet=True,
            )
        ]
    return markup.section("To repeat it", *parts, markup.facts("made with", facts.items()))
