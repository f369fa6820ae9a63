#!/usr/bin/python3 -IS
"""OCF resource agent ocf:fencetool:heartbeat_writer, the resource that must never run twice.

While started, a process appends "NODE MONOTONIC-NS WRITER" to a file some twenty times a second.
The monotonic clock is the machine's and so the same in all nodes; WRITER is new for each process.
harness.Cluster.overlapping_writers reads the file.
"""

import os
import signal
import sys
import time

OCF_SUCCESS, OCF_ERR_GENERIC, OCF_ERR_UNIMPLEMENTED, OCF_NOT_RUNNING = 0, 1, 3, 7
BEAT_S = 0.05
STOP_WAIT_S = 5
PID_FILE = "/run/heartbeat_writer.pid"

METADATA = """<?xml version="1.0"?>
<resource-agent name="heartbeat_writer" version="1.0">
  <version>1.0</version>
  <longdesc lang="en">Appends the name of its node to a file, many times a second.</longdesc>
  <shortdesc lang="en">Writer of heartbeats for tests</shortdesc>
  <parameters>
    <parameter name="path" unique="0" required="1">
      <longdesc lang="en">File to append to</longdesc>
      <shortdesc lang="en">File to append to</shortdesc>
      <content type="string"/>
    </parameter>
  </parameters>
  <actions>
    <action name="start" timeout="10s"/>
    <action name="stop" timeout="10s"/>
    <action name="monitor" timeout="10s" interval="10s" depth="0"/>
    <action name="meta-data" timeout="5s"/>
    <action name="validate-all" timeout="5s"/>
  </actions>
</resource-agent>
"""


def main(argv):
    actions = {"start": start, "stop": stop, "monitor": monitor, "status": monitor,
               "meta-data": show_metadata, "validate-all": validate}
    action = actions.get(argv[1] if len(argv) == 2 else "")
    return action() if action else OCF_ERR_UNIMPLEMENTED


def start():
    if read_pid():
        return OCF_SUCCESS
    path = os.environ["OCF_RESKEY_path"]
    first_beat, said = os.pipe()
    if os.fork() == 0:
        os.close(first_beat)
        # The executor waits until its pipes are closed, so the writer must not keep them.
        detach()
        write_heartbeats(path, said)
    os.close(said)
    return OCF_SUCCESS if os.read(first_beat, 1) else OCF_ERR_GENERIC


def detach():
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def write_heartbeats(path, said):
    with open(PID_FILE, "w") as stream:
        stream.write("%d\n" % os.getpid())
    output = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    writer = os.urandom(4).hex()
    while True:
        line = "%s %d %s\n" % (os.uname()[1], int(time.monotonic() * 1e9), writer)
        # One short write to a file opened for appending is never torn or mixed with another.
        os.write(output, line.encode("ascii"))
        if said:
            os.write(said, b"x")
            os.close(said)
            said = None
        time.sleep(BEAT_S)


def stop():
    pid = read_pid()
    if pid:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_WAIT_S
    while read_pid():
        if time.monotonic() > deadline:
            return OCF_ERR_GENERIC
        time.sleep(0.01)
    return OCF_SUCCESS


def monitor():
    return OCF_SUCCESS if read_pid() else OCF_NOT_RUNNING


def read_pid():
    """Return the pid of the running writer, or None."""
    try:
        with open(PID_FILE) as stream:
            pid = int(stream.read())
        with open("/proc/%d/cmdline" % pid, "rb") as stream:
            # A zombie has no command line any more.
            return pid if b"heartbeat_writer" in stream.read() else None
    except (OSError, ValueError):
        return None


def show_metadata():
    sys.stdout.write(METADATA)
    return OCF_SUCCESS


def validate():
    return OCF_SUCCESS if os.environ.get("OCF_RESKEY_path") else OCF_ERR_GENERIC


if __name__ == "__main__":
    sys.exit(main(sys.argv))
