"""Who may call the server: an ASGI layer before everything else.

Another site in the user's browser can send requests to a server of this machine. It cannot set
`Authorization`, and its name is in `Origin` or, after rebinding its own name, in `Host`.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import json
from collections.abc import Collection
from typing import Any

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_BODY = 32 << 20
# Pages may load nothing but what comes from here, and be framed by nobody.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


_TOO_LARGE = (413, f"A request may have up to {MAX_BODY >> 20} MB.")


class Guard:
    """Refuses requests for other hosts, of other sites, without the token, or too large.

    Args:
        app: the ASGI application behind it.
        token: string that requests to `/api/` must bring, as `Authorization: Bearer TOKEN`.
        hosts: names that `Host` may have. Addresses in numbers are accepted besides if
            `any_address` is set: no site can take one of them as its name.
        any_address: bool.
        open_paths: paths below `/api/` that need no token.
    """

    def __init__(
        self,
        app: Any,
        token: str,
        hosts: Collection[str],
        any_address: bool = False,
        open_paths: Collection[str] = ("/api/health",),
    ):
        self.token = token
        self._app, self._hosts = app, {host.lower() for host in hosts}
        self._any_address, self._open = any_address, frozenset(open_paths)

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets
            return
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        refusal = self._refusal(scope["path"], headers)
        if refusal is None:
            body = _Body(receive)
            with contextlib.suppress(_TooLargeError):
                await self._app(scope, body.receive, body.unless_too_large(_with_headers(send)))
            if not body.too_large:
                return
            refusal = _TOO_LARGE
        status, message = refusal
        body = json.dumps({"error": message}).encode()
        start = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        send = _with_headers(send)
        await send({"type": "http.response.start", "status": status, "headers": start})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, path: str, headers: dict[bytes, list[bytes]]) -> tuple[int, str] | None:
        hosts = headers.get(b"host", [])
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not self._is_ours(host):
            return 403, "This server does not answer for that host name."
        for origin in headers.get(b"origin", []):
            if origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
                return 403, "Other sites may not call this server."
        for site in headers.get(b"sec-fetch-site", []):
            if path.startswith("/api/") and site not in (b"same-origin", b"none"):
                return 403, "Other sites may not call this server."
        length = headers.get(b"content-length", [b"0"])[0]
        if not length.isdigit() or int(length) > MAX_BODY:
            return _TOO_LARGE
        if path.startswith("/api/") and path not in self._open:
            given = headers.get(b"authorization", [b""])[0]
            if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
                return 401, "The token is missing or wrong: open the address that was printed."
        return None

    def _is_ours(self, host: str) -> bool:
        name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host
        name = name.strip("[]") if name.startswith("[") else name.partition(":")[0]
        if name in self._hosts:
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _TooLargeError(Exception):
    """More body than is allowed, of a request that did not say so."""


class _Body:
    """The body of a request, up to the limit."""

    def __init__(self, receive):
        self._receive, self._length, self.too_large = receive, 0, False

    async def receive(self):
        message = await self._receive()
        self._length += len(message.get("body", b""))
        if self._length > MAX_BODY:
            self.too_large = True
            raise _TooLargeError
        return message

    def unless_too_large(self, send):
        """Holds back what the application answers to a body that it could not read."""

        async def send_unless(message):
            if not self.too_large:
                await send(message)

        return send_unless


def _with_headers(send):
    async def with_headers(message):
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", [])}
            more = [
                (k.encode(), v.encode()) for k, v in _HEADERS.items() if k.encode() not in given
            ]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return with_headers
