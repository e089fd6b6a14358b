"""What httpx asks of this module, for a client that reads bytes and never text."""


class Message:
    def __init__(self) -> None:
        raise NotImplementedError("this bundle knows no character sets")
