"""The adapter of Ultralytics for detection-bench; `bench` finds the folder by the entry point `bench.adapters`."""
