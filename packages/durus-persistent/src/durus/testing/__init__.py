"""For the tests of storages and applications; needs pytest (`durus-persistent[testing]`).

`durus.testing.storage_contract` holds what every storage must pass.
"""

import pytest

pytest.register_assert_rewrite("durus.testing.storage_contract")
