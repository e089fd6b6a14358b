"""What httpx exports from here, for a client that calls no application within its process."""

__all__ = ["WSGITransport"]


class WSGITransport:
    pass
