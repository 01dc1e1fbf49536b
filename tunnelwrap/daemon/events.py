"""What ``tunnelwrap connect`` says on its way, as values; with ``--json`` each is one line."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Event(BaseModel):
    """Something that happened."""

    model_config = ConfigDict(frozen=True)


class Attempt(Event):
    """A carrier was tried: it won, failed, or was beaten by another."""

    event: Literal["attempt"] = "attempt"
    carrier: str
    result: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The attempt as plain JSON."""
        return self.model_dump(exclude={"event"})


class Established(Event):
    """The tunnel is there; without an ESP suite as long as it waits for traffic."""

    event: Literal["established"] = "established"
    carrier: str
    seconds: float
    ike_suite: str
    esp_suite: str | None
    addresses: tuple[str, ...]
    attempts: tuple[Attempt, ...]


class Lost(Event):
    """The gateway cannot be reached any more; it is tried again and again."""

    event: Literal["lost"] = "lost"
    reason: str


class Closed(Event):
    """The tunnel is gone for good."""

    event: Literal["closed"] = "closed"
    reason: str
