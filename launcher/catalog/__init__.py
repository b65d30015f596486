"""What is sold where, at what price, and whether to trust that price."""
