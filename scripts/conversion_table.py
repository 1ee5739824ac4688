"""Compare converted models with the activations of their libraries, and write docs/conversions.md.

    python tests/make_zoo.py zoo
    python tests/make_zoo.py zoo_full --full
    python scripts/conversion_table.py zoo zoo_full

The first two commands need torch, torchvision, timm and transformers; this one does not.
"""

import argparse
import json
import pathlib

import jax
import numpy as np

from vit_jax import config as settings
from vit_jax import models, pretrained

STAGES = ("embedding", "blocks", "output")


def differences(folder: pathlib.Path) -> dict[str, float]:
    """Compute the largest absolute difference of each stage, from a folder of make_zoo.py."""
    options = json.loads((folder / "given.json").read_text())["options"]
    file = next(p for p in folder.iterdir() if p.name in ("model.safetensors", "model.npz"))
    weights = pretrained.convert(file, pretrained.settings_of(options))
    config = settings.with_overrides(settings.get_config(), weights.info["settings"], "weights")
    num_classes, golden = weights.info["num_classes"], np.load(folder / "golden.npz")
    model, variables = models.build(config.model, max(1, num_classes)), weights.variables
    if not num_classes:
        width, _ = pretrained.shapes(weights.info["settings"], 1)["head/kernel"]
        variables["params"]["head"] = {"kernel": np.zeros((width, 1)), "bias": np.zeros(1)}
    apply = jax.jit(model.apply, static_argnames="capture")
    logits, inside = apply(variables, golden["images"], capture=True)
    output = logits if num_classes else inside["features"]
    found = dict(zip(STAGES, (inside["tokens"][0], inside["tokens"][-1], output), strict=True))
    return {stage: float(np.abs(found[stage] - golden[stage]).max()) for stage in STAGES}


def main() -> None:
    """Print the table of the folders that are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=pathlib.Path, nargs="+", help="folders of make_zoo.py")
    for root in parser.parse_args().folders:
        for folder in sorted(root.iterdir()):
            title = json.loads((folder / "given.json").read_text())["title"]
            try:
                d = differences(folder)
                print(f"{title:60}", *(f"{x:.1e}" for x in d.values()))
            except Exception as e:
                print(f"{title:60}", type(e).__name__, str(e)[-220:].replace("\n", " "))


if __name__ == "__main__":
    main()
