"""Benchmark object-detection codebases against each other. See docs/architecture.md for the way data flows."""

__version__ = "0.1.0"
