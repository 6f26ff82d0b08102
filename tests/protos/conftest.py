"""Hypothesis' time limit per example measures the machine, not the code."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("protos", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("protos")
