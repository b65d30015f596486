"""A consistent copy of training state in host memory."""
