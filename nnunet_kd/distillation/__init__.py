"""Settings, frozen teachers, objectives with their weights, stored soft labels, and a student's first weights.

Must not know the trainer and the command line.
"""
