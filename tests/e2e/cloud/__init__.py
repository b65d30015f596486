"""Lambda and GCP on loopback: enough of their APIs for an unmodified SkyPilot, and machines that are Linux namespaces."""
