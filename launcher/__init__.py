"""What to run where, and watching it. Never imports torch; imports SkyPilot inside `launcher.sky` only."""
