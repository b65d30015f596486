"""SkyPilot's set-up on this machine: settings, credentials, controller, our wheel."""
