"""Decides what to run where, and follows runs. Never imports torch; imports SkyPilot only inside `launcher.sky`."""
