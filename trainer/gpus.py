"""The kinds of GPU that we know."""

GPU_MEMORY_GIB = {"A100": 40, "A100-80GB": 80, "H100": 80}
"""By SkyPilot's names."""
VISIBLE = 0.985
"""Of that memory the driver shows so much: 39.4 GiB of an A100 with 40."""
