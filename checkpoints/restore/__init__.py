"""Turns a committed checkpoint back into tensors, files and models."""
