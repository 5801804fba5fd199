"""What happens when: the whole schedule of a run, drawn from its seed before anything starts.

An action names neither a process nor a file but a number from 0 to 1 with which one is picked of those that exist when
its time has come: the same seed gives the same schedule, however the run before it went.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["KINDS", "Action", "schedule"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How often a kind of action is drawn beside the others, and how many seconds it lasts (0: it is over at once)."""

    weight: int
    shortest: float = 0.0
    mean: float = 0.0
    longest: float = 0.0


KINDS = {
    # kill -9
    "kill fetcher": Kind(5),
    "kill engine": Kind(4),
    "kill reader": Kind(4),
    "kill mount": Kind(3),
    "kill helper": Kind(2, 15.0, 15.0, 15.0),  # an engine's, and then the first indexer or orderer of the next one
    # SIGSTOP, and SIGCONT at the end
    "stop reader": Kind(3, 0.5, 3.0, 10.0),
    "stop fetcher": Kind(3, 0.5, 2.0, 6.0),
    # the network and the store
    "503": Kind(2, 0.3, 1.5, 15.0),
    "500": Kind(2, 0.3, 1.5, 15.0),
    "reset": Kind(2, 0.3, 1.5, 5.0),
    "truncate": Kind(2, 0.3, 1.5, 5.0),
    "stall": Kind(2, 0.5, 1.5, 15.0),
    "corrupt": Kind(2, 0.3, 0.5, 1.0),
    "refuse": Kind(2, 0.3, 1.5, 8.0),
    "kill server": Kind(2, 0.5, 1.5, 12.0),
    # the disk
    "fill disk": Kind(4, 1.0, 4.0, 10.0),
}
# Between two actions; several are usually under way at the same time.
SHORTEST_GAP, LONGEST_GAP = 0.1, 2.1


@dataclass(frozen=True, slots=True)
class Action:
    """One entry: seconds since the start, what is done, the number that picks to whom, how long it lasts."""

    at: float
    kind: str
    pick: float
    seconds: float

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        return f"{self.at:7.2f} s  {self.kind}{lasting}"


def schedule(seed: int, seconds: float) -> list[Action]:
    """The actions of a run of so many seconds, by time. The first ones are one of each kind, in a drawn order."""
    draw = random.Random(seed)
    first = list(KINDS)
    draw.shuffle(first)
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    found, at = [], 0.0
    while (at := at + draw.uniform(SHORTEST_GAP, LONGEST_GAP)) < seconds:
        name = first.pop() if first else draw.choices(names, weights)[0]
        kind = KINDS[name]
        lasting = min(kind.shortest + draw.expovariate(1 / kind.mean), kind.longest) if kind.mean else 0.0
        found.append(Action(round(at, 2), name, draw.random(), round(lasting, 2)))
    return found
