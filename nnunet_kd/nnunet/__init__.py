"""nnU-Net as this package needs it: its variables, folders and trainers.

Knows nothing of models on disk, losses and distillation.
"""
