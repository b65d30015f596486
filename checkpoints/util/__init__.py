"""Helpers that know nothing about checkpoints."""
