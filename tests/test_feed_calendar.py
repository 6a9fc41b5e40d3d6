"""The calendar against a second library, against recorded days, and what importing it costs."""

import subprocess
import sys
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from realdata import realdata

from scalp_nb.feed.calendar import CalendarError, MarketClosed, is_open, session_for, trading_day

ROOT = Path(__file__).resolve().parents[1]


def days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=k) for k in range((last - first).days + 1)]


def test_every_us_day_agrees_with_a_second_library() -> None:
    calendars = pytest.importorskip("pandas_market_calendars")
    table = calendars.get_calendar("NYSE").schedule("2010-01-01", "2028-12-31")
    theirs = {t.date(): (int(o.timestamp()), int(c.timestamp())) for t, o, c in zip(table.index, table.market_open, table.market_close, strict=True)}
    odd = []
    for day in days(date(2010, 1, 1), date(2028, 12, 31)):
        try:
            s = session_for("US", day)
            ours = s.open_ts // 10**9, s.close_ts // 10**9
        except MarketClosed:
            ours = None
        if ours != theirs.get(day):
            odd.append((str(day), ours, theirs.get(day)))
    assert [d for d, *_ in odd] == []


def test_every_nse_day_agrees_with_a_second_library_but_for_special_sessions() -> None:
    calendars = pytest.importorskip("pandas_market_calendars")
    theirs = {t.date() for t in calendars.get_calendar("NSE").valid_days("2015-01-01", "2026-12-31")}
    ours, special, hours = set(), set(), set()
    for day in days(date(2015, 1, 1), date(2026, 12, 31)):
        try:
            s = session_for("NSE", day)
        except MarketClosed:
            continue
        ours.add(day)
        if s.kind == "special":
            special.add(day)
        else:
            hours.add((s.close_ts - s.open_ts) // 10**9)
    muhurat_weekdays_without_a_source = {date(2015, 11, 11), date(2017, 10, 19)}  # closed here, a full day there
    assert (ours ^ theirs) - special == muhurat_weekdays_without_a_source
    assert len(special) == 12
    assert hours == {6 * 3600 + 15 * 60}


def test_recorded_bars_fall_inside_sessions() -> None:
    bars = pd.read_parquet(realdata("nse_bars/derived_nifty50_1min_2021-03-30_2021-05-24.parquet"))
    times = bars["ts_ist"].drop_duplicates().dt.tz_localize("Asia/Kolkata")
    ns = times.dt.as_unit("ns").astype("int64").tolist()
    inside = sum(is_open(session_for("NSE", trading_day("NSE", t)), t) for t in ns)  # a bar on a closed day raises
    assert len(ns) > 10_000
    assert inside / len(ns) > 0.99


def test_one_day_of_every_zone_change() -> None:
    """09:30 in New York is 09:30 on both sides of every daylight-saving change."""
    for day in days(date(2024, 1, 1), date(2026, 11, 20)):
        try:
            s = session_for("US", day)
        except CalendarError:
            continue
        assert datetime.fromtimestamp(s.open_ts / 1e9, ZoneInfo("America/New_York")).strftime("%F %H:%M") == f"{day} 09:30"


def test_import_is_light() -> None:
    code = "import sys, scalp_nb.feed.calendar; print(sorted({'pandas', 'exchange_calendars', 'pyarrow'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
