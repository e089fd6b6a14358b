"""Packs the probe, with a Python of its own, for an image that has none; see docs/bundle.md."""
