"""The agents under a real cluster: what is fenced, what is not, and who holds the resource."""

import os
import threading
import time
import unittest

from tests import versions
from tests.cluster import fenced, harness

OTHER = {"storage-a": "storage-b", "storage-b": "storage-a"}
# A directory that is to get the logs of all nodes, one directory a class.
LOGS = "FENCETOOL_CLUSTER_LOGS"
WAIT_S = fenced.FAILOVER_WAIT_S
# Beside the word of Pacemaker's fencer for an operation of a level that went wrong.
FAILED = r"Operation 'reboot' targeting %s .*: (?!OK)"


load_tests = harness.load_tests
setUpModule = harness.require_cluster


class Scenario(unittest.TestCase):
    """One cluster for all tests of a class; it is whole before each of them."""

    @classmethod
    def make_cluster(cls):
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.make_cluster()
        cls.cluster.start()

    @classmethod
    def tearDownClass(cls):
        if os.environ.get(LOGS):
            cls.cluster.save_logs(os.path.join(os.environ[LOGS], cls.__name__))
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

    def fence(self, target, node):
        """Let a person in a node order a fence that succeeds; return what pcs says."""
        done = self.order_fence(target, node)
        self.assertEqual(0, done.returncode, done.stderr)
        return done.stdout + done.stderr

    def order_fence(self, target, node):
        return self.cluster[node].run(["pcs", "stonith", "fence", target], check=False,
                                      timeout_s=2 * WAIT_S)

    def move_writer_to(self, name):
        if self.cluster.wait_for_holder() == name:
            return
        node = self.cluster.quorate_node()
        node.run(["crm_resource", "--resource", fenced.WRITER, "--move", "--node", name])
        self.cluster.wait_for_holder([name])
        node.run(["crm_resource", "--resource", fenced.WRITER, "--clear"])

    def wait_for_failover(self, lost):
        """Wait until the writer runs on the other storage node, and a success is recorded."""
        self.cluster.wait_for_holder([OTHER[lost]])
        self.assertTrue(self.cluster.history(lost, "success"))

    def assert_nothing_moved(self, holder):
        self.assertEqual([holder], self.cluster.holders(fenced.WRITER))
        self.assertEqual(0, self.watch.count("Remapped 'off' targeting storage-b complete"))

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
            cls.cluster.configure(cls.cluster["storage-a"], fenced.MIXED)
            cls.cluster.add_writer(cls.cluster["storage-a"])
        except BaseException:
            cls.cluster.stop()
            raise

    def test_every_device_of_the_script_runs_on_another_node_than_its_target(self):
        self.cluster.wait_for_devices()
        for device, node in self.cluster.started_devices().items():
            self.assertFalse(device.endswith(node), device + " runs on " + node)
        shown = self.cluster["quorum"].run(["pcs", "stonith", "status"]).stdout
        words = " ".join(shown.split())
        for node in harness.NODES:
            self.assertRegex(shown, r"fence-%s\s.*Started" % node)
            self.assertIn(versions.render_level(1, node, "fence-" + node, "fence-verify-" + node),
                          words)

    def test_the_running_cluster_is_as_its_file_says_until_somebody_changes_it(self):
        node = self.cluster["storage-a"]
        tool, file = [os.path.join(self.cluster.shared_directory, name)
                      for name in ("fencetool-storage-a.py", "cluster.yml")]
        same = node.run([tool, "check-config", "--live", file])
        self.assertIn("the cluster: 0 differences, 0 notes", same.stdout)
        written = node.run([tool, "import", "--show-secrets"])
        self.assertIn("\n  quorum:\n", written.stdout)
        ban = ["constraint", "location", "fence-quorum", "avoids"]
        node.run(["pcs"] + ban + ["storage-a", "storage-b"])
        try:
            changed = node.run([tool, "check-config", "--live", file], check=False)
        finally:
            node.run(["pcs", "constraint", "location", "remove",
                      "location-fence-quorum-storage-a--INFINITY"])
            node.run(["pcs", "constraint", "location", "remove",
                      "location-fence-quorum-storage-b--INFINITY"])
        self.assertEqual(1, changed.returncode, changed.stdout + changed.stderr)
        self.assertIn("fence-quorum may run on no node: it fences nobody", changed.stdout)

    def test_a_node_that_moves_to_another_make_of_plug_is_fenced_there(self):
        self.cluster.configure(self.cluster["storage-a"], fenced.REPLUGGED)
        self.cluster.wait_for_devices()
        shown = self.cluster["storage-a"].run(["pcs", "stonith", "config"]).stdout
        for device in ("fence_ipmilan", "fence_kasa", "device=esphome"):
            self.assertIn(device, shown)
        self.fence("quorum", "storage-b")
        self.cluster.wait_until_online()

    def test_a_node_with_two_power_supplies_is_fenced_when_both_are_off(self):
        self.cluster.configure(self.cluster["storage-a"], fenced.TWO_SUPPLIES)
        self.cluster.wait_for_devices()
        self.fence("storage-b", "quorum")
        self.assertFalse(self.cluster["storage-b"].alive())
        self.assertEqual(self.cluster.plugs["kasa"].order()["relays"],
                         {"1": True, "2": False, "3": False})

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


# A failure needs no more than these seconds; a sound plug answers in a tenth of one. By
# pcmk_off_timeout Pacemaker finds out that the node which runs the agent is gone.
SHORT = {"login_timeout": 2, "shell_timeout": 2, "power_timeout": 3, "pcmk_off_timeout": 10,
         "pcmk_off_retries": 1, "pcmk_reboot_retries": 1}
SHORT_CHECK = {"login_timeout": 2, "shell_timeout": 2, "power_timeout": 5, "pcmk_off_timeout": 15}

# Ways in which storage-b lives on although its plug was commanded: what is wrong, and the reason
# that the log has to give. cable: the outlet that really feeds it.
LIES = (
    ("the plug says OFF and the node lives", {"fault": "welded"}, 2,
     "UPS or a second power supply"),
    ("the relay is welded, as the meter shows", {"fault": "welded", "metered": True}, 2,
     "still draws 43 W"),
    ("the plug switches another outlet", {"fault": "wrong_outlet"}, 2, "still reports ON"),
    ("the node hangs on another outlet", {}, 1, "is it the right outlet"),
    ("the node has a UPS", {"ups": True}, 2, "UPS or a second power supply"),
    ("the node has a UPS and filters ICMP", {"ups": True}, 2, "ARP only: ICMP is filtered"),
)


class OnTwoPlugs(Scenario):
    """A node with two power supplies, on plugs of two makes."""

    POWERS = ("fence-storage-b", "fence-storage-b-device2")
    VERIFIERS = ("fence-verify-storage-b", "fence-verify-storage-b-device2")

    @classmethod
    def make_cluster(cls):
        limits = dict.fromkeys(cls.POWERS, SHORT)
        limits.update(dict.fromkeys(cls.VERIFIERS, SHORT_CHECK))
        return fenced.FencedCluster(fenced.TWO_PLUGS, limits=limits,
                                    **{"stonith-max-attempts": 100})

    def test_it_is_dead_when_both_are_off_and_not_before(self):
        self.move_writer_to("storage-b")
        self.cluster.plugs["esphome"].set(fault="welded")
        self.cluster["storage-b"].freeze()
        self.watch.wait_for(FAILED % "storage-b")
        self.assert_nothing_moved("storage-b")
        self.assertTrue(self.cluster["storage-b"].alive())
        self.cluster.plugs["esphome"].replace(feeds={1: "storage-b"})
        self.wait_for_failover("storage-b")
        # No order of the logs of two nodes is told: each device has had its success.
        for device in self.POWERS + self.VERIFIERS:
            self.assertTrue(self.watch.count(
                "Operation 'off' .*targeting storage-b using %s returned 0" % device), device)


class WithPlugs(Scenario):
    """Plugs of three makes; the storage network has a switch; fenced nodes come back."""

    @classmethod
    def make_cluster(cls):
        return fenced.FencedCluster(
            fenced.PLUGS, limits={"fence-storage-b": SHORT, "fence-verify-storage-b": SHORT_CHECK},
            **{"stonith-max-attempts": 100})

    def setUp(self):
        super().setUp()
        self.kasa = self.cluster.plugs["kasa"]

    def wait_for_failure(self, reason):
        """Wait until a round that starts from now on has failed for this reason."""
        watch = fenced.Watch(self.cluster)  # first: a short round is over soon
        before = self.kasa.commands
        self.cluster.wait_for(lambda: self.kasa.commands > before, WAIT_S, "off is commanded")
        watch.wait_for(reason)
        watch.wait_for(FAILED % "storage-b")

    def test_whichever_node_coordinates_a_fenced_one_is_powered_on_again(self):
        for _ in range(2):
            lost = self.cluster.coordinator()
            others = [name for name in harness.NODES if name != lost]
            self.cluster[lost].cut_power()
            self.cluster.wait_until_online(others, WAIT_S)
            self.assertIn(self.cluster.coordinator(), others)
            self.cluster.wait_until_online(seconds=WAIT_S)
            self.assertEqual(1, self.watch.count(
                "Remapped 'off' targeting %s complete, remapping to 'on'" % lost))

    def test_a_node_that_lives_on_keeps_its_resource_however_its_plug_lies(self):
        self.move_writer_to("storage-b")
        self.cluster["storage-b"].freeze()
        for title, attributes, outlet, reason in LIES:
            with self.subTest(title):
                self.lie(attributes, outlet, "ICMP" in title)
                self.wait_for_failure(reason)
                self.assert_nothing_moved("storage-b")
        self.assert_failure_is_shown("storage-b")
        self.kasa.replace(feeds=fenced.KASA_STRIP["feeds"])
        self.wait_for_failover("storage-b")

    def lie(self, attributes, outlet, filters_icmp):
        """Set a new lie, with the node on a UPS while it is set.

        The outlet is switched on after that: a round that comes before has found the old lie or
        none, and what it switched off would stay so for every later round.
        """
        self.kasa.set(ups=True)
        self.kasa.cable(number=outlet, node="storage-b")
        self.cluster["storage-b"].filter_icmp(filters_icmp)
        self.kasa.set(**dict({"fault": "", "metered": False}, **attributes))
        self.kasa.press(number=2)
        self.kasa.set(ups=attributes.get("ups", False))

    def assert_failure_is_shown(self, target):
        node = self.cluster.quorate_node()
        self.assertRegex(node.run(["pcs", "stonith", "history"]).stdout,
                         "reboot of %s failed" % target)
        self.assertRegex(node.run(["crm_mon", "--one-shot"]).stdout,
                         r"Failed Fencing Actions:\s+\* reboot of %s .*failed" % target)

    def test_a_dead_node_is_not_believed_dead_without_a_way_to_prove_it(self):
        self.move_writer_to("storage-b")
        checker = self.cluster["storage-a"]
        checker.link("storage", up=False)
        self.cluster["storage-b"].cut_power()
        self.wait_for_failure("this machine's own link is down: storage has no carrier")
        self.assert_nothing_moved("storage-b")
        self.cluster.network.set_link("plugs", "management", False)
        checker.link("storage", up=True)
        watch = fenced.Watch(self.cluster)
        watch.wait_for(r"fence_kasa.*(Failed|storage-b).*10\.20\.20\.202")
        watch.wait_for(FAILED % "storage-b")
        self.assert_nothing_moved("storage-b")
        self.assert_failure_is_shown("storage-b")
        self.cluster.network.set_link("plugs", "management", True)
        self.wait_for_failover("storage-b")

    def test_a_plug_that_takes_eight_seconds_to_answer_is_waited_for(self):
        self.cluster.plugs["esphome"].stall(seconds=8, answers=1)
        self.fence("storage-a", "quorum")
        self.assertEqual(1, self.watch.count("Remapped 'off' targeting storage-a complete"))

    def test_a_storage_node_cut_off_from_the_others_is_fenced(self):
        holder = self.cluster.wait_for_holder()
        for lost, one_way in ((holder, False), (OTHER[holder], True)):
            with self.subTest(one_way=one_way):
                self.watch = fenced.Watch(self.cluster)
                self.cluster.partition([[lost], [OTHER[lost], "quorum"]], one_way=one_way)
                self.watch.wait_for("Remapped 'off' targeting %s complete" % lost)
                self.cluster.wait_for_holder([OTHER[lost]])
                self.cluster.heal()
                self.cluster.wait_until_online(seconds=WAIT_S)
                self.assertEqual(1, self.watch.count("Remapped 'off' targeting .* complete"))

    def test_storage_nodes_that_lost_only_each_other_never_both_hold_the_resource(self):
        # corosync forms a new membership every few seconds then, and nobody may ever get far enough
        # to fence: what matters is that no second holder comes of it, nor after it.
        holder = self.cluster.wait_for_holder()
        self.cluster.partition([[holder], [OTHER[holder]]])
        self.cluster.wait_for(lambda: self.watch.count("Quorum (still )?lost|Remapped 'off'") > 2,
                              WAIT_S, "the split has its effect")
        self.assertEqual([], self.cluster.overlapping_writers())
        self.cluster.make_whole()

    def test_a_split_without_the_third_vote_stops_the_resource_and_fences_nobody(self):
        self.cluster.plugs["tasmota"].cable(number=0, node="quorum")
        self.cluster["quorum"].cut_power()
        self.fence("quorum", "storage-a")
        self.cluster.wait_for_holder()
        self.cluster.partition([["storage-a"], ["storage-b"]])
        self.cluster.wait_for(lambda: not self.cluster.writes(), WAIT_S, "nobody writes")
        self.cluster.heal()
        self.cluster.wait_for_holder()
        self.assertEqual(0, self.watch.count("Remapped 'off' targeting storage-. complete"))

    def test_a_fence_whose_node_dies_halfway_is_not_believed(self):
        answers = []
        order = threading.Thread(
            target=lambda: answers.append(self.order_fence("storage-b", "quorum")))
        before = self.kasa.commands
        order.start()
        self.addCleanup(order.join)
        self.cluster.wait_for(lambda: self.kasa.commands > before, WAIT_S, "off is commanded")
        self.cluster["storage-a"].cut_power()
        self.cluster["storage-a"].boot()
        order.join()
        # Pacemaker may ask the node again that it knew before, now booted anew, or give up.
        believed = self.watch.count(r"Operation '\w+' targeting storage-b .*: OK")
        proven = self.watch.count("targeting storage-b using fence-verify-storage-b returned 0")
        self.assertEqual((answers[0].returncode == 0, believed > 0),
                         (proven > 0, proven > 0), answers[0].stderr)
        self.cluster.wait_until_online(["storage-a", "quorum"], WAIT_S)

    def test_the_verifier_without_its_level_is_not_believed(self):
        self.cluster.set_level("storage-b", False)
        self.addCleanup(self.cluster.set_level, "storage-b", True)
        mac = fenced.KASA_STRIP["options"]["mac"]
        self.cluster.set_parameter("fence-storage-b", "device_mac", "CC:32:E5:00:00:99")
        self.addCleanup(self.cluster.set_parameter, "fence-storage-b", "device_mac", mac)
        # All that the verifier looks at says that the node is dead.
        self.cluster["storage-b"].cut_power()
        self.kasa.press(number=2, on=False)
        self.watch.wait_for("fence_check only proves, it cannot reboot a node")
        self.watch.wait_for(FAILED % "storage-b")
        self.assertEqual(0, self.watch.count("Operation 'reboot' targeting storage-b .*: OK"))


class AgentsOfDifferentAge(Scenario):
    """Two versions of the agents, and a node that has none."""

    @classmethod
    def make_cluster(cls):
        return fenced.FencedCluster(fenced.PLUGS,
                                    versions={"storage-a": "0.0.1", "quorum": None})

    def version(self, name):
        return self.cluster[name].run(["fence_kasa", "--version"], check=False).stdout

    def test_each_storage_node_fences_the_other_at_the_order_of_the_node_without_agents(self):
        self.assertIn("0.0.1", self.version("storage-a"))
        self.assertNotIn("0.0.1", self.version("storage-b"))
        for target in ("storage-b", "storage-a"):
            self.cluster.make_whole()
            self.fence(target, "quorum")
            for device in ("fence-", "fence-verify-"):
                self.assertRegex(self.watch.log(), "%s pacemaker-fenced .*Operation 'off' .*"
                                 "targeting %s using %s%s returned 0" % (
                                     OTHER[target], target, device, target))
        self.cluster.wait_for(lambda: "quorum" not in self.cluster.started_devices().values(),
                              WAIT_S, "no device runs on the node without agents")


class LossyPlugs(Scenario):
    """Every 20th answer of every plug is lost; monitors run in seconds instead of minutes.

    So the wait for a lost answer is short too, or the question after it would be the 20th again.
    """

    @classmethod
    def make_cluster(cls):
        limits = {prefix + node: {"shell_timeout": 2} for node in harness.NODES
                  for prefix in ("fence-", "fence-verify-")}
        return fenced.FencedCluster(fenced.PLUGS, limits=limits, monitor_s=1)

    def test_monitors_do_not_fail(self):
        self.cluster.wait_for_devices()
        before = self.cluster.started_devices()
        for plug in self.cluster.plugs.values():
            plug.set(lose_every=20)
        # As many as ten minutes have with the interval that gen-config writes.
        self.cluster.wait_for(self.has_seen_enough, 3 * WAIT_S, "monitors with losses")
        self.assertEqual(before, self.cluster.started_devices())
        self.assertEqual([], self.cluster.status().findall("failures/failure"))
        self.assertEqual({}, self.cluster.monitors("outcome=(?!ok)"))

    def has_seen_enough(self):
        lost = [plug.order()["lost"] for plug in self.cluster.plugs.values()]
        monitors = self.cluster.monitors()
        return min(lost) >= 1 and sum(lost) >= 5 and len(monitors) == 6 and all(
            count >= (10 if agent != "fence_check" else 2)
            for (agent, _), count in monitors.items())


if __name__ == "__main__":
    unittest.main()
