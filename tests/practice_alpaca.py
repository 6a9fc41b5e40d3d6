"""What the tests of the Alpaca practice venue share: the SDK's clients, Alpaca's schemas."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from realdata import data_root

from scalp_nb.practice.alpaca import PracticeServer


def trading_client(server: PracticeServer, raw: bool = False, **keys: str) -> Any:
    client = pytest.importorskip("alpaca.trading.client").TradingClient(keys.get("key", server.terms.key), keys.get("secret", server.terms.secret),
                                                                       url_override=server.url, raw_data=raw)
    client._retry_wait = 0.01
    return client


@contextmanager
def running(stream: Any) -> Iterator[None]:
    "An SDK stream in a thread of its own; it ends by itself a little later."
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    until(lambda: stream._running)
    try: yield
    finally: asyncio.run_coroutine_threadsafe(stream.stop_ws(), stream._loop)


def until(what: Callable[[], Any], seconds: float = 15.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (got := what()): return got
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds:g} s")


def schemas(name: str) -> dict[str, Any]:
    "Alpaca's published schema file, or a skip that says why."
    import yaml
    root = data_root()
    if root is None or not (path := root.parent / "venues" / "alpaca_openapi" / f"{name}.yaml").exists():
        pytest.skip("Alpaca's published schemas absent: put them at ../shared/venues/alpaca_openapi")
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
