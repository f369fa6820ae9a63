"""A private view of this machine in which pcs sees our fence agents, and answers quickly.

Agents that pcs sees must be in /usr/sbin: the lab is a mount namespace with an overlay over it, so
that the machine itself keeps nothing. pcs asks them for their metadata only, and dozens of times: a
shell script prints what the agent said once. The interpreter of pcs takes a second to start: one
process imports the real pcs, and a fork of it runs each call.

Started as a program this file is that process (serve), or stands for pcs in PATH (call).
"""
import array
import gc
import marshal
import os
import signal
import sys

# Hundreds of times this file stands for pcs: what takes longer to import than to run is imported
# where it is used, and the module below socket does for the client.
import _socket

MOUNT = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/bin"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
for agent in $3; do
    "$4" -IS "$2/fencetool.py" "$agent" -o metadata >"$1/$agent.xml"
    rm -f "/usr/sbin/$agent"  # where fencetool is installed, this is a link to it
    printf '#!/bin/sh\ncat >/dev/null\ncat "%s"\n' "$1/$agent.xml" >"/usr/sbin/$agent"
    chmod 755 "/usr/sbin/$agent"
done
printf '#!/bin/sh\\nexec "%s" -IS "%s" call "%s" "$@"\\n' \\
    "$4" "$2/tests/pcs_lab.py" "$1/socket" >"$1/bin/pcs"
chmod 755 "$1/bin/pcs"
exec /usr/bin/python3 -Es "$2/tests/pcs_lab.py" serve "$1/socket"
"""


class Lab:
    """Runs programs in the namespace; end() takes it away."""

    def __init__(self, root, agents):
        import subprocess
        import tempfile
        self.place = tempfile.mkdtemp(prefix="pcs-lab-")
        self.server = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", MOUNT, "lab", self.place, root, " ".join(agents),
             sys.executable], stdout=subprocess.PIPE)
        if self.server.stdout.readline() != b"ready\n":
            self.end()
            raise AssertionError("the lab did not start")

    def command(self, argv):
        """Return argv and environment that run a program in the lab."""
        path = "%s/bin:/usr/sbin:/usr/bin:/sbin:/bin" % self.place
        return ["nsenter", "-t", str(self.server.pid), "-m"] + argv, {"PATH": path}

    def end(self):
        self.server.terminate()
        self.server.wait()
        self.server.stdout.close()
        import shutil
        shutil.rmtree(self.place)


def serve(path):
    import socket
    from pcs import app
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A collection would touch, and so copy, all that the forks share.
    gc.disable()
    getattr(gc, "freeze", gc.collect)()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(connection, app)
        connection.close()


def answer(connection, app):
    """Run one call of pcs with the caller's descriptors, directory and environment."""
    descriptors = array.array("i")
    message, ancillary, _, _ = connection.recvmsg(1 << 20, _socket.CMSG_SPACE(12))
    descriptors.frombytes(ancillary[0][2])
    request = marshal.loads(message)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["pcs"] + request["arguments"]
    code = 1
    try:
        app.main(request["arguments"])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(b"%d" % code)
        os._exit(0)


def call(path, arguments):
    connection = _socket.socket(_socket.AF_UNIX)
    connection.connect(path)
    request = {"arguments": arguments, "directory": os.getcwd(), "environment": dict(os.environ)}
    connection.sendmsg([marshal.dumps(request, 2)],
                       [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    return int(connection.recv(16) or b"1")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(call(sys.argv[2], sys.argv[3:]))
