"""Reserved oids: none is handed out twice, none that is in use, and few are looked up."""

from hypothesis import given
from hypothesis import strategies as st

from durus.interfaces import Oid
from durus.oid_batches import OidBatches


class File:
    """What a storage's file knows: which oids are reserved, and which are in use."""

    def __init__(self) -> None:
        self.next_oid = 0
        self.used: set[Oid] = set()
        self.asked = 0

    def reserve(self, count: int) -> range:
        first, self.next_oid = self.next_oid, self.next_oid + count
        return range(first, self.next_oid)

    def exists(self, oid: Oid) -> bool:
        self.asked += 1
        return oid in self.used

    def create(self, oid: Oid) -> None:
        self.used.add(oid)
        self.next_oid = max(self.next_oid, int.from_bytes(oid) + 1)

    def take(self, oids: OidBatches, count: int) -> list[Oid]:
        return oids.take(count, self.reserve, self.exists)


takings = st.integers(1, 3000).map(lambda count: ("take", count))
creations = st.integers(-100, 1000).map(lambda place: ("create", place))


@given(st.lists(takings | creations, max_size=20))
def test_what_is_handed_out_is_new_and_in_no_use(steps: list[tuple[str, int]]) -> None:
    file, oids = File(), OidBatches()
    handed_out: set[Oid] = set()
    for name, number in steps:
        if name == "take":
            found = file.take(oids, number)
            assert len(found) == len(set(found)) == number
            assert handed_out.isdisjoint(found)
            assert file.used.isdisjoint(found)
            handed_out.update(found)
        else:  # one that may have been reserved, and handed out, or not
            file.create(Oid(max(0, file.next_oid - number).to_bytes(8)))


def test_however_many_are_wanted_those_alone_are_looked_up_that_were_left_over() -> None:
    file, oids = File(), OidBatches()
    assert len(file.take(oids, 10)) == 10
    assert file.asked == 0
    left = file.next_oid - 10
    assert len(file.take(oids, 100_000)) == 100_000
    assert file.asked == left > 0
