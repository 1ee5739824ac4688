"""Every config trains when shrunk, and documents its command."""

import functools
import importlib
import pathlib
import tempfile

import jax
import numpy as np
import pytest
from tiny_states import made_up
from tiny_steps import make_steps
from tiny_weights import save_weights

from vit_jax import config as settings
from vit_jax import data, models
from vit_jax.config.loading import load_config
from vit_jax.config.rules import validate
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training.optim import make_plateau
from vit_jax.training.variants import make_variants

STRUCTURES = set()  # of programs traced or compiled so far
FOLDER = pathlib.Path(__file__).parent.parent / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
load_data = functools.cache(lambda key: data.load_data(settings_of(dict(key)).data, MESH))
MESH = jax.make_mesh(
    (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
)


def settings_of(overrides):
    return settings.with_overrides(settings.get_config(), overrides, "a test")


@functools.cache
def weights():
    """Save a converted ViT of 5 blocks for 8x8 images; return its folder."""
    return save_weights(pathlib.Path(tempfile.mkdtemp()) / "weights")


def variants_of(name):
    """Resolve the variants of a config file."""
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    if config.data.image_size == 0:  # from the weights
        config.init_from = str(weights())
    return make_variants(config, getattr(module, "sweep", dict)(), set())


def shrunk(config):
    """Shrink a config: a quarter of the width, fewer blocks, two steps on the digits."""
    model = config.model
    if config.init_from:
        keys = {
            "data.name": "digits",
            "data.dir": "",
            "train.batch_size": 8,
            "train.epochs": 2 / 161,
        }
        return settings.with_overrides(config, keys | {"optim.warmup_percent": 0.0}, "a test")
    keys = {
        "model.hidden_size": model.hidden_size // 4,
        "model.mlp_dim": model.mlp_dim // 4,
        "model.depth": -(-model.depth // 12),
        "data.name": "digits",
        "data.dir": "",
        "train.batch_size": 8,
        "train.epochs": 0.0,
        "train.steps": 2,
        "optim.warmup_epochs": 0.0,
        "train.teacher": "",  # a finished run; see test_ladder.py
        "train.distill_weight": 0.5,
        "train.distill_temperature": 2.0,
    }
    return settings.with_overrides(config, keys, "a test")


def structure_of(config, sections):
    """List what distinguishes programs in structure: choices, and which numbers are not 0."""
    flat = {k: v for k, v in settings.flatten(config).items() if k.split(".")[0] in sections}
    return tuple(v if isinstance(v, str) else bool(v) for v in flat.values())


@pytest.mark.parametrize("name", NAMES)
def test_config_trains_two_steps(name):
    """The last variant trains; the structures of the others are traced, and all shapes are valid.

    To save compile time, a structure is traced once for all configs, and compiled once per model.
    """
    variants = variants_of(name)
    for variant, full in variants.items():
        config = shrunk(full)
        validate(config)
        key = {k: v for k, v in settings.flatten(config).items() if k.startswith("data.")}
        digits = load_data(tuple(key.items()))
        steps = make_steps(config, digits, MESH)
        setup = steps.setup
        assert setup.lengths.total == (2 if setup.trained else 0)
        structure = structure_of(config, ("model", "optim", "freeze", "augment", "train"))
        start = steps.shapes
        batches = digits.train.train(0, 0, 2, config.train.batch_size)
        if not setup.trained or setup.on_features or structure in STRUCTURES:
            continue
        STRUCTURES.add(structure)
        core = structure_of(config, ("model", "freeze"))
        if variant == list(variants)[-1] and core not in STRUCTURES:
            STRUCTURES.add(core)
            state = made_up(start, make_plateau(config.optim))
            before = state.params
            for batch in batches:
                state = sharding.block_on_cpu(steps.train(state, jax.random.key(1), batch))
            assert int(state.step) == 2 and int(state.bad_step) == -1
            moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, state.params)
            assert moved["head"]["bias"] and sum(jax.tree.leaves(moved)) > 3
        else:
            jax.eval_shape(steps.train, start, jax.random.key(1), next(batches))


@pytest.mark.parametrize("name", NAMES)
def test_config_documents_its_command(name):
    module = importlib.import_module(f"configs.{name}")
    assert f"python -m vit_jax.main --config=configs/{name}.py" in module.__doc__
    index = (FOLDER.parent / "docs" / "index.md").read_text()
    assert f"`configs/{name}.py`" in index


def num_params(config):
    size, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), np.float32)
    shapes = jax.eval_shape(models.build(config.model, 10).init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def test_differential_and_plain_vit_have_similar_parameter_counts():
    counts = {name: num_params(config) for name, config in variants_of("cifar_diff_vit").items()}
    assert abs(counts["differential"] / counts["plain"] - 1) < 0.01


def test_model_shapes_have_similar_parameter_counts():
    counts = [num_params(config) for config in variants_of("cifar_model").values()]
    assert max(counts) / min(counts) < 1.2


def test_cifar_vit_is_the_model_it_stands_for():
    config = variants_of("cifar_vit")["base"]
    assert config.model.to_dict() | dict(
        patch_size=4, hidden_size=256, depth=8, num_heads=8, mlp_dim=512, dropout_rate=0.2
    ) == (config.model.to_dict())
    assert (config.optim.name, config.optim.learning_rate) == ("adamw", 1e-3)
    assert config.optim.schedule == "reduce_on_plateau"


@pytest.mark.parametrize("name", ["cifar_patch", "cifar_pos_embed", "cifar_model", "cifar_augment"])
def test_cpu_profiles_shrink_the_model_but_not_the_comparison(name):
    """All variants train for the same epochs on all images; tables of 6 epochs share a run."""
    full, small = (load_config(name, profile=profile) for profile in (None, "cpu"))
    assert small.name == f"{name}_cpu" and small.variants.keys() == full.variants.keys()
    configs = make_variants(small.config, small.variants, set())
    (epochs,) = {config.train.epochs for config in configs.values()}
    assert all(config.data.train_examples == 0 for config in configs.values())
    base = load_config("cifar_pos_embed", profile="cpu").config
    (shared,) = make_variants(base, {}, set()).values()
    shared.train.epochs = epochs
    assert shared in configs.values()
    assert epochs == {"cifar_patch": 12, "cifar_augment": 8}.get(name, 6)


def test_an_unknown_profile_is_refused():
    with pytest.raises(UserError, match="unknown profile 'tpu': use cpu"):
        load_config("cifar_patch:tpu")
