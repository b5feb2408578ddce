"""For the tests of storages and applications.

`durus.testing.databases` has databases for tests; `durus.testing.fixtures` those for pytest
(`durus-persistent[testing]`); `durus.testing.storage_contract` what every storage must pass.
"""

import sys

from durus import _guard as _guard

if "pytest" in sys.modules:
    sys.modules["pytest"].register_assert_rewrite("durus.testing.storage_contract")
