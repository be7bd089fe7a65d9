"""What stands before the app: who may come in, from where, to which addresses, and with how much.

A browser shows the token once (or a password), and gets a cookie that scripts cannot read. Names of other hosts are refused, so
that no site can rebind its name to this machine; so is every request from a page of another origin. Only the routes that the
page needs exist. Headers forbid the page to load anything from elsewhere.
"""

from __future__ import annotations

import asyncio
import html
import ipaddress
import re
import secrets
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_forget.errors import UserError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Page = Callable[[str], tuple[str, bytes]]

MOST_BYTES = 256 << 20  # of an upload
_MOST_BODY = 4 << 20  # of any other request
_MOST_SESSIONS = 200
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# The routes of Gradio that the page uses. Its file, proxy, stream, history and code routes do not exist here.
_ROUTES = re.compile(
    r"GET /(?:(?:assets|static)/[\w./@+~-]+|theme\.css|config/?|favicon\.ico|manifest\.json|robots\.txt|pwa_icon(?:/\d+)?)?"
    r"|GET /gradio_api/(?:info/?|startup-events|queue/data|queue/status|heartbeat/\w+|upload_progress)"
    r"|GET /gradio_api/(?:app_id|user|login_check)/?"
    r"|POST /gradio_api/(?:queue/join/?|cancel/?|reset/?|upload/?)"
)
_APP_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# Pages of runs may come from somebody else: they run in an origin of their own and reach nothing.
_PAGE_POLICY = (
    "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:"
)
_ALWAYS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass
class Guard:
    """The app behind its checks, as an ASGI application.

    Attributes:
        app: Gradio's app.
        secret: the token of the printed address, or the password.
        names: host names that may be asked for; addresses and the loopback names always may.
        page: from the path of a page below ``/page/`` to its media type and content.
        port: of the cookie's name, because all ports of a host share their cookies.
        password: whether the secret is typed by people.
        anywhere: whether other machines may connect.
    """

    app: App
    secret: str = field(repr=False)
    page: Page
    port: int
    names: Sequence[str] = ()
    password: bool = False
    anywhere: bool = False

    def __post_init__(self) -> None:
        self._sessions: dict[str, None] = {}
        self._trying = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer = await self._refusal(scope, receive)
        if answer is None:
            await self.app(scope, _bounded(receive, _limit(scope["path"])), self._with_headers(scope, send))
            return
        await answer.send(send)

    async def _refusal(self, scope: Scope, receive: Receive) -> _Answer | None:
        """What is answered here; None if the app answers."""
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        method, path = scope["method"], scope["path"]
        if not self._is_own_host(headers.get("host", "")):
            return _told(421, "This name does not belong to the studio. Open the address that the terminal shows.")
        opened = method == "GET" and path == "/" and headers.get("sec-fetch-mode") == "navigate"
        if not opened and not _is_own_origin(headers):
            return _told(403, "The request comes from another site and is refused.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > _limit(path):
            return _told(413, "The request is too large.")
        if path == "/login":
            return await self._login(scope, receive)
        if not self._is_known(headers.get("cookie", "")):
            token = None if self.password else _query(scope).get("token")
            if path == "/" and method == "GET" and token is not None:
                return await self._enter(token)
            return _told(401, _HOW[self.password], form=self.password)
        if path == "/" and method == "GET" and "token" in _query(scope):
            return _Answer(303, {"location": "/"})
        if path.startswith("/page/") and method == "GET":
            return await self._page(path.removeprefix("/page/"))
        raw = scope.get("raw_path") or b""
        if b"%" in raw or b"\\" in raw or ".." in path or not _ROUTES.fullmatch(f"{method} {path}"):
            return _told(404, "There is nothing here.")
        return None

    def _is_own_host(self, given: str) -> bool:
        host = urllib.parse.urlsplit(f"//{given}").hostname if re.fullmatch(r"[\w.:\[\]-]+", given) else None
        if host is None:
            return False
        if host in LOOPBACK or host in map(str.lower, self.names):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return self.anywhere

    def _is_known(self, cookies: str) -> bool:
        given = dict(one.strip().partition("=")[::2] for one in cookies.split(";")).get(self._cookie, "")
        return any(secrets.compare_digest(given.encode(), one.encode()) for one in self._sessions)

    @property
    def _cookie(self) -> str:
        return f"llm-forget-studio-{self.port}"

    async def _enter(self, given: str) -> _Answer:
        """A session for whoever knows the secret; one try at a time, and a pause after a wrong one."""
        async with self._trying:
            if not secrets.compare_digest(given.encode(), self.secret.encode()):
                await asyncio.sleep(0.5)
                return _told(401, f"That is not right. {_HOW[self.password]}", form=self.password)
        session = secrets.token_urlsafe(32)
        self._sessions[session] = None
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        cookie = f"{self._cookie}={session}; Path=/; HttpOnly; SameSite=Strict"
        # no redirect: a browser that came from another site would not send the cookie along with it
        found = _told(
            200, "You are in.", more='<p><a href="/">Continue</a></p><meta http-equiv="refresh" content="0;url=/">'
        )
        return replace(found, headers={**found.headers, "set-cookie": cookie})

    async def _login(self, scope: Scope, receive: Receive) -> _Answer:
        if not self.password or scope["method"] != "POST":
            return _told(404, "There is nothing here.")
        body = b""
        async for part in _parts(_bounded(receive, 1 << 12)):
            body += part
        return await self._enter(dict(urllib.parse.parse_qsl(body.decode(errors="replace"))).get("password", ""))

    async def _page(self, name: str) -> _Answer:
        try:
            kind, content = await asyncio.to_thread(self.page, name)
        except UserError as error:
            return _told(404, str(error))
        more = (
            {"content-security-policy": _PAGE_POLICY} if kind == "text/html" else {"content-disposition": "attachment"}
        )
        return _Answer(200, {"content-type": f"{kind}; charset=utf-8", **more}, content)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        static = scope["path"].startswith(("/assets/", "/static/"))
        more = {**_ALWAYS, "content-security-policy": _APP_POLICY} | ({} if static else {"cache-control": "no-store"})

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                kept = [(key, value) for key, value in message["headers"] if key.decode("latin-1").lower() not in more]
                message["headers"] = [*kept, *_encoded(more)]
            await send(message)

        return sending


_HOW = {
    False: "Open the address that the terminal shows: it ends with a token that lets this browser in.",
    True: "Give the password that was chosen when the studio was started.",
}
_FORM = (
    '<form method="post" action="/login"><label>Password <input type="password" name="password" autofocus '
    'autocomplete="current-password"></label> <button>Enter</button></form>'
)
_SHELL = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>llm-forget studio</title><style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;"
    "max-width:34rem;margin:15vh auto;padding:0 1rem}}</style><main><h1>llm-forget studio</h1><p>{}</p>{}</main></html>"
)


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    async def send(self, send: Send) -> None:
        headers = _encoded(
            {"cache-control": "no-store", **_ALWAYS, **self.headers, "content-length": str(len(self.body))}
        )
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


def _told(status: int, text: str, *, form: bool = False, more: str = "") -> _Answer:
    body = _SHELL.format(html.escape(text), more or (_FORM if form else "")).encode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    return _Answer(status, {"content-type": "text/html; charset=utf-8", "content-security-policy": policy}, body)


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(key.encode("latin-1"), value.encode("latin-1")) for key, value in headers.items()]


def _is_own_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from our own page, or from the address bar."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urllib.parse.urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _query(scope: Scope) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(scope.get("query_string", b"").decode("latin-1")))


def _limit(path: str) -> int:
    return MOST_BYTES if path.startswith("/gradio_api/upload") else _MOST_BODY


def _bounded(receive: Receive, most: int) -> Receive:
    """Receive at most so many bytes; after more, the client counts as gone."""
    seen = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return receiving


async def _parts(receive: Receive) -> Any:
    while True:
        message = await receive()
        yield message.get("body", b"")
        if not message.get("more_body"):
            return
