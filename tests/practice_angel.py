"""What the tests of the Angel One practice venue share: the SDK's three classes, contained, and orders as a client writes them."""

import functools
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from scalp_nb.practice.angel_one import AngelServer


@functools.cache
def sdk() -> Any:
    "The modules of smartapi-python, imported without their network call; skips the calling test where the SDK is absent."
    requests = pytest.importorskip("requests")
    real = requests.get

    def no_network(*_: object, **__: object) -> None:
        raise requests.ConnectionError("the SDK asks api.ipify.org at import; not here")

    requests.get = no_network
    try:
        pytest.importorskip("SmartApi.smartConnect", reason="smartapi-python absent: pip install scalp_nb[angel]")
        from SmartApi import smartConnect, smartWebSocketOrderUpdate, smartWebSocketV2
    finally: requests.get = real
    smartConnect.get = real
    return smartConnect.SmartConnect, smartWebSocketV2.SmartWebSocketV2, smartWebSocketOrderUpdate.SmartWebSocketOrderUpdate


@contextmanager
def contained(server: AngelServer) -> Iterator[None]:
    "A folder for the SDK's logs, and the venue's certificate where there is one."
    here, kept = os.getcwd(), os.environ.get("REQUESTS_CA_BUNDLE")
    with tempfile.TemporaryDirectory() as tmp:
        os.chdir(tmp)
        if server.ca_file: os.environ["REQUESTS_CA_BUNDLE"] = str(server.ca_file)
        try: yield
        finally:
            os.chdir(here)
            _close_logs()
            os.environ.pop("REQUESTS_CA_BUNDLE", None)
            if kept: os.environ["REQUESTS_CA_BUNDLE"] = kept


def _close_logs() -> None:
    "The SDK points logzero's global logger into the folder that is about to go."
    logzero = sys.modules.get("logzero")
    if logzero is not None: logzero.logfile(None)


def totp(server: AngelServer) -> str:
    pyotp = pytest.importorskip("pyotp")
    return str(pyotp.TOTP(server.terms.totp_secret).now())


def connect(server: AngelServer, enter: bool = True) -> Any:
    "A `SmartConnect` that knows the venue, logged in."
    c = sdk()[0](api_key=server.terms.api_key, root=server.url, timeout=10)
    c._rootUrl = server.url   # the one method that does not look at root
    if enter:
        got = c.generateSession(server.terms.client_code, server.terms.pin, totp(server))
        assert got["status"] is True, got
        c.bearer = got["data"]["jwtToken"]
    return c


def order(symbol: str = "INFY", side: str = "BUY", qty: int = 10, price: float | str = "95", **more: Any) -> dict[str, Any]:
    token = {"INFY": "1001", "TCS": "1002"}[symbol]
    return {"variety": "NORMAL", "tradingsymbol": f"{symbol}-EQ", "symboltoken": token, "transactiontype": side, "exchange": "NSE",
            "ordertype": "LIMIT", "producttype": "INTRADAY", "duration": "DAY", "price": str(price), "quantity": str(qty), **more}


@contextmanager
def market_socket(server: AngelServer, c: Any, tokens: list[str], mode: int = 3) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    "The SDK's market socket in a thread, subscribed; what it decodes."
    ws, got = sdk()[1](c.bearer, server.terms.api_key, server.terms.client_code, c.feed_token, max_retry_attempt=0), list[dict[str, Any]]()
    ws.ROOT_URI, ws.input_request_dict = server.stream_url, {}
    ws.on_open = lambda w: ws.subscribe("test", mode, [{"exchangeType": 1, "tokens": list(tokens)}])
    ws.on_data = lambda w, data: got.append(data)
    ws.on_error = lambda *a: None
    with _running(ws): yield ws, got


@contextmanager
def order_socket(server: AngelServer, c: Any) -> Iterator[tuple[Any, list[Any]]]:
    "The SDK's order socket in a thread; what it hears."
    ws, got = sdk()[2](c.bearer, server.terms.api_key, server.terms.client_code, c.feed_token), list[Any]()
    ws.WEBSOCKET_URI, ws.MAX_CONNECTION_RETRY_ATTEMPTS = server.updates_url, 0
    ws.on_message = lambda w, m: got.append(m)
    with _running(ws): yield ws, got


@contextmanager
def _running(ws: Any) -> Iterator[None]:
    thread = threading.Thread(target=ws.connect, daemon=True)
    thread.start()
    until(lambda: ws.wsapp and ws.wsapp.sock and ws.wsapp.sock.connected)
    try: yield
    finally:
        ws.wsapp.keep_running = False
        with suppress(OSError, AttributeError): ws.wsapp.sock.sock.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def until(what: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (got := what()): return got
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds:g} s")


def fixture(name: str) -> Path:
    "A recorded answer, or a skip that says why."
    from realdata import realdata
    return realdata(f"fixtures/angel/{name}")
