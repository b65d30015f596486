"""An attempt of a run: resume or start, train, save, finish. Never imports SkyPilot."""
