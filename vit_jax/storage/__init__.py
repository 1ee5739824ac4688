"""Checkpoints, the run directory and metric writers."""
