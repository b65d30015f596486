"""Spot markets: preemption rates, statistics of past runs, differences between zones."""
