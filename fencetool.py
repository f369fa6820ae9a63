#!/usr/bin/python3 -IS
"""fencetool: cheap smart plugs as STONITH devices for Pacemaker, and proof that a node is dead.

Started as fence_kasa or fence_http this file is a fence agent: parameters come from stdin when
there are no arguments, else from the command line. As fence_check it switches nothing: second in a
fencing level, it proves that the node is dead. As "kasa" it is a cluster-glue external plugin.
"fencetool.py SUBCOMMAND" is for people; "fencetool.py fence_kasa ..." is the agent without its
link. The file needs Python 3.6 or newer and nothing else.

The one rule: "off" succeeds only on proof. No answer, half an answer, two answers, a wrong outlet
or a missing tool is a failure with a reason. A failure blocks a failover, which a person can mend;
a false success corrupts data, which nobody can.

Parts and sections; each uses only those above it (tests/test_layout.py proves it):
  1 WORDS    CONSTANTS, ERRORS, TEXT, PROOF, DIALECTS, PARAMETERS
  2 MACHINE  LOG, FILES AND PROGRAMS, NETWORK, HTTP
  3 DEVICES  KASA, TASMOTA, ESPHOME, PAGES, INSTALLED AGENT
  4 FENCING  PROBES, FENCING, CHECKING, AGENTS
  ---------- the waterline: a fence agent's run needs nothing below it but for fence_check -n NODE
  5 CLUSTER  YAML, CLUSTER FILE, PLAN, CLUSTER CHECKS, OUTPUTS
  6 PEOPLE   LOOK-UP, SIMULATOR AND DEMO, COMMANDS, ENTRY

To add a parameter, go to PARAMETERS: one row; agents take it by their rows in AGENTS.
To add a family of plugs, go to DIALECTS: one row; then a room of its own in part 3.
To add a command, go to COMMANDS: one cmd_ function and its row.

Exit codes of an agent: 0 done and confirmed (status: ON), 2 only for a status of OFF (fence_check:
proven dead), 1 anything else, usage errors included. Subcommands for people: 0 good, 1 bad, 2 usage
error.
"""


# PART 1: WORDS ====================================================================================

# SECTION: CONSTANTS -------------------------------------------------------------------------------
# Imports that every run needs, and fixed numbers with their units. Heavy modules are imported in
# the functions that need them: an agent run pays for nothing that it does not use.

import enum
import errno
import io
import json
import os
import re
import socket
import struct
import sys
import time
import types
from collections import namedtuple
__version__ = "0.1.0"
EXIT_GOOD = 0
EXIT_BAD = 1
EXIT_OFF = 2    # agents: status says OFF, and nothing else
EXIT_USAGE = 2  # subcommands for people
LOG_ERR, LOG_WARNING, LOG_INFO = 3, 4, 6  # priorities of syslog(3)
LOG_DAEMON = 3 << 3
LOG_SOCKET = "/dev/log"
HTTP_PORT = 80
HTTPS_PORT = 443
MAX_REPLY_BYTES = 65536   # the largest honest replies are event streams of big ESPHome devices
MAX_STDIN_BYTES = 1048576
MAX_FILE_BYTES = 4194304
MAX_SHOWN_CHARACTERS = 80  # of a foreign reply in an error message
UNTIL_DEADLINE = -1        # tries without a limit of their own
READ_ATTEMPTS = 2          # of status, monitor and list: one lost reply must not fail a monitor
SHORTEST_EXCHANGE_SECONDS = 0.5  # with less, only the end of our own patience would be reported
SHORTEST_PAUSE_SECONDS = 0.2
OFF_READINGS = 2           # see confirm_power
REBOOT_OFF_SECONDS = 3.0   # see run_reboot
METER_SILENT_WATTS = 1.0   # meters show up to 0.9 W of noise on an open relay (HS110 capture)
CHILD_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
CLUSTER_FILE = "/etc/fencetool/cluster.yml"
FEWEST_ECHOES, MOST_ECHOES = 3, 50  # one lost packet is no silence, and a look is no flood
SHORTEST_LOOK_SECONDS = 1.0
ASKING_PART = 2 / 3                 # of a look; in the rest the last questions can be answered
MOST_LATE_READS = 10000             # of what has piled up while the process was held up


# SECTION: ERRORS ----------------------------------------------------------------------------------
# What can go wrong, and whether trying again may help: that policy sits on the class.

class FenceError(Exception):
    """Anything that keeps an action from its proof. The text says what happened and what to do."""
    retryable = False


class UsageError(FenceError):
    """The caller's parameters cannot work; nothing has been sent to any device."""


class SyntaxMistake(UsageError):
    """A place in a file that cannot be read, or only by guessing."""

    def __init__(self, line, text):
        super().__init__(text)
        self.line = line


class Unreachable(FenceError):
    """No connection, no answer, or an answer that broke off: the outcome is not known."""
    retryable = True

    def __init__(self, text, was_closed=False):
        super().__init__(text)
        self.was_closed = was_closed  # by the device, before it answered anything


class ProtocolError(FenceError):
    """An answer that is not what the protocol says; a damaged reply may be whole the next time."""
    retryable = True


class Refused(FenceError):
    """The device answered clearly, and the answer is no (or it is the wrong device)."""


class NotConfirmed(FenceError):
    """The command was sent, and the proof did not come in time."""


# SECTION: TEXT ------------------------------------------------------------------------------------
# Text to values and back: parsing, rendering, quoting, escaping, hiding secrets. Pure.

def parse_whole_number(text):
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise UsageError("%s is not a whole number" % quote(text))
    return int(text)


def parse_seconds(text):
    """Return seconds as float for 5, 5s, 1500ms, 1m; raise UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)(ms|sec|s|min|m)?", text.strip())
    if not match:
        raise UsageError("%s is not a time (use 5, 5s, 1500ms or 1m)" % quote(text))
    unit = {"ms": 0.001, "m": 60.0, "min": 60.0}.get(match.group(2), 1.0)
    return float(match.group(1)) * unit


def parse_boolean(text):
    word = text.strip().lower()
    if word in ("1", "yes", "on", "true"):
        return True
    if word in ("0", "no", "off", "false"):
        return False
    raise UsageError("%s is neither yes nor no (use 1 or 0)" % quote(text))


def parse_mac(text):
    """Return a MAC address as 12 lower-case hex digits, whatever separators it came with."""
    digits = re.sub("[:. -]", "", text).lower()
    if not re.fullmatch("[0-9a-f]{12}", digits):
        raise UsageError("%s is not a MAC address (use CC:32:E5:00:00:01)" % quote(text))
    return digits


def parse_url(text):
    """Return a path or URL as it stands. The text is never shown: it may hold a password."""
    if not re.fullmatch(r"(https?://[^/?#@\s]+)?/[!\"$-~]*", text):
        raise UsageError("neither a path that begins with / nor a URL http://host/path; blanks and "
                         "the like are written %20, a login goes into username and password")
    return text


def parse_pattern(text):
    """Return a regular expression; one that matches nothing at all would match any reply."""
    try:
        expression = re.compile(text)
    except re.error as error:
        raise UsageError("%s is not a regular expression: %s" % (quote(text), error)) from None
    if expression.search(""):
        raise UsageError("%s matches anything, even an empty reply" % quote(text))
    return expression


def split_address(text, port):
    """Return (host, port) of "host", "host:port", "::1" or "[::1]:port"; raise UsageError."""
    match = re.fullmatch(r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\](?::([0-9]{1,5}))?", text)
    if not match and text.count(":") < 2:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?", text)
    host, own_port = match.groups() if match else (text, None)
    if not match and not re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?", text):
        raise UsageError("ip: %s is not an address" % quote(text))
    # The C library takes 10.20.20 for 10.20.0.20 and 010.1.1.1 for 8.1.1.1: another device.
    last = host.rpartition(".")[2].lower()
    four = r"\.".join(["(0|[1-9][0-9]{0,2})"] * 4)
    if re.fullmatch("[0-9]+|0x[0-9a-f]*", last) and not re.fullmatch(four, host):
        raise UsageError("ip: %s is not an address of four numbers" % quote(text))
    port = int(own_port) if own_port else port
    if not 1 <= port <= 65535:
        raise UsageError("%s is not a port number (1 to 65535)" % port)
    return host, port


def check_address(text):
    """Return the address; raise UsageError for a name: it may mean another host when it matters."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        raise UsageError("%s is not an IP address" % quote(text)) from None
    if re.match("(?i)fe[89ab].:", text):
        raise UsageError("%s is link-local: it does not say on which link" % quote(text))
    return text


def split_list(text):
    return [item.strip() for item in text.split(",") if item.strip()]


def render_identifier(name):
    """Return a name as devices make identifiers from it: a-z, 0-9, _ and -, all else a _ a byte."""
    return re.sub(b"[^a-z0-9_-]", b"_", name.encode("utf-8", "backslashreplace").lower()).decode()


def render_mac(digits):
    return ":".join(digits[i:i + 2] for i in range(0, 12, 2)).upper()


def render_address(host, port):
    return "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)


def render_seconds(seconds):
    return "%g s" % round(seconds, 1)


def quote(text, limit=MAX_SHOWN_CHARACTERS):
    """Return foreign text as one printable line in quotes, cut to `limit` characters."""
    # SAFETY: Pacemaker takes these words on an agent's stderr for its own, whoever said them.
    # Test: test_words_that_pacemaker_reads_are_never_passed_on
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "'%s'" % hide_timer_words(one_line(shown))


def one_line(text):
    """Return text without control characters, so that a log line stays one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def percent_encode(text):
    """Return text as one segment or value of a URL: nothing but unreserved characters stays."""
    from urllib.parse import quote as encode
    return encode(text, safe="", errors="surrogateescape")


def escape_xml(text):
    for character, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot"), ("'", "apos")):
        text = text.replace(character, "&%s;" % name)
    return text


def hide_timer_words(text):
    """Return text without the words by which Pacemaker takes a failure for its own timer's."""
    return re.sub("(?i)(timed?) ?(out)", r"\1-\2", text)


def redact(text, secrets):
    """Return text with every secret replaced, the longest first."""
    # One or two characters are left: replaced everywhere, they would show themselves.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***") if len(secret) > 2 else text
        for end in range(len(secret) - 1, 2, -1):  # what quote() has cut
            text = text.replace(secret[:end] + "...", "***...")
    return text


def parse_json_object(text):
    """Return the JSON object in text as a dict; raise ProtocolError for anything else."""
    # A name that comes twice with two values is an answer and its opposite: an error. NaN and
    # infinities are no JSON, and would pass every comparison with a limit.
    def refuse_doubles(pairs):
        members = {}
        for name, value in pairs:
            known = members.setdefault(name, value)
            # Compared as text: 0, false and 0.0 are equal in Python and different answers.
            if known is not value and (
                    json.dumps(known, sort_keys=True) != json.dumps(value, sort_keys=True)):
                raise ProtocolError("reply holds %s twice, with two values" % quote(name))
        return members

    def refuse_constant(name):
        raise ProtocolError("reply holds %s, which is no number" % name)

    try:
        reply = json.loads(text, object_pairs_hook=refuse_doubles, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        raise ProtocolError("reply is not JSON: %s" % quote(text)) from None
    if not isinstance(reply, dict):
        raise ProtocolError("reply is not a JSON object: %s" % quote(text))
    return reply


def is_number(value):
    # Not isinstance: True is an int in Python, and no number in JSON.
    return type(value) in (int, float)


def require_member(reply, name, kind, where):
    """Return reply[name] if it is there and of the kind (a type); raise ProtocolError if not."""
    if name not in reply:
        raise ProtocolError("%s holds no %s" % (where, name))
    if type(reply[name]) is not kind:
        raise ProtocolError("%s: %s is not a %s: %s"
                            % (where, name, kind.__name__, quote(json.dumps(reply[name]))))
    return reply[name]


# SECTION: PROOF -----------------------------------------------------------------------------------
# Every decision about success: which outlet is meant, what a meter proves, what evidence adds up
# to. Pure, and the one place where a node becomes dead.

class PowerState(enum.Enum):
    """What a device says about one outlet. Not knowing it is an error, never a third state."""
    ON = "ON"
    OFF = "OFF"


# One relay of a device, as the device itself describes it. number: as printed on the case, from 1;
# of an ESPHome switch its object id. identifiers: the names that the protocol gives it.
Outlet = namedtuple("Outlet", "number alias identifiers state")


def select_outlet(outlets, wanted, label):
    """Return the one Outlet that `wanted` names; raise Refused unless it is exactly one."""
    # wanted: number on the case, alias or identifier; "" or `label` (the cluster's name for the
    # target) when the caller named none, which selects an only outlet, or one with that alias.
    if len(outlets) == 1 and wanted in ("", label):
        return outlets[0]
    if not wanted:
        raise Refused("no outlet named (plug), and the device has %s" % describe_outlets(outlets))
    # The number must be written as on the case: "01" is an identifier of another outlet than "1".
    found = [outlet for outlet in outlets if outlet.alias == wanted or wanted != label and (
        wanted == str(outlet.number) or wanted.lower() in outlet.identifiers)]
    if len(found) == 1 and wanted.isdigit() and found[0].alias == wanted != str(found[0].number):
        raise Refused("plug %s is the alias of outlet %d, and no outlet's number: use its id, or "
                      "rename it" % (quote(wanted), found[0].number))
    if len(found) != 1:
        raise Refused("plug %s names %s of its outlets; it has %s" % (
            quote(wanted), len(found) or "none", describe_outlets(outlets)))
    return found[0]


def describe_outlets(outlets):
    return ", ".join("%s (%s)" % (outlet.number, quote(outlet.alias, 40)) for outlet in outlets)


def doubt_about_meter(watts, policy):
    """Return why an outlet that reports OFF cannot be believed, or "" when it can."""
    # watts: what the meter read, None where there is no meter or it gave no reading.
    # policy: auto (a reading counts, a missing one does not) or require (a reading must be there).
    if watts is None:
        return "the meter gave no reading, and power_meter=require" if policy == "require" else ""
    if abs(watts) > METER_SILENT_WATTS:
        return "relay reports OFF but the outlet still draws %.0f W" % watts
    return ""


class Finding(enum.Enum):
    """What one observation says about the target, or all of them together."""
    DEAD = "dead"
    ALIVE = "alive"
    UNKNOWN = "unknown"


POWER, NETWORK = "power", "network"

# One observation about the target. source: POWER or NETWORK. subject: what was observed. seen: what
# it showed. reason: what else a reader should know, or "".
Evidence = namedtuple("Evidence", "source finding subject seen reason")

# What all Evidence adds up to; blockers: the Evidence that keeps it from dead.
Verdict = namedtuple("Verdict", "finding blockers")
Target = namedtuple("Target", "network address")


def network_key(name):
    """Return the name of a network as names are compared: in any case, and mgmt is management."""
    return {"mgmt": "management"}.get(name.lower(), name.lower())


# How packets to one address leave this machine, by its kernel. mac, source: our own addresses there
# (bytes); mac is b"" where nobody speaks ARP or neighbour discovery. gateway: b"" for an attached
# network. changes: how often the carrier came or went. kind: of the link, and of what it stands on:
# "" for a network card, "dormant" for one that waits, "bridge", "bond", "macvlan on bridge"...
Path = namedtuple("Path", "interface index mac source gateway has_carrier changes kind")
WIRED_LINKS = ("", "veth", "bond", "team")  # kinds of links whose carrier is that of a wire


class Sight:
    """What one look saw of one address."""

    def __init__(self, address):
        self.address = address
        self.family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.packed = socket.inet_pton(self.family, address)
        self.path = None         # a Path, if there is one
        self.obstacle = ""       # why its silence would mean nothing
        self.echoed = False      # it answered an echo
        self.rejected = False    # it refused one with an ICMP error of its own
        self.uses_arp = False
        self.neighbour = False   # it answered ARP (if uses_arp) or neighbour discovery

    def answered(self):
        return self.echoed or self.rejected or self.neighbour

    def is_attached(self):
        return bool(self.path.mac) and not self.path.gateway

    def goes_the_way_of(self, other):
        """An address without a path may go any way: it must not pass for one nobody asked about."""
        return self.family == other.family and (self.path is None or (
            self.path.interface, self.path.gateway) == (other.path.interface, other.path.gateway))

    def block(self, reason):
        """Remember the first reason why silence means nothing."""
        self.obstacle = self.obstacle or reason


def judge(evidence):
    """Return the Verdict over all evidence about one target."""
    # SAFETY: one sign of life outweighs everything, and dead is only what every observation agrees
    # on: exactly one device, which says OFF, and at least one silent network.
    # Test: test_dead_needs_every_observation_to_agree
    sources = [item.source for item in evidence]
    alive = [item for item in evidence if item.finding is Finding.ALIVE]
    doubts = [item for item in evidence if item.finding is not Finding.DEAD]
    if alive:
        return Verdict(Finding.ALIVE, alive)
    if doubts or sources.count(POWER) != 1 or sources.count(NETWORK) < 1:
        return Verdict(Finding.UNKNOWN, doubts)
    return Verdict(Finding.DEAD, [])


def judge_power(state, watts, policy):
    """Return (finding, reason) for what a device says about the target's outlet."""
    # SAFETY: only a positive OFF is evidence of death; a load that is still drawn is evidence of
    # life: the relay is welded, or another outlet was switched.
    # Test: test_only_a_positive_off_is_evidence_of_death
    if state is not PowerState.OFF:
        return Finding.ALIVE if state is PowerState.ON else Finding.UNKNOWN, ""
    doubt = "" if policy == "ignore" else doubt_about_meter(watts, policy)
    if not doubt:
        return Finding.DEAD, ""
    return Finding.UNKNOWN if watts is None else Finding.ALIVE, doubt


def judge_address(sight, witnesses, is_direct):
    """Return (finding, what was seen, reason) for one address of the target after one look."""
    if sight.answered():
        means = "ARP" if sight.family == socket.AF_INET else "neighbour discovery"
        reason = ("" if sight.echoed else "it rejects ICMP echo with an error of its own"
                  if sight.rejected else means + " only: ICMP is filtered")
        return Finding.ALIVE, "reachable", reason
    doubt = doubt_about_path(sight, witnesses, is_direct)
    if doubt:
        return Finding.UNKNOWN, "unreachable", doubt
    remark = ""
    if not sight.path.has_carrier:
        remark = "the other end of the cable is dead: %s has no carrier" % sight.path.interface
    elif not any(witness.goes_the_way_of(sight) for witness in witnesses):
        remark = "no witness: route and carrier of %s must do" % sight.path.interface
    return Finding.DEAD, "unreachable", remark


def doubt_about_path(sight, witnesses, is_direct):
    """Return why silence of this address would prove nothing, or "" when it would."""
    # SAFETY: own failures look exactly like a dead target, so silence needs a path that is known to
    # work: a route, a carrier, and the answer of a witness that goes the same way. Where no witness
    # is known only ARP is believed, which no IP firewall on either side filters.
    # Test: test_silence_counts_only_over_a_proven_path
    if sight.path is None:
        return "no path from here: " + sight.obstacle
    if not sight.path.has_carrier:
        # A cable without a switch: the peer itself feeds the carrier, so its loss is its silence;
        # a bridge, a bond or a macvlan also loses it when its own port is switched off here.
        is_cable = is_direct and not sight.path.gateway and sight.path.kind in ("", "veth")
        return "" if is_cable else "no path from here: %s has no carrier" % sight.path.interface
    if sight.obstacle:
        return sight.obstacle
    known = [witness for witness in witnesses if witness.goes_the_way_of(sight)]
    if known and not any(witness.answered() for witness in known):
        return "no path from here: witness %s is silent too" % " and ".join(
            witness.address for witness in known)
    if not known and sight.path.kind.rpartition(" on ")[2] not in WIRED_LINKS:
        return "no proof of a path: a %s has a carrier of its own (witness_ips)" % sight.path.kind
    if not known and not sight.uses_arp:
        return "no proof of a path: without ARP a witness there must answer (witness_ips)"
    return ""


# What to look at first, by the evidence that stands against death.
FIRST_LOOKS = {
    (POWER, Finding.ALIVE): "did the device before this one in the level act on the right outlet?",
    (POWER, Finding.UNKNOWN): "look first at the fence device and the way to it",
    (NETWORK, Finding.ALIVE): "it has power: is it the right outlet, is there a UPS or a second "
                              "power supply?",
    (NETWORK, Finding.UNKNOWN): "look at this machine's link, route and firewall, and the witness"}


def render_evidence(item):
    return "%s: %s%s" % (item.subject, item.seen, " (%s)" % item.reason if item.reason else "")


def render_blockers(verdict):
    """Return which evidence stands against death, and what to look at first."""
    hints = [FIRST_LOOKS[item.source, item.finding] for item in verdict.blockers[:1]]
    return "; ".join([render_evidence(item) for item in verdict.blockers] + hints)


# SECTION: DIALECTS --------------------------------------------------------------------------------
# A dialect is what a family of plugs speaks: one row each. Choices, ports, keys of the cluster
# file, help and errors are derived from the rows; a family's facts and code are in its room.

# name: as device= and the rooms of part 3 call it. title: for help texts. method: its word in the
# cluster file and in fence_method. agent: who speaks it; "" where the cluster file names the agent.
# port: that the device listens on; 0 where an installed agent knows it. urls: the pattern of the
# paths that only it has. keys: of the cluster file, beside those that every method takes; required:
# of all of them (password_script serves as a password). fixed: parameters that its agent gets each
# time. comes_back: whether a node is powered on again after it was fenced, unless power_on tells.
Dialect = namedtuple("Dialect", "name title method agent port urls keys required fixed comes_back")

DIALECTS = {row.name: row for row in (
    Dialect(
        name="ipmi", title="IPMI", method="ipmi", agent="fence_ipmilan", port=0, urls="",
        keys=(), required=("ip", "user", "password"), fixed={"lanplus": "1"}, comes_back=True),
    Dialect(
        name="kasa", title="TP-Link Kasa", method="kasa", agent="fence_kasa", port=9999, urls="",
        keys=("mac", "outlet", "power_meter"), required=("ip",), fixed={}, comes_back=False),
    Dialect(
        name="tasmota", title="Tasmota", method="tasmota", agent="fence_http", port=HTTP_PORT,
        urls=r"/cm\?(.*&)?cmnd=", keys=("mac", "outlet", "power_meter", "ssl", "ssl_insecure"),
        required=("ip",), fixed={"device": "tasmota"}, comes_back=False),
    Dialect(
        name="esphome", title="ESPHome", method="esphome", agent="fence_http", port=HTTP_PORT,
        urls="/switch/",
        keys=("mac", "outlet", "switch_name", "power_meter", "ssl", "ssl_insecure"),
        required=("ip",), fixed={"device": "esphome"}, comes_back=False),
    Dialect(
        name="url", title="any HTTP power switch", method="http", agent="fence_http",
        port=HTTP_PORT, urls="",
        keys=("power_on_url", "power_off_url", "status_url", "status_on_regex",
              "status_off_regex", "http_method", "power_meter", "ssl", "ssl_insecure"),
        required=("ip", "power_off_url", "status_url", "status_on_regex", "status_off_regex"),
        fixed={}, comes_back=False),
    Dialect(
        name="agent", title="an installed fence agent", method="agent", agent="", port=0, urls="",
        keys=("agent", "outlet"), required=("agent",), fixed={}, comes_back=True))}
DIALECTS_BY_METHOD = {row.method: row for row in DIALECTS.values()}


def dialects_of(agent):
    """Return the rows that one of our own agents speaks."""
    return [row for row in DIALECTS.values() if row.agent == agent]


def find_own_methods():
    """Return the words of fence_method for what this file speaks, and for IPMI."""
    return [row.method for row in DIALECTS.values() if row.agent]


def find_url_dialects(paths):
    """Return the names of the dialects that paths of URLs belong to; no one else's is "url"."""
    return {next((row.name for row in DIALECTS.values() if row.urls and re.match(row.urls, path)),
                 "url") for path in paths}


# SECTION: PARAMETERS ------------------------------------------------------------------------------
# Every parameter is one row: stdin names, options, defaults, metadata and help follow. Pure.

STRING, INTEGER, SECONDS, BOOLEAN = "string", "integer", "second", "boolean"
SELECT, MAC, URL, PATTERN = "select", "mac", "url", "pattern"
Param = namedtuple("Param", "name kind letter default aliases secret choices help")


def param(name, kind, help, letter="", default="", aliases="", secret=False, choices=""):
    return Param(name, kind, letter, default, tuple(aliases.split()), secret,
                 tuple(choices.split()), help)


# The parameters, by the agents that take them.
DEVICE_PARAMS = (  # fence_kasa and fence_http
    param("ip", STRING, "Address or name of the device", letter="a", aliases="ipaddr"),
    param("ipport", INTEGER, "TCP port of the device", letter="u"),
    param("username", STRING, "User name, if the device asks for one", letter="l", aliases="login"),
    param("inet4_only", BOOLEAN, "Use IPv4 only", letter="4"),
    param("inet6_only", BOOLEAN, "Use IPv6 only", letter="6"))
HTTP_PARAMS = (  # fence_http
    param("ssl", BOOLEAN, "Use TLS, and verify the certificate (default port: 443)", letter="z"),
    param("ssl_insecure", BOOLEAN, "Use TLS with any certificate (default port: 443)"),
    param("device", SELECT, "What the device speaks; auto: a /cm?cmnd= URL means tasmota, a "
          "/switch/ URL esphome, any other is taken as it stands", default="auto",
          choices="auto tasmota esphome url"),
    param("power_on_url", URL, "Path (or full URL on the same host) that switches on"),
    param("power_off_url", URL, "Path (or full URL on the same host) that switches off"),
    param("http_method", SELECT, "Method of the switching URLs of device=url; auto is GET",
          default="auto", choices="auto GET POST"))
STATUS_PARAMS = (  # fence_http and fence_check
    param("switch_name", STRING, "Name or object id of the ESPHome switch: same as plug"),
    param("status_url", URL, "Path (or full URL on the same host) that tells the power state"),
    param("status_on_regex", PATTERN, "Regex that only a status of ON matches (for device=url)"),
    param("status_off_regex", PATTERN, "Regex that only a status of OFF matches (for device=url)"))
CHECK_PARAMS = (  # fence_check
    param("fence_method", STRING, "What the fence device speaks: ipmi, kasa, tasmota, esphome, "
          "http, or the name of any installed fence agent"),
    param("fence_ip", STRING, "Address or name of the fence device"),
    param("fence_ipport", INTEGER, "Port of the fence device"),
    param("fence_user", STRING, "User name at the fence device"),
    param("fence_pass", STRING, "Password at the fence device; as password or password_script "
          "Pacemaker hides it in its own outputs", secret=True),
    param("fence_plug", STRING, "Outlet to be read, if the node's name does not mean it"),
    param("fence_options", STRING, "More parameters of the device: name=value,...", secret=True),
    param("target_mgmt_ip", STRING, "The node's address in the management network"),
    param("target_storage_ip", STRING, "The node's address in the storage network"),
    param("target_client_ips", STRING, "The node's addresses in client networks: address,...",
          aliases="target_client_ip"),
    param("target_ips", STRING, "The node's addresses in any other networks: name=address,..."),
    param("witness_ips", STRING, "Addresses that must answer for silence in that network to "
          "count: name=address,... (names: mgmt, storage, client and those of target_ips)"),
    param("direct_networks", STRING, "Names of networks that are one cable from node to node: a "
          "lost carrier is the other node's silence there"),
    param("verify_wait", SECONDS, "Seconds that off gives the node to go down", default="10"),
    param("early_exit", SECONDS, "Seconds of proof after which off ends early; 0: no", default="0"),
    param("ping_count", INTEGER, "Questions to each address in one look", default="20"),
    param("ping_timeout", SECONDS, "Seconds of one look", default="1.5"),
    param("arp_check", BOOLEAN, "Ask by ARP and neighbour discovery too: it shows a node that "
          "drops ICMP", default="1"),
    param("config", STRING, "Cluster file that holds the parameters of the node"))
COMMON_PARAMS = (  # all agents
    param("action", STRING, "Fencing action", letter="o", aliases="option"),
    param("device_mac", MAC, "MAC address of the device; any other device at this address, or one "
          "that cannot tell its MAC, is refused before anything is switched"),
    param("plug", STRING, "Outlet to switch: the number printed on the case, its alias or its id. "
          "The fenced node's name is the cluster's label, and no outlet unless one carries it; of "
          "several outlets exactly one must match. For fence_check: the node's name", letter="n",
          aliases="port"),
    param("password", STRING, "Password, where the device asks for one", letter="p",
          aliases="passwd", secret=True),
    param("password_script", STRING, "Program that prints the password", letter="S",
          aliases="passwd_script"),
    param("power_meter", SELECT, "What a power meter in the device says about an outlet that "
          "reports OFF: auto (a load fails the action, no reading does not), ignore, or require "
          "(no reading fails it too)", default="auto", choices="auto ignore require"),
    param("delay", SECONDS, "Seconds to wait before off and reboot", default="0"),
    param("login_timeout", SECONDS, "Seconds to wait for a connection", default="5"),
    param("shell_timeout", SECONDS, "Seconds to wait for the answer to one request", default="10"),
    param("power_timeout", SECONDS, "Seconds the device has to confirm a new state", default="30"),
    param("power_wait", SECONDS, "Seconds between a command and the first look", default="0"),
    param("stonith_status_sleep", SECONDS, "Seconds between two looks at the power state, and "
          "before a failed request is repeated", default="1"),
    param("disable_timeout", STRING, "Accepted and ignored: the agent's own limits always hold"),
    param("retry_on", INTEGER, "How often a failed power-on is repeated", default="1"),
    param("separator", STRING, "Separator of the fields that list prints", letter="C", default=","),
    param("quiet", BOOLEAN, "Write nothing to stderr", letter="q"),
    param("verbose", BOOLEAN, "Tell each step on stderr; twice: also each message", letter="v"),
    param("verbose_level", INTEGER, "0 silent, 1 steps, 2 messages too", default="0"),
    param("debug_file", STRING, "File to which each step is appended", letter="D", aliases="debug"),
    param("version", BOOLEAN, "Print the version and exit", letter="V"),
    param("help", BOOLEAN, "Print this help and exit", letter="h"),
    param("nodename", STRING, "Name of the node to be fenced; Pacemaker sets it"))
PARAMS = DEVICE_PARAMS + HTTP_PARAMS + STATUS_PARAMS + CHECK_PARAMS + COMMON_PARAMS
PARAMS_BY_NAME = {row.name: row for row in PARAMS}

# How a kind of parameter is read from text, and its name in the metadata.
PARSERS = {STRING: str, SELECT: str, INTEGER: parse_whole_number, SECONDS: parse_seconds,
           BOOLEAN: parse_boolean, MAC: parse_mac, URL: parse_url, PATTERN: parse_pattern}
CONTENT_TYPES = {MAC: STRING, URL: STRING, PATTERN: STRING}

# The URLs of a device, and the state that each one leads to.
URL_PARAMS = {"power_on_url": PowerState.ON, "power_off_url": PowerState.OFF, "status_url": None}


def parse_stdin(text):
    """Return [(name, value)] from lines "name=value"; values stay raw, their blanks included."""
    # Quotes are part of a value: Pacemaker adds none, and status_on_regex may begin with one.
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:  # not shown: it may be the second line of a password
            raise UsageError("line %d on stdin is not name=value" % number)
        pairs.append((name.strip().replace("-", "_"), value))
    return pairs


def parse_argv(arguments, params):
    """Return [(name, value)] from options, by the rules of getopt as all fence agents have them."""
    import getopt
    rows = {"--" + spelling.replace("_", "-"): row for row in params
            for spelling in (row.name,) + row.aliases}
    longs = [name[2:] + ("" if row.kind == BOOLEAN else "=") for name, row in rows.items()]
    letters = "".join(row.letter + ("" if row.kind == BOOLEAN else ":")
                      for row in params if row.letter)
    rows.update({"-" + row.letter: row for row in params if row.letter})
    try:
        options, words = getopt.gnu_getopt(arguments, letters, longs)
    except getopt.GetoptError as error:
        raise UsageError("%s (see --help)" % error) from None
    if words:
        # Not shown: it may be the second word of a password.
        position = len(arguments) - len(words) + 1
        raise UsageError("argument %d is no option (see --help)" % position)
    pairs = [(rows[option].name, "1" if rows[option].kind == BOOLEAN else value)
             for option, value in options]
    count = pairs.count(("verbose", "1"))  # -v -v is verbose_level=2
    return pairs + [("verbose_level", str(count))] if count > 1 else pairs


def collect_values(pairs, params):
    """Return ({name: value}, [unknown names]); empty values count as not given."""
    # A parameter given twice with two values is a doubt about the device or the target.
    canonical = {spelling: row.name for row in params for spelling in (row.name,) + row.aliases}
    given = {}
    unknown = []
    for spelling, value in pairs:
        if spelling not in canonical:
            unknown.append(spelling)
        elif value != "" and value not in given.setdefault(canonical[spelling], []):
            given[canonical[spelling]].append(value)
    if len(given.get("plug", ())) > 1:
        # Pacemaker sends port=NODE beside a configured plug=3: the label yields.
        label = given.get("nodename", [""])[0]
        given["plug"] = [value for value in given["plug"] if value != label]
    for name, found in given.items():
        if len(found) > 1:
            raise UsageError("%s is given twice, with different values" % name)
    return {name: found[0] for name, found in given.items()}, unknown


def parse_value(name, parse, text):
    """Return parse(text); a UsageError gets the parameter's name in front."""
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError("%s: %s" % (name, error)) from None


def build_settings(values, params, defaults):
    """Return the typed settings of one run; raise UsageError that names a bad parameter."""
    settings = {}
    for row in params:
        text = values.get(row.name, defaults.get(row.name, row.default))
        empty = False if row.kind == BOOLEAN else ""
        settings[row.name] = parse_value(row.name, PARSERS[row.kind], text) if text else empty
        if row.kind == SELECT and text not in row.choices:
            raise UsageError("%s: %s is not %s" % (row.name, quote(text), " or ".join(row.choices)))
    settings = types.SimpleNamespace(**settings)
    if "ipport" not in values and uses_tls(settings):
        settings.ipport = HTTPS_PORT
    settings.verbose_level = max(settings.verbose_level, int(settings.verbose))
    check_settings(settings)
    if values.get("ipport", "") not in ("", str(getattr(settings, "ipport", ""))):
        raise UsageError("ip names port %d, ipport %s" % (settings.ipport, quote(values["ipport"])))
    return settings


def uses_tls(settings):
    return getattr(settings, "ssl", False) or getattr(settings, "ssl_insecure", False)


def check_settings(settings):
    """Raise UsageError for values that no action can work with."""
    for name in ("login_timeout", "shell_timeout", "power_timeout"):
        if getattr(settings, name) <= 0:
            raise UsageError("%s must be more than 0 seconds" % name)
    if settings.stonith_status_sleep < SHORTEST_PAUSE_SECONDS:
        raise UsageError("stonith_status_sleep must be %s or more: two looks at one moment are one"
                         % render_seconds(SHORTEST_PAUSE_SECONDS))
    if settings.power_wait + settings.stonith_status_sleep >= settings.power_timeout:
        raise UsageError("power_wait and stonith_status_sleep leave no look within power_timeout")
    if getattr(settings, "inet4_only", False) and settings.inet6_only:
        raise UsageError("inet4_only and inet6_only exclude each other")
    if getattr(settings, "ip", ""):
        settings.ip, settings.ipport = split_address(settings.ip, settings.ipport)


def choose_http_dialect(settings):
    """Return the dialect that the URLs mean; all must mean the same."""
    paths = [re.sub("^https?://[^/]*", "", getattr(settings, name)) for name in URL_PARAMS]
    found = find_url_dialects([path for path in paths if path])
    if not found:
        raise UsageError("nothing says what the device is: set device=tasmota or device=esphome, "
                         "or power_on_url, power_off_url and status_url")
    if len(found) > 1:
        raise UsageError("the URLs belong to different kinds of device (%s): set device"
                         % ", ".join(sorted(found)))
    return found.pop()


def find_path(url, settings):
    """Return the path of a URL parameter; a full URL must lead to the device itself."""
    match = re.fullmatch("(https?)://([^/]+)(/.*)", url)
    if not match:
        return url
    scheme, address, path = match.groups()
    host, port = split_address(address, HTTPS_PORT if scheme == "https" else HTTP_PORT)
    if (host.lower(), port) != (settings.ip.lower(), settings.ipport):
        raise UsageError("it leads to %s, and the device is %s (ip, ipport)" % (
            render_address(host, port), render_address(settings.ip, settings.ipport)))
    if (scheme == "https") != uses_tls(settings):
        raise UsageError("it is a %s URL, which contradicts ssl and ssl_insecure" % scheme)
    return path


def check_look(settings):
    """Turn fence_check's lists into values, and refuse a look that could prove nothing."""
    # SAFETY: no targets, a misspelled network or a look too short for an answer would all end in
    # silence where there is life. Test: test_parameters_that_could_prove_nothing_are_usage_errors
    settings.targets = [Target(network, check_address(address)) for network, text in (
        ("Management", settings.target_mgmt_ip), ("Storage", settings.target_storage_ip),
        ("Client", settings.target_client_ips)) for address in split_list(text)]
    settings.targets += parse_named_addresses("target_ips", settings.target_ips)
    if not settings.targets:
        raise UsageError("no address of the node given (target_mgmt_ip, target_storage_ip, "
                         "target_client_ips, target_ips): nothing could be proven")
    settings.witnesses = parse_named_addresses("witness_ips", settings.witness_ips)
    settings.direct_keys = {network_key(name) for name in split_list(settings.direct_networks)}
    known = {network_key(target.network) for target in settings.targets}
    named = {network_key(witness.network) for witness in settings.witnesses}
    for name in sorted((named | settings.direct_keys) - known):
        raise UsageError("no network %s (there are: %s)" % (quote(name), ", ".join(sorted(known))))
    if (not FEWEST_ECHOES <= settings.ping_count <= MOST_ECHOES
            or settings.ping_timeout < SHORTEST_LOOK_SECONDS):
        raise UsageError("one look must have %d to %d questions, and take %s or more" % (
            FEWEST_ECHOES, MOST_ECHOES, render_seconds(SHORTEST_LOOK_SECONDS)))
    wait = max(settings.verify_wait, settings.early_exit)
    if wait + settings.ping_timeout >= settings.power_timeout:
        raise UsageError("verify_wait or early_exit, and one look after it, do not fit into the %s "
                         "of the whole confirmation" % render_seconds(settings.power_timeout))


def parse_named_addresses(parameter, text):
    """Return the Targets of "name=address,..."; an address alone is in the network "Network"."""
    found = []
    for item in split_list(text):
        name, _, address = item.partition("=") if "=" in item else ("Network", "=", item)
        if not name.strip():
            raise UsageError("%s: %s has no name before its =" % (parameter, quote(item)))
        found.append(Target(name.strip(), check_address(address.strip())))
    return found


def parse_options(text):
    """Return {name: value} of fence_options, "name=value,..."; raise UsageError."""
    pairs = [item.partition("=") for item in split_list(text)]
    options = {name.strip().replace("-", "_"): value for name, _, value in pairs}
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError("fence_options is not name=value,...")
    if {"action", "option"} & set(options):
        raise UsageError("fence_options names an action, and fence_check only reads the device")
    return options


# Where fence_check's parameters go in the settings of its fence device.
DEVICE_NAMES = {"fence_ip": "ip", "fence_ipport": "ipport", "fence_user": "username",
                "fence_pass": "password", "fence_plug": "plug"}


def build_check_settings(settings):
    """Return fence_check's settings together with those that its device's own agent would have."""
    # As there, the node's name selects the outlet unless fence_plug names another.
    check_look(settings)
    if settings.fence_pass and settings.password not in ("", settings.fence_pass):
        raise UsageError("fence_pass and password are both given, with different values")
    options = parse_options(settings.fence_options)
    dialect = DIALECTS_BY_METHOD.get(settings.fence_method)
    port = dialect.port if dialect else 0
    values, unknown = collect_values(options.items() if port else (), PARAMS)
    own = sorted(name for name in values if hasattr(settings, name))
    if unknown or own:
        raise UsageError("fence_options: %s is %s" % (", ".join(map(quote, unknown or own)), (
            "unknown" if unknown else "a parameter of fence_check itself")))
    merged = build_settings(values, PARAMS, {"ipport": str(port or "")})
    label = settings.nodename or settings.plug
    given = {name: value for name, value in vars(settings).items() if value not in ("", None)}
    vars(merged).update(given, options=options, nodename=label, plug=label)
    vars(merged).update({name: given[own] for own, name in DEVICE_NAMES.items() if own in given})
    if port:
        merged.ip, merged.ipport = split_address(merged.ip, merged.ipport)
    return merged

# PART 2: MACHINE ==================================================================================

# SECTION: LOG -------------------------------------------------------------------------------------
# The clock, and where words go: stdout, stderr, syslog, the debug file. No secret leaves here.


class Deadline:
    """A moment on the system's clock that no wait, retry or socket may outlast."""

    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = seconds
        self.end = clock() + seconds

    def left(self):
        return max(0.0, self.end - self.clock())

    def within(self, seconds):
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(self.clock, min(seconds, self.left()))


class Log:
    """Where one run of the program leaves its words."""

    def __init__(self, name):
        self.name = name
        self.secrets = set()
        self.verbose_level = 0
        self.quiet = False
        self.debug_file = ""

    clock = staticmethod(time.monotonic)  # it never jumps; time of day is only for people
    sleep = staticmethod(time.sleep)

    def deadline(self, seconds):
        return Deadline(self.clock, seconds)

    def write(self, text):
        """Write the answer to stdout as UTF-8, whatever the locale is."""
        data = (text + "\n").encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(1, data):]
        except OSError as error:
            raise Unreachable("cannot write the answer to stdout: %s" % error.strerror) from error

    def tell(self, text):
        """Tell a reason to whoever called: one line on stderr, unless quiet."""
        self._log(None, text, to_stderr=not self.quiet)

    def error(self, text):
        """Tell a reason, and keep it in syslog: for what no event line records."""
        self._log(LOG_ERR, text, to_stderr=not self.quiet)

    def event(self, text):
        """Record what was done: syslog and debug file; stderr only when verbose."""
        # SAFETY: a success must be silent on stderr, Pacemaker logs anything there as a warning.
        # Test: test_a_success_is_silent_on_stderr
        self._log(LOG_INFO, text, to_stderr=self.verbose_level > 0)

    def warn(self, text):
        self._log(LOG_WARNING, "warning: " + text, to_stderr=self.verbose_level > 0)

    def debug(self, text, level=1):
        if self.verbose_level >= level or self.debug_file:
            self._log(None, text, to_stderr=self.verbose_level >= level)

    def _log(self, priority, text, to_stderr):
        text = one_line(redact(text, self.secrets))
        line = ("%s: %s\n" % (self.name, text)).encode("utf-8", "backslashreplace")
        if priority is not None:
            self._write_syslog(priority, text.encode("utf-8", "backslashreplace"))
        if to_stderr:
            write_all(2, line)
        if self.debug_file:
            self._append_debug(line)

    def _write_syslog(self, priority, text):
        """Send one line to the log daemon, if it takes it at once."""
        # SAFETY: not through syslog(3), which waits for ever when the daemon hangs.
        # Test: test_a_log_daemon_that_hangs_does_not_hold_up_a_fence
        head = "<%d>%s %s[%d]: " % (LOG_DAEMON | priority, time.strftime("%b %e %H:%M:%S"),
                                    self.name, os.getpid())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handle:
                handle.setblocking(False)
                handle.connect(LOG_SOCKET)
                handle.send(head.encode("ascii") + text)
        except OSError:
            pass  # no daemon, or one that does not read; stderr and exit code say it too

    def _append_debug(self, line):
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ").encode("ascii")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            with open(os.open(os.fsencode(self.debug_file), flags, 0o600), "wb", 0) as handle:
                handle.write(stamp + line)
        except (OSError, ValueError) as error:
            # A log that cannot be written must not keep a node from being fenced.
            self.debug_file = ""
            self.warn("cannot write the debug file: %s" % error)


def write_all(descriptor, data):
    """Write to a file descriptor; a reader that went away must not stop a fence."""
    try:
        os.write(descriptor, data)
    except OSError:
        pass


# SECTION: FILES AND PROGRAMS ----------------------------------------------------------------------
# Files that people name, and programs of this machine.


class FilesAndPrograms:
    """What one run reads, writes and starts on this machine."""

    def read_stdin(self):
        if os.isatty(0):
            write_all(2, b"reading name=value lines from the terminal, end with Ctrl-D "
                         b"(--help tells the options)\n")
        data = b""
        while len(data) <= MAX_STDIN_BYTES:
            piece = os.read(0, 65536)
            if not piece:
                return data.decode("utf-8", "surrogateescape")
            data += piece
        raise UsageError("more than %d bytes of parameters on stdin" % MAX_STDIN_BYTES)

    def read_file(self, path):
        """Return the bytes of a file that a person named."""
        try:
            with open(path, "rb") as handle:
                data = handle.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UsageError("cannot read %s: %s" % (path, error.strerror)) from error
        if len(data) > MAX_FILE_BYTES:
            raise UsageError("%s has more than %d bytes" % (path, MAX_FILE_BYTES))
        return data

    def list_directory(self, path):
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise UsageError("cannot read %s: %s" % (path, error.strerror)) from error

    def write_script(self, path, text):
        """Put text into a file that only its owner may read and run; it is there whole or not."""
        import tempfile
        if os.path.exists(path) and not os.path.isfile(path):
            raise FenceError("cannot write %s: it is no file" % path)  # like /dev/null
        path = os.path.realpath(path)  # a link stays one
        try:
            handle, new_path = tempfile.mkstemp(dir=os.path.dirname(path))
            try:
                with open(handle, "wb") as file:
                    file.write(text.encode("utf-8"))
                    os.fchmod(handle, 0o700)
                    file.flush()
                    os.fsync(handle)
                os.rename(new_path, path)
            except OSError:
                os.unlink(new_path)
                raise
        except OSError as error:
            raise FenceError("cannot write %s: %s" % (path, error.strerror)) from error

    def run(self, argv, stdin_text, deadline):
        """Run a program and return (exit code, stdout, stderr); raise Unreachable if it hangs."""
        # The environment is a clean one: a child that inherited PCMK_service would run without its
        # time limits. The child stays in our process group, where Pacemaker's SIGKILL reaches it.
        import subprocess
        try:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, env=CHILD_ENVIRONMENT, close_fds=True)
        except OSError as error:
            raise Unreachable("cannot run %s: %s" % (argv[0], error.strerror)) from error
        try:
            out, err = child.communicate(stdin_text.encode("utf-8", "surrogateescape"),
                                         timeout=deadline.left())
        except subprocess.TimeoutExpired as error:
            child.kill()
            # Not communicate() again: a grandchild may hold the pipes open for longer than we have.
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                pipe.close()
            raise Unreachable("%s did not end within %s"
                              % (argv[0], render_seconds(deadline.seconds))) from error
        return (child.returncode, out.decode("utf-8", "surrogateescape"),
                err.decode("utf-8", "surrogateescape"))


# SECTION: NETWORK ---------------------------------------------------------------------------------
# Names, connections, packets, and what the kernel says about routes and links. OSError becomes
# FenceError here, and no call outlasts its Deadline.

# Signs of life. Source: RFC 792 and 4443 (echo and errors), RFC 826 (ARP), RFC 4861 (neighbour
# discovery), linux/rtnetlink.h, linux/if_link.h; read 2026-11. Seen: Linux 6.18.
# The numbers of one family. silence: the (type, code) for "nobody there".
IcmpWords = namedtuple("IcmpWords", "protocol request reply errors silence")
ICMP = {socket.AF_INET: IcmpWords(socket.IPPROTO_ICMP, 8, 0, (3, 11), (3, 1)),
        socket.AF_INET6: IcmpWords(socket.IPPROTO_ICMPV6, 128, 129, (1, 3), (1, 3))}
ETHERTYPE_ARP = 0x0806

# What the kernel is asked about routes and links, and the parts of its answers.
GET_LINK, GET_ROUTE = 18, 26
LINK_BODY, ROUTE_BODY = "BxHiII", "BBBBBBBBI"
LINK_MAC, LINK_NAME, LINK_BELOW, LINK_INFO, LINK_CHANGES, LINK_ELSEWHERE = 1, 3, 5, 18, 35, 37
ROUTE_TARGET, ROUTE_INTERFACE, ROUTE_GATEWAY, ROUTE_SOURCE, ROUTE_VIA = 1, 4, 5, 7, 18
ROUTE_KINDS = {1: "", 2: "the address is this machine's own", 3: "it is a broadcast address",
               5: "it is a multicast address"}
NETLINK_ERROR = 2
ETHERNET = 1
STACKED_LINKS = ("vlan", "macvlan", "ipvlan")  # have the carrier of the link that they stand on
IFF_RUNNING, IFF_NOARP, IFF_LOWER_UP = 0x40, 0x80, 0x10000


def parse_netlink(data, body_format):
    """Return (fields, {attribute: bytes}) of an answer; raise OSError with the kernel's error."""
    length, kind = struct.unpack_from("IH", data)
    if kind == NETLINK_ERROR:
        code = -struct.unpack_from("i", data, 16)[0]
        raise OSError(code, os.strerror(code))
    attributes = {}
    position = 16 + struct.calcsize(body_format)
    while position + 4 <= length:
        size, name = struct.unpack_from("HH", data, position)
        attributes[name & 0x3FFF] = data[position + 4:position + size]
        position += max(4, (size + 3) & ~3)
    return struct.unpack_from(body_format, data, 16), attributes


class PacketSocket:
    """A socket for single packets that never blocks."""

    def __init__(self, handle, family, is_raw):
        handle.setblocking(False)
        self.handle = handle
        self.family = family
        self.is_raw = is_raw
        self.fileno = handle.fileno
        self.close = handle.close

    def send(self, packet, address):
        """Return "" when the packet left, else why it did not."""
        try:
            self.handle.sendto(packet, address)
            return ""
        except OSError as error:
            return "cannot send to it: %s" % one_line(error.strerror or str(error))

    def receive(self):
        """Return (packet without IP header, sender); (b"", "") when an error came instead."""
        try:
            packet, address = self.handle.recvfrom(MAX_REPLY_BYTES)
        except OSError:
            return b"", ""
        if self.family == socket.AF_INET and self.is_raw:
            packet = packet[(packet[0] & 15) * 4:] if packet else b""
        return packet, address[0].partition("%")[0]


class Connection:
    """A TCP connection; each call ends by its deadline, also against a peer that drips bytes."""

    def __init__(self, handle):
        self.handle = handle
        # The address that was connected to, with the zone of a link-local one.
        self.peer = socket.getnameinfo(handle.getpeername(),
                                       socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]

    def send(self, data, deadline):
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            self.handle.sendall(data)
        except OSError as error:
            raise os_failure("connection broke off while sending", error, deadline) from error

    def start_tls(self, name, verified, deadline):
        """Encrypt from here on; verified: the certificate must be good, and for this name."""
        import ssl
        context = ssl.create_default_context()
        if not verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            self.handle = context.wrap_socket(self.handle, server_hostname=name)
        except (OSError, ValueError) as error:  # a wrong certificate is a ValueError in Python 3.6
            if isinstance(error, ValueError) or "CERTIFICATE" in str(getattr(error, "reason", "")):
                raise Refused("the certificate is not trusted: %s (ssl_insecure=1 accepts any)"
                              % quote(str(error))) from error
            raise os_failure("no TLS", error, deadline, "does this port speak it?") from error

    def receive_some(self, count, deadline):
        """Return at most `count` bytes as they come; none when the device closed the connection."""
        if not deadline.left():
            raise Unreachable("no complete answer within %s" % render_seconds(deadline.seconds))
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            return self.handle.recv(count)
        except OSError as error:
            raise os_failure("no complete answer", error, deadline) from error

    def receive(self, count, deadline):
        """Return exactly `count` bytes, in however many pieces they come."""
        data = b""
        while len(data) < count:
            try:
                piece = self.receive_some(count - len(data), deadline)
            except Unreachable as error:
                raise Unreachable(
                    "%s (%d of %d bytes came)" % (error, len(data), count),
                    was_closed=isinstance(error.__cause__, ConnectionError) and not data) from error
            if not piece:
                raise Unreachable("device closed the connection after %d of %d bytes of its answer"
                                  % (len(data), count), was_closed=not data)
            data += piece
        return data

    def holds_unasked_bytes(self):
        self.handle.setblocking(False)
        try:
            return bool(self.handle.recv(1))
        except OSError:
            return False

    def close(self):
        self.handle.close()


def os_failure(what, error, deadline, hint=""):
    """Return the Unreachable that says what failed, why by the OSError, and what to look at."""
    # socket.timeout is no TimeoutError before Python 3.10; it never has an errno.
    is_late = isinstance(error, socket.timeout) or error.errno == errno.ETIMEDOUT
    reason = "nothing came within %s" % render_seconds(deadline.seconds) if is_late else (
        one_line(error.strerror or str(error)))
    return Unreachable("%s: %s%s" % (what, reason, " (%s)" % hint if hint else ""))


CONNECT_HINTS = {
    errno.ECONNREFUSED: "is it this device's address and port? Newer plug firmware closes the port "
                        "when third-party control is off; a hung plug needs its own power cut",
    None: "is the plug powered, is a firewall between?",  # a time limit of ours
    errno.EHOSTUNREACH: "is the plug powered and in its Wi-Fi?",
    errno.ENETUNREACH: "this machine has no route to that network"}


class Network:
    """What one run asks of the network and of the kernel."""

    def resolve(self, host, port, family, deadline):
        """Return [(family, socket address)] of a host, at most one address a family."""
        # With two, a command could go to one device and the proof come from another.
        try:
            # As bytes: text would load the IDNA codec, a twentieth of a whole run.
            found = socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM, 0,
                                       socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = self._resolve_name(host, port, family, deadline)
        for one_family in (socket.AF_INET, socket.AF_INET6):
            addresses = sorted({item[4][0] for item in found if item[0] == one_family})
            if len(addresses) > 1:
                raise Refused("%s has %d addresses (%s): give the device's own one as ip"
                              % (quote(host), len(addresses), ", ".join(addresses)))
        return [(item[0], item[4]) for item in found]

    def _resolve_name(self, host, port, family, deadline):
        # In a thread: getaddrinfo knows no time limit, and a dead name server takes half a minute.
        import threading
        answer = []

        def ask():
            try:
                answer.append(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:  # the name has an empty or too long part
                answer.append(error)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(deadline.left())
        if not answer:
            raise Unreachable("no answer about the name %s within %s (use an address instead)"
                              % (quote(host), render_seconds(deadline.seconds)))
        if isinstance(answer[0], Exception):
            raise Unreachable("no address for %s (use an address)" % quote(host)) from answer[0]
        return answer[0]

    def connect(self, host, port, family, deadline):
        """Return a Connection to the first address of host that accepts one."""
        failure = None
        for one_family, address in self.resolve(host, port, family, deadline):
            handle = None
            try:
                handle = socket.socket(one_family, socket.SOCK_STREAM)
                handle.settimeout(max(0.001, deadline.left()))
                handle.connect(address)
                handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Connection(handle)
            except OSError as error:
                if handle:
                    handle.close()
                failure = failure or os_failure("no connection", error, deadline,
                                                CONNECT_HINTS.get(error.errno))
                failure.__cause__ = error
        raise failure

    def find_path(self, family, target):
        """Return the Path of packets to target (bytes); raise Unreachable where there is none."""
        try:
            route, found = self._ask_kernel(GET_ROUTE, ROUTE_BODY, struct.pack(
                ROUTE_BODY, family, len(target) * 8, 0, 0, 0, 0, 0, 0, 0)
                + struct.pack("HH", 4 + len(target), ROUTE_TARGET) + target)
            doubt = ROUTE_KINDS.get(route[7], "its route is of kind %d" % route[7])
            if doubt or ROUTE_INTERFACE not in found:
                raise Unreachable(doubt or "its route names no interface")
            index = struct.unpack("i", found[ROUTE_INTERFACE])[0]
            link, facts, link_kind = self._ask_link(index)
        except OSError as error:
            raise Unreachable("no route: %s" % one_line(error.strerror or str(error))) from error
        kind, flags = link[1], link[3]
        if flags & IFF_LOWER_UP and not flags & IFF_RUNNING:
            link_kind = "dormant"
        return Path(
            facts[LINK_NAME].rstrip(b"\0").decode("ascii", "backslashreplace"), index,
            facts.get(LINK_MAC, b"") if kind == ETHERNET and not flags & IFF_NOARP else b"",
            found.get(ROUTE_SOURCE, bytes(len(target))),
            found.get(ROUTE_GATEWAY, found.get(ROUTE_VIA, b"")),
            bool(flags & IFF_LOWER_UP and flags & IFF_RUNNING), facts.get(LINK_CHANGES), link_kind)

    def _ask_link(self, index):
        link, facts = self._ask_kernel(GET_LINK, LINK_BODY, struct.pack(
            LINK_BODY, 0, 0, index, 0, 0))
        word = re.match(b"(?s)..\\x01\\0([a-z0-9_-]+)\0", facts.get(LINK_INFO, b""))
        kind = word.group(1).decode("ascii") if word else ""
        if kind in STACKED_LINKS and LINK_BELOW in facts and LINK_ELSEWHERE not in facts:
            kind += " on " + self._ask_link(struct.unpack("i", facts[LINK_BELOW])[0])[2]
        return link, facts, kind

    def _ask_kernel(self, kind, body_format, body):
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as handle:  # 0: NETLINK_ROUTE
            handle.settimeout(1)
            handle.send(struct.pack("IHHII", 16 + len(body), kind, 1, 1, 0) + body)
            return parse_netlink(handle.recv(MAX_REPLY_BYTES), body_format)

    def open_echo(self, family):
        """Return a PacketSocket for ICMP, raw where that is permitted; None where nothing is."""
        for is_raw, kind in ((True, socket.SOCK_RAW), (False, socket.SOCK_DGRAM)):
            try:
                handle = socket.socket(family, kind, ICMP[family].protocol)
            except OSError:
                continue
            if family == socket.AF_INET6:  # neighbours believe nothing that a router could forward
                for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
                    handle.setsockopt(socket.IPPROTO_IPV6, option, 255)
            return PacketSocket(handle, family, is_raw)
        return None

    def open_arp(self, interface):
        """Return a PacketSocket for ARP on one interface, or None where that is not permitted."""
        try:
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE_ARP))
            handle.bind((interface, ETHERTYPE_ARP))
        except OSError:
            return None
        return PacketSocket(handle, socket.AF_PACKET, True)

    def wait_readable(self, handles, seconds):
        """Return those of the PacketSockets that have something to read within the time."""
        import select
        return select.select(handles, [], [], max(0.0, seconds))[0]


class System(Log, FilesAndPrograms, Network):
    """This machine, as one run of the program sees it."""

    def request_http(self, connect, method, path, headers, deadline, silence_s=None):
        """Send one HTTP request; return its HttpReply, whatever its status."""
        # connect: returns the Connection. silence_s: of an event stream, which does not end, take
        # what came until it is silent for so long.
        import http.client  # slow, so before the connection: a small device has only one
        speaker = http.client.HTTPConnection("")  # it follows no redirects and knows no proxies
        connection = connect()
        speaker.sock = stream = HttpStream(connection, deadline)
        try:
            speaker.request(method, path, b"" if method == "POST" else None, headers)
            response = speaker.getresponse()
            body = stream.read_body(response, silence_s)
        except http.client.RemoteDisconnected as error:
            raise Unreachable("device closed the connection without an answer (a Tasmota with "
                              "SetOption128 0 wants its own address as ip)") from error
        except (http.client.HTTPException, ValueError) as error:
            raise ProtocolError("the answer is no complete HTTP: %s" % quote(
                "%s %s" % (type(error).__name__, error))) from error
        finally:
            connection.close()
        return HttpReply(response.status, response.headers, body.decode(errors="backslashreplace"))


# SECTION: HTTP ------------------------------------------------------------------------------------
# One exchange over HTTP, its logins, and what all devices with a web server have in common.

# status: a number. headers: with get() and get_all(). body: text.
HttpReply = namedtuple("HttpReply", "status headers body")

# HTTP and its logins. Source: RFC 7616 and RFC 7617; read 2026-10. Seen: documents only.

DIGEST_ALGORITHMS = ("SHA-256", "MD5")  # the strongest first


def build_basic_login(username, password):
    import base64
    text = "%s:%s" % (username, password)
    return "Basic " + base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def parse_digest_challenge(values):
    """Return the fields of the strongest answerable Digest in WWW-Authenticate headers, or None."""
    found = {}
    for value in values:
        scheme = re.search(r"(?i)(?:^|,)\s*digest\s", value)
        fields = {}
        pairs = re.findall(r'([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))',
                           value[scheme.end():][:2000] if scheme else "")
        for name, quoted, plain in pairs:
            fields.setdefault(name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
        if "auth" in re.split("[ ,]+", fields.get("qop", "")):
            found.setdefault(fields.get("algorithm", "MD5").upper(), fields)
    return next((found[name] for name in DIGEST_ALGORITHMS if name in found), None)


def build_digest_login(fields, username, password, method, path, cnonce):
    """Return the Authorization header that answers a Digest challenge for one request."""
    import hashlib
    make = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}[fields.get("algorithm", "MD5").upper()]

    def digest(*parts):
        return make(":".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
    realm, nonce, count = fields.get("realm", ""), fields.get("nonce", ""), "00000001"
    response = digest(digest(username, realm, password), nonce, count, cnonce, "auth",
                      digest(method, path))
    shown = [("username", username), ("realm", realm), ("nonce", nonce), ("uri", path),
             ("response", response), ("cnonce", cnonce)]
    shown += [("opaque", fields["opaque"])] if "opaque" in fields else []
    texts = ['%s="%s"' % (name, re.sub(r'(["\\])', r"\\\1", text)) for name, text in shown]
    texts += ["algorithm=" + fields["algorithm"]] if "algorithm" in fields else []
    return "Digest " + ", ".join(texts + ["qop=auth", "nc=" + count])


def find_url_secrets(url):
    """Return the values in a URL's query whose names say that they are secret."""
    return re.findall(r"(?i)[?&+][\w-]*(?:pass|pw|token|key|secret|auth)[\w-]*=([^&+]+)", url)


def parse_http_body(reply, statuses=(200,)):
    """Return the text of an HttpReply; raise unless it can be the device's own answer."""
    if 300 <= reply.status < 400:
        raise Refused("redirected to %s, which is not followed (right address, port and ssl?)"
                      % quote(reply.headers.get("Location", "")))
    if reply.status not in statuses:
        kind = ProtocolError if reply.status >= 500 else Refused
        raise kind("HTTP status %d" % reply.status)
    if reply.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProtocolError("the reply is compressed, which was not asked for (captive portal?)")
    if re.search(r"(?i)<input[^>]{1,200}type\s?=\s?['\"]?password", reply.body):
        raise Refused("a page that asks for a password came instead of an answer (captive portal, "
                      "set-up mode or sign-in page)")
    return reply.body


class HttpStream(io.RawIOBase):
    """What http.client takes for its socket: no read outlasts the deadline or a reply's size."""

    def __init__(self, connection, deadline):
        self.connection = connection
        self.deadline = deadline
        self.room = MAX_REPLY_BYTES

    def sendall(self, data):
        self.connection.send(data, self.deadline)

    def makefile(self, mode):
        return io.BufferedReader(self)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.connection.receive_some(len(buffer), self.deadline)
        self.room -= len(piece)
        if self.room < 0:
            raise ProtocolError("the answer is longer than %d bytes" % MAX_REPLY_BYTES)
        buffer[:len(piece)] = piece
        return len(piece)

    def close(self):
        """http.client closes before it reads the body; who made the connection ends it."""

    def read_body(self, response, silence_s):
        lengths = set(response.headers.get_all("Content-Length") or ["0"])
        if response.headers.defects or len(lengths) > 1 or not re.fullmatch("[0-9]+", min(lengths)):
            raise ProtocolError("the headers of the answer contradict themselves")
        if (response.length or 0) > MAX_REPLY_BYTES:
            raise ProtocolError("the answer claims a length of %d bytes" % response.length)
        if silence_s is None:
            return response.read()  # raises IncompleteRead when less came than the headers say
        body, piece, action_deadline = b"", None, self.deadline
        try:
            while piece != b"":
                self.deadline = action_deadline.within(silence_s)
                piece = response.read1(MAX_REPLY_BYTES)
                body += piece
        except Unreachable:
            if not body:
                raise
        return body


class Device:
    """The contract of everything that switches power. One object serves one action.

    Every call takes the action's Deadline and raises FenceError. A reply to a command is the
    device's word about its intentions; read_state is what it says about the outlet afterwards.
    Each class has request_state(wanted, deadline), read_state(deadline), which returns a
    PowerState, and list_outlets(deadline), which returns Outlets.
    """

    kind = ""

    def __init__(self, system, settings):
        self.system = system
        self.settings = settings
        self.label = settings.nodename
        self.plug = settings.plug  # the outlet that the caller named, "" for none

    def describe(self):
        return "%s %s" % (self.kind, render_address(self.settings.ip, self.settings.ipport))

    def find_outlet(self, deadline):
        """Prove, before anything is switched, which device and outlet this is; return its state."""
        return self.read_state(deadline)

    def read_watts(self, deadline):
        """Return what the outlet draws now, or None where no meter can prove anything."""
        return None

    def close(self):
        """Free the device for others: some serve one client at a time."""

    def check_mac(self, text):
        """Raise Refused unless the MAC that the device tells is the configured one."""
        wanted = self.settings.device_mac
        if not wanted:
            return
        try:
            found = parse_mac(text if isinstance(text, str) else "")
        except UsageError:
            raise Refused("device does not tell its MAC address, and device_mac=%s is configured"
                          % render_mac(wanted)) from None
        if found != wanted:
            raise Refused("another device has this address now: its MAC is %s, configured is %s"
                          % (render_mac(found), render_mac(wanted)))


class HttpDevice(Device):
    """What all devices with a web server have in common: the login, one connection a request."""
    default_username = ""

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.address = settings.ip
        self.username = settings.username or self.default_username
        self.login = ""
        self.paths = {name: parse_value(name, lambda url: find_path(url, settings),
                                        getattr(settings, name)) for name in URL_PARAMS}
        for path in self.paths.values():
            system.secrets.update(find_url_secrets(path))
        if settings.password:
            # Sent unasked: Tasmota sends no challenge, and it saves the slow devices a request.
            self.login = build_basic_login(self.username, settings.password)
            system.secrets.update((settings.password, percent_encode(settings.password),
                                   self.login.split()[1]))  # a device may echo it

    def take_plug_from_urls(self, parse):
        """Let the URLs name the outlet, as the caller's plug would; contradictions are refused."""
        named = set()
        for name, state in URL_PARAMS.items():
            if self.paths[name]:
                outlet, meant = parse_value(name, parse, self.paths[name])
                if meant is not state:
                    raise UsageError("%s: it switches %s" % (
                        name, meant.value if meant else "nothing"))
                named.add(outlet)
        if self.plug not in ("", self.label):
            named = named - {""} | {self.plug}
        if len(named) > 1:
            raise UsageError("the URLs and plug name different outlets: %s"
                             % ", ".join(map(quote, sorted(named))))
        self.plug = "".join(named) or self.plug

    def exchange(self, method, path, parse, deadline, silence_s=None):
        """Return parse(reply) of one request; an error of either tells what was asked."""
        try:
            reply = self._send(method, path, self.login, deadline, silence_s)
            if reply.status == 401:
                reply = self._answer_challenge(reply, method, path, deadline, silence_s)
            self.system.debug("%s -> %d %s" % (self.describe(), reply.status, reply.body), level=2)
            return parse(reply)
        except FenceError as error:
            raise type(error)("%s %s: %s" % (method, path, error)) from error

    def path_with_login(self, path):
        """Return the path as it is sent; what is shown and logged is the path without a login."""
        return path

    def _answer_challenge(self, reply, method, path, deadline, silence_s):
        challenges = reply.headers.get_all("WWW-Authenticate") or []
        if not self.settings.password:
            raise Refused("device asks for a password (set username and password)")
        fields = parse_digest_challenge(challenges)
        if fields:
            try:
                login = build_digest_login(fields, self.username, self.settings.password, method,
                                           self.path_with_login(path), os.urandom(8).hex())
            except ValueError as error:  # a machine in FIPS mode has no MD5
                raise Refused("this machine refuses the login's hash: %s" % error) from error
            reply = self._send(method, path, login, deadline, silence_s)
        if reply.status == 401:
            tried = "Basic and Digest" if fields else "Basic"
            raise Refused("device refuses the login of user %s (tried: %s; it says: %s)"
                          % (quote(self.username), tried, quote(", ".join(challenges))))
        return reply

    def _send(self, method, path, login, deadline, silence_s):
        settings = self.settings
        tls = uses_tls(settings)
        host = "[%s]" % settings.ip.split("%")[0] if ":" in settings.ip else settings.ip
        if settings.ipport != (HTTPS_PORT if tls else HTTP_PORT):
            host += ":%d" % settings.ipport
        # No Origin: ESPHome refuses foreign ones. The Referer is for Tasmota's SetOption128 0.
        headers = {"Host": host, "Referer": "%s://%s/" % ("https" if tls else "http", host),
                   "User-Agent": "fencetool/" + __version__, "Connection": "close"}
        if method == "POST":
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if method == "OPTIONS":
            headers["Access-Control-Request-Private-Network"] = "true"
        if login:
            headers["Authorization"] = login.encode("utf-8", "surrogateescape")
        self.system.debug("%s <- %s %s" % (self.describe(), method, path), level=2)
        limit = deadline.within(settings.shell_timeout)
        return self.system.request_http(lambda: self._connect(limit), method,
                                        self.path_with_login(path), headers, limit, silence_s)

    def _connect(self, deadline):
        # SAFETY: a name is looked up once an action; the proof must come from the device that was
        # switched. Test: test_a_name_that_changes_its_address_changes_no_device
        settings = self.settings
        connection = self.system.connect(self.address, settings.ipport, settings.family,
                                         deadline.within(settings.login_timeout))
        try:
            self.address = connection.peer
            if uses_tls(settings):
                connection.start_tls(settings.ip, not settings.ssl_insecure, deadline)
            return connection
        except FenceError:
            connection.close()
            raise

# PART 3: DEVICES ==================================================================================

# SECTION: KASA ------------------------------------------------------------------------------------
# TP-Link Kasa plugs and strips over their legacy protocol.


KASA_FIRST_KEY = 171

# Kasa, legacy protocol. Source: python-kasa 0.12 kasa/transports/xortransport.py and its device
# captures, softScheck tplink-smartplug; read 2026-10. Seen: documents only.

KasaInfo = namedtuple("KasaInfo", "mac device_id outlets is_strip has_meter")


def encrypt_kasa(plain):
    """Return the bytes under the autokey XOR: each cipher byte is the key of the next one."""
    key = KASA_FIRST_KEY
    cipher = bytearray()
    for byte in plain:
        key ^= byte
        cipher.append(key)
    return bytes(cipher)


def decrypt_kasa(cipher):
    keys = bytes([KASA_FIRST_KEY]) + cipher
    return bytes(byte ^ key for byte, key in zip(cipher, keys))


def build_kasa_message(request):
    """Return a request (dict) as one datagram; a frame has its length before it."""
    return encrypt_kasa(json.dumps(request, separators=(",", ":")).encode("utf-8"))


def build_kasa_frame(request):
    message = build_kasa_message(request)
    return struct.pack(">I", len(message)) + message


def build_kasa_request(module, method, arguments, child_id=None):
    """Return the request for one method; child_id addresses one outlet of a strip."""
    # SAFETY: exactly one id, or none for a device without children: with several ids or none,
    # strips have switched their first outlet or all of them (python-kasa #637, softScheck PR #79).
    # Test: test_a_strip_is_switched_with_exactly_one_child_id
    request = {} if child_id is None else {"context": {"child_ids": [child_id]}}
    request[module] = {method: arguments}
    return request


def parse_kasa_length(header):
    length = struct.unpack(">I", header)[0]
    if not 2 <= length <= MAX_REPLY_BYTES:
        raise ProtocolError("reply claims a length of %d bytes (another service?)" % length)
    return length


def parse_kasa_result(message, module, method):
    """Return the result object of one method from a reply's payload; err_code must be 0."""
    try:
        reply = parse_json_object(decrypt_kasa(message).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProtocolError("reply of %d bytes is not Kasa's protocol" % len(message)) from None
    where = "the reply to %s" % method
    part = require_member(reply, module, dict, where)
    # An error sits in the method's result, or in the module's place when it lacks the module.
    result = part if "err_code" in part else require_member(part, method, dict, where)
    code = require_member(result, "err_code", int, where)
    if code != 0:
        raise Refused("device refused %s: error %d %s"
                      % (method, code, quote(str(result.get("err_msg", "")))))
    if result is part:
        raise ProtocolError("%s holds no %s" % (where, method))
    return result


def parse_kasa_relay(value, where):
    """Return the PowerState of a relay: the integer 0 or 1, and neither false nor "0"."""
    text = json.dumps(value)
    if text not in ("0", "1"):
        raise ProtocolError("%s is neither 0 nor 1: %s" % (where, quote(text)))
    return PowerState.ON if text == "1" else PowerState.OFF


def parse_kasa_description(info):
    """Return the KasaInfo in a sysinfo result; raise ProtocolError where it contradicts itself."""
    device_id = require_member(info, "deviceId", str, "device description")
    if not device_id:
        raise ProtocolError("device description has an empty deviceId")
    kind = str(info.get("type", info.get("mic_type", "")))
    if "BULB" in kind.upper():
        raise Refused("device is a bulb (%s), not a plug" % quote(kind))
    is_strip = "children" in info
    if is_strip is ("relay_state" in info):
        raise ProtocolError("device description holds %s of relay_state (a plug) and children (a "
                            "strip)" % ("both" if is_strip else "none"))
    outlets = parse_kasa_children(info, device_id) if is_strip else (
        Outlet(1, parse_kasa_alias(info), (device_id, device_id.lower()),
               parse_kasa_relay(info["relay_state"], "relay_state")),)
    has_meter = "ENE" in str(info.get("feature", "")).split(":")
    return KasaInfo(info.get("mac", info.get("mic_mac")), device_id, outlets, is_strip, has_meter)


def parse_kasa_alias(info):
    return info["alias"] if isinstance(info.get("alias"), str) else ""


def parse_kasa_children(info, device_id):
    """Return the outlets of a strip by their numbers: the last two digits of an id, plus one."""
    # The order of the list is not that on the case (HS300 1.0.21 lists 00,01,02,03,05,04).
    children = require_member(info, "children", list, "device description")
    count = require_member(info, "child_num", int, "device description")
    if not children or count != len(children):
        raise ProtocolError("device lists %d outlets and counts '%d'" % (len(children), count))
    outlets = []
    for child in children:
        if not isinstance(child, dict):
            raise ProtocolError("an outlet is no object: %s" % quote(json.dumps(child)))
        identifier = require_member(child, "id", str, "an outlet")
        # The bare number comes first or last, the whole id does not: both forms name the outlet.
        if not re.fullmatch("[0-9A-Za-z_]*[0-9]{2}", identifier):
            raise ProtocolError("outlet id %s does not end in two digits" % quote(identifier))
        suffix = identifier[-2:]
        identifiers = (identifier, identifier.lower(), suffix, (device_id + suffix).lower())
        state = parse_kasa_relay(child.get("state"), "state of outlet %s" % quote(identifier))
        outlets.append(Outlet(int(suffix) + 1, parse_kasa_alias(child), identifiers, state))
    if len({outlet.number for outlet in outlets}) != len(outlets):
        raise ProtocolError("two outlets have the same number: %s" % describe_outlets(outlets))
    return tuple(sorted(outlets))


def parse_kasa_watts(result):
    """Return watts from a meter result: "power" (W, hardware 1) or "power_mw" (mW, all others)."""
    units = {"power_mw": 0.001, "power": 1.0}
    found = [name for name in units if name in result]
    if len(found) != 1:
        raise ProtocolError("meter tells %s of power and power_mw" % ("both" if found else "none"))
    value = result[found[0]]
    if not is_number(value):
        raise ProtocolError("meter: no plausible %s: %s" % (found[0], quote(json.dumps(value))))
    return max(-1e9, min(value, 1e9)) * units[found[0]]  # absurd: a load, and no silent meter


class KasaDevice(Device):
    """A TP-Link Kasa plug or strip over its legacy protocol, on one connection for all requests."""
    kind = "kasa"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.connection = None
        self.description = None
        self.child_id = None

    def read_state(self, deadline):
        self.describe_device(deadline)
        outlet = select_outlet(self.description.outlets, self.settings.plug, self.label)
        child_id = outlet.identifiers[0] if self.description.is_strip else None
        if self.child_id not in (None, child_id):
            raise Refused("outlet %s has become another one in the middle of the action: %s was %s"
                          % (quote(self.settings.plug), child_id, quote(self.child_id)))
        self.child_id = child_id
        return outlet.state

    def request_state(self, wanted, deadline):
        if not self.connection:
            self.read_state(deadline)  # a new connection may lead to another device
        state = 1 if wanted is PowerState.ON else 0
        self._ask("system", "set_relay_state", {"state": state}, self.child_id, deadline)

    def read_watts(self, deadline):
        if not self.description.has_meter:
            return None
        return parse_kasa_watts(self._ask("emeter", "get_realtime", {}, self.child_id, deadline))

    def list_outlets(self, deadline):
        return self.describe_device(deadline).outlets

    def describe_device(self, deadline):
        """Ask for the device's description, alone: mixed queries have crashed devices."""
        found = parse_kasa_description(self._ask("system", "get_sysinfo", {}, None, deadline))
        self.check_mac(found.mac)
        known = self.description or found
        for name in ("device_id", "mac", "is_strip"):
            if getattr(found, name) != getattr(known, name):
                raise Refused("another device answered in the middle of the action: its %s was %s "
                              "and is %s" % (name, quote(str(getattr(known, name))),
                                             quote(str(getattr(found, name)))))
        self.description = found
        return found

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def _ask(self, module, method, arguments, child_id, deadline):
        """Return the result of one request, which may be sent twice."""
        # Devices close idle connections, some of them after every answer.
        is_reused = self.connection is not None
        try:
            return self._exchange(module, method, arguments, child_id, deadline)
        except Unreachable as error:
            if not (is_reused and error.was_closed):
                raise
        return self._exchange(module, method, arguments, child_id, deadline)

    def _exchange(self, module, method, arguments, child_id, deadline):
        request = build_kasa_request(module, method, arguments, child_id)
        self.system.debug("%s <- %s" % (self.describe(), json.dumps(request)), level=2)
        try:
            if not self.connection:
                self.connection = self.system.connect(
                    self.settings.ip, self.settings.ipport, self.settings.family,
                    deadline.within(self.settings.login_timeout))
            limit = deadline.within(self.settings.shell_timeout)
            if self.connection.holds_unasked_bytes():
                raise ProtocolError("device sent more than one answer to one request")
            self.connection.send(build_kasa_frame(request), limit)
            message = self.connection.receive(
                parse_kasa_length(self.connection.receive(4, limit)), limit)
            self.system.debug("%s -> %s" % (self.describe(), decrypt_kasa(message).decode(
                "utf-8", "backslashreplace")), level=2)
            return parse_kasa_result(message, module, method)
        except (Unreachable, ProtocolError):
            # Replies carry no number: on a connection that missed one, the next is the wrong one.
            self.close()
            raise


# SECTION: TASMOTA ---------------------------------------------------------------------------------
# Tasmota, and OpenBeken as far as it does the same.

# Tasmota and OpenBeken, /cm?cmnd=. Source: Tasmota documentation (Commands) and firmware source
# xdrv_01_9_webserver.ino, OpenBK7231T_App json_interface.c; read 2026-10. Seen: documents only.

def parse_tasmota_url(path):
    """Return (relay as text, "" for a bare Power; PowerState or None) of a /cm?cmnd= URL."""
    from urllib.parse import parse_qs
    page, _, query = path.partition("?")
    commands = parse_qs(query).get("cmnd", [""])
    match = re.fullmatch("(?i)power([1-9][0-9]?)?(?: (on|off|1|0))?", commands[0].strip())
    if page != "/cm" or len(commands) != 1 or not match:
        raise UsageError("it is not /cm?cmnd=Power, with a relay's number and ON or OFF (for any "
                         "other URL set device=url)")
    state = {"on": PowerState.ON, "1": PowerState.ON, "off": PowerState.OFF, "0": PowerState.OFF}
    return match.group(1) or "", state.get((match.group(2) or "").lower())


def parse_tasmota_reply(text, command):
    """Return the members of a reply; firmware before 8.2 refuses with status 200."""
    members = parse_json_object(text)
    if "WARNING" in members:
        raise Refused("device refuses the command: %s (username and password right?)"
                      % quote(str(members["WARNING"])))
    if "Command" in members:
        raise Refused("device answers %s to the command %s (has it such a relay?)"
                      % (quote(str(members["Command"])), command))
    return members


def parse_tasmota_power(members, relay):
    """Return the PowerState of one relay (a number from 1), from no other relay's member."""
    # SAFETY: the bare POWER is relay 1 and no other: OpenBeken answers with it whatever is asked.
    # Test: test_relay_2_is_never_read_from_the_bare_power
    names = ("POWER", "POWER1") if relay == 1 else ("POWER%d" % relay,)
    words = [members[name] for name in names if name in members]
    if not words:
        raise ProtocolError("reply holds no %s (OpenBeken answers for another relay): %s"
                            % (names[-1], quote(json.dumps(members))))
    if words[0] != words[-1] or words[0] not in ("ON", "OFF"):
        raise ProtocolError("%s is neither ON nor OFF: %s (StateText changed, or relay blinking?)"
                            % (names[-1], quote(json.dumps(words))))
    return PowerState[words[0]]


def parse_tasmota_relays(members):
    """Return the relays in the reply to Status 11 as Outlets."""
    states = require_member(members, "StatusSTS", dict, "the reply to Status 11")
    names = {int(key[5:] or 1): key for key in states if re.fullmatch("POWER([1-9][0-9]?)?", key)}
    if not names:
        raise ProtocolError("the reply to Status 11 holds no POWER: the device has no relay")
    return tuple(Outlet(number, name, (), parse_tasmota_power(states, number))
                 for number, name in sorted(names.items()))


def parse_tasmota_energy(members):
    """Return (watts, volts) of the reply to Status 10, or None when the device has no meter."""
    sensors = require_member(members, "StatusSNS", dict, "the reply to Status 10")
    if "ENERGY" not in sensors:
        return None
    energy = require_member(sensors, "ENERGY", dict, "the reply to Status 10")

    def total(name):
        values = energy.get(name)
        values = values if isinstance(values, list) else [values]
        if not all(is_number(value) for value in values):
            raise ProtocolError("meter: %s is not a number: %s" % (name, quote(json.dumps(values))))
        return sum(min(abs(value), 1e9) for value in values)
    return total("Power"), total("Voltage")


class TasmotaDevice(HttpDevice):
    """Tasmota, and OpenBeken as far as it does the same; `plug` is the relay's number."""
    kind = "tasmota"
    default_username = "admin"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.take_plug_from_urls(parse_tasmota_url)
        self.relays = ()
        self.relay = 0
        self.gate = ""  # what the device says to SetOption21

    def find_outlet(self, deadline):
        outlet = select_outlet(self.list_outlets(deadline), self.plug, self.label)
        self.relay = outlet.number
        return outlet.state

    def read_state(self, deadline):
        if not self.relay:
            return self.find_outlet(deadline)
        self._check_identity(deadline)
        return self._command("Power%d" % self.relay, deadline, self._parse_power)

    def request_state(self, wanted, deadline):
        self._check_identity(deadline)  # a new connection may lead to another device
        command = "Power%d %s" % (self.relay, wanted.value)
        state = self._command(command, deadline, self._parse_power)
        if state is not wanted:
            raise ProtocolError("device answers %s to %s (locked by PowerOnState 4 or PowerLock?)"
                                % (state.value, command))

    def read_watts(self, deadline):
        """Return what a meter says that measures while the relay is off, too: SetOption21 1."""
        # By default the firmware reports 0 W as soon as its relay is off, whatever flows.
        energy = self._command("Status 10", deadline, parse_tasmota_energy)
        if energy is None or len(self.relays) != 1:
            return None  # one meter may measure several relays
        if not self.gate:
            self.gate = self._command("SetOption21", deadline,
                                      lambda members: str(members.get("SetOption21")))
        watts, volts = energy
        # Without a voltage the chip does not answer, or it sits behind the relay.
        return watts if self.gate == "ON" and (volts > 0 or watts > 0) else None

    def list_outlets(self, deadline):
        self._check_identity(deadline)
        self.relays = self._command("Status 11", deadline, parse_tasmota_relays)
        return self.relays

    def path_with_login(self, path):
        # In the query too: firmware before 9 knows no other way. A header is enough for the rest.
        if not self.settings.password:
            return path
        return path.replace("?", "?user=%s&password=%s&" % (
            percent_encode(self.username), percent_encode(self.settings.password)), 1)

    def _check_identity(self, deadline):
        if self.settings.device_mac:
            network = self._command("Status 5", deadline, lambda members: require_member(
                members, "StatusNET", dict, "the reply to Status 5"))
            self.check_mac(network.get("Mac"))

    def _parse_power(self, members):
        return parse_tasmota_power(members, self.relay)

    def _command(self, command, deadline, parse):
        return self.exchange("GET", "/cm?cmnd=" + command.replace(" ", "%20"), lambda reply: parse(
            parse_tasmota_reply(parse_http_body(reply), command)), deadline)


# SECTION: ESPHOME ---------------------------------------------------------------------------------
# The switches of ESPHome's web_server.

EVENTS_SILENCE_SECONDS = 2.0  # after the states of all switches; the next ping may take ten


# ESPHome, web_server. Source: esphome components/web_server of 2024.11, 2026.6 and 2026.10; read
# 2026-10. Seen: documents only. A switch is called by its object id (made from its name) up to
# 2025.12, by its name from 2026.7, by both between.

def parse_esphome_url(path):
    """Return (switch, PowerState or None) of a /switch/ URL."""
    from urllib.parse import unquote_plus
    match = re.fullmatch(r"/switch/([^?]+?)(?:/(turn_on|turn_off|toggle))?(?:\?.*)?", path)
    if not match or match.group(2) == "toggle":
        raise UsageError("it is not /switch/NAME, /switch/NAME/turn_on or /switch/NAME/turn_off "
                         "(for any other URL set device=url)")
    state = {"turn_on": PowerState.ON, "turn_off": PowerState.OFF}
    return unquote_plus(match.group(1)), state.get(match.group(2))


def build_esphome_path(switch):
    return "/switch/" + "/".join(map(percent_encode, switch.split("/")))


def parse_esphome_switch(text, switch):
    """Return (PowerState, assumed) of a reply, which must be that of the switch asked for."""
    # SAFETY: old firmware finds a switch by an id that two names can share, and answers with the
    # first. Test: test_a_reply_of_another_switch_is_refused
    members = parse_json_object(text)
    if not esphome_reply_is_of(members, switch):
        raise Refused("another switch answered: %s instead of %s" % (quote(text), quote(switch)))
    return parse_esphome_state(members), members.get("assumed_state") is True


def esphome_reply_is_of(members, switch):
    """Return whether all that a reply says about its switch (at least one thing) fits `switch`."""
    device, _, wanted = switch.rpartition("/")

    def fits(name):
        return name == wanted or render_identifier(name) == wanted
    claims = []
    for identifier in (str(members[key]) for key in ("id", "name_id") if key in members):
        if identifier.startswith("switch-"):
            claims.append(identifier[7:] == render_identifier(wanted))
        else:
            owner, _, name = identifier.rpartition("/")
            claims.append(owner == ("switch/" + device).rstrip("/") and fits(name))
    if "name" in members:
        claims.append(fits(str(members["name"])))
    if device or "device" in members:
        claims.append(members.get("device") == device)
    return bool(claims) and all(claims)


def parse_esphome_state(members):
    """Return the PowerState; `value` (true, false) and `state` (ON, OFF) must agree."""
    words = [members["state"]] if "state" in members else []
    if "value" in members:
        words.append({"true": "ON", "false": "OFF"}.get(json.dumps(members["value"])))
    if not words or words[0] != words[-1] or words[0] not in ("ON", "OFF"):
        raise ProtocolError("no clear power state: %s" % quote(json.dumps(members)))
    return PowerState[words[0]]


def parse_esphome_events(text):
    """Return the switches that an event stream tells of, as Outlets."""
    switches = {}
    for event in re.split(r"\r?\n\r?\n", text)[:-1]:
        data = re.search(r"(?m)^data: ?(\{.*\})\r?$", event)
        is_state = re.search(r"(?m)^event: ?state\r?$", event)
        members = parse_json_object(data.group(1)) if data and is_state else {}
        identifier = str(members.get("id", ""))
        if not re.match("switch[-/]", identifier) or identifier in switches:
            continue
        name = str(members.get("name", identifier[7:].rpartition("/")[2]))
        prefix = "%s/" % members["device"] if members.get("device") else ""
        switches[identifier] = (prefix + render_identifier(name), prefix + name,
                                parse_esphome_state(members))
    only = ("1",) if len(switches) == 1 else ()
    return tuple(Outlet(number, name, only, state) for number, name, state in switches.values())


class EsphomeDevice(HttpDevice):
    """A switch of an ESPHome device; `plug` is its name or object id, or DEVICE/NAME."""
    # It has no meter: its sensors do not tell to which switch they belong.
    kind = "esphome"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.take_plug_from_urls(parse_esphome_url)
        self.switch = ""
        self.path = ""

    def find_outlet(self, deadline):
        self._check_identity(deadline)
        state = self._find_switch(self.plug, deadline) if self.plug else None
        if state is None:
            outlet = select_outlet(self.list_outlets(deadline), self.plug, self.label)
            state = self._find_switch(outlet.alias, deadline)
        if state is None:
            raise Refused("device lists the switch %s, and does not know it" % quote(outlet.alias))
        return state

    def read_state(self, deadline):
        if not self.path:
            return self.find_outlet(deadline)
        self._check_identity(deadline)
        return self.exchange("GET", self.path + "?detail=all", self._parse_switch, deadline)

    def request_state(self, wanted, deadline):
        self._check_identity(deadline)  # a new connection may lead to another device
        # Answered before it is done; the body is empty.
        self.exchange("POST", "%s/turn_%s" % (self.path, wanted.value.lower()), parse_http_body,
                      deadline)

    def list_outlets(self, deadline):
        self._check_identity(deadline)
        return self.exchange("GET", "/events", lambda reply: parse_esphome_events(
            parse_http_body(reply)), deadline, silence_s=EVENTS_SILENCE_SECONDS)

    def _find_switch(self, switch, deadline):
        """Return the state of a switch, or None when the device knows it neither by name nor id."""
        device, _, name = switch.rpartition("/")
        object_id = (device + "/" if device else "") + render_identifier(name)
        self.switch = switch
        for spelling in (switch, object_id) if object_id != switch else (switch,):
            path = build_esphome_path(spelling)
            state = self.exchange("GET", path + "?detail=all", lambda reply: (
                None if reply.status == 404 else self._parse_switch(reply)), deadline)
            if state:
                self.path = path  # not before: it is what will be switched
                return state
        return None

    def _check_identity(self, deadline):
        if self.settings.device_mac:
            self.check_mac(self.exchange("OPTIONS", "/", lambda reply: reply.headers.get(
                "Private-Network-Access-ID"), deadline))

    def _parse_switch(self, reply):
        state, assumed = parse_esphome_switch(parse_http_body(reply), self.switch)
        if assumed:
            self.system.warn("switch %s is an assumed_state: it reports what it was told"
                             % quote(self.switch))
        return state


# SECTION: PAGES -----------------------------------------------------------------------------------
# Any device with one URL that switches on, one that switches off, and one that tells.

# Any HTTP switch.

def parse_status_page(text, on_pattern, off_pattern):
    """Return the PowerState of a status reply, which must match exactly one expression."""
    patterns = ((PowerState.ON, on_pattern), (PowerState.OFF, off_pattern))
    found = [state for state, pattern in patterns if re.search(pattern, text)]
    if len(found) != 1:
        raise ProtocolError("the reply matches %s of status_on_regex and status_off_regex: %s"
                            % ("both" if found else "none", quote(text)))
    return found[0]


class UrlDevice(HttpDevice):
    """Any device with one URL that switches on, one that switches off, and one that tells."""
    kind = "url"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        for name in ("status_url", "status_on_regex", "status_off_regex"):
            if not getattr(settings, name):
                raise UsageError("no %s given, and device=url needs it" % name)
        given = [path for path in self.paths.values() if path]
        if len(set(given)) < len(given):
            raise UsageError("power_on_url, power_off_url and status_url must differ: a URL that "
                             "toggles, or switches when it is read, proves nothing")
        if self.plug not in ("", self.label):
            raise UsageError("plug %s: the URLs alone say what is switched" % quote(self.plug))

    def read_state(self, deadline):
        self.check_mac("")  # refuses a configured device_mac: no URL tells one
        return self.exchange("GET", self.paths["status_url"], lambda reply: parse_status_page(
            parse_http_body(reply), self.settings.status_on_regex, self.settings.status_off_regex),
            deadline)

    def request_state(self, wanted, deadline):
        name = "power_on_url" if wanted is PowerState.ON else "power_off_url"
        if not self.paths[name]:
            raise UsageError("no %s given" % name)
        method = "POST" if self.settings.http_method == "POST" else "GET"
        self.exchange(method, self.paths[name],
                      lambda reply: parse_http_body(reply, (200, 201, 202, 204)), deadline)

    def list_outlets(self, deadline):
        return (Outlet(1, self.label, (), self.read_state(deadline)),)


# SECTION: INSTALLED AGENT -------------------------------------------------------------------------
# Any fence agent of this machine, which is asked and never switches.

def parse_agent_status(code, text):
    """Return the PowerState that another fence agent tells by its exit code and its output."""
    # SAFETY: both must say the same. Exit code 2 is a usage error of many programs, and an agent
    # may print a state before it fails. Test: test_an_agents_exit_code_and_words_must_agree
    words = set(re.findall("(?m)^Status: (.*?)\\s*$", text))
    state = {EXIT_GOOD: PowerState.ON, EXIT_OFF: PowerState.OFF}.get(code)
    if state and words == {state.value}:
        return state
    raise ProtocolError("agent ended with code %d and printed %s" % (code, quote(text.strip())))


class InstalledAgent(Device):
    """Any fence agent of this machine, asked for the state of its outlet and never to switch it."""

    def describe(self):
        return "%s %s" % (self.settings.fence_method, self.settings.ip)

    def read_state(self, deadline):
        code, out, err = self._run("status", deadline)
        try:
            return parse_agent_status(code, redact(out, self.system.secrets))
        except ProtocolError as error:
            raise ProtocolError("%s; %s" % (error, self._quote(err))) from error

    def list_outlets(self, deadline):
        code, _, err = self._run("monitor", deadline)
        if code != EXIT_GOOD:
            raise Unreachable("its monitor failed: %s" % self._quote(err))
        return ()

    def _run(self, action, deadline):
        """Run the agent as Pacemaker does: the password goes over its stdin, never its argv."""
        is_ipmi = self.settings.fence_method == "ipmi"
        names = ("ip", "ipport", "plug", "username", "password", "nodename")
        parameters = {name: getattr(self.settings, name) for name in names}
        parameters.update({"lanplus": "1"} if is_ipmi else {})
        parameters.update(self.settings.options, action=action)
        lines = ["%s=%s" % item for item in parameters.items() if item[1] != ""]
        if any("\n" in line for line in lines):
            raise Refused("a parameter for the agent has a line break in it")
        return self.system.run(
            ["fence_ipmilan" if is_ipmi else self.settings.fence_method], "\n".join(lines) + "\n",
            deadline.within(self.settings.login_timeout + self.settings.shell_timeout))

    def _quote(self, text):
        # Redacted before it is cut, where half a password would no longer be found.
        return quote(hide_timer_words(redact(text.strip(), self.system.secrets)))


DEVICES = {device.kind: device for device in (KasaDevice, TasmotaDevice, EsphomeDevice, UrlDevice)}


def open_device(method, system, settings):
    """Return the Device that a method means: http, a kind of DEVICES, ipmi or an agent's name."""
    kind = method
    if method == "http":
        kind = settings.device if settings.device != "auto" else choose_http_dialect(settings)
    if getattr(settings, "switch_name", ""):
        if settings.plug not in ("", settings.nodename, settings.switch_name):
            raise UsageError("plug %s and switch_name %s name different outlets"
                             % (quote(settings.plug), quote(settings.switch_name)))
        settings.plug = settings.switch_name
    if kind in DEVICES:
        return DEVICES[kind](system, settings)
    if kind != "ipmi" and not re.fullmatch(r"(/\S*/)?fence_\w+", kind):
        raise UsageError("fence_method: %s is none of ipmi, %s, http and fence_NAME"
                         % (quote(kind), ", ".join(sorted(set(DEVICES) - {"url"}))))
    return InstalledAgent(system, settings)

# PART 4: FENCING ==================================================================================

# SECTION: PROBES ----------------------------------------------------------------------------------
# Packets to addresses, and what one look saw of each. What it means is judged in PROOF.


ARP_HEADER = struct.pack(">HHBB", 1, 0x0800, 6, 4)  # Ethernet, IPv4, and their address lengths
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136


def build_echo(family, marker, sequence):
    """Return an echo request; marker: 8 bytes that its answer, and no other, brings back."""
    # Two of them are the identifier too: that is all of a request that every ICMP error quotes.
    body = marker[:2] + struct.pack(">H", sequence) + marker
    words = struct.unpack(">6H", body) + (ICMP[family].request << 8,)
    # The remainder is the ones' complement sum. For ICMPv6 the kernel fills in its own.
    return struct.pack(">BBH", ICMP[family].request, 0, 0xFFFF - sum(words) % 0xFFFF) + body


def parse_echo_reply(family, message):
    """Return the marker that an echo reply brings back, or b"" for any other message."""
    return message[8:16] if message[:2] == bytes([ICMP[family].reply, 0]) else b""


def parse_icmp_error(family, message):
    """Return ((type, code), target, identifier) of the echo an ICMP error is about, or None."""
    if len(message) < 9 or message[0] not in ICMP[family].errors:
        return None
    quoted = message[8:]
    if family == socket.AF_INET:
        header_bytes, protocol, target = (quoted[0] & 15) * 4, quoted[9:10], quoted[16:20]
    else:
        header_bytes, protocol, target = 40, quoted[6:7], quoted[24:40]
    echo = quoted[header_bytes:header_bytes + 8]
    if protocol != bytes([ICMP[family].protocol]) or echo[:1] != bytes([ICMP[family].request]):
        return None
    return tuple(message[:2]), target, echo[4:6]


def build_arp_request(mac, source, target):
    """Return "who has target", from our MAC and address; all are bytes."""
    return ARP_HEADER + struct.pack(">H", 1) + mac + source + bytes(6) + target


def parse_arp_sender(message):
    """Return the address that sent an ARP packet, be it a reply or a request, or b""."""
    return message[14:18] if message[:6] == ARP_HEADER else b""


def is_arp_answer(message, mac):
    """Return whether an ARP packet is a reply to the one who has this MAC."""
    return message[6:8] == b"\0\2" and message[18:24] == mac


def build_neighbour_solicitation(mac, target):
    """Return (message, address to send it to) that asks target for its MAC."""
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]
    return (struct.pack(">BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target + b"\x01\x01" + mac,
            socket.inet_ntop(socket.AF_INET6, group))


def parse_neighbour_advertisement(message):
    """Return the address that an advertisement speaks for, or b"" for any other message."""
    return message[8:24] if message[:2] == bytes([NEIGHBOUR_ADVERTISEMENT, 0]) else b""


def is_solicited(advertisement):
    """Return whether an advertisement answers a question, and was not sent to all unasked."""
    return bool(advertisement[4:5]) and bool(advertisement[4] & 0x40)


class Look:
    """One look at all addresses at once: each is asked several times, in several ways."""
    # router_errors: {address: what a router said about it}, from all looks of an action.
    # SAFETY: a router tells an error once in a while only, so the next look may find the same way
    # just silent. Test: test_what_a_router_said_holds_for_the_whole_action

    def __init__(self, system, settings, router_errors, device_addresses):
        self.system = system
        self.settings = settings
        self.router_errors = router_errors
        self.marker = os.urandom(8)
        self.targets = {target.address for target in settings.targets}
        self.sights = [Sight(address) for address in sorted(self.targets.union(
            device_addresses, (witness.address for witness in settings.witnesses)))]
        self.by_packed = {sight.packed: sight for sight in self.sights}
        self.sockets = {}  # by family (ICMP) or interface (ARP); None: not permitted

    def run(self):
        """Return {address: Sight}."""
        for sight in self.sights:
            sight.block(self.router_errors.get(sight.address, ""))
            self._find_path(sight)
        try:
            for sight in self.sights:
                if sight.path:
                    self._open_sockets(sight)
            self._ask_and_hear()
        finally:
            for handle in filter(None, self.sockets.values()):
                handle.close()
        for sight in self.sights:
            if sight.path and not self.sockets[sight.family]:
                self._run_ping(sight)
            self._check_path(sight)
        return {sight.address: sight for sight in self.sights}

    def _find_path(self, sight):
        try:
            sight.path = self.system.find_path(sight.family, sight.packed)
        except Unreachable as error:
            sight.block(str(error))

    def _check_path(self, sight):
        # SAFETY: a link that was gone for a part of the look has hidden answers.
        # Test: test_a_link_that_flaps_during_the_look_proves_nothing
        before, sight.path = sight.path, None
        self._find_path(sight)
        if sight.path != before:
            sight.path, sight.obstacle = None, "it changed during the look"

    def _open_sockets(self, sight):
        if sight.family not in self.sockets:
            self.sockets[sight.family] = self.system.open_echo(sight.family)
        echo = self.sockets[sight.family]
        if not echo or not echo.is_raw:
            sight.block("silence proves nothing without a raw ICMP socket (run it as root)")
        interface = sight.path.interface
        sight.uses_arp = (sight.family == socket.AF_INET and sight.is_attached()
                          and self.settings.arp_check)
        if sight.uses_arp and interface not in self.sockets:
            self.sockets[interface] = self.system.open_arp(interface)
        if sight.uses_arp and not self.sockets[interface]:
            sight.block("ARP is not permitted here (run it as root)")

    def _ask_and_hear(self):
        """Ask at even intervals, so that a burst of losses does not take all questions."""
        # Counted, not timed: a process that was held up for a while still asks every question.
        for turn in range(self.settings.ping_count):
            for sight in self.sights:
                if sight.path and not sight.echoed:
                    self._ask(sight, turn)
            self._hear(self.settings.ping_timeout * ASKING_PART / self.settings.ping_count)
        self._hear(self.settings.ping_timeout * (1 - ASKING_PART))

    def _ask(self, sight, turn):
        path = sight.path
        echo = self.sockets[sight.family]
        arp = self.sockets[path.interface] if sight.uses_arp else None
        if echo:
            sight.block(echo.send(build_echo(sight.family, self.marker, turn), (sight.address, 0)))
        if arp:
            sight.block(arp.send(build_arp_request(path.mac, path.source, sight.packed),
                                 (path.interface, ETHERTYPE_ARP, 0, 0, b"\xff" * 6)))
        elif (sight.family == socket.AF_INET6 and echo and echo.is_raw and sight.is_attached()
              and self.settings.arp_check):
            message, group = build_neighbour_solicitation(path.mac, sight.packed)
            sight.block(echo.send(message, (group, 0, 0, path.index)))

    def _is_complete(self):
        """Nothing more can be learned: an early ARP reply does not say that ICMP is filtered."""
        return all(sight.path is None or sight.echoed or sight.answered()
                   and sight.address not in self.targets for sight in self.sights)

    def _hear(self, seconds):
        """Take in what comes in this time, and all that has piled up by its end."""
        end, late = self.system.clock() + seconds, 0
        handles = [handle for handle in self.sockets.values() if handle]
        while not self._is_complete():
            ready = self.system.wait_readable(handles, end - self.system.clock())
            if not ready:
                return
            for handle in ready:
                self._take(handle, *handle.receive())
            late += self.system.clock() > end
            if late > MOST_LATE_READS:
                raise Unreachable("more packets come in than can be read; nothing can be judged")

    def _take(self, handle, packet, sender):
        """Note what one packet shows; all is matched by address, an echo by its marker too."""
        # Who sends an error about itself is alive. Of a router's errors only "nobody there" fits a
        # dead target, and is no more than its silence; all others are a way that does not work.
        if handle.family == socket.AF_PACKET:
            sight = self.by_packed.get(parse_arp_sender(packet))
            if sight and sight.path:
                self._note_neighbour(sight, sender == sight.path.interface
                                     and is_arp_answer(packet, sight.path.mac))
            return
        if not packet:
            return
        answering = self.by_packed.get(socket.inet_pton(handle.family, sender))
        if answering and parse_echo_reply(handle.family, packet) == self.marker:
            answering.echoed = True
        if handle.family == socket.AF_INET6:
            self._note_neighbour(self.by_packed.get(parse_neighbour_advertisement(packet)),
                                 is_solicited(packet))
        kind, target, identifier = parse_icmp_error(handle.family, packet) or (None, b"", b"")
        sight = self.by_packed.get(target)
        if not sight or identifier != self.marker[:2]:
            return
        if sight is answering:
            sight.rejected = True
        elif kind != ICMP[handle.family].silence:
            sight.block("no path from here: %s answers with ICMP error %d.%d" % ((sender,) + kind))
            self.router_errors[sight.address] = sight.obstacle

    def _note_neighbour(self, sight, is_answer):
        """Any packet of a target is life; of a witness only an answer to our question counts."""
        # SAFETY: what is overheard proves the way here, and not the way there.
        # Test: test_a_witness_that_is_only_overheard_proves_nothing
        if sight and (is_answer or sight.address in self.targets):
            sight.neighbour = True

    def _run_ping(self, sight):
        """Where no ICMP socket is permitted, the ping program may still show life, never death."""
        try:
            code, _, _ = self.system.run(["ping", "-n", "-c", "1", "-W", "1", sight.address], "",
                                         self.system.deadline(self.settings.shell_timeout))
            sight.echoed = code == 0
        except Unreachable as error:
            self.system.debug(str(error))


def find_device_addresses(system, address):
    """Return the addresses of a fence device that can be a witness: one, or none."""
    # It is a witness for what is attached to the same interface, and for nothing behind a router.
    # SAFETY: like every witness it must answer the look itself; that it has answered over TCP, or
    # that its agent has spoken, says nothing about ICMP and ARP in that second.
    # Test: test_the_fence_device_is_a_witness_only_when_it_answers_the_look
    try:
        sight = Sight(address)
        sight.path = system.find_path(sight.family, sight.packed)
    except (OSError, Unreachable):  # a name, or an address that only the agent knows how to reach
        return ()
    return (address,) if sight.is_attached() else ()


# SECTION: FENCING ---------------------------------------------------------------------------------
# What each action of a device agent means, and when success may be said. Talks to devices through
# their contract alone; returns (exit code, text for stdout) or raises FenceError.

class Job:
    """One action on one device: what it needs, and what it counts for the log."""

    def __init__(self, system, device, settings):
        self.system = system
        self.device = device
        self.settings = settings
        self.attempts = 0
        self.load_seen = ""  # what a meter said about a load after OFF, until it says it is gone
        self.router_errors = {}  # fence_check: what routers said about an address, see Look
        self.deadline = system.deadline(
            settings.login_timeout + settings.shell_timeout + settings.power_timeout)

    def pause(self, deadline):
        """Wait between two looks; return False when there is no time for another whole one."""
        if deadline.left() <= self.settings.stonith_status_sleep + SHORTEST_EXCHANGE_SECONDS:
            return False
        self.system.sleep(self.settings.stonith_status_sleep)
        return True

    def retry(self, exchange, tries):
        """Return what exchange() returns; repeat it on errors that say a repetition may help."""
        while True:
            self.attempts += 1
            tries -= 1
            try:
                return exchange(self.deadline)
            except FenceError as error:
                self.system.debug("attempt %d: %s" % (self.attempts, error))
                if not error.retryable or not tries or not self.pause(self.deadline):
                    raise


def change_power(job, wanted):
    """Switch the outlet and return the answer; raise unless that is confirmed."""
    # The device and the outlet are found first: a strip that is switched without an outlet's id may
    # cut all its outlets. The command is sent whatever state was seen: OFF may be repeated, and a
    # relay's reported state may be stale.
    old = job.retry(job.device.find_outlet, UNTIL_DEADLINE)
    if wanted is PowerState.OFF and job.settings.power_meter == "require":
        require_meter(job, job.deadline)
    confirm_power(job, wanted)
    return EXIT_GOOD, "Success: %s %s" % ("Already" if old is wanted else "Powered", wanted.value)


def confirm_power(job, wanted):
    """Send the command until it is acknowledged, and look until the outlet is in that state."""
    # OFF needs OFF_READINGS in a row: the first reading after a command may be old, a pulse timer
    # may switch back, and a computer's power supply bridges the first second. The acknowledgement
    # proves nothing and is not needed: a device that breaks the connection after it obeyed is read
    # on a new one.
    # SAFETY: nothing but a reading of `wanted` leads out of here without an exception.
    # Test: test_no_fault_of_a_plug_is_ever_taken_for_a_proof
    deadline = job.deadline
    refusal = "not sent yet"
    agreed = 0
    while True:
        if refusal:
            refusal = request_refusal(job, wanted, deadline)
            if not refusal:
                deadline = job.deadline.within(job.settings.power_timeout)
                job.system.sleep(min(job.settings.power_wait, deadline.left()))
        doubt = reading_doubt(job, wanted, deadline, refusal)
        agreed = 0 if doubt else agreed + 1
        if agreed == (OFF_READINGS if wanted is PowerState.OFF else 1):
            return
        if not job.pause(deadline):
            raise NotConfirmed(doubt or wanted.value + " was seen only once, and time is up")
        job.system.debug("not confirmed yet: %s" % (doubt or "one more look"))


def request_refusal(job, wanted, deadline):
    """Send the command; return "" when it is acknowledged, else why it is not (yet)."""
    job.attempts += 1
    try:
        job.device.request_state(wanted, deadline)
        return ""
    except FenceError as error:
        if not error.retryable:
            raise
        return str(error)


def reading_doubt(job, wanted, deadline, refusal):
    """Return why the outlet cannot be said to be `wanted` now, or "" when it can."""
    try:
        state = job.device.read_state(deadline)
        if state is not wanted and refusal:
            return "%s was not acknowledged: %s" % (wanted.value, refusal)
        if state is not wanted:
            return ("device acknowledged %s and still reports %s after %s (relay locked or stuck, "
                    "or does something switch it back?)"
                    % (wanted.value, state.value, render_seconds(deadline.seconds)))
        if wanted is PowerState.OFF and job.settings.power_meter != "ignore":
            return load_doubt(job, deadline)
        return ""
    except FenceError as error:
        if not error.retryable:
            raise
        return str(error)


def load_doubt(job, deadline):
    """Return the meter's doubt about OFF; a load that was seen stays until seen to be gone."""
    # SAFETY: a meter that falls silent after it has shown a load has shown a welded relay.
    # Test: test_a_load_that_was_seen_is_not_forgotten_when_the_meter_falls_silent
    watts = read_meter(job, deadline)
    if watts is not None or not job.load_seen:
        job.load_seen = doubt_about_meter(watts, job.settings.power_meter)
    return job.load_seen


def require_meter(job, deadline):
    if read_meter(job, deadline) is None:
        raise Refused("the outlet has no power meter that answers, and power_meter=require")


def read_meter(job, deadline):
    """Return watts or None; a meter that fails is told, and its silence is judged by the policy."""
    try:
        return job.device.read_watts(deadline)
    except FenceError as error:
        job.system.warn("power meter of %s: %s" % (job.device.describe(), error))
        return None


def run_off(job):
    return change_power(job, PowerState.OFF)


def run_on(job):
    for tries_left in range(max(0, job.settings.retry_on), -1, -1):
        try:
            return change_power(job, PowerState.ON)
        except NotConfirmed:
            if not tries_left or not job.pause(job.deadline):
                raise


def run_reboot(job):
    """Off with proof, then on. A failing ON is told loudly; it is a success for the fence API."""
    # SAFETY: the outlet stays off for REBOOT_OFF_SECONDS. A relay that opens for a tenth of a
    # second is bridged by the capacitors of a power supply: the node would live on, reported as
    # rebooted. Test: test_reboot_keeps_the_outlet_off_long_enough_to_cut_a_power_supply
    change_power(job, PowerState.OFF)
    try:
        if job.deadline.left() <= REBOOT_OFF_SECONDS:
            raise NotConfirmed("no time left for it")
        job.system.sleep(REBOOT_OFF_SECONDS)
        run_on(job)
    except FenceError as error:
        job.system.error("the outlet is OFF and stays OFF (switch it on by hand): %s" % error)
    return EXIT_GOOD, "Success: Rebooted"


def run_status(job):
    state = job.retry(job.device.read_state, READ_ATTEMPTS)
    return (EXIT_GOOD if state is PowerState.ON else EXIT_OFF), "Status: " + state.value


def run_monitor(job):
    """Prove that the device could be used now, whatever its state; Pacemaker names no outlet."""
    def look(deadline):
        if job.device.plug:
            job.device.find_outlet(deadline)
        elif len(job.device.list_outlets(deadline)) > 1:
            return
        if job.settings.power_meter == "require":
            require_meter(job, deadline)
    job.retry(look, READ_ATTEMPTS)
    return EXIT_GOOD, ""


def run_list(job, with_state=False):
    lines = []
    for outlet in job.retry(job.device.list_outlets, READ_ATTEMPTS):
        fields = [str(outlet.number), one_line(outlet.alias)]
        fields += [outlet.state.value] if with_state else []
        lines.append(job.settings.separator.join(fields))
    return EXIT_GOOD, "\n".join(lines)


# SECTION: CHECKING --------------------------------------------------------------------------------
# What each action of fence_check means. It reads, and switches nothing.

# fence_check: whether the target is dead. It reads, and switches nothing.

def collect_evidence(job):
    """Return the Evidence of one look: the device first, then all addresses at once."""
    power = observe_power(job)
    evidence = [power]
    for target, sight, witnesses, is_direct in look_at_networks(job):
        finding, seen, reason = judge_address(sight, witnesses, is_direct)
        evidence.append(Evidence(NETWORK, finding, "%s %s" % target, seen, reason))
    for item in evidence:
        job.system.debug("%s: %s" % (item.finding.value, render_evidence(item)))
    return evidence


def observe_power(job):
    """Return what the fence device says about the outlet, as Evidence, whatever goes wrong."""
    subject = "STONITH device (%s @ %s)" % (job.settings.fence_method, job.settings.ip)
    try:
        state = job.retry(job.device.read_state, READ_ATTEMPTS)
        watts = read_meter(job, job.deadline) if state is PowerState.OFF else None
    except FenceError as error:
        return Evidence(POWER, Finding.UNKNOWN, subject, "power=unknown",
                        hide_timer_words(redact(str(error), job.system.secrets)))
    finally:
        job.device.close()
    finding, reason = judge_power(state, watts, job.settings.power_meter)
    return Evidence(POWER, finding, subject, "power=" + state.value.lower(), reason)


def look_at_networks(job):
    """Yield (Target, its Sight, Sights of its witnesses, whether it is one cable) of one look."""
    settings = job.settings
    device = find_device_addresses(job.system, settings.ip)
    sights = Look(job.system, settings, job.router_errors, device).run()
    for target in settings.targets:
        key = network_key(target.network)
        witnesses = [sights[address] for address in device]
        witnesses += [sights[witness.address] for witness in settings.witnesses
                      if network_key(witness.network) == key]
        yield target, sights[target.address], witnesses, key in settings.direct_keys


def record_evidence(job, evidence):
    """Write what the verdict stands on to the log: it is read at three in the morning."""
    for item in evidence:
        job.system.event("evidence target=%s finding=%s %s" % (
            job.settings.nodename or "-", item.finding.value, render_evidence(item)))


def run_check_off(job, collect=collect_evidence):
    """Return success when the target is proven dead, within power_timeout."""
    # One look counts, after verify_wait; with early_exit as many, from the start, as fill that time
    # without a doubt. A target that lives on, or is in doubt, is looked at until the time is over.
    settings = job.settings
    limit = job.deadline.within(settings.power_timeout)
    if not settings.early_exit:
        job.system.sleep(settings.verify_wait)
    proven_since = None
    while True:
        started = job.system.clock()
        evidence = collect(job)
        verdict = judge(evidence)
        if verdict.finding is not Finding.DEAD:
            proven_since = None
            blocked = render_blockers(verdict)
        else:
            proven_since = started if proven_since is None else proven_since
            proven_seconds = job.system.clock() - proven_since
            if proven_seconds >= settings.early_exit:
                record_evidence(job, evidence)
                return EXIT_GOOD, "Success: %s is proven dead" % (settings.nodename or "the node")
            blocked = "the proof has held for %s only" % render_seconds(proven_seconds)
        if not limit.left() or proven_since is None and not job.pause(limit):
            record_evidence(job, evidence)
            raise NotConfirmed("not proven dead: " + blocked)


# SAFETY: exit code 2 is a proof of death; what is not known has none of the others' words.
# Test: test_status_exits_2_only_for_a_node_that_is_proven_dead
STATUS_ANSWERS = {Finding.ALIVE: ("ON", EXIT_GOOD), Finding.DEAD: ("OFF", EXIT_OFF),
                  Finding.UNKNOWN: ("UNKNOWN", EXIT_BAD)}


def run_check_status(job):
    evidence = collect_evidence(job)
    verdict = judge(evidence)
    record_evidence(job, evidence)
    word, code = STATUS_ANSWERS[verdict.finding]
    lines = ["fence_check status for %s:" % (job.settings.nodename or "the node")]
    lines += ["  " + render_evidence(item) for item in evidence]
    if verdict.finding is Finding.UNKNOWN:
        job.system.tell("not known: " + render_blockers(verdict))
    return code, "\n".join(lines + ["Status: " + word])


def run_check_monitor(job):
    """Prove that this machine could tell now whether the target is dead, whatever it is."""
    run_monitor(job)
    job.device.close()
    doubts = ["%s %s: %s" % (target + (doubt,))
              for target, sight, witnesses, is_direct in look_at_networks(job)
              for doubt in [doubt_about_path(sight, witnesses, is_direct)] if doubt]
    if doubts:
        raise Refused("could prove nothing now: %s" % "; ".join(doubts))
    return EXIT_GOOD, ""


def run_check_on(job):
    return EXIT_GOOD, "Success: nothing to do"


def refuse_check_reboot(job):
    # SAFETY: outside a fencing level Pacemaker would take a success for the fence itself.
    # Test: test_reboot_is_always_refused
    raise Refused("fence_check switches nothing, it only proves: make it the second device of a "
                  "fencing level, where it is called with off")


# SECTION: AGENTS ----------------------------------------------------------------------------------
# The fence agents: names, parameters, actions and texts, as rows; metadata and help from the
# rows; the run of one action.

# What needs no device, what a device agent does with its device, and what fence_check does, whose
# device is a witness.
TEXT_ACTIONS = {"metadata": None, "manpage": None, "validate-all": None}
DEVICE_ACTIONS = {"on": run_on, "off": run_off, "reboot": run_reboot, "status": run_status,
                  "monitor": run_monitor, "list": run_list,
                  "list-status": lambda job: run_list(job, with_state=True), **TEXT_ACTIONS}
CHECK_ACTIONS = {"on": run_check_on, "off": run_check_off, "reboot": refuse_check_reboot,
                 "status": run_check_status, "monitor": run_check_monitor, **TEXT_ACTIONS}
DELAYED = (run_off, run_reboot, run_check_off)        # the parameter delay holds
WITHOUT_DEVICE = (run_check_on, refuse_check_reboot)  # nothing is asked, no password needed

# Where a repeated spelling of the same action leads.
ACTION_ALIASES = {"meta-data": "metadata", "enable": "on", "disable": "off"}
Agent = namedtuple("Agent", "name device shortdesc longdesc params defaults required actions")

# The rows of params are kept by their names: PARAMS tells the order in which they are shown.
AGENTS = {agent.name: agent._replace(params=[row.name for row in agent.params]) for agent in (
    Agent("fence_kasa", "kasa", "Fence agent for TP-Link Kasa smart plugs and power strips",
          "fence_kasa switches the outlets of TP-Link Kasa plugs and power strips over their local "
          "protocol on TCP port 9999. It reports success only when the device itself has confirmed "
          "the new power state and, where the outlet has a power meter, the load is gone.",
          DEVICE_PARAMS + COMMON_PARAMS, {"ipport": str(DIALECTS["kasa"].port)}, ("ip",),
          DEVICE_ACTIONS),
    Agent("fence_http", "http", "Fence agent for Tasmota, ESPHome and any HTTP power switch",
          "fence_http switches the relays of Tasmota and ESPHome devices over their web servers, "
          "and any device that has one URL to switch on, one to switch off and one to tell the "
          "power state. It reports success only when the device itself has confirmed the new power "
          "state and, where a Tasmota meter measures always (SetOption21 1), the load is gone.",
          DEVICE_PARAMS + HTTP_PARAMS + STATUS_PARAMS + COMMON_PARAMS,
          {"ipport": str(HTTP_PORT)}, ("ip",), DEVICE_ACTIONS),
    Agent("fence_check", "", "Proof that a fenced node is dead",
          "fence_check switches nothing. Second in a fencing level, it lets a failover go on only "
          "when the node is proven dead: the fence device says OFF, at least one of its networks "
          "is silent over a path known to work, and nothing at all shows life or is in doubt.",
          CHECK_PARAMS + STATUS_PARAMS + COMMON_PARAMS, {"action": "status"},
          ("fence_method", "fence_ip"), CHECK_ACTIONS))}


def rows_of(agent):
    return tuple(row for row in PARAMS if row.name in agent.params)


def render_metadata(agent):
    """Return the agent's description as fence-agents' lib/metadata.rng wants it."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>',
             '<resource-agent name="%s" shortdesc="%s">\n<longdesc>%s</longdesc>' % (
                 agent.name, escape_xml(agent.shortdesc), escape_xml(agent.longdesc)),
             "<vendor-url></vendor-url>", "<parameters>"]
    for row in rows_of(agent):
        if row.name == "nodename":
            continue  # Pacemaker sets it; listed, administrators would
        lines += render_metadata_parameter(agent, row, row.name, row.aliases)
        for alias in row.aliases:
            lines += render_metadata_parameter(agent, row, alias, ())
    lines += ["</parameters>", "<actions>"]
    lines += ['<action name="%s"%s/>' % (action, ' automatic="0"' if action == "on" else "")
              for action in agent.actions]
    return "\n".join(lines + ["</actions>", "</resource-agent>"])


def render_metadata_parameter(agent, row, name, obsoletes):
    default = agent.defaults.get(row.name, row.default)
    marks = ' obsoletes="%s"' % obsoletes[0] if obsoletes else ""
    marks += ' deprecated="1"' if name != row.name else ""
    required = int(row.name in agent.required or row.name == "action")
    content = '<content type="%s"' % CONTENT_TYPES.get(row.kind, row.kind)
    content += ' default="%s"' % escape_xml(default) if default else ""
    lines = ['<parameter name="%s" unique="0" required="%d"%s>' % (name, required, marks),
             '<getopt mixed="%s"/>' % escape_xml(render_option(row))]
    options = ['<option value="%s"/>' % escape_xml(choice) for choice in row.choices]
    lines += [content + ">"] + options + ["</content>"] if options else [content + "/>"]
    return lines + ['<shortdesc lang="en">%s</shortdesc>' % escape_xml(row.help), "</parameter>"]


def render_option(row):
    long_form = "--" + row.name.replace("_", "-")
    if row.kind != BOOLEAN:
        long_form += "=[%s]" % row.name.upper()
    return "-%s, %s" % (row.letter, long_form) if row.letter else long_form


def render_help(agent):
    import textwrap
    lines = ["Usage: %s [options]" % agent.name,
             "Without options, parameters are read from stdin as lines name=value.", "",
             agent.longdesc, "", "Actions: " + ", ".join(agent.actions), "", "Options:"]
    lines = [piece for line in lines for piece in textwrap.wrap(line, 95) or [""]]
    for row in rows_of(agent):
        default = agent.defaults.get(row.name, row.default)
        text = row.help + (" (default: %s)" % default if default else "")
        if row.aliases:
            text += " (old name: %s)" % ", ".join(row.aliases)
        lines.append("  " + render_option(row))
        lines += textwrap.wrap(text, 95, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines + ["", "Example, as Pacemaker calls it:",
                              "  printf 'ip=10.20.20.202\\naction=status\\n' | %s" % agent.name])


def run_agent(agent, pairs, system, find_parameters=None):
    """Run one call of a fence agent; return its exit code."""
    # find_parameters(node, values, system): returns what the cluster knows about a node that the
    # call only names; None where that is not offered.
    values, unknown = collect_values(pairs, rows_of(agent))
    action = values.get("action", agent.defaults.get("action", "")).lower()
    action = ACTION_ALIASES.get(action, action)
    text = render_about(agent, action, values)
    if text:
        system.write(text)
        return EXIT_GOOD
    node = values.get("nodename") or values.get("plug")
    if find_parameters and node and not any(name in values for name in agent.required):
        found, strange = collect_values(find_parameters(node, values, system).items(),
                                        rows_of(agent))
        values, unknown = dict(found, **values), unknown + strange
    system.secrets.update(find_secrets(values))
    settings = build_settings(values, rows_of(agent), agent.defaults)
    system.verbose_level, system.quiet = settings.verbose_level, settings.quiet
    system.debug_file = settings.debug_file
    misspelt = [name for name in unknown if re.match("target|witness|direct", name)]
    if misspelt:
        # SAFETY: a network of the node that nobody looks at is one that nobody found alive.
        # Test: test_a_misspelt_network_is_refused
        raise UsageError("unknown parameter %s" % ", ".join(map(quote, misspelt)))
    if unknown:
        system.debug("ignored unknown parameters: %s" % ", ".join(sorted(unknown)))
    check_call(agent, action, settings)
    if not agent.device:
        settings = build_check_settings(settings)
    if action == "validate-all":
        check_password_script(settings)
        build_device(agent, settings, system)
        return EXIT_GOOD
    return run_device_action(agent, action, settings, system)


def render_about(agent, action, values):
    """Return what the call asks to be told about the agent itself, or "" when it asks to act."""
    # Metadata comes before the settings are looked at: it is asked for with nothing else.
    # SAFETY: version=1 in a cluster's configuration must not make every off a success.
    # Test: test_version_and_help_beside_an_action_are_refused
    texts = {"help": render_help, "version": lambda agent: __version__}
    asked = [name for name in texts if parse_boolean(values.get(name, "0"))]
    if asked and "action" in values:
        raise UsageError("%s and an action exclude each other" % asked[0])
    if asked:
        return texts[asked[0]](agent)
    return render_metadata(agent) if action in ("metadata", "manpage") else ""


def find_secrets(values):
    """Return the values that no log may hold; options of other agents are known by their names."""
    options = [item.partition("=") for item in split_list(values.get("fence_options", ""))]
    return {values[row.name] for row in PARAMS if row.secret and row.name in values} | {
        value for name, _, value in options
        if value and re.search("pass|secret|key|token|community|_kg", name)}


def check_call(agent, action, settings):
    """Raise UsageError unless the call names an action of the agent and what it needs."""
    if not action:
        raise UsageError("no action given (use -o status, or action=status on stdin)")
    if action not in agent.actions:
        raise UsageError("unsupported action %s (one of: %s)"
                         % (quote(action), ", ".join(agent.actions)))
    for name in agent.required:
        if not getattr(settings, name):
            row = PARAMS_BY_NAME[name]
            raise UsageError("no %s given (use %s, or %s= on stdin): %s"
                             % (name, render_option(row), name, row.help.lower()))


def check_password_script(settings):
    words = settings.password_script.split()
    if "\0" in settings.password_script:
        raise UsageError("password_script holds a NUL")
    if words and not (os.path.isabs(words[0]) and os.access(words[0], os.X_OK)):
        raise UsageError("password_script: %s is no path of a program" % quote(words[0]))


def read_password(settings, system):
    """Replace the password by what password_script prints, as fence-agents do (through sh)."""
    if not settings.password_script:
        return
    check_password_script(settings)
    code, out, _ = system.run(["/bin/sh", "-c", settings.password_script], "",
                              system.deadline(settings.login_timeout))
    if code != 0 or not out.strip():
        # What it said is not shown: a script that is traced tells the password there.
        raise UsageError("password_script ended with code %d and printed %s (try it by hand)"
                         % (code, "a password" if out.strip() else "nothing"))
    settings.password = out.rstrip()
    system.secrets.add(settings.password)


def build_device(agent, settings, system):
    """Return the agent's device; raises UsageError for parameters that it cannot work with."""
    device = open_device(agent.device or settings.fence_method, system, settings)
    if agent.device and device.kind == "url" and not settings.power_off_url:
        raise UsageError("no power_off_url given, and nothing else says how to switch off")
    return device


def run_device_action(agent, name, settings, system):
    """Run one action on the agent's device; write its answer and the event's log line."""
    action = agent.actions[name]
    if action not in WITHOUT_DEVICE:
        read_password(settings, system)
    settings.family = (socket.AF_INET if settings.inet4_only
                       else socket.AF_INET6 if settings.inet6_only else socket.AF_UNSPEC)
    device = build_device(agent, settings, system)
    if action in DELAYED:
        system.sleep(settings.delay)
    job = Job(system, device, settings)
    started = system.clock()
    code, text, failure = EXIT_BAD, "", None
    try:
        code, text = action(job)
    except FenceError as error:
        failure = error
    finally:
        device.close()
    target, where = settings.nodename or settings.plug or "-", device.describe()
    system.event("action=%s target=%s device=%s plug=%s ms=%d attempts=%d outcome=%s" % (
        name, target, where.replace(" ", "@"), settings.plug or "-",
        (system.clock() - started) * 1000, job.attempts,
        "failed: %s" % failure if failure else text.replace("\n", "; ") or "ok"))
    if failure:
        system.tell("%s %s: %s: %s" % (name, target, where, failure))
    elif text:
        system.write(text)
    return code


# The external plugin of cluster-glue: verbs in argv, parameters in the environment.
# Source: cluster-glue 1.0.12 lib/plugins/stonith/external.c; seen: `stonith -t external/kasa`.
PLUGIN_PARAMS = ("ip", "ipport", "plug", "device_mac", "power_timeout")
PLUGIN_ACTIONS = {"on": "on", "off": "off", "reset": "reboot", "status": "monitor"}


def run_plugin(agent, words, environment, system):
    """Run one call of the cluster-glue plugin dialect; return its exit code."""
    verb, host = (words + ["", ""])[:2]
    hosts = environment.get("hostlist", "").replace(",", " ").split()
    texts = {
        "getconfignames": "\n".join(("hostlist",) + PLUGIN_PARAMS), "gethosts": "\n".join(hosts),
        "getinfo-devid": agent.name, "getinfo-devname": agent.name,
        "getinfo-devdescr": agent.longdesc, "getinfo-devurl": "see fencetool --help",
        "getinfo-xml": render_plugin_parameters(agent)}
    if verb in texts:
        system.write(texts[verb])
        return EXIT_GOOD
    if verb not in PLUGIN_ACTIONS:
        raise UsageError("unsupported action %s of a cluster-glue plugin" % quote(verb) if verb
                         else "no action given (this is the cluster-glue plugin)")
    if [host] != hosts and verb != "status":
        raise UsageError("%s is not the one node of the hostlist (%s); nothing was switched"
                         % (quote(host), " ".join(hosts)))
    pairs = [(key, environment[key]) for key in PLUGIN_PARAMS + ("ipaddr",) if key in environment]
    return run_agent(agent, pairs + [("action", PLUGIN_ACTIONS[verb]), ("nodename", host)], system)


def render_plugin_parameters(agent):
    agent = agent._replace(required=("hostlist",) + agent.required)
    rows = [param("hostlist", STRING, "Nodes to be fenced")]
    rows += [row for row in rows_of(agent) if row.name in PLUGIN_PARAMS]
    lines = [line for row in rows for line in render_metadata_parameter(agent, row, row.name, ())
             if not line.startswith("<getopt")]
    return "\n".join(["<parameters>"] + lines + ["</parameters>"])


# PART 5: CLUSTER ==================================================================================

# SECTION: YAML ------------------------------------------------------------------------------------
# The part of YAML that cluster files use, and JSON. It never guesses: what two readers might take
# in two ways is a mistake that names the construct. Pure.
#
# Four classes share the work. YamlPlace holds the lines, and how far they have been read.
# YamlScalars parses single values, YamlFlow what stands in brackets, and YamlBlocks all that hangs
# together by its indentation. Each method parses what begins at the place, and leaves the place
# behind it. Patterns are text: re compiles them when a file is read, and an agent's start pays for
# none.

# kind: MAP ({key: YamlNode}), LIST, PLAIN (a scalar without quotes) or TEXT. foreign: the construct
# that is not read, like a tag; values that nobody needs may hold one.
YamlNode = namedtuple("YamlNode", "kind value line foreign")
MAP, LIST, PLAIN, TEXT = "map", "list", "plain", "text"

YAML_CHARACTERS = ("[\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd"
                   "\U00010000-\U0010ffff]*")
YAML_MARK = r"(---|\.\.\.)( |$)"
YAML_ENTRY = "-( |$)"
YAML_QUOTED = {"'": "'(?:[^']|'')*'", '"': r'(?s)"(?:[^"\\]|\\.)*"'}
YAML_ESCAPE = r"(?s)\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|(.))"
YAML_ESCAPES = {"\\": "\\", '"': '"', "/": "/", "n": "\n", "t": "\t", " ": " ", "\n": ""}
YAML_PROPERTY = r"(!!?[A-Za-z][A-Za-z0-9_/.:]*|&[A-Za-z0-9_-]+)(?: +|$)"
YAML_ALIAS = r"\*[A-Za-z0-9_-]+"

# Inside brackets a plain scalar may hold a colon only between two characters, and no "?".
YAML_FLOW_PLAIN = (r"(?:[^\t ,\[\]{}#&*!|>'\"%@`?:-]|-(?=[A-Za-z0-9.]))"
                   r"(?:[^\t ,\[\]{}#?:]|:(?=[^\t ,\[\]{}#?:])| +(?=[^\t ,\[\]{}#?:]))*")
YAML_INDICATORS = ",[]{}#&*!|>'\"%@`"
YAML_NULLS = ("", "~", "null", "Null", "NULL")
YAML_TRUTH = "no|No|NO|false|False|FALSE|off|Off|OFF|yes|Yes|YES|true|True|TRUE|on|On|ON"

# Plain scalars that are no text, or not in all versions of YAML; integers are the same in all.
YAML_AMBIGUOUS = (
    r"(?i)(?!(0|-?[1-9][0-9]*)$)([-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|[-+]?0(b[01_]+|o[0-7_]+|x[0-9A-F_]+)|[-+]?\.(inf|nan)|[yn=]|<<"
    r"|[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?)")


def parse_yaml(text):
    """Return the maps of all documents in a text, as YamlNodes; raise SyntaxMistake."""
    return YamlBlocks(YamlPlace(text)).parse_documents()


def is_null(node):
    return node.kind == PLAIN and node.value in YAML_NULLS and not node.foreign


def is_ambiguous(text):
    """Whether a plain scalar is a truth value, a number or a date, at least to some readers."""
    return bool(re.fullmatch(YAML_TRUTH, text) or re.fullmatch(YAML_AMBIGUOUS, text))


def build_map(members, line):
    foreign = "a map with a merge key (<<)" if "<<" in members else ""
    return YamlNode(MAP, members, line, foreign)


def match_at(pattern, text, at):
    return re.compile(pattern).match(text, at)


class YamlPlace:
    """The lines of one text, and the place up to which they have been read."""
    # lines: without their line breaks. row: the index of the next line. at: the index of the next
    # character in it; it counts inside brackets and quotes only. is_json: strings have its escapes.

    def __init__(self, text):
        self.is_json = text.lstrip(" \t\r\n")[:1] in ("{", "[")
        if self.is_json:
            require_json(text)
            text = text.replace("\t", " ")  # strict JSON has tabs between its words only
        self.lines = [line[:-1] if line.endswith("\r") else line for line in text.split("\n")]
        self.row = self.at = 0
        for row, line in enumerate(self.lines):
            if not re.fullmatch(YAML_CHARACTERS, line):
                self.fail("this line contains a control character or an unusual line break", row)

    @property
    def line(self):
        return self.lines[self.row]

    def fail(self, text, row=None):
        raise SyntaxMistake((self.row if row is None else row) + 1, text)

    def next_indent(self):
        """Go to the next line with content; return its indentation, -1 at a document's end."""
        while self.row < len(self.lines):
            line = self.line
            text = line.lstrip(" ")
            if text.startswith("\t"):
                self.fail("a tab in the indentation (use spaces)")
            if text and text[0] != "#":
                return -1 if re.match(YAML_MARK, line) else len(line) - len(text)
            self.row += 1
        return -1

    def next_in_flow(self):
        """Go to the next character inside brackets; return it."""
        while True:
            line = self.line
            rest = line[self.at:].lstrip(" ")
            self.at = len(line) - len(rest)
            is_comment = rest[:1] == "#" and (self.at == 0 or line[self.at - 1] == " ")
            if rest and not is_comment:
                return rest[0]
            is_last = self.row + 1 == len(self.lines)
            if is_last or re.match(YAML_MARK, self.lines[self.row + 1]):
                self.fail("this bracket or brace is not closed")
            self.row, self.at = self.row + 1, 0


class YamlScalars:
    """Single values: plain, in quotes, and the block scalars | and >."""
    # parent: the indentation of the value's key; lines that are indented by more continue a value.

    def __init__(self, place):
        self.place = place

    def parse_plain(self, text, parent):
        """Parse a scalar without quotes; of several lines it is foreign."""
        place = self.place
        if text[0] in YAML_INDICATORS or re.match("[-?:]( |$)", text):
            place.fail("a value must not begin with %s (put it in quotes)" % quote(text[0]))
        value, foreign, last = self.cut_plain(text), "", place.row
        place.row += 1
        while place.next_indent() > parent:
            skipped = "".join(place.lines[last + 1:place.row])
            if " #" in text or skipped.strip(" "):
                place.fail("this value goes on after a comment (put it on one line)")
            text, foreign, last = place.line, "a value over several lines", place.row
            self.cut_plain(text)
            place.row += 1
        return YamlNode(PLAIN, value, last + 1, foreign)

    def cut_plain(self, text):
        """Return a plain scalar without the comment and the blanks behind it."""
        text = re.split(" +#", text)[0].rstrip(" ")
        if "\t" in text or re.search(":( |$)", text):
            self.place.fail("a value must not contain a tab, or a colon with a space after it (put "
                            "it in quotes)")
        return text

    def parse_quoted(self):
        place = self.place
        pattern = YAML_QUOTED[place.line[place.at]]
        match = match_at(pattern, place.line, place.at)
        if match:
            place.at = match.end()
            return YamlNode(TEXT, self.unquote(match.group(0)), place.row + 1, "")
        rest = [place.line[place.at:]] + place.lines[place.row + 1:]
        match = re.match(pattern, "\n".join(rest))
        rows = match.group(0).split("\n") if match else []
        if not match or any(re.match(YAML_MARK, row) for row in rows[1:]):
            place.fail("this quote is not closed")
        self.unquote(match.group(0))
        place.row, place.at = place.row + len(rows) - 1, len(rows[-1])
        return YamlNode(TEXT, "", place.row + 1, "a quoted value over several lines")

    def unquote(self, token):
        """Return the text of a quoted scalar."""
        if self.place.is_json:
            return json.loads(token)
        if token[0] == "'":
            return token[1:-1].replace("''", "'")
        return re.sub(YAML_ESCAPE, self.parse_escape, token[1:-1])

    def parse_escape(self, match):
        digits = match.group(1) or match.group(2)
        if digits and not 0xd800 <= int(digits, 16) <= 0xdfff:
            return chr(int(digits, 16))
        if match.group(3) not in YAML_ESCAPES:
            self.place.fail(r"the escape %s is not known in double quotes (a backslash is \\)"
                            % quote(match.group(0)))
        return YAML_ESCAPES[match.group(3)]

    def parse_block_scalar(self, header, parent):
        """Parse a | or > scalar; without its line break, and of one line, it is a usable value."""
        place = self.place
        match = re.fullmatch(r"[|>]([+-]?)(?: +#.*| *)", header)
        if not match:
            place.fail("a block scalar must begin with |, |-, > or >-, and nothing after it")
        rows, indent = [], None
        place.row += 1
        for line in place.lines[place.row:]:
            width = len(line) - len(line.lstrip(" "))
            if width < len(line):
                if indent is None:
                    indent = max(width, parent + 1)
                if width < indent:
                    break
            begins_with_blanks = indent is None and width > parent + 1
            if begins_with_blanks or re.match(YAML_MARK, line):
                place.fail("a block scalar must not begin with a line of spaces, or go on to a "
                           "document mark")
            rows.append("" if indent is None else line[indent:])
        place.row += len(rows)
        text = "\n".join(rows).rstrip("\n")
        is_one_line = match.group(1) == "-" and "\n" not in text
        return YamlNode(TEXT, text, place.row, "" if is_one_line else (
            "a block scalar with a line break (|- and one line have none)"))


class YamlFlow:
    """Values inside brackets and braces, over as many lines as they take."""

    def __init__(self, place, scalars):
        self.place = place
        self.scalars = scalars

    def parse_value(self):
        """Parse brackets with all inside, a quoted or a plain scalar, or an alias."""
        place = self.place
        first, row = place.next_in_flow(), place.row
        if first in YAML_QUOTED:
            return self.scalars.parse_quoted()
        if first in "[{":
            place.at += 1
            return self.parse_map() if first == "{" else self.parse_list()
        match = match_at(YAML_ALIAS if first == "*" else YAML_FLOW_PLAIN, place.line, place.at)
        if not match:
            place.fail("inside brackets a value must not begin with %s (put it in quotes)"
                       % quote(first))
        place.at = match.end()
        return YamlNode(PLAIN, match.group(0), row + 1, "an alias (*)" if first == "*" else "")

    def parse_list(self):
        first, entries = self.place.row + 1, []
        while self.place.next_in_flow() != "]":
            entries.append(self.parse_value())
            self.end_entry("]")
        self.place.at += 1
        return YamlNode(LIST, entries, first, "")

    def parse_map(self):
        place = self.place
        first, members = place.row + 1, {}
        while place.next_in_flow() != "}":
            row = place.row
            key = self.parse_key(members)
            members[key] = YamlNode(PLAIN, "", row + 1, "")
            if place.next_in_flow() not in ",}":
                members[key] = self.parse_value()._replace(line=row + 1)
            self.end_entry("}")
        place.at += 1
        return build_map(members, first)

    def parse_key(self, members):
        """Return the key at the place, and go behind its colon."""
        place, row = self.place, self.place.row
        if place.next_in_flow() in "[{*":
            place.fail("a key must not begin with a bracket (put a Jinja expression in quotes)")
        key = self.parse_value().value
        if place.next_in_flow() != ":" or place.row != row:
            place.fail("inside braces the key %s has no value" % quote(key), row)
        if key in members:
            place.fail("inside braces the key %s comes twice" % quote(key), row)
        place.at += 1
        return key

    def end_entry(self, bracket):
        found = self.place.next_in_flow()
        if found == ",":
            self.place.at += 1
        elif found != bracket:
            self.place.fail("a comma or %s is missing before %s" % (bracket, quote(found)))


class YamlBlocks:
    """Documents, and the maps and lists in them that hang together by their indentation."""
    # list_at: the indentation of a value's key, where a list may stand too.

    def __init__(self, place):
        self.place = place
        self.scalars = YamlScalars(place)
        self.flow = YamlFlow(place, self.scalars)

    def parse_documents(self):
        """Return the maps of all documents."""
        place, documents = self.place, []
        while True:
            if place.next_indent() >= 0:
                documents.append(self.parse_document())
            if place.row == len(place.lines):
                return documents
            if not re.fullmatch("--- *(?: #.*)?", place.line):
                place.fail("the only document mark that may stand here is ---, and nothing after "
                           "it")
            place.row += 1

    def parse_document(self):
        place = self.place
        try:
            root = self.parse_block(0)
        except RecursionError:
            place.fail("values are nested too deep")
        if root.kind != MAP or root.foreign or place.next_indent() >= 0:
            place.fail("not a map: the file must consist of keys (name: value)",
                       min(place.row, root.line - 1))
        return root

    def parse_block(self, least, list_at=None):
        """Parse the value that begins on the next line, indented by `least`, else it is empty."""
        place = self.place
        row, indent = place.row, place.next_indent()
        is_list = indent >= 0 and match_at(YAML_ENTRY, place.line, indent)
        if indent < least and not (is_list and indent == list_at):
            return YamlNode(PLAIN, "", row + 1, "")
        if is_list:
            return self.parse_list(indent)
        if self.split_key(place.line[indent:]):
            return self.parse_map(indent)
        return self.parse_value(indent, least - 1)

    def parse_list(self, column):
        place = self.place
        first, entries = place.row + 1, []
        while place.next_indent() == column and match_at(YAML_ENTRY, place.line, column):
            row, line = place.row, place.line
            # With the dash blanked, the entry is a block of its own that may begin on this line.
            place.lines[row] = line[:column] + " " + line[column + 1:]
            entries.append(self.parse_block(column + 1)._replace(line=row + 1))
        if place.next_indent() > column:
            place.fail("this indentation fits neither the list nor its entries")
        return YamlNode(LIST, entries, first, "")

    def parse_map(self, column):
        place = self.place
        first, members = place.row + 1, {}
        while place.next_indent() == column:
            row, found = place.row, self.split_key(place.line[column:])
            if not found:
                place.fail("not a key (name: value)")
            key, length = found
            if key in members:
                place.fail("the key %s comes twice" % quote(key))
            node = self.parse_member(column, column + length)
            members[key] = node._replace(line=row + 1)
        if place.next_indent() > column:
            place.fail("this indentation fits no key above it")
        return build_map(members, first)

    def parse_member(self, column, behind_colon):
        """Parse the value of a key: on its own line, or on those below it."""
        place = self.place
        text = place.line[behind_colon:].lstrip(" ")
        if text and text[0] != "#":
            return self.parse_value(len(place.line) - len(text), column, column)
        place.row += 1
        return self.parse_block(column + 1, column)

    def split_key(self, text):
        """Return (key, length up to behind its colon) of "key: ...", else None."""
        if text[0] in YAML_QUOTED:
            match = re.match(YAML_QUOTED[text[0]], text)
            colon = match and match_at(" *:(?= |$)", text, match.end())
            return (self.scalars.unquote(match.group(0)), colon.end()) if colon else None
        if re.match("[?:]( |$)", text):
            self.place.fail("a complex key (a line that begins with ? or :) is not supported")
        match = re.match("(.*?) *:(?= |$)", text)
        is_value = text[0] in YAML_INDICATORS or re.match(YAML_ENTRY, text)
        if not match or is_value or " #" in match.group(0):
            return None
        return self.scalars.cut_plain(match.group(1)), match.end()

    def parse_value(self, at, parent, list_at=None):
        """Parse the value at this column; lines indented by more than `parent` may continue it."""
        place, row = self.place, self.place.row
        foreign, at = self.skip_properties(at)
        text = place.line[at:]
        if foreign and (not text or text[0] == "#"):
            place.row += 1
            node = self.parse_block(parent + 1, list_at)
        elif text[0] in "|>":
            node = self.scalars.parse_block_scalar(text, parent)
        elif text[0] in "'\"[{" or (text[0] == "*" and not foreign):
            node = self.parse_flow(at)
        else:
            node = self.scalars.parse_plain(text, parent)
        return node._replace(line=row + 1, foreign=foreign or node.foreign)

    def skip_properties(self, at):
        """Return the tag and the anchor at this column, and the column behind them."""
        found = ""
        match = match_at(YAML_PROPERTY, self.place.line, at)
        while match and match.group(1)[0] not in found:
            found, at = found + match.group(1), match.end()
            match = match_at(YAML_PROPERTY, self.place.line, at)
        return found, at

    def parse_flow(self, at):
        """Parse brackets or a quoted scalar that are a whole value, and go to the next line."""
        place = self.place
        place.at = at
        node = self.flow.parse_value()
        if not re.fullmatch(" *| +#.*", place.line[place.at:]):
            place.fail("unexpected text after the end of the value")
        place.row += 1
        return node


def require_json(text):
    """Raise SyntaxMistake unless the text is strict JSON."""
    def refuse(name):
        raise ValueError("%s is not a number" % name)

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SyntaxMistake(getattr(error, "lineno", 1), "not JSON: %s" % error) from None


# SECTION: CLUSTER FILE ----------------------------------------------------------------------------
# From the YAML of a cluster file, and of the host_vars beside it, to a Cluster. Pure: it is given
# texts.
#
# A key of the file is one row: what it holds, and the parameters that it becomes. ClusterReader
# parses each value by its row, as text that an agent takes; what is wrong goes with its line into
# the Report, and reading goes on, so that one run tells all. Which keys a method takes and needs is
# told by its row of DIALECTS, the networks by those of NETWORKS: nothing here, nor in the sections
# below, names a family of plugs.

# What a key of the cluster file holds, beside the kinds of PARAMETERS. Some hold many values: of
# which kind of YamlNode those are, and how a message tells it.
NODES, ADDRESS, PORT, WHOLE_SECONDS = "nodes", "address", "port", "whole seconds"
NAMES, NAMED_ADDRESSES, OPTIONS = "names", "named addresses", "options"
COLLECTIONS = {NAMES: (LIST, "a list [a, b]"), NAMED_ADDRESSES: (MAP, "a map {name: address}"),
               OPTIONS: (MAP, "a map {name: value}")}

# power: the parameter of the power agent; verify: that of fence_check, or FENCE_OPTIONS, through
# which the power agent's goes.
ClusterKey = namedtuple("ClusterKey", "name kind power verify default")
FENCE_OPTIONS = "fence_options"


def cluster_key(name, kind=STRING, power="", verify="", default=""):
    return ClusterKey(name=name, kind=kind, power=power, verify=verify, default=default)


# The networks that every cluster may have, by the key that holds a node's address in them, and by
# the parameter of fence_check. has_devices: the fence devices are in it. All others are in
# client_ips, and go into target_ips.
ClusterNetwork = namedtuple("ClusterNetwork", "key name parameter has_devices")
NETWORKS = (ClusterNetwork("mgmt_ip", "mgmt", "target_mgmt_ip", True),
            ClusterNetwork("storage_ip", "storage", "target_storage_ip", False))
OTHER_NETWORKS_PARAMETER = "target_ips"
CLIENT_NETWORKS = "client"  # as the file calls all others together
NETWORK_KEYS = tuple(cluster_key(network.key, ADDRESS) for network in NETWORKS) + (
    cluster_key("client_ips", NAMED_ADDRESSES),)

CLUSTER_KEYS = (
    cluster_key("stonith_nodes", NODES),
    cluster_key("stonith_fence_verify", BOOLEAN, default="1"),
    cluster_key("stonith_verify_wait", WHOLE_SECONDS, default="10"),
    cluster_key("stonith_quorum_device", BOOLEAN, default="0"),
    cluster_key("stonith_direct_networks", NAMES, default=()),
    cluster_key("stonith_witness_ips", NAMED_ADDRESSES, default={}))
NODE_KEYS = NETWORK_KEYS + (
    cluster_key("method"),
    cluster_key("agent"),
    cluster_key("ip", ADDRESS, power="ip", verify="fence_ip"),
    cluster_key("port", PORT, power="ipport", verify="fence_ipport"),
    cluster_key("user", power="username", verify="fence_user"),
    cluster_key("password", power="password", verify="password"),
    cluster_key("password_script", power="password_script", verify="password_script"),
    cluster_key("mac", MAC, power="device_mac", verify="device_mac"),
    cluster_key("outlet", power="plug", verify="fence_plug"),
    cluster_key("switch_name", power="switch_name", verify="switch_name"),
    cluster_key("ssl", BOOLEAN, power="ssl", verify=FENCE_OPTIONS),
    cluster_key("ssl_insecure", BOOLEAN, power="ssl_insecure", verify=FENCE_OPTIONS),
    cluster_key("power_on_url", power="power_on_url"),
    cluster_key("power_off_url", power="power_off_url"),
    cluster_key("status_url", power="status_url", verify="status_url"),
    cluster_key("status_on_regex", power="status_on_regex", verify="status_on_regex"),
    cluster_key("status_off_regex", power="status_off_regex", verify="status_off_regex"),
    cluster_key("http_method", power="http_method"),
    cluster_key("power_meter", power="power_meter", verify="power_meter"),
    cluster_key("power_on", BOOLEAN),
    cluster_key("delay", WHOLE_SECONDS),
    cluster_key("off_timeout", WHOLE_SECONDS),
    cluster_key("options", OPTIONS))
# Keys that some methods take and others do not.
SPECIAL_KEYS = {key for dialect in DIALECTS.values() for key in dialect.keys}
OUTLET_KEYS = ("outlet", "switch_name", "power_off_url")  # what tells the outlets of a device apart
STAND_INS = {"password": "password_script"}  # where the second is given, the first is not needed
NAMED_AGENT = "agent"  # the method of a node whose agent the file names
NO_DEVICE = "none"     # the method of a node that nothing can fence
METHODS = tuple(DIALECTS_BY_METHOD) + (NO_DEVICE,)
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,200}"  # of a node, a network or an option

# Pacemaker 2.1.5 writes these characters without their escapes, and loses them (cibadmin shows).
DAMAGED_VALUE = "[^\x00-\x7f].*[&<>\"']"

# networks: {how a network's name is compared: its name}. values and places: {key: value} and {key:
# (file, line)}.
Cluster = namedtuple("Cluster", "nodes values places networks")

# dialect: a row of DIALECTS, None for a node without a fence device. values, places: of the node's
# keys that are given; place: of the node itself. networks: {name: own address}.
ClusterNode = namedtuple("ClusterNode", "name dialect values place places networks")
Mistake = namedtuple("Mistake", "file line is_warning text")


class Report:
    """Collects the mistakes in the files of a cluster. A place is (file, line)."""

    def __init__(self):
        self.mistakes = set()

    def error(self, place, text):
        self.mistakes.add(Mistake(place[0], place[1], False, text))

    def warn(self, place, text):
        self.mistakes.add(Mistake(place[0], place[1], True, text))

    def has_errors(self):
        return any(not mistake.is_warning for mistake in self.mistakes)


def render_mistake(mistake):
    return "%s:%d: %s%s" % (mistake.file, mistake.line, "warning: " if mistake.is_warning else "",
                            mistake.text)


def parse_members(file, data, report):
    """Return {key: YamlNode} of all documents in the bytes of a file."""
    members = {}
    try:
        for document in parse_yaml(data.decode("utf-8-sig")):
            for key in set(members) & set(document.value):
                report.error((file, document.value[key].line),
                             "the key %s comes twice" % quote(key))
            members.update(document.value)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.error((file, line), "this line is not UTF-8")
    except SyntaxMistake as mistake:
        report.error((file, mistake.line), str(mistake))
    return members


class ClusterReader:
    """Turns the members of one file after the other into values, by the rows of their keys."""
    # file: the name of the file whose members are being parsed.

    def __init__(self, report):
        self.report = report
        self.file = ""

    def error(self, node, text):
        self.report.error((self.file, node.line), text)

    def build_cluster(self, file, members, hosts):
        """Return the Cluster of a file's members; None without nodes."""
        self.file = file
        entries = members.get("stonith_nodes")
        if not entries:
            self.report.error((file, 1), "stonith_nodes is missing: it must be a map of the nodes "
                              "and their fence devices")
            return None
        if entries.kind != MAP or entries.foreign:
            self.error(entries, "stonith_nodes must be a map of the nodes and their fence devices, "
                       "not %s" % describe_node(entries))
            return None
        own = {key: node for key, node in members.items() if key.startswith("stonith_")}
        values = {row.name: row.default for row in CLUSTER_KEYS}
        values.update(self.parse_keys(own, CLUSTER_KEYS))
        places = {key: (file, node.line) for key, node in own.items()}
        nodes = {name: self.parse_node(name, entry) for name, entry in entries.value.items()}
        for name, host_file, host_members in hosts:
            self.file = host_file
            self.add_host(nodes, name, host_members)
        for node in nodes.values():
            node.networks.update(collect_networks(node.values))
        networks = {network_key(name): name for node in nodes.values() for name in node.networks}
        return Cluster(tuple(nodes.values()), values, places, networks)

    def parse_node(self, name, entry):
        place = (self.file, entry.line)
        if not re.fullmatch(NAME, name) or name in YAML_NULLS or is_ambiguous(name):
            self.error(entry, "%s cannot be the name of a node: use letters, digits, '.', '_' and "
                       "'-', and no word that YAML takes for something else" % quote(name))
        if entry.kind != MAP or entry.foreign:
            self.error(entry, "node %s must be a map of keys (method: ...), not %s"
                       % (quote(name), describe_node(entry)))
            return ClusterNode(name=name, dialect=None, values={"options": {}}, place=place,
                               places={}, networks={})
        values = {"options": {}, **self.parse_keys(entry.value, NODE_KEYS)}
        places = {key: (self.file, node.line) for key, node in entry.value.items()}
        method = values.get("method", NAMED_AGENT if "agent" in values else "")
        wrong = find_wrong_method(method, values)
        if wrong:
            self.report.error(places.get("method", place), "%s %s" % (name, wrong))
        return ClusterNode(name=name, dialect=DIALECTS_BY_METHOD.get(method), values=values,
                           place=place, places=places, networks={})

    def add_host(self, nodes, name, members):
        """Add the networks of a host_vars file; a host that has some is a node of the cluster."""
        networks = {row.name: members[row.name] for row in NETWORK_KEYS if row.name in members}
        if networks and name not in nodes:
            without_device = {"method": YamlNode(TEXT, NO_DEVICE, 1, "")}
            nodes[name] = self.parse_node(name, YamlNode(MAP, without_device, 1, ""))
        for key, value in self.parse_keys(networks, NETWORK_KEYS).items():
            node, place = nodes[name], (self.file, networks[key].line)
            node.places.setdefault(key, place)
            if node.values.setdefault(key, value) != value:
                self.report.error(place, "%s of %s differs from the one at %s:%d (remove the wrong "
                                  "one)" % ((key, name) + node.places[key]))

    def parse_keys(self, members, rows):
        """Return {key: value} of what the members hold; an empty value counts as not given."""
        values, known = {}, {row.name: row for row in rows}
        for key, node in members.items():
            if key not in known:
                self.error(node, "unknown key %s%s" % (quote(key), suggest(key, known)))
            elif known[key].kind in COLLECTIONS:
                values[key] = self.parse_collection(known[key], node)
            elif known[key].kind != NODES:
                values[key] = self.parse_single(known[key], node)
        return {key: value for key, value in values.items() if value}

    def parse_single(self, row, node):
        """Return the text of one value; empty after a mistake."""
        try:
            return parse_text(row, node)
        except UsageError as error:
            self.error(node, "%s: %s" % (row.name, error))
            return ""

    def parse_collection(self, row, node):
        """Return a tuple of texts or {name: text}; empty after a mistake."""
        if is_null(node):
            return ()
        wanted, written = COLLECTIONS[row.kind]
        if node.kind != wanted or node.foreign:
            self.error(node, "%s: this must be %s, not %s"
                       % (row.name, written, describe_node(node)))
            return ()
        if node.kind == LIST:
            return tuple(self.parse_single(cluster_key(row.name), entry) for entry in node.value)
        kind = ADDRESS if row.kind == NAMED_ADDRESSES else STRING
        values = {}
        for name, entry in node.value.items():
            self.check_name(row, name, entry)
            # The parameters of our agents are known, whoever they are options of.
            values[name] = self.parse_single(cluster_key(row.name, kind, power=name), entry)
        return {name: text for name, text in values.items() if text}

    def check_name(self, row, name, entry):
        """Report a name in a map that nothing can have, or that another key's network has."""
        if not re.fullmatch(NAME, name):
            self.error(entry, "%s: %s is not a name (use letters, digits, '.', '_' and '-')"
                       % (row.name, quote(name)))
        owner = next((network.key for network in NETWORKS
                      if network_key(network.name) == network_key(name)), "")
        if owner and row in NETWORK_KEYS:
            self.error(entry, "%s: give the address in the network %s as %s"
                       % (row.name, quote(name), owner))


def suggest(word, known):
    import difflib
    near = difflib.get_close_matches(word, known, 1)
    return ", did you mean %s?" % near[0] if near else ""


def find_wrong_method(method, values):
    """Return what is wrong with the method of a node, "" where nothing is."""
    if not method:
        return "has no method: give it one of %s; or agent: fence_xyz" % ", ".join(METHODS)
    if method not in METHODS:
        return "has the unknown method %s%s (known: %s; or give agent: fence_xyz instead)" % (
            quote(method), suggest(method, METHODS), ", ".join(METHODS))
    if method != NAMED_AGENT and "agent" in values:
        return "has the method %s and an agent: remove one of them" % quote(method)
    return ""


def collect_networks(values):
    """Return {name of a network: own address} from the values of a node."""
    networks = {network.name: values[network.key] for network in NETWORKS if network.key in values}
    return {**networks, **values.get("client_ips", {})}


def describe_node(node):
    if is_null(node):
        return "an empty value"
    return node.foreign or {MAP: "a map", LIST: "a list"}.get(node.kind, "a single value")


def parse_text(row, node):
    """Return the text of one value as it is handed on; raise UsageError with what is wrong."""
    # No message here shows the value: it may be a password.
    text = node.value
    if node.foreign or node.kind in (MAP, LIST):
        raise UsageError("this must be a single value, not %s" % describe_node(node))
    if is_null(node):
        return ""
    is_truth = row.kind == BOOLEAN and re.fullmatch(YAML_TRUTH, text)
    if node.kind == PLAIN and is_ambiguous(text) and not is_truth:
        raise UsageError("YAML may take this for a number, a date or a truth value (put it in "
                         "quotes)")
    if re.search(r"\{[{%#]", text):
        raise UsageError("this is a Jinja expression, which only Ansible can fill in (write the "
                         "value itself)")
    if "\t" in text or not re.fullmatch(YAML_CHARACTERS, text):
        raise UsageError("this contains a line break or a control character (write it on one line)")
    if re.search(DAMAGED_VALUE, text):
        raise UsageError("Pacemaker 2.1 damages a value that has one of & < > \" ' after a "
                         "non-ASCII character (use other characters, or password_script)")
    return parse_by_kind(row, text) if text else ""


def parse_by_kind(row, text):
    """Return a value in its usual form, as text; raise UsageError if it has none."""
    if row.kind in KEY_PARSERS:
        return KEY_PARSERS[row.kind](text)
    param = PARAMS_BY_NAME.get(row.power)
    if param:
        PARSERS[param.kind](text)
        if param.choices and text not in param.choices:
            raise UsageError("%s is not one of %s" % (quote(text), ", ".join(param.choices)))
    return text


def parse_machine_address(text):
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    usual = socket.inet_ntop(family, socket.inet_pton(family, check_address(text)))
    if re.match(r"(0|127|22[4-9]|2[345]\d)\.|::1?$|::ffff:|ff", usual):
        raise UsageError("%s is not the address of one machine in a network" % quote(text))
    return usual


def parse_port(text):
    if not re.fullmatch("[1-9][0-9]{0,4}", text) or int(text) > 65535:
        raise UsageError("%s is not a port number (1 to 65535)" % quote(text))
    return text


def parse_whole_seconds(text):
    if parse_seconds(text) % 1:
        raise UsageError("%s is not a whole number of seconds" % quote(text))
    return "%d" % parse_seconds(text)


def parse_switch(text):
    return "1" if parse_boolean(text) else "0"


def parse_usual_mac(text):
    return render_mac(parse_mac(text))


KEY_PARSERS = {ADDRESS: parse_machine_address, PORT: parse_port, BOOLEAN: parse_switch,
               WHOLE_SECONDS: parse_whole_seconds, MAC: parse_usual_mac}


# What the other sections ask about a Cluster.

def find_node(cluster, name):
    for node in cluster.nodes:
        if node.name == name:
            return node
    raise UsageError("no node %s (there are: %s)" % (
        quote(name), ", ".join(node.name for node in cluster.nodes)))


def find_networks(cluster, name):
    """Return the networks that a name in the file means: one, or all that clients use."""
    if network_key(name) in cluster.networks:
        return [cluster.networks[network_key(name)]]
    clients = set(cluster.networks.values()) - {network.name for network in NETWORKS}
    return sorted(clients) if name.lower() == CLIENT_NETWORKS else []


def find_direct_networks(cluster):
    return {network for name in cluster.values["stonith_direct_networks"]
            for network in find_networks(cluster, name)}


def find_verifiers(cluster, node):
    """Return the nodes that may verify that this one is dead: they see all its networks."""
    return [other for other in cluster.nodes
            if other is not node and node.networks.keys() <= other.networks.keys()]


def nodes_with_device(cluster):
    return [node for node in cluster.nodes if node.dialect]


def is_verified(cluster):
    return cluster.values["stonith_fence_verify"] == "1"


def has_own_agent(node):
    """Whether one of the agents in this file switches the device: its time limits are known."""
    return node.dialect.agent in AGENTS


# SECTION: PLAN ------------------------------------------------------------------------------------
# From a Cluster to one Configuration: what the cluster should hold. Pure.
#
# Each node with a fence device gets a power device, a verifier behind it, one level of the two, and
# bans that say where each of them must not run. How long each may take is decided first, for a node
# at a time (plan_times), because each limit follows from another one.

OFF_TIMEOUT_SECONDS = 60   # that Pacemaker gives a power device, unless off_timeout says another
VERIFY_SPARE_SECONDS = 45  # that Pacemaker gives a verifier beyond the agent's own limit
LOOK_SECONDS = 20          # that fence_check may need after verify_wait
SPARE_SECONDS = 5          # between the limit of one of our agents and what Pacemaker gives
RACE_DELAY_SECONDS = 10    # head start in a fence race: slow plugs take seconds to obey
LIBRARY_SECONDS = "20"     # power_timeout of installed agents, by default of fence-agents' library
MONITOR_TIMEOUT_SECONDS = 40  # or more, see monitor_timeout
POWER_MONITOR_SECONDS, VERIFIER_MONITOR_SECONDS = 60, 300  # from one monitor to the next
EXCHANGE_LIMITS = ("login_timeout", "shell_timeout")  # as slow as the device
TIME_LIMITS = EXCHANGE_LIMITS + ("power_timeout",)    # all that an action of our agents may take
MAX_NODE_WITNESSES = 3  # in a network: each of them is asked at every look

# A fence device: options {name: value}, and its monitor's interval in seconds.
Primitive = namedtuple("Primitive", "id agent options interval")

# devices: ids of the primitives of level 1 of a node, in the order of their execution.
Level = namedtuple("Level", "node devices")

# nodes: names of the nodes that must not run a device.
Ban = namedtuple("Ban", "device nodes is_verifier")
Configuration = namedtuple("Configuration", "nodes primitives levels bans properties")

# Marks in the CIB what this tool made: a meta attribute, which pcs, crmsh and Pacemaker keep and no
# agent sees. Names alone would not do: a person may call a device like we do.
OWNER = ("managed-by", "fencetool")
DEVICE_PREFIX, VERIFIER_PREFIX = "fence-", "fence-verify-"  # of ids, before a node's name


def build_configuration(cluster):
    primitives, levels, bans = [], [], []
    for node in nodes_with_device(cluster):
        times = plan_times(cluster, node)
        devices = [build_power_device(node, times)]
        # Allowed everywhere else: the power-on after a reboot must not depend on which node is DC.
        bans.append(Ban(devices[0].id, (node.name,), is_verifier=False))
        if is_verified(cluster):
            # SAFETY: last in the level, so that it looks at what the power device has done.
            # Test: test_the_verifier_is_the_last_device_of_its_level
            devices.append(build_verifier(cluster, node, times))
            able = {other.name for other in find_verifiers(cluster, node)}
            unable = [other.name for other in cluster.nodes if other.name not in able]
            bans.append(Ban(devices[1].id, tuple(unable), is_verifier=True))
        primitives += devices
        levels.append(Level(node.name, tuple(device.id for device in devices)))
    require_different_bans(bans)
    longest = max(int(device.options["pcmk_off_timeout"]) for device in primitives)
    return Configuration(
        nodes=tuple(node.name for node in cluster.nodes), primitives=tuple(primitives),
        levels=tuple(levels), bans=tuple(bans),
        properties=(("stonith-enabled", "true"), ("stonith-timeout", "%ds" % longest)))


def require_different_bans(bans):
    ids = sorted(ban_id(ban, node) for ban in bans for node in ban.nodes)
    for one, other in zip(ids, ids[1:]):
        if one == other:
            raise UsageError("two location constraints would have the id %s: rename a node" % one)


def ban_id(ban, node):
    return "location-%s-%s--INFINITY" % (ban.device, node)  # as pcs names it


def plan_times(cluster, node):
    """Return the times of a node's devices, by their names; all but the limits in seconds."""
    # delay: that fencing this node waits. power_given: that Pacemaker gives the power device for
    # one action, of which it needs power_needed. power_limits: {parameter: seconds as text} of its
    # agent, where it is one of ours, that differ from the defaults. verify_*: of the verifier.
    delay = find_delay(cluster, node)
    # A delay comes on top: before 2.1.6, Pacemaker's own timers do not count it.
    power_given = int(node.values.get("off_timeout", OFF_TIMEOUT_SECONDS + delay))
    if has_own_agent(node):
        power_limits = find_power_limits(node, power_given - delay)
        power_needed = agent_seconds(power_limits)
    else:
        power_limits = {}
        power_needed = parse_seconds(node.values["options"].get("power_timeout", LIBRARY_SECONDS))
    verify_limits = find_verify_limits(cluster, node)
    verify_needed = agent_seconds(verify_limits)
    return types.SimpleNamespace(
        delay=delay, power_given=power_given, power_needed=power_needed + delay,
        power_limits=power_limits, verify_needed=verify_needed, verify_limits=verify_limits,
        verify_given=int(node.values.get("off_timeout", verify_needed + VERIFY_SPARE_SECONDS)))


def could_race(cluster):
    """Whether two nodes could fence each other at once: nothing else decides who survives."""
    return (len(cluster.nodes) == 2 and all(node.dialect for node in cluster.nodes)
            and cluster.values["stonith_quorum_device"] == "0")


def has_delay(cluster):
    return any("delay" in node.values for node in cluster.nodes)


def find_delay(cluster, node):
    """Return the seconds that fencing this node waits; two nodes that race need a winner."""
    if could_race(cluster) and not has_delay(cluster):
        return RACE_DELAY_SECONDS if node is cluster.nodes[0] else 0
    return int(node.values.get("delay", "0"))


def find_power_limits(node, seconds):
    """Return the limits of one of our agents that has this many seconds for an action."""
    options = node.values["options"]
    limits = {name: options[name] for name in TIME_LIMITS if name in options}
    if "off_timeout" in node.values and "power_timeout" not in limits:
        # What off_timeout adds is time for the device to confirm.
        others = agent_seconds(dict(limits, power_timeout="0")) + SPARE_SECONDS
        limits["power_timeout"] = "%d" % max(1, seconds - others)
    return limits


def find_verify_limits(cluster, node):
    """Return those of fence_check, which asks the same device: a slow one is slow for both."""
    options = node.values["options"]
    limits = {name: options[name] for name in EXCHANGE_LIMITS
              if parse_seconds(options.get(name, "0"))}  # other agents take 0 for no limit
    needed = int(cluster.values["stonith_verify_wait"]) + LOOK_SECONDS
    if needed > parse_seconds(PARAMS_BY_NAME["power_timeout"].default):
        limits["power_timeout"] = str(needed)
    return limits


def agent_seconds(limits):
    """Return how long an action of our agents may take with these limits (name: text)."""
    return sum(parse_seconds(limits.get(key, PARAMS_BY_NAME[key].default)) for key in TIME_LIMITS)


def monitor_timeout(device):
    """Return the seconds that a monitor may take: more than a connection and two slow answers."""
    answer = device.options.get("shell_timeout", PARAMS_BY_NAME["shell_timeout"].default)
    needed = agent_seconds(dict(device.options, power_timeout=answer))
    return max(MONITOR_TIMEOUT_SECONDS, int(needed) + SPARE_SECONDS)


def collect_options(node, column):
    """Return {parameter: value} from the node's keys, by a column of NODE_KEYS."""
    options = {}
    for row in NODE_KEYS:
        parameter = getattr(row, column)
        if parameter not in ("", FENCE_OPTIONS) and row.name in node.values:
            options[parameter] = node.values[row.name]
    for name, stand_in in STAND_INS.items():
        if stand_in in options:
            options.pop(name, None)
    return options


def build_power_device(node, times):
    options = dict(node.dialect.fixed, **collect_options(node, "power"))
    options.update(node.values["options"], **times.power_limits)
    options.update(build_host_options(node.name, options.pop("plug", "")))
    for action in ("off", "on", "reboot"):
        options["pcmk_%s_timeout" % action] = str(times.power_given)
    if node.values.get("power_on", "1" if node.dialect.comes_back else "0") == "0":
        options["pcmk_reboot_action"] = "off"
    if times.delay:
        options["pcmk_delay_base"] = str(times.delay)
    agent = node.values.get("agent", node.dialect.agent)
    return Primitive(DEVICE_PREFIX + node.name, agent, options, POWER_MONITOR_SECONDS)


def build_host_options(name, outlet):
    """Return the options by which Pacemaker's agents learn the outlet of a node."""
    if re.fullmatch("[A-Za-z0-9._-]+", outlet):  # what pcmk_host_map can hold
        return {"pcmk_host_map": "%s:%s" % (name, outlet)}
    if not outlet:
        return {"pcmk_host_list": name}
    # Without "none", agents get the node's name beside the outlet, and take whichever comes last.
    return {"plug": outlet, "pcmk_host_list": name, "pcmk_host_argument": "none"}


def build_verifier(cluster, node, times):
    """Return the fence_check device that proves the death of a node."""
    # SAFETY: without pcmk_reboot_action. Outside of its level it is asked for a reboot, and
    # refuses; asked for an off instead it could be believed alone.
    # Test: test_a_verifier_is_never_asked_for_an_off_outside_of_its_level
    options = collect_options(node, "verify")
    options[FENCE_OPTIONS] = ",".join("%s=%s" % item for item in find_fence_options(node).items())
    options.update(build_targets(cluster, node), **times.verify_limits)
    options.update(
        fence_method=node.values.get("agent", node.dialect.method), pcmk_host_list=node.name,
        verify_wait=cluster.values["stonith_verify_wait"], pcmk_off_timeout=str(times.verify_given),
        pcmk_off_retries="1")  # a second try would only repeat the wait
    given = {name: value for name, value in options.items() if value}
    return Primitive(VERIFIER_PREFIX + node.name, "fence_check", given, VERIFIER_MONITOR_SECONDS)


def find_fence_options(node):
    """Return {name: value} of what fence_check hands on to the agent that it asks."""
    found = {row.power: node.values[row.name] for row in NODE_KEYS
             if row.verify == FENCE_OPTIONS and row.name in node.values}
    for name, value in node.values["options"].items():
        is_for_pacemaker = name.startswith("pcmk_")
        is_for_check = name in AGENTS["fence_check"].params
        # An installed agent has these limits of its own, and fence_check waits for it.
        is_for_both = name in EXCHANGE_LIMITS and not has_own_agent(node)
        if not is_for_pacemaker and (is_for_both or not is_for_check):
            found[name] = value
    return found


def build_targets(cluster, node):
    """Return the parameters of fence_check that say where a node would show life."""
    direct = find_direct_networks(cluster) & set(node.networks)
    witnesses = ["%s=%s" % (network, address) for network in node.networks
                 if network not in direct for address in find_witnesses(cluster, node, network)]
    others = dict(node.networks)
    targets = {row.parameter: others.pop(row.name, "") for row in NETWORKS}
    targets[OTHER_NETWORKS_PARAMETER] = ",".join("%s=%s" % item for item in others.items())
    return dict(targets, witness_ips=",".join(witnesses), direct_networks=",".join(sorted(direct)))


def find_witnesses(cluster, node, network):
    """Return the addresses that must answer for a node's silence in a network to count."""
    found = [address for name, address in cluster.values["stonith_witness_ips"].items()
             if network in find_networks(cluster, name) and address != node.networks[network]]
    # Another node is a witness only where a third one may be the verifier: nobody's own address
    # proves a path.
    verifiers = find_verifiers(cluster, node)
    peers = [other for other in cluster.nodes if other is not node and verifiers != [other]]
    found += [other.networks[network] for other in peers
              if network in other.networks][:MAX_NODE_WITNESSES]
    # fence_check leaves out the device where it would not reach it in the same way.
    if "ip" in node.values and network in [row.name for row in NETWORKS if row.has_devices]:
        found.append(node.values["ip"])
    return list(dict.fromkeys(found))


def build_firewall(cluster, name):
    """Return the addresses of the fence devices that a node must not reach, and those it must."""
    own = find_node(cluster, name).values.get("ip")
    others = {node.values["ip"] for node in cluster.nodes
              if node.name != name and "ip" in node.values}
    return types.SimpleNamespace(node=name, opened=sorted(others),
                                 closed=[own] if own and own not in others else [])


# SECTION: CLUSTER CHECKS --------------------------------------------------------------------------
# Whether a Cluster whose file could be parsed makes sense, and its plan can work. Pure.
#
# Each check_ function asks one question, and puts what is wrong into the Report: those of
# DEVICE_CHECKS for one node with a fence device, those of CLUSTER_CHECKS for the whole.

# Parameters that follow from other keys, or would undo what makes the configuration safe.
# SAFETY: with version=1 or help=1, fence agents end an off with success and switch nothing.
# Test: test_options_cannot_make_an_agent_lie_or_lead_to_another_device
RESERVED_OPTION = ("action|option|method|nodename|plug|port|port_as_ip|missing_as_off|version"
                   "|help|delay|pcmk_(host|delay)_.*|pcmk_[a-z]+_action"
                   "|pcmk_(off|on|reboot)_timeout")
AGENT_NAME = "fence_[A-Za-z0-9_-]+"

# Fence agents cut blanks at the end of a value and a pair of quotes around it.
MANGLED_VALUE = '".*"|.* '


def parse_cluster(file, data, host_files=()):
    """Return (Cluster, [Mistake]); the Cluster is None when a mistake is more than a warning."""
    # data: the bytes of the file; host_files: (node, file, data) of --host-vars.
    report = Report()
    members = parse_members(file, data, report)
    hosts = [(node, path, parse_members(path, text, report)) for node, path, text in host_files]
    cluster = None
    if not report.has_errors():
        cluster = ClusterReader(report).build_cluster(file, members, hosts)
    if cluster:
        for check in CLUSTER_CHECKS:
            check(cluster, report)
        for node in nodes_with_device(cluster):
            for check in DEVICE_CHECKS:
                check(cluster, node, report)
    return None if report.has_errors() else cluster, sorted(report.mistakes)


def place_of(node, key):
    return node.places.get(key, node.place)


def check_required_keys(cluster, node, report):
    method = node.dialect.method
    needed = {key: "method " + method for key in node.dialect.required}
    if is_verified(cluster):
        needed.setdefault("ip", "fence_check")  # it asks the device too
    if node.values.get("power_on") == "1" and "power_on_url" in node.dialect.keys:
        needed.setdefault("power_on_url", "power_on")
    for key, needer in needed.items():
        stand_in = STAND_INS.get(key)
        if key not in node.values and stand_in not in node.values:
            what = "neither %s nor %s" % (key, stand_in) if stand_in else "no " + key
            report.error(node.place, "%s has %s, which %s needs" % (node.name, what, needer))


def check_agent(cluster, node, report):
    agent = node.values.get("agent", "")
    methods = [dialect.method for dialect in dialects_of(agent)]
    if agent in AGENTS and methods:
        report.error(node.places["agent"], "%s has a method of its own: instead of agent, give "
                     "method: %s" % (agent, " or ".join(methods)))
    elif agent in AGENTS:
        report.error(node.places["agent"], "%s cannot switch a node off: name the agent of its "
                     "device, or a method" % agent)
    elif agent and not re.fullmatch(AGENT_NAME, agent):
        report.error(node.places["agent"], "%s is not the name of a fence agent (fence_xyz)"
                     % quote(agent))


def check_one_outlet(cluster, node, report):
    if "outlet" in node.values and "switch_name" in node.values:
        report.error(node.places["outlet"], "outlet and switch_name both name the switch: remove "
                     "one of them")


def check_options(cluster, node, report):
    """Options that cannot be passed to an agent, or that follow from other keys."""
    own, agent, taken = has_own_agent(node), node.dialect.agent, find_taken_parameters(node)
    for name, text in node.values["options"].items():
        key = name.replace("-", "_")  # agents take either
        if key in taken or re.fullmatch(RESERVED_OPTION, key):
            wrong = "is set by other keys, or by fencetool itself (remove it here)"
        elif own and name not in AGENTS[agent].params:
            wrong = "is unknown to %s%s" % (agent, suggest(name, AGENTS[agent].params))
        elif max(text) > "~" or "," in text:
            wrong = "contains a comma or a non-ASCII character, which cannot be handed on"
        else:
            continue
        report.error(node.places["options"], "options: %s %s" % (quote(name), wrong))


def find_taken_parameters(node):
    """Return the names of the parameters that follow from other keys, in all their spellings."""
    # An installed agent may have parameters of its own that are called like a key of ours.
    own = has_own_agent(node)
    taken = set(node.dialect.fixed) if own else set()
    for row in NODE_KEYS:
        if row.power and (own or row.name not in SPECIAL_KEYS):
            taken.update((row.power,) + PARAMS_BY_NAME[row.power].aliases)
    return taken


def check_mangled_values(cluster, node, report):
    if has_own_agent(node):
        return
    for key, text in node.values.items():
        if isinstance(text, str) and re.fullmatch(MANGLED_VALUE, text):
            report.error(node.places[key], "%s: fence agents cut off a space at the end of a value "
                         "and quotes around it (for a password, use password_script)" % key)


def check_password(cluster, node, report):
    if "password" in node.values and "password_script" not in node.values:
        unchanged = "; and it still is CHANGEME" if "CHANGEME" in node.values["password"] else ""
        report.warn(node.places["password"], "pcs, the CIB and its backups will show this password "
                    "to root on every node (better: password_script: PROGRAM)" + unchanged)


def check_time_limits(cluster, node, report):
    """The limits of one of our agents must fit together."""
    if has_own_agent(node):
        limits = plan_times(cluster, node).power_limits
        key = "options" if "options" in node.places else "off_timeout"
        try:
            build_settings(dict(node.values["options"], **limits), PARAMS, {"ipport": "1"})
        except UsageError as error:
            report.error(place_of(node, key), "%s: %s" % (key, error))


def check_off_timeout(cluster, node, report):
    """What Pacemaker gives must be longer than what the agents' own limits add up to."""
    times, place = plan_times(cluster, node), place_of(node, "off_timeout")
    if is_verified(cluster) and times.verify_given <= times.verify_needed:
        report.error(place, "off_timeout must be more than %d s: the verifier may take that long"
                     % times.verify_needed)
    if times.power_given <= times.power_needed:
        report.error(place, "off_timeout must be more than %d s: the agent's own limits and the "
                     "delay add up to that" % times.power_needed)


def check_verifiers(cluster, node, report):
    if not is_verified(cluster):
        return
    if not node.networks:
        keys = ", ".join(row.name for row in NETWORK_KEYS)
        report.error(node.place, "nobody could verify that %s is dead: it has none of %s (add "
                     "them, or use --host-vars)" % (node.name, keys))
    elif not find_verifiers(cluster, node):
        report.error(node.place, "nobody could verify that %s is dead: no other node is in all its "
                     "networks (%s)" % (node.name, ", ".join(node.networks)))


DEVICE_CHECKS = (
    check_required_keys, check_agent, check_one_outlet, check_options, check_mangled_values,
    check_password, check_time_limits, check_off_timeout, check_verifiers)


def check_size(cluster, report):
    place = cluster.places["stonith_nodes"]
    if len(cluster.nodes) < 2:
        report.error(place, "a cluster needs at least two nodes: one cannot fence itself")
    if not nodes_with_device(cluster):
        report.error(place, "no node has a fence device")


def check_names(cluster, report):
    names = {node.name for node in cluster.nodes}
    for node in cluster.nodes:
        device = DEVICE_PREFIX + node.name
        target = device[len(VERIFIER_PREFIX):]
        if device.startswith(VERIFIER_PREFIX) and target in names:
            report.error(node.place, "rename this node: its device would be %s, which is the "
                         "verifier of %s" % (device, target))


def check_nodes_without_device(cluster, report):
    for node in cluster.nodes:
        if not node.dialect:
            report.warn(node.place, "%s counts as a cluster node and has no fence device: if it "
                        "fails, nothing is recovered until somebody confirms that it is down (pcs "
                        "stonith confirm %s)" % (node.name, node.name))


def check_keys(cluster, report):
    """Each key is one that the node's method takes."""
    for node in cluster.nodes:
        method = node.dialect.method if node.dialect else NO_DEVICE
        own = set(node.dialect.keys) if node.dialect else set()
        for key in (SPECIAL_KEYS & set(node.values)) - own:
            report.error(node.places[key], "%s has no meaning for method %s (remove it)"
                         % (key, method))


def check_addresses(cluster, report):
    """Own addresses are single, and nobody's fence device has one of them."""
    owners = {}
    for node in cluster.nodes:
        for address in node.networks.values():
            if address in owners:
                report.error(node.place, "%s and %s have the same address %s"
                             % (owners[address].name, node.name, address))
            owners[address] = node
    for node in nodes_with_device(cluster):
        owner = owners.get(node.values.get("ip"))
        if owner is node:
            report.error(node.places["ip"], "the fence device of %s has the address of the node "
                         "itself, which cannot fence itself" % node.name)
        elif owner:
            report.error(node.places["ip"], "the fence device of %s has the address of %s"
                         % (node.name, owner.name))


def check_shared_devices(cluster, report):
    """Nodes on one device must be on outlets that differ."""
    users = {}  # {device: [(node, port, outlet)] of those before}
    for node in nodes_with_device(cluster):
        device, port, outlet = find_outlet(node)
        for other, other_port, other_outlet in users.setdefault(device, []):
            if could_be_same(port, other_port) and could_be_same(outlet, other_outlet):
                shown = node.values.get("ip", node.dialect.method)
                report.error(place_of(node, "ip"), "%s and %s are on the same outlet of %s, or one "
                             "of them names no outlet (give each its own)"
                             % (other, node.name, shown))
        users[device].append((node.name, port, outlet))


def find_outlet(node):
    """Return (device, port, outlet) by which nodes that would be switched together are alike."""
    # Outlets have several spellings; without an address (a cloud) the agent is the device.
    text = "".join(node.values.get(key, "") for key in OUTLET_KEYS)
    outlet = render_identifier(re.sub("^https?://[^/:]*(:%d)?(?=/)" % HTTP_PORT, "", text))
    port = node.values.get("port", "")
    if "ip" in node.values:
        return node.values["ip"], port, outlet
    options = sorted(node.values["options"].items())
    return (node.values.get("agent"), str(options)), port, outlet or render_identifier(node.name)


def could_be_same(one, other):
    return one == other or not one or not other


def check_networks(cluster, report):
    for key in ("stonith_direct_networks", "stonith_witness_ips"):
        for name in cluster.values[key]:
            if not find_networks(cluster, name):
                report.error(cluster.places[key], "%s: no node has a network %s%s" % (
                    key, quote(name), suggest(name, cluster.networks.values())))
    for network in find_direct_networks(cluster):
        if sum(network in node.networks for node in cluster.nodes) > 2:
            report.error(cluster.places["stonith_direct_networks"], "stonith_direct_networks: more "
                         "than two nodes are in the network %s, and one cable has two ends"
                         % quote(network))


def check_race(cluster, report):
    if not could_race(cluster):
        return
    first, second = cluster.nodes
    place = cluster.places["stonith_nodes"]
    if not has_delay(cluster):
        report.warn(place, "two nodes without a quorum device could fence each other at once: "
                    "fencing %s waits %d s, so that it survives (a delay on either node decides "
                    "otherwise)" % (first.name, find_delay(cluster, first)))
    elif find_delay(cluster, first) == find_delay(cluster, second):
        report.warn(place, "both nodes have the same delay, and could fence each other at once "
                    "(give one of them a longer one)")


CLUSTER_CHECKS = (
    check_size, check_names, check_nodes_without_device, check_keys, check_addresses,
    check_shared_devices, check_networks, check_race)


# SECTION: OUTPUTS ---------------------------------------------------------------------------------
# From what the cluster should hold to texts: a script for pcs, crmsh, CIB XML, nftables, Ansible.
# Pure.
#
# OUTPUTS, at the end, has one row a format: build_ takes what is written from the Cluster (mostly
# the Configuration), and render_ makes the text, with the name of the cluster file in its first
# line. The script is a fixed head of shell functions, behind it the lists and commands of this
# cluster.

# The script for pcs. All is in functions that the last lines call: half a script does nothing.
PCS_HEAD = r"""#!/bin/sh
# Run it as root on one node of the cluster, and again after every change of the cluster file. In a
# copy of the cluster's configuration it makes anew what it has made before, and it hands in the
# difference as one change at the end: when anything fails, the cluster keeps what it has, and it is
# at no moment without its fencing.
#   --dry-run   show what would change, and change nothing
#   --cib FILE  work on a CIB in a file instead of the cluster's: a rehearsal
#   --adopt     take over devices of the same names that somebody else has made

# Values stand in single quotes on purpose; lists of ids and nodes hold no blanks.
# shellcheck disable=SC1003,SC2016,SC2086
set -eu
set -f
umask 077
export LC_ALL=C.UTF-8

fail() {
    printf '%s: %s\nNothing has been changed.\n' "$0" "$*" >&2
    exit 1
}

# query OPTION...: call cibadmin for the copy. What it says of a failure may hold the whole CIB.
query() {
    code=0
    CIB_file=$copy cibadmin "$@" >"$work/answer" 2>"$work/problem" || code=$?
    if [ "$code" -ne 0 ] && [ "$code" -ne 105 ]; then # 105: there is none
        fail "$(grep . "$work/problem" | tail -n 1) (cibadmin $*)"
    fi
}

# find_values XPATH ELEMENT ATTRIBUTE: put the attribute of what the copy has there into $found.
find_values() {
    query --query --xpath "$1"
    found=$(sed -n "s/^ *<$2 \(.* \)*$3=\"\([^\"]*\)\".*/\2/p" "$work/answer")
}

# is_among WORD WORD...: whether the first is one of the others.
is_among() {
    word=$1
    shift
    case " $* " in *" $word "*) ;; *) return 1 ;; esac
}

read_options() {
    file="" dry_run=no adopted=""
    while [ $# -gt 0 ]; do
        case $1 in
        --dry-run) dry_run=yes ;;
        --adopt) adopted=$devices ;;
        --cib) file=${2:?--cib needs a file} && shift ;;
        *)
            sed -n '/^# Run it/,/^$/s/^# //p' "$0" >&2
            exit 2
            ;;
        esac
        shift
    done
}

copy_cib() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    before=$work/before.xml copy=$work/after.xml
    if [ -n "$file" ]; then cp "$file" "$before"; else pcs cluster cib "$before"; fi
    cp "$before" "$copy"
}

# What was made before, by its mark, goes with all that hangs on it; configure makes it anew.
remove_own() {
    find_values "//primitive[meta_attributes/nvpair[@name='${mark%=*}' and @value='${mark#*=}']]" \
        primitive id
    for id in $found $adopted; do
        pair=$id,$verifier_prefix${id#"$device_prefix"}
        for part in \
            "fencing-level[@index=1][@devices='$id' or @devices='$pair']" \
            "rsc_location[@rsc='$id']" "primitive[@id='$id']"; do
            query --delete-all --force --xpath "//$part"
        done
    done
}

refuse_names_that_are_taken() {
    find_values //primitive primitive id
    for id in $found; do
        if is_among "$id" $devices; then
            fail "$id was not made by fencetool: rename it, or take it over with --adopt"
        fi
    done
    find_values "//fencing-level[@index='1']" fencing-level target
    for node in $found; do
        if is_among "$node" $targets; then
            fail "level 1 of $node was not made by fencetool: remove it first (pcs stonith level)"
        fi
    done
}

warn_of_levels() {
    others="not(@target) or @index!=1 and not(contains(@devices, '$verifier_prefix'))"
    find_values "//fencing-level[$others]" fencing-level id
    for id in $found; do # it is tried when level 1 fails; one for a pattern of nodes never is
        echo "warning: level $id was not made by fencetool: nobody verifies what it fences" >&2
    done
}

# Nodes that the cluster file does not know are kept from verifying: nobody knows what they see.
find_strangers() {
    strangers=""
    find_values //nodes/node node uname
    for node in $found; do
        if ! is_among "$node" $known_nodes; then
            strangers="$strangers $node"
            echo "warning: node $node is not in the cluster file: it gets no fence device" >&2
        fi
    done
    for node in $known_nodes; do
        is_among "$node" $found ||
            echo "warning: node $node is in the cluster file, but not in the cluster" >&2
    done
}

prepare() {
    read_options "$@"
    copy_cib
    remove_own
    refuse_names_that_are_taken
    warn_of_levels
    find_strangers
}

finish() {
    pcs -f "$copy" stonith level verify
    for state in before after; do # sorted: what was made when does not matter
        copy=$work/$state.xml query --query --scope configuration
        sort "$work/answer" >"$work/$state"
    done
    if cmp -s "$work/before" "$work/after"; then
        echo "Nothing to change." >&2
        return
    fi
    diff -U 0 "$work/before" "$work/after" |
        sed '/name="[^"]*\(pass[a-z]*\|secret\|key\|token\|community\|_kg\|_url\|fence_options\)"/'\
's/ value="[^"]*/ value="***/'
    if [ "$dry_run" = yes ]; then
        echo "Nothing has been changed: this is what would change." >&2
    elif [ -n "$file" ]; then
        cp "$copy" "$file.new"
        mv "$file.new" "$file"
    else
        # What it says of a failure may hold the whole CIB.
        pcs cluster cib-push "$copy" diff-against="$before" >"$work/answer" 2>&1 ||
            { grep '^Error\|^Call' "$work/answer" >&2; exit 1; } # --dry-run tells what came through
    fi
}
"""


def render_pcs(configuration, source):
    devices = configuration.primitives
    head = PCS_HEAD.split("\n")
    head[1:1] = [render_banner(source, "configure-stonith.sh"), SECRETS_NOTE]
    lists = (("mark", ["=".join(OWNER)]), ("device_prefix", [DEVICE_PREFIX]),
             ("verifier_prefix", [VERIFIER_PREFIX]), ("known_nodes", configuration.nodes),
             ("targets", [level.node for level in configuration.levels]),
             ("devices", [device.id for device in devices]))
    lines = ["%s='%s'" % (name, " ".join(words)) for name, words in lists] + ["", "configure() {"]
    for device in devices:
        lines += wrap_words(
            ['pcs -f "$copy" stonith create', device.id, device.agent]
            + [render_sh("%s=%s" % option) for option in device.options.items()]
            + ["op monitor interval=%ds timeout=%ds" % (device.interval, monitor_timeout(device)),
               'meta "$mark"'])
    for ban in configuration.bans:
        strangers = ("$strangers",) if ban.is_verifier else ()
        lines += wrap_words(('pcs -f "$copy" constraint location', ban.device, "avoids") + ban.nodes
                            + strangers)
    for level in configuration.levels:
        lines += wrap_words(('pcs -f "$copy" stonith level add 1', level.node) + level.devices)
    properties = ["%s=%s" % item for item in configuration.properties]
    lines += wrap_words(['pcs -f "$copy" property set'] + properties)
    return "\n".join(head + lines + ["}", "", 'prepare "$@"', "configure", "finish", ""])


SECRETS_NOTE = "# It may hold passwords: mode 0700, and not into a repository."


def render_banner(source, what):
    return "# %s, made by fencetool %s from %s." % (what, __version__, one_line(source))


def render_sh(text):
    """Return text as one word of a shell command."""
    safe = re.fullmatch("[A-Za-z0-9_./:=,@%+-]+", text)
    return text if safe else "'%s'" % text.replace("'", r"'\''")


def wrap_words(words):
    """Return shell words as the lines of one indented command."""
    lines = ["   "]
    for word in words:
        if len(lines[-1]) + len(word) > 95:
            lines[-1] += " \\"
            lines.append("       ")
        lines[-1] += " " + word
    return lines


def render_crmsh(configuration, source):
    """Return lines for `crm configure load update`, which removes nothing but levels."""
    lines = [render_banner(source, "Fencing, for: crm configure load update FILE"), SECRETS_NOTE,
             "# fencing_topology replaces ALL fencing levels of the cluster, those of others too."]
    lines += [render_crmsh_primitive(device) for device in configuration.primitives]
    lines += ["location %s %s -inf: %s" % (ban_id(ban, node), ban.device, node)
              for ban in configuration.bans for node in ban.nodes]
    # In fencing_topology a comma means the same level, and a blank the next one.
    levels = ["%s: %s" % (level.node, ",".join(level.devices)) for level in configuration.levels]
    properties = ["%s=%s" % item for item in configuration.properties]
    return "\n".join(lines + [" ".join(["fencing_topology"] + levels),
                              " ".join(["property"] + properties), ""])


def render_crmsh_primitive(device):
    words = ["primitive %s stonith:%s params" % (device.id, device.agent)]
    for name, value in device.options.items():
        if max(value) > "~" or re.search(r'\\(["\\]|$)', value):
            raise FenceError("crmsh 4.4 cannot store %s of %s: it has a non-ASCII character, or a "
                             "backslash at its end or before a quote (use --format pcs or cib)"
                             % (name, device.id))
        words.append('%s="%s"' % (name, re.sub(r'(["\\])', r"\\\1", value)))
    words.append("op monitor interval=%ds timeout=%ds meta %s=%s" % (
        (device.interval, monitor_timeout(device)) + OWNER))
    return " ".join(words)


def render_cib(configuration, source):
    """Return the configuration as a CIB, with the ids that pcs gives; XML has no first line."""
    lines = ['<cib validate-with="pacemaker-3.0" admin_epoch="0" epoch="1" num_updates="0">',
             "<configuration>", '<crm_config><cluster_property_set id="cib-bootstrap-options">',
             render_nvpairs("cib-bootstrap-options", configuration.properties),
             "</cluster_property_set></crm_config>", "<nodes/>", "<resources>"]
    for device in configuration.primitives:
        lines += render_cib_primitive(device)
    lines += ["</resources>", "<constraints>"]
    lines += ['<rsc_location id="%s" node="%s" rsc="%s" score="-INFINITY"/>'
              % (ban_id(ban, node), node, ban.device)
              for ban in configuration.bans for node in ban.nodes]
    lines += ["</constraints>", "<fencing-topology>"]
    lines += ['<fencing-level id="fl-%s-1" index="1" target="%s" devices="%s"/>'
              % (level.node, level.node, ",".join(level.devices)) for level in configuration.levels]
    return "\n".join(lines + ["</fencing-topology>", "</configuration>", "<status/>", "</cib>", ""])


def render_cib_primitive(device):
    lines = ['<primitive id="%s" class="stonith" type="%s">' % (device.id, device.agent)]
    for kind, pairs in (("instance_attributes", device.options.items()),
                        ("meta_attributes", [OWNER])):
        set_id = "%s-%s" % (device.id, kind)
        lines.append('<%s id="%s">%s</%s>' % (kind, set_id, render_nvpairs(set_id, pairs), kind))
    monitor = '<op id="%s-monitor-interval-%ds" interval="%ds" name="monitor" timeout="%ds"/>' % (
        device.id, device.interval, device.interval, monitor_timeout(device))
    return lines + ["<operations>%s</operations>" % monitor, "</primitive>"]


def render_nvpairs(set_id, pairs):
    return "".join('<nvpair id="%s-%s" name="%s" value="%s"/>' % (
        set_id, name, name, escape_xml(value)) for name, value in pairs)


def render_nftables(firewall, source):
    """Return a table for one node: it reaches the fence devices of the others and not its own."""
    lines = [render_banner(source, "Firewall of %s, for: nft -f FILE" % firewall.node),
             "# It closes the node's own fence device, unless that switches other nodes too. What",
             "# another table drops stays dropped.",
             "table inet fence_guard", "delete table inet fence_guard",
             "table inet fence_guard {", "    chain out {",
             "        type filter hook output priority -10; policy accept;"]
    for verdict, addresses in (("reject", firewall.closed), ("accept", firewall.opened)):
        for address in addresses:
            family = "ip6" if ":" in address else "ip"
            lines.append("        %s daddr %s counter %s" % (family, address, verdict))
    return "\n".join(lines + ["    }", "}", ""])


ANSIBLE_PLAY = """
- name: Fencing with fencetool
  hosts: %s
  become: true
  tasks:
    - name: Install fencetool
      ansible.builtin.copy: {src: fencetool.py, dest: /usr/sbin/fencetool, mode: "0755"}
    - name: Link its fence agents
      ansible.builtin.file: {src: fencetool, dest: "/usr/sbin/{{ item }}", state: link}
      loop: %s
    - name: Copy the fencing configuration to one node
      ansible.builtin.copy: {src: configure-stonith.sh, dest: /root/, mode: "0700"}
      diff: false
      run_once: true
    - name: Configure the fencing of the cluster
      ansible.builtin.command: /root/configure-stonith.sh
      register: configured
      changed_when: "'Nothing to change.' not in configured.stderr"
      run_once: true
"""


def render_ansible(configuration, source):
    """Return a playbook that installs this tool on all nodes and runs the script on the first."""
    lines = [render_banner(source, "Playbook"), "# Beside it: fencetool.py, and "
             "configure-stonith.sh (gen-config -o configure-stonith.sh)."]
    hosts, agents = json.dumps(",".join(configuration.nodes)), json.dumps(sorted(AGENTS))
    return "\n".join(lines) + ANSIBLE_PLAY % (hosts, agents)


# The formats of gen-config: (build, render). What is for one node is built for its name too.
OUTPUTS = {
    "pcs": (build_configuration, render_pcs), "crmsh": (build_configuration, render_crmsh),
    "cib": (build_configuration, render_cib), "nftables": (build_firewall, render_nftables),
    "ansible": (build_configuration, render_ansible)}
NODE_OUTPUTS = ("nftables",)


def render_output(form, cluster, node, source):
    """Return the text of one format; node: the name of the one that a NODE_OUTPUT is for."""
    build, render = OUTPUTS[form]
    plan = build(cluster, node) if form in NODE_OUTPUTS else build(cluster)
    return render(plan, source)


# PART 6: PEOPLE ===================================================================================

# SECTION: LOOK-UP ---------------------------------------------------------------------------------
# Reads cluster files, and finds what fence_check -n NODE does not have to be told, because the
# cluster knows it.
#
# A cluster file is read together with the host_vars beside it, where Ansible keeps the addresses of
# the nodes. fence_check takes the parameters that gen-config would write; where there is no cluster
# file, it takes those of the one fence_check device for the node in the running cluster's CIB.


def load_cluster(path, host_vars, system):
    """Return (Cluster or None, [Mistake]) of a cluster file and a directory of host_vars."""
    data = system.read_file(path)
    found = list_host_files(host_vars, system) if host_vars else []
    return parse_cluster(path, data, [
        (node, file, system.read_file(file)) for node, file in found
        if is_host_file(os.path.basename(file), node, data)])


def list_host_files(host_vars, system):
    """Return [(node, path)] of NODE, NODE.yml and NODE/anything in a directory of host_vars."""
    found = []
    for name in system.list_directory(host_vars):
        path = os.path.join(host_vars, name)
        if os.path.isdir(path):
            found += [(name, os.path.join(path, part)) for part in system.list_directory(path)]
        else:
            found.append((re.sub(r"\.(yml|yaml|json)$", "", name), path))
    return found


def is_host_file(name, node, cluster_data):
    """Whether Ansible reads a file of host_vars: backups, hidden files and the like it does not."""
    if re.fullmatch(r"(?!\.).*\.(yml|yaml|json)|[^.]*[^.~]", name):
        return True
    # A node's name may have a domain, and then so has its file: the cluster file knows the name.
    return name == node and node.encode() in cluster_data


def find_check_parameters(node, values, system):
    """Return the fence_check parameters of a node: from the cluster file, else from the cluster."""
    path = values.get("config", CLUSTER_FILE)
    if "config" in values or os.path.exists(path):
        return read_check_parameters(path, node, system)
    query = ["cibadmin", "--query", "--local", "--xpath", "//primitive[@type='fence_check']"]
    code, out, err = system.run(query, "", system.deadline(10))
    if code != 0:
        raise UsageError("cannot find the parameters of %s: %s does not exist, and the cluster has "
                         "no fence_check device (cibadmin: %s)"
                         % (quote(node), CLUSTER_FILE, quote(err.strip())))
    return parse_check_parameters(out, node)


def read_check_parameters(path, name, system):
    """Return the fence_check parameters of a node from a cluster file, by their names."""
    cluster, mistakes = load_cluster(path, "", system)
    if not cluster:
        raise UsageError(render_mistake(next(item for item in mistakes if not item.is_warning)))
    try:
        node = find_node(cluster, name)
    except UsageError as error:
        raise UsageError("%s: %s" % (path, error)) from None
    if not node.dialect:
        raise UsageError("%s has no fence device for %s" % (path, quote(name)))
    options = build_verifier(cluster, node, plan_times(cluster, node)).options
    return {option: value for option, value in options.items() if not option.startswith("pcmk_")}


def parse_check_parameters(text, node):
    """Return the parameters of the one fence_check device in a part of the CIB that is for node."""
    from xml.etree import ElementTree
    found = []
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise UsageError("cibadmin did not print XML: %s" % quote(text)) from None
    for primitive in tree.iter("primitive"):
        pairs = {pair.get("name"): pair.get("value", "")
                 for pair in primitive.iterfind("instance_attributes/nvpair")}
        hosts = re.split("[,; \t]+", pairs.get("pcmk_host_list", ""))
        hosts += re.findall("([^:; \t]+):", pairs.get("pcmk_host_map", ""))
        if node in hosts:
            found.append(pairs)
    if len(found) != 1:
        raise UsageError("the CIB has %d fence_check devices for %s, and one is needed"
                         % (len(found), quote(node)))
    return found[0]


# SECTION: SIMULATOR AND DEMO ----------------------------------------------------------------------
# Virtual plugs on real sockets, with faults to order, and the demo that shows them. Used by no
# agent. A virtual device keeps apart what its relay reports and what its contact does.

FAULTS = {
    "ignore": "acknowledges every command and switches nothing",
    "welded": "reports OFF while the contact stays closed",
    "portal": "answers everything with the sign-in page of a captive portal (HTTP)"}
WATTS = 43.0  # that a node draws


class VirtualDevice:
    """A device that listens on loopback (or another address) until stop()."""
    # options: values for the attributes of the class, in the classes below too. on_power(number,
    # powered) is called when a contact changes. requests: every request that came, decoded.
    # commands: how many of them were to switch.
    agent = ""  # that this device is for
    mac = "CC:32:E5:00:00:01"
    metered = False
    fault = ""  # a name of FAULTS

    def __init__(self, aliases=("plug",), **options):
        import threading
        # relay: what the firmware reports; powered: whether the contact really carries power.
        self.outlets = [types.SimpleNamespace(number=number, alias=alias, relay=True, powered=True)
                        for number, alias in enumerate(aliases, 1)]
        for name, value in options.items():
            getattr(self, name)  # a misspelt option is an AttributeError
            setattr(self, name, value)
        self.on_power = lambda number, powered: None
        self.requests = []
        self.commands = 0
        self.address = ("", 0)
        self.lock = threading.RLock()

    def start(self, host="127.0.0.1", port=0):
        """Listen on TCP (port 0: any free one)."""
        import socketserver

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True
            request_queue_size = 16

            def handle_error(self, request, client_address):
                pass  # the client went away, or a fault breaks the connection
        self.server = Server((host, port), lambda handle, *_: self.converse(handle), False)
        self.server.server_bind()
        self.address = (host, self.server.server_address[1])
        self.listen()

    def listen(self):
        import threading
        self.server.server_activate()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def switch(self, number, on):
        """Obey a command for one outlet."""
        self.commands += 1
        if self.fault != "ignore":
            self.move(number, on)

    def move(self, number, on):
        outlet = self.outlets[number - 1]
        outlet.relay = on
        powered = on or self.fault == "welded"
        if outlet.powered is not powered:
            outlet.powered = powered
            self.on_power(number, powered)

    def send_answer(self, handle, answer):
        handle.sendall(answer)


KASA_REFUSAL = {"err_code": -1, "err_msg": "module not support"}


class VirtualKasa(VirtualDevice):
    """A Kasa plug, or a strip when it has several aliases."""
    # The list of outlets is reversed, as real firmware keeps no order.
    agent = "fence_kasa"
    device_id = "8006" + "0A" * 18

    def converse(self, handle):
        with handle.makefile("rb") as stream:
            for header in iter(lambda: stream.read(4), b""):
                answer = self.answer(stream.read(struct.unpack(">I", header)[0]))
                self.send_answer(handle, struct.pack(">I", len(answer)) + answer)

    def answer(self, message):
        """Return the reply to one message; raise OSError to break the connection instead."""
        request = json.loads(decrypt_kasa(message).decode("utf-8"))
        with self.lock:
            self.requests.append(request)
            chosen = request.pop("context", {}).get("child_ids", [])
            reply = {module: {method: self._call(module, method, arguments or {}, chosen)
                              for method, arguments in methods.items()}
                     for module, methods in request.items()}
        return build_kasa_message(reply)

    def _call(self, module, method, arguments, chosen):
        handler = getattr(self, "_%s_%s" % (module, method), None)
        return handler(arguments, chosen) if handler else dict(KASA_REFUSAL)

    def _system_get_sysinfo(self, arguments, chosen):
        is_strip = len(self.outlets) > 1
        info = {"deviceId": self.device_id, "mac": self.mac, "mic_type": "IOT.SMARTPLUGSWITCH",
                "model": "HS300(US)" if is_strip else "KP115(EU)", "err_code": 0,
                "feature": "TIM:ENE" if self.metered else "TIM"}
        children = [{"id": self._child_id(outlet), "alias": outlet.alias,
                     "state": int(outlet.relay)} for outlet in reversed(self.outlets)]
        if is_strip:
            return dict(info, alias="virtual strip", child_num=len(children), children=children)
        return dict(info, alias=children[0]["alias"], relay_state=children[0]["state"])

    def _child_id(self, outlet):
        return "%s%02d" % (self.device_id, outlet.number - 1)

    def _chosen_outlet(self, chosen):
        """Return the outlet a request means: without an id, a strip takes its first one."""
        meant = chosen or [self._child_id(self.outlets[0])]
        return next((item for item in self.outlets if self._child_id(item) == meant[0]), None)

    def _system_set_relay_state(self, arguments, chosen):
        outlet = self._chosen_outlet(chosen)
        if outlet is None or arguments.get("state") not in (0, 1):
            return {"err_code": -3, "err_msg": "invalid argument"}
        self.switch(outlet.number, bool(arguments["state"]))
        return {"err_code": 0}

    def _emeter_get_realtime(self, arguments, chosen):
        outlet = self._chosen_outlet(chosen)
        if not self.metered or outlet is None:
            return dict(KASA_REFUSAL)
        watts = WATTS if outlet.powered else 0
        return {"current_ma": int(watts / 0.23), "power_mw": int(watts * 1000), "total_wh": 26889,
                "voltage_mv": 230000, "err_code": 0}


PORTAL_PAGE = ("<!DOCTYPE html><html><title>Sign in: Wi-Fi ON or OFF</title><form>"
               "<input id=psk name=psk type=password></form></html>")


class VirtualHttp(VirtualDevice):
    """A web server; subclasses answer in their dialect."""
    # requests: (method, path, header fields by their lower-case names).
    agent = "fence_http"
    password = ""  # of the user admin
    challenge = 'Basic realm="Login Required"'

    def converse(self, handle):
        from http.client import parse_headers
        with handle.makefile("rb") as stream:
            words = stream.readline().decode("latin-1").split(" ")
            if len(words) != 3:
                return
            fields = {name.lower(): value for name, value in parse_headers(stream).items()}
        with self.lock:
            self.requests.append((words[0], words[1], fields))
            reply = self.answer(words[0], words[1], fields)
        self.send_answer(handle, self.render(*reply))

    def answer(self, method, path, fields):
        """Return (status, headers, body); raise OSError to break the connection instead."""
        if self.fault == "portal":
            return 200, {"Content-Type": "text/html"}, PORTAL_PAGE
        if self.password and not self.knows_login(method, path, fields):
            return self.refuse_login()
        return self.respond(method, path, fields)

    def knows_login(self, method, path, fields):
        return fields.get("authorization") == build_basic_login("admin", self.password)

    def refuse_login(self):
        return 401, {"WWW-Authenticate": self.challenge}, ""

    def respond(self, method, path, fields):
        """Return (status, headers, body) of a request that may be answered."""
        raise NotImplementedError

    def words(self):
        """Return {number: "ON" or "OFF"} as the device reports its relays."""
        return {outlet.number: "ON" if outlet.relay else "OFF" for outlet in self.outlets}

    def render(self, status, headers, body):
        data = body.encode("utf-8")
        lines = ["HTTP/1.1 %d Whatever" % status, "Connection: close"]
        lines += ["%s: %s" % header for header in headers.items()]
        lines.append("Content-Length: %d" % len(data))
        return "\r\n".join(lines + ["", ""]).encode("latin-1") + data


class VirtualTasmota(VirtualHttp):
    """A Tasmota device."""

    def knows_login(self, method, path, fields):
        query = parse_query(path)
        return ((query.get("user"), query.get("password")) == ("admin", self.password)
                or super().knows_login(method, path, fields))

    def refuse_login(self):
        return 401, {}, '{"WARNING":"Need user=<username>&password=<password>"}'

    def respond(self, method, path, fields):
        members = self.run_command(parse_query(path).get("cmnd", "").lower())
        return 200, {"Content-Type": "application/json"}, json.dumps(members)

    def run_command(self, command):
        match = re.fullmatch("power([0-9]*)(?: (on|off))?", command)
        if match:
            return self.power(int(match.group(1) or 1), match.group(2))
        if command == "status 10":
            return {"StatusSNS": self.sensors()}
        return {"status 5": {"StatusNET": {"Hostname": "plug", "Mac": self.mac}},
                "status 11": {"StatusSTS": dict(self.members(), UptimeSec=61)},
                "setoption21": {"SetOption21": "OFF"}}.get(command, {"Command": "Unknown"})

    def members(self):
        return {self.member(number): word for number, word in self.words().items()}

    def member(self, number):
        return "POWER" if len(self.outlets) == 1 else "POWER%d" % number

    def power(self, number, word):
        if number > len(self.outlets):
            return {"Command": "Error"}
        if word:
            self.switch(number, word == "on")
        if word and self.fault == "ignore":
            return {self.member(number): word.upper()}
        return {self.member(number): self.members()[self.member(number)]}

    def sensors(self, while_off=False):
        """while_off: whether the meter goes on measuring (SetOption21 1)."""
        if not self.metered:
            return {"Time": "2026-01-01T00:00:00"}
        shown = while_off or any(outlet.relay for outlet in self.outlets)
        watts = WATTS * sum(outlet.powered for outlet in self.outlets) if shown else 0
        return {"ENERGY": {"Total": 3.185, "Power": watts, "Voltage": 230 if shown else 0}}


def parse_query(path):
    from urllib.parse import parse_qsl
    return dict(parse_qsl(path.partition("?")[2]))


# A switch by its web pages: paths of on, off and status, and the status page with its words.
VirtualPages = namedtuple("VirtualPages", "on off status page words")
SHELLY_PAGES = VirtualPages(
    "/relay/0?turn=on", "/relay/0?turn=off", "/relay/0",
    '{"ison":%s,"has_timer":false,"source":"http"}', {"ON": "true", "OFF": "false"})
ESPHOME_PAGES = VirtualPages(
    "/switch/relay/turn_on", "/switch/relay/turn_off", "/switch/relay?detail=all",
    '{"id":"switch/relay","name":"relay","state":"%s"}', {"ON": "ON", "OFF": "OFF"})


class VirtualSwitch(VirtualHttp):
    """A switch of whatever make, by its pages."""
    pages = SHELLY_PAGES

    def respond(self, method, path, fields):
        pages = self.pages
        if path in (pages.on, pages.off):
            self.switch(1, path == pages.on)
            return 200, {}, '{"was_on":true}'
        if path != pages.status:
            return 404, {}, "Not Found: OFF"
        return 200, {}, pages.page % pages.words[self.words()[1]]


# One step of the demo. device: key of a virtual device; expected: exit code; shows: what the output
# must hold; lesson: what the reader should take from it.
DemoStep = namedtuple("DemoStep", "device parameters expected shows lesson")
DEMO_PARAMETERS = "nodename=storage-b\nshell_timeout=1\npower_timeout=3\nstonith_status_sleep=0.5\n"
DEMO_STEPS = (
    DemoStep("plug", "action=status", 0, "Status: ON", "a node runs on this plug"),
    DemoStep("plug", "action=off", 0, "Success: Powered OFF", "commanded, then seen OFF twice"),
    DemoStep("plug", "action=status", 2, "Status: OFF", "exit code 2 means OFF, and nothing else"),
    DemoStep("plug", "action=reboot", 0, "Success: Rebooted", "off with proof, a pause, on again"),
    DemoStep("strip", "action=off\nplug=2", 0, "Success: Powered OFF", "one outlet of a strip"),
    DemoStep("strip", "action=list-status", 0, "3,spare,ON", "the other outlets were left alone"),
    DemoStep("liar", "action=off", 1, "still reports ON",
             "a plug that acknowledges and does not switch: NOT fenced"),
    DemoStep("welded", "action=off", 1, "still draws 43 W",
             "a relay that reports OFF with its contact welded: NOT fenced"),
    DemoStep("tasmota", "action=off\ndevice=tasmota\nplug=2\npassword=s3cret", 0,
             "Success: Powered OFF", "relay 2 of a Tasmota device with a password"),
    DemoStep("esphome", "action=off\npower_off_url=/switch/relay/turn_off\n"
             "status_url=/switch/relay", 0, "Success: Powered OFF", "ESPHome, by its URLs"),
    DemoStep("switch", "action=off\npower_off_url=/relay/0?turn=off\nstatus_url=/relay/0\n"
             'status_on_regex="ison":true\nstatus_off_regex="ison":false', 1, "sign-in page",
             "any device with URLs (a Shelly), but its Wi-Fi is a captive portal now: NOT fenced"))


def cmd_demo(arguments, system):
    """Fence virtual nodes on this machine: no hardware, no root, nothing leaves loopback."""
    system.write("The plugs are simulated (threads on 127.0.0.1), the agent is a real process.\n")
    devices = {
        "plug": VirtualKasa(["storage-b"]), "liar": VirtualKasa(["storage-b"], fault="ignore"),
        "strip": VirtualKasa(["storage-a", "storage-b", "spare"]),
        "welded": VirtualKasa(["storage-b"], metered=True, fault="welded"),
        "tasmota": VirtualTasmota(["POWER1", "POWER2"], password="s3cret"),
        "esphome": VirtualSwitch(pages=ESPHOME_PAGES), "switch": VirtualSwitch(fault="portal")}
    try:
        for device in devices.values():
            device.start()
        wrong = [number for number, step in enumerate(DEMO_STEPS, 1)
                 if not run_demo_step(number, step, devices[step.device], system)]
    finally:
        for device in devices.values():
            device.stop()
    if wrong:
        system.write("%d of %d steps did not go as told." % (len(wrong), len(DEMO_STEPS)))
        return EXIT_BAD
    system.write("All %d steps went as told. Next, with a real plug (give it a fixed address):\n"
                 "  sh install.sh\n  fence_kasa -a ADDRESS -o status" % len(DEMO_STEPS))
    return EXIT_GOOD


def run_demo_step(number, step, device, system):
    """Run one step and show it; return whether it went as told."""
    parameters = "ip=%s\nipport=%d\n%s%s\n" % (device.address + (DEMO_PARAMETERS, step.parameters))
    system.write("%d. %s\n   $ printf '%s' | %s" % (
        number, step.lesson, parameters.replace("\n", "\\n").replace("%", "%%"), device.agent))
    agent = [sys.executable, "-IS", os.path.abspath(__file__), device.agent]
    code, out, err = system.run(agent, parameters, system.deadline(20))
    for line in (out + err).splitlines():
        system.write("   " + line)
    good = code == step.expected and step.shows in out + err
    system.write("   exit code %d: %s\n" % (code, "as told" if good else "NOT as told (%d, %s)"
                                            % (step.expected, step.shows)))
    return good


# SECTION: COMMANDS --------------------------------------------------------------------------------
# What people call: one cmd_ function a subcommand; it returns the exit code.

HOST_VARS_OPTION = (("--host-vars",), {
    "metavar": "DIR", "help": "directory of NODE.yml files with %s (Ansible's host_vars)"
    % ", ".join(row.name for row in NETWORK_KEYS)})
CHECK_OPTIONS = (
    (("cluster",), {"nargs": "?", "default": CLUSTER_FILE, "help": "cluster file (%(default)s)"}),
    HOST_VARS_OPTION, (("--json",), {"action": "store_true", "help": "for machines"}))
GENERATE_OPTIONS = (
    (("words",), {"nargs": "*", "metavar": "CLUSTER", "help": "cluster file (%s)" % CLUSTER_FILE}),
    HOST_VARS_OPTION,
    (("--format",), {"choices": OUTPUTS, "default": "pcs", "help": "pcs: a script (the default); "
                     "crmsh, cib: the same for other tools; nftables: the firewall of one node; "
                     "ansible: a playbook that installs fencetool and runs the script"}),
    (("--node",), {"default": "", "help": "the node that the firewall is for"}),
    (("-o", "--output"), {"metavar": "FILE", "help": "write there, mode 0700, not to stdout"}))


def cmd_check_config(options, system):
    """Report every mistake in a cluster file, with its line; exit code 1 if there is one."""
    cluster, mistakes = load_cluster(options.cluster, options.host_vars, system)
    errors = sum(not mistake.is_warning for mistake in mistakes)
    if options.json:
        shown = {"good": bool(cluster), "mistakes": [mistake._asdict() for mistake in mistakes]}
        system.write(json.dumps(shown, indent=2))
    else:
        counts = ", ".join("%d %s%s" % (count, word, "" if count == 1 else "s") for count, word in (
            (errors, "mistake"), (len(mistakes) - errors, "warning")))
        system.write("\n".join([render_mistake(mistake) for mistake in mistakes]
                               + ["%s: %s" % (options.cluster, counts)]))
    return EXIT_GOOD if cluster else EXIT_BAD


def cmd_gen_config(options, system):
    """Write the fencing configuration of a cluster: a script for pcs, or what --format says."""
    form, node, path = parse_generate_words(options)
    if node and form not in NODE_OUTPUTS:
        raise UsageError("--node goes with --format %s only: the others are for the whole cluster"
                         % " and ".join(NODE_OUTPUTS))
    if form in NODE_OUTPUTS and not node:
        raise UsageError("--format %s is for one node: name it with --node NODE" % form)
    cluster, mistakes = load_cluster(path, options.host_vars, system)
    for mistake in mistakes:
        system.tell(render_mistake(mistake))
    if not cluster:
        raise FenceError("nothing was written: correct the mistakes in %s first" % path)
    text = render_output(form, cluster, node, path)
    if options.output:
        system.write_script(options.output, text)
    else:
        system.write(text.rstrip("\n"))
    return EXIT_GOOD


def parse_generate_words(options):
    """Return (format, node, path of the cluster file) of a call of gen-config."""
    words, form, node = list(options.words), options.format, options.node
    # COMPAT: "nftables NODE [CLUSTER]" and "ansible [CLUSTER]" were words before they were formats;
    # for scripts written until 0.1.0.
    if words[:1] in (["nftables"], ["ansible"]):
        form = words.pop(0)
        if words and form in NODE_OUTPUTS and not node:
            node = words.pop(0)
    path = words.pop(0) if words else CLUSTER_FILE
    if words:
        raise UsageError("%s is one argument too many (see gen-config --help)" % quote(words[0]))
    return form, node, path


def cmd_agents(arguments, system):
    """Print the names of the fence agents in this file: install.sh makes a link for each."""
    system.write("\n".join(AGENTS))
    return EXIT_GOOD


# Each subcommand with its options; its help is its function's docstring.
COMMANDS = {"demo": (cmd_demo, ()), "check-config": (cmd_check_config, CHECK_OPTIONS),
            "gen-config": (cmd_gen_config, GENERATE_OPTIONS), "agents": (cmd_agents, ())}


def run_command(arguments, system):
    import argparse
    parser = argparse.ArgumentParser(
        prog="fencetool", allow_abbrev=False, description=__doc__.split("\n\n")[0],
        epilog="Agents: %s (fencetool.py AGENT --help tells their options)." % ", ".join(AGENTS))
    parser.add_argument("--version", action="version", version="fencetool " + __version__)
    subparsers = parser.add_subparsers(dest="command", metavar="SUBCOMMAND")
    for name, (run, rows) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=run.__doc__, allow_abbrev=False,
                                          description=run.__doc__)
        for names, settings in rows:
            subparser.add_argument(*names, **settings)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        sys.stdout.flush()
        return stop.code
    if not options.command:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return COMMANDS[options.command][0](options, system)


# SECTION: ENTRY -----------------------------------------------------------------------------------
# From the name and the arguments that the program was started with to one exit code.

def main(argv, environment):
    """Run the program and return its exit code; nothing but exit codes and lines leaves here."""
    # The bytes as they were given: in the C locale Python 3.6 takes them for ASCII.
    name, arguments = os.path.basename(argv[0]), [
        os.fsencode(word).decode("utf-8", "surrogateescape") for word in argv[1:]]
    if name not in AGENTS and arguments and arguments[0] in AGENTS:
        name, arguments = arguments[0], arguments[1:]
    is_agent = name in AGENTS or name == "kasa"
    system = System(name if is_agent else "fencetool")
    try:
        if name == "kasa":
            return run_plugin(AGENTS["fence_kasa"], arguments, environment, system)
        if is_agent:
            rows = rows_of(AGENTS[name])
            pairs = parse_argv(arguments, rows) if arguments else parse_stdin(system.read_stdin())
            if not arguments and "action" not in collect_values(pairs, rows)[0]:
                # SAFETY: an off that has lost its action must not become the status of a person.
                # Test: test_a_call_on_stdin_without_an_action_is_refused
                raise UsageError("no action given (action=status on stdin, or -o status)")
            return run_agent(AGENTS[name], pairs, system,
                             find_check_parameters if name == "fence_check" else None)
        return run_command(arguments, system)
    except FenceError as error:
        system.error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) and not is_agent else EXIT_BAD
    except KeyboardInterrupt:
        system.error("interrupted; what was under way is not confirmed")
    except Exception as error:  # a defect of ours: still one line, and no exit code of success
        system.error(describe_defect(error))
    return EXIT_BAD


def describe_defect(error):
    """Return one line for an exception that should not have come, with the place it came from."""
    import traceback
    place = traceback.extract_tb(error.__traceback__)[-1]
    return "internal error, please report it: %s: %s (%s line %d)" % (
        type(error).__name__, error, place.name, place.lineno)


def open_missing_descriptors():
    # SAFETY: with stderr closed, the connection to the plug would become stderr.
    # Test: test_closed_descriptors_are_no_hazard
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass


if __name__ == "__main__":
    open_missing_descriptors()
    # Not sys.exit: a name server that never answers must not hold the process in its thread, and
    # nothing is left to clean up.
    os._exit(main(sys.argv, os.environ))
