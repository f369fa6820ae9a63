"""KLAP on the side of the device: virtual Kasa and Tapo devices behind a login.

What follows from seeds and credentials is computed here from the description of the protocol, and
not by what fencetool.py computes: of that it uses AES alone, which published vectors prove.
"""
import hashlib
import hmac
import itertools
import json
import os
import random
import re
import socket
import struct
import zlib
from collections import namedtuple

import fencetool
from tests import virtual, virtual_smart

ACCOUNT = {"username": "user@example.com", "password": "Secret-Passw0rd"}
STRANGER = {"username": "other@example.com", "password": "An0ther-Passw0rd"}
# What devices have that nobody has set up with an account.
KASA_DEFAULT = {"username": "kasa@tp-link.net", "password": "kasaSetup"}
TAPO_DEFAULT = {"username": "test@tp-link.net", "password": "test"}
BLANK = {"username": "", "password": ""}
DISCOVERY_PORT = 20002
DISCOVERY_HEADER = ">BBHHBBLL"  # version, type, operation, length, flags, -, serial, checksum
CHECKSUM_SEED = 0x5A6B7C8D
COMMANDS = (b'"set_relay_state"', b'"set_device_info"')
HTML_PAGE = b"<html><body><center>200 OK</center></body></html>"

# One request as it came. session: the Session that it belongs to, or None.
Exchange = namedtuple("Exchange", "method path fields body session")
# What a fault makes of the whole answer to these steps.
EVERY_STEP = ("handshake1", "handshake2", "request")
REPLIES_OF_FAULTS = {
    "portal": (EVERY_STEP, (200, {}, fencetool.PORTAL_PAGE.encode("utf-8"))),
    "redirect": (EVERY_STEP, (302, {"Location": "http://192.168.4.1/"}, b"")),
    "server_error": (EVERY_STEP, (500, {}, b"OFF")),
    "busy": (EVERY_STEP, (503, {}, b"")),
    "forbidden": (EVERY_STEP[:1], (403, {}, b"")),
    "lost_session": (EVERY_STEP[2:], (403, {}, b"")),
    "html": (EVERY_STEP[2:], (200, {}, HTML_PAGE)),
}


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def hash_login(version, username, password):
    """Return the auth_hash: all that a device keeps of a login."""
    digest = hashlib.md5 if version == 1 else hashlib.sha1
    both = digest(username.encode("utf-8")).digest() + digest(password.encode("utf-8")).digest()
    return hashlib.md5(both).digest() if version == 1 else sha256(both)


class Session:
    """What follows from both seeds and the credential, and the number of the last request."""

    def __init__(self, version, local_seed, remote_seed, auth_hash):
        self.version, self.local_seed, self.remote_seed = version, local_seed, remote_seed
        self.auth_hash = auth_hash
        first, second = [local_seed], [remote_seed]
        if version > 1:
            first, second = [local_seed, remote_seed], [remote_seed, local_seed]
        self.server_hash = sha256(*(first + [auth_hash]))
        self.client_hash = sha256(*(second + [auth_hash]))
        secret = local_seed + remote_seed + auth_hash
        self.key = sha256(b"lsk", secret)[:16]
        full_iv = sha256(b"iv", secret)
        self.iv = full_iv[:12]
        self.sequence = struct.unpack(">i", full_iv[-4:])[0]
        self.signer = sha256(b"ldk", secret)[:28]
        self.is_proven = False
        self.requests = 0
        self.last_reply = None

    def sign(self, sequence, cipher):
        return sha256(self.signer, struct.pack(">i", sequence), cipher)

    def seal(self, sequence, plain):
        cipher = fencetool.encrypt_aes_cbc(self.key, self.iv + struct.pack(">i", sequence), plain)
        return self.sign(sequence, cipher) + cipher

    def open(self, sequence, body):
        """Return what a body says; raise ValueError for one that nobody with the key has sent."""
        signature, cipher = body[:32], body[32:]
        if not hmac.compare_digest(signature, self.sign(sequence, cipher)):
            raise ValueError("the signature of a request is wrong")
        if not cipher or len(cipher) % 16:
            raise ValueError("a request is no whole number of blocks")
        return fencetool.decrypt_aes_cbc(self.key, self.iv + struct.pack(">i", sequence), cipher)


class Announced(virtual.HearsDatagrams, virtual.Faulty):
    """What answers the datagrams by which clients look for devices."""

    is_discoverable = False  # hears datagrams, on its own address
    is_asleep = False        # its port is closed until one comes

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.probes = 0  # how many datagrams have come

    def start(self, host="127.0.0.1", port=0):
        fencetool.VirtualDevice.start(self, host, port)
        if self.is_discoverable or self.is_asleep:
            self.hear_datagrams((host, DISCOVERY_PORT))

    def listen(self):
        if not self.is_asleep:
            super().listen()

    def answer_datagrams(self):
        while not self.stopped.is_set():
            try:
                message, sender = self.datagrams.recvfrom(4096)
                serial = check_probe(message)
            except (OSError, ValueError):
                continue  # it was nonsense, or stop() closed the socket
            self.probes += 1
            if self.is_asleep:
                self.is_asleep = False
                self.listen()
            self.datagrams.sendto(build_datagram(serial, self.announce()), sender)

    def announce(self):
        scheme = {"is_support_https": False, "encrypt_type": "KLAP",
                  "http_port": self.address[1]}
        if self.version > 1:
            scheme.update(lv=2, new_klap=1)
        return {"error_code": 0, "result": {
            "device_id": "0B" * 16, "owner": hashlib.md5(self.username.encode("utf-8")).hexdigest(),
            "device_type": self.family, "device_model": self.model, "hw_ver": "1.0",
            "ip": self.address[0], "mac": self.mac.replace(":", "-"), "factory_default": False,
            "is_support_iot_cloud": True, "obd_src": "tplink", "mgt_encrypt_schm": scheme}}


class Klap(Announced):
    """A web server that speaks KLAP; the class beside it says what is inside.

    exchanges: every request as it came. complaints: what a client did that no client may do.
    """

    faults = dict(virtual.Faulty.faults, **{
        "redirect": "sends the client elsewhere",
        "server_error": "answers everything with status 500",
        "busy": "answers everything with status 503",
        "endless": "never ends its answers",
        "lag": "switches at once, and reports it a second later",
        "frozen": "switches, and reports for ever the state from before",
        "forbidden": "has local access disabled: status 403 to the first step",
        "stranger": "has been set up with another login",
        "no_cookie": "gives no session",
        "lost_session": "answers every request with status 403, as after another client's login",
        "html": "answers every request with a web page and status 200",
        "clear": "answers in the clear",
        "cut": "leaves out the last block of every answer",
        "odd": "leaves out the last byte of every answer",
        "wrong_signature": "signs its answers wrongly",
        "replay": "repeats its answer to the request before",
        "other_number": "signs its answers rightly, as those to the next request",
        "exchanged": "another device has its address when it is switched, with the same login",
        "usurped": "another device has its address when it is switched, with another login",
        "refuses": "answers every command with an error",
    })
    harmless = virtual.Faulty.harmless | {"lag"}
    readable = (virtual.Faulty.readable | harmless
                | {"frozen", "exchanged", "usurped", "refuses"})
    version = 2        # of the hashes
    username = ACCOUNT["username"]
    password = ACCOUNT["password"]
    bearable = 7       # a login alone takes two answers
    sessions_kept = 1  # a new login throws out the oldest
    requests_a_session = 0    # and 403 to those after that; 0: without an end
    answers_a_connection = 0  # it closes a connection behind so many, unannounced; 0: never
    remote_seed = None        # None: a random one each time
    next_replies = ()         # (status, headers, body) of its next answers, as a list
    parameters = dict(ACCOUNT, protocol="klap")
    logins = ({"username": "admin", "password": "s3cret"},)

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sessions = {}  # by their cookies, the oldest first
        self.exchanges = []
        self.complaints = []
        if self.fault == "stranger":
            self.be_set_up_by_another()

    def converse(self, handle):
        with handle.makefile("rb") as stream:
            for number in itertools.count(1):
                request = read_request(stream)
                if not request:
                    return
                with self.lock:
                    reply = self.exchange(*request)
                is_last = request[2].get("connection", "").lower() == "close"
                self.send_answer(handle, self.render(reply, is_last))
                if is_last or number == self.answers_a_connection:
                    return

    def render(self, reply, is_last):
        status, headers, body = reply
        lines = ["HTTP/1.1 %d %s" % (status, {200: "OK", 403: "Forbidden"}.get(status, "Error")),
                 "Server: SHIP 2.0", "Content-Type: text/html"]
        lines += ["%s: %s" % header for header in headers.items()]
        lines += ["Connection: close"] if is_last else []
        length = virtual.OVERSIZE_BYTES if self.fault == "oversize" else len(body)
        lines += ["Content-Length: %d" % length] if self.fault != "endless" else []
        return "\r\n".join(lines + ["", ""]).encode("latin-1") + body

    def send_answer(self, handle, answer):
        super().send_answer(handle, answer)
        while self.fault == "endless":
            handle.sendall(b" " * 1000)

    def exchange(self, method, path, fields, body):
        """Return (status, headers, body) as the answer to one request."""
        step, _, query = path[len("/app/"):].partition("?")
        session = self.find_session(fields, step)
        self.exchanges.append(Exchange(method, path, fields, body, session))
        if method != "POST" or not path.startswith("/app/") or step not in EVERY_STEP:
            return self.complain("%s %s is no step of the protocol" % (method, path))
        if self.next_replies:
            return self.next_replies.pop(0)
        steps, reply = REPLIES_OF_FAULTS.get(self.fault, ((), None))
        if step in steps:
            return reply
        if step == "handshake1":
            return self.begin_session(body)
        if session is None:
            return 403, {}, b""
        return self.prove(session, body) if step == "handshake2" else self.obey(
            session, query, body)

    def complain(self, text):
        self.complaints.append(text)
        return 400, {}, b""

    def find_session(self, fields, step):
        """Return the session that the client names, None without one."""
        cookie = fields.get("cookie", "")
        if "origin" in fields or "authorization" in fields:
            self.complain("a request has a header that no client may send")
        match = re.fullmatch("TP_SESSIONID=([0-9A-F]+)", cookie)
        if bool(match) is (step == "handshake1"):
            self.complain("%s with the cookie %r" % (step, cookie))
        return self.sessions.get(match.group(1)) if match else None

    def begin_session(self, local_seed):
        if len(local_seed) != 16:
            return self.complain("a seed of %d bytes" % len(local_seed))
        session = Session(self.version, local_seed, self.remote_seed or os.urandom(16),
                          hash_login(self.version, self.username, self.password))
        cookie = "%032X" % random.getrandbits(128)
        self.sessions[cookie] = session
        for oldest in list(self.sessions)[:-self.sessions_kept]:
            del self.sessions[oldest]
        headers = {"Set-Cookie": "TP_SESSIONID=%s;TIMEOUT=86400" % cookie}
        return (200, {} if self.fault == "no_cookie" else headers,
                session.remote_seed + session.server_hash)

    def prove(self, session, client_hash):
        if client_hash != session.client_hash:
            return self.complain("the client_hash is wrong")
        session.is_proven = True
        return 200, {}, b""

    def obey(self, session, query, body):
        """Return the answer to a request inside a session."""
        if not session.is_proven or self.is_used_up(session):
            return 403, {}, b""
        match = re.fullmatch("seq=(0|-?[1-9][0-9]*)", query)
        if not match or int(match.group(1)) != session.sequence + 1:
            return self.complain("%s follows %d" % (query, session.sequence))
        try:
            plain = session.open(session.sequence + 1, body)
        except (ValueError, fencetool.FenceError) as error:
            return self.complain(str(error))
        if self.fault in ("exchanged", "usurped") and any(word in plain for word in COMMANDS):
            self.become_another()
            return 403, {}, b""
        session.sequence += 1
        session.requests += 1
        return 200, {}, self.falsify(session, self.answer_plain(plain))

    def is_used_up(self, session):
        return bool(self.requests_a_session) and session.requests >= self.requests_a_session

    def become_another(self):
        """Be another device of the same make from now on."""
        self.sessions.clear()
        if self.fault == "usurped":
            self.be_set_up_by_another()
        self.device_id = "FFFF" + self.device_id[4:]
        self.mac = "CC:32:E5:00:00:99"
        self.fault = ""

    def be_set_up_by_another(self):
        self.username, self.password = STRANGER["username"], STRANGER["password"]

    def falsify(self, session, plain):
        """Return the body that answers with this, as the fault has it."""
        number = session.sequence
        sealed = session.seal(number, plain)
        before, session.last_reply = session.last_reply, sealed
        if self.fault == "wrong_signature":
            return bytes([sealed[0] ^ 1]) + sealed[1:]
        if self.fault == "replay":
            return before or session.seal(number - 1, plain)
        if self.fault == "other_number":
            return session.seal(number + 1, plain)
        return {"clear": plain, "cut": sealed[:-16], "odd": sealed[:-1]}.get(self.fault, sealed)

    def answer_plain(self, plain):
        try:
            return self.answer(plain)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.complain("%s cannot be answered: %r" % (plain, error))
            raise


def read_request(stream):
    """Return (method, path, fields by their lower-case names, body), or None at the end."""
    from http.client import parse_headers
    words = stream.readline().decode("latin-1").split(" ")
    if len(words) != 3:
        return None
    fields = {name.lower(): value for name, value in parse_headers(stream).items()}
    return words[0], words[1], fields, stream.read(int(fields.get("content-length", "0")))


def checksum(header, body):
    """Return the CRC of a datagram; header: the fields before it."""
    seeded = struct.pack(DISCOVERY_HEADER, *(header + (CHECKSUM_SEED,)))
    return zlib.crc32(seeded + body) & 0xFFFFFFFF


def build_datagram(serial, members):
    body = json.dumps(members).encode("utf-8")
    header = (2, 0, 1, len(body), 17, 0, serial)
    return struct.pack(DISCOVERY_HEADER, *(header + (checksum(header, body),))) + body


def check_probe(message):
    """Return the serial number of a probe; raise ValueError for what is none."""
    try:
        fields = struct.unpack(DISCOVERY_HEADER, message[:16])
    except struct.error:
        raise ValueError("too short")
    header, body = fields[:-1], message[16:]
    if header[:3] != (2, 0, 1) or header[3] != len(body) or fields[-1] != checksum(header, body):
        raise ValueError("no probe")
    return header[6]


def own_address():
    """Return an address of loopback on which nobody hears datagrams yet.

    The port of datagrams is always the same: each device that hears them needs its own address.
    """
    for _ in range(100):
        address = "127.%d.%d.%d" % tuple(random.randint(2, 250) for _ in range(3))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((address, DISCOVERY_PORT))
                return address
            except OSError:
                continue
    raise OSError("no free address")


class KlapPlug(Klap, virtual.KasaFirmware):
    """A newer Kasa plug or strip: its old commands inside KLAP."""

    title = "kasa over KLAP 2"
    family = "IOT.SMARTPLUGSWITCH"
    model = "KP115(EU)"

    def answer_plain(self, plain):
        if b'"method"' in plain:
            return b"{}"  # python-kasa #1648: so it answers what Tapo devices are asked
        return fencetool.decrypt_kasa(super().answer_plain(fencetool.encrypt_kasa(plain)))

    def _system_set_relay_state(self, arguments, chosen):
        if self.fault == "refuses":
            return {"err_code": -3, "err_msg": "invalid argument"}
        return super()._system_set_relay_state(arguments, chosen)


class OldKlapPlug(KlapPlug):
    """The first Kasa plugs with KLAP: HS100(UK) 4.1 1.1.0."""

    title = "kasa over KLAP 1"
    version = 1


class KlapStrip(KlapPlug):
    """A Kasa strip, even where it has one outlet."""

    title = "kasa strip over KLAP 2"
    model = "HS300(US)"

    def _system_get_sysinfo(self, arguments, chosen):
        info = super()._system_get_sysinfo(arguments, chosen)
        if "children" not in info:
            child = {"id": self._child_id(self.outlets[0]), "alias": info.pop("alias"),
                     "state": info.pop("relay_state"), "on_time": info.pop("on_time"),
                     "next_action": info.pop("next_action")}
            info.update(alias="virtual strip", child_num=1, children=[child])
        return info


class SmartPlug(Klap, virtual_smart.SmartFirmware):
    """A Tapo plug."""

    title = "tapo plug"
    faults = dict(Klap.faults, expired="says that every session has expired")
    meter = {"metered": True}
    fault_options = meter
    two = ()


class SmartStrip(Klap, virtual_smart.SmartStripFirmware):
    """A Tapo strip, even where it has one outlet."""

    title = "tapo strip"
    faults = dict(SmartPlug.faults, **{
        "inner_error": "says that all went well, and inside that nothing did",
        "shuffled": "lists its outlets each time in another order",
        "cut_list": "leaves an outlet out of its list",
        "short_list": "leaves an outlet out of its list, and out of the count too",
        "twins": "lists its outlets all as the first",
    })
    harmless = Klap.harmless | {"shuffled", "short_list"}  # where the outlet is named
    readable = Klap.readable | {"shuffled", "short_list", "inner_error"}
    bearable = 10  # its lists come in answers of their own
    faults_of_two = Klap.faults_of_two + ("shuffled", "cut_list", "short_list", "twins")
    meter = {"metered": True}
    fault_options = meter


DEVICES = (OldKlapPlug, KlapPlug, KlapStrip, SmartPlug, SmartStrip)
