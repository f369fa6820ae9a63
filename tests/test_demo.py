"""The demo is the first thing that a stranger runs: it must go as told, without root or network."""
import os
import shutil
import sys
import tempfile
import unittest

import fencetool
from tests import support


class Demo(unittest.TestCase):
    def test_the_demo_goes_as_told(self):
        self.assert_as_told(support.run([sys.executable, "-IS", support.SCRIPT, "demo"]))

    def test_the_demo_goes_as_told_without_root_and_network(self):
        support.require_namespaces("ip", "setpriv")
        support.require_system_python()
        with tempfile.TemporaryDirectory() as folder:
            # The checkout may lie where nobody else can read.
            os.chmod(folder, 0o755)
            self.run_demo_as_nobody(shutil.copy(support.SCRIPT, folder))

    def run_demo_as_nobody(self, script):
        # A network namespace of its own has nothing but loopback.
        script = ("ip link set lo up && exec setpriv --reuid 65534 --regid 65534 --clear-groups "
                  "/usr/bin/python3 -IS %s demo" % script)
        result = support.run(["unshare", "-n", "sh", "-c", script],
                             environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
        self.assert_as_told(result)

    def test_every_way_that_people_need_has_a_step(self):
        steps = [step.parameters for step in fencetool.DEMO_STEPS]
        for words in (("protocol=klap", "username=", "password="), ("plug=1,5",),
                      ("power_off_body=", "status_member=", "status_off_value=")):
            with self.subTest(words):
                self.assertTrue(any(all(word in step for word in words) for step in steps))

    def assert_as_told(self, result):
        self.assertEqual((result.code, result.err), (0, ""), result.out)
        self.assertIn("The plugs are simulated", result.out)
        self.assertIn("NOT fenced", result.out)
        self.assertNotIn("NOT as told", result.out)

    def test_a_step_that_does_not_go_as_told_fails_the_demo(self):
        code = ("import sys; sys.path.insert(0, %r); import fencetool; "
                "fencetool.DEMO_STEPS = (fencetool.DEMO_STEPS[0]._replace(expected=1),); "
                "sys.exit(fencetool.main(['fencetool', 'demo'], {}))" % support.ROOT)
        result = support.run([sys.executable, "-B", "-c", code])
        self.assertEqual(result.code, 1, result)
        self.assertIn("1 of 1 steps did not go as told", result.out)
