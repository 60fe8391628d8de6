"""What strings many steps together: sweeps, benchmarks, the demo. Knows nothing of the command line."""
