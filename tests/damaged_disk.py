"""A quick sweep whose files a test damages before it is started again.

It then must end with the very same results, after a warning that names the file where anything was
lost, or refuse in one sentence that names it. Programs are compiled once for all starts, and
figures are not really drawn: the rest is what `vit_jax.main` does.
"""

import contextlib
import dataclasses
import functools
import io
import pathlib
import shutil
from unittest import mock

import jax
from damage import harm
from jax.sharding import AxisType
from PIL import Image
from storm import assert_same_sweep, checksums
from tiny_configs import make_config
from tiny_net import Net
from tiny_stop import Stop

from vit_jax import models, plots
from vit_jax.cli.hooks import ReportHooks
from vit_jax.data import load_data
from vit_jax.runtime import sharding
from vit_jax.runtime.errors import UserError
from vit_jax.training import sweep
from vit_jax.training.compiled import compile_steps
from vit_jax.training.setup import make_setup


class QuickSweep:
    """A sweep of two seeds at once, of a model with BatchNorm, to be run often in this process."""

    def __init__(self):
        mesh = jax.make_mesh(
            (2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2]
        )
        self.config = make_config(
            train__epochs=2.0,  # of five steps
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
        picture = io.BytesIO()
        Image.new("L", (2, 2)).save(picture, "png")

        def draw(place, *args):
            place = place.open("wb") if isinstance(place, pathlib.Path) else place
            place.write(picture.getvalue())
            if not isinstance(place, io.BytesIO):
                place.close()

        self._patches = [
            mock.patch.object(sharding, "start", lambda *args: None),
            mock.patch.object(sharding, "make_mesh", lambda: mesh),
            mock.patch.object(sweep, "load_data", lambda *args: self._data),
            mock.patch.object(sweep, "make_setup", lambda *args: self._setup),
            *(
                mock.patch.object(plots, name, draw)
                for name in dir(plots)
                if name.startswith("save_")
            ),
        ]

    def run(self, workdir, stop_at=None, broken_at=None):
        """Runs it, or goes on; returns what it printed.

        It stops with a SIGTERM at step `stop_at`; the parameters are NaN after `broken_at`. Both
        are steps with a row, at which a call of several steps ends.
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
                    *("demo", {"base": self.config}, {}, {}, workdir, None, stop),
                    *(["--config=demo"], StopAt(stop, stop_at)),
                )
        return text.getvalue()


def _broken_step(at, train_step, state, key, batch):
    state = train_step(state, key, batch)
    if int(state.step[0]) == at:
        state = state.replace(params=jax.tree.map(lambda x: x * float("nan"), state.params))
    return state


class StopAt(ReportHooks):
    """Stops at a step, as a signal would."""

    def __init__(self, stop, step):
        super().__init__()
        self._stop, self._step = stop, step

    def on_event(self, event, step):
        """Notes the signal."""
        if event == "step" and step == self._step:
            self._stop.number = 15


def damage_and_run(quick, before, after, path, how, scratch):
    """Damages one file of a copy of the sweep in `before`, and runs that to its end.

    Returns "refused", or "gone back" with a warning.

    Raises:
      AssertionError: it ended otherwise than `after`, or did not name the file.
    """
    workdir = scratch / "copy"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(before, workdir)
    harm(workdir / path, how)
    case = f"{path} {how}"
    # A digest that is wrong speaks of the file that it is of.
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
    return "gone back"


def prepare(quick, folder):
    """Returns the folders of a sweep that was stopped, and of the same sweep at its end."""
    stopped, finished = folder / "stopped", folder / "finished"
    quick.run(stopped, stop_at=8)
    shutil.copytree(stopped, finished)
    quick.run(finished)
    return stopped, finished
