"""The commands: a module for each group of them, loaded by tunelab.cli when one of it is asked for."""
