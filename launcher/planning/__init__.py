"""Turn a request and offers into plans with a cost and a finishing time. Pure."""
