"""Outputs of one run, which is one seed of a variant: checkpoints, metrics and results."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vit_jax.config import Config
from vit_jax.evaluation.evaluate import make_report
from vit_jax.evaluation.labels import choose_thresholds, make_label_report, sigmoid
from vit_jax.runtime import memory, processes, sharding
from vit_jax.runtime.errors import Diverged, UserError
from vit_jax.runtime.signals import StopSignal
from vit_jax.storage import run_folder
from vit_jax.storage.checkpoint import Checkpoints
from vit_jax.storage.writers import make_writer
from vit_jax.training.setup import Setup, num_params, num_trained


class RunOutputs:
    """Outputs of one run.

    Attributes:
      index: of the seed among vectorised ones.
      seed: of initialisation, order, augmentation and dropout.
      title: of the run, for messages.
      folder: of the run.
      checkpoints: in that folder.
      evaluated_step: the latest step that was evaluated, -1 for none.
      lines: of metrics.jsonl when the run was restored.
      writer: of metrics, once it is opened.
    """

    writer: Any = None

    def __init__(self, index: int, seed: int, name: str, folder: pathlib.Path, needs_best: bool):
        """Open the checkpoints; with `needs_best`, the best one must be intact."""
        self.index, self.seed, self.folder = index, seed, folder
        self.title, self.key = f"{name} seed {seed}", jax.random.key(seed)
        self.checkpoints = Checkpoints(folder / "checkpoints", needs_best)
        self.evaluated_step, self.lines = -1, []

    def open_writer(self, config: Config, step: int) -> None:
        """Open the metric writers after `step`; a new run writes its hyperparameters."""
        log, first = config.log, processes.is_first()
        self.writer = make_writer(self.folder, step, log.tensorboard, log.wandb, first, self.lines)
        if step == 0:
            self.writer.write_hparams(run_folder.plain_settings(config, self.seed))

    def check_finite(self, bad_step: int) -> None:
        """Raise Diverged if an update was non-finite; -1: none was."""
        if bad_step >= 0:
            raise Diverged(
                f"{self.title}: the loss or its gradient became non-finite at step {bad_step}; the "
                f"last good checkpoint is in {self.folder / 'checkpoints'}: try a lower "
                "optim.learning_rate, a longer warm-up or optim.grad_clip_norm"
            )

    def evaluations_without_improvement(self) -> tuple[int, str]:
        """Count the evaluations since the best on validation; describe that in a phrase.

        The log decides, which every checkpoint contains: a resumed run counts the same.
        """
        entries = [json.loads(line) for line in self.writer.lines]
        key = "val/map" if any("val/map" in entry for entry in entries) else "val/accuracy"
        found = [(entry[key], entry["step"]) for entry in entries if key in entry]
        scores = [score for score, _ in found]
        count = len(found) - 1 - scores.index(max(scores)) if found else 0
        if not count:
            return 0, ""
        score, step = found[-1 - count]
        what = f"{key.replace('/', ' ')} above {score:.4f}"
        return count, f"no {what}, that of step {step}, in {count} evaluations"

    def write_results(self, summary: dict, results: dict, class_names: list[str]) -> None:
        """Write summary.json and the test report of a finished run.

        For several labels per image, the summary gets "thresholds", chosen on the validation split.
        """
        if processes.is_first():
            test, val = results["test"], results["val"]
            if test.labels.ndim == 2:
                chosen = choose_thresholds(sigmoid(val.logits), val.labels)
                summary["thresholds"] = chosen
                report = make_label_report(test.logits, test.labels, class_names, chosen)
            else:
                report = make_report(test.logits, test.labels, class_names)
            run_folder.write_results(self.folder, report, summary)

    def close(self) -> None:
        """Close the writers, even if one fails."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.checkpoints.close)
            if self.writer is not None:
                stack.callback(self.writer.close)


@contextlib.contextmanager
def open_runs(
    setup: Setup,
    folders: Mapping[int, pathlib.Path],
    name: str,
    stop: StopSignal,
    notes: Sequence[str],
) -> Iterator[list[RunOutputs]]:
    """Lock the run folders, record what is trained there, and open their checkpoints.

    Args:
      setup: of the variant.
      folders: {seed: folder of its run, made if missing}.
      name: of the variant.
      stop: signals are deferred while the folders are open.
      notes: on defects of the data, the initial weights and the teacher.

    Raises UserError if a folder is in use, or the devices' memory does not hold several seeds.
    """
    runs = []
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(stop.deferred())
            for seed, folder in folders.items():
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_folder.lock(folder))
                run_folder.write_config(
                    folder, setup.config, setup.fingerprint, setup.lengths.total, name, seed, notes
                )
                needs_best = setup.config.train.select == "best"
                runs.append(RunOutputs(len(runs), seed, name, folder, needs_best))
                stack.callback(runs[-1].close)
            yield runs
    except Exception as error:
        if len(folders) == 1 or not memory.ran_out(error):
            raise
        raise UserError(
            f"{name}: the memory is too small for {len(folders)} vectorised seeds: set "
            "train.vmap_seeds=never"
        ) from None


def compute(setup: Setup, steps: int) -> dict[str, float]:
    """Compute the GFLOP of training per image, and the PFLOP of a run of so many steps."""
    flops, patch_drop = setup.flops, min(steps, setup.lengths.patch_drop)
    in_steps = patch_drop * flops.step + (steps - patch_drop) * flops.whole_step
    images = max(1, steps) * setup.config.train.batch_size
    total = in_steps + flops.features if steps else 0
    per_image = (in_steps or flops.step) / images
    return {"gflop_per_image": per_image / 1e9, "pflop": total / 1e15}


def summarize(
    run: RunOutputs,
    setup: Setup,
    name: str,
    results: dict,
    steps: int,
    best_step: int,
    wall_seconds: float,
) -> dict:
    """Make the summary.json of a finished run of variant `name`, of so many steps.

    `results` are {"train", "val", "test": Result} of the checkpoint of `best_step`.
    """
    rows = [json.loads(line) for line in run.writer.lines]
    metric = "map" if setup.config.data.multi_label else "accuracy"
    speeds = [row[k] for row in rows if (k := "train/images_per_second") in row]
    stages = (run_folder.read_config(run.folder) or {}).get("stages", [])
    return {
        "name": name,
        "seed": run.seed,
        "num_params": num_params(setup),
        "num_trainable_params": num_trained(setup),
        "epochs": steps / setup.lengths.epoch,
        "steps": steps,
        **compute(setup, steps),
        **{f"{split}_{metric}": result.score for split, result in results.items()},
        "test_loss": results["test"].loss,
        "best_step": best_step,
        "wall_seconds": wall_seconds,
        "images_per_second": float(np.median(speeds)) if speeds else None,
        "device": sharding.describe_devices(setup.mesh),
        **({"stages": stages} if stages else {}),
    }
