"""Evaluation, metrics and inference with trained models."""
