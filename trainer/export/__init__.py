"""The finished model: as a Hugging Face folder, with a model card, merged and pushed on request."""
