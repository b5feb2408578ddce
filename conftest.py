"""What the tests of all packages have in common.

Hypothesis tries other examples in each run, also in CI, where it would try the same ones always; no
test depends on a time, and a failure says how it is seen again.  The logger is as after its import:
a server of a program, in a thread of some test, may have directed it elsewhere.
"""

import logging

import pytest
from hypothesis import HealthCheck, settings

from durus.logger import logger

settings.register_profile(
    "fresh",
    derandomize=False,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fresh")


@pytest.fixture(autouse=True)
def plain_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "disabled", False)
    logger.setLevel(logging.NOTSET)
