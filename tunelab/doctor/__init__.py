"""Is this machine fit for a search? Checks that measure one thing each and say how it is mended.

`tunelab.doctor.examine.examine` runs them, each in a process that can be given up; nothing here prints.
"""
