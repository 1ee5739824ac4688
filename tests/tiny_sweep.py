"""A finished sweep of two variants and two seeds, written without training, for tests."""

import json

import numpy as np
from PIL import Image

from vit_jax.evaluation.differences import add_differences
from vit_jax.evaluation.evaluate import make_report
from vit_jax.report import Sweep, write_figures, write_report
from vit_jax.training.rows import make_row

NASTY = "<script>alert('&\"')</script>$\\frac{$"  # for browsers and for matplotlib


def summary(seed, test, speed=100.0):
    """Make the summary.json of a run."""
    return {
        "seed": seed,
        "num_params": 1234,
        "num_trainable_params": 1234,
        "epochs": 3.0,
        "steps": 30,
        "best_step": 20,
        "train_accuracy": 0.99,
        "val_accuracy": 0.9,
        "test_accuracy": test,
        "images_per_second": speed,
        "wall_seconds": 30.0,
        "device": "1 x test",
    }


def write_metrics(folder):
    """Write the metrics.jsonl of a run of three epochs."""
    rows = [
        {"step": 10 * s, "epoch": s, "wall_seconds": 60.0 * s}
        | {f"{part}/loss": 1 / s, f"{part}/accuracy": 1 - 1 / s}
        for s in (1, 2, 3)
        for part in ("train", "val")
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_run(folder, classes, settings):
    """Write the outputs of a run except checkpoints and events."""
    folder.mkdir(parents=True)
    write_metrics(folder)
    record = {
        "config": {"data.name": "folder", "data.dir": f"/{NASTY}", "seed": 0} | settings,
        "data": {"classes": classes, "examples": {"train": 1000, "val": 10, "test": 8}},
        "versions": {"python": "3.11.0", "jax": "9.9.9"},
        "git_commit": "0123abcd",
        "notes": ["The images are stored as JPEG."],
    }
    (folder / "config.json").write_text(json.dumps(record))
    labels = np.arange(8) % len(classes)
    predicted = np.where(np.arange(8) == 1, 0, labels)  # one dog is predicted as a cat
    report = make_report(5.0 * np.eye(len(classes))[predicted], labels, classes)
    (folder / "test_report.json").write_text(json.dumps(report))
    (folder / "summary.json").write_text("{}")
    write_figures(folder)
    (folder / "figures" / "mistakes").mkdir()
    Image.new("L", (8, 8)).save(folder / "figures" / "mistakes" / "00.png")


def write_explanation(folder):
    """Write the explanation of the best run: wide images and the scores."""
    folder.mkdir(parents=True)
    for name in ("attention_rollout.png", "attention_rollout_dark.png", "scores.png"):
        Image.new("RGB", (1500, 600), "white").save(folder / name)
    one = {"curve": [0.9, 0.1], "auc": 0.5, "auc_std": 0.2, "gain": 0.125, "gain_std": 0.5}
    one |= {"gain_error": 0.0625, "better": 0.75}
    found = {"saco": one, "deletion": one, "insertion": one | {"better": 0.5}, "randomised": 0.02}
    methods = dict.fromkeys(
        ("rollout", "gradient rollout", "last-layer attention", "random"), found
    )
    scores = {"images": 64, "patches": 16, "fractions": [0, 1], "methods": methods}
    scores |= {"residual": 0.01, "most_correlated": 0.5, "trusted": "rollout"}
    (folder / "scores.json").write_text(json.dumps(scores))


def make_sweep(workdir):
    """Make a sweep, whose folder need not exist, and {variant: overrides}."""
    groups = {
        "patch_4": [summary(0, 0.7), summary(1, 0.75)],
        "patch_2.of-a-variant-with-quite-a-long-name": [summary(0, 0.8), summary(1, 0.9)],
    }
    for group in groups.values():
        for one in group:
            one |= {"gflop_per_image": 0.0123, "pflop": 4.5}
    groups["patch_4"][0] |= {"num_trainable_params": 12, "val_accuracy": 0.85}
    overrides = {name: {"model.patch_size": i} for i, name in enumerate(groups)}
    rows = [make_row(name, overrides[name], group) for name, group in groups.items()]
    add_differences(rows)
    results = {"experiment": "demo", "rows": rows}
    published = {"A Paper <2020>": "b > a"}
    arguments = ["--config=configs/demo.py", f"--config.model.size={NASTY}", "--workdir=my runs"]
    return Sweep(workdir, results, groups, published, "best", arguments), overrides


def write_sweep(workdir, classes=("cat", "dog", NASTY)):
    """Write the folder of a sweep and return report.html."""
    sweep, overrides = make_sweep(workdir)
    for name, group in sweep.summaries.items():
        for one in group:
            settings = overrides[name] | {"optim.eps": 1e-8, "model.size": NASTY}
            # The settings of the command that trained it, on its machine: no difference.
            settings |= {"train.num_seeds": len(name), "data.num_threads": len(name)}
            write_run(workdir / name / f"seed_{one['seed']}", list(classes), settings)
    write_explanation(sweep.explanation)
    write_report(sweep)
    return (workdir / "report.html").read_text()
