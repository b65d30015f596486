"""What several tests need: fakes, servers, worlds."""
