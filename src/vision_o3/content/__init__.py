"""Bytes in, names out: pure, for Python 3.8, standard library only."""
