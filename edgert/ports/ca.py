"""A small certificate authority in a folder, for the TLS of one fleet and its broker. The only home of X.509 here.

Two authorities, so that a device's certificate opens no other door than the devices': `devices.pem` signs devices,
whose name is their certificate's common name and, by the access list, the only one they can speak under; `staff.pem`
signs people, teachers and collectors, as `staff:<name>`, which no device can be called. The broker shows one
certificate to both.
"""

from __future__ import annotations

import datetime
import getpass
import ipaddress
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgert import wire
from edgert.errors import ConfigError
from edgert.ports.credentials import read_secret
from edgert.ports.signing import write_secret
from edgert.ports.store import store_error, write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CA_DAYS, DAYS = 3650, 397
"""397 days is what public authorities may give at most: long enough for a board in a field, short enough to be used."""
SKEW_DAYS = 1
Role = Literal["device", "staff", "broker"]

_MOSQUITTO = """\
# Written by `edgert fleet ca new`. Start it with: mosquitto -c {folder}/mosquitto.conf
per_listener_settings false
allow_anonymous false
acl_file {folder}/acl
persistence true
persistence_location {folder}/
autosave_interval 60
max_packet_size 1048576
max_inflight_messages 64
max_queued_messages 10000
set_tcp_nodelay true
persistent_client_expiration 7d
user {user}

# Devices. A certificate's common name is the user name, and the access list allows each user its own topics only.
listener {port}
socket_domain ipv4
cafile {folder}/devices.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
require_certificate true
use_identity_as_username true
tls_version tlsv1.2
crlfile {folder}/devices.crl

# People, teachers and collectors.
listener {staff_port}
socket_domain ipv4
cafile {folder}/staff.pem
certfile {folder}/broker.pem
keyfile {folder}/broker.key
require_certificate true
use_identity_as_username true
tls_version tlsv1.2
crlfile {folder}/staff.crl
"""

_ACL = """\
# Written by `edgert fleet ca new`. %u is the common name of whoever speaks.
pattern write edgert/v1/{fleet}/%u/status/#
pattern write edgert/v1/{fleet}/%u/tele/#
pattern write edgert/v1/{fleet}/%u/evt/#
pattern write edgert/v1/{fleet}/%u/know/ask/#
pattern write edgert/v1/{fleet}/%u/infer/ask/#
pattern write edgert/v1/{fleet}/%u/job/state/#
pattern write edgert/v1/{fleet}/%u/twin/reported/#
pattern write edgert/v1/{fleet}/%u/policy/report/#
pattern write edgert/v1/{fleet}/%u/place/#
pattern read edgert/v1/{fleet}/+/place/+/%u
pattern read edgert/v1/{fleet}/+/place/gone/-
pattern read edgert/v1/{fleet}/+/place/chunk/+
pattern read edgert/v1/{fleet}/%u/#
pattern read edgert/v1/{fleet}/-/policy/#
pattern read edgert/v1/{fleet}/+/infer/load/+
"""

_STAFF = """
user staff:{name}
topic readwrite edgert/v1/{fleet}/#
topic read $SYS/#
"""


class Authority:
    """A folder with the two authorities of one fleet.

    Attributes:
        folder: everything is in it; the keys are their owner's alone.
    """

    def __init__(self, folder: Path) -> None:
        """See `new_authority`; what is there is read when it is needed."""
        self.folder = folder

    def issue(
        self, role: Role, name: str, *, days: int = DAYS, hosts: Sequence[str] = (), now: datetime.datetime
    ) -> tuple[Path, Path]:
        """Make a key and a certificate for it.

        Args:
            role: who.
            name: its common name; of a device its id.
            days: it is valid for.
            hosts: of the broker: names and addresses that it is reached by.
            now: the time, in UTC.

        Returns:
            The files of certificate and key.

        Raises:
            ConfigError: the name is none, or the authority cannot be read.
            UsageError: there is such a key already.
            StoreError: it cannot be written.
        """
        _check_name(name)
        folder = self._folder_of(role)
        key = _new_key()
        write_secret(folder / f"{name}.key", _pem_of_key(key))
        certificate = self._sign(role, name, key.public_key(), days, hosts, now)
        _write(folder / f"{name}.pem", certificate)
        if role == "staff":
            self._let_in(name)
        return folder / f"{name}.pem", folder / f"{name}.key"

    def fleet(self) -> str:
        """The only one that anybody may speak in.

        Raises:
            ConfigError: this is no folder of `new_authority`.
        """
        return self._written("fleet").strip()

    def url(self, role: Role) -> str:
        """Where the broker listens for devices, or for everybody else.

        Raises:
            ConfigError: this is no folder of `new_authority`.
        """
        ports = re.findall(r"^listener (\d+)", self._written("mosquitto.conf"), re.MULTILINE)
        hosts = _hosts_of(_read_certificate(self.folder / "broker.pem"))
        if not ports or not hosts:
            raise ConfigError(f"{self.folder}: mosquitto.conf names no listener, or broker.pem no host")
        host = f"[{hosts[0]}]" if ":" in hosts[0] else hosts[0]
        return f"mqtts://{host}:{ports[-1] if role == 'staff' else ports[0]}"

    def _written(self, name: str) -> str:
        try:
            return (self.folder / name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.folder / name}: {error}; `edgert fleet ca new` writes it") from error

    def renew(self, role: Role, name: str, *, days: int = DAYS, now: datetime.datetime) -> Path:
        """Make another certificate for the key of the one there is; the key itself need not be here any more.

        Args:
            role: who.
            name: its common name.
            days: the new one is valid for.
            now: the time, in UTC.

        Returns:
            The file; the former one is in its place no more.

        Raises:
            ConfigError: there is none, or the authority cannot be read.
            StoreError: it cannot be written.
        """
        _check_name(name)
        path = self._folder_of(role) / f"{name}.pem"
        former = _read_certificate(path)
        hosts = _hosts_of(former)
        _write(path, self._sign(role, name, former.public_key(), days, hosts, now))
        return path

    def revoke(self, role: Role, name: str, *, now: datetime.datetime) -> Path:
        """Put the certificate there is on the list of those that the broker must refuse.

        Returns:
            The list; the broker reads it when it starts anew (mosquitto: also at SIGHUP).

        Raises:
            ConfigError: there is none, or the authority cannot be read.
            StoreError: it cannot be written.
        """
        from cryptography import x509

        _check_name(name)
        serial = _read_certificate(self._folder_of(role) / f"{name}.pem").serial_number
        path = self.folder / f"{'staff' if role == 'staff' else 'devices'}.crl"
        former = x509.load_pem_x509_crl(path.read_bytes())
        revoked = {each.serial_number: each.revocation_date_utc for each in former} | {serial: now}
        _write_crl(path, *self._ca(role), revoked, now)
        return path

    def _folder_of(self, role: Role) -> Path:
        return self.folder if role == "broker" else self.folder / ("staff" if role == "staff" else "devices")

    def _ca(self, role: Role) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        name = "staff" if role == "staff" else "devices"
        return _read_certificate(self.folder / f"{name}.pem"), _read_key(self.folder / f"{name}.key")

    def _sign(
        self, role: Role, name: str, public: object, days: int, hosts: Sequence[str], now: datetime.datetime
    ) -> x509.Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import ExtendedKeyUsageOID

        ca, key = self._ca(role)
        use = ExtendedKeyUsageOID.SERVER_AUTH if role == "broker" else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = _builder(f"staff:{name}" if role == "staff" else name, ca.subject, public, days, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_host(each) for each in hosts]), critical=False
            )
        return builder.sign(key, hashes.SHA256())

    def _let_in(self, name: str) -> None:
        path = self.folder / "acl"
        text = self._written("acl") + _STAFF.format(name=name, fleet=self.fleet())
        write_atomic(path, text.encode(), mode=0o644)


def new_authority(
    folder: Path,
    fleet: str,
    hosts: Sequence[str],
    *,
    port: int = 8883,
    staff_port: int = 8884,
    now: datetime.datetime,
) -> Authority:
    """Make the authorities, the broker's certificate, and mosquitto's configuration and access list.

    Args:
        folder: becomes its owner's alone.
        fleet: the only one that the access list lets anybody speak in.
        hosts: names and addresses that the broker is reached by.
        port: for devices.
        staff_port: for everybody else.
        now: the time, in UTC.

    Returns:
        The authority.

    Raises:
        ConfigError: fleet or host is no name, or the package is missing.
        UsageError: there is one already.
        StoreError: it cannot be written.
    """
    _check_name(fleet)
    if not hosts:
        raise ConfigError("a broker needs a name or an address that it is reached by")
    made = Authority(folder)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise store_error(error, "make", folder) from error
    for name in ("devices", "staff"):
        key = _new_key()
        write_secret(folder / f"{name}.key", _pem_of_key(key))
        certificate = _self_signed(f"edgert {fleet} {name}", key, now)
        _write(folder / f"{name}.pem", certificate)
        _write_crl(folder / f"{name}.crl", certificate, key, {}, now)
    write_atomic(folder / "fleet", f"{fleet}\n".encode(), mode=0o644)
    write_atomic(folder / "acl", _ACL.format(fleet=fleet).encode(), mode=0o644)
    config = _MOSQUITTO.format(folder=folder.absolute(), port=port, staff_port=staff_port, user=getpass.getuser())
    write_atomic(folder / "mosquitto.conf", config.encode(), mode=0o644)
    made.issue("broker", "broker", hosts=hosts, now=now)
    return made


def days_left(path: Path, now: datetime.datetime) -> float:
    """How long a certificate is still valid.

    Raises:
        ConfigError: it cannot be read.
    """
    return (_read_certificate(path).not_valid_after_utc - now).total_seconds() / 86_400.0


def common_name(path: Path) -> str:
    """Whose certificate it is.

    Raises:
        ConfigError: it cannot be read, or says not whose it is.
    """
    from cryptography.x509.oid import NameOID

    found = _read_certificate(path).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not found:
        raise ConfigError(f"{path}: a certificate without a common name")
    return str(found[0].value)


def belong_together(certificate: Path, key: Path) -> str:
    """Why this key is not that certificate's; empty where it is.

    Raises:
        ConfigError: the key cannot be read, or others can.
    """
    read_secret(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        return f"{certificate} does not go with {key}: {error}"
    return ""


def swap_in(new: Path, target: Path) -> None:
    """Put a certificate that was tried in the place of the former one, durably; the former stays beside it as `.old`.

    Raises:
        StoreError: it cannot be written; the former stays.
    """
    try:
        data, former = new.read_bytes(), target.read_bytes() if target.exists() else None
    except OSError as error:
        raise store_error(error, "read", new) from error
    if former is not None:
        write_atomic(target.with_name(target.name + ".old"), former, mode=0o644)
    write_atomic(target, data, mode=0o644)


def _check_name(name: str) -> None:
    # A wildcard or a slash in a common name would be one in the access list.
    if not wire.is_name(name):
        raise ConfigError(f"{name!r}: letters, digits, '.', '_' and '-', at most 64, the first no sign")


def _new_key() -> ec.EllipticCurvePrivateKey:
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as error:
        raise ConfigError("the Python package cryptography is missing: pip install 'edgert[trust]'") from error
    return ec.generate_private_key(ec.SECP256R1())


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    text = read_secret(path)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(text, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: no private key that can be used: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path}: not a key of `edgert fleet ca`")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        from cryptography import x509
    except ModuleNotFoundError as error:
        raise ConfigError("the Python package cryptography is missing: pip install 'edgert[trust]'") from error
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; `edgert fleet ca` makes it") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no certificate: {error}") from error


def _builder(
    name: str, issuer: x509.Name, public: object, days: int, now: datetime.datetime
) -> x509.CertificateBuilder:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError(f"{name}: its certificate has a key that `edgert fleet ca` does not make")
    if not 1 <= days <= CA_DAYS:
        raise ConfigError(f"{days} days: from 1 to {CA_DAYS}")
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        # A board whose clock is behind by hours must not find its own certificate to be of the future.
        .not_valid_before(now - datetime.timedelta(days=SKEW_DAYS))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _self_signed(name: str, key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    own = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(name, own, key.public_key(), CA_DAYS, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())


def _write_crl(
    path: Path,
    ca: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    revoked: dict[int, datetime.datetime],
    now: datetime.datetime,
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - datetime.timedelta(days=SKEW_DAYS))
        .next_update(now + datetime.timedelta(days=CA_DAYS))
    )
    for serial, at in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        builder = builder.add_revoked_certificate(entry)
    write_atomic(path, builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), mode=0o644)


def _hosts_of(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(each.value) for each in names]


def _host(text: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: no name of a host: {error}") from error


def _write(path: Path, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    write_atomic(path, certificate.public_bytes(Encoding.PEM), mode=0o644)
