"""The other processes of a run: who has come, and what is done when one is gone.

Process 0 listens at HOST:PORT. Each of the others keeps one connection to it for as long as the run lasts, on which
lines of JSON go. The system closes the connection of a process that dies, whatever it was doing, so that process 0
knows at once and tells the others; a host that is unplugged is noticed within half a minute. Then everybody says one
line and ends: a collective that waits for a dead process cannot be called back.

JAX's coordination service would notice too, and end the processes with a C++ stack. It is reached through the same port
and through relays that keep deaths from it. Imports no jax.
"""

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from fedjax_rl.host import exits, output, relay
from fedjax_rl.host.exits import ConfigError
from fedjax_rl.host.peer import Peer, processes

SHARED = (exits.DONE, exits.DIVERGED, exits.UNHEARD)  # what all processes find out alike: no one ends because of it
GRACE_S = 3.0  # for this process to end by itself, of what ended another one
ANSWER_S = 10.0  # for a connection to say who it is
AGAIN = "start all of them again"


class Lifeline:
    """Process `number` of `count`. `peers` are all others for process 0, and process 0 for the others."""

    def __init__(self, address: str, count: int, number: int, devices: Any, remedy: Callable[[], str]) -> None:
        self.address, self.count, self.number, self.devices, self.remedy = address, count, number, devices, remedy
        self.peers: dict[int, Peer] = {}
        self.changed = threading.Condition()
        self.refusal = ""  # why nobody can join
        self.why = ""  # the line that this process ends with
        self.code: int | None = None  # the code that it ends with, once known
        self.agreed = False  # do all end, by agreement?
        self.service = relay.free_port()  # of JAX's coordination service at process 0, of the relay to it elsewhere
        self.ending = threading.Lock()

    def receive(self, timeout: int) -> None:
        """Process 0: wait for all others."""
        port = relay.split(self.address)[1]
        try:
            relay.listen(port, self._admit)
        except OSError as error:
            line = f"--coordinator {self.address}: {error.strerror or error}; choose another port, in all processes"
            raise ConfigError(line) from None
        with self.changed:
            self.changed.wait_for(lambda: self.refusal or len(self.peers) == self.count - 1, timeout)
            if self.refusal:
                raise ConfigError(self.refusal)
            missing = sorted(set(range(1, self.count)) - set(self.peers))
        if missing:
            raise exits.ProcessLost(
                f"{processes(missing)} of {self.count} did not come to {self.address} within {timeout} s; {AGAIN}"
            )
        for peer in self.peers.values():
            peer.send("value", None)

    def _admit(self, connection: socket.socket) -> None:
        """One connection to process 0's port: another process, or its JAX; anything else is turned away."""
        connection.settimeout(ANSWER_S)
        try:
            kind, *values = json.loads(relay.first_line(connection))
            if kind == "jax":
                connection.settimeout(None)
                relay.join(connection, relay.connect("127.0.0.1", self.service))
                return
            number, count = map(int, values)
        except (OSError, ValueError, TypeError):
            connection.close()
            return
        peer = Peer(number, connection)
        with self.changed:
            if count != self.count:
                differing = f"--num-processes: {self.count} and {count}"
                self.refusal = f"processes 0 and {number} differ in {differing}; start all with the same command"
                peer.send("refused", self.refusal)
            elif number in self.peers or not 0 < number < count:
                peer.send("refused", f"--process-id {number} is taken; give each process its own, 0 to {count - 1}")
                return
            else:
                peer.send("here")
                self.peers[number] = peer
                relay.spawn(self._watch, peer)
            self.changed.notify()

    def reach(self, timeout: int) -> None:
        """Another process: find process 0 and wait until all are there."""
        deadline = time.monotonic() + timeout
        peer = self.peers[0] = self._find(deadline, timeout)
        relay.spawn(self._watch, peer)
        try:  # process 0 gives up first, and says who is missing
            peer.inbox.get(timeout=max(deadline - time.monotonic(), 0) + ANSWER_S)
        except queue.Empty:
            raise exits.ProcessLost(f"not all {self.count} processes came within {timeout} s; {AGAIN}") from None
        relay.listen(self.service, self._pass_on, "127.0.0.1")

    def _find(self, deadline: float, timeout: int) -> Peer:
        reason = "nobody answers"
        while (left := deadline - time.monotonic()) > 0:
            try:
                connection = socket.create_connection(relay.split(self.address), timeout=min(left, ANSWER_S))
            except OSError as error:
                reason = error.strerror or str(error)
                time.sleep(min(0.2, left))
                continue
            peer = Peer(0, connection)
            peer.send("process", self.number, self.count)
            connection.settimeout(min(left, ANSWER_S))
            try:
                kind, *values = json.loads(relay.first_line(connection))
            except (OSError, ValueError, TypeError):
                reason = "something else answers"
                time.sleep(min(0.2, left))
                continue
            if kind == "refused":
                raise ConfigError(values[0])
            connection.settimeout(None)
            return peer
        line = f"process 0 did not come to {self.address} within {timeout} s ({reason})"
        raise exits.ProcessLost(f"{line}; {AGAIN}")

    def _pass_on(self, connection: socket.socket) -> None:
        """JAX's client here, to JAX's service at process 0."""
        try:
            far = relay.connect(*relay.split(self.address))
            far.sendall(b'["jax"]\n')
        except OSError:
            connection.close()
            return
        relay.join(connection, far)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their numbers; waits for all."""
        if self.number:
            self.peers[0].send("value", value)
            return self.peers[0].inbox.get()
        values = [value, *[self.peers[i].inbox.get() for i in range(1, self.count)]]
        for peer in self.peers.values():
            peer.send("value", values)
        return values

    def leave(self, code: int) -> int:
        """Tell the others that, and why, this process ends. What they do not know of ends it, and them, here."""
        is_shared = code in SHARED or self.agreed
        self.code = code
        if code == exits.PROCESS_LOST:
            self._tell("lost", self.why)
        else:
            self._tell("left", self.number, self.why or exits.MEANING.get(code, f"exit code {code}"), is_shared)
        if not is_shared:  # JAX's own way out waits for all others
            self._exit(code)
        return code

    def _watch(self, peer: Peer) -> None:
        """Read what a process says until it ends."""
        for kind, *values in peer.messages():
            if kind == "value":
                peer.inbox.put(values[0])
                continue
            self._tell(kind, *values, but=peer.number)  # from process 0, that is from all
            if kind == "lost":
                self._lost(*values)
            number, why, is_shared = values
            peer.has_left |= number == peer.number
            if not is_shared:
                time.sleep(GRACE_S)
                self._lost(f"process {number} of {self.count} ended, and so does this one: {why}")
        if not peer.has_left:
            line = f"process {peer.number} of {self.count} is gone; {self.remedy()}"
            self._tell("lost", line, but=peer.number)
            self._lost(line)

    def _tell(self, *message: Any, but: int | None = None) -> None:
        for number, peer in self.peers.items():
            if number != but:
                peer.send(*message)

    def _lost(self, line: str) -> None:
        """End this process, whatever its main thread waits for. One that is at its end keeps its own code."""
        with self.ending:
            if self.code is None:
                if output.stderr.isatty():
                    output.stderr.write("\x1b[?25h\n")  # a progress bar may have hidden the cursor
                output.inform(f"fedjax-rl: {line}")
            self._exit(exits.PROCESS_LOST if self.code is None else self.code)

    def _exit(self, code: int) -> None:
        output.settle()
        for peer in self.peers.values():
            try:
                peer.connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
        time.sleep(0.2)  # what is on its way to the others would be lost with an end that the system finds abrupt
        os._exit(code)


_joined: Lifeline | None = None


def join(
    address: str, count: int, number: int, devices: Any, timeout: int, remedy: Callable[[], str], say: Callable
) -> None:
    """Meet the other processes of a run.

    Args:
      address: HOST:PORT of process 0.
      count, number: how many processes there are, and which one this is.
      devices: the numbers of the devices that are this process's; None for all that it sees.
      timeout: how long to wait for all of them [s].
      remedy: () -> what to do when one is lost later.
      say: gets the line that says who is waited for.

    Raises:
      ConfigError: the port is taken, or the processes do not fit together.
      ProcessLost: not all have come.
    """
    global _joined
    _joined = Lifeline(address, count, number, devices, remedy)
    if count > 1:
        others = "process 0" if number else processes(range(1, count))
        say(f"process {number} of {count}: waiting for {others} at {address} ({timeout} s)")
    (_joined.reach if number else _joined.receive)(timeout)


def joined() -> Lifeline | None:
    """What this process has joined; None where it is alone."""
    return _joined


def gather(value: Any) -> list[Any]:
    """Every process's value (of JSON's kinds), in the order of their numbers; waits for all."""
    return [value] if _joined is None else _joined.gather(value)


def all_end() -> None:
    """All processes have agreed to end, so that the first to do so is not missed."""
    if _joined is not None:
        _joined.agreed = True


def because(line: str) -> None:
    """Remember the line that this process ends with, for the others."""
    if _joined is not None:
        _joined.why = line


def leave(code: int) -> int:
    """Before the process ends with a code: tell the others. Returns the code, or not at all."""
    return code if _joined is None else _joined.leave(code)
