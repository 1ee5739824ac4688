"""The table of a sweep: its rows in order, their comparison, and their text."""

import math

HEAD = ("variant", "test", "val", "train", "parameters", "images/s")
PUBLISHED_HEAD = ("source", "test accuracy, %, neighbours compared")


def sorted_rows(results: dict) -> list[dict]:
    """Sort the rows of results.json, one per run length, by test accuracy, the best first."""
    rows = []
    for row in results["rows"]:
        stages = [*row["legs"], row] if "legs" in row else []
        rows += [s | {"variant": f"{row['variant']}, {s['epochs']:g} epochs"} for s in stages]
        rows += [] if stages else [row]
    return sorted(rows, key=lambda row: -row["test_accuracy"]["mean"])


def collect(summaries: dict[str, list[dict]], key: str) -> list:
    """List the distinct values of a key in the summaries of all runs, in order."""
    return sorted({summary[key] for group in summaries.values() for summary in group})


def minutes(summaries: dict[str, list[dict]]) -> float:
    """Sum the minutes of training and evaluation of all runs."""
    return sum(summary["wall_seconds"] for group in summaries.values() for summary in group) / 60


def legend(rows: list[dict], seeds: list[int], select: str) -> str:
    """Describe the numbers of the table in a few sentences."""
    if len(seeds) > 1:
        spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (ddof 1)"
    else:
        spread = f"of one run, seed {seeds[0]}"
    if len(rows) > 1:
        chance = ", too few to distinguish a difference from chance" if len(seeds) == 1 else ""
        spread += f"{chance}; sorted by test accuracy"
    unit = "length of a run" if any("epochs" in row for row in rows) else "run"
    best = "checkpoint with the best validation accuracy"
    checkpoint = {"best": best, "last": "last checkpoint"}[select]
    text = (
        f"Accuracies in %, {spread}. Test is evaluated once per {unit}, from the "
        f"{checkpoint}; train is that checkpoint without augmentation."
    )
    if len(seeds) > 1 and len(rows) > 1:
        text += (
            " ≈ marks variants that cannot be distinguished from the best: the means differ by at "
            "most sqrt(s1² + s2²), the standard deviation of a difference of two runs."
        )
    return text


def same(one: dict, other: dict) -> bool:
    """Check whether two accuracies of results.json differ by at most sqrt(s1^2 + s2^2).

    That is the standard deviation of the difference of two runs; False for a single seed.
    """
    if one["std"] is None or other["std"] is None:
        return False
    return abs(one["mean"] - other["mean"]) <= math.hypot(one["std"], other["std"])


def orders(rows: list[dict], published: dict[str, str]) -> dict[str, str]:
    """Append our order, such as "a 81.0 ≈ b 80.5 > c 70.1", to the published ones, if any.

    Neighbours are compared. With one seed, of which no order follows, commas separate them.
    """
    if not published:
        return {}
    text, before = "", None
    for row in rows:
        test = row["test_accuracy"]
        if before is not None:
            alone = None in (before["std"], test["std"])
            text += " ≈ " if same(before, test) else ", " if alone else " > "
        text += f"{row['variant']} {100 * test['mean']:.1f}"
        before = test
    return published | {"this run": text}


def results_table(rows: list[dict]) -> str:
    """Write rows of results.json, of which the first is the best, as a Markdown table."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table_cells(rows)]
    return "\n".join(lines)


def table_cells(rows: list[dict]) -> list[list[str]]:
    """Format the cells below HEAD, row by row; the first row is the best."""
    lines = []
    for row in rows:
        speed, test = row["images_per_second"], row["test_accuracy"]
        total, trained = row["num_params"], row["num_trainable_params"]
        near = row is not rows[0] and same(test, rows[0]["test_accuracy"])
        lines.append(
            [
                row["variant"],
                "≈ " * near + percent(test),
                percent(row["val_accuracy"]),
                percent(row["train_accuracy"]),
                f"{total:,}" if total == trained else f"{total:,}, {trained:,} trained",
                "" if speed is None else f"{speed:,.0f}",
            ]
        )
    return lines


def percent(accuracy: dict) -> str:
    """Format an accuracy of results.json in percent, with its spread where there is one."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
