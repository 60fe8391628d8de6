"""What a network costs: parameters, time, memory.

Must not know reference segmentations and metrics.
"""
