"""fence_check without a network: evidence and verdict as tables, parameters, texts."""
import itertools
import os
import types
import unittest
from unittest import mock
from xml.etree import ElementTree

import fencetool
from fencetool import Evidence, Finding, PowerState, Sight
from tests import support, virtual

DEAD, ALIVE, UNKNOWN = Finding.DEAD, Finding.ALIVE, Finding.UNKNOWN
ROUTE = fencetool.Route(
    interface="eth0", index=2, mac=b"\2\0\0\0\0\1", source=b"\n\0\0\1", gateway=b"",
    has_carrier=True, carrier_changes=b"\2\0\0\0", is_port=False, odd_way="", dead_port="",
    link_kind="")
NOBODY = fencetool.Witnesses([], [])
GOOD = {"fence_method": "kasa", "fence_ip": "10.20.20.202", "target_mgmt_ip": "10.20.20.2",
        "nodename": "storage-b"}


def power(finding):
    return Evidence(source=fencetool.POWER, finding=finding, subject="STONITH device",
                    seen="power", reason="")


def network(finding):
    return Evidence(source=fencetool.NETWORK, finding=finding, subject="Storage 10.10.10.2",
                    seen="seen", reason="")


def sight(address="10.0.0.2", route=ROUTE, **seen):
    found = Sight(address)
    found.route, found.was_alive = route, True
    for name, value in seen.items():
        setattr(found, name, value)
    return found


def answers(address="10.0.0.9", route=ROUTE, **seen):
    """Return the Sight of a witness that answers to the end of a look."""
    return sight(address, route, echoed=True, answered_last=True, **seen)


def named(*witnesses):
    return fencetool.Witnesses(list(witnesses), [])


def check_settings(**changes):
    """Return what fence_check makes of the good parameters with some changes."""
    values = dict(GOOD, **changes)
    values = {name: value for name, value in values.items() if value is not None}
    agent = fencetool.AGENTS["fence_check"]
    found, _ = fencetool.collect_values(values.items(), agent.params)
    return fencetool.build_check_settings(found, agent.defaults)


class VerdictTest(unittest.TestCase):
    def test_dead_needs_every_observation_to_agree(self):
        seen = 0
        for devices in itertools.chain(*(itertools.product(Finding, repeat=n) for n in range(3))):
            for networks in itertools.chain(*(itertools.product(Finding, repeat=n)
                                              for n in range(5))):
                verdict = fencetool.judge([power(one) for one in devices]
                                          + [network(one) for one in networks])
                everything = set(devices) | set(networks)
                with self.subTest(devices=devices, networks=networks):
                    if ALIVE in everything:
                        self.assertIs(verdict.finding, ALIVE)
                    elif len(devices) == 1 and networks and everything == {DEAD}:
                        self.assertIs(verdict.finding, DEAD)
                        seen += 1
                    else:
                        self.assertIs(verdict.finding, UNKNOWN)
        self.assertEqual(seen, 4)

    def test_the_order_of_the_evidence_does_not_matter(self):
        for items in itertools.permutations([power(DEAD), network(DEAD), network(UNKNOWN)]):
            self.assertIs(fencetool.judge(items).finding, UNKNOWN)

    def test_a_status_that_is_not_proven_has_exit_code_1_or_0(self):
        codes = {finding: code for finding, (_, code) in fencetool.STATUS_ANSWERS.items()}
        self.assertEqual(codes, {DEAD: 2, ALIVE: 0, UNKNOWN: 1})

    def test_the_last_line_tells_what_blocks_and_what_to_look_at(self):
        for item in (power(ALIVE), power(UNKNOWN), network(ALIVE), network(UNKNOWN)):
            text = fencetool.render_blockers(fencetool.judge([power(DEAD), network(DEAD), item]))
            self.assertIn(item.subject, text)
            self.assertIn(fencetool.FIRST_LOOKS[item.source, item.finding], text)
        # Incomplete evidence has no blocker to show, and must not end in a defect.
        self.assertEqual(fencetool.render_blockers(fencetool.judge([power(DEAD)])),
                         "the evidence is incomplete")


class PowerEvidenceTest(unittest.TestCase):
    def test_only_a_positive_off_is_evidence_of_death(self):
        off, on = PowerState.OFF, PowerState.ON
        for state, watts, policy, finding in (
                (off, None, "auto", DEAD), (off, None, "ignore", DEAD),
                (off, None, "require", UNKNOWN), (off, 0.0, "auto", DEAD),
                (off, 0.9, "require", DEAD), (off, 43.0, "auto", ALIVE),
                (off, 43.0, "require", ALIVE), (off, -43.0, "auto", ALIVE),
                (off, 43.0, "ignore", DEAD), (on, None, "auto", ALIVE), (on, 0.0, "auto", ALIVE),
                (on, None, "ignore", ALIVE), (None, None, "auto", UNKNOWN),
                (None, 0.0, "ignore", UNKNOWN), ("OFF", None, "auto", UNKNOWN)):
            with self.subTest(state=state, watts=watts, policy=policy):
                reading = fencetool.NO_METER if watts is None else fencetool.MeterReading(watts, "")
                self.assertIs(fencetool.judge_power(state, reading, policy)[0], finding)

    def test_an_agents_exit_code_and_words_must_agree(self):
        on, off, bad = PowerState.ON, PowerState.OFF, None
        for code, text, expected in (
                (0, "Status: ON\n", on), (2, "Status: OFF\n", off), (2, "", bad), (0, "", bad),
                (2, "Status: ON\n", bad), (0, "Status: OFF\n", bad), (1, "Status: OFF\n", bad),
                (-9, "Status: OFF\n", bad), (2, "Status: ON\nStatus: OFF\n", bad),
                (2, "usage: Status: OFF\n", bad), (2, "Status: off\n", bad),
                (2, "Status: OFFLINE\n", bad), (2, "noise\nStatus: OFF  \nmore\n", off)):
            with self.subTest(code=code, text=text):
                if expected:
                    self.assertIs(fencetool.parse_agent_status(code, text), expected)
                else:
                    with self.assertRaises(fencetool.ProtocolError):
                        fencetool.parse_agent_status(code, text)


class SameOutletTest(support.AgentTest):
    """All looks of one action mean the outlet that the first one has found."""

    def begin(self, device, method):
        """Return the job of an action that has seen the outlet of a device ON."""
        host, port = self.start(device).address
        settings = check_settings(fence_method=method, fence_ip=host, fence_ipport=str(port))
        system = fencetool.System("test")
        made = fencetool.make_device(fencetool.AGENTS["fence_check"], settings, system)
        job = fencetool.CheckJob(system, made, settings)
        self.assertIs(fencetool.observe_power(job).finding, ALIVE)
        return job

    def test_an_alias_that_moves_to_another_outlet_between_two_looks_is_a_doubt(self):
        device = virtual.Kasa(["storage-b", "spare"])
        job = self.begin(device, "kasa")
        device.outlets[0].alias, device.outlets[1].alias = "spare", "storage-b"
        device.outlets[1].relay = False
        found = fencetool.observe_power(job)
        self.assertIs(found.finding, UNKNOWN)
        self.assertIn("has become another outlet", found.reason)

    def test_a_switch_that_has_gone_is_not_replaced_by_the_only_other_one(self):
        device = virtual.Esphome(["storage-b", "spare"])
        job = self.begin(device, "esphome")
        device.outlets[0].relay = device.outlets[1].relay = False
        del device.outlets[0]
        self.assertIs(fencetool.observe_power(job).finding, UNKNOWN)

    def test_a_relay_that_was_read_is_read_again_and_not_remembered(self):
        device = virtual.Tasmota(["POWER"])
        job = self.begin(device, "tasmota")
        device.outlets[0].relay = False
        self.assertIs(fencetool.observe_power(job).finding, DEAD)


class NetworkEvidenceTest(unittest.TestCase):
    def judge(self, found, witnesses=NOBODY, is_direct=False):
        return fencetool.judge_address(found, witnesses, is_direct)

    def test_any_answer_is_life_whatever_else_is_wrong(self):
        for route in (ROUTE, None, ROUTE._replace(has_carrier=False)):
            rejects = "it rejects ICMP echo with an error of its own"
            for answer, reason in (("echoed", ""), ("rejected", rejects),
                                   ("neighbour", "ARP only: ICMP is filtered")):
                found = self.judge(sight(route=route, obstacle="any", **{answer: True}),
                                   is_direct=True)
                self.assertEqual(found, (ALIVE, "reachable", reason))

    def test_silence_counts_only_over_a_proven_path(self):
        """Every combination, against the rule in other words."""
        router = b"\1\2\3\4"
        known = {
            "none": NOBODY, "silent": named(sight("10.0.0.9")), "answers": named(answers()),
            "one of two": named(sight("10.0.0.9"), answers("10.0.0.8")),
            "no path": named(answers(route=None)),
            "elsewhere": named(answers(route=ROUTE._replace(interface="eth1"))),
            "other source": named(answers(route=ROUTE._replace(source=b"\n\0\0\2"))),
            "behind a router": named(answers(route=ROUTE._replace(gateway=router))),
            "the router": named(answers(route=ROUTE._replace(gateway=router), hops=1)),
            "other family": named(answers("fd00::9")),
            "early": named(sight("10.0.0.9", echoed=True)),
            "device": fencetool.Witnesses([], [answers()]),
            "silent device": fencetool.Witnesses([], [sight("10.0.0.9")]),
            "device elsewhere": fencetool.Witnesses(
                [], [answers(route=ROUTE._replace(interface="eth1"))]),
            "device without a path": fencetool.Witnesses([], [answers(route=None)]),
            "silent, and the device": fencetool.Witnesses([sight("10.0.0.8")], [answers()])}
        unasked = ("none", "device elsewhere", "device without a path")
        dead = 0
        for (name, witnesses), carrier, gateway, direct, arp, obstacle, routed in itertools.product(
                known.items(), (True, False), (b"", router), (True, False), (True, False),
                ("", "in the way"), (True, False)):
            route = ROUTE._replace(has_carrier=carrier, gateway=gateway) if routed else None
            finding, seen, _ = self.judge(
                sight(route=route, uses_arp=arp, obstacle=obstacle), witnesses, direct)
            proven = name in ("answers", "one of two", "device")
            is_unasked = name in unasked
            if gateway:
                proven = name == "behind a router"
                is_unasked = name in unasked + ("device", "silent device")
            expected = routed and not obstacle and (
                (carrier and (proven or (arp and is_unasked)))
                or (not carrier and direct and not gateway))
            with self.subTest(witness=name, carrier=carrier, gateway=gateway, direct=direct,
                              arp=arp, obstacle=obstacle, routed=routed):
                self.assertEqual(seen, "unreachable")
                self.assertIs(finding, DEAD if expected else UNKNOWN)
            dead += bool(expected)
        self.assertGreater(dead, 20)

    def test_nothing_stands_in_for_a_witness_that_is_named(self):
        silent = sight(uses_arp=True)
        device = answers("10.0.0.7")
        self.assertIs(self.judge(silent)[0], DEAD)
        self.assertIs(self.judge(silent, fencetool.Witnesses([], [device]))[0], DEAD)
        for witness in (sight("10.0.0.9"), answers(route=None), answers("fd00::9"),
                        answers(route=ROUTE._replace(interface="eth1"))):
            found = self.judge(silent, fencetool.Witnesses([witness], [device]))
            self.assertIs(found[0], UNKNOWN)
        # The device may be one of them, and is left out where it is elsewhere.
        found = self.judge(silent, fencetool.Witnesses([sight("10.0.0.9"), device], [device]))
        self.assertIs(found[0], DEAD)
        elsewhere = answers("10.0.0.7", ROUTE._replace(interface="eth1"))
        found = self.judge(silent, fencetool.Witnesses([elsewhere], [elsewhere]))
        self.assertIs(found[0], DEAD)
        self.assertIn("no witness known", found[2])

    def test_a_router_is_no_witness_of_what_is_behind_it(self):
        behind = ROUTE._replace(gateway=b"\1\2\3\4")
        for routers, hops, finding in ((0, 1, UNKNOWN), (0, 2, DEAD), (1, 2, DEAD), (2, 1, UNKNOWN),
                                       (2, 2, UNKNOWN), (2, 3, DEAD), (0, 5, DEAD), (4, 5, DEAD)):
            silent = sight(route=behind, routers=routers)
            found = self.judge(silent, named(answers(route=behind, hops=hops)))
            with self.subTest(routers=routers, hops=hops):
                self.assertIs(found[0], finding)
                self.assertEqual("is a router on the way" in found[2], finding is UNKNOWN)
        # Attached to the same link it is as good as any other.
        self.assertIs(self.judge(sight(), named(answers(hops=1)))[0], DEAD)

    def test_a_witness_behind_proxy_arp_is_none(self):
        forwarded = answers(is_forwarded=True)
        finding, _, reason = self.judge(sight(uses_arp=True), named(forwarded))
        self.assertIs(finding, UNKNOWN)
        self.assertIn("behind a router that answers ARP for it", reason)
        # The fence device, which nobody named, is then not in this network.
        found = self.judge(sight(uses_arp=True), fencetool.Witnesses([], [forwarded]))
        self.assertEqual((found[0], "no witness known" in found[2]), (DEAD, True))
        self.assertIs(self.judge(sight(), fencetool.Witnesses([], [forwarded]))[0], UNKNOWN)
        # Named it is, and then less will not do.
        found = self.judge(sight(uses_arp=True), fencetool.Witnesses([forwarded], [forwarded]))
        self.assertEqual((found[0], found[2]), (UNKNOWN, reason))

    def test_silence_of_two_networks_over_one_cable_is_silence_of_one(self):
        behind = ROUTE._replace(gateway=b"\1\2\3\4")
        for source, finding in ((ROUTE.source, UNKNOWN), (b"\n\0\0\5", DEAD)):
            near, far = sight("10.0.0.2"), sight("10.9.0.2", behind._replace(source=source))
            fencetool.add_doubts_of_way_back([near, far])
            witness = answers("10.9.0.9", behind._replace(source=source))
            self.assertIs(self.judge(far, named(witness))[0], finding)
            self.assertEqual(near.obstacle, "")
        alone = sight("10.9.0.2", behind)
        fencetool.add_doubts_of_way_back([alone])
        self.assertEqual(alone.obstacle, "")

    def test_a_witness_with_the_nodes_own_mac_is_refused_while_it_lives(self):
        node, other = b"\2" * 6, b"\4" * 6
        for mac, words in ((node, "MAC address of the node itself"), (other, "")):
            witness = answers(macs={mac})
            self.assertIn(words, fencetool.doubt_about_macs(sight(macs={node}), named(witness)))
        self.assertEqual(fencetool.doubt_about_macs(sight(), named(answers())), "")

    def test_a_way_that_is_not_the_only_one_proves_nothing(self):
        found = sight(route=ROUTE._replace(odd_way="several next hops"), uses_arp=True)
        for witnesses in (NOBODY, named(answers(route=found.route))):
            self.assertIs(self.judge(found, witnesses)[0], UNKNOWN)

    def test_a_dead_port_of_an_own_bridge_needs_a_witness_on_the_nodes_port(self):
        bridge = ROUTE._replace(link_kind="bridge", dead_port="eth3")
        for port, witness_port, finding in ((0, 0, UNKNOWN), (5, 0, UNKNOWN), (0, 5, UNKNOWN),
                                            (5, 6, UNKNOWN), (5, 5, DEAD)):
            silent = sight(route=bridge, uses_arp=True, port=port)
            witness = answers(route=bridge, port=witness_port)
            with self.subTest(port=port, witness_port=witness_port):
                self.assertIs(self.judge(silent, named(witness))[0], finding)
                witness.answered_last = False
                self.assertIs(self.judge(silent, named(witness))[0], UNKNOWN)
        self.assertIs(self.judge(sight(route=bridge, uses_arp=True, port=5))[0], UNKNOWN)

    def test_a_port_of_another_link_needs_a_witness(self):
        port = ROUTE._replace(is_port=True)
        self.assertIs(self.judge(sight(route=port, uses_arp=True))[0], UNKNOWN)
        self.assertIs(self.judge(sight(route=port), named(answers(route=port)))[0], DEAD)

    def test_a_carrier_that_no_wire_feeds_proves_no_path(self):
        for kind, finding in (
                ("", DEAD), ("veth", DEAD), ("bond", DEAD), ("team", DEAD), ("vlan on ", DEAD),
                ("macvlan on vlan on bond", DEAD), ("bond without miimon", UNKNOWN),
                ("vlan on bond without miimon", UNKNOWN), ("bridge", UNKNOWN), ("vxlan", UNKNOWN),
                ("vlan on bridge", UNKNOWN), ("macvlan on vlan on bridge", UNKNOWN),
                ("openvswitch", UNKNOWN), ("dummy", UNKNOWN), ("macvlan", UNKNOWN)):
            route = ROUTE._replace(link_kind=kind)
            silent = sight(route=route, uses_arp=True)
            with self.subTest(kind):
                self.assertIs(self.judge(silent)[0], finding)
                self.assertIs(self.judge(silent, named(answers(route=route)))[0], DEAD)

    def test_silence_without_a_witness_says_so(self):
        self.assertEqual(
            self.judge(sight(uses_arp=True)),
            (DEAD, "unreachable",
             "no witness known: judged by the route and the carrier of eth0 alone"))
        self.assertEqual(self.judge(sight(uses_arp=True), named(answers())),
                         (DEAD, "unreachable", ""))

    def test_a_doubt_names_what_is_missing(self):
        router, bridge = ROUTE._replace(gateway=b"\1\2\3\4"), ROUTE._replace(link_kind="bridge")
        silent = [sight("10.0.0.9"), sight("10.0.0.8")]
        for found, witnesses, words in (
                (sight(route=None, obstacle="Network is unreachable"), (),
                 "no usable route from this machine: Network is unreachable"),
                (sight(route=ROUTE._replace(has_carrier=False)), (), "own link is down: eth0 has"),
                (sight(obstacle="in the way"), (), "^in the way$"),
                (sight(), silent[:1], "^witness 10.0.0.9 is silent too"),
                (sight(), silent, "witness 10.0.0.9 is silent too.*; witness 10.0.0.8 is silent"),
                (sight(), [sight("10.0.0.9", None, obstacle="gone")],
                 "^there is no path to witness 10.0.0.9: gone"),
                (sight(), [answers("fd00::9")], "^witness fd00::9 is not on the same route"),
                (sight(route=bridge, uses_arp=True), (), r"because the carrier of eth0 \(bridge\)"),
                (sight(route=router), (), "because the address is behind a router: add one"),
                (sight("fd00::2"), (), "because IPv6 has no ARP"),
                (sight(route=ROUTE._replace(mac=b"")), (), "because eth0 is a link without ARP"),
                (sight(), (), "because arp_check is 0: add one to witness_ips")):
            with self.subTest(words):
                self.assertRegex(fencetool.judge_silence(found, named(*witnesses), False)[1], words)

    def test_a_routed_address_that_was_never_seen_alive_cannot_be_dead(self):
        behind = ROUTE._replace(gateway=b"\1\2\3\4")
        finding, _, reason = self.judge(sight(route=behind, was_alive=False),
                                        named(answers(route=behind)))
        self.assertIs(finding, UNKNOWN)
        self.assertIn("never seen alive", reason)
        self.assertIs(self.judge(sight(was_alive=False), named(answers()))[0], UNKNOWN)
        finding, _, reason = self.judge(sight(was_alive=False, asks_neighbour=True),
                                        named(answers()))
        self.assertEqual((finding, reason), (DEAD, "it was never seen alive from this machine"))
        self.assertIs(self.judge(sight(was_alive=False, echoed=True))[0], ALIVE)
        # What monitor asks is the path alone.
        self.assertEqual(fencetool.judge_silence(
            sight(route=behind, was_alive=False), named(answers(route=behind)), False), (DEAD, ""))

    def test_what_is_in_the_way_comes_before_the_carrier_of_a_direct_cable(self):
        dark = ROUTE._replace(has_carrier=False)
        self.assertIs(self.judge(sight(route=dark), is_direct=True)[0], DEAD)
        self.assertIs(self.judge(sight(route=dark, obstacle="no raw socket"),
                                 is_direct=True)[0], UNKNOWN)

    def test_no_route_outweighs_what_was_in_the_way_before(self):
        lost = sight(obstacle="in the way")
        lost.lose_route("Network is down")
        lost.add_obstacle("later")
        self.assertEqual((lost.route, lost.obstacle), (None, "Network is down"))


class ReadmeTest(unittest.TestCase):
    def test_the_table_of_what_counts_is_that_of_the_code(self):
        words = {DEAD: "dead", ALIVE: "alive", UNKNOWN: "not known"}
        rows = [(rule.observed, rule.finding)
                for rule in fencetool.POWER_RULES + fencetool.LIFE_RULES]
        rows += [("silent: " + rule.observed, rule.finding)
                 for rule in fencetool.SILENCE_RULES + fencetool.RECORD_RULES]
        with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
            section = handle.read().split("### What counts as what\n")[1].split("\n###")[0]
        table = [line for line in section.splitlines() if line.startswith("|")]
        self.assertEqual(table[2:], ["| %s | %s |" % (observed, words[finding])
                                     for observed, finding in rows])


class ParameterTest(support.AgentTest):
    def test_parameters_that_could_prove_nothing_are_usage_errors(self):
        for changes in (
                {"target_mgmt_ip": None}, {"target_mgmt_ip": ","}, {"target_mgmt_ip": "storage-b"},
                {"target_ips": "=10.0.0.1"}, {"target_ips": "a="}, {"target_ips": "a=10.0.0"},
                {"target_client_ips": "10.0.0.1 10.0.0.2"}, {"target_storage_ip": "None"},
                {"witness_ips": "strorage=10.0.0.1"}, {"witness_ips": "mgmt=gateway"},
                {"direct_networks": "storage"}, {"ping_count": "2"}, {"ping_count": "101"},
                {"early_exit": "2.9"}, {"witness_ips": "mgmt=10.20.20.2"},
                {"target_ips": "six=FD77:0:0::2", "witness_ips": "six=fd77::2"},
                {"direct_networks": "mgmt", "witness_ips": "mgmt=10.20.20.9"},
                {"ping_timeout": "0.9"}, {"ping_timeout": "0"}, {"verify_wait": "30"},
                {"early_exit": "29"}, {"power_timeout": "11"}, {"fence_options": "cipher"},
                {"fence_options": "action=off"}, {"fence_options": "nosuch=1"},
                {"fence_pass": "one", "password": "two"}, {"fence_ip": "10.0.0.1 ; reboot"},
                {"fence_ipport": "0"}, {"target_mgmt_ip": "fe80::2"},
                {"fence_options": "power_meter=require"}):
            with self.subTest(changes=changes), self.assertRaises(fencetool.UsageError) as caught:
                check_settings(**changes)
            self.assertNotIn("timeout", str(caught.exception))

    def test_a_misspelt_network_is_refused(self):
        for name in ("target_storag_ip", "witness_ip", "direct_network"):
            result = support.on_stdin("fence_check", dict(GOOD, **{
                "action": "validate-all", name: "10.0.0.1"}))
            self.assertEqual((result.code, name in result.err), (1, True), result)

    def test_a_call_on_stdin_without_an_action_is_refused(self):
        for more in ({}, {"action": ""}):
            result = support.on_stdin("fence_check", dict(GOOD, **more))
            self.assertEqual((result.code, result.out), (1, ""))
            self.assertIn("no action given", result.err)

    def test_networks_have_the_names_of_the_status_output(self):
        settings = check_settings(
            target_storage_ip="10.10.10.2", target_client_ips="10.30.30.2, 10.40.40.2,",
            target_ips="backup=10.50.50.2,fd00::2", witness_ips="mgmt=10.20.20.1,Client=10.30.30.1",
            direct_networks="STORAGE")
        self.assertEqual([tuple(target) for target in settings.targets], [
            ("Management", "10.20.20.2"), ("Storage", "10.10.10.2"), ("Client", "10.30.30.2"),
            ("Client", "10.40.40.2"), ("backup", "10.50.50.2"), ("Network", "fd00::2")])
        self.assertEqual(settings.direct_keys, {"storage"})

    def test_the_device_gets_what_its_own_agent_would_have(self):
        settings = check_settings(fence_user="u", fence_pass="p", device_mac="cc:32:e5:00:00:01")
        self.assertEqual((settings.ip, settings.ipport, settings.username, settings.password),
                         ("10.20.20.202", 9999, "u", "p"))
        self.assertEqual((settings.plug, settings.nodename), ("storage-b", "storage-b"))
        self.assertEqual(settings.device_mac, "cc32e5000001")
        self.assertEqual(check_settings(fence_plug="3").plug, "3")
        self.assertEqual(check_settings(fence_ipport="1234").ipport, 1234)
        self.assertEqual(check_settings(fence_ip="10.0.0.1:77").ipport, 77)
        self.assertEqual(check_settings(nodename=None, plug="storage-b").nodename, "storage-b")
        self.assertEqual(check_settings(fence_method="ipmi").ipport, "")

    def test_a_mistake_is_told_under_the_name_that_was_given(self):
        with self.assertRaisesRegex(fencetool.UsageError, "^fence_ipport: 'x' is not a whole"):
            check_settings(fence_ipport="x")

    def test_secrets_are_known_before_anything_is_logged(self):
        self.assertEqual(
            fencetool.find_secrets({"fence_pass": "a1", "password": "b2",
                                    "fence_options": "cipher=3,passwd=c3,hexadecimal_kg=d4"}),
            {"a1", "b2", "c3", "d4", "cipher=3,passwd=c3,hexadecimal_kg=d4"})

    def test_the_playbooks_parameters_work_unchanged(self):
        """As configure-stonith.sh passes them, the older spelling of the client address too."""
        common = {"fence_user": "", "fence_pass": "", "target_mgmt_ip": "10.20.20.2",
                  "target_storage_ip": "10.10.10.2", "verify_wait": "10", "nodename": "node1",
                  "port": "node1"}
        clients = ({"target_client_ips": "10.30.30.2,10.40.40.2"},
                   {"target_client_ip": "10.30.3.2"})
        methods = [{"fence_method": "ipmi", "fence_ip": "10.20.20.101", "fence_user": "bmcadmin",
                    "fence_pass": "CHANGEME"}, {"fence_method": "kasa", "fence_ip": "10.20.20.202"}]
        methods += [
            {"fence_method": "tasmota", "fence_ip": "10.20.20.203", "fence_user": "admin"},
            {"fence_method": "esphome", "fence_ip": "10.20.20.204", "switch_name": "relay"},
            {"fence_method": "http", "fence_ip": "10.20.20.205", "status_url": "/state",
             "status_on_regex": "ON", "status_off_regex": "OFF"}]
        for method, client in itertools.product(methods, clients):
            with self.subTest(method=method["fence_method"]):
                self.assert_success(support.on_stdin("fence_check", dict(
                    common, action="validate-all", **dict(method, **client))))

    def test_an_unknown_method_is_a_usage_error(self):
        # Names of rows of DIALECTS that are no method of fence_check are among them.
        for method in ("plugd", "fence-ipmilan", "reboot", "/bin/sh", "fence_x; id", "agent",
                       "url"):
            self.assert_failure(support.on_stdin("fence_check", dict(
                GOOD, action="validate-all", fence_method=method)), "fence_method")

    def test_a_protocol_of_another_method_is_a_usage_error(self):
        for method in ("tasmota", "ipmi", "fence_kasa"):
            for protocol in ("klap", "legacy"):
                with self.subTest(method), self.assertRaisesRegex(
                        fencetool.UsageError, "protocol=%s is for fence_method=kasa, and "
                        "fence_method is '%s'" % (protocol, method)):
                    check_settings(fence_method=method, protocol=protocol)
        self.assertEqual(check_settings(fence_method="ipmi", protocol="auto").protocol, "auto")

    def test_missing_parameters_are_named_with_their_option(self):
        self.assert_failure(support.on_stdin("fence_check", {"action": "off"}),
                            "no fence_method given (use --fence-method")


class ActionTest(support.AgentTest):
    def test_reboot_is_always_refused(self):
        for extra in ({}, {"fence_method": "ipmi"}, {"fence_options": ""}):
            self.assert_failure(
                support.on_stdin("fence_check", dict(GOOD, action="reboot", **extra)),
                "second device of a fencing level")

    def test_on_does_nothing_and_succeeds_at_once(self):
        # The device and the password script of these parameters do not exist: nobody asks them.
        result = support.on_stdin("fence_check", dict(
            GOOD, action="on", password_script="/nonexistent"))
        self.assert_success(result)
        self.assertEqual(result.out, "Success: nothing to do\n")

    def test_metadata_describes_the_agent_and_needs_nothing(self):
        result = support.on_stdin("fence_check", {"action": "metadata"}, cwd="/")
        self.assert_success(result)
        tree = ElementTree.fromstring(result.out)
        self.assertEqual(tree.get("name"), "fence_check")
        actions = [action.attrib for action in tree.iter("action")]
        self.assertEqual([action["name"] for action in actions], [
            "on", "off", "reboot", "status", "monitor", "metadata", "manpage", "validate-all"])
        self.assertEqual(actions[0].get("automatic"), "0")
        names = {parameter.get("name") for parameter in tree.iter("parameter")}
        self.assertLess({
            "fence_method", "fence_ip", "fence_ipport", "fence_user", "fence_pass", "password",
            "password_script", "fence_plug", "switch_name", "status_url", "status_on_regex",
            "status_off_regex", "fence_options", "target_mgmt_ip", "target_storage_ip",
            "target_client_ips", "target_ips", "witness_ips", "direct_networks", "verify_wait",
            "ping_count", "ping_timeout", "arp_check", "early_exit", "plug", "port"}, names)
        defaults = {parameter.get("name"): parameter.find("content").get("default")
                    for parameter in tree.iter("parameter")}
        self.assertEqual((defaults["verify_wait"], defaults["arp_check"], defaults["early_exit"]),
                         ("10", "1", "0"))

    def test_list_is_no_action_of_a_verifier(self):
        self.assert_failure(support.on_stdin("fence_check", dict(GOOD, action="list")), "list")


class ClusterParametersTest(unittest.TestCase):
    CIB = """<xpath-query><primitive id="v-a" class="stonith" type="fence_check">
      <instance_attributes id="1"><nvpair id="2" name="fence_method" value="ipmi"/>
      <nvpair id="3" name="pcmk_host_list" value="storage-a"/></instance_attributes>
      <operations><op name="monitor" interval="0" id="4"/></operations></primitive>
      <primitive id="v-b" class="stonith" type="fence_check"><instance_attributes id="5">
      <nvpair id="6" name="fence_method" value="kasa"/>
      <nvpair id="7" name="pcmk_host_map" value="storage-b:2;storage-c:3"/></instance_attributes>
      </primitive></xpath-query>"""

    def test_the_device_is_found_by_its_host_list_or_map(self):
        for node, method in (("storage-a", "ipmi"), ("storage-b", "kasa"), ("storage-c", "kasa")):
            (found,), = fencetool.parse_check_parameters(self.CIB, node)
            self.assertEqual(found["fence_method"], method)

    def test_meta_attributes_are_no_parameters(self):
        meta = ('<meta_attributes id="8"><nvpair id="9" name="target-role" value="Started"/>'
                '</meta_attributes><operations>')
        (found,), = fencetool.parse_check_parameters(
            self.CIB.replace("<operations>", meta), "storage-a")
        self.assertEqual(found, {"fence_method": "ipmi", "pcmk_host_list": "storage-a"})

    def test_several_devices_of_a_node_are_found_by_their_levels(self):
        twice = self.CIB.replace('value="storage-a"', 'value="storage-a, storage-b"')
        for ids, methods in ((("v-a", "v-b"), [["ipmi", "kasa"]]),
                             (("v-level2", "v-level2-device2"), [["ipmi", "kasa"]]),
                             (("v", "v-level3"), [["ipmi"], ["kasa"]])):
            text = twice.replace('"v-a"', '"%s"' % ids[0]).replace('"v-b"', '"%s"' % ids[1])
            found = fencetool.parse_check_parameters(text, "storage-b")
            self.assertEqual([[one["fence_method"] for one in level] for level in found], methods)

    def test_no_device_is_an_error(self):
        for text, node in ((self.CIB, "storage"), ("<cib/>", "storage-b"),
                           ("no xml", "storage-b"), ("", "storage-b")):
            with self.subTest(node=node), self.assertRaises(fencetool.UsageError):
                fencetool.parse_check_parameters(text, node)

    def test_a_cluster_file_that_is_named_is_the_only_source(self):
        with self.assertRaises(fencetool.UsageError):
            fencetool.find_check_parameters("storage-b", {"config": "/nonexistent"},
                                            fencetool.System("test"))

    def test_a_node_with_two_plugs_is_dead_only_when_both_are_off(self):
        dead, alive, unknown = fencetool.EXIT_OFF, fencetool.EXIT_GOOD, fencetool.EXIT_BAD
        for levels, code in (
                ([[dead]], dead), ([[dead, dead]], dead), ([[dead, alive]], alive),
                ([[alive, dead]], alive), ([[dead, unknown]], unknown),
                ([[unknown, dead]], unknown), ([[alive, unknown]], alive),
                ([[unknown], [dead]], dead), ([[dead], [alive]], unknown),
                ([[dead, alive], [unknown]], unknown), ([[alive], [alive]], alive)):
            with mock.patch.object(fencetool.System, "write") as written:
                found = fencetool.combine_codes("status", levels, fencetool.System("test"))
            self.assertEqual(found, code, levels)
            self.assertEqual(written.called, levels != [[dead]])
        for levels, code in (([[0]], 0), ([[0, 1]], 1), ([[1, 0]], 1), ([[1], [0]], 1),
                             ([[0], [1]], 1), ([[0, 1], [1]], 1), ([[0], [0, 0]], 0)):
            for action in ("off", "monitor"):
                self.assertEqual(fencetool.combine_codes(action, levels, None), code, levels)

    def test_a_misspelt_network_in_the_clusters_configuration_is_refused_too(self):
        found = {"fence_method": "kasa", "fence_ip": "127.0.0.1", "target_mgmt_ip": "127.0.0.2",
                 "target_storge_ip": "127.0.0.3", "managed-by": "fencetool"}
        for action in ("off", "status"):
            with self.assertRaisesRegex(fencetool.UsageError, "target_storge_ip"):
                fencetool.run_agent(
                    fencetool.AGENTS["fence_check"], [("action", action), ("plug", "storage-b")],
                    fencetool.System("test"), lambda node, values, system: [[found]])


class WrongTimesTest(unittest.TestCase):
    """Waits and deadlines on a clock of the test's own."""

    class System:
        """A clock that moves only by sleeping and looking, and a log."""

        secrets = ()

        def __init__(self):
            self.now = 0.0
            self.events = []
            self.sleep = self.wait
            self.event = self.events.append

        def clock(self):
            return self.now

        def wait(self, seconds):
            self.now += seconds

        def deadline(self, seconds):
            return fencetool.Deadline(self.clock, seconds)

        def debug(self, text, level=1):
            pass

    def run_off(self, looks, device_s=0, **changes):
        """Run off where the n-th look, of 1.5 s, finds looks[n]; the last one repeats.

        device_s: how long the device takes to tell its state, before each look.
        """
        system = self.System()
        settings = check_settings(**changes)
        job = fencetool.CheckJob(system, None, settings)
        findings = iter(looks)
        last = [None]

        def collect(job):
            last[0] = next(findings, last[0])
            system.wait(device_s)
            job.look_began = system.clock()
            system.wait(settings.ping_timeout)
            return [power(DEAD), network(last[0])]
        try:
            code, _ = fencetool.run_check_off(job, collect)
        except fencetool.NotConfirmed as error:
            code = str(error)
        return types.SimpleNamespace(code=code, now=system.now, events=system.events)

    def hear(self, packets):
        """Return how many packets a look takes in after it was held up for five seconds."""
        system = self.System()
        asker = fencetool.Asker(system, True)
        look = fencetool.Look(system, check_settings(), asker, {}, [])
        look.sights[0].route = ROUTE
        asker.by_family = {"any": types.SimpleNamespace(
            family="any", receive=lambda: (b"", ()))}
        taken = []
        look.listener.take = lambda family, *packet: taken.append(packet)

        def wait_readable(handles, seconds):
            if not taken:
                system.wait(5)
            return handles if len(taken) < packets else []
        system.wait_readable = wait_readable
        look.inquiry._listen(0.1)
        return len(taken)

    def test_a_process_that_was_held_up_reads_what_has_piled_up(self):
        self.assertEqual(self.hear(500), 500)

    def test_what_has_piled_up_between_two_looks_is_no_flood(self):
        system = self.System()
        asker = fencetool.Asker(system, True)
        look = fencetool.Look(system, check_settings(), asker, {}, [])
        left = list(range(3 * fencetool.MOST_LATE_READS))
        asker.by_family = {"any": types.SimpleNamespace(
            family="any", count_drops=lambda: 7, receive=lambda: (left.pop() and b"", ()))}
        taken = []
        look.listener.take = lambda family, *packet: taken.append(packet)
        system.wait_readable = lambda handles, seconds: handles if left else []
        look._catch_up()
        self.assertEqual(len(taken), 3 * fencetool.MOST_LATE_READS)

    def test_a_flood_of_packets_ends_the_look(self):
        with self.assertRaisesRegex(fencetool.Unreachable, "more packets come in"):
            self.hear(float("inf"))

    def test_a_dead_node_is_looked_at_once_after_verify_wait(self):
        result = self.run_off([DEAD])
        self.assertEqual((result.code, result.now), (0, 11.5))

    def test_a_node_in_doubt_gets_the_rest_of_power_timeout(self):
        result = self.run_off([UNKNOWN, UNKNOWN, UNKNOWN, DEAD])
        self.assertEqual((result.code, result.now), (0, 10 + 4 * 1.5 + 3))

    def test_life_after_verify_wait_is_not_forgotten(self):
        """A silence of one look is then no proof; one as long as verify_wait is."""
        result = self.run_off([ALIVE, DEAD])
        self.assertEqual((result.code, result.now), (0, 10 + 1.5 + 1 + 7 * 1.5))
        for looks in ([ALIVE, DEAD, DEAD, UNKNOWN] * 9, [ALIVE, DEAD] * 20,
                      [ALIVE, DEAD, DEAD, DEAD, ALIVE] * 9):
            self.assertIn("not proven dead", self.run_off(looks).code)
        result = self.run_off([ALIVE, DEAD], verify_wait="0")
        self.assertEqual((result.code, result.now), (0, 1.5 + 1 + 2 * 1.5))

    def test_life_before_verify_wait_has_ended_costs_no_more_than_early_exit(self):
        result = self.run_off([ALIVE, DEAD], early_exit="3")
        self.assertEqual((result.code, result.now), (0, 1.5 + 1 + 2 * 1.5))
        late = self.run_off([ALIVE] * 5 + [DEAD], early_exit="3")
        self.assertEqual((late.code, late.now), (0, 5 * 2.5 + 7 * 1.5))

    def test_a_node_that_lives_on_fails_before_the_action_must_end(self):
        for finding in (ALIVE, UNKNOWN):
            result = self.run_off([finding])
            self.assertIn("not proven dead", result.code)
            self.assertLessEqual(result.now, 30 + 1.5)

    def test_a_proof_that_was_too_short_says_so(self):
        result = self.run_off([ALIVE] * 11 + [DEAD], early_exit="20")
        self.assertRegex(result.code, "not proven dead: .*held for only [0-9.]+ s of the 20 s")

    def test_early_exit_needs_that_long_without_a_doubt(self):
        result = self.run_off([DEAD], early_exit="3")
        self.assertEqual((result.code, result.now), (0, 3.0))
        result = self.run_off([DEAD, UNKNOWN, DEAD], early_exit="3")
        self.assertEqual((result.code, result.now), (0, 1.5 + 1.5 + 1 + 3.0))
        result = self.run_off([DEAD, ALIVE] * 50, early_exit="3")
        self.assertIn("not proven dead", result.code)
        self.assertLessEqual(result.now, 30 + 2 * 1.5)

    def test_the_time_that_a_device_takes_to_tell_is_no_silence_of_the_node(self):
        result = self.run_off([DEAD], device_s=5, early_exit="3")
        self.assertEqual((result.code, result.now), (0, 5 + 1.5 + 5 + 1.5))
        result = self.run_off([ALIVE, DEAD, ALIVE, DEAD, ALIVE], device_s=9, verify_wait="0",
                              power_timeout="60")
        self.assertIn("not proven dead", result.code)

    def test_life_that_a_slow_device_delays_until_after_verify_wait_is_not_forgotten(self):
        """The third look begins before verify_wait is over, and its questions go out behind it."""
        result = self.run_off([ALIVE] * 3 + [DEAD], device_s=5, verify_wait="20", early_exit="3",
                              power_timeout="90")
        self.assertEqual((result.code, result.now), (0, 48.5))

    def test_the_evidence_is_in_the_log_whatever_the_verdict(self):
        for finding in Finding:
            events = self.run_off([finding]).events
            self.assertEqual(len(events), 2)
            self.assertIn("target=storage-b finding=%s Storage" % finding.value, events[1])


if __name__ == "__main__":
    unittest.main()
