"""How the packed copy of a log stores records, if not as they are: compressed, or all unpacked.

`LogPack` asks it.  A dictionary is made of a sample of the objects.  Invariants: a record that
is compressed with a dictionary goes only into a file that has it; the file's own is kept unless
another one is clearly better.
"""

import contextlib
import itertools
import random
from collections.abc import Sequence
from typing import Final

from durus.error import StorageError
from durus.interfaces import Oid, Tid
from durus.log import Log
from durus.log_codec import DICTIONARY_SIZE_MAX, Compression, RecordCodec
from durus.log_record import RECORD_HEAD_SIZE, decode_record, encode_record

__all__ = ["PackCodec"]

_SAMPLE_COUNT: Final = 4000
_SAMPLE_COUNT_MIN: Final = 1000
"""A dictionary made of fewer records would know too little of those that come."""
_SAMPLE_SIZE_MAX: Final = 4096
"""Of each record."""
_SAMPLES_FOR_SIZE: Final = 16
"""The samples are so many times as long as the dictionary that is made of them, at least."""
_TEST_INTERVAL: Final = 5
"""One sample in so many is not trained with, but shows what a dictionary is good for."""
_SIZES: Final = (1 << 11, 1 << 14, DICTIONARY_SIZE_MAX)
_LARGER: Final = 0.97
"""With a larger dictionary records must take so much of the room, or less."""
_BETTER: Final = 0.9
"""With another dictionary than the file's own records must take so much of the room, or less."""


class PackCodec:
    """Takes the records of a log, and gives them as the copy is to have them."""

    def __init__(self, log: Log, compression: Compression) -> None:
        """Decide about the dictionary; StorageError."""
        self._log = log
        sample = _Sample(log)
        self.dictionary: bytes | None = None
        """That of the copy; None if it does not ask that records be compressed."""
        own = log.codec.dictionary or b""
        if compression == "zstd":
            self.dictionary = _choose_dictionary(sample.contents, sample.of, own)
        self.growth = 1.0 if compression == "zstd" else sample.growth
        """So many times as large as in the log the records may become."""
        self._codec = None if self.dictionary is None else RecordCodec(self.dictionary)
        self._leaves_compressed = self.dictionary == own

    def store(self, slot: int, tid: Tid, content: bytes) -> bytes:
        """As it is to be stored, the record in a slot of the log; its checksum is right.

        Raises CorruptionError.
        """
        stored = decode_record(content)
        assert stored is not None
        record = stored.record
        if stored.codec:
            if self._leaves_compressed:
                return content
            record = self._log.unpack_record(slot, stored, tid)
        elif self._codec is None:
            return content
        return encode_record(stored.oid, record, self._codec)


class _Sample:
    """Some of the objects of a log, chosen at random, and in no order."""

    def __init__(self, log: Log) -> None:
        self.contents: list[bytes] = []
        """Class pickle and state, or the beginning."""
        self.of = sum(1 for _ in log.items())
        """So many objects there are."""
        plain = stored = place = 0
        items = log.items()
        chance = random.Random(self.of)
        chosen = chance.sample(range(self.of), min(self.of, _SAMPLE_COUNT))
        for index in sorted(chosen):
            found = next(itertools.islice(items, index - place, None), None)
            if found is None:
                break
            number, slot = found
            place = index + 1
            oid = Oid(number.to_bytes(8))
            with contextlib.suppress(StorageError):  # if it is needed, that will be said
                stored_size = len(log.copy_record(slot, oid))
                record = log.read_revision(slot, oid).record
                plain += RECORD_HEAD_SIZE + sum(map(len, record))
                stored += stored_size
                self.contents.append((record.class_pickle + record.state_pickle)[:_SAMPLE_SIZE_MAX])
        chance.shuffle(self.contents)  # the last ones are not trained with, but tested
        self.growth = plain / stored if stored else 1.0
        """So many times as large as they are stored they would be without compression."""


def _choose_dictionary(contents: Sequence[bytes], count: int, own: bytes) -> bytes:
    """The dictionary for so many records, of which some contents are known; empty: none.

    own: that of the file.
    """
    if len(contents) < _SAMPLE_COUNT_MIN:
        return own
    from durus.zstd_frames import train_dictionary  # only here is it needed

    tests = contents[::_TEST_INTERVAL]
    samples = [content for n, content in enumerate(contents) if n % _TEST_INTERVAL]
    size_max = sum(map(len, samples)) // _SAMPLES_FOR_SIZE
    without = _stored_size(tests, b"")
    best, best_size = b"", without
    for size in _SIZES:
        dictionary = train_dictionary(samples, min(size, size_max))
        stored_size = _stored_size(tests, dictionary)
        is_paid = (without - stored_size) * count > 2 * len(dictionary) * len(tests)
        if is_paid and stored_size < _LARGER * best_size:
            best, best_size = dictionary, stored_size
    return own if own and best_size >= _BETTER * _stored_size(tests, own) else best


def _stored_size(contents: Sequence[bytes], dictionary: bytes) -> int:
    codec = RecordCodec(dictionary)
    blocks = ((codec.compress(content, b"") or (0, content))[1] for content in contents)
    return sum(map(len, blocks))
