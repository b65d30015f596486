"""The parent of the ranks: claims the run, monitors it, and classifies failures."""
