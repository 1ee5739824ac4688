"""One run: restore, then step, log, validate and save until the end; then the summary."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import explain, figures, models, pretrained, run_folder, sharding
from vit_jax.checkpoint import Checkpoints, abstract, checksum
from vit_jax.data import Data, ResidentBatches
from vit_jax.errors import UserError
from vit_jax.evaluate import evaluate, make_report
from vit_jax.metrics import Progress, Sums, make_writer, read_jsonl, say, write_atomically
from vit_jax.program import Program, dtype_of, num_trained, one_image


class StopSignal:
    """SIGTERM and SIGINT: end the program at once, or, while deferred, at the next good moment.

    The exit status is 128 + the signal's number, as the shell has it: 143 for SIGTERM.
    """

    def __init__(self):
        """Installs the handlers (the main thread must do this)."""
        self.number, self._deferred = 0, False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if not self._deferred or self.number:  # a second signal means now
            raise SystemExit(128 + number)
        self.number = number

    @contextlib.contextmanager
    def deferred(self):
        """Within this context a first signal only sets `number`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.number:  # it came when nothing was left to stop
            raise SystemExit(128 + self.number)


def run(
    program: Program,
    data: Data,
    folder: pathlib.Path,
    name: str,
    seed: int,
    stop: StopSignal,
) -> dict:
    """Trains one seed, or goes on with it, and returns its summary.

    Args:
      program: of the variant.
      data: to train, validate and test on.
      folder: of the run; made if missing.
      name: of the variant, for people.
      seed: of initialisation, order, augmentation and dropout.
      stop: asked after every step.

    Raises:
      UserError: the folder is in use or damaged, or the loss became non-finite.
      SystemExit: stopped by a signal, after saving.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(folder), stop.deferred():
        run_folder.write_config(
            folder, program.config, program.fingerprint, program.total_steps, name, seed
        )
        current = _Run(program, data, folder, name, seed, stop)
        try:
            current.loop()
            return current.finish()
        finally:
            current.close()


class _Run:
    """The stateful side of a run: files, clocks, progress."""

    def __init__(self, program, data, folder, name, seed, stop):
        self.program, self.data, self.folder, self.stop = program, data, folder, stop
        self.name, self.seed, self.title = name, seed, f"{name} seed {seed}"
        self.first_process = sharding.is_first_process()
        self.checkpoints = Checkpoints(folder / "checkpoints")
        self.key = jax.random.key(seed)
        self._restore()
        log = program.config.log
        self.writer = make_writer(
            folder, self.step, log.tensorboard, log.wandb, self.first_process, self.evaluated
        )
        self.viewer, self.val_images = None, data.val  # the images, also where features are cached
        if self.step == 0:
            self.writer.write_hparams(run_folder.plain_settings(program.config, seed))
        self.progress = Progress(self.title, self.step, program.total_steps, self.first_process)
        self.row_start = self.step

    def _restore(self):
        init, images = self.program.init, one_image(self.program.config)
        shapes = jax.eval_shape(init, self.key, images)
        self.abstract = abstract(shapes, sharding.replicated(self.program.mesh))
        restored = self.checkpoints.restore_latest(self.abstract)
        if restored is None:
            self.state, self.step = self._first_state(), 0
            # Without a step to do, the start is what there is to evaluate.
            self.evaluated, self.wall_before = self.program.total_steps > 0, 0.0
        else:
            self.state, self.step = restored.state, restored.step
            self.evaluated = restored.notes["evaluated"]
            self.wall_before = restored.notes["wall_seconds"]
            self._print(f"going on from step {self.step}")
        self.began, self.saved_step = time.monotonic(), self.step

    def _first_state(self):
        """Returns the state before the first step: fresh, or with the weights of init_from."""
        program = self.program
        state = program.init(self.key, one_image(program.config))
        if program.weights is None:
            return state
        fresh = pretrained.flat_weights(state.params, state.batch_stats)
        params, batch_stats = pretrained.nested_weights(fresh | program.weights.arrays)
        params, batch_stats = sharding.put_replicated(program.mesh, (params, batch_stats))
        ema = None
        if state.ema is not None:
            ema = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats})
        return state.replace(params=params, batch_stats=batch_stats, ema=ema)

    def _compute_features(self):
        """Puts the head's inputs in the place of the images, where nothing else changes."""
        program, variables = self.program, self.state.variables
        if program.feature_step is None:
            return
        trunk = {key: value for key, value in variables["params"].items() if key != "head"}
        key = int(checksum((trunk, variables["batch_stats"])))
        if key not in program.features:  # else another seed had the same trunk
            parts = {name: getattr(self.data, name) for name in ("train", "val", "test")}
            total = sum(map(len, parts.values()))
            progress = Progress(f"{self.title} features", 0, total, self.first_process, "image")
            cached, started = {}, time.monotonic()
            for name, part in parts.items():
                cached[name] = self._features_of(part, variables, progress)
            progress.close()
            self._print(f"features of {total:,} images: {time.monotonic() - started:.1f} s")
            program.features.clear()
            program.features[key] = dataclasses.replace(self.data, **cached)
        self.data = program.features[key]

    def _features_of(self, part, variables, progress):
        found = []
        # Of a size that the run cannot change, so that the features keep every bit.
        for batch in part.evaluate(self.program.config.train.batch_size):
            self._exit_if_stopped()
            features = sharding.settle(self.program.feature_step(variables, batch))
            mask, labels = sharding.to_host((batch["mask"], batch["label"]))
            found.append((np.asarray(features)[mask], labels[mask]))
            progress.advance(int(mask.sum()))
        features, labels = (np.concatenate(column) for column in zip(*found, strict=True))
        return ResidentBatches.of_features(features, labels, self.program.mesh)

    def _print(self, text):
        if self.first_process:
            say(f"{self.title}: {text}")

    def wall_seconds(self):
        return self.wall_before + time.monotonic() - self.began

    def loop(self):
        """Trains to the end; every checkpoint has the rows up to its step before it on disk."""
        self._compute_features()
        program, step_key = self.program, jax.random.fold_in(self.key, 1)
        if not self.evaluated:  # stopped within this evaluation
            self._evaluate_and_save()
            self._exit_if_stopped()
        batches = self.data.train.train(
            self.seed, self.step, program.total_steps, program.config.train.batch_size
        )
        clock, started = None, time.monotonic()
        self.progress.update(self.step, "compiling")
        for batch in batches:
            self.state = sharding.settle(program.train_step(self.state, step_key, batch))
            self.step += 1
            if clock is None:  # the first step compiles: keep it out of images/s
                jax.block_until_ready(self.state)
                clock, self.row_start = time.monotonic(), self.step
                self.progress.update(self.step, "compiled")
                self._print(f"first step, with compilation: {clock - started:.1f} s")
            evaluate_now = self.step % program.eval_every == 0 or self.step == program.total_steps
            if evaluate_now or self.step % program.log_every == 0:
                self._log_row(clock)
                if evaluate_now:
                    self._evaluate_and_save()
                clock, self.row_start = time.monotonic(), self.step
            self._exit_if_stopped()

    def _log_row(self, clock):
        state = self.state
        values = (state.sums, state.grad_norm, state.bad_step, state.plateau)
        sums, grad_norm, bad_step, plateau = jax.device_get(values)
        self._check_finite(int(bad_step))
        rate = float(self.program.schedule(self.step - 1)) * (plateau.scale if plateau else 1)
        seconds, count = time.monotonic() - clock, self.step - self.row_start
        row = {f"train/{k}": float(v) for k, v in sums.compute().items()}
        text = f"loss {row['train/loss']:.3f}, accuracy {row['train/accuracy']:.3f}"
        row |= {
            "train/grad_norm": float(grad_norm),
            "train/learning_rate": float(rate),
            "epoch": self.step / self.program.steps_per_epoch,
            "wall_seconds": self.wall_seconds(),
        }
        for block, strength in jax.device_get(models.differential_lambdas(state.params)).items():
            row[f"lambda/{block}"] = float(strength)
        if count:
            speed = count * self.program.config.train.batch_size / seconds
            row["train/images_per_second"] = speed
            text += f", {speed:,.0f} images/s"
        self.writer.write_scalars(self.step, row)
        self.progress.update(self.step, text)
        self.state = self.state.replace(
            sums=sharding.put_replicated(self.program.mesh, Sums.empty())
        )

    def _check_finite(self, bad_step):
        if bad_step >= 0:
            raise UserError(
                f"{self.title}: the loss or its gradient became non-finite at step {bad_step}; the "
                f"last good checkpoint is in {self.folder / 'checkpoints'}: try a lower "
                "optim.learning_rate, a longer warm-up or optim.grad_clip_norm"
            )

    def _evaluate_and_save(self):
        batch_size = self.program.config.train.eval_batch_size
        result = evaluate(
            self.program.eval_step,
            self.state.eval_variables,
            self.data.val.evaluate(batch_size),
            lambda: bool(self.stop.number),
        )
        if result is None:
            self._save(None, evaluated=False)
            return
        if not math.isfinite(result.loss):
            self._check_finite(self.step)
        row = {"val/loss": result.loss, "val/accuracy": result.accuracy}
        row |= {"epoch": self.step / self.program.steps_per_epoch}
        self.writer.write_scalars(self.step, row | {"wall_seconds": self.wall_seconds()})
        text = f"val loss {result.loss:.3f}, val accuracy {result.accuracy:.3f}"
        self.progress.update(self.step, text, line=True)
        self._update_plateau(result.loss)
        self._log_figures()
        self._save(result.accuracy)

    def _log_figures(self):
        """Logs what the model makes of the first validation images, now and then."""
        every, config = self.program.config.log.figures_every, self.program.config
        if not every or -(-self.step // max(1, self.program.eval_every)) % every:
            return
        batch = next(iter(self.val_images.evaluate(config.train.eval_batch_size)))
        images, labels, mask = sharding.to_host((batch["image"], batch["label"], batch["mask"]))
        images, labels = images[mask], labels[mask]  # without what fills up the batch
        if not self.first_process:
            return
        names = self.data.class_names
        if self.viewer is None:
            model = models.build(config.model, len(names), dtype_of(config.train.dtype))
            self.viewer = figures.Viewer(self.title, config, model, names)
        variables = jax.device_get(self.state.eval_variables)
        seen = self.viewer.see(variables, images[:6], [names[label] for label in labels[:6]])
        self.writer.write_images(self.step, figures.training_figures(seen))

    def _update_plateau(self, val_loss):
        plateau, mesh = self.program.plateau, self.program.mesh
        if plateau is None:
            return
        before = jax.device_get(self.state.plateau)
        after = jax.device_get(plateau.update(before, val_loss))
        if after.scale < before.scale:
            rate = float(after.scale) * self.program.config.optim.learning_rate
            self._print(f"validation loss on a plateau: learning rate lowered to {rate:.3g}")
        self.state = self.state.replace(plateau=sharding.put_replicated(mesh, after))

    def _save(self, val_accuracy, evaluated=True):
        self._check_finite(int(self.state.bad_step))
        self.writer.flush()
        notes = {"evaluated": evaluated, "wall_seconds": self.wall_seconds()}
        notes["variables_checksum"] = int(checksum(self.state.eval_variables))
        self.checkpoints.save(self.step, self.state, notes, val_accuracy)
        self.saved_step = self.step

    def _exit_if_stopped(self):
        if not self.stop.number:
            return
        if self.saved_step != self.step:
            self._save(None)
        self.checkpoints.wait()
        name = signal.Signals(self.stop.number).name
        self._print(
            f"stopped by {name} at step {self.step}, saved; the same command goes on from there"
        )
        raise SystemExit(128 + self.stop.number)

    def finish(self) -> dict:
        """Evaluates the selected checkpoint on all three parts, test for the only time."""
        config = self.program.config
        if config.train.select == "best":
            best = self.checkpoints.restore_best(self.abstract)
            state, step = best.state, best.step
        else:
            state, step = self.state, self.step
        self._print(f"evaluating the {config.train.select} checkpoint, of step {step}")
        results = {}
        for part in ("train", "val", "test"):
            batches = getattr(self.data, part).evaluate(config.train.eval_batch_size)
            results[part] = evaluate(
                self.program.eval_step,
                state.eval_variables,
                batches,
                lambda: bool(self.stop.number),
                keep=part == "test",
            )
            self._exit_if_stopped()
        summary = self._summary(results, step)
        if config.log.kernel_magnitudes:
            before = self._first_state().params
            summary["kernel_magnitudes"] = {
                "before": explain.kernel_magnitudes(before),
                "after": explain.kernel_magnitudes(state.eval_variables["params"]),
            }
        if self.first_process:
            report = make_report(
                results["test"].logits, results["test"].labels, self.data.class_names
            )
            for name in ("test_report.txt", "figures/explanation/scores.json"):
                (self.folder / name).unlink(missing_ok=True)  # of an earlier leg
            write_atomically(self.folder / "test_report.json", json.dumps(report) + "\n")
            write_atomically(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary

    def _summary(self, results, step):
        rows = read_jsonl(self.folder / "metrics.jsonl")
        speeds = [row[k] for row in rows if (k := "train/images_per_second") in row]
        num_params = sum(x.size for x in jax.tree.leaves(self.abstract.params))
        legs = (run_folder.read_config(self.folder) or {}).get("legs", [])
        return {
            "name": self.name,
            "seed": self.seed,
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
        """Ends the progress bar and the background writers."""
        self.progress.close()
        self.writer.close()
        self.checkpoints.close()
