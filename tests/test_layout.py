"""The order of the file is its design; these tests prove it from the syntax tree."""
import ast
import os
import re
import subprocess
import sys
import unittest

from tests import support

TITLES = ("ABOUT", "CONSTANTS", "ERRORS", "VALUES", "PARAMETERS", "WIRE FORMATS", "SYSTEM",
          "DEVICES", "PROBES", "FENCING", "AGENTS", "CLUSTER FILE", "GENERATORS", "COMMANDS",
          "SIMULATOR", "ENTRY")
# Section number to the sections it may use, besides itself.
MAY_USE = {
    1: set(), 2: set(), 3: {2}, 4: {2, 3}, 5: {2, 3, 4}, 6: {2, 3, 4},
    7: set(range(2, 7)),  # the kernel's own messages (routes, links) are wire formats too
    8: set(range(2, 8)), 9: set(range(2, 8)), 10: set(range(2, 10)), 11: set(range(2, 11)),
    12: set(range(2, 7)), 13: set(range(2, 7)) | {11, 12}, 14: set(range(2, 14)),
    15: set(range(2, 8)), 16: set(range(2, 16))}
PURE = {3, 4, 5, 6, 12, 13}
WORLD = {"socket", "os", "sys", "time", "syslog", "subprocess", "threading", "urllib", "ssl",
         "select", "fcntl"}
# Names of values and pure functions in modules that otherwise touch the world.
HARMLESS = {"os.path", "os.strerror", "socket.inet_pton", "socket.inet_ntop"}
LIGHT_IMPORTS = {"collections", "enum", "errno", "io", "json", "os", "re", "socket", "struct",
                 "sys", "syslog", "time", "types"}


def read_source():
    with open(support.SCRIPT, encoding="utf-8") as handle:
        return handle.read()


BANNER = r"^# SECTION (\d+): ([A-Z ]+) =+$"


class Layout(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = read_source()
        cls.tree = ast.parse(cls.source)
        cls.banners = [(int(number), title, cls.source[:match_start].count("\n") + 1)
                       for number, title, match_start in (
                           (match.group(1), match.group(2), match.start())
                           for match in re.finditer(BANNER, cls.source, re.M))]

    def section_at(self, line):
        found = 0
        for number, _, start in self.banners:
            if line >= start:
                found = number
        return found

    def definitions(self):
        """Return {name of a top-level definition: its section}."""
        found = {}
        for node in self.tree.body:
            names = []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [name.id for target in node.targets for name in ast.walk(target)
                         if isinstance(name, ast.Name)]
            for name in names:
                found.setdefault(name, self.section_at(node.lineno))
        return found

    def test_no_name_is_defined_twice(self):
        names = [node.name for node in self.tree.body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names += [target.id for node in self.tree.body if isinstance(node, ast.Assign)
                  for target in node.targets if isinstance(target, ast.Name)]
        self.assertEqual(sorted(name for name in set(names) if names.count(name) > 1), [])

    def test_banners_stand_in_their_order_with_their_titles(self):
        numbers = [number for number, _, _ in self.banners]
        self.assertEqual(numbers, sorted(set(numbers)))
        for number, title, line in self.banners:
            self.assertEqual(title, TITLES[number - 1])
            self.assertEqual(len(self.source.splitlines()[line - 1]), 100)

    def test_the_map_in_the_docstring_names_the_sections_that_exist(self):
        found = re.findall(r"(\d+) ([A-Z]+(?: [A-Z]+)*)", ast.get_docstring(self.tree))
        self.assertEqual([(int(number), title) for number, title in found],
                         [(number, title) for number, title, _ in self.banners])

    def test_each_section_uses_only_the_sections_it_may_use(self):
        defined = self.definitions()
        wrong = []
        for node in self.tree.body:
            here = self.section_at(node.lineno)
            for name in ast.walk(node):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load):
                    there = defined.get(name.id, here)
                    if there != here and there not in MAY_USE[here]:
                        wrong.append("line %d: section %d uses %s of section %d"
                                     % (name.lineno, here, name.id, there))
        self.assertEqual(wrong, [])

    def test_pure_sections_touch_nothing_outside(self):
        wrong = []
        for node in self.tree.body:
            if self.section_at(node.lineno) not in PURE:
                continue
            for part in ast.walk(node):
                if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    name = "%s.%s" % (part.value.id, part.attr)
                    if part.value.id in WORLD and name not in HARMLESS \
                            and not part.attr.isupper():
                        wrong.append("line %d: %s" % (part.lineno, name))
                if isinstance(part, ast.Call) and getattr(part.func, "id", "") in ("open", "print"):
                    wrong.append("line %d: %s" % (part.lineno, part.func.id))
        self.assertEqual(wrong, [])

    def test_a_leading_underscore_means_used_only_in_its_own_section(self):
        defined = {name: section for name, section in self.definitions().items()
                   if name.startswith("_") and not name.startswith("__")}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id in defined:
                self.assertEqual(self.section_at(node.lineno), defined[node.id], node.id)

    def test_functions_are_under_40_lines(self):
        if sys.version_info < (3, 8):
            return  # older syntax trees do not tell where a function ends
        long = ["%s (%d)" % (node.name, node.end_lineno - node.lineno + 1)
                for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)
                and node.end_lineno - node.lineno + 1 >= 40]
        self.assertEqual(long, [])

    def test_top_level_imports_are_light_and_from_the_standard_library(self):
        found = {alias.name for node in self.tree.body if isinstance(node, ast.Import)
                 for alias in node.names}
        self.assertEqual(found - LIGHT_IMPORTS, set())

    def test_every_safety_comment_names_a_test_that_exists(self):
        comments = re.sub(r"\n\s*#? ?", " ", self.source)
        promised = re.findall(r"SAFETY:.*?Test: (\w+)", comments)
        self.assertEqual(len(promised), self.source.count("SAFETY:"))
        written = set()
        for folder, _, names in os.walk(os.path.join(support.ROOT, "tests")):
            for name in names:
                if name.endswith(".py"):
                    with open(os.path.join(folder, name), encoding="utf-8") as handle:
                        written.update(re.findall(r"def (test_\w+)\(", handle.read()))
        self.assertEqual(set(promised) - written, set())

    def test_the_file_stays_short_enough_to_be_read_in_one_evening(self):
        self.assertLessEqual(self.source.count("\n"), 4500)

    def test_lines_have_at_most_100_columns(self):
        names = subprocess.check_output(["git", "ls-files", "*.py", "*.sh"], cwd=support.ROOT)
        for name in names.decode("utf-8").split():
            with open(os.path.join(support.ROOT, name), encoding="utf-8") as handle:
                for number, line in enumerate(handle, 1):
                    self.assertLessEqual(len(line.rstrip("\n")), 100, "%s:%d" % (name, number))

    def test_the_top_level_holds_nothing_else(self):
        names = subprocess.check_output(["git", "ls-files"], cwd=support.ROOT).decode("utf-8")
        top = {name.split("/")[0] for name in names.split("\n") if name}
        self.assertEqual({name for name in top if not name.startswith(".")},
                         {"fencetool.py", "install.sh", "README.md", "tests"})

    def test_the_script_is_executable_and_isolated(self):
        self.assertTrue(os.access(support.SCRIPT, os.X_OK))
        self.assertEqual(self.source.split("\n")[0], "#!/usr/bin/python3 -IS")
