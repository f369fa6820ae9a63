"""What the README says of the versions that are proven, against what is installed here."""
import os
import re
import unittest

from tests import support

ROWS = {"Python": "python3", "Pacemaker": "pacemaker", "corosync": "corosync", "pcs": "pcs",
        "crmsh": "crmsh"}


def read_table():
    """Return {Debian: {program: version}} as the README's table has them."""
    with open(os.path.join(support.ROOT, "README.md"), encoding="utf-8") as handle:
        section = handle.read().partition("\n### Versions\n")[2].partition("\n#")[0]
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")]
             for line in section.splitlines() if line.startswith("|")]
    debians = [name.replace("Debian ", "") for name in lines[0][1:]]
    return {debian: {line[0]: line[number] for line in lines[2:]}
            for number, debian in enumerate(debians, 1)}


class Readme(unittest.TestCase):
    def test_it_names_the_versions_of_this_debian(self):
        support.require_program("dpkg-query")
        with open("/etc/os-release", encoding="utf-8") as handle:
            debian = re.search('^VERSION_ID="(.*)"$', handle.read(), re.MULTILINE).group(1)
        told = read_table().get(debian)
        support.require(told, "the README has no row for Debian %s" % debian)
        for row, package in ROWS.items():
            result = support.run(["dpkg-query", "--show", "--showformat", "${Version}", package],
                                 environment=dict(os.environ))
            support.require(result.code == 0, "%s is not installed" % package)
            upstream = result.out.partition(":")[2] or result.out
            self.assertEqual(told[row], re.split("[-~+]", upstream)[0])
