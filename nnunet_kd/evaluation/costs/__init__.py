"""What a network costs: parameters, time, memory. Knows nothing of references and metrics."""
