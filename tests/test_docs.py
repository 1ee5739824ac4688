"""README and docs: commands parse, settings, files, links and imported names exist."""

import argparse
import ast
import importlib
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from vit_jax import main as main_module
from vit_jax.cli import app, command
from vit_jax.config.loading import load_config
from vit_jax.config.schema import SCHEMA, SECTIONS
from vit_jax.training.variants import make_variants

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in PAGES}
TABLE = "docs/commands.md"

# Commands whose program, subcommand and flags a test runs, on small data or with a shorter run.
TESTED = {
    "make fuzz EXAMPLES=500": "test_config_fuzz.py",
    "make processes": "test_processes.py",
    "python -m pytest -q tests/test_augment.py": "test_augment.py",
    "python -m pytest -q tests/test_docs.py": "test_docs.py",
    "vit-jax launch -n 2 -- --config=configs/digits_patch.py --workdir=runs/two_processes": (
        "test_processes.py"
    ),
    "vit-jax check-data photos": "test_check_data.py",
    "vit-jax compile cifar_patch --variant=patch_4 --target=v5e:2x2 --target=h100": (
        "test_compile.py"
    ),
    "vit-jax evaluate weights/vit_b16_timm --class-names=names.txt --config.data.name=folder "
    "--config.data.dir=imagenet/val --split=all --out=evaluation": "test_foreign_predictions.py",
    "vit-jax suspects runs/photos/base/seed_0 --cross-validate=5": "test_suspects.py",
    "python -m vit_jax.main --config=configs/photos.py --config.data.relabel=corrected.csv "
    "--workdir=runs/corrected": "test_suspects.py",
    "vit-jax prepare-data cifar10 --archive cifar-10-binary.tar.gz": "test_data_prepare.py",
    "vit-jax convert timm_vit/model.safetensors weights/vit_b16_timm": (
        "test_foreign_predictions.py"
    ),
    "vit-jax explore weights/vit_b16 --images cat.jpg more_photos/ --out=explorer.html": (
        "test_explorer.py"
    ),
    "vit-jax explore runs/cifar_patch_cpu/patch_2/seed_0 runs/cifar_patch_cpu/patch_4/seed_0 "
    "--out=compared.html": "test_explained_run.py",
    "vit-jax visualize dinov2/model.safetensors last_layer_attention --images cat.jpg "
    "--out=figures": "test_visualize.py",
    "vit-jax visualize weights/vit_b16 attention_rollout --images cat.jpg dog.jpg --out=figures": (
        "test_visualize.py"
    ),
    "vit-jax visualize runs/eurosat_finetune/*/seed_0 --out=compared": "test_visualize.py",
    "vit-jax visualize runs/cifar_patch_cpu/patch_4/seed_0 ablation logit_lens token_norms "
    "probes": "test_inspection.py",
    "vit-jax visualize runs/first/base/seed_0 runs/second/base/seed_0 layer_similarity "
    "--out=compared": "test_inspection.py",
    "vit-jax visualize runs/cifar_patch_cpu/patch_4/seed_0 explanations --methods chefer rise "
    "--target=dog": "test_visualize.py",
    "python -m vit_jax.main --config=configs/tags.py": "test_multi_label.py",
    "vit-jax predict runs/photos/base/seed_0 photo.jpg --overlay=annotated --explain=grad_cam": (
        "test_api.py"
    ),
    "vit-jax predict runs/photos/base/seed_0 new_photos --csv=predictions.csv --sort-into=sorted "
    "--below=0.6": "test_prediction_files.py",
}

# Of `vit_jax.Model`, no settings.
ATTRIBUTES = ("model.class_names", "model.config", "model.grid", "model.methods")
ATTRIBUTES += ("model.relevance_grid", "model.residual")


def blocks(text):
    """Yield (language, contents) of fenced code blocks, and of indented ones as "bash"."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    yield from fence.findall(text)
    indented = re.findall(r"(?<=\n\n)(?: {4}\S.*\n)+", fence.sub("", text))
    yield from (("bash", re.sub("(?m)^ {4}", "", block)) for block in indented)


def commands_of(text):
    """List the shell commands of a page, continued lines joined and comments removed."""
    lines = []
    for language, block in blocks(text):
        if language == "bash":
            joined = re.sub(r"\\\n\s*", "", block)
            lines += [re.sub(r"(\s+#.*|\s+&)$", "", line).strip() for line in joined.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def python_of(text):
    return [block for language, block in blocks(text) if language == "python"]


COMMANDS = list(dict.fromkeys(c for text in TEXTS.values() for c in commands_of(text)))
PYTHON = [(page, block) for page, text in TEXTS.items() for block in python_of(text)]


class Parsed(BaseException):
    """End a command once its arguments are parsed."""


@pytest.fixture
def parse(monkeypatch):
    """A function that has a program parse its arguments, and returns its options."""
    original = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, args=None, namespace=None):
        options, rest = original(self, args, namespace)
        assert not rest, f"unrecognised {rest}"
        raise Parsed(options)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(words):
        if words[0] == "vit-jax":
            program, arguments = app.main, words[1:]
        elif words[1] == "-m":
            program, arguments = main_module.run, words[3:]
        else:
            script = str(ROOT / words[1])
            program, arguments = lambda: runpy.run_path(script, run_name="__main__"), words[2:]
        monkeypatch.setattr(sys, "argv", [words[0], *arguments])
        with pytest.raises(Parsed) as parsed:
            program()
        return parsed.value.args[0]

    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the configs of the repository and of the documents."""
    (tmp_path / "configs").mkdir()
    for path in (ROOT / "configs").glob("*.py"):
        shutil.copy(path, tmp_path / "configs")
    for _, block in PYTHON:
        if match := re.match(r"# (configs/\w+\.py)\n", block):
            (tmp_path / match[1]).write_text(block)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def programs_of(text):
    """Yield the words of each command of this project in a shell command, nested ones too."""
    words = shlex.split(text)
    for i, word in enumerate(words):
        if " " in word and "vit_jax" in word:
            yield from programs_of(word.rpartition("&& ")[2])
        runs_python = word.split("/")[-1] == "python" and re.match(
            r"-m vit_jax\.main|scripts/", " ".join(words[i + 1 : i + 3])
        )
        if runs_python or word == "vit-jax":
            yield ["python" if runs_python else word, *words[i + 1 :]]
            return


@pytest.mark.parametrize("text", COMMANDS)
def test_command_parses(text, parse, folder):
    programs = list(programs_of(text))
    assert programs or not re.search(r"vit-jax|vit_jax\.main|scripts/", text)
    for words in programs:
        check_arguments(words, parse(words))


def check_arguments(words, options):
    """Load the config of a command, with its overrides."""
    if rest := getattr(options, "arguments", None):  # of launch
        options = argparse.Namespace(config=rest[0].removeprefix("--config="), variant=None)
    config = getattr(options, "config", None)
    if not config:
        return
    overrides, _ = command.split_overrides(words)
    path = config[0] if isinstance(config, list) else config
    experiment = load_config(path, overrides, getattr(options, "variant", None))
    if not experiment.config.init_from:
        make_variants(experiment.config, experiment.variants, set(experiment.given))


def test_make_targets_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for text in TEXTS.values():
        for target in re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE):
            assert target in targets, target


def table_rows():
    """Yield (command, when, last line, hardware) of docs/commands.md."""
    for line in TEXTS[TABLE].splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            yield cells[0].strip("`"), *cells[1:]


def test_every_command_is_run_by_a_test_or_listed():
    listed = [row[0] for row in table_rows()]
    assert len(listed) == len(set(listed))
    assert sorted({*listed, *TESTED}) == sorted(COMMANDS)
    assert not set(listed) & set(TESTED)
    for file in TESTED.values():
        assert (ROOT / "tests" / file).exists()


def test_listed_commands_have_a_date_or_a_reason():
    for text, when, last, hardware in table_rows():
        dated = re.fullmatch(r"\d{4}-\d\d-\d\d", when) and last and hardware
        assert dated or re.match(r"not run here: needs .+", when), text


@pytest.mark.parametrize("page", TEXTS)
def test_settings_exist(page):
    sections = "|".join(filter(None, SECTIONS))
    text = TEXTS[page]
    found = re.findall(r"--config\.([a-z_]+(?:\.\w+)?)", text)
    found += re.findall(rf"\bconfig\.((?:{sections})\.\w+)(?!\w*\()", text)
    quoted = rf"`((?:{sections})\.\w+)(=[^`]*)?`"
    files = ("md", "py", "json", "html", "safetensors")
    for key, value in re.findall(quoted, text):
        if key.split(".")[-1] not in files and key not in ATTRIBUTES:
            found.append(key)
            command.split_overrides([f"--config.{key}{value or '=' + default_of(key)}"])
    for key in found:
        assert key in SCHEMA or key.split(".")[1:] in (["update"], []), f"{page}: {key}"


def default_of(key):
    assert key in SCHEMA, key
    return str(SCHEMA[key].default)


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_links_exist(page):
    text, documented = TEXTS[page], {re.match(r"# (\S+)", block)[1] for _, block in configs()}
    named = r"\b(?:configs|docs|notebooks|scripts|tests|vit_jax)/[\w/]*\w\.(?:py|md|png|ipynb)\b"
    for name in set(re.findall(named, text)) - documented - {"configs/NAME.py", "scripts/NAME.py"}:
        assert (ROOT / name).exists() or (ROOT / page).parent.joinpath(name).exists(), name
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE))


def configs():
    return [(page, block) for page, block in PYTHON if block.startswith("# configs/")]


def slug(heading):
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize(("page", "block"), PYTHON)
def test_python_blocks_compile_and_import_what_exists(page, block):
    compile(block, page, "exec")
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Import):
            modules = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in modules:
            if module.split(".")[0] != "vit_jax":  # as timm, which need not be installed
                continue
            package = importlib.import_module(module)
            submodule = importlib.util.find_spec(f"{module}.{name}") if name else None
            assert name is None or hasattr(package, name) or submodule, f"{module}.{name}"
        for used in re.findall(r"\bvit_jax\.(\w+)", block):
            assert hasattr(importlib.import_module("vit_jax"), used), used


def test_quoted_messages_exist():
    trees = [ast.parse(path.read_text()) for path in (ROOT / "vit_jax").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    strings = [node.value for node in nodes if isinstance(node.value, str)]
    section = TEXTS["docs/troubleshooting.md"].partition("## A run is refused")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) > 5
    for message in messages:
        assert any(message in string for string in strings), message


def test_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 1500
