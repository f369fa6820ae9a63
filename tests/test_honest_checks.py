"""What is really dead, in sound networks, is proven dead: nothing honest is blocked."""
import unittest

from tests import honest_checks, support

ROUNDS = 100


class Honest(support.AgentTest):
    def test_no_honest_verified_fence_is_blocked(self):
        lab = honest_checks.HonestLab()
        self.addCleanup(lab.close)
        found = honest_checks.run_rounds(lab, ROUNDS, "a seed of the test")
        self.assertEqual({kind for kind, _ in found}, set(honest_checks.KINDS))
        for kind, result in found:
            with self.subTest(kind):
                self.assert_success(result)


if __name__ == "__main__":
    unittest.main()
