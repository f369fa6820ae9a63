"""fence_http under the names of other agents: with their parameters, and outlets as they count."""
import functools
import unittest
import xml.etree.ElementTree as ElementTree

import fencetool
from tests import support, virtual
from tests.support import AgentTest, at_once, in_argv, on_stdin

# What the library of fence-agents gives to each agent. Source: its metadata of 4.12 and 4.17 for
# the options that fence_shelly_gen2, and fence_tasmota and fence_esphome of a fork, ask it for.
COMMON = {
    "action": "validate-all", "ip": "127.0.0.1", "ipaddr": "127.0.0.1", "ipport": "80",
    "password": "s3cret", "passwd": "s3cret", "password_script": "", "passwd_script": "",
    "quiet": "0", "verbose": "0", "verbose_level": "0", "debug_file": "", "debug": "",
    "plug_separator": ";", "separator": ",", "delay": "0", "disable_timeout": "true",
    "login_timeout": "5", "power_timeout": "20", "power_wait": "5", "shell_timeout": "5",
    "stonith_status_sleep": "1", "retry_on": "1"}
SSL = {"ssl": "0", "ssl_secure": "0", "ssl_insecure": "0", "notls": "1",
       "gnutlscli_path": "/usr/bin/gnutls-cli"}
PARAMETERS = {
    "fence_tasmota": dict(COMMON, plug="1", port="1"),
    "fence_esphome": dict(COMMON, plug="Relay", port="Relay", username="admin", login="admin"),
    "fence_shelly_gen2": dict(COMMON, plug="0", port="0", **SSL)}


class OtherNames(AgentTest):
    def start(self, device):
        device.moved = []
        device.on_power = lambda *move: device.moved.append(move)
        return super().start(device)

    def call(self, name, device, action, way=on_stdin, **parameters):
        found = dict(self.address(device), **support.PATIENT_LIMITS)
        return way(name, dict(found, action=action, **parameters))

    def build(self, name, **parameters):
        agent = fencetool.AGENTS[name]
        return agent.settings(dict({"ip": "127.0.0.1"}, **parameters), agent.defaults)

    def test_every_name_has_its_parameters_here(self):
        self.assertEqual(set(PARAMETERS), set(fencetool.OTHER_NAMES))

    def test_every_parameter_of_theirs_is_in_the_metadata_and_is_taken(self):
        for name, given in PARAMETERS.items():
            root = ElementTree.fromstring(on_stdin(name, {"action": "metadata"}).out)
            self.assertEqual(root.get("name"), name)
            known = {parameter.get("name") for parameter in root.iter("parameter")}
            self.assertEqual(set(given) - known, set())
            self.assertNotIn("device", known)
            for unknown in ("", "web=1\n"):
                lines = "".join("%s=%s\n" % item for item in given.items())
                self.assert_success(support.fencetool(name, stdin=lines + unknown))
        for name, given in PARAMETERS.items():
            values = {option: value for option, value in given.items() if value and option not in (
                "verbose", "quiet", "ssl", "ssl_secure", "ssl_insecure", "notls", "web")}
            self.assert_success(in_argv(name, values))
        self.assert_success(support.fencetool(
            "fence_tasmota", "-a", "127.0.0.1", "-l", "admin", "-p", "x", "-n", "1", "-t", "-q",
            "-o", "validate-all"))

    def test_each_is_preset_to_its_family(self):
        for name, row in fencetool.OTHER_NAMES.items():
            settings = self.build(name)
            self.assertEqual(settings.device, row.dialect)
            self.assertEqual(settings.ipport, fencetool.DIALECTS[row.dialect].port)
            self.assertEqual(self.build(name, ssl="1").ipport, 443)
            device = fencetool.make_device(
                fencetool.AGENTS[name], settings, fencetool.System("test"))
            self.assertEqual(device.name, row.dialect)

    def test_tls_with_a_verified_certificate_is_not_lost(self):
        pairs, params = [("ssl_secure", "1")], fencetool.AGENTS["fence_tasmota"].params
        self.assertEqual(fencetool.collect_values(pairs, params), ({"ssl": "1"}, []))

    def test_the_outlet_that_moves_is_the_one_that_they_mean(self):
        cases = [
            ("fence_tasmota", virtual.Tasmota(["a", "b"], password="s3cret"), "2", 2),
            ("fence_tasmota", virtual.Tasmota(password="s3cret"), "1", 1),
            ("fence_tasmota", virtual.OpenBeken(["a", "b"], password="s3cret"), "2", 2),
            ("fence_esphome", virtual.Esphome(["Led", "Relay"], password="s3cret"), "Relay", 2),
            ("fence_esphome", virtual.Esphome(
                ["Led", "Relay"], version="2024", password="s3cret", algorithm="MD5"), "Relay", 2),
            ("fence_shelly_gen2", virtual.Shelly2(["a", "b"], password="s3cret"), "1", 2),
            ("fence_shelly_gen2", virtual.Shelly2(["a", "b"], password="s3cret"), "0", 1),
            ("fence_shelly_gen2", virtual.Shelly2(password="s3cret"), "0", 1)]

        def use(name, device, plug, number):
            # As Pacemaker calls it: the node's name in port, beside the configured plug.
            given = {"plug": plug, "port": "node", "nodename": "node", "password": "s3cret"}
            for action, code in (("off", 0), ("status", 2), ("reboot", 0), ("status", 0)):
                self.assert_success(self.call(name, device, action, **given), code)
            self.assertEqual({moved for moved, _ in device.moved}, {number})
            mapped = {"plug": plug, "port": plug, "nodename": "node", "password": "s3cret"}
            self.assert_success(self.call(name, device, "off", **mapped))
            # Its monitor names no outlet.
            self.assert_success(self.call(name, device, "monitor", password="s3cret"))
        for _, device, _, _ in cases:
            self.start(device)
        at_once([functools.partial(use, *case) for case in cases])

    def test_a_list_counts_as_its_callers_do(self):
        device = self.start(virtual.Shelly2(["a", "b"]))
        for name, lines in (("fence_shelly_gen2", "0,a\n1,b\n"), ("fence_http", "1,a\n2,b\n")):
            given = dict(self.address(device), action="list")
            given.update({"device": "shelly"} if name == "fence_http" else {})
            self.assertEqual(on_stdin(name, given).out, lines)

    def test_what_is_no_outlet_moves_nothing(self):
        cases = (("fence_tasmota", virtual.Tasmota(["a", "b"]), {"plug": "0"}, "names no outlet"),
                 ("fence_tasmota", virtual.Tasmota(["a", "b"]), {}, "no outlet was named"),
                 ("fence_tasmota", virtual.Tasmota(["a", "b"]), {"plug": "1;2"}, "no outlet"),
                 ("fence_shelly_gen2", virtual.Shelly2(["a", "b"]), {"plug": "2"},
                  "'2' names no outlet of this device; its outlets are: 0 ('a'), 1 ('b')"),
                 ("fence_shelly_gen2", virtual.Shelly2(["a"]), {"plug": "1"}, "names no outlet"),
                 ("fence_shelly_gen2", virtual.Shelly2(["a", "b"]), {"plug": "01"}, "is no number"),
                 ("fence_esphome", virtual.Esphome(["a"]), {"plug": "b"}, "b"))
        for name, device, given, words in cases:
            self.start(device)
            self.assert_failure(self.call(name, device, "off", **given), words)
            self.assertEqual(device.commands, 0)

    def test_a_cluster_file_may_name_them_as_any_installed_agent(self):
        text = ("stonith_nodes:\n  a: {agent: %s, ip: 10.9.9.9, mgmt_ip: 10.0.0.1}\n"
                "  b: {method: kasa, ip: 10.9.9.8, mgmt_ip: 10.0.0.2}\n")
        for name in fencetool.OTHER_NAMES:
            cluster, mistakes = fencetool.parse_cluster("c.yml", (text % name).encode())
            self.assertTrue(cluster, mistakes)
            power, verifier = fencetool.build_configuration(cluster).primitives[:2]
            self.assertEqual((power.agent, verifier.options["fence_method"]), (name, name))


if __name__ == "__main__":
    unittest.main()
