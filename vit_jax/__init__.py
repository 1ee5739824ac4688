"""Train, fine-tune and explain Vision Transformers in JAX/Flax: the Python API (docs/api.md).

Names are imported lazily: `import vit_jax` is instant and does not initialise JAX.
"""

import importlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_jax.cli.train import Results, train
    from vit_jax.config.loading import Experiment, load_config, sweep_learning_rate
    from vit_jax.config.settings import get_config
    from vit_jax.explanation.model import Model, evaluate, explain, load_model, predict
    from vit_jax.runtime.errors import UserError

__version__ = "0.1.0"

STARTED = time.monotonic()  # start-up times are measured from here, imports included

_MODULES = {
    "Experiment": "vit_jax.config.loading",
    "Model": "vit_jax.explanation.model",
    "Results": "vit_jax.cli.train",
    "UserError": "vit_jax.runtime.errors",
    "evaluate": "vit_jax.explanation.model",
    "explain": "vit_jax.explanation.model",
    "get_config": "vit_jax.config.settings",
    "load_config": "vit_jax.config.loading",
    "load_model": "vit_jax.explanation.model",
    "predict": "vit_jax.explanation.model",
    "sweep_learning_rate": "vit_jax.config.loading",
    "train": "vit_jax.cli.train",
}
__all__ = [
    "Experiment",
    "Model",
    "Results",
    "UserError",
    "evaluate",
    "explain",
    "get_config",
    "load_config",
    "load_model",
    "predict",
    "sweep_learning_rate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = attribute = getattr(importlib.import_module(_MODULES[name]), name)
    return attribute


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
