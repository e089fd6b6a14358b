"""Assemble a directory with a private Python and just the modules that one command needs.

    python -X no_debug_ranges -m bundle --command NAME=MODULE:FUNCTION --target DIR --fast MODULE

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

from bundle import bundled

MADE_FOR = (3, 11)
"""Another Python's library compiles, imports and names other things."""

VERSION = "python{}.{}".format(*MADE_FOR)

# Found by name at run time only: text encodings of the start-up, and of a host's name.
HIDDEN = ["encodings.utf_8", "encodings.ascii", "encodings.latin_1", "encodings.idna"]

# Named by an import somewhere, needed by nobody who runs a command.
UNWANTED = {
    *("bdb", "ctypes.macholib", "curses", "distutils", "doctest", "ensurepip", "h2", "httpx._main"),
    *("idlelib", "lib2to3", "nt", "ntpath", "optparse", "pdb", "pip", "pty", "pydoc", "pydoc_data"),
    *("pygments", "rich", "setuptools", "socks", "test", "tkinter", "trio", "unittest"),
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
    args = arguments()
    if sys.version_info[:2] != MADE_FOR:
        here = "python{}.{}".format(*sys.version_info)
        sys.exit(f"bundle: made for {VERSION}, and this is {here}; see docs/bundle.md")
    name, _, entry = args.command.partition("=")
    module, _, function = entry.partition(":")
    package = module.partition(".")[0]
    library = args.target.absolute() / "lib" / VERSION
    archive = args.target.absolute() / "lib" / "modules"
    interpreter = args.target.absolute() / "bin" / "python3"
    (library / "lib-dynload").mkdir(parents=True)  # the interpreter looks for it and complains
    interpreter.parent.mkdir(parents=True)

    files = find_modules([module, *HIDDEN], {*UNWANTED, *args.unwanted}, args.lean)
    own = [source for relative, source in files.items() if relative.split("/")[0] == package]
    named = set(re.findall(r"\w+", "".join(Path(source).read_text() for source in own)))
    modules = {
        one.name: one
        for relative, source in files.items()
        if (one := place(relative, source, library, args, named)) is not None
    }
    shutil.copy(os.path.realpath(sys.executable), interpreter)
    copy_libraries([interpreter, *library.rglob("*.so")], args.target.absolute() / "lib")
    code = byte_code(bundled.__file__, library / "bundled.py")
    write_byte_code(library / "bundled.pyc", code)
    write(archive, modules, None)

    start = f"import bundled\nbundled.install({str(archive)!r}, {str(library)!r})\n"
    launcher = args.target / "bin" / name
    launcher.write_text(
        f"#!{interpreter} -IS\n{start}from {module} import {function}\n{function}()\n"
    )
    launcher.chmod(0o755)
    mine = [m for m in modules if m.partition(".")[0] == package]
    write(archive, modules, record(interpreter, start, args.fast, mine))


def arguments() -> argparse.Namespace:
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
        "--shake", nargs="*", default=[], metavar="MODULE", help="to lose what is never named"
    )
    options.add_argument(
        "--fast", nargs="+", required=True, metavar="MODULE", help="to start fast; others get small"
    )
    return options.parse_args()


class Module(NamedTuple):
    """What goes into the archive of one module; `lazy` as `bundled.py` has it."""

    name: str
    code: CodeType
    package: bool
    lazy: bool


class Record(NamedTuple):
    """What happened while everything was imported.

    Attributes:
        texts: what dataclasses compiled.
        patterns: regular expressions with their flags, and the arguments of `_sre.compile`.
        fast: the modules that were imported for those that are to start fast.
    """

    texts: list[str]
    patterns: dict[tuple[str | bytes, int], tuple[object, ...]]
    fast: list[str]


def record(interpreter: Path, start: str, fast: list[str], own: list[str]) -> Record:
    """Import everything in the bundle. What was left out and is needed after all fails here."""
    lines = [start + RECORD, *(f"import {one}" for one in fast), "fast = list(sys.modules)"]
    lines += [f"import {', '.join(own)}", "print((texts, patterns, fast))"]
    return Record(*ast.literal_eval(run([str(interpreter), "-IS", "-c", "\n".join(lines)])))


def write(archive: Path, modules: dict[str, Module], seen: Record | None) -> None:
    """Write what `bundled.py` reads.

    Args:
        archive: the file.
        modules: what goes into it.
        seen: what happens while they start, None where that is not known yet. What need not start
            fast is compressed.
    """
    index, content = {}, b""
    for name, (_, code, package, lazy) in modules.items():
        compressed = seen is not None and (lazy or name not in seen.fast)
        piece = zlib.compress(marshal.dumps(code), 9) if compressed else marshal.dumps(code)
        index[name] = (len(content), len(piece), package, lazy, compressed)
        content += piece
    codes = {text: compile(text, "", "exec") for text in seen.texts} if seen else {}
    head = marshal.dumps((index, codes, seen.patterns if seen else {}))
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


def place(
    relative: str, source: str, library: Path, args: argparse.Namespace, named: set[str]
) -> Module | None:
    """Put what must be a file in its place; anything else is a module for the archive.

    Args:
        relative: path inside the bundle.
        source: the file.
        library: where to.
        args: the command line.
        named: every word in our own modules.
    """
    target = library / relative
    if not relative.endswith(".py"):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    elif relative.startswith(AS_FILES):
        write_byte_code(target.with_suffix(".pyc"), byte_code(source, target))
    elif not _imp.is_frozen(name := module_name(relative)):  # the interpreter has those in itself
        package = relative.endswith("/__init__.py")
        code = byte_code(source, target, named if name in args.shake else None)
        return Module(name, code, package, name in args.lazy)
    return None


def write_byte_code(target: Path, code: CodeType) -> None:
    """A module as a `.pyc` file, which is never compared with its source."""
    unchecked_hash = (0b01).to_bytes(4, "little") + bytes(8)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(importlib.util.MAGIC_NUMBER + unchecked_hash + marshal.dumps(code))


def byte_code(source: str, target: Path, named: set[str] | None = None) -> CodeType:
    """Without asserts, and with annotations left as text, which saves their evaluation.

    Not so beside a dataclass, which reads them, and would search each text for words of its own.
    Docstrings go too, but not where something reads them: our own commands show theirs as their
    help, and a dataclass that has none works out its signature instead, which is slow. Where
    `named` is given, classes and functions go that nobody names.
    """
    content = Path(source).read_bytes()
    tree = ast.parse(content)
    if named is not None:
        shake(tree, named)
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
        flags=0 if dataclasses else __future__.annotations.compiler_flag,
        dont_inherit=True,
        optimize=1 if dataclasses or b"click" in content else 2,
    )
    return code


def shake(tree: ast.Module, named: set[str]) -> None:
    """Leave out the classes and functions that neither `named` nor what stays refers to."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    optional = [node for node in tree.body if isinstance(node, kinds)]
    needed = set(named)
    seen: list[ast.stmt] = []
    while True:
        stays = [n for n in tree.body if n not in optional or n.name in needed]
        new = [node for node in stays if node not in seen]
        if not new:
            break
        seen += new
        needed |= {n.id for node in new for n in ast.walk(node) if isinstance(n, ast.Name)}
    tree.body = stays


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
