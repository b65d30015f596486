"""The policy, played over recorded spot traces."""
