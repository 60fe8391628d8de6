"""Trained networks as they lie on disk: plans, checkpoints, archives, folders.

Knows nothing of losses, distillation and training.
"""
