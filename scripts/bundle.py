"""Assemble a directory with a private Python and just the modules that one command needs.

    python -X no_debug_ranges -m scripts.bundle --command NAME=MODULE:FUNCTION --target DIR

The result runs in an image without Python and without a C library of the right age: it
brings the interpreter, the modules (byte code, in one file that `bundled.py` reads), the shared
libraries they need, and the dynamic loader of the same C library. It runs from DIR only, since
the kernel takes a loader by its absolute path.

This starts faster and is smaller than PyInstaller's or Nuitka's result; see docs/bundle.md.
Needs `patchelf` on the PATH, and the modules importable by the Python that runs it.
"""

import __future__

import _imp
import argparse
import ast
import glob
import importlib.util
import marshal
import os
import re
import shutil
import subprocess
import sys
import zlib
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from scripts import bundled

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


# The interpreter knows its home by os.py, and needs its encodings before anything of ours runs;
# certifi asks where it lies.
AS_FILES = ("os.py", "encodings/", "certifi/")

# Print what the imports that follow compile: the texts of dataclasses, and regular expressions.
RECORD = """
import re._compiler, _sre, sys
texts, patterns = [], {}
def record_text(text, *scopes):
    texts.append(text)
    exec(text, *scopes)
class record_pattern:
    def __getattr__(self, name):
        return getattr(_sre, name)
    def compile(self, pattern, flags, code, groups, groupindex, indexgroup):
        code = list(map(int, code))
        patterns[asked] = made = pattern, int(flags), code, groups, dict(groupindex), indexgroup
        return _sre.compile(*made)
def compile_pattern(pattern, flags=0, compile=re._compiler.compile):
    global asked
    asked = pattern, int(flags)
    return compile(pattern, flags)
re._compiler._sre = record_pattern()
re._compiler.compile = compile_pattern
import dataclasses
dataclasses.exec = record_text
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--command", required=True, metavar="NAME=MODULE:FUNCTION")
    options.add_argument("--target", required=True, type=Path)
    options.add_argument("--unwanted", nargs="*", default=[], metavar="MODULE")
    options.add_argument(
        "--lazy", nargs="*", default=[], metavar="MODULE", help="to start at their first use only"
    )
    options.add_argument(
        "--lean", type=Path, metavar="DIR", help="has modules to take in the place of others"
    )
    options.add_argument(
        "--fast", nargs="*", default=[], metavar="MODULE", help="to start fast; others get small"
    )
    args = options.parse_args()
    name, _, entry = args.command.partition("=")
    module, _, function = entry.partition(":")

    library = args.target / "lib" / VERSION
    (library / "lib-dynload").mkdir(parents=True)  # the interpreter looks for it and complains
    files = find_modules([module, *HIDDEN], {*UNWANTED, *args.unwanted}, args.lean)
    natives = []
    modules: dict[str, Module] = {}
    for relative, source in files.items():
        if not relative.endswith(".py"):
            natives += copy_file(source, library / relative)
        elif relative.startswith(AS_FILES):
            write_byte_code(source, library / relative)
        else:
            one = module_name(relative)
            if not _imp.is_frozen(one):  # the interpreter has it in itself
                package, lazy = relative.endswith("/__init__.py"), one in args.lazy
                modules[one] = Module(byte_code(source, library / relative), package, lazy)
    interpreter = args.target / "bin" / "python3"
    interpreter.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    copy_libraries([interpreter, *natives], args.target.absolute() / "lib")
    archive = args.target.absolute() / "lib" / "modules"
    write(archive, modules, {}, {})
    write_byte_code(bundled.__file__, library / "bundled.py")
    launcher = args.target / "bin" / name
    launcher.write_text(
        f"#!{interpreter.absolute()} -IS\nimport bundled\n"
        f"bundled.install({str(archive)!r}, {str(library.absolute())!r})\n"
        f"from {module} import {function}\n{function}()\n"
    )
    launcher.chmod(0o755)
    # What was left out and is needed after all must fail here, not at a user's.
    own = [m for m in modules if m.partition(".")[0] == module.partition(".")[0]]
    prepare = launcher.read_text().partition("from ")[0] + RECORD
    for one in args.fast:
        prepare += f"import {one}\n"
    prepare += f"fast = list(sys.modules)\nimport {', '.join(own)}\n"
    record = run([str(interpreter), "-IS", "-c", prepare + "print((texts, patterns, fast))"])
    texts, patterns, fast = ast.literal_eval(record)
    for one in modules.keys() - (set(fast) - set(args.lazy)) if args.fast else ():
        modules[one] = modules[one]._replace(small=True)
    codes = {text: compile(text, "", "exec") for text in texts}
    write(archive, modules, codes, patterns)


class Module(NamedTuple):
    """What goes into the archive of one module; `lazy` and `small` as `bundled.py` has them."""

    code: CodeType
    package: bool
    lazy: bool
    small: bool = False


def write(
    archive: Path,
    modules: dict[str, Module],
    texts: dict[str, CodeType],
    patterns: dict[tuple[str | bytes, int], tuple[object, ...]],
) -> None:
    """Write what `bundled.py` reads.

    Args:
        archive: where to.
        modules: by name.
        texts: what dataclasses compile, and its code.
        patterns: regular expressions with their flags, and the arguments of `_sre.compile`.
    """
    index, content = {}, b""
    for name, (code, *flags, small) in modules.items():
        piece = zlib.compress(marshal.dumps(code), 9) if small else marshal.dumps(code)
        index[name] = (len(content), len(piece), *flags, small)
        content += piece
    head = marshal.dumps((index, texts, patterns))
    archive.write_bytes(len(head).to_bytes(bundled.HEAD_BYTES, "little") + head + content)


class Finder(ModuleFinder):
    """Finds every module that others import, and takes those in `lean` for their namesakes."""

    def __init__(self, excludes: list[str], lean: Path | None) -> None:
        super().__init__(excludes=excludes)
        files = lean.rglob("*.py") if lean else ()
        self.lean = {module_name(str(file.relative_to(lean))): str(file) for file in files if lean}

    def load_module(self, fqname, fp, pathname, file_info):  # type: ignore[no-untyped-def]
        if fqname in self.lean and fp is not None:
            pathname = self.lean[fqname]
            with open(pathname, "rb") as other:
                return super().load_module(fqname, other, pathname, file_info)  # type: ignore[arg-type]
        return super().load_module(fqname, fp, pathname, file_info)


def find_modules(wanted: list[str], unwanted: set[str], lean: Path | None) -> dict[str, str]:
    """Every module that these import, in any function: path inside the bundle → source file."""
    finder = Finder([m for m in unwanted if m not in wanted], lean)
    for module in wanted:
        finder.import_hook(module)
    files = {}
    for module, found in finder.modules.items():
        source: str | None = found.__file__  # type: ignore[attr-defined]
        if source is None:
            continue
        suffix = module.replace(".", "/")
        if found.__path__:  # type: ignore[attr-defined]
            files[f"{suffix}/__init__.py"] = source
            for data in glob.glob(f"{found.__path__[0]}/*.pem"):  # type: ignore[attr-defined]
                files[f"{suffix}/{os.path.basename(data)}"] = data
        elif source.endswith(".py"):
            files[f"{suffix}.py"] = source
        else:
            files[f"{os.path.dirname(suffix)}/{os.path.basename(source)}".lstrip("/")] = source
    return files


def module_name(relative: str) -> str:
    """`a/b/__init__.py` and `a/b.py` → `a.b`."""
    return relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def copy_file(source: str, target: Path) -> list[Path]:
    """Put native code or data in place; returns it if it is native code."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    return [target] if ".so" in target.name else []


def write_byte_code(source: str, target: Path) -> None:
    """A module as a `.pyc` file."""
    code = byte_code(source, target)
    unchecked_hash = (0b01).to_bytes(4, "little") + bytes(8)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".pyc").write_bytes(
        importlib.util.MAGIC_NUMBER + unchecked_hash + marshal.dumps(code)
    )


def byte_code(source: str, target: Path) -> CodeType:
    """Without asserts, and with annotations left as text, which saves their evaluation.

    Docstrings go too, but not where something reads them: our own commands show theirs as their
    help, and a dataclass that has none works out its signature instead, which is slow.
    """
    content = Path(source).read_bytes()
    tree = ast.parse(content)
    dataclasses = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    for node in dataclasses:
        if ast.get_docstring(node) is None:
            node.body.insert(0, ast.Expr(ast.Constant(node.name)))
    code: CodeType = compile(
        ast.fix_missing_locations(tree),
        target.name,
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
        optimize=1 if dataclasses or b"click" in content else 2,
    )
    return code


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
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
