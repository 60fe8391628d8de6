"""Prediction with trained or exported models: nnU-Net's own predictor around the runtime of choice."""
