"""Code that is compiled once per run and kept in its bucket: DeepSpeed operators and the flash-attn wheel."""
