"""The base model: its identity, whether it is complete, and what is added to it."""
