"""One file a number of a whole set, or of several sets together."""
