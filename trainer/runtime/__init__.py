"""One attempt's processes and folder on its machine."""
