"""Sessions at the Alpaca practice venue while its seeded fault script runs; see `fault_runs.py`.

    python tests/alpaca_faults.py --seeds 0:1000     # a range, one after another
    python tests/alpaca_faults.py --seed 17 -v       # one again, with its faults and what was found
    python tests/alpaca_faults.py --crypto --seeds 0:20   # crypto pairs: five levels, fractions, fees in what is bought"""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest import mock

import fault_runs
import numpy as np
from alpaca_live import venue
from fault_runs import LASTS, MORE, READ_S, SECOND, STALE_MS, House, Placed, after_a_minute, drawn, leaning, walled

from scalp_nb.broker import alpaca as broker_alpaca
from scalp_nb.feed import alpaca as feed_alpaca
from scalp_nb.practice import alpaca_wire
from scalp_nb.practice.alpaca import PracticeServer
from scalp_nb.practice.faults import ALPACA_KINDS, ALPACA_MORE, Fault, random_script
from scalp_nb.practice.venue import Tape, walk_tape
from scalp_nb.trader.config import load_config
from scalp_nb.trader.setup import RunConfig


def tape_of(seed: int) -> Tape:
    "A walk of three symbols whose displayed sizes lean to one side for a while."
    tape = walk_tape(tuple("XYZ"), LASTS + MORE + 60, seed + 1)
    rows, lean = tape.rows.copy(), leaning(tape, seed)
    rows["bid_qty"][:, 0], rows["ask_qty"][:, 0] = np.round(1000 * lean), np.round(1000 * (1 - lean))
    return after_a_minute(tape, rows)


def script_of(seed: int) -> tuple[Fault, ...]:
    "The first thousand scripts stay what they were; later ones draw from every kind."
    return walled(random_script(seed, LASTS, 3 + int(drawn(seed).integers(0, 7)), ALPACA_KINDS if seed < 1000 else ALPACA_KINDS + ALPACA_MORE))


def config_of(seed: int, tape: Tape, **over: Any) -> RunConfig:
    "The pressure scalper on one level, quick to enter and to leave; what rests at the venue differs by seed."
    end = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + LASTS, UTC)
    return load_config(RunConfig, None, {
        "venue.broker": "alpaca_practice", "run.account": "test", "run.seed": seed, "data.symbols": list(tape.universe.symbols), "data.end": end,
        "strategy": {"name": "pressure", "fallback": "displayed", "levels": 1, "confirm_levels": 1, "warmup_rows": 5, "cooldown_s": 2.0,
                     "rest_s": 4.0, "lower": 0.7, "decision_window_ms": 250},
        "sizing": {"mode": "percent", "balance_pct": 0.05}, "exits.mode": ("venue_stop", "oco", "local")[seed % 3], "exits.stop_pct": 0.0006,
        "exits.target_pct": 0.001, "exits.entry_timeout_ms": 15_000, "exits.reprice_ms": 5_000, "exits.time_stop_s": 45.0,
        "risk.max_orders_per_second": 50, "risk.max_trades_per_day": 200, "risk.max_consecutive_losses": 100, "risk.avoid_first_minutes": 0,
        "health.max_lag_ms": 20_000, "health.stale_ms": STALE_MS, "health.connection_stale_ms": STALE_MS, "session.drain_timeout_s": 300.0,
        "session.reconcile_s": 30.0,
        "venue.alpaca.account": {"connect_timeout_s": READ_S, "read_timeout_s": READ_S, "settle_s": 0.6, "reconcile_s": 0.09, "position_lag_s": 10.0,
                                 "per_minute": 10_000, "reserve": 5_000, "rest_s": 0.05,
                                 "ping_s": 0.5, "stream_timeout_s": 1.0, "first_wait_s": 0.02, "most_wait_s": 0.1},
        "venue.alpaca.feed": {"batch_gap_s": 0.0, "connect_timeout_s": 1.0, "silence_s": 0.15, "ping_s": 0.5, "first_wait_s": 0.02,
                              "most_wait_s": 0.1, "busy_wait_s": 0.05, "poll_delay_s": 0.0}, **over})


def ns(text: str | None) -> int:
    "A time as Alpaca writes it."
    if not text: return 0
    whole, _, frac = text.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp()) * SECOND + int(frac.ljust(9, "0")[:9] or 0)


def ended(o: dict[str, Any]) -> int:
    "When the venue was done with an order."
    return min((ns(o[k]) for k in ("filled_at", "canceled_at", "expired_at", "failed_at") if o.get(k)), default=2**62)


def placed(server: PracticeServer) -> list[Placed]:
    "The venue's orders."
    def one(o: dict[str, Any]) -> Placed:
        return Placed(o["client_order_id"], o["symbol"], ns(o["submitted_at"]), ended(o), o["status"] == "rejected",
                      ended(o) == 2**62 and o["status"] not in ("rejected", "replaced"))
    return [one(o) for o in server.get("truth")["orders"]]


@contextlib.contextmanager
def arrivals(told: Callable[[str, Decimal | None], None]) -> Iterator[None]:
    "Hear of orders as they arrive."
    dispatch = alpaca_wire.dispatch
    def arrived(api: Any, ask: Any) -> Any:
        if ask.method == "POST" and ask.path == "/v2/orders": told(str(ask.body.get("client_order_id")), None)
        return dispatch(api, ask)
    with mock.patch.object(alpaca_wire, "dispatch", arrived): yield


HOUSE = House("tests/alpaca_faults.py", (feed_alpaca, "AlpacaFeed"), (broker_alpaca, "AlpacaBroker"), lambda b: b.busy,
              lambda b: bool(b._since), arrivals, venue, {"rate_limit": 10_000, "zombie_s": 20.0}, placed, (b"practice-secret",),
              tape_of, config_of, script_of)




def pairs_of(seed: int) -> Tape:
    "The same walk as three crypto pairs with five levels a side."
    tape = walk_tape(("XXX/USD", "YYY/USD", "ZZZ/USD"), LASTS + MORE + 60, seed + 1, venue="CRYPTO")
    rows, lean = tape.rows.copy(), leaning(tape, seed)
    rows["bid_qty"], rows["ask_qty"] = np.round(250.5 * lean, 2)[:, None], np.round(250.5 * (1 - lean), 2)[:, None]
    return after_a_minute(tape, rows)


def crypto_config_of(seed: int, tape: Tape, **over: Any) -> RunConfig:
    "The five-level scalper without its fallback."
    rule = {"name": "pressure", "warmup_rows": 5, "cooldown_s": 2.0, "rest_s": 4.0, "decision_window_ms": 250}
    return config_of(seed, tape, **{"strategy": rule, "exits.mode": ("venue_stop", "local")[seed % 2], **over})


CRYPTO = dataclasses.replace(HOUSE, script="tests/alpaca_faults.py --crypto", tape=pairs_of, config=crypto_config_of)


if __name__ == "__main__":
    for s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_DFL)
    house = CRYPTO if "--crypto" in sys.argv else HOUSE
    sys.argv = [a for a in sys.argv if a != "--crypto"]
    sys.exit(fault_runs.main(house))
