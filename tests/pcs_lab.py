"""A private view of this machine in which pcs sees our fence agents, and answers quickly.

Agents that pcs sees must be in /usr/sbin: the lab is a mount namespace with an overlay over it, so
that the machine itself keeps nothing. pcs asks them for their metadata only, and dozens of times: a
shell script prints what the agent said once, and what the cluster's programs make of it is asked
once too. Most of what cibadmin does is to read Pacemaker's schemas: the lab has them in a form that
is read faster. What is to prove that a CIB is valid must run outside. The interpreter of pcs takes
a second to start: one process imports the real pcs, and a fork of it runs each call. Started as a
program, this file is that process.
"""
import gc
import hashlib
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile

MOUNT = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/bin" "$1/asked"
mkfifo "$1/calls"
mount -t overlay overlay -o "lowerdir=/usr/sbin,upperdir=$1/upper,workdir=$1/work" /usr/sbin
for agent in $3; do
    "$4" -IS "$2/fencetool.py" "$agent" -o metadata >"$1/$agent.xml"
    rm -f "/usr/sbin/$agent"  # where fencetool is installed, this is a link to it
    printf '#!/bin/sh\ncat >/dev/null\ncat "%s"\n' "$1/$agent.xml" >"/usr/sbin/$agent"
    chmod 755 "/usr/sbin/$agent"
done
printf '%s\n' "$5" >"$1/bin/pcs"
chmod 755 "$1/bin/pcs"
exec /usr/bin/python3 -Es "$2/tests/pcs_lab.py" "$1"
"""
# Stands for pcs in PATH, hundreds of times: a shell starts in less time than Python. What it
# was called with is read in /proc while it waits. A redirection moves the descriptors 0 and 1.
CALL = """#!/bin/sh
exec 3<&0 4>&1
place=${0%/bin/pcs}
mkfifo "$place/answer.$$"
echo $$ >"$place/calls"
read -r code <"$place/answer.$$"
exit "$code"
"""
CALL_LIMIT_S = 600
SCHEMAS = "/usr/share/pacemaker"


class Lab:
    """Runs programs in the namespace; end() takes it away."""

    def __init__(self, root, agents):
        self.place = tempfile.mkdtemp(prefix="pcs-lab-")
        self.server = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", MOUNT, "lab", self.place, root, " ".join(agents),
             sys.executable, CALL], stdout=subprocess.PIPE)
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
        shutil.rmtree(self.place)


def write_quick_schemas(folder):
    """Write schemas of the same meaning, that refer to each other's files once a file.

    libxml reads a file anew at each reference to it: that with the scores 92 times.
    """
    for name in os.listdir(SCHEMAS):
        if not name.endswith(".rng"):
            os.symlink(os.path.join(folder, "..", "real", name), os.path.join(folder, name))
            continue
        with open(os.path.join(SCHEMAS, name), encoding="utf-8") as schema:
            text, marker, end = schema.read().rpartition("</grammar>")
        for file in set(re.findall('<externalRef href="([^"]+)" */>', text)):
            # Not the name of another file's definition, beside which an include may put it.
            own = "%s-in-%s" % (file.replace("/", "-"), name)
            text = re.sub('<externalRef href="%s" */>' % re.escape(file),
                          '<ref name="%s"/>' % own, text)
            text += '<define name="%s"><externalRef href="%s"/></define>' % (own, file)
        with open(os.path.join(folder, name), "w", encoding="utf-8") as schema:
            schema.write(text + marker + end)


def show_quick_schemas(place):
    folder, real = os.path.join(place, "schemas"), os.path.join(place, "real")
    os.mkdir(folder)
    os.mkdir(real)
    write_quick_schemas(folder)
    subprocess.check_call(["mount", "--bind", SCHEMAS, real])
    subprocess.check_call(["mount", "--bind", folder, SCHEMAS])


def serve(place):
    from pcs import app
    from pcs.lib.external import CommandRunner
    if os.path.isdir(SCHEMAS):
        show_quick_schemas(place)
    CommandRunner.run = remembering(CommandRunner.run, os.path.join(place, "asked"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A collection would touch, and so copy, all that the forks share.
    gc.disable()
    getattr(gc, "freeze", gc.collect)()
    # For reading and writing: it never comes to an end.
    with os.fdopen(os.open(os.path.join(place, "calls"), os.O_RDWR), "rb", closefd=False) as calls:
        print("ready", flush=True)
        while True:
            caller = int(calls.readline())
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(caller, place, app)


def remembering(run, folder):
    """Return CommandRunner.run that asks a program for metadata once in the life of the lab."""
    def run_or_remember(self, args, *more, **options):
        if "metadata" not in args and "--show-metadata" not in args:
            return run(self, args, *more, **options)
        path = os.path.join(folder, hashlib.sha256(repr(list(args)).encode()).hexdigest())
        try:
            with open(path, "rb") as known:
                return pickle.load(known)
        except FileNotFoundError:
            found = run(self, args, *more, **options)
        if found[2] == 0:
            with open("%s.%d" % (path, os.getpid()), "wb") as known:
                pickle.dump(found, known)
            os.rename(known.name, path)
        return found
    return run_or_remember


def read_list(path):
    with open(path, "rb") as source:
        return [os.fsdecode(item) for item in source.read().split(b"\0")[:-1]]


def answer(caller, place, app):
    """Run one call of pcs with the caller's descriptors, directory and environment."""
    signal.alarm(CALL_LIMIT_S)  # where the caller was killed, nobody takes the answer
    of_caller = "/proc/%d/" % caller
    for theirs, ours in ((3, 0), (4, 1), (2, 2)):
        mode = os.O_WRONLY | os.O_APPEND if ours else os.O_RDONLY
        os.dup2(os.open("%sfd/%d" % (of_caller, theirs), mode), ours)
    os.chdir(of_caller + "cwd")
    arguments = read_list(of_caller + "cmdline")[2:]  # after the shell and its script
    os.environ.clear()
    os.environ.update(item.split("=", 1) for item in read_list(of_caller + "environ"))
    sys.argv = ["pcs"] + arguments
    code = 1
    try:
        app.main(arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception:
        sys.excepthook(*sys.exc_info())  # here, because what follows ends this process
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with open(os.path.join(place, "answer.%d" % caller), "w") as told:
            told.write("%d\n" % code)
        os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1])
