"""Wavelets and losses: tensors in, tensors out. Knows neither nnU-Net nor settings."""
