"""Print what an agent run costs: hyperfine medians as ratios, peak memory. Judges nothing."""
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import fencetool  # noqa: E402

BARE = "/usr/bin/python3 -IS -c pass"


def medians(commands, folder):
    """Return the median seconds of each command, whole process, from one hyperfine run."""
    path = os.path.join(folder, "times.json")
    subprocess.check_call(["hyperfine", "-N", "--warmup", "5", "--runs", "60", "--style", "none",
                           "--export-json", path] + commands, stdout=subprocess.DEVNULL)
    with open(path) as handle:
        return [result["median"] for result in json.load(handle)["results"]]


def peak_kilobytes(command):
    result = subprocess.run(["/usr/bin/time", "-f", "%M"] + command.split(),
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return int(result.stderr.split()[-1])


def main():
    device = fencetool.VirtualKasa()
    device.start()
    kasa = "%s fence_kasa -a 127.0.0.1 -u %d -o status" % (
        os.path.join(ROOT, "fencetool.py"), device.address[1])
    switch = fencetool.VirtualTasmota()
    switch.start()
    http = ("%s fence_http -a 127.0.0.1 -u %d -o status --device=tasmota"
            % (os.path.join(ROOT, "fencetool.py"), switch.address[1]))
    with tempfile.TemporaryDirectory() as folder:
        bare, dummy, status, apc, http_status = medians(
            [BARE, "fence_dummy -o metadata", kasa, "fence_apc -o metadata", http], folder)
    with open(os.path.join(ROOT, "fencetool.py")) as handle:
        print("fencetool.py: %d lines (limit 4500)" % sum(1 for _ in handle))
    print("bare interpreter: %.1f ms" % (bare * 1000))
    print("fence_kasa status: %.1f ms, %.2f times the bare interpreter (wanted: at most 5)"
          % (status * 1000, status / bare))
    print("fence_kasa status: %.2f of fence_dummy metadata at %.1f ms (wanted: at most 0.75)"
          % (status / dummy, dummy * 1000))
    print("fence_http status: %.1f ms, %.2f of fence_apc metadata at %.1f ms (wanted: at most 1.25)"
          % (http_status * 1000, http_status / apc, apc * 1000))
    print("peak memory of fence_kasa status: %.1f MB (wanted: below 25)"
          % (peak_kilobytes(kasa) / 1024))
    device.stop()
    switch.stop()


if __name__ == "__main__":
    main()
