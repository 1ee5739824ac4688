"""Short runs on the digits in this process, for tests."""

import jax
from jax.sharding import AxisType
from tiny_configs import make_config
from tiny_stop import Stop

from vit_jax.cli.hooks import ReportHooks
from vit_jax.config.loading import Experiment
from vit_jax.storage import checkpoint
from vit_jax.training.sweep import run_sweep
from vit_jax.training.variants import make_variants

MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
SHORT = dict(
    augment__kind="none",
    train__epochs=2.0,
    train__batch_size=256,
    train__eval_batch_size=512,
    log__tensorboard=False,
    log__explain_images=0,
    log__every_steps=1,
    optim__learning_rate=1e-2,
)


def run(workdir, sweep=None, report=False, **overrides):
    """Train in this process; return the first run's folder.

    With `report`, draw figures and write the report, as the main command does; that takes seconds.
    """
    config, sweep = make_config(**SHORT | overrides), sweep or {}
    if overrides.get("init_from"):  # which defines what make_config sets
        for key in ("patch_size", "hidden_size", "depth", "num_heads", "mlp_dim"):
            config.model[key] = 0
        config.data.image_size = overrides.get("data__image_size", 0)
    variants = make_variants(config, sweep, set())
    run_configs(variants, workdir, sweep=sweep, hooks=ReportHooks() if report else None)
    return workdir / next(iter(variants)) / "seed_0"


def run_configs(configs, workdir, stop=None, sweep=None, name="demo", **options):
    """Train {variant: config} in this process, with `options` of `run_sweep`."""
    experiment = Experiment(name, next(iter(configs.values())), sweep or {})
    run_sweep(experiment, configs, workdir, stop or Stop(), **options)


def last_state(folder):
    """Read the last state of a run."""
    paths = (folder / "checkpoints").glob("[0-9]*")
    return checkpoint.load_arrays(max(paths, key=lambda path: int(path.name)) / "state")
