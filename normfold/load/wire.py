"""Protobuf's wire format, as far as it takes to walk a message without parsing it.

See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field of a message: its number and wire type, and where in the data its head, its value and its end lie."""

    number: int
    wire: int
    start: int
    value: int
    end: int


class Damaged(ValueError):
    """The bytes at `position` are no field."""

    def __init__(self, position: int, what: str) -> None:
        super().__init__(f"{what} at byte {position}")
        self.position = position


def fields(data: Any, position: int, end: int) -> Iterator[Field]:
    """Every field of the message in ``data[position:end]``; `data` is bytes or a memory map.

    The last field may claim to end behind `end` (a truncated file): callers compare.  Raises Damaged for what is no field.
    """
    while position < end:
        start = position
        key, position = varint(data, position, end)
        number, wire = key >> 3, key & 7
        value = position
        if wire == 0:
            _, position = varint(data, position, end)
        elif wire == 1:
            position += 8
        elif wire == 5:
            position += 4
        elif wire == 2:
            length, value = varint(data, position, end)
            position = value + length
        else:
            raise Damaged(start, f"wire type {wire}")
        if number == 0:
            raise Damaged(start, "field number 0")
        yield Field(number, wire, start, value, position)


def varint(data: Any, position: int, end: int) -> tuple[int, int]:
    """(value, position behind it) of the number at `position`."""
    value, start = 0, position
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Damaged(start, "a number without end")
