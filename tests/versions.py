"""What differs between the versions of the cluster's programs: known here, and asked by the tests.

Seen: pcs 0.10.8, 0.11.5, 0.12.0; Pacemaker 2.0.5, 2.1.5, 3.0.0 (Debian 11, 12, 13).
"""
import collections
import functools
import re

from tests import support

# One row for each change: what holds from that version of pcs on.
PcsChange = collections.namedtuple("PcsChange", "since asks_agent of_target level")
PCS_CHANGES = (
    # asks_agent: options that make pcs ask the agent whether its parameters are valid.
    # of_target: what stands before the node in pcs stonith level remove.
    # level: how pcs shows a level of two devices, with one blank between words.
    PcsChange(since=(0, 10), asks_agent=(), of_target=(),
              level="Target: {node} Level {index} - {devices[0]},{devices[1]}"),
    PcsChange(since=(0, 11), asks_agent=("--agent-validation",), of_target=("target",),
              level="Target: {node} Level {index} - {devices[0]},{devices[1]}"),
    PcsChange(since=(0, 12), asks_agent=("--agent-validation",), of_target=("target",),
              level="Target (node): {node} Level {index}: {devices[0]} {devices[1]}"),
)
# Before, a value in the CIB that is not ASCII is stored damaged, and nothing is said.
PACEMAKER_STORES_UNICODE = (2, 1)

# What the log says when the cluster wants a node fenced; "targeting" since Pacemaker 3.0.
FENCING_WANTED = "Requesting fencing .* (of|targeting) node %s"


@functools.lru_cache(maxsize=None)
def ask(*argv):
    """Return what a program says of itself: it says the same in all of a run."""
    result = support.run([support.require_program(argv[0])] + list(argv[1:]),
                         environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    if result.code != 0:
        raise AssertionError("%s: %s" % (" ".join(argv), result.err))
    return result.out


def version_of(*argv):
    """Return the first version in what a program says, as a tuple of numbers."""
    found = re.search("[0-9]+([.][0-9]+)+", ask(*argv)).group()
    return tuple(int(number) for number in found.split("."))


def pcs_change():
    """Return the row of PCS_CHANGES that holds for the pcs of this machine."""
    version = version_of("pcs", "--version")
    return [row for row in PCS_CHANGES if row.since <= version][-1]


def pacemaker_stores(text):
    """Return whether this Pacemaker stores a CIB with that text undamaged."""
    is_ascii = all(ord(letter) < 128 for letter in text)
    return is_ascii or version_of("pacemakerd", "--version") >= PACEMAKER_STORES_UNICODE


def render_level(index, node, *devices):
    """Return the text with which pcs shows a level of two devices, one blank between words."""
    return pcs_change().level.format(index=index, node=node, devices=devices)


def revised_status(shown):
    """Return the part of what crm_simulate shows that tells how things are in the end."""
    return re.split("Revised [Cc]luster [Ss]tatus", shown)[1]


def empty_cib_attributes():
    """Return the attributes of an empty CIB of this Pacemaker: its schema and its feature set."""
    return re.search("<cib ([^>]*)>", ask("cibadmin", "--empty")).group(1)
