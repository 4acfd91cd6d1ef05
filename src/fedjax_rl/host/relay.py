"""TCP connections passed on, byte by byte, by threads of this process; and the sockets that `lifeline` needs.

What a relay is for: the one side ends, and the other is not told. JAX's client of its coordination service ends the
process with a C++ stack as soon as the service is gone, and cannot be talked out of it.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable

SERVICE_S = 120.0  # for JAX's service to be started
ATTEMPT_S = 10.0  # for one attempt to connect

_kept: list[socket.socket] = []  # a socket that nobody holds would be closed


def split(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT -> (host, port)."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def listen(port: int, handle: Callable[[socket.socket], None], host: str | None = None) -> int:
    """Accept connections for ever, `handle` each in a thread of its own.

    Args:
      port: 0 for any that is free.
      handle: called with each connection.
      host: the address to listen at; None for all of this host.

    Returns:
      The port.

    Raises:
      OSError: the port is taken.
    """
    if host is not None or not socket.has_dualstack_ipv6():
        server = socket.create_server((host or "", port))
    else:
        try:
            server = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            server = socket.create_server(("", port))  # a host without IPv6
    _kept.append(server)
    spawn(_accept, server, handle)
    return server.getsockname()[1]


def _accept(server: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:  # its peer was gone again; or no descriptor is left, which may pass
            time.sleep(0.1)
            continue
        spawn(handle, connection)


def connect(host: str, port: int) -> socket.socket:
    """A connection to somebody who may not listen yet, but will."""
    deadline = time.monotonic() + SERVICE_S
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=ATTEMPT_S)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
            continue
        connection.settimeout(None)
        return connection


def free_port() -> int:
    """A port of this host that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def join(one: socket.socket, other: socket.socket) -> None:
    """Pass on whatever comes, both ways. The end of one side is kept from the other."""
    _kept.extend((one, other))
    spawn(_pump, one, other)
    spawn(_pump, other, one)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass


def watch_for_death(connection: socket.socket) -> None:
    """Let the kernel ask every 5 s whether the other host is there; after 30 s of silence the connection ends."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # not everywhere; the system's own times serve there
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def first_line(connection: socket.socket, limit: int = 1000) -> bytes:
    """The bytes up to the first newline, and none past it."""
    line = b""
    while not line.endswith(b"\n") and len(line) < limit:
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line


def spawn(function: Callable, *args) -> None:
    """Run in a thread that keeps no process from ending."""
    threading.Thread(target=function, args=args, daemon=True).start()
