"""Uploads and commits a snapshot in memory, in another process."""
