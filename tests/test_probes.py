"""The packets of a look, and what it sees through a network that loses some of them."""
import errno
import os
import re
import socket
import struct
import sys
import types
import unittest

import fencetool
from tests import netlab, support

MARKER = b"12345678"
MAC = bytes.fromhex("020000000001")
V4, V6 = socket.AF_INET, socket.AF_INET6


def address(text):
    return socket.inet_pton(V6 if ":" in text else V4, text)


def reply_to(family, request):
    """Return the echo reply to a request, without a right checksum."""
    return bytes([fencetool.ICMP[family].reply]) + request[1:]


def error_about(family, request, target, kind):
    """Return the ICMP error of that kind about an echo request to target."""
    if family == V4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 1, 0) + bytes(4) + address(target)
    else:
        header = struct.pack(">IHBB", 6 << 28, 24, 58, 64) + bytes(16) + address(target)
    return bytes(kind) + bytes(6) + header + request


class EchoTest(unittest.TestCase):
    def test_a_request_to_ipv4_has_a_right_checksum(self):
        for sequence in (0, 1, 49):
            for marker in (MARKER, bytes(8), b"\xff" * 8):
                request = fencetool.build_echo(V4, marker, sequence)
                total = sum(struct.unpack(">%dH" % (len(request) // 2), request))
                while total >> 16:
                    total = (total & 0xFFFF) + (total >> 16)
                self.assertEqual(total, 0xFFFF)

    def test_only_the_reply_brings_the_marker_back(self):
        for family in (V4, V6):
            request = fencetool.build_echo(family, MARKER, 3)
            self.assertEqual(fencetool.parse_echo_reply(family, reply_to(family, request)),
                             (MARKER, 3))
            # Not the request itself, as a machine sees what it sends to itself; nor a part of it.
            for other in (request, b"", reply_to(family, request)[:12], b"\3\1" + request[2:]):
                self.assertEqual(fencetool.parse_echo_reply(family, other), (b"", 0))

    def test_the_reply_of_one_family_is_none_of_the_other(self):
        for family, other in ((V4, V6), (V6, V4)):
            request = fencetool.build_echo(family, MARKER, 0)
            self.assertEqual(fencetool.parse_echo_reply(other, reply_to(family, request)), (b"", 0))


class TapTest(unittest.TestCase):
    def test_a_packet_is_taken_apart_whatever_its_length(self):
        v4 = bytes([0x46]) + bytes(11) + b"\x0a\0\0\2" + bytes(8) + b"inside"
        v6 = bytes(8) + b"\xfd" + bytes(14) + b"\2" + bytes(16) + b"inside"
        self.assertEqual(fencetool.parse_ip_packet(V4, v4), (b"inside", "10.0.0.2"))
        self.assertEqual(fencetool.parse_ip_packet(V6, v6), (b"inside", "fd00::2"))
        for family, packet in ((V4, v4[:19]), (V6, v6[:39]), (V4, b""), (V6, b"")):
            self.assertEqual(fencetool.parse_ip_packet(family, packet), (b"", ""))

    def test_a_tap_hears_answers_and_errors_and_nothing_else(self):
        """The kernel runs the filter, over what this machine sends itself."""
        support.require_root()
        for family, host in ((V4, "127.0.0.1"), (V6, "::1")):
            numbers = fencetool.ICMP[family]
            system = fencetool.System("fencetool")
            tap, sender = system.open_tap(family), system.open_echo(family)
            others = socket.socket(family, socket.SOCK_DGRAM)
            try:
                heard = (numbers.reply,) + numbers.errors + numbers.others
                for kind in heard + (numbers.request, 14, 135):
                    sender.send(bytes([kind, 0]) + bytes(6) + b"mine%4d" % kind, (host, 0))
                    others.sendto(bytes([kind, 0]) + bytes(6), (host, 9))
                found = set()
                while system.wait_readable([tap], 0.2):
                    packet, address = tap.receive()
                    if packet[8:12] == b"mine":
                        self.assertEqual(address, host)
                        found.add(packet[0])
                self.assertEqual(found, set(heard))
            finally:
                for handle in (tap, sender, others):
                    handle.close()


class IcmpErrorTest(unittest.TestCase):
    def test_an_error_tells_its_kind_its_target_and_whose_echo_it_is(self):
        for family, target, kind in ((V4, "10.0.0.2", (3, 1)), (V4, "10.0.0.2", (11, 0)),
                                     (V6, "fd00::2", (1, 3)), (V6, "fd00::2", (3, 0))):
            request = fencetool.build_echo(family, MARKER, 7)
            self.assertEqual(
                fencetool.parse_icmp_error(family, error_about(family, request, target, kind)),
                (kind, address(target), MARKER[:2], 7))
            # The eight bytes that every router quotes are enough.
            short = error_about(family, request[:8], target, kind)
            self.assertEqual(fencetool.parse_icmp_error(family, short)[2], MARKER[:2])

    def test_other_messages_and_torn_ones_are_no_error_of_ours(self):
        for family, target in ((V4, "10.0.0.2"), (V6, "fd00::2")):
            request = fencetool.build_echo(family, MARKER, 0)
            whole = error_about(family, request, target, (3, 1))
            self.assertIsNone(fencetool.parse_icmp_error(family, request))
            self.assertIsNone(fencetool.parse_icmp_error(
                family, error_about(family, reply_to(family, request), target, (3, 1))))
            for length in range(len(whole)):
                found = fencetool.parse_icmp_error(family, whole[:length])
                self.assertIn(found and found[2], (None, MARKER[:2]))


class NeighbourTest(unittest.TestCase):
    def test_an_arp_request_asks_who_has_the_target(self):
        self.assertEqual(
            fencetool.build_arp_request(MAC, address("10.0.0.1"), address("10.0.0.2")).hex(),
            "0001080006040001" "020000000001" "0a000001" "000000000000" "0a000002")

    def test_the_sender_of_an_arp_packet_is_read_and_nothing_else(self):
        reply = bytes.fromhex("0001080006040002" "020000000002" "0a000002" "020000000001"
                              "0a000001")
        self.assertEqual(fencetool.parse_arp_sender(reply + bytes(18)), address("10.0.0.2"))
        for other in (b"", reply[:10], b"\0\6" + reply[2:]):
            self.assertNotEqual(fencetool.parse_arp_sender(other), address("10.0.0.2"))

    def test_a_neighbour_is_asked_at_its_solicited_node_address(self):
        message, group = fencetool.build_neighbour_solicitation(MAC, address("fd77::12:3456"))
        self.assertEqual(group, "ff02::1:ff12:3456")
        self.assertEqual(message.hex(), "8700000000000000" + address("fd77::12:3456").hex()
                         + "0101020000000001")

    def test_an_advertisement_names_its_address_and_a_solicitation_does_not(self):
        solicitation, _ = fencetool.build_neighbour_solicitation(MAC, address("fd77::2"))
        self.assertEqual(fencetool.parse_neighbour_advertisement(b"\x88" + solicitation[1:]),
                         address("fd77::2"))
        self.assertEqual(fencetool.parse_neighbour_advertisement(solicitation), b"")


class MatchingTest(unittest.TestCase):
    """What a look makes of packets, its own and others'."""

    def setUp(self):
        asker = fencetool.Asker(None, True)
        self.look = fencetool.Look(None, types.SimpleNamespace(
            arp_check=True, ping_timeout=1.5, ping_count=60,
            targets=[fencetool.Target("Storage", "10.0.0.2"), fencetool.Target("six", "fd00::2")],
            witnesses=[fencetool.Target("Storage", "10.0.0.9"),
                       fencetool.Target("six", "fd00::9")]), asker, {}, ())
        self.markers = asker.markers
        self.sights = self.look.listener.sights
        self.four, self.witness, self.six = (
            self.sights[address(one)] for one in ("10.0.0.2", "10.0.0.9", "fd00::2"))
        for sight in self.look.sights:
            sight.route = fencetool.Route(
                interface="eth0", index=2, mac=MAC, source=b"", gateway=b"", has_carrier=True,
                carrier_changes=0, is_port=False, odd_way="", dead_port="", link_kind="")

    def take(self, family, packet, sender):
        self.look.listener.take(family, packet, sender)

    def reply(self, sight, marker=b"", sequence=0, sender=""):
        """Take the reply to an echo to one address; the marker is that address's own."""
        request = fencetool.build_echo(
            sight.family, marker or self.markers.of(sight.address), sequence)
        self.take(sight.family, reply_to(sight.family, request), sender or sight.address)

    def test_a_reply_counts_with_the_marker_of_its_address_only(self):
        for sight in (self.four, self.six):
            other = self.witness if sight is self.four else self.sights[address("fd00::9")]
            for marker in (b"87654321", self.markers.of(sight.address)[:2] + bytes(6),
                           self.markers.of(other.address)):
                self.reply(sight, marker)
                self.assertFalse(sight.answered())
            self.reply(other)
            self.assertFalse(sight.answered())
            for _ in range(2):  # a duplicate changes nothing
                self.reply(sight)
                self.assertTrue(sight.echoed)

    def test_an_answer_from_another_address_of_the_target_is_life(self):
        self.reply(self.four, sender="10.9.9.9")
        self.assertTrue(self.four.echoed)
        self.reply(self.witness, sender="10.9.9.9")
        self.assertFalse(self.witness.answered())

    def test_a_witness_has_answered_last_only_what_was_asked_last(self):
        last = self.look.inquiry.first_sequence + 60
        self.reply(self.witness, sequence=last)
        self.assertEqual((self.witness.echoed, self.witness.answered_last), (True, False))
        self.look.listener.last_sequences = range(last, last + 3)
        for sequence in (last - 1, last + 3, 0):
            self.reply(self.witness, sequence=sequence)
            self.assertFalse(self.witness.answered_last)
        self.reply(self.witness, sequence=last + 2)
        self.assertTrue(self.witness.answered_last)

    def test_a_look_behind_a_router_is_longer_than_its_search_for_the_node(self):
        self.look._choose_length()
        self.assertEqual(self.look.inquiry.seconds, 1.5)
        self.four.route = self.four.route._replace(gateway=b"\1\2\3\4")
        self.look._choose_length()
        self.assertEqual(self.look.inquiry.seconds, fencetool.ROUTED_LOOK_SECONDS)
        self.assertEqual(self.look.inquiry.turns, 160)  # no fewer questions in a second than else

    def test_echoes_that_die_on_the_way_tell_how_far_away_an_address_is(self):
        short = self.markers.of_short("10.0.0.9")
        self.assertGreater(self.witness.hops, fencetool.MOST_ROUTERS)
        for hops, known in ((3, 3), (2, 2), (4, 2)):
            self.reply(self.witness, short, fencetool.SHORT_SEQUENCE + hops, "10.0.0.254")
            self.assertEqual((self.witness.hops, self.witness.answered()), (known, False))
        for hops, known in ((1, 1), (3, 3), (2, 3)):
            request = fencetool.build_echo(V4, self.markers.of_short("10.0.0.2"),
                                           fencetool.SHORT_SEQUENCE + hops)
            self.take(V4, error_about(V4, request, "10.0.0.2", (11, 0)), "10.0.0.254")
            self.take(V4, error_about(V4, request, "10.0.0.2", (3, 0)), "10.0.0.254")
            self.assertEqual((self.four.routers, self.four.obstacle), (known, ""))
        # Of the target any answer is life, and any error of its own.
        for kind in ((11, 0), (3, 13)):
            self.four.rejected = False
            self.take(V4, error_about(V4, request, "10.0.0.2", kind), "10.0.0.2")
            self.assertEqual((self.four.rejected, self.four.routers), (True, 3))
        self.reply(self.four, self.markers.of_short("10.0.0.2"), fencetool.SHORT_SEQUENCE + 2)
        self.assertTrue(self.four.echoed)

    def test_a_router_that_takes_on_the_packets_of_an_attached_witness_tells_of_itself(self):
        request = fencetool.build_echo(V4, self.markers.of("10.0.0.9"), 0)
        error = error_about(V4, request, "10.0.0.9", (11, 0))
        self.witness.route = self.witness.route._replace(gateway=b"\1\2\3\4")
        self.take(V4, error, "10.0.0.254")
        self.assertFalse(self.witness.is_forwarded)
        self.witness.route = None  # it was lost before the error came
        self.take(V4, error, "10.0.0.254")
        self.assertFalse(self.witness.is_forwarded)
        self.witness.route = self.four.route
        self.take(V4, error, "10.0.0.254")
        self.assertTrue(self.witness.is_forwarded)

    def test_a_look_is_longer_where_a_witness_loses_answers(self):
        for answered, target_echoed, is_lossy in (
                (0, False, False), (1, False, True), (47, False, True), (48, False, False),
                (60, False, False), (1, True, False)):
            self.witness.answers = set(range(answered))
            self.four.echoed = self.six.echoed = target_echoed
            with self.subTest(answered=answered, target_echoed=target_echoed):
                self.assertIs(self.look.inquiry._is_lossy(), is_lossy)

    def test_echoes_of_two_looks_of_an_action_have_other_sequences_and_the_same_marker(self):
        markers = fencetool.Markers()
        first, second = markers.begin_look(), markers.begin_look()
        longest_look = (2 * fencetool.MOST_ECHOES * fencetool.ROUTED_LOOK_SECONDS
                        / fencetool.SHORTEST_LOOK_SECONDS + fencetool.LAST_QUESTIONS)
        self.assertGreaterEqual(second - first, longest_look)
        for _ in range(100):
            self.assertLess(markers.begin_look() + longest_look, fencetool.SHORT_SEQUENCE)
        self.assertEqual(markers.of("10.0.0.2"), markers.of("10.0.0.2"))
        names = {markers.of("10.0.0.%d" % number) for number in range(200)}
        names |= {markers.of_short("10.0.0.%d" % number) for number in range(200)}
        self.assertEqual(len(names), 400)

    def test_an_error_counts_for_its_target_and_with_our_marker_only(self):
        request = fencetool.build_echo(V4, self.markers.of("10.0.0.2"), 0)
        other = fencetool.build_echo(V4, b"\xff" * 8, 0)
        self.take(V4, error_about(V4, other, "10.0.0.2", (3, 10)), "10.0.0.2")
        self.take(V4, error_about(V4, other, "10.0.0.2", (3, 0)), "10.0.0.254")
        self.take(V4, error_about(V4, request, "10.0.0.7", (3, 0)), "10.0.0.254")
        self.take(V4, error_about(V4, request, "10.0.0.2", (3, 1)), "10.0.0.254")
        self.assertEqual((self.four.answered(), self.four.obstacle), (False, ""))
        self.take(V4, error_about(V4, request, "10.0.0.2", (11, 0)), "10.0.0.254")
        self.assertEqual(self.four.obstacle, "10.0.0.254 does not forward packets to it: "
                                             "ICMP type 11, code 0")
        self.take(V4, error_about(V4, request, "10.0.0.2", (3, 1)), "10.0.0.2")
        self.assertTrue(self.four.rejected)

    def test_arp_and_advertisements_count_for_the_address_that_they_name(self):
        arp = fencetool.build_arp_request(MAC, address("10.0.0.3"), address("10.0.0.2"))
        self.take(socket.AF_PACKET, arp, "eth0")
        self.assertFalse(self.four.answered())
        self.take(socket.AF_PACKET, fencetool.build_arp_request(
            MAC, address("10.0.0.2"), address("10.0.0.1")), "eth0")
        self.assertTrue(self.four.neighbour)
        solicitation, _ = fencetool.build_neighbour_solicitation(MAC, address("fd00::2"))
        self.take(V6, solicitation, "fe80::1")
        self.assertFalse(self.six.answered())
        self.take(V6, b"\x88" + solicitation[1:], "fe80::1")
        self.assertTrue(self.six.neighbour)

    def test_a_witness_that_is_only_overheard_proves_nothing(self):
        other = b"\2" * 6

        def arp(kind, receiver, interface="eth0"):
            packet = bytearray(fencetool.build_arp_request(
                other, address("10.0.0.9"), address("10.0.0.1")))
            packet[7], packet[18:24] = kind, receiver
            self.take(socket.AF_PACKET, bytes(packet), interface)
        six = self.sights[address("fd00::9")]
        arp(1, bytes(6))
        arp(1, MAC)
        arp(2, other)
        arp(2, MAC, "eth1")
        advertisement = b"\x88\0\0\0%c\0\0\0" + address("fd00::9")
        self.take(V6, advertisement.replace(b"%c", b"\x20"), "fd00::9")
        self.assertFalse(self.witness.answered() or six.answered())
        arp(2, MAC)
        self.take(V6, advertisement.replace(b"%c", b"\x60"), "fd00::9")
        self.assertTrue(self.witness.answered() and six.answered())

    def test_an_empty_packet_and_noise_are_nothing(self):
        for family in (V4, V6, socket.AF_PACKET):
            for packet in (b"", b"\0", b"\3\1", bytes(60), b"\xff" * 60):
                self.take(family, packet, "fd00::2" if family == V6 else "10.0.0.2")
        self.assertFalse(any(sight.answered() or sight.obstacle for sight in self.look.sights))


class NetlinkTest(unittest.TestCase):
    def test_an_error_of_the_kernel_is_an_error_here(self):
        answer = struct.pack("IHHIIi", 36, fencetool.NETLINK_ERROR, 0, 1, 0, -101) + bytes(16)
        with self.assertRaises(OSError) as caught:
            fencetool.parse_netlink(answer, fencetool.ROUTE_BODY)
        self.assertEqual(caught.exception.errno, 101)

    def test_attributes_are_read_to_the_length_that_the_answer_tells(self):
        body = struct.pack(fencetool.ROUTE_BODY, 2, 32, 0, 0, 254, 2, 0, 1, 0)
        parts = struct.pack("HHi", 8, fencetool.ROUTE_INTERFACE, 7)
        parts += struct.pack("HH2s", 6, 99, b"ab")
        answer = struct.pack("IHHII", 16 + len(body) + len(parts) + 2, 24, 0, 1, 0) + body + parts
        fields, found = fencetool.parse_netlink(answer + b"\0\0" + bytes(40), fencetool.ROUTE_BODY)
        self.assertEqual((fields[7], found), (1, {4: struct.pack("i", 7), 99: b"ab"}))

    def test_the_route_to_loopback_is_this_machines_own(self):
        with self.assertRaisesRegex(fencetool.Unreachable, "this machine's own"):
            fencetool.System("test").find_route(V4, address("127.0.0.1"))

    def test_a_virtual_link_tells_its_kind_and_a_network_card_has_none(self):
        info = struct.pack("HH7s", 11, 1, b"bridge\0")
        self.assertEqual(fencetool.parse_link_kind(info + b"\0" + bytes(40)), "bridge")
        for other in (b"", b"\0", struct.pack("HH7s", 11, 2, b"bridge\0")):
            self.assertEqual(fencetool.parse_link_kind(other), "")

    def test_what_the_kernel_says_never_sounds_like_pacemakers_timer(self):
        late = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        for error in (late, socket.timeout("timed out")):
            self.assertRegex(fencetool.explain_os_error(error), "timed-out$")
        self.assertEqual(fencetool.explain_os_error(OSError(errno.ENETDOWN, "Network is down")),
                         "Network is down")


class DropsTest(unittest.TestCase):
    def test_packets_that_found_no_room_are_a_doubt(self):
        support.require_root()
        system = fencetool.System("test")
        asker = fencetool.Asker(system, True)
        self.addCleanup(asker.close)
        asker.by_family[V4] = handle = system.open_echo(V4)
        handle.handle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        look = fencetool.Look(system, types.SimpleNamespace(
            ping_timeout=1.5, ping_count=60,
            targets=[fencetool.Target("Storage", "10.0.0.2")], witnesses=[]),
            asker, {}, ())
        look._note_drops()
        self.assertEqual(look.sights[0].obstacle, "")
        for sequence in range(200):
            handle.send(fencetool.build_echo(V4, MARKER, sequence), ("127.0.0.1", 0))
        look._note_drops()
        self.assertIn("had no room for", look.sights[0].obstacle)
        self.assertEqual(handle.count_drops(), 0)


class LossTest(unittest.TestCase):
    """Bad networks: some of the packets are lost."""

    ADDRESSES = 200

    def look(self, lab, network, words):
        """Return how many of the addresses of a network one status sees alive, and how."""
        addresses = ["%s.%d" % (network, number) for number in range(1, self.ADDRESSES + 1)]
        lab.inside("node", "ip", "-batch", "-", stdin="".join(
            "address add %s/24 dev eth0\n" % one for one in addresses))
        result = lab.check("check", {
            "action": "status", "fence_method": "fence_nosuch", "fence_ip": "10.77.0.9",
            "target_client_ips": ",".join(addresses), "stonith_status_sleep": "200ms"})
        seen = re.findall("(?m)^  Client .*: reachable(.*)$", result.out)
        print("\n%s: %d of %d seen alive, %d of them by echo, in %.2f s" % (
            words, len(seen), self.ADDRESSES, seen.count(""), result.seconds), file=sys.stderr)
        self.assertEqual(result.code, 0, result)
        return len(seen)

    def test_a_live_host_is_seen_through_30_percent_loss_every_time(self):
        """In both directions, of whatever frames."""
        lab = netlab.Lab()
        self.addCleanup(lab.close)
        lab.add("check", "node")
        lab.cable("check", "eth0", "node", "eth0")
        lab.address("check", "eth0", "10.77.0.254/24")
        lab.inside("node", "nft", "-f", "-", stdin="table netdev t {\n%s\n}" % "\n".join(
            'chain %s { type filter hook %s device "eth0" priority 0; policy accept; '
            "numgen random mod 100 < 30 drop; }" % (hook, hook) for hook in ("ingress", "egress")))
        self.assertEqual(self.look(lab, "10.77.0", "30 % loss each way"), self.ADDRESSES)

    def test_a_live_host_behind_a_router_is_seen_through_90_percent_loss(self):
        lab = netlab.Lab()
        self.addCleanup(lab.close)
        lab.add("check", "router", "node")
        lab.cable("check", "eth0", "router", "eth0")
        lab.cable("router", "eth1", "node", "eth0")
        lab.address("check", "eth0", "10.76.0.1/24")
        lab.address("router", "eth0", "10.76.0.254/24")
        lab.address("router", "eth1", "10.77.0.254/24")
        lab.address("node", "eth0", "10.77.0.201/24")
        lab.inside("router", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        lab.inside("check", "ip", "route", "add", "default", "via", "10.76.0.254")
        lab.inside("node", "ip", "route", "add", "default", "via", "10.77.0.254")
        lab.firewall("node", [("input", "icmp type echo-request numgen random mod 100 < 90 drop")])
        seen = self.look(lab, "10.77.0", "90 % loss behind a router")
        self.assertGreaterEqual(seen, self.ADDRESSES - 1)


if __name__ == "__main__":
    unittest.main()
