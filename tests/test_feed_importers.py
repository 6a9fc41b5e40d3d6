"""Every real recording with usable depth loads to its known facts; the others are refused with the reason."""

import gzip
import random
from pathlib import Path

import numpy as np
import pytest
from realdata import realdata

from scalp_nb.feed.errors import DataError, ScalpError
from scalp_nb.feed.importers import load
from scalp_nb.feed.instrument import Capabilities
from scalp_nb.feed.quality import quality

US, NSE = "lob_equity_us/", "nse_depth/"
LOB = US + "lobster/"
NIFTY = NSE + "NIFTY25DECFUT_2025-12-29_"

# file: kind, rows, mean spread in currency units (None: no two-sided book), volume at the end, first ts, last ts
FACTS = {
    US + "FROG_2025-04-03_mbp10.zip": ("mbp10", 33286, 0.0700, None, 1743687000125395235, 1743710399997960094),
    US + "AAPL_2024-10-21_mbp10_premarket.csv.gz": ("mbp10", 5000, 0.125, None, 1729511669221064336, 1729515860130842270),
    US + "AAPL_2019-01-30_itch_l10_first10000.csv.gz": ("itch_l10", 10000, 0.065, None, 1548858600000245396, 1548858627932186292),
    LOB + "GOOG_2012-06-21_orderbook_5_first20000.csv.gz": ("lobster", 20000, None, None, 1340285400015105074, 1340288395204851127),
    LOB + "AAPL_2012-06-21_orderbook_10_first998.csv.gz": ("lobster", 999, None, None, 1340285400004241176, 1340285449086375027),
    NIFTY + "kite_5level.csv.gz": ("kite", 271, 2.72, 3384750.0, 1766992620000000000, 1766992919000000000),
    NIFTY + "dhan_5level.csv.gz": ("dhan", 355, 2.69, 3384525.0, 1766992622553384000, 1766992913990422000),
    NIFTY + "dhan_200level_summary_1340.csv.gz": ("dhan200", 1744, None, 0.0, 1766995800940839000, 1766996217328233000),
    NIFTY + "kite_ltp_volume_delta.csv.gz": ("kite_delta", 5837, None, None, 1766981204000000000, 1766988586000000000),
    NSE + "RELIANCE_2021-04-30_kite_full_26ticks.jsonl.gz": ("kite_ticks", 26, None, None, 1619769816000000000, 1619769833000000000),
}


@pytest.mark.parametrize("path", FACTS)
def test_known_facts(path: str) -> None:
    kind, n, spread, volume, first, last = FACTS[path]
    got = load(realdata(path))
    q = quality(got.rows, got.universe).total
    assert (got.kind, q.rows, q.crossed, q.locked, q.out_of_order, q.epoch0) == (kind, n, 0, 0, 0, 0)
    assert (q.first, q.last) == (first, last)
    if spread is not None:
        half_a_digit = 0.0005 if spread < 1 else 0.005
        measured = float(np.mean(got.rows["ask_px"][:, 0] - got.rows["bid_px"][:, 0]))
        assert measured == pytest.approx(spread, abs=half_a_digit)
    if volume is not None:
        assert got.rows["volume"][-1] == volume
    assert (np.diff(got.rows["volume"]) >= 0).all()
    assert got.notes


@pytest.mark.parametrize("path", FACTS)
def test_levels_best_first_and_absent_ones_empty(path: str) -> None:
    rows = load(realdata(path)).rows
    for side, sign in (("bid", -1), ("ask", 1)):
        px, qty = rows[f"{side}_px"], rows[f"{side}_qty"]
        steps = np.diff(px, axis=1) * sign
        assert not (steps <= 0).any(), f"{side} levels not sorted"
        assert (qty[np.isnan(px)] == 0).all() and (rows[f"{side}_orders"][np.isnan(px)] == 0).all()
        assert (np.isnan(px[:, 1:]) | ~np.isnan(px[:, :-1])).all(), "a hole between levels"


@pytest.mark.parametrize("path", [p for p in FACTS if FACTS[p][0] in ("mbp10", "itch_l10", "lobster", "dhan200", "kite_delta")])
def test_totals_a_source_lacks_stay_nan(path: str) -> None:
    got = load(realdata(path))
    assert not got.capabilities.whole_book_totals
    assert np.isnan(got.rows["total_buy"]).all() and np.isnan(got.rows["total_sell"]).all()


def test_frog_trades_and_receive_time() -> None:
    got = load(realdata(US + "FROG_2025-04-03_mbp10.zip"))
    assert any(n.startswith("3817 trades") for n in got.notes)
    assert got.universe.symbols == ("FROG",) and got.universe[0].currency == "USD" and got.universe[0].lot == 1
    assert (got.rows["ts"] == got.rows["recv"]).all()
    aapl = load(realdata(US + "AAPL_2024-10-21_mbp10_premarket.csv.gz"))
    assert any(n.startswith("286 trades") for n in aapl.notes)
    assert (aapl.rows["recv"] > aapl.rows["ts"]).all() and aapl.rows["recv"][0] == 1729511669221230963


def test_goog_messages_explain_the_book() -> None:
    """The volume is the sum of the executions, and each execution's price is at or inside the book before it."""
    got = load(realdata(LOB + "GOOG_2012-06-21_message_5_first20000.csv.gz"))
    rows = got.rows
    assert any(n.startswith("1348 executions") for n in got.notes)
    traded = np.flatnonzero(np.diff(rows["volume"]) > 0) + 1
    before, px = rows[traded - 1], rows["ltp"][traded]
    assert ((px >= before["bid_px"][:, 0] - 1e-9) & (px <= before["ask_px"][:, 0] + 1e-9)).all()
    assert (rows["ltq"][traded] == np.diff(rows["volume"])[traded - 1]).all()


def test_nifty_future_from_two_brokers_agrees() -> None:
    kite, dhan = load(realdata(NIFTY + "kite_5level.csv.gz")), load(realdata(NIFTY + "dhan_5level.csv.gz"))
    ins = kite.universe[0]
    assert (ins.symbol, ins.lot, ins.segment, ins.tick_table, ins.venue) == ("NIFTY25DECFUT", 75, "FO", "0.10", "NSE")
    for got in (kite, dhan):
        for f in ("bid_px", "ask_px", "ltp"):
            ticks = got.rows[f] / 0.1
            assert np.abs(ticks - np.round(ticks)).max() < 1e-6, "a price off the 0.10 tick"
        assert (got.rows["bid_qty"] % 75 == 0).all()
    assert quality(kite.rows, kite.universe).total.ltp_outside == pytest.approx(0.21, abs=0.005)
    assert "1 rows without depth" in dhan.notes[0]
    assert (dhan.rows["bid_orders"][:, 1:] == 0).all() and (dhan.rows["bid_orders"][:, 0] > 0).all()
    at = np.searchsorted(dhan.rows["ts"], kite.rows["ts"], side="right") - 1
    both = at >= 0
    apart = np.abs(dhan.rows["total_buy"][at[both]] / kite.rows["total_buy"][both] - 1)
    assert np.median(apart) < 0.05, "two brokers' whole-book totals of one contract, same clock: Indian wall time read rightly"


def test_200_level_sums_are_not_the_whole_book() -> None:
    """The claim behind leaving totals NaN: the exchange's own totals were several times the 200-level sums."""
    text = gzip.decompress(realdata(NIFTY + "dhan_200level_summary_1340.csv.gz").read_bytes()).decode().splitlines()
    sums = np.array([[float(c) for c in line.split(",")[4:6]] for line in text[1:]])
    whole = load(realdata(NIFTY + "kite_5level.csv.gz")).rows
    assert np.median(sums[:, 0]) < 0.5 * np.median(whole["total_buy"]) and np.median(sums[:, 1]) < 0.5 * np.median(whole["total_sell"])


def test_reliance_ticks() -> None:
    got = load(realdata(NSE + "RELIANCE_2021-04-30_kite_full_26ticks.jsonl.gz"))
    row, spread = got.rows[0], got.rows["ask_px"][:, 0] - got.rows["bid_px"][:, 0]
    assert got.universe.symbols == ("RELIANCE",) and got.universe[0].lot == 1 and got.capabilities == Capabilities(5, True, True, False)
    assert (row["ltp"], row["volume"], row["total_buy"], row["bid_orders"][2], row["ask_qty"][0]) == (2012.2, 4608851, 296776, 2, 1000)
    assert spread.min() == pytest.approx(0.05) and spread.max() == pytest.approx(0.65) and 0.20 <= np.median(spread) <= 0.40


@pytest.mark.parametrize(("path", "why"), [
    (LOB + "AAPL_2012-06-21_0930-1030_message_50.csv.gz", "messages alone hold no depth"),
    (LOB + "AAPL_2012-06-21_orderbook_1.csv.gz", "a book alone has no times"),
    (NSE + "RELIANCE_2021-04-30_kite_full_26ticks.py.txt.gz", "format of the recording"),
])
def test_refused_with_the_reason(path: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        load(realdata(path))


def test_book_without_times_only_on_request() -> None:
    got = load(realdata(LOB + "AAPL_2012-06-21_orderbook_1.csv.gz"), step_ns=100_000_000)
    q = quality(got.rows, got.universe).total
    assert (q.rows, q.crossed, q.levels) == (118497, 0, 1.0)
    assert any("INVENTED" in n for n in got.notes)
    assert float(np.mean(got.rows["ask_px"][:, 0] - got.rows["bid_px"][:, 0])) == pytest.approx(0.155, abs=0.0005)


def test_every_recording_is_named_here() -> None:
    """A new file in the folders must be given its facts."""
    root = realdata("README.md").parent
    there = {p.relative_to(root).as_posix() for d in (US, NSE) for p in (root / d).rglob("*") if p.is_file()}
    refused = {LOB + "AAPL_2012-06-21_0930-1030_message_50.csv.gz", LOB + "AAPL_2012-06-21_orderbook_1.csv.gz",
               NSE + "RELIANCE_2021-04-30_kite_full_26ticks.py.txt.gz"}
    pairs = {p.replace("orderbook", "message") for p in FACTS if "orderbook" in p}
    assert there == set(FACTS) | refused | pairs


def beginning(path: str, lines: int = 25) -> bytes:
    return b"\n".join(gzip.decompress(realdata(path).read_bytes()).split(b"\n")[:lines])


def damaged(base: bytes, rnd: random.Random) -> bytes:
    """`base` with some bytes overwritten, or cut short, or a stretch removed, or rubbish inserted."""
    b, how = bytearray(base), rnd.randrange(4)
    at = rnd.randrange(len(b))
    if how == 0:
        for _ in range(rnd.randrange(1, 4)):
            b[rnd.randrange(len(b))] = rnd.randrange(256)
    elif how == 1:
        del b[at:]
    elif how == 2:
        del b[at:at + rnd.randrange(1, 30)]
    else:
        b[at:at] = bytes(rnd.choice(b',\n-.09e"\xff\x00 ') for _ in range(rnd.randrange(1, 5)))
    return bytes(b)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("path", [p for p in FACTS if p.endswith(".gz")])
def test_damage_is_refused_or_shows(path: str, tmp_path: Path) -> None:
    """A damaged file is refused by one of our errors, or every line of it is a row: never another error, never a line lost."""
    rnd, base, name = random.Random(path), beginning(path), Path(path).name.removesuffix(".gz")
    if "orderbook" in name:
        (tmp_path / name.replace("orderbook", "message")).write_bytes(beginning(path.replace("orderbook", "message")))
    header = 0 if "lobster" in path or "jsonl" in path else 1
    for _ in range(150):
        bad = damaged(base, rnd)
        (tmp_path / name).write_bytes(bad)
        try:
            got = load(tmp_path / name)
        except ScalpError:
            continue
        lines = len(bad.rstrip().split(b"\n")) - header
        skipped = sum(int(n.split()[0]) for n in got.notes if "rows without depth" in n)
        assert len(got.rows) + skipped == lines
        quality(got.rows, got.universe)
