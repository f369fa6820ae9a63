"""The harness itself: does its cluster behave, and does the machine stay as it was?"""

import os
import signal
import subprocess
import sys
import time
import unittest
import unittest.mock

from tests.cluster import harness, power

PROJECT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AGENT = os.path.join(PROJECT, "fencetool.py")
WRITER_AGENT = "/usr/lib/ocf/resource.d/fencetool/heartbeat_writer"

MARGIN_S = 30

# Broadcasts need no answer from the other side, not even to ARP.
LISTEN = """
import select, socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("", 4711))
print("listening", flush=True)
print("heard" if select.select([receiver], [], [], float(sys.argv[1]))[0] else "silence")
"""
BROADCAST = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
sender.sendto(b"hello", (sys.argv[1], 4711))
"""
PING = """
import select, socket, struct, sys
probe = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
packet = struct.pack("!BBHHH", 8, 0, 0, 4711, 1)
checksum = 0xffff - sum(struct.unpack("!4H", packet)) % 0xffff
probe.sendto(struct.pack("!BBHHH", 8, 0, checksum, 4711, 1), (sys.argv[1], 0))
print("reply" if select.select([probe], [], [], 0.5)[0] else "silence")
"""
# Prepares a cluster and boots its nodes, says where it is, and then ends in an unusual way.
CRASH = """
import os, signal, sys, time
from tests.cluster import harness, power
cluster = harness.Cluster()
cluster.prepare()
for node in cluster.nodes.values():
    node.boot()
print(cluster.directory, flush=True)
os.kill(os.getpid(), int(sys.argv[1]))
time.sleep(60)
"""


load_tests = harness.load_tests
setUpModule = harness.require_cluster


def hears(cluster, sender, receiver, network, seconds=0.3):
    """Return whether a broadcast of one host arrives at another."""
    address = harness.HOSTS[sender][network][0].rpartition(".")[0] + ".255"
    listener = cluster.start_in(receiver, [sys.executable, "-IS", "-c", LISTEN, str(seconds)],
                                stdout=subprocess.PIPE, universal_newlines=True)
    with listener:
        listener.stdout.readline()
        cluster.run_in(sender, [sys.executable, "-IS", "-c", BROADCAST, address], check=False)
        return listener.stdout.read().strip() == "heard"


class ASecondWriter(unittest.TestCase):
    """What the scenarios rely on most: that two writers at once would be found."""

    def test_is_found(self):
        with harness.Cluster(firmware_s=0) as cluster:
            for name in ("storage-a", "storage-b"):
                cluster[name].run(["env", "OCF_RESKEY_path=" + cluster.heartbeat_file,
                                   WRITER_AGENT, "start"])
            cluster.wait_for(cluster.overlapping_writers, MARGIN_S, "the overlap is found")
            found = cluster.overlapping_writers()
        self.assertEqual([{"storage-a", "storage-b"}],
                         [{earlier.node, later.node} for earlier, later in found])


class PreparedCluster(unittest.TestCase):
    """What needs no quorum: power, links and files of the nodes."""

    @classmethod
    def setUpClass(cls):
        cls.cluster = harness.Cluster(firmware_s=0)
        cls.cluster.prepare()

    @classmethod
    def tearDownClass(cls):
        cls.cluster.stop()

    def setUp(self):
        self.node = self.cluster["storage-b"]
        self.node.boot()
        self.addCleanup(self.cluster.heal)

    def ask_power_socket(self, line):
        """Ask from inside a namespace that shares nothing with this process but files."""
        return self.cluster.run_in("plugs", [sys.executable, "-IS", power.__file__,
                                             self.cluster.power_socket, line]).stdout.strip()

    def test_power_socket_answers_off_only_when_the_node_is_dead(self):
        self.assertEqual("on", self.ask_power_socket("state storage-b"))
        pids = self.node.processes("corosync") + self.node.processes("python3")
        self.assertEqual("ok", self.ask_power_socket("off storage-b"))
        self.assertFalse([pid for pid in pids if os.path.exists("/proc/%d" % pid)])
        self.assertFalse(hears(self.cluster, "storage-a", "storage-b", "management"))
        self.assertEqual("off", self.ask_power_socket("state storage-b"))
        self.assertEqual("ok", self.ask_power_socket("on storage-b"))
        self.assertTrue(self.node.alive())

    def test_power_socket_refuses_what_it_does_not_know(self):
        self.assertRegex(self.ask_power_socket("off nosuch"), "^error")
        self.assertRegex(self.ask_power_socket("explode storage-b"), "^error")

    def test_power_callback_cuts_a_node_that_is_just_booting(self):
        power = self.cluster.power_callback("storage-b")
        for _ in range(5):
            power(False)
            power(True)
        power(False)
        self.assertFalse(self.node.alive())
        self.assertEqual([], [process for process
                              in harness.marked_processes(self.cluster.directory)
                              if "storage-b" in process])

    def test_boot_of_a_running_node_changes_nothing(self):
        before = self.node.processes("python3")
        self.node.boot()
        self.assertEqual(before, self.node.processes("python3"))

    def test_a_node_in_its_firmware_is_silent_until_its_kernel_runs(self):
        self.cluster.firmware_s = 1
        self.addCleanup(setattr, self.cluster, "firmware_s", 0)
        ping = [sys.executable, "-IS", "-c", PING, "10.20.20.2"]
        self.node.cut_power()
        self.node.power_on()
        self.assertTrue(self.node.alive())
        self.assertFalse(self.node.is_up())
        self.assertEqual("silence", self.cluster.run_in("plugs", ping).stdout.strip())
        self.node.boot()
        self.assertTrue(self.node.is_up())
        self.assertEqual("reply", self.cluster.run_in("plugs", ping).stdout.strip())

    def test_disk_survives_a_power_cut_and_run_does_not(self):
        self.node.run(["touch", "/var/lib/pacemaker/kept", "/run/lost"])
        self.node.cut_power()
        self.node.boot()
        self.node.run(["test", "-e", "/var/lib/pacemaker/kept"])
        self.node.run(["test", "!", "-e", "/run/lost"])

    def test_nothing_of_the_machine_can_be_written_from_inside(self):
        for place in ("/etc", "/usr", "/usr/sbin", "/var", "/root"):
            path = os.path.join(place, "written-by-a-node")
            self.assertNotEqual(0, self.node.run(["touch", path], check=False).returncode)
            self.assertFalse(os.path.exists(path))

    def test_agents_are_those_of_the_node_and_of_its_last_boot(self):
        self.node.install_agents(AGENT, ["fence_one", "fence_other"])
        self.node.cut_power()
        self.node.boot()
        self.assertEqual(AGENT, self.node.run(["readlink", "/usr/sbin/fence_other"]).stdout.strip())
        self.node.install_agents(None, ["fence_other"])
        self.node.cut_power()
        self.node.boot()
        self.node.run(["test", "-e", "/usr/sbin/fence_one"])
        self.node.run(["test", "!", "-e", "/usr/sbin/fence_other"])
        self.assertFalse(os.path.lexists("/usr/sbin/fence_one"))

    def test_syslog_of_a_node_is_kept(self):
        self.node.run([sys.executable, "-c", "import syslog; syslog.syslog('agent was here')"])
        self.assertIn("agent was here", self.node.syslog())

    def test_a_command_that_hangs_is_ended_with_all_it_started(self):
        with self.assertRaisesRegex(harness.CommandFailed, "no end within"):
            self.node.run(["sh", "-c", "sleep 61 & sleep 62"], timeout_s=0.5)
        self.cluster.wait_for(lambda: not self.node.processes("sleep"), 5, "no sleep is left")

    def test_a_partition_drops_frames_in_the_ordered_directions_only(self):
        self.cluster["storage-a"].boot()
        self.cluster.partition([["storage-a"], ["storage-b"]], one_way=True)
        self.assertFalse(hears(self.cluster, "storage-a", "storage-b", "management"))
        self.assertTrue(hears(self.cluster, "storage-b", "storage-a", "management"))
        self.assertTrue(hears(self.cluster, "storage-a", "plugs", "management"))
        self.cluster.partition([["storage-a"], ["storage-b"]], networks=["storage"])
        self.assertTrue(hears(self.cluster, "storage-a", "storage-b", "management"))
        self.assertFalse(hears(self.cluster, "storage-b", "storage-a", "storage"))
        self.cluster.heal()
        self.assertTrue(hears(self.cluster, "storage-b", "storage-a", "storage"))

    def carrier(self, name, network):
        path = "/sys/class/net/%s/carrier" % network
        return self.cluster[name].run(["cat", path]).stdout.strip()

    def test_an_unplugged_switched_network_costs_one_node_its_carrier(self):
        self.cluster["storage-a"].boot()
        self.node.link("client", up=False)
        self.addCleanup(self.node.link, "client", up=True)
        self.assertEqual("0", self.carrier("storage-b", "client"))
        self.assertEqual("1", self.carrier("storage-a", "client"))

    def test_a_direct_network_loses_carrier_at_both_ends(self):
        self.cluster["storage-a"].boot()
        self.assertEqual("1", self.carrier("storage-a", "storage"))
        self.node.cut_power()
        self.assertEqual("0", self.carrier("storage-a", "storage"))
        self.node.boot()
        self.assertEqual("1", self.carrier("storage-a", "storage"))

    def test_filter_icmp_drops_pings_and_nothing_else(self):
        ping = [sys.executable, "-IS", "-c", PING, "10.20.20.2"]
        self.assertEqual("reply", self.cluster.run_in("plugs", ping).stdout.strip())
        self.node.filter_icmp(True)
        self.addCleanup(self.node.filter_icmp, False)
        self.assertEqual("silence", self.cluster.run_in("plugs", ping).stdout.strip())
        self.assertTrue(hears(self.cluster, "plugs", "storage-b", "management"))


class EndOfTheTestProcess(unittest.TestCase):
    def crash(self, sig):
        """Let a process with a running cluster be killed; return the cluster's directory."""
        child = subprocess.Popen([sys.executable, "-c", CRASH, str(int(sig))], cwd=PROJECT,
                                 stdout=subprocess.PIPE, universal_newlines=True)
        with child:
            directory = child.stdout.readline().strip()
        self.assertEqual(-sig, child.returncode)
        return directory

    def assert_nothing_runs(self, directory):
        deadline = time.monotonic() + 5
        while harness.marked_processes(directory) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertEqual([], harness.marked_processes(directory))

    def test_killed_leaves_no_process_and_its_directory_to_the_next_run(self):
        before = harness.machine_state()
        directory = self.crash(signal.SIGKILL)
        self.assert_nothing_runs(directory)
        self.assertEqual(before, harness.machine_state())
        self.assertTrue(os.path.isdir(directory))
        harness.sweep()
        self.assertFalse(os.path.exists(directory))

    def test_terminated_leaves_nothing(self):
        directory = self.crash(signal.SIGTERM)
        self.assert_nothing_runs(directory)
        self.assertFalse(os.path.exists(directory))

    def test_sweep_leaves_a_running_cluster_alone(self):
        with unittest.mock.patch.object(harness.Cluster, "wait_until_online"):
            with harness.Cluster() as cluster:
                harness.sweep()
                self.assertTrue(cluster["quorum"].alive())
                self.assertTrue(os.path.isdir(cluster.directory))
        self.assertEqual([], cluster.leftovers())


if __name__ == "__main__":
    unittest.main()
