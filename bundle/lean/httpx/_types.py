"""What httpx asks of this module: two classes, and types, which only a type checker reads."""

__all__ = ["AsyncByteStream", "SyncByteStream"]


class SyncByteStream:
    def close(self) -> None:
        pass


class AsyncByteStream:
    pass


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return object
