"""Helpers of the tests of labelled images: 8x8 images whose grey level is their number."""

from PIL import Image
from tiny_datasets import settings

from vit_jax.data.sources import open_source
from vit_jax.data.splits import make_splits


def save(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)


def flat(root, count=20):
    """Write images 0.png, 1.png, ..., whose grey level is their number, to root/photos."""
    for i in range(count):
        save(root / "photos" / f"{i}.png", i)
    return root / "photos"


def rows(count=20):
    return [f"{i}.png,{'cat' if i % 2 else 'ant'}" for i in range(count)]


def write(root, lines, name="labels.csv", encoding="utf-8"):
    path = root / name
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def config_of(root, **keys):
    return settings(name="folder", dir=str(root / "photos"), **keys)


def contents(config):
    """Map each split to {grey level: class name}."""
    splits, found = make_splits(open_source(config), config), {}
    for name in ("train", "val", "test"):
        examples = getattr(splits, name).read(range(len(getattr(splits, name))))
        found[name] = {int(i[0, 0, 0]): splits.class_names[label] for i, label in examples}
    return found


EXPECTED = {i: "cat" if i % 2 else "ant" for i in range(20)}
