"""Where to run next: a pure decision over what is known. The SkyPilot strategy acts on it, the referee replays it."""
