"""Where the certificates are, without the machinery that finds them in any installation."""


def where() -> str:
    return f"{__path__[0]}/cacert.pem"
