"""No test leaves this machine: Python's audit events tell what it resolves and connects to."""

from __future__ import annotations

import os
from typing import Any

REACHED: list[str] = []
_OWN = ("127.", "::1", "localhost", "0.0.0.0", os.uname().nodename)


def refuse(event: str, args: tuple[Any, ...]) -> None:
    """Raises where another machine is reached for, and keeps its name."""
    if event == "socket.getaddrinfo":
        host = args[0] or "localhost"
    elif event in {"socket.connect", "socket.sendto"} and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    name = host.decode() if isinstance(host, bytes) else str(host)
    if not name.startswith(_OWN):
        REACHED.append(name)
        raise OSError(f"A test reached for the network: {name}")
