"""What the tests of live sessions at the Angel One practice venue share: a market in Indian hours, a venue, a configuration."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
from scalp_nb.practice.angel_one import AngelServer

from scalp_nb.feed.calendar import session_for
from scalp_nb.feed.depth import empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.synthetic import SyntheticConfig, SyntheticSymbol, synthetic_market
from scalp_nb.practice.angel_orders import AngelTerms, Ticket
from scalp_nb.practice.venue import Tape, make_tape
from scalp_nb.trader.config import load_config
from scalp_nb.trader.setup import RunConfig

DAY = date(2026, 11, 20)
SECRETS = ("ANGEL_API_KEY", "ANGEL_CLIENT_CODE", "ANGEL_PIN", "ANGEL_TOTP_SECRET")
NAMES = (*SECRETS, "ANGEL_REST_URL", "ANGEL_STREAM_URL", "ANGEL_UPDATES_URL", "ANGEL_MASTER_URL", "ANGEL_CA_FILE", "SCALP_PRACTICE_URL",
         "SCALP_PRACTICE_TOKEN")


def opens(day: date = DAY) -> int: return session_for("NSE", day).open_ts


def named(n: int) -> list[str]: return [f"S{chr(65 + i // 26)}{chr(65 + i % 26)}" for i in range(n)]


def market(n: int = 3, seconds: int = 1200, seed: int = 1, day: date = DAY, **over: Any) -> Tape:
    "Five levels with frequent episodes of pressure, from 09:15."
    symbols = tuple(SyntheticSymbol(symbol=name, price=Decimal(500 + 40 * i), token=str(1001 + i)) for i, name in enumerate(named(n)))
    rows, uni = synthetic_market(SyntheticConfig(**{"symbols": symbols, "seconds": seconds, "seed": seed, "day": day, "episode_every_s": 60.0,
                                                    "episode_s": 30.0, "edge_bps": 20.0, **over}))
    return make_tape(rows, uni)


def drawn_tape(mid: Any, lean: Any, names: Sequence[str] = (), day: date = DAY, start_s: int = 0, size: float = 2000.0) -> Tape:
    "A market as drawn: mid prices in ticks of 0.05 and buyers' share of everything shown, by second and symbol."
    n, k = mid.shape
    rows, at = empty_depth(n * k), opens(day) + start_s * 10**9
    rows["ts"] = rows["recv"] = at + np.repeat(np.arange(n) * 10**9, k) + np.tile(np.arange(k) * 1_000_000, n)
    rows["sym"], rows["ltq"], rows["volume"] = np.tile(np.arange(k), n), 10, np.repeat(1e6 + 100.0 * np.arange(1, n + 1), k)
    px, share = mid.ravel() * 5, np.broadcast_to(lean, (n, k)).ravel()    # paise
    for level in range(5):
        rows["bid_px"][:, level], rows["ask_px"][:, level] = (px - 5 * level) / 100, (px + 5 * (level + 1)) / 100
        rows["bid_qty"][:, level], rows["ask_qty"][:, level] = np.round(size * share), np.round(size * (1 - share))
        rows["bid_orders"][:, level] = rows["ask_orders"][:, level] = 5
    rows["ltp"], rows["total_buy"], rows["total_sell"] = px / 100, np.round(1e5 * share), np.round(1e5 * (1 - share))
    names = names or named(k)
    uni = Universe("drawn", tuple(Instrument(s, "NSE", str(1001 + j), "INR", tick_table="0.05", derivatives=True) for j, s in enumerate(names)))
    return make_tape(rows, uni)


def environment(server: AngelServer) -> dict[str, str]:
    "What `scalp practice angel` prints."
    t = server.terms
    return {"ANGEL_API_KEY": t.api_key, "ANGEL_CLIENT_CODE": t.client_code, "ANGEL_PIN": t.pin, "ANGEL_TOTP_SECRET": t.totp_secret,
            "ANGEL_REST_URL": server.url, "ANGEL_STREAM_URL": server.stream_url, "ANGEL_UPDATES_URL": server.updates_url,
            "ANGEL_MASTER_URL": server.master_url, "SCALP_PRACTICE_URL": f"{server.url}/practice", "SCALP_PRACTICE_TOKEN": server.token,
            **({"ANGEL_CA_FILE": str(server.ca_file)} if server.ca_file else {})}


@contextmanager
def venue(tape: Tape, speed: float = 60.0, **how: Any) -> Iterator[AngelServer]:
    "A practice venue whose addresses and credentials are in the environment."
    terms = AngelTerms(**{"cash": Decimal(1_000_000), **how.pop("terms", {})})
    kept = {k: os.environ.get(k) for k in NAMES}
    with AngelServer(tape, terms, speed, **how) as server:
        for k in NAMES: os.environ.pop(k, None)
        os.environ.update(environment(server))
        try: yield server
        finally:
            for k, v in kept.items():
                os.environ.pop(k, None)
                if v is not None: os.environ[k] = v


def wire(speed: float) -> dict[str, Any]:
    "Limits that count the venue's seconds, for a clock that runs faster than ours."
    lag = max(5_000, int(2_000 * speed))
    return {"health.max_lag_ms": lag, "health.stale_ms": max(10_000, lag), "health.connection_stale_ms": max(5_000, lag),
            "exits.entry_timeout_ms": max(2_000, int(500 * speed)), "exits.reprice_ms": max(1_000, int(250 * speed)),
            "session.drain_timeout_s": max(20.0, 5.0 * speed), "session.reconcile_s": max(5.0, 1.0 * speed),
            "venue.angel.feed": {"batch_gap_s": 0.0, "silence_s": 5.0, "first_wait_s": 0.05, "most_wait_s": 0.5},
            "venue.angel.account": {"settle_s": max(5.0, 0.3 * speed), "stale_s": max(10.0, 1.0 * speed), "first_wait_s": 0.05, "most_wait_s": 0.5}}


def conf(tape: Tape, speed: float = 60.0, **over: Any) -> RunConfig:
    "The pressure scalper, quick to enter and to leave."
    base = {"venue.broker": "angel_practice", "run.account": "test", "data.symbols": list(tape.universe.symbols),
            "strategy": {"warmup_rows": 5, "cooldown_s": 2.0, "rest_s": 5.0}, "sizing": {"mode": "fixed", "fixed_qty": 7},
            "exits.stop_pct": 0.001, "exits.target_pct": 0.002, "exits.time_stop_s": 60.0, "risk.avoid_first_minutes": 0,
            "risk.max_trades_per_day": 1000, "risk.max_consecutive_losses": 1000, "risk.max_orders_per_second": 8}
    return load_config(RunConfig, None, base | wire(speed) | over)


def tickets(server: AngelServer) -> list[Ticket]:
    "Orders as the venue has them."
    return list(server.api.orders.tickets.values())


def resting(server: AngelServer) -> set[str]:
    "Symbols with a stop at the exchange."
    return {t.symbol for t in tickets(server) if t.status == "trigger pending"}
