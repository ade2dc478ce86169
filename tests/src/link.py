"""A link between two network namespaces: two TUN devices and this process between them.

usage: link.py NAME NAMESPACE_A NAMESPACE_B RATE_BITS_PER_S DELAY_MS LOSS_PERCENT SEED

Says `ready` on stdout when both ends have their addresses (A 10.213.0.1, B 10.213.0.2) and reads
commands from stdin: `down`, `up`, `renumber` (B becomes 10.213.0.3). Ends with stdin.
"""

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 1400
QUEUE_BYTES = 192 * 1024


def ip(*args):
    subprocess.run(["ip", *args], check=True)


def device(name, namespace, address):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    ip("link", "set", name, "netns", namespace)
    ip("-n", namespace, "addr", "add", address + "/24", "dev", name)
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "link", "set", name, "mtu", str(MTU), "up")
    return fd


def main():
    name, ns_a, ns_b, rate, delay, loss, seed = sys.argv[1:]
    rate, delay, loss = float(rate), float(delay) / 1000, float(loss) / 100
    dice = random.Random(int(seed))
    a = device(name + "a", ns_a, "10.213.0.1")
    b = device(name + "b", ns_b, "10.213.0.2")
    print("ready", flush=True)

    other = {a: b, b: a}
    free = {a: 0.0, b: 0.0}  # when each direction has sent what it has queued
    flying = []  # (arrival, number, where to, packet)
    number = 0
    up = True
    while True:
        now = time.monotonic()
        while flying and flying[0][0] <= now:
            _, _, to, packet = heapq.heappop(flying)
            try:
                os.write(to, packet)
            except OSError:
                pass  # the device is going away, or its queue is full: a packet lost
        wait = max(0.0, flying[0][0] - now) if flying else None
        ready, _, _ = select.select([a, b, 0], [], [], wait)
        for source in ready:
            if source == 0:
                command = os.read(0, 64).decode()
                if not command:
                    return
                for word in command.split():
                    if word == "renumber":
                        ip("-n", ns_b, "addr", "add", "10.213.0.3/24", "dev", name + "b")
                        ip("-n", ns_b, "addr", "del", "10.213.0.2/24", "dev", name + "b")
                        # The first of a subnet takes the others with it, or is followed by them.
                        subprocess.run(
                            ["ip", "-n", ns_b, "addr", "replace", "10.213.0.3/24", "dev", name + "b"],
                            check=True,
                        )
                    else:
                        up = word == "up"
                continue
            for _ in range(32):
                try:
                    packet = os.read(source, 2048)
                except OSError:
                    break
                now = time.monotonic()
                start = max(now, free[source])
                queued = (start - now) * rate / 8
                if not up or queued > QUEUE_BYTES or dice.random() < loss:
                    continue
                free[source] = start + len(packet) * 8 / rate
                number += 1
                heapq.heappush(flying, (free[source] + delay, number, other[source], packet))


main()
