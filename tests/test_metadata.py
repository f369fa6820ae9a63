"""What the cluster's own programs make of the agents' metadata."""
import os
import shutil
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

import fencetool
from tests import support, versions

# The rules of fence-agents' lib/metadata.rng, as data: element, attributes (name: values or None
# for any, with ? when optional), children in their order (with + * ?).
RULES = {
    "resource-agent": ({"name": None, "shortdesc": None},
                       "longdesc vendor-url parameters actions"),
    "longdesc": ({}, ""), "vendor-url": ({}, ""),
    "parameters": ({}, "parameter+"),
    "parameter": ({"name": None, "unique": "01", "required": "01", "deprecated?": "01",
                   "obsoletes?": None}, "getopt content shortdesc+"),
    "getopt": ({"mixed": None}, ""),
    "content": ({"type": ("boolean", "string", "second", "integer", "select"), "default?": None},
                "option*"),
    "option": ({"value": None}, ""),
    "shortdesc": ({"lang": None}, ""),
    "actions": ({}, "action+"),
    "action": ({"name": None, "on_target?": "01", "automatic?": "01"}, ""),
}
# The same rules for xmllint, where the packaged schema is missing.
SCHEMA_FOLDERS = ("/usr/share/fence/metadata.rng", "/usr/share/fence-agents/metadata.rng")
PCS_SCHEMAS = ("/usr/share/pcs/ocf-1.0.rng", "/usr/lib/pcs/data/ocf-1.0.rng",
               "/usr/share/pcs/data/ocf-1.0.rng")
# pcs stonith describe, for several agents: the interpreter of pcs takes a second to start.
DESCRIBE = """
import os, sys
from pcs import app
for number, agent in enumerate(sys.argv[1:]):
    print(end="\\0" * bool(number), flush=True)
    child = os.fork()
    if child == 0:
        app.main(["stonith", "describe", agent])
        sys.exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(1)
"""


def metadata_of(agent, action="metadata"):
    return support.on_stdin(agent, {"action": action})


class Metadata(unittest.TestCase):
    def check_element(self, element):
        attributes, order = RULES[element.tag]
        allowed = {name.rstrip("?"): values for name, values in attributes.items()}
        required = {name for name in attributes if not name.endswith("?")}
        self.assertEqual(set(element.attrib) - set(allowed), set(), element.tag)
        self.assertEqual(required - set(element.attrib), set(), element.tag)
        for name, value in element.attrib.items():
            if allowed[name] is not None:
                self.assertIn(value, allowed[name])
        tags = [child.tag for child in element]
        for rule in order.split():
            tag = rule.rstrip("+*?")
            count = 0
            while tags and tags[0] == tag:
                tags.pop(0)
                count += 1
            if rule.endswith("+"):
                self.assertGreaterEqual(count, 1, rule)
            elif not rule.endswith("*"):
                self.assertEqual(count, 1, "%s in %s" % (rule, element.tag))
        self.assertEqual(tags, [], element.tag)
        for child in element:
            self.check_element(child)

    def test_metadata_follows_the_schema_of_fence_agents(self):
        for agent in fencetool.AGENTS:
            with self.subTest(agent):
                root = ElementTree.fromstring(metadata_of(agent).out)
                self.check_element(root)
                names = [item.get("name") for item in root.iter("parameter")]
                self.assertEqual(len(names), len(set(names)))

    def test_every_spelling_of_the_action_gives_the_same_xml(self):
        for agent in fencetool.AGENTS:
            texts = {metadata_of(agent, action).out
                     for action in ("metadata", "meta-data", "manpage", "METADATA")}
            texts.add(support.fencetool(agent, "-o", "metadata").out)
            self.assertEqual(len(texts), 1)

    def test_the_cluster_is_told_of_plug_and_of_no_automatic_power_on(self):
        for agent in fencetool.AGENTS:
            text = metadata_of(agent).out
            self.assertIn('<parameter name="plug"', text)
            self.assertIn('<action name="on" automatic="0"/>', text)
            self.assertNotIn('automatic="1"', text)

    def test_xmllint_accepts_it_against_the_installed_schemas(self):
        xmllint = support.require_program("xmllint")
        schemas = [path for path in SCHEMA_FOLDERS + PCS_SCHEMAS if os.path.exists(path)]
        for agent in fencetool.AGENTS:
            text = metadata_of(agent).out
            self.assertEqual(support.run([xmllint, "--noout", "-"], stdin=text).code, 0)
            for schema in schemas:
                with self.subTest(schema=schema):
                    result = support.run([xmllint, "--noout", "--relaxng", schema, "-"],
                                         stdin=text)
                    self.assertEqual(result.code, 0, result.err)


class ClusterPrograms(unittest.TestCase):
    """pacemaker and pcs look for agents in /usr/sbin: they run where an overlay shows ours there,
    in a mount namespace of their own."""

    @classmethod
    def setUpClass(cls):
        support.require_namespaces("mount")
        for program in ("stonith_admin", "crm_resource", "crm_verify", "pcs", "unshare"):
            support.require_program(program)
        cls.folder = tempfile.mkdtemp(prefix="fencetool-test-")
        layer = os.path.join(cls.folder, "layer")
        os.mkdir(layer)
        shutil.copy(support.SCRIPT, os.path.join(layer, "fencetool"))
        for agent in fencetool.AGENTS:
            os.symlink("fencetool", os.path.join(layer, agent))
        cls.layer = layer

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder, ignore_errors=True)

    def run_program(self, script):
        """Run a shell script where /usr/sbin holds the agents too."""
        mounted = ("mount -t overlay overlay -o lowerdir=%s:/usr/sbin /usr/sbin && cd %s && %s"
                   % (self.layer, self.folder, script))
        return support.run(["unshare", "-m", "sh", "-c", mounted],
                           environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C",
                                        "HOME": self.folder})

    def test_stonith_admin_and_crm_resource_read_the_metadata(self):
        for agent in fencetool.AGENTS:
            for command in ("stonith_admin --metadata --agent %s" % agent,
                            "crm_resource --show-metadata stonith:%s" % agent):
                with self.subTest(command):
                    result = self.run_program(command)
                    self.assertEqual(result.code, 0, result.err)
                    self.assertIn('name="%s"' % agent, result.out)

    def test_pcs_describes_every_agent_and_its_parameters(self):
        result = self.run_program("/usr/bin/python3 -c '%s' %s" % (
            DESCRIBE, " ".join(fencetool.AGENTS)))
        self.assertEqual(result.code, 0, result.err)
        texts = result.out.split("\0")
        self.assertEqual(len(texts), len(fencetool.AGENTS))
        for agent, text in zip(fencetool.AGENTS.values(), texts):
            self.assertTrue(text.startswith("%s - " % agent.name), text)
            names = {row.name for row in agent.params}
            for name in names - {"help", "version", "nodename", "action"}:
                self.assertIn(name, text)

    def test_pcs_creates_a_device_that_crm_verify_accepts(self):
        result = self.run_program(
            "cibadmin --empty > cib.xml && "
            "pcs -f cib.xml property set stonith-enabled=true && "
            "pcs -f cib.xml stonith create fence-b fence_kasa ip=10.20.20.202 "
            "device_mac=CC:32:E5:00:00:01 plug=2 pcmk_host_list=storage-b "
            "pcmk_off_timeout=60 op monitor interval=60s timeout=30s %s && "
            "crm_verify -V -x cib.xml" % " ".join(versions.pcs_change().asks_agent))
        self.assertEqual((result.code, result.err), (0, ""), result)

    def test_pacemaker_and_a_pcs_that_asks_refuse_what_validate_all_refuses(self):
        commands = ["stonith_admin --validate --agent fence_kasa --option ip=10.20.20.202 "
                    "--option power_timeout=never"]
        commands += ["cibadmin --empty > bad.xml && pcs -f bad.xml stonith create fence-b "
                     "fence_kasa ip=10.20.20.202 power_timeout=never " + option
                     for option in versions.pcs_change().asks_agent]
        for command in commands:
            result = self.run_program(command)
            self.assertNotEqual(result.code, 0, command)
            self.assertIn("'never' is not a time", result.err + result.out)
