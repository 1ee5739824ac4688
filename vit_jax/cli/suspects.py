"""Find suspect labels with a finished run, for you to correct.

    vit-jax suspects runs/photos/base/seed_0
    vit-jax suspects runs/photos/base/seed_0 --cross-validate=5
    vit-jax train --config=configs/photos.py --config.data.relabel=corrected.csv --workdir=runs/new

Ranks images by how little a model that did not train on them agrees with their labels: the
validation and test images and, with --cross-validate=K, the training images, each predicted by one
of K models that train without it. Those trainings resume like any other. Writes suspects.html, a
gallery of the most suspect, and suspects.csv, by default to RUN/suspects. Copy suspects.csv,
correct its column `label` and give the copy to a training as data.relabel.
"""

import pathlib
from collections.abc import Sequence

from vit_jax.cli import command
from vit_jax.runtime.errors import UserError, single_line

SCORES = ("self_confidence", "margin")


@command.main
def main(argv: Sequence[str]) -> None:
    """Rank the labels of a run's dataset; raises UserError."""
    parser = command.Parser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path, help="run folder RUN/VARIANT/seed_0")
    parser.add_argument(
        "--cross-validate",
        type=int,
        default=0,
        metavar="K",
        help="train K models, each without a K-th of the training images, and rank those too",
    )
    parser.add_argument(
        "--rank-by",
        choices=SCORES,
        default=SCORES[0],
        help="score to sort by: the probability of the label, or that minus the largest of another "
        "class; default: self_confidence",
    )
    parser.add_argument("--out", type=pathlib.Path, help="output folder; default: RUN/suspects")
    args = parser.parse_args(argv)
    if args.cross_validate < 0 or args.cross_validate == 1:
        raise UserError(f"--cross-validate={args.cross_validate} must be at least 2")
    print(single_line(f"loading {args.run}"), flush=True)
    from vit_jax.evaluation import suspects
    from vit_jax.evaluation.classifier import Classifier
    from vit_jax.report.suspects import write_suspects
    from vit_jax.runtime.files import write_atomically

    run = Classifier(args.run)
    if not run.has_data:
        raise UserError(f"{args.run} records no dataset: give the folder of a run")
    if run.config.data.multi_label:
        raise UserError(f"{args.run} has several labels per image: suspects ranks one per image")
    out = args.out or args.run / "suspects"
    table = out / "suspects.csv"
    _check_edits(table, run.config)
    out.mkdir(parents=True, exist_ok=True)  # before hours of training
    folds = _cross_validate(args.run, run.config, args.cross_validate)
    predictions = suspects.predict_held_out(run, map(Classifier, folds))
    ranking = suspects.rank(predictions, args.rank_by)
    _check_edits(table, run.config)  # again, after those hours
    write_atomically(table, suspects.to_csv(ranking, run.config.data))
    write_suspects(out / "suspects.html", run, ranking, args.cross_validate, args.rank_by)
    for one in ranking[:10]:
        classes = f"{run.class_names[one.label]} -> {run.class_names[one.predicted]}"
        score = f"{one.self_confidence:7.4f} {one.margin:7.4f}"
        print(single_line(f"{score}  {classes}  {one.name}"))
    count = sum(one.is_suspect for one in ranking)
    print(
        f"{count} of {len(ranking)} labels are suspect; wrote {out}: copy suspects.csv, correct "
        "its column label and train with data.relabel=COPY"
    )


def _check_edits(table, config):
    """Raise UserError if a table that would be overwritten has edited labels."""
    from vit_jax.evaluation.suspects import count_edits

    if edits := count_edits(table, config.data):
        raise UserError(
            f"{table} contains labels that you edited ({edits}): rename it, or give another --out"
        )


def _cross_validate(run, config, num_folds):
    """Train a model per fold with the settings of a run; return the folders of these runs."""
    if not num_folds:
        return []
    from vit_jax import config as settings
    from vit_jax.config.loading import Experiment
    from vit_jax.config.rules import validate
    from vit_jax.runtime.signals import StopSignal
    from vit_jax.storage.run_folder import run_path
    from vit_jax.training.sweep import run_sweep

    if config.data.num_folds:
        raise UserError(f"{run} is itself trained on folds: give a run without data.num_folds")
    if config.train.teacher:
        raise UserError(
            f"{run} has learned from a teacher, which may have seen the labels of every fold: give "
            "a run without train.teacher"
        )
    if config.init_from:
        print("note: init_from must not have been trained on this dataset", flush=True)
    shared = {"train.num_seeds": 1, "train.vmap_seeds": "auto", "data.num_folds": num_folds}
    shared |= {"data.test_examples": 0, "sharding.distributed": False, "log.wandb": False}
    shared["log.figures_every"] = 0  # has no effect without a log
    sweep = {f"fold_{k}": shared | {"data.fold": k} for k in range(num_folds)}
    configs = {name: settings.with_overrides(config, one, name) for name, one in sweep.items()}
    for one in configs.values():
        validate(one)
    workdir = run / "suspects" / f"{num_folds}_folds"
    with StopSignal() as stop:
        experiment = Experiment("cross_validation", config, sweep)
        run_sweep(experiment, configs, workdir, stop, reuse=False)
    return [run_path(workdir, name, config.seed) for name in configs]
