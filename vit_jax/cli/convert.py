"""Convert pretrained weights of other projects to a checkpoint for `init_from`, or export a run.

    vit-jax convert ViT-B_16.npz weights/vit_b16
    vit-jax convert model.safetensors weights/vit_b16
    vit-jax convert runs/photos/base/seed_0 exported --to=timm

SOURCE is an official .npz file (of 2020, AugReg, or big_vision), or .safetensors of a ViT from
timm, Hugging Face or torchvision, or of a ResNet18; a config.json next to it is read too. DEST, a
new folder, gets an orbax checkpoint and model.json, which describes the weights and their settings.

With --to, SOURCE is the folder of a run or a converted checkpoint. timm and hf write a folder for
timm.create_model("local-dir:DEST", pretrained=True) or ViTForImageClassification.from_pretrained;
npz writes a file in the official layout.
"""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError, single_line


@command.main
def main(argv: Sequence[str]) -> None:
    """Convert or export weights; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("source", type=pathlib.Path, help="file of weights; with --to, a folder")
    parser.add_argument("dest", type=pathlib.Path, help="new folder; with --to=npz, a new file")
    parser.add_argument("--to", choices=("timm", "hf", "npz"), help="export to this format")
    parser.add_argument(
        "--num-heads",
        type=int,
        help="number of attention heads, if neither the file nor the model size determines it",
    )
    parser.add_argument(
        "--gelu", choices=("tanh", "erf"), help="variant of GELU; default: that of the source"
    )
    parser.add_argument(
        "--norm-eps", type=float, help="epsilon of LayerNorm; default: that of the source"
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=float, nargs="+", help=f"{name} per channel of pixels in [0, 1]"
        )
    args = parser.parse_args(argv)
    print(single_line(f"reading {args.source}"), flush=True)
    from vit_jax import pretrained  # imports JAX

    given = {
        "model.num_heads": args.num_heads,
        "model.gelu": args.gelu,
        "model.norm_eps": args.norm_eps,
        "data.mean": tuple(args.mean) if args.mean else None,
        "data.std": tuple(args.std) if args.std else None,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if args.to:
        if given:
            raise UserError(
                f"--to={args.to} writes the settings of SOURCE: omit --num-heads, --gelu, "
                "--norm-eps, --mean and --std"
            )
        for note in pretrained.export(pretrained.load(args.source), args.to, args.dest):
            print(f"note: {note}")
    else:
        if args.source.is_dir():
            raise UserError(f"{args.source} is a folder: give a file, or --to to export a run")
        weights = pretrained.convert(args.source, given)
        pretrained.save(weights, args.dest)
        print(pretrained.describe(weights))
    print(f"wrote {args.dest}")
