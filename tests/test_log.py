"""What stays behind after an action: one line in syslog, the steps when asked for."""
import os
import socket
import sys
import tempfile

from tests import support, virtual
from tests.support import AgentTest, on_stdin

# Runs the script in a mount namespace with a /dev of its own, whose /dev/log is the socket given.
WITH_OWN_SYSLOG = """
mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 &&
ln -s "$1" /dev/log && exec "$2" -IS "$3" fence_kasa
"""


class Syslog(AgentTest):
    def run_with_syslog(self, parameters, hangs=False):
        """Return the Result and the lines that reached syslog; one that hangs takes no more."""
        support.require_namespaces("mount")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(folder.name, "log")
        log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(log.close)
        log.bind(path)
        log.setblocking(False)
        if hangs:
            self.fill(path)
        result = support.run(
            ["unshare", "-m", "sh", "-c", WITH_OWN_SYSLOG, "sh", path, sys.executable,
             support.compiled_script()],
            stdin="".join("%s=%s\n" % item for item in parameters.items()),
            environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        lines = []
        while True:
            try:
                lines.append(log.recv(65536).decode("utf-8"))
            except BlockingIOError:
                return result, lines

    def fill(self, path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            writer.setblocking(False)
            writer.connect(path)
            try:
                while True:
                    writer.send(b"x")
            except BlockingIOError:
                pass

    def test_a_success_leaves_one_line_that_tells_everything(self):
        device = self.start(virtual.Kasa())
        result, lines = self.run_with_syslog(self.address(
            device, action="off", nodename="storage-b"))
        self.assert_success(result)
        self.assertEqual(len(lines), 1, lines)
        self.assertRegex(lines[0], r"fence_kasa\[\d+\]: action=off target=storage-b "
                         r"device=kasa@127\.0\.0\.1:\d+ plug=- ms=\d+ attempts=2 "
                         r"outcome=Success: Powered OFF")

    def test_a_failure_leaves_one_line_with_its_reason(self):
        device = self.start(virtual.Kasa(fault="refuse"))
        result, lines = self.run_with_syslog(self.address(
            device, action="status", nodename="storage-b", password="hush"))
        self.assert_failure(result, "Connection refused")
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("attempts=2 outcome=failed: no connection: Connection refused", lines[0])
        self.assertNotIn("hush", lines[0])

    def test_a_log_daemon_that_hangs_does_not_hold_up_a_fence(self):
        device = self.start(virtual.Kasa())
        result, lines = self.run_with_syslog(self.address(device, action="off"), hangs=True)
        self.assert_success(result)
        self.assertFalse(any("outcome" in line for line in lines))

    def test_bad_input_is_in_syslog_too(self):
        result, lines = self.run_with_syslog({"action": "off"})
        self.assert_failure(result, "no ip given")
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("no ip given", lines[0])

    def test_a_failing_power_on_of_a_reboot_is_in_syslog(self):
        device = self.start(virtual.Kasa())
        device.on_power = lambda number, powered: setattr(device, "fault", "ignore")
        result, lines = self.run_with_syslog(self.address(
            device, action="reboot", power_timeout="4", retry_on="0"))
        self.assertEqual(result.code, 0)
        words = "stays OFF until somebody switches it on"
        self.assertTrue(any(words in line for line in lines), lines)


class Steps(AgentTest):
    def test_verbose_tells_the_steps_and_twice_also_the_messages(self):
        device = self.start(virtual.Kasa())
        once = on_stdin("fence_kasa", self.address(device, action="off", verbose="1"))
        twice = on_stdin("fence_kasa", self.address(device, action="off", verbose_level="2"))
        self.assertIn("not confirmed yet: one more look", once.err)
        self.assertNotIn("get_sysinfo", once.err)
        self.assertIn('<- {"system": {"get_sysinfo": {}}}', twice.err)
        self.assertIn('-> {"system":{"set_relay_state":{"err_code":0}}}', twice.err)

    def test_the_debug_file_holds_the_steps_with_the_time_of_day(self):
        device = self.start(virtual.Kasa())
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "debug.log")
            self.assert_success(on_stdin("fence_kasa", self.address(
                device, action="off", debug_file=path)))
            with open(path) as handle:
                lines = handle.readlines()
        self.assertRegex(lines[0], r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d fence_kasa: ")
        self.assertTrue(any("outcome=Success" in line for line in lines))
