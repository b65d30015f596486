"""What a run did, worked out from the bucket alone."""
