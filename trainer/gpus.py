"""The kinds of GPU that we know."""

GPU_MEMORY_GIB = {"A100": 40, "A100-80GB": 80, "H100": 80}
"""By SkyPilot's names."""
