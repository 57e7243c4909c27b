"""What is promised of speed and memory, measured beside the peers in one run."""
