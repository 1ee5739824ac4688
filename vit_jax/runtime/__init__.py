"""Devices, processes, signals, memory, files, progress and errors."""
