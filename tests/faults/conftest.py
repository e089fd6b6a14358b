"""The same engine, images and helpers as the end-to-end tests have."""

from tests.e2e.conftest import *  # noqa: F403
