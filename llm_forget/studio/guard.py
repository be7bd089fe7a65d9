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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm_forget.errors import UserError

Page = Callable[[str], tuple[str, bytes]]

MOST_BYTES = 256 << 20  # of an upload
_MOST_BODY = 4 << 20  # of any other request
_MOST_FORM = 4 << 10  # of the page that asks for the password
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

    app: ASGIApp
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
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            receive = _bounded(receive, _limit(scope["path"]))
            answer = await self._refusal(Request(scope, receive))
            if answer is None:
                await self.app(scope, receive, self._with_headers(scope, send))
            else:
                await answer(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        """What is answered here; None if the app answers."""
        headers, method, path = request.headers, request.method, request.scope["path"]
        at_door = method == "GET" and path == "/"
        if not self._is_own_host(headers.get("host", "")):
            return _told(421, "This name does not belong to the studio. Open the address that the terminal shows.")
        if not (at_door and headers.get("sec-fetch-mode") == "navigate") and not _is_own_origin(headers):
            return _told(403, "The request comes from another site and is refused.")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > _limit(path):
            return _told(413, "The request is too large.")
        if path == "/login" and method == "POST" and self.password:
            return await self._login(request)
        token = request.query_params.get("token")
        if not self._is_known(request.cookies.get(self._cookie, "")):
            if at_door and token is not None and not self.password:
                return await self._enter(token)
            return _told(401, _HOW[self.password], form=self.password)
        if at_door and token is not None:
            return Response(status_code=303, headers={**_ALWAYS, "location": "/"})
        if path.startswith("/page/") and method == "GET":
            return await self._page(path.removeprefix("/page/"))
        raw = request.scope.get("raw_path") or b""
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

    def _is_known(self, given: str) -> bool:
        return any(secrets.compare_digest(given.encode(), one.encode()) for one in self._sessions)

    @property
    def _cookie(self) -> str:
        return f"llm-forget-studio-{self.port}"

    async def _enter(self, given: str) -> Response:
        """A session for whoever knows the secret; one try at a time, and a pause after a wrong one."""
        async with self._trying:
            if not secrets.compare_digest(given.encode(), self.secret.encode()):
                await asyncio.sleep(0.5)
                return _told(401, f"That is not right. {_HOW[self.password]}", form=self.password)
        session = secrets.token_urlsafe(32)
        self._sessions[session] = None
        while len(self._sessions) > _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        # no redirect: a browser that came from another site would not send the cookie along with it
        found = _told(200, "You are in.", more=_ONWARD)
        found.headers["set-cookie"] = f"{self._cookie}={session}; Path=/; HttpOnly; SameSite=Strict"
        return found

    async def _login(self, request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            return _told(413, "The request is too large.")
        return await self._enter(dict(urllib.parse.parse_qsl(body.decode(errors="replace"))).get("password", ""))

    async def _page(self, name: str) -> Response:
        try:
            kind, content = await asyncio.to_thread(self.page, name)
        except UserError as error:
            return _told(404, str(error))
        html_page = kind == "text/html"
        own = {"content-security-policy": _PAGE_POLICY} if html_page else {"content-disposition": "attachment"}
        return Response(content, headers={"cache-control": "no-store", **_ALWAYS, **own}, media_type=kind)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        static = scope["path"].startswith(("/assets/", "/static/"))
        more = {**_ALWAYS, "content-security-policy": _APP_POLICY} | ({} if static else {"cache-control": "no-store"})

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(more)
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
_ONWARD = '<p><a href="/">Continue</a></p><meta http-equiv="refresh" content="0;url=/">'
_SHELL = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>llm-forget studio</title><style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui,sans-serif;"
    "max-width:34rem;margin:15vh auto;padding:0 1rem}}</style><main><h1>llm-forget studio</h1><p>{}</p>{}</main></html>"
)


def _told(status: int, text: str, *, form: bool = False, more: str = "") -> Response:
    policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    headers = {"cache-control": "no-store", **_ALWAYS, "content-security-policy": policy}
    page = _SHELL.format(html.escape(text), more or (_FORM if form else ""))
    return Response(page, status, headers, "text/html")


def _is_own_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from our own page, or from the address bar."""
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or urllib.parse.urlsplit(origin).netloc.lower() == headers.get("host", "").lower()


def _limit(path: str) -> int:
    if path.startswith("/gradio_api/upload"):
        return MOST_BYTES
    return _MOST_FORM if path == "/login" else _MOST_BODY


def _bounded(receive: Receive, most: int) -> Receive:
    """Receive at most so many bytes; after more, the client counts as gone."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= most else {"type": "http.disconnect"}

    return receiving
