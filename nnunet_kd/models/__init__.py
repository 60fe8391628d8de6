"""Trained networks as they lie on disk: plans, checkpoints, archives, model folders.

Must not know losses, teachers and training.
"""
