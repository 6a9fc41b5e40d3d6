"""Control API and client over a real loopback socket, and kills that need no answer."""
import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from scalp_nb.feed.errors import ConfigError, ScalpError
from scalp_nb.trader import client as K
from scalp_nb.trader import control as C
from scalp_nb.trader import lease as L

ROOT = str(Path(__file__).parents[1])


def until(check, timeout: float = 10.0):
    "Wait for `check()` to be true and return it."
    end = time.monotonic() + timeout
    while not (got := check()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return got


class World:
    "What a session gives its control API, in the hands of a test."
    def __init__(self, run_dir: Path, **kw) -> None:
        self.run_dir, self.token, self.box = run_dir, C.new_token(), C.Mailbox(limit=4)
        self.log = [{"seq": k, "kind": "signal"} for k in range(1, 8)]
        self.hang, self.fail = threading.Event(), None
        self.hang.set()
        bounds = {"signal.min": C.Bound(lo=0.5, hi=0.99), "policy": C.Bound("choice", choices=("hold", "flatten"))}
        self.app = C.make_app(self.snapshot, self.post, self.stream, self.token, bounds, every=0.02, **kw)
        self.server = C.ControlServer(self.app, run_dir, self.token, "r1").start()
        self.url = f"http://127.0.0.1:{self.server.port}"

    def snapshot(self):
        self.hang.wait(20)
        if self.fail: raise self.fail
        return {"paused": False, "cash": Decimal("10.50"), "risk": {"trades": 3}}

    def post(self, action, who, args):
        if self.fail: raise self.fail
        return self.box.post(action, who, args)

    def stream(self, after):
        return [r for r in self.log if r["seq"] > after]

    def raw(self, method="GET", path="/state", **kw):
        headers = {"Authorization": f"Bearer {self.token}"} | kw.pop("headers", {})
        return httpx.request(method, self.url + path, headers={k: v for k, v in headers.items() if v is not None}, trust_env=False, timeout=5, **kw)


@pytest.fixture
def world(tmp_path: Path):
    w = World(tmp_path)
    yield w
    w.hang.set()
    w.server.stop()
    assert not (tmp_path / "control.json").exists() and not w.server._thread.is_alive()


def code(r: httpx.Response) -> tuple[int, str]:
    assert r.json()["text"]
    return r.status_code, r.json()["error"]


def test_reading(world):
    assert world.raw(path="/health", headers={"Authorization": None}).json() == {"ok": True, "service": "scalp_nb"}
    assert world.raw().json() == {"paused": False, "cash": "10.50", "risk": {"trades": 3}}
    text = world.raw(path="/metrics")
    assert text.headers["content-type"].startswith("text/plain") and "scalp_risk_trades 3.0\n" in text.text and "scalp_cash 10.5\n" in text.text
    assert [r["seq"] for r in world.raw(path="/journal?limit=2").json()["records"]] == [6, 7]
    assert world.raw(path="/journal?after=2&limit=2").json() == {"records": world.log[2:4], "next": 4}
    assert world.raw(path="/journal?after=99").json() == {"records": [], "next": 99}
    assert code(world.raw(path="/journal?limit=0")) == (422, "bad_request")


@pytest.mark.parametrize(("headers", "want"), [
    ({"Authorization": None}, (401, "no_token")),
    ({"Authorization": "Bearer nonsense"}, (401, "bad_token")),
    ({"Authorization": "Bearer"}, (401, "bad_token")),
    ({"Host": "evil.example"}, (403, "bad_host")),
    ({"Host": "127.0.0.1.evil.example:80"}, (403, "bad_host")),
    ({"Origin": "https://evil.example"}, (403, "bad_origin")),
    ({"Origin": "null"}, (403, "bad_origin")),
])
def test_refused_at_the_gate(world, headers, want):
    for method, path in (("GET", "/state"), ("POST", "/kill"), ("GET", "/stream"), ("GET", "/nowhere")):
        r = world.raw(method, path, headers=headers)
        assert code(r) == want and world.token not in r.text
    assert world.box.drain() == []


def test_token_prefix_and_lower_case_scheme_are_not_the_token(world):
    for value in (world.token, f"bearer {world.token}", f"Bearer {world.token[:-1]}", f"Bearer {world.token}x"):
        assert code(world.raw(headers={"Authorization": value})) == (401, "bad_token")


def test_server_listens_on_loopback_only(world):
    own = [i[4][0] for i in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for host in {h for h in own if not h.startswith("127.")}:
        with pytest.raises(OSError, match=""):
            socket.create_connection((host, world.server.port), 1)
    assert world.server._server.servers[0].sockets[0].getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(("path", "body", "words"), [
    ("/kill", b"", "Field required"),
    ("/kill", b"{", "JSON"),
    ("/kill", b"[]", "body"),
    ("/kill", b'{"who": ""}', "who"),
    ("/kill", b'{"who": 7}', "who"),
    ("/kill", b'{"who": "asha", "force": true}', "force"),
    ("/set", b'{"who": "asha", "path": "signal.min"}', "value"),
    ("/set", b'{"who": "asha", "path": "signal.min", "value": [1]}', "value"),
    ("/set", b'{"who": "asha", "path": "signal.min", "value": 1.2}', "float from 0.5 to 0.99"),
    ("/set", b'{"who": "asha", "path": "signal.min", "value": NaN}', "nan"),
    ("/set", b'{"who": "asha", "path": "signal.min", "value": true}', "True"),
    ("/set", b'{"who": "asha", "path": "broker.url", "value": "x"}', "policy, signal.min"),
    ("/reset_breaker", b'{"who": "asha"}', "name"),
])
def test_bad_bodies_are_named_and_nothing_is_queued(world, path, body, words):
    r = world.raw("POST", path, content=body, headers={"content-type": "application/json"})
    assert r.status_code == 422 and words in r.json()["text"], r.text
    assert world.box.drain() == []


def test_unknown_action_and_method_list_what_is_offered(world):
    for method, path, status in (("POST", "/explode", 404), ("GET", "/kill", 405), ("GET", "/docs", 404), ("GET", "/openapi.json", 404)):
        r = world.raw(method, path)
        assert code(r) == (status, "unknown") and "/reset_breaker" in r.json()["text"]


def test_every_action_reaches_the_mailbox_with_its_words(world):
    with K.SessionClient(world.run_dir) as c:
        acks = [c.pause("asha"), c.resume("asha"), c.flatten("ben"), c.stop("ben")]
        got = [(p.action, p.who, p.args) for p in world.box.drain()]
        assert got == [("pause", "asha", {}), ("resume", "asha", {}), ("flatten", "ben", {}), ("stop", "ben", {})]
        acks += [c.reset_breaker("daily_loss", "asha"), c.set("signal.min", 0.7, "asha"), c.set("policy", "hold", "asha"), c.kill("asha")]
        sets = [{"path": "signal.min", "value": 0.7}, {"path": "policy", "value": "hold"}]
        assert [p.args for p in world.box.drain()] == [{"name": "daily_loss"}, *sets, {}]
    assert len({a["request_id"] for a in acks}) == 8 and acks[-1]["via"] == "api"


def test_full_mailbox_refuses_resume_and_takes_kill(world):
    with K.SessionClient(world.run_dir) as c:
        for _ in range(4):
            c.resume("asha")
        with pytest.raises(K.SessionUnreachable, match="waiting requests"):
            c.resume("asha")
        assert c.kill("asha")["via"] == "api"
    assert [p.action for p in world.box.drain()] == ["resume"] * 4 + ["kill"]


def test_mailbox_wakes_the_trader_and_loses_nothing_between_threads():
    woken = []
    box = C.Mailbox(10_000, lambda: woken.append(1))
    threads = [threading.Thread(target=lambda k=k: [box.post("set", f"t{k}", {"n": n}) for n in range(200)]) for k in range(4)]
    got = []
    for t in threads:
        t.start()
    while any(t.is_alive() for t in threads):
        got += box.drain()
    got += box.drain()
    assert len(got) == len(woken) == 800
    for k in range(4):
        assert [p.args["n"] for p in got if p.who == f"t{k}"] == list(range(200))


def test_body_limits(world, monkeypatch):
    big = json.dumps({"who": "asha", "x": "y" * C.MAX_BODY}).encode()
    assert code(world.raw("POST", "/kill", content=big)) == (413, "too_large")
    assert code(world.raw("POST", "/kill", content=iter([big[:9000], big[9000:]]))) == (413, "too_large")  # chunked: no length announced
    monkeypatch.setattr(C, "BODY_TIME", 0.2)
    with socket.create_connection(("127.0.0.1", world.server.port), 5) as s:
        s.sendall(f"POST /kill HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {world.token}\r\nContent-Length: 20\r\n\r\n{{".encode())
        assert b"408" in s.recv(4096)
    assert world.box.drain() == []


def test_other_protocols_are_closed():
    sent = []
    async def send(m): sent.append(m)
    async def go(kind): await C.Gate(None, "t" * 16)({"type": kind}, None, send)
    asyncio.run(go("websocket"))
    asyncio.run(go("lifespan"))
    assert [m["code"] for m in sent] == [1008]


def test_foreign_address_is_refused_even_with_the_token():
    scope = {"client": ("10.1.2.3", 5), "path": "/state", "headers": [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer " + b"t" * 16)]}
    assert json.loads(C._refusal(scope, b"t" * 16).body)["error"] == "not_local"
    assert json.loads(C._refusal(scope | {"client": None}, b"t" * 16).body)["error"] == "not_local"
    assert C._refusal(scope | {"client": ("127.0.0.1", 5)}, b"t" * 16) is None


def test_failures_inside_are_named_without_their_content(world):
    world.fail = RuntimeError("password=hunter2")
    r = world.raw()
    assert code(r) == (500, "internal") and "hunter2" not in r.text and "RuntimeError" in r.text
    world.fail = ScalpError("breaker 'x'", next_step="name a breaker that tripped")
    assert code(world.raw("POST", "/pause", json={"who": "asha"})) == (409, "refused")
    with K.SessionClient(world.run_dir) as c, pytest.raises(K.Refused, match="breaker 'x'"):
        c.pause("asha")


def test_kill_gets_through_while_every_reader_hangs(world):
    "More stuck snapshots than there are worker threads; the mailbox is still reached at once."
    world.hang.clear()
    threads = [threading.Thread(target=lambda: world.raw(), daemon=True) for _ in range(45)]
    for t in threads:
        t.start()
    time.sleep(0.5)
    with K.SessionClient(world.run_dir) as c:
        assert c.kill("asha")["via"] == "api"   # within the time-out of the client, or it would have been the file
    assert [p.action for p in world.box.drain()] == ["kill"]
    world.hang.set()
    for t in threads:
        t.join(10)


def test_answers_do_not_wait_for_nagle(world):
    "An accepted socket without TCP_NODELAY answers after 40 ms and never sooner."
    took = []
    with K.SessionClient(world.run_dir) as c:
        for _ in range(31):
            t0 = time.perf_counter()
            c.state()
            took.append(time.perf_counter() - t0)
    assert sorted(took)[15] < 0.03


def test_two_clients_see_the_same_session(world):
    with K.SessionClient(world.run_dir) as a, K.SessionClient(world.url, world.token) as b:
        assert a.state() == b.state() and "scalp_cash" in b.metrics()
        a.pause("asha")
        b.kill("ben")
    assert [(p.action, p.who) for p in world.box.drain()] == [("pause", "asha"), ("kill", "ben")]


def test_stream_follows_the_journal_and_resumes(world):
    with K.SessionClient(world.run_dir) as c:
        records = c.stream(after=5)
        assert [next(records)["seq"] for _ in range(2)] == [6, 7]
        world.log.append({"seq": 8, "kind": "fill", "px": Decimal("1.5")})
        assert next(records) == {"seq": 8, "kind": "fill", "px": "1.5"}
        records.close()
    with httpx.stream("GET", world.url + "/stream?after=0", headers={"Authorization": f"Bearer {world.token}", "Last-Event-ID": "7"}) as r:
        assert r.headers["content-type"].startswith("text/event-stream")
        assert next(r.iter_lines()) == "id: 8"


def test_long_journal_streams_in_pieces_without_gaps(world):
    world.log[:] = [{"seq": k} for k in range(1, 1500)]
    with K.SessionClient(world.run_dir) as c:
        records = c.stream()
        assert [next(records)["seq"] for _ in range(1499)] == list(range(1, 1500))


def test_stream_shows_signs_of_life(world, monkeypatch):
    monkeypatch.setattr(C, "QUIET", 0.05)
    with httpx.stream("GET", world.url + "/stream?after=7", headers={"Authorization": f"Bearer {world.token}"}) as r:
        assert next(r.iter_lines()) == ": quiet"


def test_readers_are_counted_and_their_places_come_back(world, monkeypatch):
    streams = []
    with httpx.Client(headers={"Authorization": f"Bearer {world.token}"}, trust_env=False) as h:
        for _ in range(C.MAX_READERS):
            s = h.stream("GET", world.url + "/stream")
            s.__enter__()
            streams.append(s)
        assert code(world.raw(path="/stream")) == (503, "busy")
        with K.SessionClient(world.run_dir) as c, pytest.raises(K.SessionUnreachable, match="streaming already"):
            next(c.stream())
        for s in streams:
            s.__exit__(None, None, None)
        def free():
            with h.stream("GET", world.url + "/stream") as r:
                return r.status_code == 200
        until(free)


def test_slow_reader_is_dropped_and_a_quick_one_is_not(tmp_path):
    w = World(tmp_path, patience=0.3)
    try:
        w.log[:] = [{"seq": k, "pad": "x" * 20_000} for k in range(1, 1001)]  # 20 MB: more than sockets buffer
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", w.server.port))
            s.sendall(f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {w.token}\r\n\r\n".encode())
            with K.SessionClient(tmp_path) as c:
                records = c.stream()
                assert [next(records)["seq"] for _ in range(1000)] == list(range(1, 1001))
                time.sleep(0.6)
                got = 0
                s.settimeout(5)
                while data := s.recv(1 << 20):
                    got += len(data)
                assert got < 19_000_000  # cut off in the middle, not served to the end
                w.log.append({"seq": 1001})
                assert next(records)["seq"] == 1001
    finally:
        w.server.stop()


def test_stop_ends_streams_and_is_quick(world):
    with K.SessionClient(world.run_dir) as c:
        records = c.stream(after=6)
        assert next(records)["seq"] == 7
        world.server.stop()
        assert list(records) == []
        with pytest.raises(K.SessionGone):
            c.state()
    world.server.stop()


def test_address_is_private_and_only_its_owner_removes_it(world):
    path = world.run_dir / "control.json"
    d = json.loads(path.read_text())
    assert oct(path.stat().st_mode & 0o777) == "0o600" and d["pid"] == os.getpid() and d["port"] == world.server.port and d["run"] == "r1"
    C.unpublish(world.run_dir, "another session's token")
    assert path.exists() and [p.name for p in world.run_dir.iterdir()] == ["control.json"]
    with pytest.raises(L.SessionError, match="started twice"):
        world.server.start()


def test_server_that_cannot_publish_or_start_leaves_nothing_behind(tmp_path, monkeypatch):
    app = C.make_app(dict, lambda *a: {}, lambda n: [], "t" * 16, {})
    server = C.ControlServer(app, tmp_path / "absent", "t" * 16, "r")
    server.stop()  # never started: no error
    with pytest.raises(OSError, match="absent"):
        server.start()
    assert not server._thread.is_alive()
    import uvicorn
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    with pytest.raises(L.SessionError, match="did not start"):
        C.ControlServer(app, tmp_path, "t" * 16, "r").start()


def test_weak_token_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match="at least 16") as e:
        C.make_app(dict, lambda *a: {}, lambda n: [], "weak-secret", {})
    assert "weak-secret" not in str(e.value)


def test_metrics_and_json_forms():
    assert C.metrics_text({"metrics": {"cash": "100.5", "n": "7", "who": "x"}, "z": 1}) == \
        "# TYPE scalp_cash gauge\nscalp_cash 100.5\n# TYPE scalp_n gauge\nscalp_n 7.0\n"
    assert C.metrics_text({"a b": float("nan"), "c": {"d": float("-inf")}, "e": "5", "f": [1], "g": float("inf")}) == \
        "# TYPE scalp_a_b gauge\nscalp_a_b NaN\n# TYPE scalp_c_d gauge\nscalp_c_d -Inf\n# TYPE scalp_g gauge\nscalp_g +Inf\n"
    assert C._dumps({1: {"b", "a"}, "p": Path("x")}) == b'{"1":["a","b"],"p":"x"}'
    with pytest.raises(TypeError):
        C._dumps(object())
    b = C.Bound("bool")
    assert b.takes(True) and not b.takes(1) and C.Bound("int", 0, 3).takes(3) and not C.Bound("int", 0, 3).takes(4)


# --- the client alone -------------------------------------------------------------------------------------------------------------


def address(run_dir: Path, port: int, pid: int | None = None, born: str | None = None, token: str = "t" * 16) -> None:
    pid = os.getpid() if pid is None else pid
    d = {"run": run_dir.name, "port": port, "token": token, "pid": pid, "birth": L.birth(pid) if born is None else born}
    (run_dir / "control.json").write_text(json.dumps(d))


@pytest.fixture
def deaf():
    "A port that accepts connections and never answers."
    with socket.create_server(("127.0.0.1", 0)) as s:
        yield s.getsockname()[1]


def test_what_is_wrong_decides_the_error(tmp_path, deaf):
    with pytest.raises(K.SessionGone):
        K.SessionClient(tmp_path)
    with pytest.raises(K.NotAllowed, match="token"):
        K.SessionClient("http://127.0.0.1:1")
    for text in ("[]", "{", '{"run": 1}'):
        (tmp_path / "control.json").write_text(text)
        with pytest.raises(K.SessionUnreachable, match="not a session's address"):
            K.SessionClient(tmp_path)
    address(tmp_path, deaf)
    with K.SessionClient(tmp_path, timeout=0.2) as c:
        for ask in (c.state, c.metrics, lambda: next(c.stream(idle=0.2)), lambda: c.pause("asha")):
            with pytest.raises(K.SessionUnreachable, match="ReadTimeout"):
                ask()
    address(tmp_path, deaf, born="1")
    with K.SessionClient(tmp_path, timeout=0.2) as c, pytest.raises(K.SessionGone, match="process has ended"):
        c.state()


def test_unreadable_address_of_another_account(tmp_path, monkeypatch):
    address(tmp_path, 1)
    def denied(self, *a, **k): raise PermissionError(13, "denied")
    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(K.NotAllowed, match="account"):
        K.SessionClient(tmp_path)


def test_wrong_token_is_told_apart_and_kill_falls_back_to_the_file(world):
    with K.SessionClient(world.url, "wrong" * 5) as c:
        with pytest.raises(K.NotAllowed, match="not this session's"):
            c.state()
        with pytest.raises(K.NotAllowed):
            c.metrics()
        with pytest.raises(K.NotAllowed):
            c.kill("asha")  # a URL has no run folder to fall back to


def test_restart_in_the_same_folder_is_followed(tmp_path):
    a = World(tmp_path)
    with K.SessionClient(tmp_path) as c:
        assert c.state()["paused"] is False
        a.server.stop()
        b = World(tmp_path)
        try:
            assert c.state()["paused"] is False and c.info.port == b.server.port
            c._http.headers["Authorization"] = "Bearer stale"
            with pytest.raises(K.NotAllowed):
                c.state()
        finally:
            b.server.stop()


def test_moved_to_an_address_that_does_not_answer_either(tmp_path):
    a = World(tmp_path)
    with K.SessionClient(tmp_path) as c:
        a.server.stop()
        address(tmp_path, 1)
        with pytest.raises(K.SessionUnreachable, match="ConnectError"):
            c.state()


def test_proxies_of_the_environment_are_ignored(world, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with K.SessionClient(world.run_dir) as c:
        assert c.state()["cash"] == "10.50"


def test_live_sessions_are_listed_and_leftovers_are_not(tmp_path):
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    w = World(tmp_path / "a")
    address(tmp_path / "b", 1, born="0")
    (tmp_path / "c" / "control.json").write_text("{")
    try:
        assert [(s.run, s.port) for s in K.sessions(tmp_path)] == [("r1", w.server.port)]
        assert w.token not in repr(K.sessions(tmp_path))
    finally:
        w.server.stop()
    assert K.sessions(tmp_path) == []


def test_wait_done(world):
    with K.SessionClient(world.run_dir) as c, K.SessionClient(world.url, world.token) as u:
        with pytest.raises(K.SessionUnreachable, match="still running"):
            c.wait_done(0.1, 0.02)
        world.hang.clear()
        quick = K.SessionClient(world.run_dir, timeout=0.1)
        with pytest.raises(K.SessionUnreachable, match="still running"):
            quick.wait_done(0.3, 0.02)  # silence is not an end
        world.hang.set()
        threading.Timer(0.3, world.server.stop).start()
        assert c.wait_done(10, 0.02)["cash"] == "10.50"
        assert isinstance(u.wait_done(10, 0.02), dict)


# --- killing a session that does not answer ---------------------------------------------------------------------------------------

# Its control loop hangs in a request; its trading thread looks for the kill file when `polls`, and answers SIGTERM by writing a file.
HUNG = """
import os, signal, sys, time
from pathlib import Path
from scalp_nb.trader.control import ControlServer, make_app, new_token
from scalp_nb.trader.lease import kill_seen, read_kill
run_dir, polls = Path(sys.argv[1]), sys.argv[2]
def term(*a): (run_dir / "term").touch(); os._exit(0)
signal.signal(signal.SIGTERM, term)
token = new_token()
def hang(*a): time.sleep(60)
ControlServer(make_app(dict, hang, lambda n: [], token, {}), run_dir, token, "hung").start()
while True:
    time.sleep(0.02)
    who = read_kill(run_dir)
    if who and polls == "polls":
        (run_dir / "killed").write_text(who); kill_seen(run_dir); time.sleep(60)
    if who and polls == "exits": os._exit(0)
"""


@pytest.fixture
def hung(tmp_path):
    started = []

    def go(polls: str) -> Path:
        p = subprocess.Popen([sys.executable, "-c", HUNG, str(tmp_path), polls], env={**os.environ, "PYTHONPATH": ROOT})
        started.append(p)
        until(lambda: (tmp_path / "control.json").exists(), 20)
        return tmp_path

    yield go
    for p in started:
        p.kill()
        p.wait()


def test_kill_reaches_the_trading_thread_while_the_control_thread_hangs(hung):
    run_dir = hung("polls")
    with K.SessionClient(run_dir, timeout=0.3) as c:
        assert c.kill("asha")["via"] == "kill_file"
    assert (run_dir / "killed").read_text() == "asha" and (run_dir / "KILL").exists() and not (run_dir / "term").exists()


def test_kill_ends_in_sigterm_when_the_file_is_not_confirmed(hung):
    run_dir = hung("blind")
    answer = K.kill_session(run_dir, "asha", grace=0.3)
    assert answer["via"] == "sigterm" and L.read_kill(run_dir) == "asha"
    until(lambda: (run_dir / "term").exists())


def test_kill_of_a_session_that_ends_over_it(hung):
    assert K.kill_session(hung("exits"), "asha", grace=0.5)["via"] == "gone"


def test_confirmation_of_an_earlier_kill_does_not_count(tmp_path):
    L.kill_seen(tmp_path)
    L.write_kill(tmp_path, "asha")
    assert not (tmp_path / L.KILL_SEEN).exists()


def test_kill_never_signals_a_stranger(tmp_path, deaf):
    "The process id was reused: the file is written, the stranger lives."
    stranger = subprocess.Popen(["sleep", "30"])
    try:
        address(tmp_path, deaf, pid=stranger.pid, born="1")
        with pytest.raises(K.SessionGone):
            K.kill_session(tmp_path, "asha", grace=0.2)
        info = K.find_session(tmp_path)
        assert K._kill_by_file(info, "asha", 0.2)["via"] == "gone"
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.wait()


def test_kill_with_an_unreadable_address_still_writes_the_file(tmp_path):
    (tmp_path / "control.json").write_text("{")
    answer = K.kill_session(tmp_path, "asha")
    assert answer["via"] == "kill_file" and answer["confirmed"] is False and L.read_kill(tmp_path) == "asha"


def test_late_confirmation_counts(tmp_path, deaf):
    address(tmp_path, deaf)
    L.write_kill(tmp_path, "asha")
    L.kill_seen(tmp_path)
    assert K._kill_by_file(K.find_session(tmp_path), "asha", 0.0)["via"] == "kill_file"
