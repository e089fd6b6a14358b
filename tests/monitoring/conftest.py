"""The same engine, images and helpers as the end-to-end tests have."""

from tests.e2e.conftest import (
    autoheal,
    engine,
    label,
    models,
    nvml,
    ollama,
    patient,
    pytest_sessionfinish,
    start,
)

__all__ = [
    "autoheal",
    "engine",
    "label",
    "models",
    "nvml",
    "ollama",
    "patient",
    "pytest_sessionfinish",
    "start",
]
