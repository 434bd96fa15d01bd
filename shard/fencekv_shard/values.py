"""What a write passes through: small values of which several are made for each request.

They are plain classes, not dataclasses or named tuples: a frozen dataclass takes three times as long to make, and
compiled, a named tuple takes four times as long as these.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class Value:
    """Compared, shown and copied by its fields, which `__match_args__` lists as its constructor takes them.

    Never changed once it is made.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()

    def fields(self) -> tuple[Any, ...]:
        """What it holds."""
        return tuple([getattr(self, name) for name in self.__match_args__])

    def replaced(self, **changes: Any) -> Self:
        """One with other fields."""
        return type(self)(**{**dict(zip(self.__match_args__, self.fields(), strict=True)), **changes})

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Value) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(self.fields())

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.fields()!r}"
