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

from vit_jax.cli import command  # noqa: E402
from vit_jax.runtime.errors import UserError  # noqa: E402


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
    from vit_jax.evaluation.classifier import Classifier
    from vit_jax.report import draw_confusion, write_test_report
    from vit_jax.runtime.files import write_atomically

    classifier = Classifier(args.run)
    config, given = command.with_arguments(classifier.config, rest)
    config, part = classifier.evaluation_of(config, given, args.part)
    if any(key.startswith("data.") for key in given) and not args.out:
        raise UserError("--out is missing: give a folder for the report on other data")
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
