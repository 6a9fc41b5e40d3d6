"""Alpaca's stream: our decoder and client against alpaca-py's parsed path, and an order's way out against plain HTTP, in the same run.

python tests/bench/bench_alpaca.py
"""
from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import statistics
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from common import medians  # noqa: E402

warnings.filterwarnings("ignore", category=DeprecationWarning)
logging.disable(logging.ERROR)

from scalp_nb.feed.alpaca import AlpacaFeed, AlpacaFeedConfig  # noqa: E402
from scalp_nb.feed.alpaca_wire import Decoder  # noqa: E402
from scalp_nb.feed.instrument import Instrument, Universe  # noqa: E402

SYMBOLS = ("AAPL", "MSFT", "SPY", "AMD", "NVDA", "TSLA", "F", "BAC")
UNI = Universe("bench", tuple(Instrument(s, "US", currency="USD") for s in SYMBOLS))
BASE = 1_795_100_400_000_000_000


def quote(k: int) -> dict[str, Any]:
    return {"T": "q", "S": SYMBOLS[k % 8], "bx": "V", "bp": 100 + k % 90 / 100, "bs": 100, "ax": "Q", "ap": 100.05 + k % 90 / 100, "as": 200,
            "c": ["R"], "t": msgpack.Timestamp.from_unix_nano(BASE + k * 1000), "z": "C"}


def frames(n: int, per: int) -> list[bytes]: return [msgpack.packb([quote(k + j) for j in range(per)]) for k in range(0, n, per)]


def wire(body: bytes) -> bytes:
    "A server's frame."
    return (bytes([0x82, len(body)]) if len(body) < 126 else struct.pack(">BBH", 0x82, 126, len(body))) + body


def decode_sdk(per: int, n: int = 4000) -> float:
    "Microseconds a quote of the SDK's parsed path: unpack, and dispatch to a handler that does nothing."
    from alpaca.data.live.stock import StockDataStream
    stream, found = StockDataStream("k", "s"), frames(n, per)
    async def handler(q: Any) -> None: return None
    for s in SYMBOLS: stream._handlers["quotes"][s] = handler
    async def dispatch() -> None:
        for f in found:
            for m in msgpack.unpackb(f): await stream._dispatch(m)
    return medians(lambda: asyncio.run(dispatch()))[0] / n * 1e6


def decode_ours(per: int, together: int, n: int = 4000) -> float:
    "Microseconds a quote of ours: websocket frames in a receive buffer, `together` of them a receipt, to depth rows; one call a receipt."
    found = [wire(f) for f in frames(n, per)]
    receipts = [b"".join(found[k:k + together]) for k in range(0, len(found), together)]
    d, buffer = Decoder(UNI, 32_768), np.frombuffer(b"".join(receipts), np.uint8)
    at = [int(buffer.ctypes.data) + x for x in np.cumsum([0] + [len(r) for r in receipts[:-1]]).tolist()]
    sized = list(zip(at, map(len, receipts), strict=True))
    def ours() -> None:
        walk = d.walk
        for addr, size in sized: walk(addr, size, BASE)
        assert len(d.take_rows()) == n
    return medians(ours)[0] / n * 1e6


def serve_quotes(found: list[bytes], ready: Any) -> tuple[Any, int]:
    "A server in a process of its own, which logs in, waits for the subscription, and sends the frames."
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    p = context.Process(target=_serve, args=(found, ready, theirs), daemon=True)
    p.start()
    return p, ours.recv()


def _serve(found: list[bytes], ready: Any, port: Any) -> None:
    from websockets.sync.server import ServerConnection, serve
    def handler(ws: ServerConnection) -> None:
        ws.send(msgpack.packb([{"T": "success", "msg": "connected"}]))
        ws.recv()
        ws.send(msgpack.packb([{"T": "success", "msg": "authenticated"}]))
        asked = ws.recv()
        ws.send(msgpack.packb([{"T": "subscription", "quotes": list(SYMBOLS)}]))
        assert asked
        ready.wait()
        for f in found: ws.send(f)
        for _ in ws: pass
    server = serve(handler, "127.0.0.1", 0, compression=None)
    port.send(server.socket.getsockname()[1])
    server.serve_forever()


def end_to_end_sdk(found: list[bytes], n: int) -> float:
    from alpaca.data.live.stock import StockDataStream
    ready = multiprocessing.get_context("fork").Event()
    server, port = serve_quotes(found, ready)
    stream, seen, cpu = StockDataStream("k", "s", url_override=f"ws://127.0.0.1:{port}/v2/iex"), [0], [0.0]
    async def handler(q: Any) -> None:
        seen[0] += 1
        if seen[0] == 1: cpu[0] = -time.thread_time()
        if seen[0] == n:
            cpu[0] += time.thread_time()
            stream._should_run = False
            stream._stop_stream_queue.put_nowait({"should_stop": True})
    stream.subscribe_quotes(handler, *SYMBOLS)
    t = threading.Thread(target=stream.run, daemon=True)
    t.start()
    time.sleep(1.0)
    ready.set()
    end = time.monotonic() + 60
    while seen[0] < n and time.monotonic() < end: time.sleep(0.01)
    server.kill()
    assert seen[0] == n
    return cpu[0] / n * 1e6


def end_to_end_ours(found: list[bytes], n: int) -> float:
    ready = multiprocessing.get_context("fork").Event()
    server, port = serve_quotes(found, ready)
    feed = AlpacaFeed(UNI, AlpacaFeedConfig(source="test", stream_url=f"ws://127.0.0.1:{port}/v2/iex", channels=("quotes",)), "k", "s")
    feed.start(0)
    while not any(x.kind == "subscribed" for x in feed.news()): feed.read(0.05)
    ready.set()
    began = time.thread_time()
    got, end = 0, time.monotonic() + 60
    while got < n and time.monotonic() < end: got += len(feed.read(0.05))
    spent = time.thread_time() - began
    feed.close()
    server.kill()
    assert got == n
    return spent / n * 1e6


def submits(n: int = 150) -> tuple[float, float]:
    "Median milliseconds: POST by a plain requests session, POST by our client; alternating, one keep-alive server."
    import http.server

    import requests

    from scalp_nb.broker.alpaca import AlpacaConfig, ask, make_client
    answer = json.dumps({"id": "x", "client_order_id": "c", "status": "new", "symbol": "AAPL", "qty": "1"}).encode()
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        def log_message(self, *args: Any) -> None: return None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    client, plain = make_client(AlpacaConfig(url=url), "k", "s"), requests.Session()
    body = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "limit", "time_in_force": "day", "limit_price": "100.00", "client_order_id": "c"}
    def clock(f: Callable[[], object]) -> float:
        t = time.perf_counter()
        f()
        return time.perf_counter() - t
    a, b = [], []
    for _ in range(n):
        a.append(clock(lambda: plain.post(url + "/v2/orders", json=body, timeout=5).json()))
        b.append(clock(lambda: ask(client, "post", "/orders", body)))
    server.shutdown()
    return statistics.median(a) * 1e3, statistics.median(b) * 1e3


def main() -> None:
    for per, together in ((1, 1), (1, 20), (20, 1)):
        sdk, ours = decode_sdk(per), decode_ours(per, together)
        print(f"decode, {per:2d} quotes a frame, {together:2d} frames a receipt: alpaca-py parsed {sdk:6.2f} us, ours {ours:6.3f} us a quote, "
              f"ratio {sdk / ours:5.1f}")
    for per, n in ((1, 4000), (20, 20_000)):
        found = frames(n, per)
        sdk = statistics.median(end_to_end_sdk(found, n) for _ in range(3))
        ours = statistics.median(end_to_end_ours(found, n) for _ in range(3))
        print(f"loopback CPU of the reading thread, {per:2d} a frame: alpaca-py {sdk:6.2f} us, ours {ours:6.2f} us a quote, ratio {sdk / ours:5.1f}")
    plain, ours = submits()
    print(f"order submit, median: plain requests {plain:.2f} ms, ours {ours:.2f} ms, ratio {ours / plain:.2f}")


if __name__ == "__main__": main()
