"""Figures and reports during and after training, as callbacks of the training loop."""

from vit_jax import models
from vit_jax.data.examples import describe_label
from vit_jax.runtime import processes, sharding
from vit_jax.runtime.errors import UserError
from vit_jax.runtime.files import empty_folder
from vit_jax.runtime.progress import print_line
from vit_jax.storage.run_folder import run_name
from vit_jax.training.hooks import Hooks

_EXPLORED = 6  # test images in explorer.html


class ReportHooks(Hooks):
    """Figures to TensorBoard, the figures of each run, and the report of the sweep.

    matplotlib takes half a second to import, so it is imported where figures are drawn.
    """

    def __init__(self):
        self._viewers = {}

    def on_evaluation(self, run, trainer, variables, count):
        """Log figures of the first validation images every `log.figures_every` evaluations."""
        config = trainer.setup.config
        if not config.log.figures_every or count % config.log.figures_every:
            return
        batch = next(iter(trainer.images.evaluate(config.train.eval_batch_size)))
        images, labels, mask = sharding.to_host((batch["image"], batch["label"], batch["mask"]))
        images, labels = images[mask][:6], labels[mask][:6]
        names, host_variables = trainer.data.class_names, variables()
        if processes.is_first():
            from vit_jax.explanation import figures

            if run.folder not in self._viewers:
                dtype = sharding.dtype_of(config.train.dtype, trainer.setup.mesh)
                model = models.build(config.model, len(names), dtype)
                self._viewers[run.folder] = figures.Viewer(run.title, config, model, names)
            viewer = self._viewers[run.folder]
            seen = viewer.see(
                host_variables, images, [describe_label(label, names) for label in labels]
            )
            run.writer.write_images(trainer.step, figures.training_figures(seen))
        processes.wait()

    def on_run_end(self, folder):
        """Draw curves and confusion matrix, and write test_report.txt."""
        from vit_jax.report import write_figures

        self._viewers.pop(folder, None)
        print_line(f"{run_name(folder)}: drawing figures")
        for name in ("explanation", "mistakes"):  # of an earlier stage of the run
            empty_folder(folder / "figures" / name)
        write_figures(folder)

    def on_sweep_end(self, workdir, results, summaries, published, configs, arguments):
        """Write table, charts and report.html; explain the best runs; print the table."""
        from vit_jax.report import Sweep, write_report
        from vit_jax.report.table import cross_validations

        print_line("writing the report")
        selects = {config.train.select for config in configs.values()}
        select = selects.pop() if len(selects) == 1 else "variant"
        sweep = Sweep(workdir, results, summaries, published, select, arguments)
        table = write_report(sweep)
        try:
            explained = _explain(sweep, configs)
            drawn = [_draw_mistakes(sweep, configs), explained, _explore(sweep, configs, explained)]
        except UserError as error:  # such as data that are no longer there
            print_line(f"no figures of test images: {error}")
        else:
            if any(drawn):
                write_report(sweep)
        lines = [table, *cross_validations(results), f"report: {workdir / 'report.html'}"]
        print_line("\n" + "\n\n".join(lines))


def _draw_mistakes(sweep, configs):
    """Draw the gallery of mistakes of the best run; return whether it is new."""
    from vit_jax.explanation import figures

    return figures.save_mistakes(sweep.best_folder, configs[sweep.chosen].data)


def _explain(sweep, configs):
    """Draw and score explanations, if their number of images changed; return whether it did."""
    config, count = configs[sweep.explained], configs[sweep.explained].log.explain_images
    before = sweep.scores().get("asked", 0)
    if config.model.name != "vit" or count == before or sweep.num_patches[sweep.explained] < 2:
        return False
    from vit_jax.explanation import figures

    if "attention_rollout" not in figures.kinds_of(config):
        return False
    if count:
        run = run_name(sweep.explained_folder)
        print_line(f"{run}: computing faithfulness scores on up to {count} test images")
    figures.explain_run(sweep.explained_folder, config.data, count, sweep.explanation)
    return True


def _explore(sweep, configs, explained):
    """Write explorer.html if the run was just `explained` or is another; return whether it did."""
    from vit_jax.explanation import explorer, figures
    from vit_jax.explanation.model import Model
    from vit_jax.report.explorer import read_title, write_explorer

    config, page = configs[sweep.explained], sweep.workdir / "explorer.html"
    experiment, before = sweep.results["experiment"], read_title(page)
    if not config.log.explain_images or "attention_rollout" not in figures.kinds_of(config):
        if before.startswith(f"{experiment}: "):
            page.unlink()
        return False
    title = f"{experiment}: {run_name(sweep.explained_folder)}"
    if not explained and before == title:
        return False
    if before and not before.startswith(f"{experiment}: "):
        print_line(f"{page} shows {before}: it is kept")
        return False
    model = Model(sweep.explained_folder)
    images, names = model.random_images(_EXPLORED, config.data)
    try:
        write_explorer(page, title, explorer.collect([model], [list(images)], names))
    except UserError as error:  # too many tokens for a page
        print_line(f"no explorer.html: {error}")
        if stale := before.startswith(f"{experiment}: "):
            page.unlink()
        return stale
    return True
