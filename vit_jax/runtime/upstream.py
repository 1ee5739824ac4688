"""Uses of private interfaces of other packages, each with its reason."""

import functools
from typing import Any

# JAX has no public name for the coordination client, nor for the number of processes before the
# devices are started (orbax imports the same module), nor for whether they are.
from jax._src import distributed, xla_bridge


def distributed_state() -> Any:
    """Get JAX's `process_id`, `num_processes` and coordination `client`."""
    return distributed.global_state


def has_started() -> bool:
    """Whether JAX has started the devices."""
    return xla_bridge.backends_are_initialized()


@functools.cache
def stop_tensorstore_leaks() -> None:
    """Keep tensorstore from leaking memory with every checkpoint; call it before the first one.

    tensorstore, up to 0.1.86 at least, never frees the lists and strings that it makes of JSON.
    With every save, orbax asks for the location of each array, and for all counters to log them:
    150 KiB for 300 arrays. So a location is converted once, and counters are not collected.
    """
    import tensorstore

    spec = tensorstore.KvStore.Spec
    to_json = spec.to_json
    json_of = functools.lru_cache(4)(lambda url: to_json(spec(url)))
    spec.to_json = lambda self, include_defaults=False: dict(json_of(self.url))
    tensorstore.experimental_collect_matching_metrics = lambda *args, **options: []
