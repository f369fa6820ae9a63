"""A real cluster of two or three nodes in namespaces of this machine, whose power can be cut.

    storage-a, storage-b            corosync and pacemaker, each with an init of its own
    quorum                          the third vote: a node as well, or the server of a quorum device
    plugs                           where virtual plugs and BMCs live, on the management network
    witness                         a host of the client network that is no node
    the shelter                     holds the bridges, and process 1 above everything else

How it stays off the machine: everything runs below the shelter, which is process 1 of a pid
namespace and ends when a pipe from this process closes. So even after kill -9 nothing survives
but a directory, WORK_ROOT/fencetool-cluster-PID-*, which the next run sweeps away. No namespace,
interface or mount is visible from outside; the names inside cannot collide with another run's.

A look at a cluster:    python3 -m tests.cluster.harness
"""

import atexit
import collections
import fcntl
import glob
import json
import os
import pwd
import select
import shutil
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import quoteattr

HERE = os.path.dirname(os.path.abspath(__file__))
# Nodes see this place too; /run and /dev, where TMPDIR might point, are their own.
WORK_ROOT = "/tmp"
WORK_PREFIX = "fencetool-cluster-"
# Every process below the shelter carries this, so that what is left over can be found.
MARKER_VARIABLE = "FENCETOOL_CLUSTER"

STORAGE = ("storage-a", "storage-b")
NODES = STORAGE + ("quorum",)
NETWORKS = ("management", "storage", "client")
PREFIX_LENGTH = 24
HOSTS = collections.OrderedDict([
    ("storage-a", {"management": ["10.20.20.1"], "storage": ["10.10.10.1"],
                   "client": ["10.30.30.1"]}),
    ("storage-b", {"management": ["10.20.20.2"], "storage": ["10.10.10.2"],
                   "client": ["10.30.30.2"]}),
    ("quorum", {"management": ["10.20.20.3"]}),
    ("plugs", {"management": ["10.20.20.201", "10.20.20.202", "10.20.20.203",
                              "10.20.20.101"]}),
    ("witness", {"client": ["10.30.30.254"]}),
])
PROGRAMS = ("pacemakerd", "corosync", "pcs", "cibadmin", "crm_mon", "crm_node", "ip", "nft",
            "mount", "nsenter", "unshare", "ipmi_sim", "ipmitool", "fence_ipmilan",
            "corosync-qdevice", "corosync-qnetd")
CLUSTER_USER = "hacluster"

TOKEN_MS = 1000
# What passes between power and kernel, but for a node's first boot. Longer than the others need to
# notice that it was gone (token and consensus, together 2.2 s): a node that is back earlier hears
# of its own fencing, and its pacemaker shuts down for good.
FIRMWARE_S = 3
READY_WAIT_S = 20
ONLINE_WAIT_S = 60
CUT_WAIT_S = 10
COMMAND_WAIT_S = 30
POLL_S = 0.2
EVENTS_SHOWN = 15

NODE_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "TMPDIR": "/run/tmp",
    "PCMK_logfile": "/var/log/pacemaker/pacemaker.log",
}

COROSYNC_CONF = """\
totem {
    version: 2
    cluster_name: fencetool
    transport: knet
    crypto_cipher: none
    crypto_hash: none
    token: %(token_ms)d
    token_coefficient: 0
}
nodelist {
%(nodes)s}
quorum {
    provider: corosync_votequorum
%(votes)s}
logging {
    to_stderr: no
    to_syslog: no
    to_logfile: yes
    logfile: /var/log/corosync/corosync.log
    timestamp: hires
}
"""
TWO_NODE_VOTES = """\
    two_node: 1
    wait_for_all: 1
"""
# As pcs writes it, but for tls, which needs certificates, and the times: by default the server
# takes a node for gone after 12 s of silence, and nothing is decided before.
DEVICE_VOTES = """\
    device {
        votes: 1
        model: net
        timeout: 2000
        sync_timeout: 10000
        net {
            host: %s
            algorithm: ffsplit
            tls: off
        }
    }
""" % HOSTS["quorum"]["management"][0]
COROSYNC_NODE = "    node {\n        name: %s\n        nodeid: %d\n        ring0_addr: %s\n    }\n"

CIB = """\
<cib crm_feature_set="3.0.14" validate-with="pacemaker-3.0" admin_epoch="0" epoch="1" \
num_updates="0">
  <configuration>
    <crm_config><cluster_property_set id="cib-bootstrap-options">
%s    </cluster_property_set></crm_config>
    <nodes/><resources/><constraints/>
  </configuration>
  <status/>
</cib>
"""
CIB_PROPERTY = "      <nvpair id=%s name=%s value=%s/>\n"
DEFAULT_PROPERTIES = {
    # A node alone waits that long for others before it makes itself the coordinator.
    "dc-deadtime": "3s",
    # The load is that of the machine. On a loaded node Pacemaker does one thing after the other.
    "load-threshold": "10000%",
}

# nodes: the members. corosync: what its section quorum says of votes. has_device: whether the host
# quorum serves a quorum device.
Voting = collections.namedtuple("Voting", "nodes corosync has_device")
THREE_VOTES = Voting(NODES, "", False)
TWO_NODES = Voting(STORAGE, TWO_NODE_VOTES, False)
QUORUM_DEVICE = Voting(STORAGE, DEVICE_VOTES, True)

Event = collections.namedtuple("Event", "time_s what")
Tenure = collections.namedtuple("Tenure", "node writer first_s last_s")


class CommandFailed(RuntimeError):
    """A command ended badly or not in time; the text has its output."""


class NotReached(AssertionError):
    """What a test waited for did not come; the text shows the cluster's state."""


# --- Whether to run, and whether it can ---------------------------------------------------------

def load_tests(loader, tests, pattern):
    """Leave out the tests of a module that imports this, unless the cluster is asked for.

    Left out and not skipped: minutes on a real cluster are for whoever asks for them.
    """
    return tests if os.environ.get("FENCETOOL_TEST_CLUSTER") == "1" else unittest.TestSuite()


def require_cluster():
    """Skip a module's tests where no cluster can run; with FENCETOOL_TEST_ALL=1 they fail."""
    reasons = missing_requirements()
    if reasons and os.environ.get("FENCETOOL_TEST_ALL") == "1":
        raise AssertionError("no cluster here: " + "; ".join(reasons))
    if reasons:
        raise unittest.SkipTest("; ".join(reasons))


def missing_requirements():
    """Return the reasons why no cluster can run on this machine, none when it can."""
    reasons = []
    if os.geteuid() != 0:
        reasons.append("not root")
    absent = [program for program in PROGRAMS
              if not shutil.which(program, path=NODE_ENVIRONMENT["PATH"])]
    if absent:
        reasons.append("missing programs: " + ", ".join(absent))
    if not reasons:
        reasons.extend(refused_by_kernel())
    return reasons


def refused_by_kernel():
    """Try on a small scale, in namespaces that end with the trial, what the cluster is made of."""
    trial = ("set -e; mount -n -t tmpfs tmpfs /run; mkdir /run/layer;"
             "mount -n -t overlay -o ro,lowerdir=/run/layer:/usr/sbin overlay /usr/sbin;"
             "mount -n -t proc proc /proc; mount -n -t sysfs sysfs /sys;"
             "ip link add bridge0 type bridge; ip link add veth0 type veth peer name veth1;"
             "nft add table inet trial; nft add table bridge trial")
    command = ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork",
               "--kill-child", "sh", "-c", trial]
    try:
        run_command(command)
    except CommandFailed as failure:
        return ["namespaces not permitted: %s" % failure]
    return []


# --- Processes ----------------------------------------------------------------------------------

def run_command(argv, check=True, timeout_s=COMMAND_WAIT_S, text="", env=None):
    """Run a command and return its CompletedProcess; text goes to its stdin."""
    # A session of its own, because a kill of nsenter alone would leave what it started.
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               env=env or NODE_ENVIRONMENT, cwd="/", start_new_session=True)
    try:
        output, errors = process.communicate(text, timeout=timeout_s)
    except subprocess.TimeoutExpired as late:
        kill_session(process)
        raise CommandFailed("%s: no end within %s s" % (" ".join(argv), timeout_s)) from late
    if check and process.returncode != 0:
        raise CommandFailed("%s: exit %d: %s" % (
            " ".join(argv), process.returncode, (errors + output).strip()))
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def kill_session(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        process.communicate(timeout=2)
    except subprocess.TimeoutExpired:
        # A descendant in a session of its own still holds the pipes; it ends with its node.
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()


class EnteredProcess(subprocess.Popen):
    """A long-running program below nsenter, which forks: signals go to the program itself."""

    def send_signal(self, sig):
        # Just started, nsenter may have no child yet; it ends by itself once its child has.
        while self.poll() is None and not children_of(self.pid):
            time.sleep(0.005)
        for pid in children_of(self.pid):
            signal_if_there(pid, sig)


def children_of(parent):
    """Return the pids of a process's children; /proc/PID/task/*/children is not everywhere."""
    return [pid for pid in all_pids() if parent_of(pid) == parent]


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parent_of(pid):
    # The name in the second field is in brackets and may hold anything.
    fields = read_process_file(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else None


def read_process_file(pid, name):
    """Return a file of /proc/PID as text, empty when the process is gone."""
    try:
        with open("/proc/%d/%s" % (pid, name), "rb") as stream:
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def namespace_of(pid, kind):
    try:
        return os.readlink("/proc/%d/ns/%s" % (pid, kind))
    except OSError:
        return None


class InitProcess:
    """One life of a process 1: the programs that lead to it, its readiness and its end.

    nesting is the number of programs (nsenter, unshare) between this process and the init.
    """

    def __init__(self, command, nesting, console, environment, stdin=subprocess.DEVNULL):
        self._console = console
        self._nesting = nesting
        self._ready_pid = None
        self._ready_lock = threading.Lock()
        with open(console, "ab") as errors:
            self._process = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=errors, env=environment,
                cwd="/", start_new_session=True)

    def running(self):
        return self._process.poll() is None

    def pid(self):
        """Return the init's pid as the machine sees it, None while it has none."""
        pids = [self._process.pid]
        for _ in range(self._nesting):
            pids = children_of(pids[0])
            if not pids:
                return None
        return pids[0]

    def is_ready(self):
        """Return at once whether commands may enter the init's namespaces."""
        if self._ready_pid or not self._ready_lock.acquire(False):
            return bool(self._ready_pid)
        try:
            stdout = self._process.stdout
            return not stdout.closed and bool(select.select([stdout], [], [], 0)[0])
        finally:
            self._ready_lock.release()

    def wait_ready(self):
        """Return the init's pid once commands may enter its namespaces."""
        with self._ready_lock:
            if not self._ready_pid:
                self._read_ready()
                self._ready_pid = self.pid()
        return self._ready_pid

    def _read_ready(self):
        stdout = self._process.stdout
        ready = not stdout.closed and select.select([stdout], [], [], READY_WAIT_S)[0]
        line = stdout.readline() if ready else b""
        if line != b"ready\n":
            with open(self._console) as console:
                raise CommandFailed("no start: %s" % (console.read().strip() or "no reason given"))

    def kill(self):
        """Kill the init and everything in its pid namespace; return when all of it is dead."""
        deadline = time.monotonic() + CUT_WAIT_S
        while self.running():
            pid = self.pid()
            if pid:
                signal_if_there(pid)
            if time.monotonic() > deadline:
                raise CommandFailed("process %s survives SIGKILL" % pid)
            # unshare reports the end of the init, and the kernel ends an init only after the last
            # process of its namespace. Without a pid unshare has not come that far: look again.
            self._wait(1 if pid else 0.005)
        # Whoever waits for the readiness of a dead init reads an end of file and lets go.
        with self._ready_lock:
            self._process.stdout.close()
        if self._process.stdin:
            self._process.stdin.close()

    def _wait(self, seconds):
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass


def signal_if_there(pid, sig=signal.SIGKILL):
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        pass


# --- Networks -----------------------------------------------------------------------------------

class Network:
    """The bridges and what hangs on them; which ports have carrier, which frames pass.

    A network in direct_networks is a cable from node to node: when one end loses power or is
    unplugged, the other loses its carrier.
    """

    def __init__(self, shelter_pid, direct_networks, nodes):
        self._shelter_pid = shelter_pid
        self._direct_networks = direct_networks
        self._lock = threading.Lock()
        self._powered = set(HOSTS) - set(nodes)
        self._unplugged = set()

    def enter(self, host=None):
        """Return the command words that lead into a host's network, or that of the bridges."""
        path = "/proc/%d/root/run/netns/%s" % (self._shelter_pid, namespace_name(host))
        return ["nsenter", "--target", str(self._shelter_pid), "--mount", "--pid",
                "--net=" + path if host else "--net"]

    def build(self):
        lines = ["netns add %s" % namespace_name(host) for host in HOSTS]
        for network in NETWORKS:
            # Snooping would hold back multicast, IPv6 neighbour discovery with it.
            lines.append("link add br-%s type bridge mcast_snooping 0" % network)
            lines.append("link set br-%s up" % network)
        for host, network in self._ports():
            address = HOSTS[host][network][0]
            lines.append("link add %s netns %s address %s type veth peer name %s" % (
                network, namespace_name(host), mac_of(address), port_of(host, network)))
            lines.append("link set %s master br-%s" % (port_of(host, network), network))
        self._batch(["ip", "-batch", "-"], lines)
        for host in HOSTS:
            self._build_host(host)
        self._apply_carrier()

    def _build_host(self, host):
        lines = ["link set lo up"]
        for network, addresses in HOSTS[host].items():
            lines.extend("address add %s/%d dev %s" % (address, PREFIX_LENGTH, network)
                         for address in addresses)
            lines.append("link set %s up" % network)
        self._batch(["ip", "-n", namespace_name(host), "-batch", "-"], lines)

    def set_power(self, host, on):
        """Give or take the carrier of a host's links; its init takes them up for the host."""
        if on:
            self._batch(["ip", "-n", namespace_name(host), "-batch", "-"],
                        ["link set %s down" % network for network in HOSTS[host]])
        with self._lock:
            (self._powered.add if on else self._powered.discard)(host)
            self._apply_carrier()

    def set_link(self, host, network, up):
        if network not in HOSTS[host]:
            raise ValueError("%s has no network %s" % (host, network))
        with self._lock:
            (self._unplugged.discard if up else self._unplugged.add)((host, network))
            self._apply_carrier()

    def cut_switch(self, network):
        """Take the carrier of every host in a network."""
        with self._lock:
            self._unplugged.update((host, network) for host in HOSTS if network in HOSTS[host])
            self._apply_carrier()

    def replug(self):
        """Plug in all cables again."""
        with self._lock:
            self._unplugged.clear()
            self._apply_carrier()

    def partition(self, groups, networks, one_way):
        rules = []
        for sender, receiver in severed_pairs(groups, one_way):
            rules.extend('iifname "%s" oifname "%s" drop' % (
                port_of(sender, network), port_of(receiver, network))
                for network in networks if network in HOSTS[sender] and network in HOSTS[receiver])
        self._batch(["nft", "-f", "-"], [
            "table bridge partition", "delete table bridge partition", "table bridge partition {",
            "chain cut {", "type filter hook forward priority 0; policy accept;"]
            + rules + ["}", "}"])

    def heal(self):
        self.partition([], NETWORKS, one_way=False)

    def _ports(self):
        return [(host, network) for host in HOSTS for network in HOSTS[host]]

    def _apply_carrier(self):
        self._batch(["ip", "-batch", "-"], [
            "link set %s %s" % (port_of(host, network),
                                "up" if self._has_carrier(host, network) else "down")
            for host, network in self._ports()])

    def _has_carrier(self, host, network):
        ends = [host]
        if network in self._direct_networks:
            ends = [name for name in HOSTS if network in HOSTS[name]]
        return all(end in self._powered and (end, network) not in self._unplugged for end in ends)

    def _batch(self, command, lines):
        run_command(self.enter() + command, text="\n".join(lines) + "\n")


def namespace_name(host):
    return "fencetool-%d-%s" % (os.getpid(), host)


def port_of(host, network):
    """Return the name of the bridge's end of a link; names of interfaces have a limit of 15."""
    return "%s-%s" % (host, network[:4])


def mac_of(address):
    """Return a locally administered MAC that tells whose it is."""
    return "02:00:%02x:%02x:%02x:%02x" % tuple(int(part) for part in address.split("."))


def severed_pairs(groups, one_way):
    """Return (sender, receiver) of all frames to drop between groups of hosts."""
    pairs = []
    for index, group in enumerate(groups):
        for others in groups[index + 1:]:
            for host in group:
                for other in others:
                    pairs.append((host, other))
                    if not one_way:
                        pairs.append((other, host))
    return pairs


# --- A node -------------------------------------------------------------------------------------

class Node:
    """One node: its disk stays through power cuts, its processes do not."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.addresses = {network: found[0] for network, found in HOSTS[name].items()}
        self.frozen = False
        self.agents = {}
        self._init = None
        self._lives = 0
        # Held by whoever switches, so that of "off" and "on" at once each is whole.
        self._power_lock = threading.RLock()

    def install_agents(self, path, names):
        """Make each name in /usr/sbin of the node a link to path from its next boot on.

        A path of None takes the names away. hacluster must be able to read path as well.
        """
        for name in names:
            self.agents[name] = path

    @property
    def directory(self):
        """The node's place on the machine; etc-fencetool in it is the node's /etc/fencetool."""
        return os.path.join(self.cluster.directory, "nodes", self.name)

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    # -- power --

    def power_on(self):
        """Start to boot, when there is no power yet, and return at once."""
        with self._power_lock:
            if self.alive():
                return
            self._write_agents()
            self.cluster.network.set_power(self.name, True)
            self._init = InitProcess(
                self.cluster.network.enter(self.name) + [
                    "unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child",
                    sys.executable, "-IS", os.path.join(HERE, "inside.py"), "node",
                    json.dumps(self._config())],
                2, self.path("console"), self._environment())
            self._lives += 1
            self.cluster.note("%s on" % self.name)

    def boot(self):
        """Power on and wait until commands can run; the cluster stack comes up afterwards."""
        self.power_on()
        self._enter_pid()

    def cut_power(self):
        """Take the links down and kill every process; return when the node is dead."""
        with self._power_lock:
            self.cluster.network.set_power(self.name, False)
            if self._init:
                if self._init.running():
                    self.cluster.note("%s cut" % self.name)
                self._init.kill()
            self._init = None
            self.frozen = False

    def forget_life(self):
        """Collect what is left of a life that ended with the shelter."""
        if self._init:
            self._init.kill()
        self._init = None

    def alive(self):
        """Return whether the node has power, frozen or not."""
        init = self._init
        return init is not None and init.running()

    def is_up(self):
        """Return whether commands can run in the node without waiting for its boot."""
        init = self._init
        return init is not None and init.running() and init.is_ready()

    # -- what tests do to a node --

    def run(self, argv, check=True, timeout_s=COMMAND_WAIT_S, text=""):
        """Run a command inside and return its CompletedProcess; text goes to its stdin."""
        enter = ["nsenter", "--target", str(self._enter_pid()), "--mount", "--uts", "--ipc",
                 "--net", "--pid", "--"]
        return run_command(enter + list(argv), check, timeout_s, text, self._environment())

    def freeze(self):
        """Stop corosync where it stands; the rest of the node, kernel included, lives on."""
        for pid in self.processes("corosync"):
            os.kill(pid, signal.SIGSTOP)
        self.frozen = True
        self.cluster.note("%s frozen" % self.name)

    def processes(self, name):
        """Return the pids, as the machine sees them, of the node's programs of that name."""
        namespace = namespace_of(self._enter_pid(), "pid")
        return [pid for pid in all_pids() if namespace_of(pid, "pid") == namespace
                and read_process_file(pid, "comm").strip() == name]

    def link(self, network, up):
        """Plug or unplug the cable of a network, at the far end: the node sees its carrier go."""
        self.cluster.network.set_link(self.name, network, up)
        self.cluster.note("%s: link %s %s" % (self.name, network, "up" if up else "down"))

    def filter_icmp(self, on):
        """Drop pings that arrive, as a firewall would; ARP and all else passes. Survives boots."""
        rules = ["table inet filter_icmp", "delete table inet filter_icmp"]
        if on:
            rules += ["table inet filter_icmp {", "chain input {",
                      "type filter hook input priority 0; policy accept;",
                      "icmp type echo-request drop", "icmpv6 type echo-request drop", "}", "}"]
        run_command(self.cluster.network.enter(self.name) + ["nft", "-f", "-"],
                    text="\n".join(rules) + "\n")

    # -- what tests read --

    def log(self):
        """Return pacemaker.log, of all boots."""
        return self._read("log", "pacemaker", "pacemaker.log")

    def syslog(self):
        """Return what the node's programs sent to syslog, a monotonic time before each line."""
        return self._read("log", "syslog")

    def _read(self, *parts):
        try:
            with open(self.path(*parts), errors="replace") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    # -- its disk --

    def prepare(self):
        """Write the disk of a node that never ran."""
        owner = pwd.getpwnam(CLUSTER_USER)
        for parts in (("layer-sbin",), ("layer-ocf", "fencetool"), ("layer-etc", "fencetool"),
                      ("etc-corosync", "uidgid.d"), ("etc-fencetool",), ("lib-corosync",),
                      ("log", "corosync")):
            make_directory(self.path(*parts))
        for name in ("lib-pacemaker", "lib-pacemaker/blackbox", "lib-pacemaker/cib",
                     "lib-pacemaker/cores", "lib-pacemaker/pengine", "log/pacemaker"):
            make_directory(self.path(name), 0o750, owner)
        write_file(self.path("etc-corosync", "corosync.conf"), self.cluster.corosync_conf())
        write_file(self.path("lib-pacemaker", "cib", "cib.xml"), self.cluster.initial_cib(),
                   0o600, owner)
        write_file(self.path("layer-etc", "hostname"), self.name + "\n")
        write_file(self.path("layer-etc", "hosts"), hosts_file(self.cluster.nodes))
        agent = self.path("layer-ocf", "fencetool", "heartbeat_writer")
        shutil.copyfile(os.path.join(HERE, "heartbeat_writer.py"), agent)
        os.chmod(agent, 0o755)

    def _write_agents(self):
        layer = self.path("layer-sbin")
        for name in os.listdir(layer):
            os.unlink(os.path.join(layer, name))
        for name, path in self.agents.items():
            if path:
                os.symlink(os.path.abspath(path), os.path.join(layer, name))

    def _config(self):
        shared = self.cluster.shared_directory
        return {
            "name": self.name,
            "networks": list(self.addresses),
            "firmware_s": self.cluster.firmware_s if self._lives else 0,
            "has_quorum_device": self.cluster.voting.has_device,
            "environment": self._environment(),
            "overlays": [(self.path("layer-sbin"), "/usr/sbin"),
                         (self.path("layer-ocf"), "/usr/lib/ocf/resource.d"),
                         (self.path("layer-etc"), "/etc")],
            "binds": [(self.path("etc-corosync"), "/etc/corosync"),
                      (self.path("etc-fencetool"), "/etc/fencetool"),
                      (self.path("lib-pacemaker"), "/var/lib/pacemaker"),
                      (self.path("lib-corosync"), "/var/lib/corosync"),
                      (self.path("log"), "/var/log"),
                      ("/tmp", "/tmp"),
                      (shared, shared)],
        }

    def _environment(self):
        return dict(NODE_ENVIRONMENT, **{MARKER_VARIABLE: self.cluster.directory})

    def _enter_pid(self):
        init = self._init
        if init is None or not init.running():
            raise CommandFailed("%s has no power" % self.name)
        return init.wait_ready()


def make_directory(path, mode=0o755, owner=None):
    os.makedirs(path, exist_ok=True)
    set_owner(path, mode, owner)


def write_file(path, text, mode=0o644, owner=None):
    with open(path, "w") as stream:
        stream.write(text)
    set_owner(path, mode, owner)


def set_owner(path, mode, owner):
    # Whatever the umask of the test run is: hacluster has to read much of this.
    os.chmod(path, mode)
    if owner:
        os.chown(path, owner.pw_uid, owner.pw_gid)


def hosts_file(nodes):
    lines = ["127.0.0.1 localhost\n"]
    lines.extend("%s %s\n" % (HOSTS[name]["management"][0], name) for name in nodes)
    return "".join(lines)


# --- The power socket ---------------------------------------------------------------------------

class PowerServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers a line "off NODE", "on NODE", "state NODE" or "ping", from any namespace."""

    daemon_threads = True
    request_queue_size = 20

    def __init__(self, path, cluster):
        self.cluster = cluster
        super().__init__(path, PowerConnection)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))
        self._thread.daemon = True
        self._thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        # A client that was killed, with the node it ran on, cannot take its answer.
        pass


class PowerConnection(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write((self._answer(line.decode().split()) + "\n").encode())

    def _answer(self, words):
        nodes = self.server.cluster.nodes
        if words == ["ping"]:
            return "ok"
        if len(words) != 2 or words[1] not in nodes:
            return "error: use off, on or state with a node, or ping"
        node = nodes[words[1]]
        try:
            if words[0] == "state":
                return "on" if node.alive() else "off"
            if words[0] in ("on", "off"):
                self.server.cluster.power_callback(node.name)(words[0] == "on")
                return "ok"
        except (CommandFailed, OSError) as failure:
            return "error: %s" % failure
        return "error: unknown word %s" % words[0]


# --- The cluster --------------------------------------------------------------------------------

class Cluster:
    """Two or three nodes, from start() to stop(); usable with `with`.

    properties: cluster properties of the initial CIB, beside dc-deadtime
    direct_networks: networks that are one cable between two nodes, see Network
    firmware_s: what every boot but the first takes before the node's kernel runs
    voting: who the nodes are and how they vote
    """

    def __init__(self, properties=None, direct_networks=("storage",),
                 firmware_s=FIRMWARE_S, voting=THREE_VOTES):
        self.properties = dict(DEFAULT_PROPERTIES, **(properties or {}))
        self.direct_networks = tuple(direct_networks)
        self.firmware_s = firmware_s
        self.voting = voting
        self.nodes = collections.OrderedDict((name, Node(self, name)) for name in voting.nodes)
        self.programs = []
        self.events = []
        self.directory = None
        self.network = None
        self._shelter = None
        self._power_server = None
        self._lock_file = None
        self._owner_pid = os.getpid()
        self._machine_before = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()

    def __getitem__(self, name):
        return self.nodes[name]

    # -- life --

    def start(self):
        """Bring all nodes up and wait until they are online, with quorum and a coordinator."""
        try:
            self.prepare()
            for node in self.nodes.values():
                node.power_on()
            for node in self.nodes.values():
                node.boot()
            self.wait_until_online()
        except BaseException:
            self.stop()
            raise

    def prepare(self):
        """Make everything but the nodes' processes: namespaces, networks, disks, the socket."""
        sweep()
        self._machine_before = machine_state()
        stop_at_exit(self)
        self._make_directory()
        self.note("start")
        self._start_shelter()
        self.network = Network(self._shelter.wait_ready(), self.direct_networks, self.nodes)
        self.network.build()
        for node in self.nodes.values():
            node.prepare()
        self._power_server = PowerServer(self.power_socket, self)
        if self.voting.has_device:
            self._start_quorum_server()
        self.note("networks and disks made")

    def _make_directory(self):
        self.directory = tempfile.mkdtemp(prefix="%s%d-" % (WORK_PREFIX, os.getpid()),
                                          dir=WORK_ROOT)
        os.chmod(self.directory, 0o755)
        self._lock_file = open(os.path.join(self.directory, "lock"), "w")
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        make_directory(self.shared_directory)

    def _start_shelter(self):
        self._shelter = InitProcess(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
             sys.executable, "-IS", os.path.join(HERE, "inside.py"), "shelter"],
            1, os.path.join(self.directory, "console"),
            dict(NODE_ENVIRONMENT, **{MARKER_VARIABLE: self.directory}), stdin=subprocess.PIPE)

    def _start_quorum_server(self):
        """Serve the quorum device; the server's files are those of its directory alone."""
        place = os.path.join(self.directory, "qnetd")
        make_directory(place)
        settings = "lock_file=%s/pid,local_socket_file=%s/socket" % (place, place)
        with open(os.path.join(place, "output"), "wb") as output:
            self.programs.append(self.start_in(
                "quorum", ["corosync-qnetd", "-f", "-s", "off", "-S", settings],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    def stop(self):
        """Tear everything down, in whatever state it is. May be called again."""
        if os.getpid() != self._owner_pid:
            return
        if self._power_server:
            self._power_server.stop()
            self._power_server = None
        if self._shelter:
            self._shelter.kill()
            self._shelter = None
        for node in self.nodes.values():
            node.forget_life()
        for program in self.programs:
            program.wait()
            if program.stdout:
                program.stdout.close()
        self.programs = []
        if self._lock_file:
            shutil.rmtree(self.directory)
            self._lock_file.close()
            self._lock_file = None
            self.note("stopped")
        forget_exit(self)

    def abandon(self):
        """Tear down from a signal handler: without locks, which the interrupted code may hold."""
        pid = self._shelter.pid() if self._shelter and os.getpid() == self._owner_pid else None
        deadline = time.monotonic() + CUT_WAIT_S
        while pid and os.path.exists("/proc/%d" % pid) and time.monotonic() < deadline:
            signal_if_there(pid)
            time.sleep(0.01)
        if pid:
            shutil.rmtree(self.directory, ignore_errors=True)

    def leftovers(self):
        """Return what of the cluster is on the machine and was not there before start()."""
        found = ["process " + process for process in marked_processes(self.directory)]
        if os.path.exists(self.directory):
            found.append("directory " + self.directory)
        found.extend(sorted(machine_state() - self._machine_before))
        found.extend("agent " + path for path in self._agent_paths() if os.path.islink(path))
        return found

    def _agent_paths(self):
        names = {name for node in self.nodes.values() for name in node.agents}
        return [os.path.join("/usr/sbin", name) for name in sorted(names)]

    # -- places --

    @property
    def shared_directory(self):
        """A directory that the harness and all nodes see, and may write, under one path."""
        return os.path.join(self.directory, "shared")

    @property
    def power_socket(self):
        return os.path.join(self.directory, "power.sock")

    @property
    def heartbeat_file(self):
        """Where resources of ocf:fencetool:heartbeat_writer write: their option path."""
        return os.path.join(self.shared_directory, "heartbeats")

    # -- files of the nodes --

    def save_logs(self, directory):
        """Copy the logs of all nodes, and the events, to where they outlive the cluster."""
        for node in self.nodes.values():
            shutil.copytree(node.path("log"), os.path.join(directory, node.name))
        write_file(os.path.join(directory, "events"), self.render_events())

    def corosync_conf(self):
        nodes = [COROSYNC_NODE % (name, number, HOSTS[name]["management"][0])
                 for number, name in enumerate(self.nodes, 1)]
        return COROSYNC_CONF % {"token_ms": TOKEN_MS, "nodes": "".join(nodes),
                                "votes": self.voting.corosync}

    def initial_cib(self):
        return CIB % "".join(
            CIB_PROPERTY % (quoteattr("cib-bootstrap-options-" + name), quoteattr(name),
                            quoteattr(str(value)))
            for name, value in sorted(self.properties.items()))

    # -- power and networks --

    def power_callback(self, node_name):
        """Return a function of one truth value that cuts or boots the node, from any thread.

        Off returns when the node is dead, on as soon as it has power.
        """
        node = self.nodes[node_name]
        return lambda on: node.power_on() if on else node.cut_power()

    def start_in(self, host, argv, cwd=None, **options):
        """Start a program in the network of a host, such as plugs, and return its Popen.

        It sees the machine's files and ends with the cluster. Options go to Popen.
        """
        enter = self.network.enter(host) + ["env", "-C", cwd or os.getcwd()]
        env = dict(options.pop("env", NODE_ENVIRONMENT), **{MARKER_VARIABLE: self.directory})
        return EnteredProcess(enter + list(argv), env=env, start_new_session=True, **options)

    def run_in(self, host, argv, check=True, timeout_s=COMMAND_WAIT_S):
        """Run a command in the network of a host and return its CompletedProcess."""
        return run_command(self.network.enter(host) + list(argv), check, timeout_s)

    def partition(self, groups, networks=NETWORKS, one_way=False):
        """Drop all frames between groups of hosts; a host in no group still reaches everybody.

        one_way: only frames from an earlier group to a later one are lost.
        """
        self.network.partition(groups, networks, one_way)
        self.note("partition %s%s" % (" | ".join(",".join(group) for group in groups),
                                      " one way" if one_way else ""))

    def heal(self):
        """End the partition; cables that link() unplugged stay unplugged."""
        self.network.heal()
        self.note("healed")

    # -- the cluster's own view --

    def status(self, node=None):
        """Return crm_mon's XML as one node sees the cluster, by default a quorate one."""
        node = node or self.quorate_node()
        done = node.run(["crm_mon", "--one-shot", "--output-as", "xml"], timeout_s=10)
        return ElementTree.fromstring(done.stdout)

    def quorate_node(self):
        """Return a node that has quorum and a coordinator; CommandFailed when there is none."""
        for node in self.nodes.values():
            if node.is_up() and not node.frozen and self._is_quorate(node):
                return node
        raise CommandFailed("no node has quorum and a coordinator")

    def _is_quorate(self, node):
        try:
            # The CIB alone is not enough: after a boot it still says what was true before.
            answer = node.run(["crm_node", "--quorum"], check=False, timeout_s=5).stdout
            if answer.strip() != "1":
                return False
            coordinator = self.status(node).find("summary/current_dc")
        except CommandFailed:
            return False
        return coordinator is not None and coordinator.get("with_quorum") == "true"

    def coordinator(self):
        """Return the name of the coordinator (DC)."""
        return self.status().find("summary/current_dc").get("name")

    def node_states(self):
        """Return crm_mon's attributes of each node: online, unclean, pending and others."""
        return {node.get("name"): dict(node.attrib) for node in self.status().findall("nodes/node")}

    def online_nodes(self):
        """Return the names of nodes that are fully members, sorted."""
        return sorted(name for name, state in self.node_states().items()
                      if state["online"] == "true" and state["pending"] == "false"
                      and state["unclean"] == "false")

    def holders(self, resource):
        """Return the names of the nodes that the cluster believes to run a resource.

        Not of one that starts it just now, which crm_mon counts as active too.
        """
        found = self.status().findall(".//resource[@id='%s'][@active='true']" % resource)
        return sorted(node.get("name") for element in found for node in element.findall("node")
                      if element.get("role") != "Starting")

    def cib(self, xpath):
        """Return the elements of the CIB that an XPath finds, as a list."""
        done = self.quorate_node().run(["cibadmin", "--query", "--xpath", xpath], check=False)
        if done.returncode == 105:
            return []
        if done.returncode != 0:
            raise CommandFailed("cibadmin: exit %d: %s" % (done.returncode, done.stderr.strip()))
        root = ElementTree.fromstring(done.stdout)
        return list(root) if root.tag == "xpath-query" else [root]

    # -- waiting --

    def note(self, what):
        """Add to the events, with the monotonic time."""
        self.events.append(Event(time.monotonic(), what))

    def wait_for(self, condition, seconds, what):
        """Poll until condition() is true and return its value; NotReached after that many seconds.

        A command that fails meanwhile counts as not yet.
        """
        deadline = time.monotonic() + seconds
        failure = None
        while True:
            try:
                value = condition()
            except CommandFailed as error:
                value, failure = None, error
            if value:
                self.note("reached: " + what)
                return value
            if time.monotonic() > deadline:
                raise NotReached("not within %s s: %s\n%s%s" % (
                    seconds, what, "last failure: %s\n" % failure if failure else "",
                    self.describe()))
            time.sleep(POLL_S)

    def wait_until_online(self, names=None, seconds=ONLINE_WAIT_S):
        wanted = sorted(names or self.nodes)
        self.wait_for(lambda: self.online_nodes() == wanted, seconds,
                      "online: " + " ".join(wanted))

    def describe(self):
        """Return the state of everything, for a human who looks for the reason of a failure."""
        parts = []
        for node in self.nodes.values():
            parts.append("--- %s: %s%s%s\n" % (
                node.name, "power" if node.alive() else "no power",
                ", up" if node.is_up() else "", ", frozen" if node.frozen else ""))
            if node.is_up() and not node.frozen:
                parts.append(self._seen_from(node))
        parts.append("--- events\n" + self.render_events(EVENTS_SHOWN))
        return "".join(parts)

    def _seen_from(self, node):
        try:
            done = node.run(["crm_mon", "--one-shot"], check=False, timeout_s=5)
        except CommandFailed as failure:
            return "%s\n" % failure
        return done.stdout + done.stderr

    def render_events(self, last=None):
        """Return the events as lines with seconds since the first."""
        shown = self.events[-last:] if last else self.events
        return "".join("%8.2f s  %s\n" % (event.time_s - self.events[0].time_s, event.what)
                       for event in shown)

    # -- the heartbeat writer --

    def tenures(self):
        """Return a Tenure for each writer that ever wrote, in the order of their starts."""
        found = {}
        if os.path.exists(self.heartbeat_file):
            with open(self.heartbeat_file) as stream:
                for line in stream:
                    node, nanoseconds, writer = line.split()
                    time_s = int(nanoseconds) / 1e9
                    first_s = found[writer].first_s if writer in found else time_s
                    found[writer] = Tenure(node, writer, first_s, time_s)
        return sorted(found.values(), key=lambda tenure: tenure.first_s)

    def overlapping_writers(self):
        """Return (earlier tenure, later tenure) wherever two nodes wrote at one time."""
        tenures = self.tenures()
        return [(earlier, later) for index, earlier in enumerate(tenures)
                for later in tenures[index + 1:]
                if earlier.node != later.node and later.first_s <= earlier.last_s]


# --- Leaving nothing behind ---------------------------------------------------------------------

_unstopped = []


def stop_at_exit(cluster):
    """See to it that the cluster is stopped when the test process ends by itself or by a signal.

    After SIGKILL the shelter ends everything but the directory, see sweep().
    """
    if not _unstopped:
        atexit.register(stop_all)
    _unstopped.append(cluster)
    if threading.current_thread() is threading.main_thread():
        for sig in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(sig) == signal.SIG_DFL:
                signal.signal(sig, stop_and_die)


def forget_exit(cluster):
    if cluster in _unstopped:
        _unstopped.remove(cluster)


def stop_all():
    for cluster in list(_unstopped):
        cluster.stop()


def stop_and_die(sig, frame):
    # Not sys.exit: unittest takes SystemExit for the failure of one test, and goes on.
    for cluster in list(_unstopped):
        cluster.abandon()
    signal.signal(sig, signal.SIG_DFL)
    os.kill(os.getpid(), sig)


def sweep():
    """Remove what runs of the harness left behind that were killed before they could stop."""
    for directory in glob.glob(os.path.join(WORK_ROOT, WORK_PREFIX + "*")):
        if is_abandoned(directory):
            for process in marked_processes(directory):
                signal_if_there(int(process.split()[0]))
            shutil.rmtree(directory, ignore_errors=True)


def is_abandoned(directory):
    """Return whether nobody uses a harness's directory any more."""
    try:
        with open(os.path.join(directory, "lock")) as lock_file:
            # The lock ends with its process; the pid in the name may have a new owner.
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError:
        pid = os.path.basename(directory)[len(WORK_PREFIX):].partition("-")[0]
        return not os.path.exists("/proc/" + pid)


def marked_processes(directory):
    """Return "pid command" of each process that belongs to the cluster of a directory."""
    marker = "%s=%s\0" % (MARKER_VARIABLE, directory)
    return ["%d %s" % (pid, read_process_file(pid, "cmdline").replace("\0", " "))
            for pid in all_pids() if marker in read_process_file(pid, "environ") + "\0"]


def machine_state():
    """Return the places of the machine that bear a name of the harness, as a set of strings.

    Other changes are none of its doing, and happen on a machine that does other work.
    """
    with open("/proc/self/mounts") as mounts:
        state = {"mount " + line.strip() for line in mounts
                 if WORK_PREFIX in line or namespace_name("") in line}
    for directory, names in traces().items():
        paths = [os.path.join(directory, name) for name in names]
        state.update(path for path in paths if os.path.lexists(path))
    return state


def traces():
    """Return by directory what a cluster would leave if it were not in namespaces."""
    return {
        "/sys/class/net": [port_of(host, network) for host in HOSTS for network in HOSTS[host]],
        "/run/netns": [namespace_name(host) for host in HOSTS],
        "/run": ["corosync.pid", "heartbeat_writer.pid"],
        "/usr/lib/ocf/resource.d": ["fencetool"],
    }


def main():
    reasons = missing_requirements()
    if reasons:
        sys.exit("no cluster here: " + "; ".join(reasons))
    cluster = Cluster()
    with cluster:
        print(cluster.quorate_node().run(["crm_mon", "--one-shot"]).stdout)
    print(cluster.render_events())
    leftovers = cluster.leftovers()
    print("left over: " + ("; ".join(leftovers) or "nothing"))
    sys.exit(1 if leftovers else 0)


if __name__ == "__main__":
    main()
