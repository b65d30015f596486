"""An attempt's processes and folder on its machine."""
