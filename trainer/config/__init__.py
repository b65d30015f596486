"""What determines what a run computes: recipe, GPU types, model shapes, memory, batch, and their fingerprint."""
