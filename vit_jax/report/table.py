"""The table of a sweep: its rows in order, what may be told from them, results.md."""

import math

HEAD = ("variant", "parameters", "train", "val", "test", "images/s")
PUBLISHED_HEAD = ("source", "test accuracy, %, neighbours compared")


def sorted_rows(results: dict) -> list[dict]:
    """Returns the rows of results.json, one for each length of a run, the best first."""
    rows = [leg for row in results["rows"] for leg in _legs(row)]
    return sorted(rows, key=lambda row: -row["test_accuracy"]["mean"])


def find_seeds(summaries: dict[str, list[dict]]) -> list[int]:
    """Returns the seeds of all variants, in order."""
    return sorted({summary["seed"] for group in summaries.values() for summary in group})


def to_markdown(
    experiment: str,
    rows: list[dict],
    summaries: dict[str, list[dict]],
    published: dict[str, str],
    select: str,
) -> str:
    """Returns results.md; the arguments are those of `write_report`, `rows` the sorted ones."""
    text = [f"# {experiment}", "", results_table(rows), ""]
    text += [legend(rows, find_seeds(summaries), select), ""]
    if published:
        text += [f"| {' | '.join(PUBLISHED_HEAD)} |", "|---|---|"]
        text += [f"| {source} | {found} |" for source, found in orders(rows, published).items()]
        text += [""]
    text += [
        f"Hardware: {', '.join(devices(summaries))}. Training and evaluation took "
        f"{minutes(summaries):.1f} minutes.",
        "",
        "![test accuracy](results.png)",
        "",
        "![curves](curves.png)",
        "",
    ]
    return "\n".join(text)


def devices(summaries: dict[str, list[dict]]) -> list[str]:
    """Returns what the runs were made on."""
    return sorted({summary["device"] for group in summaries.values() for summary in group})


def minutes(summaries: dict[str, list[dict]]) -> float:
    """Returns how long training and evaluation of all runs took."""
    return sum(summary["wall_seconds"] for group in summaries.values() for summary in group) / 60


def _legs(row):
    """Returns a row as it is, or, of a run that was lengthened, one for each of its lengths."""
    if "legs" not in row:
        return [row]
    legs = [*row["legs"], row]
    return [leg | {"variant": f"{row['variant']}, {leg['epochs']:g} epochs"} for leg in legs]


def legend(rows: list[dict], seeds: list[int], select: str) -> str:
    """Returns the sentences that say what the numbers of the table are."""
    if len(seeds) > 1:
        spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (ddof 1)"
    else:
        spread = f"of one run, seed {seeds[0]}"
    if len(rows) > 1:
        chance = ", which alone cannot tell a difference from chance" if len(seeds) == 1 else ""
        spread += f"{chance}; sorted by test accuracy"
    unit = "length of a run" if any("epochs" in row for row in rows) else "run"
    checkpoint = {
        "best": "checkpoint with the best validation accuracy",
        "last": "last checkpoint",
    }[select]
    text = (
        f"Accuracies in %, {spread}. Test is read once per {unit}, from the "
        f"{checkpoint}; train is that checkpoint without augmentation."
    )
    if len(seeds) > 1 and len(rows) > 1:
        text += (
            " ≈ marks what cannot be told from the best: a difference of the means below "
            "sqrt(s1² + s2²), the standard deviation of a difference of two runs."
        )
    return text


def same(one: dict, other: dict) -> bool:
    """Returns whether two accuracies of results.json differ by no more than their spread.

    The measure is sqrt(s1^2 + s2^2), the standard deviation of the difference of two single runs;
    False where there is only one seed.
    """
    if one["std"] is None or other["std"] is None:
        return False
    return abs(one["mean"] - other["mean"]) <= math.hypot(one["std"], other["std"])


def orders(rows: list[dict], published: dict[str, str]) -> dict[str, str]:
    """Returns the published orders and ours, to stand below one another; {} if there are none."""
    return published | {"this run": _order(rows)} if published else {}


def _order(rows):
    """Returns e.g. "a 81.0 ≈ b 80.5 > c 70.1" of rows from best to worst, neighbours compared.

    With one seed, of which no order follows, commas stand between them.
    """
    text = ""
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None:
            one, other = before["test_accuracy"], row["test_accuracy"]
            text += ", " if None in (one["std"], other["std"]) else " > "
            text = text[:-3] + " ≈ " if same(one, other) else text
        text += f"{row['variant']} {100 * row['test_accuracy']['mean']:.1f}"
    return text


def results_table(rows: list[dict]) -> str:
    """Returns the Markdown table of rows of results.json, of which the first is the best."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(cells)} |" for cells in table_cells(rows)]
    return "\n".join(lines)


def table_cells(rows: list[dict]) -> list[list[str]]:
    """Returns the texts below HEAD, row by row; the first row is the best."""
    lines = []
    for row in rows:
        speed, test = row["images_per_second"], row["test_accuracy"]
        near = row is not rows[0] and same(test, rows[0]["test_accuracy"])
        cells = [
            row["variant"],
            parameters(row),
            *(percent(row[f"{part}_accuracy"]) for part in ("train", "val")),
            ("≈ " if near else "") + percent(test),
            "" if speed is None else f"{speed:,.0f}",
        ]
        lines.append(cells)
    return lines


def parameters(row: dict) -> str:
    """Returns how many parameters a row or a summary has, and how many were trained."""
    total, trained = row["num_params"], row["num_trainable_params"]
    return f"{total:,}" if total == trained else f"{total:,}, {trained:,} trained"


def percent(accuracy: dict) -> str:
    """Returns an accuracy of results.json in percent, with its spread where there is one."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
