"""The stored notebooks: executed, small, and written with the public API alone."""

import ast
import json
import re

import pytest
from conftest import ROOT

import vit_jax

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["ablation", "finetune_and_look_inside", "quickstart", "vit_from_scratch"]
FIGURES = {"ablation": 2, "finetune_and_look_inside": 4, "quickstart": 5, "vit_from_scratch": 3}
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(root|home|Users|work|tmp|var|opt|usr|content)/")


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text()) | {"path": request.param}


@pytest.fixture
def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell):
    return "".join(cell["source"])


def test_there_are_four_notebooks():
    assert [path.stem for path in PATHS] == NAMES


def test_every_cell_was_executed_once_and_in_order_without_an_error(notebook, code_cells):
    assert [cell["execution_count"] for cell in code_cells] == list(range(1, len(code_cells) + 1))
    outputs = [output for cell in code_cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(figures) == FIGURES[notebook["path"].stem]


def test_notebooks_are_small_and_hold_no_path_of_the_machine(notebook):
    text = notebook["path"].read_text()
    assert len(text) < 300_000
    assert not re.search(MACHINE_PATH, re.sub('"image/png": ".*?"', "", text))


def test_the_first_cell_installs_the_package(code_cells):
    first = json.loads(PATHS[0].read_text())["cells"][1]
    assert source_of(code_cells[0]) == "".join(first["source"])
    assert "%pip install" in source_of(code_cells[0])


def test_notebooks_use_the_public_api_alone(code_cells):
    used = set()
    for cell in code_cells[1:]:
        for node in ast.walk(ast.parse(source_of(cell))):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("vit_jax")
            elif isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.startswith("vit_jax.")]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used |= {node.attr} if node.value.id == "vit_jax" else set()
    assert "train" in used and used <= set(vit_jax.__all__)
