"""A cluster whose nodes hang on virtual plugs and a BMC, fenced by the agents of fencetool.py."""

import collections
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

from tests.cluster import harness, plugs, power

ROOT = plugs.ROOT
SCRIPT = os.path.join(ROOT, "fencetool.py")
AGENTS = ("fence_kasa", "fence_http", "fence_check")
WRITER = "writer"
# Room for slow machines; every wait ends at once when its event comes.
FAILOVER_WAIT_S = 60
SETTLE_WAIT_S = 25
SCRIPT_WAIT_S = 120
BMC_READY_S = 10

# plugs: as plugs.start_plugs takes them. bmc: {node: address}. config: the cluster file.
# direct_networks, voting: as of harness.Cluster.
Layout = collections.namedtuple("Layout", "plugs bmc config direct_networks voting")

NETWORKS_OF_NODES = {
    "storage-a": "    mgmt_ip: 10.20.20.1\n    storage_ip: 10.10.10.1\n"
                 "    client_ips: {client: 10.30.30.1}\n",
    "storage-b": "    mgmt_ip: 10.20.20.2\n    storage_ip: 10.10.10.2\n"
                 "    client_ips: {client: 10.30.30.2}\n",
    "quorum": "    mgmt_ip: 10.20.20.3\n",
}


def cluster_file(devices, direct_networks="storage"):
    """Return a cluster file; devices: {node: lines that describe its fence device}."""
    lines = ["stonith_fence_verify: true", "stonith_verify_wait: 1",
             "stonith_direct_networks: [%s]" % direct_networks,
             "stonith_witness_ips: {client: 10.30.30.254}", "stonith_nodes:"]
    for node, described in devices.items():
        lines += ["  %s:" % node, "    " + described.strip().replace("\n", "\n    "),
                  NETWORKS_OF_NODES[node].rstrip()]
    return "\n".join(lines) + "\n"


KASA_STRIP = {"dialect": "kasa", "address": "10.20.20.202", "feeds": {2: "storage-b"},
              "options": {"aliases": ["spare", "b", "lamp"], "mac": "CC:32:E5:00:00:01"}}
TASMOTA = {"dialect": "tasmota", "address": "10.20.20.201", "feeds": {1: "quorum"},
           "options": {"mac": "CC:32:E5:00:00:02", "password": "s3cret"}}
ESPHOME = {"dialect": "esphome", "address": "10.20.20.203", "feeds": {1: "storage-a"},
           "options": {"aliases": ["Relay"], "version": "2026.6"}}
KASA_LINES = "method: kasa\nip: 10.20.20.202\nmac: CC:32:E5:00:00:01\noutlet: 2\n"
TASMOTA_LINES = ("method: tasmota\nip: 10.20.20.201\nmac: CC:32:E5:00:00:02\n"
                 "user: admin\npassword: s3cret\npower_on: true\n")
BMC_LINES = ("method: ipmi\nip: 10.20.20.101\nuser: bmcadmin\npassword: s3cret\n"
             "options: {cipher: 3}\n")
ESPHOME_LINES = "method: esphome\nip: 10.20.20.203\nswitch_name: Relay\npower_on: true\n"

# As the guide has it: the storage network is a cable between the storage nodes.
MIXED = Layout({"kasa": KASA_STRIP, "tasmota": TASMOTA, "esphome": dict(ESPHOME, feeds={})},
               {"storage-a": "10.20.20.101"},
               cluster_file({"storage-a": BMC_LINES, "storage-b": KASA_LINES,
                             "quorum": TASMOTA_LINES}), ("storage",), harness.THREE_VOTES)
# The same devices, with the third node on the fourth make.
REPLUGGED = MIXED._replace(
    plugs={"kasa": KASA_STRIP, "tasmota": dict(TASMOTA, feeds={}),
           "esphome": dict(ESPHOME, feeds={1: "quorum"})},
    config=cluster_file({"storage-a": BMC_LINES, "storage-b": KASA_LINES,
                         "quorum": ESPHOME_LINES}))
# The second node has two power supplies, on two outlets of its strip.
TWO_SUPPLIES = MIXED._replace(
    plugs=dict(MIXED.plugs, kasa=dict(KASA_STRIP, feeds={2: "storage-b", 3: "storage-b"})),
    config=MIXED.config.replace("outlet: 2\n", "outlet: [2, 3]\n"))
# It has them on plugs of two makes.
TWO_PLUGS = MIXED._replace(
    plugs=dict(MIXED.plugs, esphome=dict(ESPHOME, feeds={1: "storage-b"})),
    config=MIXED.config.replace(
        KASA_LINES.strip().replace("\n", "\n    "), "devices:\n" + "\n".join(
            "    - " + lines.strip().replace("\n", "\n      ")
            for lines in (KASA_LINES, ESPHOME_LINES.replace("power_on: true\n", "")))))
# The storage network has a switch, and every node is powered on again after it was fenced.
PLUGS = Layout({"kasa": KASA_STRIP, "tasmota": TASMOTA, "esphome": ESPHOME}, {},
               cluster_file({"storage-a": ESPHOME_LINES,
                             "storage-b": KASA_LINES + "power_on: true\n",
                             "quorum": TASMOTA_LINES}, direct_networks=""), (),
               harness.THREE_VOTES)
# Two nodes, a cable between them, and no other node: what answers is the plugs and the gateway. A
# fenced node stays off, and so cannot be back before the other has taken its resource.
TWO_NODES = Layout({"kasa": KASA_STRIP, "esphome": ESPHOME}, {},
                   cluster_file({"storage-a": ESPHOME_LINES.replace("power_on: true\n", ""),
                                 "storage-b": KASA_LINES}), ("storage",), harness.TWO_NODES)
QUORUM_DEVICE = TWO_NODES._replace(
    config="stonith_quorum_device: true\n" + TWO_NODES.config, voting=harness.QUORUM_DEVICE)

IPMI_LAN = """\
name "%(node)s"
set_working_mc 0x20
  startlan 1
    addr %(address)s 623
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "%(chassis)s"
  user 1 true  ""         "test"   user  10 none md2 md5 straight
  user 2 true  "bmcadmin" "s3cret" admin 10 none md2 md5 straight
"""
IPMI_COMMANDS = """\
mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02
sel_enable 0x20 1000 0x0a
mc_enable 0x20
"""
IPMI_CHASSIS = """\
#!/bin/sh
# What ipmi_sim calls: get power, set power 0, set power 1 and others.
ask() { %(python)s -IS %(client)s %(socket)s "$1 %(node)s"; }
case "$*" in
"get power") [ "$(ask state)" = on ] && echo power:1 || echo power:0 ;;
"set power 0") ask off >/dev/null ;;
"set power 1") ask on >/dev/null ;;
esac
"""


STEPS = (
    ("lost", "Node %(node)s state is now lost"),
    ("off", "Operation 'off' .*targeting %(node)s using fence-%(node)s returned 0"),
    ("proven dead", "Operation 'off' .*targeting %(node)s using fence-verify-%(node)s returned 0"))

WRITER_XML = """\
<primitive id="writer" class="ocf" provider="fencetool" type="heartbeat_writer">
  <instance_attributes id="writer-instance_attributes">
    <nvpair id="writer-path" name="path" value="%s"/>
  </instance_attributes>
  <operations><op id="writer-monitor" name="monitor" interval="5s"/></operations>
</primitive>
"""
WRITER_PLACE_XML = """\
<rsc_location id="writer-place" rsc="writer" node="quorum" score="-INFINITY"/>
"""


class FencedCluster(harness.Cluster):
    """versions: {node: the version its copy of fencetool.py tells, None for no copy}.

    is_configured: whether it comes up with its fencing and the writer, instead of empty. limits:
    {device: {parameter: value}} that make failures come sooner than in real life. monitor_s: the
    interval of all monitors of fence devices.
    """

    def __init__(self, layout, versions=None, is_configured=True, limits=None, monitor_s=None,
                 **properties):
        properties.setdefault("dc-deadtime", "1s")
        super().__init__(properties, layout.direct_networks, voting=layout.voting)
        self.layout = layout
        self.versions = versions or {}
        self.is_configured = is_configured
        self.limits = limits or {}
        self.monitor_s = monitor_s
        self.plugs = {}
        self.wall_ahead_s = time.time() - time.monotonic()

    # -- life --

    def prepare(self):
        super().prepare()
        for node in self.nodes.values():
            self.install(node, self.versions.get(node.name, ""))
        for node, address in self.layout.bmc.items():
            self._start_bmc(node, address)
        if self.layout.plugs:
            self.plugs = plugs.start_plugs(self, self.layout.plugs)

    def install(self, node, version=""):
        """Give a node from its next boot on a copy that tells this version, "" for its own."""
        path = os.path.join(self.shared_directory, "fencetool-%s.py" % node.name)
        if version is not None:
            with open(SCRIPT) as source:
                text = source.read()
            if version:
                text = re.sub('__version__ = ".*"', '__version__ = "%s"' % version, text)
            harness.write_file(path, text, 0o755)
        node.install_agents(None if version is None else path, AGENTS)

    def _start_bmc(self, node, address):
        place = os.path.join(self.directory, "bmc-" + node)
        os.makedirs(os.path.join(place, "state"))
        values = {"node": node, "address": address, "python": sys.executable,
                  "client": power.__file__, "socket": self.power_socket,
                  "chassis": os.path.join(place, "chassis")}
        harness.write_file(values["chassis"], IPMI_CHASSIS % values, 0o755)
        harness.write_file(os.path.join(place, "lan"), IPMI_LAN % values)
        harness.write_file(os.path.join(place, "commands"), IPMI_COMMANDS)
        with open(os.path.join(place, "output"), "wb") as output:
            self.programs.append(self.start_in(
                "plugs", ["ipmi_sim", "-n", "-c", "lan", "-f", "commands", "-s", "state"],
                cwd=place, stdin=subprocess.DEVNULL, stdout=output, stderr=output))

    # -- configuration --

    def initial_cib(self):
        empty = super().initial_cib()
        if not self.is_configured:
            return empty
        cib = ElementTree.fromstring(empty)
        rendered = ElementTree.fromstring(self.generate("cib", self.layout.config))
        properties = cib.find(".//cluster_property_set")
        properties.extend(rendered.find(".//cluster_property_set"))
        configuration = cib.find("configuration")
        for name in ("resources", "constraints"):
            configuration.remove(configuration.find(name))
        configuration.extend(rendered.find(name)
                             for name in ("configuration/resources", "configuration/constraints",
                                          "configuration/fencing-topology"))
        configuration.find("resources").append(
            ElementTree.fromstring(WRITER_XML % self.heartbeat_file))
        if "quorum" in self.nodes:
            configuration.find("constraints").append(ElementTree.fromstring(WRITER_PLACE_XML))
        self._set_limits(configuration)
        return ElementTree.tostring(cib, encoding="unicode")

    def _set_limits(self, configuration):
        for primitive in configuration.iter("primitive"):
            device = primitive.get("id")
            attributes = primitive.find("instance_attributes")
            for name, value in self.limits.get(device, {}).items():
                pair = attributes.find("nvpair[@name='%s']" % name)
                if pair is None:
                    pair = ElementTree.SubElement(attributes, "nvpair", name=name,
                                                  id="%s-limit-%s" % (device, name))
                pair.set("value", str(value))
            if self.monitor_s and primitive.get("class") == "stonith":
                primitive.find("operations/op").set("interval", "%ds" % self.monitor_s)

    def generate(self, form, config):
        """Return what gen-config makes of the text of a cluster file."""
        path = os.path.join(self.shared_directory, "cluster.yml")
        harness.write_file(path, config)
        return harness.run_command(
            [sys.executable, SCRIPT, "gen-config", "--format", form, path]).stdout

    def configure(self, node, layout):
        """Plug all nodes in as a layout has it, and let pcs do what its script says."""
        self.layout = layout
        self.mend()
        script = os.path.join(self.shared_directory, "configure-stonith.sh")
        harness.write_file(script, self.generate("pcs", layout.config), 0o700)
        node.run([script], timeout_s=SCRIPT_WAIT_S)
        self.note("configured")

    def add_writer(self, node):
        for scope, text in (("resources", WRITER_XML % self.heartbeat_file),
                            ("constraints", WRITER_PLACE_XML)):
            node.run(["cibadmin", "--create", "--scope", scope, "--xml-text", text])

    def set_parameter(self, device, parameter, value):
        self.quorate_node().run(["crm_resource", "--resource", device, "--set-parameter",
                                 parameter, "--parameter-value", str(value)])

    # -- states --

    def make_whole(self):
        """Mend everything, give power to all, and wait until the writer runs."""
        self.heal()
        self.mend()
        for node in self.nodes.values():
            if node.frozen:
                node.cut_power()
        self._settle()
        for node in self.nodes.values():
            node.power_on()
        self.wait_until_online()
        self.wait_for_holder()

    def mend(self):
        """Put sound plugs, cables, links and filters everywhere; nodes and partitions stay."""
        self.network.replug()
        for name, plug in self.plugs.items():
            plug.replace(feeds=self.layout.plugs[name]["feeds"])
        for node in self.nodes.values():
            node.filter_icmp(False)

    def _settle(self):
        """Wait until no fence is under way: it would cut the power of a node that comes back.

        Nothing is under way without quorum, which the nodes that are dead may bring back.
        """
        try:
            self.wait_for(self._is_settled, SETTLE_WAIT_S, "no fence is under way")
        except harness.NotReached:
            self.note("not settled")

    def _is_settled(self):
        status = self.status()
        return not (status.findall(".//fence_event[@status='pending']")
                    or status.findall("nodes/node[@unclean='true']"))

    def wait_for_holder(self, among=harness.STORAGE):
        """Return the one node that runs the writer, once it is one of these."""
        def held():
            holders = self.holders(WRITER)
            return len(holders) == 1 and holders[0] in among and holders
        return self.wait_for(held, FAILOVER_WAIT_S, "writer runs on " + " or ".join(among))[0]

    def is_alone(self, name):
        """Return whether a node coordinates itself and has no quorum to do anything with."""
        coordinator = self.status(self[name]).find("summary/current_dc")
        return (coordinator is not None and coordinator.get("name") == name
                and coordinator.get("with_quorum") == "false")

    def unblock(self, name):
        """Let a node go on that waits for all; it has to fence the others then.

        pcs quorum unblock would also tell the cluster that the others are dead.
        """
        self[name].run(["corosync-cmapctl", "-s", "quorum.cancel_wait_for_all", "u8", "1"])

    def writes(self):
        """Return whether anybody has written within the last second."""
        last_s = max([tenure.last_s for tenure in self.tenures()] or [0])
        return time.monotonic() - last_s < 1

    def started_devices(self):
        """Return {fence device: node that monitors it}."""
        found = self.status().findall(".//resource[@role='Started']")
        return {resource.get("id"): resource.find("node").get("name") for resource in found
                if resource.get("resource_agent").startswith("stonith:")}

    def wait_for_devices(self):
        """Wait until every power device and every verifier is started somewhere."""
        wanted = len(self.cib("//primitive[@class='stonith']"))
        self.wait_for(lambda: len(self.started_devices()) == wanted, FAILOVER_WAIT_S,
                      "all devices started")

    def monitors(self, pattern="outcome=ok"):
        """Return how many monitors of our agents ended so, by what they were run on."""
        found = collections.Counter()
        for node in self.nodes.values():
            for line in node.syslog().splitlines():
                match = re.search(r" (fence_\w+)\[.* action=monitor .*(device=\S+) ", line)
                if match and re.search(pattern, line):
                    found[match.groups()] += 1
        return found

    def set_level(self, target, is_wanted):
        """Take away a node's level of fence devices, or put it back."""
        device = "fence-%s,fence-verify-%s" % (target, target)
        level = '<fencing-level id="fl-%s-1" index="1" target="%s" devices="%s"/>' % (
            target, target, device)
        self.quorate_node().run(
            ["cibadmin", "--create", "--scope", "fencing-topology", "--xml-text", level]
            if is_wanted else ["cibadmin", "--delete", "--xml-text", level])

    # -- what happened --

    def history(self, target, status):
        """Return the fence operations on a node that ended so, oldest first: dicts."""
        answer = self.quorate_node().run(
            ["stonith_admin", "--history", target, "--output-as", "xml"]).stdout
        found = ElementTree.fromstring(answer).findall(".//fence_event[@status='%s']" % status)
        return [event.attrib for event in found]

    def log_of(self, pattern):
        """Return (monotonic seconds, match) of all lines in the nodes' logs that match."""
        found = []
        for node in self.nodes.values():
            for line in node.log().splitlines():
                match = re.search(pattern, line)
                if match:
                    found.append((self._time_of(line), match))
        return sorted(found, key=lambda item: item[0])

    def _time_of(self, line):
        """Return the time of a line of pacemaker.log, which has no year."""
        stamp, milliseconds = line.split(" storage", 1)[0].split(" quorum", 1)[0].rsplit(".", 1)
        year = time.localtime().tm_year
        whole = time.mktime(time.strptime("%d %s" % (year, stamp), "%Y %b %d %H:%M:%S"))
        return whole + float("0." + milliseconds) - self.wall_ahead_s

    def steps(self, lost, since_s):
        """Return [(step, monotonic seconds)] of the failover after a node was lost."""
        found = []
        for step, pattern in STEPS:
            times = [at_s for at_s, _ in self.log_of(pattern % {"node": lost}) if at_s >= since_s]
            found += [(step, min(times))] if times else []
        moved = [tenure.first_s for tenure in self.tenures()
                 if tenure.node != lost and tenure.first_s >= since_s]
        return found + ([("writer moved", min(moved))] if moved else [])

    def false_successes(self):
        """Return where the cluster took a node for fenced that had power, as lines of text.

        The end of a level's off phase is what counts: after that the node may get power again.
        """
        fenced = self.log_of(r"Remapped 'off' targeting (\S+) complete")
        return ["%s taken for dead at %.2f s" % (match.group(1), at_s - self.events[0].time_s)
                for at_s, match in fenced if self.had_power(match.group(1), at_s)]

    def had_power(self, name, at_s):
        """Return whether a node had power at that time."""
        powered = False
        for event in self.events:
            if event.time_s > at_s:
                break
            if event.what in (name + " on", name + " cut"):
                powered = event.what.endswith(" on")
        return powered


class Watch:
    """What comes into the logs of the nodes after it was made."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.started_s = time.monotonic()
        self._before = {name: len(node.log()) for name, node in cluster.nodes.items()}

    def log(self):
        return "\n".join(node.log()[self._before[name]:]
                         for name, node in self.cluster.nodes.items())

    def count(self, pattern):
        return len(re.findall(pattern, self.log()))

    def wait_for(self, pattern, seconds=FAILOVER_WAIT_S):
        """Return the first match in what the nodes have logged since."""
        return self.cluster.wait_for(lambda: re.search(pattern, self.log()), seconds,
                                     "log: " + pattern)
