"""Trained models in forms that run without this package: nnU-Net model folders and archives, ONNX.

Must not know evaluation and workflows.
"""
