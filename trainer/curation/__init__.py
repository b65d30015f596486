"""Turns raw ratings into preference pairs: `notus-data curate`."""
