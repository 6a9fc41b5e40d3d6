"""All risk gates on a passing entry, and the price rules, against the bare function calls they cannot be cheaper than."""

import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from riskviews import ENTRY  # noqa: E402

from scalp_nb.feed.instrument import Instrument  # noqa: E402
from scalp_nb.order.rules import rules_for  # noqa: E402
from scalp_nb.order.types import Side  # noqa: E402
from scalp_nb.risk.breakers import Breakers  # noqa: E402
from scalp_nb.risk.gates import GATES, check  # noqa: E402
from scalp_nb.risk.limits import RiskLimits  # noqa: E402


def micros(fn: Callable[[], object], n: int = 5_000, runs: int = 15) -> tuple[float, float, float]:
    "Median, smallest and largest CPU microseconds of one call over `runs` runs of `n` calls: a busy machine does not count."
    out = []
    for _ in range(runs):
        t = time.thread_time_ns()
        for _ in range(n): fn()
        out.append((time.thread_time_ns() - t) / n / 1000)
    return statistics.median(out), min(out), max(out)


def empty(v: object, limits: object, breakers: object) -> None: return None


def main() -> None:
    limits, breakers = RiskLimits(), Breakers()
    calls = tuple(empty for g in GATES if g.entries)
    def bare() -> None:
        for f in calls: f(ENTRY, limits, breakers)
    rules = rules_for("angel_one", "NSE", date(2026, 11, 20))
    ins, fixed = Instrument("SBIN", "NSE"), Instrument("SBIN", "NSE", tick_table="0.05")
    assert check(ENTRY, limits, breakers).allowed
    rows: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("all entry gates, passing", lambda: check(ENTRY, limits, breakers), bare),
        ("round_price, ladder", lambda: rules.round_price(ins, 2812.337, 1), lambda: Decimal(str(2812.337)).quantize(Decimal("0.05"))),
        ("round_price, fixed tick", lambda: rules.round_price(fixed, 2812.337, 1), lambda: Decimal(str(2812.337)).quantize(Decimal("0.05"))),
        ("marketable_limit", lambda: rules.marketable_limit(ins, Side.BUY, 812.30, 0.001), lambda: Decimal(str(812.30)).quantize(Decimal("0.05"))),
        ("breakers.update, nothing trips", lambda: breakers.update(ENTRY, limits, ENTRY.ts), bare),
    ]
    print(f"{'what':32} {'median us':>10} {'min':>7} {'max':>7} {'baseline us':>12} {'ratio':>6}")
    for name, fn, base in rows:
        m, lo, hi = micros(fn)
        b = micros(base)[0]
        print(f"{name:32} {m:10.2f} {lo:7.2f} {hi:7.2f} {b:12.2f} {m / b:6.2f}")
    print("baseline: as many empty Python calls (gates), Decimal(str(px)).quantize (prices)")


if __name__ == "__main__": main()
