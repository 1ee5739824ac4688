"""Evaluate a finished run, or a converted checkpoint with a head, on a dataset.

    vit-jax evaluate runs/eurosat_finetune/head/seed_0
    vit-jax evaluate runs/photos/base/seed_0 --split=all --out=new --config.data.dir=new_photos

Writes test_report.txt, test_report.json and confusion.png, by default to RUN/evaluation/SPLIT. The
dataset and its splits are those of the run, unless --config.data.KEY=VALUE names another dataset or
another of its splits; the classes must be the model's; a checkpoint without class names needs
--class-names. --split=all evaluates every image of the dataset. A dataset that is a test or
validation split only is evaluated whole; any other without a test split needs --split.
"""

import json
import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError, single_line

SPLITS = ("train", "val", "test", "all")


@command.main
def main(argv: Sequence[str]) -> None:
    """Evaluate a model; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "run", type=pathlib.Path, help="run folder RUN/VARIANT/seed_0, or a checkpoint"
    )
    parser.add_argument("--split", choices=SPLITS, help="split to evaluate; default: test")
    parser.add_argument(
        "--out", type=pathlib.Path, help="output folder; default: RUN/evaluation/SPLIT"
    )
    command.add_class_names(parser)
    args, overrides = parser.parse_with_overrides(argv)
    print(single_line(f"loading {args.run}"), flush=True)
    from vit_jax.data.sources import dataset_name
    from vit_jax.evaluation.classifier import Classifier
    from vit_jax.report import draw_confusion, write_test_report
    from vit_jax.runtime.files import write_atomically

    classifier = Classifier(args.run, class_names=args.class_names)
    config, split = classifier.evaluation_of(overrides, args.split)
    if any(key.startswith("data.") for key in overrides) and not args.out:
        raise UserError("--out is missing: give a folder for the report on other data")
    out = args.out or args.run / "evaluation" / split
    if (out / "summary.json").exists():
        raise UserError(f"--out={out} is the folder of a run, whose own report would be replaced")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is not a folder")
    out.mkdir(parents=True, exist_ok=True)
    images = "all" if split == "all" else f"the {split} split"
    name = f"{args.run} on {images} of {dataset_name(config.data)}"
    print(single_line(f"evaluating {name}"), flush=True)
    report = classifier.report(config, split)
    write_atomically(out / "test_report.json", json.dumps(report) + "\n")
    write_test_report(out / "test_report.txt", name, report, [])
    if "confusion" in report:  # not of several labels per image
        draw_confusion(out / "confusion.png", str(args.run), report, split)
    print(f"\n{(out / 'test_report.txt').read_text()}\nwrote {out}")
