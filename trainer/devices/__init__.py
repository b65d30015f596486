"""GPUs and CPUs: what a rank computes on, how bits stay the same, how ranks talk."""
