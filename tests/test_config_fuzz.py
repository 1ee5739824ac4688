"""Every config either trains or is refused with an error that names a setting.

`make fuzz EXAMPLES=500` tries 500 random configs; the test suite always tries the same few.
"""

import collections
import itertools
import math
import os
import pathlib
import re
import tempfile

import hypothesis
import jax
import pytest
from hypothesis import strategies as st
from PIL import Image
from tiny_states import made_up
from tiny_weights import save_weights

from vit_jax import config as settings
from vit_jax.config.schema import SCHEMA
from vit_jax.data import load_data, prepare, sources
from vit_jax.evaluation.evaluate import evaluate
from vit_jax.evaluation.metrics import Sums
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.sharding import replicate
from vit_jax.training.compiled import compile_steps
from vit_jax.training.features import FeatureCache
from vit_jax.training.optim import make_plateau
from vit_jax.training.setup import make_setup
from vit_jax.training.variants import make_variants

MESH = jax.make_mesh(
    (1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1]
)
FIXTURES = pathlib.Path(tempfile.mkdtemp(prefix="fuzz_"))  # image folder and weights
TINY = {
    "data.name": "digits",
    "data.image_size": 8,
    "data.channels": 1,
    "augment.crop_padding": 1,
    "model.patch_size": 4,
    "model.hidden_size": 8,
    "model.depth": 1,
    "model.num_heads": 2,
    "model.mlp_dim": 8,
    "train.batch_size": 8,
    "train.steps": 2,
    "train.eval_every_epochs": 0.0,
    "log.every_steps": 0,
}


STEPS, EPOCHS, PERCENT = st.integers(1, 3), st.floats(0.001, 3.0), st.floats(0.001, 99.0)
SPLITS = st.sampled_from(["auto", "auto", "train", "test", "extra"])
SIZES = st.floats(0.01, 0.9) | st.sampled_from([1.0, 9.0])
CHANNELS = st.lists(st.floats(0.1, 1.0), min_size=1, max_size=3).map(tuple)

# Upper limits below those of the schema, for quick training and a finite loss.
LIMITS = {
    "lora_rank": 16,
    "lora_alpha": 16.0,
    "data.train_examples": 60,
    "data.val_examples": 60,
    "data.test_examples": 60,
    "data.examples_per_class": 6,
    "data.num_folds": 4,
    "data.fold": 4,
    "data.imbalance_ratio": 9.0,
    "data.device_resident_max_gib": 8.0,
    "data.num_threads": 4,
    "augment.crop_padding": 4,
    "augment.num_ops": 3,
    "augment.cutout_length": 16,
    "model.depth": 2,
    "model.representation_size": 8,
    "model.head_dim": 8,
    "model.num_registers": 4,
    "model.layer_scale_init": 1.0,
    "optim.learning_rate": 1.0,
    "optim.end_learning_rate": 1e-3,
    "optim.warmup_steps": 2,
    "optim.weight_decay": 1.0,
    "optim.grad_clip_norm": 9.0,
    "optim.muon_rms": 1.0,
    "optim.muon_iterations": 6,
    "train.num_seeds": 3,
    "log.explain_images": 64,
    "sharding.cpu_devices": 8,
}
# Plausible values where the schema has no range, or where few values fit together.
FITTING = {
    "seed": st.sampled_from([0, 7, 2**32 - 1]),
    "init_from": st.sampled_from(["", str(FIXTURES / "weights"), str(FIXTURES / "nothing")]),
    "freeze": st.sampled_from(
        ["full", "head", "lora", "none_trained", "last_1_blocks", "head/.*=trained; .*=frozen"]
    ),
    "data.name": st.sampled_from(["digits", "digits", "folder", "cifar10"]),
    "data.dir": st.just(str(FIXTURES / "images")),
    "data.train_split": st.sampled_from(["train", "train", "test", ""]),
    "data.val_split": SPLITS,
    "data.test_split": SPLITS,
    "data.val_size": SIZES,
    "data.test_size": SIZES,
    "data.split_seed": st.integers(0, 2**70),
    "data.image_size": st.sampled_from([0, 1, 4, 8, 12]),
    "data.stored_size": st.sampled_from([0, 1, 5, 16]),
    "data.labels": st.sampled_from(["", "", "labels.csv"]),
    "data.label_separator": st.sampled_from([";", ";", ","]),
    "data.label_pattern": st.sampled_from(["", "", "(.)"]),
    "data.image_column": st.just(""),
    "data.label_column": st.just(""),
    "data.split_column": st.just(""),
    "data.image_key": st.just("image"),
    "data.label_key": st.just("label"),
    "data.background": st.sampled_from([(0,), (255,), (9.5, 0, 200)]),
    "data.rgb_bands": st.sampled_from([(), (3, 2, 1)]),
    "data.channels": st.sampled_from([1, 3, 4]),
    "data.level_range": st.sampled_from([(), (0, 255), (-1024.0, 3000.0)]),
    "data.num_workers": st.just(0),  # processes take seconds to start
    "data.relabel": st.sampled_from(["", "", "", str(FIXTURES / "nothing.csv")]),
    "data.mean": CHANNELS,
    "data.std": CHANNELS,
    "model.size": st.sampled_from(["", "Ti/4"]),
    "model.patch_size": st.sampled_from([0, 1, 2, 3, 4, 8]),
    "model.hidden_size": st.sampled_from([0, 1, 2, 6, 8, 16]),
    "model.num_heads": st.sampled_from([0, 1, 2, 3]),
    "model.mlp_dim": st.sampled_from([0, 1, 8]),
    "model.norm_eps": st.sampled_from([1e-12, 1e-6, 1e-5, 1.0]),
    "optim.warmup_epochs": EPOCHS,
    "optim.warmup_percent": PERCENT,
    "optim.decay_at_percent": st.sets(PERCENT, max_size=3).map(lambda x: tuple(sorted(x))),
    "optim.eps": st.sampled_from([1e-12, 1e-8, 1e-3, 1.0]),
    "train.class_weights": st.sampled_from(["", "", "balanced", "1,2,0.5", ",".join("1" * 10)]),
    "train.teacher": st.sampled_from(["", "", str(FIXTURES / "weights"), str(FIXTURES / "no")]),
    "train.epochs": EPOCHS,
    "train.steps": st.sampled_from([0, 1, 2, 3, 10**6]),
    "train.batch_size": st.sampled_from([1, 2, 8, 24]),
    "train.accumulation_steps": st.sampled_from([0, 1, 2, 4]),
    "train.eval_every_steps": STEPS,
    "train.eval_every_epochs": EPOCHS,
    "train.eval_every_percent": PERCENT,
    "train.eval_batch_size": st.sampled_from([1, 7, 256]),
    "log.every_steps": STEPS,
    "log.every_epochs": EPOCHS,
    "log.every_percent": PERCENT,
    "log.figures_every": st.sampled_from([0, 0, 0, 1]),
    # Multi-process runs are impossible here; wandb would upload.
    "sharding.distributed": st.just(False),
    "log.wandb": st.just(False),
}


def of_schema(key):
    """Draw values that the schema allows, often at the bounds."""
    setting = SCHEMA[key]
    if setting.choices:
        return st.sampled_from(setting.choices)
    if isinstance(setting.default, bool):
        return st.booleans()
    ends = low, high = setting.low, LIMITS.get(key, setting.high)
    assert high <= setting.high and not isinstance(setting.default, str | tuple), key
    if isinstance(setting.default, int):
        return st.integers(*ends)
    return st.sampled_from([float(low), float(high)]) | st.floats(*ends)


FITTING |= {key: of_schema(key) for key in SCHEMA if key not in FITTING}
# Compiling an augmentation policy takes longer than everything else.
FITTING["augment.kind"] = st.sampled_from(
    [*["none", "baseline", "cutout"] * 6, *SCHEMA["augment.kind"].choices]
)

# Values that are invalid, or nearly so, for most settings.
TEXTS = ["", "0", "None", "\0", "a\nb", "\ud800", "..", "/", "~", "x" * 9999, "(", "last_9_blocks"]
TEXTS += [f"last_{'9' * 5000}_blocks", "x{9999999999}=trained", f"S/{'9' * 5000}", "S/0"]
NUMBERS = [-1, 0, 1, 2, 255, 4096, 10**6, 2**31 - 1, 2**31, 2**32, 2**63, 10**30, 10**400]
NUMBERS += [-0.0, -0.5, 0.5, 0.99999999, 1e-300, 1e-40, 1e-20, 1e20, 1e40, 1e300]
NUMBERS += [math.nan, math.inf, -math.inf]
OTHERS = [None, True, False, b"x", [], {}, [1], {"a": 1}, 1j]
OTHERS += [(), (0.5, 0.5), (1e300,), (1e-300,), (math.nan,), (-1.0,), ("a",), ((),), (True,)]
OTHERS += [(200.0,), (10**400,), (0.5,) * 4]
WRONG = st.sampled_from([*TEXTS, *NUMBERS, *OTHERS])


COSTLY = ["data.image_size", "data.stored_size", "augment.num_ops", "train.num_seeds"]
COSTLY += [f"model.{key}" for key in ("hidden_size", "depth", "mlp_dim", "representation_size")]


@st.composite
def overrides(draw):
    """Draw overrides: valid in most examples, with one or two arbitrary values in the others."""
    keys = dict(TINY)
    chosen = draw(st.lists(st.sampled_from(sorted(FITTING)), unique=True, max_size=12))
    keys |= {key: draw(FITTING[key]) for key in chosen}
    if keys["data.name"] == "folder":
        keys["data.dir"] = draw(FITTING["data.dir"])
    if draw(st.integers(0, 7)):  # mostly without contradictory settings
        for key, setting in SCHEMA.items():
            other, values = setting.applies or ("", ())
            if other and keys.get(other, SCHEMA[other].default) not in values:
                keys.pop(key, None)
        for stem in ("optim.warmup_", "train.eval_every_", "log.every_", "train."):
            alike = [
                k for u in ("steps", "epochs", "percent", "budget_pflop") if keys.get(k := stem + u)
            ]
            keys |= {key: type(SCHEMA[key].default)(0) for key in alike[1:]}
    wrong = draw(st.lists(st.sampled_from(sorted(FITTING)), unique=True, max_size=3))
    return keys | {key: _affordable(key, draw(WRONG)) for key in wrong[1:]}


def _affordable(key, value):
    """Replace an allowed value that takes hours by one above the limit."""
    costly = key in COSTLY and isinstance(value, int) and 2 < value <= SCHEMA[key].high
    return SCHEMA[key].high + 1 if costly else value


@pytest.fixture(scope="module")
def _no_network():
    """Few digits, few images, small weights and no network."""

    def refuse(name, folder):
        raise UserError(f"data.name={name}: there is no network here")

    pixels, labels = sources.read_digits()
    for split in ("train", "test"):
        for label, name in enumerate(("ant", "bee", "cat")):
            (FIXTURES / "images" / split / name).mkdir(parents=True)
            for i in range(9):
                image = Image.new("RGB", (9, 8), (80 * label, 20 * i, 0))
                image.save(FIXTURES / "images" / split / name / f"{i}.png")
    save_weights(FIXTURES / "weights", model__depth=1, model__hidden_size=8, model__mlp_dim=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "read_digits", lambda: (pixels[:200], labels[:200]))
        patch.setattr(prepare, "prepare", refuse)
        patch.setenv("TFDS_DATA_DIR", str(FIXTURES / "tfds"))
        yield


def attempt(keys) -> str:
    """Train a config; return "refused" or "trained", any other outcome is an exception."""
    try:
        config = settings.with_overrides(settings.get_config(), keys, "a test")
        config = make_variants(config, {}, set(keys))["base"]
        data, train = load_data(config.data, MESH), config.train
        steps = compile_steps(make_setup(config, data, MESH))
    except UserError as error:
        message = str(error)
        assert any(re.search(rf"\b{re.escape(key)}\b", message) for key in SCHEMA), message
        return "refused"
    state = made_up(steps.shapes, make_plateau(config.optim))
    if steps.setup.on_features:
        data = FeatureCache().get(steps, data, state.variables, "base", lambda: None)
    batches = steps.batches(data.train, [config.seed], 0, lambda step: 2)
    for _, batch in itertools.islice(batches, 2):
        state = steps.train(state, jax.random.key(1), batch, *steps.constants)
    batches = data.val.evaluate(train.eval_batch_size)
    sums = replicate(MESH, Sums.empty())
    result = evaluate(steps.eval_step, state.eval_variables, sums, batches)
    assert int(state.bad_step) == -1 and math.isfinite(result.loss), "the loss is not finite"
    return "trained"


EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def test_every_config_is_refused_or_trains(_no_network, capsys):
    outcomes = collections.Counter()

    @hypothesis.settings(
        max_examples=EXAMPLES or 8,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(overrides())
    def check(keys):
        outcomes[attempt(keys)] += 1

    check()
    with capsys.disabled():
        if EXAMPLES:
            print(f"\n{outcomes.total()} configs: {dict(outcomes)}")
    assert outcomes["refused"] and outcomes["trained"]
