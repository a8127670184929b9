"""The embedded corpus: synthetic speech that is made on the spot, so that the whole line runs anywhere."""
