"""What is known about a run in its bucket: its record, its events, its log, its metrics, and requests to it."""
