"""The contract of Device and OpenedOutlet, for every row of DIALECTS.

Nothing here knows a family by its name: what a family can do is told by its virtual device.
"""
import functools
import itertools
import os
import re
import tempfile
import unittest
from collections import namedtuple
from unittest import mock

import fencetool
from fencetool import DIALECTS, PowerState
from tests import support, virtual, virtual_klap
from tests.support import AgentTest, at_once, in_argv, on_stdin

# What speaks a dialect of ours. called: in messages; device: the class of the virtual one; and all
# columns of the dialect.
Family = namedtuple("Family", ("called", "device") + fencetool.Dialect._fields)
FAMILIES = list(virtual.DEVICES.values()) + list(virtual_klap.DEVICES) + [
    virtual.Shelly1, virtual.Shelly4]
OWN = [Family(device.title or device.dialect, device, *DIALECTS[device.dialect])
       for device in FAMILIES]
INSTALLED = [row for row in DIALECTS.values() if not row.port]
LIMITS = {"login_timeout": "5", "shell_timeout": "5"}
# More at once than there are cores starve each other out of their limits.
WORKERS = 8
POWER_SECONDS = 2  # a failing off takes all of its time
CALLS = {
    "read": lambda outlet, deadline: outlet.read(deadline),
    "on": lambda outlet, deadline: outlet.send(PowerState.ON, deadline),
    "off": lambda outlet, deadline: outlet.send(PowerState.OFF, deadline),
    "meter": lambda outlet, deadline: outlet.read_meter(deadline),
    "close": lambda outlet, deadline: outlet.close()}


class ContractTest(AgentTest):
    def setUp(self):
        self.system = fencetool.System("test")
        self.deadline = self.system.deadline(600)

    def start_device(self, row, **options):
        """Start the virtual device of a dialect; it remembers which contact moved."""
        device = row.device(**options)
        device.moved = []
        device.on_power = lambda *move: device.moved.append(move)
        return self.start(device)

    def build(self, row, virtual_device, **parameters):
        """Return the Device that the agent of a dialect makes of its parameters."""
        agent = fencetool.AGENTS[row.agent]
        values = dict(virtual_device.parameters, ip=virtual_device.address[0],
                      ipport=str(virtual_device.address[1]), **LIMITS)
        values.update(row.fixed)
        values.update(parameters)
        settings = fencetool.build_settings(values, agent.defaults)
        device = fencetool.make_device(agent, settings, self.system)
        self.addCleanup(device.close)
        return device

    def reach(self, row, device, **parameters):
        """Return the parameters of a call of the agent as a process."""
        found = dict(self.address(device), **device.parameters)
        return dict(found, **dict(row.fixed, **parameters))


class Rows(unittest.TestCase):
    def test_every_dialect_has_its_room_and_its_virtual_device(self):
        self.assertEqual(set(fencetool.ROOMS), set(DIALECTS))
        self.assertEqual({row.name for row in OWN},
                         {row.name for row in DIALECTS.values() if row.port})
        self.assertEqual(len({row.called for row in OWN}), len(OWN))

    def test_every_dialect_of_ours_has_an_agent_that_speaks_it(self):
        for row in OWN:
            self.assertIn(row.agent, fencetool.AGENTS)

    def test_without_a_port_the_agent_and_fence_check_take_that_of_the_row(self):
        for name, device in virtual.DEVICES.items():
            row = DIALECTS[name]
            given = dict(device.parameters, **row.fixed)
            agent, check = fencetool.AGENTS[row.agent], fencetool.AGENTS["fence_check"]
            with self.subTest(row.name), mock.patch.dict(
                    DIALECTS, {row.name: row._replace(port=8080)}), mock.patch.dict(
                    fencetool.DIALECTS_BY_METHOD, {row.method: row._replace(port=8080)}):
                own = fencetool.build_settings(dict(given, ip="10.0.0.5"), agent.defaults)
                checked = fencetool.build_check_settings(
                    {"fence_method": row.method, "fence_ip": "10.0.0.5",
                     "target_mgmt_ip": "10.0.0.6", "nodename": "node"}, check.defaults)
                if "device" in {param.name for param in agent.params}:
                    self.assertEqual(own.ipport, 8080)
                self.assertEqual(checked.ipport, 8080)

    def test_methods_and_names_are_unique(self):
        self.assertEqual(len({row.method for row in DIALECTS.values()}), len(DIALECTS))


class Order(ContractTest):
    """Whatever is called in whatever order: a reading is the relay's, and no other outlet moves."""

    def test_before_it_is_opened_a_device_can_only_list_and_close(self):
        for row in OWN:
            device = self.build(row, self.start_device(row))
            for name in ("read", "send", "watts"):
                self.assertFalse(hasattr(device, name), (row.name, name))

    def test_opening_sends_no_command_and_tells_the_state(self):
        for row in OWN:
            for relay in (True, False):
                with self.subTest(row.called, relay=relay):
                    device = self.start_device(row)
                    device.outlets[0].relay = relay
                    outlet = self.build(row, device).open(self.deadline)
                    self.assertIs(outlet.state, PowerState.ON if relay else PowerState.OFF)
                    self.assertEqual(device.commands, 0)

    def test_every_order_of_three_calls(self):
        """Of two calls, for what differs from another device of its dialect on the wire alone."""
        seen = set()
        for row in OWN:
            device = self.start_device(row)
            outlet = self.build(row, device).open(self.deadline)
            with self.subTest(row.called):
                for order in itertools.product(CALLS, repeat=2 if row.name in seen else 3):
                    self.check_order(device, outlet, order)
            seen.add(row.name)

    def check_order(self, device, outlet, order):
        for name in order:
            answer = CALLS[name](outlet, self.deadline)
            relay = device.outlets[0].relay
            if name == "read":
                self.assertIs(answer, PowerState.ON if relay else PowerState.OFF, order)
            if name in ("on", "off"):
                self.assertIs(relay, name == "on", order)
        outlet.close()

    def test_of_two_outlets_the_one_that_was_named_is_read_and_moved(self):
        for row in OWN:
            two = row.device.two
            device = self.start_device(row, **({"aliases": two} if two else {}))
            named = device.second if two else ""
            outlet = self.build(row, device, plug=named).open(self.deadline)
            with self.subTest(row.called):
                for order in itertools.permutations(("read", "off", "on", "close"), 3):
                    for name in order:
                        CALLS[name](outlet, self.deadline)
                self.assertEqual({number for number, _ in device.moved}, {len(device.outlets)})

    def test_a_list_names_every_outlet_once_and_each_number_selects_its_own(self):
        for row in OWN:
            two = row.device.two
            for position in range(len(two)):
                device = self.start_device(row, aliases=two)
                listed = self.build(row, device).list_outlets(self.deadline)
                self.assertEqual(len(listed), len(two))
                with self.subTest(row.called, position=position):
                    number = str(listed[position].number)
                    outlet = self.build(row, device, plug=number).open(self.deadline)
                    outlet.send(PowerState.OFF, self.deadline)
                    self.assertEqual([one.relay for one in device.outlets],
                                     [place != position for place in range(len(two))])

    def test_a_plug_that_no_outlet_has_is_refused_before_anything_is_sent(self):
        for row in OWN:
            device = self.start_device(row)
            for wanted in ("2", "nosuch"):
                with self.subTest(row.called, plug=wanted), self.assertRaises(
                        (fencetool.Refused, fencetool.UsageError)):
                    self.build(row, device, plug=wanted).open(self.deadline)
            self.assertEqual(device.commands, 0)

    def test_two_outlets_and_no_name_are_refused_before_anything_is_sent(self):
        for row in OWN:
            two = row.device.two
            if two:
                device = self.start_device(row, aliases=two)
                for wanted in ("", "nosuch"):
                    with self.subTest(row.called, plug=wanted), \
                            self.assertRaises(fencetool.Refused):
                        self.build(row, device, plug=wanted).open(self.deadline)
                self.assertEqual(device.commands, 0)


class Identity(ContractTest):
    def test_the_right_device_is_let_through_and_another_one_is_not(self):
        for row in OWN:
            options = row.device.tells_mac
            device = self.start_device(row, **(options or {}))
            for mac, is_right in ((device.mac, True), ("CC:32:E5:00:00:99", False)):
                with self.subTest(row.called, mac=mac):
                    known = self.build(row, device, device_mac=mac)
                    if is_right and options is not None:
                        self.assertIs(known.open(self.deadline).state, PowerState.ON)
                    else:
                        with self.assertRaises(fencetool.Refused):
                            known.open(self.deadline)
            self.assertEqual(device.commands, 0)

    def test_another_device_after_the_opening_is_neither_switched_nor_read(self):
        for row in OWN:
            options = row.device.tells_mac
            if options is None:
                continue
            for name in ("on", "off", "read", "meter"):
                device = self.start_device(
                    row, **dict(row.device.meter or {}, **options))
                outlet = self.build(row, device, device_mac=device.mac).open(self.deadline)
                outlet.close()
                device.mac = "CC:32:E5:00:00:99"
                with self.subTest(row.called, call=name), self.assertRaises(fencetool.Refused):
                    CALLS[name](outlet, self.deadline)
                self.assertEqual(device.commands, 0)


class Login(ContractTest):
    def test_every_login_works_with_the_right_password_alone(self):
        for row in OWN:
            for options in row.device.logins:
                device = self.start_device(row, **options)
                with self.subTest(row.called, **options):
                    outlet = self.build(row, device, username="admin",
                                        password=options["password"]).open(self.deadline)
                    outlet.send(PowerState.OFF, self.deadline)
                    self.assertIs(outlet.read(self.deadline), PowerState.OFF)
                    self.assertEqual(device.commands, 1)
                    for wrong in ({"password": "wr0ngpw", "username": "admin"}, {}):
                        with self.assertRaises(fencetool.Refused) as caught:
                            self.build(row, device, **wrong).open(self.deadline)
                        self.assertNotIn("wr0ngpw", str(caught.exception))
                    self.assertEqual(device.commands, 1)


class Meter(ContractTest):
    def test_a_meter_tells_the_load_of_the_contact_and_not_the_relays_word(self):
        for row in OWN:
            options = row.device.meter
            if options is None:
                continue
            with self.subTest(row.called):
                device = self.start_device(row, **options)
                outlet = self.build(row, device).open(self.deadline)
                self.assertGreater(outlet.read_meter(self.deadline).watts, 1)
                outlet.send(PowerState.OFF, self.deadline)
                self.let_pass(device.meter_rest_s)
                self.assertEqual(outlet.read_meter(self.deadline), fencetool.MeterReading(0, ""))
                device.outlets[0].powered = True
                self.assertIs(outlet.read(self.deadline), PowerState.OFF)
                self.assertGreater(outlet.read_meter(self.deadline).watts, 1)

    def let_pass(self, seconds):
        """Move the clock on that agents go by, until the test ends."""
        self.system.clock = lambda: fencetool.System.clock() + seconds

    def test_without_a_meter_there_is_no_reading(self):
        for row in OWN:
            outlet = self.build(row, self.start_device(row)).open(self.deadline)
            self.assertEqual(outlet.read_meter(self.deadline), fencetool.NO_METER, row.name)

    def observe(self, row, device):
        """Return fence_check's Evidence about the outlet of a virtual device."""
        agent = fencetool.AGENTS["fence_check"]
        values = {"fence_method": row.method, "fence_ip": device.address[0],
                  "fence_ipport": str(device.address[1]), "target_mgmt_ip": "127.0.0.2",
                  "nodename": "node", "stonith_status_sleep": "200ms"}
        given = dict(device.parameters)
        values.update({alias: given.pop(name) for alias, name in fencetool.DEVICE_NAMES.items()
                       if name in given})
        values.update(given)  # what else a family with a meter takes, fence_check takes too
        settings = fencetool.build_check_settings(values, agent.defaults)
        return fencetool.observe_power(fencetool.CheckJob(
            self.system, fencetool.make_device(agent, settings, self.system), settings))

    def test_what_a_meter_tells_decides_what_fence_check_says_of_an_outlet_that_is_off(self):
        for row in OWN:
            family = row.device
            for fault, finding in (("", fencetool.Finding.DEAD),
                                   ("dead_meter", fencetool.Finding.DEAD),
                                   ("welded", fencetool.Finding.ALIVE),
                                   ("garbled_meter", fencetool.Finding.UNKNOWN)):
                if family.meter is None:
                    continue
                device = self.start_device(row, fault=fault, **family.meter)
                device.move(1, False)
                with self.subTest(row.called, fault=fault):
                    self.assertIs(self.observe(row, device).finding, finding)


class Faults(ContractTest):
    """Every fault that a family's device can have: inside the contract, and as a process."""

    def faults_of(self, row):
        return [fault for fault in row.device.faults if fault not in row.device.no_faults]

    def start_faulty(self, row, fault):
        device = row.device
        options = dict(device.fault_options, fault=fault)
        if device.two and (fault in device.faults_of_two or device.in_many):
            options["aliases"] = device.two
        return self.start_device(row, **options)

    def plug_of(self, device):
        return {"plug": device.second} if len(device.outlets) > 1 else {}

    def test_no_fault_makes_a_reading_that_is_not_the_relays(self):
        cases = [(row, fault) for row in OWN for fault in self.faults_of(row)]
        for (row, fault), wrong in zip(cases, at_once(
                [functools.partial(self.read_through_fault, *case) for case in cases], WORKERS)):
            with self.subTest(row.called, fault=fault):
                self.assertEqual(wrong, "")

    def read_through_fault(self, row, fault):
        """Return what is wrong with the readings, "" for nothing; a FenceError is as it should."""
        device = self.start_faulty(row, fault)
        meant = device.outlets[-1]
        deadline = self.system.deadline(20)
        opened = self.build(row, device, shell_timeout="500ms", login_timeout="1",
                            **self.plug_of(device))
        try:
            outlet = opened.open(deadline)
            for name in ("read", "off", "read", "meter", "read"):
                relays = {meant.relay}
                answer = CALLS[name](outlet, deadline)
                relays.add(meant.relay)  # a late one may move in between
                if name == "read" and (answer is PowerState.ON) not in relays:
                    return "%s was read, and the relay is %s" % (answer, meant.relay)
        except fencetool.FenceError:
            pass
        return ""

    def run_all(self, action):
        """Return (row, fault, device, result, milliseconds) for each family and fault."""
        cases = [(row, fault, self.start_faulty(row, fault), way) for number, (row, fault)
                 in enumerate((row, fault) for row in OWN for fault in self.faults_of(row))
                 for way in [(on_stdin, in_argv)[number % 2]]]
        with tempfile.TemporaryDirectory() as folder:
            def run_one(row, fault, device, way):
                log = os.path.join(folder, "%s-%s" % (row.called, fault))
                limits = dict(support.SHORT_LIMITS, power_timeout=str(POWER_SECONDS))
                if fault in (device.harmless if action == "off" else device.readable):
                    limits = support.PATIENT_LIMITS
                result = way(row.agent, dict(self.reach(
                    row, device, action=action, nodename="node", debug_file=log,
                    **self.plug_of(device)), **limits))
                # The agent's own clock: a loaded machine is slow to start an interpreter.
                with open(log, encoding="utf-8") as handle:
                    took = int(re.search(r" ms=(\d+) ", handle.read()).group(1))
                return row, fault, device, result, took

            return at_once([functools.partial(run_one, *case) for case in cases], WORKERS)

    def check_end(self, took):
        # login_timeout, shell_timeout, power_timeout, and the contract's second.
        self.assertLess(took, 1000 * (1 + 1 + POWER_SECONDS + 1))

    def test_no_fault_of_any_device_is_ever_taken_for_off(self):
        for row, fault, device, result, took in self.run_all("off"):
            with self.subTest("%s %s" % (row.called, fault)):
                if fault in device.harmless:
                    self.assert_success(result)
                    self.assertEqual(result.out, "Success: Powered OFF\n")
                    self.assertFalse(device.outlets[-1].powered)
                else:
                    self.check_end(took)
                    self.assert_failure(result, "%s: off node: %s 127.0.0.1"
                                        % (row.agent, row.name))
                    self.assertNotRegex(result.err, "(?i)timed? ?out")

    def test_no_fault_of_any_device_changes_what_status_says(self):
        for row, fault, device, result, took in self.run_all("status"):
            with self.subTest("%s %s" % (row.called, fault)):
                if fault in device.readable:
                    self.assertEqual((result.code, result.out, result.err),
                                     (0, "Status: ON\n", ""))
                else:
                    self.check_end(took)
                    self.assert_failure(result, "%s: status node: %s" % (row.agent, row.name))
                    self.assertNotRegex(result.err, "(?i)timed? ?out")

    def test_answers_that_are_lost_now_and_then_fail_nothing(self):
        devices = [(row, self.start_device(row, lose_every=row.device.bearable,
                                           **row.device.fault_options)) for row in OWN]
        for (row, device), result in zip(devices, at_once([functools.partial(
                on_stdin, row.agent, self.reach(row, device, action="off", shell_timeout="1",
                                                power_timeout="20")) for row, device in devices])):
            with self.subTest(row.called):
                self.assert_success(result)
                self.assertFalse(device.outlets[0].powered)


class Time(ContractTest):
    """What was OFF for a moment, and what was said long ago."""

    def test_a_relay_that_comes_back_by_itself_is_no_reboot(self):
        def run_one(row):
            device = self.start_device(row)
            device.on_power = lambda number, powered: powered or device.run_later(
                1, device.move, number, True)
            return on_stdin(row.agent, self.reach(row, device, action="reboot", power_timeout="20",
                                                  stonith_status_sleep="200ms"))
        for row, result in zip(OWN, at_once([functools.partial(run_one, row) for row in OWN])):
            with self.subTest(row.called):
                self.assert_failure(result, "the outlet was OFF, and 3 s later", "reports ON")

    def start_job(self, row, **parameters):
        """Return (device, Job, what moves the job's clock on when it is called)."""
        device = self.start_device(row, **row.device.fault_options)
        job_device = self.build(row, device, power_timeout="20", **parameters)
        passed = [0.0]
        self.system.clock = lambda: fencetool.System.clock() + passed[0]
        self.addCleanup(self.system.__dict__.pop, "clock", None)
        job = fencetool.Job(self.system, job_device, job_device.settings)
        return device, job, lambda: passed.append(passed.pop() + 1000)

    def test_a_reading_that_ends_after_the_time_is_none(self):
        for row in OWN:
            for late in ("read", "read_meter"):
                _, job, let_time_pass = self.start_job(row)
                outlet = job.device.open(job.deadline)
                answer = getattr(outlet, late)

                def read_late(deadline, answer=answer, let_time_pass=let_time_pass):
                    found = answer(deadline)
                    let_time_pass()
                    return found
                setattr(outlet, late, read_late)
                with self.subTest(row.called, late=late), \
                        self.assertRaises(fencetool.NotConfirmed) as caught:
                    fencetool.confirm_power(job, outlet, PowerState.OFF)
                self.assertIn("time", str(caught.exception))

    def test_a_status_that_ends_after_the_time_is_none(self):
        for row in OWN:
            device, job, let_time_pass = self.start_job(row)
            opened = job.device.open
            job.device.open = lambda deadline, opened=opened, wait=let_time_pass: (
                opened(deadline), wait())[0]
            with self.subTest(row.called), self.assertRaises(fencetool.Unreachable):
                fencetool.run_status(job)

    def test_times_that_leave_no_second_look_are_refused_before_anything_is_sent(self):
        for row in OWN:
            device = self.start_device(row)
            for action in ("validate-all", "monitor", "off"):
                result = on_stdin(row.agent, self.reach(
                    row, device, action=action, power_wait="1", stonith_status_sleep="1",
                    power_timeout="2.4"))
                self.assert_failure(result, "no time for a second look")
            self.assertEqual(device.requests, [])


AGENT = """#!/bin/sh
while read -r line; do
    case $line in action=*) action=${line#action=} ;; esac
done
case $action in
    status) echo "Status: %(word)s"; exit %(code)d ;;
    monitor) exit 0 ;;
esac
exit 1
"""


class InstalledAgents(AgentTest):
    """The rows that another fence agent speaks: it is asked, and never switches."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        path = mock.patch.dict(fencetool.CHILD_ENVIRONMENT, PATH=self.folder + ":/usr/bin:/bin")
        path.start()
        self.addCleanup(path.stop)
        self.system = fencetool.System("test")
        self.deadline = self.system.deadline(600)

    def build(self, row, word, code):
        """Return the Device of an agent that prints this word and ends with this code."""
        program = os.path.join(self.folder, row.agent or "fence_virtual-2")
        with open(program, "w") as handle:
            handle.write(AGENT % {"word": word, "code": code})
        os.chmod(program, 0o755)
        agent = fencetool.AGENTS["fence_check"]
        settings = fencetool.build_check_settings({
            "fence_method": row.method if row.agent else program, "fence_ip": "127.0.0.1",
            "target_mgmt_ip": "127.0.0.2", "nodename": "node"}, agent.defaults)
        return fencetool.make_device(agent, settings, self.system)

    def test_word_and_exit_code_must_agree_at_the_opening_and_at_every_reading(self):
        for row in INSTALLED:
            for word, code in itertools.product(("ON", "OFF", "on", ""), (0, 1, 2)):
                with self.subTest(row.name, word=word, code=code):
                    device = self.build(row, word, code)
                    state = {("ON", 0): PowerState.ON, ("OFF", 2): PowerState.OFF}.get((word, code))
                    if state:
                        outlet = device.open(self.deadline)
                        self.assertIs(outlet.state, state)
                        self.assertIs(outlet.read(self.deadline), state)
                    else:
                        with self.assertRaises(fencetool.FenceError):
                            device.open(self.deadline)

    def test_it_is_never_told_to_switch(self):
        for row in INSTALLED:
            outlet = self.build(row, "ON", 0).open(self.deadline)
            for wanted in PowerState:
                with self.subTest(row.name, wanted=wanted), self.assertRaises(fencetool.Refused):
                    outlet.send(wanted, self.deadline)
            self.assertEqual(outlet.read_meter(self.deadline), fencetool.NO_METER)
            self.assertTrue(outlet.device.prove_usable(self.deadline))
