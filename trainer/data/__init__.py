"""From a data set to token ids."""
