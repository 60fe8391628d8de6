"""Wavelets and losses: tensors in, tensors out.

Must know neither nnU-Net nor settings.
"""
