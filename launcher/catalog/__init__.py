"""Offers of GPU nodes: where, at what price, and whether to trust that price."""
