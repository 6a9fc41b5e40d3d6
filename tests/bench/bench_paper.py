"""Paper venue: one order there and back, one market row past working orders.

Baseline in the same run: a bare fill-at-touch function, the least any simulator can do for an order (build the evidence,
move cash and position), so that the ratio says what queue, account, faults and wire cost on top.
Run: python tests/bench/bench_paper.py
"""
from __future__ import annotations

import tempfile
from dataclasses import replace
from decimal import Decimal
from functools import partial
from itertools import count
from pathlib import Path

from common import medians

from scalp_nb.broker.paper import PaperBroker, PaperConfig
from scalp_nb.feed.depth import Rows, depth_row, empty_depth
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif, Update, UpdateKind

N, SYMBOLS, MS = 4_000, 31, 1_000_000
UNI = Universe("bench", tuple(Instrument(f"S{k}", "NSE") for k in range(SYMBOLS)))
BUY = Intent("o", 0, 1, "a", "s", "S0", 0, Side.BUY, Purpose.ENTRY, Decimal(1), OrderType.LIMIT, Decimal("100.05"), None, Tif.DAY, Decimal(100))
IDS = count()


def row(k: int, ltp: float = 100.0) -> Rows:
    return depth_row(k, 0, [(100 - 0.05 * j, 500 + k % 7) for j in range(1, 6)], [(100 + 0.05 * j, 10**6) for j in range(1, 6)], ltp=ltp)


def books() -> Rows:
    out = empty_depth(SYMBOLS)
    for s in range(SYMBOLS): out[s] = row(1)[0]
    return out


def intents() -> list[Intent]:
    sell = replace(BUY, side=Side.SELL, limit=Decimal("99.95"))
    return [replace(sell if k % 2 else BUY, id=f"o{next(IDS)}") for k in range(N)]


def bare(todo: list[Intent], bk: Rows) -> None:
    cash, pos = Decimal(10**6), Decimal(0)
    for i in todo:
        px = Decimal(repr(float(bk[0]["ask_px" if i.side > 0 else "bid_px"][0])))
        ack = Update(1, i.id, UpdateKind.ACK)
        fill = Update(1, i.id, UpdateKind.FILL, "v", "x", i.qty, px, i.qty)
        cash -= i.qty * px * int(i.side)
        pos += i.qty * int(i.side)
        assert ack.client_id == fill.client_id


def trips(log: Path | None, **cfg: object) -> None:
    bk = books()
    b = PaperBroker(UNI, PaperConfig.model_validate(cfg), bk, log=log)
    for k, i in enumerate(intents()):
        ts = (k + 1) * 10 * MS
        if k % 100 == 0: bk[0] = row(ts)[0]
        b.submit(i, ts)
        got = b.poll(b.next_ts())
        while len(got) < 2: got += b.poll(b.next_ts())
    b.close(0)


def rows_past(tape: list[Rows], working: int) -> None:
    b = PaperBroker(UNI, PaperConfig(), books())
    for k in range(working):
        i = replace(BUY, id=f"o{next(IDS)}", limit=Decimal("99.90") - k // 2 * Decimal("0.05"))
        b.submit(i if k % 2 == 0 else replace(i, side=Side.SELL, type=OrderType.STOP, limit=None, stop=Decimal("99")), 0)
    b.poll(10 * MS)
    for r in tape: b.on_row(r, 3.0)
    assert len(b.state(11 * MS).orders) == working


def report(what: str, goal: str, t: tuple[float, float, float], base: float) -> None:
    us = [x / N * 1e6 for x in t]
    print(f"{what:<44} median {us[0]:7.2f} us   range {us[1]:.2f} .. {us[2]:.2f}   x{us[0] / base:5.1f} of bare   {goal}")


def main() -> None:
    todo, bk = intents(), books()
    t0 = medians(lambda: bare(todo, bk))
    base = t0[0] / N * 1e6
    report("bare fill at touch", "", t0, base)
    report("submit + poll round trip, in memory", "goal <= 60 us", medians(lambda: trips(None)), base)
    faulty = {"latency_sigma": 0.5, "partial_prob": 0.5, "lost_ack_prob": 1e-9, "duplicate_update_prob": 1e-9, "seed": 1}
    report("  with jitter and fault draws", "", medians(lambda: trips(None, **faulty)), base)
    with tempfile.TemporaryDirectory() as d:
        names = count()
        report("  with a log on disk", "", medians(lambda: trips(Path(d) / f"v{next(names)}.jsonl"), 5), base)
    tape = [row(20 * MS + k, 100.05 if k % 2 else 99.95) for k in range(N)]
    for n in (0, 1, 2, 6):
        report(f"on_row, {n} working orders in the symbol", "goal <= 15 us", medians(partial(rows_past, tape, n)), base)


if __name__ == "__main__": main()
