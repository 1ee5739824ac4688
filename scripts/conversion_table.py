"""Compare converted models with the activations of their libraries, and write docs/conversions.md.

    python scripts/conversion_table.py zoo zoo_full

The folders are those of tests/make_zoo.py, which needs torch, torchvision, timm and transformers.
"""

import argparse
import json
import pathlib
import re
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import zoo  # noqa: E402

PAGE = ROOT / "docs" / "conversions.md"
STAGES = ("embedding", "blocks", "output")
BLOCK = re.compile(r"(<!-- conversions -->\n).*(<!-- /conversions -->)", re.DOTALL)
HEAD = "| library | model | parameters | embedding | after the blocks | output |"


def compare(folder: pathlib.Path) -> tuple[int, list[float]]:
    """Compute the parameters and the largest absolute difference of each stage of a model."""
    weights, golden = zoo.convert(folder), np.load(folder / "golden.npz")
    differences = [
        float(np.abs(array - golden[stage]).max())
        for stage, array in zip(STAGES, zoo.compute(weights, golden["images"]), strict=True)
    ]
    return sum(array.size for array in weights.arrays.values()), differences


def main() -> None:
    """Write the table of the given folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=pathlib.Path, nargs="+", help="folders of make_zoo.py")
    rows, versions, largest = [], {}, {}
    for root in parser.parse_args().folders:
        versions |= json.loads((root / "versions.json").read_text())
        for folder in zoo.folders(root):
            title = json.loads((folder / "given.json").read_text())["title"]
            count, found = compare(folder)
            library, name = title.split(" ", 1)
            cells = [library, f"`{name}`", f"{count:,}", *(f"{x:.1e}" for x in found)]
            rows.append("| " + " | ".join(cells) + " |")
            largest[root.name] = max(largest.get(root.name, 0), *found)
            print(rows[-1], flush=True)
    with_jax = {**versions, "jax": jax.__version__, "numpy": np.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in with_jax.items())
    table = [HEAD, "|---|---|--:|--:|--:|--:|", *rows]
    sums = ", ".join(f"{value:.1e} in `{name}`" for name, value in largest.items())
    text = "\n".join([f"{len(rows)} models, largest difference {sums}; {listed}.", "", *table])
    page = BLOCK.sub(lambda match: match[1] + text + "\n" + match[2], PAGE.read_text())
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
