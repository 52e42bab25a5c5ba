"""What the supervisor's shell does for `guard`: finds what is remembered, and carries policies to and fro."""

from __future__ import annotations

import logging

from edgert import bundle, bus, offers
from edgert.config import Config
from edgert.device import Device
from edgert.errors import ArtifactError, ConfigError, StoreError
from edgert.fleet import policies, presence, trust
from edgert.guard import Guard
from edgert.ports.credentials import credential
from edgert.ports.mqtt import Mqtt
from edgert.ports.policies import Store
from edgert.ports.process import Layout, fleet_folder, identity, read_bundle
from edgert.ports.signing import read_keys, verify

log = logging.getLogger("edgert.supervisor")


class Deliveries:
    """The files and downloads of one device.

    Attributes:
        fault: why something that was remembered could not be read; empty where all could.
    """

    def __init__(self, config: Config, layout: Layout, mqtt: Mqtt, board: str | None) -> None:
        """Find what is there.

        Args:
            config: of the device.
            layout: of the device.
            mqtt: over which policies come.
            board: model of this board; None when not known.

        Raises:
            ConfigError: the keys cannot be used, or nobody vouches for the installed policy and somebody must.
            ArtifactError: the installed policy is no sound bundle.
        """
        self._config, self._board = config, board
        installed = bundle.read(read_bundle(config))
        self._manifest = installed.manifest
        self._store = Store(layout.fleet, config.device.fleet, mqtt, fleet_folder(identity(installed.manifest)))
        name = config.trust.keys_file
        self._keys = None if name is None else read_keys(credential(name))
        if self._keys is not None:
            verify(b"", b"", b"")  # a missing package is to be told now, and not when the first command comes
        if config.trust.require_signed:
            told = self._judge_installed(installed)
            if isinstance(told, trust.Refusal):
                raise ConfigError(f"{config.policy.bundle}: {told.code}: {told.why}; trust.require_signed is true")
        self.fault = ""
        try:
            self._found = self._store.found()
        except StoreError as error:
            self._found, self.fault = policies.Found(), str(error)

    def guard(self, device: Device, herald: presence.Herald | None = None) -> Guard:
        """The device behind its guard; `herald` says that it is there."""
        state, faults = policies.open_policies(
            self._config,
            self._manifest,
            board=self._board,
            keys=self._keys,
            found=self._found,
            installed=identity(self._manifest),
        )
        self.fault = "; ".join(filter(None, (self.fault, *faults)))
        return Guard(device=device, policies=state, verify=verify, herald=herald)

    def fileno(self) -> int:
        """Readable when `events` has something."""
        return self._store.fileno()

    def events(self) -> list[bus.PolicyTold]:
        """What came over HTTP."""
        return [bus.PolicyTold(told) for told in self._store.events()]

    def perform(self, do: offers.Do, guard: Guard) -> list[bus.PolicyTold]:
        """Do it, and say what came of it."""

        def judge(found: bundle.Bundle, offer: offers.PolicyOffer, path: str) -> offers.Checked:
            wall_s = guard.device.duties.wall_s
            return policies.check(guard.policies, found, offer, path, wall_s=wall_s, verify=verify)

        return [bus.PolicyTold(told) for told in self._store.perform(do, judge)]

    def close(self) -> None:
        """Let go; what is on its way goes on at the next start."""
        self._store.close()

    def _judge_installed(self, installed: bundle.Bundle) -> trust.Release | trust.Refusal | None:
        try:
            return trust.judge_bundle(
                installed,
                self._keys,
                required=True,
                robot=self._config.device.robot,
                board=self._board,
                floor=0,
                # An installed policy acted before; that its time is over is a reason not to take it up, not to stop.
                now_s=None,
                verify=verify,
            )
        except ArtifactError as error:
            raise ConfigError(f"{self._config.policy.bundle}: {error}") from error
