"""Everything that depends on SkyPilot."""
