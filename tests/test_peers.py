"""Clients from elsewhere against the virtual devices: a simulator that only we believe is no proof.

The programs come from the machine's PATH; .ci/run installs them.
"""
import base64
import functools
import hashlib
import json
import os
import socket
import struct

from tests import support, virtual, virtual_klap
from tests.support import AgentTest, on_stdin

ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"}


@functools.lru_cache(maxsize=None)
def find_interpreter(module):
    """Return the python3 on the PATH that has a module, or None."""
    for folder in os.environ.get("PATH", "").split(":"):
        program = os.path.join(folder, "python3")
        if os.access(program, os.X_OK) and support.run(
                [program, "-c", "import " + module], environment=ENVIRONMENT).code == 0:
            return program
    return None


def require_interpreter(module):
    """Return the python3 on the PATH that has a module, or skip the test that needs it."""
    program = find_interpreter(module)
    support.require(program, "%s is not installed for any python3 on the PATH" % module)
    return program


class PythonKasa(AgentTest):
    """The kasa command of python-kasa: the client that knows the most Kasa devices."""

    def kasa(self, device, *words):
        program = support.require_program("kasa")
        result = support.run([program, "--host", device.address[0], "--port",
                              str(device.address[1])] + list(words), environment=ENVIRONMENT)
        self.assertEqual(result.code, 0, result)
        self.assertNotIn("Unable to read", result.out)
        return result.out

    def test_it_discovers_a_virtual_plug_by_datagram(self):
        program = support.require_program("kasa")
        device = self.start(virtual.Kasa(["node"]))
        result = support.run([program, "--target", "127.0.0.1", "--port", str(device.address[1]),
                              "--discovery-timeout", "2", "discover"], environment=ENVIRONMENT)
        self.assertIn("Found 1 devices", result.out, result)
        self.assertIn(device.mac, result.out)

    def test_it_reads_and_switches_a_virtual_plug_with_a_meter(self):
        device = self.start(virtual.Kasa(["node"], metered=True))
        self.assertIn("Device state: True", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "off")
        self.assertFalse(device.outlets[0].powered)
        self.assertIn("Device state: False", self.kasa(device, "--type", "plug", "state"))
        self.kasa(device, "--type", "plug", "on")
        self.assertTrue(device.outlets[0].powered)

    def test_it_reads_and_switches_one_outlet_of_a_virtual_strip(self):
        for options in ({}, {"short_ids": True}):
            device = self.start(virtual.Kasa(["a", "b", "c"], **options))
            shown = self.kasa(device, "--type", "strip", "state")
            for alias in "abc":
                self.assertIn(alias, shown)
            self.kasa(device, "--type", "strip", "device", "--child", "b", "off")
            self.assertEqual([outlet.powered for outlet in device.outlets], [True, False, True])


# What python-kasa does with a KLAP device, and what it finds in what another client has sent it.
# One JSON object comes on stdin, and one goes out.
OVER_KLAP = r"""
import asyncio
import json
import sys

from kasa import Credentials, Device, DeviceConfig, Discover, Module
from kasa.deviceconfig import (
    DeviceConnectionParameters, DeviceEncryptionType, DeviceFamily)
from kasa.transports.klaptransport import (
    KlapEncryptionSession, KlapTransport, KlapTransportV2)

CLOCK_S = 30

def login_of(job):
    return Credentials(job["username"], job["password"])

async def find(job):
    '''Return the device, found by a datagram or as the job describes it.'''
    if not job["port"]:
        device = await Discover.discover_single(
            job["host"], credentials=login_of(job), discovery_timeout=CLOCK_S)
        await device.update()
        return device
    kind = DeviceConnectionParameters(
        DeviceFamily(job["family"]), DeviceEncryptionType.Klap, login_version=job["version"],
        http_port=job["port"])
    return await Device.connect(config=DeviceConfig(
        job["host"], port_override=job["port"], credentials=login_of(job), connection_type=kind,
        timeout=CLOCK_S))

def describe(device):
    '''Return [alias, whether it is on, watts or None] of a plug, or of a strip's outlet.'''
    meter = device.modules.get(Module.Energy)
    return [device.alias, device.is_on, meter.current_consumption if meter else None]

async def drive(job):
    '''Return what was seen of the outlets before and after each word.'''
    device = await find(job)
    seen = []
    try:
        for word in job["words"]:
            outlet = device.children[job["child"]] if device.children else device
            if word != "read":
                await (outlet.turn_on() if word == "on" else outlet.turn_off())
            await device.update()
            seen.append([describe(one) for one in device.children or [device]])
    finally:
        await device.disconnect()
    return {"class": type(device).__name__, "mac": device.mac, "seen": seen}

def read_session(job):
    '''Return what each request says, and whether python-kasa would have sent the same bytes.'''
    transport = KlapTransport if job["version"] == 1 else KlapTransportV2
    seeds = [bytes.fromhex(job["local_seed"]), bytes.fromhex(job["remote_seed"])]
    secret = transport.generate_auth_hash(login_of(job))
    session = KlapEncryptionSession(*seeds, secret)
    found = []
    for number, body in job["requests"]:
        session._seq = number
        session._generate_cipher()
        text = session.decrypt(bytes.fromhex(body))
        session._seq = number - 1
        same = session.encrypt(text) == (bytes.fromhex(body), number)
        found.append([text, same])
    proof = transport.handshake2_seed_auth_hash(*seeds, secret)
    return {"client_hash": proof.hex(), "requests": found}

def main():
    job = json.load(sys.stdin)
    found = read_session(job) if "requests" in job else asyncio.run(drive(job))
    json.dump(found, sys.stdout)

main()
"""


class PythonKasaOverKlap(AgentTest):
    """python-kasa as a library, with a login: it, the virtual devices and fence_kasa agree."""

    def ask(self, **job):
        """Return what the program answers."""
        result = support.run([require_interpreter("kasa"), "-c", OVER_KLAP],
                             json.dumps(dict(virtual_klap.ACCOUNT, **job)),
                             environment=ENVIRONMENT)
        self.assertEqual(result.code, 0, result)
        return json.loads(result.out)

    def drive(self, device, *words, **job):
        """Return what python-kasa sees of the outlets behind each word; child: of the list."""
        found = self.ask(**dict({
            "host": device.address[0], "port": device.address[1], "family": device.family,
            "version": device.version, "words": words, "child": 1}, **job))
        self.assertEqual(found["mac"], device.mac)
        self.assertEqual(device.complaints, [])
        return found["seen"]

    def test_it_reads_and_switches_a_virtual_plug(self):
        for make in (virtual_klap.OldKlapPlug, virtual_klap.KlapPlug, virtual_klap.SmartPlug):
            device = self.start(make(["node"], metered=True))
            with self.subTest(make.title):
                self.assertEqual(self.drive(device, "read", "off"),
                                 [[["node", True, 43]], [["node", False, 0]]])
                self.assertFalse(device.outlets[0].powered)
                self.assertEqual(self.drive(device, "on"), [[["node", True, 43]]])
                self.assertTrue(device.outlets[0].powered)

    def test_it_reads_and_switches_one_outlet_of_a_virtual_strip(self):
        for make in (virtual_klap.KlapStrip, virtual_klap.SmartStrip):
            device = self.start(make(["a", "b", "c"]))
            with self.subTest(make.title):
                self.assertEqual(self.drive(device, "read", "off"), [
                    [["c", True, None], ["b", True, None], ["a", True, None]],
                    [["c", True, None], ["b", False, None], ["a", True, None]]])
                self.assertEqual([outlet.powered for outlet in device.outlets],
                                 [True, False, True])

    def test_it_discovers_virtual_devices_by_datagram(self):
        for make in (virtual_klap.OldKlapPlug, virtual_klap.KlapPlug, virtual_klap.SmartPlug):
            device = self.start(make(["node"], is_asleep=True), virtual_klap.own_address())
            with self.subTest(make.title):
                self.assertEqual(self.drive(device, "off", port=0), [[["node", False, None]]])
                self.assertFalse(device.outlets[0].powered)

    def fence(self, device, action, **parameters):
        """Return what fence_kasa prints for an action that goes well."""
        result = on_stdin("fence_kasa", dict(self.address(device, **support.PATIENT_LIMITS),
                                             action=action, **dict(device.parameters,
                                                                   **parameters)))
        self.assertEqual((result.code in (0, 2), result.err), (True, ""), result)
        self.assertEqual(device.complaints, [])
        return result.out

    def test_each_sees_what_the_other_one_did_to_a_plug(self):
        for make in (virtual_klap.OldKlapPlug, virtual_klap.KlapPlug, virtual_klap.SmartPlug):
            device = self.start(make(["node"], metered=True))
            with self.subTest(make.title):
                self.drive(device, "off")
                self.assertEqual(self.fence(device, "status"), "Status: OFF\n")
                self.fence(device, "on")
                self.assertEqual(self.drive(device, "read"), [[["node", True, 43]]])
                self.fence(device, "off")
                self.assertEqual(self.drive(device, "read"), [[["node", False, 0]]])
                self.drive(device, "on")
                self.assertEqual(self.fence(device, "status"), "Status: ON\n")

    def test_each_sees_what_the_other_one_did_to_an_outlet_of_a_strip(self):
        for make in (virtual_klap.KlapStrip, virtual_klap.SmartStrip):
            device = self.start(make(["a", "b", "c"]))
            with self.subTest(make.title):
                self.drive(device, "off", child=0)  # its list is reversed
                self.assertEqual(self.fence(device, "list-status"), "1,a,ON\n2,b,ON\n3,c,OFF\n")
                self.fence(device, "off", plug="2")
                self.assertEqual([on for _, on, _ in self.drive(device, "read")[0]],
                                 [False, False, True])
                self.fence(device, "on", plug="3")
                self.assertEqual([on for _, on, _ in self.drive(device, "read")[0]],
                                 [True, False, True])

    def test_it_would_have_sent_the_same_bytes(self):
        for make in virtual_klap.DEVICES:
            device = self.start(make(["node"]))
            self.fence(device, "off")
            with self.subTest(make.title):
                self.assertFalse(device.outlets[0].powered)
                said = [json.dumps(request) for session in self.sessions_of(device)
                        for request in self.check_session(device, *session)]
                self.assertEqual(sum("set_relay_state" in text or "set_device_info" in text
                                     for text in said), 1)

    def sessions_of(self, device):
        """Return [(session, its exchanges)] in the order of their logins."""
        found = []
        for exchange in device.exchanges:
            if exchange.session and (not found or exchange.session is not found[-1][0]):
                found.append((exchange.session, []))
            if exchange.session:
                found[-1][1].append(exchange)
        return found

    def check_session(self, device, session, exchanges):
        """Return the requests of a session, as python-kasa reads them."""
        proof, *requests = exchanges
        found = self.ask(version=device.version, local_seed=session.local_seed.hex(),
                         remote_seed=session.remote_seed.hex(), requests=[
                             (int(request.path.partition("seq=")[2]), request.body.hex())
                             for request in requests])
        self.assertEqual(found["client_hash"], proof.body.hex())
        self.assertTrue(requests)
        self.assertTrue(all(same for _, same in found["requests"]))
        return [json.loads(text) for text, _ in found["requests"]]


class TasmotaHttp(AgentTest):
    """tasmota-http: a client library, run by the interpreter that has it."""

    def test_it_reads_and_switches_relays_of_virtual_devices(self):
        program = require_interpreter("tasmota_http")
        code = ("import sys; from tasmota_http import TasmotaClient; "
                "client = TasmotaClient(sys.argv[1], username='admin', password='s3cret'); "
                "print(client.power_get(2), client.power_set(False, 2), client.power_get(2), "
                "client.power_get(1), client.status(11)['StatusSTS']['POWER2'])")
        for old in (False, True):
            device = self.start(virtual.Tasmota(["POWER1", "POWER2"], password="s3cret",
                                                         old=old))
            result = support.run([program, "-c", code, "127.0.0.1:%d" % device.address[1]],
                                 environment=ENVIRONMENT)
            self.assertEqual(result.out, "{'POWER2': 'ON'} {'POWER2': 'OFF'} {'POWER2': 'OFF'} "
                                         "{'POWER1': 'ON'} OFF\n", result)
            self.assertEqual([outlet.powered for outlet in device.outlets], [True, False])


class SpokenTo(virtual.Shelly2):
    """A Shelly that does the same over a WebSocket, as aioshelly wants it."""

    key_end = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455

    def converse(self, handle):
        if b"upgrade: websocket" not in handle.recv(4096, socket.MSG_PEEK).lower():
            return super().converse(handle)
        with handle.makefile("rb") as stream:
            lines = list(iter(lambda: stream.readline().strip(), b""))
            key = next(line.split()[1] for line in lines
                       if line.lower().startswith(b"sec-websocket-key:"))
            accepted = base64.b64encode(hashlib.sha1(key + self.key_end).digest())
            handle.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                           b"Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n" % accepted)
            for request in iter(lambda: self.read_frame(stream), None):
                answer = json.dumps(self.answer_call(json.loads(request))).encode()
                handle.sendall(struct.pack(">BBH", 0x81, 126, len(answer)) + answer)

    def read_frame(self, stream):
        """Return the payload of a text from the client, or None at the end."""
        head = stream.read(2)
        if len(head) < 2 or head[0] != 0x81:
            return None
        length = head[1] & 127
        length = struct.unpack(">H", stream.read(2))[0] if length == 126 else length
        mask = stream.read(4)
        return bytes(byte ^ mask[at % 4] for at, byte in enumerate(stream.read(length)))

    def answer_call(self, call):
        query = {name: json.dumps(value) for name, value in call.get("params", {}).items()}
        with self.lock:
            result = self.find("/rpc/" + call["method"], query)
        if call["method"] == "Shelly.GetComponents":
            result = {"components": [], "cfg_rev": 1, "offset": 0, "total": 0}
        found = {"result": result} if result else {"error": {"code": 404, "message": "No handler"}}
        return dict(found, id=call["id"], src=self.realm, dst=call["src"])


AIOSHELLY = """
import asyncio, sys, aiohttp
from aioshelly.common import ConnectionOptions, get_info
from aioshelly.rpc_device import RpcDevice

async def main(port, channel, wanted):
    options = ConnectionOptions("127.0.0.1", device_mac="CC32E5000001", port=port)
    async with aiohttp.ClientSession() as session:
        info = await get_info(session, "127.0.0.1", "CC32E5000001", port=port)
        if "gen" not in info:
            return print(info["type"], info["auth"])
        device = await RpcDevice.create(session, None, options)
        await device.initialize()
        if wanted:
            await device.switch_set(channel, wanted == "on")
            await device.update_status()
        key = "switch:%d" % channel
        print(device.gen, device.config[key]["name"], device.status[key]["output"],
              device.status[key].get("apower"))
        await device.shutdown()

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
"""


class Aioshelly(AgentTest):
    """aioshelly: the client library of Home Assistant, run by the interpreter that has it."""

    def ask(self, device, channel, wanted=""):
        result = support.run([require_interpreter("aioshelly"), "-c", AIOSHELLY,
                              str(device.address[1]), str(channel), wanted],
                             environment=ENVIRONMENT)
        self.assertEqual((result.code, result.err), (0, ""), result)
        return result.out.strip()

    def call(self, device, action, **parameters):
        return support.on_stdin("fence_http", dict(
            self.address(device), device="shelly", action=action, plug="2",
            **dict(support.PATIENT_LIMITS, **parameters)))

    def test_it_reads_and_switches_what_fencetool_reads_and_switches(self):
        device = self.start(SpokenTo(("web", "db"), metered=True))
        self.assertEqual(self.ask(device, 1), "2 db True 43.0")
        self.assertEqual(self.ask(device, 1, "off"), "2 db False 0.0")
        self.assertEqual([outlet.powered for outlet in device.outlets], [True, False])
        self.assert_success(self.call(device, "status"), code=2)
        self.assert_success(self.call(device, "on"))
        self.assertEqual(self.ask(device, 1), "2 db True 43.0")
        self.assert_success(self.call(device, "off"))
        self.assertEqual(self.ask(device, 1), "2 db False 0.0")
        self.assertEqual(self.ask(device, 0), "2 web True 43.0")

    def test_it_identifies_a_device_of_the_first_generation(self):
        # More than that it does by CoAP, and on port 80 alone.
        self.assertEqual(self.ask(self.start(virtual.Shelly1()), 0), "SHSW-25 False")
