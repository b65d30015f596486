"""Reports on what a run did, from the bucket alone."""
