"""The trainer: resuming, weight average, start, soft labels, smaller network, distillation; history and skipped steps.

Must not know inference, evaluation and workflows.
"""
