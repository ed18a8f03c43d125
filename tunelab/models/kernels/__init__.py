"""Loops over the values of maps, compiled for this processor by numba, which keeps them: a machine compiles once."""
