"""A small student of any trained nnU-Net, from images alone: one step each, everything under ``OUT/work``."""
