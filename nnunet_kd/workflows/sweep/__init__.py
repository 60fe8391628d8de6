"""Sweeps: methods times folds times seeds, trained one after another or as a SLURM array, and read by ``compare``."""
