"""The generated configuration under the real pcs, crmsh and Pacemaker tools, on CIB files."""
import os
import re
import shlex
import shutil
import tempfile
import unittest
from unittest import mock
from xml.etree import ElementTree

import fencetool
from tests import pcs_lab, support, versions

CLUSTERS = os.path.join(support.ROOT, "tests", "fixtures", "clusters")
# Those on which more is tried: crmsh and a second run take their time.
HARD_FILES = ("mixed.yml", "http.yml", "strip.yml", "three_nodes.yml", "quotes.yml")
CIB = """<cib %s><configuration><crm_config/><nodes>%s</nodes><resources>%s</resources>
<constraints/>%s</configuration><status/></cib>
"""
FOREIGN = """
<primitive id="fence-foreign" class="stonith" type="fence_ipmilan">
<instance_attributes id="f"><nvpair id="f-ip" name="ip" value="10.9.9.9"/>
<nvpair id="f-list" name="pcmk_host_list" value="elsewhere"/></instance_attributes></primitive>
"""


def fixtures():
    """Return [(name, Cluster)] of the good cluster files."""
    return [(name, load(name)) for name in sorted(os.listdir(CLUSTERS)) if "." in name]


def load(name):
    """Return the Cluster of a good cluster file."""
    host_vars = os.path.join(CLUSTERS, "host_vars") if name == "group_vars.yml" else None
    cluster, mistakes = fencetool.load_cluster(os.path.join(CLUSTERS, name), host_vars,
                                               fencetool.System("test"))
    if not cluster:
        raise AssertionError("%s: %s" % (name, mistakes))
    return cluster


def render(form, cluster, source):
    return fencetool.render_output(form, cluster, "", source)


def describe_cib(path):
    """Return what a CIB configures, without ids that mean nothing and the order of things."""
    tree = ElementTree.parse(path)
    found = set()
    for primitive in tree.iter("primitive"):
        name = primitive.get("id")
        found.add((name, primitive.get("type")))
        for kind in ("instance_attributes", "meta_attributes"):
            found.update((name, kind, pair.get("name"), pair.get("value"))
                         for part in primitive.iter(kind) for pair in part)
        found.update((name, op.get("name"), op.get("interval"), op.get("timeout"))
                     for op in primitive.iter("op"))
    found.update((ban.get("id"), ban.get("rsc"), ban.get("node"), ban.get("score"))
                 for ban in tree.iter("rsc_location"))
    found.update((level.get("target"), level.get("index"), level.get("devices"))
                 for level in tree.iter("fencing-level"))
    found.update((pair.get("name"), pair.get("value"))
                 for part in tree.iter("cluster_property_set") for pair in part)
    return found


def read(path):
    with open(path, "rb") as handle:
        return handle.read()


class PcsTest(unittest.TestCase):
    """What the tests share: the lab, a place for files, and the tools in it."""

    @classmethod
    def setUpClass(cls):
        support.require_namespaces("mount", "nsenter", "pcs", "crm_verify", "crm_simulate",
                                   "cibadmin")
        cls.lab = pcs_lab.Lab(support.ROOT, list(fencetool.AGENTS))
        cls.place = tempfile.mkdtemp(prefix="test-generators-")

    @classmethod
    def tearDownClass(cls):
        cls.lab.end()
        shutil.rmtree(cls.place)

    def file(self, name):
        return os.path.join(self.place, "%s-%s" % (self.id().rpartition(".")[2], name))

    def run_in_lab(self, *argv, **environment):
        command, own = self.lab.command(list(argv))
        # Eight nodes take a loaded machine minutes.
        return support.run(command, environment=dict(own, **environment), timeout=600)

    def run_outside(self, *argv, **environment):
        """Run a program of Pacemaker with its own schemas: those of the lab are rewritten."""
        return support.run(list(argv), environment=dict(
            environment, PATH="/usr/sbin:/usr/bin:/sbin:/bin"))

    def write(self, name, text):
        path = self.file(name)
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(text)
        return path

    def write_cib(self, name, nodes, resources="", topology=""):
        entries = "".join('<node id="%d" uname="%s"/>' % item for item in enumerate(nodes, 1))
        return self.write(name, CIB % (versions.empty_cib_attributes(), entries, resources,
                                       topology))

    def script(self, text, name="script"):
        """Return the path of the script for a cluster file."""
        cluster, mistakes = fencetool.parse_cluster("cluster.yml", text.encode("utf-8"))
        self.assertTrue(cluster, mistakes)
        return self.write(name + ".sh", render("pcs", cluster, "cluster.yml"))

    def configure(self, script, cib, *arguments):
        result = self.run_in_lab("sh", script, "--cib", cib, *arguments)
        self.assertEqual(result.code, 0, result.err)
        return result


class Readme(PcsTest):
    def test_the_commands_for_two_power_supplies_make_devices_and_a_level(self):
        with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
            section = handle.read().partition("\n## A server with two power supplies\n")[2]
        commands = re.findall(r"\n    (pcs (?:[^\n]*\\\n)*[^\n]*)", section.partition("\n## ")[0])
        self.assertEqual(len(commands), 4)
        cib = self.write_cib("cib.xml", ["storage-a", "storage-b"])
        for command in commands:
            words = shlex.split(command.replace("\\\n", " "))
            result = self.run_in_lab("pcs", "-f", cib, *words[1:])
            self.assertEqual((result.code, result.out), (0, ""), result)
        found = describe_cib(cib)
        self.assertIn(("storage-b", "1", "fence-b-left,fence-b-right"), found)
        self.assertIn(b'name="pcmk_host_map" value="storage-b:1,5"', read(cib))
        shown = self.run_in_lab("pcs", "-f", cib, "stonith", "level").out
        self.assertIn(versions.render_level(1, "storage-b", "fence-b-left", "fence-b-right"),
                      " ".join(shown.split()))


class EveryClusterFile(PcsTest):
    def each(self, check):
        """Run check(name, cluster) for all fixtures, in parallel."""
        def call(name, cluster):
            try:
                check(name, cluster)
            except AssertionError as error:
                return "%s: %s" % (name, error)
        storable = [item for item in fixtures()
                    if versions.pacemaker_stores(render("cib", item[1], item[0]))]
        results = support.at_once([lambda item=item: call(*item) for item in storable], workers=4)
        self.assertGreaterEqual(len(results), 12)
        self.assertEqual([result for result in results if result], [])

    def test_the_script_configures_a_cluster_that_fences_and_a_second_run_changes_nothing(self):
        def check(name, cluster):
            nodes = [node.name for node in cluster.nodes]
            script = self.write(name + ".sh", render("pcs", cluster, name))
            cib = self.write_cib(name + ".xml", nodes)
            self.configure(script, cib)
            self.check_fencing(name, cib, nodes)
            if name in HARD_FILES:
                once = read(cib)
                self.assertIn("Nothing to change.", self.configure(script, cib).err)
                self.assertEqual(read(cib), once)
            result = support.run(["shellcheck", script], environment={"PATH": os.environ["PATH"]})
            self.assertEqual(result.out, "")
            self.check_formats(name, cluster, nodes, describe_cib(cib))
        support.require_program("shellcheck")
        support.require_program("crm")
        self.each(check)

    def check_fencing(self, name, cib, nodes):
        """crm_verify finds nothing, and a node that fails is fenced."""
        up = self.file(name + "-up.xml")
        online = [word for node in nodes for word in ("-u", node)]
        self.run_in_lab("crm_simulate", "-x", cib, "-q", "1", "-S", "-O", up, *online)
        verdict = self.run_outside("crm_verify", "-V", "-x", up)
        self.assertEqual((verdict.code, verdict.out, verdict.err), (0, "", ""), name)
        failed = self.run_in_lab("crm_simulate", "-x", up, "-f", nodes[0], "-S")
        self.assertIn("Fencing %s (reboot)" % nodes[0], failed.out)

    def check_formats(self, name, cluster, nodes, wanted):
        """crmsh and the CIB file configure the same as pcs."""
        cib = self.write_cib(name + "-other.xml", nodes)
        if name in HARD_FILES:
            crmsh = self.write(name + ".crm", render("crmsh", cluster, name))
            result = self.run_in_lab("crm", "-F", "configure", "load", "update", crmsh,
                                     CIB_file=cib, LC_ALL="C.UTF-8", HOME=self.place)
            self.assertEqual(result.code, 0, result.err)
            self.assertEqual(describe_cib(cib), wanted)
        plain = self.write(name + "-cib.xml", render("cib", cluster, name))
        self.assertEqual(describe_cib(plain), wanted)
        result = self.run_outside("cibadmin", "--modify", "--allow-create", "--scope",
                                  "configuration", "--xml-file", plain, CIB_file=cib)
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(describe_cib(cib), wanted)


TWO_NODES = """
stonith_nodes:
  storage-a: {method: kasa, ip: 10.20.20.201, mgmt_ip: 10.20.20.1, delay: 5}
  storage-b: {method: kasa, ip: 10.20.20.202, mgmt_ip: 10.20.20.2, power_meter: ignore}
"""
THIRD_NODE = "  quorum: {method: kasa, ip: 10.20.20.203, mgmt_ip: 10.20.20.3}\n"


class ConfiguredTest(PcsTest):
    """What starts from a cluster that has been configured once, for all tests of the class."""

    nodes = ["storage-a", "storage-b", "quorum"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.first = cls("configured").configured()
        except BaseException:
            cls.tearDownClass()  # unittest calls it for a set-up that went well only
            raise

    def configured(self):
        """Return a CIB with a foreign device, and our two nodes configured."""
        topology = ('<fencing-topology><fencing-level id="x" index="2" target="storage-a" '
                    'devices="fence-foreign"/></fencing-topology>')
        if not hasattr(self, "first"):
            cib = self.write_cib("cluster.xml", self.nodes, FOREIGN, topology)
            self.configure(self.script(TWO_NODES), cib)
            return cib
        self.script(TWO_NODES)
        return shutil.copy(self.first, self.file("cluster.xml"))

    def changes(self, cib, script, *arguments):
        """Return (what a run took away, what it added)."""
        before = describe_cib(cib)
        self.configure(script, cib, *arguments)
        return before - describe_cib(cib), describe_cib(cib) - before


class Convergence(ConfiguredTest):
    def test_an_edited_value_is_changed_and_a_removed_option_goes(self):
        cib = self.configured()
        edited = TWO_NODES.replace("202", "222").replace(", power_meter: ignore", "")
        gone, come = self.changes(cib, self.script(edited, "edited"))
        kind = "instance_attributes"
        device, verifier = "fence-storage-b", "fence-verify-storage-b"
        self.assertEqual(gone, {
            (device, kind, "ip", "10.20.20.202"), (device, kind, "power_meter", "ignore"),
            (verifier, kind, "fence_ip", "10.20.20.202"),
            (verifier, kind, "witness_ips", "mgmt=10.20.20.202"),
            (verifier, kind, "power_meter", "ignore")})
        self.assertEqual(come, {
            (device, kind, "ip", "10.20.20.222"), (verifier, kind, "fence_ip", "10.20.20.222"),
            (verifier, kind, "witness_ips", "mgmt=10.20.20.222")})

    def test_what_a_person_changed_by_hand_is_brought_back(self):
        cib = self.configured()
        wanted, of_target = describe_cib(cib), list(versions.pcs_change().of_target)
        for argv in (["stonith", "update", "fence-storage-a", "ip=10.1.1.1", "quiet=1", "op",
                      "monitor", "interval=60s", "timeout=5s"],
                     ["constraint", "location", "fence-storage-a", "avoids", "storage-b"],
                     ["constraint", "location", "fence-storage-a", "prefers", "quorum=50"],
                     ["stonith", "level", "remove", "1"] + of_target + ["storage-b"],
                     ["property", "set", "stonith-enabled=false"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, *argv).code, 0, argv)
        self.assertNotEqual(describe_cib(cib), wanted)
        self.configure(self.file("script.sh"), cib)
        self.assertEqual(describe_cib(cib), wanted)

    def test_devices_of_a_removed_node_go_and_foreign_ones_stay(self):
        cib = self.configured()
        two = describe_cib(cib)
        self.run_in_lab("pcs", "-f", cib, "constraint", "location", "fence-foreign", "avoids",
                        "storage-a")
        gone, come = self.changes(cib, self.script(TWO_NODES + THIRD_NODE, "three"))
        self.assertIn(("fence-quorum", "fence_kasa"), come)
        gone, come = self.changes(cib, self.file("script.sh"))
        self.assertEqual([item for item in gone if "quorum" not in str(item)
                          and "witness_ips" not in item], [])
        self.assertEqual(describe_cib(cib) - two, {
            ("location-fence-foreign-storage-a--INFINITY", "fence-foreign", "storage-a",
             "-INFINITY")})
        self.assertEqual(two - describe_cib(cib), set())

    def test_what_others_have_added_since_moves_nothing(self):
        cib = self.configured()
        for argv in (["constraint", "location", "fence-foreign", "avoids", "storage-a"],
                     ["resource", "create", "dummy", "ocf:pacemaker:Dummy"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, *argv).code, 0, argv)
        before = read(cib)
        again = self.configure(self.file("script.sh"), cib)
        self.assertIn("Nothing to change.", again.err, again.out)
        self.assertEqual(read(cib), before)

    def test_another_agent_for_a_node_replaces_its_device(self):
        cib = self.configured()
        script = self.script(
            TWO_NODES.replace("{method: kasa, ip: 10.20.20.202", "{method: ipmi, user: u, "
                              "password: p, ip: 10.20.20.102").replace(", power_meter: ignore", ""),
            "ipmi")
        gone, come = self.changes(cib, script)
        self.assertIn(("fence-storage-b", "fence_kasa"), gone)
        self.assertIn(("fence-storage-b", "fence_ipmilan"), come)
        again = self.configure(script, cib)
        self.assertIn("Nothing to change.", again.err, again.out)

    def test_without_verification_the_verifiers_go_and_levels_have_one_device(self):
        cib = self.configured()
        script = self.script("stonith_fence_verify: false" + TWO_NODES, "plain")
        gone, come = self.changes(cib, script)
        self.assertEqual(come, {("storage-a", "1", "fence-storage-a"),
                                ("storage-b", "1", "fence-storage-b"), ("stonith-timeout", "65s")})
        self.assertFalse([item for item in describe_cib(cib) if "verify" in str(item)])

    def test_a_node_that_the_file_does_not_know_never_verifies(self):
        cib = self.configured()
        bans = {item[2] for item in describe_cib(cib) if item[1] == "fence-verify-storage-a"}
        self.assertIn("quorum", bans)
        bans = {item[2] for item in describe_cib(cib) if item[1] == "fence-storage-a"}
        self.assertNotIn("quorum", bans)


class Caution(ConfiguredTest):
    """What is left alone, told, hidden, or fails without a change."""

    def test_a_device_of_the_same_name_is_left_alone_unless_adopted(self):
        foreign = FOREIGN.replace("fence-foreign", "fence-storage-a")
        cib = self.write_cib("cluster.xml", self.nodes, foreign)
        before, script = read(cib), self.script(TWO_NODES)
        result = self.run_in_lab("sh", script, "--cib", cib)
        self.assertEqual((result.code, read(cib)), (1, before))
        self.assertIn("fence-storage-a was not made by fencetool", result.err)
        self.configure(script, cib, "--adopt")
        self.assertIn(("fence-storage-a", "fence_kasa"), describe_cib(cib))
        self.assertIn("Nothing to change.", self.configure(script, cib).err)

    def test_a_foreign_level_1_of_a_node_is_left_alone(self):
        topology = ('<fencing-topology><fencing-level id="x" index="1" target="storage-a" '
                    'devices="fence-foreign"/></fencing-topology>')
        cib = self.write_cib("cluster.xml", self.nodes, FOREIGN, topology)
        before = read(cib)
        result = self.run_in_lab("sh", self.script(TWO_NODES), "--cib", cib)
        self.assertEqual((result.code, read(cib)), (1, before))
        self.assertIn("level 1 of storage-a was not made by fencetool", result.err)

    def test_another_level_without_a_verifier_is_told(self):
        result = self.configure(self.file("script.sh"), self.configured(), "--dry-run")
        self.assertEqual(re.findall("warning: level .*", result.err), [
            "warning: level x was not made by fencetool: nobody verifies what it fences"])

    def test_a_level_for_a_pattern_of_nodes_is_told(self):
        """Pacemaker looks for the node's own name first: the pattern is never tried again."""
        topology = ('<fencing-topology><fencing-level id="every" index="1" '
                    'target-pattern="storage-.*" devices="fence-foreign"/></fencing-topology>')
        cib = self.write_cib("cluster.xml", self.nodes, FOREIGN, topology)
        result = self.configure(self.script(TWO_NODES), cib)
        self.assertIn("warning: level every was not made by fencetool", result.err)
        self.assertIn((None, "1", "fence-foreign"), describe_cib(cib))

    def test_a_level_that_a_person_made_of_our_device_stays(self):
        cib = self.configured()
        self.assertEqual(self.run_in_lab("pcs", "-f", cib, "stonith", "level", "add", "2",
                                         "storage-b", "fence-storage-b").code, 0)
        result = self.configure(self.file("script.sh"), cib)
        self.assertIn("Nothing to change.", result.err, result.out)
        self.assertIn(("storage-b", "2", "fence-storage-b"), describe_cib(cib))

    def test_dry_run_shows_the_changes_without_secrets_and_makes_none(self):
        cib = self.write_cib("cluster.xml", self.nodes)
        before = read(cib)
        script = self.script(TWO_NODES.replace("delay: 5", "password: geheim"))
        result = self.configure(script, cib, "--dry-run")
        self.assertIn('+    <primitive id="fence-storage-a"', result.out)
        self.assertIn('name="password" value="***"', result.out)
        self.assertNotIn("geheim", result.out + result.err)
        self.assertEqual(read(cib), before)

    def test_a_secret_is_not_shown_whatever_stands_beside_it(self):
        foreign = ('<primitive id="fence-storage-a" class="stonith" type="fence_xvm">'
                   '<instance_attributes id="x"><nvpair value="geheim" id="p" name="password"/>'
                   '</instance_attributes></primitive>')
        cib = self.write_cib("cluster.xml", self.nodes, foreign)
        result = self.configure(self.script(TWO_NODES), cib, "--adopt", "--dry-run")
        self.assertIn('value="***" id="p" name="password"', result.out)
        self.assertNotIn("geheim", result.out + result.err)

    def test_what_is_shown_holds_no_secret_of_any_agent(self):
        text = """
stonith_nodes:
  storage-a: {agent: fence_apc_snmp, ip: 10.20.20.201, mgmt_ip: 10.20.20.1,
              options: {snmp_priv_passwd: geheim1, community: geheim2}}
  storage-b: {method: http, ip: 10.20.20.202, mgmt_ip: 10.20.20.2, status_on_regex: up,
              status_url: "/?password=geheim3", power_off_url: "/off?password=geheim4",
              status_off_regex: down, password_script: /etc/shown.sh}
"""
        cib = self.write_cib("cluster.xml", self.nodes)
        result = self.configure(self.script(text), cib, "--dry-run")
        self.assertNotIn("geheim", result.out + result.err)
        self.assertIn("/etc/shown.sh", result.out)

    def test_a_failure_at_any_command_leaves_the_cib_byte_for_byte(self):
        text = read(self.script(TWO_NODES)).decode("utf-8")
        lines = text.split("\n")
        start = lines.index("configure() {")
        rows = [row for row in range(start, len(lines)) if re.match("    [a-z]", lines[row])]
        broken = ["\n".join(lines[:row] + ["    if"] + lines[row:]) for row in rows[::12]]
        broken += ["\n".join(lines[:row] + ["    false"] + lines[row:]) for row in rows[::6]]
        broken.append(text.replace("fence-storage-b fence_kasa", "fence-storage-b fence_none"))
        broken.append(text[:len(text) // 2])

        def call(number):
            cib = self.write_cib("%d.xml" % number, self.nodes)
            before = read(cib)
            script = self.write("%d.sh" % number, broken[number])
            result = self.run_in_lab("sh", script, "--cib", cib)
            return result.code, read(cib) == before
        results = support.at_once([lambda n=n: call(n) for n in range(len(broken))], workers=4)
        for number, (code, unchanged) in enumerate(results):
            # Half a script may succeed with nothing.
            self.assertTrue(code != 0 or number == len(results) - 1, broken[number][-300:])
            self.assertTrue(unchanged, broken[number][-300:])

    def test_two_configurations_that_cannot_be_read_are_not_taken_for_equal(self):
        cib = self.write_cib("cluster.xml", self.nodes)
        place = tempfile.mkdtemp(dir=self.place)
        with open(os.path.join(place, "cibadmin"), "w") as handle:
            handle.write('#!/bin/sh\ncase "$*" in *--scope*) exit 1 ;; esac\n'
                         'exec /usr/sbin/cibadmin "$@"\n')
        os.chmod(handle.name, 0o755)
        command, own = self.lab.command(["sh", self.script(TWO_NODES), "--cib", cib])
        result = support.run(command, environment={"PATH": place + ":" + own["PATH"]})
        self.assertEqual(result.code, 1)
        self.assertNotIn("Nothing to change.", result.err)
        self.assertIn("Nothing has been changed.", result.err)

    def test_a_node_name_that_the_cluster_does_not_have_changes_nothing(self):
        cib = self.write_cib("cluster.xml", self.nodes)
        before = read(cib)
        script = self.script(TWO_NODES.replace("storage-b", "storage-x"))
        result = self.run_in_lab("sh", script, "--cib", cib)
        self.assertEqual((result.code, read(cib)), (1, before))
        self.assertIn("'storage-x' does not appear to exist", result.err)

    def test_a_node_without_device_that_the_cluster_does_not_have_is_told(self):
        text = TWO_NODES + "  quorun: {method: none, mgmt_ip: 10.20.20.9}\n"
        result = self.configure(self.script(text, "none"), self.configured(), "--dry-run")
        self.assertIn("warning: node quorun is in the cluster file, but not in the cluster\n",
                      result.err)
        self.assertIn("warning: node quorum is not in the cluster file", result.err)
        self.assertNotIn("warning: node storage", result.err)

    def test_a_rehearsal_needs_a_file_that_exists(self):
        result = self.run_in_lab("sh", self.script(TWO_NODES), "--cib", self.file("nowhere.xml"))
        self.assertEqual(result.code, 1)
        self.assertFalse(os.path.exists(self.file("nowhere.xml")))


class LivePush(PcsTest):
    """pcs stands in for the two commands that need a running cluster: by what pcs runs itself."""

    STUB = """#!/bin/sh
echo "$@" >>%(place)s/log
case "$1 $2" in
"cluster cib") cp %(cib)s "$3" ;;
"cluster cib-push")
    crm_diff --original "${4#diff-against=}" --new "$3" --no-version >%(place)s/patch
    CIB_file=%(cib)s cibadmin --patch --xml-file %(place)s/patch ;;
*) exec %(pcs)s "$@" ;;
esac
"""

    def push(self, script, cib):
        """Run a script as on a live cluster; return what pcs was called for."""
        place = tempfile.mkdtemp(dir=self.place)
        stub = os.path.join(place, "pcs")
        with open(stub, "w") as handle:
            handle.write(self.STUB % {"place": place, "cib": cib,
                                      "pcs": self.lab.place + "/bin/pcs"})
        os.chmod(stub, 0o755)
        command, own = self.lab.command(["sh", script])
        result = support.run(command, environment={"PATH": place + ":" + own["PATH"]})
        return result, read(os.path.join(place, "log")).decode().splitlines()

    def push_well(self, script, cib):
        result, log = self.push(script, cib)
        self.assertEqual(result.code, 0, result.err)
        return log

    def test_a_push_that_another_change_has_overtaken_fails_without_showing_the_cib(self):
        cib = self.write_cib("cluster.xml", ["storage-a", "storage-b"],
                             FOREIGN.replace("<nvpair ", '<nvpair id="s" name="password" '
                                             'value="geheim"/><nvpair ', 1))
        self.assertIn(b"geheim", read(cib))
        overtaken = self.STUB.replace("cibadmin --patch --xml-file %(place)s/patch",
                                      "cibadmin --patch --xml-file %(place)s/patch && {\n"
                                      "    echo Error: unable to push cib\n"
                                      "    CIB_file=%(cib)s cibadmin --patch --xml-file "
                                      "%(place)s/patch; }")
        with mock.patch.object(self, "STUB", overtaken):
            result, _ = self.push(self.script(TWO_NODES), cib)
        self.assertEqual(result.code, 1, result)
        self.assertIn("Error: unable to push cib", result.err)
        self.assertNotIn("geheim", result.out + result.err)

    def test_the_change_is_pushed_in_one_step_as_a_difference(self):
        cib = self.write_cib("cluster.xml", ["storage-a", "storage-b"])
        log = self.push_well(self.script(TWO_NODES), cib)
        self.assertTrue(log[0].startswith("cluster cib "))
        self.assertRegex(log[-1], "^cluster cib-push .*after.xml diff-against=.*before.xml$")
        self.assertEqual([line for line in log[1:-1] if not line.startswith("-f ")], [])
        self.assertIn(("storage-b", "1", "fence-storage-b,fence-verify-storage-b"),
                      describe_cib(cib))

    def test_an_edit_is_pushed_and_what_others_have_added_stays(self):
        cib = self.write_cib("cluster.xml", ["storage-a", "storage-b"], FOREIGN)
        self.push_well(self.script(TWO_NODES), cib)
        for argv in (["constraint", "location", "fence-foreign", "avoids", "storage-a"],
                     ["resource", "create", "dummy", "ocf:pacemaker:Dummy"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, *argv).code, 0, argv)
        before = describe_cib(cib)
        self.push_well(self.script(TWO_NODES.replace("202", "222"), "edited"), cib)
        changed = before ^ describe_cib(cib)
        self.assertEqual({item[2] for item in changed}, {"ip", "fence_ip", "witness_ips"})


class OtherTargets(PcsTest):
    """What needs no lab."""

    @classmethod
    def setUpClass(cls):
        support.require_namespaces()
        cls.place = tempfile.mkdtemp(prefix="test-generators-")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.place)

    def test_nft_accepts_every_firewall(self):
        support.require_program("nft")
        for name in ("mixed.yml", "esphome.yml", "strip.yml", "agent.yml"):
            for node in ("storage-a", "storage-b"):
                path = self.write("%s-%s.nft" % (name, node),
                                  fencetool.render_output("nftables", load(name), node, name))
                result = support.run(["unshare", "-n", "nft", "-c", "-f", path],
                                     environment={"PATH": "/usr/sbin:/usr/bin:/bin"})
                self.assertEqual((result.code, result.err), (0, ""), name)

    def test_ansible_accepts_the_playbook(self):
        program = support.require_program("ansible-playbook")
        playbook = self.write("site.yml",
                              render("ansible", load("mixed.yml"), "mixed.yml"))
        result = support.run([program, "--syntax-check", "-i", "storage-a,storage-b", playbook],
                             environment={"PATH": os.environ["PATH"], "HOME": self.place,
                                          "LC_ALL": "C.UTF-8"})
        self.assertEqual(result.code, 0, result.err)


if __name__ == "__main__":
    unittest.main()
