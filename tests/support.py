"""What the tests share: running the real script as Pacemaker does, and saying what is missing."""
import atexit
import collections
import concurrent.futures
import functools
import glob
import os
import py_compile
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "fencetool.py")
# Limits that keep a fault's test short; all of them together are the most an action may take.
SHORT_LIMITS = {"login_timeout": "1", "shell_timeout": "1", "power_timeout": "3",
                "stonith_status_sleep": "200ms"}

# For what must succeed: it ends early, and a loaded machine may be slow.
PATIENT_LIMITS = {"login_timeout": "10", "shell_timeout": "20", "power_timeout": "40"}

Result = collections.namedtuple("Result", "code out err seconds")


def require(condition, reason):
    """Skip the test for this reason unless condition; with FENCETOOL_TEST_ALL=1 fail instead."""
    if condition:
        return
    if os.environ.get("FENCETOOL_TEST_ALL") == "1":
        raise AssertionError("must not be skipped here: " + reason)
    raise unittest.SkipTest(reason)


def require_program(name):
    """Return the path of a program, or skip the test that needs it."""
    # The system's own directories first: a version manager's python3 is a script that needs bash.
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ.get("PATH", ""))
    require(path, "%s is not installed" % name)
    return path


def require_root():
    require(os.geteuid() == 0, "needs root")


def require_system_python():
    """Return the system's own python3: what strangers may run, and what the script names."""
    require(os.access("/usr/bin/python3", os.X_OK), "/usr/bin/python3 is not there")
    return "/usr/bin/python3"


def require_namespaces(*programs):
    """Skip the test unless it may have mounts and a network of its own, and these programs."""
    require_root()
    for name in programs:
        require_program(name)
    program = require_program("unshare")
    refused = run([program, "-m", "-n", "true"], environment=dict(os.environ)).err.strip()
    require(not refused, "root may not make namespaces here: " + refused)


def require_localhost():
    try:
        socket.getaddrinfo("localhost", None)
    except OSError:
        require(False, "the name localhost has no address here")


def run(argv, stdin="", environment=None, cwd=None, timeout=90, **options):
    """Run a program to its end and return its Result; stdin is text or bytes."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode("utf-8")
    started = time.monotonic()
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, cwd=cwd,
                             env={} if environment is None else environment, **options)
    try:
        out, err = child.communicate(data, timeout=timeout)
    finally:
        if child.poll() is None:
            child.kill()
            child.communicate()
    return Result(child.returncode, out.decode("utf-8", "surrogateescape"),
                  err.decode("utf-8", "surrogateescape"), time.monotonic() - started)


@functools.lru_cache(maxsize=None)
def compiled_script():
    """Return the path of the script as this Python compiles it, for as long as the process lives.

    Where the file itself is started, most of a run's time goes into compiling it. In a run of all
    tests, the process above has done it.
    """
    if "FENCETOOL_TEST_SCRIPT" in os.environ:
        return os.environ["FENCETOOL_TEST_SCRIPT"]
    folder = tempfile.TemporaryDirectory(prefix="fencetool-test-")
    atexit.register(folder.cleanup)
    return py_compile.compile(SCRIPT, os.path.join(folder.name, "fencetool.pyc"), doraise=True)


def fencetool(*arguments, **options):
    """Run the script with arguments, in an empty environment."""
    return run([sys.executable, "-IS", compiled_script()] + list(arguments), **options)


def on_stdin(agent, parameters, **options):
    """Run an agent with its parameters on stdin, as Pacemaker does."""
    lines = "".join("%s=%s\n" % item for item in parameters.items())
    return fencetool(agent, stdin=lines, **options)


def in_argv(agent, parameters, **options):
    """Run an agent with the same parameters as options, as a person does."""
    arguments = ["--%s=%s" % (name.replace("_", "-"), value)
                 for name, value in parameters.items()]
    return fencetool(agent, *arguments, **options)


def at_once(calls, workers=8):
    """Run functions without arguments in parallel; return their results in order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda call: call(), calls))


def forget_logins(address):
    """Remove what agents have left to the next one of their logins to a virtual device."""
    for path in glob.glob("/run/fencetool/logins/%s:%d.*" % address[:2]):
        os.unlink(path)


class AgentTest(unittest.TestCase):
    """What holds for every call of an agent."""

    def start(self, device, *arguments, **options):
        """Start a virtual device that ends with the test; return it."""
        device.start(*arguments, **options)
        self.addCleanup(forget_logins, device.address)
        self.addCleanup(device.stop)
        return device

    def address(self, device, **parameters):
        """Return the parameters that reach a virtual device, and more of them."""
        found = {"ip": device.address[0], "ipport": str(device.address[1])}
        found.update(SHORT_LIMITS)
        found.update(parameters)
        return found

    def assert_success(self, result, code=0):
        self.assertEqual((result.code, result.err), (code, ""), result)

    def assert_failure(self, result, *words):
        """Exit 1, nothing on stdout, and exactly one line with the reason on stderr."""
        self.assertEqual((result.code, result.out), (1, ""), result)
        self.assertEqual(result.err.count("\n"), 1, result.err)
        self.assertNotIn("Traceback", result.err)
        self.assertNotIn("internal error", result.err)
        for word in words:
            self.assertIn(word, result.err)
