"""Tasmota, ESPHome and pages as real devices are: what they lie about, and what they leave out."""
import functools
import json
import os
import re
import shlex

import fencetool
from fencetool import UsageError
from tests import support, virtual, virtual_pages
from tests.support import AgentTest, at_once, on_stdin
from tests.test_http_wire import ESPHOME_URLS, HTTP_URLS

WORKERS = 24  # most of each is waiting


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

    def test_an_answer_for_another_relay_ends_the_action_at_once(self):
        device = self.start(virtual.OpenBeken(["POWER1", "POWER2"]))
        device.power = lambda number, word: {"POWER": "OFF"}
        self.assert_failure(self.call(device, "off", plug="2"), "answers for another relay")
        self.assertEqual(len(device.requests), 2)

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


def reorder(members):
    """Render JSON with the members of each object in the reverse order."""
    if isinstance(members, list):
        return "[%s]" % ",".join(map(reorder, members))
    if isinstance(members, dict):
        return "{%s}" % ",".join("%s:%s" % (json.dumps(name), reorder(value))
                                 for name, value in reversed(list(members.items())))
    return json.dumps(members)


# Other blanks and another order are no other answer.
RENDERINGS = (json.dumps, reorder, functools.partial(json.dumps, indent=1),
              functools.partial(json.dumps, separators=(" , ", " : ")),
              functools.partial(json.dumps, separators=(",", ":")))
NO_STATUS = {
    "401 Basic": (401, {"WWW-Authenticate": 'Basic realm="x"'}, '"ison":false,"output":false'),
    "401 Digest": (401, {"WWW-Authenticate": 'Digest realm="x", qop="auth", nonce="1", '
                         "algorithm=SHA-256"}, ""),
    "429": (429, {}, "Too many requests"), "503": (503, {}, '{"output":false}'),
    "a page": (200, {}, '<html>{"ison":false,"has_timer":false,"id":0,"output":false,'
               '"apower":0.0}</html>'),
    "a text of JSON": (200, {}, json.dumps({"log": json.dumps(
        {"id": 0, "ison": False, "has_timer": False, "output": False, "apower": 0.0})})),
    "an empty answer": (200, {}, ""), "an empty object": (200, {}, "{}"),
    "an error": (200, {}, '{"code":-103,"message":"Invalid argument"}'),
    "both": (200, {}, '{"id":0,"ison":false,"has_timer":false,"ison":true,"output":false,'
             '"output":true,"apower":0.0} P60=0,P60=1'),
    "another outlet": (200, {}, "<html>UP60=0,P61=0,P600=0,P60=01</html>")}


class Recipes(RoomTest):
    """The examples of the README as they stand, against devices that lie in every way of theirs."""

    def read_recipes(self):
        """Return {first words of a recipe's title: its parameters}."""
        with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
            text = handle.read()
        found = re.findall(r"\n\n([^\n]+(?:\n[^\n]+)*):\n\n    pcs stonith create \S+ "
                           r"fence_http ((?:[^\n]*\\\n)*[^\n]*)", text)
        recipes = {}
        for title, recipe in found:
            words = shlex.split(recipe.replace("\\\n", " "))
            recipes[re.split(" [(]|,", title)[0]] = dict(
                word.split("=", 1) for word in words
                if "=" in word and not word.startswith(("pcmk_", "timeout", "interval")))
        return recipes

    # What each recipe is for: its virtual device, and the lies that it can be told.
    devices = {
        # Its status tells the relay alone: tests/test_shelly.py lies about the meter.
        "Every Shelly": (virtual.Shelly2, {"metered": True}, dict(
            virtual.SHELLY_LIES, **virtual.SHELLY2_LIES), {}),
        "Aviosys IP Power 9258": (virtual.Switch, {"pages": virtual.PDU_PAGES}, {}, {}),
        "Home Assistant": (
            virtual_pages.HomeAssistant, {}, virtual_pages.HOME_ASSISTANT_LIES, {}),
        "NETIO with a meter": (
            virtual_pages.Netio, {}, virtual_pages.NETIO_LIES, virtual_pages.NETIO_METER_LIES),
        "Digital Loggers with REST": (
            virtual_pages.DigitalLoggers, {}, virtual_pages.DIGITAL_LOGGERS_LIES, {}),
        "myStrom": (virtual_pages.MyStrom, {}, virtual_pages.MYSTROM_LIES,
                    virtual_pages.MYSTROM_METER_LIES),
        "Gude": (virtual_pages.Gude, {}, virtual_pages.GUDE_LIES, {})}

    def setUp(self):
        self.recipes = self.read_recipes()
        self.assertEqual(set(self.recipes), set(self.devices))

    def start_device(self, title, **options):
        make, own, _, _ = self.devices[title]
        return self.start(make(password="SECRET", **dict(own, **options)))

    def run_recipe(self, title, device, action, limits=support.PATIENT_LIMITS):
        return on_stdin("fence_http", dict(
            self.recipes[title], ip="127.0.0.1", ipport=str(device.address[1]), action=action,
            nodename="storage-b", plug="storage-b", **dict(limits, stonith_status_sleep="200ms")))

    def test_every_recipe_switches_its_virtual_device_however_the_reply_is_written(self):
        def use(title, device):
            for action, code in (("status", 0), ("monitor", 0), ("off", 0), ("status", 2),
                                 ("on", 0)):
                self.assert_success(self.run_recipe(title, device, action), code)
            self.assertEqual(device.moved, [(1, False), (1, True)])
        calls = []
        for title in self.recipes:
            is_json = hasattr(self.devices[title][0], "render_reply")
            renderings = RENDERINGS if is_json else (None,)
            for rendering in renderings:
                device = self.start_device(title)
                device.render_reply = rendering
                calls.append(functools.partial(use, title, device))
        at_once(calls, WORKERS)

    def test_no_lie_of_a_device_is_taken_for_off_by_its_recipe(self):
        cases = []
        for title, (_, _, lies, meter_lies) in self.devices.items():
            cases += [(title, name, {"lie": lie}) for name, lie in lies.items()]
            cases += [(title, name, {"meter_lie": lie}) for name, lie in meter_lies.items()]
            cases += [(title, name, {"broken": reply}) for name, reply in NO_STATUS.items()]
            cases.append((title, "wrong_type", {"fault": "wrong_type"}))
            if meter_lies:
                cases.append((title, "welded", {"fault": "welded"}))
            cases.append((title, "ignore", {"fault": "ignore"}))
        limits = dict(support.PATIENT_LIMITS, power_timeout="2")
        devices = [self.start_device(title, **options) for title, _, options in cases]
        for action in ("off", "status"):
            results = at_once([functools.partial(self.run_recipe, title, device, action, limits)
                               for (title, _, _), device in zip(cases, devices)], WORKERS)
            for (title, name, options), result in zip(cases, results):
                with self.subTest(title, lie=name, action=action):
                    if action == "off":
                        self.assert_failure(result)
                    elif not self.is_relay_alone_asked(title, options):
                        self.assertNotEqual(result.code, fencetool.EXIT_OFF)
        for (title, name, _), device in zip(cases, devices):
            self.assertGreater(device.commands + (name == "wrong_type"), 0, (title, name))

    def is_relay_alone_asked(self, title, options):
        """Return whether a lie is about what status does not read: watts_member."""
        is_about_load = "meter_lie" in options or options == {"fault": "welded"}
        return is_about_load and "watts_member" in self.recipes[title]
