"""Where to run next: a pure decision over an observation. The SkyPilot strategy executes it, the referee replays it."""
