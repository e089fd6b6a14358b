"""Debian packages: installed only where that removes nothing, and noted for `make clean`."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.say import LOGS, ROOT, FailedError, run, say, step

INSTALLED = ROOT / ".tools" / "packages"
"""Names of the packages that were asked for here and not there before, one a line."""

DEFAULT_ARCHIVE = "http://deb.debian.org/debian"

_WAIT = "DPkg::Lock::Timeout=120"  # for an apt that runs already, as on a machine just started


def update(*, only: str | None = None) -> None:
    """Update the package lists; print that a source failed, and continue.

    Args:
        only: the file of one source whose lists are read, in place of all sources.
    """
    options = []
    if only is not None:
        options = ["-o", f"Dir::Etc::SourceList={only}", "-o", "Dir::Etc::SourceParts=-"]
        options += ["-o", "APT::Get::List-Cleanup=false"]  # and keep those of the others
    try:
        with step("updating the package lists"):
            run(["apt-get", "-o", _WAIT, *options, "update"])
    except FailedError:  # perhaps of a source that has nothing to do with this
        say(f"  Some could not be updated ({LOGS}/make.log). Continuing with the existing ones.")


def check(
    packages: Sequence[str], what: str, problem: Callable[[str], str | None] = lambda _: None
) -> None:
    """Simulate an installation.

    Args:
        packages: names, perhaps with the suite that they are taken from (`name/suite`).
        what: for the user: what they are for.
        problem: given the output of `apt-get --simulate`, says what must not be done.

    Raises:
        FailedError: it would remove a package, or has that problem.
    """
    command = _command(packages)
    simulated = run([*command, "--simulate"])
    found = removals(simulated) or problem(simulated)
    if found:
        raise FailedError(
            f"To install {what}, apt would {found}. Nothing was changed. To do it anyway, "
            f"run: {'' if os.geteuid() == 0 else 'sudo '}{' '.join(command)}"
        )


def install(packages: Sequence[str], what: str) -> None:
    """Install packages, without what they only recommend; raises as `check` does."""
    check(packages, what)
    command = _command(packages)
    asked = {package.partition("/")[0] for package in packages}
    added = sorted(asked & set(new(run([*command, "--simulate"]))))
    INSTALLED.parent.mkdir(exist_ok=True)
    with open(INSTALLED, "a", encoding="utf-8") as file:  # before it is done: it may be cut off
        file.writelines(f"{package}\n" for package in added)
    with step(f"installing {what}: {' '.join(p.partition('/')[0] for p in packages)}"):
        run([*command, "--yes"], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def begun(package: str) -> bool:
    """Whether an earlier run here has begun to install a package."""
    return INSTALLED.exists() and package in INSTALLED.read_text().split()


def _command(packages: Sequence[str]) -> list[str]:
    return ["apt-get", "-o", _WAIT, "install", "--no-install-recommends", *packages]


def removals(simulated: str) -> str | None:
    """What a simulated plan would remove, in words; None where it removes nothing."""
    names = re.findall(r"^Remv (\S+)", simulated, re.MULTILINE)
    return f"remove {', '.join(names)}" if names else None


def upgrades(simulated: str) -> list[str]:
    """The installed packages that a simulated plan would replace with another version."""
    return re.findall(r"^Inst (\S+) \[", simulated, re.MULTILINE)


def new(simulated: str) -> list[str]:
    """The packages that a simulated plan would add."""
    return re.findall(r"^Inst (\S+) \(", simulated, re.MULTILINE)


def unpack(packages: Sequence[str], target: Path, what: str) -> None:
    """Take programs out of packages of Debian's archive, without installing them.

    The package lists must have been read.
    """
    with step(f"fetching {what}"), tempfile.TemporaryDirectory() as directory:
        fetched = Path(directory)
        fetched.chmod(0o755)  # apt fetches as a user of its own
        run(["apt-get", "download", "--quiet", *packages], cwd=fetched)
        for package in fetched.glob("*.deb"):
            run(["dpkg-deb", "--extract", str(package), str(fetched / "programs")])
        target.parent.mkdir(exist_ok=True, parents=True)
        shutil.copytree(fetched / "programs", target, symlinks=True)


def archive() -> str:
    """The address of the Debian package archive that this machine uses, or Debian's own."""
    fields = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Component: main"])
    addresses = [line for line in fields.splitlines() if line.rstrip("/").endswith("/debian")]
    return addresses[0] if addresses else DEFAULT_ARCHIVE
