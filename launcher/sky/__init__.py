"""Everything that knows SkyPilot."""
