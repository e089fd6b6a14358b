"""Find a Docker Engine with Compose v2, or install and start one (root on Debian or Ubuntu)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from scripts.say import LOGS, FailedError, run, say, step, works

DOCS = "https://docs.docker.com/engine/install/"
START_SECONDS = 60

_TRIXIE = "/etc/apt/sources.list.d/ollama-autoheal-engine.sources"
_TRIXIE_PIN = "/etc/apt/preferences.d/ollama-autoheal-engine"


def ensure() -> None:
    """Return with an engine that answers; raises `FailedError`."""
    if not (answers() and has_compose()):
        _explain_another()
        if shutil.which("dockerd") is None or not has_compose():
            _install()
        if not answers():
            _start()
    compose = run(["docker", "compose", "version", "--short"]).strip()
    say(f"Docker Engine {version()}, Compose {compose}")


def answers() -> bool:
    return shutil.which("docker") is not None and works(["docker", "version"])


def has_compose() -> bool:
    return works(["docker", "compose", "version"]) and works(["docker", "buildx", "version"])


def version() -> str:
    return run(["docker", "version", "--format", "{{.Server.Version}}"]).strip()


def has_gpu_runtime() -> bool:
    return "nvidia" in run(["docker", "info", "--format", "{{json .Runtimes}}"])


def _explain_another() -> None:
    """There is an engine that is not ours to install or start; say what is in the way."""
    try:
        run(["docker", "version"])
    except FailedError as error:
        if "permission denied" in str(error):
            raise FailedError(
                "this user may not use the Docker engine here: run as root, or as a member of "
                "its group (usermod --append --groups docker USER)"
            ) from None
    host = os.environ.get("DOCKER_HOST")
    if host and not answers():
        raise FailedError(f"the Docker engine of DOCKER_HOST={host} does not answer")


def _install() -> None:
    system = _os_release()
    family = f"{system.get('ID', '')} {system.get('ID_LIKE', '')}"
    if os.geteuid() != 0:
        raise FailedError(
            f"there is no Docker Engine with Compose v2 here; install one ({DOCS}), or run as root"
        )
    if "debian" not in family or shutil.which("apt-get") is None:
        raise FailedError(f"there is no Docker Engine with Compose v2 here; install one: {DOCS}")
    say(
        "There is no Docker Engine with Compose v2 on this machine. Installing the one of "
        f"{system.get('PRETTY_NAME', 'this system')}'s package archive."
    )
    apt_update()
    if system.get("ID") == "ubuntu":
        packages = ["docker.io", "docker-compose-v2", "docker-buildx"]
    elif system.get("VERSION_ID") == "12":
        # Its own engine is 20.10 and its Compose v1; Debian 13's run on it, with 12's own runc.
        _add_trixie()
        names = ["docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd"]
        packages = [*(f"{name}/trixie" for name in names), "runc/bookworm"]
    else:
        packages = ["docker.io", "docker-cli", "docker-compose", "docker-buildx"]
    apt_install([*packages, "iptables"], "the engine")


@cache
def apt_update() -> None:
    """Read Debian's package lists, once."""
    with step("reading the package lists"):
        run(["apt-get", "update"])


def apt_install(packages: list[str], what: str) -> None:
    """Install Debian packages; `what` is for the user."""
    with step(f"installing {what}: {' '.join(p.partition('/')[0] for p in packages)}"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "install", "-y", "--no-install-recommends", *packages], env=environment)


def unpack(packages: Sequence[str], target: Path, what: str) -> None:
    """Take programs out of packages of Debian's archive, without installing them."""
    apt_update()
    with step(f"fetching {what}"), tempfile.TemporaryDirectory() as directory:
        fetched = Path(directory)
        fetched.chmod(0o755)
        subprocess.run(
            ["apt-get", "download", "--quiet", *packages],
            cwd=fetched,
            check=True,
            capture_output=True,
        )
        for package in fetched.glob("*.deb"):
            run(["dpkg-deb", "--extract", str(package), str(fetched / "programs")])
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copytree(fetched / "programs", target, symlinks=True)


def archive() -> str:
    """The address of the package archive that this Debian uses."""
    fields = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Component: main"])
    addresses = [line for line in fields.splitlines() if line.rstrip("/").endswith("/debian")]
    if not addresses:
        raise FailedError("apt has no source of Debian's packages")
    return addresses[0]


def _add_trixie() -> None:
    Path(_TRIXIE).write_text(
        f"Types: deb\nURIs: {archive()}\nSuites: trixie\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
    # Nothing is taken from there unless it is asked for by name.
    Path(_TRIXIE_PIN).write_text("Package: *\nPin: release n=trixie\nPin-Priority: 100\n")
    apt_update()


def _start() -> None:
    with step("starting the engine"):
        if os.path.isdir("/run/systemd/system"):
            run(["systemctl", "enable", "--now", "docker"])
        else:
            _clear_leftovers()
            LOGS.mkdir(exist_ok=True)
            with open(LOGS / "dockerd.log", "ab") as log:
                subprocess.Popen(
                    ["dockerd"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        deadline = time.monotonic() + START_SECONDS
        while not answers():
            if time.monotonic() > deadline:
                raise FailedError(
                    f"the engine did not start within {START_SECONDS} s; see {LOGS}/dockerd.log"
                )
            time.sleep(0.3)


def _clear_leftovers() -> None:
    """Remove what a killed engine left, which would stop the next one: pid files of others."""
    for file, name in (
        ("/var/run/docker.pid", "dockerd"),
        ("/var/run/docker/containerd/containerd.pid", "containerd"),
    ):
        try:
            pid = int(Path(file).read_text())
            alive = Path(f"/proc/{pid}/comm").read_text().strip() == name
        except (OSError, ValueError):
            alive = False
        if not alive:
            Path(file).unlink(missing_ok=True)


def _os_release() -> dict[str, str]:
    try:
        text = Path("/etc/os-release").read_text()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key: value.strip('"') for key, _, value in pairs}
