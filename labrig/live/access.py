"""Who may see the page, and who may let a run go on."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import stat
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from labrig_drivers.errors import ConfigError

_LEAST_LENGTH = 16
_MOST_LENGTH = 200
_OPEN = "open"


class Role(IntEnum):
    """What somebody may do; each role may do what those below may, too."""

    NOBODY = 0
    VIEWER = 1
    OWNER = 2


@dataclass(frozen=True)
class Access:
    """The keys of a page.

    Attributes:
        owner: Lets its holder have a paused run go on.
        viewer: Lets its holder watch, pause and stop; None where everybody who reaches the page may.
    """

    owner: str
    viewer: str | None = None

    def role_of_key(self, key: str) -> Role:
        """What a key opens; takes the same time whether the key is wrong early or late."""
        given = _digest(key)
        owner = hmac.compare_digest(given, _digest(self.owner))
        viewer = hmac.compare_digest(given, _digest(self.viewer or self.owner))
        return Role.OWNER if owner else Role.VIEWER if viewer else Role.NOBODY

    def cookie_of(self, role: Role) -> str:
        """What a browser keeps in place of the key: made from it, so that it outlives the server, not a new key."""
        key = self.owner if role is Role.OWNER else self.viewer or self.owner
        return hmac.new(key.encode(), f"labrig live page, {role.name}".encode(), hashlib.sha256).hexdigest()

    def role_of_cookie(self, cookie: str | None) -> Role:
        """What the holder of a cookie may do; without one, what everybody may."""
        everybody = Role.VIEWER if self.viewer is None else Role.NOBODY
        if cookie is None:
            return everybody
        given = _digest(cookie)
        for role in (Role.OWNER, Role.VIEWER):
            if hmac.compare_digest(given, _digest(self.cookie_of(role))):
                return role
        return everybody


def access_for(host: str, chosen: str | None) -> Access:
    """The keys of a page at an address.

    Args:
        host: The address that the page is served at.
        chosen: A TOML file with `viewer` and `owner`; the word `open`; or None.

    Returns:
        The keys of the file. Without one an owner's key that was just drawn, and no viewer's key.

    Raises:
        ConfigError: Others could reach the page and no keys were given, or the file cannot be used as it is.
    """
    if chosen is None and not is_loopback(host):
        raise ConfigError(
            f"the live page at {host} could be reached by others, who could stop the run: give a file with keys "
            '(--live-access FILE, with viewer = "..." and owner = "..."), or say --live-access open'
        )
    if chosen is None or chosen == _OPEN:
        return Access(secrets.token_urlsafe(18))
    return _read(Path(chosen))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_is_ours(host_header: str, served_at: str) -> bool:
    """Whether a request was meant for this page, to judge by its Host header.

    A page elsewhere can have its own name point here (DNS rebinding); the browser then sends that name. So a name has
    to be one of this machine's; an address proves that no name was used.
    """
    host = host_header.rsplit(":", 1)[0] if not host_header.endswith("]") else host_header
    host = host.strip("[]").lower()
    if host in {"localhost", served_at.lower(), socket.gethostname().lower()}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Attempts:
    """Counts wrong keys, so that nobody can try many.

    Args:
        most: Wrong keys in a minute, from all addresses together.
        clock: Monotonic time in s.
    """

    def __init__(self, most: int = 20, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._failed_s: list[float] = []

    def allowed(self) -> bool:
        """Whether another key may be tried now."""
        now_s = self._clock()
        self._failed_s = [one for one in self._failed_s if now_s - one < 60.0]
        return len(self._failed_s) < self._most

    def failed(self) -> None:
        """A key was wrong."""
        self._failed_s.append(self._clock())


def _read(path: Path) -> Access:
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"{path}: others on this machine can read these keys; run: chmod 600 {path}")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: the keys of the live page cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: the keys of the live page cannot be read: it is no TOML ({error})") from error
    names = ("viewer", "owner")
    faults = [f"{name} is missing" for name in names if name not in content]
    faults += [f"{name} is not known (known are viewer and owner)" for name in content if name not in names]
    for name in names:
        key = content.get(name)
        if key is not None and not (isinstance(key, str) and _LEAST_LENGTH <= len(key) <= _MOST_LENGTH):
            faults.append(f"{name} has to be a text of {_LEAST_LENGTH} to {_MOST_LENGTH} characters")
    if not faults and content["viewer"] == content["owner"]:
        faults.append("viewer and owner have to be different")
    if faults:
        raise ConfigError(f"{path}: {'; '.join(faults)}")
    return Access(content["owner"], content["viewer"])


def _digest(text: str) -> bytes:
    # Of equal length, whatever was given.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
