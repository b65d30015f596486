"""Helpers that don't depend on checkpoints."""
