"""What is too long, too slow, never read or never ends on this machine must not hold up a fence."""
import fcntl
import os
import subprocess
import sys
import tempfile

from tests import support, virtual
from tests.support import AgentTest, on_stdin

URLS = {"device": "url", "status_url": "/state", "power_off_url": "/off"}


class LimitTest(AgentTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def write_script(self, text, mode=0o700, name="script"):
        path = os.path.join(self.folder, name)
        with open(path, "w") as handle:
            handle.write("#!/bin/sh\n" + text)
        os.chmod(path, mode)
        return path

    def begin(self, parameters, agent="fence_kasa", **options):
        """Start an agent with its parameters on a stdin that stays open; return the process."""
        child = subprocess.Popen(
            [sys.executable, "-IS", support.compiled_script(), agent], stdin=subprocess.PIPE,
            env={}, **options)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.addCleanup(child.stdin.close)
        child.stdin.write("".join("%s=%s\n" % item for item in parameters.items()).encode())
        child.stdin.flush()
        return child


class TooMuch(LimitTest):
    def test_a_password_script_that_prints_without_end_is_told(self):
        device = self.start(virtual.Kasa())
        for text, words in (("head -c 40000000 /dev/zero | tr '\\0' x", "prints more than 4194304"),
                            ("yes hunter2 | head -c 30000000", "prints more than 4194304"),
                            ("yes hunter2 | head -c 30000000 >&2", "prints more than 4194304"),
                            ("head -c 4097 /dev/zero | tr '\\0' x", "more than 4096 characters")):
            with self.subTest(text):
                result = on_stdin("fence_kasa", self.address(
                    device, action="off", login_timeout="60",
                    password_script=self.write_script(text)))
                self.assert_failure(result, words)
                self.assertNotIn("hunter2", result.err)
        self.assertEqual(device.requests, [])

    def test_a_password_script_that_reads_nothing_and_prints_much_is_read(self):
        device = self.start(virtual.Kasa())
        script = self.write_script("head -c 200000 /dev/zero | tr '\\0' x >&2; echo word")
        self.assert_success(on_stdin("fence_kasa", self.address(
            device, action="status", login_timeout="60", password_script=script)))

    def test_a_value_of_a_hundred_thousand_characters_is_a_usage_error(self):
        device = self.start(virtual.Kasa())
        for name in ("password", "plug", "debug_file"):
            result = on_stdin("fence_kasa", self.address(
                device, action="status", verbose_level="2", **{name: "x" * 100000}))
            self.assert_failure(result, name + " has more than 4096 characters")
        self.assertEqual(device.requests, [])

    def test_thirty_thousand_parameters_are_a_usage_error(self):
        lines = "".join("password=%d\n" % number for number in range(30000))
        self.assert_failure(support.fencetool("fence_kasa", stdin="action=off\n" + lines,
                                              timeout=20), "more than 1000 parameters")


class TooSlow(LimitTest):
    def test_an_expression_that_would_take_for_ever_is_told(self):
        device = self.start(virtual.Switch())
        device.respond = lambda method, path, fields: (200, {}, "<td>" + " " * 60)
        for action in ("status", "off"):
            result = on_stdin("fence_http", dict(self.address(
                device, action=action, status_on_regex=r"<td>(\s*)*ON", status_off_regex="OFF"),
                **URLS), timeout=60)
            self.assert_failure(result, "status_on_regex or status_off_regex takes too long")

    def test_an_expression_that_would_take_for_ever_on_nothing_is_told(self):
        for pattern in ("(|){64}(?=b)", "(" * 2000, "a{99999999999}"):
            result = on_stdin("fence_http", dict(
                URLS, ip="127.0.0.1", action="status", status_on_regex=pattern,
                status_off_regex="OFF"), timeout=60)
            self.assert_failure(result, "regular expression")

    def test_a_stdin_that_never_ends_is_told(self):
        device = self.start(virtual.Kasa())
        child = self.begin(self.address(device, action="off"), stderr=subprocess.PIPE)
        self.addCleanup(child.stderr.close)
        self.assertEqual(child.wait(30), 1)
        self.assertIn(b"stdin had not ended after 10 s", child.stderr.read())
        self.assertEqual(device.requests, [])


class NobodyReads(LimitTest):
    def fill_pipe(self):
        """Return the end of a full pipe that is written to; nobody reads from the other."""
        reading, writing = os.pipe()
        self.addCleanup(os.close, reading)
        self.addCleanup(os.close, writing)
        flags = fcntl.fcntl(writing, fcntl.F_GETFL)
        fcntl.fcntl(writing, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        try:
            while True:
                os.write(writing, b"x" * 4096)
        except BlockingIOError:
            fcntl.fcntl(writing, fcntl.F_SETFL, flags)
        return writing

    def end(self, child):
        child.stdin.close()
        return child.wait(30)

    def test_a_stderr_that_nobody_reads_does_not_hold_up_a_fence(self):
        device = self.start(virtual.Kasa())
        stderr = self.fill_pipe()
        child = self.begin(self.address(device, action="off", verbose_level="2"), stderr=stderr,
                           stdout=subprocess.DEVNULL)
        self.assertEqual(self.end(child), 0)
        self.assertFalse(device.outlets[0].relay)
        self.assertFalse(fcntl.fcntl(stderr, fcntl.F_GETFL) & os.O_NONBLOCK, "others share it")

    def test_a_stdout_that_nobody_reads_makes_no_failure_of_an_off(self):
        device = self.start(virtual.Kasa())
        child = self.begin(self.address(device, action="off"), stdout=self.fill_pipe(),
                           stderr=subprocess.DEVNULL)
        self.assertEqual(self.end(child), 0)

    def test_a_debug_file_that_nobody_reads_does_not_hold_up_a_fence(self):
        device = self.start(virtual.Kasa())
        path = os.path.join(self.folder, "pipe")
        os.mkfifo(path)
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, writing)
        try:
            while True:
                os.write(writing, b"x" * 4096)
        except BlockingIOError:
            pass
        self.assert_success(on_stdin("fence_kasa", self.address(
            device, action="off", debug_file=path, verbose_level="0"), timeout=60))

    def test_a_full_stdout_makes_no_failure_of_an_off(self):
        support.require(os.path.exists("/dev/full"), "there is no /dev/full")
        device = self.start(virtual.Kasa())
        for action, code in (("off", 0), ("on", 0), ("reboot", 0), ("monitor", 0), ("status", 1),
                             ("list", 1)):
            with open("/dev/full", "wb") as full, self.subTest(action):
                child = self.begin(self.address(device, action=action, verbose="1"), stdout=full,
                                   stderr=subprocess.PIPE)
                self.addCleanup(child.stderr.close)
                self.assertEqual(self.end(child), code)
                told = child.stderr.read().decode()
                self.assertIn("stdout" if action != "monitor" else "outcome=ok", told)
                self.assertIn("outcome=", told)


class Owners(LimitTest):
    def test_root_runs_no_password_script_that_others_could_change(self):
        support.require_root()
        device = self.start(virtual.Kasa())
        os.mkdir(os.path.join(self.folder, "shared"))
        bad = {
            "writable for all": self.write_script("echo word", 0o777, "a"),
            "writable for a group": self.write_script("echo word", 0o775, "b"),
            "of another user": self.write_script("echo word", 0o755, "c"),
            "in a directory for all": self.write_script("echo word", 0o700, "shared/d"),
            "behind a link": os.path.join(self.folder, "link")}
        os.chown(bad["writable for a group"], 0, 12345)
        os.chown(bad["of another user"], 12345, 0)
        os.chmod(os.path.join(self.folder, "shared"), 0o777)
        os.symlink("a", bad["behind a link"])
        for kind, script in bad.items():
            for action in ("status", "validate-all"):
                for text in (script, "/bin/sh " + script):
                    with self.subTest(kind, action=action, text=text):
                        self.assert_failure(on_stdin("fence_kasa", self.address(
                            device, action=action, password_script=text)),
                            "password_script", "and root would run it")
        good = {"its own": self.write_script("echo word", 0o700, "e"),
                "of root's group": self.write_script("echo word", 0o775, "f")}
        for kind, script in good.items():
            with self.subTest(kind):
                self.assert_success(on_stdin("fence_kasa", self.address(
                    device, action="status", password_script=script, login_timeout="20")))
