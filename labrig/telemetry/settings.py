"""From the section [telemetry] of a rig file to a broker with its secrets, which stand elsewhere."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from labrig.addresses import BrokerAddress, broker_address
from labrig.config import RigConfig, TelemetryConfig
from labrig.passwords import NoPasswordError, named_password
from labrig.telemetry.broker import Broker
from labrig.telemetry.pace import Pace
from labrig.telemetry.topics import rig_topic
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class TelemetrySettings:
    """Everything that telemetry is made of.

    Attributes:
        broker: Where to publish.
        topic: What all topics begin with.
        pace: Bounds.
    """

    broker: Broker
    topic: str
    pace: Pace


def telemetry_settings(rig: RigConfig, url: str | None = None, *, option: str = "--mqtt") -> TelemetrySettings | None:
    """Reads what the section [telemetry] names; None where there is neither a section nor `url`.

    Args:
        rig: The rig file.
        url: A broker in place of the section's. Site, account and certificates stay those of the section.
        option: What the command line calls `url`, for messages.

    Raises:
        ConfigError: The address is none, or password or certificates cannot be had; the message lists every fault and
            no secret.
    """
    section = rig.telemetry
    if section is None and url is None:
        return None
    faults: list[str] = []
    address: BrokerAddress | None = None
    try:
        address = broker_address(url or ("" if section is None else section.broker))
    except ValueError as error:
        faults.append(f"{option}: {error}")
    password = None if section is None else _password(rig, section, faults)
    ca_file = None if section is None or address is None or not address.tls else section.ca_file
    if ca_file is not None:
        try:
            ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            # What is no certificate is an OSError, too.
            faults.append(f"{rig.locate('telemetry.ca_file')}: telemetry.ca_file: {ca_file}: {error.strerror or error}")
    if faults or address is None:
        raise ConfigError("\n".join(faults))
    usual = TelemetryConfig(broker=str(address)) if section is None else section
    broker = Broker(address, usual.username, password, ca_file)
    return TelemetrySettings(broker, rig_topic(usual.site, rig.rig.name), Pace(max_rate_hz=usual.max_rate_hz))


def _password(rig: RigConfig, section: TelemetryConfig, faults: list[str]) -> str | None:
    try:
        return named_password(section.password_env, section.password_file)
    except NoPasswordError as error:
        key = f"telemetry.{str(error).partition(':')[0]}"
        faults.append(f"{rig.locate(key)}: telemetry.{error}")
        return None
