"""The names that httpcore exports from here, for a client that is never asynchronous."""


class AsyncConnectionInterface:
    pass


class AsyncConnectionPool:
    pass


class AsyncHTTP11Connection:
    pass


class AsyncHTTP2Connection:
    pass


class AsyncHTTPConnection:
    pass


class AsyncHTTPProxy:
    pass


class AsyncSOCKSProxy:
    pass
