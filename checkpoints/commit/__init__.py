"""Committing checkpoints: HEAD, who may move it, what it keeps, and what is deleted."""
