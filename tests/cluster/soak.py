"""Random failures under a real cluster, for as many rounds as you like. As root:

    python3 tests/cluster/soak.py --rounds 30 [--seed S]

Each round kills, freezes or cuts off a node, most with a trouble on top that is mended after the
first fence that failed. The seed makes the same choices again; the times are the machine's.
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
STORAGE = ("storage-a", "storage-b")
PLUG_OF = {node: (name, number) for name, plug in fenced.PLUGS.plugs.items()
           for number, node in plug["feeds"].items()}
FAILED = r"Fence operation \d+ for %s failed"
FENCED = r"Operation 'reboot' targeting %s by [^\n]*: OK"
REASON = re.compile(r"stderr: \[ (fence_\w+: (?:off|reboot) .*) \]")

Death = collections.namedtuple("Death", "name strike")
Trouble = collections.namedtuple("Trouble", "name deaths strike")
Round = collections.namedtuple("Round", "death trouble victim missed reasons fenced_s failover_s")


def cut_off(cluster, victim):
    cluster.partition([[victim], [name for name in harness.NODES if name != victim]])


DEATHS = (
    Death("killed", lambda cluster, victim: cluster[victim].cut_power()),
    Death("frozen", lambda cluster, victim: cluster[victim].freeze()),
    Death("cut off", cut_off),
)


def lie(**attributes):
    return lambda cluster, victim: cluster.plugs[PLUG_OF[victim][0]].set(**attributes)


def wrong_cable(cluster, victim):
    cluster.plugs[PLUG_OF[victim][0]].cable(number=99, node=victim)


def lose_plugs(cluster, victim):
    cluster.network.set_link("plugs", "management", False)


def blind_checkers(cluster, victim):
    for name in STORAGE:
        if name != victim:
            cluster[name].link("storage", up=False)


def lose_answers(cluster, victim):
    for plug in cluster.plugs.values():
        plug.set(lose_every=3)


def stall(cluster, victim):
    cluster.plugs[PLUG_OF[victim][0]].stall(seconds=1.5, answers=3)


# A node that is cut off with a plug that lies is beyond all proof: what would show its life is cut
# off with it. So the lies go with the other deaths.
NEARLY_ALL, LIED_ABOUT = ("killed", "frozen", "cut off"), ("killed", "frozen")
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


def play(cluster, chance):
    """Play one round and return it; AssertionError when the cluster did not recover."""
    cluster.make_whole()
    holder = cluster.wait_for_holder()
    victim = chance.choice([holder, holder, OTHER[holder], "quorum"])
    death = chance.choice(DEATHS)
    trouble = chance.choice([one for one in TROUBLES if death.name in one.deaths])
    if chance.random() < 0.3:
        trouble = TROUBLES[0]
    cluster.note("round: %s %s, %s" % (victim, death.name, trouble.name))
    watch = fenced.Watch(cluster)
    trouble.strike(cluster, victim)
    death.strike(cluster, victim)
    wait_for_fence(cluster, watch, victim)
    fenced_s = time.monotonic()
    if victim == holder:
        cluster.wait_for_holder([OTHER[holder]])
    moved = [tenure.first_s for tenure in cluster.tenures()
             if tenure.node != holder and tenure.first_s > watch.started_s]
    return Round(death.name, trouble.name, victim, watch.count(FAILED % victim),
                 sorted(set(REASON.findall(watch.log()))), fenced_s - watch.started_s,
                 min(moved) - watch.started_s if victim == holder else None)


def wait_for_fence(cluster, watch, victim):
    """Wait until the victim is fenced, and mend the trouble after the first failure."""
    is_mended = False
    deadline = time.monotonic() + ROUND_WAIT_S
    while not watch.count(FENCED % victim):
        if time.monotonic() > deadline:
            raise harness.NotReached("%s is not fenced\n%s" % (victim, cluster.describe()))
        if not is_mended and watch.count(FAILED % victim):
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


def print_figures(rounds, broken, wrongs):
    print("\nrounds %d, false successes %d, rounds without recovery %d" % (
        len(rounds) + broken, len(wrongs), broken))
    print("missed fences %d in %d rounds, by the trouble that was on:" % (
        sum(played.missed for played in rounds), sum(played.missed > 0 for played in rounds)))
    for trouble in TROUBLES:
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
    options = parser.parse_args()
    reasons = harness.missing_requirements()
    if reasons:
        sys.exit("no cluster here: " + "; ".join(reasons))
    print("seed %d" % options.seed, flush=True)
    limits = {"fence-" + node: SHORT for node in harness.NODES}
    limits.update({"fence-verify-" + node: SHORT_CHECK for node in harness.NODES})
    cluster = fenced.FencedCluster(fenced.PLUGS, limits=limits, **{"stonith-max-attempts": 1000})
    with cluster:
        is_good = run_rounds(cluster, options.rounds, random.Random(options.seed))
    sys.exit(0 if is_good else 1)


def run_rounds(cluster, count, chance):
    """Play the rounds, print each and the figures; return whether nothing wrong has happened."""
    rounds, wrongs, broken = [], [], 0
    for number in range(1, count + 1):
        try:
            rounds.append(play(cluster, chance))
            print(describe(number, rounds[-1]), flush=True)
        except AssertionError as failure:
            broken += 1
            print("%3d  NO RECOVERY: %s" % (number, failure), flush=True)
        for wrong in wrongs_of(cluster)[len(wrongs):]:
            wrongs.append(wrong)
            print("%3d  WRONG: %s" % (number, wrong), flush=True)
    print_figures(rounds, broken, wrongs)
    return not (wrongs or broken)


if __name__ == "__main__":
    main()
