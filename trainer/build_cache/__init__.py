"""Code that is compiled once for a run: DeepSpeed operators and the flash-attn wheel, kept in its bucket."""
