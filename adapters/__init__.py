"""The adapters, and what they share. A worker imports this package by path: no install may provide its name."""
