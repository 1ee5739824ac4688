"""The package's imports run one way, and each heavy dependency has one home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {path.stem for path in (ROOT / "vit_jax").iterdir() if path.name[0] not in "_."}

# What each module may import of ours; a package may always import its own parts, and anyone
# `errors` and `files`.
ALLOWED = {name: set() for name in OURS} | {
    "main": {"sweep", "stop", "config", "memory", "processes"},
    "sweep": OURS - {"main", "sweep"},
    "train": OURS - {"main", "sweep", "train", "report"},
    "program": OURS
    - {
        "main",
        "sweep",
        "train",
        "program",
        "features",
        "seeds",
        "stop",
        "report",
        "classifier",
        "figures",
        "scores",
    },
    "features": {"checkpoint", "data", "metrics", "program", "sharding"},
    "seeds": {"evaluate", "models", "program", "run_folder", "sharding", "steps", "validation"},
    "classifier": OURS - {"main", "sweep", "train", "report", "classifier"},
    "cli": {"config", "memory"},
    "figures": {
        "augment",
        "classifier",
        "config",
        "evaluate",
        "explain",
        "models",
        "plots",
        "scores",
    },
    "scores": {"augment", "classifier", "explain", "metrics", "models"},
    "pretrained": {"checkpoint", "config", "metrics", "models", "run_folder", "validation"},
    "validation": {"config"},
    "run_folder": {"config", "metrics", "processes"},
    "evaluate": {"metrics", "steps", "sharding"},
    "steps": {"augment", "metrics"},
    "report": {"plots", "metrics"},
    "data": {"processes", "sharding"},
    "checkpoint": {"memory", "processes"},
    "sharding": {"processes"},
    "configs": {"config"},
}
HOMES = {
    "orbax": {"checkpoint"},
    "tensorflow_datasets": {"data"},
    "grain": {"data"},
    "tensorboard": {"metrics"},
    "wandb": {"metrics"},
    "safetensors": {"pretrained"},
    "ml_collections": {"config", "main", "sweep", "configs"},
    "tensorflow": set(),
    "torch": set(),
}
FILES = [*sorted((ROOT / "vit_jax").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]


def imported(path):
    """Yields the dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    package, *parts = path.relative_to(ROOT).with_suffix("").parts
    module = parts[0] if package == "vit_jax" else package
    allowed = ALLOWED.get(module, set()) | {module, "errors", "files"}
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in HOMES or module in HOMES[top], f"{module} imports {name}"
        assert top != "vit_jax" or not rest or rest[0] in allowed, f"{module} imports {name}"
