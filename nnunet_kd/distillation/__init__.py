"""Settings, frozen teachers, features and targets, and the objectives with their weights.

Must not know the trainer, data on disk and the command line.
"""
