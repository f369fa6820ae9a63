"""Clients from elsewhere against the virtual devices: a simulator that only we believe is no proof.

The programs come from the machine's PATH; .ci/run installs them.
"""
import fencetool
from tests import support
from tests.support import AgentTest

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


class PythonKasa(AgentTest):
    """The kasa command of python-kasa: the client that knows the most Kasa devices."""

    def kasa(self, device, *words):
        program = support.require_program("kasa")
        result = support.run([program, "--host", device.address[0], "--port",
                              str(device.address[1])] + list(words), environment=ENVIRONMENT)
        self.assertEqual(result.code, 0, result)
        self.assertNotIn("Unable to read", result.out)
        return result.out

    def test_it_discovers_a_virtual_plug_by_datagram(self):
        program = support.require_program("kasa")
        device = self.start(fencetool.VirtualKasa(["node"]))
        result = support.run([program, "--target", "127.0.0.1", "--port", str(device.address[1]),
                              "--discovery-timeout", "2", "discover"], environment=ENVIRONMENT)
        self.assertIn("Found 1 devices", result.out, result)
        self.assertIn(device.mac, result.out)

    def test_it_reads_and_switches_a_virtual_plug_with_a_meter(self):
        device = self.start(fencetool.VirtualKasa(["node"], metered=True))
        self.assertIn("Device state: True", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "off")
        self.assertFalse(device.outlets[0].powered)
        self.assertIn("Device state: False", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "on")
        self.assertTrue(device.outlets[0].powered)

    def test_it_reads_and_switches_one_outlet_of_a_virtual_strip(self):
        for options in ({}, {"strip_ids": "short"}):
            device = self.start(fencetool.VirtualKasa(["a", "b", "c"], **options))
            shown = self.kasa(device, "--type", "strip", "state")
            for alias in "abc":
                self.assertIn(alias, shown)
            self.kasa(device, "--type", "strip", "device", "--child", "b", "off")
            self.assertEqual([outlet.powered for outlet in device.outlets], [True, False, True])
