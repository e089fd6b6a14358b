"""`make down` and `make clean`: remove what `make` created, and list what is kept.

python -m scripts.down [--clean]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

from scripts import apt, compose, engine, images
from scripts.compose import PROJECT
from scripts.say import LOGS, ROOT, FailedError, main, run, say, step

IMAGES = (f"{PROJECT}/*", f"{PROJECT}-testbed/*")
"""The names of all images that are built here."""

CACHES = (".venv", ".tools", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")


def down() -> None:
    clean = sys.argv[1:] == ["--clean"]
    if engine.answers():
        _services(clean)
        if clean:
            _images()
    else:
        say(
            "No Docker Engine answers, so containers, volumes and images are not removed. "
            f"Start it, and run `make {'clean' if clean else 'down'}` again."
        )
    if clean:
        _files()


def _services(clean: bool) -> None:
    compose.check_clone()
    more = ["--volumes", "--remove-orphans"] if clean else []
    with step("removing containers and networks" + (", models and history" if clean else "")):
        run([*compose.command(), "down", *more], env=compose.environment(), log="down")
    if not clean:
        say(
            "Stopped and removed both services. Models, the history of incidents and images are "
            "kept:\n`make up` starts again within seconds; `make clean` removes them, too."
        )


def _images() -> None:
    kept = []
    with step("removing the images that were built here"):
        for name in _built():
            try:
                run(["docker", "image", "rm", name], log="down")
            except FailedError:  # a container has it that is not of this project
                kept.append(name)
    for name in kept:
        say(f"  {name} is kept: another container uses it.")


def _built() -> Iterator[str]:
    """Names of our images, and the ids of their earlier builds that have none."""
    filters = [word for name in IMAGES for word in ("--filter", f"reference={name}")]
    yield from run(
        ["docker", "images", *filters, "--format", "{{.Repository}}:{{.Tag}}"]
    ).splitlines()
    ours = f"label=com.docker.compose.project={PROJECT}"
    earlier = ["--filter", "dangling=true", "--filter", ours]
    yield from run(["docker", "images", "--quiet", *earlier]).splitlines()


def _files() -> None:
    stays = list(_stays())
    for name in CACHES:
        if (ROOT / name).is_symlink():
            (ROOT / name).unlink()
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for directory in ROOT.rglob("__pycache__"):
        shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(LOGS, ignore_errors=True)  # the last, as every command writes there
    stays += [
        f"{path}, which is another user's: sudo rm -r {path}"
        for path in (ROOT / name for name in CACHES)
        if path.exists()
    ]
    say("Removed the virtual environment, tools, logs and caches." + (" Kept:" if stays else ""))
    for one in stays:
        say(f"  {one}")


def _stays() -> Iterator[str]:
    """What is left on purpose, and how to remove it."""
    if engine.answers():
        pulled = [name for name in (images.OLLAMA, images.PYTHON) if images.is_here(name)]
        if pulled:
            yield f"base images, perhaps used by others: docker image rm {' '.join(pulled)}"
        yield "the build cache, shared with other projects: docker builder prune"
    if apt.INSTALLED.exists():
        packages = sorted(set(apt.INSTALLED.read_text().split()))
        yield f"Debian packages: apt-get remove --autoremove {' '.join(packages)}"
    if engine.SOURCE.exists():
        yield (
            "the package source that updates Docker Engine: "
            f"rm {engine.SOURCE} {engine.PREFERENCES}"
        )


if __name__ == "__main__":
    main(down)
