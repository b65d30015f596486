"""The parent of the ranks: it claims the run, watches, and decides what a failure means."""
