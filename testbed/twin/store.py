"""Models as Ollama keeps them on disk: manifests, and blobs named by their digests."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama/models")

_LIBRARY = ("registry.ollama.ai", "library")
_LAYER = "application/vnd.ollama.image."
_SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9
_NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}(:[\w.-]+)?")


@dataclass(frozen=True)
class Model:
    """A model on disk.

    Attributes:
        name: with its tag, as the API lists it.
        digest: of its manifest.
        weights: the GGUF file.
        config: format, family, parameter size and quantization.
        options: what the Modelfile's PARAMETER lines set.
        adapters: LoRA files.
        info: the scalar metadata of the GGUF file.
    """

    name: str
    manifest: Path
    digest: str
    size: int
    weights: Path
    config: dict[str, Any]
    options: dict[str, Any]
    adapters: tuple[str, ...]
    info: dict[str, Any]

    @property
    def details(self) -> dict[str, Any]:
        return {
            "parent_model": "",
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }

    @property
    def trained_context(self) -> int:
        return int(self.of_architecture("context_length") or 0)

    @property
    def embeds(self) -> bool:
        """Whether it is for embeddings only."""
        return self.of_architecture("pooling_type") is not None

    def of_architecture(self, key: str) -> Any:
        return self.info.get(f"{self.info.get('general.architecture')}.{key}")


def find(name: str) -> Model | None:
    """The model of this name, with or without its tag; None when there is none."""
    if not _NAME.fullmatch(name):
        return None
    path, _, tag = name.partition(":")
    parts = path.split("/")
    folder = (*_LIBRARY[: 3 - len(parts)], *parts)
    manifest = ROOT.joinpath("manifests", *folder, tag or "latest")
    return _read(manifest) if manifest.is_file() else None


def all_models() -> Iterator[Model]:
    """Every model on disk, the newest first."""
    files = [file for file in (ROOT / "manifests").glob("*/*/*/*") if file.is_file()]
    return map(_read, sorted(files, key=lambda file: -file.stat().st_mtime))


def _read(manifest: Path) -> Model:
    content = manifest.read_bytes()
    parsed = json.loads(content)
    blobs: dict[str, list[Path]] = {}
    for layer in parsed["layers"]:
        kind = str(layer["mediaType"]).removeprefix(_LAYER)
        blobs.setdefault(kind, []).append(_blob(layer["digest"]))
    registry, *space, base = manifest.relative_to(ROOT / "manifests").parts[:-1]
    shown = base if (registry, *space) == _LIBRARY else "/".join((*space, base))
    [weights] = blobs["model"]
    return Model(
        name=f"{shown}:{manifest.name}",
        manifest=manifest,
        digest=hashlib.sha256(content).hexdigest(),
        size=sum(part["size"] for part in (parsed["config"], *parsed["layers"])),
        weights=weights,
        config=json.loads(_blob(parsed["config"]["digest"]).read_text()),
        options={k: v for file in blobs.get("params", ()) for k, v in _object(file).items()},
        adapters=tuple(map(str, blobs.get("adapter", ()))),
        info=metadata(weights),
    )


def _blob(digest: str) -> Path:
    return ROOT / "blobs" / digest.replace(":", "-")


def _object(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


@functools.cache
def metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file, without its arrays."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path}: not a GGUF file")
        _, _, count = (_scalar(file, code) for code in "IQQ")
        pairs = [(_text(file), _value(file, _scalar(file, "I"))) for _ in range(count)]
    return {key: value for key, value in pairs if value is not None}


def _scalar(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_scalar(file, "Q")).decode(errors="replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _TEXT:
        return _text(file)
    if kind != _ARRAY:
        return _scalar(file, _SCALARS[kind])
    inner, count = _scalar(file, "I"), _scalar(file, "Q")
    for _ in range(count):
        _value(file, inner)
    return None
