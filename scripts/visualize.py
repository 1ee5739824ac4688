"""Draws what a config does: for now, what its augmentation makes of some training images.

    python scripts/visualize.py augment --config=configs/cifar_augment.py
    python scripts/visualize.py augment --config=configs/cifar_augment.py --out sheet.png \\
      --config.data.name=folder --config.data.dir=photos --config.data.image_size=64

A contact sheet: images of several classes, each beside random draws of every variant of the config.
--config.SECTION.KEY=VALUE changes one setting.
"""

import functools
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # without an installation

from vit_jax import cli, plots  # noqa: E402
from vit_jax.errors import UserError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return cli.run(lambda: draw(argv))


def draw(argv: list[str] | None) -> None:
    """Draws what the arguments say; raises UserError."""
    parser = cli.Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sheet = commands.add_parser("augment", help="augmented training images")
    sheet.add_argument("--config", type=pathlib.Path, required=True, help="of an experiment")
    sheet.add_argument("--out", type=pathlib.Path, help="default: CONFIG_augment.png")
    sheet.add_argument("--draws", type=int, default=3, help="of each variant (default 3)")
    sheet.add_argument("--rows", type=int, default=8, help="images, of as many classes (default 8)")
    args, rest = parser.parse_known_args(argv)
    for name in ("draws", "rows"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    out = args.out or pathlib.Path(f"{args.config.stem}_augment.png")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is not a folder")
    draw_augmentations(load_variants(args.config, rest), args.rows, args.draws, out)
    print(f"wrote {out}")


def load_variants(path: pathlib.Path, overrides: list[str]) -> dict:
    """Returns {variant: resolved, valid config} of a config file with some settings changed.

    Args:
      path: of the config file.
      overrides: command-line arguments `--config.SECTION.KEY=VALUE`.

    Raises UserError if the file, an argument or a variant is wrong.
    """
    from vit_jax import sweep
    from vit_jax.main import load_config_file

    config, variants, _ = load_config_file(path)
    config, given = cli.with_arguments(config, overrides)
    return sweep.make_variants(config, variants, given)


def draw_augmentations(variants: dict, rows: int, draws: int, out: pathlib.Path) -> None:
    """Writes the contact sheet of `rows` images and `draws` random draws of each per variant."""
    import jax

    from vit_jax.augment import augment, center_crop
    from vit_jax.data.sources import open_source
    from vit_jax.data.splits import make_splits

    distinct = {}  # variants with the same augmentation are shown once
    for name, config in variants.items():
        distinct.setdefault(config.augment.to_json(), (name, config))
    config = next(iter(variants.values()))
    splits = make_splits(open_source(config.data), config.data)
    images, labels = _one_per_class(splits, rows, config.seed)
    size, num_classes = config.data.image_size, len(splits.class_names)
    groups = {"original": np.asarray(center_crop(images, size))[:, None]}
    for name, config in distinct.values():
        program = jax.jit(functools.partial(augment, num_classes=num_classes, config=config))
        keys = jax.random.split(jax.random.key(config.seed), draws)
        found = np.stack([np.asarray(program(key, images, labels)[0]) for key in keys], 1)
        pixels = found * np.array(config.data.std) + np.array(config.data.mean)
        title = name if len(distinct) > 1 else config.augment.kind
        groups[title] = np.rint(255 * pixels).clip(0, 255).astype(np.uint8)
    plots.save_contact_sheet(out, [splits.class_names[label] for label in labels], groups)


def _one_per_class(splits, count, seed):
    """Returns a random training image each of `count` classes, and their labels."""
    rng, known = np.random.default_rng(seed), splits.train.labels
    classes = np.unique(known)
    chosen = classes[np.unique(np.linspace(0, len(classes) - 1, count).round().astype(int))]
    picked = splits.train.take(np.array([rng.choice(np.flatnonzero(known == c)) for c in chosen]))
    return picked.decode_all(1)


if __name__ == "__main__":
    sys.exit(main())
