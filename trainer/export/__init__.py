"""Exports the finished model as a Hugging Face folder with a model card, optionally merged and pushed."""
