"""Programs lowered for GPUs and TPUs, on a machine without one."""

import re

import jax
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_steps import make_steps

from vit_jax.data import load_data
from vit_jax.evaluation.metrics import Sums

OPERANDS = re.compile(r"stablehlo\.(?:dot_general|convolution).*: \((\S+), (\S+)\) ->")


@pytest.mark.parametrize(
    "model",
    [
        {"model__name": "resnet18"},
        {"model__pos_embed": "relative_bias", "model__dropout_rate": 0.1},
        {"model__attention": "differential", "model__pos_embed": "rope_2d"},
    ],
    ids=lambda model: "-".join(map(str, model.values())),
)
def test_all_products_except_those_of_the_head_are_bfloat16(model, monkeypatch):
    """A float32 product would run at a fraction of the speed."""
    mesh = jax.make_mesh((1,), ("data",), (AxisType.Auto,), devices=jax.devices()[:1])
    config = make_config(augment__kind="strong", **model)
    data = load_data(config.data, mesh)
    batch = next(data.train.train(0, 0, 1, config.train.batch_size))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    steps = make_steps(config, data, mesh)
    state = steps.shapes
    train = steps.train.trace(state, jax.random.key(0), batch)
    evaluation = steps.eval_step.trace(state.eval_variables, Sums.empty(), batch)
    # The head has three products in training and one in evaluation.
    for call, platform, heads in ((train, "cuda", 3), (train, "tpu", 3), (evaluation, "cuda", 1)):
        text = call.lower(lowering_platforms=(platform,)).as_text()
        products = OPERANDS.findall(text)
        wide = [pair for pair in products if "bf16" not in "".join(pair)]
        assert len(products) > 5 and len(wide) == heads
        assert all(any("x10xf32>" in operand for operand in pair) for pair in wide)
