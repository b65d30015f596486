"""From a committed checkpoint back to tensors, files and models."""
