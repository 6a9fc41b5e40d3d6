"""The whole trader against named baselines in the same run.

    python tests/bench/bench_trader.py [replay] [packet] [restart]

replay   (a) depth updates/s through the full Trader and paper venue, 31 symbols, one core, against the same rule in plain Python
             over the same rows and against a compiled pass that only adds up the book
packet   (b) one SNAP_QUOTE packet's bytes in to decision made, without and with a candidate, against the broker SDK's decode
restart  (d) a session's restart with 10 symbols and 100,000 journal rows: process start to ready
"""

# ruff: noqa: E402
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numba import njit

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench.common import medians
from markets import BUSY, market, synthetic

from scalp_nb.broker.base import NEVER
from scalp_nb.feed.depth import DEPTH
from scalp_nb.feed.instrument import Instrument, Universe
from scalp_nb.feed.packet import encode_snap_quote
from scalp_nb.feed.recorder import write_parquet
from scalp_nb.order.types import Update, UpdateKind
from scalp_nb.trader.config import load_config
from scalp_nb.trader.events import Control, Depth, Evidence, Note, Started, Submit
from scalp_nb.trader.runner import Memory
from scalp_nb.trader.setup import RunConfig, paper_run
from scalp_nb.trader.wire import Wire, settle_memory


@njit(nogil=True)
def touch_every_row(rows):  # type: ignore[no-untyped-def]
    """Lower bound: read what the rule reads of every row, decide nothing."""
    n = 0
    for i in range(len(rows)):
        r = rows[i]
        bid = ask = 0.0
        for k in range(5):
            bid += r.bid_qty[k]
            ask += r.ask_qty[k]
        p = r.total_buy / (r.total_buy + r.total_sell)
        n += (0.7 <= p <= 0.95 and bid > 1.5 * ask) or (0.05 <= p <= 0.3 and ask > 1.5 * bid)
    return n


def plain_python(rows) -> int:
    """The same rule with dictionaries and attributes, as most bots have it; no orders engine."""
    n, held = 0, {}
    names = ("sym", "total_buy", "total_sell")
    cols = {k: rows[k].tolist() for k in names} | {k: rows[k].tolist() for k in ("bid_qty", "ask_qty", "bid_px", "ask_px")}
    for i in range(len(rows)):
        s, b, a = cols["sym"][i], sum(cols["bid_qty"][i]), sum(cols["ask_qty"][i])
        p = cols["total_buy"][i] / (cols["total_buy"][i] + cols["total_sell"][i])
        if s in held:
            side, entry = held[s]
            px = cols["bid_px"][i][0] if side > 0 else cols["ask_px"][i][0]
            if not -0.0025 < side * (px / entry - 1) < 0.01:
                del held[s]
        elif 0.7 <= p <= 0.95 and b > 1.5 * a:
            held[s] = (1, cols["ask_px"][i][0])
            n += 1
        elif 0.05 <= p <= 0.3 and a > 1.5 * b:
            held[s] = (-1, cols["bid_px"][i][0])
            n += 1
    return n


def replay() -> None:
    rows, uni = synthetic(n_symbols=31, seconds=21_600, episode_every_s=600.0, episode_s=60.0, cadence_ms=200, jitter_ms=50)
    rows = rows[np.argsort(rows["recv"], kind="stable")]
    n = len(rows)
    day = market(rows, uni)
    shown = {}

    def whole(**over: object) -> None:
        cfg = load_config(RunConfig, None, over)
        r = paper_run(cfg, day, Memory())
        r.start(int(rows["recv"][0]))
        r.feed(rows)
        r.send(Control(r.trader.now, "stop", "bench", {}))
        r.advance(r.trader.now + 10_000_000_000)
        log = [c for _, c in r.ledger.log]
        shown["trips"] = sum(isinstance(c, Note) and c.kind == "round_trip" for c in log)
        shown["orders"] = sum(isinstance(c, Submit) for c in log)

    cases = {
        "baseline: the rule in plain Python, no orders": lambda: plain_python(rows[: n // 10]),
        "lower bound: compiled pass, no state, no orders": lambda: touch_every_row(rows),
        "Trader, specification (10 trades a day)": lambda: whole(),
        "Trader, 200 trades a day": lambda: whole(**{"risk.max_trades_per_day": 200, "risk.max_consecutive_losses": 1000}),
        "Trader, all features, 10 trades": lambda: whole(**{"strategy.all_features": True}),
    }
    base = 0.0
    print(f"(a) replay: {n:,} rows, 31 symbols, one trading day at 5 rows/s a symbol")
    for name, fn in cases.items():
        count = n // 10 if "plain Python" in name else n
        shown.clear()
        median, low, high = medians(fn, 5)
        rate = count / median / 1e6
        base = base or rate
        extra = f"  {shown['orders']} orders, {shown['trips']} round trips" if shown else ""
        print(f"  {name:50} {rate:8.2f} M rows/s ({count / high / 1e6:.2f}..{count / low / 1e6:.2f})  {rate / base:7.1f} x{extra}", flush=True)


def tokens(uni: Universe) -> Universe:
    return Universe("t", tuple(Instrument(i.symbol, "NSE", token=str(1000 + k), derivatives=True) for k, i in enumerate(uni.instruments)))


def strong_packet(rows, k: int, uni: Universe) -> bytes:
    """Row k turned into a candidate: pressure 0.8, bids five times the asks, one tick of spread."""
    strong = rows[k:k + 1].copy()
    for side, sign in (("bid", -1), ("ask", 1)):
        strong[f"{side}_px"] = np.round(rows["ask_px"][k, 0] + (sign * (np.arange(5) + 1) - 1) * 0.05, 2)
    strong["total_buy"], strong["total_sell"], strong["bid_qty"], strong["ask_qty"] = 80_000, 20_000, 500, 100
    return encode_snap_quote(strong, uni[int(rows["sym"][k])].token, 1)


def percentiles(ns: list[int]) -> str:
    p50, p99, p999 = np.percentile(ns, [50, 99, 99.9]) / 1000
    return f"p50 {p50:8.2f} us   p99 {p99:8.2f} us   p99.9 {p999:8.2f} us   ({len(ns):,} packets)"


def packet() -> None:
    from angel_sdk import sdk_decoder
    rows, uni = synthetic(n_symbols=31, seconds=1200, episode_every_s=0.0)
    rows["ts"] -= rows["ts"] % 1_000_000
    rows = rows[np.argsort(rows["recv"], kind="stable")]
    uni = tokens(uni)
    packets = [encode_snap_quote(rows[k:k + 1], uni[int(rows["sym"][k])].token, 1) for k in range(len(rows))]
    recv = rows["recv"].tolist()
    clock = time.perf_counter_ns

    def trader(**over: object):
        r = paper_run(load_config(RunConfig, None, over), market(rows, uni), Memory())
        r.trader.handle(Started(recv[0], r.broker.state(recv[0])))
        return r.trader

    print("(b) one packet's bytes in to decision made, in process")
    parse, sdk = sdk_decoder(), []
    for p in packets[:5000]:
        t = clock()
        parse(p)
        sdk.append(clock() - t)
    print(f"  {'baseline: SDK decode alone':38} {percentiles(sdk)}")
    t = trader()
    wire, quiet, last = Wire(t), [], 0
    settle_memory()
    for p, at in zip(packets, recv, strict=True):
        begin = clock()
        said = wire.on_packet(p, at)
        took = clock() - begin
        if not said and t.cursor == last + 1:
            quiet.append(took)
        while t.cursor < last + 1:
            t.handle(Depth(wire.row))
        last = t.cursor
    print(f"  {'without a candidate':38} {percentiles(quiet)}   p50 {np.median(sdk) / np.median(quiet):.0f} x faster")

    t = trader(**BUSY | {"strategy.decision_window_ms": 0, "strategy.cooldown_s": 0.0, "strategy.warmup_rows": 1, "risk.max_trades_per_day": 10_000,
                         "risk.max_orders_per_minute": 5000, "risk.max_orders_per_second": 100, "risk.max_consecutive_failures": 10_000})
    wire, busy = Wire(t), []
    settle_memory()
    loaded = [strong_packet(rows, k, uni) for k in range(4000)]
    for k, p in enumerate(loaded):
        t.trades_today = 0
        begin = clock()
        said = wire.on_packet(p, recv[k])
        took = clock() - begin
        while t.cursor < k + 1:
            said = [*said, *t.handle(Depth(wire.row))]
        for c in said:
            if isinstance(c, Submit):
                busy.append(took)
                for kind in (UpdateKind.ACK, UpdateKind.CANCELED):
                    t.handle(Evidence(recv[k], Update(recv[k], c.intent.id, kind)))
    print(f"  {'with a candidate, to a built intent':38} {percentiles(busy)}")


def restart() -> None:
    from scalp_nb.trader.store import Store
    rows, uni = synthetic(n_symbols=10, seconds=1800)
    with tempfile.TemporaryDirectory() as tmp:
        tape, run_dir = Path(tmp) / "tape.parquet", Path(tmp) / "run"
        write_parquet(rows, uni, tape)
        run_dir.mkdir()
        cfg = BUSY | {"data.recording": str(tape), "run.account": "bench"}
        (run_dir / "config.yaml").write_text(json.dumps(json.loads(load_config(RunConfig, None, cfg).model_dump_json())))
        argv = [sys.executable, "-m", "scalp_nb.trader.session", str(run_dir / "config.yaml"), str(run_dir)]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        subprocess.run(argv, env=env, check=True)
        with Store.open(run_dir / "store.db", "bench") as store:
            for k in range(100_000):
                store.append("note:equity", 1 + k, {"equity": "1000000", "cash": "1000000"})
            print(f"(d) restart with 10 symbols and {store.count():,} journal rows")
        times, bare = [], []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import numba, sqlalchemy, pydantic, fastapi"], env=env, check=True)
            bare.append(time.perf_counter() - begin)
            read, write = os.pipe()
            begin = time.perf_counter()
            p = subprocess.Popen(argv, env={**env, "SCALP_READY_FD": str(write)}, pass_fds=(write,))
            os.close(write)
            os.read(read, 4096)
            times.append(time.perf_counter() - begin)
            os.close(read)
            p.wait()
        print(f"  baseline: importing numba, sqlalchemy, pydantic, fastapi   {np.median(bare):.2f} s")
        print(f"  process start to ready, median of 5                        {np.median(times):.2f} s ({min(times):.2f}..{max(times):.2f})")


if __name__ == "__main__":
    todo = sys.argv[1:] or ["replay", "packet", "restart"]
    assert DEPTH.itemsize == 272 and NEVER > 0
    for name in todo:
        {"replay": replay, "packet": packet, "restart": restart}[name]()
