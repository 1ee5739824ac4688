"""Frozen parameters, trained parameters and cached features."""

import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_steps import flat, make_steps, trained_state

from vit_jax import models
from vit_jax.data import ResidentBatches, load_data
from vit_jax.runtime.errors import UserError
from vit_jax.training import optim
from vit_jax.training.parameters import ParameterTables
from vit_jax.training.setup import make_setup, num_trained, one_image

MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
KEY = jax.random.key(1)
VIT = dict(model__depth=3, model__patch_size=4, augment__kind="none", train__batch_size=16)
RESNET = dict(model__name="resnet18", augment__kind="none", train__batch_size=16)
ADAMW = dict(optim__weight_decay=0.1, optim__learning_rate=1e-2)
digits = functools.cache(lambda: load_data(make_config().data, MESH))


@pytest.mark.parametrize(
    ("freeze", "model", "trained"),
    [
        ("head", VIT, r"head/"),
        ("last_2_blocks", VIT, r"head/|Transformer/(encoder_norm|encoderblock_[12])/"),
        ("full", VIT, ""),
        (".*bias=trained; .*=frozen", VIT, ".*bias"),
        ("head", RESNET, "head/"),
        ("last_3_blocks", RESNET, "head/|layer3_1/|layer4_"),
    ],
    ids=["head", "last_2", "full", "rules", "resnet_head", "resnet_last_3"],
)
def test_frozen_parameters_are_unchanged_and_others_are_trained(freeze, model, trained):
    config = make_config(freeze=freeze, train__cache_features=False, **model, **ADAMW)
    config.model.head_zero_init = False  # a zero head would block gradients to the trunk
    steps = make_steps(config, digits(), MESH)
    (params, stats), state = trained_state(steps, digits())

    before, after = flat(params), flat(state.params)
    expected = {path for path in before if re.match(trained, path)}
    assert steps.setup.trained == expected
    assert num_trained(steps.setup) == sum(before[path].size for path in expected)
    for path in before:
        same = np.array_equal(before[path].view(np.uint32), after[path].view(np.uint32))
        assert same != (path in expected), path
    moments = {path for path in flat(state.opt_state) if "/mu/" in path or path.startswith("mu/")}
    found = {path.split("mu/")[-1] for path in moments}
    assert found == expected
    stats, new = flat(stats), flat(state.batch_stats)
    moved = {path.rsplit("/", 1)[0] for path in new if not np.array_equal(stats[path], new[path])}
    assert moved == {path[:-6] for path in expected if path[:-6] + "/mean" in stats}


def test_nothing_trained_takes_no_step():
    config = make_config(freeze="none_trained", model__head_zero_init=False, **VIT)
    steps = make_steps(config, digits(), MESH)
    assert steps.setup.lengths.total == 0 and not steps.setup.trained
    state = steps.init(jax.random.key(0), one_image(config))
    assert np.abs(state.params["head"]["kernel"]).sum() > 0
    assert not [leaf for leaf in jax.tree.leaves(state.opt_state) if np.ndim(leaf)]


def test_ema_and_accumulation_do_not_change_frozen_parameters():
    config = make_config(
        freeze="head", optim__ema_decay=0.9, train__accumulation_steps=2, **RESNET | ADAMW
    )
    config.train.cache_features = False
    (params, stats), state = trained_state(make_steps(config, digits(), MESH), digits(), 3)
    before, after = flat(params), flat(state.ema["params"])
    for path in before:
        assert np.array_equal(before[path], after[path]) != path.startswith("head/"), path
    for path, value in flat(state.ema["batch_stats"]).items():
        np.testing.assert_array_equal(value, flat(stats)[path])


def test_invalid_freeze_settings_are_refused():
    for freeze, message in (
        ("last_9_blocks", "the model has 3 blocks"),
        ("last_0_blocks", "use last_1_blocks to last_3_blocks"),
        ("head/.*=trained", "has no rule that matches"),
        ("stem/.*=trained; .*=frozen", "applies to no parameter"),
        (".*=frozen", "leave nothing to train"),
        (".*bias=trained; .*=frozen", "does not train the new head, which is 0 and passes no"),
    ):
        with pytest.raises(UserError, match=message):
            make_setup(make_config(freeze=freeze, **VIT), digits(), MESH)
    with pytest.raises(UserError, match="layer_decay=0.5 has no effect"):
        config = make_config(freeze="head", optim__layer_decay=0.5, **VIT)
        make_setup(config, digits(), MESH)
    for freeze, message in (
        ("heads", "is not one of"),
        ("(=trained", "is not a regular expression"),
        ("", "freeze is empty"),
    ):
        with pytest.raises(UserError, match=message):
            make_config(freeze=freeze, **VIT)


def flops(freeze):
    """Count the floating-point operations of a training step of a ViT of 12 blocks.

    Before compilation, which eliminates no more dead code: counts after it differ by less than 1 %.
    """
    config = make_config(
        freeze=freeze,
        train__cache_features=False,
        **VIT | dict(model__depth=12, model__patch_size=2, model__hidden_size=32),
    )
    steps = make_steps(config, digits(), MESH)
    state = jax.eval_shape(steps.init, jax.random.key(0), one_image(config))
    batch = next(digits().train.train(0, 0, 1, 16))
    return steps.train.lower(state, KEY, batch).cost_analysis()["flops"]


def test_the_backward_pass_ends_where_nothing_below_is_trained():
    full = flops("full")
    assert flops("head") / full <= 0.36
    assert flops("last_4_blocks") / full <= 0.60


def test_layer_decay_scales_updates_by_depth():
    config = make_config(optim__layer_decay=0.5, optim__name="sgd", optim__momentum=0.0, **VIT)
    optimizer = optim.make_optimizer(config.optim, lambda step: 1.0)
    model = models.build(config.model, 10)
    params = jax.eval_shape(model.init, KEY, one_image(config))["params"]
    ones = jax.tree.map(lambda x: np.ones(x.shape, np.float32), params)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    found = {path: float(value.min()) for path, value in flat(updates).items()}
    expected = {"cls": -0.0625, "embedding/bias": -0.0625, "head/bias": -1.0}
    for i in range(3):
        expected[f"Transformer/encoderblock_{i}/LayerNorm_0/scale"] = -(2.0 ** (i - 3))
    expected |= {"Transformer/encoder_norm/scale": -1.0}
    expected |= {"Transformer/posembed_input/pos_embedding": -0.0625}
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("freeze", "model"),
    [
        ("head", VIT),
        ("head", RESNET),
        ("head/bias=trained; .*=frozen", VIT | {"model__head_zero_init": False}),
    ],
    ids=["vit", "resnet18", "bias"],
)
def test_cached_features_train_like_images(freeze, model):
    losses = []
    for cached in (False, True):
        config = make_config(freeze=freeze, train__cache_features=cached, **model | ADAMW)
        steps = make_steps(config, digits(), MESH)
        assert steps.setup.on_features == cached
        state = steps.init(jax.random.key(0), one_image(config))
        split = digits().train
        if cached:
            found = [
                (steps.feature_step(state.variables, batch)[batch["mask"]], batch["label"])
                for batch in split.evaluate(len(split))
            ]
            split = ResidentBatches(*map(np.asarray, found[0]), MESH)
        losses.append([])
        for batch in split.train(0, 0, 5, 16):
            state = steps.train(state, KEY, batch)
            losses[-1].append(float(state.sums.loss.total))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    state = steps.init(jax.random.key(0), one_image(config))
    multi_step = make_steps(config, digits(), MESH, multi_step=True)
    for _, batches in split.train_at_once(0, 0, 5, 16, lambda step: 3):
        state = multi_step.train(state, KEY, batches)
    assert float(state.sums.loss.total) == pytest.approx(losses[1][-1], rel=1e-6)
    assert np.ptp(np.diff(losses[0])) > 1e-3


def test_features_are_cached_only_if_the_trunk_is_deterministic_and_frozen():
    for changes in (
        dict(augment__kind="baseline"),
        dict(model__dropout_rate=0.1),
        dict(freeze="last_1_blocks"),
        dict(train__cache_features=False),
    ):
        config = make_config(**VIT | dict(freeze="head") | changes)
        assert not make_setup(config, digits(), MESH).on_features


def test_features_that_take_too_much_memory_are_refused():
    config = make_config(**VIT, freeze="head", data__device_resident_max_gib=1e-9)
    with pytest.raises(UserError, match="raise it, or set train.cache_features=False"):
        make_setup(config, digits(), MESH)
    config.train.cache_features = False
    assert not make_setup(config, digits(), MESH).on_features


@pytest.mark.parametrize(
    ("model", "remats"),
    [(VIT, (False, "dense", True)), (RESNET, (False, True))],
    ids=["vit", "resnet18"],
)
def test_remat_recomputes_and_does_not_rename_parameters(model, remats):
    image, names, products = np.ones((2, 8, 8, 1), np.float32), [], []
    for remat in remats:
        module = models.build(make_config(**model).model, 10, remat=remat)
        variables = jax.eval_shape(module.init, KEY, image)

        def loss(variables, module=module):
            return module.apply(variables, image).sum()

        text = str(jax.make_jaxpr(jax.grad(loss))(variables))
        assert ("remat" in text) == bool(remat)
        names.append({optim.path_of(path) for path, _ in jax.tree.leaves_with_path(variables)})
        products.append(text.count("dot_general["))
    assert all(own == names[0] for own in names)
    # "dense" recomputes the two products of attention, True those of the dense layers too.
    assert model is RESNET or products[0] < products[1] < products[2]


def test_frozen_random_parameters_are_logged(capsys):
    for freeze, text in (("head", "7,072 frozen at random values, because"), ("full", "0 ")):
        steps = make_steps(make_config(freeze=freeze, **VIT), digits(), MESH)
        ParameterTables().print("base", steps.setup, steps.shapes)
        line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("freeze="))
        assert text in line and ("random" in line) == (freeze == "head")
