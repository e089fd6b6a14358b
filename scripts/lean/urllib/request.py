"""What httpx asks of this module, for a client that has no proxy, no password and no cookie."""


class Request:
    def __init__(self, url: str, headers: dict[str, str], method: str) -> None:
        pass


def getproxies() -> dict[str, str]:
    return {}


def parse_http_list(text: str) -> list[str]:
    raise NotImplementedError("this bundle knows no HTTP authentication")
