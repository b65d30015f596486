"""The NOTUS recovery strategy, as far as it doesn't import SkyPilot: `launcher.sky.plugin` is its thin edge."""
