"""A student's weights computed from its teacher's, layer by layer, before training.

Knows networks, tensors and patches; knows neither settings nor trainers, except for ``patches`` and ``start``, which join the
two.
"""
