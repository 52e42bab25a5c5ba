"""`edgert fleet ca`: certificates for the broker, the devices and the people of one fleet."""

from __future__ import annotations

import argparse
import datetime
import select
import sys
import time
from pathlib import Path

import msgspec

from edgert.cli import OK, RETRY_LATER
from edgert.errors import ConfigError
from edgert.ports import ca as authority
from edgert.ports.link import Address, LinkDown, LinkUp, parse_url
from edgert.ports.mqtt import Mqtt
from edgert.ports.process import load_config
from edgert.ports.store import store_error, write_atomic


def ca(argv: list[str]) -> int:
    """Make, renew, revoke or install certificates.

    Returns:
        0; 75 when the broker did not take a new certificate, and the former one stays.

    Raises:
        ConfigError: names, files or their modes are wrong.
        UsageError: there is such a key already.
        StoreError: a file cannot be written.
    """
    args = _parse(argv)
    now = datetime.datetime.now(datetime.timezone.utc)
    if args.verb == "install":
        return _install(args, now)
    if args.verb == "new":
        made = authority.new_authority(
            args.folder, args.fleet, args.host, port=args.port, staff_port=args.staff_port, now=now
        )
        print(f"{made.folder}: two authorities, the broker's certificate, mosquitto.conf and acl")
        print(f"start the broker: mosquitto -c {made.folder.absolute()}/mosquitto.conf")
        print("keep devices.key and staff.key where the broker is not: it needs neither")
        return OK
    held = authority.Authority(args.folder)
    role: authority.Role = "broker" if args.name == "broker" and args.verb == "renew" else "device"
    role = "staff" if args.verb == "staff" or getattr(args, "staff", False) else role
    if args.verb in ("device", "staff"):
        certificate, key = held.issue(role, args.name, days=args.days, now=now)
        print(f"{certificate}, {key}: valid for {args.days} days")
        if role == "device":
            print("on the device, with these two and devices.pem readable for its service alone:")
            print(
                f'  [device]\n  id = "{args.name}"\n  fleet = "{held.fleet()}"\n  [broker]\n  url = "{held.url(role)}"'
            )
            print(f'  ca_file = "devices.pem"\n  cert_file = "{certificate.name}"\n  key_file = "{key.name}"')
        else:
            print("the broker reads its access list anew at SIGHUP; then")
            where = f"{held.url(role)}?ca={args.folder / 'devices.pem'}&cert={certificate}&key={key}"
            print(f"  edgert fleet status --fleet {held.fleet()} --broker '{where}'")
    elif args.verb == "renew":
        path = held.renew(role, args.name, days=args.days, now=now)
        print(f"{path}: valid for {args.days} days more, for the same key")
        print(f"on the device: edgert fleet ca install {path.name} --config /etc/edgert/edgert.toml")
    else:
        print(f"{held.revoke(role, args.name, now=now)}: the broker refuses {args.name} once it has read it")
    return OK


def _install(args: argparse.Namespace, now: datetime.datetime) -> int:
    """`.new`, a connection with it, and only then the swap."""
    config = load_config(args.config)
    broker = config.broker
    if broker.cert_file is None or broker.key_file is None:
        raise ConfigError(f"{args.config}: broker.cert_file and broker.key_file are not set")
    target, key = Path(broker.cert_file), Path(broker.key_file)
    new = target.with_name(target.name + ".new")
    try:
        write_atomic(new, args.certificate.read_bytes(), mode=0o644)
    except OSError as error:
        raise store_error(error, "read", args.certificate) from error
    if fault := authority.belong_together(new, key):
        raise ConfigError(fault)
    name = authority.common_name(new)
    if name != config.device.id:
        raise ConfigError(f"{args.certificate} is of {name}, and this device is {config.device.id}")
    left = authority.days_left(new, now)
    if left <= 0:
        raise ConfigError(f"{args.certificate}: its time is over")
    address = msgspec.structs.replace(
        parse_url(broker.url), ca_file=broker.ca_file, cert_file=str(new), key_file=str(key)
    )
    why = try_link(address, f"edgert-{config.device.fleet}-{config.device.id}-new", args.timeout_s)
    if why:
        print(f"edgert: the broker does not take {new}: {why}; {target} stays", file=sys.stderr)
        return RETRY_LATER
    authority.swap_in(new, target)
    new.unlink()
    print(f"{target}: valid for {left:.0f} days; used from the next connection on")
    return OK


def try_link(address: Address, client_id: str, patience_s: float) -> str:
    """Why no connection comes about; empty when one does.

    Blocks: up to `patience_s`.
    """
    why, end_s = f"no answer within {patience_s:g} s", time.monotonic() + patience_s
    with Mqtt(address, client_id, session_expiry_s=0) as mqtt:
        poller = select.poll()
        poller.register(mqtt.fileno(), select.POLLIN)
        while (left_s := end_s - time.monotonic()) > 0:
            poller.poll(1000 * min(left_s, 60.0))
            for event in mqtt.events():
                if isinstance(event, LinkUp):
                    return ""
                if isinstance(event, LinkDown):
                    why = event.reason
    return why


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="edgert fleet ca", description="Certificates of one fleet.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="make the authorities, and what the broker needs")
    device = verbs.add_parser("device", help="make key and certificate of a device")
    staff = verbs.add_parser("staff", help="the same for a person, a teacher or a collector")
    renew = verbs.add_parser("renew", help="make another certificate for the key there is")
    revoke = verbs.add_parser("revoke", help="let the broker refuse a certificate")
    install = verbs.add_parser("install", help="on a device: try a new certificate, and use it if the broker takes it")
    for one in (new, device, staff, renew, revoke):
        one.add_argument("folder", type=Path, metavar="DIR", help="folder of the authorities")
    for one in (device, staff, renew, revoke):
        one.add_argument("name", help="of the device, as device.id has it" if one is device else "whose")
    for one in (device, staff, renew):
        one.add_argument("--days", type=int, default=authority.DAYS, help="valid for (%(default)s)")
    for one in (renew, revoke):
        one.add_argument("--staff", action="store_true", help="of staff, not of a device")
    new.add_argument("--fleet", default="default", help="the only one that anybody may speak in (%(default)s)")
    new.add_argument("--host", nargs="+", required=True, help="names and addresses that the broker is reached by")
    new.add_argument("--port", type=int, default=8883, help="for devices (%(default)s)")
    new.add_argument("--staff-port", type=int, default=8884, help="for everybody else (%(default)s)")
    install.add_argument("certificate", type=Path, metavar="FILE")
    install.add_argument("--config", type=Path, default=Path("/etc/edgert/edgert.toml"), help="(%(default)s)")
    install.add_argument("--timeout-s", type=float, default=20.0, help="patience with the broker (20)")
    return parser.parse_args(argv)
