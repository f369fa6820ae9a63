"""A Tasmota's relay by the names that its owner gave it, and by its number as ever."""
import functools
import json
import unittest

import fencetool
from fencetool import PowerState, Refused
from tests import support, virtual
from tests.support import AgentTest, at_once, on_stdin

NAMES = ("Lamp", "Server B", "K\u00fcche")


class NamesTest(AgentTest):
    def start_named(self, names=NAMES, make=virtual.Tasmota, **options):
        device = make(names, **options)
        device.moved = []
        device.on_power = lambda *move: device.moved.append(move)
        return self.start(device)

    def call(self, device, action, **parameters):
        found = dict(self.address(device), device="tasmota", **support.PATIENT_LIMITS)
        return on_stdin("fence_http", dict(found, action=action, **parameters))

    def open(self, device, **parameters):
        agent = fencetool.AGENTS["fence_http"]
        settings = fencetool.build_settings(
            dict(self.address(device), device="tasmota", **parameters), agent.defaults)
        self.system = fencetool.System("test")
        return fencetool.make_device(agent, settings, self.system).open(self.system.deadline(60))

    def answer_status(self, device, status):
        """Let the device answer Status otherwise; status: None for what it does not know."""
        run = device.run_command

        def run_command(command):
            if command != "status":
                return run(command)
            return {"Status": status} if status is not None else {"Command": "Unknown"}
        device.run_command = run_command

    def commands_of(self, device):
        return [fencetool.parse_query(path)["cmnd"] for _, path, _ in device.requests]


class Places(unittest.TestCase):
    def test_a_list_of_relays_with_a_hole_gives_no_relay_the_name_of_another(self):
        def relays(*numbers):
            return tuple(fencetool.Outlet(number, "POWER%d" % number, (), PowerState.ON)
                         for number in numbers)
        found = relays(1, 3)
        self.assertEqual(fencetool.count_tasmota_relays(found), 3)
        names, _ = fencetool.parse_tasmota_names(
            {"Status": {"FriendlyName": ["a", "b", "c"]}}, 3)
        self.assertEqual([relay.alias for relay in fencetool.name_tasmota_relays(
            found, names, "device")], ["a", "c"])
        with self.assertRaises(Refused):  # nobody knows whose these two are
            fencetool.parse_tasmota_names({"Status": {"FriendlyName": ["a", "b"]}}, 3)
        self.assertEqual(fencetool.count_tasmota_relays(relays(2)), 1)
        self.assertEqual(fencetool.name_tasmota_relays(relays(2), ["a"], "Box")[0].identifiers,
                         ("power2", "box"))
        many = fencetool.name_tasmota_relays(relays(*range(1, 11)), list("abcdefgh"), "")
        self.assertEqual([relay.alias for relay in many],
                         list("abcdefgh") + ["POWER9", "POWER10"])


class Found(NamesTest):
    def test_a_relay_is_switched_and_read_by_its_friendly_name(self):
        cases = (
            (NAMES, {"plug": "Server B"}, 2), (NAMES, {"plug": "K\u00fcche"}, 3),
            (NAMES, {"plug": "power3"}, 3),
            (("Lamp", "node"), {"plug": "node", "nodename": "node"}, 2),
            (("Lamp",), {"plug": "Lamp"}, 1), (("Lamp",), {"plug": "Virtual"}, 1),
            (("Lamp",), {"plug": "node", "nodename": "node"}, 1),
            (["%d" % number for number in range(20, 40)], {"plug": "20"}, None),
            (["n%d" % number for number in range(1, 21)], {"plug": "n8"}, 8),
            (["n%d" % number for number in range(1, 21)], {"plug": "20"}, 20))

        def use(names, parameters, number):
            device = self.start_named(names)
            if number is None:  # a number is always the relay's, whatever is called so
                number = int(parameters["plug"])
            for action, code in (("off", 0), ("status", 2), ("monitor", 0)):
                self.assert_success(self.call(device, action, **parameters), code)
            self.assertEqual(device.moved, [(number, False)])
        at_once([functools.partial(use, *case) for case in cases])

    def test_a_list_shows_the_names_and_one_without_names_is_still_a_list(self):
        device = self.start_named()
        self.assertEqual(self.call(device, "list").out, "1,Lamp\n2,Server B\n3,K\u00fcche\n")
        for status in (None, {}, {"FriendlyName": ["one"]}, {"FriendlyName": "one"}):
            device = self.start_named()
            self.answer_status(device, status)
            self.assertEqual(self.call(device, "list-status").out,
                             "1,POWER1,ON\n2,POWER2,ON\n3,POWER3,ON\n")

    def test_who_uses_numbers_asks_for_no_names(self):
        for names, parameters in (
                (NAMES, {"plug": "2"}), (NAMES, {"plug": "POWER2"}), (("Lamp",), {}),
                (("Lamp",), {"plug": "POWER"}), (("Lamp",), {"plug": "n", "nodename": "n"}),
                (NAMES, {"power_off_url": "/cm?cmnd=Power2%20OFF"})):
            device = self.start_named(names)
            self.assert_success(self.call(device, "off", **parameters))
            self.assertEqual(len(device.requests), 6)
            self.assertNotIn("Status", self.commands_of(device))
        for names, parameters, requests in (
                (NAMES, {"plug": "2"}, 1), (NAMES, {}, 1), (("Lamp",), {}, 2)):
            device = self.start_named(names)
            self.assert_success(self.call(device, "monitor", **parameters))
            self.assertEqual(len(device.requests), requests)


class NotFound(NamesTest):
    def test_a_name_that_is_not_exactly_one_relays_is_refused(self):
        cases = (
            (("Lamp", "Server", "Server"), {"plug": "Server"}, "names 2 outlets"),
            (NAMES, {"plug": "server b"}, "names no outlet"),
            (NAMES, {"plug": "virtual"}, "names no outlet"),  # the device's own, of several relays
            (NAMES, {"plug": "node", "nodename": "node"}, "names no outlet"),
            (("node", "node"), {"plug": "node", "nodename": "node"}, "names 2 outlets"),
            (("Power2", "x"), {"plug": "Power2"}, "names 2 outlets"),
            (("x", "01"), {"plug": "01"}, "is no number as on the case"),
            (NAMES, {"plug": "4"}, "names no outlet"), (NAMES, {"plug": "0"}, "names no outlet"))
        devices = [self.start_named(names) for names, _, _ in cases]
        results = at_once([functools.partial(self.call, device, "off", **parameters)
                           for device, (_, parameters, _) in zip(devices, cases)])
        for device, (_, parameters, words), result in zip(devices, cases, results):
            with self.subTest(parameters):
                self.assert_failure(result, words)
                self.assertEqual(device.commands, 0)

    def test_names_that_do_not_fit_the_relays_are_no_names(self):
        for status in (
                {"FriendlyName": ["Server B"]}, {"FriendlyName": "Server B"},
                {"FriendlyName": list(NAMES) + ["Server B"]}, {"FriendlyName": []}, {},
                {"FriendlyName": ["Lamp", "Server B", 3]}, None):
            device = self.start_named()
            self.answer_status(device, status)
            with self.subTest(status):
                self.assert_failure(self.call(device, "off", plug="Server B"), *(
                    ["give the relay's number as plug"] if status is not None else ["Unknown"]))
                self.assertEqual(device.commands, 0)
                self.assert_success(self.call(device, "off", plug="2"))

    def test_names_are_read_from_the_device_that_was_identified(self):
        device = self.start_named()
        self.assert_success(self.call(
            device, "off", plug="Server B", device_mac=device.mac))
        commands = self.commands_of(device)
        before_names = [commands[place - 1] for place, command in enumerate(commands)
                        if command == "Status"]
        self.assertEqual(set(before_names), {"Status 5"})
        self.assert_failure(self.call(
            device, "off", plug="Server B", device_mac="CC:32:E5:00:00:99"), "another device")


class Moved(NamesTest):
    def test_a_name_that_moves_to_another_relay_is_a_doubt(self):
        calls = {"read": lambda relay, deadline: relay.read(deadline),
                 "send": lambda relay, deadline: relay.send(PowerState.OFF, deadline),
                 "meter": lambda relay, deadline: relay.read_meter(deadline)}
        for name, call in calls.items():
            device = self.start_named(metered=True)
            relay = self.open(device, plug="Server B")
            device.outlets[0].alias, device.outlets[1].alias = "Server B", "Lamp"
            with self.subTest(name), self.assertRaisesRegex(
                    Refused, "may have become another outlet in the middle of the action"):
                call(relay, self.system.deadline(60))
            self.assertEqual(device.commands, 0)

    def test_names_that_are_swapped_behind_the_command_confirm_nothing(self):
        device = self.start_named()

        def swap(*move):
            device.outlets[0].alias, device.outlets[1].alias = "Server B", "Lamp"
        device.on_power = swap
        self.assert_failure(self.call(device, "off", plug="Server B"), "in the middle of")

    def test_a_lost_answer_about_the_names_is_asked_for_again(self):
        device = self.start_named(lose_every=4)
        self.assert_success(self.call(device, "off", **dict(
            plug="Server B", shell_timeout="1", stonith_status_sleep="200ms")))
        self.assertEqual(device.moved, [(2, False)])


class Codec(unittest.TestCase):
    def test_the_replies_of_real_firmware_are_read(self):
        # Source: published replies of Tasmota 6.6, 9.3 and 13.4; values are our own.
        for text, relays, names in (
                ('{"Status":{"Module":18,"FriendlyName":["Wemos10"],"Topic":"x","Power":0}}', 1,
                 (["Wemos10"], "")),
                ('{"Status":{"Module":0,"DeviceName":"Strip","FriendlyName":["A","B"],'
                 '"Topic":"x","Power":"01"}}', 2, (["A", "B"], "Strip")),
                ('{"Status":{"Module":1,"FriendlyName":"Sonoff","Topic":"x"}}', 1,
                 (["Sonoff"], ""))):
            self.assertEqual(fencetool.parse_tasmota_names(json.loads(text), relays), names)


if __name__ == "__main__":
    unittest.main()
