"""Random failures under a real cluster, for as many rounds as you like. As root:

    python3 tests/cluster/soak.py --rounds 30 [--seed S] [--cluster three|two|device]

Each round kills, freezes or cuts off a node, most with a trouble on top that is mended after the
first fence that failed, or when nobody fences. The seed makes the same choices again; the times
are the machine's. A cluster of two nodes has no third vote, or a quorum device.
"""

import argparse
import collections
import os
import random
import re
import statistics
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tests.cluster import fenced, harness
from tests.cluster.test_scenarios import OTHER, SHORT, SHORT_CHECK

ROUND_WAIT_S = 180
# Nobody without quorum fences, and a node alone waits for a person.
PATIENCE_S = 30
PLUG_OF = {node: (name, number) for name, plug in fenced.PLUGS.plugs.items()
           for number, node in plug["feeds"].items()}
FAILED = r"Fence operation \d+ for \S+ failed"
FENCED = r"Operation 'reboot' targeting (\S+) by [^\n]*: OK"
REASON = re.compile(r"stderr: \[ (fence_\w+: (?:off|reboot) .*) \]")

Death = collections.namedtuple("Death", "name strike")
Trouble = collections.namedtuple("Trouble", "name deaths strike")
Round = collections.namedtuple("Round", "death trouble victim missed reasons fenced_s failover_s")
Kind = collections.namedtuple("Kind", "layout deaths troubles")


def cut_off(cluster, victim):
    cluster.partition([[victim], [name for name in harness.NODES if name != victim]])


def split(cluster, victim):
    """Let the storage nodes lose each other; who of them is fenced is not the victim's affair."""
    cluster.partition([[name] for name in harness.STORAGE])


def wake_alone(cluster, victim):
    """Let both nodes die, and the other one come back alone."""
    other = OTHER[victim]
    for name in harness.STORAGE:
        cluster[name].cut_power()
    before = len(cluster.tenures())
    cluster[other].boot()
    if cluster.voting is harness.TWO_NODES:
        cluster.wait_for(lambda: cluster.is_alone(other), ROUND_WAIT_S, other + " is alone")
        assert len(cluster.tenures()) == before, "a node that waits for all has started something"
        cluster.unblock(other)


KILLED = Death("killed", lambda cluster, victim: cluster[victim].cut_power())
FROZEN = Death("frozen", lambda cluster, victim: cluster[victim].freeze())
CUT_OFF = Death("cut off", cut_off)
SPLIT = Death("split", split)
ALONE = Death("alone", wake_alone)


def lie(**attributes):
    return lambda cluster, victim: cluster.plugs[PLUG_OF[victim][0]].set(**attributes)


def wrong_cable(cluster, victim):
    cluster.plugs[PLUG_OF[victim][0]].cable(number=99, node=victim)


def lose_plugs(cluster, victim):
    cluster.network.set_link("plugs", "management", False)


def blind_checkers(cluster, victim):
    for name in harness.STORAGE:
        if name != victim:
            cluster[name].link("storage", up=False)


def lose_answers(cluster, victim):
    for plug in cluster.plugs.values():
        plug.set(lose_every=3)


def lose_switch(cluster, victim):
    cluster.network.cut_switch("management")


def lose_gateway(cluster, victim):
    cluster.network.set_link("witness", "client", False)


def lose_device(cluster, victim):
    cluster.network.set_link("quorum", "management", False)


def stall(cluster, victim):
    cluster.plugs[PLUG_OF[victim][0]].stall(seconds=1.5, answers=3)


# A node that is cut off with a plug that lies is beyond all proof: what would show its life is cut
# off with it. So the lies go with the other deaths.
LIED_ABOUT = ("killed", "frozen")
NEARLY_ALL = LIED_ABOUT + ("cut off", "split", "alone")
TROUBLES = (
    Trouble("none", NEARLY_ALL, lambda cluster, victim: None),
    Trouble("the plug ignores commands", NEARLY_ALL, lie(fault="ignore")),
    Trouble("the relay is welded", LIED_ABOUT, lie(fault="welded")),
    Trouble("a UPS", LIED_ABOUT, lie(ups=True)),
    Trouble("the cable is elsewhere", LIED_ABOUT, wrong_cable),
    Trouble("the plug hangs up on commands", NEARLY_ALL, lie(fault="drop")),
    Trouble("the plug answers garbage", NEARLY_ALL, lie(fault="garbage")),
    Trouble("no way to the plugs", NEARLY_ALL, lose_plugs),
    Trouble("the checker without its storage link", NEARLY_ALL, blind_checkers),
    Trouble("every third answer lost", NEARLY_ALL, lose_answers),
    Trouble("slow answers", NEARLY_ALL, stall),
)
OF_TWO = TROUBLES + (
    Trouble("no management switch", NEARLY_ALL, lose_switch),
    Trouble("no gateway", NEARLY_ALL, lose_gateway),
)
OF_DEVICE = OF_TWO + (
    Trouble("no quorum device", NEARLY_ALL, lose_device),
)
KINDS = {
    "three": Kind(fenced.PLUGS, (KILLED, FROZEN, CUT_OFF), TROUBLES),
    "two": Kind(fenced.TWO_NODES, (KILLED, FROZEN, SPLIT, ALONE), OF_TWO),
    "device": Kind(fenced.QUORUM_DEVICE, (KILLED, FROZEN, CUT_OFF, SPLIT, ALONE), OF_DEVICE),
}


def play(cluster, kind, chance):
    """Play one round and return it; AssertionError when the cluster did not recover."""
    cluster.make_whole()
    holder = cluster.wait_for_holder()
    victim = chance.choice([holder, holder] + [one for one in cluster.nodes if one != holder])
    death = chance.choice(kind.deaths)
    trouble = chance.choice([one for one in kind.troubles if death.name in one.deaths])
    if chance.random() < 0.3:
        trouble = kind.troubles[0]
    cluster.note("round: %s %s, %s" % (victim, death.name, trouble.name))
    watch = fenced.Watch(cluster)
    trouble.strike(cluster, victim)
    death.strike(cluster, victim)
    victim = wait_for_fence(cluster, watch, victim, death)
    fenced_s = time.monotonic()
    if victim == holder:
        cluster.wait_for_holder([OTHER[holder]])
    moved = [tenure.first_s for tenure in cluster.tenures()
             if tenure.node != holder and tenure.first_s > watch.started_s]
    return Round(death.name, trouble.name, victim, watch.count(FAILED),
                 sorted(set(REASON.findall(watch.log()))), fenced_s - watch.started_s,
                 min(moved) - watch.started_s if victim == holder else None)


def wait_for_fence(cluster, watch, victim, death):
    """Wait until the victim is fenced, of a split either node; return who was.

    The trouble is mended after the first failure, or when patience ends.
    """
    wanted = set(harness.STORAGE) if death is SPLIT else {victim}
    is_mended = False
    started_s = time.monotonic()
    while True:
        fenced_now = wanted.intersection(re.findall(FENCED, watch.log()))
        if fenced_now:
            return fenced_now.pop()
        waited_s = time.monotonic() - started_s
        if waited_s > ROUND_WAIT_S:
            raise harness.NotReached("%s is not fenced\n%s" % (victim, cluster.describe()))
        if not is_mended and (watch.count(FAILED) or waited_s > PATIENCE_S):
            cluster.mend()
            is_mended = True
        time.sleep(harness.POLL_S)


def wrongs_of(cluster):
    """Return what must never happen and has, as lines of text."""
    return cluster.false_successes() + [
        "%s and %s wrote at once" % (one.node, other.node)
        for one, other in cluster.overlapping_writers()]


def describe(number, played):
    """Return the verdict on a round, with the reasons for fences that were refused."""
    return "%3d  %-6s  %-9s %-7s  %-36s fenced %5.1f s  %s%s" % (
        number, "MISSED" if played.missed else "good", played.victim, played.death,
        played.trouble, played.fenced_s,
        "moved %5.1f s" % played.failover_s if played.failover_s else "",
        "".join("\n       %s" % reason for reason in played.reasons))


def print_figures(kind, rounds, broken, wrongs):
    print("\nrounds %d, false successes %d, rounds without recovery %d" % (
        len(rounds) + broken, len(wrongs), broken))
    print("missed fences %d in %d rounds, by the trouble that was on:" % (
        sum(played.missed for played in rounds), sum(played.missed > 0 for played in rounds)))
    for trouble in kind.troubles:
        missed = [played.missed for played in rounds if played.trouble == trouble.name]
        print("    %3d in %2d rounds  %s" % (sum(missed), len(missed), trouble.name))
    moved = [played for played in rounds if played.failover_s]
    print_times("nothing missed", [one.failover_s for one in moved if not one.missed])
    print_times("all", [one.failover_s for one in moved])


def print_times(which, times):
    if times:
        print("death to failover, %s: median %.1f s, worst %.1f s (%d rounds)" % (
            which, statistics.median(times), max(times), len(times)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=random.randrange(10 ** 6))
    parser.add_argument("--cluster", choices=sorted(KINDS), default="three")
    options = parser.parse_args()
    reasons = harness.missing_requirements()
    if reasons:
        sys.exit("no cluster here: " + "; ".join(reasons))
    print("seed %d" % options.seed, flush=True)
    limits = {"fence-" + node: SHORT for node in harness.NODES}
    limits.update({"fence-verify-" + node: SHORT_CHECK for node in harness.NODES})
    kind = KINDS[options.cluster]
    if kind.layout.voting is harness.TWO_NODES:
        # The delay that decides a race comes on top.
        limits["fence-storage-a"] = dict(SHORT, pcmk_off_timeout=25)
    cluster = fenced.FencedCluster(kind.layout, limits=limits, **{"stonith-max-attempts": 1000})
    with cluster:
        is_good = run_rounds(cluster, kind, options.rounds, random.Random(options.seed))
    sys.exit(0 if is_good else 1)


def run_rounds(cluster, kind, count, chance):
    """Play the rounds, print each and the figures; return whether nothing wrong has happened."""
    rounds, wrongs, broken = [], [], 0
    for number in range(1, count + 1):
        try:
            rounds.append(play(cluster, kind, chance))
            print(describe(number, rounds[-1]), flush=True)
        except AssertionError as failure:
            broken += 1
            print("%3d  NO RECOVERY: %s" % (number, failure), flush=True)
        for wrong in wrongs_of(cluster)[len(wrongs):]:
            wrongs.append(wrong)
            print("%3d  WRONG: %s" % (number, wrong), flush=True)
    print_figures(kind, rounds, broken, wrongs)
    return not (wrongs or broken)


if __name__ == "__main__":
    main()
