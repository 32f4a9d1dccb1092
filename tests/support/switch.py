"""A network switch in a thread: frames of virtual network devices (TAP) reach each other after a while, or never.

Kernels need no netem for it. The devices are gone when this process is, however it ends.
"""

import contextlib
import fcntl
import os
import select
import struct
import threading
import time
from collections import deque

TUNSETIFF, TAP, PLAIN = 0x400454CA, 0x0002, 0x1000  # linux/if_tun.h: TUNSETIFF, IFF_TAP, IFF_NO_PI
LARGEST = 1 << 16  # bytes of a frame


class Port:
    """The switch's end of a device. is_cut: whatever comes or goes is lost."""

    def __init__(self, device: str) -> None:
        self.is_cut = False
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), TAP | PLAIN))

    def read(self) -> bytes | None:
        """The next frame that was sent; None where there is none, or the device is down."""
        try:
            return os.read(self.fd, LARGEST)
        except OSError:
            return None

    def write(self, frame: bytes) -> None:
        with contextlib.suppress(OSError):  # of a device that is down: lost, as on a wire
            os.write(self.fd, frame)


class Switch:
    """latency: seconds that each frame is on its way."""

    def __init__(self, latency: float) -> None:
        self._latency, self._is_over = latency, False
        self._ports: dict[int, Port] = {}
        self._places: dict[bytes, Port] = {}  # by hardware address
        self._poll = select.poll()
        self._thread = threading.Thread(target=self._run, name="switch", daemon=True)
        self._thread.start()

    def plug_in(self, device: str) -> Port:
        """Make a network device. Raises OSError where this process may not."""
        port = Port(device)
        self._ports[port.fd] = port
        self._poll.register(port.fd, select.POLLIN)
        return port

    def close(self) -> None:
        """The devices are gone after it."""
        self._is_over = True
        self._thread.join()
        for fd in self._ports:
            os.close(fd)

    def _run(self) -> None:
        under_way: deque[tuple[float, Port, bytes]] = deque()
        while not self._is_over:
            left = under_way[0][0] - time.monotonic() if under_way else 0.05
            for fd, _ in self._poll.poll(max(0.0, 1000 * left)):
                port = self._ports[fd]
                while frame := port.read():
                    under_way.append((time.monotonic() + self._latency, port, frame))
            while under_way and under_way[0][0] <= time.monotonic():
                _, port, frame = under_way.popleft()
                self._forward(port, frame)

    def _forward(self, source: Port, frame: bytes) -> None:
        to, self._places[frame[6:12]] = self._places.get(frame[:6]), source
        for port in [to] if to else list(self._ports.values()):
            if port is not source and not port.is_cut and not source.is_cut:
                port.write(frame)
