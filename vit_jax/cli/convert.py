"""Convert pretrained weights of other projects to a checkpoint for `init_from`, or export a run.

    vit-jax convert ViT-B_16.npz weights/vit_b16
    vit-jax convert model.safetensors weights/vit_b16
    vit-jax convert runs/photos/base/seed_0 exported --to=timm

SOURCE is an official .npz file (of 2020, AugReg, or big_vision), or .safetensors of a ViT from
timm, Hugging Face, torchvision or open_clip, or of a ResNet18; docs/conversions.md lists them. A
config.json and preprocessor_config.json next to it are read too; what no file records must be
given. DEST, a new folder, gets an orbax checkpoint and model.json, which describes the weights and
their settings.

With --to, SOURCE is the folder of a run or a converted checkpoint, or a file that needs no option.
timm and hf write a folder for timm.create_model("local-dir:DEST", pretrained=True) or
AutoModelForImageClassification.from_pretrained; npz writes a file in the official layout.
"""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.config.schema import SCHEMA
from vit_jax.runtime.errors import UserError, single_line


@command.main
def main(argv: Sequence[str]) -> None:
    """Convert or export weights; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("source", type=pathlib.Path, help="file of weights; with --to, a folder")
    parser.add_argument("dest", type=pathlib.Path, help="new folder; with --to=npz, a new file")
    parser.add_argument("--to", choices=("timm", "hf", "npz"), help="export to this format")
    _add_options(parser)
    args = parser.parse_args(argv)
    print(single_line(f"reading {args.source}"), flush=True)
    from vit_jax import pretrained  # imports JAX

    options = {name: getattr(args, name) for name in pretrained.OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    if args.to:
        if options:
            flag = f"--{min(options).replace('_', '-')}"
            raise UserError(f"--to={args.to} writes the settings of SOURCE: omit {flag}")
        for note in pretrained.export(pretrained.load(args.source), args.to, args.dest):
            print(f"note: {note}")
    else:
        if args.source.is_dir():
            raise UserError(f"{args.source} is a folder: give a file, or --to to export a run")
        weights = pretrained.convert(args.source, pretrained.settings_of(options))
        pretrained.save(weights, args.dest)
        print(pretrained.describe(weights))
    print(f"wrote {args.dest}")


def _add_options(parser):
    """Add the options that complete or override what the files record."""
    parser.add_argument("--architecture", help="name in timm, such as vit_base_patch16_224")
    parser.add_argument("--num-heads", type=int, help="number of attention heads")
    parser.add_argument("--gelu", choices=("tanh", "erf", "quick"), help="variant of GELU")
    parser.add_argument("--mlp", choices=("gelu", "swiglu"), help="kind of MLP")
    parser.add_argument("--norm", choices=("layer", "rms"), help="LayerNorm or RMSNorm")
    parser.add_argument("--norm-eps", type=float, help="epsilon of LayerNorm")
    pools = SCHEMA["model.pool"].choices
    parser.add_argument("--pool", choices=pools, help="pooling of tokens")
    parser.add_argument("--pooler-act", choices=("tanh",), help="activation of the pooler")
    parser.add_argument(
        "--pos-embed", choices=("sincos_2d", "none"), help="position embedding without a table"
    )
    parser.add_argument(
        "--image-size", type=int, nargs="+", metavar="PIXELS", help="side, or height and width"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs="+", help=f"{name} per channel of pixels in [0, 1]"
        )
    for name in ("eval_crop", "resize_mode", "interpolation"):
        setting = SCHEMA[f"data.{name}"]
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=type(setting.default),
            choices=setting.choices or None,
            help=f"data.{name}: {setting.help}",
        )
    command.add_class_names(parser)
