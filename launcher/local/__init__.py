"""The backend that runs attempts on this machine."""
