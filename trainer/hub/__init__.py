"""The Hugging Face Hub: pushing to it, and whose fault an error is."""
