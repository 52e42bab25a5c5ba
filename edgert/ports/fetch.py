"""The file that a bundle becomes, and the ways it comes: `fleet.fetch` decides, this writes and reads.

A file on its way is `<sha256>.part`, as large as it will be, each chunk at its place. Which are there is seen by their
hashes: after a power cut nothing has to be believed. A whole one is `<sha256>.edgert`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import ssl
import threading
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgert import wire
from edgert.errors import ArtifactError, LinkError, StoreError
from edgert.fleet import fetch
from edgert.ports.link import drain, wake_pair
from edgert.ports.redact import address
from edgert.ports.store import remove, store_error

READ_BYTES = 16 << 10
TIMEOUT_S = 30.0
RETRY_S, RETRY_CAP_S = 1.0, 60.0
TRIES_MAX = 8
"""Attempts on end that bring not one byte, after which HTTP is given up."""


class Part:
    """A file on its way, and the whole one it becomes.

    Attributes:
        path: of the whole one.
    """

    def __init__(self, folder: Path, offer: wire.PolicyOffer) -> None:
        """Name the files; nothing is touched.

        Args:
            folder: holds nothing else.
            offer: of the file.
        """
        self.offer, self._folder = offer, folder
        self.path, self._part = folder / f"{offer.sha256}.edgert", folder / f"{offer.sha256}.part"

    def there(self) -> set[int]:
        """Chunks that are on the disk and are what they should be; all of them where the whole file is.

        Raises:
            StoreError: the folder cannot be made or read.

        Blocks: while it hashes what is there.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self.path, self._part):
                if path.exists():
                    with path.open("rb") as file:
                        return {
                            k
                            for k in range(fetch.count(self.offer))
                            if fetch.is_chunk(self.offer, k, file.read(self.offer.chunk_bytes))
                        }
        except OSError as error:
            raise store_error(error, "read", self._part) from error
        return set()

    def free_bytes(self) -> int:
        """What the disk has left for this user, and what the unfinished file has already taken of it.

        Raises:
            StoreError: nobody can say.
        """
        try:
            disk = os.statvfs(self._folder)
            taken = self._part.stat().st_blocks * 512 if self._part.exists() else 0
        except OSError as error:
            raise store_error(error, "look at", self._folder) from error
        return disk.f_bavail * disk.f_frsize + taken

    def keep(self, index: int, data: bytes) -> None:
        """Write a chunk to its place, durably.

        Raises:
            StoreError: it cannot be written.

        Blocks: until the device has the data.
        """
        try:
            fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                begun = os.fstat(fd).st_size != self.offer.size_bytes
                if begun:
                    os.posix_fallocate(fd, 0, self.offer.size_bytes)  # what was counted on is taken at once
                    os.ftruncate(fd, self.offer.size_bytes)
                rest, at = memoryview(data), index * self.offer.chunk_bytes
                while rest:
                    written = os.pwrite(fd, rest, at)
                    rest, at = rest[written:], at + written
                os.fdatasync(fd)
                if begun:  # a file without a name is fetched again from the beginning
                    self._sync_folder()
            finally:
                os.close(fd)
        except OSError as error:
            raise store_error(error, "write", self._part) from error

    def finish(self) -> Path:
        """See that the whole is what was offered, and give it its name.

        Raises:
            ArtifactError: it is not; everything is thrown away.
            StoreError: it cannot be read or renamed.

        Blocks: while it hashes, and until the device knows.
        """
        if self.path.exists():
            remove(self._part)
            return self.path
        try:
            digest = hashlib.sha256()
            with self._part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != self.offer.sha256:
                remove(self._part)
                raise ArtifactError(f"{self._part}: is not what was offered: its sha256 differs")
            self._part.rename(self.path)
            self._sync_folder()
        except OSError as error:
            raise store_error(error, "finish", self._part) from error
        return self.path

    def _sync_folder(self) -> None:
        directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def sweep(folder: Path, keep: set[str]) -> int:
    """Remove bundles and unfinished ones that nobody needs any more.

    Args:
        folder: of `Part`.
        keep: SHA-256 of those that stay.

    Returns:
        Bytes freed. What cannot be removed stays, and is tried again next time.
    """
    freed = 0
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (".part", ".edgert") and path.stem not in keep:
                size = path.stat().st_size
                with contextlib.suppress(StoreError):
                    remove(path)
                    freed += size
    return freed


class Came(msgspec.Struct, frozen=True):
    """A chunk came over HTTP, its content unverified; `spent_bytes` crossed the link since the one before."""

    index: int
    data: bytes
    spent_bytes: int


class Ended(msgspec.Struct, frozen=True):
    """HTTP brings nothing more; `why` is empty when everything came."""

    why: str
    spent_bytes: int


class Http(threading.Thread):
    """Fetches what is missing of one file over HTTP or HTTPS, with ranges, and goes on where it broke off.

    Redirections are not followed: the offer is signed, and where it leads is part of it.

    Thread: it is one. Wait on `fileno()`, then call `take()`.
    """

    def __init__(
        self, offer: wire.PolicyOffer, missing: list[int], budget_bytes: int, retry_s: float = RETRY_S
    ) -> None:
        """Prepare.

        Args:
            offer: of the file; `url` is where.
            missing: chunks, in order.
            budget_bytes: most bytes over the link, headers included.
            retry_s: pause after the first broken attempt; doubles.
        """
        super().__init__(name="http", daemon=True)
        self._offer, self._missing, self._budget_bytes = offer, deque(missing), budget_bytes
        self._where = address(offer.url)  # errors are told to the fleet
        self._retry_s = retry_s
        self._tail = b""  # of the first missing chunk, what came before it broke off
        self._spent_bytes = self._told_bytes = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._events: list[Came | Ended] = []
        self._wake_r, self._wake_w = wake_pair()

    def fileno(self) -> int:
        """Readable when `take` has something."""
        return self._wake_r.fileno()

    def take(self) -> list[Came | Ended]:
        """What came since the last call."""
        with self._lock:
            drain(self._wake_r)
            taken, self._events = self._events, []
        return taken

    def close(self) -> None:
        """Bring nothing more; the thread ends by itself after its next read. `take` can no longer be called."""
        self._ending.set()
        with self._lock:
            self._wake_r.close()
            self._wake_w.close()

    def _tell(self, event: Came | Ended) -> None:
        with self._lock:
            self._events.append(event)
            with contextlib.suppress(OSError):
                self._wake_w.send(b"\0")

    def run(self) -> None:
        """Thread body: no exception leaves it."""
        failures = 0
        while self._missing and not self._ending.is_set():
            before = self._spent_bytes, len(self._missing), len(self._tail)
            try:
                self._attempt()
            except (LinkError, ArtifactError) as error:
                why = str(error)
                moved = (len(self._missing), len(self._tail)) != before[1:]
                failures = 0 if moved else failures + 1
                if isinstance(error, ArtifactError) or failures >= TRIES_MAX:
                    self._tell(Ended(why, self._spent()))
                    return
                self._ending.wait(min(RETRY_CAP_S, self._retry_s * 2.0 ** min(failures, 16)))
        self._tell(Ended("stopped" if self._missing else "", self._spent()))

    def _spent(self) -> int:
        spent, self._told_bytes = self._spent_bytes - self._told_bytes, self._spent_bytes
        return spent

    def _attempt(self) -> None:
        """One connection: as many chunks on end as are missing there.

        Raises:
            LinkError: it broke off; another attempt may do better.
            ArtifactError: another attempt would bring the same.
        """
        first = self._missing[0]
        last = first
        while last + 1 in self._missing:
            last += 1
        begin = first * self._offer.chunk_bytes + len(self._tail)
        end = min((last + 1) * self._offer.chunk_bytes, self._offer.size_bytes)
        connection = self._connect()
        try:
            parts = urlsplit(self._offer.url)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"Range": f"bytes={begin}-{end - 1}", "Connection": "close"})
            self._spent_bytes += len(target) + 120  # the request as http.client writes it, over-estimated
            response = connection.getresponse()
            self._spent_bytes += 20 + sum(len(name) + len(value) + 4 for name, value in response.getheaders())
            self._believe(response, begin)
            while begin < end and not self._ending.is_set():
                left = self._budget_bytes - self._spent_bytes
                if left <= 0:
                    raise ArtifactError(f"over-budget: {self._spent_bytes} bytes crossed the link")
                data = response.read1(min(READ_BYTES, end - begin, left))
                if not data:
                    raise LinkError(f"{self._where}: ended after {begin} of {end} bytes")
                begin += len(data)
                self._spent_bytes += len(data)
                self._cut(data)
        except (LinkError, ArtifactError):
            raise
        except OSError as error:  # before ValueError: a certificate that is not valid yet is both, and clocks get set
            raise LinkError(f"{self._where!r}: {type(error).__name__}: {error}") from error
        except (http.client.InvalidURL, ValueError) as error:  # no name of a host, no path of a file
            raise self._not_asked_for(error) from error
        except http.client.HTTPException as error:
            raise LinkError(f"{self._where!r}: {type(error).__name__}: {error}") from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        try:
            parts = urlsplit(self._offer.url)
            host, port = parts.hostname, parts.port
            if not host or parts.scheme not in ("http", "https"):
                raise ArtifactError(f"{self._where!r}: only http:// and https:// can be fetched")
            if parts.scheme == "https":
                return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        except ArtifactError:
            raise
        except (http.client.InvalidURL, ValueError) as error:
            raise self._not_asked_for(error) from error

    def _not_asked_for(self, error: Exception) -> ArtifactError:
        # What http.client says of such a URL repeats it, with what may be secret in it.
        return ArtifactError(f"{self._where!r}: this cannot be asked for: {type(error).__name__}")

    def _believe(self, response: http.client.HTTPResponse, begin: int) -> None:
        if response.status in (408, 425, 429) or response.status >= 500:
            raise LinkError(f"{self._where}: {response.status} {response.reason}")
        said = re.match(r"bytes (\d+)-", response.getheader("Content-Range", ""))
        ranged = response.status == 206 and said is not None and int(said[1]) == begin
        if not ranged and not (response.status == 200 and begin == 0):
            raise ArtifactError(
                f"{self._where}: {response.status} {response.reason} to a request for bytes from {begin} on; "
                "it must serve ranges"
            )

    def _cut(self, data: bytes) -> None:
        """Make chunks of what came."""
        self._tail += data
        while self._missing:
            index = self._missing[0]
            size = fetch.size(self._offer, index)
            if len(self._tail) < size:
                return
            chunk, self._tail = self._tail[:size], self._tail[size:]
            self._missing.popleft()
            self._tell(Came(index, chunk, self._spent()))


def wait_for(source: Http, patience_s: float) -> list[Came | Ended]:
    """Everything up to the end, for tools and tests.

    Raises:
        LinkError: it takes longer than that.

    Blocks: up to `patience_s`.
    """
    end_s, taken = time.monotonic() + patience_s, list[Came | Ended]()
    while not (taken and isinstance(taken[-1], Ended)):
        if time.monotonic() > end_s:
            raise LinkError(f"no end within {patience_s:g} s")
        source.join(0.01)
        taken += source.take()
    return taken
