"""From a request and offers to plans with a cost and a finishing time. Pure."""
