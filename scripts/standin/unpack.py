"""Take a runnable Ollama out of the wheels in one directory: unpack.py WHEELS TARGET."""

import sys
import zipfile
from pathlib import Path, PurePosixPath

INTEL = {
    "libsvml.so",
    "libirng.so",
    "libimf.so",
    "libintlc.so.5",
    "libsycl.so.8",
    "libur_loader.so.0",
    "libumf.so.0",
    "libiomp5.so",
}


def main(wheels: Path, target: Path) -> None:
    libraries = target / "usr/lib/ollama"
    libraries.mkdir(parents=True)
    (target / "usr/bin").mkdir()
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                path = PurePosixPath(member)
                if str(path.parent) == "bigdl/cpp/libs/ollama" or path.name in INTEL:
                    (libraries / path.name).write_bytes(archive.read(member))
    (libraries / "libggml-sycl.so").unlink()
    (libraries / "ollama").unlink()  # a wrapper that runs the next one through a shell
    (libraries / "ollama-lib").rename(target / "usr/bin/ollama")
    (target / "usr/bin/ollama").chmod(0o755)
    (libraries / "libintlc.so").symlink_to("libintlc.so.5")


main(Path(sys.argv[1]), Path(sys.argv[2]))
