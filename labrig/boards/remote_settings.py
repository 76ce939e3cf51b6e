"""From a rig file to the session of a served rig: `link = "mqtt://HOST:PORT/SITE/RIG"` and its board's settings."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from labrig.passwords import NoPasswordError, named_password
from labrig.remote.addresses import rig_address
from labrig.remote.session import RemoteSession, Wishes
from labrig.telemetry.broker import Broker
from labrig.user import user_name
from labrig_drivers.settings_table import SettingsTable


def remote_session(address: str, settings: Mapping[str, object], section: str) -> RemoteSession:
    """Makes the session that the remote instruments of a rig file share; nothing is connected.

    Args:
        address: `mqtt://HOST:PORT/SITE/RIG`.
        settings: Of the first instrument with this address, which is the board: `username`, `password_file` or
            `password_env`, `ca_file`; `who`, `answer_s`, `queue_s`, `take_over`, `direct`.
        section: The table of the rig file that they stand in, for messages.

    Raises:
        ConfigError: A setting is unknown or wrong, or the password cannot be had; every fault at once, no secret.
    """
    table = SettingsTable(settings, f"{section}.settings")
    username = table.text("username") if table.has("username") else None
    ca_file = table.text("ca_file") if table.has("ca_file") else None
    password = _password(table)
    usual = Wishes(who=f"{user_name()}@{socket.gethostname()}")
    wishes = Wishes(
        who=table.text("who", usual.who),
        answer_s=table.positive("answer_s", usual.answer_s),
        queue_s=table.not_negative("queue_s", usual.queue_s),
        direct=table.flag("direct", usual.direct),
        take_over=table.text("take_over") if table.has("take_over") else None,
    )
    if ca_file and not Path(ca_file).is_file():
        table.faults.append(f"{table.where}.ca_file: {ca_file}: there is no such file")
    table.finish()
    where = rig_address(address)
    return RemoteSession(where, Broker(where.broker, username, password, ca_file), wishes)


def _password(table: SettingsTable) -> str | None:
    environment, file = (table.text(key) if table.has(key) else None for key in ("password_env", "password_file"))
    try:
        return named_password(environment, file)
    except NoPasswordError as error:
        table.faults.append(f"{table.where}.{error}")
        return None
