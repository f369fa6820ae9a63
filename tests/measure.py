"""Print what an agent run costs as installed: hyperfine medians as ratios, peak memory, against
what is wanted. Judges nothing."""
import collections
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPT = os.path.join(ROOT, "fencetool.py")
sys.path.insert(0, ROOT)
import fencetool  # noqa: E402
from tests import virtual_klap  # noqa: E402

BARE = "/usr/bin/python3 -IS -c pass"
DUMMY = "fence_dummy -o metadata"
APC = "fence_apc -o metadata"
# The whole file at d96be2d: 75.5 ms where a bare interpreter took 8.7 (96 ms on a slower machine).
TIMES_BARE_BEFORE, LINES_BEFORE = 8.65, 4499

# what: as shown. value: measured. wanted: the most that it may be.
Row = collections.namedtuple("Row", "what value wanted")


def install(folder):
    """Install below the folder, so that nothing of this machine is touched; return its programs."""
    subprocess.check_call(["sh", os.path.join(ROOT, "install.sh")], stdout=subprocess.DEVNULL,
                          env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DESTDIR": folder})
    return os.path.join(folder, "usr/sbin")


def medians(commands, folder, runs=60):
    """Return the median milliseconds of each command, whole process, from one hyperfine run."""
    path = os.path.join(folder, "times.json")
    subprocess.check_call(["hyperfine", "-N", "--warmup", "5", "--runs", str(runs), "--style",
                           "none", "--export-json", path] + commands, stdout=subprocess.DEVNULL)
    with open(path) as handle:
        return [result["median"] * 1000 for result in json.load(handle)["results"]]


def peak_megabytes(command):
    result = subprocess.run(["/usr/bin/time", "-f", "%M"] + command.split(),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return int(result.stderr.split()[-1]) / 1024


def measure(kasa_port, http_port, folder):
    programs = install(folder)
    arguments = " -a 127.0.0.1 -u %d -o status"
    kasa = "%s/fence_kasa" % programs + arguments % kasa_port
    http = "%s/fence_http --device=tasmota" % programs + arguments % http_port
    alone = "%s fence_kasa" % SCRIPT + arguments % kasa_port
    # What is compared runs side by side: the speed of a shared machine drifts.
    alone_time, bare, kasa_time, dummy, apc, http_time = medians(
        [alone, BARE, kasa, DUMMY, APC, http], folder)
    for name, value in (("bare interpreter", bare), (DUMMY, dummy), (APC, apc),
                        ("fence_kasa status", kasa_time), ("fence_http status", http_time)):
        print("%-62s %6.1f ms" % (name, value))
    for row in (Row("fence_kasa status / bare interpreter", kasa_time / bare, 3.3),
                Row("fence_kasa status / fence_dummy metadata", kasa_time / dummy, 0.65),
                Row("fence_http status / fence_apc metadata", http_time / apc, 1.1),
                Row("fence_kasa status, peak memory in MB", peak_megabytes(kasa), 24),
                Row("fence_http status, peak memory in MB", peak_megabytes(http), 24)):
        print("%-62s %6.2f (at most %s)" % row)
    print_alone(alone_time, bare)


def measure_klap(legacy, klap, folder):
    """What KLAP costs more than the old protocol: an off with the shortest pause between looks."""
    programs = os.path.join(folder, "usr/sbin")
    off = "%s/fence_kasa -a 127.0.0.1 -u %%d -o off --stonith-status-sleep=200ms" % programs
    login = " --protocol=klap -l %(username)s -p %(password)s" % virtual_klap.ACCOUNT
    old, new = medians([off % legacy.address[1], off % klap.address[1] + login], folder, runs=20)
    for row in (Row("fence_kasa off over KLAP / off over port 9999", new / old, 3),
                Row("cryptography of one off over KLAP in ms", time_cryptography(klap), 25)):
        print("%-62s %6.2f (at most %s)" % row)


def time_cryptography(klap):
    """Return the milliseconds that hashes and AES of one off take in this process."""
    spent, this_thread = [], threading.get_ident()

    def measured(function):
        def run(*arguments):
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                if threading.get_ident() == this_thread:  # and not the virtual device's
                    spent.append(time.perf_counter() - started)
        return run
    for name in ("encrypt_aes_cbc", "decrypt_aes_cbc", "hash_klap", "build_klap_proof"):
        setattr(fencetool, name, measured(getattr(fencetool, name)))
    fencetool.AES_TABLES.clear()
    agent, system = fencetool.AGENTS["fence_kasa"], fencetool.System("measure")
    settings = fencetool.build_settings(
        dict(virtual_klap.ACCOUNT, ip="127.0.0.1", ipport=str(klap.address[1]), protocol="klap"),
        agent.defaults)
    fencetool.run_off(fencetool.Job(
        system, fencetool.make_device(agent, settings, system), settings))
    return sum(spent) * 1000


def print_alone(milliseconds, bare):
    """What the file costs that was copied and linked by hand: it is compiled at every start."""
    with open(SCRIPT) as handle:
        lines = sum(1 for _ in handle)
    print("%-62s %6.1f ms" % ("fence_kasa status by the file itself, %d lines" % lines,
                              milliseconds))
    print("%-62s %6.2f (at d96be2d %.2f)" % (
        "the same for 1000 lines / bare interpreter", milliseconds / bare / lines * 1000,
        TIMES_BARE_BEFORE / LINES_BEFORE * 1000))


def main():
    plug, switch = fencetool.VirtualKasa(metered=True), fencetool.VirtualTasmota()
    klap = virtual_klap.KlapPlug(metered=True)
    for device in (plug, switch, klap):
        device.start()
    with tempfile.TemporaryDirectory() as folder:
        measure(plug.address[1], switch.address[1], folder)
        measure_klap(plug, klap, folder)
    for device in (plug, switch, klap):
        device.stop()


if __name__ == "__main__":
    main()
