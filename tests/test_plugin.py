"""The cluster-glue plugin dialect: verbs in argv, parameters in the environment."""
import os
import shutil
import sys
import tempfile

from tests import support, virtual
from tests.support import AgentTest


class Plugin(AgentTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "kasa")
        os.symlink(support.compiled_script(), self.path)

    def plugin(self, *words, **environment):
        return support.run([sys.executable, "-IS", self.path] + list(words),
                           environment=environment)

    def of(self, device, hosts="storage-b", **more):
        return dict(hostlist=hosts, ip="127.0.0.1", ipport=str(device.address[1]), **more)

    def test_the_verbs_that_describe(self):
        self.assertEqual(self.plugin("getconfignames").out.split()[:2], ["hostlist", "ip"])
        self.assertEqual(self.plugin("gethosts", hostlist="a, b").out, "a\nb\n")
        for verb in ("getinfo-devid", "getinfo-devname", "getinfo-devdescr", "getinfo-devurl"):
            self.assertTrue(self.plugin(verb).out.strip())
        xml = self.plugin("getinfo-xml").out
        self.assertTrue(xml.startswith("<parameters>") and xml.endswith("</parameters>\n"))

    def test_off_on_and_reset_switch_the_host(self):
        device = self.start(virtual.Kasa(["node"]))
        for verb, powered in (("off", False), ("on", True), ("reset", True)):
            self.assert_success(self.plugin(verb, "storage-b", **self.of(device)))
            self.assertIs(device.outlets[0].powered, powered)
        self.assert_success(self.plugin("status", **self.of(device)))

    def test_an_outlet_of_a_strip_is_named_by_plug_or_by_the_hosts_name(self):
        device = self.start(virtual.Kasa(["storage-a", "storage-b"]))
        self.assert_success(self.plugin("off", "storage-b", **self.of(device, plug="2")))
        self.assertEqual([outlet.powered for outlet in device.outlets], [True, False])

    def test_nothing_is_switched_on_a_doubt(self):
        device = self.start(virtual.Kasa(["node"]))
        for words, environment in (
                (("off", "other"), self.of(device)), (("off",), self.of(device)), ((), {}),
                (("explode", "storage-b"), self.of(device)),
                (("off", "storage-b"), self.of(device, hosts="storage-a storage-b")),
                (("off", "storage-b"), self.of(device, hosts="storage-a storage-b", plug="1")),
                (("off", "storage-b"), self.of(device, hosts=""))):
            with self.subTest(words):
                self.assert_failure(self.plugin(*words, **environment))
        self.assertFalse(any("set_relay_state" in request.get("system", {})
                             for request in device.requests))

    def test_a_fence_agent_called_like_a_plugin_switches_nothing(self):
        for verb in ("getconfignames", "off", "status"):
            self.assert_failure(support.fencetool("fence_kasa", verb, "storage-b"), "no option")

    def test_the_stonith_program_of_cluster_glue_drives_it(self):
        support.require_namespaces("mount")
        stonith = support.require_program("stonith")
        folder = "/usr/lib/stonith/plugins/external"
        support.require(os.path.isdir(folder), "cluster-glue's plugin folder is missing")
        device = self.start(virtual.Kasa(["node"]))
        with tempfile.TemporaryDirectory() as layer:
            # stonith leaves out what a group may write, as the files of some tarballs.
            os.chmod(shutil.copy(support.SCRIPT, os.path.join(layer, "kasa")), 0o755)
            results = [support.run(
                ["unshare", "-m", "sh", "-c",
                 "mount -t overlay overlay -o lowerdir=%s:%s %s && exec %s -t external/kasa "
                 "hostlist=storage-b ip=127.0.0.1 ipport=%d %s"
                 % (layer, folder, folder, stonith, device.address[1], words)],
                environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
                for words in ("-S", "-lS", "-T off storage-b")]
        self.assertEqual([result.code for result in results], [0, 0, 0], results)
        self.assertFalse(device.outlets[0].powered)
