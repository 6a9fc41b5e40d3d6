"""Angel One's market stream against a server of our own that checks who comes in and misbehaves on request."""
from __future__ import annotations

import json
import shutil
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from scalp_nb.feed.angel_one import AngelFeed, AngelFeedConfig
from scalp_nb.feed.angel_wire import AngelDecoder, AngelTokens, encode_packet
from scalp_nb.feed.depth import FLAG_AUCTION, FLAG_GAP, depth_row, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.live import Feed, FeedRefused, LinkNews, read_tape
from scalp_nb.feed.packet import FeedError

OPEN = int(datetime(2026, 11, 19, 5, tzinfo=UTC).timestamp()) * 10**9  # a Thursday, 10:30 in India
UNI = Universe("five", tuple(Instrument(f"S{k}", "NSE", str(1001 + k)) for k in range(5)))
KEYS = AngelTokens("api-key-1", "C4711", "jwt-of-today", "feed-of-today")
NEW = AngelTokens("api-key-1", "C4711", "jwt-of-tomorrow", "feed-of-tomorrow")


def tick(token: str, k: int = 1, at: int = OPEN) -> bytes:
    row = depth_row(at + k * 10**6, 0, [(99.5, k, 1)], [(99.55, 8, 1)], ltp=99.5, ltq=1, volume=k, total_buy=10, total_sell=20, seq=k)
    return encode_packet(row, token, 1)


@dataclass
class Venue:
    "What the server does, and what it saw."
    keys: AngelTokens = KEYS
    room: int = 3                                            # sockets of one client
    on_subscribe: Callable[[Venue, ServerConnection, dict[str, Any]], None] | None = None
    deaf: bool = False                                       # answers nothing, sends nothing
    port: int = 0
    conns: list[ServerConnection] = field(default_factory=list)
    asked: list[tuple[int, int, list[str]]] = field(default_factory=list)  # connection (from 0, in order of coming), action, tokens
    pings: int = 0
    refused: list[int] = field(default_factory=list)

    def check(self, ws: ServerConnection, request: Request) -> Response | None:
        h = request.headers
        said = (h.get("x-api-key"), h.get("x-client-code"), h.get("Authorization"), h.get("x-feed-token"))
        if request.path != "/smart-stream": return ws.respond(HTTPStatus.NOT_FOUND, "")
        if said != (self.keys.api_key, self.keys.client_code, f"Bearer {self.keys.jwt}", self.keys.feed_token):
            return self.refuse(ws, HTTPStatus.UNAUTHORIZED, f"Invalid Token {h.get('Authorization')}")
        if sum(c.state.name == "OPEN" for c in self.conns) >= self.room:
            return self.refuse(ws, HTTPStatus.TOO_MANY_REQUESTS, "Connection Limit Exceeded")
        return None

    def refuse(self, ws: ServerConnection, status: HTTPStatus, why: str) -> Response:
        self.refused.append(int(status))
        answer = ws.respond(status, "")
        answer.headers["x-error-message"] = why
        return answer

    def handle(self, ws: ServerConnection) -> None:
        me = len(self.conns)
        self.conns.append(ws)
        try:
            for said in ws:
                if self.deaf: continue
                if said == "ping":
                    self.pings += 1
                    ws.send("pong")
                else: self.subscribed(ws, me, json.loads(said))
        except ConnectionClosed: pass

    def subscribed(self, ws: ServerConnection, me: int, m: dict[str, Any]) -> None:
        tokens = [t for g in m["params"]["tokenList"] for t in g["tokens"]]
        self.asked.append((me, m["action"], tokens))
        if self.on_subscribe is not None: self.on_subscribe(self, ws, m)
        elif m["action"]:
            for t in tokens: ws.send(tick(t))

    def live(self) -> list[ServerConnection]: return [c for c in self.conns if c.state.name == "OPEN"]


@contextmanager
def venue(tls: ssl.SSLContext | None = None, **how: Any) -> Iterator[Venue]:
    v = Venue(**how)
    with serve(v.handle, "127.0.0.1", 0, compression=None, process_request=v.check, ssl=tls, ping_interval=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        v.port = server.socket.getsockname()[1]
        yield v
        for c in v.live(): c.socket.close()
        server.shutdown()


def config(v: Venue, **over: Any) -> AngelFeedConfig:
    base = {"url": f"ws://127.0.0.1:{v.port}/smart-stream", "first_wait_s": 0.02, "most_wait_s": 0.3, "batch_gap_s": 0.0,
            "busy_wait_s": 0.1, "behind_s": 60.0}
    return AngelFeedConfig(**{**base, **over})


class Drive:
    "Reads a feed as a session does and keeps what came."
    def __init__(self, feed: AngelFeed) -> None:
        self.feed, self.rows, self.news, self.n = feed, [empty_depth(0)], list[LinkNews](), 0

    def until(self, done: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.rows.append(self.feed.read(0.02))
            self.n += len(self.rows[-1])
            self.news += self.feed.news()
            if done(): return
        raise AssertionError(f"not within {seconds} s; {len(self.all)} rows, news {[n.text for n in self.news]}")

    @property
    def all(self) -> Any: return np.concatenate(self.rows)
    @property
    def kinds(self) -> list[str]: return [n.kind for n in self.news]
    def told(self, kind: str) -> str: return " | ".join(n.text for n in self.news if n.kind == kind)


@contextmanager
def live(v: Venue, universe: Universe = UNI, tokens: Callable[[], AngelTokens] = lambda: KEYS, symbols: tuple[str, ...] = (),
         clock: Callable[[], int] = lambda: OPEN, **over: Any) -> Iterator[Drive]:
    feed = AngelFeed(universe, config(v, **over), tokens, clock, symbols)
    try:
        feed.start(clock())
        yield Drive(feed)
    finally: feed.close()


# ---------------------------------------------------------------- the ordinary life

def test_rows_of_every_symbol_and_a_tape_that_repeats_them(tmp_path: Path) -> None:
    with venue() as v, live(v, raw_tape=tmp_path / "raw.tape", heartbeat_s=0.05) as d:
        assert isinstance(d.feed, Feed) and d.feed.capabilities.levels == 5 and d.feed.capabilities.whole_book_totals
        d.until(lambda: d.n == 5 and v.pings >= 2 and "subscribed" in d.kinds)
        rows = d.all
        assert d.kinds[:2] == ["up", "subscribed"] and sorted(rows["sym"]) == [0, 1, 2, 3, 4] and not rows["flags"].any()
        assert (rows["recv"] == OPEN).all() and (rows["bid_px"][:, 0] == 99.5).all() and np.isnan(rows["bid_px"][:, 1:]).all()
        assert len(v.asked) == 1 and v.asked[0][1:] == (1, ["1001", "1002", "1003", "1004", "1005"])
        d.feed.close()
    again, tape = AngelDecoder(UNI), read_tape(tmp_path / "raw.tape")
    for recv, frame in tape.frames: again.read(frame, recv)
    assert again.take_rows().tobytes() == rows.tobytes() and any(f == b"pong" for _, f in tape.frames)
    raw = (tmp_path / "raw.tape").read_bytes() + repr(d.feed).encode() + repr(d.news).encode()
    assert not any(s.encode() in raw for s in (KEYS.jwt, KEYS.feed_token, KEYS.api_key))


def test_symbols_are_spread_over_connections_and_too_many_are_refused() -> None:
    with venue() as v:
        with pytest.raises(FeedError, match="got 5; allowed: at most 3: 3 connections of 1"):
            AngelFeed(UNI, config(v, tokens_a_connection=1), lambda: KEYS)
        with live(v, tokens_a_connection=2) as d:
            d.until(lambda: d.n == 5)
            assert len(v.conns) == 3 and sorted(len(t) for _, _, t in v.asked) == [1, 2, 2] and "3 connections" in d.told("up")
            assert sorted(x for _, _, t in v.asked for x in t) == ["1001", "1002", "1003", "1004", "1005"] and d.kinds.count("up") == 1


def test_symbols_come_and_go_and_a_reconnect_asks_for_exactly_what_is_wanted() -> None:
    with venue() as v, live(v, symbols=("S0", "S1"), tokens_a_connection=2) as d:
        d.until(lambda: d.n == 2)
        with pytest.raises(FeedError, match="got 7"): live_too_many(d.feed)
        d.feed.subscribe(["S2", "S0"])       # a second connection opens; S0 is not asked for again
        d.feed.unsubscribe(["S1", "S4"])     # S4 never was
        d.feed.subscribe(["S3"], "LTP")
        d.feed.subscribe(["S3"], "LTP")
        d.until(lambda: {0, 1, 2, 3} == set(d.all["sym"]) and d.feed.symbols == ("S0", "S2", "S3"))
        assert sorted((a, tuple(t)) for _, a, t in v.asked) == [(0, ("1002",)), (1, ("1001", "1002")), (1, ("1003",)), (1, ("1004",))]
        assert "down" not in d.kinds and d.feed.stats.connects == 2
        v.asked.clear()
        mark, n = len(d.rows), len(v.conns)
        for c in v.live(): c.socket.shutdown(2)
        d.until(lambda: d.feed.stats.connects == n + 2 and {0, 2, 3} == set(np.concatenate(d.rows[mark:])["sym"]) and d.kinds.count("up") == 2)
        assert sorted(x for _, a, t in v.asked for x in t if a) == ["1001", "1003", "1004"] and all(a for _, a, _ in v.asked)
        assert (np.concatenate(d.rows[mark:])["flags"] == FLAG_GAP).all()
        assert d.kinds.count("down") == 2 and d.kinds.count("up") == 2 and "reconnected" in d.told("up")


def live_too_many(feed: AngelFeed) -> None:
    "Seven symbols do not fit on three connections of two."
    big = AngelFeed(Universe("seven", tuple(Instrument(f"T{k}", "NSE", str(2001 + k)) for k in range(7))), feed.cfg, lambda: KEYS,
                    symbols=[f"T{k}" for k in range(6)])
    assert len(big.symbols) == 6
    big.subscribe(["T6"])


def test_a_symbol_nobody_wants_any_more_is_silent_and_one_that_returns_says_so() -> None:
    with venue() as v, live(v) as d:
        d.until(lambda: d.n == 5)
        d.feed.unsubscribe(["S0"])
        v.live()[0].send(tick("1001", 2))
        v.live()[0].send(tick("1002", 2))
        d.until(lambda: d.n == 6 and d.feed.stats.unwanted == 1)
        d.feed.subscribe(["S0"])
        d.until(lambda: d.n == 7)
        assert (d.all["sym"][-1], d.all["flags"][-1]) == (0, FLAG_GAP)


def test_one_of_two_connections_lost_is_down_and_the_other_goes_on() -> None:
    with venue() as v, live(v, tokens_a_connection=3) as d:
        d.until(lambda: d.n == 5)
        v.room = 1  # the lost one cannot come back yet
        lost = v.conns[0]
        mine = [t for c, _, tokens in v.asked if c == 0 for t in tokens]
        lost.socket.shutdown(2)
        d.until(lambda: d.kinds.count("down") >= 2 and 429 in v.refused)
        v.live()[0].send(tick("9999") if "1001" in mine else tick("1001", 3))
        mark = len(d.rows)
        d.until(lambda: d.feed.stats.unknown == 1 or len(np.concatenate(d.rows[mark:])) == 1)
        v.room = 3
        def gaps() -> set[str]: return {UNI[int(r["sym"])].token for r in d.all if r["flags"] & FLAG_GAP}
        d.until(lambda: d.kinds[-1] in ("up", "subscribed") and len(gaps()) >= len(mine))
        assert gaps() == set(mine)


# ---------------------------------------------------------------- refusals

def test_wrong_tokens_are_refused_at_once_with_the_venues_words_and_without_the_tokens() -> None:
    with venue() as v:
        feed = AngelFeed(UNI, config(v), lambda: NEW, lambda: OPEN)
        with pytest.raises(FeedRefused, match="401 Invalid Token .*log in again") as e: feed.start(OPEN)
        assert NEW.jwt not in str(e.value) and not any(NEW.jwt in str(x) for x in (e.value.__cause__, e.value.__context__ or ""))


def test_tokens_that_die_are_asked_for_again_until_the_session_has_new_ones() -> None:
    have = [KEYS]
    with venue() as v, live(v, tokens=lambda: have[0], most_wait_s=0.1) as d:
        d.until(lambda: d.n == 5)
        v.keys = NEW
        v.live()[0].socket.shutdown(2)
        d.until(lambda: v.refused.count(401) >= 3)
        assert "401" in d.told("down") and d.kinds.count("down") <= 3 and "jwt-of" not in d.told("down")
        have[0] = NEW
        d.until(lambda: d.kinds.count("up") == 2 and d.n == 10)


def test_no_tokens_is_the_sessions_own_message() -> None:
    def none() -> AngelTokens: raise FeedError("session at Angel One", "closed", "open", "log in")
    with venue() as v:
        feed = AngelFeed(UNI, config(v), none, lambda: OPEN)
        with pytest.raises(FeedError, match="session at Angel One"): feed.start(OPEN)
        calls = [KEYS]
        with live(v, tokens=lambda: calls[0] if calls else none()) as d:
            d.until(lambda: d.n == 5)
            calls.clear()
            v.live()[0].socket.shutdown(2)
            d.until(lambda: "session at Angel One" in d.told("down"))
            calls.append(KEYS)
            d.until(lambda: d.kinds.count("up") == 2)


def test_too_many_sockets_are_waited_for() -> None:
    with venue(room=1) as v, live(v) as first, live(v) as second:
        first.until(lambda: first.n == 5)
        second.until(lambda: "down" in second.kinds)
        assert "429 Connection Limit Exceeded" in second.told("down") and "another program" in second.told("down")
        first.feed.close()
        second.until(lambda: "up" in second.kinds and second.n == 5)


def test_an_absent_server_and_one_that_does_not_speak(tmp_path: Path) -> None:
    with venue() as v: gone = config(v)
    with pytest.raises(FeedError, match="cannot connect"): AngelFeed(UNI, gone, lambda: KEYS, lambda: OPEN).start(OPEN)
    import socket
    with socket.create_server(("127.0.0.1", 0)) as s:  # accepts, says nothing
        cfg = gone.model_copy(update={"url": f"ws://127.0.0.1:{s.getsockname()[1]}/", "connect_timeout_s": 0.2})
        with pytest.raises(FeedError, match="cannot connect|did not answer"): AngelFeed(UNI, cfg, lambda: KEYS, lambda: OPEN).start(OPEN)


# ---------------------------------------------------------------- encryption

def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    if shutil.which("openssl") is None: pytest.skip("openssl, which makes the test's certificate, is absent")
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key,
                    "-out", cert, "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return key, cert


def test_tls_is_verified_against_the_private_authority_and_nothing_else(tmp_path: Path) -> None:
    key, cert = certificate(tmp_path, "venue")
    _, other = certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with venue(tls=context) as v:
        url = f"wss://localhost:{v.port}/smart-stream"
        for bad in ({"url": url}, {"url": url, "ca_file": other}, {"url": url.replace("localhost", "127.0.0.1"), "ca_file": cert}):
            with pytest.raises(FeedError, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
                AngelFeed(UNI, config(v, **bad), lambda: KEYS, lambda: OPEN).start(OPEN)
        with pytest.raises(FeedError, match="certificate file .*none.pem"):
            AngelFeed(UNI, config(v, url=url, ca_file=tmp_path / "none.pem"), lambda: KEYS, lambda: OPEN).start(OPEN)
        assert v.conns == []
        with live(v, url=url, ca_file=cert, heartbeat_s=0.05) as d:
            d.until(lambda: d.n == 5 and v.pings > 1)
            for k in range(2, 3002): v.live()[0].send(tick(str(1001 + k % 5), k))
            d.until(lambda: d.n == 3005)
            assert d.all["seq"][5:].tolist() == list(range(2, 3002)), "in order, none missing"
            threading.Thread(target=v.live()[0].close, args=(1001, "going away")).start()  # it waits for our goodbye
            d.until(lambda: d.kinds.count("up") == 2)
            assert "code 1001 going away" in d.told("down")


# ---------------------------------------------------------------- a venue that misbehaves

def test_a_line_cut_at_any_point_comes_back_with_the_gap_told() -> None:
    message = tick("1001", 5)
    whole = struct.pack(">BBH", 0x82, 126, len(message)) + message
    cuts = [0, 1, 2, 3, 4, 5, 100, len(whole) - 1, len(whole), len(whole) + 1, len(whole) + 200, 2 * len(whole)]
    def cut(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        k = len(v.asked) - 1
        if k < len(cuts):
            ws.socket.sendall((whole * 2)[:cuts[k]])
            ws.socket.shutdown(2)
        else: ws.send(tick("1001", 7))
    with venue(on_subscribe=cut) as v, live(v, symbols=("S0",), most_wait_s=0.03) as d:
        d.until(lambda: d.n > 0 and d.all["seq"][-1] == 7)
        assert [t for _, a, t in v.asked] == [["1001"]] * (len(cuts) + 1) and d.kinds.count("down") == len(cuts)
        full = sum(c >= len(whole) for c in cuts) + sum(c >= 2 * len(whole) for c in cuts)
        assert d.all["seq"].tolist() == [5] * full + [7] and d.all["flags"][-1] == FLAG_GAP and d.feed.stats.malformed == 0


def test_connected_but_mute_after_the_tokens_changed() -> None:
    have = [KEYS]
    def only_for_the_new(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        if len(v.conns) > 1: ws.send(tick("1001"))
    with venue(on_subscribe=only_for_the_new) as v, live(v, tokens=lambda: have[0], symbols=("S0",), silence_s=0.4, heartbeat_s=0.1) as d:
        d.until(lambda: v.pings >= 1)
        have[0], v.keys = NEW, NEW
        d.until(lambda: d.n == 1)
        assert "open but mute" in d.told("down") and v.pings >= 2, "it answered pings all the while"


def test_silence_in_a_closed_market_is_no_alarm() -> None:
    evening = OPEN + 8 * 3600 * 10**9
    with venue(on_subscribe=lambda *_: None) as v, live(v, clock=lambda: evening, silence_s=0.2) as d:
        with pytest.raises(AssertionError, match="not within"): d.until(lambda: "down" in d.kinds, 1.0)
        v.live()[0].send(tick("1001", 1, evening))
        d.until(lambda: d.n == 1)
        assert d.all["flags"][0] == FLAG_AUCTION, "a book outside continuous trading says so"


def test_symbols_that_never_tick_are_named() -> None:
    def all_but_one(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        while ws.state.name == "OPEN" and len(v.conns) == 1:
            for t in ("1001", "1002", "1003", "1004"): ws.send(tick(t))
            time.sleep(0.05)
    with venue(on_subscribe=all_but_one) as v, live(v, silence_s=0.4) as d:
        d.until(lambda: "uncovered" in d.kinds)
        assert "S4" in d.told("uncovered") and "S0" not in d.told("uncovered") and d.feed.uncovered == ("S4",) and "down" not in d.kinds


def test_half_open_is_noticed_by_the_missing_pong() -> None:
    with venue() as v, live(v, heartbeat_s=0.1, pong_s=0.3) as d:
        d.until(lambda: v.pings >= 2)
        v.deaf = True
        d.until(lambda: "no answer to a ping" in d.told("down"))
        v.deaf = False
        d.until(lambda: d.kinds.count("up") == 2)


def test_error_frames_are_counted_told_and_acted_on() -> None:
    def picky(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        tokens = [t for g in m["params"]["tokenList"] for t in g["tokens"]]
        def error(code: str, why: str) -> None:
            ws.send(json.dumps({"correlationID": m["correlationID"], "action": 1, "errorCode": code, "errorMessage": why}))
        if "1003" in tokens: error("E1001", "Invalid Request Payload.")
        elif "1005" in tokens: error("E1002", "Invalid Request. Subscription Limit Exceeded.")
        else:
            for t in tokens: ws.send(tick(t))
        if len(v.asked) == 1:
            ws.send("what?")
            ws.send(json.dumps({"errorCode": "E1777", "errorMessage": "something new", "correlationID": ""}))
    with venue(on_subscribe=picky) as v, live(v) as d:
        d.until(lambda: {0, 1} <= set(d.all["sym"]) and d.kinds.count("uncovered") == 2)
        assert set(d.feed.uncovered) >= {"S2", "S4"} and d.feed.stats.by_error["E1001"] >= 2 and d.feed.stats.by_error["E1002"] == 1
        assert "Subscription Limit Exceeded" in d.told("uncovered") and "E1777 something new" in d.told("warning") and "what?" in d.told("warning")
        assert d.feed.stats.unknown == 1 and d.feed.stats.by_error["E1777"] == 1 and "down" not in d.kinds


def test_packets_nobody_can_use_are_counted_and_told_and_the_rest_is_read() -> None:
    def junk(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        good = tick("1001", 9)
        for body in (good[:-1], good[:51], b"\x04" + good[1:], b"", b"xx", tick("31337"), b"\x03\x01" + b"\xff" * 377,
                     good[:147] + struct.pack("<hqqh", 3, 1, 1, 1) + good[167:]): ws.send(body)
        crossed = depth_row(OPEN, 0, [(100.0, 1)], [(99.0, 1)], ltp=99.5)
        ws.send(encode_packet(crossed, "1002", 1))
        ws.send([good[:100], good[100:]])  # in fragments
    with venue(on_subscribe=junk) as v, live(v) as d:
        d.until(lambda: d.n == 2 and d.feed.stats.malformed == 5 and d.feed.stats.unknown == 3 and d.feed.stats.crossed == 1)
        d.until(lambda: "could not be decoded" in d.told("warning") and "nobody knows" in d.told("warning"))
        assert d.all["seq"].tolist() == [-1, 9] and "down" not in d.kinds


def flood(n: int, sent: threading.Event) -> Callable[[Venue, ServerConnection, dict[str, Any]], None]:
    kinds, pack = [tick(str(1001 + k)) for k in range(5)], struct.Struct("<q").pack  # the sequence number lies at 27
    body = b"".join(struct.pack(">BBH", 0x82, 126, 379) + kinds[k % 5][:27] + pack(k) + kinds[k % 5][35:] for k in range(1, n + 1))
    def send(v: Venue, ws: ServerConnection, m: dict[str, Any]) -> None:
        sent.set()
        ws.socket.sendall(body)
    return send


def test_a_quick_reader_loses_nothing_of_a_flood() -> None:
    with venue(on_subscribe=flood(30_000, threading.Event())) as v, live(v, keep_rows=512) as d:
        d.until(lambda: d.n >= 30_000)
        assert all(len(r) <= 512 for r in d.rows) and d.all["seq"].tolist() == list(range(1, 30_001)) and d.feed.stats.dropped_rows == 0


def test_a_reader_that_is_busy_elsewhere_finds_the_latest_of_each_symbol() -> None:
    n, sent = 30_000, threading.Event()
    with venue(on_subscribe=flood(n, sent)) as v, live(v, keep_rows=512, behind_s=0.1) as d:
        d.until(sent.is_set)
        while d.n + d.feed.stats.dropped_rows < n:
            time.sleep(0.15)
            d.until(lambda: True)
            assert len(d.rows[-1]) <= 5, "no symbol twice"
        assert d.n + d.feed._decoder.dropped == n and d.n < n / 10 and np.all(np.diff(d.all["seq"]) > 0)
        assert {int(r["sym"]): int(r["seq"]) for r in d.all} == {k % 5: k for k in range(n - 4, n + 1)}
        d.until(lambda: "the reader is behind" in d.told("warning"))


def test_a_thousand_tokens_and_closing_while_an_attempt_is_under_way() -> None:
    uni = Universe("big", tuple(Instrument(f"B{k}", "NSE", str(5000 + k)) for k in range(1000)))
    with venue() as v, live(v, universe=uni) as d:
        d.until(lambda: d.n == 1000)
        assert [len(t) for _, _, t in v.asked] == [250] * 4 and len(v.conns) == 1 and set(d.all["sym"]) == set(range(1000))
        v.room = 0
        v.live()[0].socket.shutdown(2)
        d.until(lambda: "down" in d.kinds)
    assert threading.active_count() < 30
