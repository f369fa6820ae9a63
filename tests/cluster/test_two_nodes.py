"""Clusters of two nodes: with the votes of the two alone, and with a quorum device."""

import time
import unittest

from tests import versions
from tests.cluster import fenced, harness, test_scenarios

WAIT_S = test_scenarios.WAIT_S
FAILED = test_scenarios.FAILED
PROVEN_DEAD = "Remapped 'off' targeting %s complete"
# The fence that the other node's delay holds back takes so much longer.
LIMITS = {"fence-storage-a": dict(test_scenarios.SHORT, pcmk_off_timeout=25),
          "fence-storage-b": test_scenarios.SHORT,
          "fence-verify-storage-a": test_scenarios.SHORT_CHECK,
          "fence-verify-storage-b": test_scenarios.SHORT_CHECK}


load_tests = harness.load_tests
setUpModule = harness.require_cluster


class OfTwo:
    """What holds for two nodes however they vote; a Scenario has it besides."""

    layout = None

    @classmethod
    def make_cluster(cls):
        return fenced.FencedCluster(cls.layout, limits=LIMITS, **{"stonith-max-attempts": 100})

    def wait_for_proof(self, target):
        """Wait until the target is proven dead; return when that was."""
        self.watch.wait_for(PROVEN_DEAD % target)
        return self.cluster.log_of(PROVEN_DEAD % target)[-1][0]

    def wait_until_alone(self, name):
        self.cluster.wait_for(lambda: self.cluster.is_alone(name), WAIT_S, name + " is alone")

    def new_tenures(self, since_s):
        return [tenure.node for tenure in self.cluster.tenures() if tenure.first_s > since_s]

    def was_cut(self, name):
        return name + " cut" in [event.what for event in self.cluster.events
                                 if event.time_s > self.watch.started_s]

    def test_either_node_dies_and_is_proven_dead_before_the_other_takes_its_resource(self):
        for lost in harness.STORAGE:
            self.cluster.make_whole()
            self.move_writer_to(lost)
            self.cluster[lost].cut_power()
            died_s = time.monotonic()
            self.wait_for_failover(lost)
            self.assertEqual(["lost", "off", "proven dead", "writer moved"],
                             self.tell_steps(lost, died_s))

    def test_of_nodes_that_lost_each_other_one_survives_and_the_other_is_proven_dead_first(self):
        self.move_writer_to("storage-b")
        # Were it the first answer that decides, the other one would win.
        self.cluster.plugs["kasa"].stall(seconds=1.5, answers=1)
        split_s = time.monotonic()
        self.cluster.partition([["storage-a"], ["storage-b"]])
        proven_s = self.wait_for_proof("storage-b")
        self.cluster.wait_for_holder(["storage-a"])
        self.assertEqual(["storage-a"], self.new_tenures(split_s))
        self.assertEqual(["storage-a"], self.new_tenures(proven_s))
        # The loser gets power again, in a cluster that is still split: it must not strike back.
        self.cluster.plugs["kasa"].press(number=2)
        self.wait_until_alone("storage-b")
        self.assertFalse(self.was_cut("storage-a"), self.cluster.render_events())
        self.assertTrue(self.cluster.writes())
        self.cluster.heal()
        self.cluster.wait_until_online(seconds=WAIT_S)
        self.assertEqual(1, self.watch.count(PROVEN_DEAD % ".*"))

    def test_without_the_management_switch_nobody_is_fenced_and_nobody_takes_over(self):
        holder = self.cluster.wait_for_holder()
        self.cluster.network.cut_switch("management")
        self.wait_for_what_follows(holder)
        self.assertEqual([], self.new_tenures(self.watch.started_s))
        self.assertEqual(0, self.watch.count(PROVEN_DEAD % ".*"))
        # When it is back, one of them may be fenced before they have found each other.
        self.cluster.network.replug()
        self.cluster.wait_for_holder()
        self.cluster.make_whole()

    def test_a_node_that_comes_back_alone_fences_the_other_before_it_starts_anything(self):
        for name in harness.STORAGE:
            self.cluster[name].cut_power()
        self.cluster["storage-a"].boot()
        self.let_it_go_on("storage-a")
        proven_s = self.wait_for_proof("storage-b")
        self.cluster.wait_for_holder(["storage-a"])
        self.assertEqual(["storage-a"], self.new_tenures(self.watch.started_s))
        self.assertEqual(["storage-a"], self.new_tenures(proven_s))


class TwoNodes(OfTwo, test_scenarios.Scenario):
    """two_node and wait_for_all: both have quorum alone, and the delay decides a race."""

    layout = fenced.TWO_NODES

    def wait_for_what_follows(self, holder):
        # Each wants to fence the other; the wait for the first refusal is the shorter by the delay.
        self.watch.wait_for(versions.FENCING_WANTED % "storage-a")
        self.watch.wait_for(FAILED % "storage-b")
        self.assertTrue(self.cluster.writes())

    def let_it_go_on(self, name):
        self.wait_until_alone(name)
        self.assertEqual([], self.new_tenures(self.watch.started_s))
        self.assertEqual(0, self.watch.count("Requesting fencing"))
        self.cluster.unblock(name)

    def test_the_survivor_without_its_gateway_proves_nothing(self):
        self.move_writer_to("storage-b")
        self.cluster.network.set_link("witness", "client", False)
        self.cluster["storage-b"].cut_power()
        self.watch.wait_for("witness 10.30.30.254 is silent too")
        self.watch.wait_for(FAILED % "storage-b")
        self.assertEqual(["storage-b"], self.cluster.holders(fenced.WRITER))
        self.assertEqual(0, self.watch.count(PROVEN_DEAD % ".*"))
        self.cluster.network.set_link("witness", "client", True)
        self.wait_for_failover("storage-b")


class QuorumDevice(OfTwo, test_scenarios.Scenario):
    """A quorum device gives its vote to one of two halves; the other may neither run nor fence."""

    layout = fenced.QUORUM_DEVICE

    def wait_for_what_follows(self, holder):
        # Neither node reaches the device: nobody has quorum.
        self.cluster.wait_for(lambda: not self.cluster.writes(), WAIT_S, "nobody writes")
        self.assertEqual(0, self.watch.count("Requesting fencing"))

    def let_it_go_on(self, name):
        # The vote of the device makes it quorate.
        pass


if __name__ == "__main__":
    unittest.main()
