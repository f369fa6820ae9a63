"""The run of all tests says what unittest would have said, whatever happens in its processes."""
import os
import re
import shutil
import sys
import tempfile
import unittest

from tests import support

GOOD = """
import unittest
class Good(unittest.TestCase):
    def test_passes(self):
        pass
    @unittest.skip("not here")
    def test_is_skipped(self):
        pass
"""
BAD = """
import os, unittest
class Fails(unittest.TestCase):
    def test_fails(self):
        self.assertEqual("this", "that")
    def test_has_subtests(self):
        for number in range(3):
            with self.subTest(number=number):
                self.assertEqual(number, 1)
    def test_raises(self):
        os.stat("/nonexistent/file")
class CannotBegin(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("no beginning")
    def test_never_runs(self):
        pass
class Crashes(unittest.TestCase):
    def test_crashes(self):
        print("last words", flush=True)
        os.abort()
class EndsEarly(unittest.TestCase):
    def test_ends_the_process_as_if_all_were_well(self):
        os._exit(0)
"""
HANGS = """
import os, signal, unittest
class Hangs(unittest.TestCase):
    def test_hangs(self):
        signal.pause()
"""


class Runner(unittest.TestCase):
    def run_project(self, *arguments, environment=None, **modules):
        """Run the tests of a project that consists of these modules and the real runner."""
        with tempfile.TemporaryDirectory(prefix="fencetool test ") as folder:
            package = os.path.join(folder, "tests")
            os.mkdir(package)
            for name in ("__init__.py", "side_by_side.py"):
                shutil.copy(os.path.join(support.ROOT, "tests", name), package)
            for name, text in modules.items():
                with open(os.path.join(package, name + ".py"), "w") as handle:
                    handle.write(text)
            return support.run([sys.executable, "-m", "unittest"] + list(arguments),
                               environment=environment, cwd=folder)

    def test_success_and_skips_are_told_as_unittest_does(self):
        end = r"(?s)\nRan (\d+) tests? in [0-9.]+s\n\n(OK.*)$"
        plain = self.run_project("tests.test_good", test_good=GOOD)
        for arguments in ((), ("discover",), ("tests",)):
            result = self.run_project(*arguments, test_good=GOOD)
            self.assertEqual((result.code, result.out), (0, ""), result.err)
            self.assertEqual(re.findall(end, result.err), re.findall(end, plain.err))
            self.assertIn("\nOK (skipped=1)\n", result.err)
            self.assertIn("\n   1 skipped: not here\n", result.err)
            self.assertIn("The slowest tests:\n", result.err)
            self.assertRegex(result.err, "[12] of 2 tests, 0 failed")

    def test_modules_can_be_left_out_by_their_names(self):
        result = self.run_project(test_good=GOOD, test_other=GOOD,
                                  environment={"FENCETOOL_TEST_EXCEPT": "test_other test_nosuch"})
        self.assertEqual(result.code, 0, result.err)
        self.assertIn("\nRan 2 tests in", result.err)

    def test_verbose_names_each_test(self):
        result = self.run_project("-v", test_good=GOOD)
        self.assertRegex(result.err, r"(?m)^test_is_skipped \(.*\) \.\.\. skipped 'not here'$")
        self.assertRegex(result.err, r"(?m)^test_passes \(.*\) \.\.\. ok$")

    def test_every_failure_is_named_with_its_text(self):
        result = self.run_project(test_good=GOOD, test_bad=BAD, test_broken="import nosuchmodule")
        self.assertEqual(result.code, 1)
        self.assertIn("\nFAILED (failures=3, errors=5, skipped=1)\n", result.err)
        for words in ("AssertionError: 'this' != 'that'", "(number=0)", "(number=2)",
                      "/nonexistent/file", "RuntimeError: no beginning",
                      "No module named 'nosuchmodule'", "its process ended with code -6",
                      "last words", "its process ended before its tests did"):
            self.assertIn(words, result.err)
        named = set(re.findall(r"(?m)^(?:FAIL|ERROR): (\w+)", result.err))
        self.assertEqual(named, {
            "test_fails", "test_has_subtests", "test_raises", "setUpClass", "test_crashes",
            "test_ends_the_process_as_if_all_were_well", "tests"} | (
                named & {"test_broken"}))

    def test_a_class_that_hangs_is_ended_and_named(self):
        limit = "from tests import side_by_side\nside_by_side.CLASS_LIMIT_S = 3\n"
        result = self.run_project(test_hangs=limit + HANGS)
        self.assertEqual(result.code, 1)
        self.assertIn("ERROR: test_hangs", result.err)
        self.assertIn("its process did not end within 3 s", result.err)

    def test_a_test_that_is_named_runs_in_the_process_that_was_started(self):
        result = self.run_project("tests.test_good.Good.test_passes", test_good=GOOD)
        self.assertEqual((result.code, result.err.count("The slowest tests")), (0, 0))
        self.assertIn("\nRan 1 test in", result.err)
