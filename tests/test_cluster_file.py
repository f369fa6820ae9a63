"""Reading cluster files: what is accepted means one thing, and every mistake has its line."""
import json
import os
import re
import tempfile
import unittest

import fencetool
from tests import support

CLUSTERS = os.path.join(support.ROOT, "tests", "fixtures", "clusters")
GOOD = """\
stonith_nodes:
  storage-a:
    method: ipmi
    ip: 10.20.20.101
    user: admin
    password_script: /etc/bmc.sh
    mgmt_ip: 10.20.20.1
    storage_ip: 10.10.10.1
    delay: 5
  storage-b:
    method: kasa
    ip: 10.20.20.202
    mgmt_ip: 10.20.20.2
    storage_ip: 10.10.10.2
"""


def read(text, hosts=()):
    return fencetool.parse_cluster("c.yml", text.encode("utf-8"), hosts)


def messages(text, hosts=(), warnings=False):
    """Return "line: text" of the mistakes in a file."""
    return ["%d: %s" % (mistake.line, mistake.text) for mistake in read(text, hosts)[1]
            if mistake.is_warning == warnings]


class CheckedFile(unittest.TestCase):
    def assert_mistake(self, text, line, words, **options):
        found = messages(text, **options)
        self.assertTrue(any(message.startswith("%d: " % line) and words in message
                            for message in found), "%s\nnot in %s" % (words, found))

    def assert_good(self, text):
        self.assertEqual(messages(text), [])
        return read(text)[0]


class Yaml(CheckedFile):
    def value(self, text):
        """Return the scalar that `text` means as the value of a key, foreign constructs in <>."""
        node = fencetool.parse_yaml("key: " + text)[0].value["key"]
        return "<%s>" % node.foreign if node.foreign else node.value

    def test_scalars(self):
        for text, expected in (
                ("plain text", "plain text"), ("a#b  # comment", "a#b"),
                ("http://x/y?z", "http://x/y?z"), ("'it''s # no comment'", "it's # no comment"),
                ('"a\\tb\\u00fc\\x41"', "a\tb\u00fcA"),
                ("'x' # comment", "x"), ("|-\n  one line", "one line"), (">-\n  # text", "# text"),
                ("|-\n ", ""), ("--x", "--x"),
                ("-x", "-x"), ("::1", "::1"), ("a:b", "a:b"), ("", ""), ("# comment", "")):
            self.assertEqual(self.value(text), expected, text)

    def test_what_is_not_read_is_named(self):
        for text, construct in (
                ("!vault |\n  $ANSIBLE", "!vault"), ("&a x", "&a"), ("one\n  two", "several lines"),
                ('"one\n  two"', "several lines"), ("|\n  one\n  two", "line break"),
                (">\n  text", "line break"), ("!a &b x", "!a&b")):
            self.assertIn(construct, self.value(text), text)

    def test_what_could_mean_two_things_is_refused_with_its_line(self):
        for text, line, words in (
                ("a: b: c", 1, "colon with a space"), ("a: 1\na: 2", 2, "twice"),
                ("a: 1\n  b: 2", 2, "colon with a space"), ("a:\n  b: 1\n c: 2", 3, "fits no key"),
                ("a: 1\n\tb: 2", 2, "tab"), ("a: x\ty", 1, "tab"), ("? a\n: b", 1, "complex key"),
                ("a: - b", 1, "must not begin with '-'"), ("a: @b", 1, "must not begin with '@'"),
                ("a: \"x", 1, "not closed"), ("a: [1, 2", 1, "not closed"),
                ("a: {b}", 1, "'b' has no value"), ("a: {{ b }}", 1, "Jinja"),
                ('a: "\\q"', 1, "escape"), ('a: "\\ud800"', 1, "escape"),
                ("a: 1\n--- b", 2, "document mark"), ("a: 1\n...\nb: 2", 2, "document mark"),
                ("a: |2\n   x", 1, "must begin with |, |-"), ("- a", 1, "not a map"),
                ("a: x\n# c\n  y", 3, "after a comment"), ("a: 'x' y", 1, "after the end"),
                ("a: \x07", 1, "control character"), ("a: x\u2028b: 2", 1, "unusual line break"),
                ("%YAML 1.1\n---\na: 1", 1, ""), ("a: [1,\n---\n2]", 1, "not closed"),
                ("a: " + "[" * 2000, 1, "nested too deep"), ("[1]", 1, "not a map"),
                ('{"a": 1,}', 1, "not JSON"), ('{"a": NaN}', 1, "not JSON")):
            with self.subTest(text):
                self.assert_mistake(text, line, words)

    def test_a_list_in_brackets_may_hold_options_of_a_program(self):
        for text, expected in (("[--strict]", ["--strict"]), ("[-v, --x=1]", ["-v", "--x=1"])):
            node = fencetool.parse_yaml("args: " + text)[0].value["args"]
            self.assertEqual([entry.value for entry in node.value], expected)

    def test_numbers_dates_and_truth_values_are_no_text_without_quotes(self):
        row = fencetool.cluster_key("x")
        for text in ("010", "0x1F", "0b1", "1_000", "1e3", "1.5", ".5", "1:30", "11:22:33:44:55:56",
                     "yes", "Off", "y", "2024-01-01", ".inf", "+1", "=", "<<"):
            node = fencetool.parse_yaml("x: " + text)[0].value["x"]
            with self.assertRaises(fencetool.UsageError, msg=text):
                fencetool.parse_text(row, node)
            quoted = fencetool.parse_yaml("x: '%s'" % text)[0].value["x"]
            self.assertEqual(fencetool.parse_text(row, quoted), text)
        for text, expected in (("12345", "12345"), ("10.20.20.1", "10.20.20.1"), ("~", ""),
                               ("0", "0"),
                               ("null", ""), ("CC:32:E5:00:00:01", "CC:32:E5:00:00:01")):
            node = fencetool.parse_yaml("x: " + text)[0].value["x"]
            self.assertEqual(fencetool.parse_text(row, node), expected)

    def test_a_whole_group_vars_file_reads_as_it_stands(self):
        with open(os.path.join(CLUSTERS, "group_vars.yml"), encoding="utf-8") as handle:
            text = handle.read()
        hosts = []
        for name in ("storage-a", "storage-b", "quorum"):
            with open(os.path.join(CLUSTERS, "host_vars", name + ".yml"), "rb") as handle:
                hosts.append((name, name + ".yml", handle.read()))
        cluster, mistakes = read(text, hosts)
        self.assertEqual([node.name for node in cluster.nodes],
                         ["storage-a", "storage-b", "quorum"])
        self.assertEqual(cluster.nodes[1].networks, {
            "mgmt": "10.20.20.2", "storage": "10.10.10.2", "enduser": "10.30.30.2",
            "hypervisor": "10.40.40.2"})
        self.assertEqual(len(mistakes), 1)
        self.assertIn("quorum counts as a cluster node and has no", mistakes[0].text)

    def test_json_means_the_same_as_yaml(self):
        from_yaml = fencetool.parse_cluster("c", GOOD.encode())[0]
        data = {"stonith_nodes": {node.name: node.values for node in from_yaml.nodes}}
        cluster, mistakes = fencetool.parse_cluster("c", json.dumps(data, indent=1).encode())
        self.assertEqual(mistakes, [])
        self.assertEqual([(node.name, node.values) for node in cluster.nodes],
                         [(node.name, node.values) for node in from_yaml.nodes])

    def test_bytes_that_are_not_utf_8_have_a_line_too(self):
        _, mistakes = fencetool.parse_cluster("c", b"a: 1\nb: \xff\n")
        self.assertEqual((mistakes[0].line, mistakes[0].text), (2, "this line is not UTF-8"))


class Mistakes(CheckedFile):
    def test_the_good_file_has_none(self):
        self.assertEqual(read(GOOD)[1], [])

    def test_each_mistake_is_reported_with_its_line(self):
        for old, new, line, words in (
                ("method: kasa", "method: kassa", 11, "did you mean kasa?"),
                ("method: kasa", "methd: kasa", 11, "did you mean method?"),
                ("    method: kasa\n", "", 10, "has no method"),
                ("method: kasa", "agent: fence_check", 11, "cannot switch a node off"),
                ("method: kasa", "agent: fence_kasa", 11, "give method: kasa"),
                ("method: kasa", "agent: fence_http", 11, "give method: tasmota or esphome or"),
                ("method: kasa", "agent: apc", 11, "not the name of a fence agent"),
                ("method: kasa", "method: agent", 10, "has no agent, which method agent needs"),
                ("method: kasa", "method: kasa\n    agent: fence_apc", 11, "and an agent: remove"),
                ("    ip: 10.20.20.202\n", "", 10, "has no ip, which method kasa needs"),
                ("    user: admin\n", "", 2, "has no user"),
                ("    password_script: /etc/bmc.sh\n", "", 2, "neither password nor"),
                ("10.20.20.202", "10.20.20.2", 12, "fence itself"),
                ("10.20.20.202", "10.20.20.1", 12, "has the address of storage-a"),
                ("10.20.20.202", "10.20.20.256", 12, "not an IP address"),
                ("10.20.20.202", "plug-b", 12, "not an IP address"),
                ("10.20.20.202", "127.0.0.1", 12, "not the address of one machine"),
                ("10.20.20.202", "'::ffff:10.20.20.202'", 12, "not the address of one machine"),
                ("10.20.20.202", "10.20.20.101", 12, "same outlet"),
                ("method: kasa\n    ip: 10.20.20.202", "method: kasa\n    ip: 10.20.20.101\n"
                 "    port: 623", 12, "same outlet"),
                ("mgmt_ip: 10.20.20.2", "mgmt_ip: 10.20.20.1", 10, "the same address"),
                ("storage_ip: 10.10.10.1", "storage_ip: 10.20.20.1", 2, "the same address"),
                ("delay: 5", "client_ips: {mgmt: 10.1.1.1}", 9, "as mgmt_ip"),
                ("delay: 5", "client_ips: {Storage: 10.1.1.1}", 9, "as storage_ip"),
                ("delay: 5", "client_ips: {'a b': 10.1.1.1}", 9, "'a b' is not a name"),
                ("10.20.20.202", "10.20.20.202\n    mac: 11:22:33:44:55:56", 13, "quotes"),
                ("10.20.20.202", "10.20.20.202\n    mac: '11:22'", 13, "not a MAC"),
                ("10.20.20.202", "10.20.20.202\n    port: 70000", 13, "not a port"),
                ("10.20.20.202", "10.20.20.202\n    switch_name: x", 13, "no meaning"),
                ("10.20.20.202", "10.20.20.202\n    power_meter: maybe", 13, "not one of auto"),
                ("10.20.20.202", "10.20.20.202\n    off_timeout: 40", 13, "must be more than 45 s"),
                ("10.20.20.202", "10.20.20.202\n    off_timeout: abc", 13, "not a time"),
                ("10.20.20.202", "10.20.20.202\n    off_timeout: 0", 13, "must be more than 45 s"),
                ("10.20.20.202", "10.20.20.202\n    off_timeout: 90500ms", 13, "not a whole n"),
                ("delay: 5", "delay: 500ms", 9, "not a whole number of seconds"),
                ("delay: 5", "delay: 70\n    off_timeout: 60", 10, "must be more than 90 s"),
                (".202", ".202\n    options: {power_timeout: 0}", 13, "more than 0"),
                (".202", ".202\n    options: {power_wait: 40}", 13, "leave no time"),
                (".202", ".202\n    options: {inet4_only: 1, inet6_only: 1}", 13, "exclude"),
                (".202", ".202\n    options: {power_timeout: 90}", 10, "must be more than 105 s"),
                (".202", ".202\n    options: {ip: 1.1.1.1}", 13, "(remove it here)"),
                (".202", ".202\n    options: {pcmk_host_list: x}", 13, "(remove it here)"),
                (".202", ".202\n    options: {speed: 1}", 13, "unknown to fence_kasa"),
                (".202", ".202\n    options: {method: cycle}", 13, "a cycle proves no OFF"),
                (".202", ".202\n    options: {pcmk_delay_max: 9}", 13, "at random can be the same"),
                (".202", ".202\n    options: {pcmk_monitr_retries: 3}", 13, "no parameter of Pace"),
                (".202", ".202\n    options: {pcmk_monitor_timeout: 1min}", 13, "a plain number"),
                ("delay: 5", "of_timeout: 5", 9, "unknown key 'of_timeout', did you mean off_tim"),
                (".202", ".202\n    options: {device: esphome}", 13, "unknown to fence_kasa"),
                (".202", ".202\n    options: {verify_wait: 60}", 13, "unknown to fence_kasa"),
                ("method: kasa", "method: http\n    mac: 'CC:32:E5:00:00:01'", 12, "no meaning"),
                ("delay: 5", "options: {power_timeout: 300}", 2, "must be more than 310 s"),
                ("delay: 5", "off_timeout: 20", 9, "must be more than 30 s"),
                ("10.20.20.202", "10.20.20.202\n    password: '{{ x }}'", 13, "Jinja"),
                ("10.20.20.202", "10.20.20.202\n    password: !vault x", 13,
                 "not !vault (use password_script: "),
                ("10.20.20.202", '10.20.20.202\n    password: "a\\nb"', 13, "line break"),
                ("10.20.20.202", "10.20.20.202\n    password: 'é&'", 13, "Pacemaker 2.1"),
                ("10.20.20.202", "10.20.20.202\n    client_ips: [a]", 13,
                 "this must be a map {name: address}, not a list"),
                ("method: kasa", "method: http\n    outlet: 2", 12, "no meaning"),
                ("delay: 5", "outlet: 2", 9, "no meaning"),
                ("method: kasa", "method: http\n    power_on: true", 10, "no power_on_url"),
                ("method: kasa", "method: esphome\n    switch_name: a\n    outlet: b", 13, "both"),
                ("stonith_nodes:\n", "stonith_direct_networks: [storage]\nstonith_nodes:\n  c: "
                 "{method: none, storage_ip: 10.10.10.3}\n", 1, "two ends"),
                ("user: admin", "user: '\"admin\"'", 5, "fence agents cut"),
                ("user: admin", "user: 'admin '", 5, "fence agents cut"),
                ("    storage_ip: 10.10.10.1\n", "", 9, "no other node is in all its networks"),
                ("stonith_nodes", "stonith_nods", 1, "stonith_nodes is missing"),
                (GOOD, "stonith_nodes:\n  a: {agent: fence_apc}\n", 1, "at least two nodes"),
                (GOOD, "stonith_nodes:\n  a: {method: none}\n  b: {method: none}\n", 1,
                 "no node has a fence device"),
                (GOOD, "stonith_nodes:\n", 1, "fence devices, not an empty value"),
                (GOOD, "stonith_nodes: [a, b]\n", 1, "fence devices, not a list"),
                (GOOD, "stonith_nodes:\n  a: fence_apc\n", 2, "not a single value"),
                ("stonith_nodes:", "stonith_direct: [x]\nstonith_nodes:", 1, "unknown key"),
                ("stonith_nodes:", "stonith_direct_networks: [storrage]\nstonith_nodes:", 1,
                 "did you mean storage?"),
                ("stonith_nodes:", "stonith_witness_ips: {x: 10.1.1.1}\nstonith_nodes:", 1,
                 "no node has a network 'x'"),
                ("storage-b:", "verify-storage-a:", 10, "is the verifier of storage-a"),
                ("storage-b:", "no:", 10, "name of a"), ("storage-b:", "null:", 10, "name of a"),
                ("storage-b:", "010:", 10, "name of a"), ("storage-b:", "0x10:", 10, "name of a"),
                ("storage-b:", "'a b':", 10, "cannot be the name of a node")):
            with self.subTest("%s -> %s" % (old, new)):
                self.assertEqual(GOOD.count(old), 1)
                self.assert_mistake(GOOD.replace(old, new), line, words)

    def test_what_the_agent_would_refuse_at_every_action_is_a_mistake(self):
        text = GOOD.replace("method: kasa", "method: http\n    power_off_url: /off\n%s")
        pages = "    status_url: /s\n    status_on_regex: 'a'\n    status_off_regex: 'b'\n"
        for lines, words in (
                (pages + "    http_method: GET\n    power_off_body: x\n", "a GET has no body"),
                (pages + "    power_off_method: GET\n    power_off_body: x\n", "has no body"),
                (pages + "    headers: 'X-Key: {password}'\n", "for the password, and none"),
                (pages + "    headers: 'Authorization: x'\n    password: p\n", "two logins"),
                ("    status_url: http://10.20.20.9/s\n    status_on_regex: 'a'\n"
                 "    status_off_regex: 'b'\n", "status_url: it leads to 10.20.20.9"),
                ("    status_url: /s\n    status_member: $.a\n    status_on_value: x\n"
                 "    status_off_value: x\n", "are the same")):
            with self.subTest(lines):
                self.assert_mistake(text % lines, 10, words)
        self.assert_good(text % (pages + "    headers: 'X-Key: {password}'\n"
                                 "    password_script: /p\n    power_on_method: GET\n"))

    def test_options_cannot_make_an_agent_lie_or_lead_to_another_device(self):
        for name in ("version", "help", "option", "missing_as_off", "missing-as-off", "port_as_ip",
                     "delay", "ipaddr", "login", "passwd", "ip", "plug", "pcmk_off_action"):
            text = GOOD.replace("user: admin", "user: admin\n    options: {%s: 1}" % name)
            with self.subTest(name):
                self.assert_mistake(text, 6, "(remove it here)")
        text = GOOD.replace("method: kasa", "method: tasmota\n    options: {device: esphome}")
        self.assert_mistake(text, 12, "(remove it here)")

    def test_an_outlet_is_one_in_all_its_spellings(self):
        url = ", status_url: /s, status_on_regex: up, status_off_regex: down"
        for one, other, top in (
                ("esphome, ip: 10.9.9.9, switch_name: Relay 1",
                 "esphome, ip: 10.9.9.9, switch_name: relay_1", ""),
                ("kasa, ip: 10.9.9.9, outlet: 8006AB", "kasa, ip: 10.9.9.9, outlet: 8006ab", ""),
                ("http, ip: 10.9.9.9, power_off_url: '/0?turn=off'" + url,
                 "http, ip: 10.9.9.9, power_off_url: 'http://10.9.9.9:80/0?turn=off'" + url, ""),
                ("http, ip: 10.9.9.9, power_off_url: '/cm?cmnd=Power1%20Off'" + url,
                 "http, ip: 10.9.9.9, power_off_url: '/cm?cmnd=POWER1%20off'" + url, ""),
                ("agent, agent: fence_aws, outlet: i-0", "agent, agent: fence_aws, outlet: i-0",
                 "stonith_fence_verify: false\n")):
            nodes = "  a: {method: %s, mgmt_ip: 10.0.0.1}\n  b: {method: %s, mgmt_ip: 10.0.0.2}\n"
            with self.subTest(one=one, other=other):
                text = top + "stonith_nodes:\n" + nodes % (one, other)
                self.assertRegex("\n".join(messages(text)), "a and b are on the same outlet of ")
        for one, other in (("outlet: i-0abc", "outlet: i-0abd"), ("options: {x: 1}", "delay: 1")):
            nodes = "  a: {agent: fence_xvm, %s}\n  b: {agent: fence_xvm, %s}\n"
            self.assert_good("stonith_fence_verify: no\nstonith_nodes:\n" + nodes % (one, other))
        # Each is found by its name.
        self.assert_good("stonith_fence_verify: no\nstonith_nodes:\n"
                         "  a: {agent: fence_xvm}\n  b: {agent: fence_xvm}\n")

    def test_several_outlets_are_a_list_or_a_text_with_commas(self):
        nodes = ("stonith_fence_verify: no\nstonith_nodes:\n"
                 "  a: {method: kasa, ip: 10.9.9.9, outlet: %s}\n"
                 "  b: {method: none}\n")
        for written, outlets in (("[1, 5]", "1,5"), ("'1,5'", "1,5"), ("'1, 5'", "1, 5"),
                                 ("[5]", "5"), ("['left one', right]", "left one,right")):
            with self.subTest(written):
                cluster, mistakes = fencetool.parse_cluster("c", (nodes % written).encode())
                self.assertTrue(cluster, mistakes)
                self.assertEqual(cluster.nodes[0].values["outlet"], outlets)
        cluster, _ = fencetool.parse_cluster("c", (
            "stonith_fence_verify: no\nstonith_nodes:\n  a:\n    method: kasa\n    ip: 10.9.9.9\n"
            "    outlet:\n    - 1\n    - five\n  b: {method: none}\n").encode())
        self.assertEqual(cluster.nodes[0].values["outlet"], "1,five")
        for written in ("[]", "[1, 1]", "[1, '']", "[1, ~]", "['1,5']", "[1, [5]]", "[1, 05]",
                        "{1: 5}"):
            with self.subTest(written):
                self.assertRegex("\n".join(messages(nodes % written)), "outlet: ")

    def test_an_outlet_is_no_other_nodes_in_a_list_either(self):
        nodes = "  a: {method: kasa, ip: 10.9.9.9, outlet: %s}\n" \
                "  b: {method: kasa, ip: 10.9.9.9, outlet: %s}\n"
        top = "stonith_fence_verify: no\nstonith_nodes:\n"
        for one, other in (("[1, 5]", "5"), ("5", "[1, 5]"), ("[1, 2]", "[2, 3]"),
                           ("'1, 5'", "5"), ("[Left, 2]", "left"), ("'1,5'", "[5, 6]")):
            with self.subTest(one=one, other=other):
                self.assertRegex("\n".join(messages(top + nodes % (one, other))),
                                 "a and b are on the same outlet of ")
        for one, other in (("[1, 5]", "2"), ("[1, 5]", "[2, 6]"), ("[1, 15]", "5")):
            self.assert_good(top + nodes % (one, other))

    def test_an_agent_without_an_address_needs_none(self):
        self.assert_good(GOOD.replace("method: kasa\n    ip: 10.20.20.202", "agent: fence_aws"))

    def test_a_password_is_not_shown_with_its_mistake(self):
        found = messages(GOOD.replace("password_script: /etc/bmc.sh", "password: 0815"))
        self.assertIn("6: password: YAML may take this for a number, a date or a truth value (put "
                      "it in quotes)", found)
        self.assertNotIn("0815", str(found))

    def test_an_agent_of_any_name_may_use_tls(self):
        text = GOOD.replace("method: ipmi", "agent: fence_redfish\n    options: {ssl_insecure: 1}")
        self.assert_good(text)

    def test_one_mistake_is_told_once(self):
        for old, new, line, words in (
                ("10.20.20.202", "plug-b", 12, "ip: 'plug-b' is not an IP address"),
                ("password_script: /etc/bmc.sh", "password: !vault x", 6, "password: this must")):
            found = messages(GOOD.replace(old, new))
            self.assertEqual(len(found), 1, found)
            self.assertTrue(found[0].startswith("%d: %s" % (line, words)), found)

    def test_what_pacemaker_itself_takes_may_be_an_option_of_any_node(self):
        for name in ("pcmk_monitor_retries", "pcmk_off_retries", "pcmk_status_timeout",
                     "pcmk_action_limit"):
            for method in ("user: admin", "method: kasa"):
                self.assert_good(GOOD.replace(method, method + "\n    options: {%s: 3}" % name))

    def test_all_mistakes_are_reported_at_once(self):
        text = GOOD.replace("kasa", "kassa").replace("20.101", "x").replace("delay", "dely")
        self.assertGreaterEqual(len(messages(text)), 3)

    def test_warnings_leave_the_file_good(self):
        for old, new, words in (
                ("password_script: /etc/bmc.sh", "password: CHANGEME", "CHANGEME"),
                ("password_script: /etc/bmc.sh", "password: abcdefghijklmnopqrstu",
                 "IPMI takes 20 bytes of a password at most"),
                ("    delay: 5\n", "", "fencing storage-a waits 10 s"),
                ("ip: 10.10.10.2\n", "ip: 10.10.10.2\n    delay: 5\n", "same delay"),
                ("delay: 5", "delay: 0", "same delay"),
                ("ip: 10.10.10.2\n", "ip: 10.10.10.2\n  c: {method: none}\n", "c counts as a"),
                ("    delay: 5\n", "    delay: 5\n    verify: false\n",
                 "nobody proves that storage-a is dead")):
            with self.subTest(new):
                text = GOOD.replace(old, new)
                self.assert_good(text)
                self.assertIn(words, " ".join(messages(text, warnings=True)))

    def test_two_addresses_of_a_node_in_two_files_must_agree(self):
        hosts = [("storage-b", "host_vars/b.yml", b"mgmt_ip: 10.20.20.9\n")]
        self.assertEqual(messages(GOOD, hosts), ["1: mgmt_ip of storage-b differs from the one at "
                                                 "c.yml:13 (remove the wrong one)"])


class SeveralDevices(CheckedFile):
    """Two power supplies, levels, and devices of others in front."""

    FILE = """\
stonith_nodes:
  a: {method: kasa, ip: 10.0.0.11, mgmt_ip: 10.0.0.1, delay: 5}
  b:
    mgmt_ip: 10.0.0.2
"""
    PLUGS = ["{method: kasa, ip: 10.0.0.%d}" % number for number in (12, 13, 14)]

    def node(self, *lines):
        return self.FILE + "".join("    %s\n" % line for line in lines)

    def levels_of(self, text):
        """Return [[address of a device] of a level] of node b."""
        node = fencetool.find_node(self.assert_good(text), "b")
        return [[device.values["ip"] for device in level.devices] for level in node.levels]

    def test_devices_are_one_level_and_levels_are_several(self):
        one, two, three = self.PLUGS
        for lines, levels in (
                ((one[1:-1].replace(", ", "\n    "),), [["10.0.0.12"]]),
                (("devices: [%s]" % one,), [["10.0.0.12"]]),
                (("devices: [%s, %s]" % (one, two),), [["10.0.0.12", "10.0.0.13"]]),
                (("devices:", "- method: kasa", "  ip: 10.0.0.12", "- " + two),
                 [["10.0.0.12", "10.0.0.13"]]),
                (("levels: [%s, %s]" % (one, two),), [["10.0.0.12"], ["10.0.0.13"]]),
                (("levels:", "- " + one, "- devices: [%s, %s]" % (two, three)),
                 [["10.0.0.12"], ["10.0.0.13", "10.0.0.14"]]),
                (("levels: [%s, {before: [k], devices: [%s, %s]}]" % (one, one, two),),
                 [["10.0.0.12"], ["10.0.0.12", "10.0.0.13"]])):
            with self.subTest(lines):
                self.assertEqual(self.levels_of(self.node(*lines)), levels)

    def test_what_others_have_made_stands_in_front_of_one_level_or_of_all(self):
        one, two, _ = self.PLUGS
        for lines, before in (
                (("before: [ping]", "devices: [%s]" % one), [("ping",)]),
                (("before: [ping]", one[1:-1].replace(", ", "\n    ")), [("ping",)]),
                (("before: [k]", "levels: [{before: [k, k, l]}, %s]" % one), [("k", "l"), ("k",)]),
                (("levels: [{before: [k]}, %s]" % one,), [("k",), ()]),
                (("before: [ping]", "levels: [{before: [k]}, %s, {before: [l, m], devices: [%s]}]"
                  % (one, two)), [("ping", "k"), ("ping",), ("ping", "l", "m")])):
            with self.subTest(lines):
                node = fencetool.find_node(self.assert_good(self.node(*lines)), "b")
                self.assertEqual([level.before for level in node.levels], before)

    def test_each_device_knows_the_addresses_of_its_node_in_another_file(self):
        text = self.node("devices: [%s, %s]" % tuple(self.PLUGS[:2]))
        hosts = [("b", "host_vars/b.yml", b"mgmt_ip: 10.0.0.2\nstorage_ip: 10.1.0.2\n"),
                 ("a", "host_vars/a.yml", b"storage_ip: 10.1.0.1\n")]
        cluster, mistakes = read(text.replace("    mgmt_ip: 10.0.0.2\n", ""), hosts)
        self.assertEqual(mistakes, [])
        checks = [row.options for row in fencetool.build_configuration(cluster).primitives
                  if row.id.startswith("fence-verify-b")]
        self.assertEqual([(row["target_mgmt_ip"], row["target_storage_ip"]) for row in checks],
                         [("10.0.0.2", "10.1.0.2")] * 2)

    def test_mistakes_tell_their_way_out(self):
        one, two, _ = self.PLUGS
        for line, lines, words in (
                (5, ("devices: " + one,), "must be a list of maps [{method: ...}, {method: ...}], "
                 "not a map"),
                (5, ("devices: kasa",), "a single value"), (5, ("devices: []",), "an empty one"),
                (5, ("devices:",), "not an empty value"), (5, ("levels: [[%s]]" % one,), "a list"),
                (5, ("devices: [10.0.0.12, 10.0.0.13]",), "each of the list must be a map"),
                (6, ("method: kasa", "ip: [10.0.0.12, 10.0.0.13]"),
                 "not a list (several fence devices: devices: [{...}, {...}])"),
                (6, ("devices: [%s]" % one, "ip: 10.0.0.13"), "ip stands beside devices: it goes"),
                (6, ("levels: [%s]" % one, "devices: [%s]" % two), "devices stands beside levels"),
                (5, ("levels: [{devices: [%s], outlet: 2}]" % one,), "outlet stands beside dev"),
                (5, ("levels: [{devices: [%s], verify: no}]" % one,), "'verify' does not belong h"),
                (5, ("levels: [{devices: [%s], befor: [k]}]" % one,), "unknown key 'befor'"),
                (5, ("devices: [{method: kasa, ip: 10.0.0.12, mgmt_ip: 10.0.0.3}]",),
                 "'mgmt_ip' does not belong here: it is one of the node itself"),
                (5, ("devices: [{method: kasa, ip: 10.0.0.12, power_on: yes}]",), "'power_on' d"),
                (5, ("devices: [{before: [x], method: kasa, ip: 10.0.0.12}]",), "'before' does"),
                (5, ("devices: [{method: kasa, ip: 10.0.0.12, outlt: 1}]",), "you mean outlet?"),
                (5, ("devices: [%s, {method: kasa}]" % one,), "b has no ip, which method kasa"),
                (5, ("devices: [%s, {ip: 10.0.0.13}]" % one,), "b has no method"),
                (5, ("devices: [%s, {method: none}]" % one,), "a device has a method"),
                (5, ("devices: [%s, {method: ipmi, ip: 10.0.0.13, mac: x}]" % one,), "not a MAC"),
                (5, ("devices: [%s, %s]" % (one, one),), "two devices of b are the same outlet"),
                (5, ("devices: [{method: kasa, ip: 10.0.0.12, outlet: 1}, {method: kasa, ip: "
                     "10.0.0.12, outlet: [1, 2]}]",), "two devices of b are the same outlet"),
                (5, ("devices: [%s, {method: kasa, ip: 10.0.0.11}]" % one,), "a and b are on the"),
                (5, ("devices: [%s, {method: kasa, ip: 10.0.0.2}]" % one,), "cannot fence itself"),
                (5, ("levels: [%s]" % ", ".join(
                    "{method: kasa, ip: 10.0.1.%d}" % n for n in range(1, 11)),), "9 at most"),
                (3, ("levels: [{before: [k]}]",), "b has no fence device of its own"),
                (5, ("before: [fence-verify-a]", "devices: [%s]" % one), "is made by fencetool"),
                (5, ("before: ['a b']", "devices: [%s]" % one), "not the id of a fence device"),
                (7, ("levels:", "- " + one, "- {before: ['2x'], method: kasa, ip: 10.0.0.13}"),
                 "before: '2x' is not the id of"),
                (5, ("before: fence-x", "devices: [%s]" % one), "must be a list [a, b]"),
                (5, ("before: [x]", "method: none"), "no meaning for method none"),
                (5, ("levels: [{}]",), "b has no method")):
            with self.subTest(lines):
                self.assert_mistake(self.node(*lines), line, words)

    def test_names_that_would_be_those_of_a_level_are_refused(self):
        for name, line, words in (
                ("a-level2", 2, "look like one of another level"),
                ("a-level3-devices", 2, "look like one of another level"),
                ("b-device2", 5, "fence-b-device2, which is a device of b-device2"),
                ("verify-b-device2", 2, "fence-verify-b-device2, which is the verifier of b")):
            text = self.node("devices: [%s, %s]" % tuple(self.PLUGS[:2]))
            with self.subTest(name):
                self.assert_mistake(text.replace("  a:", "  %s:" % name), line, words)

    def test_what_cannot_prove_or_be_read_is_told(self):
        one, two, _ = self.PLUGS
        bmc = "{method: ipmi, ip: 10.0.0.20, user: u, password_script: /p}"
        for lines, words in (
                (("devices: [%s, %s]" % (bmc, one),), "a BMC that shares a level loses"),
                (("levels: [{before: [k]}, %s]" % one,), "level 1 is of k alone: what succeeds "
                 "there is believed, and nobody verifies it")):
            self.assertIn(words, " ".join(messages(self.node(*lines), warnings=True)))
        for lines in (("devices: [%s, %s]" % (one, two),), ("levels: [%s, %s]" % (bmc, one),)):
            self.assertEqual(messages(self.node(*lines), warnings=True), [])

    def test_remote_nodes_verify_and_fence_nobody(self):
        storage = "storage_ip: 10.1.0.%d"
        text = self.FILE.replace("mgmt_ip: 10.0.0.1,", "mgmt_ip: 10.0.0.1, %s," % storage % 1)
        text += "    method: kasa\n    ip: 10.0.0.12\n"
        remote = text + "  r: {method: kasa, ip: 10.0.0.13, mgmt_ip: 10.0.0.3, %s%%s}\n" % (
            storage % 3)
        self.assert_mistake(text, 2, "no other node is in all its networks (mgmt, storage)")
        self.assert_good(remote % "")
        self.assert_mistake(remote % ", remote: true", 2,
                            "in all its networks (mgmt, storage); a remote node verifies nobody")
        self.assert_mistake("stonith_fence_verify: no\n" + (remote % ", remote: yes").replace(
            "    method", "    remote: true\n    method"), 2, "two nodes that are not remote")


class Commands(unittest.TestCase):
    def test_check_config_reports_and_tells_by_its_exit_code(self):
        good = support.fencetool("check-config", os.path.join(CLUSTERS, "three_nodes.yml"))
        self.assertEqual((good.code, good.err), (0, ""))
        bad = support.fencetool("check-config", os.path.join(CLUSTERS, "group_vars.yml"))
        self.assertEqual(bad.code, 1)
        self.assertRegex(bad.out, r"group_vars\.yml:\d+: nobody could verify that storage-a is")
        self.assertRegex(bad.out, ": 2 mistakes, 1 warning\n$")

    def test_host_vars_are_the_files_that_ansible_reads(self):
        place = tempfile.mkdtemp()
        for name, text in (("storage-a", "x"), ("storage-b.yml~", "y: ["), (".keep", "z")):
            with open(os.path.join(place, name), "w") as handle:
                handle.write(text)
        result = support.fencetool("check-config", os.path.join(CLUSTERS, "three_nodes.yml"),
                                   "--host-vars", place)
        self.assertIn("/storage-a:1: not a map", result.out)
        self.assertIn(" 1 mistake, ", result.out)

    def test_a_node_with_a_domain_has_its_host_vars_too(self):
        place = tempfile.mkdtemp()
        cluster = os.path.join(place, "cluster.yml")
        with open(cluster, "w") as handle:
            handle.write(GOOD.replace("storage-a", "a.lan").replace("storage-b", "b.lan")
                         .replace("    storage_ip: 10.10.10.1\n", ""))
        hosts = os.path.join(place, "host_vars")
        os.mkdir(hosts)
        for name in ("a.lan", "a.lan.orig", "README.md", "b.lan.yml"):
            with open(os.path.join(hosts, name), "w") as handle:
                handle.write("storage_ip: 10.10.10.%s\n" % ("1" if name == "a.lan" else "2"))
        system = fencetool.System("test")
        found, mistakes = fencetool.load_cluster(cluster, hosts, system)
        self.assertEqual(mistakes, [])
        self.assertEqual([(node.name, node.networks["storage"]) for node in found.nodes],
                         [("a.lan", "10.10.10.1"), ("b.lan", "10.10.10.2")])

    def test_check_config_speaks_json_for_good_and_bad_files(self):
        for name, code in (("three_nodes.yml", 0), ("group_vars.yml", 1)):
            result = support.fencetool("check-config", "--json", os.path.join(CLUSTERS, name))
            self.assertEqual(result.code, code)
            shown = json.loads(result.out)
            self.assertEqual(shown["good"], code == 0)
            self.assertEqual(bool(shown["mistakes"]), code == 1)

    def test_a_file_that_is_not_there_is_a_usage_error(self):
        result = support.fencetool("check-config", "/nowhere.yml")
        self.assertEqual(result.code, 2)
        self.assertIn("cannot read /nowhere.yml", result.err)

    def test_every_key_of_the_file_is_told_in_the_readme(self):
        told = set(re.findall(r"^\| `(\w+)`", read_readme(), re.M))
        keys = {row.name for row in fencetool.CLUSTER_KEYS + fencetool.NODE_KEYS}
        self.assertEqual(keys - told, set())

    def test_a_new_family_of_plugs_needs_nothing_here(self):
        with open(support.SCRIPT, encoding="utf-8") as handle:
            source = handle.read()
        part = source[source.index("# PART 5: CLUSTER"):source.index("# SECTION: SIMULATOR")]
        families = {word for dialect in fencetool.DIALECTS.values()
                    for word in (dialect.name, dialect.method, dialect.agent)}
        named = set(re.findall(r"[\"'](\w+)[\"']", part)) & families
        self.assertEqual(named, {fencetool.NAMED_AGENT})

    def test_the_readme_tells_of_every_method_what_its_row_says(self):
        def words(cell):
            return set(re.findall("`([a-z_]+)`", cell))
        row = r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|([^|]+)\| (comes back|stays off) \|$"
        told = {method: (device, words(needs), words(takes), after == "comes back")
                for method, device, needs, takes, after in re.findall(row, read_readme(), re.M)}
        self.assertEqual(told, {
            dialect.method: (dialect.title, set(dialect.required),
                             set(dialect.keys) - set(dialect.required), dialect.comes_back)
            for dialect in fencetool.DIALECTS.values()})

    def test_every_example_of_the_readme_is_a_cluster(self):
        examples = [block.replace("\n    ", "\n") for block in re.findall(
            r"\n(\n    stonith_(?:.*\n)(?:    .*\n)+)", read_readme())]
        self.assertEqual(len(examples), 6)
        for example in examples:
            cluster, mistakes = fencetool.parse_cluster("README.md", example.encode())
            self.assertTrue(cluster, mistakes)
            self.assertEqual([item for item in mistakes if "no fence device" in item.text], [])


def read_readme():
    with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
        return handle.read()


if __name__ == "__main__":
    unittest.main()
