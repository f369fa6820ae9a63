"""Clients from elsewhere against the virtual devices: a simulator that only we believe is no proof.

The programs come from the machine's PATH; .ci/run installs them.
"""
import os

from tests import support, virtual
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
        device = self.start(virtual.Kasa(["node"]))
        result = support.run([program, "--target", "127.0.0.1", "--port", str(device.address[1]),
                              "--discovery-timeout", "2", "discover"], environment=ENVIRONMENT)
        self.assertIn("Found 1 devices", result.out, result)
        self.assertIn(device.mac, result.out)

    def test_it_reads_and_switches_a_virtual_plug_with_a_meter(self):
        device = self.start(virtual.Kasa(["node"], metered=True))
        self.assertIn("Device state: True", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "off")
        self.assertFalse(device.outlets[0].powered)
        self.assertIn("Device state: False", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "on")
        self.assertTrue(device.outlets[0].powered)

    def test_it_reads_and_switches_one_outlet_of_a_virtual_strip(self):
        for options in ({}, {"short_ids": True}):
            device = self.start(virtual.Kasa(["a", "b", "c"], **options))
            shown = self.kasa(device, "--type", "strip", "state")
            for alias in "abc":
                self.assertIn(alias, shown)
            self.kasa(device, "--type", "strip", "device", "--child", "b", "off")
            self.assertEqual([outlet.powered for outlet in device.outlets], [True, False, True])


class TasmotaHttp(AgentTest):
    """tasmota-http: a client library, run by the interpreter that has it."""

    def find_interpreter(self):
        for folder in os.environ.get("PATH", "").split(":"):
            program = os.path.join(folder, "python3")
            if os.access(program, os.X_OK) and support.run(
                    [program, "-c", "import tasmota_http"], environment=ENVIRONMENT).code == 0:
                return program
        support.require(False, "tasmota-http is not installed for any python3 on the PATH")

    def test_it_reads_and_switches_relays_of_virtual_devices(self):
        program = self.find_interpreter()
        code = ("import sys; from tasmota_http import TasmotaClient; "
                "client = TasmotaClient(sys.argv[1], username='admin', password='s3cret'); "
                "print(client.power_get(2), client.power_set(False, 2), client.power_get(2), "
                "client.power_get(1), client.status(11)['StatusSTS']['POWER2'])")
        for old in (False, True):
            device = self.start(virtual.Tasmota(["POWER1", "POWER2"], password="s3cret",
                                                         old=old))
            result = support.run([program, "-c", code, "127.0.0.1:%d" % device.address[1]],
                                 environment=ENVIRONMENT)
            self.assertEqual(result.out, "{'POWER2': 'ON'} {'POWER2': 'OFF'} {'POWER2': 'OFF'} "
                                         "{'POWER1': 'ON'} OFF\n", result)
            self.assertEqual([outlet.powered for outlet in device.outlets], [True, False])
