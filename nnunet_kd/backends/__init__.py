"""Runtimes behind one small interface: a patch's voxels in, its logits out.

Must not know PyTorch, nnU-Net, or anything else of this package, errors included.
"""
