"""When a training is saved, what is saved of it, and how ranks agree on it."""
