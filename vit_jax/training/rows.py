"""Summaries of runs: a variant's row of results.json, and their descriptions in the log."""

import datetime
import pathlib

import numpy as np

from vit_jax.evaluation.labels import METRICS, metric_of, score_of
from vit_jax.storage import run_folder


def make_row(name: str, overrides: dict, summaries: list[dict]) -> dict:
    """Make a variant's row of results.json from its seeds' summaries."""
    row = {"variant": name, "overrides": overrides, "seeds": [s["seed"] for s in summaries]}
    row |= {key: summaries[0][key] for key in ("num_params", "num_trainable_params")}
    for key in (f"{split}_{metric_of(summaries[0])}" for split in ("train", "val", "test")):
        values = [summary[key] for summary in summaries]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        row[key] = {"mean": float(np.mean(values)), "std": std, "values": values}
    for key in ("gflop_per_image", "pflop", "wall_seconds", "images_per_second"):
        values = [s[key] for s in summaries if s.get(key) is not None]  # earlier versions lack some
        row[key] = float(np.mean(values)) if values else None
    if reused := [s["reused_from"] for s in summaries if "reused_from" in s]:
        row["reused_from"] = reused
    stages = [stage for summary in summaries for stage in summary.get("stages", [])]
    if stages:  # of a run that was lengthened
        row |= {"epochs": summaries[0]["epochs"], "stages": []}
        for epochs in sorted({stage["epochs"] for stage in stages}):
            same = [stage for stage in stages if stage["epochs"] == epochs]
            if len(same) == len(summaries):  # else it was not the length of all seeds
                row["stages"].append(make_row(name, overrides, same) | {"epochs": epochs})
    return row


def test_images(workdir: pathlib.Path, summaries: dict[str, list[dict]]) -> dict[str, int | None]:
    """Read the checksum of the test images of each variant; None of earlier versions."""
    found = {}
    for name, (first, *_) in summaries.items():
        record = run_folder.read_config(run_folder.run_path(workdir, name, first["seed"])) or {}
        found[name] = record.get("data", {}).get("test")
    return found


def describe_run(summary: dict) -> str:
    """Describe the result of a finished run in a line."""
    metric = METRICS[metric_of(summary)]
    parts = [f"{split} {metric} {score_of(summary, split):.4f}" for split in ("val", "test")]
    parts.append(f"wall time {datetime.timedelta(seconds=round(summary['wall_seconds']))}")
    if summary["images_per_second"] is not None:
        parts.append(f"{summary['images_per_second']:,.0f} images/s")
    return f"{summary['name']} seed {summary['seed']}: finished, {', '.join(parts)}"


def describe_seeds(summaries: list[dict]) -> str:
    """Describe the accuracies of a variant's seeds in a line."""
    row = make_row("", {}, summaries)
    found = {f"{k} {METRICS[metric_of(row)]}": score_of(row, k) for k in ("val", "test")}
    parts = (f"{k} {one['mean']:.4f} ± {one['std']:.4f}" for k, one in found.items())
    return f"{len(summaries)} seeds finished, {', '.join(parts)} (mean ± std)"
