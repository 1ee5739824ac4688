"""Every contradiction in a config is refused in one sentence that names the key."""

import importlib.util
import pathlib
import re
import types

import pytest

from vit_jax import config as settings
from vit_jax.config.rules import validate
from vit_jax.runtime.errors import UserError
from vit_jax.training import sweep

VALID = {
    "model.patch_size": 4,
    "model.hidden_size": 64,
    "model.depth": 2,
    "model.num_heads": 4,
    "model.mlp_dim": 128,
    "train.epochs": 2.0,
}


def make(**overrides):
    keys = VALID | {key.replace("__", "."): value for key, value in overrides.items()}
    return settings.resolve(settings.with_overrides(settings.get_config(), keys, "a test"))


SEEDS = {"train__seeds_at_once": "always", "train__num_seeds": 2}
PLATEAU = {"optim__schedule": "reduce_on_plateau"}


def test_valid_config_passes():
    validate(make())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"model__patch_size": 5}, "model.patch_size=5 does not divide data.image_size=32: use"),
        ({"model__hidden_size": 66}, "model.hidden_size=66 is not divisible by model.num_heads=4"),
        ({"model__depth": 0}, "model.depth is not set"),
        ({"model__pool": "max"}, "model.pool='max' is not one of cls, mean"),
        ({"model__pos_embed": "sincos_2d", "model__hidden_size": 4}, "needs a model.hidden_size"),
        ({"model__dropout_rate": 1.0}, "model.dropout_rate=1.0 is above 0.99"),
        ({"model__norm_eps": 0.0}, "model.norm_eps=0"),
        ({"model__size": "XL/4"}, "model.size='XL/4' is unknown: give one of Ti, S, B, L"),
        ({"model__size": "S/8"}, "model.size='S/8' does nothing"),
        ({"train__epochs": 0.0}, "train.epochs and train.steps are both 0"),
        ({"train__steps": 3}, "train.epochs=2.0 and train.steps=3 contradict each other"),
        ({"train__batch_size": 0}, "train.batch_size=0 must be at least 1"),
        ({"train__accumulation_steps": 3}, "is not divisible by train.accumulation_steps=3"),
        ({"train__seeds_at_once": "yes"}, "'yes' is not one of auto, always, never"),
        ({"train__seeds_at_once": "always"}, "always has no effect with train.num_seeds=1"),
        ({**SEEDS, "sharding__distributed": True}, "does not go with sharding.distributed=True"),
        ({"train__steps_at_once": "always", "sharding__fsdp": True}, "not go with sharding.fsdp"),
        ({**SEEDS, "log__wandb": True}, "seeds_at_once=always does not go with log.wandb=True"),
        ({"train__label_smoothing": 1.5}, "train.label_smoothing=1.5 must be below 1"),
        (
            {"optim__name": "sgd", "optim__nesterov": True, "optim__momentum": 0.0},
            "nesterov=True has",
        ),
        ({"optim__warmup_steps": 3, "optim__warmup_percent": 2.0}, "contradict each other"),
        ({"optim__learning_rate": -1.0}, "optim.learning_rate=-1.0 is negative"),
        ({"optim__learning_rate": float("inf")}, "is not a finite number"),
        ({"optim__end_learning_rate": 1.0}, "is above optim.learning_rate"),
        ({"optim__decay_at_percent": (80.0, 50.0)}, "must rise"),
        ({"data__mean": (0.5, 0.5)}, "data.mean=(0.5, 0.5) has 2 values for 3 channels"),
        ({"data__std": (0.0,)}, "data.std=(0.0,) holds a 0"),
        ({"data__channels": 4}, "data.channels=4 is neither"),
        ({"data__mean": ("a",)}, "data.mean=('a',) holds something that is no number"),
        ({"seed": 2**33}, "is too large"),
        ({"data__val_size": 1.5}, "data.val_size=1.5 is neither"),
        ({"data__name": "folder"}, "data.name=folder needs data.dir"),
        ({"data__train_examples": 9, "data__examples_per_class": 1}, "not both"),
        ({"data__eval_crop": 1.5}, "data.eval_crop=1.5 is no share"),
        ({"augment__crop_padding": 32}, "augment.crop_padding=32 must be smaller"),
        ({"augment__kind": "strongest"}, "is not one of none, baseline, cutout, autoaugment"),
        ({"augment__policy": "svhn"}, "augment.policy='svhn' is not one of cifar10, imagenet"),
        ({"augment__kind": "none", "augment__mixup_alpha": 1.0}, "augment.kind=none contradicts"),
        ({"augment__magnitude": 31}, "augment.magnitude=31 is above 30"),
        ({"augment__num_ops": 0}, "augment.num_ops=0 must be at least 1"),
        ({"augment__brightness": 1.5}, "augment.brightness=1.5 is above 1"),
        ({"augment__saturation": 0.5, "data__channels": 1}, "needs data.channels=3"),
        ({"model__stem": "imagenet"}, "model.stem=imagenet has no effect with model.name=vit"),
        ({"model__name": "resnet18"}, "has no effect with model.name=resnet18"),
        ({"optim__momentum": 0.5}, "optim.momentum=0.5 has no effect with optim.name=adamw"),
        ({"optim__plateau_patience": 3}, "has no effect with optim.schedule=cosine"),
        ({"log__figures_every": 1, "log__tensorboard": False}, "log.figures_every=1 has no effect"),
        ({**PLATEAU, "optim__learning_rate": 0.0}, "needs an optim.learning_rate above"),
        ({**PLATEAU, "train__eval_every_epochs": 0.0}, "needs evaluations"),
        ({**PLATEAU, "optim__decay_factor": 1.0}, "optim.decay_factor=1.0 must lie between"),
        ({**PLATEAU, "optim__plateau_threshold": 0.0}, "optim.plateau_threshold=0.0 must lie"),
        ({"model__attention": "differential", "model__hidden_size": 36}, "divisible by twice"),
        ({"model__pos_embed": "rope_2d", "model__hidden_size": 24}, "needs a width per attention"),
        ({"model__depth": True}, "config key model.depth in the config takes a whole number"),
        ({"model__depth": 10**9}, "model.depth=1000000000 is above 1000"),
        ({"train__steps": 2**31}, "train.steps=2147483648 is above 2147483646"),
        ({"optim__eps": 1e-50}, "optim.eps=1e-50 is too small: give 0 or at least 1e-30"),
        ({"optim__b2": 0.99999999}, "optim.b2=0.99999999 must be below 1, by a millionth"),
        ({"optim__learning_rate": 1e3}, "optim.learning_rate=1000.0 is above 100"),
        ({"optim__weight_decay": 1000.0}, "weights would change sign instead of shrinking"),
        ({"data__mean": (123.7,)}, "data.mean=(123.7,) is above 1"),
        ({"data__std": (1e-6,)}, "data.std=(1e-06,) holds less than 0.001"),
        ({"data__dir": "a\0b"}, "holds what no file name can"),
        ({"freeze": f"last_{'9' * 5000}_blocks"}, "freeze='last_999"),
        ({"freeze": "x{9999999999}=frozen"}, "is no regular expression"),
        ({"model__size": f"S/{'9' * 5000}"}, "model.size='S/999"),
    ],
)
def test_wrong_config_is_refused(overrides, sentence):
    with pytest.raises(UserError) as error:
        validate(make(**overrides))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_and_wrong_types_are_refused():
    with pytest.raises(UserError, match="did you mean train.epochs"):
        make(train__epoch=3)
    with pytest.raises(UserError, match="train.batch_size in a test takes a whole number"):
        make(train__batch_size="many")
    with pytest.raises(UserError, match="optim.b1 in a test takes a number, not 1000"):
        make(optim__b1=10**400)  # more than a float holds
    with pytest.raises(UserError, match="not a number of thousands of digits"):
        make(optim__b1=10**5000)


def test_named_size_fills_what_is_left_out():
    sizes = {key: 0 for key in VALID if key.startswith("model")}
    config = settings.with_overrides(
        settings.get_config(), sizes | {"model.size": "S/16", "model.depth": 2}, "a test"
    )
    model = settings.resolve(config).model
    assert (model.hidden_size, model.num_heads, model.mlp_dim) == (384, 6, 1536)
    assert (model.patch_size, model.depth) == (16, 2)


def test_kinds_of_augmentation_fill_what_is_left_out():
    augment = make(augment__kind="cutout", data__image_size=64).augment
    assert (augment.cutout_length, augment.mixup_alpha) == (32, 0)
    assert make(augment__kind="cutout", augment__cutout_length=8).augment.cutout_length == 8
    augment = make(augment__kind="strong", augment__mixup_alpha=0.2).augment
    assert (augment.erasing_rate, augment.mixup_alpha, augment.cutmix_alpha) == (0.25, 0.2, 1.0)
    assert make().augment == settings.get_config().augment


def test_a_part_of_strong_augmentation_is_switched_off_by_0():
    off = dict.fromkeys(("augment.erasing_rate", "augment.mixup_alpha"), 0.0)
    config = settings.with_overrides(settings.get_config(), VALID, "a test")
    variants = {"strong": {}, "cutmix": off}
    config.augment.kind = "strong"
    found = sweep.make_variants(config, variants, {"augment.cutmix_alpha"})
    rates = [(one.augment.erasing_rate, one.augment.mixup_alpha) for one in found.values()]
    assert rates == [(0.25, 1.0), (0.0, 0.0)]
    assert {one.augment.cutmix_alpha for one in found.values()} == {0.0}


def test_durations_in_any_unit():
    config = make(optim__warmup_epochs=0.5)
    assert settings.total_steps(config, 30) == 60
    assert settings.steps_of(config.optim, "warmup", 30, 60) == 15
    assert settings.steps_of(make(optim__warmup_percent=10.0).optim, "warmup", 30, 60) == 6
    assert settings.steps_of(make(optim__warmup_steps=7).optim, "warmup", 30, 60) == 7
    assert settings.steps_of(make().optim, "warmup", 30, 60) == 0


def test_command_line_cannot_set_what_the_sweep_sets():
    variants = {"small": {"model.depth": 1}}
    with pytest.raises(UserError, match="--config.model.depth has no effect"):
        sweep.make_variants(make(), variants, {"model.depth"})
    with pytest.raises(UserError, match="variant 'a/b'"):
        sweep.make_variants(make(), {"a/b": {}}, set())


def test_readme_lists_every_setting_with_its_default():
    root = pathlib.Path(__file__).parent.parent
    readme = (root / "README.md").read_text()
    source = (root / "vit_jax" / "config" / "settings.py").read_text()
    for key, value in settings.flatten(settings.get_config()).items():
        default = f'"{value}"' if isinstance(value, str) else re.escape(str(value))
        row = re.search(rf"^\| `{re.escape(key)}` \| `({default}|\S+)` \| (.+) \|$", readme, re.M)
        assert row, f"README.md has no row for {key}"
        name = key if "." in key else f"config.{key}"
        assert f"{name} = {row[1]}  # {row[2]}\n" in source, f"{key} differs from config.py"


def test_wandb_is_asked_for_before_it_is_needed(monkeypatch):
    folder = types.SimpleNamespace(origin=None)  # what a folder of that name passes for
    for found in (None, folder):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match="needs the package wandb: pip install wandb"):
            validate(make(log__wandb=True))
