"""The Hugging Face Hub: pushing to it, and classifying its errors."""
