"""The part of the NOTUS recovery strategy that doesn't import SkyPilot; `launcher.sky.plugin` is the thin adapter."""
