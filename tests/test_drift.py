"""check-config --live: where a cluster differs from its file, in words and for machines."""
import json
import os
import random
import tempfile
import unittest
from xml.etree import ElementTree

import fencetool
from tests import support, test_generators_pcs
from tests.test_generators import CLUSTERS, all_configurations, cluster_of, two_nodes

MARK = '<meta_attributes id="m"><nvpair id="mm" name="managed-by" value="fencetool"/>' \
       '</meta_attributes>'
SECRET_NODES = """
stonith_nodes:
  a: {method: ipmi, ip: 10.0.0.11, user: u, password: geheim-1, mgmt_ip: 10.0.0.1, delay: 1}
  b: {method: http, ip: 10.0.0.12, mgmt_ip: 10.0.0.2, power_off_url: "/off?geheim-2",
      status_url: "/s?geheim-3", status_on_regex: "on", status_off_regex: "off"}
"""


LEVEL_NODES = """
stonith_nodes:
  a: {mgmt_ip: 10.0.0.1, delay: 3,
      devices: [{method: kasa, ip: 10.0.0.11}, {method: kasa, ip: 10.0.0.14}]}
  b: {mgmt_ip: 10.0.0.2,
      levels: [{method: ipmi, ip: 10.0.0.12, user: u, password: p},
               {before: [ping], method: kasa, ip: 10.0.0.15}]}
"""


class Live:
    """A CIB as the plan has it, which a test then changes."""

    def __init__(self, text=None, nodes=("a", "b")):
        # With a delay in the file, the nodes of the cluster change nothing in the plan.
        self.cluster = cluster_of(text or two_nodes(", delay: 3"))
        configuration = fencetool.build_configuration(self.cluster)
        self.tree = ElementTree.fromstring(fencetool.render_cib(configuration, ""))
        options = self.find("cluster_property_set")
        for option in list(options):  # as a cluster has them that knows the old names only
            if option.get("name").startswith("fencing-"):
                options.remove(option)
        for number, name in enumerate(nodes, 1):
            self.add("nodes", '<node id="%d" uname="%s"/>' % (number, name))

    def find(self, path):
        return self.tree.find(".//" + path)

    def add(self, path, xml):
        self.find(path).append(ElementTree.fromstring(xml))

    def remove(self, parent, child):
        self.find(parent).remove(self.find(child))

    def data(self):
        return ElementTree.tostring(self.tree)

    def compare(self, text=None):
        cluster = cluster_of(text) if text else self.cluster
        live = fencetool.parse_fencing(self.data())
        return fencetool.compare_fencing(fencetool.plan_fencing(cluster, live), live)

    def texts(self, text=None):
        return [fencetool.render_difference(item) for item in self.compare(text)]


def nvpair(device, name):
    return "primitive[@id='%s']/instance_attributes/nvpair[@name='%s']" % (device, name)


class Differences(unittest.TestCase):
    def assert_one(self, live, *words, judged=True):
        """Exactly one difference, which says these words and what to do."""
        found = live.compare()
        self.assertEqual(len(found), 1, found)
        self.assertEqual(found[0].is_judged, judged)
        line = fencetool.render_difference(found[0])
        self.assertNotIn("\n", line)
        self.assertTrue(found[0].advice)
        for word in words:
            self.assertIn(word, line)
        return found[0]

    def test_what_the_plan_makes_does_not_differ_from_it(self):
        for name, cluster, configuration in all_configurations():
            live = fencetool.parse_fencing(fencetool.render_cib(configuration, name))
            wanted = fencetool.plan_fencing(cluster, live)
            self.assertEqual(fencetool.compare_fencing(wanted, live), [], name)

    def test_each_single_thing_of_a_plan_is_missed_when_it_goes_and_seen_when_it_changes(self):
        """Whatever the plan holds: an element without a comparison would be one nobody misses."""
        for tag, key in (("nvpair", "value"), ("op", "timeout"), ("op", "interval"),
                         ("rsc_location", "score"), ("fencing-level", "devices"),
                         ("primitive", "type")):
            for number in range(len(list(Live().tree.iter(tag)))):
                changed, gone = Live(), Live()
                item = list(changed.tree.iter(tag))[number]
                # A time that is longer is no difference in a cluster option.
                item.set(key, "0" if item.get(key)[0] in "-123456789t" else "other")
                parents = {child: parent for parent in gone.tree.iter() for child in parent}
                item = list(gone.tree.iter(tag))[number]
                parents[item].remove(item)
                for live in (changed, gone):
                    judged = [found for found in live.compare() if found.is_judged]
                    self.assertTrue(judged, ElementTree.tostring(item))

    def test_a_parameter_is_named_with_both_values(self):
        live = Live()
        live.find(nvpair("fence-a", "ip")).set("value", "10.9.9.9")
        self.assert_one(live, "fence-a: parameter ip is '10.9.9.9', and should be '10.0.0.11'",
                        "run the script")

    def test_a_parameter_that_somebody_has_added_and_one_that_stands_there_twice(self):
        live = Live()
        path = "primitive[@id='fence-a']/instance_attributes"
        live.add(path, '<nvpair id="x" name="quiet" value="1"/>')
        self.assert_one(live, "fence-a: parameter quiet is '1', and should not be there")
        live.find(nvpair("fence-a", "quiet")).set("name", "ip")
        self.assert_one(live, "fence-a: parameter ip stands there 2 times")

    def test_secrets_are_compared_and_never_shown(self):
        live = Live(SECRET_NODES)
        for device, name in (("fence-a", "password"), ("fence-verify-a", "password"),
                             ("fence-b", "power_off_url"), ("fence-b", "status_url")):
            live.find(nvpair(device, name)).set("value", "other-geheim")
        live.add("primitive[@id='fence-b']/instance_attributes",
                 '<nvpair id="x" name="headers" value="Authorization: geheim"/>')
        found = live.compare()
        self.assertEqual(len(found), 5)
        self.assertIn("fence-a: parameter password is (not shown), and should be another one",
                      found[0].text)
        self.assertNotIn("geheim", repr(found))

    def test_a_secret_of_cibsecret_is_told(self):
        live = Live(SECRET_NODES)
        live.find(nvpair("fence-a", "password")).set("value", "lrm://")
        self.assert_one(live, "fence-a: parameter password is kept by cibsecret", "password_script")

    def test_a_device_that_is_missing_is_one_difference_and_its_level_another(self):
        live = Live()
        live.remove("resources", "primitive[@id='fence-b']")
        live.remove("fencing-topology", "fencing-level[@target='b']")
        self.assertEqual([item.text for item in live.compare()], [
            "fence-b (fence_ipmilan) is missing",
            "level 1 of b is missing, and should be fence-b,fence-verify-b"])

    def test_a_device_of_the_same_name_that_somebody_else_has_made(self):
        live = Live()
        live.remove("primitive[@id='fence-a']/meta_attributes",
                    "primitive[@id='fence-a']/meta_attributes/nvpair[@name='managed-by']")
        self.assert_one(live, "fence-a was not made by fencetool", "--adopt")

    def test_a_disabled_device_differs(self):
        live = Live()
        live.add("primitive[@id='fence-a']/meta_attributes",
                 '<nvpair id="x" name="target-role" value="Stopped"/>')
        self.assert_one(live, "fence-a: meta attribute target-role is 'Stopped'")

    def test_a_device_of_others_is_named_and_not_judged(self):
        live = Live()
        live.add("resources", '<primitive id="x" class="stonith" type="fence_apc">'
                 '<instance_attributes id="i"><nvpair id="ip" name="ipaddr" value="10.0.0.11"/>'
                 '</instance_attributes></primitive>')
        live.add("resources", '<primitive id="y" class="ocf" type="Dummy"/>')
        self.assert_one(live, "note: x (fence_apc) is not ours, at the same address as fence-a",
                        judged=False)

    def test_a_name_with_a_line_break_is_told_in_one_line(self):
        live = Live()
        live.add("primitive[@id='fence-a']/meta_attributes",
                 '<nvpair id="x" name="a&#10;b" value="1"/>')
        self.assert_one(live, "fence-a: meta attribute a\\nb is '1', and should not be there")

    def test_what_the_file_no_longer_has_is_left_over(self):
        live = Live(two_nodes() + "  c: {method: kasa, ip: 10.0.0.13, mgmt_ip: 10.0.0.3}\n",
                    ("a", "b", "c"))
        texts = " ".join(live.texts(two_nodes() + "  c: {method: none, mgmt_ip: 10.0.0.3}\n"))
        self.assertIn("fence-c (fence_kasa) is left over", texts)
        self.assertIn("level 1 of c (fence-c,fence-verify-c) is left over", texts)

    def test_levels_that_differ_merge_or_are_not_ours(self):
        live = Live()
        live.find("fencing-level[@target='a']").set("devices", "fence-verify-a,fence-a")
        self.assert_one(live, "level 1 of a is fence-verify-a,fence-a, and should be "
                        "fence-a,fence-verify-a")
        live = Live()
        live.add("fencing-topology",
                 '<fencing-level id="x" index="1" target="a" devices="fence-a"/>')
        self.assert_one(live, "level 1 of a stands there 2 times, which Pacemaker puts together")
        live = Live()
        live.add("fencing-topology",
                 '<fencing-level id="x" index="2" target="a" devices="fence-a"/>')
        self.assert_one(live, "level 2 of a (fence-a) is not ours", judged=False)
        live = Live()
        live.add("fencing-topology", '<fencing-level id="x" index="1" target-pattern="n.*" '
                 'devices="fence-a"/>')
        self.assert_one(live, "level 1 of nodes like n.* (fence-a) is not ours", judged=False)

    def test_several_levels_and_devices_and_what_stands_before_them(self):
        live = Live(LEVEL_NODES)
        self.assertEqual(live.texts(), [
            "ping is missing, and the cluster file puts it into a level (make it, or take it out "
            "of before in the cluster file)"])
        ping = ('<primitive id="ping" template="t"/>'
                '<template id="t" class="stonith" type="fence_heuristics_ping"/>')
        for xml in ("<x>%s</x>" % ping, '<primitive id="ping" class="stonith" type="fence_x"/>'):
            live = Live(LEVEL_NODES)
            live.add("resources", xml)
            self.assertEqual(live.texts(), [])
        second = "fencing-level[@target='b'][@index='2']"
        live.find(second).set("devices", "fence-b-level2,fence-verify-b-level2,ping")
        self.assert_one(live, "level 2 of b is fence-b-level2,fence-verify-b-level2,ping, and "
                        "should be ping,fence-b-level2,fence-verify-b-level2")
        live.find(second).set("index", "3")
        self.assertEqual([item.text for item in live.compare()], [
            "level 2 of b is missing, and should be ping,fence-b-level2,fence-verify-b-level2",
            "level 3 of b (fence-b-level2,fence-verify-b-level2,ping) is not ours: what succeeds "
            "there is believed"])

    def test_a_device_of_others_that_a_level_needs_has_to_work(self):
        def live_with_ping():
            live = Live(LEVEL_NODES)
            live.add("resources", '<primitive id="ping" class="stonith" '
                     'type="fence_heuristics_ping"><meta_attributes id="pm"/></primitive>')
            return live
        self.assertEqual(live_with_ping().compare(), [])
        live = live_with_ping()
        live.add("meta_attributes[@id='pm']",
                 '<nvpair id="r" name="target-role" value="Stopped"/>')
        self.assert_one(live, "ping is disabled, and so fails the level")
        live = live_with_ping()
        for name in "ab":
            live.add("constraints", '<rsc_location id="l-%s" rsc="ping" node="%s" '
                     'score="-INFINITY"/>' % (name, name))
        self.assert_one(live, "ping may run on no node")

    def test_a_device_that_the_file_has_no_more_is_left_over_with_its_level(self):
        live = Live(LEVEL_NODES)
        live.add("resources", '<primitive id="ping" class="stonith" type="fence_x"/>')
        edited = LEVEL_NODES.replace("{method: kasa, ip: 10.0.0.14}", "").replace(
            "{before: [ping], method: kasa, ip: 10.0.0.15}", "").replace(", ]", "]")
        texts = [item.text for item in live.compare(edited)]
        for told in ("fence-a-device2 (fence_kasa) is left over",
                     "fence-verify-b-level2 (fence_check) is left over",
                     "level 1 of a is fence-a,fence-a-device2,fence-verify-a,"
                     "fence-verify-a-device2, and should be fence-a,fence-verify-a",
                     "level 2 of b (ping,fence-b-level2,fence-verify-b-level2) is left over",
                     "ping (fence_x) is not ours"):
            self.assertTrue(any(text.startswith(told) for text in texts), (told, texts))

    def test_a_node_that_is_remote_on_one_side_only(self):
        text = two_nodes(", delay: 3") + "  r: {method: none, remote: true, mgmt_ip: 10.0.0.3}\n"
        self.assert_one(Live(text, ("a", "b", "r")), "node r is no remote or guest node")
        live = Live(text)
        live.add("resources", '<primitive id="r" class="ocf" provider="pacemaker" type="remote"/>')
        self.assertEqual(live.texts(), [])
        live.cluster = cluster_of(text.replace("remote: true, ", ""))
        self.assertIn("node r is a remote or guest node, which fences and verifies nobody (give it "
                      "remote: true in the cluster file)", live.texts())

    def test_a_ban_that_is_gone_and_wishes_of_others(self):
        live = Live()
        live.remove("constraints", "rsc_location[@rsc='fence-a']")
        self.assert_one(live, "fence-a has no location of score -INFINITY on a")
        live = Live(nodes=("a", "b", "c"))
        live.find("rsc_location[@rsc='fence-a']").set("score", "-100")
        self.assertIn("fence-a has no location of score -INFINITY on a", live.texts()[0])
        live = Live()
        live.add("constraints", '<rsc_location id="x" rsc="fence-a" node="b" score="50"/>')
        self.assert_one(live, "fence-a has a location of others of score 50 on b", judged=False)
        kept = '<rsc_location id="%s" rsc="fence-a" node="c" score="-INFINITY"/>'
        for name, judged in (("x", False), (fencetool.ban_id(
                fencetool.Ban("fence-a", ("c",), False), "c"), True)):
            live = Live(two_nodes(", delay: 3") + "  c: {method: none, mgmt_ip: 10.0.0.3}\n",
                        nodes=("a", "b", "c"))
            live.add("constraints", kept % name)
            self.assert_one(live, "score -INFINITY on c", judged=judged)

    def test_a_device_that_may_run_nowhere_is_told(self):
        live = Live()
        live.add("constraints", '<rsc_location id="x" rsc="fence-a" node="b" score="-INFINITY"/>')
        self.assertIn("fence-a may run on no node: it fences nobody", " ".join(live.texts()))
        live = Live()
        live.add("cluster_property_set",
                 '<nvpair id="x" name="symmetric-cluster" value="false"/>')
        texts = " ".join(live.texts())
        for device in ("fence-a", "fence-b", "fence-verify-a", "fence-verify-b"):
            self.assertIn(device + " may run on no node", texts)
        for number, (device, node) in enumerate((
                ("fence-a", "b"), ("fence-b", "a"), ("fence-verify-a", "b"))):
            live.add("constraints", '<rsc_location id="x%d" rsc="%s" node="%s" score="0"/>'
                     % (number, device, node))
        self.assertEqual([text for text in live.texts() if "no node" in text], [
            "fence-verify-b may run on no node: it fences nobody (look at its location "
            "constraints, and at symmetric-cluster)"])

    def test_fencing_that_is_switched_off_is_told_under_both_names(self):
        for name in ("stonith-enabled", "fencing-enabled"):
            for value in ("false", "no", "0"):
                live = Live()
                live.remove("cluster_property_set", "nvpair[@name='stonith-enabled']")
                live.add("cluster_property_set",
                         '<nvpair id="x" name="%s" value="%s"/>' % (name, value))
                self.assert_one(live, "%s is '%s', and should be 'true'" % (name, value))
        live = Live()
        live.add("cluster_property_set", '<nvpair id="x" name="fencing-enabled" value="false"/>')
        self.assert_one(live, "fencing-enabled is 'false'")
        live.find("nvpair[@name='fencing-enabled']").set("value", "true")
        self.assertEqual(live.compare(), [])
        live.remove("cluster_property_set", "nvpair[@name='stonith-enabled']")
        self.assertEqual(live.compare(), [])

    def test_a_longer_fencing_timeout_is_no_difference_and_a_shorter_one_is(self):
        for value, count in (("900s", 0), ("15min", 0), ("1h", 0), ("80", 1), ("900ms", 1),
                             ("soon", 1)):
            live = Live()
            live.find("nvpair[@name='stonith-timeout']").set("value", value)
            self.assertEqual(len(live.compare()), count, value)

    def test_an_action_that_leaves_nodes_off_contradicts_one_that_should_come_back(self):
        for name in ("stonith-action", "fencing-action"):
            live = Live()
            live.add("cluster_property_set", '<nvpair id="x" name="%s" value="off"/>' % name)
            self.assert_one(live, "%s is 'off'" % name, "fence-b should", "power_on: false")

    def test_nodes_that_only_one_side_knows(self):
        live = Live(nodes=("a", "b", "c"))
        texts = [item.text for item in live.compare()]
        self.assertEqual(texts, [
            "fence-verify-a has no location of score -INFINITY on c",
            "fence-verify-b has no location of score -INFINITY on c",
            "node c is not in the cluster file: it gets no fence device"])
        live = Live(nodes=("a",))
        self.assertIn("node b is not in the cluster", [item.text for item in live.compare()])

    def test_a_remote_node_that_only_the_cluster_knows_needs_no_ban(self):
        """The script bans verifiers from it once it has run, and has nothing to ban before."""
        remote = '<primitive id="r" class="ocf" provider="pacemaker" type="remote"/>'
        template = '<template id="t" class="ocf" provider="pacemaker" type="remote"/>'
        for parts in ([remote], [template, '<primitive id="r" template="t"/>']):
            live = Live()
            for xml in parts:
                live.add("resources", xml)
            self.assert_one(live, "node r is not in the cluster file")
            live.add("nodes", '<node id="r" uname="r" type="remote"/>')
            for name in "ab":
                live.add("constraints", '<rsc_location id="fencetool-ban-fence-verify-%s-r" '
                         'rsc="fence-verify-%s" node="r" score="-INFINITY"/>' % (name, name))
            self.assert_one(live, "node r is not in the cluster file")

    def test_what_keeps_the_whole_cluster_from_fencing_is_told(self):
        for name in ("maintenance-mode", "startup-fencing"):
            for value in ("true", "false"):
                count = int((value == "true") == (name == "maintenance-mode"))
                live = Live()
                live.add("cluster_property_set", '<nvpair id="x" name="%s" value="%s"/>'
                         % (name, value))
                self.assertEqual([item.is_judged for item in live.compare()], [False] * count)
        live = Live()
        live.add("configuration", '<rsc_defaults><meta_attributes id="d"><nvpair id="x" '
                 'name="target-role" value="Stopped"/></meta_attributes></rsc_defaults>')
        self.assert_one(live, "resource default target-role is 'Stopped': each fence device is")

    def test_what_somebody_has_made_of_our_devices_is_named(self):
        for place, xml, judged in (
                ("constraints", '<rsc_colocation id="x" rsc="fence-a" with-rsc="y"/>', True),
                ("constraints", '<rsc_order id="x" first="y" then="fence-a"/>', True),
                ("constraints", '<tag id="x"><obj_ref id="fence-a"/></tag>', True),
                ("constraints", '<rsc_location id="x" rsc-pattern="^fence-a$" node="b" '
                 'score="-INFINITY"/>', False),
                ("constraints", '<rsc_location id="x" node="b" score="-INFINITY"><resource_set '
                 'id="s"><resource_ref id="fence-a"/></resource_set></rsc_location>', False),
                ("constraints", '<rsc_location id="x" rsc="fence-a"><rule id="r" score="1"/>'
                 '</rsc_location>', False)):
            live = Live()
            live.add(place, xml)
            tag = xml[1:].split(" ")[0]
            self.assert_one(live, "fence-a stands in the %s x, which is not ours" % tag,
                            judged=judged)
        live = Live()
        resources, device = live.find("resources"), live.find("primitive[@id='fence-a']")
        resources.remove(device)
        group = ElementTree.SubElement(resources, "group", id="g")
        group.append(device)
        self.assert_one(live, "fence-a stands in the group g")


class DamagedCibs(unittest.TestCase):
    TEXTS = ("", "x", "0", "-INFINITY", "a,b", "1:2;3", "99999999999", "\u00e9<&'", "\n", "lrm://",
             "fence_check", "fence_kasa")
    TAGS = ("primitive", "group", "rsc_location", "op", "nvpair", "node")

    def damage(self, chance, tree):
        """Take something away, change it, double it, or call it otherwise."""
        parents = {child: parent for parent in tree.iter() for child in parent}
        if not parents:
            return
        child = chance.choice(list(parents))
        way = chance.randrange(4)
        if way == 0:
            parents[child].remove(child)
        elif way == 1 and child.attrib:
            del child.attrib[chance.choice(sorted(child.attrib))]
        elif way == 2 and child.attrib:
            child.set(chance.choice(sorted(child.attrib)), chance.choice(self.TEXTS))
        else:
            copy = ElementTree.fromstring(ElementTree.tostring(child))
            copy.tag = chance.choice(self.TAGS)
            chance.choice(list(parents)).append(copy)

    def test_a_cib_in_any_state_is_compared_and_imported_or_refused(self):
        """Saved CIBs are edited by hand, and those of old versions hold what nobody expects."""
        refused = 0
        for seed in range(120):
            chance, live = random.Random(seed), Live()
            for _ in range(chance.randrange(1, 6)):
                self.damage(chance, live.tree)
            try:
                for text in live.texts():
                    self.assertNotIn("\n", text)
                found = fencetool.import_cluster(fencetool.parse_fencing(live.data()))
                fencetool.parse_cluster("c.yml", fencetool.render_cluster_file(
                    *found, shows_secrets=True).encode("utf-8"))
            except fencetool.FenceError:
                refused += 1
        self.assertLess(refused, 30)


class Readme(unittest.TestCase):
    def test_the_transcript_of_the_readme_is_what_is_told(self):
        with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
            text = handle.read()
        example = text.partition("\n    stonith_nodes:\n")[2].partition("\n\n")[0]
        live = Live("stonith_nodes:\n" + example.replace("\n    ", "\n")[4:],
                    ("storage-a", "storage-b"))
        live.find(nvpair("fence-storage-b", "ip")).set("value", "10.20.20.222")
        live.add("primitive[@id='fence-storage-b']/meta_attributes",
                 '<nvpair id="x" name="target-role" value="Stopped"/>')
        live.find("nvpair[@name='stonith-enabled']").set("value", "false")
        live.add("resources", '<primitive id="old-apc" class="stonith" type="fence_apc"/>')
        shown = text.partition("# fencetool check-config --live\n")[2].partition("\n```")[0]
        self.assertEqual(sorted(shown.split("\n")[1:-1]), sorted(live.texts()))
        self.assertEqual(shown.split("\n")[-1], "the cluster: 3 differences, 1 note")


class Command(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.place = tempfile.TemporaryDirectory()
        cls.file = os.path.join(CLUSTERS, "mixed.yml")
        cls.cib = os.path.join(cls.place.name, "cib.xml")
        cluster = fencetool.load_cluster(cls.file, None, fencetool.System("test"))[0]
        cls.xml = fencetool.render_cib(fencetool.build_configuration(cluster), "")
        cls.write(cls.cib, cls.xml)

    @classmethod
    def tearDownClass(cls):
        cls.place.cleanup()

    @staticmethod
    def write(path, text):
        with open(path, "w", encoding="utf-8") as handle:
            handle.write(text)
        return path

    def changed(self, old, new):
        self.assertIn(old, self.xml)
        return self.write(os.path.join(self.place.name, "changed.xml"), self.xml.replace(old, new))

    def run_command(self, *arguments, **options):
        return support.fencetool("check-config", *arguments, **options)

    def test_the_same_is_0_a_difference_1_and_no_cib_2(self):
        result = self.run_command(self.file, "--cib", self.cib)
        self.assertEqual((result.code, result.err), (0, ""))
        self.assertIn("cib.xml: 0 differences, 0 notes\n", result.out)
        changed = self.changed("10.20.20.202", "10.20.20.222")
        result = self.run_command(self.file, "--cib", changed)
        self.assertEqual((result.code, result.err), (1, ""))
        self.assertIn("fence-storage-b: parameter ip is '10.20.20.222', and should be "
                      "'10.20.20.202' (run the script", result.out)
        for path, told in ((self.file, "it is not XML"), ("/nowhere.xml", "cannot read"),
                           (self.write(self.cib + ".other", "<other/>"), "it is no CIB")):
            result = self.run_command(self.file, "--cib", path)
            self.assertEqual((result.code, result.out), (2, ""), result)
            self.assertIn(told, result.err)

    def test_json_tells_each_difference_and_no_secret(self):
        changed = self.changed('value="CHANGEME"', 'value="geheim-it-is"')
        result = self.run_command(self.file, "--cib", changed, "--json")
        self.assertEqual((result.code, result.err), (1, ""))
        self.assertNotIn("geheim", result.out)
        shown = json.loads(result.out)
        self.assertIs(shown["good"], False)
        self.assertEqual({item["element"]["owner"] for item in shown["differences"]},
                         {"fence-storage-a", "fence-verify-storage-a"})
        first = shown["differences"][0]
        self.assertEqual((first["element"]["kind"], first["element"]["name"], first["wanted"],
                          first["found"], first["is_judged"]),
                         ("parameter", "password", "(not shown)", "(not shown)", True))

    def test_without_a_cluster_that_runs_it_says_what_to_do(self):
        support.require_program("cibadmin")
        result = self.run_command(self.file, "--live")
        self.assertEqual((result.code, result.out), (2, ""))
        self.assertIn("the cluster is not running here", result.err)
        self.assertIn("--cib FILE", result.err)

    def test_a_file_with_mistakes_is_compared_with_nothing(self):
        wrong = self.write(os.path.join(self.place.name, "wrong.yml"), "stonith_nodes: 1\n")
        result = self.run_command(wrong, "--live")
        self.assertEqual((result.code, result.err), (1, ""))
        self.assertIn("the cluster was not compared: correct the mistakes first", result.out)

    def test_two_cibs_are_compared_in_words(self):
        changed = self.changed("10.20.20.202", "10.20.20.222")
        result = self.run_command("--plan", changed, "--cib", self.cib)
        self.assertEqual((result.code, result.err), (1, ""))
        self.assertIn("fence-storage-b: parameter ip is '10.20.20.202', and should be "
                      "'10.20.20.222'\n", result.out)
        result = self.run_command("--plan", self.cib, "--cib", self.cib)
        self.assertEqual((result.code, result.out, result.err), (0, "", ""))
        result = self.run_command("--plan", self.cib)
        self.assertEqual((result.code, result.out), (2, ""))


class ScriptInWords(test_generators_pcs.ConfiguredTest):
    """The generated script says what it will change as check-config does, where that is there."""

    def run_script(self, cib, text, *arguments):
        script = self.script(text, "words")
        place = tempfile.mkdtemp(dir=self.place)
        tool = os.path.join(place, "fencetool")
        with open(tool, "w") as handle:
            handle.write('#!/bin/sh\nexec "%s" -IS "%s" "$@"\n' % (
                support.sys.executable, support.compiled_script()))
        os.chmod(tool, 0o755)
        command, own = self.lab.command(["sh", script, "--cib", cib] + list(arguments))
        return support.run(command, environment={"PATH": place + ":" + own["PATH"]})

    def test_the_script_tells_what_changes_in_the_words_of_check_config(self):
        cib = self.configured()
        edited = test_generators_pcs.TWO_NODES.replace("202", "222")
        told = self.run_script(cib, edited, "--dry-run")
        self.assertEqual(told.code, 0, told.err)
        self.assertIn("fence-storage-b: parameter ip is '10.20.20.202', and should be "
                      "'10.20.20.222'\n", told.out.partition("\n---")[0])
        self.assertIn("fence-verify-storage-b: parameter fence_ip is", told.out)
        again = self.run_script(cib, test_generators_pcs.TWO_NODES)
        self.assertIn("Nothing to change.", again.err)
        self.assertEqual(again.out, "")


if __name__ == "__main__":
    unittest.main()
