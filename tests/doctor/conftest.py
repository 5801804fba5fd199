"""Fixtures of the engine's tests."""

from __future__ import annotations

from tests.engine.conftest import runtime_directory, start  # noqa: F401  # fixtures
