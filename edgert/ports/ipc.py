"""How the processes of one device talk: CBOR maps in frames over Unix stream sockets.

A frame is its length as 4 bytes, big-endian, followed by that many bytes of one CBOR map with text keys. Between the
processes of edgert the map is a struct of `values.Told` under its tag; plants and their clients exchange plain maps.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard, TypeVar

import cbor2
import msgspec

from edgert.errors import ConfigError, LinkError, MessageError, UsageError
from edgert.ports.store import store_error
from edgert.values import Told

MAX_FRAME_BYTES = 16 << 20
MAX_QUEUED_BYTES = 4 << 20
MAX_PATH_BYTES = 107  # sun_path of Linux, less its terminating zero
_BACKLOG = 16
# A call of receive, so that one flooding peer cannot keep the loop from the others.
_RECEIVE_BYTES = 1 << 18
_MAX_MALFORMED = 64
_CHUNK_BYTES = 1 << 16
_LENGTH = struct.Struct(">I")
_Message = TypeVar("_Message")


def encode(told: Told) -> bytes:
    """One message as CBOR, without its frame.

    Raises:
        UsageError: a value in it has no CBOR form.
    """
    return encode_map(msgspec.to_builtins(told, builtin_types=(bytes,)))


def decode(payload: bytes) -> Told:
    """The inverse of `encode`.

    Raises:
        MessageError: not CBOR, not a known tag, or a field is missing or of the wrong type.
    """
    told = decode_map(payload)
    try:
        message: Told = msgspec.convert(told, type=Told, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise MessageError(f"message {told.get('t')!r}: {error}") from error
    return message


def encode_map(message: Mapping[str, object]) -> bytes:
    """A plain map as CBOR, without its frame.

    Raises:
        UsageError: a value in it has no CBOR form.
    """
    try:
        return cbor2.dumps(message)
    except (cbor2.CBOREncodeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"cannot encode a message: {error}") from error


def decode_map(payload: bytes) -> dict[str, object]:
    """The inverse of `encode_map`.

    Raises:
        MessageError: not CBOR, or not a map with text keys.
    """
    try:
        message = cbor2.loads(payload)
    except (cbor2.CBORDecodeError, TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise MessageError(f"not CBOR: {error}") from error
    if not _is_map(message):
        raise MessageError(f"a CBOR map with text keys was expected, not {type(message).__name__}")
    return message


def _is_map(message: object) -> TypeGuard[dict[str, object]]:
    return isinstance(message, dict) and all(isinstance(key, str) for key in message)


class Channel:
    """One end of a conversation, for a loop that must not wait.

    Blocks: never, except in `wait`. Thread: the one that made it.

    Attributes:
        malformed: frames received that could not be understood and were skipped. A length over `max_frame_bytes`, or
            nothing but nonsense for dozens of frames, ends the conversation.
        dropped: messages that were not sent, because the peer reads too slowly or is gone.
    """

    def __init__(self, sock: socket.socket, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        """Take over a connected Unix stream socket, on which no frame is longer than `max_frame_bytes`."""
        sock.setblocking(False)
        self._max_frame_bytes = max_frame_bytes
        self.malformed = 0
        self.dropped = 0
        self._socket = sock
        self._in = bytearray()
        self._out = bytearray()
        self._broken = False

    def send(self, told: Told) -> bool:
        """Queue a message and pass on what the socket takes now.

        Returns:
            False when it was dropped (and counted): over `MAX_QUEUED_BYTES` wait already, or the peer is gone.

        Raises:
            UsageError: a value in it has no CBOR form.
        """
        return self._send(encode(told))

    def send_map(self, message: Mapping[str, object]) -> bool:
        """As `send`, for a plain map."""
        return self._send(encode_map(message))

    def receive(self) -> list[Told]:
        """All messages that have arrived; `closed` may be true afterwards."""
        return self._receive(decode)

    def receive_maps(self) -> list[dict[str, object]]:
        """As `receive`, for plain maps."""
        return self._receive(decode_map)

    def flush(self) -> None:
        """Pass on what the socket takes now of what is queued; call it when the socket is writable."""
        try:
            while self._out and not self._broken:
                with memoryview(self._out) as queued:
                    sent = self._socket.send(queued[:_CHUNK_BYTES], socket.MSG_NOSIGNAL)
                del self._out[:sent]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            # Not closed yet: what the peer said before it went may still wait to be received.
            self._broken = True
            self._out.clear()

    def wait(self, timeout_s: float) -> bool:
        """Wait until something can be received, sending what is queued meanwhile.

        Returns:
            False when nothing came in time; True also for the end of the conversation.

        Blocks: up to timeout_s, and returns early whenever queued bytes were sent.
        """
        if self.closed:
            return True
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN | (select.POLLOUT if self.wants_write else 0))
        events = poller.poll(max(0.0, timeout_s) * 1e3)
        if events and events[0][1] & select.POLLOUT:
            self.flush()
        return bool(events) and bool(events[0][1] & ~select.POLLOUT)

    @property
    def wants_write(self) -> bool:
        """Whether messages are queued that the socket did not take yet."""
        return bool(self._out)

    @property
    def closed(self) -> bool:
        """Whether the conversation is over."""
        return self._socket.fileno() < 0

    def fileno(self) -> int:
        """The descriptor to select on; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """End the conversation; what is still queued is lost."""
        self._out.clear()
        self._in.clear()
        self._socket.close()

    def _send(self, payload: bytes) -> bool:
        frame_bytes = _LENGTH.size + len(payload)
        if self.closed or self._broken or len(self._out) + frame_bytes > MAX_QUEUED_BYTES:
            self.dropped += 1
            return False
        self._out += _LENGTH.pack(len(payload))
        self._out += payload
        self.flush()
        if self._broken:
            self.dropped += 1
        return not self._broken

    def _receive(self, read: Callable[[bytes], _Message]) -> list[_Message]:
        messages = []
        tolerated = self.malformed + _MAX_MALFORMED
        for payload in self._frames():
            try:
                messages.append(read(payload))
            except MessageError:
                self.malformed += 1
                if self.malformed == tolerated:
                    self.close()
                    break
        return messages

    def _frames(self) -> Iterator[bytes]:
        ended = self._fill()
        start = 0
        while len(self._in) - start >= _LENGTH.size:
            (length_bytes,) = _LENGTH.unpack_from(self._in, start)
            if length_bytes > self._max_frame_bytes:
                # Without a trustworthy length there is no telling where the next frame begins.
                self.malformed += 1
                ended = True
                break
            end = start + _LENGTH.size + length_bytes
            if len(self._in) < end:
                break
            yield bytes(self._in[start + _LENGTH.size : end])
            start = end
        del self._in[:start]
        if ended:
            self.close()

    def _fill(self) -> bool:
        """Read what is there, within bounds; returns whether the peer has ended the conversation."""
        if self.closed:
            return False
        read_bytes = 0
        while read_bytes < _RECEIVE_BYTES:
            try:
                chunk = self._socket.recv(_CHUNK_BYTES)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                return True
            if not chunk:
                return True
            self._in += chunk
            read_bytes += len(chunk)
        return False


def listen(path: str | os.PathLike[str], mode: int = 0o600) -> socket.socket:
    """Listen on a Unix socket at `path`, in place of a stale one.

    Args:
        path: at most `MAX_PATH_BYTES` long, in an existing directory.
        mode: permission bits of the socket file; who may write it may connect.

    Returns:
        A non-blocking listening socket, for `accept`.

    Raises:
        ConfigError: the path is too long.
        UsageError: somebody listens there already, or the path is a file of another kind.
        StoreError: the socket file cannot be made.
    """
    address = _address(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        # bind() takes the file's mode from the socket's own: with it there is no moment of too wide permissions.
        os.fchmod(listener.fileno(), mode)
        _refuse_if_taken(path, address)
        listener.bind(address)
        Path(path).chmod(mode)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"{os.fspath(path)}: another process has just begun to listen there") from error
        raise store_error(error, "listen on", path) from error
    except UsageError:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket, max_frame_bytes: int = MAX_FRAME_BYTES) -> Channel | None:
    """The next waiting peer, or None when nobody waits (or it went away again)."""
    try:
        sock, _ = listener.accept()
    except OSError:
        return None
    return Channel(sock, max_frame_bytes)


def connect(path: str | os.PathLike[str]) -> Channel | None:
    """Reach whoever listens at `path`.

    Returns:
        None when nobody listens, or its backlog is full: try again later.

    Raises:
        ConfigError: the path is too long.
        LinkError: we may not connect there.

    Blocks: never.
    """
    address = _address(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(address)
    except PermissionError as error:
        sock.close()
        why = f"cannot connect to {os.fspath(path)}: permission denied: run as a user who may write to that socket"
        raise LinkError(why) from error
    except OSError:
        sock.close()
        return None
    return Channel(sock)


def single_instance(path: str | os.PathLike[str]) -> int:
    """Take a role's lock, and hold it as long as the process lives and the descriptor is open.

    Returns:
        The descriptor: keep it. The lock file stays; only its lock says anything.

    Raises:
        UsageError: another process holds it, told by pid.
        StoreError: the lock file cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise store_error(error, "lock", path) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise UsageError(f"{os.fspath(path)} is held by process {holder}: stop it first") from error
    except OSError as error:
        os.close(fd)
        raise store_error(error, "lock", path) from error
    return fd


def _address(path: str | os.PathLike[str]) -> bytes:
    address = os.fsencode(path)
    if len(address) > MAX_PATH_BYTES:
        text = os.fspath(path)
        raise ConfigError(f"socket path {text} is {len(address)} bytes long, at most {MAX_PATH_BYTES} work: shorten it")
    return address


def _refuse_if_taken(path: str | os.PathLike[str], address: bytes) -> None:
    """Remove a socket file nobody listens on; two that start at once are kept apart by `single_instance`."""
    try:
        kind = Path(path).lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise UsageError(f"{os.fspath(path)} exists and is not a socket: remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except BlockingIOError:
            holder = "a busy process"
        else:
            pid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            holder = f"process {pid}"
    raise UsageError(f"{os.fspath(path)}: {holder} listens there already: stop it first")
