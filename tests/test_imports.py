"""Imports are layered, and each heavy dependency is imported in a single module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up: a package may import lower layers and its own modules.
LAYERS = (
    ("runtime",),
    ("config",),
    ("models", "augment", "plots"),
    ("data", "storage"),
    ("pretrained",),
    ("evaluation",),
    ("training",),
    ("explanation", "report"),
    ("cli",),
    ("main",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HOMES = {
    "orbax": {"storage"},
    "tensorflow_datasets": {"data"},
    "pyarrow": {"data"},
    "datasets": {"data"},
    "grain": {"data"},
    "tensorboard": {"storage"},
    "wandb": {"storage"},
    "safetensors": {"pretrained"},
    "ml_collections": {"config"},
    "jinja2": {"report"},
    "filelock": {"runtime"},
    "tensorflow": set(),
    "torch": set(),
}
FILES = [*sorted((ROOT / "vit_jax").rglob("*.py")), *sorted((ROOT / "configs").glob("*.py"))]


def imported(path):
    """Yield the dotted names that a file imports, at any level."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
    package, *parts = path.relative_to(ROOT).with_suffix("").parts
    module = parts[0] if package == "vit_jax" else package
    level = LEVEL.get(module, len(LAYERS))
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in HOMES or module in HOMES[top], f"{module} imports {name}"
        if top == "vit_jax" and rest and rest[0] != module:
            assert LEVEL.get(rest[0], -1) < level, f"{module} imports {name}"


def test_every_package_has_a_layer():
    packages = {path.stem for path in (ROOT / "vit_jax").iterdir() if path.name[0] not in "_."}
    assert packages == set(LEVEL)


def test_modules_of_the_package_stay_short():
    lengths = {str(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
