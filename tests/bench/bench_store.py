"""Durable intent against its baselines, and opening and verifying a store of 100,000 records.

Run: python tests/bench/bench_store.py [--n 400] [--runs 7]
Every run makes fresh files in one temporary folder (TMPDIR chooses the disk), the contestants one after the other.
"""
import argparse
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif
from scalp_nb.trader.events import Note, Submit
from scalp_nb.trader.store import Store

INTENT = Intent("x", 1, 1, "paper", "pressure", "INFY", 0, Side.BUY, Purpose.ENTRY, Decimal(10), OrderType.LIMIT,
                Decimal("1500.50"), None, Tif.DAY, Decimal("1500.25"), reason="PRESSURE")
PAYLOAD = "x" * 400


def each(step: Callable[[int], None], n: int) -> list[float]:
    "Seconds of each of n calls, after 20 to warm up."
    out = []
    for i in range(n + 20):
        t = time.perf_counter()
        step(i)
        out.append(time.perf_counter() - t)
    return out[20:]


def bare_file(d: Path, n: int) -> list[float]:
    fd = os.open(d / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    row = PAYLOAD.encode()

    def step(i: int) -> None:
        os.write(fd, row)
        os.fdatasync(fd)
    try: return each(step, n)
    finally: os.close(fd)


def bare_sqlite(d: Path, n: int) -> list[float]:
    con = sqlite3.connect(d / "bare.db", isolation_level=None)
    con.execute("PRAGMA journal_mode=WAL")
    con.execute("PRAGMA synchronous=FULL")
    con.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data TEXT)")
    out = each(lambda i: con.execute("INSERT INTO t (data) VALUES (?)", (PAYLOAD,)) and None, n)
    con.close()
    return out


def our_intent(d: Path, n: int, sync: bool = True, where: str | None = None) -> list[float]:
    with Store.open(where or d / "ours.db", "paper") as store:
        k = time.time_ns() if where else 0  # a server's tables outlive the run

        def step(i: int) -> None:
            intent = replace(INTENT, id=f"i{k + i}", seq=i)
            store.put_intent(intent)
            store.append("command:Submit", i, Submit(intent), cursor=i, corr=intent.id)
            store.commit(True)

        def note(i: int) -> None:
            store.append("note:decision", i, Note("decision", {"text": PAYLOAD}))
            store.commit(False)
        return each(step if sync else note, n)


def restart(d: Path, rows: int) -> dict[str, float]:
    path, out = d / "big.db", {}
    with Store.open(path, "paper") as store:
        t = time.perf_counter()
        for i in range(rows): store.append("note:decision", i, {"symbol": "INFY", "i": i, "px": i * 0.05, "why": "SPREAD"}, cursor=i)
        store.set_state("trader", {"decisions": rows})
        store.commit(True)
        out[f"append and commit {rows:,} records, records/s"] = rows / (time.perf_counter() - t)
    t = time.perf_counter()
    store = Store.open(path, "paper")
    state = store.get_state("trader")
    out[f"open at {rows:,} records and read the state, s"] = time.perf_counter() - t
    if state != {"decisions": rows}: raise SystemExit("the state was not read back")
    t = time.perf_counter()
    verdict = store.verify()
    out[f"verify {rows:,} records, s"] = time.perf_counter() - t
    if not verdict.ok or verdict.count != rows: raise SystemExit(verdict.reason)
    store.close()
    return out


def main() -> None:
    ap = argparse.ArgumentParser()
    ap.add_argument("--n", type=int, default=400)
    ap.add_argument("--runs", type=int, default=7)
    ap.add_argument("--rows", type=int, default=100_000)
    ap.add_argument("--postgres", default="", help="URL of a PostgreSQL database to measure as well")
    a = ap.parse_args()
    names = {"file write + fdatasync": bare_file, "bare sqlite3 WAL FULL, one insert": bare_sqlite,
             "Store: durable intent": our_intent, "Store: note, commit(sync=False)": lambda d, n: our_intent(d, n, False)}
    if a.postgres: names["Store on PostgreSQL: durable intent"] = lambda d, n: our_intent(d, n, True, a.postgres)
    got: dict[str, list[tuple[float, float]]] = {k: [] for k in names}
    big: dict[str, list[float]] = {}
    for _ in range(a.runs):
        with tempfile.TemporaryDirectory() as tmp:
            for k, f in names.items():
                d = Path(tmp) / k.replace(" ", "_").replace("/", "_")
                d.mkdir()
                q = statistics.quantiles(f(d, a.n), n=100)
                got[k].append((q[49] * 1e3, q[98] * 1e3))
            for k, v in restart(Path(tmp), a.rows).items(): big.setdefault(k, []).append(v)
    base = statistics.median(p50 for p50, _ in got["bare sqlite3 WAL FULL, one insert"])
    print(f"{'':44}{'p50 ms':>10}{'min..max':>18}{'p99 ms':>10}{'ratio p50':>11}   (medians of {a.runs} runs of {a.n})")
    for k, v in got.items():
        p50, p99 = (statistics.median(x[j] for x in v) for j in (0, 1))
        lo, hi = min(x[0] for x in v), max(x[0] for x in v)
        print(f"{k:44}{p50:10.3f}{f'{lo:.3f}..{hi:.3f}':>18}{p99:10.3f}{p50 / base:11.2f}")
    for k, v in big.items(): print(f"{k:56}{statistics.median(v):14.3f}   {min(v):.3f}..{max(v):.3f}")


if __name__ == "__main__":
    main()
