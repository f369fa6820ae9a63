"""The generated configuration under the real pcs, crmsh and Pacemaker tools, on CIB files."""
import io
import os
import re
import shlex
import shutil
import tempfile
import time
import unittest
from unittest import mock
from xml.etree import ElementTree

import fencetool
from tests import pcs_lab, support, versions
from tests.test_generators import cluster_of

CLUSTERS = os.path.join(support.ROOT, "tests", "fixtures", "clusters")
# Those on which more is tried: crmsh and a second run take their time.
HARD_FILES = ("mixed.yml", "http.yml", "strip.yml", "three_nodes.yml", "quotes.yml", "levels.yml")
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
        """Write a CIB of these nodes; one whose name ends in "@remote" is a remote node."""
        entries = "".join('<node id="%d" uname="%s"/>' % item for item in enumerate(nodes, 1))
        entries = entries.replace('@remote"', '" type="remote"')
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
            cib = self.write_cib(name + ".xml", [
                node.name + "@remote" * fencetool.is_remote(node) for node in cluster.nodes])
            self.configure(script, cib)
            self.check_fencing(name, cib, nodes)
            self.check_way_back(name, cluster, cib)
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

    def check_way_back(self, name, cluster, cib):
        """check-config finds what pcs has made the same, and import makes the file of it again."""
        live = fencetool.parse_fencing(read(cib))
        wanted = fencetool.plan_fencing(cluster, live)
        self.assertEqual(fencetool.compare_fencing(wanted, live), [])
        text = fencetool.render_cluster_file(fencetool.import_cluster(live)[0], [], True)
        again, mistakes = fencetool.parse_cluster(name, text.encode("utf-8"))
        self.assertTrue(again, mistakes)
        texts = [io.StringIO(render("cib", each, name)) for each in (again, cluster)]
        self.assertEqual(*map(describe_cib, texts))

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
        # Nobody knows which names the cluster will look at.
        wanted |= {(item[0].replace("stonith", "fencing"),) + item[1:] for item in wanted
                   if item[0] in ("stonith-enabled", "stonith-timeout")}
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
                     ["stonith", "level", "remove", "1"] + of_target + ["storage-b"],
                     ["property", "set", "stonith-enabled=false"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, *argv).code, 0, argv)
        self.assertNotEqual(describe_cib(cib), wanted)
        self.configure(self.file("script.sh"), cib)
        self.assertEqual(describe_cib(cib), wanted)

    def test_constraints_of_others_on_our_devices_stay_and_those_that_can_stop_them_are_told(self):
        cib, prefers = self.configured(), "location-fence-storage-a-quorum-50"
        avoids = "location-fence-storage-a-storage-b--INFINITY"
        for argv in (["avoids", "storage-b"], ["prefers", "quorum=50"]):
            words = ["pcs", "-f", cib, "constraint", "location", "fence-storage-a"] + argv
            self.assertEqual(self.run_in_lab(*words).code, 0, argv)
        before = read(cib)
        result = self.configure(self.file("script.sh"), cib)
        self.assertIn("Nothing to change.", result.err)
        self.assertIn("warning: %s was not made by fencetool" % avoids, result.err)
        self.assertNotIn(prefers, result.err)
        self.assertEqual(read(cib), before)
        gone, _ = self.changes(cib, self.script(TWO_NODES.replace("202", "222"), "edited"))
        self.assertFalse([item for item in gone if prefers in item or avoids in item])

    def test_bans_under_the_names_of_pcs_as_they_once_were_made_become_our_own(self):
        cib = self.configured()
        wanted = describe_cib(cib)
        old = read(cib).replace(b"fencetool-ban-fence-storage-a-storage-a",
                                b"location-fence-storage-a-storage-a--INFINITY")
        self.write("cluster.xml", old.decode("utf-8"))
        self.assertNotEqual(describe_cib(cib), wanted)
        self.configure(self.file("script.sh"), cib)
        self.assertEqual(describe_cib(cib), wanted)

    def test_a_device_that_could_start_nowhere_is_started_again(self):
        up, failed = self.file("up.xml"), self.file("failed.xml")
        online = [word for node in self.nodes for word in ("-u", node)]
        failures = [word for node in self.nodes
                    for word in ("-i", "fence-storage-b_start_0@%s=1" % node)]
        self.run_in_lab("crm_simulate", "-x", self.configured(), "-q", "1", "-S", "-O", up, *online)
        self.run_in_lab("crm_simulate", "-x", up, "-O", failed, *failures)
        self.write("failed.xml", re.sub('(#start_0" value)="1"', r'\1="INFINITY"',
                                        read(failed).decode("utf-8")))
        for minutes, state in ((1, "Stopped"), (20, "Started")):
            at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() + 60 * minutes))
            shown = self.run_in_lab("crm_simulate", "-x", failed, "-S", "-t", at).out
            self.assertRegex(versions.revised_status(shown),
                             r"fence-storage-b\s+\(stonith:fence_kasa\):\s+" + state)

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
        # The time limit of the cluster is never lowered.
        self.assertEqual(come, {("storage-a", "1", "fence-storage-a"),
                                ("storage-b", "1", "fence-storage-b")})
        self.assertFalse([item for item in describe_cib(cib) if "verify" in str(item)])

    def test_a_node_that_the_file_does_not_know_never_verifies(self):
        cib = self.configured()
        bans = {item[2] for item in describe_cib(cib) if item[1] == "fence-verify-storage-a"}
        self.assertIn("quorum", bans)
        bans = {item[2] for item in describe_cib(cib) if item[1] == "fence-storage-a"}
        self.assertNotIn("quorum", bans)


def foreign(name, agent):
    return '<primitive id="%s" class="stonith" type="%s"/>' % (name, agent)


class Levels(PcsTest):
    """Several devices of a node, its levels, and devices of others in front of ours."""

    NODES = ["storage-a", "storage-b"]
    ONE = "{method: kasa, ip: 10.20.20.202}"
    TWO = "{method: tasmota, ip: 10.20.20.203, outlet: 2}"
    OTHERS = foreign("ping", "fence_heuristics_ping") + foreign("kdump-b", "fence_kdump")

    def script_of(self, *lines):
        text = TWO_NODES.partition("  storage-b:")[0] + (
            "  storage-b:\n    mgmt_ip: 10.20.20.2\n")
        return self.script(text + "".join("    %s\n" % line for line in lines), "s%d" % hash(lines))

    def levels_in(self, cib):
        """Return {number of a level: devices} of storage-b, which has no level twice."""
        found = sorted(item[1:] for item in describe_cib(cib) if item[0] == "storage-b")
        self.assertEqual(len(dict(found)), read(cib).count(b'target="storage-b"'))
        return dict(found)

    def test_a_node_moves_between_one_device_two_and_levels_and_back(self):
        pair = "fence-storage-b,fence-verify-storage-b"
        both = ("fence-storage-b,fence-storage-b-device2,fence-verify-storage-b,"
                "fence-verify-storage-b-device2")
        second = "fence-storage-b-level2,fence-verify-storage-b-level2"
        cib = self.write_cib("cib.xml", self.NODES, self.OTHERS)
        for lines, levels in (
                (("devices: [%s]" % self.ONE,), {"1": pair}),
                (("devices: [%s, %s]" % (self.ONE, self.TWO),), {"1": both}),
                (("before: [ping]", "levels: [%s, %s]" % (self.ONE, self.TWO)),
                 {"1": "ping," + pair, "2": "ping," + second}),
                (("levels: [{before: [kdump-b]}, %s]" % self.TWO,), {"1": "kdump-b", "2": second}),
                (("before: [ping]", "devices: [%s]" % self.ONE), {"1": "ping," + pair})):
            script = self.script_of(*lines)
            # Devices of others are not taken out of a level unasked.
            topology = read(cib).partition(b"<fencing-topology>")[2]
            takes_out = b"ping" in topology or b"kdump" in topology
            self.configure(script, cib, *["--adopt"] * takes_out)
            self.assertEqual(self.levels_in(cib), levels)
            once = read(cib)
            self.assertIn("Nothing to change.", self.configure(script, cib).err)
            self.assertEqual(read(cib), once)

    def assert_refused(self, script, cib, words):
        before = read(cib)
        result = self.run_in_lab("sh", script, "--cib", cib)
        self.assertEqual((result.code, read(cib)), (1, before), result)
        self.assertIn(words, result.err)
        self.assertIn("\nNothing has been changed.\n", result.err)

    def test_a_device_that_somebody_put_into_our_level_is_named_and_stays(self):
        plain = self.script_of("devices: [%s]" % self.ONE)
        cib = self.write_cib("cib.xml", self.NODES, self.OTHERS)
        self.configure(plain, cib)
        of_target = list(versions.pcs_change().of_target)
        for words in (["remove", "1"] + of_target + ["storage-b"],
                      ["add", "1", "storage-b", "ping", "fence-storage-b",
                       "fence-verify-storage-b"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, "stonith", "level", *words).code, 0)
        self.assert_refused(plain, cib, "ping stands in the level of ping fence-storage-b "
                            "fence-verify-storage-b, and fencetool has not put it there: name it "
                            "in the cluster file (before: [ping])")
        named = self.script_of("before: [ping]", "devices: [%s]" % self.ONE)
        self.assertIn("Nothing to change.", self.configure(named, cib).err)

    def test_a_level_2_of_somebody_else_is_in_the_way_of_ours(self):
        topology = ('<fencing-topology><fencing-level id="x" index="2" target="storage-b" '
                    'devices="kdump-b"/></fencing-topology>')
        cib = self.write_cib("cib.xml", self.NODES, self.OTHERS, topology)
        self.assert_refused(self.script_of("levels: [%s, %s]" % (self.ONE, self.TWO)), cib,
                            "level 2 of storage-b was not made by fencetool")

    def test_what_the_file_names_of_others_is_looked_at(self):
        cib = self.write_cib("cib.xml", self.NODES, self.OTHERS)
        self.assert_refused(self.script_of("before: [pong]", "devices: [%s]" % self.ONE), cib,
                            "there is no fence device pong")
        for before in ("[ping]", "[ping, ping]"):
            self.assert_refused(
                self.script_of("levels: [{before: %s}, %s]" % (before, self.ONE)), cib,
                "level storage-b:1 is of heuristics alone")
        told = "warning: kdump-b waits for a crash dump"
        for lines, is_told in ((("before: [kdump-b]", "devices: [%s]" % self.ONE), True),
                               (("levels: [{before: [kdump-b]}, %s]" % self.ONE,), False)):
            result = self.configure(self.script_of(*lines), cib, "--dry-run")
            self.assertEqual(told in result.err, is_told, result.err)

    def test_a_remote_or_guest_node_that_the_file_takes_for_a_member_is_refused(self):
        text = TWO_NODES.replace("10.20.20.1,", "10.20.20.1, storage_ip: 10.10.10.1,") + (
            "  far: {method: kasa, ip: 10.20.20.204, mgmt_ip: 10.20.20.4, "
            "storage_ip: 10.10.10.4}\n")
        script = self.script(text)
        remote = '<primitive id="far" class="ocf" provider="pacemaker" type="remote"/>'
        template = remote.replace("<primitive", "<template").replace('"far"', '"t"')
        guest = ('<primitive id="vm" class="ocf" provider="heartbeat" type="VirtualDomain">'
                 '<meta_attributes id="m"><nvpair id="n" name="remote-node" value="far"/>'
                 '</meta_attributes></primitive>')
        reason = "far is a remote or guest node, which fences and verifies nobody"
        for resources in (remote, guest, template + '<primitive id="far" template="t"/>'):
            cib = self.write_cib("cib.xml", self.NODES, resources)
            self.assert_refused(script, cib, reason)
        cib = self.write_cib("cib.xml", self.NODES + ["far"])
        self.configure(script, cib, "--dry-run")
        entry = b'<node id="far" type="remote" uname="far"'
        with open(cib, "rb+") as handle:
            seen = re.sub(b'<node id="3" uname="far"', entry, handle.read())
            handle.seek(0)
            handle.write(seen)
        self.assert_refused(script, cib, reason)
        # When the file says so, too, nobody is left who could verify storage-a.
        mistakes = fencetool.parse_cluster("c.yml", text.replace(
            "far: {", "far: {remote: true, ").encode())[1]
        self.assertIn("a remote node verifies nobody", str(mistakes))
        able = text.replace("10.20.20.2,", "10.20.20.2, storage_ip: 10.10.10.2,").replace(
            "far: {", "far: {remote: true, ")
        for place in (cib, self.write_cib("guest.xml", self.NODES, guest)):
            result = self.configure(self.script(able, "able"), place)
            self.assertNotIn("not in the cluster", result.err)
            self.assertIn(("far", "1", "fence-far,fence-verify-far"), describe_cib(place))


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

    def test_a_stale_level_of_others_is_named_and_stops_nothing(self):
        topology = ('<fencing-topology><fencing-level id="old" index="2" target="storage-gone" '
                    'devices="fence-foreign,fence-gone"/></fencing-topology>')
        cib = self.write_cib("cluster.xml", self.nodes, FOREIGN, topology)
        result = self.configure(self.script(TWO_NODES), cib)
        way_out = "remove it (cibadmin --delete --xpath \"//fencing-level[@id='old']\")"
        self.assertEqual(re.findall("warning: level old is stale, for there is (.*)", result.err), [
            "no device fence-gone: " + way_out, "no such node: " + way_out])
        self.assertIn(("storage-gone", "2", "fence-foreign,fence-gone"), describe_cib(cib))

    def test_a_value_that_pacemaker_stores_damaged_is_refused(self):
        """As 2.0 does to what is not ASCII: its bytes become octal escapes."""
        text = TWO_NODES.replace("delay: 5", "user: zo\u00eb, password: Caf\u00e9")
        script, cib = self.script(text), self.write_cib("cluster.xml", self.nodes)
        before, place = read(cib), tempfile.mkdtemp(dir=self.place)
        with open(os.path.join(place, "pcs"), "w") as handle:
            handle.write("#!/bin/sh\n%s/bin/pcs \"$@\" || exit\n"
                         "LC_ALL=C sed -i 's/\\xc3\\xa9/\\\\303\\\\251/' \"$2\"\n" % self.lab.place)
        os.chmod(handle.name, 0o755)
        command, own = self.lab.command(["sh", script, "--cib", cib])
        result = support.run(command, environment={"PATH": place + ":" + own["PATH"]})
        self.assertEqual((result.code, read(cib)), (1, before))
        self.assertRegex(result.err, "stores (username|password) of fence-storage-a damaged")
        self.assertNotIn("Caf", result.err)
        if not versions.pacemaker_stores(text):
            self.assertEqual(self.run_in_lab("sh", script, "--cib", cib).code, 1)
            return
        self.configure(script, cib)
        self.assertIn(("fence-storage-a", "instance_attributes", "password", "Caf\u00e9"),
                      describe_cib(cib))

    def test_an_agent_that_is_not_installed_is_named(self):
        cib = self.write_cib("cluster.xml", self.nodes)
        text = TWO_NODES.replace("method: kasa", "agent: fence_nowhere").replace(
            ", power_meter: ignore", "")
        result = self.run_in_lab("sh", self.script(text), "--cib", cib)
        self.assertEqual(result.code, 1)
        self.assertIn("the agent fence_nowhere of fence-storage-a is not installed", result.err)
        self.assertTrue(result.err.endswith("\nNothing has been changed.\n"), result.err)
        self.assertEqual(result.err.count("Nothing has been changed."), 1)

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
        end = lines.index("}", start)
        rows = [row for row in range(start, end) if re.match("    [a-z]", lines[row])]
        broken = ["\n".join(lines[:row] + ["    if"] + lines[row:]) for row in rows[::8]]
        broken += ["\n".join(lines[:row] + ["    false"] + lines[row:]) for row in rows[::4]]
        broken.append(text.replace("create fence-storage-b fence_kasa",
                                   "create fence-storage-b fence_none"))
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

    def test_what_uses_a_device_of_ours_is_named(self):
        cib = self.configured()
        for element, told in (
                ("<rsc_colocation id='near' rsc='fence-storage-a' with-rsc='dummy' score='5'/>",
                 "fence-storage-a is in rsc_colocation near"),
                ("<rsc_order id='turn' first='dummy' then='fence-storage-b'/>",
                 "fence-storage-b is in rsc_order turn"),
                ("<rsc_order id='set'><resource_set id='set-1'><resource_ref id='dummy'/>"
                 "<resource_ref id='fence-storage-a'/></resource_set></rsc_order>",
                 "fence-storage-a is in rsc_order set")):
            text = read(self.first).decode("utf-8").replace(
                "<resources>", '<resources><primitive id="dummy" class="ocf" provider="pacemaker" '
                'type="Dummy"/>').replace("<constraints>", "<constraints>" + element)
            self.write("cluster.xml", text)
            result = self.run_in_lab("sh", self.file("script.sh"), "--cib", cib)
            self.assertEqual(result.code, 1)
            self.assertIn(told, result.err)
        text = re.sub("(?s)(<primitive id=\"fence-storage-a\".*?</primitive>)",
                      r'<group id="crowd">\1</group>', read(self.first).decode("utf-8"), count=1)
        self.write("cluster.xml", text)
        result = self.run_in_lab("sh", self.file("script.sh"), "--cib", cib)
        self.assertIn("fence-storage-a is in group crowd, which fencetool has not made", result.err)


class OptIn(PcsTest):
    """A cluster where what may run must be allowed to: symmetric-cluster=false."""

    def test_an_opt_in_cluster_runs_every_device_where_it_may_and_keeps_what_others_allow(self):
        nodes = ["storage-a", "storage-b", "quorum"]
        cib = self.write_cib("cluster.xml", nodes)
        text = read(cib).decode("utf-8").replace(
            "<crm_config/>", '<crm_config><cluster_property_set id="cib-bootstrap-options">'
            '<nvpair id="s" name="symmetric-cluster" value="false"/></cluster_property_set>'
            '</crm_config>').replace(
                "</nodes>", '<node id="9" uname="far" type="remote"/></nodes>')
        self.write("cluster.xml", text)
        script = self.script(TWO_NODES)
        self.configure(script, cib)
        for argv in (["fence-storage-a", "prefers", "storage-b"],
                     ["fence-storage-b", "prefers", "quorum=7"]):
            self.assertEqual(self.run_in_lab("pcs", "-f", cib, "constraint", "location",
                                             *argv).code, 0)
        before = read(cib)
        self.assertIn("Nothing to change.", self.configure(script, cib).err)
        self.assertEqual(read(cib), before)
        up = self.file("up.xml")
        online = [word for node in nodes for word in ("-u", node)]
        shown = self.run_in_lab("crm_simulate", "-x", cib, "-q", "1", "-S", "-O", up, *online).out
        shown = versions.revised_status(shown)
        for device, where in (("fence-storage-a", "storage-b"), ("fence-storage-b", "quorum"),
                              ("fence-verify-storage-a", "storage-b"),
                              ("fence-verify-storage-b", "storage-a")):
            self.assertRegex(shown, r"%s\s+\(stonith:\w+\):\s+Started %s" % (device, where))
        allowed = {(item[1], item[2]) for item in describe_cib(cib) if item[-1] == "0"}
        self.assertNotIn("far", {node for _, node in allowed})
        self.assertNotIn(("fence-verify-storage-a", "quorum"), allowed)


class Options(PcsTest):
    """The options of the cluster, by the names that it knows."""

    def with_options(self, *options):
        """Return a CIB file with these cluster options, each "name=value"."""
        cib = self.write_cib("cluster.xml", ["storage-a", "storage-b"])
        pairs = "".join('<nvpair id="o%d" name="%s" value="%s"/>' % ((number,) + tuple(
            option.split("="))) for number, option in enumerate(options))
        self.write("cluster.xml", read(cib).decode("utf-8").replace(
            "<crm_config/>", '<crm_config><cluster_property_set id="cib-bootstrap-options">'
            "%s</cluster_property_set></crm_config>" % pairs))
        return cib

    def options(self, cib):
        """Return what a CIB says of fencing, as "name=value"."""
        return sorted("=".join(item) for item in describe_cib(cib)
                      if len(item) == 2 and re.match("stonith-|fencing-", item[0]))

    def test_a_cluster_is_fenced_by_the_names_that_its_configuration_has(self):
        """From Pacemaker 3.0.2 on, stonith-enabled means nothing beside fencing-enabled."""
        cib = self.with_options("fencing-enabled=false", "stonith-enabled=true",
                                "stonith-timeout=216s", "stonith-max-attempts=3")
        script = self.script(TWO_NODES)
        self.configure(script, cib)
        wanted = ["fencing-enabled=true", "fencing-timeout=216s", "stonith-max-attempts=3"]
        self.assertEqual(self.options(cib), wanted)
        before = read(cib)
        self.assertIn("Nothing to change.", self.configure(script, cib).err)
        self.assertEqual(read(cib), before)

    def test_what_the_cib_format_wrote_under_both_names_stays_under_both(self):
        both = ["fencing-enabled=true", "fencing-timeout=90s", "stonith-enabled=true",
                "stonith-timeout=90s"]
        cib = self.with_options(*both)
        self.configure(self.script(TWO_NODES), cib)
        self.assertEqual(self.options(cib), both)

    def test_a_cluster_is_fenced_by_the_names_that_its_metadata_has(self):
        place = tempfile.mkdtemp(dir=self.place)
        with open(os.path.join(place, "crm_attribute"), "w") as handle:
            handle.write("""#!/bin/sh
case "$*" in *--list-options=cluster*) ;; *) exec /usr/sbin/crm_attribute "$@" ;; esac
cat <<END
<pacemaker-result api-version="2.40" request="crm_attribute"><resource-agent><parameters>
  <parameter name="priority-fencing-delay" advanced="0" generated="0"/>
%s</parameters></resource-agent><status code="0" message="OK"/></pacemaker-result>
END
""" % '  <parameter name="fencing-enabled" advanced="1" generated="0"/>\n')
        os.chmod(handle.name, 0o755)
        cib = self.with_options("stonith-enabled=false", "stonith-timeout=20s")
        command, own = self.lab.command(["sh", self.script(TWO_NODES), "--cib", cib])
        result = support.run(command, environment={"PATH": place + ":" + own["PATH"]})
        self.assertEqual(result.code, 0, result.err)
        self.assertEqual(self.options(cib), ["fencing-enabled=true", "fencing-timeout=90s"])

    def test_a_longer_limit_stays_and_a_shorter_one_is_raised(self):
        for given, told in (("4MIN", False), ("PT5M", True)):
            cib = self.with_options("stonith-timeout=" + given, "stonith-enabled=false")
            result = self.configure(self.script(TWO_NODES), cib)
            self.assertEqual(self.options(cib),
                             ["stonith-enabled=true", "stonith-timeout=" + given])
            self.assertEqual("stonith-timeout=PT5M stays" in result.err, told)

    def test_a_second_set_of_options_cannot_leave_the_cluster_without_fencing(self):
        cib = self.with_options("stonith-enabled=true")
        text = read(cib).decode("utf-8").replace(
            "</crm_config>", '<cluster_property_set id="more" score="9"><nvpair id="n" '
            'name="stonith-enabled" value="false"/></cluster_property_set></crm_config>')
        self.write("cluster.xml", text)
        before = read(cib)
        result = self.run_in_lab("sh", self.script(TWO_NODES), "--cib", cib)
        self.assertEqual((result.code, read(cib)), (1, before))
        self.assertIn("the cluster options in more say that fencing is not enabled", result.err)

    def test_an_action_that_contradicts_power_on_is_told(self):
        back = TWO_NODES.replace("delay: 5", "power_on: true")
        for options, text, told in (
                (("stonith-action=reboot", "fencing-action=off"), back, "fencing-action=off"),
                (("stonith-action=off",), TWO_NODES, "")):
            cib = self.with_options(*options)
            shown = self.configure(self.script(text), cib, "--dry-run").err
            words = re.findall("warning: (.*) stay off after a fence.* says: (.*) \\(pcs", shown)
            self.assertEqual(words, [(told + ": these", "storage-a")] if told else [])


class Races(PcsTest):
    """Two nodes that fence each other at once both die, unless one of them waits."""

    TEXT = TWO_NODES.replace(", delay: 5", "") + (
        "  far: {method: none, remote: true, mgmt_ip: 10.20.20.9}\n")

    def with_far(self, kind, options=""):
        cib = self.write_cib("cluster.xml", ["storage-a", "storage-b"])
        text = read(cib).decode("utf-8").replace("</nodes>", '<node id="9" uname="far" '
                                                 'type="%s"/></nodes>' % kind)
        return self.write("cluster.xml", text.replace("<crm_config/>", "<crm_config>" + options +
                                                      "</crm_config>"))

    def delays(self, cib):
        return {item[0]: item[3] for item in describe_cib(cib) if "pcmk_delay_base" in item}

    def assert_same(self, text, cib):
        """check-config --live finds what a script has made as its file wants it."""
        cluster, live = cluster_of(text), fencetool.parse_fencing(read(cib))
        found = fencetool.compare_fencing(fencetool.plan_fencing(cluster, live), live)
        self.assertEqual([item.text for item in found if item.element.owner != "far"], [])

    def test_the_members_of_the_cluster_are_counted_and_not_the_entries_of_the_file(self):
        script, cib = self.script(self.TEXT), self.with_far("remote")
        result = self.configure(script, cib)
        self.assertEqual(self.delays(cib), {"fence-storage-a": "10"})
        self.assertIn("storage-a survives a fence race", result.err)
        self.assertIn(("fence-storage-a", "instance_attributes", "pcmk_off_timeout", "70"),
                      describe_cib(cib))
        self.assertIn("Nothing to change.", self.configure(script, cib).err)
        self.assert_same(self.TEXT, cib)
        cib = self.with_far("member")
        self.assertNotIn("race", self.configure(script, cib).err)
        self.assertEqual(self.delays(cib), {})
        self.assert_same(self.TEXT, cib)

    def test_no_delay_is_added_where_the_cluster_has_one_by_priority(self):
        options = ('<cluster_property_set id="cib-bootstrap-options"><nvpair id="p" '
                   'name="priority-fencing-delay" value="%s"/></cluster_property_set>')
        for value, text, delays, told in (
                ("15s", self.TEXT, {}, "priority-fencing-delay=15s decides fence races"),
                ("15s", TWO_NODES, {"fence-storage-a": "5"},
                 "the delay of fence-storage-a comes on top of that")):
            cib = self.with_far("remote", options % value)
            self.assertIn(told, self.configure(self.script(text), cib).err)
            self.assertEqual(self.delays(cib), delays)
            self.assert_same(text, cib)


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
