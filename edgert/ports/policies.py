"""The shell of `fleet.policies`: files, chunks and HTTP of one device. It does what it is told, and says what came.

Blocks: writing and hashing take as long as the disk does, some tens of milliseconds for a policy; the act loop is
another process.
"""

from __future__ import annotations

import contextlib
import logging
import select
from collections.abc import Callable
from pathlib import Path

from edgert import bundle
from edgert.errors import ArtifactError, StoreError
from edgert.fleet import fetch
from edgert.fleet.policies import Found as OnDisk
from edgert.offers import (
    Arrived,
    Ask,
    Check,
    Checked,
    Do,
    Found,
    Http,
    HttpEnded,
    Keep,
    Kept,
    KeysNote,
    Leave,
    Note,
    Noted,
    Open,
    PolicyOffer,
    SeenNote,
    Sweep,
    Told,
)
from edgert.ports import fetch as files
from edgert.ports.mqtt import Mqtt
from edgert.ports.store import store_error, write_atomic

Judge = Callable[[bundle.Bundle, PolicyOffer, str], Checked]
log = logging.getLogger("edgert.policies")


class Store:
    """Where policies from the fleet are kept.

    Attributes:
        folder: of them, and of what is remembered about them.
    """

    def __init__(self, folder: Path, fleet: str, mqtt: Mqtt, bundles: str = "bundles") -> None:
        """Nothing is touched.

        Args:
            folder: of its own.
            fleet: under whose topics the chunks lie.
            mqtt: over which they come.
            bundles: name of the folder inside for policies; others were for another installed policy.
        """
        self.folder, self._fleet, self._mqtt = folder, fleet, mqtt
        self._bundles = folder / bundles
        self._note, self._keys, self._seen = folder / "update.json", folder / "keys.cbor", folder / "commands.json"
        self._part: files.Part | None = None
        self._http: files.Http | None = None
        self._poll = select.epoll()

    def found(self) -> OnDisk:
        """What a predecessor left.

        Raises:
            StoreError: the folder cannot be made, or a file in it not be read.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in self.folder.iterdir():
                if path.is_dir() and path != self._bundles:
                    files.sweep(path, set())
            read = [path.read_bytes() if path.exists() else b"" for path in (self._keys, self._seen, self._note)]
        except OSError as error:
            raise store_error(error, "read", self.folder) from error
        return OnDisk(*read)

    def fileno(self) -> int:
        """Readable when `events` has something."""
        return self._poll.fileno()

    def events(self) -> list[Told]:
        """What came over HTTP since the last call."""
        told: list[Told] = []
        for event in self._http.take() if self._http is not None else ():
            if isinstance(event, files.Came):
                told.append(Arrived(event.index, event.data))
            else:
                told.append(HttpEnded(event.why))
        if told and isinstance(told[-1], HttpEnded):
            self._end_http()
        return told

    def perform(self, do: Do, judge: Judge) -> list[Told]:
        """Do it, and say what came of it.

        Args:
            do: what `fleet.update` wants.
            judge: whether a bundle may act here.
        """
        match do:
            case Note(data):
                return [Noted(self._write(self._note, data))]
            case KeysNote(data):
                self._write(self._keys, data)
            case SeenNote(data):
                self._write(self._seen, data)
            case Open(offer):
                return self._open(offer)
            case Ask(index, sha256):
                # At QoS 0 a session that ended keeps nothing, which would come beside what is asked for anew.
                self._mqtt.subscribe([(fetch.topic(self._fleet, sha256, index), 0)], again=False)
            case Leave(index, sha256):
                # Once: should the broker not hear it, only somebody who publishes the chunk anew would bring it again.
                self._mqtt.unsubscribe([fetch.topic(self._fleet, sha256, index)], again=False)
            case Keep(index, data, sha256):
                return [Kept(index, self._keep(index, data, sha256))]
            case Http(offer, missing, budget_bytes):
                self._end_http()
                self._http = files.Http(offer, list(missing), budget_bytes)
                self._poll.register(self._http.fileno(), select.EPOLLIN)
                self._http.start()
            case Check(offer):
                return [self._check(offer, judge)]
            case Sweep(keep):
                files.sweep(self._bundles, set(keep))
        return []

    def close(self) -> None:
        """Let go; what is on its way goes on at the next start."""
        self._end_http()
        self._poll.close()

    def _write(self, path: Path, data: bytes) -> bool:
        try:
            write_atomic(path, data)
        except StoreError as error:
            log.error("%s", error)
            return False
        return True

    def _open(self, offer: PolicyOffer) -> list[Told]:
        self._end_http()
        self._part = files.Part(self._bundles, offer)
        try:
            return [Found(offer.sha256, tuple(sorted(self._part.there())), self._part.free_bytes())]
        except StoreError as error:
            log.error("%s", error)
            return [Found(offer.sha256, (), 0)]

    def _keep(self, index: int, data: bytes, sha256: str) -> bool:
        if self._part is None or self._part.offer.sha256 != sha256:
            return False
        try:
            self._part.keep(index, data)
        except StoreError as error:
            log.error("%s", error)
            return False
        return True

    def _check(self, offer: PolicyOffer, judge: Judge) -> Checked:
        part = files.Part(self._bundles, offer)
        try:
            path = part.finish()
            return judge(bundle.read(path.read_bytes()), offer, str(path))
        except ArtifactError as error:
            return Checked(offer.sha256, "unreadable", str(error), "")
        except (StoreError, OSError) as error:
            return Checked(offer.sha256, "not-written", str(error), "")

    def _end_http(self) -> None:
        if self._http is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(self._http.fileno())
            self._http.close()
            self._http = None
