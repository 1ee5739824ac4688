"""Classify images with a finished run, or a converted checkpoint with a head.

    vit-jax predict runs/sports_finetune/base/seed_0 photo.jpg more_photos/
    vit-jax predict runs/sports_finetune/base/seed_0 photo.jpg --json
    vit-jax predict runs/sports_finetune/base/seed_0 photo.jpg --overlay=annotated

Prints the five most probable classes of each image. For a folder, all images in it are classified.
Images are preprocessed as in the evaluation of the run. If files cannot be read, the first of them
is reported at the end, with status 1.
"""

import json
import os
import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.config import with_overrides
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.files import warn


@command.main
def main(argv: Sequence[str]) -> None:
    """Classify images; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "run", type=pathlib.Path, help="run folder RUN/VARIANT/seed_0, or a checkpoint"
    )
    parser.add_argument(
        "images", type=pathlib.Path, nargs="+", help="image files and folders of them"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--overlay", type=pathlib.Path, help="folder for annotated images")
    command.add_class_names(parser)
    parser.add_argument("--max_pixels", type=int, help="largest image that is read, in pixels")
    args = parser.parse_args(argv)
    from vit_jax import plots
    from vit_jax.evaluation.classifier import Classifier
    from vit_jax.runtime.progress import Bar

    paths = list_images(args.images)
    classifier = Classifier(args.run, class_names=args.class_names)
    if args.max_pixels is not None:
        overrides = {"data.max_pixels": args.max_pixels}
        classifier.config = with_overrides(classifier.config, overrides, "--max_pixels")
    if args.overlay:
        args.overlay.mkdir(parents=True, exist_ok=True)
    answers, failed = [], []
    found = Bar(
        classifier.predict_files(paths, failed), total=len(paths), unit="image", disable=None
    )
    for number, (path, image, probabilities) in enumerate(found):
        top = dict(classifier.best(probabilities))
        answers.append({"image": str(path), "top5": top})
        if args.overlay:
            # With number and .png, within the 255 bytes of most file systems.
            name = os.fsencode(path.stem)[:200].decode(errors="ignore")
            out = args.overlay / f"{number:04d}_{name}.png"
            plots.save_prediction(out, single_line(path.name), image, top)
        if not args.json:
            Bar.write(single_line(path))
            for name, probability in top.items():
                Bar.write(f"  {100 * probability:6.2f} %  {name}")
    if args.json:
        print(json.dumps(answers, indent=2))
    if failed:
        more = f"; {len(failed)} of {len(paths)} files cannot" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}")


def list_images(given: list[pathlib.Path]) -> list[pathlib.Path]:
    """List the image files among and in `given`; raises UserError if one contains none."""
    from vit_jax.data import folders
    from vit_jax.data.images import IMAGE_SUFFIXES

    paths = []
    for path in given:
        if path.is_dir():
            inside, others, broken = folders.list_images(path)
            left = folders.describe_suffixes(others) or "no other file"
            if not inside:
                kinds = ", ".join(IMAGE_SUFFIXES)
                raise UserError(f"{path} holds no image ({kinds}), but {left}")
            if broken:
                warn(f"{path}: {len(broken)} links or devices are skipped, such as {broken[0]}")
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            raise UserError(f"{path} is neither a file nor a folder")
    return paths
