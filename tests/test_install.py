"""install.sh, run as a process with each shell that it promises to work with.

Everything happens below a temporary directory, given as DESTDIR, whose name has blanks in it.
"""
import collections
import concurrent.futures
import functools
import hashlib
import http.server
import itertools
import marshal
import os
import re
import shutil
import signal
import socketserver
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
import zlib

from tests import support
from tests.support import require_program

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
INSTALL = os.path.join(ROOT, "install.sh")
FENCETOOL = os.path.join(ROOT, "fencetool.py")
PLUGINS = "usr/lib/stonith/plugins/external"
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# Stands in for fencetool.py where the test needs a version or a fault of its own.
STAND_IN = '''#!%(python)s -IS
"""fencetool: stand-in of the tests."""
import sys

def start():
    sys.exit(main(sys.argv[0], sys.argv[1:]))

def main(path, words):
    %(extra)s
    if words == ["--version"]:
        print("fencetool %(version)s")
    elif words == ["agents"]:
        print("%(agents)s")
    elif words == ["-o", "metadata"]:
        print('<resource-agent name="%%s" version="%(version)s"></resource-agent>' %% path)
    else:
        return 1
    return 0

if __name__ == "__main__":
    start()
'''

# As it was before there was a launcher: its description on line 5, and no start().
VERSION_0_1_0 = '''#!%(python)s -IS
# SECTION 1: ABOUT
# What this is.

"""fencetool: stand-in of the tests."""
import sys

def main(path, words):
    if words == ["--version"]:
        print("fencetool 0.1.0")
    elif words == ["agents"]:
        print("fence_kasa")
    elif words == ["-o", "metadata"]:
        print('<resource-agent name="%%s" version="0.1.0"></resource-agent>' %% path)
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[0], sys.argv[1:]))
'''

# Answers what the stand-in would print, without the time that Python takes to start. Used wherever
# it is the shell's work that is tested; its path must have no blanks.
QUICK_PYTHON = r'''#!/bin/sh
if [ "$2" = -c ]; then
    case $3 in *fsync*sys.argv*) exit 0 ;; esac
    exec /usr/bin/python3 "$@"
fi
file=$2
way=$(sed -n 's/.*realpath(__file__)), "\(.*\)".*/\1/p' "$file")
if [ -n "$way" ]; then
    file=$(readlink -f "$file")
    file=${file%/*}/$way/fencetool.py
fi
case $* in
    *--version) sed -n 's/.*print("\(fencetool .*\)")/\1/p' "$file" ;;
    *agents) printf '%b\n' "$(sed -n 's/.*print("\(fence_.*\)")/\1/p' "$file")" ;;
    *--others) sed -n 's/.*others = "\(fence_.*\)"/\1/p' "$file" ;;
    *metadata) sed -n "s/.*print('\(<resource.*>\)' % path)/\1/p" "$file" ;;
esac
'''
REAL_PYTHON = "/usr/bin/python3"
LIBRARY = "usr/lib/fencetool"

FROZEN_CP = '''#!/bin/sh
/bin/cp "$@" || exit 1
for last; do :; done
touch -d @1000000000 "$last"
'''

# Replaces a tool on PATH. The process group is that of the install.sh under test only.
FAULTY_TOOL = '''#!/bin/sh
read -r calls <"$FAULT_LOG"
echo $((calls + 1)) >"$FAULT_LOG"
if [ $((calls + 1)) -eq "$FAULT_AT" ]; then
    case $FAULT in
        kill) kill -KILL 0 ;;
        term) kill -TERM 0 ;;
        fill | fail)
            [ "$FAULT" = fail ] || cat /dev/zero >"$TMPDIR/full" 2>/dev/null
            echo "%(tool)s: No space left on device" >&2
            exit 1 ;;
    esac
fi
exec "%(real)s" "$@"
'''


# Runs its arguments where TMPDIR is a small file system of their own.
WITH_SMALL_TMPDIR = 'mount -t tmpfs -o size=64k none "$TMPDIR" && exec "$@"'


def setUpModule():
    global quick_python, usual_umask
    # Root refuses what others can write to, which with another one the tests' directories may be.
    usual_umask = os.umask(0o022)
    quick_python = os.path.join(tempfile.mkdtemp(dir="/tmp"), "python3")
    os.chmod(os.path.dirname(quick_python), 0o755)
    write_file(quick_python, QUICK_PYTHON, 0o755)


def tearDownModule():
    os.umask(usual_umask)
    shutil.rmtree(os.path.dirname(quick_python))


def stand_in(version="1.0.0", agents=("fence_kasa",), python=None, extra="pass"):
    return STAND_IN % {"version": version, "agents": r"\n".join(agents), "extra": extra,
                       "python": python or quick_python}


def python_stand_in(*args, **kwargs):
    return stand_in(*args, python=REAL_PYTHON, **kwargs)


def write_file(path, text, mode=0o644):
    with open(path, "w") as target:
        target.write(text)
    os.chmod(path, mode)


def read_file(path):
    return read_bytes(path).decode()


def read_bytes(path):
    with open(path, "rb") as source:
        return source.read()


def write_bytes(path, data):
    with open(path, "wb") as target:
        target.write(data)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def snapshot(top):
    """Return what is below a directory: path -> kind, mode, content or link target."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                found[os.path.relpath(path, top)] = ("link", os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                found[os.path.relpath(path, top)] = ("directory", stat.S_IMODE(status.st_mode))
            else:
                found[os.path.relpath(path, top)] = (
                    "file", stat.S_IMODE(status.st_mode),
                    hashlib.sha256(read_bytes(path)).hexdigest())
    return found


def layout(top):
    """Return the snapshot without the content of compiled copies: each holds a time."""
    return {path: kind[:2] if path.endswith(".pyc") else kind
            for path, kind in snapshot(top).items()}


def commands_needed():
    return re.search("^COMMANDS='([^']*)'$", read_file(INSTALL), re.M).group(1).split()


class Place:
    """A machine's directories below a temporary one, and install.sh with a fencetool.py in them."""

    def __init__(self, directory, shell):
        self.shell = shell
        self.directory = directory
        self.root = os.path.join(directory, "the root")
        self.bin = os.path.join(self.root, "usr/sbin")
        self.plugins = os.path.join(self.root, PLUGINS)
        self.source = os.path.join(directory, "a source")
        self.tmp = os.path.join(directory, "tmp dir")
        for path in (self.bin, self.source, self.tmp):
            os.makedirs(path)
        self.program = os.path.join(self.bin, "fencetool")
        self.library = os.path.join(self.root, LIBRARY)
        self.file = os.path.join(self.library, "fencetool.py")
        self.copies = os.path.join(self.library, "__pycache__")
        self.agent = os.path.join(self.bin, "fence_kasa")
        self.offered = os.path.join(self.source, "fencetool.py")
        shutil.copy(INSTALL, self.source)
        self.offer(stand_in())

    def offer(self, text):
        write_file(self.offered, text)
        return text

    def add_cluster_glue(self):
        os.makedirs(self.plugins)

    def run(self, *options, env=None, path=SYSTEM_PATH, **more):
        """Run install.sh; env adds to the environment, None takes a variable out of it."""
        environment = {"PATH": path, "DESTDIR": self.root, "TMPDIR": self.tmp}
        environment.update(env or {})
        environment = {name: value for name, value in environment.items() if value is not None}
        if "input" not in more and "stdin" not in more:
            more["stdin"] = subprocess.DEVNULL
        return subprocess.run(
            more.pop("argv", None) or self.shell + ["install.sh"] + list(options),
            cwd=self.source, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            universal_newlines=True, timeout=60, **more)

    def toolbox(self, *tools):
        """Return a PATH on which nothing but these tools is found."""
        directory = tempfile.mkdtemp(dir=self.directory)
        for tool in tools:
            os.symlink(require_program(tool), os.path.join(directory, tool))
        return directory

    def busybox_toolbox(self, *tools):
        directory = tempfile.mkdtemp(dir=self.directory)
        for tool in tools:
            os.symlink(require_program("busybox"), os.path.join(directory, tool))
        return directory

    def faulty_path(self):
        directory = tempfile.mkdtemp(dir=self.directory)
        reals = {tool: require_program(tool) for tool in ("chmod", "ln", "mkdir", "mv", "rm")}
        reals["cp"] = os.path.join(self.add_frozen_cp(), "cp")
        for tool, real in reals.items():
            write_file(os.path.join(directory, tool),
                       FAULTY_TOOL % {"tool": tool, "real": real}, 0o755)
        return directory + ":" + SYSTEM_PATH

    def add_frozen_cp(self):
        """Return a directory whose cp gives every file the same time, as on a frozen clock."""
        directory = tempfile.mkdtemp(dir=self.directory)
        write_file(os.path.join(directory, "cp"), FROZEN_CP, 0o755)
        return directory

    def installed_version(self):
        answer = subprocess.run(
            [self.agent, "-o", "metadata"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            check=True, universal_newlines=True, timeout=60).stdout
        return re.search('version="([^"]*)"', answer).group(1)

    def copy(self):
        """Return the path of the compiled copy."""
        name, = os.listdir(self.copies)
        return os.path.join(self.copies, name)

    def backups(self):
        return sorted(name for name in os.listdir(self.bin) if ".saved-" in name)


@functools.lru_cache(maxsize=None)
def good_root(agents=("fence_kasa",)):
    """Return the root of a machine with cluster-glue, where install.sh has just run."""
    place = Place(tempfile.mkdtemp(dir=os.path.dirname(quick_python)), ["/bin/sh"])
    place.add_cluster_glue()
    place.offer(stand_in(agents=agents))
    path = place.add_frozen_cp() + ":" + SYSTEM_PATH
    result = place.run(path=path)
    assert (result.returncode, result.stderr) == (0, ""), result
    return place.root


SHELLS = (["dash"], ["busybox", "sh"], ["bash", "--posix"])


def find_shell(words):
    return [require_program(words[0])] + words[1:]


def with_each_shell(test):
    """Run a test once for each shell, with a fresh place."""
    @functools.wraps(test)
    def run(self):
        for words in SHELLS:
            with self.subTest(shell=" ".join(words)):
                test(self, self.place(find_shell(words)))
    return run


class InstallTest(unittest.TestCase):
    maxDiff = None

    def places_in_turn(self):
        """Yield fresh places without end, for tests of many cases that need not be run twice."""
        shells = []
        for words in SHELLS:
            try:
                shells.append(find_shell(words))
            except unittest.SkipTest as skip:
                reason = skip
        if not shells:
            raise reason
        for shell in itertools.cycle(shells):
            yield self.place(shell)

    def place(self, shell):
        directory = tempfile.mkdtemp(prefix="fencetool install ")
        self.addCleanup(shutil.rmtree, directory)
        return Place(directory, shell)

    def assert_good(self, place, result):
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assert_no_leftovers(place)

    def assert_refused(self, place, result, *words, code=1):
        """One line on stderr that tells each of the words; nothing left behind."""
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertTrue(result.stderr.startswith("install.sh: "), result.stderr)
        for word in words:
            self.assertIn(word, result.stderr)
        self.assert_no_leftovers(place)

    def assert_no_leftovers(self, place):
        self.assertEqual(os.listdir(place.tmp), [])
        self.assertEqual([path for path in snapshot(place.root) if ".fencetool-new" in path], [])

    def put_good_installation(self, place, agents=("fence_kasa",)):
        """What a run of install.sh makes, without the time of one: the first one's, copied."""
        shutil.rmtree(place.root)
        shutil.copytree(good_root(agents), place.root, symlinks=True)

    def put_version_0_1_0(self, place, text=None):
        """The whole file where now the launcher is, and all links to that."""
        if not os.path.isdir(place.plugins):
            place.add_cluster_glue()
        write_file(place.program, text or VERSION_0_1_0 % {"python": quick_python}, 0o755)
        os.symlink("fencetool", place.agent)
        os.symlink("/usr/sbin/fencetool", os.path.join(place.plugins, "kasa"))

    def install(self, place, *options, **more):
        result = place.run(*options, **more)
        self.assert_good(place, result)
        return result

    def assert_refused_unchanged(self, place, options, *words, **more):
        before = snapshot(place.root)
        self.assert_refused(place, place.run(*options, **more), *words)
        self.assertEqual(snapshot(place.root), before)


class Installing(InstallTest):
    @with_each_shell
    def test_the_real_fencetool_is_installed_unchanged_and_answers_as_agent_and_plugin(self, place):
        place.offer(read_file(FENCETOOL))
        place.add_cluster_glue()
        self.install(place)
        self.assertEqual(read_bytes(place.file), read_bytes(FENCETOOL))
        metadata = subprocess.check_output([place.agent, "-o", "metadata"])
        self.assertIn(b'<resource-agent name="fence_kasa"', metadata)
        # The plugin's link holds the final path, which under DESTDIR is not there yet.
        kasa = os.path.join(place.directory, "kasa")
        os.symlink(place.program, kasa)
        self.assertIn(b"hostlist\n", subprocess.check_output([kasa, "getconfignames"]))
        self.assertIn(b"fence_http\n", subprocess.check_output([place.program, "agents"]))
        self.assert_good(place, place.run("--check"))

    @with_each_shell
    def test_file_is_compiled_and_every_agent_it_names_is_a_link_to_its_launcher(self, place):
        text = place.offer(stand_in(agents=("fence_kasa", "fence_http", "fence_check")))
        result = self.install(place, preexec_fn=lambda: os.umask(0o077))
        self.assertEqual(layout(place.library), {
            "fencetool.py": ("file", 0o755, sha256(text)), "__pycache__": ("directory", 0o755),
            os.path.relpath(place.copy(), place.library): ("file", 0o644)})
        self.assertEqual(snapshot(place.bin), {
            "fencetool": ("file", 0o755, sha256(read_file(place.program))),
            "fence_kasa": ("link", "fencetool"),
            "fence_http": ("link", "fencetool"),
            "fence_check": ("link", "fencetool")})
        self.assertIn("fencetool 1.0.0 installed", result.stdout)

    @with_each_shell
    def test_plugin_is_linked_only_where_cluster_glue_is_installed(self, place):
        self.install(place)
        self.assertEqual(os.listdir(os.path.join(place.root, "usr/lib")), ["fencetool"])
        place.add_cluster_glue()
        self.install(place)
        self.assertEqual(snapshot(place.plugins), {"kasa": ("link", "/usr/sbin/fencetool")})

    @with_each_shell
    def test_second_run_says_already_installed_and_changes_nothing(self, place):
        self.put_good_installation(place)
        paths = place.program, place.agent, place.file, place.copy()
        before = snapshot(place.root), [os.lstat(path).st_ctime_ns for path in paths]
        result = self.install(place)
        self.assertIn("already installed", result.stdout)
        after = snapshot(place.root), [os.lstat(path).st_ctime_ns for path in paths]
        self.assertEqual(after, before)

    def test_damaged_installation_is_mended_by_another_run(self):
        damages = (lambda place: os.chmod(place.program, 0o644),
                   lambda place: write_file(place.program, stand_in("0.9"), 0o755),
                   lambda place: os.remove(place.agent),
                   lambda place: os.remove(place.program),
                   lambda place: os.remove(os.path.join(place.plugins, "kasa")),
                   lambda place: shutil.rmtree(place.library),
                   lambda place: shutil.rmtree(place.copies),
                   lambda place: write_file(place.file, stand_in("0.9"), 0o755),
                   lambda place: os.chmod(place.file, 0o644),
                   lambda place: os.utime(place.file, (7, 7)),
                   lambda place: os.remove(place.copy()),
                   lambda place: os.chmod(place.copy(), 0o600),
                   lambda place: write_file(place.copy(), ""),
                   lambda place: os.rename(
                       place.copy(), os.path.join(place.copies, "fencetool.cpython-35.pyc")))
        for number, (place, damage) in enumerate(zip(self.places_in_turn(), damages)):
            with self.subTest(number=number, shell=place.shell):
                self.put_good_installation(place)
                good = layout(place.root)
                damage(place)
                self.install(place)
                self.assertEqual(layout(place.root), good)
                self.assert_good(place, place.run("--check"))

    @with_each_shell
    def test_update_from_0_1_0_replaces_the_whole_file_by_a_launcher(self, place):
        self.put_version_0_1_0(place)
        result = place.run("--check")
        self.assert_refused(place, result, "install again")
        self.assertIn("fencetool 0.1.0", result.stdout)
        self.assertRegex(result.stdout, "BAD .* is fencetool.py itself")
        self.install(place)
        fresh = self.place(place.shell)
        self.put_good_installation(fresh)
        self.assertEqual(layout(place.root), layout(fresh.root))
        self.assertEqual(place.installed_version(), "1.0.0")

    @with_each_shell
    def test_version_0_1_0_itself_runs_by_the_launcher_too(self, place):
        place.offer(VERSION_0_1_0 % {"python": REAL_PYTHON})
        self.install(place)
        self.assertEqual(place.installed_version(), "0.1.0")

    @with_each_shell
    def test_upgrade_adds_new_agents_and_removes_links_to_those_that_are_gone(self, place):
        place.offer(stand_in("1.0.0", agents=("fence_kasa", "fence_old")))
        self.install(place)
        os.symlink("elsewhere", os.path.join(place.bin, "fence_other"))
        place.offer(stand_in("2.0.0", agents=("fence_kasa", "fence_new")))
        self.install(place)
        self.assertEqual(sorted(os.listdir(place.bin)),
                         ["fence_kasa", "fence_new", "fence_other", "fencetool"])
        self.assertEqual(place.installed_version(), "2.0.0")

    @with_each_shell
    def test_upgrade_removes_a_link_that_only_an_earlier_release_knew_and_no_other(self, place):
        self.put_version_0_1_0(place)
        for name in ("fence_http", "fence_rack"):
            os.symlink("fencetool", os.path.join(place.bin, name))
        result = self.install(place)
        self.assertIn("removed %s/fence_http" % place.bin, result.stdout)
        self.assertEqual(sorted(os.listdir(place.bin)), ["fence_kasa", "fence_rack", "fencetool"])
        self.assertNotIn("fence_rack", self.install(place, "--check").stdout)
        self.assertIn("already installed", self.install(place).stdout)

    @with_each_shell
    def test_copy_of_fencetool_in_the_place_of_a_link_is_kept_and_becomes_a_link(self, place):
        write_file(place.agent, stand_in("0.9"), 0o755)
        self.assert_refused_unchanged(place, [], place.agent + " is not fencetool's")
        self.install(place, "--force")
        self.assertEqual(snapshot(place.bin)["fence_kasa"], ("link", "fencetool"))
        kept, = place.backups()
        self.assertEqual(read_file(os.path.join(place.bin, kept)), stand_in("0.9"))

    @with_each_shell
    def test_prefix_is_the_directory_of_the_programs_and_is_made_if_missing(self, place):
        place.add_cluster_glue()
        result = place.run("--prefix", "/opt/my tools/bin/", preexec_fn=lambda: os.umask(0o077))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("Pacemaker finds agents only in /usr/sbin", result.stderr)
        self.assertEqual(snapshot(place.root)["opt/my tools/bin"], ("directory", 0o755))
        self.assertEqual(sorted(os.listdir(os.path.join(place.root, "opt/my tools/bin"))),
                         [".fencetool", "fence_kasa", "fencetool"])
        self.assertEqual(os.readlink(os.path.join(place.plugins, "kasa")),
                         "/opt/my tools/bin/fencetool")
        self.assertEqual(place.run("--check", "--prefix=/opt/my tools/bin").returncode, 0)
        self.assertEqual(os.listdir(place.bin), [])

    @with_each_shell
    def test_installations_with_other_prefixes_are_kept_apart(self, place):
        for version, prefix in (("1.0.0", "/usr/sbin"), ("2.0.0", "/usr/bin"), ("3.0.0", "/opt")):
            place.offer(python_stand_in(version))
            self.assertEqual(place.run("--prefix", prefix).returncode, 0)
        self.assertEqual(place.run("--uninstall", "--prefix", "/usr/bin").returncode, 0)
        self.assertEqual(os.listdir(os.path.join(place.root, "usr/bin")), [])
        for version, prefix in (("1.0.0", "usr/sbin"), ("3.0.0", "opt")):
            place.agent = os.path.join(place.root, prefix, "fence_kasa")
            self.assertEqual(place.installed_version(), version)

    @with_each_shell
    def test_sbin_that_is_a_link_to_bin_makes_no_difference(self, place):
        os.rename(place.bin, os.path.join(place.root, "usr/bin"))
        os.symlink("bin", place.bin)
        self.install(place)
        self.assertEqual(place.installed_version(), "1.0.0")
        self.assert_good(place, place.run("--check"))
        self.install(place, "--uninstall")
        self.assertEqual(os.listdir(place.bin), [])

    @with_each_shell
    def test_prefix_works_without_destdir(self, place):
        # Planned only, and by force: cluster-glue's directory may be there for real, with a link.
        result = place.run("--dry-run", "--force", "--prefix", place.bin, env={"DESTDIR": None})
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("would write %s " % place.program, result.stdout)

    @with_each_shell
    def test_dry_run_tells_every_change_and_makes_none(self, place):
        place.add_cluster_glue()
        write_file(place.agent, "#!/bin/sh\n", 0o755)
        os.symlink("fencetool", os.path.join(place.bin, "fence_http"))
        before = snapshot(place.root)
        result = self.install(place, "--dry-run", "--force")
        for line in ("would write %s (fencetool 1.0.0)" % place.file,
                     "would compile %s" % place.file,
                     "would write %s (launcher)" % place.program,
                     "would keep %s as %s/.fence_kasa.saved-" % (place.agent, place.bin),
                     "would write %s (link to fencetool)" % place.agent,
                     "would remove %s/fence_http" % place.bin,
                     "would write %s/kasa (link to /usr/sbin/fencetool)" % place.plugins):
            self.assertIn(line, result.stdout)
        self.assertEqual(snapshot(place.root), before)

    @with_each_shell
    def test_program_that_waits_for_its_stdin_does_not_stop_it(self, place):
        place.offer(python_stand_in(extra="sys.stdin.read()"))
        ours, never_closed = os.pipe()
        self.addCleanup(os.close, ours)
        self.addCleanup(os.close, never_closed)
        self.install(place, stdin=ours)

    @with_each_shell
    def test_script_on_stdin_installs(self, place):
        result = place.run(argv=place.shell + ["-s", "--", "--from", "."],
                           input=read_file(INSTALL))
        self.assert_good(place, result)
        self.assertEqual(place.installed_version(), "1.0.0")

    @with_each_shell
    def test_busybox_is_all_that_it_needs_on_path(self, place):
        path = place.busybox_toolbox("sha256sum", *commands_needed())
        write_file(place.agent, "#!/bin/sh\n", 0o755)
        self.install(place, "--force", "--sha256", sha256(stand_in()), path=path)
        self.install(place, "--check", path=path)
        self.install(place, "--uninstall", path=path)
        self.assertEqual(os.listdir(place.bin), place.backups())

    @with_each_shell
    def test_missing_command_is_named(self, place):
        self.assert_refused_unchanged(place, [], "is missing: install it",
                                      path=place.toolbox("mktemp", "sed"))


class Refusing(InstallTest):
    @with_each_shell
    def test_python_that_is_too_old_is_named_with_its_version(self, place):
        old = os.path.join(tempfile.mkdtemp(dir="/tmp"), "python3")
        self.addCleanup(shutil.rmtree, os.path.dirname(old))
        write_file(old, '#!/bin/sh\n[ "$1" != -V ] || echo Python 3.5.2\nexit 1\n', 0o755)
        place.offer(stand_in(python=old))
        self.assert_refused_unchanged(
            place, [], old + " is Python 3.5.2, fencetool needs Python 3.6 or newer")
        place.offer(stand_in(python="/nowhere/python3"))
        self.assert_refused_unchanged(
            place, [], "/nowhere/python3 is missing: install Python 3.6 or newer")

    def test_file_that_does_not_work_as_fencetool_never_replaces_the_old_one(self):
        bad = {
            "syntax error": (python_stand_in("2") + "def (\n", "SyntaxError"),
            "empty": ("", "is not fencetool.py"),
            "web page": ("<html>Not here</html>\n", "is not fencetool.py"),
            "other program": ("#!/usr/bin/python3\nprint('hello')\n", "is not fencetool.py"),
            "cut off": (python_stand_in("2").split("if __name__")[0], "does not tell its version"),
            "crash": (python_stand_in("2", extra="raise ValueError('oh')"), "ValueError: oh"),
            "no agents": (python_stand_in("2", agents=()), "does not name its agents"),
            "bad agent": (python_stand_in("2", agents=("fence_x", "../x")),
                          "does not name its agents"),
            "CRLF": (python_stand_in("2").replace("\n", "\r\n"), "does not run"),
            "launcher": (read_file(os.path.join(good_root(), "usr/sbin/fencetool")),
                         "only starts fencetool.py"),
            "no shebang": (python_stand_in("2").replace("#!", "#"), "names no python3"),
            "no metadata": (python_stand_in("2", extra="if words[0] == '-o': return 0"),
                            "no metadata"),
            "bad metadata": (python_stand_in("2", extra="if words[0] == '-o': sys.exit('oh')"),
                             "fence_kasa -o metadata failed: oh"),
        }
        for place, fault in zip(self.places_in_turn(), bad):
            with self.subTest(fault=fault, shell=place.shell):
                text, words = bad[fault]
                self.put_good_installation(place)
                place.offer(text)
                before = snapshot(place.root)
                result = place.run()
                self.assert_refused(place, result)
                self.assertRegex(result.stderr, words)
                self.assertEqual(snapshot(place.root), before)

    @with_each_shell
    def test_wrong_hash_is_refused_and_the_right_one_taken_in_either_case(self, place):
        right = sha256(stand_in())
        self.assert_refused_unchanged(place, ["--sha256", sha256("other")], right)
        self.install(place, "--sha256", right.upper())

    @with_each_shell
    def test_hash_is_checked_with_python_where_sha256sum_is_missing(self, place):
        path = place.toolbox(*commands_needed())
        self.assert_refused_unchanged(place, ["--sha256", sha256("other")], sha256(stand_in()),
                                      path=path)
        self.install(place, "--sha256", sha256(stand_in()), path=path)

    @with_each_shell
    def test_usage_errors_exit_2_with_one_line(self, place):
        for options in (["--wrong"], ["extra"], ["--from"], ["--from="], ["--sha256", "12"],
                        ["--prefix", "relative"], ["--prefix", "/"], ["--prefix", "/a\n/b"],
                        ["--check", "--uninstall"], ["--uninstall", "--from", "."]):
            with self.subTest(options=options):
                self.assert_refused(place, place.run(*options), "--help", code=2)
        self.assertEqual(os.listdir(place.bin), [])

    @with_each_shell
    def test_missing_source_is_named(self, place):
        self.assert_refused_unchanged(place, ["--from", place.tmp],
                                      "no fencetool.py at %s" % place.tmp, "--from")
        self.assert_refused_unchanged(place, ["--from", "ftp://x/"], "only http and https")

    @with_each_shell
    def test_directory_that_may_not_be_written_is_named(self, place):
        os.chmod(place.directory, 0o755)
        os.chmod(place.tmp, 0o777)
        os.chmod(place.bin, 0o555)
        self.assert_refused_unchanged(place, [], "cannot write to %s" % place.bin, "as root",
                                      preexec_fn=drop_root)


def drop_root():
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


class ForeignFiles(InstallTest):
    # What is there instead of (program, agent, plugin): text of a file, or target of a link.
    KINDS = [
        ("agent", "file", "#!/bin/sh\n"),
        ("agent", "link", "/bin/sh"),
        ("agent", "link", "/tmp"),
        ("agent", "link", "dangling"),
        ("program", "file", "#!/bin/sh\n"),
        ("program", "link", "/bin/sh"),
        ("library", "file", "#!/bin/sh\n"),
        ("library", "link", "/bin/sh"),
        ("plugin", "link", "/usr/sbin/fence_kasa"),
        ("plugin", "file", "#!/bin/sh\n"),
    ]

    def foreign(self):
        """Yield a place for each of the kinds, the path it is at, and its snapshot."""
        for place, (where, kind, content) in zip(self.places_in_turn(), self.KINDS):
            place.add_cluster_glue()
            os.makedirs(place.library)
            path = {"agent": place.agent, "program": place.program, "library": place.file,
                    "plugin": os.path.join(place.plugins, "kasa")}[where]
            if kind == "link":
                os.symlink(content, path)
            else:
                write_file(path, content, 0o750)
            yield place, path, snapshot(os.path.dirname(path))[os.path.basename(path)]

    def test_they_are_refused_and_left_alone(self):
        for place, path, kind in self.foreign():
            with self.subTest(path=path, kind=kind):
                self.assert_refused_unchanged(place, [], path + " is not fencetool's", "--force")

    def test_force_keeps_a_copy_that_nobody_takes_for_an_agent(self):
        # To Pacemaker every fence_* beside the program is one, to cluster-glue every file at all
        # beside the plugin.
        for place, path, kind in self.foreign():
            with self.subTest(path=path, kind=kind):
                self.install(place, "--force")
                name = {"kasa": "external-kasa"}.get(
                    os.path.basename(path), os.path.basename(path))
                self.assertEqual(len(place.backups()), 1)
                self.assertRegex(place.backups()[0], r"^\.%s\.saved-\d{8}-\d{6}$" % name)
                self.assertEqual(snapshot(place.bin)[place.backups()[0]], kind)
                self.assertEqual(os.listdir(place.plugins), ["kasa"])
                self.assertEqual(place.installed_version(), "1.0.0")

    @with_each_shell
    def test_force_never_writes_over_an_earlier_copy(self, place):
        frozen = place.directory + "/frozen"
        os.mkdir(frozen)
        write_file(frozen + "/date", "#!/bin/sh\necho 20200101-000000\n", 0o755)
        for text in ("#!first\n", "#!second\n"):
            if os.path.exists(place.agent):
                os.remove(place.agent)
            write_file(place.agent, text, 0o755)
            self.install(place, "--force", path=frozen + ":" + SYSTEM_PATH)
        self.assertEqual([read_file(os.path.join(place.bin, name))
                          for name in place.backups()], ["#!first\n", "#!second\n"])

    @with_each_shell
    def test_force_keeps_a_foreign_compiled_copy_too(self, place):
        self.put_good_installation(place)
        copy = place.copy()
        os.remove(copy)
        os.symlink("elsewhere", copy)
        self.assert_refused_unchanged(place, [], copy + " is not fencetool's")
        self.install(place, "--force")
        kept, = place.backups()
        self.assertEqual(os.readlink(os.path.join(place.bin, kept)), "elsewhere")

    @with_each_shell
    def test_directory_is_refused_even_with_force(self, place):
        self.put_good_installation(place)
        copy = place.copy()
        for path in (place.agent, place.file, copy):
            os.remove(path)
            os.mkdir(path)
            self.assert_refused_unchanged(place, ["--force"], path + " is a directory")
            os.rmdir(path)
        os.rename(place.library, place.library + ".other")
        os.symlink("fencetool.other", place.library)
        self.assert_refused_unchanged(place, ["--force"], place.library + " is not a directory")


FaultyRun = collections.namedtuple("FaultyRun", "place before result points")


class OtherNames(InstallTest):
    """Names that agents of others have too: a link only where nobody else's agent is."""

    def offer(self, place, others="fence_other", **options):
        place.offer(stand_in(extra='others = "%s"' % others, **options))
        place.other = os.path.join(place.bin, "fence_other")

    def assert_good(self, place, *options):
        result = place.run(*options)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result)
        return result.stdout

    @with_each_shell
    def test_name_that_is_free_becomes_a_link_which_goes_with_the_rest(self, place):
        self.offer(place)
        self.assertIn("would write %s (link to fencetool)" % place.other,
                      self.assert_good(place, "--dry-run"))
        self.assert_good(place)
        self.assertEqual(os.readlink(place.other), "fencetool")
        self.assertIn("nothing to do", self.assert_good(place))
        self.assertIn("ok   %s -> fencetool" % place.other, self.assert_good(place, "--check"))
        self.assert_good(place, "--uninstall")
        self.assertFalse(os.path.lexists(place.other))

    @with_each_shell
    def test_agent_of_somebody_else_stays_with_force_too(self, place):
        def make_file(path):
            write_file(path, "#!/bin/sh\nexit 3\n", 0o755)

        def make_directory(path):
            os.mkdir(path)
            make_file(os.path.join(path, "x"))
        self.offer(place)
        for make in (make_file, make_directory,
                     lambda path: os.symlink("/usr/share/other/agent", path),
                     lambda path: os.symlink("fence_kasa", path)):
            make(place.other)
            before = describe(place.other)
            for options in (["--force", "--dry-run"], [], ["--force"], ["--check"]):
                self.assertIn("left as it is: %s, another agent" % place.other,
                              self.assert_good(place, *options))
                self.assertEqual(describe(place.other), before)
            self.assertEqual(os.readlink(place.agent), "fencetool")
            self.assertEqual(place.backups(), [])
            self.assert_good(place, "--uninstall")
            self.assertEqual(describe(place.other), before)
            if os.path.isdir(place.other) and not os.path.islink(place.other):
                shutil.rmtree(place.other)
            else:
                os.unlink(place.other)

    def test_link_follows_what_becomes_of_the_name(self):
        place = next(self.places_in_turn())
        self.offer(place)
        self.assert_good(place)
        os.unlink(place.other)
        write_file(place.other, "of a package", 0o755)  # as it replaces a link when it comes
        self.assertIn("nothing to do", self.assert_good(place))
        self.assertEqual(read_file(place.other), "of a package")
        os.unlink(place.other)
        self.assertEqual(place.run("--check").returncode, 1)
        self.assert_good(place)
        self.assertEqual(os.readlink(place.other), "fencetool")
        self.offer(place, others="fence_third", version="2.0.0")
        self.assertIn("removed " + place.other, self.assert_good(place))
        self.assertEqual(os.readlink(os.path.join(place.bin, "fence_third")), "fencetool")

    def test_real_fencetool_is_linked_under_each_and_tells_its_own_name(self):
        place = next(self.places_in_turn())
        shutil.copy(FENCETOOL, place.offered)
        self.assert_good(place)
        for name in subprocess.check_output([sys.executable, "-IS", FENCETOOL, "agents",
                                             "--others"], universal_newlines=True).split():
            told = subprocess.check_output([os.path.join(place.bin, name), "-o", "metadata"],
                                           universal_newlines=True)
            self.assertIn('<resource-agent name="%s"' % name, told)


def describe(path):
    """Return what is at a path: of a link where it leads, of a directory what is in it."""
    if os.path.islink(path):
        return os.readlink(path)
    return sorted(os.listdir(path)) if os.path.isdir(path) else read_file(path)


class Interrupted(InstallTest):
    """A fault at each call of a tool that changes files, one run for each."""

    def new_version(self):
        """Return one as long as the old file: only its content tells it from that."""
        return stand_in("2.0.0", extra="pass  # padding")

    def prepare(self, place, is_0_1_0):
        """An old version, a foreign file, an old link: the run needs every kind of step.

        That the link is one of install.sh only the old version tells.
        """
        agents = "fence_kasa", "fence_old"
        if is_0_1_0:
            self.put_version_0_1_0(place, stand_in("1.0.0", agents))
            os.symlink("fencetool", os.path.join(place.bin, "fence_old"))
        else:
            self.put_good_installation(place, agents)
        os.remove(place.agent)
        write_file(place.agent, stand_in("1.0.0").replace('"""fencetool:', '"""Foreign:'), 0o755)
        os.remove(os.path.join(place.plugins, "kasa"))
        place.offer(self.new_version())

    def at_every_point(self, fault, check, layouts=(False, True), places=None):
        """Call check(place, state before, result) for a run with the fault at each point of it.

        The shells take turns: the points are those of the script, the same for all of them. So do
        the layouts (is_0_1_0) where everything is put back: that is the same for both of them.
        """
        places = places or self.places_in_turn()
        for is_0_1_0 in layouts:
            undisturbed = self.run_with_fault(next(places), is_0_1_0, fault, 0)
            self.assertEqual(undisturbed.result.returncode, 0, undisturbed.result.stderr)
            self.assertGreater(undisturbed.points, 20)
            points = range(1, undisturbed.points + 1)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                runs = list(pool.map(self.run_with_fault, itertools.islice(places, len(points)),
                                     itertools.repeat(is_0_1_0), itertools.repeat(fault), points))
            for point, run in zip(points, runs):
                with self.subTest(point=point, is_0_1_0=is_0_1_0, shell=run.place.shell):
                    check(run.place, run.before, run.result)

    def run_with_fault(self, place, is_0_1_0, fault, point):
        self.prepare(place, is_0_1_0)
        log = os.path.join(place.directory, "log")
        write_file(log, "0\n")
        before = snapshot(place.root)
        argv = place.shell + ["install.sh", "--force"]
        if fault == "fill":
            argv = [require_program("unshare"), "-m", "/bin/sh", "-c", WITH_SMALL_TMPDIR,
                    "sh"] + argv
        # Here-documents in files, as bash up to 5.0 keeps all of them.
        result = place.run(argv=argv, path=place.faulty_path(), start_new_session=True,
                           env={"FAULT": fault, "FAULT_AT": str(point), "FAULT_LOG": log,
                                "BASH_COMPAT": "50"})
        return FaultyRun(place, before, result, int(read_file(log)))

    def test_killed_at_any_point_one_of_the_versions_works_and_the_next_run_ends_right(self):
        def check(place, _, result):
            self.assertEqual(result.returncode, -signal.SIGKILL)
            self.assertIn(place.installed_version(), ("1.0.0", "2.0.0"))
            self.assert_copy_is_of_the_file(place)
            for name in os.listdir(place.tmp):
                shutil.rmtree(os.path.join(place.tmp, name))
            self.install(place, "--force")
            self.assertEqual(read_file(place.file), self.new_version())
            self.assert_copy_is_of_the_file(place)
            kept = place.backups()
            self.assertEqual(set(os.listdir(place.bin)), {"fence_kasa", "fencetool"} | set(kept))
            self.assertIn("Foreign", read_file(os.path.join(place.bin, kept[0])))

        self.at_every_point("kill", check)

    def assert_copy_is_of_the_file(self, place):
        """Old and new file have the same size and time, so Python cannot tell a wrong copy."""
        if not os.path.exists(place.file):
            return
        shown = subprocess.check_output(
            [REAL_PYTHON, "-IS", "-c", "import sys; sys.path.append(sys.argv.pop(1)); "
             "sys.dont_write_bytecode = True; import fencetool; fencetool.start()", place.library,
             "--version"], universal_newlines=True)
        self.assertEqual(shown, re.search(r'print\("(fencetool .*)"\)', read_file(place.file))
                         .group(1) + "\n")

    def test_terminated_at_any_point_it_puts_everything_back(self):
        def check(place, before, result):
            self.assert_no_leftovers(place)
            if "installed" not in result.stdout:
                self.assertEqual(result.returncode, 128 + signal.SIGTERM, result.stderr)
                self.assertIn("install.sh: interrupted", result.stderr)
                self.assertEqual(snapshot(place.root), before)

        self.at_every_point("term", check, layouts=[False])

    def test_full_disk_at_any_point_puts_everything_back(self):
        def check(place, before, result):
            if result.returncode != 0:
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertIn("install.sh: ", result.stderr)
                self.assertEqual(snapshot(place.root), before)
                self.assert_no_leftovers(place)
            elif "left behind" not in result.stderr:    # a link failed, and a copy did instead
                self.assertEqual(place.installed_version(), "2.0.0")
                self.assert_no_leftovers(place)

        self.at_every_point("fail", check, layouts=[True])

    def test_full_temporary_directory_in_the_middle_is_taken_back(self):
        support.require_namespaces("mount")
        places = (self.place(find_shell(["bash", "--posix"])) for _ in itertools.count())
        told = []

        def check(place, before, result):
            if result.returncode == 0:
                self.assertEqual(place.installed_version(), "2.0.0")
                return
            self.assertEqual(result.returncode, 1, result.stderr)
            self.assertEqual(snapshot(place.root), before, result.stderr)
            self.assert_no_leftovers(place)
            told.append("taken back" in result.stderr)

        self.at_every_point("fill", check, layouts=[False], places=places)
        self.assertIn(True, told)

    @with_each_shell
    def test_taken_back_is_said_only_of_what_is_back(self, place):
        self.put_good_installation(place)
        place.offer(python_stand_in(
            "2.0.0", extra="if '.fencetool-new' not in path and words[0] == '-o': sys.exit('oh')"))
        path = os.path.join(place.directory, "lying")
        os.mkdir(path)
        write_file(path + "/mv", '#!/bin/sh\ncase $* in *before.*fencetool.py) exit 0 ;; esac\n'
                   'exec /bin/mv "$@"\n', 0o755)
        before = read_file(place.file)
        result = place.run(path=path + ":" + SYSTEM_PATH)
        self.assertEqual(result.returncode, 1)
        self.assertNotIn("taken back", result.stderr)
        self.assertIn("cannot put back %s\n" % place.file, result.stderr)
        saved = re.search("what was there is in (.*)\n", result.stderr).group(1)
        self.assertIn(before, [read_file(os.path.join(saved, name)) for name in os.listdir(saved)
                               if name.startswith("before.")])
        self.assertEqual(len(os.listdir(place.copies)), 1)      # all else is back

    def test_old_version_is_put_back_without_a_moment_when_there_is_none(self):
        # At a kill between a removal and a renaming neither would be there.
        for place, is_0_1_0 in zip(self.places_in_turn(), (False, True)):
            self.prepare(place, is_0_1_0)
            old = "*/sbin/fencetool | */fence_kasa" + (" | *.py" if not is_0_1_0 else "")
            extra = "if '.fencetool-new' not in path and words[0] == '-o': sys.exit('oh')"
            place.offer(python_stand_in("2.0.0", extra=extra))
            path = os.path.join(place.directory, "killing")
            os.mkdir(path)
            write_file(path + "/rm", '#!/bin/sh\nfor last; do :; done\n'
                       'case $last in %s) kill -KILL 0 ;; esac\n' % old +
                       'exec /bin/rm "$@"\n', 0o755)
            before = snapshot(place.root)
            result = place.run("--force", path=path + ":" + SYSTEM_PATH, start_new_session=True)
            with self.subTest(is_0_1_0=is_0_1_0):
                self.assertEqual(result.returncode, 1, result.stderr)
                self.assertEqual(snapshot(place.root), before)

    @with_each_shell
    def test_nothing_is_moved_into_the_directory_of_a_link_that_is_put_back(self, place):
        elsewhere = os.path.join(place.directory, "elsewhere")
        os.mkdir(elsewhere)
        os.symlink(elsewhere, place.agent)
        path = os.path.join(place.directory, "failing")
        os.mkdir(path)
        write_file(path + "/rm", '#!/bin/sh\ncase $* in */fence_kasa) exit 1 ;; esac\n'
                   'exec /bin/rm "$@"\n', 0o755)
        before = snapshot(place.root)
        result = place.run("--force", path=path + ":" + SYSTEM_PATH)
        self.assertIn("taken back", result.stderr)
        self.assertEqual((snapshot(place.root), os.listdir(elsewhere)), (before, []))

    @with_each_shell
    def test_half_written_copy_is_noticed_even_when_cp_tells_success(self, place):
        self.install(place)
        place.offer(stand_in("2.0.0"))
        path = os.path.join(place.directory, "half")
        os.mkdir(path)
        write_file(path + "/cp", '#!/bin/sh\nhead -c 99 "$1" >"$2"\n', 0o755)
        self.assert_refused_unchanged(place, [], "is there space?",
                                      path=path + ":" + SYSTEM_PATH)
        self.assertEqual(place.installed_version(), "1.0.0")

    @with_each_shell
    def test_version_that_fails_only_in_its_final_place_is_taken_back(self, place):
        extra = "if '.fencetool-new' not in path and words[0] == '-o': sys.exit('oh')"
        for old in (False, True):
            with self.subTest(old=old):
                if old:
                    place.offer(stand_in("1.0.0"))
                    self.install(place)
                else:
                    os.makedirs(os.path.join(place.root, "usr/lib"))
                place.offer(python_stand_in("2.0.0", extra=extra))
                before = snapshot(place.root)
                result = place.run()
                self.assertEqual(result.returncode, 1)
                self.assertIn("fence_kasa -o metadata failed: oh", result.stderr)
                self.assertEqual(snapshot(place.root), before)
                self.assert_no_leftovers(place)

    @with_each_shell
    def test_leftovers_of_a_dead_run_are_removed_and_those_of_a_living_one_are_not(self, place):
        dead = subprocess.Popen(["true"])
        dead.wait()
        self.install(place)
        place.offer(stand_in("2.0.0"))
        for directory, pid in itertools.product((place.bin, place.library),
                                                (dead.pid, os.getpid())):
            os.mkdir(os.path.join(directory, ".fencetool-new.%d" % pid))
            os.makedirs(os.path.join(directory, ".fencetool-new.notes"), exist_ok=True)
        self.assertEqual(place.run().returncode, 0)
        for directory in (place.bin, place.library):
            self.assertEqual(sorted(name for name in os.listdir(directory) if "-new" in name),
                             [".fencetool-new.%d" % os.getpid(), ".fencetool-new.notes"])

    @with_each_shell
    def test_leftovers_of_a_dead_run_of_the_same_number_are_removed(self, place):
        # As in a container, where each run may get the same one.
        for version in ("1.0.0", "1.0.0", "2.0.0"):
            place.offer(stand_in(version))
            script = 'mkdir -p "%s/.fencetool-new.$$" && exec "$@"' % place.bin
            self.assert_good(place, place.run(
                argv=["/bin/sh", "-c", script, "sh"] + place.shell + ["install.sh"]))
        self.assertEqual(place.installed_version(), "2.0.0")

    @with_each_shell
    def test_script_that_was_cut_off_anywhere_does_nothing(self, place):
        text = read_file(INSTALL)
        ends = [match.end() for match in re.finditer("\n", text)][::20]
        ends += range(len(text) - 40, len(text) - 1)
        before = snapshot(place.directory)
        for end in ends:
            result = place.run(argv=place.shell, input=text[:end])
            self.assertEqual(result.stdout, "", "cut at %d" % end)
        self.assertEqual(snapshot(place.directory), before)


def replace_by_directory(path):
    os.remove(path)
    os.mkdir(path)


class Launching(InstallTest):
    """What the launcher does, by the Python of the tests, whatever state the copy is in."""

    def launched(self, extra="pass", python=sys.executable):
        """Return a place with an installed program and cluster-glue."""
        place = next(self.places_in_turn())
        place.add_cluster_glue()
        place.offer(stand_in(python=python, extra=extra))
        self.install(place)
        return place

    def version(self, place, **options):
        result = support.run([place.program, "--version"], **options)
        self.assertEqual((result.code, result.err), (0, ""))
        return result.out

    def assert_runs_unchanged(self, place):
        """Right, and without writing a copy in the middle of what may be a fence."""
        before = snapshot(place.root)
        self.assertEqual(self.version(place), "fencetool 1.0.0\n")
        self.assertEqual(snapshot(place.root), before)

    def assert_fails_in_one_line(self, place, *words):
        result = support.run([place.agent, "-o", "metadata"])
        self.assertEqual((result.code, result.out), (1, ""), result)
        self.assertEqual(result.err.count("\n"), 1, result.err)
        for word in words + (place.file, "install fencetool again"):
            self.assertIn(word, result.err)

    def test_good_copy_is_what_runs(self):
        place = self.launched(extra="if words == ['name']: sys.exit(__name__)")
        self.assertEqual(support.run([place.program, "name"]).err, "fencetool\n")
        os.remove(place.copy())
        self.assertEqual(support.run([place.program, "name"]).err, "__main__\n")

    def test_copy_that_was_cut_off_anywhere_is_not_run(self):
        place = self.launched()
        data = read_bytes(place.copy())
        for size in (0, 1, 4, 10, 12, 16, 17, 100, len(data) // 2, len(data) - 4, len(data) - 1):
            with self.subTest(size=size):
                write_bytes(place.copy(), data[:size])
                self.assert_runs_unchanged(place)

    def test_copy_with_a_wrong_byte_anywhere_is_not_run(self):
        place = self.launched()
        data = read_bytes(place.copy())
        for wrong in ([data.replace(b"fencetool 1.0.0", b"fencetool 6.0.0"), data[::-1],
                       b"rubbish" * 1000]
                      + [data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1:]
                         for at in range(0, len(data), len(data) // 16)]):
            write_bytes(place.copy(), wrong)
            self.assert_runs_unchanged(place)

    def test_copy_of_another_python_is_not_run(self):
        place = self.launched()
        data = b"\x42\x0d\x0d\x0a" + read_bytes(place.copy())[4:-4]
        write_bytes(place.copy(), data + zlib.crc32(data).to_bytes(4, "little"))
        self.assert_runs_unchanged(place)
        os.rename(place.copy(), os.path.join(place.copies, "fencetool.cpython-35.pyc"))
        self.assert_runs_unchanged(place)

    def test_whole_copy_that_cannot_be_loaded_is_not_run(self):
        place = self.launched()
        head = read_bytes(place.copy())[:16]
        for body in (b"", b"\xe3", b"N", b"\xff" * 50, marshal.dumps([1])):
            write_bytes(place.copy(), head + body + zlib.crc32(head + body).to_bytes(4, "little"))
            self.assert_runs_unchanged(place)

    def test_copy_that_is_older_than_the_file_is_not_run(self):
        place = self.launched()
        os.utime(place.file, (7, 7))
        self.assert_runs_unchanged(place)
        write_file(place.file, stand_in("2.0", python=sys.executable), 0o755)
        self.assertEqual(self.version(place), "fencetool 2.0\n")

    def test_missing_copy_or_one_that_is_no_file_makes_no_difference(self):
        place = self.launched()
        copy = place.copy()
        replace_by_directory(copy)
        self.assert_runs_unchanged(place)
        os.rmdir(copy)
        self.assert_runs_unchanged(place)
        os.rmdir(place.copies)
        self.assert_runs_unchanged(place)
        write_file(place.copies, "")
        self.assert_runs_unchanged(place)

    def test_copy_that_an_ordinary_user_may_not_read_makes_no_difference_to_one(self):
        place = self.launched(python=REAL_PYTHON)
        os.chmod(place.directory, 0o755)
        os.chmod(place.copy(), 0)
        self.assertEqual(self.version(place, preexec_fn=drop_root), "fencetool 1.0.0\n")

    def test_file_that_is_missing_or_no_python_is_told_in_one_line(self):
        place = self.launched()
        write_file(place.file, "def (\n", 0o755)
        self.assert_fails_in_one_line(place, "cannot run")
        write_bytes(place.file, b"\0")
        self.assert_fails_in_one_line(place, "cannot run")
        os.remove(place.file)
        self.assert_fails_in_one_line(place, "No such file")

    def test_half_a_file_is_no_success(self):
        place = self.launched()
        halves = [stand_in().split(end)[0] for end in ("if __name__", "def start")]
        for half in halves[1:] + [""]:
            write_file(place.file, half, 0o755)
            self.assert_fails_in_one_line(place)
        shutil.rmtree(place.copies)
        for half in halves + [""]:
            write_file(place.file, half, 0o755)
            self.assert_fails_in_one_line(place, "is not whole")

    def test_program_that_fails_is_not_run_a_second_time(self):
        place = self.launched(
            extra="if words[0] == 'off': print('off', file=sys.stderr); raise eval(words[1])")
        failures = ("ValueError('oh')", "ImportError('oh')", "EOFError('oh')", "SystemExit('oh')",
                    "OSError(2, 'oh')", "MemoryError('oh')", "AttributeError('oh')")
        for copy in ("with the copy", "without it"):
            for failure in failures:
                with self.subTest(copy=copy, failure=failure):
                    result = support.run([place.agent, "off", failure])
                    self.assertEqual((result.code, result.err.split("\n").count("off")), (1, 1))
                    self.assertIn("oh", result.err)
            shutil.rmtree(place.copies, ignore_errors=True)

    def test_program_knows_the_name_that_it_was_started_by(self):
        place = self.launched(extra="if words == ['name']: sys.exit(path)")
        plugin = os.path.join(place.directory, "kasa")
        os.symlink(place.program, plugin)
        os.symlink(os.path.relpath(place.agent, place.tmp), os.path.join(place.tmp, "fence_other"))
        for argv, options in (([place.agent], {}), ([plugin], {}), ([place.program], {}),
                              (["./fence_other"], {"cwd": place.tmp}),
                              (["../" + os.path.basename(place.tmp) + "/fence_other"],
                               {"cwd": place.source})):
            result = support.run(argv + ["name"], **options)
            self.assertEqual(os.path.basename(result.err), os.path.basename(argv[0]) + "\n")

    def test_real_fencetool_ends_the_same_with_the_copy_and_without_it(self):
        place = next(self.places_in_turn())
        place.offer(read_file(FENCETOOL))
        self.install(place)
        calls = ([place.program, "--version"], [place.program, "agents"], [place.program, "wrong"],
                 [place.agent, "-o", "metadata"], [place.agent, "-o", "wrong"], [place.agent])
        results = []
        for _ in ("with the copy", "without it"):
            results.append([support.run(argv)[:3] for argv in calls])
            shutil.rmtree(place.copies, ignore_errors=True)
        self.assertEqual(results[0], results[1])
        self.assertEqual([code for code, _, _ in results[0]], [0, 0, 2, 0, 1, 1])

    def test_demo_runs_the_agents_as_installed(self):
        place = next(self.places_in_turn())
        place.offer(read_file(FENCETOOL))
        self.install(place)
        result = support.run([place.program, "demo"])
        self.assertEqual(result.code, 0, result.out + result.err)
        self.assertIn("steps went as told", result.out)

    def test_nothing_beside_the_links_can_be_taken_for_an_agent(self):
        place = self.launched()
        names = [name for directory in (place.bin, place.library, place.copies)
                 for name in os.listdir(directory) if name.startswith("fence_")]
        self.assertEqual(names, ["fence_kasa"])
        self.assertEqual(os.listdir(place.plugins), ["kasa"])


class Checking(InstallTest):
    @with_each_shell
    def test_good_installation_exits_0_and_tells_version_and_hash(self, place):
        place.add_cluster_glue()
        self.install(place)
        before = snapshot(place.root)
        result = self.install(place, "--check")
        self.assertIn("fencetool 1.0.0, sha256 " + sha256(stand_in()), result.stdout)
        self.assertIn("same file as", result.stdout)
        self.assertNotIn("BAD", result.stdout)
        self.assertEqual(snapshot(place.root), before)

    def test_every_damage_is_told_and_exits_1(self):
        damages = {
            "is not installed": lambda place: os.remove(place.program),
            "fencetool has not the mode": lambda place: os.chmod(place.program, 0o700),
            "fencetool.py has not the mode": lambda place: os.chmod(place.file, 0o700),
            "fencetool.py, which .* starts, is missing": lambda place: os.remove(place.file),
            "is fencetool.py itself": lambda place: write_file(place.program, stand_in(), 0o755),
            "is not the launcher": lambda place: write_file(
                place.program, read_file(place.program) + "\n", 0o755),
            "copy and starts slower: there is none": lambda place: shutil.rmtree(place.copies),
            "copy and starts slower: .*: Is a directory": lambda place: replace_by_directory(
                place.copy()),
            "copy and starts slower: it is damaged, or of another Python": lambda place: write_file(
                place.copy(), ""),
            "copy and starts slower: it is damaged, or not made": lambda place: write_bytes(
                place.copy(), read_bytes(place.copy())[:-1]),
            "copy and starts slower: it is not of this very file": lambda place: os.utime(
                place.file, (7, 7)),
            "copy and starts slower: it has not the mode": lambda place: os.chmod(
                place.copy(), 0o600),
            "fence_kasa is missing": lambda place: os.remove(place.agent),
            "fence_http is a link": lambda place: os.symlink(
                "fencetool", os.path.join(place.bin, "fence_http")),
            "kasa is missing": lambda place: os.remove(os.path.join(place.plugins, "kasa")),
            "not the same file": lambda place: place.offer(stand_in("2.0.0")),
            "fence_kasa is not a link": lambda place: (
                os.remove(place.agent), write_file(place.agent, "", 0o755)),
            "is not fencetool's": lambda place: write_file(place.program, "", 0o755),
        }
        for place, words in zip(self.places_in_turn(), damages):
            with self.subTest(damage=words, shell=place.shell):
                self.put_good_installation(place)
                damages[words](place)
                before = snapshot(place.root)
                result = place.run("--check")
                self.assert_refused(place, result, "problem(s) found")
                self.assertRegex(result.stdout, "(?m)^BAD .*" + words)
                self.assertEqual(snapshot(place.root), before)

    @with_each_shell
    def test_it_does_not_run_what_is_not_fencetool_s(self, place):
        self.put_good_installation(place)
        os.remove(place.agent)
        trace = os.path.join(place.directory, "trace")
        write_file(place.agent, "#!/bin/sh\n: >'%s'\n" % trace, 0o755)
        self.assertEqual(place.run("--check").returncode, 1)
        self.assertFalse(os.path.exists(trace))

    @with_each_shell
    def test_it_compares_with_a_hash_where_no_file_is_at_hand(self, place):
        self.install(place)
        os.remove(place.offered)
        self.assertIn("to compare with", self.install(place, "--check").stdout)
        self.install(place, "--check", "--sha256", sha256(stand_in()))
        self.assert_refused(place, place.run("--check", "--sha256", sha256("")), "problem")


class Uninstalling(InstallTest):
    @with_each_shell
    def test_it_removes_all_of_its_own_and_nothing_else(self, place):
        place.add_cluster_glue()
        write_file(place.agent, "#!/bin/sh\n", 0o755)
        write_file(os.path.join(place.bin, "fence_other"), "#!/bin/sh\n", 0o755)
        os.symlink("fence_other", os.path.join(place.bin, "fence_third"))
        write_file(os.path.join(place.plugins, "ipmi"), "#!/bin/sh\n", 0o755)
        self.install(place, "--force")
        os.symlink("fencetool", os.path.join(place.bin, "fence_http"))
        before = snapshot(place.root)
        result = self.install(place, "--uninstall", "--dry-run")
        self.assertEqual(result.stdout.count("would remove"), 6)
        self.assertEqual(snapshot(place.root), before)
        result = self.install(place, "--uninstall")
        self.assertIn("left as it is: %s/%s" % (place.bin, place.backups()[0]), result.stdout)
        self.assertEqual(sorted(os.listdir(place.bin)),
                         place.backups() + ["fence_other", "fence_third"])
        self.assertEqual(os.listdir(place.plugins), ["ipmi"])
        self.assertFalse(os.path.exists(place.library))
        self.assertIn("nothing to do", self.install(place, "--uninstall").stdout)

    @with_each_shell
    def test_what_an_administrator_made_stays_whatever_is_in_it(self, place):
        self.put_good_installation(place)
        good = snapshot(place.root)
        write_file(place.agent + "_patched", stand_in("1.0.1"), 0o755)
        write_file(place.agent + "_wrapper", '#!/bin/sh\n# Not\n"""fencetool: a note\n', 0o755)
        write_file(os.path.join(place.bin, "fence_check"), stand_in(), 0o755)
        write_file(os.path.join(place.plugins, "patched"), stand_in(), 0o755)
        write_file(os.path.join(place.copies, "fencetool.notes"), "")
        os.symlink("fencetool", os.path.join(place.plugins, "fence_http"))
        os.symlink("fencetool", os.path.join(place.bin, "fence_rack"))
        made = set(snapshot(place.root)) - set(good)
        result = self.install(place, "--uninstall")
        self.assertIn("left as it is: %s/fence_rack, a link" % place.bin, result.stdout)
        self.assertEqual({path for path, kind in snapshot(place.root).items()
                          if kind[0] != "directory"}, made)

    @with_each_shell
    def test_program_that_has_the_description_elsewhere_is_foreign(self, place):
        for text in ('#!/bin/sh\n# Not\n"""fencetool: a note\n', '"""fencetool: a note\n',
                     '#!/bin/sh\n  """fencetool: a note\n'):
            write_file(place.program, text, 0o755)
            self.assert_refused_unchanged(place, [], place.program + " is not fencetool's")
            self.install(place, "--uninstall")
            self.assertEqual(read_file(place.program), text)

    @with_each_shell
    def test_agents_that_only_the_installed_file_knows_are_removed(self, place):
        for is_0_1_0 in (False, True):
            text = stand_in(agents=("fence_kasa", "fence_new"))
            if is_0_1_0:
                self.put_version_0_1_0(place, text)
                os.symlink("fencetool", os.path.join(place.bin, "fence_new"))
            else:
                place.offer(text)
                self.install(place)
            self.install(place, "--uninstall")
            self.assertEqual(os.listdir(place.bin), [])

    @with_each_shell
    def test_version_0_1_0_is_removed_too(self, place):
        place.add_cluster_glue()
        before = snapshot(place.root)
        self.put_version_0_1_0(place)
        self.install(place, "--uninstall")
        self.assertEqual(snapshot(place.root), before)

    @with_each_shell
    def test_directory_that_holds_more_than_its_own_stays_with_that(self, place):
        self.put_good_installation(place)
        notes = os.path.join(place.library, "notes")
        write_file(notes, "")
        result = self.install(place, "--uninstall")
        self.assertIn("left as it is: %s, which is not empty" % place.library, result.stdout)
        self.assertEqual(os.listdir(place.library), ["notes"])

    @with_each_shell
    def test_foreign_files_under_its_names_stay(self, place):
        place.add_cluster_glue()
        os.makedirs(place.library)
        for path in (place.program, place.agent, os.path.join(place.plugins, "kasa"), place.file):
            write_file(path, "#!/bin/sh\n", 0o755)
        before = snapshot(place.root)
        self.install(place, "--uninstall")
        self.assertEqual(snapshot(place.root), before)


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves files (path -> text) and redirects (path -> URL), and notes what it was asked for."""
    daemon_threads = True

    def __init__(self, files, context=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.redirects, self.asked = files, {}, []
        self.url = "%s://127.0.0.1:%d" % ("https" if context else "http", self.server_address[1])
        if context:     # each handshake in the thread of its connection
            self.socket = context.wrap_socket(self.socket, server_side=True,
                                              do_handshake_on_connect=False)

    def handle_error(self, request, client_address):
        pass            # the client did not trust us


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        body = self.server.files.get(self.path)
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
        else:
            self.send_response(404 if body is None else 200)
        body = (body or "no such file\n").encode()
        length = len(body) + (1000 if self.path.startswith("/short/") else 0)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class DownloadingTest(InstallTest):
    def start(self, context=None):
        server = Server({"/fencetool.py": stand_in(), "/raw?name=fencetool": stand_in(),
                         "/short/fencetool.py": stand_in()}, context)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)
        return server


class Downloading(DownloadingTest):
    def setUp(self):
        self.server = self.start()
        self.url = self.server.url

    def tool_paths(self, place):
        """Return for each downloader a PATH on which it is the only one."""
        paths = {tool: place.toolbox(tool, "sha256sum", *commands_needed())
                 for tool in ("wget", "curl", "python3")}
        paths["busybox wget"] = place.busybox_toolbox("wget", "sha256sum", *commands_needed())
        return paths

    @with_each_shell
    def test_each_downloader_alone_is_enough(self, place):
        for tool, path in self.tool_paths(place).items():
            with self.subTest(tool=tool):
                self.install(place, "--from", self.url, "--sha256", sha256(stand_in()), path=path)
                self.assertEqual(place.installed_version(), "1.0.0")
                os.remove(place.program)

    @with_each_shell
    def test_url_may_be_of_the_directory_or_of_the_file(self, place):
        for end in ("", "/", "/fencetool.py", "/raw?name=fencetool"):
            with self.subTest(end=end):
                self.install(place, "--from", self.url + end, "--sha256", sha256(stand_in()))
                self.assertEqual(place.installed_version(), "1.0.0")
                os.remove(place.program)

    @with_each_shell
    def test_http_without_the_hash_is_refused_before_anything_is_fetched(self, place):
        for options in ([], ["--check"], ["--dry-run"]):
            self.assert_refused_unchanged(place, options + ["--from", self.url], "--sha256",
                                          "nothing proves who sent " + self.url)
        self.assertEqual(self.server.asked, [])

    @with_each_shell
    def test_bad_download_leaves_the_old_version(self, place):
        place.offer(stand_in("0.9"))
        self.install(place)
        for tool, path in self.tool_paths(place).items():
            with self.subTest(tool=tool):
                self.assert_refused_unchanged(
                    place, ["--from", self.url + "/none", "--sha256", sha256(stand_in())],
                    "cannot fetch %s/none/fencetool.py:" % self.url, "404", path=path)
                self.assert_refused_unchanged(
                    place, ["--from", self.url, "--sha256", sha256("")], "sha256", path=path)

    @with_each_shell
    def test_download_that_ends_too_early_is_refused(self, place):
        for tool in ("curl", "python3"):
            path = place.toolbox(tool, *commands_needed())
            self.assert_refused_unchanged(
                place, ["--from", self.url + "/short", "--sha256", sha256(stand_in())],
                "cannot fetch", path=path)

    @with_each_shell
    def test_without_any_downloader_it_names_those_that_would_do(self, place):
        self.assert_refused_unchanged(
            place, ["--from", self.url, "--sha256", sha256(stand_in())],
            "install wget, curl or python3", path=place.toolbox(*commands_needed()))

    @with_each_shell
    def test_https_with_a_wget_that_checks_no_certificates_needs_the_hash(self, place):
        self.assert_refused_unchanged(
            place, ["--from", self.url.replace("http:", "https:")], "--sha256",
            path=place.busybox_toolbox("wget", *commands_needed()))


@functools.lru_cache(maxsize=None)
def key_and_certificate():
    """Return the paths of both; who trusts the certificate trusts a server at 127.0.0.1."""
    paths = [os.path.join(os.path.dirname(quick_python), name) for name in ("key", "certificate")]
    subprocess.check_call(
        [require_program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", paths[0],
         "-out", paths[1]], stderr=subprocess.DEVNULL)
    return paths


class DownloadingEncrypted(DownloadingTest):
    def setUp(self):
        self.key, self.certificate = key_and_certificate()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        self.plain, self.server = self.start(), self.start(context)
        self.server.redirects = {
            "/here/fencetool.py": "/fencetool.py",
            "/away/fencetool.py": self.plain.url + "/fencetool.py",
            "/twice/fencetool.py": "/away/fencetool.py"}

    def with_each_tool(self, test):
        """Call test(place, tool, options) with the options of a run that has no other tool.

        Each tool gets a shell of its own, and trusts the server.
        """
        for place, tool in zip(self.places_in_turn(), ("curl", "wget", "python3")):
            settings = os.path.join(place.directory, "wgetrc")
            write_file(settings, "ca_certificate = %s\n" % self.certificate)
            options = {"path": place.toolbox(tool, "sha256sum", *commands_needed()),
                       "env": {"CURL_CA_BUNDLE": self.certificate, "WGETRC": settings,
                               "SSL_CERT_FILE": self.certificate}}
            with self.subTest(tool=tool, shell=place.shell):
                test(place, tool, options)

    def test_certificate_is_proof_enough_and_an_unknown_one_is_none(self):
        def check(place, _, options):
            self.install(place, "--from", self.server.url, **options)
            self.install(place, "--uninstall")
            options["env"] = {}
            self.assert_refused_unchanged(place, ["--from", self.server.url], "cannot fetch",
                                          **options)

        self.with_each_tool(check)

    def test_redirect_to_https_is_followed_and_by_wget_only_with_the_hash(self):
        def check(place, tool, options):
            url = self.server.url + "/here"
            if tool == "wget":
                self.assert_refused_unchanged(place, ["--from", url], "redirections", **options)
            else:
                self.install(place, "--from", url, **options)
                self.install(place, "--uninstall")
            self.install(place, "--from", url, "--sha256", sha256(stand_in()), **options)

        self.with_each_tool(check)

    def test_redirect_from_https_to_http_is_refused_without_the_hash(self):
        def check(place, _, options):
            for way in ("/away", "/twice"):
                self.assert_refused_unchanged(
                    place, ["--from", self.server.url + way],
                    "without --sha256, over nothing but https", **options)
            self.assertEqual(self.plain.asked, [])

        self.with_each_tool(check)

    def test_redirect_from_https_to_http_is_followed_with_the_hash(self):
        def check(place, _, options):
            del self.plain.asked[:]
            self.install(place, "--from", self.server.url + "/twice",
                         "--sha256", sha256(stand_in()), **options)
            self.assertEqual(self.plain.asked, ["/fencetool.py"])

        self.with_each_tool(check)

    def test_settings_at_home_do_not_turn_the_check_of_certificates_off(self):
        def check(place, _, options):
            write_file(os.path.join(place.directory, ".curlrc"), "insecure\n")
            write_file(os.path.join(place.directory, ".wgetrc"), "check_certificate = off\n")
            options["env"] = {"HOME": place.directory}
            self.assert_refused_unchanged(place, ["--from", self.server.url], "certificate",
                                          **options)

        self.with_each_tool(check)


class OtherUsers(InstallTest):
    """What root must not run, because another user can change it."""
    OTHER = 65534

    def setUp(self):
        support.require_root()

    def spy(self, place):
        """Return the text of a fencetool.py that leaves a trace when it is run, and that path."""
        trace = os.path.join(place.directory, "trace")
        return python_stand_in(extra="open(%r, 'w').close()" % trace), trace

    def test_places_that_others_can_change_are_refused_in_every_mode(self):
        def lead_through_a_link(place):
            other = os.path.join(place.directory, "other")
            os.mkdir(other)
            os.rename(place.bin, os.path.join(other, "sbin"))
            os.symlink("../../other/sbin", place.bin)
            os.chown(other, self.OTHER, -1)
        makers = {
            "the root": lambda place: os.chown(place.root, self.OTHER, -1),
            "usr": lambda place: os.chmod(os.path.join(place.root, "usr"), 0o775),
            "usr/sbin": lambda place: os.chmod(place.bin, 0o757),
            "lib/fencetool": lambda place: os.chown(place.library, self.OTHER, -1),
            "__pycache__": lambda place: os.chmod(place.copies, 0o777),
            "external": lambda place: os.chown(place.plugins, self.OTHER, -1),
            "other": lead_through_a_link}
        for place, (name, make) in zip(self.places_in_turn(), makers.items()):
            self.put_good_installation(place)
            text, trace = self.spy(place)
            write_file(place.file, text, 0o755)
            make(place)
            for options in ([], ["--check"], ["--dry-run"], ["--uninstall"]):
                with self.subTest(name=name, options=options):
                    self.assert_refused_unchanged(place, options, name + ": root")
                    self.assertFalse(os.path.exists(trace))

    def test_files_that_others_can_change_are_not_run_but_replaced(self):
        makers = {
            "file": lambda place: os.chown(place.file, self.OTHER, -1),
            "file, mode": lambda place: os.chmod(place.file, 0o777),
            "launcher": lambda place: os.chown(place.program, self.OTHER, -1),
            "copy": lambda place: os.chown(place.copy(), self.OTHER, -1)}
        for place, (name, make) in zip(self.places_in_turn(), makers.items()):
            text, trace = self.spy(place)
            place.offer(text)
            self.install(place)
            os.remove(trace)
            place.offer(stand_in())
            with self.subTest(name=name):
                make(place)
                self.assert_refused_unchanged(place, ["--check"], "others than root can change")
                self.assertFalse(os.path.exists(trace))
                place.offer(text)
                result = self.install(place)
                self.assertNotIn("already installed", result.stdout)
                self.assert_good(place, place.run("--check"))

    @with_each_shell
    def test_installed_file_that_others_can_change_is_not_asked_for_its_agents(self, place):
        self.put_good_installation(place)
        text, trace = self.spy(place)
        write_file(place.file, text, 0o777)
        self.install(place, "--uninstall")
        self.assertFalse(os.path.exists(trace))
        self.assertEqual(os.listdir(place.bin), [])

    @with_each_shell
    def test_python_that_others_can_change_is_refused(self, place):
        other = os.path.join(tempfile.mkdtemp(dir="/tmp"), "python3")
        self.addCleanup(shutil.rmtree, os.path.dirname(other))
        shutil.copy(quick_python, other)
        os.chown(other, self.OTHER, -1)
        place.offer(stand_in(python=other))
        self.assert_refused_unchanged(place, [], "others than root can change " + other)

    @with_each_shell
    def test_programs_in_a_directory_of_another_user_are_not_run(self, place):
        trace = os.path.join(place.directory, "trace")
        for mode, owner in ((0o755, self.OTHER), (0o777, 0)):
            directory = tempfile.mkdtemp(dir=place.directory)
            for tool in commands_needed() + ["id", "sha256sum", "python3"]:
                write_file(os.path.join(directory, tool),
                           "#!/bin/sh\n: >'%s'\nexec /usr/bin/%s \"$@\"\n" % (trace, tool), 0o755)
            os.chmod(directory, mode)
            os.chown(directory, owner, -1)
            path = "%s:%s::." % (directory, SYSTEM_PATH)
            self.install(place, "--sha256", sha256(stand_in()), path=path)
            self.install(place, "--check", path=path)
            self.install(place, "--uninstall", path=path)
            self.assertFalse(os.path.exists(trace))

    @with_each_shell
    def test_temporary_directory_of_another_user_is_not_used(self, place):
        trace = os.path.join(place.directory, "trace")
        place.offer(python_stand_in(extra="print(path, file=open(%r, 'a'))" % trace))
        os.chown(place.tmp, self.OTHER, -1)
        self.install(place)
        self.assertNotIn(place.tmp, read_file(trace))

    @with_each_shell
    def test_file_to_install_may_be_anybody_s_and_sticky_directories_do_no_harm(self, place):
        os.chmod(place.directory, 0o1777)
        os.chown(place.source, self.OTHER, -1)
        os.chown(place.offered, self.OTHER, -1)
        self.install(place)
        self.assertEqual(os.lstat(place.file).st_uid, 0)
        self.assert_good(place, place.run("--check"))

    @with_each_shell
    def test_ordinary_user_installs_checks_and_removes_in_a_directory_of_his_own(self, place):
        tools = os.path.join(place.directory, "tools")
        os.mkdir(tools)
        trace = os.path.join(place.directory, "trace")
        write_file(os.path.join(tools, "cp"),
                   "#!/bin/sh\n: >'%s'\nexec /bin/cp \"$@\"\n" % trace, 0o755)
        for directory, names, files in os.walk(place.directory):
            for name in [directory] + [os.path.join(directory, name) for name in names + files]:
                os.chown(name, self.OTHER, self.OTHER)
        os.chmod(place.bin, 0o777)
        for options in ([], ["--check"], ["--uninstall"]):
            self.install(place, *options, preexec_fn=drop_root, path=tools + ":" + SYSTEM_PATH)
        self.assertEqual(os.listdir(place.bin), [])
        self.assertTrue(os.path.exists(trace))


class TheScript(unittest.TestCase):
    def test_shellcheck_has_nothing_to_say_and_nothing_is_disabled(self):
        result = subprocess.run([require_program("shellcheck"), INSTALL], stdout=subprocess.PIPE)
        self.assertEqual((result.returncode, result.stdout), (0, b""))
        self.assertNotIn("shellcheck disable", read_file(INSTALL))

    def test_released_agents_hold_all_that_this_version_has(self):
        # A later version that has one of them no more knows its link by this list.
        listed = re.search("^RELEASED_AGENTS='([^']*)'", read_file(INSTALL), re.M).group(1).split()
        for words in (["agents"], ["agents", "--others"]):
            told = subprocess.check_output([sys.executable, "-IS", FENCETOOL] + words,
                                           universal_newlines=True).split()
            self.assertTrue(told)
            self.assertEqual(set(told) - set(listed), set())

    def test_lines_have_at_most_100_columns(self):
        self.assertEqual([line for line in read_file(INSTALL).split("\n") if len(line) > 100], [])

    def test_help_tells_every_option_that_is_understood(self):
        text = read_file(INSTALL)
        parser = text[text.index("parse_options()"):text.index("take_value()")]
        help_text = subprocess.check_output(["sh", INSTALL, "--help"], universal_newlines=True)
        options = set(re.findall(r"--[a-z][a-z0-9-]+", parser))
        self.assertEqual({name for name in options if name not in help_text}, set())
        self.assertGreaterEqual(len(options), 8)


if __name__ == "__main__":
    sys.exit(unittest.main())
