"""Python that may not speak to the network: any attempt ends the process, whoever makes it and whoever would catch it.

`begin` comes first in a process. Sockets among the processes of one machine (AF_UNIX) are not the network. What is not
Python finds no network interface, where the system lets a process leave them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from typing import Any

REFUSED = 66
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"}
TALKS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
FETCHERS = {"apt", "apt-get", "conda", "curl", "git", "pip", "wget"}
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of sched.h


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    talks = event in TALKS and arguments[0].family != socket.AF_UNIX
    fetches = event == "subprocess.Popen" and os.path.basename(os.fspath(arguments[0])) in FETCHERS
    if event in LOOKUPS or talks or fetches:
        os.write(2, f"offline: {event} {arguments}\n".encode())
        os._exit(REFUSED)


def begin() -> None:
    """For good: a process does not get rid of an audit hook."""
    sys.addaudithook(refuse)
    leave = getattr(ctypes.CDLL(None), "unshare", lambda flags: 0)
    if leave(NEW_NETWORK) != 0:
        leave(NEW_NETWORK | NEW_USER)
