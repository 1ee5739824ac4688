"""Check a dataset before training on it, and write data.html.

    vit-jax check-data photos
    vit-jax check-data --config=configs/photos.py --out=photos.html
    vit-jax check-data --config=digits_patch

Give an image folder, or the config of a training; --config.data.KEY=VALUE changes a setting. Every
image is read. The page has counts by class and split, sizes, formats, the mean and standard
deviation for data.mean and data.std, duplicates and a contact sheet.

The status is 1 if training would be misled: images that cannot be read; exact copies or near
duplicates in two splits or with two labels; classes without training images, or whose names differ
in case or Unicode form only; levels outside of data.level_range. Anything else is reported only.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError, single_line
from vit_jax.runtime.files import expand

_LARGEST = 224  # pixels of a folder's images without a config


@command.main
def main(argv: Sequence[str]) -> int:
    """Check a dataset; return 1 if training would be misled. Raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="image folder")
    parser.add_argument(
        "--config", metavar="FILE[:PROFILE]", help="config file, or name of a bundled config"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("data.html"), help="default: data.html"
    )
    args, overrides = parser.parse_with_overrides(argv)
    if bool(args.folder) == bool(args.config):
        raise UserError("give an image folder or --config=FILE, and not both")
    if args.out.suffix != ".html":
        raise UserError(f"--out={args.out} must be the name of a page, ending in .html")
    if not args.out.parent.is_dir():
        raise UserError(f"--out={args.out}: {args.out.parent} is not a folder")
    if args.folder and (others := [key for key in overrides if not key.startswith("data.")]):
        raise UserError(f"--config.{others[0]} has no effect on the check of a folder")
    config, size_is_given = _data_config(args, overrides)
    from vit_jax.data.doctor import diagnose
    from vit_jax.data.sources import dataset_name
    from vit_jax.report.data_page import write_data_page

    name = dataset_name(config)
    print(single_line(f"checking {name}"), flush=True)
    diagnosis = diagnose(config, size_is_given)
    for finding in diagnosis.findings:
        print(single_line(f"{finding.kind}: {finding.text}"))
    mean, std = (",".join(map(str, values)) for values in (diagnosis.mean, diagnosis.std))
    print(f"mean and std of the training images: data.mean={mean} data.std={std}")
    write_data_page(args.out, single_line(name), diagnosis)
    count = len(diagnosis.survey.records)
    verdict = "would be misled" if diagnosis.misleads else "can start"
    print(f"{count:,} images checked, training {verdict}; wrote {args.out}")
    return int(diagnosis.misleads)


def _data_config(args, overrides):
    """Make the settings `config.data` of the arguments; return whether they give the image size."""
    from vit_jax import config as settings
    from vit_jax.config.loading import load_config
    from vit_jax.config.rules_data import validate_data
    from vit_jax.config.settings import check_values

    if args.config:
        config = load_config(args.config, overrides).config
    else:
        given = {"data.name": "folder", "data.dir": args.folder} | overrides
        config = settings.with_overrides(settings.get_config(), given, "the command line")
    check_values(config)
    is_open = not config.data.image_size or (args.folder and "data.image_size" not in overrides)
    if is_open:
        config.data.image_size = _usual_side(config.data)
    validate_data(config)
    return config.data, not is_open


def _usual_side(data_config):
    """Choose the image size: that of most images, but at most 224 pixels."""
    import contextlib

    from vit_jax.data.examples import spread
    from vit_jax.data.folders import list_images
    from vit_jax.data.images import open_image

    sides = []
    folder = expand(data_config.dir)
    if data_config.name == "folder" and folder.is_dir():
        paths = list_images(folder)[0]
        for i in spread(len(paths), 64) if paths else ():
            with contextlib.suppress(Exception), open_image(paths[i]) as image:  # of many types
                sides.append(min(image.size))
    return min(_LARGEST, int(np.median(sides))) if sides else _LARGEST
