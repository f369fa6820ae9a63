"""Fences of sound devices on a bad network: every one has to succeed.

    python3 tests/honest_fences.py [--rounds 1000] [--seed N]

Each round takes a virtual device of any dialect with random properties (login, meter, several
outlets) and gives it one trouble that a network or a small device has on an ordinary day. The real
script is run as a process. What is counted: exit codes, and contacts that are not as they should.
"""
import argparse
import collections
import concurrent.futures
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import fencetool
from tests import support, virtual, virtual_klap

WORKERS = 10
FAMILIES = tuple(virtual.DEVICES.values()) + virtual_klap.DEVICES
LIMITS = {"login_timeout": "5", "shell_timeout": "2", "power_timeout": "40",
          "stonith_status_sleep": "200ms"}
ACTIONS = ("off", "off", "off", "reboot", "on")


def lose_answers(device, chance):
    """Lose a part of the answers by chance: each n-th one would be the same one of every look.

    It is the smaller, the more answers one look takes.
    """
    part = chance.choice((0.4, 0.8, 1.2)) / device.bearable
    answer = device.send_answer

    def send_answer(*sent):
        device.lose_every = 1 if chance.random() < part else 0
        return answer(*sent)
    device.send_answer = send_answer


def answer_slowly(device, chance):
    slow = chance.uniform(0.1, 0.8)
    answer = device.send_answer
    device.send_answer = lambda *sent: (time.sleep(slow), answer(*sent))[1]


def restart(device, chance):
    """Refuse every connection for a second, once, after some answers; sessions are forgotten."""
    last = chance.randrange(1, 6)
    answers, down = [], threading.Event()
    answer, converse = device.send_answer, device.converse

    def send_answer(*sent):
        answers.append(1)
        if len(answers) == last:
            down.set()
            getattr(device, "sessions", {}).clear()
            threading.Timer(chance.uniform(0.3, 1.5), down.clear).start()
            raise ConnectionError("restarts")
        return answer(*sent)
    device.send_answer = send_answer
    device.converse = lambda handle: None if down.is_set() else converse(handle)


def hang_up(device, chance):
    """Close the connection after each answer, as web servers do anyway."""
    if hasattr(device, "answers_a_connection"):
        device.answers_a_connection = 1


def obey_late(device, chance):
    device.fault = "late"


def drop_acknowledgement(device, chance):
    device.fault = "drop"


TROUBLES = (None, lose_answers, answer_slowly, restart, hang_up, obey_late, drop_acknowledgement)


def make_device(family, chance):
    """Return (virtual device of a class, parameters beside its address, outlets that are meant)."""
    options = dict(chance.choice(family.logins)) if family.logins and chance.random() < 0.4 else {}
    options.update(family.meter if family.meter and chance.random() < 0.6 else {})
    several = family.two and chance.random() < 0.4
    is_list = several and chance.random() < 0.5
    if several:
        options["aliases"] = family.two + (("other",) if is_list else ())
    device = family(**options)
    parameters = dict(family.parameters, **fencetool.DIALECTS[family.dialect].fixed)
    if "password" in options:
        parameters.update(username="admin", password=options["password"])
    if several:
        parameters["plug"] = device.both if is_list else device.second
    elif chance.random() < 0.5:
        parameters["nodename"] = parameters["plug"] = "node"
    return device, parameters, device.outlets[:2] if is_list else device.outlets[-1:]


def run_round(number, seed):
    """Return (what was tried, what went wrong or "")."""
    chance = random.Random("%s-%d" % (seed, number))
    device, parameters, meant = make_device(chance.choice(FAMILIES), chance)
    trouble, action = chance.choice(TROUBLES), chance.choice(ACTIONS)
    wanted = [action != "off" if outlet in meant else outlet.powered for outlet in device.outlets]
    device.start()
    try:
        if trouble:
            trouble(device, chance)
        call = dict(LIMITS, ip=device.address[0], ipport=str(device.address[1]), action=action,
                    **parameters)
        result = support.on_stdin(device.agent, call)
    finally:
        device.stop()
    tried = "%s, %s of %d, %s" % (device.title or device.dialect, action, len(meant),
                                  trouble.__name__ if trouble else "no trouble")
    wrong = result.err.strip() if result.code or result.err else ""
    found = [outlet.powered for outlet in device.outlets]
    if not wrong and found != wanted:
        wrong = "the contacts are %s and not %s" % (found, wanted)
    return tried, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", default=str(random.randrange(1000000)))
    options = parser.parse_args()
    started = time.monotonic()
    counts, failures = collections.Counter(), 0
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        rounds = pool.map(lambda number: run_round(number, options.seed), range(options.rounds))
        for number, (tried, wrong) in enumerate(rounds):
            counts[tried.split(",")[0]] += 1
            if wrong:
                failures += 1
                print("round %d: %s: %s" % (number, tried, wrong))
    print("seed %s: %d honest fences (%s) in %.0f s, %d failed" % (
        options.seed, options.rounds,
        ", ".join("%s %d" % item for item in sorted(counts.items())),
        time.monotonic() - started, failures))
    return 1 if failures or not counts else 0


if __name__ == "__main__":
    sys.exit(main())
