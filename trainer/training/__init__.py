"""The training itself, on every rank. DPO."""
