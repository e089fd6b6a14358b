"""What httpx asks of this module, for a client that sends no cookies."""

from collections.abc import Iterator


class Cookie:
    pass


class CookieJar:
    def extract_cookies(self, response: object, request: object) -> None:
        """Forget them."""

    def __iter__(self) -> Iterator[Cookie]:
        return iter(())
