"""Training states without compiled initialisation, for tests."""

import jax
import jax.numpy as jnp
import numpy as np


def made_up(shapes, plateau):
    """Make a state of these shapes: compiling the initialisation would take as long as the step."""
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params = jax.tree.map(
        lambda x: 0.05 * rng.standard_normal(x.shape).astype(x.dtype), shapes.params
    )
    return state.replace(
        params=params, bad_step=jnp.int32(-1), plateau=plateau.init() if plateau else None
    )
