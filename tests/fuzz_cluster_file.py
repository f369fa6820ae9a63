"""Mutated cluster files against PyYAML: what the reader accepts must mean the same to both.

    python3 tests/fuzz_cluster_file.py --peer PYTHON --rounds 20000 --seed 1

PyYAML is a process of its own, run by a Python that has it, so this is no part of `python3 -m
unittest`. Prints its figures; exits 1 on a traceback or on a value that the two read differently.
"""
import argparse
import collections
import glob
import os
import json
import random
import subprocess
import sys
import textwrap
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import fencetool  # noqa: E402

FIXTURES = os.path.join(ROOT, "tests", "fixtures", "clusters")
PIECES = list("\t\r #:,-?[]{}&*!|>'\"%@`\\/~=<.0189aeony_$é\u0085\u00a0\u2028\ufeff\x00\x07") + [
    ": ", " #", "- ", "? ", ": |\n", ": >-\n", "---\n", "...\n", "--- ", "\n", "\n\n", "\r\n", "  ",
    "<<: *a\n", "&a ", "*a", "!vault |\n", "!!str ", "{{ x }}", "'{{ x }}'", "yes", "no", "~",
    "null",
    "010", "0x1F", "1:30", "1e3", "10.5", ".inf", "2020-01-01", '"\\x41"', '"\\ud83d"', "''", '""',
    "[]", "{}", "[a, b]", "{a: b}", "'a\n  b'", "stonith_nodes:\n", "%YAML 1.1\n", "a: b: c", "\\n"]
# A value of which only the place is compared: the reader says itself that it does not read it.
FOREIGN = object()

# What the peer runs: a line of JSON in, a line out. A text is answered by its documents, in which a
# scalar is "plain:VALUE" or "quoted:VALUE"; a list of plain scalars by the texts that they mean.
PEER = textwrap.dedent("""
    import json, sys, yaml

    def describe(node):
        if isinstance(node, yaml.MappingNode):
            return {key.value: describe(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [describe(value) for value in node.value]
        return ("quoted:" if node.style else "plain:") + node.value

    def answer(question):
        if isinstance(question, list):
            found = [yaml.safe_load("- " + text)[0] for text in question]
            return ["" if value is None else str(value) for value in found]
        try:
            nodes = yaml.compose_all(question, Loader=yaml.SafeLoader)
            documents = [describe(node) for node in nodes if node is not None]
            return [document for document in documents if document != "plain:"]
        except (yaml.composer.ComposerError, RecursionError):  # or a value that holds itself
            return None
        except yaml.YAMLError as error:
            return "PyYAML refuses it: " + " ".join(str(error).split())

    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
""")


class Peer:
    """PyYAML, in a process that ends with its input."""

    def __init__(self, python):
        self.process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, universal_newlines=True)

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def mutate(text, chance):
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        text = chance.choice(MUTATIONS)(text, chance)
    return text


def insert_piece(text, chance):
    place = chance.randrange(len(text) + 1)
    return text[:place] + chance.choice(PIECES) + text[place:]


def replace_piece(text, chance):
    place = chance.randrange(len(text) + 1)
    return text[:place] + chance.choice(PIECES) + text[place + chance.choice((1, 1, 2, 5)):]


def delete_part(text, chance):
    place = chance.randrange(len(text) + 1)
    return text[:place] + text[place + chance.choice((1, 1, 1, 2, 4, 20)):]


def change_indentation(text, chance):
    lines = text.split("\n")
    row = chance.randrange(len(lines))
    lines[row] = (lines[row][chance.choice((1, 2)):] if chance.random() < 0.5
                  else " " * chance.choice((1, 2, 4)) + lines[row])
    return "\n".join(lines)


def move_line(text, chance):
    lines = text.split("\n")
    line = lines[chance.randrange(len(lines))] if chance.random() < 0.3 else lines.pop(
        chance.randrange(len(lines)))
    lines.insert(chance.randrange(len(lines) + 1), line)
    return "\n".join(lines)


def replace_value(text, chance):
    lines = text.split("\n")
    rows = [row for row, line in enumerate(lines) if ":" in line]
    if rows:
        row = chance.choice(rows)
        lines[row] = lines[row].split(":")[0] + ": " + chance.choice(PIECES)
    return "\n".join(lines)


def cut_end(text, chance):
    return text[:chance.randrange(len(text) + 1)]


MUTATIONS = (insert_piece, replace_piece, delete_part, change_indentation, move_line, replace_value,
             replace_value, cut_end)


def describe_ours(node):
    """Return a fencetool.YamlNode as comparable data."""
    if node.foreign:
        return FOREIGN
    if node.kind == fencetool.MAP:
        return {key: describe_ours(value) for key, value in node.value.items()}
    if node.kind == fencetool.LIST:
        return [describe_ours(value) for value in node.value]
    return ("plain:" if node.kind == fencetool.PLAIN else "quoted:") + node.value


def difference(ours, theirs, path="document"):
    """Return where two descriptions differ, or ""."""
    if ours is FOREIGN:
        return ""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        if sorted(ours) != sorted(theirs):
            return "%s: keys %s, %s" % (path, sorted(ours), sorted(theirs))
        parts = [difference(ours[key], theirs[key], "%s.%s" % (path, key)) for key in ours]
    elif isinstance(ours, list) and isinstance(theirs, list):
        if len(ours) != len(theirs):
            return "%s: %d entries, %d" % (path, len(ours), len(theirs))
        parts = [difference(one, other, "%s[]" % path) for one, other in zip(ours, theirs)]
    else:
        return "" if ours == theirs else "%s: %r, %r" % (path, ours, theirs)
    return next(filter(None, parts), "")


def find_texts(node):
    """Yield (plain scalar, text) of what the reader takes for text below a node."""
    if node.foreign or node.kind == fencetool.TEXT:
        return
    if node.kind in (fencetool.MAP, fencetool.LIST):
        for value in node.value.values() if node.kind == fencetool.MAP else node.value:
            yield from find_texts(value)
        return
    try:
        yield node.value, fencetool.parse_text(fencetool.cluster_key("x"), node)
    except fencetool.UsageError:
        pass


def compare(text, peer):
    """Return (what became of the file, what went wrong or "")."""
    try:
        documents = fencetool.parse_yaml(text)
    except fencetool.SyntaxMistake as mistake:
        inside = 1 <= mistake.line <= text.count("\n") + 1
        return "refused", "" if inside else "line %d is not in the file" % mistake.line
    ours, theirs = [describe_ours(document) for document in documents], peer.ask(text)
    if theirs is None:
        return "accepted", ""  # an alias to nothing, which the reader leaves alone
    if isinstance(theirs, str):
        return "accepted", theirs
    wrong = difference(ours, theirs)
    texts = [pair for document in documents for pair in find_texts(document)]
    meant = peer.ask([plain for plain, _ in texts])
    wrong = wrong or next(("scalar %r: %r, %r" % (pair + (other,))
                           for pair, other in zip(texts, meant) if pair[1] != other), "")
    return "accepted", wrong


def read_corpus():
    texts = []
    for path in sorted(glob.glob(os.path.join(FIXTURES, "*.yml"))
                       + glob.glob(os.path.join(FIXTURES, "*", "*.yml"))):
        with open(path, encoding="utf-8") as handle:
            texts.append(handle.read())
    return texts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", default=sys.executable, help="a Python that has PyYAML")
    parser.add_argument("--rounds", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60, help="end after this time")
    parser.add_argument("--show", type=int, default=5, help="failures to show")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    corpus, started = read_corpus(), time.monotonic()
    counts, failures, peer = collections.Counter(), [], Peer(options.peer)
    for _ in range(options.rounds):
        text = mutate(chance.choice(corpus), chance)
        try:
            fate, wrong = compare(text, peer)
            cluster, _ = fencetool.parse_cluster("mutated.yml", text.encode("utf-8"))
            if cluster:
                counts["good clusters"] += 1
                fencetool.render_pcs(fencetool.build_configuration(cluster), "mutated.yml")
        except Exception:
            fate, wrong = "crashed", traceback.format_exc()
        counts[fate] += 1
        if wrong:
            failures.append((text, wrong))
        if time.monotonic() - started > options.seconds:
            break
    peer.end()
    for text, wrong in failures[:options.show]:
        print("=" * 80, text, "-" * 80, wrong, sep="\n")
    fates = ", ".join("%d %s" % (count, fate) for fate, count in sorted(counts.items()))
    rounds = sum(counts[fate] for fate in ("accepted", "refused", "crashed"))
    print("seed %d: %d rounds in %.1f s: %s, %d failures" % (
        options.seed, rounds, time.monotonic() - started, fates, len(failures)))
    return 1 if failures or not counts["accepted"] else 0


if __name__ == "__main__":
    sys.exit(main())
