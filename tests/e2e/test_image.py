"""The probe needs nothing of Ollama's image, and changes nothing about it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container

from scripts.apt import archive
from scripts.images import OLLAMA as OFFICIAL
from scripts.images import STANDIN_OLLAMA
from testbed.command import docker_cli
from testbed.containers import OLLAMA
from testbed.nvml import Nvml
from testbed.runs import unique


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--timeout", "soon"], "--timeout='soon': must be a number of seconds from 1 to 300"),
        (["--tiemout", "5"], "No such option '--tiemout'"),
        (["--host", "ftp://x"], "--host='ftp://x': must be an address as Ollama takes it"),
    ],
)
def test_a_bad_setting_is_one_line_that_says_what_where_and_what_is_allowed(
    start: Callable[..., Container], words: list[str], problem: str
) -> None:
    container = start(OLLAMA, ["check", *words], entrypoint=["ollama-probe"])
    assert container.wait()["StatusCode"] == 1
    line = container.logs().decode()
    assert line.startswith(f"unhealthy misconfigured (operator): {problem}")
    assert line.count("\n") == 1


@pytest.fixture(scope="module")
def bare(engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with the probe and nothing else: no C library, no shell, no Python."""
    directory = tmp_path_factory.mktemp("bare")
    (directory / "Dockerfile").write_text(f"FROM scratch\nCOPY --from={OLLAMA} /opt/ /opt/\n")
    yield from _built(engine, directory)


@pytest.fixture(scope="module")
def glibc_231(
    engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The probe beside glibc 2.31, the oldest that is promised."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("no mmdebstrap to fetch Debian 11's C library with")
    directory = tmp_path_factory.mktemp("glibc")
    options = ["--quiet", "--variant=extract", "--include=libc6,libc-bin"]
    subprocess.run(
        ["mmdebstrap", *options, "bullseye", directory / "libc.tar", archive()], check=True
    )
    (directory / "Dockerfile").write_text(
        f"FROM scratch\nADD libc.tar /\nCOPY --from={OLLAMA} /opt/ /opt/\n"
    )
    yield from _built(engine, directory)


def _built(engine: docker.DockerClient, directory: Path) -> Iterator[str]:
    tag = unique("test-image")
    docker_cli("build", "--quiet", "--tag", tag, str(directory))
    yield tag
    engine.images.remove(tag, force=True)


@pytest.mark.parametrize("image", ["bare", pytest.param("glibc_231", marks=pytest.mark.more)])
def test_the_probe_needs_nothing_of_the_image_it_is_baked_into(
    start: Callable[..., Container], request: pytest.FixtureRequest, nvml: Nvml, image: str
) -> None:
    """Not its C library, not root, not a file system that can be written."""
    nvml.answer("error 15")
    nvml.directory.chmod(0o755)
    for volumes, words in (({}, "api_down (restart)"), (nvml.volume, "NVML: GPU is lost")):
        container = start(
            request.getfixturevalue(image),
            ["check"],
            entrypoint=["/opt/ollama-probe/bin/ollama-probe"],
            environment={
                "LD_LIBRARY_PATH": "/usr/local/nvidia/lib",
                "PROBE_STATE_DIR": "/none",  # without a memory a GPU's fault is believed at once
                "PROBE_GPU": "required" if volumes else "auto",
            },
            volumes=volumes,
            user="12345:12345",
            read_only=True,
            network_mode="none",
            cap_drop=["ALL"],
        )
        assert container.wait()["StatusCode"] == 1
        assert words in container.logs().decode()


def test_nothing_else_about_ollamas_image_changes(engine: docker.DockerClient) -> None:
    ours = engine.images.get(OLLAMA)
    base = engine.images.get(os.environ.get("OLLAMA_IMAGE") or _base_image(engine))
    changed = {
        key
        for key, value in ours.attrs["Config"].items()
        if value != base.attrs["Config"].get(key) and key not in ("Image", "Labels")
    }
    assert changed == {"Healthcheck", "Env"}
    added = set(ours.attrs["Config"]["Env"]) - set(base.attrs["Config"]["Env"] or ())
    assert added == {"PROBE_RETRIES=3"}
    layers = base.attrs["RootFS"]["Layers"]
    assert ours.attrs["RootFS"]["Layers"][: len(layers)] == layers


def _base_image(engine: docker.DockerClient) -> str:
    here = {tag for image in engine.images.list() for tag in image.tags}
    return OFFICIAL if OFFICIAL in here else STANDIN_OLLAMA
