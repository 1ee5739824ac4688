"""A quick sweep whose files a test damages before resuming it.

It must either finish with identical results and a warning that names the damaged file, or stop with
a single-line error that names it. Programs are compiled once for all runs, and figures are stubs;
everything else is as in `vit_jax.main`.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import shutil
from unittest import mock

import jax
from damage import damage_file
from jax.sharding import AxisType
from PIL import Image
from storm import assert_same_sweep, checksums
from tiny_configs import make_config
from tiny_net import Net
from tiny_stop import Stop

from vit_jax import models, plots
from vit_jax.cli.hooks import ReportHooks
from vit_jax.config.loading import Experiment
from vit_jax.data import load_data
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training import sweep
from vit_jax.training.compiled import compile_steps
from vit_jax.training.setup import make_setup


class QuickSweep:
    """A sweep of two vectorised seeds of a model with BatchNorm, for many runs in this process."""

    def __init__(self):
        mesh = jax.make_mesh(
            (2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]
        )
        self.config = make_config(
            train__epochs=2.0,  # five steps each
            train__batch_size=256,
            train__eval_batch_size=512,
            train__eval_every_steps=3,
            train__eval_every_epochs=0.0,
            train__num_seeds=2,
            train__vmap_seeds="always",
            optim__learning_rate=0.01,
            optim__ema_decay=0.9,
            log__every_steps=2,
            log__explain_images=0,
            augment__kind="none",
        )
        self._data = load_data(self.config.data, mesh)
        with mock.patch.object(models, "build", lambda *args: Net()):
            self._setup = make_setup(self.config, self._data, mesh)
            self._steps = {n: compile_steps(self._setup, n) for n in (1, 2)}
        png = io.BytesIO()
        Image.new("L", (2, 2)).save(png, "png")

        def draw(target, *args):
            target = target.open("wb") if isinstance(target, pathlib.Path) else target
            target.write(png.getvalue())
            if not isinstance(target, io.BytesIO):
                target.close()

        self._patches = [
            mock.patch.object(sharding, "start", lambda *args: None),
            mock.patch.object(sharding, "make_mesh", lambda devices=None: mesh),
            mock.patch.object(sweep, "load_data", lambda *args: self._data),
            mock.patch.object(sweep, "make_setup", lambda *args: self._setup),
            *(
                mock.patch.object(plots, name, draw)
                for name in dir(plots)
                if name.startswith("save_")
            ),
        ]

    def run(self, workdir, stop_at=None, broken_at=None):
        """Run or resume the sweep; return its output.

        A SIGTERM stops it at step `stop_at`; parameters are NaN after step `broken_at`. Both must
        be log steps, at which multi-step dispatch ends a call.
        """
        stop = Stop()
        text = io.StringIO()
        with contextlib.ExitStack() as stack:
            for patch in self._patches:
                stack.enter_context(patch)
            for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
                stack.enter_context(redirect(text))

            def compiled(setup, num_seeds):
                steps = self._steps[num_seeds]
                train = functools.partial(_broken_step, broken_at, steps.train)
                return dataclasses.replace(steps, train=train) if broken_at else steps

            stack.enter_context(mock.patch.object(sweep, "compile_steps", compiled))
            with contextlib.suppress(SystemExit):
                sweep.run_sweep(
                    Experiment("demo", self.config),
                    {"base": self.config},
                    workdir,
                    stop,
                    arguments=["--config=demo"],
                    hooks=StopAt(stop, stop_at),
                )
        return text.getvalue()


def _broken_step(at, train_step, state, key, batch):
    state = train_step(state, key, batch)
    if int(state.step[0]) == at:
        state = state.replace(params=jax.tree.map(lambda x: x * float("nan"), state.params))
    return state


class StopAt(ReportHooks):
    """Stop at a step, as a signal would."""

    def __init__(self, stop, step):
        super().__init__()
        self._stop, self._step = stop, step

    def on_event(self, event, step):
        """Set the signal."""
        if event == "step" and step == self._step:
            self._stop.number = 15


def damage_and_run(quick, before, after, path, how, scratch):
    """Damage a file in a copy of the sweep in `before`, and resume it to its end.

    Returns "refused", or "fell back" after a warning.

    Raises:
      AssertionError: the results differ from those in `after`, or the file was not named.
    """
    workdir = scratch / "copy"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(before, workdir)
    damage_file(workdir / path, how)
    case = f"{path} {how}"
    # A wrong digest is reported for the file that it belongs to.
    named = path.name if path.name == "SHA256SUMS" else str(workdir / path)
    try:
        text = quick.run(workdir)
    except UserError as error:
        assert named in str(error) or path.name == "SHA256SUMS", f"{case}: {error}"
        assert "\n" not in str(error), f"{case}: {error}"
        return "refused"
    assert_same_sweep(workdir, after, checksums)
    warnings = [line for line in text.splitlines() if line.startswith("warning: ")]
    assert any(named in line for line in warnings), f"{case}: {warnings}"
    return "fell back"


def prepare(quick, folder):
    """Run the sweep with and without a stop; return the folders of both."""
    stopped, finished = folder / "stopped", folder / "finished"
    quick.run(stopped, stop_at=8)
    shutil.copytree(stopped, finished)
    quick.run(finished)
    return stopped, finished
