"""Replay of the policy over recorded spot traces."""
