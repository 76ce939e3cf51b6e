"""The MQTT options of verbs that run something, and what they do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.config import RigConfig
    from labrig.events import EventBus

MqttOption = Annotated[
    str | None,
    typer.Option(
        "--mqtt",
        metavar="URL",
        help="Publish events at this MQTT broker, mqtt://HOST:PORT, in place of the rig file's.",
        show_default=False,
    ),
]
NoMqttOption = Annotated[bool, typer.Option("--no-mqtt", help="Publish nothing, whatever the rig file says.")]


@contextmanager
def published(rig: RigConfig | None, bus: EventBus, url: str | None = None, *, off: bool = False) -> Iterator[None]:
    """Publishes the events of `bus` inside the block, where the rig file or `url` names a broker.

    Raises:
        ConfigError: The section [telemetry] cannot be used as it is.
    """
    if off and url is not None:
        raise ConfigError("--mqtt names a broker and --no-mqtt wants none; give one of them")
    from labrig.events import Message
    from labrig.telemetry.listener import Telemetry
    from labrig.telemetry.settings import telemetry_settings

    settings = None if off or rig is None else telemetry_settings(rig, url)
    if settings is None:
        yield
        return
    telemetry = Telemetry(settings.broker, settings.topic, lambda text: bus.publish(Message(text)), settings.pace)
    with telemetry:
        unsubscribe = bus.subscribe(telemetry)
        try:
            yield
        finally:
            unsubscribe()
