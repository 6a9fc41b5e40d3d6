"""A view that passes every gate, and ways to breach each one: shared by the risk tests and the benchmark."""

from scalp_nb.risk.gates import RiskView

MINUTE = 60 * 10**9
OPEN = 1_700_000_000 * 10**9
NAN = float("nan")

ENTRY = RiskView(
    ts=OPEN + 60 * MINUTE, equity=1e6, start_equity=1e6, peak_equity=1e6, cash=1e6, buying_power=1e6, day_pnl=0.0, trades_today=0,
    consecutive_losses=0, consecutive_failures=0, open_positions=0, gross_exposure=0.0, open_order_exposure=0.0,
    side=1, qty=100.0, price=100.0, ref_px=100.0, stop_px=99.75, bid=99.95, ask=100.0, displayed_qty=5000.0,
    volume=1e6, session_open_ts=OPEN, session_close_ts=OPEN + 375 * MINUTE,
    entry_cutoff_ts=OPEN + 345 * MINUTE, market_open=True, feed_ok=True, feed_reason="", reconciled=True, killed=False, paused=False,
    symbol_blocked=False, symbol_position=0.0, orders_last_second=0, orders_last_minute=0, own_bid=NAN, own_ask=NAN, duplicate=False,
    shortable=True, restricted=False)
