"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# Nothing is timed in tests: a busy machine is no failure
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
