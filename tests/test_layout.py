"""The order of the file is its design; its syntax tree proves that, and the budgets."""
import ast
import os
import re
import sys
import unittest

from tests import support


def read_source():
    with open(support.SCRIPT, encoding="utf-8") as handle:
        return handle.read()


def read_map(source):
    """Return [(part, its sections)] as the docstring tells them: there a new section is entered."""
    found = re.findall(r"(?m)^  (\d) ([A-Z]+) +([A-Z ,-]*[A-Z](?:,\n {13}[A-Z, -]+)?)$",
                       ast.get_docstring(ast.parse(source)))
    return [(part, tuple(re.split(r",\s+", sections))) for _, part, sections in found]


MAP = read_map(read_source())
PARTS = dict(MAP)
SECTIONS = [section for _, sections in MAP for section in sections]
PART_OF = {section: part for part, sections in MAP for section in sections}
# A section may use the sections of its own part above it, and these parts and sections.
MAY_USE = {
    "WORDS": (), "MACHINE": PARTS["WORDS"],
    "DEVICES": PARTS["WORDS"] + PARTS["MACHINE"],
    "FENCING": PARTS["WORDS"] + PARTS["MACHINE"] + PARTS["DEVICES"],
    "CLUSTER": PARTS["WORDS"] + ("AGENTS",), "PEOPLE": SECTIONS}
# A family's room uses no other family's; the rooms of one family stand behind one another.
FAMILIES = [{"KASA", "KLAP", "TAPO", "TP-LINK"}] + [{room} for room in PARTS["DEVICES"]]
# CONSTANTS ends a run of half a file, before anything else is there.
PURE = PARTS["WORDS"][1:] + PARTS["CLUSTER"]
WORLD = {"socket", "os", "sys", "time", "syslog", "subprocess", "threading", "urllib", "ssl",
         "select", "fcntl"}
# Names of values and pure functions in modules that otherwise touch the world.
HARMLESS = {"os.path", "os.strerror", "socket.inet_pton", "socket.inet_ntop"}
LIGHT_IMPORTS = {"atexit", "collections", "enum", "errno", "io", "json", "os", "re", "socket",
                 "struct", "sys", "syslog", "time", "types"}
SECTION_LINES, CLASS_LINES, FUNCTION_LINES, ROW_COLUMNS = 500, 150, 40, 4
# What makes a statement dense; two of them may stand in one.
DENSE = (ast.IfExp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda,
         ast.BoolOp)
DENSE_IN_ONE_STATEMENT = 2
BANNER = r"^# (?:PART \d: [A-Z]+ =+|SECTION: ([A-Z -]+?) -+)$"


def project_files():
    """Return the paths of the project's files; what a run of the tests leaves is none."""
    found = []
    for folder, folders, names in os.walk(support.ROOT):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        found += [os.path.join(folder, name) for name in names if name[0] != "."]
    return found


class LayoutTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = read_source()
        cls.lines = cls.source.split("\n")
        cls.tree = ast.parse(cls.source)
        cls.sections = [(match.group(1), cls.source[:match.start()].count("\n") + 1)
                        for match in re.finditer(BANNER, cls.source, re.M) if match.group(1)]

    def section_at(self, line):
        """Return the section in which a line stands; what stands before all uses nothing."""
        return [name for name, start in [(SECTIONS[0], 0)] + self.sections if line >= start][-1]

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

    def nodes(self, *kinds):
        return [node for node in ast.walk(self.tree) if isinstance(node, kinds)]

    def assert_none(self, wrong):
        self.assertEqual(wrong, [])


class Order(LayoutTest):
    def test_no_name_is_defined_twice(self):
        names = [node.name for node in self.tree.body
                 if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        names += [target.id for node in self.tree.body if isinstance(node, ast.Assign)
                  for target in node.targets if isinstance(target, ast.Name)]
        self.assertEqual(sorted(name for name in set(names) if names.count(name) > 1), [])

    def test_the_docstring_is_the_first_thing_in_the_file(self):
        self.assertTrue(self.lines[1].startswith('"""fencetool: '))

    def test_parts_and_sections_stand_in_their_order_under_full_width_banners(self):
        expected = [line for number, (part, sections) in enumerate(MAP, 1)
                    for line in ["PART %d: %s" % (number, part)]
                    + ["SECTION: " + section for section in sections]]
        found = [match.group(0) for match in re.finditer(BANNER, self.source, re.M)]
        self.assertEqual([line.strip("#=- ") for line in found], expected)
        self.assertEqual({len(line) for line in found}, {100})

    def test_the_map_in_the_docstring_names_the_parts_in_their_order(self):
        self.assertEqual([part for part, _ in MAP], list(MAY_USE))

    def test_each_section_uses_only_the_sections_it_may_use(self):
        defined = self.definitions()
        wrong = []
        for node in self.tree.body:
            here = self.section_at(node.lineno)
            for name in ast.walk(node):
                if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Load):
                    there = defined.get(name.id, here)
                    if not self.may_use(here, there):
                        wrong.append("line %d: %s uses %s of %s"
                                     % (name.lineno, here, name.id, there))
        self.assert_none(wrong)

    def may_use(self, here, there):
        if here == there:
            return True
        if {here, there} <= set(PARTS["DEVICES"]):
            family = next(family for family in FAMILIES if here in family)
            if there not in family:
                return False
        is_above = SECTIONS.index(there) < SECTIONS.index(here)
        return is_above and (PART_OF[here] == PART_OF[there] or there in MAY_USE[PART_OF[here]])

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
        self.assert_none(wrong)

    def test_a_leading_underscore_means_used_only_in_its_own_section(self):
        defined = {name: section for name, section in self.definitions().items()
                   if name.startswith("_") and not name.startswith("__")}
        for node in self.nodes(ast.Name):
            if node.id in defined:
                self.assertEqual(self.section_at(node.lineno), defined[node.id], node.id)

    def test_top_level_imports_are_light_and_from_the_standard_library(self):
        found = {alias.name for node in self.tree.body if isinstance(node, ast.Import)
                 for alias in node.names}
        self.assertEqual(found - LIGHT_IMPORTS, set())

    def test_every_safety_comment_names_a_test_that_exists(self):
        comments = re.sub(r"\n\s*#? ?", " ", self.source)
        promised = re.findall(r"SAFETY:.*?Test: (\w+)", comments)
        self.assertEqual(len(promised), self.source.count("SAFETY:"))
        written = set()
        for path in project_files():
            if path.endswith(".py"):
                with open(path, encoding="utf-8") as handle:
                    written.update(re.findall(r"def (test_\w+)\(", handle.read()))
        self.assertEqual(set(promised) - written, set())


class Budgets(LayoutTest):
    def test_sections_have_at_most_500_lines(self):
        starts = self.sections + [("", len(self.lines))]
        self.assert_none(["%s (%d)" % (name, after - start) for (name, start), (_, after)
                          in zip(starts, starts[1:]) if after - start > SECTION_LINES])

    def test_functions_and_classes_are_short(self):
        if sys.version_info < (3, 8):
            return  # older syntax trees do not tell where a definition ends
        limits = {ast.FunctionDef: FUNCTION_LINES, ast.ClassDef: CLASS_LINES}
        self.assert_none([
            "%s (%d)" % (node.name, node.end_lineno - node.lineno + 1)
            for node in self.nodes(*limits)
            if node.end_lineno - node.lineno + 1 > limits[type(node)]])

    def test_no_statement_must_be_read_twice(self):
        self.assert_none(sorted(
            "line %d" % node.lineno for node in self.nodes(ast.stmt)
            if len(dense_parts(node)) > DENSE_IN_ONE_STATEMENT))

    def test_and_beside_or_stands_in_brackets(self):
        if sys.version_info < (3, 8):
            return  # older syntax trees count the brackets to the operand
        self.assert_none([
            "line %d" % operand.lineno for node in self.nodes(ast.BoolOp)
            for operand in node.values if isinstance(operand, ast.BoolOp)
            and not self.text_before(operand).endswith("(")])

    def text_before(self, node):
        return self.lines[node.lineno - 1].encode("utf-8")[:node.col_offset].decode().rstrip()

    def test_rows_of_more_than_four_columns_are_written_with_keywords(self):
        columns = {node.targets[0].id: len(ast.literal_eval(node.value.args[1]).split())
                   for node in self.tree.body if isinstance(node, ast.Assign)
                   and getattr(getattr(node.value, "func", None), "id", "") == "namedtuple"}
        self.assertGreater(len(columns), 10)
        self.assert_none(["line %d: %s" % (node.lineno, node.func.id)
                          for node in self.nodes(ast.Call) if node.args
                          and columns.get(getattr(node.func, "id", ""), 0) > ROW_COLUMNS])

    def test_lines_have_at_most_100_columns(self):
        for path in project_files():
            if path.endswith((".py", ".sh")):
                with open(path, encoding="utf-8") as handle:
                    for number, line in enumerate(handle, 1):
                        self.assertLessEqual(len(line.rstrip("\n")), 100, (path, number))

    def test_the_top_level_holds_nothing_else(self):
        names = {os.path.relpath(path, support.ROOT).split(os.sep)[0] for path in project_files()}
        self.assertEqual(names, {"fencetool.py", "install.sh", "README.md", "tests"})

    def test_the_script_is_executable_and_isolated(self):
        self.assertTrue(os.access(support.SCRIPT, os.X_OK))
        self.assertEqual(self.lines[0], "#!/usr/bin/python3 -IS")


def dense_parts(statement):
    """Return what makes a statement dense, without the statements inside it."""
    found, waiting = [], [statement]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, DENSE):
                found.append(child)
            if not isinstance(child, (ast.stmt, ast.ExceptHandler)):
                waiting.append(child)
    return found
