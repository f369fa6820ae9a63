"""fence_kasa as a process against virtual plugs behind KLAP, and against both protocols at once."""
import functools
import hashlib
import itertools
import os
import resource
import shlex
import socket
import sys
import tempfile

import fencetool
from fencetool import PowerState
from tests import support, virtual, virtual_klap
from tests.support import AgentTest, at_once, on_stdin
from tests.virtual_klap import (
    ACCOUNT, BLANK, KASA_DEFAULT, KlapPlug, KlapStrip, OldKlapPlug, SmartPlug, SmartStrip,
    TAPO_DEFAULT)

FAMILIES = (OldKlapPlug, KlapPlug, KlapStrip, SmartPlug, SmartStrip)
AES_PAGE = b"<html><body><center>200 OK</center></body></html>"
NO_LOGIN = {"username": "", "password": ""}


class KlapTest(AgentTest):
    def reach(self, device, **parameters):
        """Return the parameters of a call that reaches a virtual device over KLAP."""
        return dict(self.address(device), **dict(device.parameters, **parameters))

    def run_off(self, device, **parameters):
        return on_stdin("fence_kasa", self.reach(device, action="off", **parameters))

    def open_device(self, device, **parameters):
        """Return the Device that speaks to a virtual one, in this process."""
        values = dict(self.reach(device, **support.PATIENT_LIMITS), **parameters)
        agent = fencetool.AGENTS["fence_kasa"]
        self.system = fencetool.System("test")
        found = fencetool.make_device(agent, fencetool.build_settings(values, agent.defaults),
                                      self.system)
        self.addCleanup(found.close)
        self.deadline = self.system.deadline(60)
        return found

    def steps(self, device):
        """Return the steps of the protocol that have come, in their order."""
        return [exchange.path.partition("?")[0][len("/app/"):] for exchange in device.exchanges]


class Actions(KlapTest):
    def test_every_action_gives_what_it_gives_over_the_old_protocol(self):
        expected = (
            ("status", 0, "Status: ON\n"), ("off", 0, "Success: Powered OFF\n"),
            ("status", 2, "Status: OFF\n"), ("off", 0, "Success: Already OFF\n"),
            ("monitor", 0, ""), ("list-status", 0, "1,node,OFF\n"),
            ("on", 0, "Success: Powered ON\n"), ("list", 0, "1,node\n"))

        def run_all(family):
            device = self.start(family(("node",), metered=True))
            return [on_stdin("fence_kasa", self.reach(device, action=action, nodename="node",
                                                      **support.PATIENT_LIMITS))
                    for action, _, _ in expected], device
        for family, (results, device) in zip(FAMILIES, at_once(
                [functools.partial(run_all, family) for family in FAMILIES])):
            for (action, code, out), result in zip(expected, results):
                with self.subTest(family.__name__, action=action):
                    self.assertEqual((result.code, result.out, result.err), (code, out, ""))
            self.assertEqual(device.complaints, [])

    def test_one_session_serves_all_requests_of_an_action(self):
        for family in FAMILIES:
            device = self.start(family(("node",), metered=True))
            with self.subTest(family.__name__):
                self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
                steps = self.steps(device)
                self.assertEqual(steps[:2], ["handshake1", "handshake2"])
                self.assertEqual(set(steps[2:]), {"request"})

    def test_an_outlet_of_a_strip_is_found_by_number_alias_and_id(self):
        for family in (KlapStrip, SmartStrip):
            device = self.start(family(("a", "b", "c"), **(
                {"page": 2} if family is SmartStrip else {})))
            for plug in ("2", "b", device.device_id + "01"):
                device.outlets[1].relay = True
                with self.subTest(family.__name__, plug=plug):
                    self.assert_success(self.run_off(device, plug=plug, **support.PATIENT_LIMITS))
                    self.assertEqual([outlet.relay for outlet in device.outlets],
                                     [True, False, True])
            for plug in ("", "4", "nosuch"):
                self.assert_failure(self.run_off(device, plug=plug), "outlet")

    def test_every_login_that_a_device_may_have_without_an_account_works(self):
        for family in (OldKlapPlug, KlapPlug, SmartPlug):
            for login in (KASA_DEFAULT, TAPO_DEFAULT, BLANK):
                for given in (ACCOUNT, NO_LOGIN):
                    device = self.start(family(**login))
                    result = on_stdin("fence_kasa", self.reach(
                        device, action="status", verbose="1", **dict(
                            given, **support.PATIENT_LIMITS)))
                    with self.subTest(family.__name__, **login):
                        self.assertEqual((result.code, result.out), (0, "Status: ON\n"))
                        told = "takes a login that everybody knows" in result.err
                        self.assertIs(told, login != given)

    def test_ipv6_works(self):
        device = self.start(SmartPlug(), host="::1")
        self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))

    def test_a_password_from_a_program_works(self):
        device = self.start(SmartPlug())
        with tempfile.TemporaryDirectory() as folder:
            script = self.write_password_script(folder)
            self.assert_success(self.run_off(device, password="", password_script=script,
                                             **support.PATIENT_LIMITS))

    def test_the_call_in_the_readme_works(self):
        with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
            line = next(line for line in handle if line.startswith("    fence_kasa")
                        and "--protocol=klap" in line)
        words = shlex.split(line)
        device = self.start(SmartPlug(username=words[words.index("-l") + 1]))
        words[words.index("-a") + 1] = device.address[0]
        with tempfile.TemporaryDirectory() as folder:
            words[words.index("-S") + 1] = self.write_password_script(folder)
            result = support.fencetool(*words + ["-u", str(device.address[1])])
        self.assertEqual((result.code, result.out), (0, "Status: ON\n"), result)

    def write_password_script(self, folder):
        path = os.path.join(folder, "password")
        with open(path, "w") as handle:
            handle.write("#!/bin/sh\necho %s\n" % ACCOUNT["password"])
        os.chmod(path, 0o700)
        return path

    def test_fence_check_reads_a_device_over_klap(self):
        for family in (KlapPlug, SmartPlug):
            device = self.start(family(("node",)))
            result = on_stdin("fence_check", dict({
                "fence_method": "kasa", "fence_ip": device.address[0], "nodename": "node",
                "fence_ipport": str(device.address[1]), "protocol": "klap", "action": "status",
                "fence_user": ACCOUNT["username"], "fence_pass": ACCOUNT["password"],
                "target_mgmt_ip": "127.0.0.2"}))
            self.assertIn("power=on", result.out)

    def test_the_plugin_of_cluster_glue_takes_a_login(self):
        device = self.start(SmartPlug())
        environment = {"hostlist": "node", "ip": device.address[0],
                       "ipport": str(device.address[1])}
        environment.update(device.parameters)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "kasa")
            os.symlink(support.compiled_script(), path)
            self.assert_success(support.run([sys.executable, "-IS", path, "off", "node"],
                                            environment=environment))
        self.assertFalse(device.outlets[0].powered)


class Sessions(KlapTest):
    def test_a_session_that_is_lost_is_begun_anew_once_and_the_device_proven_again(self):
        for family in FAMILIES:
            for name in ("read", "send", "read_meter"):
                device = self.start(family(("node",), metered=True))
                opened = self.open_device(device)
                outlet = opened.open(self.deadline)
                device.sessions.clear()
                with self.subTest(family.__name__, call=name):
                    arguments = (PowerState.OFF,) if name == "send" else ()
                    getattr(outlet, name)(*arguments + (self.deadline,))
                    self.assertEqual(self.steps(device).count("handshake1"), 2)
                    if name == "send":
                        self.assertFalse(device.outlets[0].powered)
                self.assertEqual(device.complaints, [])

    def test_a_device_that_lets_nobody_in_for_a_while_after_it_obeyed_is_waited_for(self):
        device = self.start(KlapPlug(metered=True))
        switch = device.switch

        def switch_and_forget(number, on):
            switch(number, on)
            device.sessions.clear()
            device.next_replies = [(200, {}, b"")] + [(403, {}, b"")] * 4
        device.switch = switch_and_forget
        self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
        self.assertFalse(device.outlets[0].powered)

    def test_nothing_is_sent_in_a_session_with_another_device(self):
        for family in FAMILIES:
            device = self.start(family(("node",)))
            outlet = self.open_device(device).open(self.deadline)
            device.become_another()
            with self.subTest(family.__name__), self.assertRaises(fencetool.Refused):
                outlet.send(PowerState.OFF, self.deadline)
            self.assertEqual(device.commands, 0)

    def test_the_numbers_of_a_session_do_not_begin_again(self):
        device = self.start(KlapPlug())
        opened = self.open_device(device)
        outlet = opened.open(self.deadline)
        opened.transport.session.sequence = fencetool.KLAP_LAST_SEQUENCE
        self.assertIs(outlet.read(self.deadline), PowerState.ON)
        self.assertEqual(self.steps(device).count("handshake1"), 2)
        self.assertEqual(device.complaints, [])

    def test_the_last_number_of_a_session_is_rightly_signed_and_the_next_session_follows(self):
        for family in (OldKlapPlug, SmartPlug):
            device = self.start(family())
            opened = self.open_device(device)
            outlet = opened.open(self.deadline)
            for session in (opened.transport.session, list(device.sessions.values())[-1]):
                session.sequence = fencetool.KLAP_LAST_SEQUENCE - 1
            with self.subTest(family.__name__):
                outlet.send(PowerState.OFF, self.deadline)
                self.assertEqual(self.steps(device).count("handshake1"), 1)
                self.assertEqual(device.exchanges[-1].path, "/app/request?seq=2147483647")
                self.assertIs(outlet.read(self.deadline), PowerState.OFF)
                self.assertEqual(self.steps(device).count("handshake1"), 2)
                self.assertEqual((device.commands, device.complaints), (1, []))

    def test_a_device_that_answers_one_request_of_a_session_is_fenced(self):
        for family in (OldKlapPlug, KlapStrip):
            device = self.start(family(("node",), metered=True, requests_a_session=1))
            if family is OldKlapPlug:
                self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
                self.assertFalse(device.outlets[0].powered)
                device.fault = "welded"
                device.outlets[0].powered = True
                self.assert_failure(self.run_off(device), "43 W")

    def test_a_signature_that_begins_like_a_web_page_is_a_signature(self):
        device = self.start(KlapPlug())
        blanks = [bytes(letters) for letters in itertools.product(b" \t", repeat=12)]

        def falsify(session, plain):
            sealed = (session.seal(session.sequence, plain + blank) for blank in blanks)
            return next(body for body in sealed if body[:1] == b"<")
        device.falsify = falsify
        self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
        self.assertEqual(self.steps(device).count("handshake1"), 1)

    def test_a_web_page_now_and_then_in_place_of_an_answer_fails_nothing(self):
        device = self.start(KlapPlug(metered=True))
        answer = device.obey
        count = []

        def obey(session, query, body):
            count.append(1)
            found = answer(session, query, body)
            return (200, {}, AES_PAGE) if len(count) % 4 == 0 else found
        device.obey = obey
        self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
        self.assertFalse(device.outlets[0].powered)

    def test_a_device_that_wants_a_pause_behind_each_answer_gets_it(self):
        for family in (KlapPlug, SmartPlug):
            device = self.start(family(metered=True))
            self.answer_after_pauses_alone(device)
            with self.subTest(family.__name__):
                self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))
                self.assertFalse(device.outlets[0].powered)

    def answer_after_pauses_alone(self, device):
        """Let a device close each connection that comes sooner than P100's pause."""
        converse, ended = device.converse, [0.0]

        def close_if_too_early(handle):
            if fencetool.System.clock() - ended[0] >= 0.2:
                converse(handle)
                ended[0] = fencetool.System.clock()
        device.converse = close_if_too_early

    def test_a_list_of_outlets_ends_though_each_session_serves_a_few_requests(self):
        names = list("abcdefgh")
        for family, requests in ((KlapStrip, 3), (SmartStrip, 5)):
            device = self.start(family(names, requests_a_session=requests))
            with self.subTest(family.__name__):
                self.assert_success(self.run_off(
                    device, **dict(support.PATIENT_LIMITS, plug=",".join(names))))
                self.assertFalse(any(outlet.relay for outlet in device.outlets))


class OtherClients(KlapTest):
    """A device that keeps one session, and others who log in."""

    LIMITS = dict(support.PATIENT_LIMITS, stonith_status_sleep="200ms")

    def lose_sessions(self, device, lost, requests):
        """Let the first sessions end behind so many requests; -1: before they begin."""
        prove, is_used_up = device.prove, device.is_used_up
        device.lost = []

        def is_lost(session):
            if session not in device.lost and len(device.lost) < lost:
                device.lost.append(session)
            return session in device.lost
        device.is_used_up = lambda session: (is_used_up(session) or (
            is_lost(session) and session.requests >= requests))
        device.prove = lambda session, client_hash: (
            (403, {}, b"") if requests < 0 and is_lost(session) else prove(session, client_hash))

    def test_a_session_that_another_client_takes_uses_up_no_attempt(self):
        def run_one(family, action, requests):
            device = self.start(family(("node",), metered=True))
            self.lose_sessions(device, 5, requests)
            return device, on_stdin("fence_kasa", self.reach(
                device, action=action, power_meter="require", **self.LIMITS))
        cases = list(itertools.product(
            (KlapPlug, SmartPlug, SmartStrip), ("status", "monitor", "list"), (-1, 0, 2)))
        for case, (device, result) in zip(cases, at_once(
                [functools.partial(run_one, *case) for case in cases])):
            with self.subTest(case=case):
                self.assert_success(result)
                self.assertGreater(len(device.lost), 0)
                self.assertEqual((device.commands, device.complaints), (0, []))

    def test_a_command_that_was_not_read_is_sent_again_behind_a_new_proof(self):
        for family in FAMILIES:
            device = self.start(family(("node",), metered=True))
            obey, refused = device.obey, []

            def obey_later(session, query, body, device=device, obey=obey, refused=refused):
                plain = session.open(session.sequence + 1, body)
                if len(refused) < 4 and any(word in plain for word in virtual_klap.COMMANDS):
                    refused.append(session.requests)
                    device.sessions.clear()
                    return 403, {}, b""
                return obey(session, query, body)
            device.obey = obey_later
            with self.subTest(family.__name__):
                self.assert_success(self.run_off(device, **self.LIMITS))
                self.assertEqual(len(refused), 4)
                self.assertNotIn(0, refused)  # something has been asked in each of the sessions
                self.assertEqual((device.commands, device.complaints), (1, []))

    def test_only_status_403_is_a_session_lost_to_another_client(self):
        replies = [(200, {}, b""), (200, {}, AES_PAGE), (200, {}, b"x" * 64), (400, {}, b""),
                   (401, {}, b""), (404, {}, b""), (500, {}, b""), (503, {}, b"")]
        for reply in replies:
            device = self.start(SmartPlug())
            device.obey = lambda session, query, body, reply=reply: reply
            opened = self.open_device(device)
            with self.subTest(reply=reply), self.assertRaises(fencetool.FenceError):
                fencetool.run_status(fencetool.Job(self.system, opened, opened.settings))
            self.assertEqual(self.steps(device).count("handshake1"), fencetool.READ_ATTEMPTS)

    def test_clients_that_log_in_at_once_all_come_to_their_end(self):
        devices = [self.start(family(("node",), metered=True))
                   for family in (KlapPlug, SmartStrip)]
        actions = ("off", "status", "monitor", "off")
        results = at_once([functools.partial(
            on_stdin, "fence_kasa", self.reach(device, action=action, **self.LIMITS))
            for device in devices for action in actions])
        for action, result in zip(actions * 2, results):
            with self.subTest(action=action):
                self.assertIn(result.code, (0, 2) if action == "status" else (0,), result)
        for device in devices:
            self.assertFalse(device.outlets[0].powered)


class Doubts(KlapTest):
    """What a Tapo device leaves out is no proof that there is none of it."""

    def test_the_only_outlet_that_is_listed_is_not_the_only_one_of_the_case(self):
        for parameters in ({}, {"nodename": "node", "plug": "node"}):
            device = self.start(SmartStrip(("a", "b"), fault="short_list"))
            with self.subTest(**parameters):
                self.assert_failure(self.run_off(device, **parameters),
                                    "may have more", "it lists one, whose slot_number is '2'")
                self.assertEqual(device.commands, 0)

    def test_the_only_outlet_is_one_whose_slot_number_is_exactly_1(self):
        for number in (None, 0, 2, "1", True, 1.0, [1]):
            device = self.start_strip_of_slots(("a",), number)
            with self.subTest(slot_number=number), self.assertRaises(fencetool.Refused):
                self.open_device(device).open(self.deadline)
        device = self.start_strip_of_slots(("a",), 1)
        self.assertEqual(self.open_device(device).open(self.deadline).identity, 1)

    def test_outlets_that_are_named_are_found_in_a_list_that_may_go_on(self):
        for aliases, number, plugs in (
                (("a", "b"), 3, ("1", "a", "1,2", "a, b")),  # the P306 says one more than it has
                (("node",), 2, ("1", "node"))):
            for plug in plugs:
                device = self.start_strip_of_slots(aliases, number)
                with self.subTest(slot_number=number, plug=plug):
                    self.assert_success(self.run_off(device, plug=plug, nodename="node",
                                                     **support.PATIENT_LIMITS))
                    switched = [not outlet.relay for outlet in device.outlets]
                    self.assertEqual(switched, [True, "," in plug][:len(aliases)])

    def test_a_list_of_outlets_of_which_one_is_missing_switches_none(self):
        device = self.start(SmartStrip(("a", "b"), fault="short_list"))
        self.assert_failure(self.run_off(device, plug="1,2"), "may have more")
        self.assertEqual(device.commands, 0)

    def test_a_list_of_components_that_cannot_be_read_leaves_no_meter_out(self):
        entries = [[entry] for entry in (0, "", [], None, {}, {"id": None}, {"id": ""},
                                         {"id": ["energy_monitoring"]}, {"id": 0, "ver_code": 2})]
        for family in (SmartPlug, SmartStrip):
            for added in [None] + entries:  # None: an empty list
                device = self.start_welded_with_components(family, added)
                with self.subTest(family.__name__, added=added):
                    try:
                        opened = self.open_device(device)
                        reading = opened.open(self.deadline).read_meter(self.deadline)
                    except fencetool.ProtocolError as error:
                        self.assertIn("component", str(error))
                    else:
                        self.assertEqual(reading, fencetool.MeterReading(43, ""))

    def test_a_plug_whose_components_cannot_be_read_is_not_off_while_it_draws_power(self):
        for family in (SmartPlug, SmartStrip):
            for added in (None, [0]):
                device = self.start_welded_with_components(family, added)
                with self.subTest(family.__name__, added=added):
                    self.assert_failure(self.run_off(device), "43 W" if family is SmartStrip
                                        else "list of components")

    def test_components_of_an_outlet_that_come_twice_leave_no_meter_out(self):
        device = self.start(SmartStrip(("node",), metered=True, fault="welded", page=2))
        listed = device.list_children

        def list_twice(start, name, describe):
            found = listed(start, name, describe)
            if name == "child_component_list":
                without = dict(found[name][0], component_list=[{"id": "device", "ver_code": 2}])
                found.update({name: [without] + found[name], "sum": 2})
            return found
        device.list_children = list_twice
        self.assert_failure(self.run_off(device), "43 W")

    def start_welded_with_components(self, family, added):
        """Return a welded device whose meter is not in its components, with entries added to them.

        None as what is added: it tells none at all. Of a strip it is the outlet's list.
        """
        device = family(("node",), metered=True, fault="welded")
        listed = device._component_nego

        def tell_components(params, outlet):
            if family is SmartStrip and outlet is None:
                return listed(params, outlet)
            device.metered = False
            found = listed(params, outlet)["component_list"]
            device.metered = True
            return {"component_list": [] if added is None else found + added}
        device._component_nego = tell_components
        return self.start(device)

    def start_strip_of_slots(self, aliases, number):
        """Return a strip whose outlets tell this slot_number."""
        device = SmartStrip(aliases)
        describe = device.describe_child
        device.describe_child = lambda outlet: dict(describe(outlet), slot_number=number)
        return self.start(device)


class Reasons(KlapTest):
    """What is told, and what is asked of a device that says no."""

    def reason(self, device, *words, **parameters):
        """Run status, whose reasons are those of every action, and which ends the soonest."""
        self.assert_failure(on_stdin("fence_kasa", self.reach(
            device, action="status", **dict(support.PATIENT_LIMITS, **parameters))), *words)

    def test_a_wrong_login_is_told_without_asking_twice(self):
        for family in FAMILIES:
            device = self.start(family(fault="stranger"))
            self.reason(device, "refuses the login of user 'user@example.com'",
                        "capital letters of the e-mail address count",
                        "remove the device in the app and add it again")
            self.assertEqual(self.steps(device), ["handshake1"])

    def test_the_case_of_the_address_counts(self):
        self.reason(self.start(SmartPlug()), "refuses the login of user 'User@example.com'",
                    username="User@example.com")

    def test_a_missing_login_is_told(self):
        self.reason(self.start(SmartPlug()), "wants the login of a TP-Link account: set username "
                    "and password", **NO_LOGIN)

    def test_local_access_that_is_off_is_told_with_its_place_in_the_app(self):
        device = self.start(SmartPlug(fault="forbidden"))
        self.reason(device, "lets no other program in (HTTP status 403)",
                    "Third-Party Compatibility", "Me > Third-Party Services")
        self.assertEqual(self.steps(device), ["handshake1"] * 2)  # some say so now and then

    def test_a_refusal_that_comes_once_is_not_believed(self):
        for reply in ((403, {}, b""), (404, {}, b"Not Found"), (200, {}, b"<html>starting</html>")):
            device = self.start(SmartPlug(next_replies=[reply]))
            self.assert_success(self.run_off(device, **support.PATIENT_LIMITS))

    def test_another_client_that_takes_the_session_is_told(self):
        self.reason(self.start(KlapPlug(fault="lost_session")),
                    "has ended the session (HTTP status 403): does another client",
                    **support.SHORT_LIMITS)

    def test_a_session_that_ends_before_it_began_is_told(self):
        device = self.start(KlapPlug())
        device.prove = lambda session, client_hash: (403, {}, b"")
        self.reason(device, "ends the session before it began (HTTP status 403)",
                    **support.SHORT_LIMITS)

    def test_a_missing_cookie_is_told(self):
        self.reason(self.start(KlapPlug(fault="no_cookie")),
                    "gives no session (cookie TP_SESSIONID")

    def test_the_older_protocol_of_tapo_is_named(self):
        for body in (AES_PAGE, b'{"error_code":1003}'):
            device = self.start(SmartPlug())
            device.begin_session = lambda seed, body=body: (200, {}, body)
            self.reason(device, "older protocol of Tapo (AES, securePassthrough)",
                        "update its firmware")

    def test_a_web_page_and_a_redirect_are_told(self):
        self.reason(self.start(SmartPlug(fault="portal")), "is not KLAP's (a web page or a captive "
                    "portal?) 'Sign in: Wi-Fi ON or OFF'")
        self.reason(self.start(SmartPlug(fault="html")), "is not signed by the device: '200 OK'")
        self.reason(self.start(SmartPlug(fault="redirect")), "redirects to 'http://192.168.4.1/'")

    def test_an_answer_that_the_device_has_not_signed_is_told(self):
        at_once([functools.partial(
            self.reason, self.start(KlapPlug(fault=fault)), "is not signed by the device")
            for fault in ("clear", "cut", "odd", "wrong_signature", "replay", "other_number")])

    def test_what_a_device_announces_is_added_to_its_refusal(self):
        address = virtual_klap.own_address()
        device = SmartPlug(fault="forbidden", is_discoverable=True)
        announce = device.announce
        device.announce = lambda: {"result": {"mgt_encrypt_schm": dict(
            announce()["result"]["mgt_encrypt_schm"], encrypt_type="TPAP")}}
        self.start(device, host=address)
        self.reason(device, "it announces the protocol 'TPAP'")

    def test_neither_the_password_nor_what_is_made_of_it_is_ever_shown(self):
        faults = ("", "stranger", "forbidden", "lost_session", "html", "wrong_signature", "clear")
        for family in (OldKlapPlug, SmartPlug):
            for fault in faults:
                device = self.start(family(fault=fault))
                result = on_stdin("fence_kasa", self.reach(device, action="status",
                                                           verbose_level="2"))
                hidden = [ACCOUNT["password"]]
                for version in (1, 2):
                    proof = fencetool.build_klap_proof(version, fencetool.KlapLogin(**ACCOUNT))
                    hidden.append(proof.auth_hash.hex())
                for name in ("md5", "sha1"):
                    hidden.append(hashlib.new(name, hidden[0].encode("utf-8")).hexdigest())
                for session in device.sessions.values():
                    hidden += [session.key.hex(), session.signer.hex(), session.iv.hex()]
                hidden += list(device.sessions)  # the cookies
                with self.subTest(family.__name__, fault=fault):
                    self.assertIn("<-", result.err) if not fault else None
                    for secret in hidden:
                        self.assertNotIn(secret.lower(), (result.out + result.err).lower())


class Protocols(KlapTest):
    """protocol=auto, on addresses where both ports can be had."""

    def setUp(self):
        support.require_root()
        self.address_of_its_own = virtual_klap.own_address()

    def start_legacy(self, device):
        return self.start(device, host=self.address_of_its_own, port=9999)

    def start_klap(self, device):
        return self.start(device, host=self.address_of_its_own, port=80)

    def start_klap_anew(self, device):
        """Start it on an address on which nothing has been."""
        self.address_of_its_own = virtual_klap.own_address()
        return self.start_klap(device)

    def run_auto(self, action="off", **parameters):
        given = dict(support.PATIENT_LIMITS, ip=self.address_of_its_own, action=action)
        return on_stdin("fence_kasa", dict(given, **parameters))

    def fail_auto(self, **parameters):
        return self.run_auto("status", **parameters)

    def test_the_old_protocol_is_taken_where_its_port_is_open(self):
        legacy, klap = virtual.Kasa(metered=True), KlapPlug(metered=True)
        self.start_legacy(legacy)
        self.start_klap(klap)
        for parameters in ({}, ACCOUNT, {"ipport": "9999"}):
            self.assert_success(self.run_auto(**parameters))
        self.assertEqual(klap.exchanges, [])
        alone = self.start(virtual.Kasa(metered=True))
        self.assert_success(on_stdin("fence_kasa", self.address(
            alone, action="off", protocol="legacy")))
        self.assertEqual(len(legacy.requests), 3 * len(alone.requests))

    def test_klap_is_taken_where_the_old_port_is_closed(self):
        for family in FAMILIES:
            device = self.start_klap_anew(family(("node",), metered=True))
            with self.subTest(family.__name__):
                self.assert_success(self.run_auto(**ACCOUNT))
                self.assertFalse(device.outlets[0].powered)

    def test_a_machine_that_has_no_socket_left_says_so(self):
        system = fencetool.System("test")
        with open(os.devnull) as last:
            free = last.fileno()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            with self.assertRaisesRegex(fencetool.Unreachable, "Too many open files"):
                system.connect_preferred("127.0.0.1", (9999, 80), socket.AF_UNSPEC,
                                         system.deadline(5))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    def test_klap_is_taken_where_the_old_port_is_silent(self):
        silent = socket.socket()
        self.addCleanup(silent.close)
        silent.bind((self.address_of_its_own, 9999))
        silent.listen(0)
        waiting = []  # fill its queue: what comes now gets no answer
        for _ in range(3):
            one = socket.socket()
            self.addCleanup(one.close)
            one.setblocking(False)
            one.connect_ex((self.address_of_its_own, 9999))
            waiting.append(one)
        device = SmartPlug()
        self.start_klap(device)
        self.assert_success(self.run_auto(login_timeout="20", **ACCOUNT))
        self.assertFalse(device.outlets[0].powered)

    STRANGERS = {  # what another program on the old port answers, and the reason that is told
        "silence": (None, "no complete answer: nothing came"),
        "its end": (b"", "closed the connection"),
        "a page": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does another service listen"),
        "nonsense": (virtual.GARBAGE, "is not Kasa's protocol"),
        "a part": (virtual.GARBAGE[:9], "closed the connection"),
        "no sysinfo": (fencetool.build_kasa_frame({"system": {}}), "holds no get_sysinfo")}

    def start_stranger(self, answer):
        """Start what accepts the old port and answers this; None: nothing at all."""
        stranger = virtual.Kasa(fault="silent" if answer is None else "welded")
        stranger.answer = lambda message: b""
        if answer is not None:
            stranger.send_answer = lambda handle, _: self.answer_and_end(handle, answer)
        return self.start_legacy(stranger)

    def answer_and_end(self, handle, answer):
        handle.sendall(answer)
        raise ConnectionError("ended")

    def test_the_plug_behind_another_port_is_found_where_a_stranger_has_the_old_one(self):
        devices = [(name, self.start_behind(name, SmartPlug(metered=True)))
                   for name in self.STRANGERS]
        results = at_once([functools.partial(
            self.run_auto, ip=device.address[0], shell_timeout=self.patience(name), **dict(
                ACCOUNT, **{} if name in ("a page", "nonsense") else {"device_mac": device.mac}))
            for name, device in devices])
        for (name, device), result in zip(devices, results):
            with self.subTest(name):
                self.assert_success(result)
                self.assertFalse(device.outlets[0].powered)

    def start_behind(self, name, device):
        """Start a device with KLAP on an address where one of STRANGERS has the old port."""
        self.start_klap_anew(device)
        self.start_stranger(self.STRANGERS[name][0])
        return device

    def patience(self, name):
        return "3" if name == "silence" else "20"

    def test_a_silent_port_is_not_taken_for_a_strangers_without_a_mac(self):
        names = ("silence", "its end", "a part", "no sysinfo")
        devices = [self.start_behind(name, SmartPlug(metered=True)) for name in names]
        results = at_once([functools.partial(
            self.fail_auto, ip=device.address[0], shell_timeout=self.patience(name), **ACCOUNT)
            for name, device in zip(names, devices)])
        for name, result in zip(names, results):
            with self.subTest(name):
                self.assert_failure(
                    result, "port 9999: ", self.STRANGERS[name][1],
                    "port 80: a plug with the MAC 'CC-32-E5-00-00-01' answers, and nothing says "
                    "that it is the one: set device_mac; protocol=klap or protocol=legacy settles")
        result = self.run_auto(ip=devices[1].address[0], **dict(support.SHORT_LIMITS, **ACCOUNT))
        self.assert_failure(result, "set device_mac")
        self.assertEqual([device.commands for device in devices], [0] * len(names))

    def test_what_is_no_kasa_is_believed_when_it_comes_twice(self):
        legacy, klap = virtual.Kasa(), SmartPlug()
        answers = [virtual.GARBAGE]
        send_answer = legacy.send_answer
        legacy.send_answer = lambda handle, answer: send_answer(
            handle, answers.pop() if answers else answer)
        self.start_klap(klap)
        self.start_legacy(legacy)
        self.assert_success(self.run_auto(**ACCOUNT))
        self.assertEqual((legacy.commands, klap.exchanges), (1, []))

    def test_both_ports_are_told_where_neither_is_a_plugs(self):
        devices = [self.start_behind(name, SmartPlug(fault="stranger")) for name in self.STRANGERS]
        results = at_once([functools.partial(
            self.fail_auto, ip=device.address[0], shell_timeout=self.patience(name), **ACCOUNT)
            for name, device in zip(self.STRANGERS, devices)])
        for (name, (_, words)), result in zip(self.STRANGERS.items(), results):
            with self.subTest(name):
                self.assert_failure(result, "port 9999: ", words, "; port 80: the device refuses "
                                    "the login of user",
                                    "; protocol=klap or protocol=legacy settles it")

    def test_of_two_devices_at_one_address_the_one_with_the_mac_is_taken(self):
        legacy, klap = virtual.Kasa(mac="CC:32:E5:00:00:77"), KlapPlug()
        self.start_legacy(legacy)
        self.start_klap(klap)
        self.assert_success(self.run_auto(device_mac=klap.mac, **ACCOUNT))
        self.assertEqual((legacy.commands, klap.commands), (0, 1))
        self.assert_success(self.run_auto(device_mac=legacy.mac, **ACCOUNT))
        self.assertEqual((legacy.commands, klap.commands), (1, 1))
        result = self.run_auto(device_mac="CC:32:E5:00:00:78", **ACCOUNT)
        self.assert_failure(result, "port 9999: another device has this address now: its MAC is "
                            + legacy.mac, "port 80: another device has this address now: its MAC "
                            "is " + klap.mac)
        self.assertEqual((legacy.commands, klap.commands), (1, 1))

    def test_an_old_plug_that_loses_its_first_answer_is_asked_again(self):
        for is_klap_open in (True, False):
            self.address_of_its_own = virtual_klap.own_address()
            legacy = virtual.Kasa()
            answer, lost = legacy.answer, []

            def lose_first(message, answer=answer, lost=lost):
                if not lost:
                    lost.append(message)
                    raise ConnectionError("lost")
                return answer(message)
            legacy.answer = lose_first
            self.start_legacy(legacy)
            if is_klap_open:  # and wants a login that nobody has given
                self.start_klap(SmartPlug())
            with self.subTest(is_klap_open=is_klap_open):
                self.assert_success(self.run_auto())
                self.assertFalse(legacy.outlets[0].powered)

    def test_what_one_protocol_has_shown_is_not_believed_of_the_other(self):
        legacy = virtual.Kasa(answers_a_connection=1)
        klap = SmartPlug(members={"device_id": 7})
        describe = klap.describe_device

        def open_the_old_port_too():
            klap.describe_device = describe
            self.start_legacy(legacy)
            return describe()
        klap.describe_device = open_the_old_port_too
        self.start_klap(klap)
        self.assert_success(self.run_auto(**ACCOUNT))
        self.assertEqual((legacy.outlets[0].powered, klap.commands), (False, 0))

    def test_what_to_do_is_told_when_the_old_port_is_closed_and_no_login_is_set(self):
        self.start_klap(SmartPlug())
        self.assert_failure(
            self.fail_auto(), "set username and password", "port 9999: no connection: Connection "
            "refused", "Third-Party Compatibility")

    def test_both_reasons_are_told_when_nothing_answers(self):
        self.assert_failure(
            self.fail_auto(), "port 9999: no connection: Connection refused",
            "port 80: no connection: Connection refused")
        self.start_klap(SmartPlug(fault="stranger"))
        self.assert_failure(self.fail_auto(**ACCOUNT),
                            "kasa %s:80: the device refuses the login" % self.address_of_its_own,
                            "before that port 9999: no connection: Connection refused")

    def test_port_80_means_klap_and_another_one_the_old_protocol(self):
        klap = SmartPlug()
        self.start_klap(klap)
        self.assert_success(self.run_auto(ipport="80", **ACCOUNT))
        self.assertFalse(klap.outlets[0].powered)
        device = self.start(virtual.Kasa(), host=self.address_of_its_own, port=9998)
        self.assert_success(self.run_auto(ipport="9998", **ACCOUNT))
        self.assertFalse(device.outlets[0].powered)
        result = self.fail_auto(ipport="9997", **ACCOUNT)
        self.assert_failure(result, "Connection refused")
        self.assertNotIn("port 80:", result.err)

    def test_a_protocol_that_is_set_is_the_only_one_that_is_tried(self):
        legacy, klap = virtual.Kasa(), KlapPlug()
        self.start_legacy(legacy)
        self.start_klap(klap)
        self.assert_success(self.run_auto(protocol="klap", **ACCOUNT))
        self.assertEqual(legacy.requests, [])
        klap.exchanges.clear()
        self.assert_success(self.run_auto(protocol="legacy", **ACCOUNT))
        self.assertEqual(klap.exchanges, [])

    def test_the_protocol_does_not_change_within_an_action(self):
        legacy, klap = virtual.Kasa(), KlapPlug()
        self.start_klap(klap)
        answer = klap.answer

        def open_the_old_port_too(message):
            if b"set_relay_state" in fencetool.decrypt_kasa(message):
                self.start_legacy(legacy)
            return answer(message)
        klap.answer = open_the_old_port_too
        self.assert_success(self.run_auto(**ACCOUNT))
        self.assertEqual(legacy.requests, [])

    def test_a_device_that_sleeps_after_a_power_failure_is_woken(self):
        for parameters in ({"protocol": "klap"}, {}):
            device = self.start_klap_anew(SmartPlug(is_asleep=True))
            with self.subTest(**parameters):
                self.assert_success(self.run_auto(**dict(ACCOUNT, **parameters)))
                self.assertEqual(device.probes, 1)

    def test_no_datagram_changes_a_verdict(self):
        spoofed = virtual_klap.build_datagram(0, {"error_code": 0, "result": {
            "mac": "CC-32-E5-00-00-99", "device_on": False, "mgt_encrypt_schm": {
                "encrypt_type": "TPAP", "http_port": 1}}})
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(stranger.close)
        stranger.bind((virtual_klap.own_address(), virtual_klap.DISCOVERY_PORT))
        cases = (
            (spoofed, stranger, ""), (b"", None, ""), (b"\0" * 16 + b"[" * 60000, None, ""),
            (os.urandom(65000), None, ""), (spoofed[:40], None, ""),
            (b"\0" * 16 + b'{"result":{"mgt_encrypt_schm":{"encrypt_type":%s}}}'
             % (b"9" * 4000), None, ""),
            (spoofed.replace(b"TPAP", b"set protocol=legacy"), None, ""),
            (spoofed, None, "; it announces the protocol 'TPAP'"))
        calls = []
        for answer, sender, _ in cases:
            device = SmartPlug(fault="forbidden", is_discoverable=True)
            device.answer_datagrams = functools.partial(
                self.answer_spoofed, device, answer, sender)
            self.start_klap_anew(device)
            calls.append(functools.partial(self.fail_auto, ip=device.address[0], **ACCOUNT))
        for (answer, _, words), result in zip(cases, at_once(calls)):
            with self.subTest(answer[:60], words=words):
                self.assert_failure(result, "again after each update of the firmware%s; before "
                                    "that" % words)
        sleeper = SmartPlug(is_asleep=True)
        sleeper.answer_datagrams = functools.partial(
            self.answer_spoofed, sleeper, spoofed, None)
        self.start_klap_anew(sleeper)
        self.assert_success(self.run_auto(**ACCOUNT))
        self.assertFalse(sleeper.outlets[0].powered)

    def answer_spoofed(self, device, answer, sender):
        """Answer each datagram with this, from another address where a sender is given; wake up."""
        while not device.stopped.is_set():
            client = device.datagrams.recvfrom(4096)[1]
            if not client:  # stop() ends it
                return
            (sender or device.datagrams).sendto(answer, client)
            if device.is_asleep:
                device.is_asleep = False
                device.listen()

    def test_a_device_that_is_awake_gets_no_datagram(self):
        device = SmartPlug(is_discoverable=True)
        self.start_klap(device)
        self.assert_success(self.run_auto(**ACCOUNT))
        self.assertEqual(device.probes, 0)

    def test_without_a_protocol_fence_check_finds_what_answers(self):
        self.start_klap(SmartPlug(("node",)))
        result = on_stdin("fence_check", {
            "fence_method": "kasa", "fence_ip": self.address_of_its_own, "nodename": "node",
            "action": "status", "fence_user": ACCOUNT["username"],
            "fence_pass": ACCOUNT["password"], "target_mgmt_ip": "127.0.0.2"})
        self.assertIn("power=on", result.out)

    def test_a_protocol_has_its_own_port(self):
        for protocol, port in (("auto", 9999), ("legacy", 9999), ("klap", 80)):
            own = fencetool.build_settings(
                {"ip": "10.0.0.5", "protocol": protocol}, fencetool.AGENTS["fence_kasa"].defaults)
            checked = fencetool.build_check_settings(
                {"fence_method": "kasa", "fence_ip": "10.0.0.5", "protocol": protocol,
                 "target_mgmt_ip": "10.0.0.6"}, fencetool.AGENTS["fence_check"].defaults)
            self.assertEqual((own.ipport, checked.ipport), (port, port))


