"""Evaluate and compare segmentations: numbers, tests of significance, pictures.

Reads saved artefacts only (segmentations, plans, checkpoints, resolved settings), so that anything nnU-Net or this
package left on disk can be evaluated later, elsewhere, and without a GPU.
"""
