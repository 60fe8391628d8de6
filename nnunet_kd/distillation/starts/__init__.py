"""A student's first weights: computed from its teacher's, layer by layer, or another student's.

Knows networks, tensors and patches. Must not know the trainer.
"""
