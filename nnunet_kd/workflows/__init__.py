"""Many steps as one: sweeps, comparisons, benchmarks, the demonstration.

Must not know the command line.
"""
