"""Another process of a run, and the connection to it."""

import json
import queue
import socket
from collections.abc import Iterator
from typing import Any

from fedjax_rl.host import relay


class Peer:
    """Another process and the connection to it."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        relay.watch_for_death(connection)
        self.number, self.connection = number, connection
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.has_left = False

    def send(self, kind: str, *values: Any) -> None:
        """One message; nothing where the other one is gone."""
        try:
            self.connection.sendall(json.dumps([kind, *values]).encode() + b"\n")
        except OSError:  # whoever reads from it sees its end
            pass

    def messages(self) -> Iterator[list[Any]]:
        """What it says, until its end."""
        try:
            with self.connection.makefile("rb") as lines:
                for line in lines:
                    yield json.loads(line)
        except (OSError, ValueError):
            pass


def processes(numbers) -> str:
    """[1] -> 'process 1'; [1, 2] -> 'processes 1, 2'."""
    numbers = list(numbers)
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
