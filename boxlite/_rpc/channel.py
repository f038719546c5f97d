"""A gRPC channel to one guest: connected once, with bounds on what it may hold.

grpclib's own classes do the protocol; the subclasses here change what a hostile
server could use. How much of a guest's data one connection can make the host
hold, at most, all calls together:

- ``CONNECTION_WINDOW_BYTES`` of messages, complete or not, that no call has
  taken yet: this is HTTP/2's window of the connection, and it reopens only as
  messages are taken;
- one frame and one block of headers (:mod:`.frames`), and their decoded form;
- what the transport has read at once and what it has not sent yet.

The hooks are not a documented interface of grpclib: its version is pinned.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import Connection, EventsProcessor, H2Protocol, Stream
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated
from h2.settings import SettingCodes, Settings

from boxlite._errors import GuestLostError, GuestProtocolError
from boxlite._wire import MAX_MESSAGE_BYTES

from .strict import check_message
from .text import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import betterproto2
    from grpclib.client import Stream as ClientStream
    from grpclib.utils import Wrapper

    from boxlite._bulk import Frame

    from .lost import Lost
    from .transport import StreamTransport

#: A message waits in its stream's window until it is complete. h2 reopens a
#: window when half of it has been taken: so it is twice the largest message.
STREAM_WINDOW_BYTES: Final = 2 * MAX_MESSAGE_BYTES + (1 << 16)
CONNECTION_WINDOW_BYTES: Final = 2 * STREAM_WINDOW_BYTES
#: The decoded headers of one answer, as HTTP/2 counts them (RFC 9113, 6.5.2).
HEADER_LIST_BYTES: Final = 1 << 14

_WINDOW_AT_FIRST: Final = 65_535
_PREFIX_BYTES: Final = 5


class GuestChannel(Channel):
    """Makes calls over one transport, and never looks for another.

    Args:
        transport: Connected to the guest.
        lost: Of the same connection. Calls fail with its cause once it is set.
    """

    def __init__(self, transport: StreamTransport, lost: Lost) -> None:
        super().__init__("guest", 1, codec=_StrictCodec(), config=Configuration())
        self._transport = transport
        self._lost = lost
        self._h2_config = H2Configuration(
            client_side=True,
            header_encoding="ascii",
            # Unlike grpclib's own: whether there is a :status is the guest's choice.
            validate_inbound_headers=True,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )

    def connect(self) -> None:
        """Begin to speak HTTP/2. Must run where the event loop is the current one."""
        assert self._protocol is None
        self._protocol = GuestProtocol(Handler(), self._config, self._h2_config)
        self._transport.attach(self._protocol)

    async def _create_connection(self) -> H2Protocol:
        """Refuse: grpclib asks for another connection when the first is lost."""
        raise self._lost.error_for("a call", sent=False)

    @contextmanager
    def bulk(self, call: int, hear: Callable[[Frame], None]) -> Iterator[None]:
        """Have the bulk frames of one call heard for as long as the block lasts.

        Args:
            call: The number of its stream.
            hear: Called with each frame, at once and in order. It must not raise.
        """
        assert isinstance(self._protocol, GuestProtocol)
        listeners = self._protocol.listeners
        listeners[call] = hear
        try:
            yield
        finally:
            del listeners[call]

    def write(self, frame: bytes, data: bytes | memoryview = b"") -> None:
        """Send a bulk frame, in one or two parts, after everything that was sent before."""
        self._transport.write(frame)
        if data:
            self._transport.write(data)

    async def wait_writable(self) -> None:
        """Wait until there is room for more data; from Trio. A checkpoint."""
        await self._transport.wait_writable()

    @property
    def open_streams(self) -> int:
        """The calls that HTTP/2 knows of and that have not ended."""
        if self._protocol is None or self._lost.is_set():
            return 0
        connection = self._protocol.connection._connection  # noqa: SLF001 - grpclib's, see above
        return max(len(self._protocol.processor.streams), connection.open_outbound_streams)


def stream_number(call: ClientStream[Any, Any]) -> int:
    """Return the number of the HTTP/2 stream of a call whose request has been sent."""
    number = call._stream.id  # noqa: SLF001 - grpclib's, see above
    assert number is not None
    return number


class GuestProtocol(H2Protocol):
    """HTTP/2 as grpclib speaks it, except that failures are raised.

    The transport catches them: there, they end the connection and get a name.
    Bulk frames go to those who listen to their calls.
    """

    def bulk_received(self, frame: Frame) -> None:
        """Pass on a bulk frame. One for a call that has ended is late, and is dropped.

        Raises:
            GuestProtocolError: There has never been such a call.
        """
        hear = self.listeners.get(frame.call)
        last = self.connection._connection.highest_outbound_stream_id  # noqa: SLF001
        if hear is not None:
            hear(frame)
        elif not frame.call % 2 or frame.call > last:
            raise GuestProtocolError(
                f"the guest sent data of a call that was never made: {frame.call}"
            )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the connection preface, with this project's limits in it."""
        self.listeners: dict[int, Callable[[Frame], None]] = {}
        h2 = H2Connection(config=self.h2_config)
        h2.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.MAX_CONCURRENT_STREAMS: 100,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES,
            },
        )
        # h2 takes this from its settings only when they change.
        h2.decoder.max_header_list_size = HEADER_LIST_BYTES
        h2.initiate_connection()
        h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _WINDOW_AT_FIRST)
        self.connection = _GuestConnection(
            h2, cast("asyncio.Transport", transport), config=self.config
        )
        self.connection.flush()
        self.connection.initialize()
        self.processor = EventsProcessor(self.handler, self.connection)

    def data_received(self, data: bytes) -> None:
        """Process bytes from the guest.

        Raises:
            GuestLostError: The guest said that it ends the connection.
            Exception: h2 or grpclib does not know what to do with them.
        """
        events = self.connection.feed(data)
        self.connection.flush()
        for event in events:
            if isinstance(event, ConnectionTerminated):
                words = (event.additional_data or b"").decode(errors="replace")
                raise GuestLostError(
                    f"the guest ended the connection: GOAWAY, error code {event.error_code}"
                    + (f", '{shown(words)}'" if words else "")
                )
            self.processor.process(event)
        self.connection.flush()


class _GuestConnection(Connection):
    """Makes streams of our kind, and is quiet when it is closed."""

    def create_stream(
        self, *, stream_id: int | None = None, wrapper: Wrapper | None = None
    ) -> Stream:
        return _GuestStream(
            self, self._connection, self._transport, stream_id=stream_id, wrapper=wrapper
        )

    def ack(self, stream_id: int, size: int) -> None:
        # What came before the end may be taken after it.
        if not self.is_closing():
            super().ack(stream_id, size)


class _GuestStream(Stream):
    """One call's HTTP/2 stream."""

    def init_stream(self, stream_id: int, connection: Connection) -> None:
        super().init_stream(stream_id, connection)
        self._messages = MessageBuffer(partial(connection.ack, stream_id))
        self.buffer = self._messages  # type: ignore[assignment] # the same methods, no relation

    async def end(self) -> None:
        # A guest that has answered in full may have closed both directions.
        if self.closable:
            self._h2_connection.end_stream(cast("int", self.id))
            self._transport.write(self._h2_connection.data_to_send())

    @property
    def _answered(self) -> bool:
        """Whether the guest has said all that a call needs: there is a status."""
        if self.trailers is not None:
            return True
        return self.headers is not None and "grpc-status" in dict(self.headers)

    def __ended__(self) -> None:
        super().__ended__()
        if not self._answered and self.wrapper is not None:
            self.wrapper.cancel(GuestProtocolError("the guest ended a call without a status"))

    def __terminated__(self, reason: str) -> None:
        # A server resets a stream that it has answered in full if the client
        # could still send. That must not take the messages that wait here.
        if not (self._messages.ended and self._answered):
            super().__terminated__(reason)


class MessageBuffer:
    """The received and not yet taken part of one call's messages.

    Stands in for grpclib's ``Buffer``, which waits for four gigabytes if the
    guest announces them, and keeps an object for every frame. This one refuses
    a length at sight, and hands window back only for what has been taken.

    Args:
        acknowledge: Called with a number of bytes that may be sent again.

    Attributes:
        ended: No more will come.
    """

    def __init__(self, acknowledge: Callable[[int], None]) -> None:
        self._acknowledge = acknowledge
        self._held = bytearray()
        self.ended = False
        self._changed = asyncio.Event()
        self._body_bytes = 0

    def add(self, data: bytes, ack_size: int) -> None:
        """Take the data of a frame that counts ``ack_size`` bytes, padding included."""
        self._held += data
        self._changed.set()
        if ack_size > len(data):
            self._acknowledge(ack_size - len(data))

    def eof(self) -> None:
        """Take note of the end."""
        self.ended = True
        self._changed.set()

    async def read(self, size: int) -> bytes:
        """Return the next bytes, as grpclib asks for them: a prefix, then its message.

        Returns:
            Exactly ``size`` bytes; none at all at the end, between messages.

        Raises:
            GuestProtocolError: The prefix announces what is not allowed, or
                the data ended within a message.
        """
        while len(self._held) < size and not self.ended:
            self._changed.clear()
            await self._changed.wait()
        within = bool(self._held or self._body_bytes)
        if len(self._held) < size:
            if not within:
                return b""
            raise GuestProtocolError(
                f"the guest ended a call within a message:"
                f" {len(self._held)} of the next {size} bytes came"
            )
        data = bytes(self._held[:size])
        del self._held[:size]
        if self._body_bytes:
            self._body_bytes = 0
        elif size:
            self._body_bytes = _body_bytes(data)
        self._acknowledge(size)
        return data

    def unacked_size(self) -> int:
        """Return the bytes that are dropped, and may be sent again, when the call is over."""
        return len(self._held)


def _body_bytes(prefix: bytes) -> int:
    """Read the five bytes before a message: whether it is compressed, and its length."""
    assert len(prefix) == _PREFIX_BYTES
    length = int.from_bytes(prefix[1:], "big")
    if prefix[0]:
        raise GuestProtocolError("the guest sent a compressed message, which nobody asked for")
    if length > MAX_MESSAGE_BYTES:
        raise GuestProtocolError(
            f"the guest announced a message of {length} bytes:"
            f" at most {MAX_MESSAGE_BYTES} are allowed"
        )
    return length


class _StrictCodec(ProtoCodec):
    """Decodes what has the form that the ``.proto`` says, and nothing else."""

    def decode(self, data: bytes, message_type: Any) -> Any:  # noqa: ANN401 - as in grpclib
        check_message(data, message_type)
        wanted: type[betterproto2.Message] = message_type
        try:
            return wanted.parse(data)
        except Exception as error:  # betterproto2 has no error class of its own
            raise GuestProtocolError(
                f"the guest's {wanted.__name__} cannot be read: {shown(str(error))}"
            ) from error
