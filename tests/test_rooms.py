"""Tasmota, ESPHome and pages as real devices are: what they lie about, and what they leave out."""
import functools

import fencetool
from fencetool import UsageError
from tests import support, virtual
from tests.support import AgentTest, at_once, on_stdin
from tests.test_http_wire import ESPHOME_URLS, HTTP_URLS

WORKERS = 12


class RoomTest(AgentTest):
    def start(self, device, *arguments, **options):
        device.moved = []
        device.on_power = lambda *move: device.moved.append(move)
        return super().start(device, *arguments, **options)

    def call(self, reached, action, **parameters):
        """Run one action as a process; times long enough for what must succeed."""
        found = dict(self.address(reached), device=reached.dialect, **support.PATIENT_LIMITS)
        return on_stdin("fence_http", dict(found, action=action, **parameters))

    def call_briefly(self, reached, action, **parameters):
        """Run one action that is to fail, within short times."""
        found = dict(self.address(reached), device=reached.dialect)
        return on_stdin("fence_http", dict(found, action=action, **parameters))

    def assert_untouched(self, *devices):
        for device in devices:
            self.assertEqual((device.moved, device.commands), ([], 0))


class EsphomeLists(RoomTest):
    """No plug is named: the only switch of the list is the only one of a whole list."""

    def test_without_a_plug_the_only_switch_of_a_whole_list_is_used(self):
        def use(device, parameters):
            for action, code in (("monitor", 0), ("off", 0), ("status", 2), ("on", 0)):
                self.assert_success(self.call(device, action, **parameters), code)
            self.assertEqual(device.moved, [(1, False), (1, True)])
        at_once([functools.partial(use, self.start(virtual.Esphome(["Relay"])), parameters)
                 for parameters in ({}, {"plug": "node", "nodename": "node"}, {"plug": "1"})])

    def test_a_list_that_may_go_on_proves_no_only_switch(self):
        cut = (
            {"stream": ("ping", 1)},                         # stalls after the first switch
            {"stream": ("ping", 1, "close")},                # the connection is cut there
            {"stream": (1, "pings"), "version": "2024"},     # its queue was full
            {"stream": ("ping", 1, "pings"), "version": "2024"},
            {"stream": ("ping", 1, "ping")})                 # a ping came in the middle
        calls, devices = [], []
        for options in cut:
            for more in ({}, {"plug": "node", "nodename": "node"}, {"plug": "1"}):
                for action in ("off", "monitor", "status"):
                    device = self.start(virtual.Esphome(["status_led", "server_relay"], **options))
                    devices.append(device)
                    calls.append(functools.partial(
                        self.call_briefly, device, action,
                        **more))
        for result in at_once(calls, WORKERS):
            self.assert_failure(result)
            self.assertNotIn("defect", result.err)
        self.assert_untouched(*devices)

    def test_a_switch_that_comes_after_an_early_ping_is_seen(self):
        device = self.start(virtual.Esphome(
            ["led", "relay"], stream=("ping", 1, "ping", "states", "pings"), ping_s=2))
        self.assert_failure(self.call(device, "off"), "'relay'")
        self.assert_untouched(device)

    def test_a_monitor_without_a_plug_is_content_with_several_switches(self):
        calls = [functools.partial(self.call, self.start(virtual.Esphome(["a", "b"], **options)),
                                   action)
                 for options in ({}, {"version": "2024"}, {"stream": ("ping", "states")})
                 for action in ("monitor", "off")]
        for number, result in enumerate(at_once(calls, WORKERS)):
            if number % 2:
                self.assert_failure(result, "no outlet was named")
            else:
                self.assert_success(result)

    def test_old_firmware_without_a_plug_says_why_it_needs_one(self):
        device = self.start(virtual.Esphome(["Relay"], version="2024"))
        for action in ("monitor", "off"):
            self.assert_failure(self.call(device, action),
                                "no outlet was named (plug)", "leaves out", "relay ('Relay')")
        self.assert_success(self.call(device, "off", plug="Relay"))

    def test_a_device_that_serves_no_switch_says_so(self):
        calls = [functools.partial(self.call, device, action, **more)
                 for device in (self.start(virtual.Esphome([], version=version))
                                for version in ("2024", "2026.10"))
                 for more in ({}, {"plug": "Relay"}) for action in ("monitor", "off")]
        for result in at_once(calls, WORKERS):
            self.assert_failure(result, "no switch (internal: true?)")

    def test_what_is_no_switch_is_not_read(self):
        cut = b'{"id":"text_sensor-scan","name":"Scan","value":"Hackest\xc3","state":"Hackest\xc3"}'
        device = self.start(virtual.Esphome(["Relay"], entities=(
            cut, '{"id":"text_sensor-y","state":"\\"id\\":\\"switch-x\\"', '{"id":"sensor-a"}')))
        self.assert_success(self.call(device, "off"))
        self.assertEqual(device.moved, [(1, False)])

    def test_what_may_be_a_switch_and_cannot_be_read_is_an_error(self):
        devices = [self.start(virtual.Esphome(["Relay"], entities=(data,))) for data in (
            '{"id":"switch-x","value":fal', '{"id":"swi', "{", '{"value":true}x')]
        for result in at_once([functools.partial(self.call_briefly, device, "off")
                               for device in devices]):
            self.assert_failure(result, "not JSON")
        self.assert_untouched(*devices)

    def test_the_list_of_people_does_not_wait_for_its_end(self):
        device = self.start(virtual.Esphome(["a", "b"], stream=("ping", "states")))
        result = self.call(device, "list")
        self.assertEqual(result.out, "a,a\nb,b\n")

    def test_a_named_switch_needs_no_list(self):
        for version in ("2024", "2026.6", "2026.10"):
            device = self.start(virtual.Esphome(["led", "Relay"], version=version))
            self.assert_success(self.call(device, "off", plug="Relay"))
            self.assertNotIn("/events", [path for _, path, _ in device.requests])


class EsphomeNames(RoomTest):
    """The id of old firmware is made from the name, and may be that of another name too."""

    pairs = (("\u0420\u0435\u043b\u0435", "\u0421\u0432\u0435\u0442"), ("Relay", "relay"),
             ("Server Relay", "server_relay"))

    def test_two_names_behind_one_id_are_refused_and_named(self):
        cases = [(names, version, plug)
                 for names in self.pairs for version in ("2024", "2026.6")
                 for plug in (names[1], fencetool.render_identifier(names[1]))
                 # That firmware finds what is no other's id by its name.
                 if (version, plug) != ("2026.6", self.pairs[0][1])]
        devices, calls = [], []
        for names, version, plug in cases:
            devices.append(self.start(virtual.Esphome(names, version=version)))
            calls += [functools.partial(self.call, devices[-1], action, plug=plug)
                      for action in ("off", "status")]
        results = at_once(calls, WORKERS)
        for number, case in enumerate(cases):
            for result in results[2 * number:2 * number + 2]:
                with self.subTest(case):
                    self.assert_failure(result, *[
                        word if word.isidentifier() else word for word in case[0]])
        self.assert_untouched(*devices)

    def test_an_exact_name_is_the_switch_that_carries_it(self):
        for names in self.pairs:
            for version, plug in (("2026.10", names[1]), ("2026.10", names[0]), ("2024", names[0])):
                device = self.start(virtual.Esphome(names, version=version))
                with self.subTest(names=names, version=version, plug=plug):
                    self.assert_success(self.call(device, "off", plug=plug))
                    self.assertEqual(device.moved, [(1 + names.index(plug), False)])

    def test_an_id_is_the_switch_that_alone_has_it(self):
        devices = [self.start(virtual.Esphome(["led", "Relay"], version=version))
                   for version in ("2021", "2024", "2026.6", "2026.10") for _ in range(2)]
        ways = ({"plug": "relay"}, ESPHOME_URLS) * 4
        for device, result in zip(devices, at_once([
                functools.partial(self.call, device, "off", **way)
                for device, way in zip(devices, ways)])):
            with self.subTest(device.version):
                self.assert_success(result)
                self.assertEqual(device.moved, [(2, False)])

    def test_a_lost_answer_behind_the_list_costs_no_second_list(self):
        for version, every in (("2026.10", 3), ("2026.6", 3), ("2024", 4)):
            device = self.start(virtual.Esphome(["Relay"], version=version, lose_every=every))
            with self.subTest(version):
                self.assert_success(self.call(
                    device, "off", plug="relay", shell_timeout="2", stonith_status_sleep="200ms"))
                self.assertEqual([path for _, path, _ in device.requests].count("/events"), 1)

    def test_an_id_on_a_list_that_has_not_ended_is_no_proof(self):
        for version in ("2024", "2026.6"):
            device = self.start(virtual.Esphome(
                ["Relay", "relay"], version=version, stream=("ping", 1)))
            with self.subTest(version):
                self.assert_failure(self.call_briefly(device, "off", plug="relay"),
                                    "another switch may share the id 'relay'")
                self.assert_untouched(device)

    def test_the_likely_id_of_firmware_that_drops_letters_is_named(self):
        device = self.start(virtual.Esphome(["led", "K\u00fcche Server"], version="2021"))
        self.assert_failure(self.call(device, "off", plug="K\u00fcche Server"),
                            "is 'kche_server' meant, which firmware of 2021 makes")
        self.assert_untouched(device)
        self.assert_success(self.call(device, "off", plug="kche_server"))
        self.assertEqual(device.moved, [(2, False)])

    def test_what_reads_a_switch_can_never_be_a_path_that_switches(self):
        device = self.start(virtual.Esphome(["server"], version="2024"))
        off = {"power_off_url": "/switch/server/turn_off", "status_url": "/switch/server"}
        cases = [{"plug": name} for name in (
            "server/turn_off", "server/toggle", "server/Turn Off", "server%2Fturn_off",
            "server%252Fturn_off", "server/turn_off/", "toggle", "server/turn_on/x")]
        cases += [{"switch_name": "server/turn_off"}]
        cases += [dict(off, status_url=url) for url in (
            "/switch/server%2Fturn_off", "/switch/server/turn_off/", "/switch/server/turn_off",
            "/switch/server/turn_off?x", "/switch/server%252Fturn_off", "/switch/server/toggle/",
            "/switch/server//turn_off", "/switch/server/%74urn_off")]
        cases += [dict(off, power_off_url=url, status_url="/switch/server/toggle") for url in (
            "/switch/server/toggle/turn_off", "/switch/server/turn_on/turn_off")]
        cases += [{"power_off_url": "/switch/server/toggle/turn_off"}]
        for case, result in zip(cases, at_once([
                functools.partial(self.call_briefly, device, action, **case)
                for case in cases for action in ("monitor", "status", "off")], WORKERS)):
            with self.subTest(case):
                self.assert_failure(result)
        self.assertEqual(device.requests, [])

    def test_a_reply_that_tells_no_state_ends_the_action_at_once(self):
        device = self.start(virtual.Esphome(["Relay"]))
        device.respond = lambda *request: (200, {}, '{"id":"switch/Relay","name":"Relay"}')
        self.assert_failure(self.call(device, "off", plug="Relay"), "tells no state")
        self.assertEqual(len(device.requests), 1)


class Tasmotas(RoomTest):
    def test_a_load_that_is_shown_after_off_is_a_load_whatever_setoption21_says(self):
        # Firmware that measures on although it does not say so, and shows a welded relay.
        for make in (virtual.Tasmota, virtual.OpenBeken):
            for setting in ({}, {"SetOption21": "OFF"}, {"SetOption21": "ON"}):
                device = make(metered=True, fault="welded")
                device.sensors = lambda: {"ENERGY": {"Power": 43, "Voltage": 230}}
                run = device.run_command
                device.run_command = lambda command, run=run, setting=setting: (
                    setting if command == "setoption21" else run(command))
                self.start(device)
                with self.subTest(make.__name__, setting=setting):
                    self.assert_failure(self.call_briefly(device, "off"), "still draws 43 W")

    def test_of_several_relays_the_own_entry_of_the_meter_is_read(self):
        for powers, plug, words in (
                ([0, 43], "2", "still draws 43 W"), ([43, 0], "2", ""), ([43, 43, 43], "2", ""),
                (43, "2", ""), ([0, 0], "1", "")):
            device = virtual.Tasmota(["a", "b"], metered=True)
            device.sensors = lambda powers=powers: {"ENERGY": {"Power": powers, "Voltage": 230}}
            self.start(device)
            with self.subTest(powers=powers):
                result = self.call_briefly(device, "off", plug=plug)
                if words:
                    self.assert_failure(result, words)
                else:
                    self.assert_success(result)
                self.assert_failure(self.call_briefly(
                    device, "off", plug=plug, power_meter="require"))

    def test_another_sensor_that_has_no_number_spoils_nothing(self):
        for power, words in ((0, ""), (43, "still draws 43 W"), (float("nan"), "not a number")):
            device = virtual.Tasmota(metered=True)
            device.sensors = lambda power=power: {
                "ENERGY": {"Power": power, "Voltage": 230}, "BME280": {"Temperature": float("nan")}}
            self.start(device)
            with self.subTest(power=power):
                result = self.call_briefly(device, "off")
                if words:
                    self.assert_failure(result, words)
                else:
                    self.assert_success(result)

    def test_a_wifi_name_with_backslashes_harms_no_action(self):
        device = virtual.Tasmota()
        respond = device.respond
        device.respond = lambda *request: respond(*request)[:2] + (respond(*request)[2].replace(
            '"UptimeSec"', r'"Wifi": {"SSId":"C:\Downloads\x"}, "UptimeSec"'),)
        self.start(device)
        for action, code in (("monitor", 0), ("off", 0), ("status", 2), ("on", 0)):
            self.assert_success(self.call(device, action), code)

    def test_the_mac_of_the_cable_lets_the_right_device_through(self):
        device = virtual.Tasmota()
        run = device.run_command
        device.run_command = lambda command: {"StatusNET": {
            "Mac": "00:00:00:00:00:00", "Ethernet": {"Mac": "CC:32:E5:00:00:AA"}}} \
            if command == "status 5" else run(command)
        self.start(device)
        self.assert_success(self.call(device, "off", device_mac="CC:32:E5:00:00:AA"))
        self.assert_failure(self.call(device, "off", device_mac="CC:32:E5:00:00:BB"),
                            "its MAC is CC:32:E5:00:00:AA")

    def test_what_asking_again_cannot_change_ends_the_action_at_once(self):
        for body, words in (
                ('STATUS11 = {"StatusSTS":{"POWER":"ON"}}', "Tasmota up to 5.10"),
                ('{"ison":true,"has_timer":false}', "no StatusSTS"),
                ('{"StatusSTS":{"Uptime":"0T00:01:00"}}', "has no relay")):
            device = self.start(virtual.Tasmota())
            device.respond = lambda *request, body=body: (200, {}, body)
            with self.subTest(body):
                self.assert_failure(self.call(device, "off"), words)
                self.assertEqual(len(device.requests), 1)

    def test_what_passes_while_a_device_starts_is_asked_again(self):
        device = virtual.Tasmota()
        respond, early = device.respond, ["", "{}", '{"StatusSTS":{"POWER":"Blink ON"}}']
        device.respond = lambda *request: (200, {}, early.pop()) if early else respond(*request)
        self.start(device)
        self.assert_success(self.call(device, "off"))


class Pages(RoomTest):
    def test_no_spelling_of_a_switching_url_is_read(self):
        device = self.start(virtual.Switch())
        urls = {"power_on_url": "/sw?on", "power_off_url": "/off"}
        cases = [{"status_url": url} for url in (
            "/off", "/off?", "/%6Fff", "//off", "/./off", "/x/../off", "/off/", "/%256Fff",
            "/off?x=1", "/off%3F", "/../off", "/sw?on", "/sw?x&on", "/sw?%6Fn", "/sw/?on")]
        cases += [{"status_url": "/state", "power_on_url": "/%6Fff"},
                  {"status_url": "/a?x=1&y=2", "power_on_url": "/a?y=2&x=1"}]
        for case in cases:
            for action in ("monitor", "status", "off", "validate-all"):
                with self.subTest(case), self.assertRaisesRegex(UsageError, "must differ"):
                    self.build(device, action, **dict(HTTP_URLS, **dict(urls, **case)))
        self.assertEqual(device.requests, [])
        self.assert_failure(self.call(device, "monitor", **dict(
            HTTP_URLS, **dict(urls, status_url="/%6Fff"))), "must differ")

    def build(self, device, action, **parameters):
        agent = fencetool.AGENTS["fence_http"]
        settings = fencetool.build_settings(
            dict(self.address(device), action=action, **parameters), agent.defaults)
        return fencetool.make_device(agent, settings, fencetool.System("test"))

    def test_urls_of_one_page_that_differ_in_what_they_say_are_taken(self):
        device = self.start(virtual.Switch())
        for on, off, status in (
                ("/relay/0?turn=on", "/relay/0?turn=off", "/relay/0"),
                ("/c?CMD=SetPower+P60=1", "/c?CMD=SetPower+P60=0", "/c?CMD=GetPower"),
                ("/rpc/Switch.Set?id=0&on=true", "/rpc/Switch.Set?id=0&on=false",
                 "/rpc/Switch.GetStatus?id=0"), ("/1", "/0", "/"), ("/on/1", "/off/1", "/1")):
            self.assertEqual(self.build(device, "off", **dict(
                HTTP_URLS, power_on_url=on, power_off_url=off, status_url=status)).name, "url")
