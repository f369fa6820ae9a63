"""Real networks for the tests: namespaces joined by veth, named by the pid, removed at the end."""
import atexit
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading

from tests import support

CLONE_NEWNET = 0x40000000
CHECK_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def lines_of(parameters):
    return "".join("%s=%s\n" % item for item in parameters.items())


class Lab:
    """Some machines, each a network namespace, and the cables between them."""

    count = 0

    def __init__(self):
        support.require_namespaces("ip", "nft")
        Lab.count += 1
        self.prefix = "ft%d-%d-" % (os.getpid(), Lab.count)
        self.machines = []
        # Each machine has a /var/lib of its own, where fence_check keeps what it has seen.
        self.folder = tempfile.mkdtemp(prefix="fencetool-test-")
        # Also when the set-up fails or the run is interrupted; a second call finds nothing to do.
        atexit.register(self.close)

    def close(self):
        while self.machines:
            subprocess.call(["ip", "netns", "del", self.machines.pop()])
        shutil.rmtree(self.folder, ignore_errors=True)

    def seen_file(self, name):
        """Return where a machine's record of who was alive is."""
        return os.path.join(self.folder, name, "fencetool", "seen.json")

    def see(self, name, *addresses):
        """Record on a machine that it has seen these addresses alive."""
        path = self.seen_file(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as handle:
            json.dump({address: 1700000000 for address in addresses}, handle)

    def add(self, *names):
        for name in names:
            # Listed first: what fails halfway is removed as well.
            self.machines.append(self.prefix + name)
            self._run("ip", "netns", "add", self.prefix + name)
            self.inside(name, "ip", "link", "set", "lo", "up")
            self.inside(name, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0",
                        "net.ipv6.conf.default.accept_dad=0", "net.ipv4.icmp_ratelimit=0",
                        "net.ipv6.icmp.ratelimit=0")

    def cable(self, one, interface, other, other_interface):
        self._run("ip", "link", "add", interface, "netns", self.prefix + one, "type", "veth",
                  "peer", "name", other_interface, "netns", self.prefix + other)
        self.inside(one, "ip", "link", "set", interface, "up")
        self.inside(other, "ip", "link", "set", other_interface, "up")

    def plug_in(self, name, switch, *addresses, interface="eth0"):
        """Join a machine to a bridge and give it addresses."""
        port = "%s-%s" % (name[:8], interface)
        self.cable(name, interface, switch, port)
        self.inside(switch, "ip", "link", "set", port, "master", "br0")
        for address in addresses:
            self.address(name, interface, address)

    def switch(self, name):
        self.add(name)
        self.inside(name, "ip", "link", "add", "br0", "type", "bridge")
        self.inside(name, "ip", "link", "set", "br0", "up")

    def address(self, name, interface, address):
        options = ["nodad"] if ":" in address else []
        self.inside(name, "ip", "address", "add", address, "dev", interface, *options)

    def firewall(self, name, rules, family="inet"):
        """Load nft rules: (hook, rule) pairs."""
        lines = ["table %s t {" % family]
        for number, (hook, rule) in enumerate(rules):
            lines.append("chain c%d { type filter hook %s priority 0; policy accept; %s; }"
                         % (number, hook, rule))
        self.inside(name, "nft", "-f", "-", stdin="\n".join(lines + ["}"]))

    def inside(self, name, *argv, **options):
        return self._run("ip", "netns", "exec", self.prefix + name, *argv, **options)

    def argv(self, name, *argv):
        return ["ip", "netns", "exec", self.prefix + name] + list(argv)

    def check(self, name, parameters, before=(), timeout=90):
        """Run fence_check on a machine with its parameters on stdin, as Pacemaker does."""
        return support.run(self._check_argv(name, before), stdin=lines_of(parameters),
                           environment=CHECK_ENVIRONMENT, timeout=timeout)

    def follow_check(self, name, parameters, see):
        """Run fence_check and call see(line) as it logs each line; return its exit code."""
        child = subprocess.Popen(
            self._check_argv(name), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=CHECK_ENVIRONMENT, universal_newlines=True)
        try:
            with child.stdin as stdin:
                stdin.write(lines_of(parameters))
            with child.stderr as stderr:
                for line in stderr:
                    see(line)
            return child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()

    def _check_argv(self, name, before=()):
        library = os.path.join(self.folder, name)
        os.makedirs(library, exist_ok=True)
        # "ip netns exec" gives its program mounts of its own.
        own = ("sh", "-c", 'mount --bind "$0" /var/lib && exec "$@"', library)
        return self.argv(name, *own, *before) + [
            sys.executable, "-IS", support.compiled_script(), "fence_check"]

    def call_inside(self, name, function):
        """Call a function in a thread of this process that lives in the namespace.

        Threads that it starts stay there: so a virtual device gets its address.
        """
        answer = []

        def enter():
            handle = os.open("/run/netns/" + self.prefix + name, os.O_RDONLY)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                answer.append(function())
            finally:
                os.close(handle)
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return answer[0]

    @staticmethod
    def _run(*argv, stdin=""):
        result = support.run(list(argv), stdin=stdin, environment=dict(os.environ))
        if result.code != 0:
            raise AssertionError("%s: %s" % (" ".join(argv), result.err))
        return result.out
