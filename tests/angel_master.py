"""An instrument master as Angel One writes it, of any size: cash, indices, futures, options and other exchanges, all values text."""

from collections.abc import Iterable
from datetime import date, timedelta

import orjson

Row = dict[str, str]


def row(token: str, symbol: str, name: str, exch_seg: str = "NSE", instrumenttype: str = "", expiry: str = "", strike: str = "-1.000000",
        lotsize: str = "1", tick_size: str = "5.000000", freeze_qty: str = "") -> Row:
    return dict(token=token, symbol=symbol, name=name, expiry=expiry, strike=strike, lotsize=lotsize, instrumenttype=instrumenttype,
                exch_seg=exch_seg, tick_size=tick_size, freeze_qty=freeze_qty)


def last_tuesday(day: date) -> date:
    "The expiry of a month: its last Tuesday."
    after = (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    return after - timedelta(days=(after.weekday() - 1) % 7)


def cash(symbols: Iterable[str], first: int = 1000) -> list[Row]:
    return [row(str(first + i), f"{s}-EQ", s) for i, s in enumerate(symbols)]


def stock_futures(symbols: Iterable[str], day: date, first: int = 50_000) -> list[Row]:
    e = last_tuesday(day)
    return [row(str(first + i), f"{s}{e:%d%b%y}FUT".upper(), s, "NFO", "FUTSTK", f"{e:%d%b%Y}".upper(), lotsize="500", freeze_qty="20000")
            for i, s in enumerate(symbols)]


def whole_file(day: date, rows: int = 130_000) -> bytes:
    "A file of the real one's size: 2,400 equities, other series, indices, 200 names with futures and options, other exchanges."
    names = [f"STOCK{i:04d}" for i in range(2400)]
    out = cash(names) + [row(str(9000 + i), f"STOCK{i:04d}-BE", f"STOCK{i:04d}") for i in range(2400, 2700)]
    out += [row(str(99926000 + i), f"Nifty {i}", f"NIFTY{i}", instrumenttype="AMXIDX", tick_size="0.000000") for i in range(120)]
    out += stock_futures(names[:200], day)
    e = f"{last_tuesday(day):%d%b%Y}".upper()
    while len(out) < rows:
        k = len(out)
        out.append(row(str(100_000 + k), f"STOCK{k % 200:04d}{e[:5]}26{k}CE", f"STOCK{k % 200:04d}", ("NFO", "BFO", "MCX", "BSE")[k % 4], "OPTSTK", e,
                       f"{k}00.000000", "500", freeze_qty="20000"))
    return orjson.dumps(out)
