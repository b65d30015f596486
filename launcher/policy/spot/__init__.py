"""Spot markets: rates of preemption, what runs have met, how zones differ."""
