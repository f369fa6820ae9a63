"""Shelly as real devices are: their generations, channels, timers, meters, logins."""
import functools
import os
import tempfile
import threading
import unittest
from unittest import mock

import fencetool
from fencetool import PowerState
from tests import support, virtual
from tests.support import at_once
from tests.test_rooms import NO_STATUS, RENDERINGS, RoomTest

WORKERS = 8
EVERY = (virtual.Shelly1, virtual.Shelly2)
LATER = {"login_timeout": "5", "shell_timeout": "5"}


class ShellyTest(RoomTest):
    def build(self, device, **parameters):
        """Return (system, Job) of an action in this process, on a clock that sleeping moves on."""
        agent = fencetool.AGENTS["fence_http"]
        values = dict(self.address(device), device="shelly", **LATER)
        settings = fencetool.build_settings(dict(values, **parameters), agent.defaults)
        system = self.make_system(device)
        return system, fencetool.Job(system, fencetool.make_device(agent, settings, system),
                                     settings)

    def make_system(self, device):
        """Return a System that shares its clock with a virtual device."""
        system = fencetool.System("test")
        passed = [0.0]
        system.clock = lambda: passed[0]
        system.sleep = lambda seconds: passed.append(passed.pop() + seconds)
        device.clock = lambda: passed[0]
        return system


class Channels(ShellyTest):
    def start_four(self, make=virtual.Shelly2, names=("web", "db", "3rd", "")):
        return self.start(make(names, metered=True))

    def test_the_only_channel_is_taken_without_a_plug(self):
        for make in EVERY:
            device = self.start(make(("web",)))
            self.assert_success(self.call(device, "off", nodename="node", plug="node"))
            self.assertEqual(device.moved, [(1, False)])

    def test_of_several_channels_one_is_named_by_its_number_or_its_name(self):
        for make in EVERY:
            for plug, number in (("2", 2), ("db", 2), ("3rd", 3), ("4", 4)):
                device = self.start_four(make)
                with self.subTest(make.__name__, plug=plug):
                    self.assert_success(self.call(device, "off", plug=plug))
                    self.assertEqual(device.moved, [(number, False)])

    def test_a_list_tells_numbers_from_1_and_names(self):
        for make in EVERY:
            result = self.call(self.start_four(make), "list-status")
            self.assertEqual(result.out, "1,web,ON\n2,db,ON\n3,3rd,ON\n4,,ON\n")

    def test_what_does_not_mean_exactly_one_channel_is_refused_before_anything_is_sent(self):
        for make in EVERY:
            device = self.start_four(make, ("a", "a", "2", ""))
            for parameters, words in (
                    ({}, "no outlet was named"), ({"plug": "a"}, "names 2 outlets"),
                    ({"plug": "0"}, "names no outlet"), ({"plug": "5"}, "names no outlet"),
                    ({"plug": "2"}, "names 2 outlets"), ({"plug": "02"}, "no number as on"),
                    ({"plug": "node", "nodename": "node"}, "names no outlet")):
                with self.subTest(make.__name__, **parameters):
                    self.assert_failure(self.call_briefly(device, "off", **parameters), words)
            self.assert_untouched(device)

    def test_a_shelly_without_switches_is_refused_with_what_it_has(self):
        for device, words in (
                (virtual.Shelly1(profile="roller"), ("'roller'", "'rollers'")),
                (virtual.Shelly2(profile="cover", outputs=("cover",)), ("'cover'", "'cover:0'")),
                (virtual.Shelly2(profile="cover"), ("'cover'",)),
                (virtual.Shelly2(outputs=("light", "rgbw")), ("'light:0', 'rgbw:0'",))):
            self.start(device)
            for action in ("off", "monitor", "list", "status"):
                with self.subTest(words, action=action):
                    self.assert_failure(self.call_briefly(device, action),
                                        "the device has no switch", *words)
            self.assert_untouched(device)

    def test_settings_of_other_channels_than_those_of_the_status_are_no_list(self):
        for make in EVERY:
            device = self.start_four(make)
            told = device.settings()
            told = dict(told, relays=told["relays"][:2]) if "relays" in told else {
                key: value for key, value in told.items() if key != "switch:3"}
            device.settings = lambda told=told: told
            self.assert_failure(self.call_briefly(device, "off", plug="1"), "of 4 channels")
            self.assert_untouched(device)

    def test_a_status_that_has_lost_a_channel_is_no_state_of_another(self):
        for make in EVERY:
            device = self.start(make(("web", "db"), metered=True))
            device.move(2, False)
            system, job = self.build(device, plug="1")
            outlet = job.device.open(system.deadline(60))
            told = device.settings()
            device.settings = lambda told=told: told
            device.outlets = device.outlets[1:]
            for ask in (outlet.read, outlet.read_meter):
                with self.subTest(make.__name__), self.assertRaisesRegex(
                        fencetool.ProtocolError, "of 2 channels before, and now of 1"):
                    ask(system.deadline(60))

    def test_a_switch_that_calls_itself_another_is_not_read(self):
        for lie in (virtual.change(id=1), virtual.change(id="0"), virtual.change(id=None)):
            device = self.start(virtual.Shelly2(lie=lie))
            self.assert_failure(self.call_briefly(device, "off"))
            self.assertEqual(self.call_briefly(device, "status").code, 1)

    def test_a_key_that_is_nearly_a_switchs_is_none(self):
        for key in ("switch:00", "switch:000", "switch:0 ", "switch:\u0660"):
            device = self.start(virtual.Shelly2(("a", "b")))
            told = dict(device.status(), **{key: {"id": 0, "output": False}})
            device.status = lambda told=told: told
            with self.subTest(key):
                self.assertEqual(self.call(device, "status", plug="1").out, "Status: ON\n")

    def test_what_is_no_shelly_is_refused(self):
        for device, words in ((virtual.Tasmota(), "this is no Shelly"),
                              (virtual.Switch(), "HTTP status 404"),
                              (virtual.Kasa(), "")):
            self.start(device)
            result = support.on_stdin("fence_http", dict(
                self.address(device), device="shelly", action="off"))
            self.assert_failure(result, "GET /shelly", words)
            self.assert_untouched(device)
        device = self.start(virtual.Shelly2())
        for told in ({"mac": "CC32E5000001"}, {"gen": "2", "mac": "CC32E5000001"}, {"gen": 2},
                     {"gen": 2, "mac": "CC32"}):
            device.identity = lambda told=told: told
            self.assert_failure(self.call_briefly(device, "off"), "GET /shelly")
        self.assert_untouched(device)

    def test_urls_of_a_shelly_name_its_channel(self):
        parse = fencetool.parse_shelly_url
        for path, expected in (
                ("/relay/0", ("1", None)), ("/relay/1?turn=off", ("2", PowerState.OFF)),
                ("/status", ("", None)), ("/rpc/Switch.GetStatus?id=3", ("4", None)),
                ("/rpc/Switch.Set?id=0&on=true", ("1", PowerState.ON)),
                ("/rpc/Switch.Set?id=2&on=false", ("3", PowerState.OFF))):
            self.assertEqual(parse(path), expected)
        for path in ("/relay/0?turn=toggle", "/relay/0?turn=off&timer=5", "/rpc/Switch.Set?id=0",
                     "/rpc/Switch.Set?id=0&on=false&toggle_after=5", "/rpc/Switch.Toggle?id=0",
                     "/rpc/Switch.GetStatus?id=0&on=true", "/relay/10", "/settings"):
            with self.subTest(path), self.assertRaises(fencetool.UsageError):
                parse(path)
        device = self.start_four()
        self.assert_success(self.call(
            device, "off", power_off_url="/rpc/Switch.Set?id=2&on=false",
            status_url="/rpc/Switch.GetStatus?id=2"))
        self.assertEqual(device.moved, [(3, False)])

    def test_urls_of_a_shelly_alone_go_on_meaning_any_device(self):
        for path in ("/relay/0?turn=off", "/rpc/Switch.Set?id=0&on=false", "/status"):
            self.assertEqual(fencetool.tell_dialect_by_url(path), "url")


class Proof(ShellyTest):
    def test_no_lie_about_a_relay_or_its_meter_is_taken_for_off(self):
        cases = [(make, name, {option: lie}) for make, own, meter in (
            (virtual.Shelly1, virtual.SHELLY1_LIES, virtual.METER1_LIES),
            (virtual.Shelly2, virtual.SHELLY2_LIES, virtual.METER2_LIES))
            for option, lies in (("lie", dict(virtual.SHELLY_LIES, **own)), ("meter_lie", meter))
            for name, lie in lies.items()]
        # Of 1 W it cannot be told whether it is a load; without a member there is no meter.
        cases = [case for case in cases if case[1] not in ("small load",)
                 and case[:2] != (virtual.Shelly2, "no power")]
        cases += [(make, name, {"broken": reply}) for make in EVERY
                  for name, reply in NO_STATUS.items()]
        devices = [self.start(make(metered=True, **options)) for make, _, options in cases]
        for action in ("off", "status"):
            results = at_once([functools.partial(self.call_briefly, device, action)
                               for device in devices], WORKERS)
            for (make, name, options), result in zip(cases, results):
                with self.subTest(make.__name__, lie=name, action=action):
                    if action == "off":
                        self.assert_failure(result)
                    elif "meter_lie" not in options:
                        self.assertNotEqual(result.code, fencetool.EXIT_OFF)

    def test_a_reply_counts_however_it_is_written(self):
        calls = []
        for make in EVERY:
            for rendering in RENDERINGS:
                device = self.start(make(metered=True))
                device.render_reply = rendering
                calls.append(functools.partial(self.call, device, "off"))
        for result in at_once(calls, WORKERS):
            self.assert_success(result)

    def test_an_off_under_a_running_timer_is_none(self):
        for make in EVERY:
            device = self.start(make(timer=True))
            device.move(1, False)
            with self.subTest(make.__name__):
                self.assert_failure(self.call_briefly(device, "status"), "a timer runs")
                # A command ends it.
                result = self.call(device, "off")
                self.assert_success(result)
                self.assertFalse(device.timer)
            device = self.start(make(lie=virtual.SHELLY_LIES["timer"]))
            self.assert_failure(self.call_briefly(device, "off"), "a timer runs")

    def test_a_command_to_several_channels_ends_their_timers_too(self):
        for make in EVERY:
            device = self.start(make(("a", "b", "c"), timer=True))
            device.move(2, False)
            with self.subTest(make.__name__):
                self.assert_failure(self.call_briefly(device, "status", plug="1,2"),
                                    "outlet 2: the relay is OFF, but a timer runs")
                self.assert_success(self.call(device, "off", plug="1,2"))
                self.assertEqual([outlet.relay for outlet in device.outlets], [False, False, True])

    def test_a_timer_of_a_relay_that_is_on_changes_nothing(self):
        for make in EVERY:
            device = self.start(make(timer=True))
            self.assertEqual(self.call(device, "status").out, "Status: ON\n")

    def test_a_channel_that_switches_itself_on_again_is_refused(self):
        for make in EVERY:
            device = self.start(make(auto_on_s=60.0))
            for action in ("off", "reboot", "monitor", "status"):
                with self.subTest(make.__name__, action=action):
                    self.assert_failure(self.call_briefly(device, action), "auto_on")
            self.assertEqual(self.call(device, "list").out, "1,plug\n")
            self.assert_untouched(device)

    def test_errors_that_a_switch_tells_make_no_off_doubtful(self):
        device = self.start(virtual.Shelly2(metered=True, lie=lambda found: dict(
            found, errors=["overtemp", "overpower"])))
        self.assert_success(self.call(device, "off"))

    def test_what_the_reply_to_a_command_says_is_no_proof(self):
        # was_on is the state before, and a relay that does not move says the same.
        device = self.start(virtual.Shelly2(fault="ignore"))
        device.outlets[0].relay = True
        self.assert_failure(self.call_briefly(device, "off"), "still reports ON")
        device = self.start(virtual.Shelly2())
        device.move(1, False)
        self.assertEqual(self.call(device, "off").out, "Success: Already OFF\n")

    def test_a_reason_that_the_device_gives_is_told(self):
        for code in (400, 404, 500, 503):
            device = self.start(virtual.Shelly2(broken=(
                code, {}, '{"code":-103,"message":"Invalid argument \'id\'!"}')))
            self.assert_failure(self.call_briefly(device, "off"), "HTTP status %d" % code,
                                '{"code":-103,"message":"Invalid argument')


class Meters(ShellyTest):
    REQUIRED = {"power_meter": "require", "power_timeout": "60", "stonith_status_sleep": "1"}

    def test_a_load_that_is_shown_is_a_load_of_either_generation(self):
        for make in EVERY:
            device = self.start(make(metered=True, fault="welded"))
            self.assert_failure(self.call_briefly(device, "off"), "still draws 43 W")

    def test_a_meter_that_goes_away_in_the_middle_of_an_action_is_a_doubt(self):
        for make in EVERY:
            for fault in ("welded", "garbled_meter"):
                device = self.start(make(metered=True, fault=fault))
                _, job = self.build(device)
                outlet = job.device.open(job.deadline)
                device.metered = False
                with self.subTest(make.__name__, fault=fault), self.assertRaisesRegex(
                        fencetool.ProtocolError, "the meter that the channel had before"):
                    outlet.read_meter(job.deadline)

    def test_a_zero_that_may_be_the_meters_rest_is_no_proof(self):
        reading = fencetool.MeterReading(0.0, "")
        self.assertEqual(fencetool.rest_reading(reading, 46, 46), reading)
        rested = fencetool.rest_reading(reading, 46, 45.9)
        self.assertTrue(fencetool.doubt_about_meter(rested, "require"))
        self.assertEqual(fencetool.doubt_about_meter(rested, "auto"), "")
        self.assertEqual(fencetool.doubt_about_usable_meter(rested), "")
        load = fencetool.MeterReading(43.0, "")
        self.assertEqual(fencetool.rest_reading(load, 46, 0), load)
        self.assertTrue(fencetool.doubt_about_usable_meter(
            fencetool.MeterReading(None, "the device has none")))

    def test_a_meter_that_is_required_is_waited_for_and_shows_the_welded_relay(self):
        for fault in ("", "welded"):
            device = self.start(virtual.Shelly2(metered=True, rest_s=45.0, fault=fault))
            system, job = self.build(device, **self.REQUIRED)
            if fault:
                with self.assertRaises(fencetool.NotConfirmed) as caught:
                    fencetool.run_off(job)
                self.assertIn("still draws 43 W", str(caught.exception))
            else:
                self.assertEqual(fencetool.run_off(job)[0], 0)
                self.assertGreater(system.clock(), 46)
                self.assertLess(system.clock(), 50)

    def test_a_required_meter_of_an_outlet_that_is_off_fails_no_monitor(self):
        device = self.start(virtual.Shelly2(metered=True))
        device.move(1, False)
        self.assert_success(self.call(device, "monitor", power_meter="require",
                                      power_timeout="60"))
        for make in EVERY:
            self.assert_failure(self.call(self.start(make()), "monitor", power_meter="require",
                                          power_timeout="60"), "power_meter=require wants one")

    def test_a_required_meter_and_too_short_a_time_is_a_usage_error(self):
        device = self.start(virtual.Shelly2(metered=True))
        for action in ("validate-all", "monitor", "off"):
            self.assert_failure(self.call(device, action, power_meter="require",
                                          power_timeout="45"), "power_timeout of more than")
        self.assertEqual(device.requests, [])
        check = {"fence_method": "shelly", "fence_ip": "127.0.0.1", "action": "validate-all",
                 "target_mgmt_ip": "127.0.0.2", "nodename": "node", "power_meter": "require"}
        self.assert_failure(support.on_stdin("fence_check", dict(check, power_timeout="55")),
                            "do not fit into the 55 s")
        self.assert_success(support.on_stdin("fence_check", dict(check, power_timeout="60")))

    def test_fence_check_does_not_know_who_has_commanded_before_it_came(self):
        device = self.start(virtual.Shelly2(metered=True))
        device.move(1, False)
        agent = fencetool.AGENTS["fence_check"]
        settings = fencetool.build_check_settings({
            "fence_method": "shelly", "fence_ip": device.address[0], "nodename": "node",
            "fence_ipport": str(device.address[1]), "target_mgmt_ip": "127.0.0.2",
            "power_meter": "require", "power_timeout": "100"}, agent.defaults)
        system = self.make_system(device)
        job = fencetool.CheckJob(system, fencetool.make_device(agent, settings, system), settings)
        self.assertIs(fencetool.observe_power(job).finding, fencetool.Finding.UNKNOWN)
        system.sleep(46)
        self.assertIs(fencetool.observe_power(job).finding, fencetool.Finding.DEAD)

    def test_watts_that_somebody_has_set_are_no_measurement(self):
        device = self.start(virtual.Shelly1(metered=True, counters=False))
        self.assert_success(self.call(device, "off"))
        self.assert_failure(self.call(device, "monitor", power_meter="require",
                                      power_timeout="60"), "set by hand")

    def test_one_meter_of_several_relays_proves_nothing_of_either(self):
        device = self.start(virtual.Shelly1(("a", "b"), metered=True, one_meter=True))
        self.assert_success(self.call(device, "off", plug="a"))
        self.assert_failure(self.call(device, "off", plug="a", power_meter="require",
                                      power_timeout="60"), "one meter measures several relays")


class Identity(ShellyTest):
    def test_another_shelly_in_the_middle_of_an_action_is_neither_switched_nor_believed(self):
        for make in EVERY:
            for call in ("read", "send", "read_meter"):
                for is_at_first_sight in (True, False):
                    device = self.start(make(metered=True))
                    system, job = self.build(device)
                    outlet = job.device.open(job.deadline)
                    told = device.identity()
                    device.mac = "CC:32:E5:00:00:99"
                    if not is_at_first_sight and call != "send":
                        device.identity = lambda told=told: told
                    with self.subTest(make.__name__, call=call), self.assertRaises(
                            fencetool.Refused) as caught:
                        self.ask(outlet, call, job.deadline)
                    self.assertIn("another device answered in the middle", str(caught.exception))
                    self.assert_untouched(device)

    def test_the_password_goes_only_to_a_device_that_has_told_who_it_is(self):
        for make in EVERY:
            device = self.start(make(password="s3cret"))
            for mac, code in ((device.mac, 0), ("CC:32:E5:00:00:99", 1)):
                del device.requests[:]
                result = self.call(device, "off", password="s3cret", device_mac=mac)
                self.assertEqual(result.code, code, result)
                with_login = [path for _, path, fields in device.requests
                              if "authorization" in fields]
                self.assertNotIn("/shelly", with_login)
                self.assertEqual(bool(with_login), code == 0)
                self.assertEqual(device.requests[0][1], "/shelly")

    def test_a_name_that_moves_to_another_channel_is_a_doubt(self):
        for make in EVERY:
            for call in ("read", "send"):
                device = self.start(make(("web", "db")))
                _, job = self.build(device, plug="db")
                outlet = job.device.open(job.deadline)
                web, db = device.outlets
                web.alias, db.alias = db.alias, web.alias
                with self.subTest(make.__name__, call=call), self.assertRaisesRegex(
                        fencetool.Refused, "plug 'db' may have become another outlet"):
                    self.ask(outlet, call, job.deadline)
                self.assert_untouched(device)

    def ask(self, outlet, call, deadline):
        return getattr(outlet, call)(*([PowerState.OFF] if call == "send" else []), deadline)


class Logins(ShellyTest):
    def test_one_challenge_serves_an_action_and_its_count_rises(self):
        device = self.start(virtual.Shelly2(password="s3cret", metered=True))
        self.assert_success(self.call(device, "off", password="s3cret"))
        self.assertEqual(len(device.counts), 1)
        self.assertGreater(max(device.counts.values()), 5)

    def test_a_later_generation_gets_no_password_in_the_clear_whatever_asks_for_it(self):
        for make, is_told in ((virtual.Shelly1, True), (virtual.Shelly2, False)):
            for answer in ((401, {"WWW-Authenticate": 'Basic realm="x"'}, ""), (401, {}, ""),
                           (403, {}, "")):
                device = self.start(make(password="s3cret"))
                device.refuse_login = lambda answer=answer: answer
                result = self.call_briefly(device, "status", password="s3cret", **LATER)
                sent = [fields["authorization"] for _, _, fields in device.requests
                        if "authorization" in fields]
                with self.subTest(make.__name__, answer=answer):
                    self.assertEqual((result.code == 0, bool(sent)), (is_told, is_told), result)
                    self.assertIn("" if is_told else "GET /rpc/Shelly.GetConfig", result.err)

    def test_the_user_is_admin_unless_another_is_given(self):
        for make in EVERY:
            device = self.start(make(password="s3cret"))
            self.assert_success(self.call(device, "monitor", password="s3cret"))
            for parameters, words in (({}, "asks for a password"), (
                    {"password": "wr0ngpw"}, "refuses the login of user 'admin'"), (
                    {"password": "s3cret", "username": "root"}, "login of user 'root'")):
                result = self.call(device, "off", **parameters)
                self.assert_failure(result, words)
                self.assertNotIn("wr0ngpw", result.err)
            self.assert_untouched(device)

    def act(self, action, device, node, now):
        """Run one action in this process, as on a node: from its start it knows what it kept."""
        return self.act_at_once([action], device, node, now)[0]

    def act_at_once(self, actions, device, node, now):
        """Do the same with several: all have begun and none has ended when the last one runs."""
        agent = fencetool.AGENTS["fence_http"]
        settings = fencetool.build_settings(dict(
            self.address(device), device="shelly", password="s3cret", **LATER), agent.defaults)
        jobs, codes = [], []
        with mock.patch.object(fencetool, "LOGINS_FOLDER", os.path.join(node, "run", "logins")):
            try:
                for action in actions:
                    system = fencetool.System("test")
                    system.clock, system.sleep = lambda: now[0], lambda seconds: now.append(
                        now.pop() + seconds)
                    jobs.append(fencetool.Job(
                        system, fencetool.make_device(agent, settings, system), settings))
                    codes.append(fencetool.DEVICE_ACTIONS[action](jobs[-1])[0])
            finally:
                for job in jobs:
                    job.close()
        return codes

    def place(self, device, node, number=0):
        """Return the path of a place for a login of the device."""
        return os.path.join(node, "run", "logins", "127.0.0.1:%d.%d" % (
            device.address[1], number))

    def test_200_minutes_of_an_off_and_two_monitors_each_fill_no_table(self):
        # In this process, with an agent's objects made anew for each action; the 200 minutes are
        # those of the device's clock. One monitor runs on the node of the off, one on another.
        device = self.start(virtual.Shelly2(password="s3cret"))
        with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
            now = [0.0]
            device.clock = lambda: now[0]
            for minute in range(200):
                now[0] = max(now[0], 60.0 * minute)
                device.outlets[0].relay = True
                for action, node in (("monitor", here), ("monitor", there), ("off", here)):
                    self.assertEqual(self.act(action, device, node, now), 0)
        self.assertEqual(device.refused, 0)
        self.assertEqual(device.commands, 200)
        self.assertLess(len(device.counts), 2 * 4 + 1)  # one an hour and node

    def test_what_was_kept_of_a_login_can_be_anything_and_harms_no_action(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        with tempfile.TemporaryDirectory() as node:
            path = self.place(device, node)
            os.makedirs(os.path.dirname(path))
            for kept in (b"", b"[]", b"{", b"null", b"1", b"[1, 2]", b'[{}, "x"]', b"[{}, 3]",
                         b'[[["nonce", "old"]], 7]', b'[{"nonce": "old"}, 7, 8]', b"\xff" * 20000,
                         b'[{"nonce": "old", "qop": "auth", "algorithm": "SHA-256", "realm": "x"}, '
                         b'7]', b'[{"nonce": 7, "qop": "auth", "realm": ["x"]}, 7]',
                         b'[{"nonce": "old", "algorithm": "x"}, 7]', b"[" * 9999,
                         b'[{"nonce": "old", "qop": "auth"}, 1e999]'):
                with open(path, "wb") as file:
                    file.write(kept)
                with self.subTest(kept[:100]):
                    self.assertEqual(self.act("off", device, node, [0.0]), 0)

    def test_what_is_no_file_in_place_of_a_kept_login_is_left_alone(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path),
                     lambda path: os.symlink(path + "x", path)):
            with tempfile.TemporaryDirectory() as node:
                path = self.place(device, node)
                os.makedirs(os.path.dirname(path))
                make(path)
                self.assertEqual(self.act("off", device, node, [0.0]), 0)
                self.assertFalse(os.path.isfile(path))
                self.assertTrue(os.path.isfile(self.place(device, node, 1)))
        for make in (os.mkfifo, lambda path: os.symlink("/nosuch", path), os.mkdir):
            with tempfile.TemporaryDirectory() as node:
                make(os.path.join(node, "run"))
                self.assertEqual(self.act("off", device, node, [0.0]), 0)

    def test_a_kept_login_serves_the_next_action_and_a_wrong_password_is_refused_with_it(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        with tempfile.TemporaryDirectory() as node:
            for _ in range(3):
                self.act("off", device, node, [0.0])
            self.assertEqual(len(device.counts), 1)
            path = self.place(device, node)
            self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
            with open(path) as file:
                self.assertNotIn("s3cret", file.read())
            device.password = "another"
            now = [0.0]
            device.clock = lambda: now[0]
            with self.assertRaises(fencetool.Refused) as caught:
                self.act("off", device, node, now)
            self.assertIn("refuses the login", str(caught.exception))

    def test_actions_that_run_at_once_take_a_challenge_each_and_no_new_ones_the_next_time(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        actions = ("monitor", "off", "monitor", "status")
        with tempfile.TemporaryDirectory() as node:
            for _ in range(3):
                self.assertEqual(self.act_at_once(actions, device, node, [0.0]), [0, 0, 0, 2])
            self.assertEqual(len(os.listdir(os.path.join(node, "run", "logins"))), len(actions))
        self.assertEqual((len(device.counts), device.slow_until), (len(actions), 0))

    def test_more_actions_at_once_than_there_are_places_fail_nothing(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        count = fencetool.LOGINS_AT_ONCE + 2
        with tempfile.TemporaryDirectory() as node:
            for _ in range(2):
                self.act_at_once(["status"] * count, device, node, [0.0])
        self.assertEqual((len(device.counts), device.slow_until), (count + 2, 0))

    def test_two_actions_at_once_do_not_answer_one_challenge(self):
        device = self.start(virtual.Shelly2(password="s3cret", metered=True))
        with tempfile.TemporaryDirectory() as node:
            self.act("monitor", device, node, [0.0])
            device.on_power = lambda *_: self.act("monitor", device, node, [0.0])
            # The monitor comes in the middle of the off, which holds the challenge.
            device.lock = threading.Lock()
            device.switch = self.unlocked(device)
            self.act("off", device, node, [0.0])
            self.assertEqual(device.slow_until, 0)
            self.assertEqual(len(device.counts), 2)

    def unlocked(self, device):
        """Return the device's switch(), in which others may ask it."""
        switch = device.switch

        def switch_unlocked(*move):
            device.lock.release()
            try:
                switch(*move)
            finally:
                device.lock.acquire()
        return switch_unlocked

    def test_who_has_guessed_makes_nobody_fail_who_knows_the_password(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        guesses = self.call(device, "off", password="wr0ngpw")
        self.assert_failure(guesses, "refuses the login of user 'admin'")
        device.slow_until = device.clock() + 2
        self.assert_success(self.call(device, "off", password="s3cret"))

    def test_a_full_table_of_nonces_is_waited_for(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        device.born = {"%032x" % number: device.clock() for number in range(32)}
        self.assert_success(self.call(device, "off", password="s3cret"))
        self.assertEqual(device.refused, 1)

    def test_a_nonce_that_has_left_the_table_is_replaced_in_the_middle_of_an_action(self):
        device = self.start(virtual.Shelly2(password="s3cret"))
        device.on_power = lambda *_: device.born.clear()
        self.assert_success(self.call(device, "off", password="s3cret"))
        self.assertEqual(len(device.counts), 2)


if __name__ == "__main__":
    unittest.main()
