"""Who comes in, from where, to which addresses: every check of the guard, before any app that could be reached."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from llm_forget.errors import UserError

pytest.importorskip("starlette", reason="pip install 'llm-forget[studio]'")

from llm_forget.studio.guard import MOST_BYTES, Guard

TOKEN = "t0ken-of-this-test"


@dataclass
class Reply:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Caller:
    """Sends requests to a guard with an app behind it that answers everything with 200."""

    password: bool = False
    anywhere: bool = False
    reached: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.reached.append(scope["path"])
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": [(b"set-cookie", b"own=1")]})
            await send({"type": "http.response.body", "body": b"the app"})

        def page(name: str) -> tuple[str, bytes]:
            if name != "report/run":
                raise UserError("there is no such page")
            return "text/html", b"<p>a report"

        self.guard = Guard(app, TOKEN, page, 7860, ("box.example",), self.password, self.anywhere)

    def __call__(
        self, path: str = "/", method: str = "GET", *, body: bytes = b"", query: str = "", **headers: str
    ) -> Reply:
        given = {"host": "127.0.0.1:7860", **{name.replace("_", "-"): value for name, value in headers.items()}}
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Reply(sent[0]["status"], headers, b"".join(one.get("body", b"") for one in sent[1:]))

    def enter(self) -> str:
        """Return the cookie of a browser that showed the token."""
        return self("/", query=f"token={TOKEN}").headers["set-cookie"].partition(";")[0]


def test_only_the_token_lets_a_browser_in_and_only_by_a_cookie() -> None:
    call = Caller()
    for refused in (call(), call(query="token=wrong"), call("/config", query=f"token={TOKEN}"), call(cookie="x=y")):
        assert refused.status == 401
        assert TOKEN.encode() not in refused.body
    found = call("/", query=f"token={TOKEN}").headers["set-cookie"]
    assert "HttpOnly" in found
    assert "SameSite=Strict" in found
    assert TOKEN not in found
    assert call.reached == []
    assert call(cookie=call.enter()).body == b"the app"
    assert call(query="token=again", cookie=call.enter()).headers["location"] == "/"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, {"host": "evil.example"}),
        (421, {"host": "127.0.0.1.evil.example:7860"}),
        (421, {"host": "192.0.2.7:7860"}),
        (421, {"host": ""}),
        (403, {"origin": "http://evil.example"}),
        (403, {"origin": "http://127.0.0.1:8888"}),
        (403, {"origin": "null"}),
        (403, {"sec_fetch_site": "cross-site"}),
        (403, {"sec_fetch_site": "same-site"}),
        (413, {"content_length": str(MOST_BYTES)}),
        (413, {"content_length": "-1"}),
        (200, {"origin": "http://127.0.0.1:7860"}),
        (200, {"host": "localhost:9999", "origin": "http://localhost:9999"}),
        (200, {"host": "box.example", "origin": "https://box.example"}),
    ],
)
def test_hosts_and_origins(status: int, headers: dict[str, str]) -> None:
    call = Caller()
    cookie = call.enter()
    assert call("/gradio_api/queue/join", "POST", cookie=cookie, **headers).status == status
    assert bool(call.reached) is (status == 200)


def test_a_link_from_another_site_opens_the_page_and_nothing_else() -> None:
    call = Caller()
    cookie = call.enter()
    from_afar = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert call("/", query=f"token={TOKEN}", **from_afar).status == 200
    assert call("/config", cookie=cookie, **from_afar).status == 403
    assert call("/page/report/run", cookie=cookie, **from_afar).status == 403


ABSENT = (
    "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/proxy=http://evil.example/",
    "/gradio_api/runs", "/gradio_api/vibe-code", "/gradio_api/run/predict", "/gradio_api/call/find", "/monitoring",
    "/gradio_api/component_server", "/gradio_api/mcp", "/assets/../../etc/passwd", "/static/%2e%2e/x", "/docs",
    "/gradio_api/stream/x", "/svelte/x", "/openapi.json", "/page/report/other", "/gradio_api/deep_link",
)  # fmt: skip


def test_routes_that_the_page_does_not_need_do_not_exist() -> None:
    call = Caller()
    cookie = call.enter()
    found = {(method, path): call(path, method, cookie=cookie).status for path in ABSENT for method in ("GET", "POST")}
    assert set(found.values()) == {404}, found
    assert call.reached == []


def test_a_body_that_states_no_length_is_cut() -> None:
    call = Caller()
    gone: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        gone.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    cookie = call.enter()
    call.guard.app = app
    call("/gradio_api/queue/join", "POST", body=bytes(5 << 20), cookie=cookie)
    assert gone == ["http.disconnect"]


def test_pages_run_in_an_origin_of_their_own_and_the_app_loads_nothing_from_elsewhere() -> None:
    call = Caller()
    cookie = call.enter()
    page = call("/page/report/run", cookie=cookie)
    assert page.headers["content-security-policy"].startswith("sandbox")
    assert "allow-same-origin" not in page.headers["content-security-policy"]
    own = call(cookie=cookie).headers
    assert "default-src 'self'" in own["content-security-policy"]
    assert own["cache-control"] == "no-store"


def test_a_password_is_typed_and_never_taken_from_an_address() -> None:
    call = Caller(password=True, anywhere=True)
    assert b'type="password"' in call().body
    assert call("/login", "POST", body=b"password=wrong").status == 401
    cookie = call("/login", "POST", body=f"password={TOKEN}".encode(), host="192.0.2.7").headers["set-cookie"]
    assert call(cookie=cookie.partition(";")[0], host="192.0.2.7:7860").status == 200
    assert call(host="evil.example").status == 421
    assert call(query=f"token={TOKEN}").status == 401
