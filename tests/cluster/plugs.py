"""The virtual plugs of the cluster: a program in the network of the plugs, and a handle on it.

    plugs.py SOCKET POWER_SOCKET PLUGS    serves until it is killed; PLUGS is JSON, see start_plugs

A contact that opens or closes switches the node that it feeds, through the harness's power socket.
An order is one line of JSON on SOCKET; the answer is one line with the state of the plug.
"""

import json
import os
import socket
import socketserver
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import fencetool  # noqa: E402
from tests import virtual  # noqa: E402
from tests.cluster import power  # noqa: E402

READY_WAIT_S = 10


# --- In the network of the plugs ----------------------------------------------------------------

class Wired:
    """What a virtual device gets added here: the nodes it feeds, slowness, a count of losses.

    feeds: node by number of the outlet, as the cables really are; a node on several outlets, of
    several devices too, lives on with any of them. ups: the nodes live on without. devices: all
    those of the program, by their names.
    """

    delay_s = 0
    delays_left = 0
    lost = 0
    ups = False

    def wire(self, power_socket, devices):
        self.power_socket = power_socket
        self.devices = devices
        self.on_power = self.forward

    def forward(self, number, powered):
        node = self.feeds.get(number)
        others = [outlet for device in self.devices.values() for outlet in device.outlets
                  if outlet.powered and device.feeds.get(outlet.number) == node
                  and (device, outlet.number) != (self, number)]
        if node and not self.ups and not others:
            power.ask(self.power_socket, "%s %s" % ("on" if powered else "off", node))

    def send_answer(self, handle, answer):
        if self.delays_left:
            self.delays_left -= 1
            time.sleep(self.delay_s)
        self.lost += bool(self.lose_every) and (self.answers + 1) % self.lose_every == 0
        return super().send_answer(handle, answer)

    def state(self):
        return {"commands": self.commands, "answers": self.answers, "lost": self.lost,
                "relays": {outlet.number: outlet.relay for outlet in self.outlets}}

    # -- orders --

    def order_set(self, **attributes):
        for name, value in attributes.items():
            setattr(self, name, value)

    def order_cable(self, number, node):
        """Plug a node's cable into another outlet, 0 for the wall."""
        self.feeds = {outlet: fed for outlet, fed in self.feeds.items() if fed != node}
        self.feeds[number] = node

    def order_press(self, number, on=True):
        """Switch an outlet by its button."""
        self.move(number, on)

    def order_stall(self, seconds, answers):
        """Let the next answers come that much later, as a plug that seeks its broker does."""
        self.delay_s, self.delays_left = seconds, answers

    def order_replace(self, feeds):
        """Put a sound device in the place of this one: its outlets are on, no node notices."""
        self.feeds = {int(number): node for number, node in feeds.items()}
        self.fault, self.delays_left, self.lose_every, self.ups = "", 0, 0, False
        self.metered = False
        for outlet in self.outlets:
            outlet.relay = outlet.powered = True


DIALECTS = {name: type("Wired" + device.__name__, (Wired, device), {})
            for name, device in virtual.DEVICES.items()}


class OrderServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    devices = None


class OrderConnection(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            order = json.loads(line.decode())
            device = self.server.devices[order.pop("plug")]
            verb = order.pop("verb", "")
            if verb:
                getattr(device, "order_" + verb)(**order)
            self.wfile.write((json.dumps(device.state()) + "\n").encode())


def main(argv):
    path, power_socket, plugs = argv[1:]
    server = OrderServer(path, OrderConnection)
    server.devices = {}
    for name, plug in json.loads(plugs).items():
        device = DIALECTS[plug["dialect"]](**plug["options"])
        device.wire(power_socket, server.devices)
        device.order_replace(plug["feeds"])
        device.start(plug["address"], fencetool.DIALECTS[plug["dialect"]].port)
        server.devices[name] = device
    print("ready", flush=True)
    server.serve_forever()


# --- In the test --------------------------------------------------------------------------------

class Plug:
    """A handle on one plug of the program."""

    def __init__(self, name, path):
        self.name = name
        self.path = path

    def __getattr__(self, verb):
        """Return a function that gives the order of this name and returns the plug's state."""
        if verb.startswith("_"):
            raise AttributeError(verb)
        return lambda **details: self.order(verb=verb, **details)

    def order(self, **order):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(power.ANSWER_WAIT_S)
        client.connect(self.path)
        with client, client.makefile("rw") as stream:
            stream.write(json.dumps(dict(order, plug=self.name)) + "\n")
            stream.flush()
            return json.loads(stream.readline())

    @property
    def commands(self):
        return self.order()["commands"]


def start_plugs(cluster, plugs):
    """Start plugs in a cluster's network; return {name: Plug}.

    plugs: {name: {"dialect", "address", "options" of the virtual device, "feeds"}}
    """
    path = os.path.join(cluster.directory, "plugs.sock")
    program = cluster.start_in(
        "plugs", [sys.executable, "-m", "tests.cluster.plugs", path, cluster.power_socket,
                  json.dumps(plugs)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    cluster.programs.append(program)
    if program.stdout.readline() != b"ready\n":
        raise AssertionError("the plugs did not start")
    return {name: Plug(name, path) for name in plugs}


if __name__ == "__main__":
    main(sys.argv)
