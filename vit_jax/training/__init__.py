"""Sweeps, the training loop, its setup and its steps."""
