"""Drops root where the engine's socket and the ledger can be used without it."""

from __future__ import annotations

import logging
import os
import socket

USER = 65532
"""The user `nonroot` of many images; it owns nothing."""

_ALL_USABLE, _NO_SOCKET, _NO_FILE = range(3)
"""What the child reports: whether all can be used without root, or what cannot."""

_log = logging.getLogger("autoheal")


def drop(url: str, *files: str) -> None:
    """Continue as `USER` with the group of the engine's unix socket, if these may use it.

    Does nothing when not root, and for an engine reached by network, whose client key may be
    readable by root only. A child tries it first: there is no way back from it.

    Args:
        url: address of the engine.
        files: what `USER` must be able to write as well, or root is kept. Without its ledger
            autoheal would forget its budget.
    """
    path = url.removeprefix("unix://")
    if os.geteuid() != 0 or path == url:
        return
    try:
        group = os.stat(path).st_gid
    except OSError:
        return  # there is no engine yet; whoever connects to it says so
    files = tuple(file for file in files if _may_write(file))  # what root cannot write is no reason
    child = os.fork()
    if child == 0:
        os._exit(_try(group, path, files))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == _ALL_USABLE and _become(group):
        _log.info("running as user %d, group %d (that of the engine's socket)", USER, group)
    elif code == _NO_FILE:
        _log.info("running as root: user %d cannot write %s", USER, " or ".join(files))
    else:
        _log.info("running as root: user %d, group %d may not use %s", USER, group, path)


def _try(group: int, path: str, files: tuple[str, ...]) -> int:
    if not (_become(group) and _may_connect(path)):
        return _NO_SOCKET
    return _ALL_USABLE if all(map(_may_write, files)) else _NO_FILE


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


def _may_write(path: str) -> bool:
    return os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK)
