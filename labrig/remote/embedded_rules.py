"""The rules of the embedded broker, as plugins that amqtt loads: who may come in, and whose topics are whose."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

_OF_THE_RIG: Final = frozenset({"state", "info", "lease", "event", "telemetry", "reply"})


class OneAccount(BaseAuthPlugin):  # type: ignore[misc]  # amqtt has no types
    """Lets in who knows the account; everybody where there is none."""

    @dataclass
    class Config(BaseAuthPlugin.Config):  # type: ignore[misc]
        """What the account is."""

        username: str | None = None
        password: str | None = None

    async def authenticate(self, *, session: Session) -> bool | None:
        """Whether a client may come in."""
        config = self.config
        if config.username is None:
            return True
        pairs = ((session.username, config.username), (session.password, config.password))
        # Both, and in the same time whether right or wrong.
        right = [hmac.compare_digest((given or "").encode(), (wanted or "").encode()) for given, wanted in pairs]
        return all(right)


class OwnTopics(BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no types
    """Only the rig speaks for the rig, and an answer goes to the client that it is for.

    Without this, whoever may come in could read the lease of another one out of its answers.
    """

    @dataclass
    class Config(BaseTopicPlugin.Config):  # type: ignore[misc]
        """What is protected.

        Attributes:
            root: What the topics of the rig begin with.
            rig_client: The client that speaks for the rig.
        """

        root: str = ""
        rig_client: str = ""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Whether a client may publish to a topic, subscribe to it, or be sent what comes there."""
        client = session.client_id if session is not None else None
        if topic is None or client is None:
            return False
        if client == self.config.rig_client or action == Action.SUBSCRIBE:
            # A subscription by itself shows nothing: what comes is looked at when it is sent.
            return True
        if not topic.startswith(f"{self.config.root}/"):
            return True
        kind, _, rest = topic.removeprefix(f"{self.config.root}/").partition("/")
        if action == Action.PUBLISH:
            return kind not in _OF_THE_RIG
        return rest == client if kind == "reply" else kind != "cmd"
