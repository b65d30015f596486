"""DPO training, on every rank."""
