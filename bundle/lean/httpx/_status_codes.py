"""The status codes that httpx asks for by name, without the rest and without their phrases."""

__all__ = ["codes"]


class codes:  # noqa: N801
    MOVED_PERMANENTLY = 301
    FOUND = 302
    SEE_OTHER = 303
    TEMPORARY_REDIRECT = 307
    PERMANENT_REDIRECT = 308

    @staticmethod
    def get_reason_phrase(value: int) -> str:
        return ""

    @staticmethod
    def is_redirect(value: int) -> bool:
        return 300 <= value <= 399
