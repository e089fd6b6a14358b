"""The same engine, images and helpers as the end-to-end tests have."""

from tests.e2e.conftest import autoheal, engine, label, patient, private_engine, start

__all__ = ["autoheal", "engine", "label", "patient", "private_engine", "start"]
