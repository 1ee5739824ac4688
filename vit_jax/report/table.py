"""The table of a sweep: its rows in order, their comparison, and their text."""

from vit_jax.evaluation.differences import contains_zero, paired_difference
from vit_jax.evaluation.labels import METRICS, metric_of, score_of

_PLURALS = {"accuracy": "Accuracies", "map": "mAPs"}


def sorted_rows(results: dict) -> list[dict]:
    """Sort the rows of results.json, one per run length, by test accuracy, the best first.

    The rows of a ladder keep their order.
    """
    rows = []
    for row in results["rows"]:
        stages = [*row["stages"], row] if "stages" in row else []
        rows += [s | {"variant": f"{row['variant']}, {s['epochs']:g} epochs"} for s in stages]
        rows += [] if stages else [row]
    if _is_ladder(rows):
        return rows
    return sorted(rows, key=lambda row: -score_of(row, "test")["mean"])


def best_row(rows: list[dict]) -> int | None:
    """Find the index of the row with the best test accuracy; None of a single row."""
    scores = [score_of(row, "test")["mean"] for row in rows]
    return scores.index(max(scores)) if scores[1:] else None


def collect(summaries: dict[str, list[dict]], key: str) -> list:
    """List the distinct values of a key in the summaries of all runs, in order."""
    return sorted({summary[key] for group in summaries.values() for summary in group})


def minutes(summaries: dict[str, list[dict]]) -> float:
    """Sum the minutes of training and evaluation of all runs."""
    return sum(summary["wall_seconds"] for group in summaries.values() for summary in group) / 60


def diverged(results: dict) -> str:
    """Name the variants that results.json lacks because a loss became non-finite, or ""."""
    names = ", ".join(results.get("diverged", ()))
    why = "because the loss of the variant or of its teacher became non-finite"
    return f"Not in the table, {why}: {names}." if names else ""


def cross_validations(results: dict) -> list[str]:
    """Describe the score over all folds of each cross-validation, as a sentence."""
    found = []
    for one in results.get("cross_validation", ()):
        names, metric = one["variants"], METRICS[metric_of(one)]
        text = f"Cross-validation, {names[0]} to {names[-1]}: test {metric} "
        text += f"{percent(score_of(one, 'test'))} %, mean ± standard deviation over folds."
        found.append(text)
    return found


def early_stops(summaries: dict[str, list[dict]]) -> list[str]:
    """Describe each run that stopped early, and why, as a sentence."""
    return [
        f"{name}, seed {summary['seed']}, stopped early at step {summary['steps']:,} "
        f"({summary['epochs']:g} epochs): {summary['stopped_early']}."
        for name, group in summaries.items()
        for summary in group
        if "stopped_early" in summary
    ]


def legend(rows: list[dict], seeds: list[int], select: str) -> str:
    """Describe the numbers of the table in a few sentences."""
    score = metric(rows)
    if len(seeds) > 1:
        spread = f"mean ± standard deviation over seeds {', '.join(map(str, seeds))} (ddof 1)"
    else:
        spread = f"of one run, seed {seeds[0]}"
    if len(rows) > 1:
        chance = ", too few to distinguish a difference from chance" if len(seeds) == 1 else ""
        spread += f"{chance}{'' if _is_ladder(rows) else f'; sorted by test {score}'}"
    unit = "length of a run" if any("epochs" in row for row in rows) else "run"
    text = (
        f"{_PLURALS[metric_of(rows[0])]} in %, {spread}. Test is evaluated once per {unit}, from "
        f"the {checkpoint(select, score)}; train is that checkpoint without augmentation."
    )
    if any("difference" in row for row in rows):
        text += " " + _difference_legend(rows)
    if any("test_images" in row for row in rows):
        text += " Variants that are tested on different images are not compared."
    if any(row.get("pflop") is not None for row in rows):
        text += (
            " GFLOP/image: matrix products and convolutions of training on an image, 10⁹ "
            "operations; PFLOP: those of a whole run, 10¹⁵, without evaluations."
        )
    return text


def checkpoint(select: str, score: str) -> str:
    """Describe the checkpoint that is evaluated, by `train.select` and the name of the metric."""
    return {
        "best": f"checkpoint with the best validation {score}",
        "last": "last checkpoint",
        "variant": "checkpoint that `train.select` of the variant names",
    }[select]


def _difference_legend(rows):
    """Describe the column of differences and the mark of those within noise."""
    score = metric(rows)
    reference = "variant before" if _is_ladder(rows) else f"best variant by validation {score}"
    text = f"The difference is in test {score} from the {reference}"
    without = [row["difference"]["low"] is None for row in rows if "difference" in row]
    if all(without):
        return f"{text}; fewer than two common seeds: no interval."
    text += (
        ", mean and 95 % interval of the differences paired by seed (Student's t). ≈ marks "
        "variants whose interval contains 0, which cannot be distinguished from it."
    )
    if any(without):
        text += " A difference without interval has fewer than two common seeds: no conclusion."
    return text


def metric(rows: list[dict]) -> str:
    """Name the metric of rows of results.json, in prose."""
    return METRICS[metric_of(rows[0])]


def _is_ladder(rows):
    """Whether rows are compared with the variant before."""
    # Earlier versions marked the differences.
    return any("ladder" in row or "ladder" in row.get("difference", {}) for row in rows)


def published_head(rows: list[dict]) -> tuple[str, str]:
    """Name the columns of `orders`."""
    return "source", f"test {metric(rows)}, %, neighbours compared"


def orders(rows: list[dict], published: dict[str, str]) -> dict[str, str]:
    """Append our order, such as "a 81.0 ≈ b 80.5 > c 70.1", to the published ones, if any.

    Neighbours are compared: "≈" where the interval of their difference contains 0. With one seed
    or other test images, of which no order follows, commas separate them.
    """
    if not published:
        return {}
    text, before = "", None
    for row in rows:
        if before is not None:
            difference = paired_difference(row, before)
            sign = " > " if difference["mean"] < 0 else " < "  # "<" on a ladder only
            images = [one.get("test_images") for one in (row, before)]
            alone = difference["low"] is None or images[0] != images[1]
            text += ", " if alone else " ≈ " if contains_zero(difference) else sign
        text += f"{row['variant']} {100 * score_of(row, 'test')['mean']:.1f}"
        before = row
    return published | {"this run": text}


def results_table(rows: list[dict]) -> str:
    """Write rows of results.json as a Markdown table."""
    return markdown(columns(rows))


def markdown(table: dict[str, list[str]]) -> str:
    """Write {head: cells} as a Markdown table; all columns but the first are numbers."""
    lines = [[*table], ["---"] + ["--:"] * (len(table) - 1), *zip(*table.values(), strict=True)]
    bars = [f"| {' | '.join(cells)} |" for cells in lines]
    bars[1] = bars[1].replace(" ", "")
    return "\n".join(bars)


def columns(rows: list[dict]) -> dict[str, list[str]]:
    """Format the table as {head: cells}; columns that no row has a value for are left out."""
    table = {"variant": [row["variant"] for row in rows]}
    table["test"] = [percent(score_of(row, "test")) for row in rows]
    found = [row["difference"] for row in rows if "difference" in row]
    if found:
        unit = "points" if all(one["low"] is None for one in found) else "points, 95 % interval"
        reference = "the variant before" if _is_ladder(rows) else found[0]["from"]
        name = f"difference from {reference}, {unit}"
        table[name] = [_difference(row.get("difference")) for row in rows]
    table["val"] = [percent(score_of(row, "val")) for row in rows]
    table["train"] = [percent(score_of(row, "train")) for row in rows]
    table["parameters"] = [_parameters(row) for row in rows]
    if any(row.get("pflop") is not None for row in rows):
        table["GFLOP/image"] = [_number(row.get("gflop_per_image")) for row in rows]
        table["PFLOP"] = [_number(row.get("pflop")) for row in rows]
    if any(row.get("wall_seconds") is not None for row in rows):
        minutes = [(row.get("wall_seconds") or 0) / 60 or None for row in rows]
        table["minutes"] = [_number(one, ",.1f") for one in minutes]
    table["images/s"] = [_number(row["images_per_second"], ",.0f") for row in rows]
    return table


def _difference(difference):
    """Format a difference in points, as "≈ -0.50 (-1.20 to +0.20)"; "" for the best variant."""
    if difference is None:
        return ""
    text = f"{100 * difference['mean']:+.2f}"
    if difference["low"] is not None:
        text += f" ({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f})"
    return "≈ " * contains_zero(difference) + text


def _parameters(row):
    total, trained = row["num_params"], row["num_trainable_params"]
    return f"{total:,}" if total == trained else f"{total:,}, {trained:,} trained"


def _number(value, style=None):
    """Format a number that may be missing, by default with three digits."""
    return "" if value is None else format(value, style or (",.3g" if value < 1000 else ",.0f"))


def percent(accuracy: dict) -> str:
    """Format an accuracy of results.json in percent, with its spread where there is one."""
    spread = "" if accuracy["std"] is None else f" ± {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f}{spread}"
