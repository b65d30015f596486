"""Turns a data set into token ids."""
