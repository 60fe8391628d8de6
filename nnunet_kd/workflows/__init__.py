"""Many steps as one: sweeps, benchmarks, the demonstration.

Must not know the command line.
"""
