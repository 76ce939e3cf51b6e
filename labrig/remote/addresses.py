"""Where a served rig is: a broker, and the topics of the rig below it; `mqtt://HOST:PORT/SITE/RIG`."""

from __future__ import annotations

from dataclasses import dataclass

from labrig.addresses import BrokerAddress, broker_address
from labrig.telemetry.topics import rig_topic, topic_level
from labrig_drivers.errors import ConfigError


@dataclass(frozen=True)
class RigAddress:
    """Where a served rig is.

    Attributes:
        broker: The broker.
        site: Where the rig stands.
        rig: Its name.
    """

    broker: BrokerAddress
    site: str
    rig: str

    @property
    def topic(self) -> str:
        """What its topics begin with."""
        return rig_topic(self.site, self.rig)

    def __str__(self) -> str:
        return f"{self.broker}/{self.site}/{self.rig}"


def rig_address(url: str) -> RigAddress:
    """Reads `mqtt://HOST:PORT/SITE/RIG`, or `mqtts://` for an encrypted connection; the port may be left out.

    Raises:
        ConfigError: It is none; the message says why.
    """
    scheme, separator, rest = url.partition("://")
    host, _, path = rest.partition("/")
    levels = path.split("/")
    try:
        broker = broker_address(f"{scheme}{separator}{host}")
    except ValueError as error:
        raise ConfigError(f"{_harmless(url)} is no address of a served rig: {error}") from None
    if len(levels) != 2 or any(not level or topic_level(level) != level for level in levels):
        raise ConfigError(
            f"{_harmless(url)} is no address of a served rig: expected mqtt://HOST:PORT/SITE/RIG, "
            "as `labrig serve` prints it"
        )
    return RigAddress(broker, levels[0], levels[1])


def _harmless(url: str) -> str:
    # What stands before an @ could be a password.
    return "this" if "@" in url else repr(url)
