"""fence_kasa as a process against virtual plugs on real sockets."""
import functools
import itertools
import json
import os
import re
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

import fencetool
from tests import support, virtual
from tests.support import AgentTest, at_once, in_argv, on_stdin

BOTH_WAYS = (on_stdin, in_argv)
# The most that the limits of support.SHORT_LIMITS allow, and the second that the contract adds.
MOST_MILLISECONDS = 1000 * (1 + 1 + 3 + 1)


def call(way, parameters, **more):
    return functools.partial(way, "fence_kasa", dict(parameters, **more))


def switched(device):
    """Return whether any command to switch has reached the device."""
    return any("set_relay_state" in request.get("system", {}) for request in device.requests)


class Actions(AgentTest):
    def test_every_action_gives_the_same_from_stdin_and_argv(self):
        expected = (
            ("status", 0, "Status: ON\n"), ("off", 0, "Success: Powered OFF\n"),
            ("status", 2, "Status: OFF\n"), ("off", 0, "Success: Already OFF\n"),
            ("monitor", 0, ""), ("list-status", 0, "1,node,OFF\n"),
            ("on", 0, "Success: Powered ON\n"), ("on", 0, "Success: Already ON\n"),
            ("list", 0, "1,node\n"), ("monitor", 0, ""), ("disable", 0, "Success: Powered OFF\n"),
            ("enable", 0, "Success: Powered ON\n"), ("validate-all", 0, ""))

        def run_all(way):
            device = self.start(virtual.Kasa(["node"]))
            return [way("fence_kasa", self.address(device, action=action, nodename="node"))
                    for action, _, _ in expected]
        for results in at_once([functools.partial(run_all, way) for way in BOTH_WAYS]):
            for (action, code, out), result in zip(expected, results):
                with self.subTest(action):
                    self.assertEqual((result.code, result.out, result.err), (code, out, ""))

    def test_every_kind_of_device_is_switched_and_read(self):
        kinds = {"plug": {}, "metered": {"metered": True},
                 "old meter": {"metered": True, "old_meter": True},
                 "strip": {"aliases": ("a", "b", "c")},
                 "short ids": {"aliases": ("a", "b"), "short_ids": True},
                 "metered strip": {"aliases": tuple("abcdef"), "metered": True}}

        def run_one(options):
            device = self.start(virtual.Kasa(**options))
            plug = {"plug": "2"} if "aliases" in options else {}
            results = [on_stdin("fence_kasa", self.address(device, action=action, **plug))
                       for action in ("status", "off", "status", "on", "status")]
            return device, results
        for kind, (device, results) in zip(kinds, at_once(
                [functools.partial(run_one, options) for options in kinds.values()])):
            with self.subTest(kind):
                self.assertEqual([(result.code, result.err) for result in results],
                                 [(0, ""), (0, ""), (2, ""), (0, ""), (0, "")])
                self.assertTrue(all(outlet.relay for outlet in device.outlets))

    def test_an_outlet_of_a_strip_is_found_by_number_alias_and_both_forms_of_id(self):
        device = self.start(virtual.Kasa(["a", "b", "storage-b"]))
        # Not by "02" any more: it ends the id of outlet 3, and looks like outlet 2.
        for plug, short_ids in itertools.product(
                ("3", "storage-b", device.device_id + "02"), (False, True)):
            device.short_ids = short_ids
            device.outlets[2].relay = True
            result = on_stdin("fence_kasa", self.address(device, action="off", plug=plug,
                                                         stonith_status_sleep="200ms"))
            with self.subTest(plug):
                self.assert_success(result)
                self.assertEqual([outlet.relay for outlet in device.outlets], [True, True, False])

    def test_the_last_digits_of_an_id_name_no_outlet(self):
        device = self.start(virtual.Kasa(["a", "b", "c"]))
        for plug, short_ids in itertools.product(("00", "01", "02"), (False, True)):
            device.short_ids = short_ids
            result = on_stdin("fence_kasa", self.address(device, action="off", plug=plug))
            with self.subTest(plug, short_ids=short_ids):
                self.assert_failure(result, "'%s' is no number as on the case (which would be %d)"
                                    % (plug, int(plug)), "its outlets are: 1 ('a'), 2 ('b')")
        self.assertFalse(switched(device))

    def test_an_alias_in_another_encoding_harms_nothing_but_itself(self):
        device = self.start(virtual.Kasa(["node"], rewritten=((b"node", b"K\xfcche"),)))
        for parameters, expected in (
                ({"action": "status"}, (0, "Status: ON\n")),
                ({"action": "list"}, (0, "1,K\\udcfcche\n")),
                ({"action": "off"}, (0, "Success: Powered OFF\n"))):
            result = on_stdin("fence_kasa", self.address(device, **parameters))
            self.assertEqual((result.code, result.out), expected, result)

    def test_one_connection_serves_all_requests_of_an_action(self):
        device = self.start(virtual.Kasa(metered=True))
        accepted = []
        converse = device.converse
        device.converse = lambda handle: (accepted.append(1), converse(handle))
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="off")))
        self.assertEqual(len(accepted), 1)
        self.assertGreaterEqual(len(device.requests), 6)

    def test_off_is_commanded_even_when_the_device_says_off_already(self):
        device = self.start(virtual.Kasa())
        device.outlets[0].relay = False
        result = on_stdin("fence_kasa", self.address(device, action="off"))
        self.assertEqual(result.out, "Success: Already OFF\n")
        self.assertTrue(switched(device))

    def test_sysinfo_is_asked_alone(self):
        device = self.start(virtual.Kasa(["a", "b"], metered=True))
        on_stdin("fence_kasa", self.address(device, action="off", plug="1"))
        for request in device.requests:
            self.assertEqual(len(request), 1)
            self.assertEqual(len(list(request.values())[0]), 1)

    def test_monitor_succeeds_with_the_plug_off_and_without_an_outlet_named(self):
        device = self.start(virtual.Kasa(["a", "b"]))
        device.outlets[0].relay = device.outlets[1].relay = False
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="monitor")))

    def test_monitor_tells_that_a_required_meter_is_missing(self):
        device = self.start(virtual.Kasa())
        self.assert_failure(on_stdin("fence_kasa", self.address(
            device, action="monitor", power_meter="require")), "power meter")

    def test_reboot_keeps_the_outlet_off_long_enough_to_cut_a_power_supply(self):
        device = self.start(virtual.Kasa())
        changes = []
        device.on_power = lambda number, powered: changes.append(
            (powered, fencetool.System.clock()))
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="reboot",
                                                                power_timeout="10")))
        self.assertEqual([powered for powered, _ in changes], [False, True])
        self.assertGreaterEqual(changes[1][1] - changes[0][1], fencetool.REBOOT_OFF_SECONDS)

    def test_a_reboot_that_cannot_switch_on_again_succeeds_loudly(self):
        device = self.start(virtual.Kasa())

        def stay_off(number, powered):
            device.fault = "ignore"
        device.on_power = stay_off
        result = on_stdin("fence_kasa", self.address(device, action="reboot", power_timeout="4",
                                                     retry_on="0"))
        self.assertEqual((result.code, result.out), (0, "Success: Rebooted\n"))
        self.assertIn("stays OFF until somebody switches it on", result.err)
        self.assertEqual(result.err.count("\n"), 1)

    def test_a_reboot_without_proof_of_off_never_switches_on(self):
        device = self.start(virtual.Kasa(fault="ignore"))
        self.assert_failure(on_stdin("fence_kasa", self.address(device, action="reboot")))
        self.assertNotIn({"system": {"set_relay_state": {"state": 1}}}, device.requests)

    def test_delay_waits_before_off_and_not_before_status(self):
        device = self.start(virtual.Kasa())
        off, status = at_once([call(on_stdin, self.address(device, action=action, delay="1"))
                               for action in ("off", "status")])
        self.assertGreater(off.seconds, 1)
        self.assertLess(status.seconds, off.seconds)

    def test_two_runs_at_once_on_one_plug_both_end_right(self):
        device = self.start(virtual.Kasa(["a", "b"], metered=True))
        actions = ("off", "monitor", "off", "status", "list", "off", "monitor", "off")
        results = at_once([call(on_stdin, self.address(device, action=action, plug="2"))
                           for action in actions])
        for action, result in zip(actions, results):
            self.assertEqual(result.err, "")
            self.assertIn(result.code, (0, 2) if action == "status" else (0,))
        self.assertEqual([outlet.relay for outlet in device.outlets], [True, False])

    def test_lost_replies_now_and_then_do_not_fail_a_monitor(self):
        device = self.start(virtual.Kasa())
        device.lose_every = 3
        for result in at_once([call(on_stdin, self.address(device, action="monitor"))] * 7, 1):
            self.assert_success(result)
        self.assertGreater(len(device.requests), 7)

    def test_ipv6_works(self):
        device = self.start(virtual.Kasa(), host="::1")
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="status")))
        address = "[::1]:%d" % device.address[1]
        self.assert_success(on_stdin("fence_kasa", dict(support.SHORT_LIMITS, ip=address,
                                                        action="status")))


class Faults(AgentTest):
    """Each fault times off and status: no exit 0 or 2 without proof."""

    # fault: (devices options, words in the reason of off, words in the reason of status)
    CASES = {
        "refuse": ({}, "Connection refused", "Connection refused"),
        "silent": ({}, "nothing came within", "nothing came within 1 s"),
        "drip": ({}, "no complete answer", "no complete answer"),
        "truncated": ({}, "closed the connection after", "closed the connection after"),
        "oversize": ({}, "claims a length of", "claims a length of"),
        "garbage": ({}, "not Kasa's protocol", "not Kasa's protocol"),
        "wrong_type": ({}, "neither 0 nor 1: 'true'", "neither 0 nor 1: 'true'"),
        "ignore": ({}, "acknowledged OFF and still reports ON after 3 s", None),
        "welded": ({"metered": True}, "relay reports OFF, but the outlet still draws 43 W", None),
        "wrong_outlet": ({"aliases": ("a", "b")}, "still reports ON", None),
    }

    def test_no_fault_of_a_plug_is_ever_taken_for_a_proof(self):
        calls, expected = [], []
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for fault, (options, off_words, status_words) in self.CASES.items():
            plug = {"plug": "1"} if "aliases" in options else {}
            for action, words in (("off", off_words), ("status", status_words)):
                for way in BOTH_WAYS:
                    device = self.start(virtual.Kasa(fault=fault, **options))
                    log = os.path.join(folder.name, str(len(calls)))
                    calls.append(call(way, self.address(device, action=action, debug_file=log,
                                                        **plug)))
                    expected.append((fault, action, words, log))
        for (fault, action, words, log), result in zip(expected, at_once(calls)):
            with self.subTest(fault=fault, action=action):
                if words is None:
                    self.assertEqual((result.code, result.out), (0, "Status: ON\n"))
                else:
                    self.assert_failure(result, words)
                    self.assertNotIn("timeout", result.err)
                    self.assertNotIn("timed out", result.err)
                # The agent's own clock: a loaded machine takes its time to start an interpreter.
                with open(log) as handle:
                    took = int(re.search(r" ms=(\d+) ", handle.read()).group(1))
                self.assertLess(took, MOST_MILLISECONDS)

    def test_a_device_that_breaks_the_connection_after_it_obeyed_is_read_on_a_new_one(self):
        device = self.start(virtual.Kasa(fault="drop", metered=True))
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="off")))
        self.assertFalse(device.outlets[0].powered)
        # It answers as often as it is asked for anything else: there is no need for mixed queries.
        self.assertEqual({len(request) for request in device.requests}, {1})

    def test_a_plug_that_switches_late_is_waited_for(self):
        device = self.start(virtual.Kasa(fault="late", metered=True))
        result = on_stdin("fence_kasa", self.address(device, action="off", power_timeout="8"))
        self.assert_success(result)
        self.assertGreater(result.seconds, virtual.LATE_S)

    def test_one_reading_of_off_is_not_yet_a_proof(self):
        device = self.start(virtual.Kasa())
        flips = []
        describe = device._system_get_sysinfo

        def flicker(arguments, chosen):
            flips.append(1)
            device.outlets[0].relay = len(flips) % 2 == 1
            return describe(arguments, chosen)
        device._system_get_sysinfo = flicker
        self.assert_failure(on_stdin("fence_kasa", self.address(device, action="off")))

    def test_a_dead_meter_is_told_and_ignored_or_fails_as_power_meter_says(self):
        device = self.start(virtual.Kasa(metered=True, fault="dead_meter"))
        results = at_once([call(on_stdin, self.address(device, action="off", power_meter=policy))
                           for policy in ("auto", "ignore", "require")])
        self.assert_success(results[0])
        self.assert_success(results[1])
        self.assert_failure(results[2], "power_meter=require")
        told = on_stdin("fence_kasa", self.address(device, action="off", verbose="1"))
        self.assertIn("warning: the power meter", told.err)

    def test_a_welded_relay_passes_only_where_the_meter_is_to_be_ignored(self):
        device = self.start(virtual.Kasa(metered=True, fault="welded"))
        self.assert_success(on_stdin("fence_kasa", self.address(
            device, action="off", power_meter="ignore")))

    def test_another_device_at_the_address_is_refused_before_anything_is_switched(self):
        device = self.start(virtual.Kasa(mac="CC:32:E5:00:00:99"))
        result = on_stdin("fence_kasa", self.address(
            device, action="off", device_mac="CC:32:E5:00:00:01"))
        self.assert_failure(result, "CC:32:E5:00:00:99", "CC:32:E5:00:00:01")
        self.assertFalse(switched(device))
        right = on_stdin("fence_kasa", self.address(device, action="status",
                                                    device_mac="cc-32-e5-00-00-99"))
        self.assert_success(right)

    def test_a_device_that_does_not_tell_its_mac_is_refused_when_one_is_configured(self):
        device = self.start(virtual.Kasa())
        describe = device._system_get_sysinfo
        device._system_get_sysinfo = lambda *call: {
            name: value for name, value in describe(*call).items() if name != "mac"}
        self.assert_failure(on_stdin("fence_kasa", self.address(
            device, action="off", device_mac="CC:32:E5:00:00:01")), "does not tell its MAC")
        self.assertFalse(switched(device))

    def test_outlets_that_are_not_exactly_named_are_never_switched(self):
        device = self.start(virtual.Kasa(["a", "b", "b"]))
        cases = ({}, {"plug": "9"}, {"plug": "b"}, {"plug": "nothing"},
                 {"plug": "storage-b", "nodename": "storage-b"}, {"plug": "1-2"})
        for case, result in zip(cases, at_once([
                call(on_stdin, self.address(device, action="off", **case)) for case in cases])):
            with self.subTest(case):
                self.assert_failure(result, "outlet")
        self.assertFalse(switched(device))

    def test_the_message_to_every_failure_names_action_target_and_device(self):
        device = self.start(virtual.Kasa(fault="refuse"))
        result = on_stdin("fence_kasa", self.address(device, action="status",
                                                     nodename="storage-b"))
        self.assert_failure(result, "fence_kasa: status storage-b: kasa 127.0.0.1:%d: "
                            % device.address[1])


class Reconnecting(AgentTest):
    """What a new connection in the middle of an action may lead to."""

    def run_with(self, device, on_request, **more):
        """Run off while on_request(number of the request) may change the device before it."""
        answer = device.answer

        def watch(message):
            on_request(len(device.requests) + 1)
            return answer(message)
        device.answer = watch
        return on_stdin("fence_kasa", self.address(device, action="off", **more))

    def test_a_plug_that_closes_the_connection_after_each_answer_is_fenced(self):
        for options in ({}, {"aliases": ("a", "b")}, {"aliases": ("a", "b"), "short_ids": True}):
            device = self.start(virtual.Kasa(metered=True, answers_a_connection=1, **options))
            plug = {"plug": "2"} if options else {}
            with self.subTest(**options):
                self.assert_success(on_stdin("fence_kasa", self.address(
                    device, action="off", **plug)))
                self.assertFalse(device.outlets[-1].powered)
                # Nothing but its meter is asked together with something else.
                mixed = [request for request in device.requests
                         if len(request.keys() - {"context"}) > 1]
                self.assertTrue(mixed)
                for request in mixed:
                    self.assertEqual(request["emeter"], {"get_realtime": {}})
                    self.assertEqual(request["system"], {"get_sysinfo": {}})
                device.fault = "welded"
                device.outlets[-1].powered = True
                self.assert_failure(on_stdin("fence_kasa", self.address(
                    device, action="off", **plug)), "43 W")

    def test_a_plug_that_closes_the_connection_after_some_answers_is_fenced(self):
        for answers in (2, 3, 4, 5):
            device = self.start(virtual.Kasa(metered=True, answers_a_connection=answers))
            with self.subTest(answers):
                self.assert_success(on_stdin("fence_kasa", self.address(device, action="off")))
                self.assertEqual({len(request) for request in device.requests}, {1})

    def test_a_load_that_was_seen_is_not_forgotten_when_the_meter_falls_silent(self):
        device = self.start(virtual.Kasa(metered=True, fault="welded"))

        def fall_silent(number):
            if number > 4:
                device._emeter_get_realtime = lambda *call: {"err_code": -1}
        self.assert_failure(self.run_with(device, fall_silent), "still draws 43 W")

    def test_a_meter_that_goes_with_the_command_is_not_a_missing_one(self):
        device = self.start(virtual.Kasa(metered=True, fault="welded"))

        def lose_meter(number):
            device.metered = device.outlets[0].relay
        self.assert_failure(self.run_with(device, lose_meter), "has_meter was")

    def test_another_device_in_the_middle_of_the_action_is_refused(self):
        for name, change in (
                ("id", lambda device: setattr(device, "device_id", "8006" + "F" * 36)),
                ("mac", lambda device: setattr(device, "mac", "CC:32:E5:00:00:77")),
                ("strip", lambda device: device.outlets.append(
                    virtual.Kasa(["a", "b"]).outlets[1]))):
            device = self.start(virtual.Kasa(fault="ignore"))

            def become_another(number, device=device, change=change):
                if number == 3:
                    change(device)
                    device.outlets[0].relay = False
            result = self.run_with(device, become_another)
            with self.subTest(name):
                self.assert_failure(result, "another device answered in the middle")

    def test_a_new_connection_is_identified_before_it_is_switched(self):
        device = self.start(virtual.Kasa())
        send = device.send_answer

        def break_off_at_the_command(handle, answer):
            if "set_relay_state" in device.requests[-1].get("system", {}):
                device.mac = "CC:32:E5:00:00:77"
                handle.sendall(b"\0\0")
                return False
            return send(handle, answer)
        device.send_answer = break_off_at_the_command
        self.assert_failure(on_stdin("fence_kasa", self.address(
            device, action="off", device_mac="CC:32:E5:00:00:01")), "another device")
        commands = [request for request in device.requests
                    if "set_relay_state" in request.get("system", {})]
        self.assertEqual(len(commands), 1)

    def test_an_outlet_whose_alias_moves_to_another_is_refused(self):
        device = self.start(virtual.Kasa(["a", "b"], fault="ignore"))

        def rename(number):
            if number == 3:
                device.outlets[0].alias, device.outlets[1].alias = "b", "a"
                device.outlets[0].relay = False
        self.assert_failure(self.run_with(device, rename, plug="b"), "has become another outlet")

    def test_an_outlet_of_a_list_whose_alias_moves_to_another_is_refused(self):
        device = self.start(virtual.Kasa(["a", "b", "c"], fault="ignore"))

        def rename(number):
            if number == 4:
                device.outlets[1].alias, device.outlets[2].alias = "c", "b"
                device.outlets[2].relay = False
        self.assert_failure(self.run_with(device, rename, plug="a,b"),
                            "outlet b: plug 'b' has become another outlet")

    def test_several_outlets_are_switched_and_read_over_one_connection(self):
        for answers, connections in ((0, 1), (1, None)):
            device = self.start(virtual.Kasa(["a", "b", "c"], metered=True,
                                             answers_a_connection=answers))
            result = on_stdin("fence_kasa", dict(self.address(
                device, action="off", plug="1,3"), **support.PATIENT_LIMITS))
            self.assert_success(result)
            self.assertEqual([outlet.powered for outlet in device.outlets], [False, True, False])
            if connections:
                self.assertEqual(len(device.answered), connections)

    def test_a_required_meter_must_be_there_for_each_outlet_of_a_list(self):
        device = self.start(virtual.Kasa(["a", "b"], metered=True))
        read = device._emeter_get_realtime
        device._emeter_get_realtime = lambda arguments, chosen: (
            dict(fencetool.KASA_REFUSAL) if chosen[0].endswith("01") else read(arguments, chosen))
        self.assert_failure(on_stdin("fence_kasa", self.address(
            device, action="off", plug="1,2", power_meter="require")),
            "outlet 2: no power meter gave a reading")
        self.assertFalse(switched(device))

    def test_two_answers_to_one_question_are_none(self):
        device = self.start(virtual.Kasa())
        send = device.send_answer
        device.send_answer = lambda handle, answer: send(handle, answer + answer)
        for action in ("off", "status"):
            self.assert_failure(on_stdin("fence_kasa", self.address(device, action=action)),
                                "more than one answer")

    def test_a_required_meter_is_asked_before_anything_is_switched(self):
        device = self.start(virtual.Kasa())
        self.assert_failure(on_stdin("fence_kasa", self.address(
            device, action="off", power_meter="require")), "no power meter")
        self.assertFalse(switched(device))


class TakenOver(AgentTest):
    """The address belongs to another device from some connection on, or now and then."""

    def start_in_turn(self, devices):
        """Start the first of an iterator's devices; each connection goes to the next of them."""
        devices = iter(devices)
        first = next(devices)
        turns = itertools.chain([first], devices)
        first.converse = lambda handle: virtual.Kasa.converse(next(turns), handle)
        return self.start(first)

    def another(self, aliases, **options):
        return virtual.Kasa(aliases, device_id="8006" + "0B" * 18, mac="CC:32:E5:00:00:99",
                            **options)

    def test_nothing_is_sent_to_what_has_taken_over_the_address(self):
        for aliases, mac in itertools.product((("plug",), ("a", "b")), (
                {}, {"device_mac": virtual.Kasa.mac})):
            one, other = virtual.Kasa(answers_a_connection=1), self.another(aliases)
            self.start_in_turn(itertools.chain([one], itertools.repeat(other)))
            result = on_stdin("fence_kasa", self.address(one, action="off", **mac))
            with self.subTest(aliases, **mac):
                self.assert_failure(result, "another device")
                self.assertEqual(other.requests, [{"system": {"get_sysinfo": {}}}])

    def test_the_meter_of_what_has_taken_over_the_address_is_not_even_asked(self):
        one = virtual.Kasa(metered=True, fault="welded", answers_a_connection=3)
        other = self.another(("plug",), metered=True)
        other.outlets[0].powered = False
        self.start_in_turn(itertools.chain([one], itertools.repeat(other)))
        self.assert_failure(on_stdin("fence_kasa", self.address(one, action="off")),
                            "another device")
        self.assertEqual(other.requests, [{"system": {"get_sysinfo": {}}}])

    def test_a_load_is_not_hidden_by_the_meter_of_a_device_that_answers_in_turn(self):
        for aliases, plug in ((("plug",), {}), (("a", "b"), {"plug": "2"})):
            # The last one is that of the least questions, with every reading of a meter from b.
            for order in ("ab", "aab", "aaab", "aaaab", "aabb", "abb", "aaaaab", "aaaaabab"):
                options = {"metered": True, "answers_a_connection": 1}
                one = virtual.Kasa(aliases, fault="welded", **options)
                other = self.another(aliases, **options)
                for outlet in other.outlets:
                    outlet.relay = outlet.powered = False
                one.outlets[-1].relay = False
                self.start_in_turn(itertools.cycle({"a": one, "b": other}[who] for who in order))
                result = on_stdin("fence_kasa", self.address(one, action="off", **plug))
                with self.subTest(order, **plug):
                    self.assert_failure(result)


class MeterAnswers(AgentTest):
    """What a meter can say, of an outlet that is off by its relay and draws 43 W."""

    WRONG = (
        b'"power_mw":"43000"', b'"power":43.0,"power_mw":0', b'"power_mw":43000,"power":0.0',
        b'"power_mw":43000,"power_mw":0', b'"power_mw":0,"power_mw":43000', b'"power_mw":[43000]',
        b'"power_mw":true', b'"power_mw":null', b'"power_mw":{"now":0}', b'"power_mw":NaN',
        b'"power_mw":-Infinity', b'"power_mw":"0","power":0', b'"power_mw":0,"power":"0"',
        b'"power_mw":0,"POWER_MW":43000', b'"watts":0', b'"power_mw":0,"err_code":-1',
        b'"power_mw":""', b'"power_mw":43000,"error":')
    WRONG_CODES = (b'"err_code":-7', b'"err_code":"0"', b'"err_code":null', b'"err_code":-1',
                   b'"err_code":false', b'"err":0')

    def start_all(self):
        """Return virtual plugs whose meter answers wrongly, each in its own way."""
        pairs = [(b'"power_mw":43000', form) for form in self.WRONG]
        pairs += [(b'"voltage_mv":230000,"err_code":0', b'"voltage_mv":230000,' + form)
                  for form in self.WRONG_CODES]
        return [self.start(virtual.Kasa(metered=True, fault="welded", rewritten=(pair,)))
                for pair in pairs]

    def test_no_answer_that_is_not_understood_is_a_proof_of_off(self):
        devices = self.start_all()
        for device, result in zip(devices, at_once([call(on_stdin, self.address(
                device, action="off")) for device in devices])):
            with self.subTest(device.rewritten[0][1]):
                self.assert_failure(result)

    def test_no_answer_that_is_not_understood_is_evidence_of_death(self):
        devices = self.start_all()
        for device in devices:
            device.outlets[0].relay = False
        for device, result in zip(devices, at_once([functools.partial(on_stdin, "fence_check", {
                "fence_method": "kasa", "fence_ip": "127.0.0.1", "nodename": "node",
                "fence_ipport": str(device.address[1]), "target_mgmt_ip": "127.0.0.2",
                "action": "status", "stonith_status_sleep": "200ms"}) for device in devices])):
            with self.subTest(device.rewritten[0][1]):
                self.assertIn("power=unknown", result.out)
                self.assertNotEqual(result.code, 2)

    def test_both_units_may_tell_the_same(self):
        device = self.start(virtual.Kasa(metered=True, rewritten=(
            (b'"power_mw":43000', b'"power_mw":43000,"power":43.0'),
            (b'"power_mw":0', b'"power_mw":0,"power":0.0'))))
        self.assert_success(on_stdin("fence_kasa", self.address(device, action="off")))
        device.fault = "welded"
        device.outlets[0].powered = True
        self.assert_failure(on_stdin("fence_kasa", self.address(device, action="off")), "43 W")

    def test_the_meter_of_another_outlet_proves_nothing(self):
        for slots_from in (0, 1, None):
            device = self.start(virtual.Kasa(["a", "b", "c"], metered=True, slots_from=slots_from))
            self.assert_success(on_stdin("fence_kasa", self.address(device, action="off",
                                                                    plug="3")))
        device = self.start(virtual.Kasa(["a", "b", "c"], metered=True, slots_from=0))
        chosen = device._chosen_outlet
        meter = device._emeter_get_realtime
        device._emeter_get_realtime = lambda arguments, ids: meter(arguments, [])
        device.outlets[0].powered = False
        device.outlets[2].relay = False
        device.fault = "welded"
        self.assertIs(chosen([]), device.outlets[0])
        self.assert_failure(on_stdin("fence_kasa", self.address(device, action="off", plug="3")),
                            "slot_id '0', and outlet 3 was asked")


class Contradictions(AgentTest):
    def test_a_reading_that_contradicts_itself_is_none(self):
        cases = (
            (b'"relay_state":0', b'"relay_state":0,"RELAY_STATE":1'),
            (b'"relay_state":0', b'"Relay_State":1,"relay_state":0'),
            (b'"relay_state":0', b'"relay_state":0,"relay_state":1'),
            (b'"next_action":{"type":-1}}}}', b'"next_action":{"type":-1}}},"err_code":-1}'),
            (b'"next_action":{"type":-1}}}}', b'"next_action":{"type":-1}},"err_code":-1}}'))
        devices = [self.start(virtual.Kasa(rewritten=(case,))) for case in cases]
        for device in devices:
            device.outlets[0].relay = False
        for action in ("off", "status"):
            for (_, wrong), result in zip(cases, at_once([call(on_stdin, self.address(
                    device, action=action)) for device in devices])):
                with self.subTest(wrong, action=action):
                    self.assert_failure(result)

    def test_an_acknowledgement_that_contradicts_itself_is_none(self):
        for wrong in (b'"set_relay_state":{"err_code":0}},"err_code":-1',
                      b'"set_relay_state":{"err_code":0},"err_code":-1}',
                      b'"set_relay_state":{"err_code":0,"ERR_CODE":-1}}'):
            device = self.start(virtual.Kasa(fault="ignore", rewritten=(
                (b'"set_relay_state":{"err_code":0}}', wrong),)))
            with self.subTest(wrong):
                self.assert_failure(on_stdin("fence_kasa", self.address(device, action="off")),
                                    "did not acknowledge OFF")

    def test_two_outlets_with_the_nodes_name_are_told_as_such(self):
        device = self.start(virtual.Kasa(["node", "b", "node"]))
        for names in ({"plug": "node"}, {"port": "node"}, {"plug": "node", "port": "node"}):
            for action in ("off", "status", "monitor"):
                result = on_stdin("fence_kasa", self.address(
                    device, action=action, nodename="node", **names))
                with self.subTest(action, **names):
                    self.assert_failure(result, "plug 'node' names 2 outlets of this device")
        for names in ({}, {"fence_plug": "node"}):
            result = on_stdin("fence_check", dict({
                "fence_method": "kasa", "fence_ip": "127.0.0.1", "nodename": "node",
                "fence_ipport": str(device.address[1]), "target_mgmt_ip": "127.0.0.2",
                "action": "monitor"}, **names))
            self.assert_failure(result, "plug 'node' names 2 outlets of this device")
        self.assertFalse(switched(device))


class AskedAgain(AgentTest):
    """What ends an action at once, as asking again cannot make it better, and what does not."""

    KASA = {"alias": "x", "deviceId": "8006AA", "mac": "CC:32:E5:00:00:01", "err_code": 0}

    def frame(self, reply):
        plain = reply if isinstance(reply, bytes) else json.dumps(reply).encode("utf-8")
        return struct.pack(">I", len(plain)) + fencetool.encrypt_kasa(plain)

    def describe(self, **members):
        return self.frame({"system": {"get_sysinfo": dict(self.KASA, **members)}})

    def run_with_answers(self, answers):
        """Run off against a plug whose first answers are these; return (it, the result)."""
        device = self.start(virtual.Kasa())
        send, left = device.send_answer, list(answers)

        def send_wrongly_first(handle, answer):
            if not left:
                return send(handle, answer)
            handle.sendall(left.pop(0))
            raise ConnectionError("done")
        device.send_answer = send_wrongly_first
        return device, on_stdin("fence_kasa", self.address(device, action="off"))

    def test_what_cannot_get_better_ends_an_action_at_once(self):
        for answer, words in (
                (b"HTTP/1.1 400 Bad Request\r\n\r\n", "claims a length of 1213486160"),
                (b"SSH-2.0-OpenSSH_9.2\r\n", "claims a length of"),
                (b"\x15\x03\x01\0\x02\x02\x32", "claims a length of"),
                (virtual.GARBAGE, "not Kasa's protocol"),
                (self.frame(b"[]"), "not Kasa's protocol"),
                (self.describe(mic_type="IOT.SMARTBULB"), "is a bulb"),
                (self.describe(), "holds neither of relay_state"),
                (self.describe(relay_state=0, children=[], child_num=0), "holds both of"),
                (self.frame({"system": {"err_code": -1}}), "refuses get_sysinfo with error -1"),
                (self.frame({"system": {"get_sysinfo": {"err_code": -2}}}), "with error -2"),
                (self.frame({"system": {"get_sysinfo": {"err_code": -3}}}), "with error -3")):
            device, result = self.run_with_answers([answer])
            with self.subTest(answer):
                self.assert_failure(result, words)
                self.assertEqual(len(device.requests), 1)

    def test_what_may_be_better_the_next_time_is_asked_again(self):
        whole = self.describe(relay_state=1)
        for answer in (b"", b"\0\0", b"\0\0\0\0", b"\0\0\0\1{", whole[:40],
                       self.frame(b'{"system":{"get_sy'), self.frame(b"{}"),
                       self.frame({"system": {"get_sysinfo": {"err_code": -7}}}),
                       self.frame({"system": {"get_sysinfo": {}}}),
                       self.describe(relay_state=None), whole + whole):
            device, result = self.run_with_answers([answer] * 3)
            with self.subTest(answer):
                self.assert_success(result)
                self.assertFalse(device.outlets[0].powered)


class BadInput(AgentTest):
    def test_bad_input_ends_with_one_clear_line_and_sends_nothing(self):
        device = self.start(virtual.Kasa())
        good = self.address(device, action="off")
        cases = (
            ({"ip": ""}, "no ip given"), ({"ipport": "abc"}, "ipport: 'abc'"),
            ({"ipport": "70000"}, "port"), ({"power_timeout": "never"}, "power_timeout"),
            ({"action": "explode"}, "unsupported action 'explode'"), ({"action": ""}, "no action"),
            ({"password_script": "/nonexistent/script"}, "/nonexistent/script"),
            ({"password_script": "/etc/passwd"}, "/etc/passwd"),
            ({"password_script": "/bin/false"}, "password_script ended with exit code 1"),
            ({"device_mac": "12"}, "device_mac"), ({"power_meter": "yes"}, "power_meter"),
            ({"quiet": "perhaps"}, "quiet"))
        calls = [call(on_stdin, dict(good, **case)) for case, _ in cases]
        in_both = cases[:-1]  # an option without a value cannot have a bad one
        calls += [call(in_argv, dict(good, **case)) for case, _ in in_both]
        for (case, words), result in zip(cases + in_both, at_once(calls)):
            with self.subTest(case):
                self.assert_failure(result, words)
        self.assertEqual(device.requests, [])

    def test_stray_words_and_unknown_options_are_usage_errors_and_send_nothing(self):
        device = self.start(virtual.Kasa())
        address = ["-a", "127.0.0.1", "-u", str(device.address[1])]
        for words in (["off"], ["-o", "off", "storage-b"], ["--nosuch=1"], ["getconfignames"],
                      ["off", "storage-b"]):
            with self.subTest(words):
                self.assert_failure(support.fencetool("fence_kasa", *(address + words)))
        self.assertEqual(device.requests, [])

    def test_unknown_names_on_stdin_are_ignored_and_told_when_verbose(self):
        device = self.start(virtual.Kasa())
        parameters = self.address(device, action="status", nodeid="2", crm_feature_set="3.16")
        self.assert_success(on_stdin("fence_kasa", parameters))
        told = on_stdin("fence_kasa", dict(parameters, verbose="1"))
        self.assertIn("ignored unknown parameters: crm_feature_set, nodeid", told.err)

    def test_the_second_line_of_a_password_is_not_shown_as_an_unknown_name(self):
        device = self.start(virtual.Kasa())
        told = on_stdin("fence_kasa", self.address(
            device, action="status", verbose="1", password="hunter1\nSHVudGVyMg==", nodeid="2"))
        self.assertIn("ignored unknown parameters: nodeid, and 1 more", told.err)
        self.assertNotIn("SHVudGVyMg", told.err)

    def test_a_name_that_is_nearly_a_parameter_is_refused(self):
        device = self.start(virtual.Kasa())
        good = self.address(device, action="off")
        for name, meant in (("Device_Mac", "device_mac"), ("\ufeffdevice_mac", "device_mac"),
                            ("device mac", "device_mac"), ("device\u2010mac", "device_mac"),
                            ("DEVICE_MAC", "device_mac"), ("devicemac", "device_mac"),
                            ("device__mac", "device_mac"), ("Passwd_Script", "passwd_script")):
            with self.subTest(name):
                self.assert_failure(
                    on_stdin("fence_kasa", dict(good, **{name: "CC:32:E5:99:99:99"})),
                    "there is no parameter", "is %s meant?" % meant)
        self.assertEqual(device.requests, [])

    def test_unknown_subcommands_are_usage_errors_with_exit_code_2(self):
        for words in (["nosuch"], ["--nosuch"], []):
            result = support.fencetool(*words)
            self.assertEqual((result.code, result.out), (2, ""))
            self.assertNotIn("Traceback", result.err)


class AsPacemakerRunsIt(AgentTest):
    def test_stdin_in_every_form_that_is_seen(self):
        device = self.start(virtual.Kasa(["Küche"]))
        ip = "ip=127.0.0.1\nipport=%d\n" % device.address[1]
        forms = {
            "no final newline": ip + "action=status",
            "crlf": (ip + "action=status\n").replace("\n", "\r\n"),
            "old names": ip.replace("ip=", "ipaddr=") + "option=status\nport=node\nnodename=node\n",
            "dashes": ip + "action=status\nlogin-timeout=3\n",
            "utf-8": ip + "action=status\nplug=Küche\n",
            "blank lines and comments": "\n# c\n" + ip + "\n\naction=status\n",
            "upper case action": ip + "action=STATUS\n",
            "odd values": ip + "action=status\npassword= =#'\"\\ \nusername=a=b#c \n"}
        results = at_once([functools.partial(
            support.fencetool, "fence_kasa", stdin=text, environment={"LC_ALL": "C"})
            for text in forms.values()])
        for form, result in zip(forms, results):
            with self.subTest(form):
                self.assertEqual((result.code, result.out, result.err), (0, "Status: ON\n", ""))

    def test_metadata_for_a_stranger_in_a_folder_he_cannot_write(self):
        support.require_root()
        support.require_system_python()
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o555)
            # The interpreter of a version manager may live where strangers cannot read.
            argv = ["/usr/bin/python3", "-IS", "-", "fence_kasa"]
            with open(support.SCRIPT, "rb") as script:
                source = script.read()
            code = ("import sys\nsys.argv = ['fence_kasa', '-o', 'metadata']\n"
                    "exec(compile(%r, 'fencetool.py', 'exec'))" % source.decode("utf-8"))
            result = support.run(argv[:3] + ["x"], stdin=code, cwd=folder,
                                 preexec_fn=lambda: (os.setgid(65534), os.setuid(65534)))
        self.assertEqual((result.code, result.err), (0, ""))
        self.assertIn('<resource-agent name="fence_kasa"', result.out)

    def test_the_script_runs_without_path_and_from_an_unwritable_folder(self):
        support.require_system_python()
        device = self.start(virtual.Kasa())
        text = "ip=127.0.0.1\nipport=%d\naction=monitor\n" % device.address[1]
        result = support.run([support.SCRIPT, "fence_kasa"], stdin=text, environment={},
                             cwd="/proc")
        self.assert_success(result)

    def test_a_success_is_silent_on_stderr(self):
        device = self.start(virtual.Kasa(metered=True))
        for action in ("metadata", "validate-all", "monitor", "list", "status", "off", "on"):
            with self.subTest(action):
                self.assertEqual(on_stdin("fence_kasa", self.address(
                    device, action=action)).err, "")

    def test_half_a_file_is_never_a_success(self):
        with open(support.SCRIPT, encoding="utf-8") as handle:
            source = handle.read()
        ends = [match.start() + 1 for match in re.finditer(r"\n(?=\n\n\S)", source)]
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        # Cut off between two definitions, it is a program without a mistake.
        first = source.index("def refuse_half_a_file")
        cuts = [end for end in ends if end > first + 1000][::20] + ends[-1:]
        self.assertGreater(len(cuts), 10)
        for position, result in zip(cuts, at_once([functools.partial(
                self.run_half, folder.name, source[:cut]) for cut in cuts])):
            self.assertNotIn(result.code, (0, 2), (position, result))
            self.assertIn("copy it again", result.err)

    def run_half(self, folder, source):
        path = os.path.join(folder, "fence_kasa-%d" % len(source))
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(source)
        return support.run([sys.executable, "-IS", path, "fence_kasa", "-o", "off"])

    def test_killed_at_any_point_the_next_run_works(self):
        device = self.start(virtual.Kasa(["a", "b"]))
        text = "".join("%s=%s\n" % item for item in self.address(
            device, action="off", plug="2").items()).encode("utf-8")
        for point in range(1, 5):
            self.kill_at_request(device, text, point)
            self.assert_success(on_stdin("fence_kasa", self.address(
                device, action="off", plug="2")))

    def kill_at_request(self, device, text, point):
        """Run the agent and kill it when its request number `point` has reached the device."""
        arrived = threading.Event()
        answer = device.answer
        before = len(device.requests)

        def watch(message):
            if len(device.requests) - before + 1 == point:
                arrived.set()
            return answer(message)
        device.answer = watch
        child = subprocess.Popen(
            [sys.executable, "-IS", support.compiled_script(), "fence_kasa"],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        child.stdin.write(text)
        child.stdin.close()
        self.assertTrue(arrived.wait(20), "request %d never came" % point)
        child.send_signal(signal.SIGKILL)
        child.wait()
        device.answer = answer

    def test_validate_all_sends_nothing_and_takes_what_pcs_adds(self):
        device = self.start(virtual.Kasa())
        result = on_stdin("fence_kasa", self.address(
            device, action="validate-all", nodename="node1", port="node1"))
        self.assert_success(result)
        self.assertEqual(device.requests, [])

    def test_a_reader_that_went_away_gets_no_success(self):
        device = self.start(virtual.Kasa())
        reader, writer = os.pipe()
        os.close(reader)
        child = subprocess.Popen([sys.executable, "-IS", support.SCRIPT, "fence_kasa"],
                                 stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        text = "ip=127.0.0.1\nipport=%d\naction=status\n" % device.address[1]
        _, err = child.communicate(text.encode("utf-8"), timeout=60)
        self.assertEqual((child.returncode, err), (
            1, b"fence_kasa: cannot write the answer to stdout: Broken pipe\n"))

    def test_closed_descriptors_are_no_hazard(self):
        for closed in ((0,), (0, 1), (2,), (0, 1, 2)):
            device = self.start(virtual.Kasa())
            text = self.address(device, action="off", verbose_level="2")
            command = 'printf %s "$1" | exec "$2" -IS "$3" fence_kasa'
            command += "".join(" %d>&-" % number for number in closed if number)
            command += " <&-" if 0 in closed else ""
            result = support.run(
                ["sh", "-c", command, "sh", "".join("%s=%s\n" % item for item in text.items()),
                 sys.executable, support.SCRIPT], environment={"PATH": "/usr/bin:/bin"})
            with self.subTest(closed):
                self.assertEqual((result.code, device.outlets[0].powered),
                                 (1, True) if 0 in closed else (0, False), result)

    def test_version_and_help_beside_an_action_are_refused(self):
        device = self.start(virtual.Kasa())
        for name in ("version", "help"):
            self.assert_failure(on_stdin("fence_kasa", self.address(
                device, action="off", **{name: "1"})), "exclude each other")
        self.assertEqual(device.requests, [])

    def test_version_and_help(self):
        version = support.fencetool("fence_kasa", "-V")
        self.assertEqual((version.code, version.out), (0, fencetool.__version__ + "\n"))
        shown = support.fencetool("fence_kasa", "--help")
        self.assertEqual((shown.code, shown.err), (0, ""))
        for row in fencetool.AGENTS["fence_kasa"].params:
            self.assertIn("--" + row.name.replace("_", "-"), shown.out)
        self.assertEqual(support.fencetool("--version").out,
                         "fencetool %s\n" % fencetool.__version__)


class Secrets(AgentTest):
    def test_a_password_is_in_no_output_no_file_and_no_argv(self):
        device = self.start(virtual.Kasa(fault="garbage"))
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        log = os.path.join(folder.name, "debug.log")
        script = os.path.join(folder.name, "secret.sh")
        with open(script, "w") as handle:
            handle.write("#!/bin/sh\necho ps-hush-1\n")
        os.chmod(script, 0o700)
        tracing = os.path.join(folder.name, "tracing.sh")
        with open(tracing, "w") as handle:
            handle.write("#!/bin/sh -x\nPASSWORD=hush-2\nexit 1\n")
        os.chmod(tracing, 0o700)
        for more in ({"password": "hush-hush", "plug": "xhush-hushx"}, {"password_script": script},
                     {"password": "hush\thush", "plug": "hush\thush"},
                     {"password_script": tracing}):
            result = on_stdin("fence_kasa", self.address(
                device, action="status", verbose_level="2", debug_file=log, **more))
            self.assertEqual(result.code, 1)
            told = result.out + result.err
            if os.path.exists(log):
                with open(log) as handle:
                    told += handle.read()
            self.assertNotIn("hush", told)
            self.assertTrue("plug" not in more or "***" in told)
        self.assertEqual(stat.S_IMODE(os.stat(log).st_mode), 0o600)

    def test_a_password_script_runs_in_a_clean_environment_and_ends_in_time(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        script = os.path.join(folder.name, "script.sh")
        seen = os.path.join(folder.name, "seen")
        with open(script, "w") as handle:
            handle.write("#!/bin/sh\nenv > %s\nsleep 30 & sleep 30\n" % seen)
        os.chmod(script, 0o700)
        result = on_stdin("fence_kasa", {"ip": "127.0.0.1", "action": "status",
                                         "login_timeout": "1", "password_script": script},
                          environment={"PCMK_service": "pacemaker-fenced"})
        self.assert_failure(result, "did not end within 1 s")
        self.assertLess(result.seconds, 20)
        with open(seen) as handle:
            self.assertNotIn("PCMK", handle.read())

    def test_quiet_writes_nothing_to_stderr(self):
        device = self.start(virtual.Kasa(fault="refuse"))
        result = on_stdin("fence_kasa", self.address(device, action="status", quiet="1"))
        self.assertEqual((result.code, result.out, result.err), (1, "", ""))

    def test_a_debug_file_that_cannot_be_written_does_not_stop_a_fence(self):
        device = self.start(virtual.Kasa())
        with tempfile.TemporaryDirectory() as folder:
            pipe = os.path.join(folder, "pipe")
            os.mkfifo(pipe)
            for path in ("/nonexistent/folder/log", pipe, "/tmp/a\0b"):
                self.assert_success(on_stdin("fence_kasa", self.address(
                    device, action="monitor", debug_file=path)))


class NameResolution(unittest.TestCase):
    def test_a_name_with_two_addresses_of_a_family_is_refused(self):
        system = fencetool.System("test")
        answer = [(2, 1, 6, "", ("10.0.0.1", 1)), (2, 1, 6, "", ("10.0.0.2", 1))]
        system._resolve_name = lambda *arguments: answer
        with self.assertRaises(fencetool.Refused) as caught:
            system.resolve("plug.lan", 1, 0, system.deadline(1))
        self.assertIn("10.0.0.1, 10.0.0.2", str(caught.exception))

    def test_a_name_without_an_address_is_told(self):
        support.require_namespaces()
        # In an empty network namespace: no name server is asked.
        result = support.run(["unshare", "-n", sys.executable, "-IS", support.SCRIPT, "fence_kasa"],
                             stdin="ip=plug.invalid\naction=status\nlogin_timeout=1\n",
                             environment={"PATH": "/usr/bin:/bin"})
        self.assertEqual((result.code, result.out), (1, ""))
        self.assertIn("(give the device's address as ip)", result.err)

    def test_a_name_of_this_machine_works(self):
        support.require_localhost()
        device = virtual.Kasa()
        self.addCleanup(device.stop)
        device.start()
        result = on_stdin("fence_kasa", {"ip": "localhost", "ipport": str(device.address[1]),
                                         "action": "status", "inet4_only": "1"})
        self.assertEqual((result.code, result.err), (0, ""))
