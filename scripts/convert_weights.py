"""Converts pretrained weights of other projects into a checkpoint that config.init_from takes.

    python scripts/convert_weights.py ViT-B_16.npz weights/vit_b16
    python scripts/convert_weights.py model.safetensors weights/vit_b16
    python scripts/convert_weights.py runs/photos/base/seed_0 exported --to=timm

SOURCE is an official .npz file (of 2020, AugReg, or big_vision), or .safetensors of a ViT from
timm, Hugging Face or torchvision, or of a ResNet18; a config.json beside it is read too. DEST, a
new folder, gets an orbax checkpoint and model.json, which says what the weights are and need.

With --to, SOURCE is the folder of a run or a converted checkpoint. timm and hf make a folder for
timm.create_model("local-dir:DEST", pretrained=True) or ViTForImageClassification.from_pretrained;
npz makes a file in the official layout.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # without an installation

from vit_jax import pretrained  # noqa: E402
from vit_jax.cli import command  # noqa: E402
from vit_jax.runtime.errors import UserError  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    return command.run(lambda: convert(argv))


def convert(argv: list[str] | None) -> None:
    """Converts as the arguments say; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("dest", type=pathlib.Path)
    parser.add_argument("--to", choices=("timm", "hf", "npz"), help="write for that project")
    parser.add_argument("--num-heads", type=int, help="if neither the file nor its size tells")
    parser.add_argument("--gelu", choices=("tanh", "erf"), help="if not that of its kind")
    parser.add_argument("--norm-eps", type=float, help="of LayerNorm, if not that of its kind")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs="+", help="of the pixels in [0, 1]")
    args = parser.parse_args(argv)
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
                f"--to={args.to} takes no further settings: those of SOURCE are written"
            )
        for note in pretrained.export(pretrained.load(args.source), args.to, args.dest):
            print(f"note: {note}")
    else:
        if args.source.is_dir():
            raise UserError(f"{args.source} is a folder: give a file, or --to for a run's weights")
        weights = pretrained.convert(args.source, given)
        pretrained.save(weights, args.dest)
        print(pretrained.describe(weights))
    print(f"wrote {args.dest}")


if __name__ == "__main__":
    sys.exit(main())
