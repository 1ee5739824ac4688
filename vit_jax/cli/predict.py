"""Classify images with a finished run, or a converted checkpoint with a head.

    vit-jax predict runs/sports_finetune/full/seed_0 photo.jpg more_photos/
    vit-jax predict runs/sports_finetune/full/seed_0 photo.jpg --json
    vit-jax predict runs/sports_finetune/full/seed_0 photo.jpg --overlay=annotated
    vit-jax predict runs/sports_finetune/full/seed_0 photo.jpg --overlay=annotated --explain=rise
    vit-jax predict runs/sports_finetune/full/seed_0 photos/ --csv=predictions.csv
    vit-jax predict runs/sports_finetune/full/seed_0 photos/ --sort-into=sorted --below=0.6

Prints the five most probable classes of each image. For a folder, all images in it are classified,
those of its subfolders too.
A model of several labels per image prints all labels that apply, marked by *, and adds them as
"labels" to JSON: those above the thresholds that the validation split chose.
--explain=METHOD adds a heat map of what supports the predicted class, or --target=CLASS, to the
annotated images, and its numbers as "relevance" to JSON; the methods are in docs/explaining.md.
--csv=FILE writes the probabilities of all classes instead, and --sort-into=DIR copies the images
into a folder for each predicted class, without overwriting files. With --below=P, images whose
highest probability is lower are marked in the CSV, and copied into the folder "unsure".
Images are preprocessed as in the evaluation of the run. If files cannot be read, the first of them
is reported at the end, with status 1; with --csv or --sort-into, all are listed.
"""

import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.config import with_overrides
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.files import warn

EXPLAINED = 32  # images at a time


@command.main
def main(argv: Sequence[str]) -> None:
    """Classify images; raises UserError."""
    args = _parse(argv)
    paths = list_images(args.images)
    classifier = _load(args)
    failed: list[UserError] = []
    if args.csv or args.sort_into:
        count = _write_files(classifier, paths, failed, args)
        print(f"{count:,} of {len(paths):,} images classified", flush=True)
        for error in failed:
            print(single_line(error), file=sys.stderr)
        if failed:
            raise UserError(f"{len(failed):,} of {len(paths):,} files, listed above, are left out")
        return
    _print(classifier, paths, failed, args)
    if failed:
        more = f"; {len(failed)} of {len(paths)} files cannot" if len(failed) > 1 else ""
        raise UserError(f"{failed[0]}{more}")


def _parse(argv):
    """Parse the arguments; raises UserError for those without an effect."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "run", type=pathlib.Path, help="run folder RUN/VARIANT/seed_0, or a checkpoint"
    )
    parser.add_argument(
        "images", type=pathlib.Path, nargs="+", help="image files and folders of them"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--overlay", type=pathlib.Path, help="folder for annotated images")
    parser.add_argument("--explain", metavar="METHOD", help="explanation to add, such as grad_cam")
    parser.add_argument("--target", help="class to explain; default: the predicted one")
    command.add_class_names(parser)
    parser.add_argument("--max_pixels", type=int, help="largest image that is read, in pixels")
    parser.add_argument("--csv", type=pathlib.Path, help="CSV file of all probabilities to write")
    parser.add_argument(
        "--sort-into",
        type=pathlib.Path,
        metavar="DIR",
        help="folder into which images are copied by predicted class",
    )
    parser.add_argument(
        "--below",
        type=float,
        metavar="P",
        help="images whose highest probability is below P are unsure",
    )
    args = parser.parse_args(argv)
    files = args.csv or args.sort_into
    if files and (args.json or args.overlay or args.explain is not None):
        raise UserError("--csv and --sort-into replace --json, --overlay and --explain: omit those")
    if args.csv and not args.csv.parent.is_dir():
        raise UserError(f"--csv={args.csv}: {args.csv.parent} is not a folder")
    if args.csv and args.csv.is_dir():
        raise UserError(f"--csv={args.csv} is a folder: name a file")
    if args.csv:
        from vit_jax.data.images import IMAGE_SUFFIXES

        if args.csv.suffix.lower() in IMAGE_SUFFIXES:  # perhaps the first of --csv *.jpg
            raise UserError(f"--csv={args.csv} is the name of an image: name the CSV file to write")
    if args.below is not None and not files:
        raise UserError("--below has no effect without --csv or --sort-into")
    if args.below is not None and not 0 < args.below <= 1:
        raise UserError(f"--below={args.below:g} must be a probability above 0, at most 1")
    return args


def _write_files(classifier, paths, failed, args):
    """Write the CSV, and copy the images, in one pass; return how many were classified."""
    from vit_jax.cli.prediction_files import ClassFolders, CsvFile
    from vit_jax.runtime.progress import Progress

    several = classifier.config.data.multi_label
    for flag, value in (("--sort-into", args.sort_into), ("--below", args.below)):
        if several and value is not None:
            raise UserError(
                f"{flag} needs a model of one class per image, this one has several: use --csv only"
            )
    count, names, outputs = 0, classifier.class_names, []
    with contextlib.ExitStack() as stack:
        if args.sort_into:
            outputs.append(ClassFolders(args.sort_into, names, args.below, args.images))
        if args.csv:
            file = CsvFile(args.csv, names, args.below, classifier.labels_of)
            outputs.append(stack.enter_context(contextlib.closing(file)))
        progress = Progress("predicting", 0, len(paths), True, "image")
        stack.enter_context(contextlib.closing(progress))
        for path, _, probabilities in classifier.predict_files(paths, failed):
            for output in outputs:
                output.add(path, probabilities)
            count += 1
            progress.update(count + len(failed), "classified")
        if args.csv:
            outputs[-1].finish()
    return count


def _print(classifier, paths, failed, args):
    """Print the five most probable classes of each image, or JSON, and draw the overlays."""
    from vit_jax import plots
    from vit_jax.data.bands import show
    from vit_jax.explanation.methods import METHODS
    from vit_jax.runtime.progress import Bar

    if args.overlay:
        args.overlay.mkdir(parents=True, exist_ok=True)
    answers = []
    found = Bar(
        _classify(classifier, paths, failed, args), total=len(paths), unit="image", disable=None
    )
    for number, (path, image, probabilities, relevance) in enumerate(found):
        top = dict(classifier.best(probabilities))
        labels = dict(classifier.labels_of(probabilities))
        several = {"labels": labels} if classifier.config.data.multi_label else {}
        answers.append({"image": str(path), **several, "top5": top})
        if relevance is not None:
            answers[-1]["relevance"] = relevance.tolist()
        if args.overlay:
            # With number and .png, within the 255 bytes of most file systems.
            name = os.fsencode(path.stem)[:200].decode(errors="ignore")
            out = args.overlay / f"{number:04d}_{name}.png"
            of = args.target if args.target is not None else next(iter(top))
            heat = None
            if relevance is not None:
                of_class = METHODS[args.explain].of_class
                heat = (f"{args.explain} of {of}" if of_class else args.explain, relevance)
            shown = show(classifier.crop_images(image)[0], classifier.config.data)
            plots.save_prediction(out, single_line(path.name), shown, top, heat)
        if not args.json:
            Bar.write(single_line(path))
            for name, probability in (several.get("labels", {}) | top).items():
                mark = "*" if several and name in labels else " "
                Bar.write(f"{mark} {100 * probability:6.2f} %  {name}")
    if args.json:
        print(json.dumps(answers, indent=2))


def _load(args):
    """Load the model; with --explain, check that it has the explanation."""
    if args.explain is not None:
        from vit_jax.explanation.model import Model

        if not args.overlay and not args.json:
            raise UserError("--explain has no effect without --overlay or --json")
        classifier = Model(args.run, class_names=args.class_names)
        classifier.check_method(args.explain, args.target)
        if args.target is not None:
            classifier.class_indices(args.target, 1)
    else:
        from vit_jax.evaluation.classifier import Classifier

        if args.target is not None:
            raise UserError("--target has no effect without --explain")
        classifier = Classifier(args.run, class_names=args.class_names)
    if args.max_pixels is not None:
        overrides = {"data.max_pixels": args.max_pixels}
        classifier.config = with_overrides(classifier.config, overrides, "--max_pixels")
    return classifier


def _classify(classifier, paths, failed, args):
    """Yield (path, image, probabilities, relevance or None), several images at a time."""
    for start in range(0, len(paths), EXPLAINED):
        rows = list(classifier.predict_files(paths[start : start + EXPLAINED], failed))
        maps = [None] * len(rows)
        if rows and args.explain is not None:
            maps = classifier.explain([image for _, image, _ in rows], args.explain, args.target)
        for row, relevance in zip(rows, maps, strict=True):
            yield *row, relevance


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
