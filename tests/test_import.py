"""fencetool import: a cluster file from the fence devices that a cluster has."""
import os
import re
import stat
import tempfile
import unittest

import fencetool
from tests import support, test_generators_pcs
from tests.test_generators import all_configurations, cluster_of
from tests.test_generators_pcs import CIB

ATTRIBUTES = 'crm_feature_set="3.16.1" validate-with="pacemaker-3.9"'


def primitive(name, agent, meta="", **options):
    pairs = "".join('<nvpair id="%s-%s" name="%s" value="%s"/>' % (name, key, key, value)
                    for key, value in options.items())
    return ('<primitive id="%s" class="stonith" type="%s"><instance_attributes id="%s-i">%s'
            '</instance_attributes>%s</primitive>' % (name, agent, name, pairs, meta))


def level(target, devices, index=1):
    return '<fencing-level id="l-%s-%d" index="%d" target="%s" devices="%s"/>' % (
        target, index, index, target, devices)


def cib(devices, levels=(), nodes=("a", "b"), more=""):
    """Return a CIB as bytes."""
    entries = "".join('<node id="%d" uname="%s"/>' % item for item in enumerate(nodes, 1))
    topology = "<fencing-topology>%s</fencing-topology>" % "".join(levels)
    text = CIB % (ATTRIBUTES, entries, "".join(devices), topology)
    return text.replace("<constraints/>", "<constraints>%s</constraints>" % more).encode()


def complete(configuration, others=()):
    """Return what gen-config makes as the CIB of a cluster: with its nodes, and others' devices."""
    remotes = {name: ' type="remote"' for name in configuration.remotes}
    nodes = "".join('<node id="%d" uname="%s"%s/>' % (number, name, remotes.get(name, ""))
                    for number, name in enumerate(configuration.nodes, 1))
    text = fencetool.render_cib(configuration, "").replace("<nodes/>", "<nodes>%s</nodes>" % nodes)
    return text.replace("</resources>", "".join(others) + "</resources>")


def import_from(data):
    """Return (Cluster of the written file, its text, the notes as one text)."""
    cluster, notes = fencetool.import_cluster(fencetool.parse_fencing(data))
    text = fencetool.render_cluster_file(cluster, notes, True)
    return cluster_of(text), text, "\n".join(notes)


def values(cluster, name):
    """Return {key: value} of a node without what is not given."""
    found = dict(fencetool.find_node(cluster, name).values)
    return found if found["options"] else {key: found[key] for key in found if key != "options"}


KASA_B = primitive("plug-b", "fence_kasa", ip="10.0.0.12", pcmk_host_list="b")


class RoundTrip(unittest.TestCase):

    def test_what_gen_config_made_of_a_file_becomes_a_file_that_makes_the_same(self):
        names = []
        for name, cluster, configuration in all_configurations():
            wanted = fencetool.render_cib(configuration, "")
            again, _, notes = import_from(complete(configuration))
            self.assertEqual(fencetool.render_cib(
                fencetool.build_configuration(again), ""), wanted, name)
            told = re.sub("(?m)^.* is taken for a witness: .*|^nothing proves .*", "", notes)
            self.assertEqual(told, "", name)
            self.assertEqual(again.values["stonith_fence_verify"],
                             cluster.values["stonith_fence_verify"])
            names.append(name)
        self.assertGreaterEqual(len(names), 12)

    def test_every_key_of_a_node_and_of_the_file_comes_back(self):
        """One cluster for all keys that the fixtures leave out, by their rows."""
        text = """
stonith_verify_wait: 25
stonith_direct_networks: [storage]
stonith_witness_ips: {client: 10.3.0.254, mgmt: 10.0.0.254}
stonith_nodes:
  a: {method: http, ip: 10.0.0.11, port: 8080, user: u, password: 'p #1', ssl_insecure: true,
      power_on_url: /on, power_on_body: "{}", power_off_url: /off, power_off_body: '{"a": 1}',
      content_type: text/plain, status_url: /s, status_member: $.on, status_on_value: "1",
      status_off_value: "0", watts_member: $.w, http_method: PUT, headers: "X-A: b|X-C: d",
      power_meter: require, power_on: true, delay: 3, off_timeout: 200,
      options: {login_timeout: 6},
      mgmt_ip: 10.0.0.1, storage_ip: 10.1.0.1, client_ips: {lan: 10.3.0.1}}
  b: {method: esphome, ip: 10.0.0.12, switch_name: 'no', mac: "CC:32:E5:00:00:01", ssl: true,
      password_script: /p, off_timeout: 90, options: {power_timeout: 50},
      mgmt_ip: 10.0.0.2, storage_ip: 10.1.0.2, client_ips: {lan: 10.3.0.2}}
  c: {agent: fence_apc_snmp, ip: 10.0.0.13, outlet: '07', power_on: false, off_timeout: 99,
      options: {pcmk_monitor_retries: 4}, mgmt_ip: 10.0.0.3}
  d: {method: kasa, ip: 10.0.0.14, protocol: klap, outlet: 'one, two', user: me@x, password: x,
      mgmt_ip: 10.0.0.4}
  quorum: {method: none, mgmt_ip: 10.0.0.9}
"""
        cluster = cluster_of(text)
        wanted = fencetool.render_cib(fencetool.build_configuration(cluster), "")
        again, _, notes = import_from(complete(fencetool.build_configuration(cluster)))
        self.assertEqual(notes, "10.3.0.254 in the network lan is taken for a witness: if it is "
                         "the address of quorum, write it there")
        self.assertEqual(fencetool.render_cib(fencetool.build_configuration(again), ""), wanted)
        for name in ("a", "b", "c", "d", "quorum"):
            self.assertEqual(values(again, name), values(cluster, name))
        self.assertEqual(again.values["stonith_witness_ips"],
                         {"mgmt": "10.0.0.254", "lan": "10.3.0.254"})

    def test_every_key_of_levels_and_of_several_devices_comes_back(self):
        text = """
stonith_early_exit: 5
stonith_failure_timeout: 0
stonith_nodes:
  a:
    mgmt_ip: 10.0.0.1
    storage_ip: 10.1.0.1
    power_on: true
    delay: 4
    before: [ping]
    devices:
      - {method: kasa, ip: 10.0.0.11, power_meter: require, options: {power_timeout: 30}}
      - {agent: fence_apc_snmp, ip: 10.0.0.50, outlet: 7, password: 'p #1', off_timeout: 99}
  b:
    mgmt_ip: 10.0.0.2
    storage_ip: 10.1.0.2
    levels:
      - {before: [kdump-b]}
      - {before: [ping], method: ipmi, ip: 10.0.0.12, user: u, password: p, off_timeout: 77}
      - devices:
        - {method: kasa, ip: 10.0.0.13, outlet: 1}
        - {method: kasa, ip: 10.0.0.13, outlet: 2}
        - {method: esphome, ip: 10.0.0.14, switch_name: Relay}
  d: {verify: false, before: [ping], agent: fence_aws, outlet: i-1}
  far: {remote: true, method: kasa, ip: 10.0.0.15, mgmt_ip: 10.0.0.5}
  vm: {remote: true, verify: false,
       levels: [{agent: fence_virt, outlet: guest}, {agent: fence_xvm}]}
  c: {method: none, mgmt_ip: 10.0.0.3, storage_ip: 10.1.0.3}
"""
        cluster = cluster_of(text)
        configuration = fencetool.build_configuration(cluster)
        again, _, notes = import_from(complete(configuration, [
            primitive("ping", "fence_heuristics_ping"), primitive("kdump-b", "fence_kdump")]))
        self.assertEqual(notes, "")
        self.assertEqual(fencetool.render_cib(fencetool.build_configuration(again), ""),
                         fencetool.render_cib(configuration, ""))
        self.assertEqual(again.values, cluster.values)
        for node in cluster.nodes:
            found = fencetool.find_node(again, node.name)
            self.assertEqual(describe(found), describe(node))


def describe(node):
    """Return all that a file says of a node."""
    own = {row.name: node.values[row.name] for row in fencetool.OWN_KEYS
           if row.name in node.values and row.name != "before"}
    return own, [(level.before, [{key: value for key, value in device.values.items()
                                  if key not in own and key != "before"}
                                 for device in level.devices]) for level in node.levels]


class Foreign(unittest.TestCase):
    """What others have configured, by hand or by another tool."""

    def test_the_old_names_of_parameters_are_understood(self):
        cluster, _, _ = import_from(cib([
            primitive("i", "fence_ipmilan", ipaddr="10.0.0.11", login="u", passwd="p",
                      lanplus="true", privlvl="operator", pcmk_host_list="a"), KASA_B]))
        self.assertEqual(values(cluster, "a"), {
            "method": "ipmi", "ip": "10.0.0.11", "user": "u", "password": "p",
            "options": {"privlvl": "operator"}})

    def test_ipmi_without_lanplus_stays_an_agent_that_is_called_so(self):
        cluster, _, _ = import_from(cib([
            primitive("i", "fence_ipmilan", ip="10.0.0.11", username="u", password="p",
                      pcmk_host_list="a"), KASA_B]))
        self.assertEqual(values(cluster, "a")["agent"], "fence_ipmilan")

    def test_one_device_for_several_nodes_becomes_one_for_each_with_its_outlet(self):
        cluster, _, notes = import_from(cib([primitive(
            "pdu", "fence_apc_snmp", ip="10.0.0.50", pcmk_host_map="a:7;b:8,9")]))
        self.assertEqual([values(cluster, name)["outlet"] for name in "ab"], ["7", "8,9"])
        self.assertIn("pdu stands for a, b: each node gets a device of its own", notes)
        cluster, _, _ = import_from(cib([primitive(
            "bmcs", "fence_ipmilan", port_as_ip="1", username="u", password="p", lanplus="1",
            pcmk_host_map="a:10.0.0.11;b:10.0.0.12")]))
        self.assertEqual([values(cluster, name)["ip"] for name in "ab"], ["10.0.0.11", "10.0.0.12"])

    def test_delays_power_on_and_times_become_their_keys(self):
        cluster, _, _ = import_from(cib([
            primitive("i", "fence_kasa", ip="10.0.0.11", pcmk_host_list="a", pcmk_delay_base="7s",
                      pcmk_off_timeout="120", pcmk_reboot_action="off"),
            primitive("j", "fence_apc", ip="10.0.0.12", pcmk_host_list="b", delay="4",
                      pcmk_reboot_action="off", method="onoff")]))
        self.assertEqual(values(cluster, "a"), {
            "method": "kasa", "ip": "10.0.0.11", "delay": "7", "off_timeout": "120"})
        self.assertEqual(values(cluster, "b"), {
            "agent": "fence_apc", "ip": "10.0.0.12", "delay": "4", "power_on": "0"})

    def test_what_cannot_be_carried_over_is_told_with_its_reason(self):
        _, text, notes = import_from(cib(
            [primitive("i", "fence_ipmilan", ip="10.0.0.11", username="u", password="p",
                       lanplus="1", method="cycle", ipport="623", snmp_note="x,y"),
             primitive("second", "fence_apc", ip="10.0.0.13", delay="5"),
             primitive("kd", "fence_kdump", pcmk_host_list="a"),
             primitive("nobody", "fence_apc", ip="10.0.0.15"), KASA_B,
             primitive("other-b", "fence_apc", ip="10.0.0.16", pcmk_host_list="b"),
             primitive("w", "fence_watchdog", pcmk_host_list="b")],
            [level("a", "i,kd,second"), level("a", "nobody,lost", 3), level("c", "kd"),
             level("a", "gone", 2), '<fencing-level id="p" index="1" target-pattern="x.*" '
             'devices="nobody"/>'], nodes=("a", "b", "c"),
            more='<rsc_location id="x" rsc="i" node="b" score="10"/>'
                 '<rsc_order id="y" first="i" then="plug-b"/>'))
        for told in ("i: parameter method is not carried over: ",
                     "i: parameter snmp_note is not carried over: ",
                     "other-b (fence_apc) is not carried over: b has another one, plug-b, and no "
                     "level that says what to do with both",
                     "w (fence_watchdog) is not carried over: it switches nothing off, and "
                     "no level names it",
                     "lost is not carried over: a level of a names it",
                     "gone is not carried over: a level of a names it",
                     "level 3 of a (nobody,lost) becomes its level 2",
                     "level 1 of c (kd) is not carried over: ",
                     "level 1 of nodes like x.* (nobody) is not carried over: ",
                     "second: parameter delay is not carried over: ",
                     "level 1 of a is fence-a,kd,fence-a-device2, and should be "
                     "kd,fence-a,fence-a-device2",
                     "gen-config would change it: fence-a has a location of others of score 10",
                     "stands in the rsc_order y",
                     "these stay until they are taken over or removed: i, second, nobody, plug-b",
                     "nothing proves that a node is dead",
                     "gen-config would add what is not there: ", "pcmk_off_timeout"):
            self.assertIn(told, notes)
        self.assertIn("# w (fence_watchdog) is not carried over", text)

    def test_a_device_without_a_node_is_told(self):
        _, _, notes = import_from(cib([KASA_B, primitive("x", "fence_apc", ip="10.0.0.15"),
                                       primitive("y", "fence_apc", pcmk_host_list="z")]))
        self.assertIn("x (fence_apc) is not carried over: no level and no host list", notes)
        self.assertIn("y (fence_apc) is not carried over: ", notes)

    def test_a_node_without_a_device_is_one_in_the_file(self):
        cluster, text, _ = import_from(cib([KASA_B], nodes=("a", "b", "q")))
        self.assertEqual(values(cluster, "q"), {"method": "none"})
        self.assertIn("\n  q:\n    method: none\n", text)

    def test_levels_of_others_keep_their_devices_with_what_verifies_each(self):
        def verifier(name, number):
            return primitive(name, "fence_check", fence_method="kasa", verify_wait="10",
                             fence_ip="10.0.0.%d" % number, target_mgmt_ip="10.0.0.1",
                             witness_ips="mgmt=10.0.0.2", pcmk_host_list="a")
        bmc = primitive("bmc", "fence_ipmilan", ip="10.0.0.11", username="u", password="p",
                        lanplus="1", pcmk_host_list="a", pcmk_delay_base="5")
        plugs = [primitive("plug-%d" % number, "fence_kasa", ip="10.0.0.%d" % number,
                           pcmk_host_list="a", pcmk_reboot_action="off") for number in (21, 22)]
        cluster, text, notes = import_from(cib(
            [bmc, KASA_B, verifier("v-22", 22), verifier("v-21", 21), verifier("v-11", 11),
             verifier("v-more", 23)] + plugs,
            [level("a", "bmc,v-11"), level("a", "plug-21,plug-22,v-22,v-21,v-more", 2)]))
        self.assertEqual(describe(fencetool.find_node(cluster, "a")), (
            {"mgmt_ip": "10.0.0.1", "delay": "5"},
            [((), [{"method": "ipmi", "ip": "10.0.0.11", "user": "u", "password": "p",
                    "options": {}}]),
             ((), [{"method": "kasa", "ip": "10.0.0.%d" % number, "options": {}}
                   for number in (21, 22)])]))
        self.assertEqual(values(cluster, "b")["verify"], "0")
        self.assertIn("v-more (fence_check) is not carried over: ", notes)
        self.assertNotIn("parameter fence_ip", notes)
        self.assertIn("""    levels:
      - method: ipmi
        ip: 10.0.0.11
        user: u
        password: p
      - devices:
          - method: kasa
            ip: 10.0.0.21
""", text)

    def test_a_device_of_a_level_without_a_verifier_gets_one(self):
        verifier = primitive("v", "fence_check", fence_method="kasa", fence_ip="10.0.0.12",
                             target_mgmt_ip="10.0.0.2", witness_ips="mgmt=10.0.0.1",
                             pcmk_host_list="b")
        second = primitive("plug-c", "fence_kasa", ip="10.0.0.13", pcmk_host_list="b")
        cluster, _, notes = import_from(cib([KASA_B, second, verifier], [
            level("b", "plug-c,plug-b,v")]))
        self.assertNotIn("verify", fencetool.find_node(cluster, "b").values)
        self.assertIn("gen-config would add what is not there: fence-verify-b", notes)

    def test_remote_and_guest_nodes_are_carried_over(self):
        data = cib([KASA_B, '<primitive id="far" class="ocf" provider="pacemaker" type="remote"/>',
                    '<primitive id="vm" class="ocf" provider="heartbeat" type="VirtualDomain">'
                    '<meta_attributes id="m"><nvpair id="n" name="remote-node" value="guest"/>'
                    '</meta_attributes></primitive>'], nodes=("a", "b", "c"))
        data = data.replace(b'id="1" uname="a"', b'id="1" type="remote" uname="a"')
        cluster, _, notes = import_from(data)
        for name in ("a", "far", "guest"):
            self.assertEqual(values(cluster, name), {"method": "none", "remote": "1"})
        self.assertNotIn("remote", notes)

    def test_a_verifier_of_the_playbook_gives_the_networks(self):
        verifier = primitive("v", "fence_check", fence_method="kasa", fence_ip="10.0.0.12",
                             target_mgmt_ip="10.0.0.2", target_storage_ip="10.1.0.2",
                             target_client_ips="10.3.0.2,10.4.0.2", verify_wait="15",
                             pcmk_host_list="b")
        other = primitive("w", "fence_check", fence_method="kasa", fence_ip="10.0.0.11",
                          target_mgmt_ip="10.0.0.1", target_storage_ip="10.1.0.1",
                          target_client_ips="10.3.0.1,10.4.0.1", verify_wait="15",
                          pcmk_host_list="a")
        first = primitive("plug-a", "fence_kasa", ip="10.0.0.11", pcmk_host_list="a")
        cluster, _, _ = import_from(cib([first, other, KASA_B, verifier], [
            level("a", "plug-a,w"), level("b", "plug-b,v")]))
        self.assertEqual(cluster.values["stonith_verify_wait"], "15")
        self.assertEqual(values(cluster, "b"), {
            "method": "kasa", "ip": "10.0.0.12", "mgmt_ip": "10.0.0.2", "storage_ip": "10.1.0.2",
            "power_on": "1", "client_ips": {"client-1": "10.3.0.2", "client-2": "10.4.0.2"}})

    def test_an_agent_that_others_have_made_too_stays_and_the_method_is_named(self):
        cluster, _, notes = import_from(cib([primitive(
            "s", "fence_shelly_gen2", ip="10.0.0.11", plug="0", pcmk_host_list="a"), KASA_B]))
        self.assertEqual(values(cluster, "a"), {
            "agent": "fence_shelly_gen2", "ip": "10.0.0.11", "outlet": "0"})
        self.assertIn("s: method: shelly instead of agent: fence_shelly_gen2", notes)
        self.assertIn("count from 1", notes)

    def test_two_nodes_of_others_that_do_not_wait_get_the_delay_that_a_race_needs(self):
        cluster, _, notes = import_from(cib([
            primitive("i", "fence_kasa", ip="10.0.0.11", pcmk_host_list="a"), KASA_B]))
        self.assertEqual(cluster.values["stonith_quorum_device"], "0")
        self.assertIn("pcmk_delay_base", notes)


class Command(unittest.TestCase):
    """Secrets, files and exit codes."""

    DATA = cib([primitive("i", "fence_ipmilan", ip="10.0.0.11", username="u", lanplus="1",
                          password="geheim-1", pcmk_host_list="a"),
                primitive("j", "fence_http", ip="10.0.0.12", power_off_url="/off?geheim-2",
                          status_url="/s", status_on_regex="ON", status_off_regex="OFF",
                          headers="Authorization: geheim-3", pcmk_host_list="b")])

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.place = folder.name
        self.cib = os.path.join(self.place, "cib.xml")
        with open(self.cib, "wb") as handle:
            handle.write(self.DATA)

    def run_import(self, *arguments):
        return support.fencetool("import", "--cib", self.cib, *arguments)

    def test_stdout_shows_no_secret_and_no_file_that_seems_complete(self):
        result = self.run_import()
        self.assertEqual(result.code, 1)
        self.assertNotIn("geheim", result.out + result.err)
        self.assertIn("    password_script: /etc/fencetool/password-a\n", result.out)
        self.assertIn("the programs /etc/fencetool/password-NODE are for you to write", result.err)
        mistakes = fencetool.parse_cluster("c.yml", result.out.encode())[1]
        self.assertEqual(sum("Jinja" in mistake.text for mistake in mistakes), 2, mistakes)

    def test_a_login_in_a_url_is_a_secret_whatever_that_is_called(self):
        with open(self.cib, "wb") as handle:
            handle.write(cib([primitive("i", "fence_virsh", ip="10.0.0.11", pcmk_host_list="a",
                                        connection_uri="xen://u:geheim-4@10.0.0.11/")]))
        result = self.run_import()
        self.assertNotIn("geheim", result.out + result.err)
        self.assertIn("connection_uri", result.out)

    def test_with_show_secrets_stdout_is_a_whole_file(self):
        result = self.run_import("--show-secrets")
        self.assertEqual(result.code, 0, result.err)
        self.assertNotIn("geheim", result.err)
        found = cluster_of(result.out)
        self.assertEqual(values(found, "a")["password"], "geheim-1")
        self.assertEqual(values(found, "b")["power_off_url"], "/off?geheim-2")

    def test_a_file_holds_the_passwords_and_only_root_reads_it_and_none_is_overwritten(self):
        path = os.path.join(self.place, "cluster.yml")
        result = self.run_import("-o", path)
        self.assertEqual((result.code, result.out), (0, ""), result.err)
        self.assertNotIn("geheim", result.err)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        with open(path, encoding="utf-8") as handle:
            text = handle.read()
        self.assertIn("geheim-1", text)
        self.assertIn("geheim-3", text)
        result = self.run_import("-o", path)
        self.assertEqual((result.code, result.out), (2, ""))
        self.assertIn("exists: name another file", result.err)

    def test_each_of_several_devices_hides_its_secrets_behind_a_program_of_its_own(self):
        with open(self.cib, "wb") as handle:
            handle.write(cib([primitive(name, "fence_apc", ip="10.0.0.1" + name[1:],
                                        password="geheim-" + name) for name in ("d1", "d2", "d3")],
                             [level("a", "d1,d2"), level("a", "d3", 2)]))
        result = self.run_import()
        self.assertNotIn("geheim", result.out + result.err)
        for suffix in ("", "-device2", "-level2"):
            self.assertIn("password_script: /etc/fencetool/password-a%s\n" % suffix, result.out)

    def test_a_cib_without_fence_devices_is_nothing_to_import(self):
        with open(self.cib, "wb") as handle:
            handle.write(cib([]))
        result = self.run_import()
        self.assertEqual((result.code, result.out), (1, ""))
        self.assertIn("nothing to import", result.err)

    def test_a_password_that_cibsecret_keeps_needs_a_program(self):
        data = self.DATA.replace(b"geheim-1", b"lrm://")
        cluster, _, notes = import_from(data)
        self.assertEqual(values(cluster, "a")["password_script"], "/etc/fencetool/password-a")
        self.assertIn("kept by cibsecret", notes)


class MovingIn(test_generators_pcs.PcsTest):
    def test_a_cluster_moves_in_as_the_readme_says(self):
        """Under the real pcs: import, the script, the script that takes over a level of others."""
        path = self.write_cib("cib.xml", ["storage-a", "storage-b"], primitive(
            "old-a", "fence_kasa", ip="10.20.20.201", pcmk_host_list="storage-a") + primitive(
            "old-b", "fence_kasa", ip="10.20.20.202", pcmk_host_list="storage-b"),
            "<fencing-topology>%s</fencing-topology>" % level("storage-a", "old-a"))
        with open(path, "rb") as handle:
            cluster, text, _ = import_from(handle.read())
        script = self.script(text)
        refused = self.run_in_lab("sh", script, "--cib", path)
        self.assertEqual(refused.code, 1, refused)
        self.assertIn("level 1 of storage-a was not made by fencetool", refused.err)
        self.configure(script, path, "--adopt")
        self.assertEqual(self.differences(cluster, path), [
            "note: old-a (fence_kasa) is not ours, at the same address as fence-storage-a",
            "note: old-b (fence_kasa) is not ours, at the same address as fence-storage-b"])
        for device in ("old-a", "old-b"):
            result = self.run_in_lab("pcs", "-f", path, "stonith", "delete", device)
            self.assertEqual(result.code, 0, result)
        self.assertEqual(self.differences(cluster, path), [])

    def differences(self, cluster, path):
        with open(path, "rb") as handle:
            live = fencetool.parse_fencing(handle.read())
        found = fencetool.compare_fencing(fencetool.plan_fencing(cluster, live), live)
        return [fencetool.render_difference(item).partition(" (if")[0] for item in found]


class Yaml(unittest.TestCase):
    def test_every_text_is_read_back_as_it_was(self):
        for text in ("plain", "no", "010", "1:30", "~", "it's", "'", '"', "\\", "a: b", "a #b",
                     "- a", "{a}", "[b]", "&x", "*x", "!t", "%", "@", "`", "é 密", " lead", "1e3",
                     "2024-01-01", "CC:32:E5:00:00:01", "/a-b_c.d", "null", "=", "<<", "|", ">"):
            for form in ("key: %s\n", "key: {a: %s}\n", "key: [%s]\n"):
                node = fencetool.parse_yaml(form % fencetool.render_yaml(text))[0].value["key"]
                if node.kind == fencetool.MAP:
                    node = node.value["a"]
                elif node.kind == fencetool.LIST:
                    node = node.value[0]
                self.assertEqual((node.value, node.foreign), (text, ""), text)
                self.assertTrue(node.kind == fencetool.TEXT or not fencetool.is_ambiguous(text))


if __name__ == "__main__":
    unittest.main()
