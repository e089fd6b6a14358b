"""Gives root away where the engine's socket lets another group in."""

from __future__ import annotations

import logging
import os
import socket

USER = 65532
"""The user `nonroot` of many images; it owns nothing."""

_log = logging.getLogger("autoheal")


def drop(url: str) -> None:
    """Go on as `USER` with the group of the engine's unix socket, if these may use it.

    Does nothing when not root, and for an engine reached by network, whose client key may be
    readable by root only. A child tries it first: there is no way back from it.
    """
    path = url.removeprefix("unix://")
    if os.geteuid() != 0 or path == url:
        return
    try:
        group = os.stat(path).st_gid
    except OSError:
        return  # there is no engine yet; whoever connects to it says so
    child = os.fork()
    if child == 0:
        os._exit(0 if _become(group) and _may_connect(path) else 1)
    _, status = os.waitpid(child, 0)
    if status == 0 and _become(group):
        _log.info("running as user %d, group %d (that of the engine's socket)", USER, group)
    else:
        _log.info("running as root: user %d, group %d may not use %s", USER, group, path)


def _become(group: int) -> bool:
    try:
        os.setgroups([])
        os.setgid(group)
        os.setuid(USER)
    except OSError:
        return False
    return True


def _may_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True
