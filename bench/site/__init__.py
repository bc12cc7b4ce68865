"""A static site of many runs: the latest run of each recipe, and how results changed."""
