"""How hypothesis tries: the same few examples on every machine, however slow it is."""

from hypothesis import HealthCheck, settings

FEW = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
