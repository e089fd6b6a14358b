"""What httpx asks of this module, for a client that uploads no files."""


class MultipartStream:
    pass


def get_multipart_boundary_from_content_type(content_type: bytes | None) -> bytes | None:
    return None
