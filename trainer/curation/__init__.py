"""From raw ratings to preference pairs: `notus-data curate`."""
