"""Hypothesis profiles: `quick` by default, `thorough` with ``--hypothesis-profile=thorough``."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "quick", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=5000)
settings.load_profile("quick")
