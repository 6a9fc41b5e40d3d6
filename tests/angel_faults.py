"""Sessions at the Angel One practice venue while its seeded fault script runs; see `fault_runs.py`.

    python tests/angel_faults.py --seeds 0:1000     # a range, one after another
    python tests/angel_faults.py --seed 17 -v       # one again, with its faults and what was found"""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest import mock

import fault_runs
import numpy as np
from angel_live import DAY, drawn_tape, venue
from fault_runs import LASTS, MORE, READ_S, STALE_MS, House, Placed, Story, drawn, walled

from scalp_nb.broker import angel_one as broker_angel
from scalp_nb.feed import angel_one as feed_angel
from scalp_nb.order.types import TERMINAL
from scalp_nb.practice import angel_wire
from scalp_nb.practice.angel_one import AngelServer
from scalp_nb.practice.faults import ANGEL_KINDS, ANGEL_MORE, Fault, random_script
from scalp_nb.practice.venue import Tape
from scalp_nb.trader.config import load_config
from scalp_nb.trader.setup import RunConfig

START_S = 600   # after the open


def tape_of(seed: int) -> Tape:
    """A walk of three symbols, five levels, whose sizes lean to one side for a while; before it ten minutes of the day are over.
    From seed 1000 on little is shown, so that entries fill in pieces and their stops grow."""
    r, n = drawn(seed), LASTS + MORE
    mid = 10_000 + 800 * np.arange(3) + np.cumsum(np.random.default_rng(seed + 1).integers(-1, 2, (n, 3)), 0)
    lean = np.repeat(r.choice([0.15, 0.5, 0.85], (n // 12 + 1, 3), p=[0.25, 0.5, 0.25]), 12, 0)[:n]
    return drawn_tape(mid, lean, "XYZ", DAY, START_S, 200.0 if seed >= 1000 else 2000.0)


def script_of(seed: int) -> tuple[Fault, ...]:
    "From 1000 on changes of orders are struck as well, each run by three of their faults; the scripts of earlier seeds stay what they were."
    script = random_script(seed, LASTS, 3 + int(drawn(seed).integers(0, 7)), ANGEL_KINDS)
    more = random_script(seed, LASTS, 3, (*ANGEL_MORE, "stale_modify")) if seed >= 1000 else ()
    return walled((*script, *more), {"accept_late": 0.3, "modify_late": 0.3})


def config_of(seed: int, tape: Tape, **over: Any) -> RunConfig:
    """The pressure scalper on five levels, quick to enter and to leave; what rests at the venue and how often an entry is chased differ by seed.
    From 1000 on a stop always rests."""
    grows = seed >= 1000
    end = datetime.fromtimestamp(int(tape.rows["ts"][0]) / 1e9 + LASTS, UTC)
    return load_config(RunConfig, None, {
        "venue.broker": "angel_practice", "run.account": "test", "run.seed": seed, "data.symbols": list(tape.universe.symbols), "data.end": end,
        "strategy": {"name": "pressure", "warmup_rows": 5, "cooldown_s": 2.0, "rest_s": 4.0, "decision_window_ms": 250},
        "sizing": {"mode": "percent", "balance_pct": 0.05}, "exits.mode": ("venue_stop", "oco", "venue_stop" if grows else "local")[seed % 3],
        "exits.stop_pct": 0.0006,
        "exits.target_pct": 0.001, "exits.entry_timeout_ms": 8_000, "exits.entry_chases": seed % 4, "exits.entry_slip_pct": 0.0001,
        "exits.reprice_ms": 5_000, "exits.time_stop_s": 45.0,
        "risk.max_orders_per_second": 50, "risk.max_orders_per_minute": 500, "risk.max_trades_per_day": 200, "risk.max_consecutive_losses": 100,
        "risk.avoid_first_minutes": 0,
        "health.max_lag_ms": 20_000, "health.stale_ms": STALE_MS, "health.connection_stale_ms": STALE_MS, "session.drain_timeout_s": 300.0,
        "session.reconcile_s": 30.0,
        "venue.angel.account": {"connect_timeout_s": READ_S, "read_timeout_s": READ_S, "settle_s": 45.0, "position_lag_s": 12.0, "ping_s": 0.5,
                                "stream_timeout_s": 1.0, "first_wait_s": 0.02, "most_wait_s": 0.1, "relogin_s": 5.0, "totp_once": False},
        "venue.angel.feed": {"batch_gap_s": 0.0, "connect_timeout_s": 1.0, "silence_s": 0.15, "heartbeat_s": 0.5, "pong_s": 0.5, "first_wait_s": 0.02,
                             "most_wait_s": 0.1, "busy_wait_s": 0.05}, **over})


def busy(b: Any) -> bool:
    "Whether something is under way, or an order's fate is open."
    return b._lanes.busy or b._busy or any(k.asked and k.state not in TERMINAL for k in list(b._known.values()))


def begun(b: Any) -> bool:
    "Whether it has begun to log in: from then on it may wait for the venue's time to pass."
    return b.session._used_step >= 0


def placed(server: AngelServer) -> list[Placed]:
    "The venue's orders."
    return [Placed(t.tag, t.symbol, t.created, 2**62 if t.open else t.updated, t.status == "rejected", t.open)
            for t in server.api.orders.tickets.values()]


@contextlib.contextmanager
def arrivals(told: Callable[[str, Decimal | None], None]) -> Iterator[None]:
    "Hear of orders and of their changes as they arrive."
    dispatch = angel_wire.dispatch
    def arrived(api: Any, ask: Any) -> Any:
        if ask.path.endswith("/placeOrder"): told(str(ask.body.get("ordertag")), None)
        if ask.path.endswith("/modifyOrder") and (t := api.orders.tickets.get(ask.body["orderid"])): told(t.tag, Decimal(ask.body["quantity"]))
        return dispatch(api, ask)
    with mock.patch.object(angel_wire, "dispatch", arrived): yield


def shut_out(s: Story) -> bool:
    "AG7002: this machine's address is not registered; nothing more is sent, positions keep the stops they have, and a person has to act."
    return any("AG7002" in str(r.data) for r in s.of("note:health"))


HOUSE = House("tests/angel_faults.py", (feed_angel, "AngelFeed"), (broker_angel, "AngelBroker"), busy, begun,
              arrivals, venue, {}, placed, (b"PRACTICE2PRACTICE3", b"eyJ"), tape_of, config_of, script_of, shut_out)


if __name__ == "__main__":
    for s in (signal.SIGTERM, signal.SIGINT): signal.signal(s, signal.SIG_DFL)
    sys.exit(fault_runs.main(HOUSE))
