"""Benchmarks of fnabench itself: each ratio is measured side by side in one process."""
