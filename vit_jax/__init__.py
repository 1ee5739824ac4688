"""Train, fine-tune and explain Vision Transformers in JAX/Flax."""

import time

__version__ = "0.1.0"

STARTED = time.monotonic()  # to tell how long a start takes, imports included
