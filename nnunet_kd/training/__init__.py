"""The trainer: weight average, resuming, skipped steps, history, gradient shares.

Knows nothing of datasets before preprocessing, of inference, and of workflows.
"""
