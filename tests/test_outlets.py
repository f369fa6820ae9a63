"""Several outlets of one device that feed one node (plug=1,5), for every dialect that has some."""
import functools
import itertools
import unittest

import fencetool
from fencetool import Finding, PowerState
from tests import support
from tests.support import at_once, on_stdin
from tests.test_contract import OWN, ContractTest

SEVERAL = [row for row in OWN if row.device.two and not row.device.in_many]
ON, OFF = PowerState.ON, PowerState.OFF


class ListTest(ContractTest):
    """A node that hangs on the first two of three outlets."""

    def start_strip(self, row, **options):
        family = row.device
        return self.start_device(row, **dict({"aliases": family.two + ("other",)}, **options))

    def names(self, device):
        return device.both.split(",")

    def call(self, row, device, action, **parameters):
        """Return the Result of an action of the agent on both outlets, as a process."""
        given = dict(support.PATIENT_LIMITS, plug=device.both, nodename="node", action=action,
                     stonith_status_sleep="200ms")
        return on_stdin(row.agent, self.reach(row, device, **dict(given, **parameters)))

    def call_all(self, action, change=lambda device: None, rows=SEVERAL, **options):
        """Return [(row, device, Result)] of an action in all dialects; change makes the trouble."""
        parameters = options.pop("parameters", {})
        devices = [(row, self.start_strip(row, **options)) for row in rows]
        for _, device in devices:
            change(device)
        return [case + (result,) for case, result in zip(devices, at_once([functools.partial(
            self.call, row, device, action, **parameters) for row, device in devices]))]

    def relays(self, device):
        return [outlet.relay for outlet in device.outlets]

    def job_of(self, row, device, **parameters):
        opened = self.build(row, device, **dict({"plug": device.both}, **parameters))
        return fencetool.Job(self.system, opened, opened.settings)


class Actions(ListTest):
    def test_off_and_on_are_of_all_outlets_that_were_named_and_of_no_other(self):
        for action, text in (("off", "Success: Powered OFF\n"), ("on", "Success: Already ON\n"),
                             ("reboot", "Success: Rebooted\n")):
            for row, device, result in self.call_all(action):
                with self.subTest(row.called, action=action):
                    self.assert_success(result)
                    self.assertEqual(result.out, text)
                    self.assertEqual(self.relays(device), [action != "off"] * 2 + [True])
                    moved = {number for number, _ in device.moved}
                    self.assertEqual(moved, set() if action == "on" else {1, 2})

    def test_on_switches_what_is_off_and_does_not_call_it_already_on(self):
        for row, device, result in self.call_all("on", lambda device: device.move(2, False)):
            with self.subTest(row.called):
                self.assert_success(result)
                self.assertEqual(result.out, "Success: Powered ON\n")
                self.assertEqual(self.relays(device), [True] * 3)

    def test_status_is_off_only_when_all_outlets_are(self):
        for row in SEVERAL:
            for relays in itertools.product((True, False), repeat=2):
                device = self.start_strip(row)
                for number, relay in enumerate(relays, 1):
                    device.move(number, relay)
                with self.subTest(row.called, relays=relays):
                    code, text = fencetool.run_status(self.job_of(row, device))
                    self.assertEqual((code, text), (0, "Status: ON") if any(relays)
                                     else (2, "Status: OFF"))
                    self.assertEqual(device.commands, 0)

    def test_monitor_proves_that_each_of_them_is_there(self):
        for row, device, result in self.call_all("monitor"):
            with self.subTest(row.called):
                self.assertEqual((result.code, result.out, result.err), (0, "", ""))
                self.assertEqual(device.commands, 0)
        for row, device, result in self.call_all("monitor", parameters={"plug": "1,nosuch"}):
            with self.subTest(row.called):
                self.assert_failure(result, "names no ", "of this device")
                self.assertEqual(device.commands, 0)

    def test_blanks_around_the_names_do_not_matter(self):
        for row in SEVERAL:
            device = self.start_strip(row)
            padded = " %s ,  %s " % tuple(self.names(device))
            fencetool.run_off(self.job_of(row, device, plug=padded))
            self.assertEqual(self.relays(device), [False, False, True], row.name)

    def test_some_lost_answers_fail_nothing(self):
        def lose_some(device):
            # Over KLAP a list takes more answers in one session, and a lost one ends that.
            device.lose_every = device.bearable if device.bearable == 4 else 2 * device.bearable
        for row, device, result in self.call_all("off", lose_some, parameters=dict(
                shell_timeout="1", power_timeout="40")):
            with self.subTest(row.called):
                self.assert_success(result)
                self.assertEqual(self.relays(device), [False, False, True])


class Names(ListTest):
    """What the list may hold; a doubt is told before anything is switched."""

    def assert_refused(self, row, device, plug, text, **parameters):
        with self.subTest(row.called, plug=plug), self.assertRaises(fencetool.Refused) as caught:
            self.build(row, device, plug=plug, **parameters).open(self.deadline)
        self.assertIn(text, str(caught.exception))
        self.assertEqual(device.commands, 0)

    def test_two_names_of_one_outlet_are_refused_before_anything_is_sent(self):
        for row in SEVERAL:
            for device in (self.start_strip(row), self.start_device(row)):
                first = self.build(row, device).list_outlets(self.deadline)[0]
                for names in ((first.number, first.number), (first.number, first.alias),
                              (first.alias, first.number)):
                    self.assert_refused(row, device, "%s,%s" % names, "names one outlet twice")

    def test_a_name_that_no_outlet_has_is_refused_before_anything_is_sent(self):
        for row in SEVERAL:
            device = self.start_strip(row)
            first, second = self.names(device)
            for plug, text in (
                    (first + ",nosuch", "plug 'nosuch' names no outlet of this device"),
                    ("nosuch," + second, "plug 'nosuch' names no outlet of this device"),
                    (first + ",01", "plug '01' "), (first + ";" + second, " names no outlet "),
                    (first + ",", "has a comma with no outlet beside it"),
                    (",", "has a comma with no outlet beside it"),
                    (first + ", ," + second, "has a comma with no outlet beside it")):
                self.assert_refused(row, device, plug, text)

    def test_the_nodes_name_in_a_list_is_no_outlet(self):
        for row in SEVERAL:
            device = self.start_strip(row)
            first, second = self.names(device)
            self.assert_refused(row, device, device.both, "names the node itself", nodename=first)

    def test_a_family_without_outlets_takes_no_list(self):
        families = {row.name for row in SEVERAL}
        for row in OWN:
            if row.name not in families:
                device = self.start_device(row)
                with self.subTest(row.called), self.assertRaises(fencetool.FenceError) as caught:
                    self.build(row, device, plug="1,2").open(self.deadline)
                # Where others of its dialect have several, the device itself has to tell.
                has_strips = any(one.name == row.name for one in SEVERAL)
                wanted = fencetool.UnknownOutlet if has_strips else fencetool.UsageError
                self.assertIsInstance(caught.exception, wanted)
                self.assertEqual(device.commands, 0)

    def start_with_commas(self, row, *aliases):
        """Return a device with these aliases, or None where a family has none."""
        device = self.start_device(row, aliases=aliases)
        listed = self.build(row, device).list_outlets(self.deadline)
        return device if [outlet.alias for outlet in listed] == list(aliases) else None

    def test_an_outlets_own_name_may_hold_a_comma(self):
        for row in SEVERAL:
            device = self.start_with_commas(row, "rack", "rack,left", "right")
            if device:
                with self.subTest(row.called):
                    fencetool.run_off(self.job_of(row, device, plug="rack,left"))
                    self.assertEqual(self.relays(device), [True, False, True])

    def test_a_text_that_is_a_name_and_a_list_is_refused(self):
        tried = 0
        for row in SEVERAL:
            device = self.start_with_commas(row, "rack", "left", "rack,left")
            if device:
                tried += 1
                self.assert_refused(row, device, "rack,left",
                                    "is the name of one outlet, and a list")
        self.assertGreater(tried, 0)

    def test_another_device_after_the_opening_is_neither_switched_nor_read(self):
        for row in SEVERAL:
            options = row.device.tells_mac
            if options is None:
                continue
            device = self.start_strip(row, **options)
            outlet = self.build(row, device, plug=device.both,
                                device_mac=device.mac).open(self.deadline)
            outlet.close()
            device.mac = "CC:32:E5:00:00:99"
            for ask in (lambda name, one: one.read(self.deadline),
                        lambda name, one: one.send(OFF, self.deadline)):
                with self.subTest(row.called), self.assertRaises(fencetool.Refused) as caught:
                    outlet.ask_each(ask)
                self.assertIn("outlet %s: " % self.names(device)[0], str(caught.exception))
            self.assertEqual(device.commands, 0)


def refuse_to_move(number):
    """Return what lets a device acknowledge the commands to one outlet and not obey them."""
    def change(device):
        move = device.move
        device.move = lambda which, on: None if which == number else move(which, on)
    return change


def break_at_the_first_outlet(device):
    """Break the connection at each command to the first outlet, which does not move."""
    switch = device.switch

    def break_or_switch(number, on):
        if number == 1:
            raise ConnectionError("broken")
        return switch(number, on)
    device.switch = break_or_switch


def die_after_a_command(device):
    """Let a device obey the first command, and answer nothing from then on."""
    answer = device.answer

    def answer_or_break(*request):
        if device.commands:
            raise ConnectionError("dead")
        return answer(*request)
    device.answer = answer_or_break


class Troubles(ListTest):
    """One of the two outlets is in trouble, and the message tells which."""

    # A loaded machine must have the time to see the trouble, and not only the end of the time.
    LIMITS = {"login_timeout": "3", "shell_timeout": "4", "power_timeout": "8"}

    def test_one_that_acknowledges_and_does_not_move_fails_off_and_on(self):
        for number in (1, 2):
            for action, before in (("off", True), ("on", False)):
                def change(device, number=number, before=before):
                    for outlet in device.outlets[:2]:
                        device.move(outlet.number, before)
                    refuse_to_move(number)(device)
                for row, device, result in self.call_all(action, change, parameters=dict(
                        self.LIMITS, retry_on="0")):
                    with self.subTest(row.called, number=number, action=action):
                        name = self.names(device)[number - 1]
                        self.assert_failure(result, "off" if before else "on", "outlet %s: " % name)
                        # The other one was commanded all the same.
                        self.assertIs(device.outlets[2 - number].relay, not before)

    def test_an_outlet_that_does_not_answer_keeps_no_other_one_on(self):
        for row, device, result in self.call_all("off", break_at_the_first_outlet,
                                                 parameters=self.LIMITS):
            with self.subTest(row.called):
                self.assert_failure(result)
                # The last look may have been cut off by the end of the time.
                self.assertRegex(result.err, "outlet %s: (the device did not acknowledge OFF|no "
                                 "complete answer came before)" % self.names(device)[0])
                self.assertEqual(self.relays(device), [True, False, True])

    def test_a_device_that_dies_between_the_two_commands_is_a_failure(self):
        for row, device, result in self.call_all("off", die_after_a_command,
                                                 parameters=self.LIMITS):
            with self.subTest(row.called):
                self.assert_failure(result, "off node: ", "outlet ")
                self.assertEqual(self.relays(device), [False, True, True])

    def test_one_that_is_off_for_a_moment_only_is_not_off(self):
        def change(device):
            device.on_power = lambda number, powered: number != 2 or powered or device.run_later(
                0.05, device.move, number, True)
        for row, device, result in self.call_all("off", change, parameters=self.LIMITS):
            with self.subTest(row.called):
                self.assert_failure(result, "outlet %s: " % self.names(device)[1], "reports ON")

    def test_one_that_comes_back_by_itself_is_no_reboot(self):
        def change(device):
            device.on_power = lambda number, powered: number != 2 or powered or device.run_later(
                1.5, device.move, number, True)
        for row, device, result in self.call_all("reboot", change):
            with self.subTest(row.called):
                self.assert_failure(result, "reports ON", "outlet %s: " % self.names(device)[1])

    def test_a_reboot_keeps_all_outlets_off_together(self):
        def change(device):
            device.seen = []
            device.on_power = lambda number, powered: device.seen.append(
                [outlet.powered for outlet in device.outlets[:2]])
        for row, device, result in self.call_all("reboot", change):
            with self.subTest(row.called):
                self.assert_success(result)
                self.assertEqual(device.seen, [[False, True], [False, False],
                                               [True, False], [True, True]])

    def test_a_load_on_one_of_them_fails_the_off(self):
        def weld(device):
            move = device.move
            device.move = lambda number, on: (move(number, on), setattr(
                device.outlets[1], "powered", True))
        tried = 0
        for row in SEVERAL:
            family = row.device
            if family.meters_each:
                tried += 1
                device = self.start_strip(row, **family.meter)
                weld(device)
                with self.subTest(row.called):
                    self.assert_failure(
                        self.call(row, device, "off", **self.LIMITS), "still draws 43 W",
                        "outlet %s: " % self.names(device)[1])
        self.assertGreater(tried, 0)


class Check(ListTest):
    """What fence_check makes of several outlets."""

    def observe(self, row, device, **parameters):
        agent = fencetool.AGENTS["fence_check"]
        values = {"fence_method": row.method, "fence_ip": device.address[0],
                  "fence_ipport": str(device.address[1]), "target_mgmt_ip": "127.0.0.2",
                  "nodename": "node", "fence_plug": device.both, "stonith_status_sleep": "200ms"}
        values.update(device.parameters)
        if "username" in values:
            values["fence_user"] = values.pop("username")
        settings = fencetool.build_check_settings(dict(values, **parameters), agent.defaults)
        job = fencetool.CheckJob(
            self.system, fencetool.make_device(agent, settings, self.system), settings)
        return [fencetool.observe_power(job) for _ in range(2)]  # as found, and as read again

    def test_the_device_says_off_only_when_all_outlets_are(self):
        for row in SEVERAL:
            for relays in itertools.product((True, False), repeat=2):
                device = self.start_strip(row)
                for number, relay in enumerate(relays, 1):
                    device.move(number, relay)
                on = [name for name, relay in zip(self.names(device), relays) if relay]
                for item in self.observe(row, device):
                    with self.subTest(row.called, relays=relays):
                        self.assertIs(item.finding, Finding.ALIVE if on else Finding.DEAD)
                        self.assertEqual(item.seen, "power=on" if on else "power=off")
                        self.assertEqual(item.reason, "; ".join(
                            "outlet " + name for name in on or self.names(device)))

    def test_a_load_on_any_of_them_is_life(self):
        for row in SEVERAL:
            family = row.device
            if not family.meters_each:
                continue
            device = self.start_strip(row, **family.meter)
            device.move(1, False)
            device.move(2, False)
            device.outlets[0].powered = True
            for item in self.observe(row, device):
                self.assertIs(item.finding, Finding.ALIVE)
                self.assertRegex(item.reason, "^outlet %s: the relay reports OFF, but the outlet "
                                 "still draws 43 W" % self.names(device)[0])

    def test_one_that_cannot_be_read_is_not_known_and_tells_which(self):
        for row in SEVERAL:
            device = self.start_strip(row)
            for item in self.observe(row, device, fence_plug=self.names(device)[0] + ",nosuch"):
                with self.subTest(row.called):
                    self.assertIs(item.finding, Finding.UNKNOWN)
                    self.assertIn("nosuch", item.reason)


class Combined(unittest.TestCase):
    """Pure: what the outlets of one node add up to."""

    def test_the_power_is_dead_only_when_all_outlets_are(self):
        for findings in itertools.product(Finding, repeat=3):
            found = fencetool.combine_findings(list(findings))
            with self.subTest(findings=findings):
                self.assertIs(found is Finding.DEAD, set(findings) == {Finding.DEAD})
                self.assertIs(found is Finding.ALIVE, Finding.ALIVE in findings)

    def test_what_is_on_feeds_the_node(self):
        for states in itertools.product((ON, OFF), repeat=3):
            self.assertIs(fencetool.combine_states(states), OFF if ON not in states else ON)

    def test_a_list_is_taken_apart_at_its_commas_and_the_label_is_none(self):
        for wanted, names in (("1", ()), ("", ()), ("1,5", ("1", "5")), (" 1 , a b ", ("1", "a b")),
                              ("1,,5", ("1", "", "5")), ("node,1", ("node", "1")), ("a,b", ())):
            self.assertEqual(fencetool.split_names(wanted, "a,b"), names, wanted)
