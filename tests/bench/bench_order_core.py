"""next_intent + accept, step and plan_exits, each beside the cost of one SHA-256 id (the part that cannot be saved)."""
from collections.abc import Callable
from decimal import Decimal as D
from statistics import median
from time import perf_counter_ns

from scalp_nb.order.exits import ExitConfig, ExitView, plan_exits
from scalp_nb.order.machine import step
from scalp_nb.order.manager import OrderManager
from scalp_nb.order.types import Order, OrderState, OrderType, Purpose, Side, Tif, Update, UpdateKind, intent_id

N, RUNS = 5000, 7


def timed(make: Callable[[], Callable[[int], object]]) -> tuple[float, float, float]:
    "Median, min and max over RUNS of the cost of one call, in microseconds."
    out = []
    for _ in range(RUNS):
        fn = make()
        t0 = perf_counter_ns()
        for k in range(N): fn(k)
        out.append((perf_counter_ns() - t0) / N / 1000)
    return median(out), min(out), max(out)


class Caps:
    order_types = frozenset({OrderType.LIMIT, OrderType.STOP_LIMIT})
    tifs = frozenset({Tif.DAY})
    native_oco = False
    modifies = 0


def decide(m: OrderManager, k: int):
    return m.next_intent(ts=k, sym=k, symbol="INFY", side=Side.BUY, purpose=Purpose.ENTRY, qty=D(10), type=OrderType.LIMIT, limit=D("100.05"),
                         stop=None, tif=Tif.DAY, ref_px=D(100))


def accept() -> Callable[[int], object]:
    m = OrderManager("paper", "pressure")
    return lambda k: m.accept(decide(m, k))


def one_step() -> Callable[[int], object]:
    i = decide(OrderManager("paper", "pressure"), 0)
    order, u = Order(i, OrderState.OPEN), Update(1, i.id, UpdateKind.FILL, exec_id="e", qty=D(3), px=D(100))
    return lambda k: step(order, u)


def plan() -> Callable[[int], object]:
    view, cfg = ExitView(0, D(5), D(100), "en", 99.95, 100.05, 1), ExitConfig()
    return lambda k: plan_exits(view, (), cfg, Caps(), lambda px, d: px)


if __name__ == "__main__":
    base = timed(lambda: lambda k: intent_id("paper", "pressure", "INFY", Side.BUY, Purpose.ENTRY, k))
    print(f"{'intent_id (baseline)':24} {base[0]:7.2f} us  [{base[1]:.2f}, {base[2]:.2f}]")
    for name, make in (("next_intent + accept", accept), ("step (fill)", one_step), ("plan_exits (place stop)", plan)):
        t = timed(make)
        print(f"{name:24} {t[0]:7.2f} us  [{t[1]:.2f}, {t[2]:.2f}]  {t[0] / base[0]:.1f} x")
