"""Alpaca's market-data feed against the practice venue, and against servers that misbehave."""
from __future__ import annotations

import json
import os
import select
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import realdata
from websockets.sync.server import ServerConnection, serve

from scalp_nb.feed.alpaca import AlpacaFeed, AlpacaFeedConfig, FeedRefused, _control, _drain, _tend, _text
from scalp_nb.feed.alpaca_wire import Decoder, rfc3339_ns
from scalp_nb.feed.bars import BAR_UPDATED, MINUTE
from scalp_nb.feed.depth import DEPTH, FLAG_GAP, FLAG_HALT, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.live import Feed, read_tape
from scalp_nb.feed.websock import BINARY, MAX_MESSAGE, SocketError, WebSock, open_socket, payload
from scalp_nb.practice.alpaca import PracticeServer
from scalp_nb.practice.alpaca_orders import AlpacaTerms
from scalp_nb.practice.venue import Tape, make_tape

START = 1_795_100_400_000_000_000  # 2026-11-19 15:00 UTC
TERMS = AlpacaTerms(rate_limit=100_000, zombie_s=0, auth_timeout_s=120)
UNI = Universe("two", (Instrument("SPY", "US", currency="USD"), Instrument("AAPL", "US", currency="USD")))


def stamp(ns: int) -> msgpack.Timestamp: return msgpack.Timestamp.from_unix_nano(ns)


def config(port: int, **over: Any) -> AlpacaFeedConfig:
    base = {"stream_url": f"ws://127.0.0.1:{port}/v2/iex", "data_url": f"http://127.0.0.1:{port}", "first_wait_s": 0.02, "most_wait_s": 0.2,
            "batch_gap_s": 0.02, "poll_delay_s": 1.0}
    return AlpacaFeedConfig(**{**base, **over})


class Drive:
    "Reads a feed as a session does and keeps what came."
    def __init__(self, feed: AlpacaFeed) -> None:
        self.feed, self.rows, self.bars, self.news = feed, [empty_depth(0)], [feed.bars()], list(feed.news())

    def until(self, done: Callable[[], bool], seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.rows.append(self.feed.read(0.02))
            self.bars.append(self.feed.bars())
            self.news += self.feed.news()
            if done(): return
        raise AssertionError(f"not within {seconds} s; news {[n.text for n in self.news]}")

    @property
    def kinds(self) -> list[str]: return [n.kind for n in self.news]
    @property
    def n_bars(self) -> int: return sum(map(len, self.bars))
    @property
    def n_rows(self) -> int: return sum(map(len, self.rows))


def market(symbols: tuple[str, ...], seconds: int = 1800, cadence: int = 2) -> Tape:
    "Half an hour from 10:00 in New York: a random walk of each symbol, a trade every other row."
    n, k = seconds // cadence, len(symbols)
    rows, rng = empty_depth(n * k), np.random.default_rng(1)
    rows["ts"] = rows["recv"] = START + np.repeat(np.arange(n), k) * cadence * 10**9 + np.tile(np.arange(k), n) * 10**6
    rows["sym"] = np.tile(np.arange(k), n)
    mid = np.round(100 + np.cumsum(rng.integers(-3, 4, (n, k)), axis=0) / 100, 2).ravel()
    rows["bid_px"][:, 0], rows["ask_px"][:, 0], rows["bid_qty"][:, 0], rows["ask_qty"][:, 0] = mid, np.round(mid + 0.02, 2), 300, 200
    rows["ltp"], rows["volume"] = mid, np.repeat(np.arange(n) // 2 * 100 + 100, k)
    return make_tape(rows, Universe("us", tuple(Instrument(s, "US", currency="USD") for s in symbols)))


@contextmanager
def practice(symbols: tuple[str, ...], speed: float, **terms: Any) -> Iterator[PracticeServer]:
    with PracticeServer(market(symbols), TERMS.model_copy(update=terms), speed=speed) as server: yield server


@contextmanager
def live(server: PracticeServer, **over: Any) -> Iterator[Drive]:
    feed = AlpacaFeed(server.tape.universe, config(server.port, **over), server.terms.key, server.terms.secret, server.api.desk.clock.now)
    try:
        feed.start(server.api.desk.clock.now())
        yield Drive(feed)
    finally: feed.close()


# ---------------------------------------------------------------- against the practice venue

def test_rows_bars_history_and_a_tape_that_repeats_them(tmp_path: Path) -> None:
    with practice(("AAPL", "MSFT", "SPY"), 120) as server, live(server, raw_tape=tmp_path / "raw.tape") as d:
        assert isinstance(d.feed, Feed) and d.feed.capabilities.levels == 1
        d.until(lambda: d.n_bars >= 6 and d.n_rows > 50 and "subscribed" in d.kinds)
        rows, bars = np.concatenate(d.rows), np.concatenate(d.bars)
        assert d.kinds[:2] == ["up", "subscribed"]
        assert set(rows["sym"]) == {0, 1, 2} and (rows["recv"] >= rows["ts"]).mean() > 0.9
        assert np.isfinite(rows["bid_px"][:, 0]).any() and np.isnan(rows["bid_px"][:, 1:]).all() and np.isnan(rows["total_buy"]).all()
        assert (bars["ts"] % MINUTE == 0).all() and len(bars) == len({(b["sym"], b["ts"]) for b in bars if not b["flags"] & BAR_UPDATED})
        history = d.feed.history(2, server.api.desk.clock.now())
        assert 0 < len(history) <= 6 and (history["ts"] + MINUTE <= server.api.desk.clock.now()).all()
    again = Decoder(server.tape.universe, 100_000)
    for recv, frame in read_tape(tmp_path / "raw.tape").frames: again.read(frame, recv)
    replayed = again.take_rows()
    assert replayed[:len(rows)].tobytes() == rows.tobytes()
    assert b"practice-secret" not in (tmp_path / "raw.tape").read_bytes()


def test_31_symbols_on_a_plan_for_30() -> None:
    names = tuple(f"S{chr(65 + k // 26)}{chr(65 + k % 26)}" for k in range(31))
    with practice(names, 60) as server, live(server) as d:
        d.until(lambda: any(b["sym"] == 30 for x in d.bars for b in x))
        text = " ".join(n.text for n in d.news if n.kind == "uncovered")
        assert names[30] in text and names[29] not in text
        assert d.feed.uncovered == (names[30],) or "live bars only" in text
        d.until(lambda: any(r["sym"] == 30 for x in d.rows for r in x))  # its quotes come once a minute


def test_a_cut_line_comes_back_with_a_gap_and_the_missed_bars() -> None:
    with practice(("AAPL", "MSFT"), 120) as server, live(server) as d:
        d.until(lambda: d.n_bars >= 4)
        before = np.concatenate(d.bars)
        assert d.feed._link.ws is not None
        d.feed._link.ws.sock.shutdown(2)
        d.until(lambda: "down" in d.kinds)
        time.sleep(1.1)  # two venue minutes without a reader
        mark = len(d.rows)
        d.until(lambda: "backfill" in d.kinds and d.n_bars > len(before) + 2 and sum(map(len, d.rows[mark:])) > 3)
        bars, rows = np.concatenate(d.bars), np.concatenate(d.rows[mark:])
        for s in (0, 1):
            mine = bars[(bars["sym"] == s) & (bars["flags"] & BAR_UPDATED == 0)]
            assert (np.diff(mine["ts"]) == MINUTE).all(), "no minute is missing, and in order"
            assert rows[rows["sym"] == s]["flags"][0] & FLAG_GAP and not rows[rows["sym"] == s]["flags"][1:].any()
        assert d.feed.stats.connects == 2 and d.feed.stats.backfilled > 0


def test_a_halt_is_told_and_flagged() -> None:
    with practice(("AAPL", "MSFT"), 10) as server, live(server) as d:
        d.until(lambda: {int(r["sym"]) for x in d.rows for r in x} == {0, 1})
        server.post("halt", symbol="MSFT", seconds=30)
        d.until(lambda: "halt" in d.kinds)
        rows = np.concatenate(d.rows)
        assert rows[rows["sym"] == 1]["flags"][-1] & FLAG_HALT and not rows[rows["sym"] == 0]["flags"][-1] & FLAG_HALT
        assert [n.symbol for n in d.news if n.kind == "halt"] == ["MSFT"]


def test_wrong_keys_are_refused_at_once_and_never_shown() -> None:
    with practice(("AAPL",), 1) as server:
        feed = AlpacaFeed(server.tape.universe, config(server.port), "PKWRONGKEY", "WRONGSECRET")
        with pytest.raises(FeedRefused, match="402") as e: feed.start(0)
        assert "WRONGSECRET" not in str(e.value) + repr(feed) and "PKWRONGKEY" not in str(e.value)
        feed.close()


def test_a_taken_connection_is_waited_for() -> None:
    with practice(("AAPL",), 1) as server, live(server) as first, live(server, busy_wait_s=0.3) as second:
        second.until(lambda: "down" in second.kinds)
        assert "90 s" in second.news[-1].text
        first.feed.close()
        second.until(lambda: "up" in second.kinds)


# ---------------------------------------------------------------- against a server that misbehaves

@contextmanager
def stream(script: Callable[[ServerConnection], None], **how: Any) -> Iterator[int]:
    "A websocket server that logs clients in, then follows the script."
    def handler(ws: ServerConnection) -> None:
        ws.send(msgpack.packb([{"T": "success", "msg": "connected"}]))
        assert json.loads(ws.recv())["action"] == "auth"
        ws.send(msgpack.packb([{"T": "success", "msg": "authenticated"}]))
        script(ws)
    with serve(handler, "127.0.0.1", 0, compression=None, **how) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.socket.getsockname()[1]
        server.shutdown()


def quote(sym: str, k: int) -> dict[str, Any]:
    return {"T": "q", "S": sym, "bx": "V", "bp": 100 + k / 100, "bs": 100, "ax": "V", "ap": 100.05 + k / 100, "as": 200, "c": ["R"],
            "t": stamp(1_700_000_000_000_000_000 + k), "z": "B"}


def test_an_open_but_mute_socket_is_left() -> None:
    def script(ws: ServerConnection) -> None:
        ws.send(msgpack.packb([quote("SPY", 1)]))
        for _ in ws: pass  # answers pings, says nothing more
    with stream(script) as port:
        feed = AlpacaFeed(UNI, config(port, source="test", silence_s=0.4), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: feed.stats.connects >= 2)
        assert any("mute" in n.text for n in d.news)
        feed.close()


def test_refused_symbols_are_asked_for_one_by_one() -> None:
    asked: list[list[str]] = []
    def script(ws: ServerConnection) -> None:
        for raw in ws:
            asked.append(json.loads(raw)["quotes"])
            bad = "AAPL" in asked[-1]
            ws.send(msgpack.packb([{"T": "error", "code": 400, "msg": "invalid syntax"} if bad else {"T": "subscription", "quotes": asked[-1]}]))
    with stream(script) as port:
        feed = AlpacaFeed(UNI, config(port, source="test"), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: len(asked) == 3 and "uncovered" in d.kinds)
        assert asked == [["SPY", "AAPL"], ["SPY"], ["AAPL"]] and feed.uncovered == ("AAPL",)
        feed.close()


def test_malformed_frames_are_counted_and_the_rest_is_read() -> None:
    def script(ws: ServerConnection) -> None:
        ws.recv()
        whole = msgpack.packb([quote("SPY", 1), quote("AAPL", 2)])
        for frame in (whole[:-7], b"\xc1\xc1", b"", whole, json.dumps([{**quote("SPY", 3), "t": "2023-11-14T22:13:20.5Z"}]), "{not json",
                      msgpack.packb([{**quote("SPY", 4), "t": "2023-11-14T22:13:20.6Z"}, {"T": "zzz"}, 7])): ws.send(frame)
        for _ in ws: pass
    with stream(script) as port:
        feed = AlpacaFeed(UNI, config(port, source="test"), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: d.n_rows >= 5 and feed.stats.malformed >= 3 and feed.stats.unknown >= 1)
        assert np.concatenate(d.rows)["ts"].max() == rfc3339_ns("2023-11-14T22:13:20.6Z")
        feed.close()


def test_memory_is_bounded_when_nobody_reads() -> None:
    def script(ws: ServerConnection) -> None:
        ws.recv()
        for k in range(60): ws.send(msgpack.packb([quote("SPY" if i % 2 else "AAPL", 1000 * k + i) for i in range(1000)]))
        for _ in ws: pass
    with stream(script) as port:
        feed = AlpacaFeed(UNI, config(port, source="test"), "PK", "S")
        feed.start(0)
        time.sleep(1.0)  # a consumer that is busy elsewhere
        got, end = 0, time.monotonic() + 15
        last: dict[int, int] = {}
        while got + feed.stats.dropped_rows < 60_000 and time.monotonic() < end:
            rows = feed.read(0.05)
            assert len(rows) <= 32_768
            got += len(rows)
            last.update({int(r["sym"]): int(r["ts"]) for r in rows[-2:]})
        assert got + feed.stats.dropped_rows == 60_000 and last == {0: 1_700_000_000_000_059_999, 1: 1_700_000_000_000_059_998}
        feed.close()


# ---------------------------------------------------------------- the websocket, against a library's server

@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 3_000_000])
def test_messages_of_every_length_class_whole_and_in_fragments(size: int) -> None:
    body = os.urandom(size)
    def script(ws: ServerConnection) -> None:
        ws.send(body)
        if size: ws.send([body[k:k + size // 3 + 1] for k in range(0, size, size // 3 + 1)])
        ws.send(f"echo {len(ws.recv())}")
        ws.close(4001, "enough")
    with serve(script, "127.0.0.1", 0, compression=None, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ws = open_socket(f"ws://127.0.0.1:{server.socket.getsockname()[1]}/x", 5)
        ws.send(body, BINARY)
        got: list[bytes] = []
        with pytest.raises(SocketError, match="4001 enough"):
            while True:
                ws.wait(5)
                if ws.pump(): got += [payload(m) for m in ws.messages()]
        assert got == [body] * (2 if size else 1) + [f"echo {size}".encode()]
        ws.close()
        server.shutdown()


def test_tls_and_a_certificate_nobody_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None: pytest.skip("openssl, which makes the test's certificate, is absent")
    key, cert = tmp_path / "k.pem", tmp_path / "c.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    def script(ws: ServerConnection) -> None:
        for _ in range(50): ws.send(b"x" * 40_000)
        for _ in ws: pass
    with serve(script, "127.0.0.1", 0, ssl=context, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"wss://localhost:{server.socket.getsockname()[1]}/"
        with pytest.raises(SocketError, match="CERTIFICATE_VERIFY_FAILED|certificate"): open_socket(url, 5)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        ws, n = open_socket(url, 5), 0
        while n < 50 and ws.wait(5):
            if ws.pump(): n += sum(m[2] == 40_000 for m in ws.messages())
        assert n == 50
        ws.close()
        server.shutdown()


# ---------------------------------------------------------------- the decoder

numbers = st.one_of(st.floats(-1e9, 1e9), st.integers(-2**40, 2**63), st.floats(0, 1000, width=32))
messages = st.lists(st.fixed_dictionaries(
    {"T": st.sampled_from("qtbu"), "S": st.sampled_from(["SPY", "AAPL", "ZZZ"]), "t": st.integers(1, 2**60).map(stamp)},
    optional={k: numbers for k in ("bp", "bs", "ap", "as", "p", "s", "o", "h", "l", "v", "vw")} | {
        "c": st.one_of(numbers, st.lists(st.text(max_size=3), max_size=3)), "n": st.integers(0, 2**31), "z": st.text(max_size=40),
        "new": st.recursive(st.none() | st.booleans() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(max_size=3), x), max_leaves=9),
    }), max_size=6)


@settings(max_examples=60)
@given(messages)
def test_the_compiled_way_and_the_slow_way_agree(found: list[dict[str, Any]]) -> None:
    fast, slow = Decoder(UNI), Decoder(UNI)
    for m in found:
        fast.read(msgpack.packb([m]), 5)
        slow.put(msgpack.unpackb(msgpack.packb(m), timestamp=0), 5)
    assert fast.take_bars().tobytes() == slow.take_bars().tobytes()
    a, b = fast.take_rows(), slow.take_rows()
    assert a.tobytes() == b.tobytes(), (a, b)


@settings(max_examples=80)
@given(messages, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=5), st.integers(0, 10**6))
def test_damaged_frames_never_reach_beyond_their_end(found: list[dict[str, Any]], noise: list[tuple[int, int]], cut: int) -> None:
    frame = bytearray(msgpack.packb(found))
    for at, value in noise: frame[at % len(frame)] = value
    frame = frame[:1 + cut % len(frame)]
    d, twin = Decoder(UNI), Decoder(UNI)
    guarded = np.frombuffer(bytes(frame) + b"\xff" * 64, np.uint8)
    other = np.frombuffer(bytes(frame) + b"\x00" * 64, np.uint8)
    d.frame(int(guarded.ctypes.data), len(frame), 1)
    twin.frame(int(other.ctypes.data), len(frame), 1)
    assert d.take_rows().tobytes() == twin.take_rows().tobytes() and d.take_bars().tobytes() == twin.take_bars().tobytes()
    assert d.malformed == twin.malformed


# ---------------------------------------------------------------- the compiled walk and the slow way, torn anywhere

def wire(body: bytes, b0: int = 0x82) -> bytes:
    "A server's frame."
    n = len(body)
    return (bytes([b0, n]) if n < 126 else struct.pack(">BBH", b0, 126, n) if n < 65536 else struct.pack(">BBQ", b0, 127, n)) + body


def feed_on(sock: socket.socket, size: int) -> tuple[AlpacaFeed, WebSock]:
    "A feed whose connection is `sock`: the real reading code, without a server."
    feed = AlpacaFeed(UNI, AlpacaFeedConfig(source="test", stream_url="ws://127.0.0.1:1/"), "PK", "S", lambda: 7)
    ws = feed._link.ws = WebSock(sock, size=size)
    return feed, ws


Seen = tuple[bytes, bytes, tuple[Any, ...]]


def seen(feed: AlpacaFeed, ws: WebSock) -> Seen:
    d, bars = feed._decoder, [*feed._bars, feed._decoder.take_bars()]
    counts = (d.unknown + feed._odd, d.malformed, d.messages, d.frames + feed._texts, feed.stats.corrections, ws.ended, sorted(feed.bands.items()),
              [(n.kind, n.text) for n in feed.news()])
    return d.take_rows().tobytes(), np.concatenate(bars).tobytes(), counts


@contextmanager
def pair(size: int) -> Iterator[tuple[socket.socket, AlpacaFeed, WebSock]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    feed, ws = feed_on(ours, size)
    try: yield theirs, feed, ws
    finally:
        feed.close()
        for s in (ours, theirs): s.close()


def walked(pieces: list[bytes]) -> Seen:
    with pair(4096) as (theirs, feed, ws):
        for piece in pieces:
            for k in range(0, len(piece), 60_000):
                theirs.sendall(piece[k:k + 60_000])
                while not ws.ended and select.select([ws.fd], [], [], 0)[0]: _drain(feed, ws)
        return seen(feed, ws)


def one_by_one(stream: bytes) -> Seen:
    "Each message by itself, as before there was a walk."
    with pair(2 * len(stream) + 1024) as (theirs, feed, ws):
        for k in range(0, len(stream), 60_000):
            theirs.sendall(stream[k:k + 60_000])
            ws.pump()
        for m in ws.messages():
            for x in feed._decoder.frame(m[1], m[2], 7) if m[0] == BINARY else _text(feed, ws, m, 7): _control(feed, x, 7)
        return seen(feed, ws)


others = st.sampled_from([{"T": "s", "S": "SPY", "sc": "H", "sm": "halted", "t": stamp(9)}, {"T": "s", "S": "SPY", "sc": "T", "t": stamp(10)},
                          {"T": "l", "S": "AAPL", "u": 11.0, "d": 9.0}, {"T": "success", "msg": "x"}, {"T": "zzz"}, {"T": "c", "S": "SPY"}, 7])


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["prices"] * 6 + ["mixed", "json", "ping", "pieces", "bad", "empty", "long"]))
    found: list[Any] = draw(messages)
    if kind == "json": return wire(draw(st.sampled_from([b'[{"T":"l","S":"SPY","u":2,"d":1}]', b"{not json", b"7"])), 0x81)
    if kind == "ping": return wire(b"are you there", draw(st.sampled_from([0x89, 0x8A])))
    if kind == "empty": return wire(b"")
    if kind == "mixed": found = [*found[:2], draw(others), *found[2:], draw(others)]
    if kind == "long": found = [quote("SPY", k) for k in range(draw(st.integers(550, 700)))]
    body = msgpack.packb(found)
    if kind == "pieces":
        k = draw(st.integers(0, len(body)))
        return wire(body[:k], 0x02) + wire(b"", 0x89) + wire(body[k:], 0x80)
    if kind == "bad":
        noise = bytearray(body)
        for at, v in draw(st.lists(st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255)), max_size=4)): noise[at] = v
        return wire(bytes(noise)[:draw(st.integers(0, len(body)))] if draw(st.booleans()) else bytes(noise))
    return wire(body)


ENDS = {"": b"", "masked": b"\x82\x81abcda", "compressed": b"\xc2\x01a", "oversized": b"\x82\x7f" + (MAX_MESSAGE + 1).to_bytes(8, "big"),
        "goodbye": wire(struct.pack(">H", 1001) + b"bye", 0x88), "unknown": wire(b"", 0x8B), "nothing to continue": wire(b"x", 0x80)}


@settings(max_examples=80, deadline=None)
@given(st.lists(streams(), min_size=1, max_size=7), st.sampled_from(sorted(ENDS)), st.lists(st.integers(0, 10**6), max_size=12))
def test_the_walk_and_the_slow_way_agree_however_the_stream_is_torn(found: list[bytes], end: str, cuts: list[int]) -> None:
    stream = b"".join(found) + ENDS[end]
    edges = [0, *sorted({c % (len(stream) + 1) for c in cuts}), len(stream)]
    assert walked([stream[a:b] for a, b in zip(edges, edges[1:], strict=False)]) == one_by_one(stream)


def test_torn_at_every_byte() -> None:
    bar = {"T": "b", "S": "SPY", "o": 1.0, "h": 2.0, "l": 1.0, "c": 1.5, "v": 10, "n": 2, "vw": 1.2, "t": stamp(60)}
    trade = {"T": "t", "S": "AAPL", "p": 9.5, "s": 3, "t": stamp(70)}
    halt = {"T": "s", "S": "SPY", "sc": "H", "sm": "halted", "t": stamp(80)}
    whole = msgpack.packb([quote("SPY", 5)])
    stream = (wire(whole) + wire(b"", 0x89) + wire(msgpack.packb([trade, halt, bar])) + wire(whole[:20], 0x02) + wire(whole[20:], 0x80)
              + wire(b'[{"T":"l","S":"SPY","u":2,"d":1}]', 0x81) + wire(b"") + wire(whole))
    want = one_by_one(stream)
    assert want[2][:4] == (0, 1, 5, 6) and len(want[0]) == 5 * DEPTH.itemsize
    for k in range(1, len(stream)): assert walked([stream[:k], stream[k:]]) == want, k
    assert walked([stream[k:k + 1] for k in range(len(stream))]) == want


@settings(max_examples=80, deadline=None)
@given(st.lists(streams(), max_size=4), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), st.integers(0, 10**6))
def test_the_walk_never_reads_beyond_what_it_was_given(found: list[bytes], noise: list[tuple[int, int]], cut: int) -> None:
    stream = bytearray(b"".join(found) or b"\x82\x00")
    for at, v in noise: stream[at % len(stream)] = v
    stream, out = stream[:1 + cut % len(stream)], []
    for behind in (b"\xff", b"\x00"):
        d, raw = Decoder(UNI), np.frombuffer(bytes(stream) + behind * 600, np.uint8)
        out.append((d.walk(int(raw.ctypes.data), len(stream), 1), d.take_rows().tobytes(), d.take_bars().tobytes(), d.malformed, d.unknown))
    assert out[0] == out[1] and out[0][0][0] <= len(stream)


@pytest.mark.parametrize("slow", [False, True])
def test_more_rows_than_fit_leave_the_latest_of_each_symbol_and_its_gap(slow: bool) -> None:
    """A full block used to lose the newest rows, and with them the word that something had been missed."""
    d = Decoder(UNI, rows=16)
    d.read(msgpack.packb([quote("SPY", k) for k in range(15)]), 1)
    d.gap()
    found = [quote("AAPL" if k % 5 == 0 else "SPY", k) for k in range(15, 60)]
    if slow:
        for m in found: d.put(msgpack.unpackb(msgpack.packb(m), timestamp=0), 2)
    else: d.read(msgpack.packb(found), 2)
    rows = d.take_rows()
    assert len(rows) <= 16 and len(rows) + d.dropped == 60
    for sym, last in ((0, 59), (1, 55)):
        mine = rows[rows["sym"] == sym]
        assert mine["ts"][-1] == 1_700_000_000_000_000_000 + last and (mine["flags"] & FLAG_GAP).any()


def test_rows_are_not_written_again_while_somebody_holds_them() -> None:
    d, kept = Decoder(UNI, rows=16), list[tuple[np.ndarray, bytes]]()
    for k in range(50):
        d.read(msgpack.packb([quote("SPY", 7 * k + i) for i in range(7)]), k)
        rows = d.take_rows()
        kept.append((rows, rows.tobytes()))
    assert all(rows.tobytes() == was for rows, was in kept) and d.dropped == 0


# ---------------------------------------------------------------- what a connection's end leaves behind

def test_what_follows_a_fatal_message_is_lost_and_the_gap_is_told_after_it() -> None:
    """Quotes behind an error in the same receipt were decoded, and took the gap's flag away from the first row that has one before it."""
    with pair(4096) as (theirs, feed, ws):
        feed._poller.register(ws.fd, select.POLLIN)
        theirs.sendall(wire(msgpack.packb([quote("SPY", 1)])) + wire(msgpack.packb([{"T": "error", "code": 407, "msg": "slow client"}]))
                       + wire(msgpack.packb([quote("SPY", 2)])))
        rows = feed.read(0)
        assert rows["ts"].tolist() == [1_700_000_000_000_000_001] and feed._link.ws is None
        assert [n.kind for n in feed.news()] == ["down"]
        feed._decoder.read(msgpack.packb([quote("SPY", 3), quote("SPY", 4)]), 8)
        assert (feed._decoder.take_rows()["flags"] & FLAG_GAP).tolist() == [FLAG_GAP, 0]


def test_a_server_that_takes_us_and_drops_us_is_asked_ever_more_rarely() -> None:
    waits: list[float] = []
    with stream(lambda ws: ws.close()) as port:
        feed = AlpacaFeed(UNI, config(port, source="test", first_wait_s=0.1, most_wait_s=0.8), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: d.kinds.count("down") >= 4)
        waits = [float(n.text.rsplit(" in ", 1)[1].split()[0]) for n in d.news if n.kind == "down"]
        feed.close()
    assert waits[3] >= 0.4 and waits[0] <= 0.1, waits


def test_what_is_wrong_with_the_data_is_told() -> None:
    def script(ws: ServerConnection) -> None:
        ws.recv()
        for frame in (b"\xc1", msgpack.packb([quote("SPY", 1), {"T": "zzz"}])): ws.send(frame)
        for _ in ws: pass
    with stream(script) as port:
        feed = AlpacaFeed(UNI, config(port, source="test"), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: d.kinds.count("warning") == 2)
        assert {n.text.split(" ", 1)[1] for n in d.news if n.kind == "warning"} == {
            "messages could not be decoded", "messages were of instruments or kinds nobody knows"}
        feed.close()


def test_what_a_full_socket_refused_is_sent_though_the_server_says_nothing() -> None:
    with pair(4096) as (theirs, feed, ws):
        ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        ws.send(b"x" * 500_000)
        got, end = 0, time.monotonic() + 30
        while got < 500_014 and time.monotonic() < end:
            _tend(feed, ws, time.monotonic())
            if select.select([theirs], [], [], 0.2)[0]: got += len(theirs.recv(1 << 20))
        assert got >= 500_014


# ---------------------------------------------------------------- recorded frames

def test_frames_of_alpacas_own_pages() -> None:
    pages = json.loads(realdata("fixtures/alpaca/alpaca-docs__frames.json").read_text(encoding="utf-8"))
    uni = Universe("docs", tuple(Instrument(s, "US") for s in ("AAPL", "AMD", "SPY")))
    d, kinds = Decoder(uni), dict[str, int]()
    for page in pages:
        for m in page["payload"] if isinstance(page["payload"], list) else [page["payload"]]:
            if "T" not in m: continue
            kinds[m["T"]] = kinds.get(m["T"], 0) + 1
            d.put(m, 1)
    assert {"t", "q", "b", "d", "s", "error", "success", "subscription"} <= kinds.keys() and d.malformed == 0
    assert (len(d.take_rows()), len(d.take_bars())) == (2, 1)


# ---- crypto: whole books

def recorded_book(n: int) -> list[dict[str, Any]]:
    "A recorded book of a crypto venue in Alpaca's words: a snapshot, then changes, size 0 where a level is gone."
    with zipfile.ZipFile(realdata("lob_crypto/bybit_XRPUSDT_2024-12-01_ob500.zip")) as z, z.open(z.namelist()[0]) as lines:
        found = [json.loads(line) for _, line in zip(range(n), lines, strict=False)]
    def side(levels: list[list[str]]) -> list[dict[str, float]]: return [{"p": float(p), "s": float(s)} for p, s in levels]
    return [{"T": "o", "S": "XRP/USD", "t": stamp(m["ts"] * 1_000_000), "b": side(m["data"]["b"]), "a": side(m["data"]["a"]),
             **({"r": True} if m["type"] == "snapshot" else {})} for m in found]


def best_five(messages: list[dict[str, Any]]) -> list[tuple[list[tuple[float, float]], list[tuple[float, float]]]]:
    "The same books kept the plain way: five best levels a side after every message."
    out, bids, asks = [], dict[float, float](), dict[float, float]()
    for m in messages:
        if m.get("r"): bids, asks = {}, {}
        for book, levels in ((bids, m["b"]), (asks, m["a"])):
            for lv in levels: book[lv["p"]] = lv["s"]
        out.append(([(p, bids[p]) for p in sorted(bids, reverse=True) if bids[p]][:5], [(p, asks[p]) for p in sorted(asks) if asks[p]][:5]))
    return out


def test_a_crossed_book_missed_a_change_and_is_asked_for_anew() -> None:
    lives = list[int]()
    def book(bid: float, ask: float, **kw: Any) -> dict[str, Any]:
        return {"T": "o", "S": "XRP/USD", "t": stamp(START), "b": [{"p": bid, "s": 5.0}], "a": [{"p": ask, "s": 6.0}], **kw}
    def script(ws: ServerConnection) -> None:
        channels = {k: v for k, v in json.loads(ws.recv()).items() if k != "action"}
        ws.send(msgpack.packb([{"T": "subscription", **channels}]))
        lives.append(1)
        ws.send(msgpack.packb([book(2.0, 2.1, r=True)]))
        if len(lives) == 1: ws.send(msgpack.packb([book(2.2, 2.3)]))   # the bid jumps over an ask that nobody took away
        for _ in ws: pass
    uni = Universe("coins", (Instrument("XRP/USD", "CRYPTO", currency="USD"),))
    with stream(script) as port:
        feed = AlpacaFeed(uni, config(port, source="crypto", crossed_s=0.2), "PK", "S")
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: d.n_rows >= 3)
        feed.close()
    rows = np.concatenate(d.rows)
    assert (rows["bid_px"][:, 0] >= rows["ask_px"][:, 0]).tolist() == [False, True, False]   # told as it is: health keeps entries off
    assert feed.stats.connects == 2 and rows["flags"][2] & FLAG_GAP


def test_crypto_books_have_five_levels_and_wait_for_a_snapshot_after_a_gap() -> None:
    """Real books over a socket: every row shows the five best levels; after a torn connection changes alone show nothing until a snapshot comes."""
    messages, asked, lives = recorded_book(400), list[dict[str, Any]](), list[int]()
    first, again = messages[:300], [m for m in messages[300:] if not m.get("r")]
    book = {"b": [{"p": 2.0, "s": 5.0}], "a": [{"p": 2.1, "s": 6.0}, {"p": 2.2, "s": 7.0}]}
    last = {"T": "o", "S": "XRP/USD", "t": stamp(START), "r": True, **book}
    def script(ws: ServerConnection) -> None:
        asked.append(json.loads(ws.recv()))
        channels = {k: v for k, v in asked[-1].items() if k != "action"}
        ws.send(msgpack.packb([{"T": "subscription", **channels}]))
        lives.append(1)
        for m in first if len(lives) == 1 else [*again, last]: ws.send(msgpack.packb([m]))
        if len(lives) == 1: return   # the connection ends
        for _ in ws: pass
    uni = Universe("coins", (Instrument("XRP/USD", "US", currency="USD"),))
    with stream(script) as port:
        feed = AlpacaFeed(uni, config(port, source="crypto"), "PK", "S")
        assert feed.capabilities.levels == 5 and feed.capabilities.whole_book_totals
        feed.start(0)
        d = Drive(feed)
        d.until(lambda: d.n_rows >= len(first) + 1)
        feed.close()
    rows, want = np.concatenate(d.rows), best_five(first)
    assert set(asked[0]) - {"action"} == {"bars", "updatedBars", "trades", "orderbooks"} and asked[0]["orderbooks"] == ["XRP/USD"]
    assert len(rows) == len(first) + 1 and feed.stats.connects == 2 and feed.stats.malformed == 0
    for row, (bids, asks) in zip(rows, want, strict=False):
        for side, levels in (("bid", bids), ("ask", asks)):
            assert list(zip(row[f"{side}_px"].tolist(), row[f"{side}_qty"].tolist(), strict=True)) == levels
    assert len({row["bid_qty"].tobytes() for row in rows}) > 40   # the books move
    assert all(row["total_buy"] > row["bid_qty"].sum() for row in rows[:-1])   # totals are of every level, five are shown
    assert rows["ts"][:-1].tolist() == [m["t"].to_unix_nano() for m in first] and not (rows["flags"][:-1] & FLAG_GAP).any()
    end = rows[-1]                                                # nothing of the changes before it
    assert (end["total_buy"], end["total_sell"]) == (5.0, 13.0)
    assert end["flags"] & FLAG_GAP and end["bid_px"][0] == 2.0 and end["ask_qty"][:2].tolist() == [6.0, 7.0] and np.isnan(end["ask_px"][2:]).all()
