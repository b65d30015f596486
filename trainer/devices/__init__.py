"""GPUs and CPUs: what a rank computes on, reproducible bits, communication between ranks."""
