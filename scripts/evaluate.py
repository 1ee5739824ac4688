"""Evaluates a finished run, or a converted checkpoint with a head, on a data set.

    python scripts/evaluate.py runs/eurosat_finetune/head/seed_0
    python scripts/evaluate.py runs/photos/base/seed_0 --part=all --out=new \\
      --config.data.dir=new_photos

Writes test_report.txt, test_report.json and confusion.png, by default into RUN/evaluation/PART. The
data are those of the run, divided as there, unless --config.data.KEY=VALUE changes them; their
classes must be the model's. --part=all takes all images, with none divided off or left out; --part
has to be given for other data that have no test part.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # without an installation

from vit_jax import pretrained  # noqa: E402
from vit_jax.cli import command  # noqa: E402
from vit_jax.runtime.errors import UserError  # noqa: E402

EFFECTIVE = ("sharding.cpu_devices", "train.dtype", "train.eval_batch_size")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return command.run(lambda: evaluate(argv))


def evaluate(argv: list[str] | None) -> None:
    """Evaluates as the arguments say; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="RUN/VARIANT/seed_0, or a checkpoint")
    parser.add_argument(
        "--part",
        choices=("train", "val", "test", "all"),
        help="default: test",
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder; default: RUN/evaluation/PART")
    args, rest = parser.parse_known_args(argv)
    from vit_jax.config.rules import validate
    from vit_jax.data.sources import open_source
    from vit_jax.data.splits import carves_test
    from vit_jax.evaluation.classifier import Classifier
    from vit_jax.report import draw_confusion, write_test_report
    from vit_jax.runtime.files import write_atomically

    classifier = Classifier(args.run)
    config, given = command.with_arguments(classifier.config, rest)
    for key in sorted(given):
        if key in pretrained.DATA_KEYS:
            raise UserError(f"{key} is the model's and cannot be changed")
        if not key.startswith("data.") and key not in EFFECTIVE:
            raise UserError(f"--config.{key} has no effect on an evaluation")
    other_data = any(key.startswith("data.") for key in given)
    if not other_data and not classifier.has_data:
        raise UserError(f"{args.run} has no data of its own: give --config.data.name, say")
    if other_data and not args.out:
        raise UserError("--out is missing: give a folder for the report on other data")
    part = args.part or "test"
    if part != "train":
        config.data.update(train_examples=0, examples_per_class=0)  # as many may not be there
    validate(config)
    if not args.part and given & {"data.name", "data.dir"}:
        if carves_test(open_source(config.data), config.data):
            raise UserError(
                f"{config.data.dir or config.data.name} has no test part: give --part=all for all "
                "its images, or --part=test for a part divided off as the run's settings say"
            )
    report = classifier.report(config, part)
    out = args.out or args.run / "evaluation" / part
    out.mkdir(parents=True, exist_ok=True)
    what = "all" if part == "all" else f"the {part} part"
    name = f"{args.run} on {what} of {config.data.dir or config.data.name}"
    write_atomically(out / "test_report.json", json.dumps(report) + "\n")
    write_test_report(out / "test_report.txt", name, report, [])
    draw_confusion(out / "confusion.png", str(args.run), report, part)
    print(f"\n{(out / 'test_report.txt').read_text()}\nwrote {out}")


if __name__ == "__main__":
    sys.exit(main())
