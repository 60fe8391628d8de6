"""nnU-Net as this package needs it: its variables, folders and trainers.

Must not know this package's models, losses and settings.
"""
