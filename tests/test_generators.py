"""The configuration that follows from a cluster file: its safety, and its texts."""
import os
import re
import stat
import subprocess
import tempfile
import time
import unittest
from xml.etree import ElementTree

import fencetool
from tests import support

CLUSTERS = os.path.join(support.ROOT, "tests", "fixtures", "clusters")


def cluster_of(text):
    cluster, mistakes = fencetool.parse_cluster("c.yml", text.encode("utf-8"))
    if not cluster:
        raise AssertionError(mistakes)
    return cluster


def configure(text):
    return fencetool.build_configuration(cluster_of(text))


def load(name):
    host_vars = os.path.join(CLUSTERS, "host_vars") if name == "group_vars.yml" else None
    return fencetool.load_cluster(os.path.join(CLUSTERS, name), host_vars,
                                  fencetool.System("test"))[0]


def all_configurations():
    """Yield (name, Cluster, Configuration) of every good cluster file."""
    for name in sorted(os.listdir(CLUSTERS)):
        if "." in name:
            yield name, load(name), fencetool.build_configuration(load(name))


def two_nodes(more_a="", more_b="", top=""):
    return (top + "stonith_nodes:\n"
            "  a: {method: kasa, ip: 10.0.0.11, mgmt_ip: 10.0.0.1, storage_ip: 10.1.0.1%s}\n"
            "  b: {method: ipmi, ip: 10.0.0.12, user: u, password_script: /p, mgmt_ip: 10.0.0.2, "
            "storage_ip: 10.1.0.2%s}\n" % (more_a, more_b))


def device(configuration, name):
    return next(device for device in configuration.primitives if device.id == name)


class Logins(unittest.TestCase):
    def test_the_login_and_the_protocol_of_a_plug_reach_both_agents_in_every_form(self):
        configuration = fencetool.build_configuration(load("klap.yml"))
        for name, user, login in (("fence-storage-a", "username", "password_script"),
                                  ("fence-verify-storage-a", "fence_user", "password_script"),
                                  ("fence-storage-b", "username", "password"),
                                  ("fence-verify-storage-b", "fence_user", "password")):
            options = device(configuration, name).options
            self.assertEqual(options[user], "admin@example.com")
            self.assertIn(login, options)
            self.assertEqual(options.get("protocol"), "klap" if name.endswith("a") else None)
        for form in ("pcs", "crmsh", "cib"):
            text = fencetool.render_output(form, load("klap.yml"), "", "klap.yml")
            self.assertEqual(len(re.findall('protocol(=|="|" value=")klap', text)), 2)
            self.assertEqual(text.count("/etc/fencetool/tplink.sh"), 2)

    def test_a_protocol_that_does_not_exist_is_a_mistake(self):
        cluster, mistakes = fencetool.parse_cluster("c.yml", two_nodes(
            ", protocol: tcp").encode("utf-8"))
        self.assertIsNone(cluster)
        self.assertIn("protocol: 'tcp' is not one of auto, legacy, klap",
                      [mistake.text for mistake in mistakes])


class Safety(unittest.TestCase):
    """What must hold for every cluster file."""

    def test_the_verifier_is_the_last_device_of_its_level(self):
        for name, cluster, configuration in all_configurations():
            for level in configuration.levels:
                node = fencetool.find_node(cluster, level.node)
                kinds = ["fence-verify-" if device.startswith("fence-verify-") else "fence-"
                         for device in level.devices]
                count = len(node.levels[level.index - 1].devices)
                verifiers = count if fencetool.is_verified(cluster, node) else 0
                self.assertEqual(kinds, ["fence-"] * count + ["fence-verify-"] * verifiers, name)

    def test_each_of_several_devices_has_a_verifier_of_its_own(self):
        configuration = fencetool.build_configuration(load("two_supplies.yml"))
        for level in configuration.levels:
            powers, verifiers = level.devices[:2], level.devices[2:]
            self.assertEqual([name.replace("verify-", "") for name in verifiers], list(powers))
            for power, verifier in zip(powers, verifiers):
                switched = device(configuration, power).options
                read = device(configuration, verifier).options
                self.assertEqual(read["fence_ip"], switched["ip"])
                self.assertEqual(read.get("fence_plug"),
                                 switched.get("pcmk_host_map", ":").split(":")[1] or None)

    def test_every_verifier_is_in_a_level(self):
        for name, _, configuration in all_configurations():
            in_levels = {device for level in configuration.levels for device in level.devices}
            self.assertEqual({device.id for device in configuration.primitives}, in_levels, name)

    def test_a_verifier_is_never_asked_for_an_off_outside_of_its_level(self):
        for name, _, configuration in all_configurations():
            for verifier in configuration.primitives:
                if verifier.agent == "fence_check":
                    self.assertNotIn("pcmk_reboot_action", verifier.options, name)
                    self.assertEqual(verifier.options["pcmk_off_retries"], "1")

    def test_no_node_runs_its_own_device_and_power_devices_run_on_all_others(self):
        for name, _, configuration in all_configurations():
            bans = {ban.device: ban.nodes for ban in configuration.bans}
            for level in configuration.levels:
                for device in level.devices:
                    self.assertIn(level.node, bans[device], name)
                    if not device.startswith("fence-verify-"):
                        self.assertEqual(bans[device], (level.node,), name)

    def test_a_verifier_runs_only_where_all_networks_of_its_target_can_be_seen(self):
        for name, cluster, configuration in all_configurations():
            nodes = {node.name: node for node in cluster.nodes}
            for ban in configuration.bans:
                if ban.is_verifier:
                    target = nodes[re.sub("fence-verify-|-level[0-9]|-device[0-9]", "", ban.device)]
                    able = [node for node in cluster.nodes if node.name not in ban.nodes]
                    self.assertTrue(able, name)
                    for node in able:
                        self.assertNotIn("remote", node.values)
                        self.assertIsNot(node, target)
                        self.assertLessEqual(set(target.networks), set(node.networks), name)

    def test_pacemaker_gives_every_action_more_time_than_the_agents_own_limits(self):
        for name, _, configuration in all_configurations():
            for row in configuration.primitives:
                if row.agent in fencetool.AGENTS:
                    own = fencetool.agent_seconds(row.options)
                    given = int(row.options["pcmk_off_timeout"])
                    delay = int(row.options.get("pcmk_delay_base", "0"))
                    self.assertGreater(given, own + delay, "%s %s" % (name, row.id))

    def test_a_required_meter_that_rests_after_a_command_gets_its_time(self):
        configuration = fencetool.build_configuration(load("shelly.yml"))
        agents = fencetool.AGENTS
        for row in configuration.primitives:
            plain = {name: value for name, value in row.options.items()
                     if not name.startswith("pcmk_")}
            agents[row.agent].settings(plain, agents[row.agent].defaults)  # refuses what is short
            self.assertEqual(plain.get("power_timeout", "30"),
                             "76" if row.id.endswith("-a") else "30")
        for more in ("off_timeout: 60", "off_timeout: 300, options: {power_timeout: 40}"):
            text = two_nodes(more_b=", %s" % more).replace(
                "ipmi, ip: 10.0.0.12, user: u, password_script: /p",
                "shelly, ip: 10.0.0.12, power_meter: require")
            cluster, mistakes = fencetool.parse_cluster("c.yml", text.encode())
            self.assertIsNone(cluster)
            self.assertTrue([item for item in mistakes if "the meter may rest" in item.text])

    def test_a_monitor_has_time_for_a_connection_and_two_answers(self):
        for name, _, configuration in all_configurations():
            tree = ElementTree.fromstring(fencetool.render_cib(configuration, name))
            given = {op.get("id"): int(op.get("timeout")[:-1]) for op in tree.iter("op")}
            for row in configuration.primitives:
                answer = row.options.get("shell_timeout", "10")
                needed = fencetool.agent_seconds(dict(row.options, power_timeout=answer))
                seconds = given["%s-monitor-interval-%ds" % (row.id, row.interval)]
                self.assertGreater(seconds, needed, "%s %s" % (name, row.id))

    def test_no_value_is_empty_and_times_of_pacemaker_are_plain_seconds(self):
        for name, _, configuration in all_configurations():
            for row in configuration.primitives:
                for option, value in row.options.items():
                    self.assertTrue(value, "%s %s %s" % (name, row.id, option))
                    if option.startswith("pcmk_") and "timeout" in option + "delay":
                        self.assertRegex(value, "^[A-Za-z0-9.:_-]+$")
                    if re.fullmatch("pcmk_.*_timeout|pcmk_delay_base", option):
                        self.assertRegex(value, "^[0-9]+$")

    def test_our_agents_know_every_parameter_that_they_get(self):
        for name, _, configuration in all_configurations():
            for row in configuration.primitives:
                if row.agent in fencetool.AGENTS:
                    plain = {option for option in row.options if not option.startswith("pcmk_")}
                    names = {param.name for param in fencetool.AGENTS[row.agent].params}
                    self.assertEqual(plain - names, set(), name)

    def test_our_agents_accept_what_they_get(self):
        calls = []
        for _, _, configuration in all_configurations():
            for row in configuration.primitives:
                if row.agent in fencetool.AGENTS:
                    options = dict(row.options, action="validate-all", nodename="node")
                    if options.pop("password_script", ""):  # its program is not here
                        options["password"] = "s3cret"
                    calls.append(lambda row=row, options=options: (
                        row.id, support.on_stdin(row.agent, options)))
        for name, result in support.at_once(calls, workers=4):
            self.assertEqual((result.code, result.err), (0, ""), name)


class Decisions(unittest.TestCase):
    def test_plugs_stay_off_and_others_come_back_unless_the_file_says_otherwise(self):
        for more, stays_off in (("", True), (", power_on: true", False), (", power_on: no", True)):
            options = device(configure(two_nodes(more)), "fence-a").options
            self.assertEqual(options.get("pcmk_reboot_action"), "off" if stays_off else None, more)
        options = device(configure(two_nodes()), "fence-b").options
        self.assertNotIn("pcmk_reboot_action", options)

    def test_a_race_of_two_nodes_has_a_winner_by_default(self):
        def delays(text):
            configuration = configure(text)
            return [device(configuration, "fence-" + name).options.get("pcmk_delay_base")
                    for name in "ab"]
        self.assertEqual(delays(two_nodes()), ["10", None])
        self.assertEqual(delays(two_nodes("", ", delay: 7")), [None, "7"])
        self.assertEqual(delays(two_nodes(top="stonith_quorum_device: true\n")), [None, None])
        third = "  c: {method: none, mgmt_ip: 10.0.0.3}\n"
        self.assertEqual(delays(two_nodes() + third), [None, None])
        remote = "  c: {method: kasa, ip: 10.0.0.13, mgmt_ip: 10.0.0.3, remote: true%s}\n"
        for more in ("", ", delay: 7"):
            self.assertEqual(delays(two_nodes() + remote % more), ["10", None], more)
            script = fencetool.build_script_configuration(cluster_of(two_nodes() + remote % more))
            self.assertEqual(script.head_starts[0].node, "a", more)

    def test_a_device_that_failed_everywhere_comes_back_by_itself(self):
        for top, meta in (("", {"failure-timeout": "600s"}),
                          ("stonith_failure_timeout: 3600\n", {"failure-timeout": "3600s"}),
                          ("stonith_failure_timeout: 0\n", {})):
            configuration = configure(two_nodes(top=top))
            self.assertEqual(dict(configuration.meta), dict(meta, **{"managed-by": "fencetool"}))
            for form in ("pcs", "crmsh", "cib"):
                text = fencetool.render_output(form, cluster_of(two_nodes(top=top)), "", "c.yml")
                written = re.findall('failure-timeout(?:=|" value=")([0-9a-z]+)', text)
                self.assertEqual(written, list(meta.values()) * 4, form)

    def test_an_outlet_goes_into_the_host_map_or_where_that_cannot_hold_it_into_plug(self):
        options = device(configure(two_nodes(", outlet: 3")), "fence-a").options
        self.assertEqual((options["pcmk_host_map"], options.get("plug")), ("a:3", None))
        options = device(configure(two_nodes(", outlet: 'b: 2'")), "fence-a").options
        self.assertEqual((options["plug"], options["pcmk_host_list"]), ("b: 2", "a"))
        self.assertEqual(options["pcmk_host_argument"], "none")
        verifier = device(configure(two_nodes(", outlet: 3")), "fence-verify-a").options
        self.assertEqual(verifier["fence_plug"], "3")

    def test_several_outlets_go_the_same_ways_to_both_agents(self):
        for written in ("[1, 5]", "'1,5'"):
            configuration = configure(two_nodes(", outlet: " + written))
            options = device(configuration, "fence-a").options
            self.assertEqual((options["pcmk_host_map"], options.get("plug")), ("a:1,5", None))
            self.assertEqual(device(configuration, "fence-verify-a").options["fence_plug"], "1,5")
        configuration = configure(two_nodes(", outlet: ['left one', 5]"))
        options = device(configuration, "fence-a").options
        self.assertEqual((options["plug"], options["pcmk_host_list"]), ("left one,5", "a"))
        self.assertEqual(options["pcmk_host_argument"], "none")

    def test_all_devices_of_a_level_are_off_before_any_is_read_or_on(self):
        configuration = fencetool.build_configuration(load("two_supplies.yml"))
        self.assertEqual([level.devices for level in configuration.levels], [
            ("fence-%s" % node, "fence-%s-device2" % node, "fence-verify-%s" % node,
             "fence-verify-%s-device2" % node) for node in ("storage-a", "storage-b")])
        for name, stays_off in (("storage-a", True), ("storage-b", False)):
            for suffix in ("", "-device2"):
                options = device(configuration, "fence-" + name + suffix).options
                self.assertEqual("pcmk_reboot_action" in options, stays_off)
        delays = [row.id for row in configuration.primitives if "pcmk_delay_base" in row.options]
        self.assertEqual(delays, ["fence-storage-a"])

    def test_only_the_first_verifier_of_a_level_waits_in_full(self):
        configuration = fencetool.build_configuration(load("two_supplies.yml"))
        for suffix, early_exit in (("", None), ("-device2", "3")):
            options = device(configuration, "fence-verify-storage-a" + suffix).options
            self.assertEqual(options["verify_wait"], "10")
            self.assertEqual(options.get("early_exit"), early_exit)

    def test_levels_have_devices_and_verifiers_of_their_own(self):
        configuration = fencetool.build_configuration(load("levels.yml"))
        self.assertEqual([level for level in configuration.levels if level.node != "far"], [
            ("storage-a", 1, ("fence-storage-a", "fence-verify-storage-a")),
            ("storage-a", 2, (
                "fence-storage-a-level2", "fence-storage-a-level2-device2",
                "fence-verify-storage-a-level2", "fence-verify-storage-a-level2-device2")),
            ("storage-b", 1, ("fence-storage-b", "fence-verify-storage-b")),
            ("storage-b", 2, ("fence-storage-b-level2", "fence-verify-storage-b-level2")),
            ("cloud", 1, ("fence-cloud",))])
        # A level comes back as its own devices do.
        for name, stays_off in (("a", False), ("a-level2", True), ("a-level2-device2", True),
                                ("b", False), ("b-level2", True)):
            options = device(configuration, "fence-storage-" + name).options
            self.assertEqual("pcmk_reboot_action" in options, stays_off, name)

    def test_a_node_comes_back_only_where_all_devices_of_a_level_do(self):
        text = two_nodes() + (
            "  c: {mgmt_ip: 10.0.0.3, storage_ip: 10.1.0.3%s, devices: [{method: kasa, "
            "ip: 10.0.0.13}, {method: ipmi, ip: 10.0.0.14, user: u, password_script: /p}]}\n")
        for more, stays_off in (("", True), (", power_on: true", False)):
            configuration = configure(text % more)
            for name in ("fence-c", "fence-c-device2"):
                options = device(configuration, name).options
                self.assertEqual("pcmk_reboot_action" in options, stays_off, more)

    def test_a_node_with_levels_waits_in_its_first_device_only(self):
        plugs = ", levels: [%s{method: kasa, ip: 10.0.0.13}, {method: kasa, ip: 10.0.0.14}]"
        text = two_nodes(plugs).replace("method: kasa, ip: 10.0.0.11, ", "")
        for before, first in (("", "fence-a"), ("{before: [kdump]}, ", "fence-a-level2")):
            configuration = configure(text % before)
            self.assertEqual([(row.id, row.options["pcmk_delay_base"])
                              for row in configuration.primitives
                              if "pcmk_delay_base" in row.options], [(first, "10")])

    def test_password_script_replaces_the_password(self):
        configuration = configure(two_nodes("", ", password: secret"))
        for name in ("fence-b", "fence-verify-b"):
            self.assertNotIn("password", device(configuration, name).options)
            self.assertEqual(device(configuration, name).options["password_script"], "/p")

    def test_off_timeout_gives_the_device_more_time_to_confirm(self):
        configuration = configure(two_nodes(", off_timeout: 120", ", delay: 1"))
        self.assertEqual(device(configuration, "fence-a").options["power_timeout"], "100")
        self.assertEqual(device(configuration, "fence-verify-a").options["pcmk_off_timeout"], "120")
        self.assertIn(("stonith-timeout", "120s"), configuration.properties)

    def test_a_long_wait_gives_the_verifier_more_time(self):
        configuration = configure(two_nodes(top="stonith_verify_wait: 60\n"))
        options = device(configuration, "fence-verify-a").options
        self.assertEqual((options["power_timeout"], options["pcmk_off_timeout"]), ("80", "140"))

    def test_early_exit_reaches_every_verifier_in_every_form(self):
        text = two_nodes(top="stonith_early_exit: 3\n")
        for form in ("pcs", "crmsh", "cib"):
            shown = fencetool.render_output(form, cluster_of(text), "", "c.yml")
            self.assertEqual(re.findall('early_exit(?:=|" value=)"?([0-9]+)', shown), ["3", "3"])
        self.assertNotIn("early_exit", device(configure(two_nodes()), "fence-verify-a").options)
        # As long as verify_wait, it takes as long, and the verifier gets the time for it.
        options = device(configure(text.replace("3", "60", 1)), "fence-verify-a").options
        self.assertEqual((options["power_timeout"], options["pcmk_off_timeout"]), ("80", "140"))
        for seconds in ("1", "2"):
            cluster, mistakes = fencetool.parse_cluster(
                "c.yml", text.replace("3", seconds, 1).encode())
            self.assertIsNone(cluster)
            self.assertIn("stonith_early_exit must be 0 or 3 or more: a shorter silence proves "
                          "nothing", [mistake.text for mistake in mistakes])

    def test_a_slow_device_is_slow_for_the_verifier_too(self):
        text = two_nodes(", options: {shell_timeout: 20}", ", options: {shell_timeout: 0}")
        text = text.replace("10.0.0.11,", "10.0.0.11, off_timeout: 120,")
        options = device(configure(text), "fence-verify-a").options
        self.assertEqual(options["shell_timeout"], "20")
        text = text.replace("off_timeout: 120", "off_timeout: 60").replace("t: 20", "t: 26")
        mistakes = fencetool.parse_cluster("c.yml", text.encode("utf-8"))[1]
        self.assertIn("must be more than 61 s", " ".join(mistake.text for mistake in mistakes))
        options = device(configure(two_nodes("", ", options: {shell_timeout: 0}")),
                         "fence-verify-b").options
        self.assertNotIn("shell_timeout", options)
        self.assertEqual(options["fence_options"], "shell_timeout=0")
        verifier = device(configure(two_nodes("", ", options: {shell_timeout: 30}")),
                          "fence-verify-b")
        self.assertEqual(verifier.options["shell_timeout"], "30")
        self.assertEqual(verifier.options["fence_options"], "shell_timeout=30")
        self.assertGreater(fencetool.monitor_timeout(verifier), 60)

    def test_two_bans_never_share_a_name(self):
        names = ("db", "db-ha", "ha-q", "q")
        lines = "".join("  %s: {method: kasa, ip: 10.0.0.%d, mgmt_ip: 10.0.1.%d%s}\n" % (
            name, number, number, ", storage_ip: 10.1.0.%d" % number if "db" in name else "")
            for number, name in enumerate(names, 1))
        with self.assertRaisesRegex(fencetool.UsageError, "rename a node"):
            configure("stonith_nodes:\n" + lines)
        configure(("stonith_nodes:\n" + lines).replace("ha-q", "haq"))

    def test_witnesses_are_those_of_the_file_other_nodes_and_the_device(self):
        top = "stonith_witness_ips: {client: 10.9.0.254, storage: 10.1.0.254}\n"
        text = two_nodes(", client_ips: {lan: 10.9.0.1}", ", client_ips: {lan: 10.9.0.2}", top)
        options = device(configure(text), "fence-verify-a").options
        self.assertEqual(options["witness_ips"],
                         "mgmt=10.0.0.11,storage=10.1.0.254,lan=10.9.0.254")
        third = "  c: {method: none, mgmt_ip: 10.0.0.3, storage_ip: 10.1.0.3}\n"
        options = device(configure(two_nodes() + third), "fence-verify-a").options
        self.assertEqual(options["witness_ips"], "mgmt=10.0.0.2,mgmt=10.0.0.3,mgmt=10.0.0.11,"
                         "storage=10.1.0.2,storage=10.1.0.3")

    def test_a_node_is_no_witness_of_its_own_death(self):
        configuration = configure(two_nodes(top="stonith_witness_ips: {storage: 10.1.0.1}\n"))
        options = device(configuration, "fence-verify-a").options
        self.assertEqual(options["witness_ips"], "mgmt=10.0.0.11")

    def test_a_direct_network_has_no_witness(self):
        top = "stonith_direct_networks: [Storage]\nstonith_witness_ips: {storage: 10.1.0.254}\n"
        options = device(configure(two_nodes(top=top)), "fence-verify-a").options
        self.assertEqual(options["direct_networks"], "storage")
        self.assertEqual(options["witness_ips"], "mgmt=10.0.0.11")

    def test_what_fence_check_has_no_parameter_for_goes_into_fence_options(self):
        text = two_nodes().replace("kasa", "tasmota").replace("10.0.0.11,", "10.0.0.11, ssl: yes,")
        options = device(configure(text), "fence-verify-a").options
        self.assertEqual(options["fence_options"], "ssl=1")
        options = device(configure(two_nodes("", ", options: {cipher: 17, pcmk_action_limit: 2}")),
                         "fence-verify-b").options
        self.assertEqual(options["fence_options"], "cipher=17")


class Texts(unittest.TestCase):
    def test_a_shell_reads_every_quoted_word_as_it_was(self):
        for text in ("plain", "it's", "$HOME", "`id`", "a\nb", '"', "\\", "", "é 密", "a;b|c&d",
                     "-n", "~"):
            shown = subprocess.check_output(["sh", "-c", "printf %s " + fencetool.render_sh(text)])
            self.assertEqual(shown.decode("utf-8"), text)

    def test_the_cib_is_xml_with_unique_ids(self):
        for name, _, configuration in all_configurations():
            tree = ElementTree.fromstring(fencetool.render_cib(configuration, name))
            ids = [element.get("id") for element in tree.iter() if element.get("id")]
            self.assertEqual(len(ids), len(set(ids)), name)

    def test_what_crmsh_would_store_wrongly_is_refused(self):
        for password in ("é", "x\\", '\\"'):
            text = two_nodes(", password: '%s'" % password)
            with self.assertRaises(fencetool.FenceError, msg=password):
                fencetool.render_crmsh(configure(text), "c.yml")

    def test_a_node_reaches_the_devices_of_its_peers_and_not_its_own(self):
        text = fencetool.render_output("nftables", load("mixed.yml"), "storage-b", "mixed.yml")
        self.assertIn("ip daddr 10.20.20.202 counter reject", text)
        self.assertIn("ip daddr 10.20.20.101 counter accept", text)

    def test_all_devices_of_a_node_are_its_own(self):
        text = fencetool.render_output("nftables", load("two_supplies.yml"), "storage-b", "c.yml")
        verdicts = re.findall(r"ip daddr (\S+) counter (\w+)", text)
        self.assertEqual(verdicts, [("10.20.20.203", "reject"), ("10.20.20.204", "reject"),
                                    ("10.20.20.201", "accept"), ("10.20.20.202", "accept")])

    def test_a_strip_that_a_peer_is_on_too_stays_open(self):
        text = fencetool.render_output("nftables", load("strip.yml"), "storage-b", "strip.yml")
        self.assertNotIn("reject", text)
        self.assertIn("ip daddr 10.20.20.200 counter accept", text)


class PcsScript(unittest.TestCase):
    def test_times_are_read_as_pacemaker_reads_them(self):
        function = re.search(r"(?ms)^find_seconds\(\) \{.*?^\}", fencetool.PCS_CLUSTER).group(0)
        times = ("216s", "90", "3min", "2 m", "010", "60000ms", "1H", "0s", "PT5M", "abc", "", "s")
        script = function + "\nfor time in %s; do find_seconds \"$time\" && echo $seconds || " \
            "echo no; done" % " ".join("'%s'" % time for time in times)
        shown = subprocess.check_output(["sh", "-euc", script]).decode().split()
        self.assertEqual(shown, ["216", "90", "180", "120", "10", "60", "3600", "0"] + ["no"] * 4)


class Commands(unittest.TestCase):
    def run_command(self, *arguments):
        return support.fencetool("gen-config", *arguments)

    def test_the_script_is_written_whole_with_mode_0700(self):
        place = tempfile.mkdtemp()
        path = os.path.join(place, "configure-stonith.sh")
        with open(path, "w") as handle:
            handle.write("old")
        os.chmod(path, 0o644)
        result = self.run_command(os.path.join(CLUSTERS, "mixed.yml"), "-o", path)
        self.assertEqual((result.code, result.out), (0, ""))
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o700)
        self.assertEqual(os.listdir(place), ["configure-stonith.sh"])
        with open(path) as handle:
            self.assertIn("level add 1 storage-b fence-storage-b fence-verify-storage-b\n",
                          handle.read())

    def test_only_a_file_is_replaced_and_a_link_stays_one(self):
        place = tempfile.mkdtemp()
        pipe, link = os.path.join(place, "pipe"), os.path.join(place, "link")
        os.mkfifo(pipe)
        result = self.run_command(os.path.join(CLUSTERS, "mixed.yml"), "-o", pipe)
        self.assertEqual((result.code, stat.S_ISFIFO(os.stat(pipe).st_mode)), (1, True))
        self.assertIn("it is not a regular file", result.err)
        os.symlink("target", link)
        self.assertEqual(self.run_command(os.path.join(CLUSTERS, "mixed.yml"), "-o", link).code, 0)
        self.assertEqual(sorted(os.listdir(place)), ["link", "pipe", "target"])
        self.assertTrue(os.path.islink(link))

    def test_without_a_file_it_reads_the_one_in_etc(self):
        result = self.run_command()
        self.assertTrue(result.code == 0 or "read /etc/fencetool/cluster.yml" in result.err)

    def test_a_file_with_mistakes_writes_nothing(self):
        place = tempfile.mkdtemp()
        result = self.run_command(os.path.join(CLUSTERS, "group_vars.yml"), "-o", place + "/x")
        self.assertEqual((result.code, result.out, os.listdir(place)), (1, "", []))
        self.assertIn("nobody could verify that storage-a is dead", result.err)

    def test_firewall_and_playbook_are_formats_of_their_own(self):
        path = os.path.join(CLUSTERS, "mixed.yml")
        shown = self.run_command("--format", "nftables", "--node", "storage-a", path).out
        self.assertIn("table inet fence_guard", shown)
        shown = fencetool.render_output("ansible", load("levels.yml"), "", "c.yml")
        self.assertIn("hosts: \"storage-a,storage-b,cloud\"", shown)  # and no remote node
        shown = self.run_command("--format", "ansible", path).out
        self.assertIn("hosts: \"storage-a,storage-b\"", shown)
        self.assertIn("diff: false", shown)  # the script may hold passwords

    def test_a_firewall_needs_a_node_that_there_is_and_nothing_else_takes_one(self):
        path = os.path.join(CLUSTERS, "mixed.yml")
        for words, told in (
                (("--format", "nftables", "--node", "storage-c"),
                 "no node 'storage-c' (there are: storage-a, storage-b)"),
                (("--format", "nftables"), "name it with --node NODE"),
                (("--node", "storage-a"), "--node goes with --format nftables only"),
                (("--format", "ansible", "--node", "storage-a"), "--format nftables only")):
            with self.subTest(words):
                wrong = self.run_command(path, *words)
                self.assertEqual((wrong.code, wrong.out), (2, ""))
                self.assertIn(told, wrong.err)

    def test_the_old_words_for_firewall_and_playbook_mean_the_same(self):
        path = os.path.join(CLUSTERS, "mixed.yml")
        for old, new in (
                (("nftables", "storage-a"), ("--format", "nftables", "--node", "storage-a")),
                (("ansible",), ("--format", "ansible"))):
            one, other = self.run_command(*old + (path,)), self.run_command(path, *new)
            self.assertEqual((one.code, one.out), (0, other.out))
        wrong = self.run_command("nftables", "storage-c", path)
        self.assertEqual((wrong.code, wrong.out), (2, ""))
        self.assertIn("there are: storage-a, storage-b", wrong.err)
        wrong = self.run_command("nftables", "storage-a", path, "more")
        self.assertEqual((wrong.code, wrong.out), (2, ""))
        self.assertIn("'more' is one argument too many", wrong.err)

    def test_fence_check_takes_the_parameters_of_a_node_from_the_file(self):
        path = os.path.join(CLUSTERS, "three_nodes.yml")
        good = support.in_argv("fence_check", {"action": "validate-all", "plug": "storage-b",
                                               "config": path})
        self.assertEqual((good.code, good.err), (0, ""))
        bad = support.in_argv("fence_check", {"action": "validate-all", "plug": "storage-c",
                                              "config": path})
        self.assertEqual((bad.code, bad.out), (1, ""))
        self.assertIn("no node 'storage-c' (there are: storage-a, storage-b, quorum)", bad.err)
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as handle:
            handle.write(two_nodes() + "  c: {method: none}\n")
            handle.flush()
            bad = support.in_argv("fence_check", {"action": "validate-all", "plug": "c",
                                                  "config": handle.name})
        self.assertEqual((bad.code, bad.out), (1, ""))
        self.assertIn("has no fence device for 'c'", bad.err)

    def test_a_cluster_of_500_nodes_is_printed_as_a_figure(self):
        lines = ["stonith_nodes:"]
        for number in range(500):
            lines.append("  node-%d: {method: kasa, ip: 10.2.%d.%d, mgmt_ip: 10.3.%d.%d, "
                         "storage_ip: 10.4.%d.%d}" % ((number,) + divmod(number, 250) * 3))
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as handle:
            handle.write("\n".join(lines).replace(".0}", ".250}"))
            handle.flush()
            started = time.monotonic()
            result = self.run_command(handle.name)
            seconds = time.monotonic() - started
        self.assertIn("level add 1 node-499 fence-node-499 fence-verify-node-499", result.out)
        print("gen-config for 500 nodes: %.2f s" % seconds)


if __name__ == "__main__":
    unittest.main()
