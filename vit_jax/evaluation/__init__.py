"""Evaluation, metrics, and finished models ready for use."""
