"""The link, as far as the machine itself sees it: radio, throughput, loss, and whether it is paid by the byte.

What is chosen, and why:

- **Loss** is the share of TCP segments that were sent again (RetransSegs in /proc/net/snmp, both versions of IP): the
  broker is spoken to over TCP, so this is the loss that edgert feels, retries of the radio that worked out left out. It
  counts the whole machine, loopback too. An interface's own `tx_dropped` counts a full queue, not the link.
- **Throughput** is the best that was seen on the interface of the default route, forgotten over minutes: a lower bound
  of what the link can carry, which nobody had to be disturbed for.
- **Metered** is what the configuration says, or else a guess: an interface that the kernel calls wwan, or a DHCP server
  that says ANDROID_METERED (as a phone does that shares its link, and as NetworkManager guesses by), as far as
  systemd-networkd writes its leases down. NetworkManager tells its verdict over D-Bus alone, which is not spoken here.
  Everything else is unknown, and not free of charge.

Sources: proc(5); RFC 4022 (tcpRetransSegs, tcpOutSegs); Documentation/ABI/testing/sysfs-class-net; wireless-tools,
iwlib (levels in dBm are below 0 in /proc/net/wireless); systemd, src/libsystemd-network/sd-dhcp-lease.c
(VENDOR_SPECIFIC of /run/systemd/netif/leases).
"""

from __future__ import annotations

import math

from edgert.ports.board.files import Files
from edgert.ports.board.pace import Seen
from edgert.values import Reading

_SNMP = "proc/net/snmp"
_DEV = "proc/net/dev"
_WIRELESS = "proc/net/wireless"
_FORGET_S = 300.0
_SEGMENTS_MIN = 50
"""Loss is told of at least this many segments; it takes what came before into the next look until there are."""
_LOSS_S = 60.0
"""A loss that is older says nothing about now, and is unknown."""
_RTF_UP = 0x1
_METERED_HINT = b"ANDROID_METERED".hex()


class Network:
    """Reads /proc/net and the interface of the default route.

    Attributes:
        interface: of the default route, as of the last `scan`; empty without one.

    Thread:
        One at a time.
    """

    def __init__(self, files: Files, *, metered: bool | None = None) -> None:
        """Read nothing yet.

        Args:
            files: of the machine.
            metered: what the configuration says; None is not said.
        """
        self.interface = ""
        self._files = files
        self._said = metered
        self._metered = metered
        self._bytes: tuple[float, float] | None = None
        self._best = 0.0
        self._segments: tuple[int, int] | None = None
        self._loss: tuple[float, float] | None = None

    def scan(self) -> None:
        """Find the interface of the default route, and whether it is metered."""
        found = _default4(self._files.once("proc/net/route")) or _default6(self._files.once("proc/net/ipv6_route"))
        if found != self.interface:
            self._bytes, self._best = None, 0.0
        self.interface = found
        self._metered = self._guess() if self._said is None else self._said

    def read(self, now_s: float) -> Seen:
        """What the radio and the counters say."""
        told: dict[str, Reading] = {}
        rssi = self._rssi_dbm()
        if rssi is not None:
            told["rssi_dbm"] = Reading(rssi, 0.0, f"{self._files.source(_WIRELESS)}, {self.interface}")
        rate = self._rate(now_s)
        if rate is not None:
            source = f"{self._files.source(_DEV)}, {self.interface}"
            told["link_now_bytes_per_s"] = Reading(rate, 0.0, source)
            told["link_bytes_per_s"] = Reading(self._best, 0.0, f"{source}, best lately")
        self._count_loss(now_s)
        if self._loss is not None and now_s - self._loss[1] <= _LOSS_S:
            age_s = max(0.0, now_s - self._loss[1])
            told["link_loss_frac"] = Reading(self._loss[0], age_s, f"{self._files.source(_SNMP)}, TCP sent again")
        return Seen(told, metered=self._metered)

    def facts(self) -> dict[str, str]:
        """What was found at the last scan, for people."""
        if not self.interface:
            return {"network": "no default route"}
        why = "configured" if self._said is not None else "guessed"
        paid = {True: f"metered ({why})", False: f"not metered ({why})", None: "metered or not is unknown"}
        return {"network": f"{self.interface}, {paid[self._metered]}"}

    def _rssi_dbm(self) -> float | None:
        """`wlan0: 0000   54.  -56.  -256 ...`: status, quality, level, noise."""
        for line in (self._files.text(_WIRELESS) or "").splitlines()[2:]:
            name, _, rest = line.partition(":")
            words = rest.split()
            if name.strip() == self.interface and len(words) >= 3:
                try:
                    level = float(words[2])
                except ValueError:
                    return None
                return level if -120 <= level < 0 else None
        return None

    def _rate(self, now_s: float) -> float | None:
        """Bytes a second, received and sent, since the last look."""
        total = self._carried()
        before, self._bytes = self._bytes, None if total is None else (total, now_s)
        if total is None or before is None:
            return None
        elapsed_s = now_s - before[1]
        if elapsed_s <= 0 or total < before[0]:  # the interface came anew, and counts from 0
            return None
        rate = (total - before[0]) / elapsed_s
        self._best = max(rate, self._best * math.exp(-elapsed_s / _FORGET_S))
        return rate

    def _carried(self) -> float | None:
        for line in (self._files.text(_DEV) or "").splitlines()[2:]:
            name, _, rest = line.partition(":")
            words = rest.split()
            if self.interface and name.strip() == self.interface and len(words) >= 9:
                try:
                    return float(int(words[0]) + int(words[8]))
                except ValueError:
                    return None
        return None

    def _count_loss(self, now_s: float) -> None:
        lines = [line.split() for line in (self._files.text(_SNMP) or "").splitlines() if line.startswith("Tcp:")]
        if len(lines) != 2:
            self._segments = None
            return
        row = dict(zip(*lines, strict=False))
        try:
            sent, again = int(row["OutSegs"]), int(row["RetransSegs"])
        except (KeyError, ValueError):
            self._segments = None
            return
        if self._segments is None or sent < self._segments[0] or again < self._segments[1]:
            self._segments = sent, again
            return
        # OutSegs leaves those out that were sent again (RFC 4022), so all that was sent is the sum.
        fresh, lost = sent - self._segments[0], again - self._segments[1]
        if fresh + lost >= _SEGMENTS_MIN:
            self._segments = sent, again
            self._loss = lost / (fresh + lost), now_s

    def _guess(self) -> bool | None:
        if not self.interface:
            return None
        device = f"sys/class/net/{self.interface}"
        if "DEVTYPE=wwan" in (self._files.once(f"{device}/uevent") or ""):
            return True
        index = self._files.once(f"{device}/ifindex")
        lease = self._files.once(f"run/systemd/netif/leases/{index}") if index else None
        return True if _METERED_HINT in (lease or "").lower() else None


def _default4(text: str | None) -> str:
    """Interface of the default route with the lowest metric; /proc/net/route counts in hex, but its metric."""
    found = []
    for line in (text or "").splitlines()[1:]:
        words = line.split()
        try:
            up = len(words) >= 8 and int(words[3], 16) & _RTF_UP
            if up and int(words[1], 16) == 0 and int(words[7], 16) == 0:
                found.append((int(words[6]), words[0]))
        except ValueError:
            continue
    return min(found)[1] if found else ""


def _default6(text: str | None) -> str:
    """The same of /proc/net/ipv6_route: target, its length, source, its length, hop, metric, ..., interface."""
    found = []
    for line in (text or "").splitlines():
        words = line.split()
        try:
            if len(words) == 10 and int(words[0], 16) == 0 and int(words[1], 16) == 0 and words[9] != "lo":
                found.append((int(words[5], 16), words[9]))
        except ValueError:
            continue
    return min(found)[1] if found else ""
