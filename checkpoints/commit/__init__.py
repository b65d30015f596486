"""What makes a checkpoint one: HEAD, who may move it, what it keeps alive, and what is deleted."""
