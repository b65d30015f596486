"""Durable, verified, fenced training state in object storage.

Importing this package, listing, verifying and reading checkpoints need no torch: tensors are bytes with a dtype name
until `checkpoints.tree` meets a process that has torch loaded.
"""
