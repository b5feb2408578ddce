"""What a transaction refuses to carry."""

import pytest

from durus.interfaces import NO_TID, Oid, Record, Transaction
from durus.oid_set import OidSet

RECORD = Record(b"class", b"state", b"")


def oid(number: int) -> Oid:
    return Oid(number.to_bytes(8))


def test_what_is_created_is_written() -> None:
    def make(*created: int) -> Transaction:
        return Transaction(
            id=1,
            snapshot_tid=NO_TID,
            accessed=OidSet(),
            created=frozenset(map(oid, created)),
            writes={oid(1): RECORD, oid(2): RECORD},
            time_ns=0,
        )

    make()
    make(1, 2)
    with pytest.raises(ValueError, match="x03' is to be created, and there is no record of it"):
        make(1, 3)
