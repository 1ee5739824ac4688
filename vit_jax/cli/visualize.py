"""Draw a trained model's attention and features, or a config's augmentation.

    vit-jax visualize runs/cifar_patch/patch_4/seed_0
    vit-jax visualize runs/cifar_patch/patch_4/seed_0 kernels attention_rollout
    vit-jax visualize runs/cifar_patch/patch_4/seed_0 explanations --methods chefer rise
    vit-jax visualize weights/vit_b16 --images cat.jpg dog.jpg --out=figures
    vit-jax visualize dinov2/model.safetensors --images cat.jpg --out=figures
    vit-jax visualize runs/eurosat_finetune/*/seed_0 --out=compared
    vit-jax visualize augment --config=configs/cifar_augment.py

RUN is the folder of a finished run, a converted checkpoint, or a weight file of another project
that, with the config.json next to it, records all settings; convert other files first. The figures
are written to --out, by default RUN/figures: curves, attention_rollout, last_layer_attention,
all_layers_attention, positional_embeddings, kernels, feature_maps; name some to draw only those.
They show a fixed test image of each of eight classes, of the classes --classes NAME..., or --images
FILE.... For several runs, one figure per image compares their attention in every layer. Weights
without a head have no gradient rollout, explanations, explanation_scores, ablation, logit_lens or
probes.

Drawn only if named: explanations compares methods of explanation, all or --methods NAME...;
explanation_scores scores them, on 64 images or --count.

With a JSON file: ablation of every head and MLP; logit_lens, the classes of every layer;
token_norms; layer_similarity; and probes, the accuracy of every layer's features. For two runs,
layer_similarity compares their layers.

ablation, logit_lens, token_norms, layer_similarity and explanation_scores use a random sample of
--count images of --split, or --images; probes use --count only.

--target CLASS explains why an image could be of this class, instead of the predicted one, in
explanations and, by gradient rollout, in attention_rollout.

augment draws a contact sheet, CONFIG_augment.png or --out=FILE.png: images of several classes, each
next to random draws of every variant of the config; --draws=N and --rows=N set how many of each.
--config.SECTION.KEY=VALUE changes one setting.
"""

import functools
import pathlib
from collections.abc import Sequence

import numpy as np

from vit_jax import plots
from vit_jax.cli import command
from vit_jax.runtime.errors import UserError, single_line

ONLY_NAMED = ("explanations", "explanation_scores")
OF_WEIGHTS = ("kernels", "positional_embeddings")  # figures that depend on no image


@command.main
def main(argv: Sequence[str]) -> None:
    """Draw figures of models, or augmented images; raises UserError."""
    made = _draw_augment(argv[1:]) if argv[:1] == ["augment"] else _draw_models(argv)
    for path in made:
        print(f"wrote {path}")


def _draw_models(argv):
    """Draw figures of trained models; return their folders."""
    args = _model_parser().parse_args(argv)
    from vit_jax.evaluation import samples
    from vit_jax.explanation import figures, inspection
    from vit_jax.explanation.model import Model, name_apart
    from vit_jax.storage.run_folder import suggest_runs

    known = ["curves", *figures.DRAW, *ONLY_NAMED, *inspection.DRAW]
    kinds = [name for name in args.runs if name in known]
    sources = [pathlib.Path(name) for name in args.runs if name not in known]
    for source in sources:
        if not source.exists():
            hint = suggest_runs(source)
            raise UserError(f"{source} is neither a path nor one of {', '.join(known)}{hint}")
        if source.is_file() and not args.out:
            raise UserError(f"give --out=DIR for the figures of the file {source}")
    if not sources:
        raise UserError("give a run, a converted checkpoint or a weight file")
    for path in args.images or ():
        if path.is_dir():
            raise UserError(f"--images={path} is a folder: give the images in it")
    print(single_line(f"loading {', '.join(map(str, sources))}"), flush=True)
    models = [Model(source, needs_head=False) for source in sources]
    name_apart(models)
    needs_images = not kinds or not set(kinds) <= {"curves", *OF_WEIGHTS}
    for source, model in zip(sources, models, strict=True):
        if needs_images and not args.images and not model.has_data:
            raise UserError(f"{source} has no dataset: give --images FILE...")
    if args.images and not needs_images:
        raise UserError(f"--images has no effect on {', '.join(kinds)}")
    for flag in ("images", "split") if "probes" in kinds else ():
        if getattr(args, flag) and models[0].has_data:
            raise UserError(f"--{flag} has no effect on probes: they are trained on the dataset")
    _check_sample(args, kinds, ["explanation_scores", *inspection.DRAW])
    shown = [*(kind for kind in figures.DRAW if kind not in OF_WEIGHTS), "explanations"]
    if args.classes and (args.images or (kinds and set(kinds).isdisjoint(shown))):
        every = ", ".join(shown)
        raise UserError(f"--classes has no effect with --images, or without one of {every}")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out={args.out} is not a folder")
    if len(sources) == 1:
        return _draw_model(sources[0], models[0], kinds, args)
    is_pair = len(sources) == 2 and kinds == ["layer_similarity"]
    if (kinds and not is_pair) or not args.out:
        raise UserError(
            "several runs are compared in one figure per image: give --out, and do not name "
            "figures, except layer_similarity of two runs"
        )
    if not args.images:
        samples.check_same_images(models, args.split or "test")
    for flag in ("target", "methods"):
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} has no effect on the comparison of several runs")
    if is_pair:
        print("comparing the layers of 2 runs", flush=True)
        first, second = (_request(model, args) for model in models)
        return [inspection.draw_pair(first, second, args.out)]
    print(f"drawing the attention of {len(models)} runs", flush=True)
    figures.draw_comparison([_view(model, args, ()) for model in models], args.out)
    return [args.out]


def _model_parser():
    parser = command.Parser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", help="runs, checkpoints or weight files, then names of figures"
    )
    parser.add_argument(
        "--images", type=pathlib.Path, nargs="+", help="image files, instead of test images"
    )
    parser.add_argument(
        "--classes", nargs="+", default=[], help="classes of the test images; default: eight"
    )
    parser.add_argument(
        "--methods", nargs="+", help="methods of the figure explanations; default: all"
    )
    parser.add_argument("--target", help="class to explain; default: the predicted one")
    parser.add_argument("--out", type=pathlib.Path, help="output folder; default: RUN/figures")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), help="split to analyse; default: test"
    )
    parser.add_argument("--count", type=int, help="number of images to analyse")
    return parser


def _check_sample(args, kinds, sampled):
    """Refuse --split and --count unless a figure of `sampled` is named; raises UserError."""
    for name in ("split", "count"):
        if getattr(args, name) is None:
            continue
        if args.images:
            raise UserError(f"--{name} has no effect with --images")
        if not set(kinds) & set(sampled):
            raise UserError(f"--{name} has no effect without one of {', '.join(sampled)}")
    if args.count is not None and args.count < 2:
        raise UserError(f"--count={args.count} must be at least 2")


def _request(model, args):
    from vit_jax.explanation import inspection

    return inspection.Request(model, args.images, args.split, args.count)


def _draw_model(folder, model, kinds, args):
    """Draw figures of one model, all or only `kinds`; return their folders."""
    from vit_jax import report
    from vit_jax.explanation import figures, inspection
    from vit_jax.explanation.methods import METHODS

    possible = figures.kinds_of(model.config)
    has_parts = model.relevance_grid != (1, 1)  # otherwise a map has a single value
    named = list(ONLY_NAMED) if model.class_names and model.methods and has_parts else []
    named += inspection.kinds_of(model)
    curves = ["curves"] if model.has_data else []  # otherwise it was trained elsewhere
    for kind in kinds:
        if kind not in (every := [*curves, *possible, *named]):
            raise UserError(f"{model.name} has no {kind}: it has {', '.join(every)}")
    if args.target is not None or args.methods:
        model.check_head()
    kinds, out, made = kinds or [*curves, *possible], args.out or folder / "figures", []
    if args.target is not None and {"attention_rollout", "explanations"}.isdisjoint(kinds):
        raise UserError(f"--target has no effect on {', '.join(kinds)}: draw explanations")
    if args.methods and "explanations" not in kinds:
        raise UserError(f"--methods has no effect on {', '.join(kinds)}: draw explanations")
    for method in args.methods or ():
        model.check_method(method)
    of_class = (METHODS[name].of_class for name in args.methods or model.methods)
    if args.target is not None and "attention_rollout" not in kinds and not any(of_class):
        raise UserError(f"--target has no effect on {', '.join(args.methods)}")
    print(f"drawing {', '.join(kinds)}", flush=True)
    if "curves" in kinds:
        made.append(report.draw_curves(folder, out / "curves"))
    if drawn := [kind for kind in kinds if kind in possible]:
        made += figures.draw_figures(_view(model, args, drawn), drawn, out)
    if "explanations" in kinds:
        images, names = _choose_images(model, args)
        methods = args.methods or model.methods
        made.append(
            figures.draw_explanations(
                model, images, names, methods, args.target, out / "explanations"
            )
        )
    if "explanation_scores" in kinds:
        images = _read_images(model, args) or model.random_images(
            args.count or 64, split=args.split or "test"
        )
        made.append(figures.draw_scores(model, images[0], out / "explanation_scores"))
    for kind in [kind for kind in kinds if kind in inspection.DRAW]:
        made.append(inspection.draw(_request(model, args), kind, out))
    return made


def _view(model, args, kinds):
    """Run a model on the images that the arguments choose, for figures; without, if of weights."""
    from vit_jax.explanation import figures

    viewer = figures.Viewer.of(model)
    if kinds and set(kinds) <= set(OF_WEIGHTS):
        return figures.Seen(viewer, model.variables["params"], np.zeros(0), [], [], {}, [], "")
    target = None if args.target is None else int(model.class_indices(args.target, 1)[0])
    images, names = _choose_images(model, args)
    return viewer.see(model.variables, images, names, target)


def _choose_images(model, args):
    return _read_images(model, args) or model.images_of_classes(args.classes, 8)


def _read_images(model, args):
    """Read --images and their names; None without."""
    if not args.images:
        return None
    return model.read_images(args.images), [single_line(path.name) for path in args.images]


def _draw_augment(argv):
    """Draw a contact sheet of augmented images; return its path in a list."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("--config", required=True, help="config file, or name of a bundled config")
    parser.add_argument("--out", type=pathlib.Path, help="FILE.png; default: CONFIG_augment.png")
    parser.add_argument(
        "--draws", type=int, default=3, help="draws per image and variant (default 3)"
    )
    parser.add_argument(
        "--rows", type=int, default=8, help="images, each of another class (default 8)"
    )
    args, overrides = parser.parse_with_overrides(argv)
    for name in ("draws", "rows"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    from vit_jax.config.loading import load_config
    from vit_jax.training.variants import make_variants

    experiment = load_config(args.config, overrides)
    out = args.out or pathlib.Path(f"{experiment.name}_augment.png")
    if out.suffix != ".png":
        raise UserError(f"--out={out} must be the name of an image, ending in .png")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: {out.parent} is not a folder")
    variants = make_variants(experiment.config, experiment.variants, set(overrides))
    _draw_sheet(variants, args.rows, args.draws, out)
    return [out]


def _draw_sheet(variants, rows, draws, out):
    """Write a contact sheet of `rows` images and `draws` augmentations of each per variant."""
    import jax

    from vit_jax.augment import augment, center_crop
    from vit_jax.data import checks
    from vit_jax.data.bands import show
    from vit_jax.data.examples import describe_label
    from vit_jax.data.sources import open_source
    from vit_jax.data.splits import PIXEL_KEYS, make_splits, one_of_each

    config = next(iter(variants.values()))
    distinct, first = {}, config.data
    for name, other in variants.items():  # the same images, as this variant stores them
        other = other.copy_and_resolve_references()
        pixels = {key: other.data[key] for key in PIXEL_KEYS}
        other.data = first.copy_and_resolve_references()
        other.data.update(pixels)
        distinct.setdefault(other.augment.to_json() + other.data.to_json(), (name, other))
    splits = make_splits(open_source(first), first)
    labels = splits.train.labels
    classes = checks.present(labels)  # of which `rows` are chosen, evenly
    classes = classes[np.unique(np.linspace(0, len(classes) - 1, rows).round().astype(int))]
    chosen = one_of_each(labels, classes, config.seed)
    images, labels = splits.train.take(chosen).decode_all(1)
    names = [describe_label(label, splits.class_names) for label in labels]
    num_classes = len(splits.class_names)
    whole = np.asarray(center_crop(jax.numpy.asarray(images), first.image_size))
    groups = {"original": show(whole[:, None], first)}
    for name, config in distinct.values():
        stored = images
        if config.data != first:
            train = make_splits(open_source(config.data), config.data).train
            stored, _ = train.take(chosen).decode_all(1)
        augment_step = jax.jit(functools.partial(augment, num_classes=num_classes, config=config))
        keys = jax.random.split(jax.random.key(config.seed), draws)
        drawn = np.stack([np.asarray(augment_step(key, stored, labels)[0]) for key in keys], 1)
        pixels = drawn * np.array(config.data.std) + np.array(config.data.mean)
        title = name if len(distinct) > 1 else config.augment.kind
        title += " (variant)" if title in groups else ""
        groups[title] = show(np.rint(255 * pixels).clip(0, 255).astype(np.uint8), config.data)
    plots.save_contact_sheet(out, names, groups)
