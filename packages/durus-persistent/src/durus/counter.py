"""`Counter`: a number that any number of transactions count up at the same time."""

from typing import Any

from durus.mergeable import Mergeable, blind

__all__ = ["Counter"]


class Counter(Mergeable):
    """A number.  `increment` and `decrement` never conflict with each other.

    Who reads `value` depends on it, and conflicts as with any other object:
    `if counter.value < 10: counter.increment()` never makes it more than 10.
    """

    __slots__ = ("_value",)

    _value: int

    def __init__(self, value: int = 0) -> None:
        self._value = value

    @property
    def value(self) -> int:
        """The number, as this transaction sees it."""
        return self._value

    @blind
    def increment(self, by: int = 1) -> None:
        """Add to the number."""
        self._value += by

    @blind
    def decrement(self, by: int = 1) -> None:
        """Subtract from the number."""
        self._value -= by

    def reset(self, value: int = 0) -> None:
        """Set the number; this conflicts with whoever counts."""
        self._value = value

    def _p_resolve_conflict(
        self, old: dict[str, Any], committed: dict[str, Any], mine: dict[str, Any]
    ) -> dict[str, Any]:
        return {"_value": committed["_value"] + mine["_value"] - old["_value"]}
