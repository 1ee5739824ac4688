"""One run: restore, then step, log, validate and save until the end; then the summary."""

import contextlib
import json
import math
import pathlib
import signal
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import vit_jax
from vit_jax import models
from vit_jax.data import Data
from vit_jax.evaluation.evaluate import evaluate, make_report
from vit_jax.evaluation.metrics import Sums
from vit_jax.explain import attribution, scores
from vit_jax.runtime import memory, processes, sharding
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.progress import CompileTimes, Progress, say
from vit_jax.runtime.sharding import dtype_of
from vit_jax.runtime.signals import StopSignal
from vit_jax.storage import run_folder
from vit_jax.storage.checkpoint import Checkpoints, abstract, checksum, restore_common
from vit_jax.storage.writers import make_writer
from vit_jax.training import features, seeds
from vit_jax.training.setup import Program, compile_ahead, first_state, num_trained, one_image

_CALL_SECONDS = 1.0  # of short steps; signals are answered after it


def run(
    program: Program,
    data: Data,
    folders: Mapping[int, pathlib.Path],
    name: str,
    stop: StopSignal,
) -> list[dict]:
    """Trains seeds at once, or goes on with them, and returns their summaries.

    Args:
      program: of the variant.
      data: to train, validate and test on.
      folders: {seed: folder of its run, made if missing}; the seed is that of initialisation,
        order, augmentation and dropout.
      name: of the variant, for people.
      stop: asked after every call, of one step or several.

    Raises:
      UserError: a folder is in use or damaged, a loss became non-finite, or the devices' memory
        does not hold several seeds.
      SystemExit: stopped by a signal, after saving.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(run_folder.lock(folder))
        stack.enter_context(stop.deferred())
        for seed, folder in folders.items():
            run_folder.write_config(
                folder, program.config, program.fingerprint, program.total_steps, name, seed
            )
        try:
            with contextlib.closing(_Run(program, data, folders, name, stop)) as current:
                current.loop()
                return [current.finish(seed) for seed in current.seeds]
        except Exception as error:
            if len(folders) == 1 or not memory.ran_out(error):
                raise
            raise UserError(
                f"{name}: the memory does not hold {len(folders)} seeds at once: set "
                "train.seeds_at_once=never"
            ) from None


class _Seed:
    """What belongs to one seed of a run: its folder, and what is written there."""

    def __init__(self, place, seed, title, folder, needs_best):
        self.place, self.seed, self.title, self.folder = place, seed, title, folder
        self.key = jax.random.key(seed)
        self.checkpoints = Checkpoints(folder / "checkpoints", needs_best)
        self.evaluated_step = -1  # the latest one that was evaluated
        self.lines = []  # of metrics.jsonl, at the start
        self.writer: Any = None
        self.viewer: Any = None  # figures.Viewer

    def check_finite(self, bad_step):
        if bad_step >= 0:
            raise UserError(
                f"{self.title}: the loss or its gradient became non-finite at step {bad_step}; the "
                f"last good checkpoint is in {self.folder / 'checkpoints'}: try a lower "
                "optim.learning_rate, a longer warm-up or optim.grad_clip_norm"
            )


class _Run:
    """The stateful side of a run: files, clocks, progress.

    Its state, and what it gives the steps, is that of one seed, or stacked of several.
    """

    def __init__(self, program, data, folders, name, stop):
        self.program, self.data, self.stop = program, data, stop
        self.name, self.title = name, f"{name} {_listed(list(folders))}"
        self.first_process = processes.is_first()
        needs_best = program.config.train.select == "best"
        self.seeds = [
            _Seed(place, seed, f"{name} seed {seed}", folder, needs_best)
            for place, (seed, folder) in enumerate(folders.items())
        ]
        together = len(folders) > 1
        self.steps = seeds.Together(program, len(folders)) if together else seeds.Alone(program)
        self.compile_times = CompileTimes()
        shapes = jax.eval_shape(program.init, self.seeds[0].key, one_image(program.config))
        self.abstract = abstract(shapes, program.layout)
        last = run_folder.last_saved_step(self.seeds[0].folder)
        ahead = not together and last < program.total_steps
        self.compiled = compile_ahead(program, self.abstract, data.train) if ahead else None
        self._restore()
        config, log = program.config, program.config.log
        self.val_images = data.val  # the images, also where features are cached
        for seed in self.seeds:
            seed.writer = make_writer(
                seed.folder, self.step, log.tensorboard, log.wandb, self.first_process, seed.lines
            )
            if self.step == 0:
                seed.writer.write_hparams(run_folder.plain_settings(config, seed.seed))
        self.progress = Progress(self.title, self.step, program.total_steps, self.first_process)
        self.row_start, self.step_seconds = self.step, math.inf  # until they were measured

    def _restore(self):
        restored = restore_common([seed.checkpoints for seed in self.seeds], self.abstract)
        if restored is None:
            states = [first_state(self.program, seed.key) for seed in self.seeds]
            self.step, self.wall_before = 0, 0.0
            if self.program.total_steps:  # else the start is what there is to evaluate
                for seed in self.seeds:
                    seed.evaluated_step = 0
        else:
            states, self.step = [one.state for one in restored], restored[0].step
            self.wall_before = max(one.notes["wall_seconds"] for one in restored)
            for seed, one in zip(self.seeds, restored, strict=True):
                seed.evaluated_step = self.step if one.notes["evaluated"] else -1
                seed.lines = one.lines
            before, now = restored[0].notes.get("dtype"), self._dtype()
            changed = before not in (None, now)  # None: of an earlier version
            told = f", from now on in {now} instead of {before}" if changed else ""
            self._print(f"going on from step {self.step}{told}")
        self.state: Any = self.steps.stack(states)
        self.began, self.saved_step = time.monotonic(), self.step

    def _print(self, text, seed=None):
        if self.first_process:
            say(f"{(seed or self).title}: {text}")

    def _dtype(self):
        """Returns the type of the products, which "auto" lets depend on the devices."""
        return dtype_of(self.program.config.train.dtype).name

    def wall_seconds(self):
        # Seeds share the clock: what they are told adds up to the time that passed.
        return self.wall_before + (time.monotonic() - self.began) / len(self.seeds)

    def loop(self):
        """Trains to the end; every checkpoint has the rows up to its step before it on disk."""
        program = self.program
        if program.feature_step is not None:
            self.data = features.of_data(
                program,
                self.data,
                self.state.variables,
                self.title,
                self.first_process,
                self._exit_if_stopped,
            )
        step_key = self.steps.stack([jax.random.fold_in(seed.key, 1) for seed in self.seeds])
        if self._due():  # stopped within this evaluation
            self._evaluate_and_save()
            self._exit_if_stopped()
        numbers = [seed.seed for seed in self.seeds]
        batches = self.steps.batches(
            self.data.train, numbers, self.step, program.total_steps, self._most_steps
        )
        clock = None
        self.progress.update(self.step, "compiling")
        if self.compiled is not None:
            self.compiled.result()
        for count, batch in batches:
            self.state = sharding.settle(self.steps.train_step(self.state, step_key, batch))
            self.step += count
            if clock is None:  # the first step compiles: keep it out of images/s
                jax.block_until_ready(self.state)
                clock, self.row_start = time.monotonic(), self.step
                self.progress.update(self.step, "compiled")
                self._print_start()
            elif self.step_seconds == math.inf:
                jax.block_until_ready(self.state)
                self.step_seconds = (time.monotonic() - clock) / (self.step - self.row_start)
            evaluate_now = self.step % program.eval_every == 0 or self.step == program.total_steps
            if evaluate_now or self.step % program.log_every == 0:
                self._log_rows(clock)
                if evaluate_now:
                    self._evaluate_and_save()
                memory.hand_back()
                clock, self.row_start = time.monotonic(), self.step
            self._exit_if_stopped()
        self._wait()  # so that none is finished, and left by itself one whose save failed

    def _most_steps(self, step):
        """Returns how many steps, at most, may be taken in one call, which ends at every row."""
        program = self.program
        to_row = min(every - step % every for every in (program.log_every, program.eval_every))
        return min(to_row, int(_CALL_SECONDS / self.step_seconds))

    def _print_start(self):
        parts = [f"{what} {spent:.1f}" for what, spent in self.compile_times.stop().items()]
        self._print(
            f"first step after {time.monotonic() - vit_jax.STARTED:.1f} s from the start of the "
            f"program (of it {', '.join(parts)})"
        )

    def _due(self):
        """Returns the seeds that are not evaluated yet at this step."""
        return [seed for seed in self.seeds if seed.evaluated_step != self.step]

    def _log_rows(self, clock):
        state = self.state
        values = (state.sums, state.grad_norm, state.bad_step, state.plateau)
        values = self.steps.rows((*values, self.steps.lambdas(state.params)))
        seconds, count = time.monotonic() - clock, self.step - self.row_start
        # Of one seed: all of them together see as many times more.
        speed = count * self.program.config.train.batch_size / seconds
        if count:
            self.step_seconds = seconds / count
        rate = float(self.program.schedule(self.step - 1))
        rows = []
        for seed, (sums, grad_norm, bad_step, plateau, lambdas) in zip(
            self.seeds, values, strict=True
        ):
            seed.check_finite(int(bad_step))
            row = {f"train/{k}": float(v) for k, v in sums.compute().items()}
            row |= {
                "train/grad_norm": float(grad_norm),
                "train/learning_rate": float(rate * (plateau.scale if plateau else 1)),
                "epoch": self.step / self.program.steps_per_epoch,
                "wall_seconds": self.wall_seconds(),
            }
            for block, strength in lambdas.items():
                row[f"lambda/{block}"] = float(strength)
            if count:
                row["train/images_per_second"] = speed
            seed.writer.write_scalars(self.step, row)
            rows.append(row)
        loss, accuracy = (
            np.mean([row[f"train/{k}"] for row in rows]) for k in ("loss", "accuracy")
        )
        text = f"loss {loss:.3f}, accuracy {accuracy:.3f}"
        if count:
            text += f", {speed * len(rows):,.0f} images/s"
        self.progress.update(self.step, text)
        self.state = self.state.replace(sums=self.steps.put([Sums.empty()] * len(rows)))

    def _evaluate_and_save(self):
        results = self.steps.evaluate(
            self.state.eval_variables,
            self.data.val.evaluate(self.program.config.train.eval_batch_size),
            self.stop.asked,
        )
        due = self._due()
        if results is None:
            self._save(due, evaluated=False)
            return
        for seed in due:
            result = results[seed.place]
            if not math.isfinite(result.loss):
                seed.check_finite(self.step)
            row = {"val/loss": result.loss, "val/accuracy": result.accuracy}
            row |= {"epoch": self.step / self.program.steps_per_epoch}
            seed.writer.write_scalars(self.step, row | {"wall_seconds": self.wall_seconds()})
        loss, accuracy = (np.mean([getattr(r, k) for r in results]) for k in ("loss", "accuracy"))
        text = f"val loss {loss:.3f}, val accuracy {accuracy:.3f}"
        self.progress.update(self.step, text, line=True)
        self._update_plateau(due, results)
        self._log_figures(due)
        self._save(due, results)

    def _log_figures(self, due):
        """Logs what the models make of the first validation images, now and then."""
        every, config = self.program.config.log.figures_every, self.program.config
        if not every or -(-self.step // max(1, self.program.eval_every)) % every:
            return
        batch = next(iter(self.val_images.evaluate(config.train.eval_batch_size)))
        images, labels, mask = sharding.to_host((batch["image"], batch["label"], batch["mask"]))
        images, labels = images[mask], labels[mask]  # without what fills up the batch
        names = self.data.class_names
        from vit_jax.explain import (
            figures,  # matplotlib costs half a second, so only where it is used
        )

        for seed in due:
            variables = sharding.to_host(self.steps.take(self.state.eval_variables, seed.place))
            if not self.first_process:
                continue
            if seed.viewer is None:
                model = models.build(config.model, len(names), dtype_of(config.train.dtype))
                seed.viewer = figures.Viewer(seed.title, config, model, names)
            seen = seed.viewer.see(variables, images[:6], [names[label] for label in labels[:6]])
            seed.writer.write_images(self.step, figures.training_figures(seen))
        processes.wait()

    def _update_plateau(self, due, results):
        plateau = self.program.plateau
        if plateau is None:
            return
        states = self.steps.rows(self.state.plateau)
        for seed in due:
            before = states[seed.place]
            after = jax.device_get(plateau.update(before, results[seed.place].loss))
            if after.scale < before.scale:
                rate = float(after.scale) * self.program.config.optim.learning_rate
                self._print(
                    f"validation loss on a plateau: learning rate lowered to {rate:.3g}", seed
                )
            states[seed.place] = after
        self.state = self.state.replace(plateau=self.steps.put(states))

    def _save(self, due, results=None, evaluated=True):
        self._wait()  # so that none gets two saves ahead of one whose save failed
        bad_steps = self.steps.rows(self.state.bad_step)
        for seed in due:
            seed.check_finite(int(bad_steps[seed.place]))
            seed.writer.flush()
            state = self.steps.take(self.state, seed.place)
            notes = {"evaluated": evaluated, "wall_seconds": self.wall_seconds()}
            notes["dtype"] = self._dtype()
            notes["variables_checksum"] = int(checksum(state.eval_variables))
            accuracy = results[seed.place].accuracy if results else None
            seed.checkpoints.save(self.step, state, notes, accuracy, seed.writer.lines)
            if evaluated:
                seed.evaluated_step = self.step
        self.saved_step = self.step

    def _wait(self):
        """Returns when all saves are done: seeds that get apart go on alone (`seeds.groups`)."""
        for seed in self.seeds:
            seed.checkpoints.wait()

    def _exit_if_stopped(self):
        if not self.stop.asked():
            return
        if self.saved_step != self.step:
            self._save(self.seeds)
        self._wait()
        name = signal.Signals(self.stop.number).name
        self._print(
            f"stopped by {name} at step {self.step}, saved; the same command goes on from there"
        )
        raise SystemExit(128 + self.stop.number)

    def finish(self, seed: _Seed) -> dict:
        """Evaluates the selected checkpoint on all three parts, test for the only time."""
        config = self.program.config
        variables, step = self._selected(seed)
        self._print(f"evaluating the {config.train.select} checkpoint, of step {step}", seed)
        results = {}
        for part in ("train", "val", "test"):
            batches = getattr(self.data, part).evaluate(config.train.eval_batch_size)
            results[part] = evaluate(
                self.program.eval_step,
                variables,
                batches,
                self.stop.asked,
                keep=part == "test",
            )
            self._exit_if_stopped()
        summary = self._summary(seed, results, step)
        if config.log.kernel_magnitudes:
            before = first_state(self.program, seed.key).params
            summary["kernel_magnitudes"] = {
                "before": attribution.kernel_magnitudes(before),
                "after": attribution.kernel_magnitudes(variables["params"]),
            }
        if self.first_process:
            report = make_report(
                results["test"].logits, results["test"].labels, self.data.class_names
            )
            scores.remove(seed.folder / "figures" / "explanation")  # of an earlier leg
            run_folder.write_results(seed.folder, report, summary)
        return summary

    def _selected(self, seed):
        """Returns the variables to be evaluated at the end, and their step."""
        if self.program.config.train.select == "last":
            return self.steps.take(self.state, seed.place).eval_variables, self.step
        self.state = None  # the devices may not hold two
        best = seed.checkpoints.restore_best(self.abstract)
        return best.state.eval_variables, best.step

    def _summary(self, seed, results, step):
        rows = [json.loads(line) for line in seed.writer.lines]
        speeds = [row[k] for row in rows if (k := "train/images_per_second") in row]
        num_params = sum(x.size for x in jax.tree.leaves(self.abstract.params))
        legs = (run_folder.read_config(seed.folder) or {}).get("legs", [])
        return {
            "name": self.name,
            "seed": seed.seed,
            "num_params": num_params,
            "num_trainable_params": num_trained(self.program, self.abstract.params),
            "epochs": self.program.total_steps / self.program.steps_per_epoch,
            "steps": self.program.total_steps,
            **{f"{part}_accuracy": result.accuracy for part, result in results.items()},
            "test_loss": results["test"].loss,
            "best_step": step,
            "wall_seconds": self.wall_seconds(),
            "images_per_second": float(np.median(speeds)) if speeds else None,
            "device": sharding.describe_devices(),
            **({"legs": legs} if legs else {}),
        }

    def close(self):
        """Ends the progress bar and the background writers, also if one fails."""
        with contextlib.ExitStack() as stack:
            for seed in reversed(self.seeds):
                stack.callback(seed.checkpoints.close)
                stack.callback(seed.writer.close)
            stack.callback(self.progress.close)
            stack.callback(self.compile_times.stop)


def _listed(numbers):
    """Returns e.g. "seed 3", "seeds 0-3" or "seeds 1, 3"."""
    if len(numbers) == 1:
        return f"seed {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"seeds {numbers[0]}-{numbers[-1]}"
    return f"seeds {', '.join(map(str, numbers))}"
