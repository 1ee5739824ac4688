"""Compare the outputs of exported models in timm and in this project; run by hand.

    python tests/check_exports.py write tests/golden/zoo exported
    python tests/check_exports.py read exported

The first command needs vit_jax, the second one torch and timm. The models are those of a folder of
make_zoo.py and `OWN`, with random weights. Those that timm cannot represent are named.
"""

import argparse
import pathlib
import sys

import numpy as np

OWN = {  # settings of config.model
    "sincos": dict(pos_embed="sincos_2d", pool="mean", patchify="manual"),
    "sinusoidal": dict(pos_embed="sinusoidal"),
    "learned_2d": dict(pos_embed="learned_2d", pool="avgmax", class_token=True),
    "no positions": dict(pos_embed="none", pool="max", fc_norm=True),
    "pre_norm": dict(pre_norm=True, norm_eps=1e-5, num_registers=3),
    "pre_norm, other epsilon": dict(pre_norm=True),
    "other epsilon": dict(norm_eps=1e-5),
    "rms": dict(norm="rms", qk_norm=True, mlp="swiglu", num_registers=2, pool="mean"),
    "rms, map": dict(norm="rms", pool="map", gelu="tanh", qkv_bias=False, pre_norm=True),
    "truncated ratio": dict(hidden_size=56, num_heads=7, mlp_dim=488, layer_scale_init=0.1),
}
LARGEST = 1e-4


def write(source, folder):
    """Export the models of a folder of make_zoo.py, and those of `OWN`, to a new folder."""
    import zoo

    from vit_jax import UserError, pretrained

    folder.mkdir()
    found = {name: zoo.make(**model) for name, model in OWN.items()}
    found |= {path.name: zoo.convert(path) for path in zoo.folders(source)}
    for name, weights in found.items():
        settings = weights.info["settings"]
        side, channels = (settings[f"data.{key}"] for key in ("image_size", "channels"))
        images = np.random.default_rng(1).normal(size=(2, side, side, channels)).astype(np.float32)
        try:
            pretrained.export(weights, "timm", folder / name)
        except UserError as error:
            print(error)
            continue
        *_, output = zoo.compute(weights, images)
        np.savez(folder / name / "images.npz", images=images, output=output)


def read(folder):
    """Print the largest absolute difference of timm's outputs; exit with 1 if one is too large."""
    import timm
    import torch

    found = {}
    for path in sorted(folder.iterdir()):
        model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        golden = np.load(path / "images.npz")
        with torch.no_grad():
            output = model(torch.tensor(golden["images"]).permute(0, 3, 1, 2)).numpy()
        found[path.name] = np.abs(output - golden["output"]).max()
        print(f"{path.name}: {found[path.name]:.1e}", flush=True)
    print(f"{len(found)} models, largest difference {max(found.values(), default=np.nan):.1e}")
    sys.exit(not found or not all(difference < LARGEST for difference in found.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    writing, reading = actions.add_parser("write"), actions.add_parser("read")
    writing.add_argument("zoo", type=pathlib.Path, help="a folder of make_zoo.py")
    for action in (writing, reading):
        action.add_argument("folder", type=pathlib.Path, help="the exported models")
    args = parser.parse_args()
    write(args.zoo, args.folder) if args.action == "write" else read(args.folder)
