"""The base model: which one it is, whether it is whole, and what is added to it."""
