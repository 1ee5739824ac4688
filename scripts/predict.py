"""Classifies images with a finished run, or a converted checkpoint with a head.

    python scripts/predict.py runs/sports_finetune/base/seed_0 photo.jpg more_photos/
    python scripts/predict.py runs/sports_finetune/base/seed_0 photo.jpg --json
    python scripts/predict.py runs/sports_finetune/base/seed_0 photo.jpg --overlay=pictures

Prints the five most probable classes of each; of folders, all images in them. Images are made ready
as in the run's evaluation. Of files that cannot be read the first is told of at the end, with
status 1.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # without an installation

from vit_jax.cli import command  # noqa: E402
from vit_jax.runtime.errors import UserError, single_line  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return command.run(lambda: predict(argv))


def predict(argv: list[str] | None) -> None:
    """Predicts as the arguments say; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="RUN/VARIANT/seed_0, or a checkpoint")
    parser.add_argument("images", type=pathlib.Path, nargs="+", help="files and folders")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--overlay", type=pathlib.Path, help="folder for pictures with the answers")
    args = parser.parse_args(argv)
    from tqdm import tqdm

    from vit_jax import plots
    from vit_jax.evaluation.classifier import Classifier

    paths = list_images(args.images)
    classifier = Classifier(args.run)
    if args.overlay:
        args.overlay.mkdir(parents=True, exist_ok=True)
    answers, failed = [], []
    found = tqdm(
        classifier.predict_files(paths, failed), total=len(paths), unit="image", disable=None
    )
    for number, (path, image, probabilities) in enumerate(found):
        top = dict(classifier.best(probabilities))
        answers.append({"image": str(path), "top5": top})
        if args.overlay:
            # With the number and .png, within the 255 bytes that file systems take.
            name = os.fsencode(path.stem)[:200].decode(errors="ignore")
            out = args.overlay / f"{number:04d}_{name}.png"
            plots.save_prediction(out, single_line(path.name), image, top)
        if not args.json:
            tqdm.write(single_line(path))
            for name, probability in top.items():
                tqdm.write(f"  {100 * probability:6.2f} %  {name}")
    if args.json:
        print(json.dumps(answers, indent=2))
    if failed:
        more = f"; {len(failed)} of {len(paths)} files cannot" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}")


def list_images(given: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the image files among and in `given`; raises UserError if one leads to none."""
    from vit_jax.data.images import IMAGE_SUFFIXES

    paths = []
    for path in given:
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
            inside = [p for p in inside if p.is_file()]  # not a pipe, which would be waited for
            if not inside:
                raise UserError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)})")
            paths += sorted(inside)
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path} is neither a file nor a folder")
    return paths


if __name__ == "__main__":
    sys.exit(main())
