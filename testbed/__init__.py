"""Starts the real things that tests, benchmarks, screenshots and the demo run against."""
