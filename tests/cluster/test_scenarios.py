"""The agents under a real cluster: what is fenced, what is not, and who holds the resource."""

import os
import time
import unittest

from tests.cluster import fenced, harness

OTHER = {"storage-a": "storage-b", "storage-b": "storage-a"}
WAIT_S = fenced.FAILOVER_WAIT_S
# Beside the word of Pacemaker's fencer for an operation of a level that went wrong.
FAILED = r"Operation 'reboot' targeting %s .*: (?!OK)"


def load_tests(loader, tests, pattern):
    if os.environ.get("FENCETOOL_TEST_CLUSTER") == "0":
        return unittest.TestSuite()
    return tests


def setUpModule():
    reasons = harness.missing_requirements() + fenced.required_programs()
    if reasons and os.environ.get("FENCETOOL_TEST_ALL") == "1":
        raise AssertionError("no cluster here: " + "; ".join(reasons))
    if reasons:
        raise unittest.SkipTest("; ".join(reasons))


class Scenario(unittest.TestCase):
    """One cluster for all tests of a class; it is whole before each of them."""

    @classmethod
    def make_cluster(cls):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        if cls is Scenario:
            raise unittest.SkipTest("the base of the others")
        cls.cluster = cls.make_cluster()
        cls.cluster.start()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()
        leftovers = cls.cluster.leftovers()
        if leftovers:
            raise AssertionError("left over: " + "; ".join(leftovers))

    def setUp(self):
        self.cluster.note("test " + self.id().rpartition(".")[2])
        self.cluster.make_whole()
        self.watch = fenced.Watch(self.cluster)

    def tearDown(self):
        self.assertEqual([], self.cluster.overlapping_writers())
        self.assertEqual([], self.cluster.false_successes(), self.cluster.render_events())

    # -- what happens, and what is to follow --

    def fence(self, target, node, code=0):
        """Let a person in a node order the fence; return what pcs says."""
        done = self.cluster[node].run(["pcs", "stonith", "fence", target], check=False,
                                      timeout_s=2 * WAIT_S)
        self.assertEqual(code, done.returncode, done.stderr)
        return done.stdout + done.stderr

    def wait_for_failover(self, lost):
        """Wait until the writer runs on the other storage node, and a success is recorded."""
        self.cluster.wait_for_holder([OTHER[lost]])
        self.assertTrue(self.cluster.history(lost, "success"))

    def tell_steps(self, lost, since_s):
        """Print when each step of a failover came after the node's death."""
        steps = self.cluster.steps(lost, since_s)
        print("\n%s: %s" % (self.id().rpartition(".")[2], ", ".join(
            "%s %.1f s" % (step, at_s - since_s) for step, at_s in steps)))
        return [step for step, _ in steps]


class AsInTheGuide(Scenario):
    """A BMC and plugs of two makes; the storage network is a cable; plugs stay off."""

    @classmethod
    def make_cluster(cls):
        return fenced.FencedCluster(fenced.MIXED, is_configured=False)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            cls.cluster.configure(cls.cluster["storage-a"])
        except BaseException:
            cls.cluster.stop()
            raise

    def test_every_device_of_the_script_runs_on_another_node_than_its_target(self):
        self.cluster.wait_for(lambda: len(self.cluster.started_devices()) == 6, WAIT_S,
                              "all devices started")
        for device, node in self.cluster.started_devices().items():
            self.assertFalse(device.endswith(node), device + " runs on " + node)
        shown = self.cluster["quorum"].run(["pcs", "stonith", "status"]).stdout
        for node in harness.NODES:
            self.assertRegex(shown, r"fence-%s\s.*Started" % node)
            self.assertIn("Target: %s\n   Level 1 - fence-%s,fence-verify-%s" % (
                node, node, node), shown)

    def test_a_killed_node_is_fenced_and_verified_and_the_writer_moves(self):
        lost = self.cluster.wait_for_holder()
        self.cluster[lost].cut_power()
        died_s = time.monotonic()
        self.wait_for_failover(lost)
        self.assertEqual(["lost", "off", "proven dead", "writer moved"],
                         self.tell_steps(lost, died_s))

    def test_a_node_that_hangs_is_fenced_and_verified_and_the_writer_moves(self):
        lost = self.cluster.wait_for_holder()
        self.cluster[lost].freeze()
        hung_s = time.monotonic()
        self.wait_for_failover(lost)
        self.assertEqual(["lost", "off", "proven dead", "writer moved"],
                         self.tell_steps(lost, hung_s))

    def test_a_fenced_node_stays_off_until_its_plug_is_switched_on(self):
        self.assertIn("Node: storage-b fenced", self.fence("storage-b", "quorum"))
        self.assertFalse(self.cluster["storage-b"].alive())
        self.cluster.plugs["kasa"].press(number=2)
        self.cluster.wait_until_online()


if __name__ == "__main__":
    unittest.main()
