"""Many steps as one: shrink, soften, inherit, sweeps, comparisons, benchmarks, the demonstration.

Must not know the command line.
"""
