"""Assemble a directory with a private Python and just the modules that one command needs.

    python bundle.py --command NAME=MODULE:FUNCTION --target DIR [--include MODULE ...]

The result runs in an image without Python and without a C library of the right age: it
brings the interpreter, the modules (byte code only), the shared libraries they need, and
the dynamic loader of the same C library. It runs from DIR only, since the kernel takes a
loader by its absolute path.

This starts faster and is smaller than PyInstaller's or Nuitka's result; see docs/bundle.md.
Needs `patchelf` on the PATH, and the modules importable by the Python that runs it.
"""

import __future__

import argparse
import glob
import importlib.util
import marshal
import os
import re
import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

# Found by name at run time only: text encodings of the start-up, and of a host's name.
HIDDEN = ["encodings.utf_8", "encodings.ascii", "encodings.latin_1", "encodings.idna"]

# Named by an import somewhere, needed by nobody who runs a command.
UNWANTED = {
    *("bdb", "ctypes.macholib", "curses", "distutils", "doctest", "ensurepip", "h2", "httpx._main"),
    *("idlelib", "lib2to3", "nt", "ntpath", "optparse", "pdb", "pip", "pty", "pydoc", "pydoc_data"),
    *("pygments", "rich", "setuptools", "socks", "sqlite3", "test", "tkinter", "trio", "unittest"),
    *("venv", "webbrowser", "winreg"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--command", required=True, metavar="NAME=MODULE:FUNCTION")
    options.add_argument("--target", required=True, type=Path)
    options.add_argument("--unwanted", nargs="*", default=[], metavar="MODULE")
    args = options.parse_args()
    name, _, entry = args.command.partition("=")
    module, _, function = entry.partition(":")

    library = args.target / "lib" / VERSION
    (library / "lib-dynload").mkdir(parents=True)  # the interpreter looks for it and complains
    files = find_modules([module, *HIDDEN], {*UNWANTED, *args.unwanted})
    natives = [copy_module(source, library / relative) for relative, source in files.items()]
    interpreter = args.target / "bin" / "python3"
    interpreter.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    copy_libraries([interpreter, *(n for n in natives if n)], args.target.absolute() / "lib")
    launcher = args.target / "bin" / name
    launcher.write_text(
        f"#!{interpreter.absolute()} -IS\nimport sys\nfrom {module} import {function}\n"
        f"sys.exit({function}())\n"
    )
    launcher.chmod(0o755)
    # What was left out and is needed after all must fail here, not at a user's.
    own = [m for m in files if m.startswith(module.partition(".")[0])]
    names = [m.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for m in own]
    run([str(interpreter), "-IS", "-c", f"import {', '.join(names)}"])


def find_modules(wanted: list[str], unwanted: set[str]) -> dict[str, str]:
    """Every module that these import, in any function: path inside the bundle → source file."""
    excluded = [m for m in unwanted if m not in wanted]
    finder = ModuleFinder(excludes=excluded)
    for module in wanted:
        finder.import_hook(module)
        package = sys.modules.get(module) or importlib.util.find_spec(module)
        assert package is not None
    files = {}
    for module, found in finder.modules.items():
        source: str | None = found.__file__  # type: ignore[attr-defined]
        if source is None:
            continue
        suffix = module.replace(".", "/")
        if found.__path__:  # type: ignore[attr-defined]
            files[f"{suffix}/__init__.py"] = source
            for data in glob.glob(f"{os.path.dirname(source)}/*.pem"):
                files[f"{suffix}/{os.path.basename(data)}"] = data
        elif source.endswith(".py"):
            files[f"{suffix}.py"] = source
        else:
            files[f"{os.path.dirname(suffix)}/{os.path.basename(source)}".lstrip("/")] = source
    return files


def copy_module(source: str, target: Path) -> Path | None:
    """Put one module (as byte code) or data file in place; returns it if it is native code."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".py":
        target.with_suffix(".pyc").write_bytes(byte_code(source, target))
        return None
    shutil.copy(source, target)
    return target if ".so" in target.name else None


def byte_code(source: str, target: Path) -> bytes:
    """A `.pyc` file: no asserts, and annotations left as text, which saves their evaluation."""
    code = compile(
        Path(source).read_bytes(),
        str(target),
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
        optimize=1,
    )
    unchecked_hash = (0b01).to_bytes(4, "little") + bytes(8)
    return importlib.util.MAGIC_NUMBER + unchecked_hash + marshal.dumps(code)


def copy_libraries(programs: list[Path], target: Path) -> None:
    """Bring every shared library these need, and make them find it there and nowhere else."""
    loader = ""
    found: dict[str, str] = {}
    listing = run(["ldd", *map(str, programs)])
    for name, path in re.findall(r"^\s+(\S+) => (/\S+)", listing, re.M):
        found[name] = path
    for path in re.findall(r"^\s+(/\S+ld-linux\S+)", listing, re.M):
        loader = path
    assert loader, "the interpreter names no dynamic loader"
    # What NVML's library asks for: its own image's copies would not fit this C library.
    system = os.path.dirname(os.path.realpath(found["libc.so.6"]))
    stubs = ["libpthread.so.0", "libdl.so.2", "librt.so.1", "libm.so.6"]
    for name in stubs:
        found[name] = f"{system}/{name}"
    target.mkdir(parents=True, exist_ok=True)
    for name, path in found.items():
        shutil.copy(os.path.realpath(path), target / name)
    shutil.copy(os.path.realpath(loader), target / os.path.basename(loader))
    interpreter, *natives = programs
    needed = [word for name in stubs for word in ("--add-needed", name)]
    run(
        [
            "patchelf",
            *("--set-interpreter", str(target / os.path.basename(loader))),
            *needed,
            *("--force-rpath", "--set-rpath", str(target)),
            str(interpreter),
        ]
    )
    for native in natives:
        run(["patchelf", "--remove-rpath", str(native)])


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.abspath(__file__))]
    main()
