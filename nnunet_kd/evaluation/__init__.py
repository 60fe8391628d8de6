"""Segmentations and saved runs measured and compared: numbers, tests of significance, pictures, and costs.

Must not know the trainer: it reads saved artefacts only (segmentations, plans, checkpoints, resolved settings), so that anything
nnU-Net or this package left on disk can be evaluated later, elsewhere, and without a GPU.
"""
