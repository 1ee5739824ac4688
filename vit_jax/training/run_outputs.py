"""Outputs of one run, which is one seed of a variant: checkpoints, metrics and results."""

import contextlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from vit_jax.config import Config
from vit_jax.evaluation.evaluate import make_report
from vit_jax.evaluation.labels import choose_thresholds, make_label_report, sigmoid
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.errors import UserError
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
        """Raise UserError if an update was non-finite; -1: none was."""
        if bad_step >= 0:
            raise UserError(
                f"{self.title}: the loss or its gradient became non-finite at step {bad_step}; the "
                f"last good checkpoint is in {self.folder / 'checkpoints'}: try a lower "
                "optim.learning_rate, a longer warm-up or optim.grad_clip_norm"
            )

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


def compute(setup: Setup) -> dict[str, float]:
    """Compute the GFLOP of training per image, and the PFLOP of the whole run."""
    flops, lengths = setup.flops, setup.lengths
    whole_steps = lengths.total - lengths.patch_drop
    in_steps = lengths.patch_drop * flops.step + whole_steps * flops.whole_step
    images = max(1, lengths.total) * setup.config.train.batch_size
    total = in_steps + flops.features if lengths.total else 0
    per_image = (in_steps or flops.step) / images
    return {"gflop_per_image": per_image / 1e9, "pflop": total / 1e15}


def summarize(
    run: RunOutputs, setup: Setup, name: str, results: dict, step: int, wall_seconds: float
) -> dict:
    """Make the summary.json of a finished run of variant `name`.

    `results` are {"train", "val", "test": Result} of the checkpoint of `step`.
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
        "epochs": setup.lengths.total / setup.lengths.epoch,
        "steps": setup.lengths.total,
        **compute(setup),
        **{f"{split}_{metric}": result.score for split, result in results.items()},
        "test_loss": results["test"].loss,
        "best_step": step,
        "wall_seconds": wall_seconds,
        "images_per_second": float(np.median(speeds)) if speeds else None,
        "device": sharding.describe_devices(),
        **({"stages": stages} if stages else {}),
    }
