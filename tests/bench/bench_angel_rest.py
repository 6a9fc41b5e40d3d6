"""An order's way to Angel One over TLS on loopback: ours (one pooled session), the SDK as it is (a connection for each call), requests, httpx.

python tests/bench/bench_angel_rest.py
"""
from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import requests

from scalp_nb.broker.angel_sdk import AngelConfig, AngelLogin, AngelSession, contained
from scalp_nb.practice.serving import make_certificate

LOGIN = AngelLogin("key", "C1", "1234", "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP")
BODY = {"variety": "NORMAL", "tradingsymbol": "SBIN-EQ", "symboltoken": "3045", "transactiontype": "BUY", "exchange": "NSE", "ordertype": "LIMIT",
        "producttype": "INTRADAY", "duration": "DAY", "price": "194.05", "triggerprice": "0", "quantity": "10", "ordertag": "0123456789abcdef012"}
ANSWERS = {"loginByPassword": {"jwtToken": "j", "refreshToken": "r", "feedToken": "f"}, "placeOrder": {"orderid": "1", "uniqueorderid": "u"}}
PATH = "/rest/secure/angelbroking/order/v1/placeOrder"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True
    def do_GET(self) -> None: self.do_POST()
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = ANSWERS.get(self.path.rsplit("/", 1)[1], {"clientcode": "C1"})
        out = json.dumps({"status": True, "message": "SUCCESS", "errorcode": "", "data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)
    def log_message(self, *args: Any) -> None: return None


def serve(pem: Path, told: Any) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    told.send(server.server_port)
    server.serve_forever()


def as_it_is(url: str) -> Any:
    "The SDK with the real requests: no pool, a connection for each call."
    def no_network(*_: Any, **__: Any) -> None: raise requests.ConnectionError("not here")
    line: Any = SimpleNamespace(request=requests.request, get=no_network, Session=requests.Session, adapters=requests.adapters,
                                packages=SimpleNamespace(urllib3=SimpleNamespace(disable_warnings=lambda: None)))
    return contained(line)(api_key="key", access_token="j", root=url)


def seconds(fn: Callable[[], object]) -> float:
    t = time.perf_counter()
    fn()
    return time.perf_counter() - t


def main(n: int = 200) -> None:
    folder = Path(tempfile.mkdtemp())
    ca = make_certificate(folder)
    ours_end, theirs = multiprocessing.get_context("fork").Pipe()
    p = multiprocessing.get_context("fork").Process(target=serve, args=(folder / "server.pem", theirs), daemon=True)
    p.start()
    url = f"https://127.0.0.1:{ours_end.recv()}"
    os.environ["REQUESTS_CA_BUNDLE"] = str(ca)
    session = AngelSession(AngelConfig(url=url, updates_url="ws://127.0.0.1:1", ca_file=ca), LOGIN)
    session.open()
    sdk, plain, fast = as_it_is(url), requests.Session(), httpx.Client(verify=ssl.create_default_context(cafile=ca))
    ways: dict[str, Callable[[], Any]] = {
        "ours": lambda: session.ask("placeOrderFullResponse", BODY, repeat=False)["orderid"],
        "SDK as it is": lambda: sdk.placeOrderFullResponse(BODY)["data"]["orderid"],
        "requests, pooled": lambda: plain.post(url + PATH, json=BODY, timeout=5).json()["data"]["orderid"],
        "httpx, pooled": lambda: fast.post(url + PATH, json=BODY).json()["data"]["orderid"]}
    took: dict[str, list[float]] = {k: [] for k in ways}
    for k, way in ways.items(): assert way() == "1", k
    for _ in range(n):   # in turn, so that a busy machine is busy for all of them
        for k, way in ways.items(): took[k].append(seconds(way))
    mid = {k: statistics.median(v) * 1e3 for k, v in took.items()}
    for k, v in mid.items():
        print(f"order submit over TLS, median of {n}: {k:17s} {v:6.2f} ms, {mid['SDK as it is'] / v:5.1f} times as fast as the SDK")
    p.terminate()


if __name__ == "__main__": main()
