"""Random orders under random faults at the Angel One practice venue: whatever the client was told, the books add up, also after a restart."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from practice_angel import order

from scalp_nb.broker.paper import hang_up
from scalp_nb.practice.angel_json import position_rows, rms_json, trade_book
from scalp_nb.practice.angel_one import truth
from scalp_nb.practice.angel_orders import DONE, AngelTerms, order_row
from scalp_nb.practice.angel_rest import Api, make_api
from scalp_nb.practice.angel_wire import answer, connect_faults
from scalp_nb.practice.faults import ANGEL_KINDS, Schedule, random_script
from scalp_nb.practice.venue import bring, step_clock, walk_tape
from scalp_nb.practice.wire import Ask

pyotp = pytest.importorskip("pyotp")
TAPE = walk_tape(("INFY", "TCS"), 400, venue="NSE")
REAL_SECONDS = {"http_slow", "ack_slow", "accept_late", "fill_first"}   # they sleep for real
KINDS = tuple(k for k in ANGEL_KINDS if k not in REAL_SECONDS)
ROOT = "/rest/secure/angelbroking"


class Client:
    "A careless client: it remembers nothing but what it may cancel."
    def __init__(self, api: Api, seed: int) -> None:
        self.api, self.rng, self.jwt, self.mine = api, np.random.default_rng(seed), "", list[str]()

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        head = {"x-privatekey": self.api.orders.terms.api_key, "authorization": f"Bearer {self.jwt}"}
        reply = await answer(self.api, Ask(method, path, {}, body or {}, headers=head))
        if reply is None or reply.raw is not None or not isinstance(reply.body, dict): return {}
        if str(reply.body.get("errorCode", "")).startswith("AG800"): await self.enter()
        return reply.body

    async def enter(self) -> None:
        t = self.api.orders.terms
        who = {"clientcode": t.client_code, "password": t.pin, "totp": pyotp.TOTP(t.totp_secret).at(int(self.api.gate.server_time()))}
        self.jwt = ((await self.call("POST", "/rest/auth/angelbroking/user/v1/loginByPassword", who)).get("data") or {}).get("jwtToken", "")

    async def act(self) -> None:
        k, symbol = int(self.rng.integers(10)), ("INFY", "TCS")[int(self.rng.integers(2))]
        side, px = ("BUY", "SELL")[int(self.rng.integers(2))], (100 if symbol == "INFY" else 101) + int(self.rng.integers(-40, 40)) / 100
        new = order(symbol, side, int(self.rng.integers(1, 700)), px)
        if k < 5: got = await self.call("POST", f"{ROOT}/order/v1/placeOrder", new)
        elif k < 7:
            trigger = px - 0.05 if side == "BUY" else px + 0.05
            stop = {**new, "variety": "STOPLOSS", "ordertype": "STOPLOSS_LIMIT", "triggerprice": f"{trigger:.2f}"}
            got = await self.call("POST", f"{ROOT}/order/v1/placeOrder", stop)
        else: return await self.change(k, px)
        if isinstance(got.get("data"), dict): self.mine.append(got["data"]["orderid"])

    async def change(self, k: int, px: float) -> None:
        open_ = [t for i in self.mine if (t := self.api.orders.tickets.get(i)) is not None and t.open]
        if not open_: return
        t = open_[int(self.rng.integers(len(open_)))]
        if k == 9: await self.call("POST", f"{ROOT}/order/v1/cancelOrder", {"variety": t.variety, "orderid": t.id})
        else:
            new = {**order_row(self.api.orders, t), "price": f"{px:.2f}", "quantity": str(t.qty + 5)}
            await self.call("POST", f"{ROOT}/order/v1/modifyOrder", new)


def settle(api: Api) -> None:
    "What must hold whatever was said on the wire."
    o, v = api.orders, api.desk.venue
    for t in o.tickets.values():
        own = [u for u in v.fills if u.client_id.partition("#")[0] == t.id]
        assert sum((u.qty for u in own), Decimal(0)) == t.filled <= t.qty and (t.status == "complete") == (t.left == 0), t
    assert len({u.exec_id for u in v.fills}) == len(v.fills)
    live = {w.intent.id for ws in v.ex.live.values() for w in ws}
    assert live == {t.piece for t in o.tickets.values() if t.open and t.stage == 3 and not t.amo}
    held: dict[str, Decimal] = {}
    for (sym, _), p in o.held.items(): held[o.desk.universe[sym].symbol] = held.get(o.desk.universe[sym].symbol, Decimal(0)) + p.qty
    assert {s: str(q) for s, q in held.items() if q} == truth(api)["positions"]
    off = o.terms.cash + o.realised - v.cash - sum((p.cost for p in o.held.values()), Decimal(0))
    assert abs(off) < Decimal("1e-12")   # an average cost has more digits than a Decimal keeps


def books(api: Api) -> Any:
    money = {k: x for k, x in rms_json(api.orders).items() if k != "m2munrealized"}
    rows = [{k: x for k, x in r.items() if k not in ("ltp", "pnl")} for r in position_rows(api.orders) or []]
    return orjson.dumps([[order_row(api.orders, t) for t in api.orders.tickets.values() if t.status in DONE], trade_book(api.orders), rows, money])


def close(api: Api) -> None:
    hang_up(api.desk.venue)
    for log in (api.orders.log, api.gate.log):
        if log is not None: log.close()


def one_run(seed: int, folder: Path) -> tuple[bytes, list[Any]]:
    terms = AngelTerms(partial_prob=0.4, rate_limits=False, seed=seed, cash=500_000)
    api = make_api(TAPE, terms, 0.0, folder, script=Schedule(random_script(seed, 300, 8, KINDS), seed))
    connect_faults(api)
    client = Client(api, seed)

    async def play() -> None:
        await client.enter()
        for _ in range(120):
            step_clock(api.desk.clock, 2 * 10**9)
            bring(api.desk)
            await client.act()
            settle(api)
        for _ in range(30): await client.change(9, 0)
        step_clock(api.desk.clock, 70 * 10**9)   # every span of the script is over
        bring(api.desk)
    asyncio.run(play())
    settle(api)
    close(api)
    again = make_api(TAPE, terms, 0.0, folder)
    bring(again.desk)
    settle(again)
    assert books(again) == books(api)
    close(again)
    return books(api), api.script.log


@pytest.mark.parametrize("seed", range(3))
def test_the_books_add_up_under_random_faults(seed: int, tmp_path: Path) -> None:
    first = one_run(seed, tmp_path / "a")
    assert one_run(seed, tmp_path / "b") == first and first[1]   # and a seed repeats itself


@pytest.mark.soak
def test_the_books_add_up_under_many_random_faults(tmp_path: Path) -> None:
    for seed in range(100, 220): one_run(seed, tmp_path / str(seed))
