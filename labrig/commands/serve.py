"""`labrig serve`: a rig for use from other machines, until Ctrl-C."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig.commands.live_option import LiveAccessOption, LiveAtOption, LiveOption, LiveOptions, shown_live
from labrig.extras import demand_extra
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.config import RigConfig
    from labrig.events import EventBus
    from labrig.remote.direct import DirectSettings
    from labrig.remote.embedded import EmbeddedSettings
    from labrig.remote.service import RigService
    from labrig.telemetry.broker import Broker

    BrokerFor = Callable[[str, str], AbstractAsyncContextManager[Broker]]

EMBEDDED = "embedded"


def serve(
    rig: RigArgument,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL|embedded",
            help="An MQTT broker, mqtt://HOST:PORT or mqtts://HOST:PORT, or `embedded`: one inside this program. "
            "The rig file's broker, or else `embedded`, when left out.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="IP:PORT", help="Where the embedded broker listens; port 0 takes a free one.")
    ] = "127.0.0.1:1883",
    cert: Annotated[Path | None, typer.Option(help="Certificate (PEM) of the embedded broker, to encrypt.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key (PEM) of that certificate.")] = None,
    direct: Annotated[
        str | None,
        typer.Option(
            metavar="IP:PORT",
            help="Also offer a direct link there, past the broker, for large batches; port 0 takes a free one.",
            show_default=False,
        ),
    ] = None,
    open_broker: Annotated[
        bool, typer.Option("--open-broker", help="Allow a broker that others reach without account or encryption.")
    ] = False,
    lease: Annotated[
        float,
        typer.Option(
            min=1.0, max=3600.0, metavar="SECONDS", help="Time after a user's last sign of life until outputs go off."
        ),
    ] = 10.0,
    live: LiveOption = False,
    live_at: LiveAtOption = None,
    live_access: LiveAccessOption = None,
) -> None:
    """Serve a rig over MQTT until Ctrl-C: its board and source-meters, to one user at a time.

    Example: `labrig serve rig_configs/mock.toml --broker embedded` here, then in another terminal
    `labrig check rig_configs/remote.toml`.
    """
    from labrig.config import load_rig

    config = load_rig(rig)
    account = telemetry_account(config, broker)
    link = None if direct is None else _direct(direct, cert, key, open_broker)
    page = LiveOptions(live, live_at, live_access)
    if account is None:
        settings = _embedded(config, listen, cert, key, open_broker)
        settings.check()
        _serve_shown(config, lambda root, client: _inside(settings, root, client), lease, link, page)
        return
    if link is None and (cert is not None or key is not None):
        raise ConfigError("--cert and --key are for `--broker embedded` and `--direct`; another broker has its own")
    _check_open(account, open_broker)
    _serve_shown(config, lambda _root, _client: _outside(account), lease, link, page)


def telemetry_account(config: RigConfig, url: str | None) -> Broker | None:
    """The broker that was named, with the account of the rig file; None for the embedded one.

    Raises:
        ConfigError: The section [telemetry] cannot be used as it is.
    """
    from labrig.telemetry.settings import telemetry_settings

    if url == EMBEDDED:
        return None
    settings = telemetry_settings(config, url, option="--broker")
    return None if settings is None else settings.broker


def _check_open(broker: Broker, allowed: bool) -> None:
    import ipaddress

    host = broker.address.host
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    if not near and broker.username is None and not allowed:
        raise ConfigError(
            f"whoever reaches {broker.address} could use this rig, as no account is named; put username and "
            "password_file into the section [telemetry] of the rig file, or say --open-broker"
        )


def _embedded(
    config: RigConfig, listen: str, cert: Path | None, key: Path | None, open_broker: bool
) -> EmbeddedSettings:
    from labrig.remote.embedded import EmbeddedSettings

    host, port = _host_and_port("--listen", listen)
    username = password = ca_file = None
    if config.telemetry is not None and config.telemetry.username is not None:
        # The account of the rig file is then the one that the embedded broker asks for.
        from labrig.telemetry.settings import telemetry_settings

        settings = telemetry_settings(config)
        assert settings is not None
        username, password, ca_file = settings.broker.username, settings.broker.password, settings.broker.ca_file
    return EmbeddedSettings(
        host=host,
        port=port,
        username=username,
        password=password,
        cert_file=cert,
        key_file=key,
        ca_file=Path(ca_file) if ca_file is not None else cert,
        let_everybody_in=open_broker,
    )


def _direct(listen: str, cert: Path | None, key: Path | None, open_broker: bool) -> DirectSettings:
    from labrig.remote.direct import DirectSettings

    host, port = _host_and_port("--direct", listen)
    settings = DirectSettings(host, port, cert, key, open_broker)
    settings.check()
    return settings


def _host_and_port(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{option}: {text!r} is not IP:PORT, such as 127.0.0.1:1883")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def _inside(settings: EmbeddedSettings, root: str, client: str) -> AsyncIterator[Broker]:
    from labrig.remote.embedded import embedded_broker

    async with embedded_broker(settings, root, client) as broker:
        yield broker


@asynccontextmanager
async def _outside(broker: Broker) -> AsyncIterator[Broker]:
    yield broker


def _serve_shown(
    config: RigConfig, broker_for: BrokerFor, lease_s: float, direct: DirectSettings | None, page: LiveOptions
) -> None:
    from labrig.events import EventBus

    bus = EventBus()
    if not page.wanted:
        run_interruptible(_serve(config, broker_for, lease_s, direct, bus, lambda _: None))
        return
    demand_extra("serve --live", "live")
    from labrig.live.served_rig import READY, ServedRig

    steering, rig = ServedRig(bus), config.rig.name
    with shown_live(bus, page, "serve", title=rig, doing="MEASURING", steering=steering, between=READY):
        run_interruptible(_serve(config, broker_for, lease_s, direct, bus, steering.serve))


async def _serve(
    config: RigConfig,
    broker_for: BrokerFor,
    lease_s: float,
    direct: DirectSettings | None,
    bus: EventBus,
    steer: Callable[[RigService | None], None],
) -> None:
    import asyncio

    from labrig.remote.broker_side import rig_client_id
    from labrig.remote.manners import Manners
    from labrig.remote.serving import served
    from labrig.rig import open_rig
    from labrig.telemetry.topics import rig_topic

    site = "lab" if config.telemetry is None else config.telemetry.site
    root, client = rig_topic(site, config.rig.name), rig_client_id()
    async with (
        open_rig(config) as rig,
        broker_for(root, client) as broker,
        served(rig, broker, root, typer.echo, Manners(lease_s=lease_s), client, direct, bus) as (service, _),
    ):
        steer(service)
        typer.echo(f"serving rig {config.rig.name}: {', '.join(['board', *rig.source_meters])}")
        typer.echo("in a rig file on another machine:")
        typer.echo(f'  link = "{broker.address}/{root.partition("/1/")[2]}"')
        typer.echo("Ctrl-C switches the outputs off and stops serving")
        try:
            await asyncio.Event().wait()
        finally:
            steer(None)
