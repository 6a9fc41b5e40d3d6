"""Angel One's market stream against the practice venue: the venue's own log-in, certificate, packets and faults."""
from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from practice_angel import totp
from test_feed_angel import Drive

from scalp_nb.feed.angel_one import AngelFeed, AngelFeedConfig
from scalp_nb.feed.angel_wire import AngelTokens
from scalp_nb.feed.depth import FLAG_GAP
from scalp_nb.feed.packet import FeedError
from scalp_nb.practice.angel_one import AngelServer
from scalp_nb.practice.angel_orders import AngelTerms
from scalp_nb.practice.faults import read_script
from scalp_nb.practice.venue import walk_tape

pytest.importorskip("pyotp")
TAPE = walk_tape(("INFY", "TCS"), 900, venue="NSE")


def tokens(server: AngelServer) -> AngelTokens:
    "A new session."
    t = server.terms
    with httpx.Client(verify=ssl.create_default_context(cafile=server.ca_file)) as client:
        got = client.post(f"{server.url}/rest/auth/angelbroking/user/v1/loginByPassword", headers={"X-PrivateKey": t.api_key},
                          json={"clientcode": t.client_code, "password": t.pin, "totp": totp(server)}).json()
    if got.get("status") is not True: raise FeedError("log-in at the practice venue", got.get("message"))
    return AngelTokens(t.api_key, t.client_code, got["data"]["jwtToken"].removeprefix("Bearer "), got["data"]["feedToken"])


@contextmanager
def live(*script: dict[str, Any], source: Callable[[AngelServer], Callable[[], AngelTokens]] = lambda s: lambda: tokens(s), **over: Any
         ) -> Iterator[tuple[AngelServer, Drive]]:
    "The venue stands still between `step`s; over TLS."
    with AngelServer(TAPE, AngelTerms(rate_limits=False), 0.0, script=read_script(script), tls=True) as server:
        server.step(3)
        cfg = AngelFeedConfig(url=server.stream_url, ca_file=server.ca_file, **{"first_wait_s": 0.05, "behind_s": 60.0, **over})
        clock = server.api.desk.clock.now
        feed = AngelFeed(server.tape.universe, cfg, source(server), clock)
        try:
            feed.start(clock())
            yield server, Drive(feed)
        finally: feed.close()


def test_every_row_of_the_venues_tape_arrives_as_it_is() -> None:
    with live() as (server, d):
        d.until(lambda: d.n >= 2)  # the latest of each, on subscription
        first = d.n
        server.step(120)
        want = server.tape.rows[server.tape.rows["recv"] <= server.api.desk.clock.now()]
        want = want[np.searchsorted(want["recv"], server.tape.rows["recv"][0] + 3 * 10**9, side="right"):]
        d.until(lambda: d.n >= first + len(want))
        got = d.all[first:]
        assert len(got) == len(want) > 50 and d.feed.stats.malformed == d.feed.stats.unknown == 0
        for f in ("sym", "ltp", "volume", "bid_px", "bid_qty", "ask_px", "ask_qty", "total_buy", "total_sell"):
            assert np.array_equal(got[f], want[f], equal_nan=True), f
        assert (np.abs(got["ts"] - want["ts"]) < 10**9).all()


def test_damaged_packets_a_torn_line_and_silence_after_the_tokens_rolled_over() -> None:
    asked: list[AngelTokens] = []
    def source(server: AngelServer) -> Callable[[], AngelTokens]:
        def ask() -> AngelTokens:
            asked.append(tokens(server))
            return asked[-1]
        return ask
    script = ({"fault": "packet_short", "nth": 5}, {"fault": "data_malformed", "nth": 9}, {"fault": "data_disconnect", "nth": 14},
              {"fault": "mute_after_rollover", "at": 120})
    with live(*script, source=source, silence_s=0.5, heartbeat_s=0.1) as (server, d):
        server.step(30)
        d.until(lambda: d.feed.stats.malformed + d.feed.stats.unknown + d.feed.stats.unwanted >= 2 and d.feed.stats.connects >= 2)
        d.until(lambda: d.kinds.count("up") >= 2)
        def stepping(done: Callable[[], bool]) -> Callable[[], bool]:
            def turn() -> bool:
                server.step(1)
                return done()
            return turn
        d.until(stepping(lambda: server.api.desk.at > TAPE.rows["recv"][0] + 122 * 10**9), 30)
        n = len(asked)
        d.until(lambda: "open but mute" in d.told("down"))
        mark = d.n
        d.until(stepping(lambda: len(asked) > n and d.n > mark), 30)
        assert asked[-1] != asked[n - 1] and d.all["flags"][mark] & FLAG_GAP and d.kinds.count("up") >= 3
