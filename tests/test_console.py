"""What a sweep prints: parameters once per architecture, and the start of each variant."""

import re
import time

import pytest
from tiny_configs import make_config
from tiny_runs import run_configs

from vit_jax.training.parameters import summarize_parameters

pytestmark = pytest.mark.usefixtures("one_device")

SHORT = dict(train__batch_size=256, train__eval_batch_size=512)


def test_each_architecture_is_printed_once_and_each_variant_has_its_own_start(tmp_path, capsys):
    variants = {"first": {}, "same": {"optim__b1": 0.8}, "wide": {"model__mlp_dim": 64}}
    configs = {name: make_config(**SHORT | changes) for name, changes in variants.items()}
    began = time.monotonic() - 1000
    run_configs(configs, tmp_path, began=began, reuse=False)
    lines = capsys.readouterr().out.splitlines()
    assert sum("patch embedding" in line for line in lines) == 2
    assert "first: 2,794 parameters" in lines
    assert "same: the same 2,794 parameters as first" in lines
    starts = [line for line in lines if "first step after" in line]
    assert [line.split()[0] for line in starts] == list(variants)
    seconds = [float(re.findall(r"first step after (\S+) s", line)[0]) for line in starts]
    assert seconds[0] > 1000 > max(seconds[1:])
    assert all(re.search(r"loading .*tracing .*lowering .*compiling ", line) for line in starts)
    for name in variants:
        (line,) = (line for line in lines if line.startswith(f"{name} seed 0: finished"))
        assert re.search(r"val accuracy 0\.\d+, test accuracy 0\.\d+, .* images/s", line)


def test_the_full_table_of_parameters_is_a_setting(tmp_path, capsys):
    config = make_config(**SHORT, log__parameter_table=True, freeze="none_trained")
    run_configs({"base": config}, tmp_path, reuse=False)
    assert "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel" in capsys.readouterr().out


def test_parameters_are_summarised_in_the_order_of_the_forward_pass():
    blocks = {f"Transformer/encoderblock_{i}/MlpBlock_0/kernel": (10, 200) for i in range(12)}
    shapes = {"Transformer/encoder_norm/scale": (10,), **blocks, "head/kernel": (10, 3)}
    shapes |= {"embedding/kernel": (4, 10), "cls": (1, 1, 10), "batch_stats/bn1/mean": (7,)}
    whole = ["patch embedding 40", "class token 10", "12 x encoderblock 24,000 2,000 each"]
    assert rows(shapes, shapes) == [*whole, "final norm 10", "head 30"]
    trained = {"head/kernel", *(path for path in blocks if re.search("_1[01]/", path))}
    assert rows(shapes, trained)[2:] == [
        "10 x encoderblock 0-9 20,000 2,000 each, frozen",
        "2 x encoderblock 10-11 4,000 2,000 each, trained",
        "final norm 10 frozen",
        "head 30 trained",
    ]


def rows(shapes, trained):
    return [" ".join(line.split()) for line in summarize_parameters(shapes, trained).splitlines()]
