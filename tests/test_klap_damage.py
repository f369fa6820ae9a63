"""Every member of every reply over KLAP, left out or changed: none makes an outlet OFF or idle.

What is replaced by what it could honestly be, as a state by the other one, is no damage.
"""
import copy
import json

import fencetool
from fencetool import PowerState
from tests import support, virtual_klap
from tests.support import AgentTest

LEFT_OUT = object()
VALUES = (LEFT_OUT, None, "OFF", [], {})
STATES = ("device_on", "relay_state", "state")
FAMILIES = (virtual_klap.KlapPlug, virtual_klap.KlapStrip, virtual_klap.SmartPlug,
            virtual_klap.SmartStrip)


def list_places(node, place=()):
    """Return the places of all members and entries of a reply, as tuples of keys."""
    inner = node.items() if isinstance(node, dict) else (
        enumerate(node) if isinstance(node, list) else ())
    found = [place] if place else []
    for key, value in inner:
        found += list_places(value, place + (key,))
    return found


def damage(reply, place, value):
    """Return a copy of a reply with another value at a place."""
    changed = copy.deepcopy(reply)
    here = changed
    for key in place[:-1]:
        here = here[key]
    if value is LEFT_OUT:
        del here[place[-1]]
    else:
        here[place[-1]] = value
    return changed


class Damage(AgentTest):
    def setUp(self):
        self.system = fencetool.System("test")
        self.system.sleep = lambda seconds: None  # before what may be better the next time

    def start_family(self, family):
        """Return a virtual device that damages replies as its damage says; it keeps all of them."""
        strip = family in (virtual_klap.KlapStrip, virtual_klap.SmartStrip)
        device = family(("a", "b")[:1 + strip], metered=True)
        device.replies = {}
        device.damage = (b"", (), None)
        answer = device.answer_plain

        def answer_damaged(plain):
            question = json.loads(plain.decode())
            for name in ("request_time_milis", "terminal_uuid"):
                question.pop(name, None)
            question = json.dumps(question, sort_keys=True)
            reply = json.loads(answer(plain).decode())
            device.replies[question] = reply
            if question == device.damage[0]:
                reply = damage(reply, *device.damage[1:])
            return json.dumps(reply).encode()
        device.answer_plain = answer_damaged
        return self.start(device)

    def open_outlet(self, device):
        agent = fencetool.AGENTS["fence_kasa"]
        values = dict(self.address(device, **support.PATIENT_LIMITS), plug="1",
                      **device.parameters)
        opened = fencetool.make_device(agent, fencetool.build_settings(values, agent.defaults),
                                       self.system)
        self.addCleanup(opened.close)
        return opened.open(self.system.deadline(60))

    def check(self, device, needed, is_wrong):
        """Damage each place of each reply that needed tells; is_wrong is asked of the outlet."""
        outlet = self.open_outlet(device)
        outlet.read_meter(self.system.deadline(60))
        cases = [(question, place, value) for question, reply in device.replies.items()
                 if needed(json.dumps(reply)) for place in list_places(reply) for value in VALUES]
        self.assertGreater(len(cases), 20)
        for case in cases:
            device.damage = case
            try:
                wrong = is_wrong(self.open_outlet(device))
            except fencetool.FenceError:
                wrong = False
            self.assertFalse(wrong, case)

    def test_no_damaged_description_reads_as_off(self):
        for family in FAMILIES:
            with self.subTest(family.title):
                self.check(self.start_family(family),
                           lambda reply: any('"%s"' % name in reply for name in STATES),
                           lambda outlet: outlet.state is not PowerState.ON)

    def test_no_damaged_reading_tells_that_nothing_flows(self):
        def tells_no_load(outlet):
            watts = outlet.read_meter(self.system.deadline(60)).watts
            return watts is None or watts < 1
        for family in FAMILIES:
            device = self.start_family(family)
            device.outlets[0].relay = False  # its contact is welded
            with self.subTest(family.title):
                self.check(device, lambda reply: "power" in reply and "device_on" not in reply,
                           tells_no_load)
