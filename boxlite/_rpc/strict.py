"""A strict look at a protobuf message before betterproto2's lenient one.

betterproto2 takes a field that is shorter than it says, a number that is larger
than its type, two members of a oneof, and fields nobody has heard of; and its
cost grows with the square of the latter.
The guest agent is built from the same ``.proto`` as the host, so nothing of the
kind is a matter of versions: it is refused. Wire format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Final

import attrs
import betterproto2

from boxlite._errors import GuestProtocolError

_VARINT: Final = 0
_LENGTH_DELIMITED: Final = 2
_VARINT_BYTES: Final = 10
_BITS: Final = {
    betterproto2.TYPE_UINT32: 32,
    betterproto2.TYPE_ENUM: 32,
    betterproto2.TYPE_UINT64: 64,
    betterproto2.TYPE_BOOL: 1,
}


@attrs.frozen
class _Field:
    """What may be sent as one field of a message."""

    name: str
    wire_type: int
    bits: int
    group: str | None
    message: type[betterproto2.Message] | None


def check_message(data: bytes, message_type: type[betterproto2.Message]) -> None:
    """Check the outer form of a message, and of the messages in it.

    Each field is known, has its declared type, is there at most once and in
    full, and at most one member of each oneof is there. What the values are
    is not looked at. The time taken does not depend on the length of the data.

    Args:
        data: The message as it was received.
        message_type: What it is to be. Only unsigned integers, truth values,
            enumerations, text, bytes and messages may occur in it, and nothing
            repeated: the guest's answers have no more than that.

    Raises:
        GuestProtocolError: It has not that form.
    """
    _check(memoryview(data), message_type)


def _check(data: memoryview, message_type: type[betterproto2.Message]) -> None:
    fields = _fields(message_type)
    seen: set[str] = set()
    position = 0
    while position < len(data):
        tag, position = _varint(data, position, message_type)
        field = fields.get(tag >> 3)
        if field is None:
            raise _refused(message_type, f"has an unknown field {tag >> 3}")
        if tag & 7 != field.wire_type:
            raise _refused(message_type, f"has a {field.name} of wire type {tag & 7}")
        key = field.group or field.name
        if key in seen:
            raise _refused(message_type, f"has more than one {key}")
        seen.add(key)
        value, position = _varint(data, position, message_type)
        if field.wire_type == _VARINT:
            if value >> field.bits:
                raise _refused(message_type, f"has a {field.name} of {value}")
            continue
        end = position + value
        if end > len(data):
            came = len(data) - position
            raise _refused(
                message_type, f"has a {field.name} of {value} bytes, of which {came} came"
            )
        if field.message is not None:
            _check(data[position:end], field.message)
        position = end


def _varint(
    data: memoryview, position: int, message_type: type[betterproto2.Message]
) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[position : position + _VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, position + index + 1
    raise _refused(message_type, f"has a number without an end at byte {position}")


def _refused(message_type: type[betterproto2.Message], problem: str) -> GuestProtocolError:
    return GuestProtocolError(f"the guest's {message_type.__name__} {problem}")


@cache
def _fields(message_type: type[betterproto2.Message]) -> dict[int, _Field]:
    fields = {}
    generated: Any = message_type
    classes = generated._betterproto.cls_by_field  # noqa: SLF001 - there is no public way to it
    for each in dataclasses.fields(generated):
        meta = betterproto2.FieldMetadata.get(each)
        assert not meta.repeated, each.name
        bits = _BITS.get(meta.proto_type, 0)
        nested = meta.proto_type == betterproto2.TYPE_MESSAGE
        fields[meta.number] = _Field(
            each.name,
            _VARINT if bits else _LENGTH_DELIMITED,
            bits,
            meta.group,
            classes[each.name] if nested else None,
        )
    return fields
