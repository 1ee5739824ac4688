"""Compare the outputs of exported models in timm and transformers with ours; run by hand.

    python tests/check_exports.py write tests/golden/zoo exported
    python tests/check_exports.py read exported

The first command needs vit_jax, the second one torch, timm and transformers. The models are those
of a folder of make_zoo.py and `OWN`, with random weights. Those that a format cannot represent are
named.
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
    "cls_mean": dict(pool="cls_mean", mlp_dim=32, pos_embed="sincos_2d"),
    "cls_mean, scaled": dict(pool="cls_mean", mlp_dim=32, layer_scale_init=0.1, norm_eps=1e-5),
    "cls_mean, gated": dict(pool="cls_mean", mlp="swiglu", num_registers=2, qkv_bias=False),
}
LARGEST = 1e-4


def write(source, folder):
    """Export the models of a folder of make_zoo.py, and those of `OWN`, to FOLDER/FORMAT/NAME."""
    import zoo

    from vit_jax import UserError, pretrained

    for kind in ("timm", "hf"):
        (folder / kind).mkdir(parents=True)
    found = {name: zoo.make(**model) for name, model in OWN.items()}
    found |= {path.name: zoo.convert(path) for path in zoo.folders(source)}
    for name, weights in found.items():
        settings = weights.info["settings"]
        side, channels = (settings[f"data.{key}"] for key in ("image_size", "channels"))
        images = np.random.default_rng(1).normal(size=(2, side, side, channels)).astype(np.float32)
        *_, output = zoo.compute(weights, images)
        for kind in ("timm", "hf"):
            path = folder / kind / name
            try:
                pretrained.export(weights, kind, path)
            except UserError as error:
                print(f"{name}: {error}")
                continue
            np.savez(path / "images.npz", images=images, output=output)


def read(folder):
    """Print the largest absolute difference of outputs; exit with 1 if one is too large."""
    import timm
    import torch
    import transformers

    def load(path):
        if path.parent.name == "timm":
            return timm.create_model(f"local-dir:{path}", pretrained=True)
        return transformers.AutoModelForImageClassification.from_pretrained(path)

    found = {}
    for path in sorted(folder.glob("*/*")):
        name, golden = path.relative_to(folder), np.load(path / "images.npz")
        model = load(path).eval()
        with torch.no_grad():
            output = model(torch.tensor(golden["images"]).permute(0, 3, 1, 2))
        output = getattr(output, "logits", output).numpy()
        # Without a head, DINOv2 of transformers returns the mean of the patches, too.
        output = output[:, : golden["output"].shape[1]]
        found[name] = np.abs(output - golden["output"]).max()
        print(f"{name}: {found[name]:.1e}", flush=True)
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
