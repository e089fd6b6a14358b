"""What pynvml asks of this module, on any system but Windows: nothing, but it imports it."""


def find_library(name: str) -> str | None:
    raise NotImplementedError("this bundle is for Linux")
