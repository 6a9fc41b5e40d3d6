"""Angel One's market stream: our decoder and feed against the broker's SDK in the same run.

    python tests/bench/bench_angel_feed.py [decode] [decision] [stream] [flood]

decode    one SNAP_QUOTE packet's bytes to a depth row, alone and out of a stream of websocket frames
decision  bytes that wait in a socket to the decision made (no candidate), 1000 tokens subscribed, one packet at a time
stream    packets/s over TLS on loopback: the sender is a process of its own on the other processor and sends bytes encrypted beforehand
flood     more than anybody can read: what is dropped, what is kept, how much memory
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import base64
import hashlib
import multiprocessing
import os
import resource
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from angel_sdk import sdk_decoder
from bench.common import medians

from scalp_nb.feed.angel_one import AngelFeed, AngelFeedConfig
from scalp_nb.feed.angel_wire import AngelDecoder, AngelTokens
from scalp_nb.feed.depth import Rows, depth_row
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import encode_snap_quote
from scalp_nb.feed.synthetic import SyntheticConfig, SyntheticSymbol, synthetic_market

TOKENS = 1000
DAY = date(2026, 11, 19)
KEYS = AngelTokens("k", "c", "j", "f")
UNI = Universe("bench", tuple(Instrument(f"S{k}", "NSE", str(1000 + 7 * k), derivatives=True) for k in range(TOKENS)))
HEAD = struct.pack(">BBH", 0x82, 126, 379)


def quiet_market(n: int) -> Rows:
    "Rows of a thousand synthetic symbols without pressure episodes, in order of receipt."
    symbols = tuple(SyntheticSymbol(symbol=i.symbol, price=Decimal(500 + k)) for k, i in enumerate(UNI.instruments))
    cfg = SyntheticConfig(symbols=symbols, seconds=max(60, n // TOKENS + 30), seed=7, day=DAY, episode_every_s=0.0, cadence_ms=1000)
    rows, _ = synthetic_market(cfg)
    rows = rows[np.argsort(rows["recv"], kind="stable")][:n]
    rows["ts"] -= rows["ts"] % 1_000_000
    return rows


def packets_of(rows: Rows) -> list[bytes]:
    return [encode_snap_quote(rows[k:k + 1], UNI[int(rows["sym"][k])].token, 1) for k in range(len(rows))]


def many(n: int) -> list[bytes]:
    "n frames of a thousand symbols in turn, numbered from 1."
    row = depth_row(1_795_062_600_000 * 10**6, 0, [(round(1907 - k * 0.05, 2), 5 + k, 2) for k in range(5)],
                    [(round(1907.35 + k * 0.05, 2), 6, 3) for k in range(5)], ltp=1907.35, ltq=3, volume=2129562, total_buy=224305, total_sell=246078)
    kinds = [encode_snap_quote(row, i.token, 1) for i in UNI.instruments]
    pack = struct.Struct("<q").pack
    return [HEAD + kinds[k % TOKENS][:27] + pack(k + 1) + kinds[k % TOKENS][35:] for k in range(n)]


# ---------------------------------------------------------------- decode

def decode() -> None:
    n = 20_000
    packets = packets_of(quiet_market(4000))
    stream = np.frombuffer(b"".join(HEAD + p for p in packets) * (n // 4000), np.uint8).copy()
    d, parse = AngelDecoder(UNI, 32_768), sdk_decoder()
    at, row_bytes = stream.ctypes.data, len(packets[0])

    def ours_one_by_one() -> None:
        walk = d.walk
        for k in range(0, len(stream), row_bytes + 4): walk(at + k, row_bytes + 4, 1)
        assert len(d.take_rows()) == n

    def ours_at_once() -> None:
        assert d.walk(at, len(stream), 1) == (len(stream), 0) and len(d.take_rows()) == n

    sdk = medians(lambda: [parse(p) for p in packets])[0] / len(packets)
    print(f"decode, one SNAP_QUOTE of {TOKENS} tokens, median of 7")
    print(f"  baseline: SDK _parse_binary_data                     {sdk * 1e6:8.3f} us")
    for name, fn in (("frame to row, one call from Python a frame", ours_one_by_one), ("frame to row, one call for all", ours_at_once)):
        us = medians(fn)[0] / n
        print(f"  {name:50}   {us * 1e6:8.3f} us   {sdk / us:7.1f} x the SDK", flush=True)


# ---------------------------------------------------------------- decision

def percentiles(ns: list[int]) -> str:
    p50, p99, p999 = np.percentile(ns, [50, 99, 99.9]) / 1000
    return f"p50 {p50:7.2f} us   p99 {p99:7.2f} us   p99.9 {p999:7.2f} us"


def decision() -> None:
    from markets import market

    from scalp_nb.trader.config import load_config
    from scalp_nb.trader.events import Depth, Started
    from scalp_nb.trader.runner import Memory
    from scalp_nb.trader.setup import RunConfig, paper_run
    from scalp_nb.trader.wire import Wire, settle_memory
    n = 20_000
    rows = quiet_market(n)
    packets, recv, clock, parse = packets_of(rows), rows["recv"].tolist(), time.perf_counter_ns, sdk_decoder()

    def trader() -> Any:
        r = paper_run(load_config(RunConfig, None, {}), market(rows, UNI), Memory())
        r.trader.handle(Started(recv[0], r.broker.state(recv[0])))
        return r.trader

    print(f"bytes in to decision, no candidate, {TOKENS} tokens, {n:,} packets")
    sdk = []
    for p in packets[:5000]:
        t0 = clock()
        parse(p)
        sdk.append(clock() - t0)
    print(f"  {'baseline: SDK decode alone':56} {percentiles(sdk)}")

    t = trader()
    wire, found = Wire(t), []
    settle_memory()
    for p, at in zip(packets, recv, strict=True):
        t0 = clock()
        said = wire.on_packet(p, at)
        took = clock() - t0
        if not said: found.append(took)
    print(f"  {'packet to decision, in memory (Wire)':56} {percentiles(found[1000:])}")

    t, now = trader(), [recv[0]]
    d, found = AngelDecoder(UNI), []
    for p, at in zip(packets, recv, strict=True):
        raw = np.frombuffer(HEAD + p, np.uint8)
        addr = raw.ctypes.data
        t0 = clock()
        d.walk(addr, 383, at)
        said = t.handle(Depth(d.take_rows()))
        took = clock() - t0
        if not said: found.append(took)
    print(f"  {'frame to rows to Trader.handle, in memory (feed path)':56} {percentiles(found[1000:])}")
    for secure in (False, True): socket_decision(secure, packets, recv, trader(), now)


def socket_decision(secure: bool, packets: list[bytes], recv: list[int], t: Any, now: list[int]) -> None:
    "The packet lies in the kernel's socket buffer when the clock starts."
    from scalp_nb.trader.events import Depth
    clock, found = time.perf_counter_ns, []
    with sender_of([], secure, hold=True) as s:
        feed = AngelFeed(UNI, s.config, lambda: KEYS, lambda: now[0])
        feed.rehearse()
        feed.start(recv[0])
        while not s.ready(feed): feed.read(0.01)
        for p, at in zip(packets, recv, strict=True):
            now[0] = at
            s.push(HEAD + p)
            feed._poller.poll(1000)
            t0 = clock()
            rows = feed.read(0)
            said = t.handle(Depth(rows)) if len(rows) else ()
            took = clock() - t0
            assert len(rows) == 1
            if not said: found.append(took)
        feed.close()
    print(f"  {'bytes in a socket to decision, ' + ('TLS' if secure else 'plain'):56} {percentiles(found[1000:])}", flush=True)


# ---------------------------------------------------------------- a venue in another process

def certificate(folder: Path) -> tuple[Path, Path]:
    if shutil.which("openssl") is None: raise SystemExit("openssl, which makes the certificate, is absent")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out", cert,
                    "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    return key, cert


class Sealed:
    "The server's end of a connection: what it sends is encrypted when it likes, before it is sent."
    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self.sock, self.inn, self.out = sock, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.inn, self.out, server_side=True) if context else None
        while self.tls:
            try: break_ = self.tls.do_handshake() is None
            except ssl.SSLWantReadError: break_ = False
            self.sock.sendall(self.out.read())
            if break_: return
            self.inn.write(self.sock.recv(65536))

    def recv(self) -> bytes:
        while self.tls:
            try: return self.tls.read(65536)
            except ssl.SSLWantReadError: self.inn.write(self.sock.recv(65536))
        return self.sock.recv(65536)

    def seal(self, parts: list[bytes]) -> bytes:
        "Each part as TLS records of its own."
        if self.tls is None: return b"".join(parts)
        for p in parts: self.tls.write(p)
        return self.out.read()


def upgrade(end: Sealed) -> None:
    head = b""
    while b"\r\n\r\n" not in head: head += end.recv()
    key = next(x.split(b":")[1].strip() for x in head.split(b"\r\n") if x.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
    end.sock.sendall(end.seal([("\r\n".join(lines) + "\r\n\r\n").encode()]))


def serve(frames: list[bytes], how: dict[str, Any], link: Any, files: tuple[Path, Path] | None) -> None:
    "One client: shake hands, wait for its subscription, encrypt everything, wait for the word, send."
    if how["cpu"] is not None: os.sched_setaffinity(0, {how["cpu"]})
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[0])
    listener = socket.create_server(("127.0.0.1", 0))
    link.send(listener.getsockname()[1])
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end = Sealed(sock, context)
    upgrade(end)
    end.recv()
    group, step = how["group"], how["step"]
    parts = [b"".join(frames[k:k + group]) for k in range(0, len(frames), group)]
    sealed = [end.seal(parts[k:k + max(1, step // group)]) for k in range(0, len(parts), max(1, step // group))]
    link.send("ready")
    while how["hold"] and (more := link.recv()) is not None: sock.sendall(end.seal([more]))
    link.recv() if not how["hold"] else None
    began = time.monotonic()
    for k, block in enumerate(sealed):
        due = began + k * how["every"]
        while how["every"] and time.monotonic() < due: time.sleep(0)
        sock.sendall(block)
    link.send(time.monotonic() - began)
    while sock.recv(65536): pass


class Sender:
    def __init__(self, link: Any, config: AngelFeedConfig) -> None: self.link, self.config, self.is_ready = link, config, False
    def ready(self, feed: AngelFeed) -> bool:
        self.is_ready = self.is_ready or (self.link.poll() and self.link.recv() == "ready")
        return self.is_ready
    def push(self, frame: bytes) -> None: self.link.send(frame)
    def go(self) -> None: self.link.send("go")


@contextmanager
def sender_of(frames: list[bytes], secure: bool, hold: bool = False, group: int = 1, step: int = 300, every: float = 0.0, **over: Any):  # type: ignore[no-untyped-def]
    "A sender pinned to the last processor; this process is pinned to the first."
    context, cpus = multiprocessing.get_context("fork"), sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as tmp:
        files = certificate(Path(tmp)) if secure else None
        ours, theirs = context.Pipe()
        how = {"hold": hold, "group": group, "step": step, "every": every, "cpu": cpus[-1] if len(cpus) > 1 else None}
        p = context.Process(target=serve, args=(frames, how, theirs, files), daemon=True)
        p.start()
        os.sched_setaffinity(0, {cpus[0]})
        url = f"{'wss' if secure else 'ws'}://localhost:{ours.recv()}/smart-stream"
        try:
            config = AngelFeedConfig(url=url, ca_file=files[1] if files else None, batch_size=1000, silence_s=3600, heartbeat_s=300, **over)
            yield Sender(ours, config)
        finally:
            p.kill()
            p.join()
            os.sched_setaffinity(0, set(cpus))


# ---------------------------------------------------------------- stream

def received(n: int, take: Callable[[Rows], object], frames: list[bytes], **how: Any) -> dict[str, float]:
    "Read n packets as a session does."
    with sender_of(frames, True, **how) as s:
        feed = AngelFeed(UNI, s.config, lambda: KEYS)
        feed.rehearse()
        feed.start(time.time_ns())
        while not s.ready(feed): feed.read(0.01)
        s.go()
        got, last, most = 0, 0, 0
        end, began, cpu = time.monotonic() + 120, 0.0, 0.0
        while got + feed.stats.dropped_rows < n and time.monotonic() < end:
            rows = feed.read(0.02)
            if not began: began, cpu = time.perf_counter(), time.thread_time()
            if len(rows):
                take(rows)
                got, most = got + len(rows), max(most, len(rows))
                assert rows["seq"][0] > last and rows["seq"][-1] - rows["seq"][0] >= len(rows) - 1
                last = int(rows["seq"][-1])
        spent, cpu = time.perf_counter() - began, time.thread_time() - cpu
        sent_s = float(s.link.recv())
        feed.close()
        stats = feed.stats
        assert got + stats.dropped_rows == n and last == n and stats.malformed == stats.unknown == 0
    return {"rate": n / spent, "cpu_us": cpu / n * 1e6, "dropped": stats.dropped_rows, "most": most, "sent_rate": n / sent_s}


def sdk_rate(frames: list[bytes]) -> tuple[float, float]:
    "Packets/s and CPU microseconds a packet of the SDK's own socket class, its thread on our processor."
    sdk_decoder()
    from SmartApi.smartWebSocketV2 import SmartWebSocketV2
    n = len(frames)
    with sender_of(frames, True) as s:
        class Client(SmartWebSocketV2):  # type: ignore[misc]
            ROOT_URI = s.config.url
            def __init__(self) -> None:
                self.auth_token, self.api_key, self.client_code, self.feed_token = "j", "k", "c", "f"
                self.input_request_dict, self.wsapp, self.seen, self.begun, self.over = {}, None, 0, (0.0, 0.0), (0.0, 0.0)
                self.MAX_RETRY_ATTEMPT = self.current_retry_attempt = 0
            def on_data(self, ws: Any, message: Any) -> None:
                self.seen += 1
                if self.seen == 1: self.begun = time.perf_counter(), time.thread_time()
                if self.seen == n: self.over = time.perf_counter(), time.thread_time()
            def on_open(self, ws: Any) -> None: self.subscribe("a", 3, [{"exchangeType": 1, "tokens": [i.token for i in UNI.instruments]}])
        c = Client()
        threading.Thread(target=c.connect, daemon=True).start()
        while not s.ready(None): time.sleep(0.01)
        s.go()
        end = time.monotonic() + 120
        while c.seen < n and time.monotonic() < end: time.sleep(0.02)
        assert c.seen == n
    return n / (c.over[0] - c.begun[0]), (c.over[1] - c.begun[1]) / n * 1e6


def stream() -> None:
    from markets import market

    from scalp_nb.trader.config import load_config
    from scalp_nb.trader.events import Depth, Started
    from scalp_nb.trader.runner import Memory
    from scalp_nb.trader.setup import RunConfig, paper_run
    print(f"packets/s over TLS on loopback, {TOKENS} tokens; sender on the other processor; load average {os.getloadavg()[0]:.1f}")
    few = many(20_000)
    sdk = statistics.median(sdk_rate(few)[0] for _ in range(3))
    print(f"  baseline: SDK SmartWebSocketV2                         {sdk:12,.0f}/s", flush=True)
    rows = quiet_market(2000)
    frames = many(300_000)

    def with_trader() -> Callable[[Rows], object]:
        r = paper_run(load_config(RunConfig, None, {}), market(rows, UNI), Memory())
        r.trader.handle(Started(int(rows["recv"][0]), r.broker.state(int(rows["recv"][0]))))
        return lambda block: r.trader.handle(Depth(block))

    all_of_it = {"behind_s": 60.0}  # the sender always has more: without this the feed would rightly say that it is behind
    for name, how, take in (("as fast as it goes, a record a packet, rows only", all_of_it, None),
                            ("the same, 40 packets a record", all_of_it | {"group": 40}, None),
                            ("a record a packet, rows into the Trader", all_of_it, with_trader)):
        found = [received(len(frames), take() if take else len, frames, **how) for _ in range(3)]
        shown(name, found, sdk)
    paced = many(600_000)
    for name, take in (("paced at 300,000/s, rows only", None), ("paced at 300,000/s, rows into the Trader", with_trader)):
        shown(name, [received(len(paced), take() if take else len, paced, step=300, every=0.001) for _ in range(3)], sdk)


def shown(name: str, found: list[dict[str, float]], sdk: float) -> None:
    f = {k: statistics.median(x[k] for x in found) for k in found[0]}
    print(f"  {name:54} {f['rate']:12,.0f}/s  {f['rate'] / sdk:5.1f} x   {f['cpu_us']:5.2f} us of CPU each   dropped {f['dropped']:,.0f}"
          f"   largest block {f['most']:,.0f}   sent at {f['sent_rate']:,.0f}/s", flush=True)


def flood() -> None:
    "A reader that takes 20 ms over each block."
    frames = many(400_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = received(len(frames), lambda rows: time.sleep(0.02), frames, keep_rows=4096)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"flood: {len(frames):,} packets, a reader busy for 20 ms after each block: {found['rate']:,.0f}/s taken, {found['dropped']:,.0f} gave way "
          f"to later rows, largest block {found['most']:,.0f}, memory grew by {grown:.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parts = {"decode": decode, "decision": decision, "stream": stream, "flood": flood}
    parser.add_argument("part", nargs="*", choices=[*parts, []])
    for name in parser.parse_args().part or parts: parts[name]()


if __name__ == "__main__": main()
