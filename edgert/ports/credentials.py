"""Secrets in files: where they are, and whether nobody else can read them.

`credential:NAME` in a configuration is a file that systemd hands to the service (`LoadCredential=NAME:...`): readable
for it alone, wherever the original lies.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec

from edgert.config import Broker
from edgert.errors import ConfigError
from edgert.ports.link import Address, parse_url

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Where systemd puts what `LoadCredential=` names; readable for the service only."""
CREDENTIAL_PREFIX = "credential:"


def credential(path: str) -> Path:
    """The file that a configuration means: `credential:NAME` is one of systemd's.

    Raises:
        ConfigError: this process was given no credentials.
    """
    if not path.startswith(CREDENTIAL_PREFIX):
        return Path(path)
    folder, name = os.environ.get(CREDENTIALS), path.removeprefix(CREDENTIAL_PREFIX)
    if not folder:
        raise ConfigError(f"{path}: no credentials here; add LoadCredential={name}:/path/of/the/file to the unit")
    return Path(folder) / name


def read_secret(path: Path) -> bytes:
    """Read a file that only its owner may read.

    Raises:
        ConfigError: it cannot be read, or others can read it, and what to do about it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fault = secret_fault(path, os.fstat(fd))
            if fault:
                raise ConfigError(fault)
            with open(fd, "rb", closefd=False) as file:
                return file.read(1 << 20)
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def secret_fault(path: Path, status: os.stat_result) -> str:
    """What is wrong with the mode of a file that holds a secret; empty when nothing is.

    systemd gives credentials to the service's user through an access list that shows up as group-readable on some
    kernels, and nobody else can enter their directory: there a group may read.
    """
    if not stat.S_ISREG(status.st_mode):
        return f"{path}: not a file"
    folder = os.environ.get(CREDENTIALS)
    allowed = stat.S_IRGRP if folder and path.parent == Path(folder) else 0
    loose = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~allowed
    if loose:
        mode = stat.S_IMODE(status.st_mode)
        return f"{path}: mode {mode:04o} lets others at this secret; chmod 600 {path}"
    if status.st_uid not in (0, os.geteuid()):
        return f"{path}: belongs to uid {status.st_uid}, not to the one that runs this ({os.geteuid()}); chown it"
    return ""


def address_of(broker: Broker) -> Address:
    """How to reach the broker, with every secret read or checked.

    Raises:
        ConfigError: the url is wrong, a file cannot be read, or others can read a secret.
    """
    address = parse_url(broker.url)
    password = address.password
    if broker.password_file:
        lines = read_secret(credential(broker.password_file)).decode(errors="replace").splitlines()
        if not lines:
            raise ConfigError(f"broker.password_file {broker.password_file}: is empty")
        password = lines[0]
    ca, cert, key = (
        None if name is None else str(credential(name))
        for name in (
            broker.ca_file or address.ca_file,
            broker.cert_file or address.cert_file,
            broker.key_file or address.key_file,
        )
    )
    if key is not None:
        read_secret(Path(key))
    return msgspec.structs.replace(
        address,
        username=broker.username or address.username,
        password=password,
        ca_file=ca,
        cert_file=cert,
        key_file=key,
    )
