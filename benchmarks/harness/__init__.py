"""What the benchmarks share: contests between processes, records of them, the networks, and how each peer is called."""
