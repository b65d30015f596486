"""One module per command of `notus-launch`."""
