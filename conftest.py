"""How Hypothesis tries examples, in the tests of all packages.

Each run tries others, also in CI, where Hypothesis would try the same ones always; and no test
depends on a time.  A failure says how it is seen again.
"""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fresh",
    derandomize=False,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fresh")
