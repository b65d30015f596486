"""A run's own records in its bucket: its description, events, log and metrics, and requests to it."""
