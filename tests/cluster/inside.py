"""What runs inside the namespaces of the cluster harness: the shelter and the init of each node.

    inside.py shelter              holds the cluster's namespaces until its stdin closes
    inside.py node CONFIG          is the init of one node; CONFIG is JSON, see harness.Node

Both run as process 1 of a pid namespace, so that their end is the end of everything in it. The
word "ready" on stdout says that commands may enter.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time

CLUSTER_STACK_WAIT_S = 60
# Devices that programs of a node may use. The machine's other devices stay outside, the watchdog
# above all: corosync and pacemaker would arm it, and the machine would reboot.
NODE_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
NODE_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"),
              ("ptmx", "pts/ptmx"))


def main(argv):
    if argv[1:2] == ["shelter"]:
        run_shelter()
    elif argv[1:2] == ["node"]:
        run_node(json.loads(argv[2]))
    else:
        sys.exit("usage: inside.py shelter | node CONFIG")


# --- both ---------------------------------------------------------------------------------------

def mount(*arguments):
    # -n: no note of the mount in /run/mount, which may still be the machine's.
    command = ["mount", "-n"] + list(arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise SystemExit("%s: %s" % (" ".join(command), done.stdout.decode(errors="replace")))


def bind(source, path):
    mount("--bind", source, path)


def say_ready():
    sys.stdout.write("ready\n")
    sys.stdout.flush()


# --- the shelter --------------------------------------------------------------------------------

def run_shelter():
    """Give `ip netns` a private place for its names, then wait for the harness to go.

    The machine's own /run/netns would keep the namespaces, and a mount, after a crash.
    """
    mount("-t", "tmpfs", "tmpfs", "/run")
    os.mkdir("/run/netns")
    mount("-t", "proc", "proc", "/proc")
    reaper = threading.Thread(target=reap_children)
    reaper.daemon = True
    reaper.start()
    say_ready()
    # The harness holds the other end and never writes. The kernel closes it however the harness
    # ends, and with this process it kills everything in the pid namespace.
    sys.stdin.read()
    os._exit(0)


def reap_children():
    """Collect the orphans that fall to process 1, for ever."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.5)


# --- a node -------------------------------------------------------------------------------------

def run_node(config):
    time.sleep(config["firmware_s"])
    for network in config["networks"]:
        subprocess.check_call(["ip", "link", "set", network, "up"])
    socket.sethostname(config["name"])
    mount_private_places()
    mount_overlays(config["overlays"])
    for source, path in config["binds"]:
        bind(source, path)
    # What is not private is the machine's, and nothing in a node may change it.
    mount("-o", "remount,bind,ro", "/")
    start_syslog()
    say_ready()
    start_cluster_stack(config)
    reap_children()


def mount_private_places():
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for directory in ("/run/lock", "/run/tmp", "/run/dev"):
        os.mkdir(directory)
    mount("-t", "proc", "proc", "/proc")
    # /sys shows the network devices of whoever mounted it: a node has to see its own.
    mount("-t", "sysfs", "sysfs", "/sys")
    shut_sysrq()
    mount_devices("/run/dev")


def shut_sysrq():
    """Keep a pacemaker that panics from rebooting the machine through sysrq."""
    with open("/run/sysrq", "w") as stream:
        stream.write("0\n")
    for source, path in (("/dev/null", "/proc/sysrq-trigger"),
                         ("/run/sysrq", "/proc/sys/kernel/sysrq")):
        if os.path.exists(path):
            bind(source, path)


def mount_devices(staging):
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", staging)
    for name in NODE_DEVICES:
        open(os.path.join(staging, name), "w").close()
        bind("/dev/" + name, os.path.join(staging, name))
    for name, target in NODE_LINKS:
        os.symlink(target, os.path.join(staging, name))
    # corosync and pacemaker keep the shared memory of their connections in /dev/shm.
    os.mkdir(os.path.join(staging, "shm"))
    os.chmod(os.path.join(staging, "shm"), 0o1777)
    os.mkdir(os.path.join(staging, "pts"))
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666", "devpts",
          os.path.join(staging, "pts"))
    mount("--move", staging, "/dev")


def mount_overlays(overlays):
    """Lay each directory over a place of the machine, read-only, so that nothing is written there.

    A second lower layer instead of an upper one works on any file system, an overlay included.
    """
    for layer, path in overlays:
        mount("-t", "overlay", "-o", "ro,lowerdir=%s:%s" % (layer, path), "overlay", path)


def start_syslog():
    """Keep what programs send to syslog: of an agent killed at its timeout nothing else is left."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind("/dev/log")
    os.chmod("/dev/log", 0o666)
    thread = threading.Thread(target=write_syslog, args=(receiver,))
    thread.daemon = True
    thread.start()


def write_syslog(receiver):
    with open("/var/log/syslog", "ab", buffering=0) as log:
        while True:
            message = receiver.recv(65536).rstrip(b"\n\0")
            log.write(b"%.3f %s\n" % (time.monotonic(), message))


def start_cluster_stack(config):
    start_daemon(["corosync", "-f"], config)
    # pacemakerd retries by the second while corosync has no answer for it, so wait here instead.
    deadline = time.monotonic() + CLUSTER_STACK_WAIT_S
    while not corosync_answers():
        if time.monotonic() > deadline:
            raise SystemExit("corosync does not answer, see its log")
        time.sleep(0.02)
    if config["has_quorum_device"]:
        os.mkdir("/run/corosync-qdevice")
        start_daemon(["corosync-qdevice", "-f"], config)
    start_daemon(["pacemakerd"], config)


def start_daemon(command, config):
    with open(os.path.join("/var/log", command[0] + ".out"), "ab") as output:
        subprocess.Popen(command, env=config["environment"], cwd="/", stdin=subprocess.DEVNULL,
                         stdout=output, stderr=output)


def corosync_answers():
    """Return whether corosync listens for quorum questions, its last service to start."""
    with open("/proc/net/unix") as table:
        return "@quorum" in table.read()


if __name__ == "__main__":
    main(sys.argv)
