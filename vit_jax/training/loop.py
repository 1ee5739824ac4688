"""Training: restore, then step, log, evaluate and save to the end; then the summary."""

import contextlib
import functools
import math
import pathlib
import signal
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.data import Data
from vit_jax.evaluation.evaluate import evaluate
from vit_jax.evaluation.metrics import Sums, kernel_magnitudes
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.progress import Progress, StartTimes, print_line
from vit_jax.runtime.sharding import dtype_of
from vit_jax.runtime.signals import StopSignal
from vit_jax.storage import run_folder
from vit_jax.storage.checkpoint import checksum, restore_common
from vit_jax.training import optim
from vit_jax.training.clock import Clock
from vit_jax.training.compiled import CompiledSteps, can_compile_ahead, compile_ahead
from vit_jax.training.features import FeatureCache
from vit_jax.training.hooks import Hooks
from vit_jax.training.run_outputs import RunOutputs, open_runs, summarize
from vit_jax.training.seeds import list_seeds


def train(
    steps: CompiledSteps,
    data: Data,
    folders: Mapping[int, pathlib.Path],
    name: str,
    stop: StopSignal,
    hooks: Hooks | None = None,
    cache: FeatureCache | None = None,
    start: StartTimes | None = None,
) -> list[dict]:
    """Train seeds of a variant, or resume them, and return their summaries.

    Args:
      steps: of the variant, for as many seeds as there are folders.
      data: to train, validate and test on.
      folders: {seed: folder of its run, made if missing}.
      name: of the variant.
      stop: asked after every call of the training step.
      hooks: callbacks.
      cache: of features, shared with other seeds.
      start: time to the first step, measured from an earlier start; None: from that of this call.

    Raises:
      UserError: a folder is in use or damaged, a loss became non-finite, or the devices' memory
        does not hold several seeds.
      SystemExit: stopped by a signal, after saving.
    """
    notes = [*data.notes, *steps.setup.notes]
    with open_runs(steps.setup, folders, name, stop, notes) as runs:
        start = start or StartTimes("run")
        trainer = Trainer(steps, data, runs, name, stop, hooks or Hooks(), start)
        with contextlib.closing(trainer.clock):
            with stop.immediate():
                trainer.restore()
                split = trainer.train_split(cache or FeatureCache())
                trainer.evaluate_if_due()
                trainer.wait_for_compilation()
            seeds, max_steps = [run.seed for run in runs], trainer.clock.max_steps
            batches = steps.batches(split, seeds, trainer.step, max_steps)
            for count, batch in () if trainer.stopped_early else batches:
                trainer.take_step(batch, count)
                if steps.setup.lengths.is_logged(trainer.step):
                    trainer.log_metrics()
                    if steps.setup.lengths.is_evaluated(trainer.step):
                        trainer.evaluate_and_save()
                    trainer.clock.restart_window(trainer.step)
                trainer.save_if_due()
                trainer.hooks.on_event("step", trainer.step)
                trainer.exit_if_stopped()
                if trainer.stopped_early:
                    break
            trainer.wait_for_saves()
            with stop.immediate():
                return [trainer.finish(run) for run in runs]


class Trainer:
    """The state of a run in progress, of one seed or several vectorised ones; `restore` it first.

    Attributes:
      step: updates done.
      state: TrainState of one seed, or stacked of several.
      keys: random key of each seed, from which those of its steps are folded.
      clock: of the run.
    """

    def __init__(self, steps, data, runs: list[RunOutputs], name: str, stop, hooks, start):
        self.steps, self.setup, self.axis = steps, steps.setup, steps.axis
        self.data, self.runs, self.stop, self.hooks = data, runs, stop, hooks
        self.name, self.title = name, f"{name} {list_seeds([run.seed for run in runs])}"
        self.step, self.saved_step = 0, 0
        self._save_time, self._check_step = time.monotonic(), 0  # as `save_if_due`
        self.state: Any = None
        self.images = data.val  # also where features are cached
        self.plateau = optim.make_plateau(self.setup.config.optim)
        self.schedule = self.setup.schedule()
        self.clock = Clock(self.title, self.setup.lengths, len(runs), start)
        self.eval_seconds = math.inf  # of the last evaluation
        self.stopped_early = False

    def restore(self) -> None:
        """Restore the latest common checkpoint, or make the initial state."""
        self.hooks.on_event("restore", self.step)
        self.compiled, wall_seconds = None, 0.0
        saved = run_folder.last_saved_step(self.runs[0].folder)
        if saved < self.setup.lengths.total and can_compile_ahead(self.steps):
            self._print("tracing the training step")
            self.compiled = compile_ahead(self.steps, self.data.train, saved)
        self._print(
            f"restoring the checkpoint of step {saved}" if saved else "initialising weights"
        )
        restored = restore_common([run.checkpoints for run in self.runs], self.steps.shapes)
        if restored is None:
            states = [self.steps.initial_state(run.key) for run in self.runs]
            if self.setup.lengths.total:  # else the initial state is the result
                for run in self.runs:
                    run.evaluated_step = 0
        else:
            states, self.step = [one.state for one in restored], restored[0].step
            wall_seconds = max(one.notes["wall_seconds"] for one in restored)
            for run, one in zip(self.runs, restored, strict=True):
                run.evaluated_step = self.step if one.notes["evaluated"] else -1
                run.lines = one.lines
            now = self._dtype()
            before = restored[0].notes.get("dtype", now)  # missing in earlier versions
            dtypes = f", computing in {now} instead of {before}" if before != now else ""
            self._print(f"resuming from step {self.step}{dtypes}")
        self.state, self.saved_step = self.axis.stack(states), self.step
        self.keys = self.axis.stack([jax.random.fold_in(run.key, 1) for run in self.runs])
        for run in self.runs:
            run.open_writer(self.setup.config, self.step)
        self.clock.begin(self.step, wall_seconds)

    def train_split(self, cache: FeatureCache) -> Any:
        """Get the training split, of features instead of images where those are cached."""
        if self.setup.on_features:
            self.data = cache.get(
                self.steps, self.data, self.state.variables, self.title, self.exit_if_stopped
            )
        return self.data.train

    def wait_for_compilation(self) -> None:
        """Wait for the training step to be compiled in the background, if it is."""
        self.hooks.on_event("compile", self.step)
        self.clock.show(self.step, "compiling")
        if self.compiled is not None:
            if not self.compiled.done():
                self._print("compiling the training step")
            self.compiled.result()
        elif self.step < self.setup.lengths.total:
            self._print("compiling the training step")

    def take_step(self, batch: dict, count: int) -> None:
        """Take `count` steps in one call."""
        steps, other_step = self.steps, self.step == self.setup.lengths.patch_drop
        if other_step:
            self._print("compiling the training step without patch dropout")
        state = steps.train_at(self.step)(self.state, self.keys, batch, *steps.constants)
        self.state = sharding.block_on_cpu(state)
        self.step += count
        self.clock.tick(self.step, self.state)
        if other_step:  # keep its compilation out of images/s
            jax.block_until_ready(self.state)
            self.clock.restart_window(self.step)

    def log_metrics(self) -> None:
        """Log the training metrics since the last entry."""
        state, count, means, names = self.state, len(self.runs), [], self.setup.metric_names
        values = (state.sums, state.grad_norm, state.bad_step, state.plateau)
        values = self.axis.to_host((*values, self.axis.lambdas(state.params)))
        speed = self.clock.images_per_second(self.step, self.setup.config.train.batch_size)
        rate = float(self.schedule(self.step - 1))
        for run, value in zip(self.runs, values, strict=True):
            sums, grad_norm, bad_step, plateau, lambdas = value
            run.check_finite(int(bad_step))
            means.append({key: float(mean) for key, mean in sums.compute().items()})
            entry = {f"train/{names.get(key, key)}": mean for key, mean in means[-1].items()}
            entry["train/grad_norm"] = float(grad_norm)
            entry["train/learning_rate"] = float(rate * (plateau.scale if plateau else 1))
            entry |= self._time()
            for name, strength in lambdas.items():  # encoderblock_0 is block 1, as in figures
                block = int(name.removeprefix("encoderblock_")) + 1
                entry[f"lambda/block_{block}"] = float(strength)
            if speed is not None:
                entry["train/images_per_second"] = speed
            run.writer.write_scalars(self.step, entry)
        loss, accuracy = (np.mean([mean[key] for mean in means]) for key in ("loss", "accuracy"))
        name = names.get("accuracy", "accuracy").replace("_", " ")
        text = f"loss {loss:.3f}, {name} {accuracy:.3f}"
        if speed is not None:
            text += f", {speed:,.0f} images/s"
        self.clock.show(self.step, text)
        self.state = state.replace(sums=self.axis.device_put([Sums.empty()] * count))

    def evaluate_if_due(self) -> None:
        """Evaluate a restored state that was saved before its evaluation."""
        if self._due():
            self.evaluate_and_save()
            self.exit_if_stopped()
        else:  # perhaps killed in the final evaluation
            self._stop_early_if_due()

    def evaluate_and_save(self) -> None:
        """Validate, lower the learning rate on a plateau, and save."""
        self.hooks.on_event("evaluate", self.step)
        began, text = time.monotonic(), f"evaluating {len(self.data.val):,} val images"
        self.clock.show(self.step, text, line=self.eval_seconds > 3)
        results = self.steps.evaluate(
            self.state.eval_variables,
            self.data.val.evaluate(self.setup.config.train.eval_batch_size),
            self.stop.asked,
        )
        self.eval_seconds = time.monotonic() - began
        due = self._due()
        if results is None:
            return self._save(due, evaluated=False)
        for run in due:
            result = results[run.index]
            if not math.isfinite(result.loss):
                run.check_finite(self.step)
            entry = {f"val/{key}": value for key, value in result.metrics.items()}
            run.writer.write_scalars(self.step, entry | self._time())
        loss, score = (np.mean([getattr(r, k) for r in results]) for k in ("loss", "score"))
        text = f"val loss {loss:.3f}, val {self.setup.metric} {score:.3f}"
        self.clock.show(self.step, text, line=True)
        self._update_plateau(due, results)
        count = -(-self.step // self.setup.lengths.eval_every)
        for run in due:
            self.hooks.on_evaluation(run, self, functools.partial(self._host_variables, run), count)
        self.hooks.on_event("rows", self.step)
        self._save(due, results)
        self._stop_early_if_due()

    def _stop_early_if_due(self):
        """End the run after `train.stop_after_evaluations` without a higher val accuracy."""
        limit = self.setup.config.train.stop_after_evaluations
        if limit and self.step < self.setup.lengths.total:
            (run,) = self.runs  # seeds are not vectorised then
            count, reason = run.evaluations_without_improvement()
            if processes.from_first(count >= limit):
                self.stopped_early = True
                self._print(f"stopped early at step {self.step}: {reason}")

    def save_if_due(self) -> None:
        """Save `train.save_every_minutes` after the last save, without an evaluation."""
        minutes = self.setup.config.train.save_every_minutes
        if not minutes or self.step < self._check_step or self.step == self.saved_step:
            return
        left = 60 * minutes + self._save_time - time.monotonic()
        # The clock of the first process decides: after half of the time left, it looks again.
        steps = int(processes.from_first(np.int32(self.clock.steps_in(left / 2))))
        # Not beyond the next log entry: it measures the speed again, which may have fallen.
        self._check_step = self.step + min(steps, self.setup.lengths.log_every)
        if not steps:
            self._save(self.runs)
            self.clock.restart_window(self.step)

    def _time(self):
        epoch = self.step / self.setup.lengths.epoch
        return {"epoch": epoch, "wall_seconds": self.clock.wall_seconds()}

    def _due(self):
        """List the runs that are not evaluated yet at this step."""
        return [run for run in self.runs if run.evaluated_step != self.step]

    def _host_variables(self, run):
        variables = sharding.to_host(self.axis.take(self.state.eval_variables, run.index))
        return variables | {"params": self.setup.merged(variables["params"])}

    def _update_plateau(self, due, results):
        if self.plateau is None:
            return
        states = self.axis.to_host(self.state.plateau)
        for run in due:
            before = states[run.index]
            after = jax.device_get(self.plateau.update(before, results[run.index].loss))
            if after.scale < before.scale:
                rate = float(after.scale) * self.setup.config.optim.learning_rate
                lowered = f"learning rate lowered to {rate:.3g}"
                self._print(f"validation loss on a plateau: {lowered}", run)
            states[run.index] = after
        self.state = self.state.replace(plateau=self.axis.device_put(states))

    def _save(self, due, results=None, evaluated=True):
        self.wait_for_saves()  # no seed may be two saves ahead of one whose save failed
        self.hooks.on_event("save", self.step)
        bad_steps = self.axis.to_host(self.state.bad_step)
        for run in due:
            run.check_finite(int(bad_steps[run.index]))
            run.writer.flush()
            state = self.axis.take(self.state, run.index)
            notes = {
                "evaluated": evaluated,
                "wall_seconds": self.clock.wall_seconds(),
                "dtype": self._dtype(),
                "variables_checksum": checksum(state.eval_variables),
            }
            score = results[run.index].score if results else None
            run.checkpoints.save(self.step, state, notes, score, run.writer.lines)
            if evaluated:
                run.evaluated_step = self.step
        self.saved_step, self._save_time = self.step, time.monotonic()
        self.hooks.on_event("saving", self.step)

    def wait_for_saves(self) -> None:
        """Wait for all background saves."""
        for run in self.runs:
            run.checkpoints.wait()

    def exit_if_stopped(self) -> None:
        """After a signal, save and exit."""
        if not self.stop.asked():
            return
        if self.saved_step != self.step:
            self._save(self.runs)
        self.wait_for_saves()
        name = signal.Signals(self.stop.number).name
        saved = ", checkpoint saved" if self.step else ""  # 0: nothing was trained
        stopped = f"stopped by {name} at step {self.step}{saved}"
        self._print(f"{stopped}; run the same command to resume")
        raise SystemExit(128 + self.stop.number)

    def finish(self, run: RunOutputs) -> dict:
        """Evaluate the selected checkpoint on all splits, test for the only time."""
        self.hooks.on_event("final_evaluation", self.step)
        config = self.setup.config
        variables, step = self._select(run)
        results = self._evaluate_splits(run, variables, step)
        seconds = self.clock.wall_seconds()
        summary = summarize(run, self.setup, self.name, results, self.step, step, seconds)
        if self.stopped_early:
            summary["stopped_early"] = run.evaluations_without_improvement()[1]
        if config.log.kernel_magnitudes:
            summary["kernel_magnitudes"] = {
                "before": kernel_magnitudes(self.steps.initial_state(run.key).params),
                "after": kernel_magnitudes(self.setup.merged(variables["params"])),
            }
        run.write_results(summary, results, self.data.class_names)
        return summary

    def _evaluate_splits(self, run, variables, step):
        """Evaluate the checkpoint of `step` on all splits, the test split for the only time."""
        splits = {name: getattr(self.data, name) for name in ("train", "val", "test")}
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in splits.items())
        checkpoint = f"the {self.setup.config.train.select} checkpoint, of step {step},"
        self._print(f"evaluating {checkpoint} on {sizes} images", run)
        total, size = sum(map(len, splits.values())), self.setup.config.train.eval_batch_size
        progress = Progress(f"{run.title} evaluation", 0, total, processes.is_first(), "image")

        def advancing(split):
            for i, batch in enumerate(split.evaluate(size)):
                yield batch
                progress.advance(min(size, len(split) - i * size))

        results = {}
        with contextlib.closing(progress):
            for name, split in splits.items():
                batches, stop = advancing(split), self.stop.asked
                eval_step = self.steps.eval_step
                keep = name == "test" or self.setup.config.data.multi_label
                sums = sharding.replicate(self.setup.mesh, Sums.empty())
                results[name] = evaluate(eval_step, variables, sums, batches, stop, keep)
                self.exit_if_stopped()
        return results

    def _select(self, run):
        """Select the variables of the final evaluation; return them and their step."""
        if self.setup.config.train.select == "last":
            return self.axis.take(self.state, run.index).eval_variables, self.step
        self._print("restoring the best checkpoint", run)
        self.state = None  # the devices may not hold two
        best = run.checkpoints.restore_best(self.steps.shapes)
        return best.state.eval_variables, best.step

    def _print(self, text, run=None):
        if processes.is_first():
            print_line(f"{(run or self).title}: {text}")

    def _dtype(self):
        """Name the compute dtype, which depends on the devices for "auto"."""
        return dtype_of(self.setup.config.train.dtype, self.setup.mesh).name
