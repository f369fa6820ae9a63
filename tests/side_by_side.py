"""Runs all tests at once: most of a test is waiting, so they run in several processes.

A class of a module that takes long has a process of its own, another module's classes share one.
What is compiled, the processes share: the modules, and the script that the tests start.

The parent reports what its children told into the one TestResult that unittest gave it: the names,
the texts, the counts and the exit code are unittest's own. What is named on the command line, as in
python3 -m unittest tests.test_values, runs as ever and does not come here.

Started as a program, this file is such a child: side_by_side DESCRIPTOR NAME...
"""
import collections
import concurrent.futures
import json
import os
import py_compile
import resource
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
JOBS_VARIABLE = "FENCETOOL_TEST_JOBS"
EXCEPT_VARIABLE = "FENCETOOL_TEST_EXCEPT"  # modules that are left out, by their names
JOBS_PER_CORE = 3
CLUSTER = "tests.cluster"
# No class takes as long, not even on a slow machine that has other work: it hangs.
CLASS_LIMIT_S, CLUSTER_LIMIT_S = 600, 3600
SHOWN_SLOWEST = 10
# Started first, so that at the end nobody waits for one of them alone; their classes run apart.
LONGEST = ("tests.test_generators_pcs", "tests.test_install", "tests.test_contract",
           "tests.test_rooms", "tests.test_secrets", "tests.test_fence_http",
           "tests.test_check_networks", "tests.test_fence_kasa", "tests.test_metadata",
           "tests.test_limits", "tests.test_demo")
# Started next: short, and waiting for something.
WAITING = ("tests.test_honest_checks", "tests.test_side_by_side", "tests.test_log",
           "tests.test_generators", "tests.test_check", "tests.test_plugin",
           "tests.test_cluster_file", "tests.test_outlets", "tests.test_klap_damage",
           "tests.test_shelly")
FINISHED = "finished"
FOLDER_VARIABLE = "FENCETOOL_TEST_COMPILED"
# The variable names a compiled script: see support.compiled_script.
SCRIPT, SCRIPT_VARIABLE = os.path.join(ROOT, "fencetool.py"), "FENCETOOL_TEST_SCRIPT"


def load(loader, pattern):
    """Return all tests below tests/ as a suite that runs them side by side."""
    # ROOT is told again, for "python3 -m unittest tests": only a discovery knows it.
    found = each_test(loader.discover(os.path.join(ROOT, "tests"), pattern or "test*.py", ROOT))
    left_out = {"tests." + name for name in os.environ.get(EXCEPT_VARIABLE, "").split()}
    return SideBySide(test for test in found if type(test).__module__ not in left_out)


def each_test(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from each_test(item)
        else:
            yield item


def place_of(group):
    """Return where a group stands in the order of their start."""
    early = LONGEST + WAITING
    return next((place for place, module in enumerate(early) if group.startswith(module)),
                len(early))


def group_of(test):
    """Return the name of what must stay together in a process."""
    kind = type(test)
    if kind.__module__.startswith(CLUSTER + "."):
        return CLUSTER  # there is one cluster, for one test at a time
    if kind.__module__ not in LONGEST:
        return kind.__module__  # starting a process would take longer than its tests
    return "%s.%s" % (kind.__module__, kind.__qualname__)


def share_compiled(folder):
    """Return the environment in which a process finds and keeps compiled files in a folder."""
    environment = dict(os.environ, **{FOLDER_VARIABLE: folder})
    if os.path.exists(SCRIPT):
        environment[SCRIPT_VARIABLE] = py_compile.compile(
            SCRIPT, os.path.join(folder, "fencetool.pyc"), doraise=True)
    return environment


class SideBySide(unittest.TestSuite):
    """Runs its tests in processes, several at once."""

    def run(self, result, debug=False):
        groups = {}
        for test in self:
            if type(test).__module__.startswith("tests."):
                groups.setdefault(group_of(test), []).append(test.id())
            else:
                test(result)  # says that a module cannot be imported
        report = Report(result, self.countTestCases())
        jobs = int(os.environ.get(JOBS_VARIABLE) or JOBS_PER_CORE * (os.cpu_count() or 1))
        with tempfile.TemporaryDirectory(prefix="fencetool-test-") as folder, \
                concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            environment = share_compiled(folder)
            waiting = [pool.submit(run_group, group, groups[group], environment)
                       for group in sorted(groups, key=place_of)]
            try:
                for job in concurrent.futures.as_completed(waiting):
                    for end in job.result():
                        report.add_process(*end)
                    if result.shouldStop:
                        break
            finally:
                for job in waiting:
                    job.cancel()
        report.end()
        return result


def run_group(group, names, environment):
    """Run tests in a process, and in another one those that it left when it ended early.

    Return of each process (group, its events, what went wrong, what it printed).
    """
    ends = []
    while names:
        ends.append(run_process(group, names, environment))
        _, events, trouble, _ = ends[-1]
        begun = [name for event, name, _, _ in events if event == "started"]
        names = names[names.index(begun[-1]) + 1:] if trouble and begun else []
    return ends


def run_process(group, names, environment):
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as printed:
        argv = [sys.executable] + ["-W" + option for option in sys.warnoptions]
        argv += ["-m", "tests.side_by_side", str(told.fileno())] + names
        child = subprocess.Popen(argv, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                                 stdout=printed, stderr=subprocess.STDOUT,
                                 pass_fds=[told.fileno()])
        trouble = wait_for(child, CLUSTER_LIMIT_S if group == CLUSTER else CLASS_LIMIT_S)
        told.seek(0)
        printed.seek(0)
        events = [json.loads(line) for line in told.read().decode("ascii").splitlines()]
        if not trouble and (not events or events[-1][0] != FINISHED):
            trouble = "its process ended before its tests did"
        return group, events, trouble, printed.read().decode("utf-8", "replace")


def wait_for(child, limit_s):
    """Return what is wrong with the end of a process, or an empty text."""
    try:
        code = child.wait(limit_s)
        return "its process ended with code %d" % code if code else ""
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)  # so that it cleans up
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        return "its process did not end within %d s" % limit_s


class Told(Exception):
    """A failure, in the words of the process in which it happened."""

    def __str__(self):
        return "\n" + self.args[0]


class NamedTest:
    """Stands in a TestResult for a test that ran elsewhere."""

    failureException = Told

    def __init__(self, name, description):
        self.name, self.description = name, description

    def id(self):
        return self.name

    def __str__(self):
        return self.description

    def shortDescription(self):
        return None


class Report:
    """Brings what the processes told into a TestResult, and shows how far they are."""

    def __init__(self, result, total):
        self.result, self.total = result, total
        self.seconds, self.work, self.shown, self.started = {}, {}, 0, time.monotonic()
        self.is_terminal = sys.stderr.isatty()
        result.dots = False  # the line of progress stands for them

    def add_process(self, group, events, trouble, printed):
        without_result = None
        for event, name, description, detail in events:
            test = NamedTest(name, description)
            if event == "started":
                without_result = test
                self.result.startTest(test)
            elif event == "ended":
                self.result.stopTest(test)
                self.seconds[description], self.work[description] = detail
            elif event != FINISHED:
                without_result = None
                self.add(event, test, detail)
        if trouble:
            test = without_result or NamedTest(group, group)
            self.add("error", test, "%s\n%s" % (trouble, printed))
        elif printed:
            self.say("%s printed:\n%s" % (group, printed.rstrip("\n")))
        self.show()

    def add(self, event, test, detail):
        if event == "success":
            self.result.addSuccess(test)
        elif event == "skip":
            self.result.addSkip(test, detail)
        else:
            add = {"failure": self.result.addFailure, "error": self.result.addError}[event]
            add(test, (Told, Told(detail), None))

    def show(self):
        """Tell the progress: redrawn on a terminal, else a line for each tenth."""
        done, tenths = self.result.testsRun, 10 * self.result.testsRun // max(self.total, 1)
        bad = len(self.result.failures) + len(self.result.errors)
        line = "%d of %d tests, %d failed, %d s" % (
            done, self.total, bad, time.monotonic() - self.started)
        if self.is_terminal:
            sys.stderr.write("\r\033[K" + line)
            sys.stderr.flush()
        elif tenths > self.shown:
            self.say(line)
        self.shown = tenths

    def say(self, text):
        sys.stderr.write(("\r\033[K" if self.is_terminal else "") + text + "\n")
        sys.stderr.flush()

    def end(self):
        self.say_most("The slowest tests:", self.seconds)
        self.say_most("What keeps the processor longest, of %.0f s in all:"
                      % sum(self.work.values()), self.work)
        reasons = collections.Counter(reason for _, reason in self.result.skipped)
        for reason, count in sorted(reasons.items()):
            self.say("%4d skipped: %s" % (count, reason))

    def say_most(self, title, seconds_of):
        most = sorted(seconds_of.items(), key=lambda item: -item[1])[:SHOWN_SLOWEST]
        self.say("\n".join(["", title] + ["%6.1f s  %s" % (seconds, name)
                                          for name, seconds in most]))


def processor_seconds():
    """Return what this process and those that it has waited for have cost."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


class Teller(unittest.TestResult):
    """Writes what happens as lines of JSON, each at once: a process may end at any time."""

    def __init__(self, stream):
        super().__init__()
        self.stream, self.started, self.work = stream, time.monotonic(), 0

    def tell(self, event, test, detail=None):
        line = json.dumps([event, test.id(), str(test), detail])
        self.stream.write(line + "\n")
        self.stream.flush()

    def tell_texts(self):
        for event, pairs in (("failure", self.failures), ("error", self.errors)):
            while pairs:
                self.tell(event, *pairs.pop(0))

    def startTest(self, test):
        super().startTest(test)
        self.tell("started", test)
        self.started, self.work = time.monotonic(), processor_seconds()

    def stopTest(self, test):
        super().stopTest(test)
        self.tell("ended", test, [time.monotonic() - self.started,
                                  processor_seconds() - self.work])

    def addSuccess(self, test):
        self.tell("success", test)

    def addExpectedFailure(self, test, err):
        self.tell("success", test)

    def addUnexpectedSuccess(self, test):
        self.tell("failure", test, "unexpected success")

    def addSkip(self, test, reason):
        self.tell("skip", test, reason)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.tell_texts()

    def addError(self, test, err):
        super().addError(test, err)
        self.tell_texts()

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        self.tell_texts()


def main(descriptor, *names):
    if not sys.warnoptions:
        warnings.simplefilter("default")  # as unittest's own runner does
    if hasattr(sys, "pycache_prefix"):  # older Pythons would write beside the sources
        # Not by the environment: Python's own modules, nearly all here now, have theirs.
        sys.pycache_prefix, sys.dont_write_bytecode = os.environ.pop(FOLDER_VARIABLE), False
    os.set_inheritable(int(descriptor), False)
    with open(int(descriptor), "w", encoding="ascii") as stream:
        teller = Teller(stream)
        unittest.defaultTestLoader.loadTestsFromNames(names).run(teller)
        teller.tell(FINISHED, unittest.FunctionTestCase(main))


if __name__ == "__main__":
    main(*sys.argv[1:])
