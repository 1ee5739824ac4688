"""Write explorer.html: an interactive page of what a ViT attends to.

    vit-jax explore runs/cifar_patch/patch_4/seed_0
    vit-jax explore weights/vit_b16 --images cat.jpg more_photos/ --out=explorer.html
    vit-jax explore timm_vit/model.safetensors --images cat.jpg --out=explorer.html
    vit-jax explore runs/one/base/seed_0 runs/two/base/seed_0 --out=compared.html

RUN is the folder of a finished run of a ViT, a converted checkpoint, or a weight file of another
project that, with the config.json next to it, records all settings; it needs a head. Two are shown
side by side. The page has the attention of every block, attention rollout and the class
probabilities of every block, for --images (files, and folders of them), or for a fixed test image
of each of up to twelve classes. It is one file of at most 6 MB, which makes no request.
"""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.cli.predict import list_images
from vit_jax.runtime.errors import UserError, single_line

_CLASSES = 12  # whose test images are shown without --images


@command.main
def main(argv: Sequence[str]) -> None:
    """Write the page; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "runs", type=pathlib.Path, nargs="+", help="run, checkpoint or weight file; one or two"
    )
    parser.add_argument(
        "--images", type=pathlib.Path, nargs="+", help="image files and folders of them"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, help="FILE.html; default: RUN/figures/explorer.html"
    )
    args = parser.parse_args(argv)
    from vit_jax.explanation import explorer
    from vit_jax.explanation.model import Model, name_apart
    from vit_jax.report.explorer import write_explorer
    from vit_jax.storage.run_folder import suggest_runs

    if len(args.runs) > 2:
        raise UserError(f"{len(args.runs)} runs are given: give one or two")
    for source in args.runs:
        if not source.exists():
            raise UserError(f"{source} does not exist{suggest_runs(source)}")
    out = args.out or args.runs[0] / "figures" / "explorer.html"
    if not args.out and (len(args.runs) > 1 or args.runs[0].is_file()):
        raise UserError("give --out=FILE.html for two runs or a weight file")
    if out.suffix != ".html":
        raise UserError(f"--out={out} must be the name of a page, ending in .html")
    if args.out and not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is not a folder")
    paths = list_images(args.images) if args.images else []
    print(single_line(f"loading {', '.join(map(str, args.runs))}"), flush=True)
    models = [Model(source) for source in args.runs]
    name_apart(models)
    if paths:
        images, names = [paths] * len(models), [single_line(path.name) for path in paths]
    else:
        images, names = _test_images(models)
    out.parent.mkdir(parents=True, exist_ok=True)  # fails before the work
    title = " and ".join(dict.fromkeys(model.name for model in models))
    write_explorer(out, title, explorer.collect(models, images, names))
    print(f"wrote {out}")


def _test_images(models):
    """Load the same test images for each model: images of each, and their names."""
    from vit_jax.evaluation.samples import check_same_images

    for model in models:
        if not model.has_data:
            raise UserError(f"{model.name} has no dataset: give --images FILE...")
    check_same_images(models)
    found = [model.images_of_classes((), _CLASSES) for model in models]
    return [list(images) for images, _ in found], found[0][1]
