"""fence_check in real networks: what each situation of a network looks like, and its verdict.

One lab serves all tests. 10.77.0.0/24 is a switched network with the checkers, a plug whose outlet
is OFF, a witness, and targets of every kind; behind its router is 10.78.0.0/24.
"""
import collections
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import unittest

from tests import netlab, support, virtual

NO_ICMP = "meta l4proto icmp"
REJECT = "icmp type echo-request reject with icmp type admin-prohibited"
NEIGHBOURS = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
PLUG = "10.77.0.9"
NOBODY = "10.77.0.99"
LAB = None
SPEAKERS = []  # what goes on in the lab by itself
WORKERS = 32  # most of a check is waiting
# One look is as short as it may be, wherever its length is not the subject.
QUICK = {"ping_timeout": "1", "stonith_status_sleep": "200ms", "login_timeout": "1",
         "shell_timeout": "1"}


def setUpModule():
    global LAB
    support.require_program("ping")
    LAB = netlab.Lab()
    build_lab(LAB)


def tearDownModule():
    for child in SPEAKERS:
        child.kill()
        child.wait()
    LAB.close()


def build_lab(lab):
    lab.switch("switch")
    lab.add("check", "node", "plug", "witness", "router", "far", "hole")
    lab.plug_in("check", "switch", "10.77.0.1/24", "fd77::1/64")
    lab.plug_in("node", "switch", "10.77.0.2/24", "fd77::2/64")
    lab.plug_in("plug", "switch", PLUG + "/24")
    lab.plug_in("witness", "switch", "10.77.0.8/24", "fd77::8/64")
    lab.plug_in("router", "switch", "10.77.0.254/24")
    for name, number, rules, family in (
            ("drops", 3, [("input", NEIGHBOURS + "; drop")], "inet"),
            ("rejects", 4, [("input", REJECT)], "inet"),
            ("ignores", 5, [], "inet"), ("deaf", 6, [("input", "drop")], "arp"),
            ("drops6", 7, [("input", "drop")], "ip6"),
            ("loses", 10, [("input", "icmp type echo-request numgen inc mod 4 < 3 drop")],
             "inet")):
        lab.add(name)
        lab.plug_in(name, "switch", "10.77.0.%d/24" % number, "fd77::%d/64" % number)
        lab.firewall(name, rules, family)
    # The alone are for what routers tell: each machine five times, then once a second.
    lab.add("alone", "alone2")
    for name, number in (("alone", 21), ("alone2", 22)):
        lab.plug_in(name, "switch", "10.77.0.%d/24" % number)
        lab.inside(name, "ip", "route", "add", "default", "via", "10.77.0.254")
    lab.inside("ignores", "sysctl", "-qw", "net.ipv4.icmp_echo_ignore_all=1")
    build_routes(lab)
    # Checkers with a firewall of their own.
    for number, (name, hook, rule) in enumerate((
            ("no-input", "input", NO_ICMP + " drop"), ("no-output", "output", NO_ICMP + " drop"),
            ("rejects-out", "output", NO_ICMP + " reject"),
            ("no-node", "input", "ip saddr 10.78.0.2 drop; ip6 saddr fd77::2 drop"),
            ("no-plug", "output", "ip daddr %s %s drop" % (PLUG, NO_ICMP)))):
        lab.add(name)
        lab.plug_in(name, "switch", "10.77.0.%d/24" % (11 + number))
        lab.firewall(name, [(hook, rule)])
        lab.inside(name, "ip", "route", "add", "default", "via", "10.77.0.254")
    lab.address("no-node", "eth0", "fd77::14/64")
    # It asks over one link, and is answered over the other.
    lab.add("askew")
    lab.plug_in("askew", "switch", "10.77.0.17/24")
    lab.plug_in("askew", "switch", "10.77.1.17/24", interface="eth1")
    lab.inside("askew", "ip", "route", "add", "10.78.0.0/24", "via", "10.77.0.254")
    lab.address("router", "eth0", "10.77.1.254/24")
    lab.inside("router", "ip", "route", "add", "10.77.0.17/32", "via", "10.77.1.17")
    lab.inside("askew", "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1",
               "net.ipv4.conf.eth1.rp_filter=1", "net.ipv4.conf.all.arp_ignore=1")
    build_cables(lab)
    for checker in ("check", "no-input", "no-node", "askew", "no-plug"):
        lab.see(checker, "10.78.0.99", "10.80.0.99", NOBODY, "10.77.0.98", "10.77.0.96", "fd77::99",
                "10.76.0.9", "10.75.0.2", "10.74.0.2")


def build_routes(lab):
    lab.cable("router", "far0", "far", "eth0")
    lab.address("router", "far0", "10.78.0.254/24")
    for host in ("2", "8", "77"):
        lab.address("far", "eth0", "10.78.0.%s/24" % host)
    # Whoever asks one of them is answered by another.
    lab.firewall("far", [("output", "ip saddr 10.78.0.77 ip saddr set 10.78.0.2")], "ip")
    lab.inside("far", "ip", "route", "add", "default", "via", "10.78.0.254")
    lab.inside("router", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.proxy_arp=1",
               "net.ipv4.neigh.eth0.proxy_delay=0")
    # Nobody is there, and the router answers ARP for it.
    lab.inside("router", "ip", "route", "add", "10.77.0.200/32", "dev", "far0")
    # Another address is there.
    lab.inside("router", "ip", "route", "add", "10.77.0.201/32", "dev", "far0")
    lab.address("far", "eth0", "10.77.0.201/32")
    # What it says of a missing route would come before what makes these ways odd.
    for network in ("10.81.0.0/24", "10.84.0.0/16", "10.85.0.0/24", "10.87.0.0/24"):
        lab.inside("router", "ip", "route", "add", "blackhole", network)
    # Behind the second router.
    lab.add("second", "beyond")
    lab.cable("router", "second0", "second", "eth0")
    lab.cable("second", "beyond0", "beyond", "eth0")
    lab.address("router", "second0", "10.67.0.254/24")
    lab.address("second", "eth0", "10.67.0.2/24")
    lab.address("second", "beyond0", "10.80.0.254/24")
    lab.address("beyond", "eth0", "10.80.0.8/24")
    lab.inside("beyond", "ip", "route", "add", "default", "via", "10.80.0.254")
    lab.inside("second", "ip", "route", "add", "default", "via", "10.67.0.254")
    lab.inside("router", "ip", "route", "add", "10.80.0.0/24", "via", "10.67.0.2")
    lab.inside("second", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    lab.inside("check", "ip", "route", "add", "default", "via", "10.77.0.254")
    lab.inside("check", "ip", "route", "add", "10.83.0.0/24", "dev", "eth0")
    for command in (
            "route add 10.84.0.0/24 nexthop via 10.77.0.254 nexthop via 10.77.0.8",
            "route add 10.85.0.0/24 via 10.77.0.254", "rule add fwmark 7 lookup 77",
            "route add 10.85.0.0/24 via 10.77.0.8 table 77",
            "rule add ipproto icmp to 10.86.0.0/24 lookup 78",
            "route add 10.86.0.0/24 via 10.77.0.8 table 78", "route add 10.87.0.0/24 via "
            "10.77.0.254", "xfrm policy add dst 10.87.0.0/24 dir out tmpl proto esp mode tunnel",
            # This one lets them pass as they are.
            "xfrm policy add dst 10.76.0.0/24 dir out action allow",
            "nexthop add id 5 via 10.77.0.254 dev eth0", "route add 10.84.5.0/24 nhid 5"):
        lab.inside("check", "ip", *command.split())
    for kind in ("blackhole", "unreachable", "prohibit"):
        lab.inside("check", "ip", "route", "add", kind, "10.82.%d.0/24" % len(kind))
    # The target drops ARP and answers ICMP: the checker knows its MAC without asking.
    mac = lab.inside("deaf", "cat", "/sys/class/net/eth0/address").strip()
    lab.inside("check", "ip", "neigh", "add", "10.77.0.6", "lladdr", mac, "dev", "eth0")
    lab.inside("deaf", "ip", "neigh", "add", "10.77.0.1", "dev", "eth0", "lladdr",
               lab.inside("check", "cat", "/sys/class/net/eth0/address").strip())
    lab.add("vip")
    lab.plug_in("vip", "switch", "10.77.0.43/24", "fd77::43/128")
    lab.inside("vip", "ip", "route", "add", "fd77::/64", "dev", "eth0")
    # A target that this machine has known, and that answers nobody: it speaks, to whomever.
    lab.add("mute")
    lab.plug_in("mute", "switch", "10.77.0.50/24")
    mac = lab.inside("mute", "cat", "/sys/class/net/eth0/address").strip()
    lab.inside("check", "ip", "neigh", "add", "10.77.0.50", "lladdr", mac, "dev", "eth0")
    lab.firewall("mute", [("input", "drop")], "arp")
    lab.inside("mute", "nft", "add table ip m; add chain ip m i { type filter hook input priority "
               "0; policy drop; }")
    SPEAKERS.append(subprocess.Popen(
        lab.argv("mute", "ping", "-q", "-b", "-i", "0.2", "10.77.0.255"), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    # An entry that says REACHABLE and lies.
    lab.inside("check", "ip", "neigh", "add", "10.77.0.98", "lladdr", "02:00:00:00:00:98", "nud",
               "reachable", "dev", "eth0")


def build_cables(lab):
    """Networks of the checker that swallow everything, have no carrier, or are down."""
    for number, (interface, network) in enumerate(
            (("swallow", "10.75.0"), ("dark", "10.74.0"), ("broken", "10.73.0"))):
        lab.cable("check", interface, "hole", "hole%d" % number)
        lab.address("check", interface, network + ".1/24")
    lab.cable("check", "port6", "hole", "port6")
    lab.inside("check", "ip", "link", "add", "br6", "type", "bridge")
    lab.inside("check", "ip", "link", "set", "port6", "master", "br6")
    lab.address("check", "port6", "10.69.0.1/24")
    lab.inside("hole", "ip", "link", "set", "hole1", "down")
    lab.inside("check", "ip", "link", "set", "broken", "down")
    # A storage network that both nodes have, and nobody else: one cable.
    lab.cable("check", "direct", "node", "direct")
    lab.address("check", "direct", "10.76.0.1/24")
    lab.address("node", "direct", "10.76.0.2/24")


Row = collections.namedtuple("Row", "situation checker parameters code words")


def row(situation, code, words, checker="check", **parameters):
    return Row(situation, checker, parameters, code, words)


NEEDS_WITNESS = "a witness on the same route is needed, because "
BEHIND_ROUTER = NEEDS_WITNESS + "the address is behind a router"
REJECTED_BY_ROUTER = "10.77.0.254 does not forward packets to it: ICMP type 3, code 0"
# Exit codes of status: 0 alive, 2 proven dead, 1 not known. The outlet is OFF in all of them.
ALIVE, DEAD, UNKNOWN = 0, 2, 1
SITUATIONS = (
    row("alive", ALIVE, "Management 10.77.0.2: reachable\n", target_mgmt_ip="10.77.0.2"),
    row("nobody there", DEAD, "Management 10.77.0.99: unreachable\n", target_mgmt_ip=NOBODY),
    row("dead, and the neighbour table still says REACHABLE", DEAD, "10.77.0.98: unreachable\n",
        target_mgmt_ip="10.77.0.98"),
    row("target drops all input", ALIVE, "10.77.0.3: reachable (ARP only: ICMP is filtered)",
        target_mgmt_ip="10.77.0.3"),
    row("target answers ARP at once and echo late", ALIVE, "10.77.0.10: reachable\n",
        target_mgmt_ip="10.77.0.10"),
    row("target ignores echo", ALIVE, "10.77.0.5: reachable (ARP only: ICMP is filtered)",
        target_mgmt_ip="10.77.0.5"),
    row("target drops ICMP and ARP, and talks to others", ALIVE,
        "reachable (its network card sends frames: ICMP and ARP are filtered)",
        target_mgmt_ip="10.77.0.50"),
    row("target rejects with an ICMP error", ALIVE, "reachable (it rejects ICMP echo",
        target_mgmt_ip="10.77.0.4"),
    row("target rejects, and ARP is not asked", ALIVE, "reachable (it rejects ICMP echo",
        target_mgmt_ip="10.77.0.4", arp_check="0"),
    row("target drops ARP, and its MAC is known", ALIVE, "10.77.0.6: reachable\n",
        target_mgmt_ip="10.77.0.6"),
    row("own input firewall drops the replies of a live target", ALIVE, "10.77.0.2: reachable\n",
        checker="no-input", target_mgmt_ip="10.77.0.2"),
    row("own input firewall, target dead", DEAD, "10.77.0.99: unreachable\n",
        checker="no-input", target_mgmt_ip=NOBODY),
    row("own input firewall, routed and alive", ALIVE, "10.78.0.2: reachable\n",
        checker="no-input", target_ips="far=10.78.0.2", witness_ips="far=10.78.0.8"),
    row("own input firewall, and ARP is not asked", ALIVE, "10.77.0.2: reachable\n",
        checker="no-input", target_mgmt_ip="10.77.0.2", arp_check="0",
        witness_ips="mgmt=10.77.0.8", fence_method="fence_stub"),
    row("own firewall drops the replies of the target alone", ALIVE, "10.78.0.2: reachable\n",
        checker="no-node", target_ips="far=10.78.0.2", witness_ips="far=10.78.0.8"),
    row("own firewall drops all that the target sends by IPv6", ALIVE,
        "reachable (neighbour discovery only: ICMP is filtered)", checker="no-node",
        target_ips="six=fd77::2", witness_ips="six=fd77::8"),
    row("answers come back by another link, and rp_filter drops them", ALIVE,
        "10.78.0.2: reachable\n", checker="askew", target_ips="far=10.78.0.2",
        witness_ips="far=10.78.0.8"),
    row("the plug answers over TCP, and not the look", UNKNOWN, "10.77.0.9 is silent too",
        checker="no-plug", target_mgmt_ip=NOBODY, arp_check="0"),
    row("a port that swallows everything; an agent that speaks for an address there", UNKNOWN,
        "10.75.0.9", target_storage_ip="10.75.0.2", witness_ips="storage=10.75.0.8",
        fence_method="fence_stub", fence_ip="10.75.0.9"),
    row("own output firewall drops the echo, target alive", ALIVE, "(ARP only",
        checker="no-output", target_mgmt_ip="10.77.0.2"),
    row("own output firewall drops the echo, target dead", UNKNOWN,
        "this machine cannot send to it: Operation not permitted; does its own firewall",
        checker="no-output", target_mgmt_ip=NOBODY),
    row("own output firewall rejects the echo", UNKNOWN,
        "this machine cannot send to it: Operation not permitted", checker="rejects-out",
        target_mgmt_ip=NOBODY),
    row("own link without carrier", UNKNOWN,
        "(this machine's own link is down: dark has no carrier)",
        target_storage_ip="10.74.0.2"),
    row("own link without carrier, a cable from node to node", DEAD,
        "(the other end of the direct cable is dead: dark has no carrier)",
        target_storage_ip="10.74.0.2", direct_networks="storage"),
    row("own interface down: no route but the default", UNKNOWN, "unreachable (",
        target_storage_ip="10.73.0.2"),
    row("a cable that is down here is not the other node's silence", UNKNOWN, "unreachable (",
        target_storage_ip="10.73.0.2", direct_networks="storage"),
    row("no route", UNKNOWN, "(no usable route from this machine: Network is unreachable)",
        target_ips="six=fd99::1"),
    row("own routes say blackhole", UNKNOWN, "no usable route", target_ips="b=10.82.9.1"),
    row("own routes say unreachable", UNKNOWN, "no usable route", target_ips="b=10.82.11.1"),
    row("own routes say prohibit", UNKNOWN, "no usable route", target_ips="b=10.82.8.1"),
    row("the checker's own address", UNKNOWN, "this machine's own", target_mgmt_ip="10.77.0.1"),
    row("its loopback", UNKNOWN, "this machine's own", target_mgmt_ip="127.0.0.1"),
    row("a broadcast address", UNKNOWN, "broadcast", target_mgmt_ip="10.77.0.255"),
    row("a multicast address", UNKNOWN, "multicast", target_mgmt_ip="224.0.0.1"),
    row("routed and alive", ALIVE, "far 10.78.0.2: reachable\n", target_ips="far=10.78.0.2"),
    row("routed and dead", UNKNOWN, BEHIND_ROUTER, target_ips="far=10.78.0.99"),
    row("routed, with a witness, and never seen alive", UNKNOWN,
        "it was never seen alive from this machine", target_ips="far=10.78.0.97",
        witness_ips="far=10.78.0.8"),
    row("routed and dead, with a witness", DEAD, "far 10.78.0.99: unreachable\n",
        target_ips="far=10.78.0.99", witness_ips="far=10.78.0.8"),
    row("routed and dead, and its router says so within the look", DEAD,
        "far 10.78.0.99: unreachable\n", target_ips="far=10.78.0.99",
        witness_ips="far=10.78.0.8", ping_timeout="4"),
    row("routed, with a witness that is not behind the router", UNKNOWN,
        "witness 10.77.0.8 is not on the same route", target_ips="far=10.78.0.99",
        witness_ips="far=10.77.0.8"),
    row("routed, with the router's own far address for a witness", UNKNOWN,
        "witness 10.78.0.254 is a router on the way", target_ips="far=10.78.0.99",
        witness_ips="far=10.78.0.254"),
    row("two routers away, with the far address of the second for a witness", UNKNOWN,
        "witness 10.80.0.254 is a router on the way", target_ips="far=10.80.0.99",
        witness_ips="far=10.80.0.254"),
    row("two routers away, with a witness between them", UNKNOWN,
        "witness 10.67.0.2 is a router on the way", target_ips="far=10.80.0.99",
        witness_ips="far=10.67.0.2"),
    row("two routers away, with a witness there", DEAD, "far 10.80.0.99: unreachable\n",
        target_ips="far=10.80.0.99", witness_ips="far=10.80.0.8"),
    row("a witness for which a router answers ARP", UNKNOWN,
        "witness 10.77.0.201 is behind a router that answers ARP for it", target_mgmt_ip=NOBODY,
        witness_ips="mgmt=10.77.0.201"),
    row("the plug, for which a router answers ARP, is named for a witness", UNKNOWN,
        "witness 10.77.0.201 is behind a router that answers ARP for it", target_mgmt_ip=NOBODY,
        witness_ips="mgmt=10.77.0.201", fence_method="fence_stub", fence_ip="10.77.0.201"),
    row("routed, with the router for a witness, and few questions", UNKNOWN,
        "witness 10.78.0.254 is a router on the way", target_ips="far=10.78.0.99",
        witness_ips="far=10.78.0.254", ping_count="3"),
    row("two routers away, with the second for a witness, and few questions", UNKNOWN,
        "witness 10.80.0.254 is a router on the way", target_ips="far=10.80.0.99",
        witness_ips="far=10.80.0.254", ping_count="5", ping_timeout="4"),
    row("a next hop that is an object of its own", UNKNOWN, "witness 10.84.5.8 is silent too",
        target_ips="odd=10.84.5.2", witness_ips="odd=10.84.5.8"),
    row("own IPv6 address without a network, and a route for that", DEAD, "fd77::99: unreachable",
        checker="vip", target_ips="six=fd77::99", witness_ips="six=fd77::8"),
    row("a link without ARP, and never seen alive", UNKNOWN, "never seen alive", checker="vip",
        target_mgmt_ip="10.77.0.94", witness_ips="mgmt=10.77.0.8", arp_check="0"),
    row("routed, with the router and a host behind it for witnesses", DEAD,
        "far 10.78.0.99: unreachable\n", target_ips="far=10.78.0.99",
        witness_ips="far=10.78.0.254,far=10.78.0.8"),
    row("routed, and the node is in this machine's own network too", UNKNOWN,
        "its answers would come by way of 10.77.0.99", target_mgmt_ip=NOBODY,
        target_ips="far=10.78.0.99", witness_ips="far=10.78.0.8"),
    row("answers come from another address of the node", ALIVE, "far 10.78.0.77: reachable\n",
        target_ips="far=10.78.0.77"),
    row("attached by a route, without an address in that network", UNKNOWN,
        "this machine's own address there is of another network", target_ips="odd=10.83.0.2",
        witness_ips="odd=10.83.0.8"),
    row("several next hops", UNKNOWN, "the route to it has several next hops",
        target_ips="odd=10.84.0.2", witness_ips="odd=10.84.0.8"),
    row("a rule gives other packets another way", UNKNOWN,
        "a rule gives packets with the mark 7 another route", target_ips="odd=10.85.0.2",
        witness_ips="odd=10.85.0.8"),
    row("a rule gives echoes another way", UNKNOWN, "witness 10.86.0.8 is silent too",
        target_ips="odd=10.86.0.2", witness_ips="odd=10.86.0.8"),
    row("an IPsec policy", UNKNOWN, "an IPsec policy is in force for it",
        target_ips="odd=10.87.0.2", witness_ips="odd=10.87.0.8"),
    row("a port of a bridge that has an address of its own", UNKNOWN,
        NEEDS_WITNESS + "port6 is a port of another link", target_storage_ip="10.69.0.2"),
    row("routed, with a dead witness", UNKNOWN, "witness 10.78.0.98 is silent too",
        target_ips="far=10.78.0.99", witness_ips="far=10.78.0.98"),
    row("routed, with one dead witness and one alive", DEAD, "10.78.0.99: unreachable\n",
        target_ips="far=10.78.0.99", witness_ips="far=10.78.0.98,far=10.78.0.8"),
    row("the router has no route", UNKNOWN, (REJECTED_BY_ROUTER, BEHIND_ROUTER),
        target_ips="net=10.79.0.2"),
    row("the router has no route, and a witness elsewhere answers", UNKNOWN,
        REJECTED_BY_ROUTER, checker="alone", target_ips="net=10.79.0.2",
        witness_ips="net=10.78.0.8"),
    row("the router swallows it", UNKNOWN, "(", target_ips="net=10.81.0.2"),
    row("a router answers ARP for it", ALIVE, "reachable (ARP only", target_mgmt_ip="10.77.0.200"),
    row("a port that swallows everything, without a witness", DEAD,
        "(no witness known: judged by the route and the carrier of swallow alone",
        target_storage_ip="10.75.0.2"),
    row("a port that swallows everything, and a witness", UNKNOWN,
        "witness 10.75.0.8 is silent too", target_storage_ip="10.75.0.2",
        witness_ips="storage=10.75.0.8"),
    row("a witness that does not answer, where the plug does", UNKNOWN,
        "witness 10.77.0.97 is silent too", target_mgmt_ip=NOBODY, witness_ips="mgmt=10.77.0.97"),
    row("the plug is named where it is not", DEAD, "no witness known",
        target_storage_ip="10.76.0.9", witness_ips="storage=" + PLUG),
    row("the plug, which is behind a router, is named where it is not", DEAD, "no witness known",
        target_storage_ip="10.76.0.9", witness_ips="storage=10.78.0.8",
        fence_method="fence_stub", fence_ip="10.78.0.8"),
    row("no ARP wanted, no witness but the plug", DEAD, "10.77.0.99: unreachable\n",
        target_mgmt_ip=NOBODY, arp_check="0"),
    row("IPv6, alive", ALIVE, "six fd77::2: reachable\n", target_ips="six=fd77::2"),
    row("IPv6, drops echo and answers neighbours", ALIVE,
        "reachable (neighbour discovery only: ICMP is filtered)", target_ips="six=fd77::3"),
    row("IPv6, dead, without a witness", UNKNOWN, NEEDS_WITNESS + "IPv6 has no ARP",
        target_ips="six=fd77::99"),
    row("IPv6, dead, with a witness of the other family", UNKNOWN,
        "witness 10.77.0.8 is not on the same route", target_ips="six=fd77::99",
        witness_ips="six=10.77.0.8"),
    row("IPv6, dead, with a witness", DEAD, "six fd77::99: unreachable\n",
        target_ips="six=fd77::99", witness_ips="six=fd77::8"),
    row("one network dead, one not known", UNKNOWN, "Management 10.77.0.99: unreachable\n",
        target_mgmt_ip=NOBODY, target_storage_ip="10.74.0.2"),
    row("one network dead, one alive", ALIVE, "Management 10.77.0.99: unreachable\n",
        target_mgmt_ip=NOBODY, target_storage_ip="10.76.0.2"),
    row("all of three networks dead", DEAD, "Client 10.77.0.96: unreachable\n",
        target_mgmt_ip=NOBODY, target_storage_ip="10.76.0.9", target_client_ips="10.77.0.96"),
)


class LabTest(support.AgentTest):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="fencetool-test-")
        os.chmod(cls.folder, 0o755)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)

    def start_plug(self, state, host=PLUG, machine="plug", make=virtual.Kasa, **options):
        """Start a plug (Kasa) in its namespace; return it and the parameters that reach it."""
        plug = make(["storage-b"], **options)
        plug.outlets[0].relay = plug.outlets[0].powered = state
        LAB.call_inside(machine, lambda: plug.start(host))
        self.addCleanup(plug.stop)
        return plug, {"fence_method": "kasa", "fence_ip": host, "nodename": "storage-b",
                      "fence_ipport": str(plug.address[1])}

    def wait_for_a_look(self):
        """Return when a check on the machine "check" has opened its sockets: its look goes on."""
        LAB.inside("check", "sh", "-c",
                   "until [ $(wc -l </proc/net/packet) -gt 1 ]; do sleep 0.05; done")

    def script(self, name, text):
        """Write an agent of the test's own and return its path."""
        path = os.path.join(self.folder, name)
        with open(path, "w") as handle:
            handle.write("#!/bin/sh\n" + text)
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return path


class SituationTest(LabTest):
    def test_status_exits_2_only_for_a_node_that_is_proven_dead(self):
        """Every situation at once, so that the checks cross each other's packets too."""
        _, address = self.start_plug(state=False)
        stub = self.script("fence_stub", "echo Status: OFF; exit 2\n")

        def check(one):
            parameters = dict(dict(address, action="status", **QUICK), **one.parameters)
            if parameters["fence_method"] == "fence_stub":  # no plug that answers: no witness
                parameters.update(dict({"fence_ip": "10.88.0.1"}, **one.parameters),
                                  fence_method=stub)
            return LAB.check(one.checker, parameters)
        results = support.at_once([lambda one=one: check(one) for one in SITUATIONS],
                                  workers=WORKERS)
        for one, result in zip(SITUATIONS, results):
            with self.subTest(situation=one.situation):
                last_line = {0: "Status: ON", 1: "Status: UNKNOWN", 2: "Status: OFF"}[one.code]
                self.assertEqual((result.code, result.out.splitlines()[-1]), (one.code, last_line),
                                 result)
                alternatives = one.words if isinstance(one.words, tuple) else (one.words,)
                self.assertTrue(any(words in result.out for words in alternatives), result)
                self.assertIn("power=off", result.out)
                self.assertEqual(bool(result.err), one.code == UNKNOWN, result.err)
                self.assertNotRegex(result.err.lower(), "time-?out|timed out")

    def test_off_succeeds_exactly_where_status_exits_2(self):
        _, address = self.start_plug(state=False)
        chosen = [one for one in SITUATIONS if one.checker == "check"
                  and "fence_method" not in one.parameters and "ping_timeout" not in one.parameters]
        limits = dict(QUICK, action="off", verify_wait="0", power_timeout="2")
        results = support.at_once(
            [lambda one=one: LAB.check(one.checker, dict(address, **dict(limits, **one.parameters)))
             for one in chosen], workers=WORKERS)
        for one, result in zip(chosen, results):
            with self.subTest(situation=one.situation):
                if one.code == DEAD:
                    self.assert_success(result)
                    self.assertEqual(result.out, "Success: storage-b is proven dead\n")
                else:
                    self.assert_failure(result, "not proven dead", "storage-b")
                    self.assertNotRegex(result.err.lower(), "time-?out|timed out")

    def test_what_a_router_said_holds_for_the_whole_action(self):
        """The router tells of the missing route in the first look, and is silent in others."""
        _, address = self.start_plug(state=False)
        once = "icmp type destination-unreachable limit rate over 1/hour burst 1 packets drop"
        LAB.firewall("alone2", [("input", once)])
        result = LAB.check("alone2", dict(
            address, action="off", target_ips="net=10.79.0.2", witness_ips="net=10.78.0.8",
            verify_wait="0", **dict(QUICK, power_timeout="3")))
        self.assert_failure(result, REJECTED_BY_ROUTER)

    def test_the_fence_device_is_a_witness_only_when_it_answers_the_look(self):
        names = [one.situation for one in SITUATIONS if "and not the look" in one.situation
                 or "an agent that speaks" in one.situation]
        self.assertEqual(len(names), 2)  # they run with all the others

    def test_a_bridge_of_ones_own_proves_nothing_by_its_carrier(self):
        """Its carrier is lost with a port that is switched off here, and kept by any other port."""
        _, address = self.start_plug(state=False)
        LAB.switch("upper9")
        LAB.add("guest", "node9", "witness9")
        LAB.cable("check", "port9", "upper9", "port9")
        LAB.inside("upper9", "ip", "link", "set", "port9", "master", "br0")
        LAB.plug_in("node9", "upper9", "10.70.0.2/24")
        LAB.plug_in("witness9", "upper9", "10.70.0.8/24")
        for command in ("link add br9 type bridge forward_delay 0", "link set port9 master br9",
                        "link set br9 up", "link set port9 down"):
            LAB.inside("check", "ip", *command.split())
        LAB.address("check", "br9", "10.70.0.1/24")
        parameters = dict(address, action="status", target_storage_ip="10.70.0.2", **QUICK)
        result = LAB.check("check", dict(parameters, direct_networks="storage"))
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn("port port9 of this machine's own bridge forwards nothing", result.out)
        LAB.cable("check", "guest9", "guest", "eth0")
        LAB.inside("check", "ip", "link", "set", "guest9", "master", "br9")
        result = LAB.check("check", parameters)
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn("port port9 of this machine's own bridge forwards nothing", result.out)
        LAB.inside("check", "ip", "link", "set", "port9", "up")
        found = dict(parameters, target_storage_ip="10.70.0.99")
        result = self.check_until_not(found, "forwards nothing")
        self.assertIn("the carrier of br9 (bridge) does not show a cut cable", result.out)
        found = dict(found, witness_ips="storage=10.70.0.8")
        self.assertEqual(LAB.check("check", found).code, DEAD)
        # A port that nobody uses; of the node it must be known that it is not behind that.
        LAB.inside("check", "ip", "link", "set", "guest9", "down")
        result = LAB.check("check", found)
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn("port guest9 of this machine's own bridge forwards nothing", result.out)
        alive = dict(parameters, witness_ips="storage=10.70.0.8")
        self.assertEqual(LAB.check("check", alive).code, ALIVE)
        LAB.inside("node9", "ip", "link", "set", "eth0", "down")
        result = LAB.check("check", alive)
        self.assertEqual(result.code, DEAD, result)

    def check_until_not(self, parameters, words):
        """Return the result of a check that does not say these words any more: a bridge learns."""
        for _ in range(60):
            result = LAB.check("check", parameters)
            if words not in result.out:
                return result
        self.fail(result)

    def test_what_stands_on_a_bridge_proves_no_more_than_the_bridge(self):
        """The way to the node is cut, and the carrier stays: that of the bridge's other port."""
        _, address = self.start_plug(state=False)
        LAB.add("upper")
        LAB.cable("check", "port8", "upper", "port8")
        LAB.cable("check", "other8", "upper", "other8")
        for command in ("link add br8 type bridge", "link set port8 master br8",
                        "link set other8 master br8", "link set br8 up",
                        "link add mac8 link br8 type macvlan mode bridge", "link set mac8 up",
                        "link add top8 link mac8 type macvlan mode bridge", "link set top8 up",
                        "link add vx8 type vxlan id 8 dstport 4789 remote 10.71.0.2",
                        "link set vx8 up",
                        "link set port8 down"):
            LAB.inside("check", "ip", *command.split())
        for number, interface, words in (
                (1, "mac8", "the carrier of mac8 (macvlan on bridge) does not show"),
                (2, "top8", "macvlan on bridge) does not show a cut cable"),
                (3, "vx8", "the carrier of vx8 (vxlan) does not show")):
            LAB.address("check", interface, "10.71.%d.1/24" % number)
            with self.subTest(interface):
                result = LAB.check("check", dict(
                    address, action="status", target_storage_ip="10.71.%d.2" % number, **QUICK))
                self.assertEqual(result.code, UNKNOWN, result)
                self.assertIn(words, result.out)

    def test_a_link_that_stands_on_a_wire_has_the_carrier_of_the_wire(self):
        _, address = self.start_plug(state=False)
        LAB.add("wired")
        LAB.cable("check", "wire7", "wired", "wire7")
        LAB.inside("check", *"ip link add mac7 link wire7 type macvlan mode bridge".split())
        LAB.inside("check", "ip", "link", "set", "mac7", "up")
        LAB.address("check", "mac7", "10.71.7.1/24")
        parameters = dict(address, action="status", target_storage_ip="10.71.7.2", **QUICK)
        self.assertEqual(LAB.check("check", parameters).code, DEAD)
        LAB.inside("wired", "ip", "link", "set", "wire7", "down")
        result = LAB.check("check", parameters)
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn("mac7 has no carrier", result.out)

    def test_a_device_behind_a_router_is_no_witness_for_others_there(self):
        _, address = self.start_plug(state=False, host="10.78.0.2", machine="far")
        result = LAB.check("check", dict(address, action="status", target_ips="far=10.78.0.99",
                                         **QUICK))
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn(BEHIND_ROUTER, result.out)


class EarlyFirewallTest(LabTest):
    def test_an_answer_that_is_dropped_before_any_protocol_sees_it_is_life(self):
        _, address = self.start_plug(state=False)
        LAB.add("no-frame")
        LAB.plug_in("no-frame", "switch", "10.77.0.18/24")
        LAB.inside("no-frame", "ip", "route", "add", "default", "via", "10.77.0.254")
        LAB.see("no-frame", "10.78.0.2", "10.78.0.99")
        rules = "table netdev t {\nchain c {\ntype filter hook ingress device \"eth0\" " \
            "priority 0; policy accept;\nip saddr 10.78.0.2 drop\n}\n}\n"
        try:
            LAB.inside("no-frame", "nft", "-f", "-", stdin=rules)
        except AssertionError as error:
            support.require("not supported" not in str(error), "this kernel has no such hook")
            raise
        for target, code in (("10.78.0.2", ALIVE), ("10.78.0.99", DEAD)):
            result = LAB.check("no-frame", dict(
                address, action="status", target_ips="far=" + target, witness_ips="far=10.78.0.8",
                **QUICK))
            self.assertEqual(result.code, code, result)

    def test_silence_that_no_tap_has_heard_proves_nothing(self):
        """The kernel has no room for a filter."""
        _, address = self.start_plug(state=False)
        LAB.add("no-tap")
        LAB.plug_in("no-tap", "switch", "10.77.0.19/24")
        try:
            LAB.inside("no-tap", "sysctl", "-qw", "net.core.optmem_max=64")
        except AssertionError:
            support.require(False, "this kernel has one limit for all namespaces")
        for target, code in (("10.77.0.2", ALIVE), (NOBODY, UNKNOWN)):
            result = LAB.check("no-tap", dict(
                address, action="status", target_mgmt_ip=target, **QUICK))
            self.assertEqual(result.code, code, result)
        self.assertIn("no packet socket can be opened", result.out)


class LinkKindTest(LabTest):
    """Links that not every kernel has."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        LAB.switch("upper4")
        LAB.add("odd4", "node4", "witness4")
        LAB.plug_in("node4", "upper4")
        LAB.plug_in("witness4", "upper4")
        for interface in ("wire0", "wire1", "wire2"):
            LAB.cable("odd4", interface, "upper4", interface)

    def make(self, *commands):
        """Make links, or skip the test: a kernel without this kind of link is no failure."""
        for command in commands:
            try:
                LAB.inside("odd4", "ip", *command.split())
            except AssertionError as error:
                if "Unknown device type" in str(error):
                    self.skipTest("this kernel has no such link: ip " + command)
                raise

    def join_upper(self, *interfaces):
        for interface in interfaces:
            LAB.inside("upper4", "ip", "link", "set", interface, "master", "br0")

    def check(self, network, **changes):
        return LAB.check("odd4", dict(
            {"action": "status", "nodename": "storage-b", "fence_ip": "10.88.0.1",
             "fence_method": self.script("fence_stub", "echo Status: OFF; exit 2\n"),
             "target_storage_ip": network + ".2"}, **dict(QUICK, **changes)))

    def test_a_vlan_has_the_carrier_of_its_wire_and_no_others_path(self):
        self.make("link add vlan4 link wire2 type vlan id 4", "link set vlan4 up")
        LAB.address("odd4", "vlan4", "10.64.0.1/24")
        result = self.check("10.64.0")
        self.assertEqual(result.code, DEAD, result)
        # Nobody up there knows this VLAN: the witness is as silent as the node.
        result = self.check("10.64.0", witness_ips="storage=10.64.0.8")
        self.assertEqual(result.code, UNKNOWN, result)
        LAB.inside("upper4", "ip", "link", "set", "wire2", "down")
        self.assertIn("vlan4 has no carrier", self.check("10.64.0").out)

    def test_a_bond_that_does_not_watch_its_links_needs_a_witness(self):
        self.make("link add bond4 type bond mode active-backup miimon 0", "link set wire0 down",
                  "link set wire0 master bond4", "link set bond4 up")
        self.join_upper("wire0")
        LAB.address("odd4", "bond4", "10.65.0.1/24")
        LAB.address("witness4", "eth0", "10.65.0.8/24")
        LAB.inside("upper4", "ip", "link", "set", "wire0", "down")
        result = self.check("10.65.0")
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertIn("bond without miimon", result.out)
        result = self.check("10.65.0", witness_ips="storage=10.65.0.8")
        self.assertEqual(result.code, UNKNOWN, result)
        LAB.inside("upper4", "ip", "link", "set", "wire0", "up")
        result = self.check("10.65.0", witness_ips="storage=10.65.0.8")
        self.assertEqual(result.code, DEAD, result)

    def test_a_link_of_a_vrf_is_a_port_and_needs_a_witness(self):
        self.make("link add vrf4 type vrf table 404", "link set vrf4 up",
                  "link set wire1 master vrf4")
        self.join_upper("wire1")
        LAB.address("odd4", "wire1", "10.66.0.1/24")
        LAB.address("node4", "eth0", "10.66.0.2/24")
        for last in ("2", "99"):
            result = self.check("10.66.0", target_storage_ip="10.66.0." + last)
            self.assertNotEqual(result.code, DEAD, result)


class PowerTest(LabTest):
    """What the device says, with a silent and with a live node."""

    def verdicts(self, *cases):
        """Return [(status of a silent node, of a live node)] for some sets of parameters."""
        calls = [lambda case=case, target=target: LAB.check("check", dict(
            QUICK, action="status", target_mgmt_ip=target, **case))
            for case in cases for target in (NOBODY, "10.77.0.2")]
        results = support.at_once(calls, workers=WORKERS)
        return list(zip(results[::2], results[1::2]))

    def assert_verdicts(self, expected):
        """expected: [(exit code with a silent node, what status shows, parameters)]"""
        found = self.verdicts(*[parameters for _, _, parameters in expected])
        for (code, words, _), results in zip(expected, found):
            with self.subTest(words=words):
                self.assertEqual([result.code for result in results], [code, ALIVE], results)
                for result in results:
                    self.assertIn(words, result.out)
        return found

    def test_every_answer_of_a_device_has_its_verdict(self):
        self.assert_verdicts([
            (code, words, dict(self.start_plug(state, **options)[1], **changes))
            for code, words, state, options, changes in (
                (DEAD, "power=off\n", False, {}, {}),
                (ALIVE, "power=on\n", True, {}, {}),
                (DEAD, "power=off\n", False, {"metered": True}, {"power_meter": "require"}),
                (UNKNOWN, "power_meter=require", False, {}, {"power_meter": "require"}),
                (UNKNOWN, "power=unknown (another device", False, {},
                 {"device_mac": "CC:32:E5:00:00:99"}),
                (UNKNOWN, "power=unknown (no complete answer", False, {"fault": "silent"}, {}),
                (UNKNOWN, "power=unknown (", False, {"fault": "garbage"}, {}),
                (UNKNOWN, "power=unknown (", False, {"fault": "wrong_type"}, {}),
                (UNKNOWN, "power=unknown (no connection", False, {"fault": "refuse"}, {}),
                (UNKNOWN, "power=unknown (plug '3' names no outlet", False, {},
                 {"fence_plug": "3"}))])

    def test_every_kind_of_own_device_is_a_witness(self):
        tasmota, esphome, switch = (
            virtual.Tasmota, virtual.Esphome, virtual.Switch)
        pages = virtual.PLAIN_PAGES
        urls = {"status_url": pages.status, "status_on_regex": "ON", "status_off_regex": "OFF"}
        self.assert_verdicts([
            (code, "STONITH device (%s @ %s): power=%s" % (changes["fence_method"], PLUG, words),
             dict(self.start_plug(words == "on", make=make, **options)[1], **changes))
            for code, words in ((DEAD, "off"), (ALIVE, "on")) for make, options, changes in (
                (tasmota, {}, {"fence_method": "tasmota"}),
                (tasmota, {"password": "s3cret-pa55"},
                 {"fence_method": "tasmota", "fence_user": "admin", "fence_pass": "s3cret-pa55"}),
                (esphome, {}, {"fence_method": "esphome", "switch_name": "storage-b"}),
                (switch, {}, dict(urls, fence_method="http")),
                (tasmota, {}, {"fence_method": "http", "status_url": "/cm?cmnd=Power"}))])

    def test_an_outlet_that_draws_power_after_off_is_alive(self):
        plug, address = self.start_plug(state=True, metered=True, fault="welded")
        plug.switch(1, False)
        self.assert_verdicts([(ALIVE, "still draws 43 W", address)])

    def test_the_outlet_of_a_strip_is_the_one_that_was_fenced(self):
        plug = virtual.Kasa(["storage-a", "storage-b", "spare"])
        plug.outlets[1].relay = plug.outlets[1].powered = False
        LAB.call_inside("plug", lambda: plug.start(PLUG))
        self.addCleanup(plug.stop)
        address = {"fence_method": "kasa", "fence_ip": PLUG, "fence_ipport": str(plug.address[1])}
        self.assert_verdicts([(code, words, dict(address, **changes)) for code, words, changes in (
            (DEAD, "power=off", {"nodename": "storage-b"}),
            (ALIVE, "power=on", {"nodename": "storage-a"}),
            (DEAD, "power=off", {"nodename": "x", "fence_plug": "2"}),
            (ALIVE, "power=on", {"nodename": "storage-b", "fence_plug": "3"}),
            (UNKNOWN, "power=unknown", {"nodename": "storage-c"}))])
        self.assertFalse(any("set_relay_state" in str(request) for request in plug.requests))

    def test_a_node_on_several_devices_is_dead_by_all_of_one_level(self):
        """All that is told is the node: the parameters are those of its cluster file."""
        plugs = [self.start_plug(state=state)[0] for state in (False, False, True)]
        off, also_off, on = ["{method: kasa, ip: %s, port: %d}" % (PLUG, plug.address[1])
                             for plug in plugs]
        nobody = "{method: kasa, ip: 10.77.0.98}"
        cases = [("devices: [%s, %s]" % pair, code) for pair, code in (
            ((off, also_off), DEAD), ((off, on), ALIVE), ((on, off), ALIVE),
            ((off, nobody), UNKNOWN), ((nobody, off), UNKNOWN), ((nobody, on), ALIVE))]
        cases += [("levels: [%s, {devices: [%s, %s]}]" % level, code) for level, code in (
            ((nobody, off, also_off), DEAD), ((nobody, off, on), UNKNOWN), ((on, off, on), ALIVE))]

        def check(number):
            path = os.path.join(self.folder, "%d.yml" % number)
            with open(path, "w") as handle:
                handle.write("stonith_nodes:\n  a: {method: none, mgmt_ip: 10.77.0.1}\n"
                             "  b: {mgmt_ip: %s, %s}\n" % (NOBODY, cases[number][0]))
            return LAB.check("check", dict(QUICK, action="status", nodename="b", config=path))
        for (text, code), result in zip(cases, support.at_once(
                [lambda number=number: check(number) for number in range(len(cases))],
                workers=WORKERS)):
            with self.subTest(text):
                word = {DEAD: "OFF", ALIVE: "ON", UNKNOWN: "UNKNOWN"}[code]
                count = text.count("method")
                self.assertEqual(result.code, code, result)
                self.assertEqual(result.out.splitlines()[-1],
                                 "Status by its %d fence devices: %s" % (count, word))

    def test_an_agent_that_knows_its_device_without_an_address_needs_none(self):
        method = self.script("fence_cloud", "grep -q ^ip= && exit 1\necho Status: OFF; exit 2\n")
        address = {"nodename": "storage-b", "fence_method": method}
        self.assert_verdicts([(DEAD, "power=off", address)])
        result = LAB.check("check", dict(QUICK, action="off", fence_method="kasa",
                                         nodename="storage-b", target_mgmt_ip=NOBODY))
        self.assertEqual(result.code, 1)
        self.assertIn("no fence_ip given", result.err)

    def test_an_agent_that_lies_hangs_or_is_missing_proves_nothing(self):
        cases = [(UNKNOWN, "and printed 'Status: ON'", "echo Status: ON; exit 2"),
                 (UNKNOWN, "with exit code 2 and printed ''", "exit 2"),
                 (UNKNOWN, "with exit code 1", "echo Status: OFF; exit 1"),
                 (UNKNOWN, "with exit code -9", "echo Status: OFF; kill -9 $$"),
                 (UNKNOWN, "did not end within", "sleep 20"),
                 (UNKNOWN, "with exit code 1", "head -c 100000 /dev/urandom; exit 1"),
                 (UNKNOWN, "Connection timed-out", "echo Connection timed out >&2; exit 1"),
                 (DEAD, "power=off", "echo Status: OFF; exit 2"),
                 (ALIVE, "power=on", "echo Status: ON; exit 0")]
        address = {"fence_ip": "10.88.0.1", "nodename": "storage-b"}
        self.assert_verdicts([
            (code, words, dict(address, fence_method=self.script("fence_case%d" % number, text)))
            for number, (code, words, text) in enumerate(cases)]
            + [(UNKNOWN, "cannot run fence_nosuch_agent: No such file",
                dict(address, fence_method="fence_nosuch_agent"))])

    def test_an_agents_password_is_only_on_its_stdin(self):
        secrets = ({"fence_pass": "s3cret-pa55"}, {"password": "s3cret-pa55"},
                   {"password_script": self.script("secret", "echo s3cret-pa55\n")})
        for (log, method, _), result in support.at_once([
                lambda item=item: self.run_logger(*item) for item in enumerate(secrets)]):
            with open(log) as handle:
                told, stdin = handle.read().split("stdin:\n")
            self.assertEqual(result.code, UNKNOWN, result)
            self.assertNotIn("PCMK_service", told)
            self.assertNotIn("s3cr", told)
            self.assertTrue(told.startswith("argv: %s \n" % method), told)
            for line in ("action=status", "password=s3cret-pa55", "username=admin", "cipher=3",
                         "plug=storage-b", "ip=10.88.0.1", "passwd=an0ther"):
                self.assertIn(line + "\n", stdin)
            self.assertNotIn("s3cr", result.out + result.err)
            self.assertNotIn("an0ther", result.out + result.err)

    def run_logger(self, number, secret):
        """Run status with an agent that tells all it is given; return its files and the result."""
        log = os.path.join(self.folder, "log%d" % number)
        method = self.script("fence_logger%d" % number, """
            { echo "argv: $0 $*"; env; echo stdin:; cat; } > LOG
            # So that the place where the message is cut lies within the password.
            printf "%075ds3cret-pa55" 0 >&2
            exit 1
        """.replace("LOG", log))
        parameters = {"fence_method": method, "fence_ip": "10.88.0.1", "nodename": "storage-b",
                      "fence_user": "admin", "target_mgmt_ip": NOBODY, "action": "status",
                      "fence_options": "cipher=3,passwd=an0ther", "verbose_level": "2"}
        return (log, method, secret), LAB.check("check", dict(QUICK, **dict(parameters, **secret)),
                                                before=("env", "PCMK_service=pacemaker-fenced"))

    def test_a_real_bmc_is_asked_through_fence_ipmilan(self):
        support.require_program("fence_ipmilan")
        support.require_program("ipmitool")
        simulator = support.require_program("ipmi_sim")
        state = os.path.join(self.folder, "power")
        self.write("power", "0\n")
        self.script("chassis", (
            'case "$1 $2" in "get power") echo power:$(cat %s);; esac; exit 0\n' % state))
        self.write("lan.conf", LAN_CONF % (PLUG, os.path.join(self.folder, "chassis")))
        self.write("cmd.emu", CMD_EMU)
        child = subprocess.Popen(
            LAB.argv("plug", simulator, "-n", "-c", self.folder + "/lan.conf", "-f",
                     self.folder + "/cmd.emu", "-s", self.folder), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        address = {"fence_method": "ipmi", "fence_ip": PLUG, "fence_ipport": "9623",
                   "fence_user": "admin", "fence_pass": "secret", "fence_options": "cipher=3",
                   "nodename": "storage-b"}
        self.wait_for_bmc(address)
        (dead, live), _ = self.assert_verdicts([
            (DEAD, "STONITH device (ipmi @ %s): power=off" % PLUG, address),
            (UNKNOWN, "power=unknown", dict(address, fence_pass="wrong"))])
        print("\nipmi: status of a dead node %.2f s, of a live node %.2f s"
              % (dead.seconds, live.seconds), file=sys.stderr)
        self.write("power", "1\n")
        self.assert_success(LAB.check("check", dict(
            address, action="monitor", target_mgmt_ip="10.77.0.2")))
        self.assert_verdicts([(ALIVE, "power=on", address)])
        child.kill()
        child.wait()
        self.assert_verdicts([(UNKNOWN, "fence_ipmilan did not end within 2 s", address)])

    def wait_for_bmc(self, address):
        for _ in range(50):
            if "power=off" in LAB.check("check", dict(
                    address, action="status", target_mgmt_ip="10.77.0.2", shell_timeout="2")).out:
                return
        self.fail("ipmi_sim does not answer")

    def write(self, name, text):
        with open(os.path.join(self.folder, name), "w") as handle:
            handle.write(text)


LAN_CONF = """name "bmc1"
set_working_mc 0x20
  startlan 1
    addr %s 9623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%s"
  user 1 true  ""      "test"   user  10 none md2 md5 straight
  user 2 true  "admin" "secret" admin 10 none md2 md5 straight
"""
CMD_EMU = """mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""


class TimeTest(LabTest):
    def test_the_times_that_an_administrator_may_rely_on(self):
        silent = {"target_mgmt_ip": NOBODY, "target_storage_ip": "10.76.0.9",
                  "target_client_ips": "10.77.0.96"}
        _, address = self.start_plug(state=False)
        start = min(LAB.check("check", {"action": "metadata"}).seconds for _ in range(3))
        live = {"target_mgmt_ip": "10.77.0.2", "target_storage_ip": "10.76.0.2"}
        cases = (
            ("status of a live node", start + 0.3, ALIVE, dict(live, action="status")),
            ("monitor", start + 2.5, 0, dict(live, action="monitor")),
            ("status of a dead node", 2.5, DEAD, dict(silent, action="status")),
            ("off, verify_wait=1, three silent networks", 1 + 2.5, 0,
             dict(silent, action="off", verify_wait="1")),
            ("off, early_exit=3, three silent networks", 4, 0,
             dict(silent, action="off", early_exit="3")),
            ("status of a node that drops ICMP", 3, ALIVE,
             {"target_mgmt_ip": "10.77.0.3", "action": "status"}))

        def run(case):
            return LAB.check("check", dict(address, **case[3]))
        # The shortest one alone; the others mostly wait, but each has to start first.
        results = [run(cases[0])] + support.at_once(
            [lambda case=case: run(case) for case in cases[1:]], workers=2)
        figures = [("metadata (the start of it all)", start, start)]
        for (name, bound, code, _), result in zip(cases, results):
            with self.subTest(name):
                self.assertEqual((result.code, result.err), (code, ""), result)
                figures.append((name, result.seconds, bound))
        print("".join("\n%-45s %.2f s (bound %.2f s)" % figure for figure in figures),
              file=sys.stderr)

    def test_a_stale_neighbour_entry_neither_delays_nor_reverses_the_verdict(self):
        _, address = self.start_plug(state=False)
        address.update(action="status", target_mgmt_ip="10.77.0.30")
        LAB.add("mortal")
        LAB.plug_in("mortal", "switch", "10.77.0.30/24")
        self.assertEqual(LAB.check("check", address).code, ALIVE)
        self.assertIn("REACHABLE", LAB.inside("check", "ip", "neigh", "show", "10.77.0.30"))
        LAB.inside("mortal", "ip", "link", "set", "eth0", "down")
        result = LAB.check("check", address)
        self.assertEqual(result.code, DEAD, result)

    def test_off_waits_for_a_node_that_dies_late(self):
        _, address = self.start_plug(state=False)
        address.update(action="off", target_mgmt_ip="10.77.0.31", verify_wait="0")
        LAB.add("late")
        LAB.plug_in("late", "switch", "10.77.0.31/24")
        check, _ = support.at_once([
            lambda: LAB.check("check", dict(address, verbose="1")),
            lambda: (self.wait_for_a_look(),
                     LAB.inside("late", "sh", "-c", "sleep 2; ip link set eth0 down"))])
        self.assertEqual((check.code, check.out), (0, "Success: storage-b is proven dead\n"))
        self.assertIn("alive: Management 10.77.0.31: reachable", check.err)

    def test_a_node_that_was_alive_when_it_had_to_be_dead_must_be_silent_for_long(self):
        _, address = self.start_plug(state=False)
        LAB.add("hangs")
        LAB.plug_in("hangs", "switch", "10.77.0.32/24")
        address.update(action="off", target_mgmt_ip="10.77.0.32", verify_wait="5",
                       power_timeout="16", witness_ips="mgmt=10.77.0.8", verbose="1")
        lines, started = [], time.monotonic()

        def hang_and_go_on(line):
            """Fall silent when it was seen alive, and live on when one look has found it dead."""
            lines.append(line)
            if ": Management 10.77.0.32" in line:
                state = "down" if "alive: " in line else "up"
                LAB.inside("hangs", "ip", "link", "set", "eth0", state)

        def die_late(line):
            lines.append(line)
            if "alive: " in line and time.monotonic() > started + 7:
                LAB.inside("hangs", "ip", "link", "set", "eth0", "down")
        with self.subTest("it hangs again and again"):
            self.assertEqual(LAB.follow_check("check", address, hang_and_go_on), 1, lines)
            told = "".join(lines)
            self.assertIn("alive: Management 10.77.0.32: reachable", told)
            self.assertIn("dead: Management 10.77.0.32: unreachable", told)
        with self.subTest("it dies for good, after it had to be dead"):
            LAB.inside("hangs", "ip", "link", "set", "eth0", "up")
            lines, started = [], time.monotonic()
            address.update(power_timeout="60")
            self.assertEqual(LAB.follow_check("check", address, die_late), 0, lines)
            told = "".join(lines)
            self.assertIn("alive: Management 10.77.0.32: reachable", told)
            self.assertGreaterEqual(told.count("dead: Management 10.77.0.32"), 2, told)

    def test_a_link_that_flaps_during_the_look_proves_nothing(self):
        _, address = self.start_plug(state=False)
        LAB.cable("check", "flaps", "hole", "flaps")
        LAB.address("check", "flaps", "10.72.0.1/24")
        address.update(action="status", target_storage_ip="10.72.0.2", ping_timeout="3")
        check, _ = support.at_once([
            lambda: LAB.check("check", address),
            lambda: (self.wait_for_a_look(),
                     LAB.inside("hole", "sh", "-c", "ip link set flaps down; sleep 0.1; "
                                "ip link set flaps up"))])
        self.assertEqual(check.code, UNKNOWN, check)
        self.assertIn("its route or carrier changed while the answers were awaited", check.out)

    def test_the_fence_device_proves_no_path_when_its_own_link_flaps(self):
        """The target's port swallows everything, and only a witness could tell."""
        LAB.add("flapper")
        LAB.plug_in("flapper", "switch", "10.77.0.40/24")
        LAB.cable("flapper", "port", "hole", "port5")
        for command in ("link add br5 type bridge", "link set port master br5", "link set br5 up"):
            LAB.inside("flapper", "ip", *command.split())
        LAB.address("flapper", "br5", "10.68.0.1/24")
        _, address = self.start_plug(state=False)
        address.update(action="status", target_storage_ip="10.68.0.2", ping_timeout="3")
        looks = "until [ $(wc -l </proc/net/packet) -gt 1 ]; do sleep 0.05; done"
        check, _ = support.at_once([
            lambda: LAB.check("flapper", address),
            lambda: LAB.inside("flapper", "sh", "-c", looks + "; ip link set eth0 down; sleep 0.1; "
                               "ip link set eth0 up")])
        self.assertEqual(check.code, UNKNOWN, check)

    def test_a_witness_that_falls_silent_in_the_look_proves_nothing(self):
        _, address = self.start_plug(state=False)
        LAB.add("fades")
        LAB.plug_in("fades", "switch", "10.77.0.41/24")
        address.update(action="status", target_mgmt_ip=NOBODY, ping_timeout="4",
                       witness_ips="mgmt=10.77.0.41")
        self.assertEqual(LAB.check("check", address).code, DEAD)
        # With the path, as when the switch loses its power: it has answered before.
        answered = "until [ $(cat /sys/class/net/eth0/statistics/tx_packets) -gt $0 ]; do " \
            "sleep 0.05; done; ip link set eth0 down"
        sent = int(LAB.inside("fades", "cat", "/sys/class/net/eth0/statistics/tx_packets"))
        check, _ = support.at_once([
            lambda: LAB.check("check", address),
            lambda: LAB.inside("fades", "sh", "-c", answered, str(sent + 5))])
        self.assertEqual(check.code, UNKNOWN, check)
        self.assertIn("witness 10.77.0.41 is silent too", check.out)

    def test_a_second_address_of_the_node_is_no_witness(self):
        _, address = self.start_plug(state=False)
        LAB.address("node", "eth0", "10.77.0.42/24")
        address.update(action="monitor", target_mgmt_ip="10.77.0.2",
                       witness_ips="mgmt=10.77.0.42")
        self.assert_failure(LAB.check("check", address), "has the MAC address of the node itself")


class OutputTest(LabTest):
    def test_status_has_the_promised_shape(self):
        _, address = self.start_plug(state=True)
        result = LAB.check("check", dict(
            address, target_mgmt_ip="10.77.0.2", target_storage_ip="10.76.0.2",
            target_client_ips="10.77.0.8,10.78.0.2", action="status"))
        self.assert_success(result)
        self.assertEqual(re.sub("  +", "  ", result.out), """fence_check status for storage-b:
  STONITH device (kasa @ 10.77.0.9): power=on
  Management 10.77.0.2: reachable
  Storage 10.76.0.2: reachable
  Client 10.77.0.8: reachable
  Client 10.78.0.2: reachable
Status: ON
""")

    def test_the_log_holds_every_evidence_and_the_verdict(self):
        _, address = self.start_plug(state=False)
        log = os.path.join(self.folder, "debug")
        LAB.check("check", dict(address, target_mgmt_ip=NOBODY, target_storage_ip="10.76.0.9",
                                action="off", verify_wait="0", debug_file=log))
        with open(log) as handle:
            text = handle.read()
        power = "STONITH device (kasa @ 10.77.0.9): power=off"
        remark = "(no witness known: judged by the route and the carrier of direct alone)"
        for words in ("evidence target=storage-b finding=dead " + power,
                      "finding=dead Management 10.77.0.99: unreachable",
                      "finding=dead Storage 10.76.0.9: unreachable " + remark,
                      "action=off target=storage-b", "storage-b is proven dead"):
            self.assertIn(words, text)

    def test_a_failure_says_what_to_look_at_first(self):
        cases = ((False, "10.77.0.2", "is there a UPS"), (True, NOBODY, "the right outlet"),
                 (False, "10.74.0.2", "this machine's link, route"))
        limits = dict(QUICK, action="off", verify_wait="0", power_timeout="2")
        plugs = [self.start_plug(state)[1] for state, _, _ in cases]
        calls = [lambda address=address, target=target: LAB.check(
            "check", dict(address, target_storage_ip=target, **limits))
            for address, (_, target, _) in zip(plugs, cases)]
        for result, (_, _, words) in zip(support.at_once(calls), cases):
            self.assert_failure(result, "off storage-b", words)


class RecordTest(LabTest):
    """Who was never seen alive cannot testify; what was seen is kept on each machine."""

    def setUp(self):
        _, address = self.start_plug(state=False)
        self.address = dict(address, target_ips="far=10.78.0.60", witness_ips="far=10.78.0.8",
                            **QUICK)

    def run_action(self, action, **more):
        return LAB.check("recorder", dict(self.address, action=action, **more))

    def test_life_that_a_monitor_or_a_status_saw_lets_silence_count_later(self):
        LAB.add("recorder")
        LAB.plug_in("recorder", "switch", "10.77.0.60/24")
        LAB.inside("recorder", "ip", "route", "add", "default", "via", "10.77.0.254")
        path = LAB.seen_file("recorder")
        for action in ("monitor", "status"):
            result = self.run_action("status")
            self.assertEqual(result.code, UNKNOWN, result)
            self.assertIn("never seen alive", result.out)
            told = self.run_action("monitor", verbose="1")
            self.assertEqual(told.code, 0, told)
            self.assertIn("far 10.78.0.60 is silent, and it was never seen alive", told.err)
            self.assertFalse(os.path.exists(path))
            LAB.address("far", "eth0", "10.78.0.60/24")
            # The router may still wait for the answer of before.
            for _ in range(20):
                self.run_action(action)
                if os.path.exists(path):
                    break
            self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
            LAB.inside("far", "ip", "address", "del", "10.78.0.60/24", "dev", "eth0")
            # Else the machine that had it is a router now, on the way to it.
            LAB.inside("router", "ip", "neigh", "flush", "to", "10.78.0.60", "dev", "far0")
            result = self.run_action("status")
            self.assertEqual(result.code, DEAD, result)
            for damaged in ("{", "[]", '{"10.78.0.60": null}', "", "[" * 100000):
                with open(path, "w") as handle:
                    handle.write(damaged)
                self.assertEqual(self.run_action("status").code, UNKNOWN)
            os.unlink(path)
            os.mkfifo(path)
            self.assertEqual(self.run_action("status").code, UNKNOWN)
            os.unlink(path)


class FewErrorsTest(LabTest):
    """Routers that tell a machine six errors at once, and then one in a second, as Linux does."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        LAB.add("asks", "terse", "terse2", "end", "proxy")
        LAB.plug_in("asks", "switch", "10.77.0.70/24")
        LAB.plug_in("terse", "switch", "10.77.0.71/24")
        LAB.cable("terse", "next", "terse2", "eth0")
        LAB.cable("terse2", "next", "end", "eth0")
        LAB.address("terse", "next", "10.67.0.1/24")
        LAB.address("terse2", "eth0", "10.67.0.2/24")
        LAB.plug_in("proxy", "switch", "10.77.0.74/24")
        LAB.cable("proxy", "next", "end", "eth1")
        for router in ("terse", "terse2", "proxy"):
            LAB.inside(router, "sysctl", "-qw", "net.ipv4.ip_forward=1",
                       "net.ipv4.icmp_ratelimit=1000")
        for number in range(1, 6):
            LAB.address("terse2", "next", "10.67.%d.254/24" % number)
            LAB.address("end", "eth0", "10.67.%d.8/24" % number)
        LAB.inside("terse", "ip", "route", "add", "10.67.0.0/16", "via", "10.67.0.2")
        LAB.inside("terse2", "ip", "route", "add", "default", "via", "10.67.0.1")
        LAB.inside("end", "ip", "route", "add", "default", "via", "10.67.1.254")
        LAB.inside("asks", "ip", "route", "add", "10.67.0.0/16", "via", "10.77.0.71")
        # Two addresses for which a router answers ARP.
        LAB.inside("proxy", "sysctl", "-qw", "net.ipv4.conf.eth0.proxy_arp=1",
                   "net.ipv4.neigh.eth0.proxy_delay=0")
        for last in ("72", "73"):
            LAB.inside("proxy", "ip", "route", "add", "10.77.0.%s/32" % last, "dev", "next")
            LAB.address("end", "eth1", "10.77.0.%s/32" % last)
        LAB.see("asks", *["10.67.%d.99" % number for number in range(1, 6)])

    def check(self, **parameters):
        _, address = self.start_plug(state=False)
        return LAB.check("asks", dict(address, **dict(QUICK, **parameters)))

    def test_routers_that_tell_few_errors_are_found_on_the_way_to_every_network(self):
        """In the last of five networks the wire is broken, and its router is the witness there."""
        networks = range(1, 6)
        result = self.check(
            action="status",
            target_ips=",".join("n%d=10.67.%d.99" % (number, number) for number in networks),
            witness_ips=",".join("n%d=10.67.%d.%s" % (number, number, "254" if number == 5 else "8")
                                 for number in networks))
        self.assertEqual(result.code, UNKNOWN, result)
        self.assertEqual(result.out.count("is a router on the way"), 1, result)
        self.assertIn("witness 10.67.5.254 is a router on the way", result.out)

    def test_what_is_behind_proxy_arp_is_no_witness_in_any_look(self):
        result = self.check(
            action="off", verify_wait="0", power_timeout="6", target_mgmt_ip=NOBODY,
            witness_ips="mgmt=10.77.0.72,mgmt=10.77.0.73")
        self.assert_failure(result, "witness 10.77.0.72 is behind a router",
                            "witness 10.77.0.73 is behind a router")


class MonitorTest(LabTest):
    def monitors(self, *cases):
        """Return the results of some monitors, [(checker, parameters)], at once."""
        return support.at_once([lambda case=case: LAB.check(case[0], dict(
            QUICK, action="monitor", **case[1])) for case in cases])

    def test_monitor_does_not_care_whether_the_node_is_up(self):
        cases = []
        for state, target in ((True, "10.77.0.2"), (False, NOBODY), (False, "10.77.0.2")):
            _, address = self.start_plug(state)
            del address["nodename"]  # Pacemaker names no node to monitor
            cases.append(("check", dict(address, target_mgmt_ip=target, direct_networks="storage",
                                        target_storage_ip="10.74.0.2")))
        for result in self.monitors(*cases):
            self.assert_success(result)

    def test_monitor_fails_where_the_check_could_prove_nothing(self):
        _, address = self.start_plug(False)
        cases = (
            ("dark has no carrier", "check", {"target_storage_ip": "10.74.0.2"}),
            (BEHIND_ROUTER, "check", {"target_ips": "far=10.78.0.2"}),
            ("witness 10.80.0.254 is a router on the way", "check",
             {"target_ips": "far=10.80.0.8", "witness_ips": "far=10.80.0.254"}),
            ("10.75.0.8 is silent too", "check",
             {"target_storage_ip": "10.75.0.2", "witness_ips": "storage=10.75.0.8"}),
            ("cannot send", "no-output", {"target_mgmt_ip": "10.77.0.2"}),
            ("own", "check", {"target_mgmt_ip": "10.77.0.1"}),
            ("Connection timed-out", "check", {"target_mgmt_ip": "10.77.0.2", "fence_method":
             self.script("fence_late", "echo Connection timed out >&2; exit 1\n")}),
            ("no connection", "check", {"target_mgmt_ip": "10.77.0.2", "fence_ipport": "1"}))
        results = self.monitors(*[(checker, dict(address, **parameters))
                                  for _, checker, parameters in cases])
        for (words, _, _), result in zip(cases, results):
            with self.subTest(words=words):
                self.assert_failure(result, words)

    def test_without_root_life_is_seen_and_death_is_not(self):
        """With datagram sockets where the kernel lets this user have them, else by ping."""
        support.require_program("ping")
        # The system's own: this user may not be able to read the one that runs the tests.
        python = support.require_system_python()
        _, address = self.start_plug(False)
        copy = os.path.join(self.folder, "fencetool.py")
        shutil.copy(support.SCRIPT, copy)
        command = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                   python, "-IS", copy, "fence_check")

        def check(target, arp_check):
            parameters = dict(QUICK, action="status", target_mgmt_ip=target, arp_check=arp_check,
                              **address)
            lines = "".join("%s=%s\n" % item for item in parameters.items())
            return support.run(LAB.argv("check", *command), stdin=lines,
                               environment=dict(os.environ))
        cases = (("10.77.0.2", "1"), (NOBODY, "1"), (NOBODY, "0"))
        for group_range, means in (("0 2147483647", "datagram"), ("1 0", "ping")):
            LAB.inside("check", "sysctl", "-qw", "net.ipv4.ping_group_range=" + group_range)
            results = support.at_once([lambda case=case: check(*case) for case in cases])
            with self.subTest(means=means):
                self.assertEqual([result.code for result in results], [ALIVE, UNKNOWN, UNKNOWN],
                                 results)
                self.assertEqual(["run it as root" in result.out for result in results],
                                 [False, True, True])


class ClusterTest(LabTest):
    def test_a_node_alone_is_looked_up_in_the_cluster(self):
        """A cibadmin of the test's own stands in the place of the real one, in its own mounts."""
        cibadmin = support.require_program("cibadmin")
        _, address = self.start_plug(False)
        pairs = dict(address, target_mgmt_ip=NOBODY, pcmk_host_list="storage-a storage-b")
        del pairs["nodename"]
        answer = "<primitive type=\"fence_check\"><instance_attributes>%s</instance_attributes>" \
            "</primitive>" % "".join("<nvpair name=\"%s\" value=\"%s\"/>" % item
                                     for item in pairs.items())
        fake = self.script("cibadmin", "cat <<'END'\n%s\nEND\n" % answer)

        def check(*arguments):
            words = [sys.executable, "-IS", support.compiled_script(), "fence_check"]
            words += list(arguments)
            return support.run(LAB.argv(
                "check", "sh", "-c", 'mount --bind "$1" "$2" && shift 2 && exec "$@"', "sh", fake,
                cibadmin, *words), environment=dict(os.environ))
        result = check("-o", "status", "-n", "storage-b")
        self.assertEqual((result.code, result.err), (DEAD, ""), result)
        self.assertIn("status for storage-b:", result.out)
        result = check("-n", "storage-c")
        self.assert_failure(result, "no fence_check device for 'storage-c'")


if __name__ == "__main__":
    unittest.main()
