"""JSON records and plain files in the store: written once, re-read until their hashes match."""
