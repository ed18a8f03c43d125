"""Object stores through fsspec: a study is mirrored to one, read from one, and goes on from one. No Ray, no torch."""
