"""Gives root away where the engine's socket lets another group in."""

from __future__ import annotations

import logging
import os
import stat

USER = 65532
"""The user `nonroot` of many images; it owns nothing."""

_log = logging.getLogger("autoheal")


def drop(url: str) -> None:
    """Go on as `USER` with the group of the engine's unix socket, if that group may use it.

    Does nothing when not root, for an engine reached by network (its client key may be
    readable by root only), and when the capabilities to change users are missing.
    """
    if os.geteuid() != 0 or not url.startswith("unix://"):
        return
    try:
        about = os.stat(url.removeprefix("unix://"))
    except OSError:
        return
    if not (about.st_mode & stat.S_IRGRP and about.st_mode & stat.S_IWGRP):
        _log.info("running as root: the group of %s may not use it", url)
        return
    try:
        os.setgroups([])
        os.setgid(about.st_gid)
        os.setuid(USER)
    except OSError:
        _log.info("running as root: no permission to become user %d", USER)
    else:
        _log.info("running as user %d, group %d (that of the engine's socket)", USER, about.st_gid)
