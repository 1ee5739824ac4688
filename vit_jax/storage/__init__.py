"""Checkpoints, run folders and metric writers."""
