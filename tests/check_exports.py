"""Compare exports to timm with what timm makes of them, by hand.

    python tests/check_exports.py write zoo exported
    python tests/check_exports.py read exported

The first command needs vit_jax and a folder of tests/make_zoo.py, the second one torch and timm.
Each converted model, and models of this project with random weights, are exported with images and
this project's output; those that timm cannot represent are named.
"""

import argparse
import json
import pathlib

import numpy as np

OWN = {
    "sincos": dict(pos_embed="sincos_2d", pool="mean", patchify="manual"),
    "sinusoidal": dict(pos_embed="sinusoidal"),
    "learned_2d": dict(pos_embed="learned_2d", pool="avgmax", class_token=True),
    "no positions": dict(pos_embed="none", pool="max", fc_norm=True),
    "pre_norm": dict(pre_norm=True, norm_eps=1e-5, num_registers=3),
    "rms": dict(norm="rms", qk_norm=True, mlp="swiglu", num_registers=2, pool="mean"),
    "rms, map": dict(norm="rms", pool="map", gelu="tanh", qkv_bias=False),
    "truncated ratio": dict(hidden_size=56, num_heads=7, mlp_dim=488, layer_scale_init=0.1),
}


def make(**model):
    """Make `Weights` of a small ViT with random values, as of a run."""
    from vit_jax import config as settings
    from vit_jax import pretrained
    from vit_jax.pretrained.weights import KEYS

    config = settings.get_config()
    config.data.update(image_size=12, resize_mode="shorter_side", mean=(0.5,) * 3, std=(0.2,) * 3)
    config.model.update(patch_size=4, hidden_size=16, depth=2, num_heads=2, mlp_dim=24)
    config.model.update(model)
    flat = settings.flatten(config)
    keys = [*(f"model.{key}" for key in ("name", *KEYS["vit"])), *pretrained.DATA_KEYS]
    found = {key: flat[key] for key in (*keys, *settings.PREPROCESSING)}
    rng = np.random.default_rng(0)
    arrays = {
        key: rng.normal(size=shape, scale=0.5).astype(np.float32)
        for key, shape in pretrained.shapes(found, 5).items()
    }
    info = {"source": "a run", "settings": found, "num_classes": 5, "class_names": list("abcde")}
    return pretrained.Weights(arrays, info)


def compute(weights, images):
    """Compute logits, or the features of a model without a head."""
    from vit_jax import config as settings
    from vit_jax import models, pretrained

    config = settings.with_overrides(settings.get_config(), weights.info["settings"], "weights")
    count, variables = weights.info["num_classes"], weights.variables
    if not count:
        width, _ = pretrained.shapes(weights.info["settings"], 1)["head/kernel"]
        variables["params"]["head"] = {"kernel": np.zeros((width, 1)), "bias": np.zeros(1)}
    model = models.build(config.model, max(1, count))
    logits, inside = model.apply(variables, images, capture=True)
    return np.asarray(logits if count else inside["features"])


def write(zoo, folder):
    """Export the models of a zoo, and those of `OWN`."""
    from vit_jax import UserError, pretrained

    found = {name: make(**model) for name, model in OWN.items()}
    for source in sorted(path.parent for path in zoo.glob("*/given.json")):
        options = json.loads((source / "given.json").read_text())["options"]
        file = next(p for p in source.iterdir() if p.name in ("model.safetensors", "model.npz"))
        found[source.name] = pretrained.convert(file, pretrained.settings_of(options))
    for name, weights in found.items():
        side, channels = (
            weights.info["settings"][f"data.{key}"] for key in ("image_size", "channels")
        )
        images = np.random.default_rng(1).normal(size=(2, side, side, channels)).astype(np.float32)
        try:
            pretrained.export(weights, "timm", folder / name)
        except UserError as error:
            print(error)
            continue
        np.savez(folder / name / "images.npz", images=images, output=compute(weights, images))


def read(folder):
    """Print the largest absolute difference of timm's outputs."""
    import timm
    import torch

    for path in sorted(folder.iterdir()):
        model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        golden = np.load(path / "images.npz")
        with torch.no_grad():
            output = model(torch.tensor(golden["images"]).permute(0, 3, 1, 2)).numpy()
        print(f"{path.name}: {np.abs(output - golden['output']).max():.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("write", "read"))
    parser.add_argument("folders", type=pathlib.Path, nargs="+")
    args = parser.parse_args()
    {"write": write, "read": read}[args.action](*args.folders)
