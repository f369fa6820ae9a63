"""The real cluster: corosync, pacemaker and pcs on three nodes in namespaces.

Runs only with FENCETOOL_TEST_CLUSTER=1: it takes many minutes, and nothing else depends on it.
"""
import os
import unittest

FOLDER = os.path.dirname(os.path.abspath(__file__))


def load_tests(loader, tests, pattern):
    if os.environ.get("FENCETOOL_TEST_CLUSTER") != "1":
        return unittest.TestSuite()
    return loader.discover(FOLDER, pattern=pattern or "test*.py",
                           top_level_dir=os.path.dirname(os.path.dirname(FOLDER)))
