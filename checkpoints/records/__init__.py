"""JSON records and plain files in the store: written once, and read until their hashes agree."""
