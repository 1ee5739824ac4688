"""Programs are compiled ahead of the first step, and only once."""

import signal

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_steps import make_steps
from tiny_stop import Stop

from vit_jax.data import load_data
from vit_jax.training import loop


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize("resident, stored", [("always", 0), ("never", 0), ("never", 12)])
def test_the_step_is_compiled_once_for_fresh_and_resumed_runs(
    resident, stored, mesh, compiled, tmp_path, capsys
):
    """The steps use the program compiled ahead, also with a restored state."""
    options = dict(train__epochs=2.0, train__batch_size=256, train__eval_batch_size=512)
    options |= dict(data__device_resident=resident, data__stored_size=stored)
    config = make_config(**options)
    data = load_data(config.data, mesh)

    class StopsSoon(Stop):
        times = 0

        def asked(self):  # called after every dispatch and during evaluations
            self.times += 1
            self.number = signal.SIGTERM if self.times > 3 else 0
            return super().asked()

    step = "jit(multi_step)" if resident == "always" else "jit(train_step)"
    for stop, resumed in ((StopsSoon(), False), (Stop(), True)):
        steps = make_steps(config, data, mesh, multi_step=None)
        compiled.clear()
        try:
            loop.train(steps, data, {0: tmp_path / "run"}, "base", stop)
        except SystemExit:
            assert stop.number == signal.SIGTERM
        assert compiled.count(step) == 1
        output = capsys.readouterr().out
        assert "first step after" in output and ("resuming from step" in output) == resumed


def test_resuming_with_another_dtype_is_logged(mesh, tmp_path, capsys, monkeypatch):
    """For example, where "auto" was float32 on a CPU and is now bfloat16 on a GPU."""
    config = make_config(train__batch_size=512)
    data = load_data(config.data, mesh)

    def restart():
        steps = make_steps(config, data, mesh, multi_step=None)
        loop.train(steps, data, {0: tmp_path}, "base", Stop())
        return capsys.readouterr().out

    assert "resuming" not in restart()
    assert "resuming from step 2\n" in restart()
    monkeypatch.setattr(loop, "dtype_of", lambda name, mesh: jnp.dtype("bfloat16"))
    assert "resuming from step 2, computing in bfloat16 instead of float32\n" in restart()


def test_a_finished_run_compiles_no_step(mesh, compiled, tmp_path):
    config = make_config(train__batch_size=512, train__eval_batch_size=512)
    data = load_data(config.data, mesh)
    for times in (1, 0):
        steps = make_steps(config, data, mesh, multi_step=None)
        compiled.clear()
        loop.train(steps, data, {0: tmp_path / "run"}, "base", Stop())
        assert compiled.count("jit(multi_step)") == times
