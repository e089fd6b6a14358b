"""Import the modules of a bundle out of one file. The first thing that runs in a bundle.

Three things make a start slow, and here is what is done about each. A module that is a file of
its own costs a handful of system calls: here each is a slice of one file. A module that is
imported but never used costs what it does when it starts: those named lazy start when something
of theirs is first asked for. And some things are compiled at every start, to the same end: the
texts that dataclasses write of their methods, and regular expressions. Their code is in the file.
Types that stand as text are compiled when somebody evaluates them, which hardly anybody does.
"""

import _sre  # type: ignore[import-not-found]
import marshal
import sys
from _frozen_importlib import ModuleSpec
from _thread import RLock
from posix import open as posix_open
from posix import pread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType
else:  # nothing else can be imported yet
    ModuleType = type(sys)

HEAD_BYTES = 8
_loading = RLock()


class _Later(ModuleType):
    """A module that starts when something is first asked of it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # asked by the import system itself
            raise AttributeError(name)
        with _loading:
            archive: Archive | None = self.__dict__.pop("_archive", None)
            if archive is not None:
                exec(archive.code(self.__name__), self.__dict__)
        if name not in self.__dict__:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return self.__dict__[name]


class Archive:
    """Finds and loads modules in one file: the length of its head, the head, byte code.

    The head has for each module its offset, its length, and whether it is a package, lazy, and
    compressed; for each text that a dataclass compiles, its code; and for each regular
    expression, what its compiler made of it.
    """

    def __init__(self, file: str, directory: str) -> None:
        self._directory = directory
        self._descriptor = posix_open(file, 0)
        length = int.from_bytes(pread(self._descriptor, HEAD_BYTES, 0), "little")
        self._start = HEAD_BYTES + length
        self._index: dict[str, tuple[int, int, bool, bool, bool]]
        self._texts: dict[str, CodeType]
        self._patterns: dict[tuple[str | bytes, int], tuple[object, ...]]
        head = pread(self._descriptor, length, HEAD_BYTES)
        self._index, self._texts, self._patterns = marshal.loads(head)

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> ModuleSpec | None:
        """The import system asks this for every module."""
        entry = self._index.get(name)
        if entry is None:
            return None
        spec = ModuleSpec(name, self, is_package=entry[2])  # type: ignore[arg-type]
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(f"{self._directory}/{name.replace('.', '/')}")
        return spec

    def create_module(self, spec: ModuleSpec) -> "ModuleType | None":
        """An empty module; None leaves that to the import system."""
        if not self._index[spec.name][3]:
            return None
        module = _Later(spec.name)
        module.__dict__["_archive"] = self
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Start it, unless it is to start later."""
        if type(module) is not _Later:
            exec(self.code(module.__name__), module.__dict__)
            if module.__name__ == "dataclasses":
                module.__dict__["exec"] = self._exec
            elif module.__name__ == "typing":
                module.__dict__["compile"] = _as_text
            elif module.__name__ == "re._compiler":
                self._compile_pattern = module.__dict__["compile"]
                module.__dict__["compile"] = self._pattern

    def _exec(self, text: str, *scopes: "dict[str, object]") -> None:
        exec(self._texts.get(text, text), *scopes)

    def _pattern(self, pattern: "str | bytes", flags: int = 0) -> object:
        made = self._patterns.get((pattern, int(flags))) if type(pattern) in (str, bytes) else None
        return _sre.compile(*made) if made else self._compile_pattern(pattern, flags)

    def code(self, name: str) -> "CodeType":
        """A module's byte code."""
        offset, length, _, _, small = self._index[name]
        piece = pread(self._descriptor, length, self._start + offset)
        if small:
            from zlib import decompress

            piece = decompress(piece)
        code: CodeType = marshal.loads(piece)
        return code


def _as_text(text: str, file: str, mode: str) -> str:
    """For `typing.ForwardRef`, which can evaluate a text as well as its code."""
    return text


def install(file: str, directory: str) -> None:
    """Import from this file, after what the interpreter has in itself and before all else.

    `directory` has what stands beside it: native code and data.
    """
    sys.meta_path.insert(2, Archive(file, directory))
