"""Train, fine-tune and explain Vision Transformers in JAX/Flax."""

__version__ = "0.1.0"

import time

STARTED = time.monotonic()  # to tell how long a start takes, imports included
