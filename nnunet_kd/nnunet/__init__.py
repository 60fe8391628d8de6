"""nnU-Net as this package needs it; whatever of it is private or likely to change is touched here alone.

Must not know this package's models, losses and settings.
"""
