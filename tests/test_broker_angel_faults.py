"""The Angel One broker under seeded faults: random orders, cancels and questions, and the venue's truth at the end."""
from __future__ import annotations

import random
import time
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyotp")

from broker_line import wait_until  # noqa: E402
from test_broker_angel import TERMS, config, login_of  # noqa: E402

from scalp_nb.broker.angel_one import AngelBroker  # noqa: E402
from scalp_nb.broker.base import BrokerError, BrokerState  # noqa: E402
from scalp_nb.order.machine import apply_sent, step  # noqa: E402
from scalp_nb.order.types import Intent, Order, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind  # noqa: E402
from scalp_nb.practice.angel_one import AngelServer  # noqa: E402
from scalp_nb.practice.faults import ANGEL_KINDS, random_script  # noqa: E402
from scalp_nb.practice.venue import walk_tape  # noqa: E402
from scalp_nb.trader.streaming import venue_clock  # noqa: E402

D, S = Decimal, 10**9
KINDS = tuple(k for k in ANGEL_KINDS if not k.startswith("data") and k not in ("mute_after_rollover", "packet_short", "halt", "ip_refused"))


class Client:
    "Sends at random, believes evidence as the order machine does."
    def __init__(self, server: AngelServer, seed: int, speed: float) -> None:
        self.clock = venue_clock(server.api.desk.clock.now(), speed).now
        self.uni, self.rng, self.seed = server.tape.universe, random.Random(seed), seed
        rows = server.tape.rows
        self.px = [float(rows["ltp"][rows["sym"] == s][0]) for s in range(len(self.uni))]
        cfg = config(server.url, read_timeout_s=0.3, settle_s=8.0, stale_s=30.0, relogin_s=5.0, reserve_per_s=1, fills_lag_s=8.0)
        self.b = AngelBroker(self.uni, cfg, login_of(server.terms), self.clock)
        self.orders: dict[str, Order] = {}
        self.fills: list[Update] = []
        self.asked: dict[str, float] = {}

    def connect(self) -> bool:
        with suppress(BrokerError):
            self.b.connect(self.clock())
            return True
        return False

    def poll(self) -> None:
        for u in self.b.poll(self.clock()):
            self.orders[u.client_id] = step(self.orders[u.client_id], u)[0]
            if u.kind is UpdateKind.FILL: self.fills.append(u)

    def act(self) -> None:
        dice, now, known = self.rng.random(), self.clock(), list(self.orders)
        if dice < 0.25:
            n, sym = len(known) + 1, self.rng.randrange(len(self.uni))
            limit = D(str(round(self.px[sym] * (1 + self.rng.choice((-.004, -.001, 0, .001, .004))), 1)))
            i = Intent(f"f{self.seed}x{n:04d}", now, n, "a", "s", self.uni[sym].symbol, sym, self.rng.choice(list(Side)),
                       self.rng.choice((Purpose.ENTRY, Purpose.EXIT)), D(self.rng.randrange(1, 40)), OrderType.LIMIT, limit, None, Tif.DAY, limit)
            self.orders[i.id] = apply_sent(Order(i, OrderState.INTENT), now)
            self.b.submit(i, now)
        elif dice < 0.45 and known: self.b.cancel(self.rng.choice(known), now)
        elif dice < 0.55 and known: self.b.query(self.rng.choice(known), now)

    def settled(self) -> bool:
        "Ask about what is open until nothing is."
        self.poll()
        live = [o for o in self.orders.values() if o.live]
        for o in live:
            if time.monotonic() - self.asked.get(o.intent.id, 0) < 1: continue
            self.asked[o.intent.id] = time.monotonic()
            (self.b.cancel if o.state in (OrderState.OPEN, OrderState.PARTIAL) else self.b.query)(o.intent.id, self.clock())
        return not live

    def picture(self) -> BrokerState:
        for _ in range(4):
            with suppress(BrokerError): return self.b.state(self.clock())
        return self.b.state(self.clock())


def play(seed: int, folder: Path, speed: float = 15.0, lasts: float = 60.0) -> None:
    "One session; raises where what we believe is not what happened."
    terms = TERMS.model_copy(update={"cash": D(10_000_000), "partial_prob": 0.3})
    script = random_script(seed, lasts, kinds=KINDS)
    with AngelServer(walk_tape(("INFY", "TCS"), 400, venue="NSE", seed=seed), terms, speed=speed, script=script, seed=seed, state=folder) as server:
        c = Client(server, seed, speed)
        wait_until(c.connect)
        until = c.clock() + int(lasts * S)
        while c.clock() < until:
            c.poll()
            c.act()
            time.sleep(0.01)
        wait_until(c.settled, 40)
        time.sleep(0.2)
        c.poll()
        judge(c, server.get("truth")["orders"], c.picture())
        c.b.close(c.clock())


def judge(c: Client, truth: list[dict[str, Any]], st: BrokerState) -> None:
    tickets: dict[str, dict[str, Any]] = {}
    for t in truth: assert tickets.setdefault(t["ordertag"], t) is t, "one intent, two orders"
    for tag, o in c.orders.items():
        found = tickets.get(tag)
        assert o.filled == (D(found["filledshares"]) if found else 0), (tag, o, found)
        assert o.state is not OrderState.REJECTED or found is None or found["orderstatus"] == "rejected", (tag, o.reason, found)
    ids = [u.exec_id for u in c.fills]
    assert len(ids) == len(set(ids)) and set(ids) == {u.exec_id for u in st.fills} and not st.orders
    held: dict[str, Decimal] = {}
    for o in c.orders.values(): held[o.intent.symbol] = held.get(o.intent.symbol, D(0)) + o.filled * int(o.intent.side)
    assert {s: q for s, q in held.items() if q} == {s: q for s, q, _ in st.positions}


def test_what_we_believe_is_what_happened(tmp_path: Path) -> None: play(17, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(60))
def test_what_we_believe_is_what_happened_long(seed: int, tmp_path: Path) -> None: play(seed, tmp_path)
