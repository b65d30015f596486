"""The metrics of each step, and the trackers that show them."""
