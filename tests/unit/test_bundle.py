"""What the probe runs in: modules out of one file, and a few that stand in for larger ones."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import marshal
import subprocess
import sys
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import bundle.__main__ as bundle
from bundle import bundled

LEAN = Path(bundle.__file__).parent / "lean"
SUMS = {
    name: digest for digest, name in map(str.split, (LEAN / "SHA256SUMS").read_text().splitlines())
}
"""Of what they stand in for, as `sha256sum` writes it."""

OF_PACKAGES = [
    name
    for file in sorted(LEAN.rglob("*.py"))
    if (name := str(file.relative_to(LEAN))).split("/")[0].removesuffix(".py")
    not in sys.stdlib_module_names
]


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_what_a_lean_module_stands_in_for_is_what_it_was_written_for(name: str) -> None:
    """Python's own are those of one version, which `bundle` asks for itself."""
    spec = importlib.util.find_spec(name.split("/")[0])
    assert spec is not None
    assert spec.origin is not None
    replaced = Path(spec.origin).parent.parent / name
    digest = hashlib.sha256(replaced.read_bytes()).hexdigest()
    assert digest == SUMS[name], f"{replaced} has changed: is bundle/lean/{name} still right?"


def test_every_sum_is_that_of_a_lean_module() -> None:
    assert sorted(SUMS) == sorted(OF_PACKAGES)


def test_another_python_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 0, "final", 0))
    words = ["bundle", "--command", "x=y:z", "--target", "/nowhere", "--fast", "y"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"made for python3\.11, and this is python3\.12"):
        bundle.main()


def code_of(tmp_path: Path, text: str, **more: Any) -> dict[str, Any]:
    """What a module has defined, as it is compiled for a bundle."""
    source = tmp_path / "module.py"
    source.write_text(text)
    names: dict[str, Any] = {"__name__": "module"}
    sys.modules["module"] = ModuleType("module")
    try:
        exec(bundle.byte_code(str(source), source, **more), names)
    finally:
        del sys.modules["module"]
    return names


def test_annotations_are_text_and_docstrings_and_asserts_go(tmp_path: Path) -> None:
    names = code_of(tmp_path, 'def f(x: Nothing) -> None:\n    "doc"\n    assert False\n')
    assert names["f"].__annotations__ == {"x": "Nothing", "return": "None"}
    assert names["f"].__doc__ is None
    names["f"](1)


def test_beside_a_dataclass_annotations_are_types_and_it_keeps_a_docstring(tmp_path: Path) -> None:
    text = "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int | None = 1\n"
    made = code_of(tmp_path, text)["A"]
    assert [field.type for field in dataclasses.fields(made)] == [int | None]
    assert made.__doc__ == "A"


def test_only_what_is_named_stays_and_what_that_names(tmp_path: Path) -> None:
    text = "def a(): return b()\ndef b(): return 1\ndef c(): return 2\n"
    names = code_of(tmp_path, text, named={"a"})
    assert names["a"]() == 1
    assert "c" not in names


ABOVE = "import dataclasses, re\nwide = re.compile('x+')\n"
MODULES = {
    "made": ABOVE + "@dataclasses.dataclass\nclass Point:\n    'p'\n    x: int = 1\n",
    "whole": "",
    "whole.part": "said = 'part'\n",
    "later": "print('later starts')\nsaid = 'later'\n",
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A file with some modules, one of which starts late."""
    path = tmp_path / "modules"
    modules = {
        name: bundle.Module(name, compile(text, name, "exec"), name == "whole", name == "later")
        for name, text in MODULES.items()
    }
    bundle.write(path, modules, bundle.Record([], {}, ["made"]))
    return path


def start_of(archive: Path) -> str:
    """What lets a Python import out of this file."""
    start = f"import sys; sys.path.insert(0, {str(Path(bundled.__file__).parent)!r})\n"
    return start + f"import bundled; bundled.install({str(archive)!r}, '/nowhere')\n"


def run_in(archive: Path, code: str) -> str:
    """What a Python prints that imports out of this file."""
    command = [sys.executable, "-IS", "-c", start_of(archive) + code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_modules_come_out_of_one_file(archive: Path) -> None:
    said = run_in(archive, "from whole.part import said; import made; print(said, made.Point())")
    assert said == "part Point(x=1)\n"


def test_what_is_lazy_starts_when_something_is_first_asked_of_it(archive: Path) -> None:
    said = run_in(archive, "import later; print('imported'); print(later.said)")
    assert said.splitlines() == ["imported", "later starts", "later"]


def test_what_need_not_start_fast_is_compressed(archive: Path) -> None:
    head = archive.read_bytes()
    length = int.from_bytes(head[: bundled.HEAD_BYTES], "little")
    index, *_ = marshal.loads(head[bundled.HEAD_BYTES :][:length])
    compressed = {name for name, (*_, small) in index.items() if small}
    assert compressed == {"whole", "whole.part", "later"}


def test_a_type_that_stands_as_text_is_compiled_when_it_is_evaluated(tmp_path: Path) -> None:
    code = compile(Path(typing.__file__).read_text(), "typing", "exec")
    bundle.write(
        tmp_path / "modules", {"typing": bundle.Module("typing", code, False, False)}, None
    )
    asked = "import typing; print(repr(typing.ForwardRef('A').__forward_code__))\n"
    asked += "class A: x: 'typing.List[A]'\n"
    asked += "print(typing.get_type_hints(A)['x'].__args__[0].__name__)"
    assert run_in(tmp_path / "modules", asked).splitlines() == ["'A'", "A"]


def test_what_dataclasses_and_patterns_compile_is_recorded(archive: Path) -> None:
    seen = bundle.record(Path(sys.executable), start_of(archive), ["made"], ["made"])
    assert any("__init__" in text for text in seen.texts)
    assert "x+" in {pattern for pattern, _ in seen.patterns}
