"""Train, fine-tune and explain Vision Transformers in JAX/Flax."""

__version__ = "0.1.0"
