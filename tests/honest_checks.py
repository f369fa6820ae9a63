"""Verified fences of nodes that are really dead, in sound networks: every one has to succeed.

    python3 tests/honest_checks.py [--rounds 1000] [--seed N]

As root. Each round is one `fence_check -o off` in a network namespace that this file makes: a plug
says OFF, the node's addresses are those of nobody, and the networks have what an ordinary day has.
"""
import argparse
import collections
import concurrent.futures
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from tests import netlab, virtual

WORKERS = 12
LIMITS = {"action": "off", "nodename": "storage-b", "fence_method": "kasa",
          "stonith_status_sleep": "200ms", "verify_wait": "0"}
MGMT, STORAGE, CLIENT, FAR = "10.91.0", "10.92.0", "10.93.0", "10.94.0"
# What each kind of round adds; "%d" is the last number of an address that nobody has.
KINDS = {
    "one network, and the plug in it": {"target_mgmt_ip": MGMT + ".%d"},
    "two networks without a witness": {
        "target_mgmt_ip": MGMT + ".%d", "target_storage_ip": STORAGE + ".%d"},
    "three networks with witnesses": {
        "target_mgmt_ip": MGMT + ".%d", "target_storage_ip": STORAGE + ".%d",
        "target_client_ips": CLIENT + ".%d",
        "witness_ips": "mgmt=%s.8,storage=%s.8,client=%s.8" % (MGMT, STORAGE, CLIENT)},
    "a direct cable that has lost its carrier": {
        "target_mgmt_ip": MGMT + ".%d", "target_storage_ip": "10.95.0.2",
        "direct_networks": "storage"},
    "a witness that loses three of ten packets": {
        "target_mgmt_ip": MGMT + ".%d", "witness_ips": "mgmt=%s.7" % MGMT},
    "one of two witnesses is down": {
        "target_mgmt_ip": MGMT + ".%d", "witness_ips": "mgmt=%s.9,mgmt=%s.8" % (MGMT, MGMT)},
    "behind a router, and seen alive before": {
        "target_ips": "far=%s.%%d" % FAR, "witness_ips": "far=%s.8" % FAR},
    "early_exit": {"target_mgmt_ip": MGMT + ".%d", "verify_wait": "10", "early_exit": "3"}}


class HonestLab(netlab.Lab):
    """A checker with three networks, a cable to a dead node, a router; a plug, and witnesses."""

    def __init__(self):
        super().__init__()
        self.plugs = []
        self.switch("switch")
        self.add("check", "plug", "witness", "lossy", "router", "far", "dead")
        for number, network in enumerate((MGMT, STORAGE, CLIENT)):
            # One switch is enough: networks differ by their addresses.
            for name, last in (("check", 1), ("witness", 8)):
                self.plug_in(name, "switch", "%s.%d/24" % (network, last),
                             interface="eth%d" % number)
        self.plug_in("plug", "switch", MGMT + ".5/24")
        self.plug_in("lossy", "switch", MGMT + ".7/24")
        for hook in ("input", "output"):
            self.inside("lossy", "nft", "add table inet %s; add chain inet %s c { type filter hook "
                        "%s priority 0; numgen random mod 100 < 16 drop; }" % (hook, hook, hook))
        self.plug_in("router", "switch", MGMT + ".254/24")
        self.cable("router", "far0", "far", "eth0")
        self.address("router", "far0", FAR + ".254/24")
        self.address("far", "eth0", FAR + ".8/24")
        self.inside("far", "ip", "route", "add", "default", "via", FAR + ".254")
        self.inside("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.inside("check", "ip", "route", "add", "default", "via", MGMT + ".254")
        self.cable("check", "direct", "dead", "direct")
        self.address("check", "direct", "10.95.0.1/24")
        self.inside("dead", "ip", "link", "set", "direct", "down")
        self.see("check", *["%s.%d" % (FAR, last) for last in range(100, 250)])

    def start_plug(self, **options):
        """Start a plug whose outlet is OFF; return the parameters that reach it."""
        plug = virtual.Kasa(["storage-b"], **options)
        plug.outlets[0].relay = plug.outlets[0].powered = False
        self.call_inside("plug", lambda: plug.start(MGMT + ".5"))
        self.plugs.append(plug)
        return plug, {"fence_ip": MGMT + ".5", "fence_ipport": str(plug.address[1])}

    def close(self):
        while getattr(self, "plugs", None):
            self.plugs.pop().stop()
        super().close()


def answer_slowly(plug):
    answer = plug.send_answer
    plug.send_answer = lambda *sent: (time.sleep(1), answer(*sent))[1]


def run_rounds(lab, rounds, seed):
    """Return [(kind, Result)] of so many rounds."""
    _, quick = lab.start_plug()
    slow_plug, slow = lab.start_plug(metered=True)
    answer_slowly(slow_plug)
    chance = random.Random(seed)
    calls = []
    for _ in range(rounds):
        kind = chance.choice(sorted(KINDS))
        last = chance.randrange(100, 250)
        parameters = {name: text.replace("%d", str(last)) for name, text in KINDS[kind].items()}
        plug = slow if chance.random() < 0.2 else quick
        calls.append((kind, dict(LIMITS, **dict(plug, **parameters))))
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        results = pool.map(lambda call: lab.check("check", call[1]), calls)
        return [(kind, result) for (kind, _), result in zip(calls, results)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", default=str(random.randrange(1000000)))
    options = parser.parse_args()
    lab = HonestLab()
    try:
        found = run_rounds(lab, options.rounds, options.seed)
    finally:
        lab.close()
    counts = collections.Counter(kind for kind, _ in found)
    blocked = [(kind, result) for kind, result in found if result.code or result.err]
    for kind, result in blocked:
        print("%s: exit code %d: %s" % (kind, result.code, result.err.strip()))
    for kind, count in sorted(counts.items()):
        seconds = sorted(result.seconds for one, result in found if one == kind)
        print("%4d %s: median %.1f s, worst %.1f s" % (
            count, kind, seconds[count // 2], seconds[-1]))
    print("seed %s: %d honest verified fences, %d blocked" % (
        options.seed, len(found), len(blocked)))
    return 1 if blocked or not found else 0


if __name__ == "__main__":
    sys.exit(main())
