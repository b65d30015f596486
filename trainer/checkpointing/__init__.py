"""When to save, what to save, and how ranks agree on it."""
