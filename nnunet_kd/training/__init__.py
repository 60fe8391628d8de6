"""The trainer: weight average, resuming, skipped steps, history, gradient shares.

Must not know inference, evaluation and workflows.
"""
