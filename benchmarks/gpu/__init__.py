"""What to measure on a machine with one GPU and little time: `python -m benchmarks.gpu --minutes 8`."""
