"""Prediction with trained or exported models: nnU-Net's own predictor around the runtime of choice.

Must not know how models were trained or exported, nor reference segmentations.
"""
