"""One attempt of one run: resume or start, train, save, finish. Never imports SkyPilot."""
