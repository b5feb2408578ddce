"""A file made by hand from docs/format.md, with struct and zlib alone, is read and continued."""

import struct
import zlib
from contextlib import closing
from pathlib import Path

from durus.file_storage import FileStorage
from durus.interfaces import CommittedTransaction, Oid, Record, Revision, Tid
from durus.log_verify import verify_file
from durus.testing.storage_contract import commit, make_record

FILE_ID = bytes(range(16, 32))
END = b"END\xf7"


class FileByHand:
    def __init__(self, *pieces: tuple[bytes, bytes]) -> None:
        extension = b"".join(tag + struct.pack(">I", len(piece)) + piece for tag, piece in pieces)
        length = 104 + len(extension)
        start = b"\x89DUR\r\n\x1a\n" + struct.pack(">II", 1, length) + bytes(range(16)) + FILE_ID
        start += struct.pack(">QQQ", 0, 0, 0)  # features
        start += struct.pack(">QQQ", 5, 2, 1_700_000_000_000_000_000)  # horizon 5
        start += extension + END
        self.content = start + struct.pack(">I", zlib.crc32(start))
        assert len(self.content) == length

    @property
    def size(self) -> int:
        return len(self.content)

    def add(self, tag: bytes, checked: bytes, unchecked: bytes) -> None:
        seed = zlib.crc32(struct.pack(">Q", self.size), zlib.crc32(FILE_ID))
        checksum = zlib.crc32(checked, seed)
        self.content += tag + struct.pack(">I", checksum) + checked + unchecked

    def add_mark(self, tid: int, flags: int = 0) -> None:
        self.add(b"\xf6MRK", struct.pack(">QQQ", 44, tid, flags), struct.pack(">Q", 44) + END)

    def add_void(self, start: int) -> None:
        back = struct.pack(">Q", self.size + 36 - start)
        self.add(b"\xf9VOD", struct.pack(">QQ", 36, start), back + END)

    def add_reservation(self, next_oid: int) -> None:
        self.add(b"\xfaOID", struct.pack(">QQ", 36, next_oid), struct.pack(">Q", 36) + END)

    def add_transaction(
        self, tid: int, next_oid: int, records: list[tuple[int, int, bytes]]
    ) -> list[int]:
        """Add oids, slots of previous revisions, records; the new slots."""
        rest = b"ann" + "naïve".encode() + b"more" + struct.pack(">I", 3) + b"ext"
        for oid, previous, record in records:
            rest += struct.pack(">QQI", oid, previous, len(record))
        slots = []
        body = rest
        for _, _, record in records:
            slots.append(self.size + 72 + len(body))
            body += struct.pack(">I", 72 + len(body)) + record
        length = 72 + len(body) + 12
        fixed = struct.pack(">QQqQQ", length, tid, -1, 0xABCD, next_oid)
        fixed += struct.pack(">IIIIII", len(records), 3, 6, 11, 0, zlib.crc32(rest))
        self.add(b"\xf5TXN", fixed, body + struct.pack(">Q", length) + END)
        return slots


def record(oid: int, class_pickle: bytes, refs: bytes, state: bytes) -> bytes:
    content = struct.pack(">QBBH", oid, 0, 0, len(class_pickle))
    content += struct.pack(">II", len(refs) // 8, len(state)) + class_pickle + refs + state
    return struct.pack(">I", zlib.crc32(content)) + content


def compressed(oid: int, codec: int, class_length: int, refs: bytes, block: bytes) -> bytes:
    content = struct.pack(">QBBH", oid, codec, 0, class_length)
    content += struct.pack(">II", len(refs) // 8, len(block)) + refs + block
    return struct.pack(">I", zlib.crc32(content)) + content


def frame(size: int, block_type: int, block: bytes) -> bytes:
    """By RFC 8878, without its first four bytes: one block, and the size of the content."""
    head = len(block) << 3 | block_type << 1 | 1
    return bytes([0x20, size]) + struct.pack("<I", head)[:3] + block


def oid(number: int) -> Oid:
    return Oid(struct.pack(">Q", number))


def test_a_file_made_by_hand_is_read_and_continued(tmp_path: Path) -> None:
    by_hand = FileByHand()
    by_hand.add_reservation(3)
    root, one = by_hand.add_transaction(
        6, 3, [(0, 0, record(0, b"c", oid(1), b"old")), (1, 0, record(1, b"d", b"", b"one"))]
    )
    by_hand.add_mark(6)
    start = by_hand.size
    by_hand.content += b"\xf5TXN, and then it was killed"
    by_hand.add_void(start)
    refused = by_hand.size
    by_hand.add_transaction(8, 3, [(0, root, record(0, b"c", oid(1) + oid(2), b"refused"))])
    by_hand.add_void(refused)
    by_hand.add_transaction(9, 4, [(0, root, record(0, b"c", oid(1), b"new"))])
    by_hand.add_transaction(12, 4, [(1, one, record(1, b"d", b"", b"two"))])
    by_hand.add_mark(12)
    by_hand.add_mark(12, 1)
    by_hand.add_reservation(100)
    path = tmp_path / "by-hand"
    path.write_bytes(by_hand.content)

    newest = Revision(Tid(9), Record(b"c", b"new", oid(1)))
    oldest = Revision(Tid(6), Record(b"c", b"old", oid(1)))
    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path, readonly=True)) as storage:
        assert storage.tid == 12
        assert list(storage.revisions(oid(0))) == [newest, oldest]
        with closing(storage.snapshot(Tid(11))) as snapshot:
            assert snapshot.tid == 9
            assert snapshot.load(oid(1)) == Revision(Tid(6), Record(b"d", b"one", b""))
        assert [t.tid for t in storage.transactions()] == [6, 9, 12]
        first = next(iter(storage.transactions()))
        assert first == CommittedTransaction(Tid(6), 0xABCD, -1, "ann", "naïve", [oid(0), oid(1)])
    with closing(FileStorage(path)) as storage:
        assert storage.reserve_oids(1) == [oid(100)]
        commit(storage, {oid(0): make_record("next")})
        assert len(list(storage.revisions(oid(0)))) == 3
    assert path.read_bytes().startswith(by_hand.content)
    assert list(verify_file(str(path))) == []


def test_compressed_records_made_by_hand_are_read(tmp_path: Path) -> None:
    class_pickle = b"a class by hand"
    dictionary = class_pickle + b", and more"
    by_hand = FileByHand((b"more", b"ignored"), (b"zstd", dictionary))
    length = len(class_pickle)
    stored = frame(length + 8, 0, class_pickle + b"state 0!")  # a block of type 0 is what it is
    # A block of type 2: literals as they are; a sequence of none of them and so many bytes from the
    # beginning of the dictionary, each code for itself (RLE); then the rest of the literals.
    literals = b"state 1!"
    offset = len(dictionary) + 3
    sequence = bytes([1, 0b01010100, 0, 4, length - 3, 1 << 4 | offset - 16])
    shortened = frame(length + 8, 2, bytes([len(literals) << 3]) + literals + sequence)
    records = [
        (0, 0, compressed(0, 1, length, oid(1) + oid(2), stored)),
        (1, 0, compressed(1, 2, length, b"", shortened)),
        (2, 0, record(2, class_pickle, b"", b"state 2!")),
    ]
    by_hand.add_transaction(6, 3, records)
    by_hand.add_mark(6)
    path = tmp_path / "by-hand"
    path.write_bytes(by_hand.content)

    assert list(verify_file(str(path))) == []
    with closing(FileStorage(path)) as storage:
        with closing(storage.snapshot()) as snapshot:
            for number in range(3):
                state = f"state {number}!".encode()
                refs = b"" if number else oid(1) + oid(2)
                assert snapshot.load(oid(number)).record == Record(class_pickle, state, refs)
        commit(storage, {oid(1): make_record("next")})
        storage.pack()
        with closing(storage.snapshot()) as snapshot:
            assert snapshot.load(oid(0)).record.state_pickle == b"state 0!"
    assert b"more\0\0\0\7ignoredzstd\0\0\0\x19" + dictionary + END in path.read_bytes()
    assert list(verify_file(str(path))) == []
