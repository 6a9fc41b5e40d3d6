"""What stands between a broker and a practice venue in tests: a line that can be cut, and patience."""
from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any


class Proxy:
    "A line that can be cut, and that can lose the answers to orders; one thread."
    def __init__(self, port: int, stream: bytes = b"GET /stream") -> None:
        self.target, self.modes, self.stream = port, set[str](), stream
        self.sel, self.pairs, self.posted = selectors.DefaultSelector(), dict[socket.socket, socket.socket](), set[socket.socket]()
        self.streams: set[socket.socket] = set()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port, self.stop = self.server.getsockname()[1], False
        self.sel.register(self.server, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.stop:
            for key, _ in self.sel.select(0.02):
                if key.fileobj is self.server: self.accept()
                else: self.move(key.fileobj, key.data)  # type: ignore[arg-type]
        for s in list(self.pairs): self.drop(s)
        self.server.close()

    def accept(self) -> None:
        a, _ = self.server.accept()
        if "down" in self.modes: return a.close()
        b = socket.create_connection(("127.0.0.1", self.target))
        for x, y, side in ((a, b, "client"), (b, a, "server")):
            x.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[x] = y
            self.sel.register(x, selectors.EVENT_READ, side)

    def move(self, s: socket.socket, side: str) -> None:
        if s not in self.pairs: return
        try: data = s.recv(65536)
        except OSError: data = b""
        other = self.pairs[s]
        if side == "client" and data.startswith(self.stream): self.streams |= {s, other}
        if not data or ("down" in self.modes and s not in self.streams): return self.drop(s)
        if side == "client" and data.startswith((b"GET ", b"POST ", b"DELETE ")):
            (self.posted.add if data.startswith(b"POST") else self.posted.discard)(s)
        if side == "server" and "lost_ack" in self.modes:
            if s in self.streams: return  # updates get lost as well
            if other in self.posted: return self.drop(s)
        other.sendall(data)

    def drop(self, s: socket.socket) -> None:
        for x in (s, self.pairs.get(s)):
            if x is None or x not in self.pairs: continue
            self.sel.unregister(x)
            del self.pairs[x]
            x.close()

    def cut(self) -> None:
        "End every connection, the update stream too."
        for s in list(self.pairs):
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: continue


def wait_until(done: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)
