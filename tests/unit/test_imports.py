"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

MAY_IMPORT = {
    "probe": {"probe"},
    "autoheal": {"autoheal", "probe"},
    "bundle": {"bundle"},
    "testbed": {"testbed", "autoheal", "probe"},
    "scripts": {"scripts", "testbed", "autoheal", "probe"},
    "bench": {"bench", "testbed", "autoheal", "probe"},
    # What is tested is imported; tests of one folder may share a module that lies in it.
    "tests": {"bundle", "scripts", "testbed", "autoheal", "probe"},
}
"""For each folder of ours, the folders of ours that its modules may import."""


FLOORS = {
    1: "gpu_reading observation memory report knobs settings setting_names",
    2: "dialects generations activity plan loads vram gpus crashes learn silence judge healing "
    "retries",
    3: "deadline processes connections runners end_process ollama nvml nvml_details amd "
    "memory_file restarts",
    4: "devices asking observe check end_runner end_server",
    5: "cli serve metrics exposition status monitor monitored ollama_clients",
}
"""The files of `probe/`: data, rules, hands, wiring, faces. A file imports from its own floor and
those above it in this list; a hand imports no rule but `dialects`, which reads what it is shown."""


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield node.module or ""


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}: {module}"
        for file in (ROOT / folder).rglob("*.py")
        for module in imported(file)
        if module.partition(".")[0] in MAY_IMPORT
        and module.partition(".")[0] not in MAY_IMPORT[folder]
        and not _of_the_same_tests(file, module)
    ]
    assert wrong == []


def test_a_file_of_the_probe_imports_only_from_its_own_floor_and_above() -> None:
    floor = {name: number for number, names in FLOORS.items() for name in names.split()}
    files = {file.stem: file for file in (ROOT / "probe").glob("[!_]*.py")}
    assert files.keys() == floor.keys()
    wrong = []
    for name, file in files.items():
        for other in _siblings(file):
            rule_in_a_hand = (floor[name], floor[other]) == (3, 2) and other != "dialects"
            if floor[other] > floor[name] or rule_in_a_hand:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def _siblings(file: Path) -> set[str]:
    """The modules of `probe` that a file imports, by name."""
    names = {module.removeprefix("probe.") for module in imported(file) if "probe." in module}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "probe":
            names |= {alias.name for alias in node.names if not alias.name.startswith("_")}
    return names


def test_the_rules_need_none_of_the_packages_of_hands() -> None:
    """`import probe.judge, autoheal.decide` where httpx, pynvml and docker are not installed."""
    code = (
        "import sys\n"
        "for name in ('httpx', 'pynvml', 'docker', 'click'): sys.modules[name] = None\n"
        "import probe.judge, autoheal.decide\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_command_that_runs_every_few_seconds_loads_nothing_that_another_needs() -> None:
    """`autoheal health`, above all."""
    code = "import sys, autoheal.cli, autoheal.heartbeat; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert not {"docker", "requests", "httpx", "apprise", "uvicorn"} & set(done.stdout.split())


@pytest.mark.parametrize("file", sorted((ROOT / "probe").rglob("*.py")), ids=lambda f: f.stem)
def test_a_file_of_the_probe_fits_in_one_head(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 400


def _of_the_same_tests(file: Path, module: str) -> bool:
    """Whether a test imports a helper of its own folder."""
    folder = ".".join(file.relative_to(ROOT).parent.parts)
    name = module.removeprefix(f"{folder}.")
    return folder.startswith("tests.") and module != name and not name.startswith("test_")


@pytest.mark.parametrize("file", sorted((ROOT / "testbed").rglob("*.py")), ids=lambda f: f.stem)
def test_a_file_of_the_testbed_fits_in_one_head(file: Path) -> None:
    assert len(file.read_text().splitlines()) < 400
