"""Every invalid config is a single-line error that names the key."""

import importlib.util
import json
import pathlib
import types

import pytest

from vit_jax import config as settings
from vit_jax.cli import command
from vit_jax.config.loading import find_config, load_config
from vit_jax.config.reference import settings_page
from vit_jax.config.rules import FREEZES, validate
from vit_jax.config.schema import RENAMED, SCHEMA
from vit_jax.runtime.errors import UserError
from vit_jax.storage import run_folder
from vit_jax.training.variants import make_variants

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


NO_MIXING = {"augment__mixup_alpha": 0.0, "augment__cutmix_alpha": 0.0}
SEEDS = {"train__vmap_seeds": "always", "train__num_seeds": 2}
PLATEAU = {"optim__schedule": "reduce_on_plateau"}


def test_valid_config_passes():
    validate(make())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__patch_size": 5}, "model.patch_size=5 does not divide data.image_size=32: use"),
        ({"model__hidden_size": 66}, "model.hidden_size=66 is not divisible by model.num_heads=4"),
        ({"model__depth": 0}, "model.depth must be set"),
        ({"model__pool": "min"}, "model.pool='min' is not one of cls, mean"),
        ({"model__pos_embed": "sincos_2d", "model__hidden_size": 4}, "needs a model.hidden_size"),
        ({"model__dropout_rate": 1.0}, "model.dropout_rate=1.0 must be at most 0.99"),
        ({"model__norm_eps": 0.0}, "model.norm_eps=0.0 must be above 0"),
        ({"model__size": "XL/4"}, "model.size='XL/4' is unknown: use one of Ti, S, M, B"),
        ({"model__size": "S/8"}, "model.size='S/8' has no effect"),
        ({"model__size": "S/4"}, "model.size='S/4' has no effect"),
        ({"train__epochs": 0.0}, "train.epochs, train.steps and train.budget_pflop are all 0"),
        ({"train__steps": 3}, "train.epochs=2.0 and train.steps=3 contradict each other"),
        ({"train__batch_size": 0}, "train.batch_size=0 must be at least 1"),
        ({"train__accumulation_steps": 3}, "is not divisible by train.accumulation_steps=3"),
        ({"train__vmap_seeds": "yes"}, "'yes' is not one of auto, always, never"),
        ({"train__vmap_seeds": "always"}, "always has no effect with train.num_seeds=1"),
        (
            {**SEEDS, "sharding__distributed": True},
            "is incompatible with sharding.distributed=True",
        ),
        (
            {"train__multi_step": "always", "sharding__fsdp": True},
            "is incompatible with sharding.fsdp",
        ),
        ({**SEEDS, "log__wandb": True}, "vmap_seeds=always is incompatible with log.wandb=True"),
        ({"train__label_smoothing": 1.5}, "train.label_smoothing=1.5 must be at most 0.999999"),
        (
            {"optim__name": "sgd", "optim__nesterov": True, "optim__momentum": 0.0},
            "nesterov=True has",
        ),
        ({"optim__warmup_steps": 3, "optim__warmup_percent": 2.0}, "contradict each other"),
        ({"optim__learning_rate": -1.0}, "optim.learning_rate=-1.0 must be at least 0"),
        ({"optim__learning_rate": float("inf")}, "is not a finite number"),
        ({"optim__end_learning_rate": 1.0}, "is above optim.learning_rate"),
        ({"optim__ema_decay": 1e-50}, "optim.ema_decay=1e-50 is too small: give 0 or at least"),
        ({"optim__schedule": "step", "optim__decay_at_percent": (80.0, 50.0)}, "must rise"),
        ({"optim__decay_at_percent": (50.0,)}, "has no effect with optim.schedule=cosine"),
        ({"data__mean": (0.5, 0.5)}, "data.mean=(0.5, 0.5) has 2 values for 3 channels"),
        ({"data__std": (0.0,)}, "data.std=(0.0,) must be at least 0.001"),
        ({"data__channels": 0}, "data.channels=0 must be at least 1"),
        ({"data__mean": ("a",)}, "data.mean=('a',) contains a value that is not a number"),
        ({"seed": 2**33}, "is too large"),
        ({"data__val_size": 1.5}, "data.val_size=1.5 must be a fraction below 1, or an integer"),
        ({"data__name": "folder"}, "data.name=folder needs data.dir"),
        ({"data__name": "digits", "data__dir": "x"}, "data.dir='x' has no effect with data.name"),
        ({"data__train_examples": 9, "data__examples_per_class": 1}, "not both"),
        ({"data__eval_crop": 1.5}, "data.eval_crop=1.5 must be at most 1"),
        ({"augment__crop_padding": 32}, "augment.crop_padding=32 must be smaller"),
        ({"augment__kind": "strongest"}, "is not one of none, baseline, cutout, autoaugment"),
        ({"augment__policy": "svhn"}, "augment.policy='svhn' is not one of cifar10, imagenet"),
        ({"augment__kind": "none", "augment__mixup_alpha": 1.0}, "augment.kind=none contradicts"),
        ({"augment__mixup_alpha": -0.5}, "augment.mixup_alpha=-0.5 must be -1 or at least 0"),
        ({"augment__mix_rate": 1.0, **NO_MIXING}, "augment.mix_rate=1.0 has no effect without"),
        (
            {"augment__cutmix_rate": 1.0, **NO_MIXING, "augment__mixup_alpha": 0.8},
            "augment.cutmix_rate=1.0 has no effect without both",
        ),
        ({"augment__magnitude": 31}, "augment.magnitude=31 must be at most 30"),
        ({"augment__num_ops": 0}, "augment.num_ops=0 must be at least 1"),
        ({"augment__brightness": 1.5}, "augment.brightness=1.5 must be at most 1"),
        ({"augment__saturation": 0.5, "data__channels": 1}, "needs data.channels=3"),
        ({"model__stem": "imagenet"}, "model.stem=imagenet has no effect with model.name=vit"),
        ({"model__name": "resnet18"}, "has no effect with model.name=resnet18"),
        ({"optim__momentum": 0.5}, "optim.momentum=0.5 has no effect with optim.name=adamw"),
        ({"optim__plateau_patience": 3}, "has no effect with optim.schedule=cosine"),
        ({"log__figures_every": 1, "log__tensorboard": False}, "log.figures_every=1 has no effect"),
        ({**PLATEAU, "optim__learning_rate": 0.0}, "needs an optim.learning_rate above"),
        ({**PLATEAU, "train__eval_every_epochs": 0.0}, "needs evaluations"),
        ({**PLATEAU, "optim__decay_factor": 1.0}, "optim.decay_factor=1.0 must lie between"),
        (
            {**PLATEAU, "optim__plateau_threshold": 0.0},
            "optim.plateau_threshold=0.0 must be above 0",
        ),
        ({"model__attention": "differential", "model__hidden_size": 36}, "divisible by twice"),
        ({"model__pos_embed": "rope_2d", "model__hidden_size": 24}, "needs a width per attention"),
        ({"model__depth": True}, "config key model.depth in the config takes an integer"),
        ({"model__depth": 10**9}, "model.depth=1000000000 must be at most 1000"),
        ({"train__steps": 2**31}, "train.steps=2147483648 must be at most 2147483646"),
        ({"optim__eps": 1e-50}, "optim.eps=1e-50 is too small: give at least 1e-30"),
        ({"optim__b2": 0.99999999}, "optim.b2=0.99999999 must be at most 0.999999"),
        ({"optim__learning_rate": 1e3}, "optim.learning_rate=1000.0 must be at most 100"),
        ({"optim__weight_decay": 1000.0}, "weights would change sign instead of shrinking"),
        ({"data__mean": (123.7,)}, "data.mean=(123.7,) must be at most 1"),
        ({"data__std": (1e-6,)}, "data.std=(1e-06,) must be at least 0.001"),
        ({"data__dir": "a\0b"}, "contains characters that file names cannot contain"),
        ({"freeze": f"last_{'9' * 5000}_blocks"}, "freeze='last_999"),
        ({"freeze": "x{9999999999}=frozen"}, "is not a regular expression"),
        ({"model__size": f"S/{'9' * 5000}"}, "model.size='S/999"),
    ],
)
def test_invalid_config_is_refused(overrides, message):
    with pytest.raises(UserError) as error:
        validate(make(**overrides))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_keys_and_wrong_types_are_refused():
    with pytest.raises(UserError, match="did you mean train.epochs"):
        make(train__epoch=3)
    with pytest.raises(UserError, match="train.batch_size in a test takes an integer"):
        make(train__batch_size="many")
    with pytest.raises(UserError, match="optim.b1 in a test takes a number, not 1000"):
        make(optim__b1=10**400)  # exceeds a float
    with pytest.raises(UserError, match="not a number of thousands of digits"):
        make(optim__b1=10**5000)


def test_named_size_fills_unset_dimensions():
    sizes = {key: 0 for key in VALID if key.startswith("model")}
    config = settings.with_overrides(
        settings.get_config(), sizes | {"model.size": "S/16", "model.depth": 2}, "a test"
    )
    model = settings.resolve(config).model
    assert (model.hidden_size, model.num_heads, model.mlp_dim) == (384, 6, 1536)
    assert (model.patch_size, model.depth) == (16, 2)


def test_augmentation_kinds_fill_unset_settings():
    augment = make(augment__kind="cutout", data__image_size=64).augment
    assert (augment.cutout_length, augment.mixup_alpha) == (32, 0)
    assert make(augment__kind="cutout", augment__cutout_length=8).augment.cutout_length == 8
    augment = make(augment__kind="strong", augment__mixup_alpha=0.2).augment
    assert (augment.erasing_rate, augment.mixup_alpha, augment.cutmix_alpha) == (0.25, 0.2, 1.0)
    augment = make().augment
    assert (augment.erasing_rate, augment.mixup_alpha, augment.cutmix_alpha) == (0, 0, 0)
    assert settings.resolve(make(augment__kind="strong", augment__erasing_rate=0.0)).augment == (
        make(augment__kind="strong", augment__erasing_rate=0.0).augment
    )


def test_a_variant_of_another_model_ignores_what_was_chosen_for_the_model_of_the_config():
    chosen = {
        "model.pool": "mean",
        "model.class_token": True,
        "model.patch_drop_rate": 0.25,
        "train.patch_drop_percent": 80.0,
    }
    config = settings.with_overrides(settings.get_config(), VALID | chosen, "a test")
    variants = {"vit": {}, "resnet18": {"model.name": "resnet18"}}
    vit, resnet18 = make_variants(config, variants, set()).values()
    assert vit.model.hidden_size == VALID["model.hidden_size"]
    assert (resnet18.model.hidden_size, resnet18.train.patch_drop_percent) == (64, 100)
    given = make_variants(config, variants, {"model.hidden_size"})["resnet18"]
    assert given.model.hidden_size == VALID["model.hidden_size"]
    with pytest.raises(UserError, match="variant vit: model.hidden_size"):
        variants = {"vit": {"model.name": "vit", "model.patch_size": 4}}
        make_variants(resnet18, variants, set())


def test_an_explicit_0_switches_off_a_setting_of_strong_augmentation():
    off = dict.fromkeys(("augment.erasing_rate", "augment.mixup_alpha"), 0.0)
    config = settings.with_overrides(settings.get_config(), VALID, "a test")
    variants = {"strong": {}, "cutmix": off}
    config.augment.kind = "strong"
    config.augment.cutmix_alpha = 0.0
    found = make_variants(config, variants, set())
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
        make_variants(make(), variants, {"model.depth"})
    other = variants | {"large": {}}  # is trained alone
    assert make_variants(make(), other, {"model.depth"}, "large").keys() == other.keys()
    with pytest.raises(UserError, match="variant 'a/b'"):
        make_variants(make(), {"a/b": {}}, set())


def test_settings_of_an_unused_crop_are_refused():
    plain = {"augment.kind": "none"}
    message = "augment.crop_padding=1 has no effect with augment.kind=none"
    with pytest.raises(UserError, match=f"variant a: {message}"):
        make_variants(make(), {"a": plain | {"augment.crop_padding": 1}}, set())
    config, given = make(augment__crop_padding=1), {"augment.crop_padding"}
    with pytest.raises(UserError, match=f"^{message}"):
        make_variants(make(augment__crop_padding=1, augment__kind="none"), {}, given)
    assert len(make_variants(config, {"plain": plain, "crop": {}}, given)) == 2
    make_variants(config, {"plain": plain, "crop": {}}, given, "plain")  # a part of the sweep
    make_variants(make(), {"a": plain | {"augment.flip": False}}, set())  # it is off
    make_variants(make(augment__kind="none"), {}, {"augment.kind"})  # the default padding is 4
    with pytest.raises(UserError, match="augment.crop_min_area=0.5"):
        make_variants(make(augment__crop_padding=1, augment__crop_min_area=0.5), {}, given)


def test_settings_page_is_up_to_date():
    page = pathlib.Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text() == settings_page(), (
        "docs/settings.md is stale: python -m vit_jax.config.reference > docs/settings.md"
    )


@pytest.mark.parametrize("key", SCHEMA)
def test_schema_entries_are_consistent(key):
    setting = SCHEMA[key]
    assert setting.help and setting.help[-1] != "."
    assert not setting.choices or setting.default in setting.choices
    numbers = setting.default if isinstance(setting.default, tuple) else (setting.default,)
    for number in numbers:
        if not isinstance(number, bool | str):
            assert setting.low <= number <= setting.high
    if setting.applies:
        other, values = setting.applies
        assert set(values) < set(SCHEMA[other].choices or FREEZES)  # freeze has rules too


def test_renamed_settings(tmp_path):
    assert RENAMED.keys().isdisjoint(SCHEMA) and set(RENAMED.values()) <= SCHEMA.keys()
    with pytest.raises(UserError, match="train.seeds_at_once .* was renamed to train.vmap_seeds"):
        settings.with_overrides(settings.get_config(), {"train.seeds_at_once": "never"}, "a test")
    renamed = settings.current_names({"train.seeds_at_once": "never", "seed": 1})
    assert renamed == {"train.vmap_seeds": "never", "seed": 1}
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    record = {"config": {"train.seeds_at_once": "never"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    record = run_folder.read_config(tmp_path)
    assert record is not None
    assert run_folder.config_of(tmp_path, record).train.vmap_seeds == "never"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config.train.epochs=5"], {"train.epochs": 5.0}),
        (["--config.train.epochs", "2.5", "-config.seed", "3"], {"train.epochs": 2.5, "seed": 3}),
        (["--config.data.download=False"], {"data.download": False}),
        (["--config.data.download", "false"], {"data.download": False}),
        (["--config.train.remat"], {"train.remat": True}),
        (["--config.train.remat", "--config.seed=1"], {"train.remat": True, "seed": 1}),
        (["--config.data.mean=(0.1, 0.2, 0.3)"], {"data.mean": (0.1, 0.2, 0.3)}),
        (["--config.data.mean=0.1,0.2,0.3"], {"data.mean": (0.1, 0.2, 0.3)}),
        (["--config.data.std=0.5"], {"data.std": (0.5,)}),
        (["--config.data.name=123"], {"data.name": "123"}),
        (["--config.freeze=a=trained; .*=frozen"], {"freeze": "a=trained; .*=frozen"}),
        (["--config.data.dir="], {"data.dir": ""}),
        (["--config.seed=1", "--config.seed=2"], {"seed": 2}),
    ],
)
def test_overrides_on_the_command_line(arguments, expected):
    found, others = command.split_overrides([*arguments, "--other", "x"])
    assert (found, others) == (expected, ["--other", "x"])
    parser = command.Parser()
    parser.add_argument("--other")
    options, found = parser.parse_with_overrides([*arguments, "--other", "x"])
    assert (options.other, found) == ("x", expected)
    flat = settings.flatten(settings.with_overrides(settings.get_config(), found, "a test"))
    assert {key: flat[key] for key in found} == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.epochs", "--config.train.epochs needs a value"),
        ("--config.train.steps=1.5", "train.steps in the command line takes an integer, not 1.5"),
        ("--config.train.epochs=inf", "takes a number, not 'inf'"),
        ("--config.data.download=maybe", "takes True or False, not 'maybe'"),
        ("--config.data.mean=a", "takes a tuple such as (0.5,), not 'a'"),
        ("--config.seed=None", "takes an integer, not None"),
        ("--config.train.epoch=1", "unknown config key train.epoch"),
    ],
)
def test_invalid_overrides_on_the_command_line(argument, message):
    with pytest.raises(UserError) as error:
        command.split_overrides([argument])
    assert message in str(error.value)


PROFILES = """
from vit_jax import config
from vit_jax.runtime.errors import UserError

def get_config(profile=None):
    if profile not in (None, "cpu"):
        raise UserError(f"profile {profile} is unknown: use cpu")
    made = config.get_config()
    made.train.epochs = 1.0 if profile else 9.0
    return made

def sweep():
    return {"deep": {"model.depth": 12}, "flat": {"model.depth": 1}}

PUBLISHED = {"a paper": "deep > flat"}
"""


def test_load_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PROFILES)
    found = load_config(str(path), {"seed": 3})
    assert (found.name, found.config.train.epochs, found.config.seed) == ("mine", 9.0, 3)
    assert list(found.variants) == ["deep", "flat"] and found.given == {"seed"}
    assert found.published == {"a paper": "deep > flat"}
    for one in (load_config(path, profile="cpu"), load_config(f"{path}:cpu")):
        assert (one.name, one.config.train.epochs) == ("mine_cpu", 1.0)
    assert load_config(path, variant="flat").variants == {"flat": {"model.depth": 1}}
    with pytest.raises(UserError, match="variant='steep' is unknown: use one of deep, flat"):
        load_config(path, variant="steep")
    with pytest.raises(UserError, match="^profile gpu is unknown: use cpu$"):
        load_config(f"{path}:gpu")
    with pytest.raises(UserError, match="train.epochs in the overrides takes a number"):
        load_config(path, {"train.epochs": "x"})


def test_unexpected_and_missing_profiles_are_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from vit_jax import config\nget_config = config.get_config")
    with pytest.raises(UserError, match=r"mine.py:cpu has a profile, but its get_config\(\) takes"):
        load_config(f"{path}:cpu")
    path.write_text("def get_config(profile):\n    return 1")
    with pytest.raises(UserError, match=r"mine.py needs a profile: --config=.*mine.py:PROFILE"):
        load_config(path)


def test_bundled_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("digits_patch").name == "digits_patch.py"
    assert load_config("digits_patch").name == "digits_patch"
    with pytest.raises(UserError, match="did you mean digits_patch"):
        find_config("digits_pach")
    with pytest.raises(UserError, match="use one of .*cifar_patch, "):
        find_config("xyz")
    (tmp_path / "digits_patch").write_text("")  # a user's file takes precedence
    assert find_config("digits_patch").read_text() == ""


def test_missing_wandb_is_reported_before_training(monkeypatch):
    folder = types.SimpleNamespace(origin=None)  # as for a folder of that name
    for found in (None, folder):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(UserError, match="needs the package wandb: pip install wandb"):
            validate(make(log__wandb=True))
