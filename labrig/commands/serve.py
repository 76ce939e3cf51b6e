"""`labrig serve`: a rig for use from other machines, until Ctrl-C."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labrig.commands.arguments import RigArgument
from labrig.commands.interruptible import run_interruptible
from labrig_drivers.errors import ConfigError

if TYPE_CHECKING:
    from labrig.config import RigConfig
    from labrig.remote.direct import DirectSettings
    from labrig.remote.embedded import EmbeddedSettings
    from labrig.telemetry.broker import Broker

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
        typer.Option(min=1.0, max=3600.0, help="Time in s after a user's last sign of life until outputs go off."),
    ] = 10.0,
) -> None:
    """Serve a rig over MQTT until Ctrl-C: its board and source-meters, to one user at a time.

    Example: `labrig serve rig_configs/mock.toml --broker embedded` here, then in another terminal
    `labrig check rig_configs/remote.toml`.
    """
    from labrig.config import load_rig

    config = load_rig(rig)
    account = telemetry_account(config, broker)
    link = None if direct is None else _direct(direct, cert, key, open_broker)
    if account is None:
        settings = _embedded(config, listen, cert, key, open_broker)
        settings.check()
        run_interruptible(_serve(config, lambda root, client: _inside(settings, root, client), lease, link))
        return
    if link is None and (cert is not None or key is not None):
        raise ConfigError("--cert and --key are for `--broker embedded` and `--direct`; another broker has its own")
    _check_open(account, open_broker)
    run_interruptible(_serve(config, lambda _root, _client: _outside(account), lease, link))


def telemetry_account(config: RigConfig, url: str | None) -> Broker | None:
    """The broker that was named, with the account of the rig file; None for the embedded one.

    Raises:
        ConfigError: The section [telemetry] cannot be used as it is.
    """
    from labrig.telemetry.settings import telemetry_settings

    if url == EMBEDDED:
        return None
    settings = telemetry_settings(config, url)
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


async def _serve(
    config: RigConfig,
    broker_for: Callable[[str, str], AbstractAsyncContextManager[Broker]],
    lease_s: float,
    direct: DirectSettings | None,
) -> None:
    import asyncio

    from labrig.remote.broker_side import rig_client_id
    from labrig.remote.service import Manners
    from labrig.remote.serving import served
    from labrig.rig import open_rig
    from labrig.telemetry.topics import rig_topic

    site = "lab" if config.telemetry is None else config.telemetry.site
    root, client = rig_topic(site, config.rig.name), rig_client_id()
    async with (
        open_rig(config) as rig,
        broker_for(root, client) as broker,
        served(rig, broker, root, typer.echo, Manners(lease_s=lease_s), client, direct),
    ):
        typer.echo(f"serving rig {config.rig.name}: {', '.join(['board', *rig.source_meters])}")
        typer.echo("in a rig file on another machine:")
        typer.echo(f'  link = "{broker.address}/{root.partition("/1/")[2]}"')
        typer.echo("Ctrl-C switches the outputs off and stops serving")
        await asyncio.Event().wait()
