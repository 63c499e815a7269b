"""Many downloads at once: time to first byte, errors, the gateway's memory.

python benchmarks/concurrency.py --clients 100 --size 8
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import harness
from harness import MIB
from transfer import make_file, publish


async def download(host: str, port: int, token: str) -> tuple[float, int]:
    """Return the seconds to the first byte and the bytes of the answer's body."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port, limit=2 * MIB)
    writer.write(
        f"GET /models/m/download HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    first_s = time.perf_counter() - started
    if b" 200 " not in head.splitlines()[0]:
        raise RuntimeError(head.decode())
    size = 0
    while piece := await reader.read(MIB):
        size += len(piece)
    writer.close()
    return first_s, size


async def run(url: str, token: str, clients: int, size: int) -> None:
    parts = urlsplit(url)
    started = time.perf_counter()
    results = await asyncio.gather(
        *(
            download(str(parts.hostname), int(parts.port or 80), token)
            for _ in range(clients)
        ),
        return_exceptions=True,
    )
    took_s = time.perf_counter() - started
    good = [r for r in results if isinstance(r, tuple) and r[1] == size]
    first = sorted(first_s for first_s, _ in good)
    print(
        f"{clients} downloads of {size / MIB:.0f} MiB at once: {len(good)} right, "
        f"{len(results) - len(good)} failed, {took_s:.2f} s, "
        f"{sum(n for _, n in good) / took_s / 1e6:,.0f} MB/s; first byte after "
        f"{statistics.median(first) * 1000:.0f} ms (median), "
        f"{first[-1] * 1000:.0f} ms (last)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--size", type=int, default=8, help="MiB (default 8)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    harness.describe_machine()
    size = options.size * MIB
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        home = Path(directory)
        make_file(home / "m.tflite", size)
        with harness.gateway(home) as gateway:
            publish(gateway, home / "m.tflite", "m")
            token = gateway.token()
            for _ in range(options.repeats):
                asyncio.run(run(gateway.url, token, options.clients, size))
            peak = harness.peak_memory(gateway.process.pid) / MIB
            print(f"gateway's peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
