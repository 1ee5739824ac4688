"""LoRA: adapters of attention kernels, trained with the head and merged for everything else."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_configs import make_config
from tiny_runs import MESH, last_state, run
from tiny_steps import flat, make_steps, trained_state

from vit_jax import models, pretrained
from vit_jax.cli import convert
from vit_jax.data import load_data
from vit_jax.data.sources import read_digits
from vit_jax.evaluation.classifier import Classifier
from vit_jax.models import lora
from vit_jax.runtime.errors import UserError
from vit_jax.training.optim import path_of
from vit_jax.training.setup import make_setup, num_params, num_trained, one_image
from vit_jax.training.step import make_init

KEY = jax.random.key(1)
VIT = dict(model__depth=2, augment__kind="none", train__batch_size=16)
LORA = dict(freeze="lora", lora_rank=4, lora_alpha=8.0)
digits = functools.cache(lambda: load_data(make_config().data, MESH))

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a trained run with two blocks."""
    return run(tmp_path_factory.mktemp("base"), model__depth=2)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """The folder of a run that trained adapters of the first."""
    return run(tmp_path_factory.mktemp("adapted"), init_from=str(base), **LORA)


def steps_of(base, **overrides):
    """Compile the steps of LoRA on the weights of a run."""
    return make_steps(make_config(init_from=str(base), **VIT | LORA | overrides), digits(), MESH)


def adapter_paths(depth, attention="MultiHeadDotProductAttention_0"):
    return {
        f"Transformer/encoderblock_{i}/{attention}/{layer}/{name}"
        for i in range(depth)
        for layer in ("query", "key", "value", "out")
        for name in lora.NAMES
    }


def test_the_first_step_starts_at_the_pretrained_model(base):
    steps = steps_of(base)
    state, weights = steps.initial_state(KEY), pretrained.load(base)
    params = flat(state.params)
    for path, array in weights.arrays.items():
        np.testing.assert_array_equal(params[path], array, path)
    for path in adapter_paths(2):
        assert np.any(params[path]) == path.endswith("lora_a"), path
    a = params["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/lora_a"]
    assert a.shape == (16, 4) and 0.2 < np.abs(a).max() <= 0.25  # 1 / sqrt(16)
    out = params["Transformer/encoderblock_0/MultiHeadDotProductAttention_0/out/lora_b"]
    assert out.shape == (4, 16)
    model = models.build(steps.setup.config.model, 10)
    images = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    logits = steps.setup.model().apply(state.variables, images)
    np.testing.assert_allclose(logits, model.apply(weights.variables, images), 1e-5, 1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "schedule_free_adamw"])
def test_only_adapters_and_head_are_trained_and_have_state(base, name):
    schedule = "constant" if name == "schedule_free_adamw" else "cosine"
    steps = steps_of(base, optim__name=name, optim__schedule=schedule, optim__weight_decay=0.1)
    expected = adapter_paths(2) | {"head/kernel", "head/bias"}
    assert steps.setup.trained == expected
    (before, _), state = trained_state(steps, digits())
    before, after = flat(before), flat(state.params)
    for path in before:
        assert np.array_equal(before[path], after[path]) != (path in expected), path
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    moments = 2 * sum(before[path].size for path in expected)
    if name == "muon":  # one moment of the adapters
        moments -= sum(before[path].size for path in adapter_paths(2))
    assert sum(map(np.prod, shapes)) == moments
    assert set(shapes) <= {before[path].shape for path in expected}
    assert num_trained(steps.setup) == sum(before[path].size for path in expected)
    assert num_params(steps.setup) == sum(array.size for array in before.values())


def test_merged_kernels_have_the_gradients_of_separate_products():
    """Those of x W + scale (x A) B."""
    rng = np.random.default_rng(0)
    shapes = (5, 6), (6, 7), (6, 2), (2, 7)
    x, w, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)

    def merged(a, b):
        params = lora.merge({"query": {"kernel": w, "lora_a": a, "lora_b": b}}, 0.5)
        return jnp.square(x @ params["query"]["kernel"]).sum()

    def separate(a, b):
        return jnp.square(x @ w + 0.5 * (x @ a) @ b).sum()

    for one, other in zip(*(jax.grad(f, (0, 1))(a, b) for f in (merged, separate)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


def test_everything_else_has_the_merged_model(base, adapted, tmp_path, capsys):
    """Loading, prediction and export; the exported keys are those of a run without adapters."""
    state = last_state(adapted)
    arrays = pretrained.load(adapted).arrays
    assert arrays.keys() == pretrained.load(base).arrays.keys()
    layer = "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/value"
    params = flat(state["params"])
    product = np.tensordot(params[f"{layer}/lora_a"], params[f"{layer}/lora_b"], 1)
    assert np.abs(product).max() > 1e-3
    np.testing.assert_allclose(
        arrays[f"{layer}/kernel"], params[f"{layer}/kernel"] + 2.0 * product, atol=1e-6
    )
    images = read_digits()[0][:20, ..., None]
    classifier = Classifier(adapted)
    setup = make_setup(classifier.config, digits(), MESH)
    variables = {key: state[key] for key in ("params", "batch_stats")}
    logits = classifier.apply("raw", lambda _, x: setup.model().apply(variables, x), images)
    merged = classifier.apply("merged", classifier.make_model().apply, images)
    np.testing.assert_allclose(merged, logits, atol=1e-6)
    summary = json.loads((adapted / "summary.json").read_text())
    assert classifier.evaluate()["accuracy"] == summary["test_accuracy"]
    assert "not those of the training" not in capsys.readouterr().err
    for folder in (base, adapted):
        name = folder.parents[1].name
        assert convert.main([str(folder), str(tmp_path / name), "--to=timm"]) == 0
    exported = [load_file(path) for path in sorted(tmp_path.glob("*/model.safetensors"))]
    assert exported[0].keys() == exported[1].keys()
    back = pretrained.convert(tmp_path / adapted.parents[1].name / "model.safetensors", {})
    for path, array in arrays.items():
        np.testing.assert_array_equal(back.arrays[path], array, path)
    again = run(tmp_path / "again", init_from=str(adapted), freeze="head", train__epochs=1.0)
    np.testing.assert_array_equal(
        pretrained.load(again).arrays[f"{layer}/kernel"], arrays[f"{layer}/kernel"]
    )


def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path):
    keys = dict(init_from=str(base), optim__schedule="constant", **LORA)
    whole = run(tmp_path / "whole", train__epochs=2.0, **keys)
    run(tmp_path / "stages", train__epochs=1.0, **keys)
    folder = run(tmp_path / "stages", train__epochs=2.0, **keys)
    one, other = (flat(last_state(f)["params"]) for f in (whole, folder))
    for path in one:
        np.testing.assert_array_equal(one[path], other[path], path)


def test_vectorised_seeds_and_remat_train_the_same_adapters(base):
    """Two seeds in one program, each with its own A, and blocks that are recomputed."""
    steps = [steps_of(base), steps_of(base, train__remat=True)]
    pair = make_steps(steps[0].setup.config, digits(), MESH, num_seeds=2)
    keys = [jax.random.key(seed) for seed in (0, 1)]
    states = [steps[0].initial_state(key) for key in keys]
    together, seeds = pair.axis.stack(states), pair.axis.stack(keys)
    recomputed = steps[1].initial_state(keys[0])
    alone = steps[0].initial_state(keys[0])
    for batch in digits().train.train(0, 0, 2, 16):
        stacked = jax.tree.map(lambda x: np.stack([x, x]), jax.device_get(batch))
        together = pair.train(together, seeds, stacked)
        alone = steps[0].train(alone, keys[0], batch)
        recomputed = steps[1].train(recomputed, keys[0], batch)
    for path, array in flat(alone.params).items():
        np.testing.assert_allclose(flat(together.params)[path][0], array, atol=1e-5, err_msg=path)
        np.testing.assert_allclose(flat(recomputed.params)[path], array, atol=1e-5, err_msg=path)
        if path.endswith("lora_a"):
            assert np.abs(flat(together.params)[path][1] - array).max() > 0.01


def test_other_attention_has_adapters_too():
    config = make_config(**VIT)
    config.freeze, config.model.attention = "lora", "differential"
    model = lora.adapt(models.build(config.model, 10), config)
    init = make_init(model, optimizer=NoState, config=config)
    shapes = jax.eval_shape(init, KEY, one_image(config))
    paths = map(path_of, dict(jax.tree.leaves_with_path(shapes.params)))
    adapters = {path for path in paths if path.endswith(lora.NAMES)}
    assert adapters == adapter_paths(2, "MultiHeadDifferentialAttention_0")


class NoState:
    """An optimizer without state."""

    init = staticmethod(lambda params: ())


def test_flops_have_gradients_of_attention_kernels_and_merging(base):
    setup, head = (
        make_setup(
            make_config(init_from=str(base), train__cache_features=False, **VIT | keys),
            digits(),
            MESH,
        )
        for keys in (LORA, dict(freeze="head"))
    )
    d, merging = 16, 2 * 4 * 3 * 2 * 4 * 16 * 16  # blocks, kernels, products, rank 4
    gradients = setup.flops.step - head.flops.step - merging
    assert gradients % (16 * 2) == 0 and gradients > 16 * 2 * 4 * 2 * 5 * d * d
    full = make_setup(make_config(init_from=str(base), **VIT), digits(), MESH)
    assert setup.flops.step - merging < full.flops.step


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(freeze="head", lora_rank=4), "lora_rank=4 has no effect with freeze=head"),
        (dict(lora_alpha=4.0), "lora_alpha=4.0 has no effect with freeze=full"),
        (dict(freeze="lora", init_from=""), "freeze=lora adapts pretrained weights: set init_from"),
        (dict(freeze="lora", model__name="resnet18"), "which model.name=resnet18 lacks"),
        (dict(LORA, lora_rank=17), "lora_rank=17 is above 16, the width of the attention"),
        (dict(LORA, lora_rank=0), "lora_rank=0 must be at least 1"),
    ],
)
def test_mistakes_are_refused(overrides, message):
    with pytest.raises(UserError, match=message) as error:
        make_config(**dict(init_from="weights") | overrides)
    assert "\n" not in str(error.value)
