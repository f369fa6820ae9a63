"""Virtual devices with the firmware and the faults that only tests need."""
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time
from urllib.parse import unquote

import fencetool

LATE_S = 2.0
LAG_S = 1.0
OVERSIZE_BYTES = 1 << 30
GARBAGE = struct.pack(">I", 40) + bytes(range(7, 47))  # with a length that Kasa's frames allow


class Faulty:
    """What any device may have; to be mixed into the classes of fencetool.py.

    What follows tells the tests of the contract how a family is used and what it can do, so that
    none of them needs to know its name.
    """

    title = ""       # of what it is, where the name of its dialect does not say it
    parameters = {}  # beside ip, ipport and those of its row in DIALECTS
    two = ("a", "b")  # the aliases of a device with two outlets, () where it has one
    second = "2"     # the plug of the second of two outlets
    both = "1,2"     # the plug that names both of them
    meters_each = False  # with `meter`, each of several outlets has one of its own
    logins = ()      # options of devices with a password, one dict a kind of login
    tells_mac = {}   # options with which it tells its MAC; None: it never does
    meter = None     # options with which it has a meter that reads while the relay is off
    meter_rest_s = 0.0  # so long after a command its 0 W counts for nothing
    in_many = False  # every fault is one of a device with all of `two`
    fault_options = {}  # of a device that shows every fault but those in no_faults
    no_faults = ()
    faults_of_two = ("wrong_outlet",)  # that show only where there are several outlets
    bearable = 4  # each so manyth answer may be lost
    # Where off must succeed in spite of the fault, because the contact is open in the end.
    harmless = {"drop", "late", "dead_meter"}
    # Where status tells the truth, which is ON.
    readable = harmless | {"ignore", "welded", "wrong_outlet", "garbled_meter"}

    faults = dict(fencetool.FAULTS, **{
        "refuse": "the port is closed",
        "silent": "accepts the connection and never answers",
        "drip": "answers one byte a second",
        "truncated": "breaks off in the middle of every answer",
        "oversize": "claims an answer of a gigabyte",
        "garbage": "answers with bytes that mean nothing",
        "wrong_type": "answers with true, null and words where numbers belong",
        "drop": "obeys every command, and breaks the connection instead of answering it",
        "late": "acknowledges, and switches two seconds later",
        "wrong_outlet": "acknowledges, and switches another outlet",
        "dead_meter": "says clearly that there is no power meter",
        "garbled_meter": "the power meter answers with what is no reading",
    })
    lose_every = 0  # every n-th answer is lost

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.fault and self.fault not in self.faults:
            raise ValueError("there is no fault %r to simulate" % self.fault)
        self.answers = 0
        self.is_listening = False
        self.stopped = threading.Event()

    def listen(self):
        if self.fault != "refuse":  # bound all the same, or the next device gets the port
            self.is_listening = True
            super().listen()

    def stop(self):
        self.stopped.set()
        if self.is_listening:
            self.server.shutdown()
        self.server.server_close()

    def run_in_thread(self, run, *arguments):
        threading.Thread(target=run, args=arguments, daemon=True).start()

    def run_later(self, seconds, run, *arguments):
        self.run_in_thread(lambda: self.stopped.wait(seconds) or run(*arguments))

    def switch(self, number, on):
        if self.fault not in ("late", "wrong_outlet"):
            return super().switch(number, on)
        self.commands += 1
        if self.fault == "late":
            self.run_later(LATE_S, self.move, number, on)
        elif len(self.outlets) > 1:
            self.move(number % len(self.outlets) + 1, on)

    def move(self, number, on):
        outlet = self.outlets[number - 1]
        before = outlet.relay
        super().move(number, on)
        if self.fault in ("lag", "frozen"):
            outlet.relay = before
        if self.fault == "lag":
            self.run_later(LAG_S, setattr, outlet, "relay", on)

    def answer(self, *request):
        before = self.commands
        reply = super().answer(*request)
        if self.fault == "drop" and self.commands > before:
            raise ConnectionError("dropped")
        return reply

    def send_answer(self, handle, answer):
        self.answers += 1
        answer = GARBAGE if self.fault == "garbage" else answer
        if self.fault == "silent" or self.lose_every and self.answers % self.lose_every == 0:
            while handle.recv(4096):
                pass  # until the client gives up
            raise ConnectionError("lost")
        if self.fault == "drip":
            for byte in answer:
                handle.sendall(bytes([byte]))
                time.sleep(1)
        elif self.fault == "truncated":
            handle.sendall(answer[:len(answer) // 2])
            raise ConnectionError("truncated")
        else:
            super().send_answer(handle, answer)


# What python-kasa asks a plug for besides: (module, method): answer.
KASA_ANSWERS = {
    ("emeter", "get_daystat"): {"day_list": []},
    ("emeter", "get_monthstat"): {"month_list": []},
    ("time", "get_time"): {"year": 2026, "month": 1, "mday": 1, "hour": 12, "min": 0, "sec": 0},
    ("time", "get_timezone"): {"index": 38},
    ("cnCloud", "get_info"): {
        "username": "", "server": "devs.tplinkcloud.com", "binded": 0, "cld_connection": 0,
        "fwDlPage": "", "fwNotifyType": 0, "illegalType": -1, "stopConnect": 0, "tcspInfo": "",
        "tcspStatus": -1},
}


class KasaFirmware(Faulty, fencetool.VirtualKasa):
    """What a Kasa device says, whatever carries it, with all that python-kasa asks for."""

    meter = {"metered": True}
    fault_options = meter
    meters_each = True
    short_ids = False  # of a strip: two digits alone
    old_meter = False  # hardware 1 tells watts, later ones milliwatts
    slots_from = None  # of a strip: the slot_id of its first outlet; None: it tells none
    rewritten = ()     # pairs of bytes: what is replaced in the JSON of every answer, and by what

    def answer(self, message):
        plain = fencetool.decrypt_kasa(super().answer(message))
        for old, new in self.rewritten:
            plain = plain.replace(old, new)
        return fencetool.encrypt_kasa(plain)

    def _call(self, module, method, arguments, chosen):
        if (module, method) in KASA_ANSWERS:
            return dict(KASA_ANSWERS[module, method], err_code=0)
        return super()._call(module, method, arguments, chosen)

    def _child_id(self, outlet):
        whole = super()._child_id(outlet)
        return whole[-2:] if self.short_ids else whole

    def _system_get_sysinfo(self, arguments, chosen):
        info = super()._system_get_sysinfo(arguments, chosen)
        info.update(sw_ver="1.0.21 Build 210524 Rel.161309", hw_ver="1.0", rssi=-53, led_off=0)
        for members in info.get("children", [info]):
            name = "relay_state" if members is info else "state"
            members.update(on_time=7 * members[name], next_action={"type": -1})
            if self.fault == "wrong_type":
                members[name] = bool(members[name])
        return info

    def _emeter_get_realtime(self, arguments, chosen):
        if self.fault == "dead_meter":
            return dict(fencetool.KASA_REFUSAL)
        reply = super()._emeter_get_realtime(arguments, chosen)
        if self.slots_from is not None and not reply["err_code"]:
            reply["slot_id"] = self.slots_from + self._chosen_outlet(chosen).number - 1
        if self.fault == "garbled_meter":
            return dict(reply, power_mw=str(reply["power_mw"]))
        if not self.old_meter or reply["err_code"]:
            return reply
        watts = reply["power_mw"] / 1000
        return {"current": watts / 230, "power": watts, "voltage": 230.0, "err_code": 0}


class HearsDatagrams:
    """What is asked by datagrams too; answer_datagrams() is written by the class itself."""

    datagrams = None

    def hear_datagrams(self, address):
        self.datagrams = socket.socket(self.server.address_family, socket.SOCK_DGRAM)
        self.datagrams.bind(address)
        self.run_in_thread(self.answer_datagrams)

    def stop(self):
        super().stop()
        if self.datagrams:
            try:
                self.datagrams.shutdown(socket.SHUT_RDWR)  # ends what waits for one
            except OSError:
                pass  # it is not connected, and wakes all the same
            self.datagrams.close()


class Kasa(HearsDatagrams, KasaFirmware):
    """A Kasa device with the legacy protocol, which answers datagrams too."""

    no_faults = ("portal",)  # it has no web server
    answers_a_connection = 0  # it closes a connection behind so many; 0: never

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.answered = {}  # how many answers have gone over each connection

    def start(self, host="127.0.0.1", port=0):
        super().start(host, port)
        if not self.fault:
            self.hear_datagrams(self.address)

    def answer_datagrams(self):
        while not self.stopped.is_set():
            try:
                message, sender = self.datagrams.recvfrom(4096)
                self.datagrams.sendto(self.answer(message), sender)
            except (OSError, ValueError):
                pass  # it was nonsense, the sender went away, or stop() closed the socket

    def send_answer(self, handle, answer):
        if self.fault == "oversize":
            answer = struct.pack(">I", OVERSIZE_BYTES) + answer[4:]
        super().send_answer(handle, answer)
        self.answered[handle] = self.answered.get(handle, 0) + 1
        if self.answered[handle] == self.answers_a_connection:
            raise ConnectionError("enough")


class Http(Faulty):
    """What the web servers below have in common: Digest logins and more faults."""

    faults = dict(Faulty.faults, **{
        "redirect": "sends the client elsewhere",
        "server_error": "answers everything with status 500",
        "endless": "never ends its answers",
        "wrong_key": "answers for another relay than the one that was asked",
        "elsewhere": "says ON and OFF in other fields of its answers, too",
        "lag": "switches at once, and reports it a second later",
    })
    harmless = Faulty.harmless | {"elsewhere", "lag"}
    readable = Faulty.readable | harmless
    logins = ({"password": "s3cret"}, {"password": "s3cret", "algorithm": "MD5"},
              {"password": "s3cret", "algorithm": "SHA-256"},
              {"password": "s3cret", "algorithm": "MD5-sess", "realm": "K\u00fcchen-PDU \u00c5"},
              {"password": "s3cret", "algorithm": "MD5", "qop": ""})
    realm = "Login Required"
    algorithm = ""     # of a Digest login: MD5 or SHA-256, also with -sess
    qop = "auth"       # "" as in RFC 2069
    uses = 0           # of a nonce, until it has to be a new one; 0: without an end
    stale_answers = 0  # to so many right answers it says that the nonce is stale
    busy = ()          # (status, headers, body) of its next answers, as a list
    another = ("", "")  # the expression of an outlet in an answer, and another outlet's name

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.counts = {}  # of each nonce that was given out, the highest count that came
        self.stale = ""   # what the next challenge says besides

    def answer(self, method, path, fields):
        if self.busy:
            status, headers, body = self.busy.pop(0)
            return status, headers, body
        return super().answer(method, path, fields)

    def knows_login(self, method, path, fields):
        if not self.algorithm:
            return super().knows_login(method, path, fields)
        given = fields.get("authorization", "")
        self.stale = ""
        if not given.startswith("Digest ") or not self.is_right_digest(
                method, path, dict(re.findall(r'(\w+)="?([^",]*)', given))):
            return False
        if self.stale_answers:
            self.stale_answers -= 1
            self.stale = ", stale=true"
        return not self.stale

    def is_right_digest(self, method, path, given):
        """Return whether this answers a nonce of ours with a count that it has not had before."""
        def digest(*parts):
            name = "sha256" if self.algorithm.startswith("SHA") else "md5"
            return hashlib.new(name, b":".join(parts)).hexdigest().encode()
        values = {name: text.encode("latin-1") for name, text in given.items()}
        count, nonce = int(given.get("nc", "1"), 16), given.get("nonce", "")
        is_replay = bool(self.qop) and count <= self.counts.get(nonce, 0)
        if nonce not in self.counts or is_replay or (self.uses and count > self.uses):
            return False
        self.counts[nonce] = count
        secret = digest(b"admin", self.realm.encode(), self.password.encode())
        if self.algorithm.endswith("-sess"):
            secret = digest(secret, values["nonce"], values["cnonce"])
        proof = [values[name] for name in ("nonce", "nc", "cnonce", "qop") if name in values]
        right = digest(secret, *(proof + [digest(method.encode(), path.encode())]))
        return (values["response"], given["uri"]) == (right, path)

    def refuse_login(self):
        if not self.algorithm:
            return super().refuse_login()
        nonce = os.urandom(16).hex()
        self.counts[nonce] = 0
        fields = ['realm="%s"' % self.realm.encode().decode("latin-1"), 'nonce="%s"' % nonce,
                  'opaque="0123abcd"']
        fields += ['qop="%s"' % self.qop] if self.qop else []
        fields += ["algorithm=" + self.algorithm] if self.algorithm != "MD5" else []
        return 401, {"WWW-Authenticate": "Digest " + ", ".join(fields) + self.stale}, ""

    def respond(self, method, path, fields):
        return self.falsify(super().respond(method, path, fields))

    def falsify(self, reply):
        """Return (status, headers, body) as the fault has it."""
        if self.fault == "redirect":
            return 302, {"Location": "http://192.168.4.1/"}, ""
        if self.fault == "server_error":
            return 500, {}, "OFF"
        if self.fault == "elsewhere":
            return reply[:2] + (reply[2].replace('{"', '{"LED":"ON","MQTT":"OFF","'),)
        if self.fault == "wrong_key":
            return reply[:2] + (re.sub(self.another[0], self.another[1], reply[2]),)
        return reply

    def render(self, status, headers, body):
        length = {"endless": b"", "oversize": b"\\r\\nContent-Length: %d" % OVERSIZE_BYTES}
        answer = super().render(status, headers, body)
        return re.sub(b"\r\nContent-Length: [0-9]*", length[self.fault], answer) \
            if self.fault in length else answer

    def words(self):
        words = super().words()
        return dict.fromkeys(words) if self.fault == "wrong_type" else words

    def send_answer(self, handle, answer):
        super().send_answer(handle, answer)
        while self.fault == "endless":
            handle.sendall(b" " * 1000)


class Tasmota(Http, fencetool.VirtualTasmota):
    logins = ({"password": "s3cret"}, {"password": "s3cret", "old": True})
    meter = {"metered": True, "always_metered": True}
    fault_options = meter
    readable = Http.readable | {"wrong_key"}  # it is the list that status reads
    old = False             # refuses a login with status 200, and takes it from the query alone
    referer = False         # SetOption128 0
    always_metered = False  # SetOption21 1
    another = (r'^{"POWER[0-9]*"', '{"POWER9"')

    def knows_login(self, method, path, fields):
        return super().knows_login(method, path, {} if self.old else fields)

    def refuse_login(self):
        status, headers, body = super().refuse_login()
        return 200 if self.old else status, headers, body

    def respond(self, method, path, fields):
        if self.referer and not fields.get("referer", "").startswith("http://" + self.address[0]):
            raise ConnectionError("foreign Referer")
        return super().respond(method, path, fields)

    def run_command(self, command):
        if command == "setoption21" and self.always_metered:
            return {"SetOption21": "ON"}
        return super().run_command(command)

    def power(self, number, word):
        answer = super().power(number, word)
        acknowledges = word and self.fault in ("lag", "late", "wrong_outlet")
        return {self.member(number): word.upper()} if acknowledges else answer

    def sensors(self, while_off=False):
        if self.metered and self.fault == "dead_meter":
            return {}
        if self.metered and self.fault == "garbled_meter":
            return {"ENERGY": {"Power": None, "Voltage": 230}}
        return super().sensors(self.always_metered)


class OpenBeken(Tasmota):
    """Another firmware that speaks Tasmota, nearly."""

    challenge = 'Basic realm="OpenBeken HTTP Server"'

    def knows_login(self, method, path, fields):
        return super().knows_login(method, "", fields)

    def refuse_login(self):
        return 401, {"WWW-Authenticate": self.challenge}, ""

    def run_command(self, command):
        answer = super().run_command(command)
        return {} if command == "setoption21" or "Command" in answer else answer

    def power(self, number, word):
        super().power(number if number <= len(self.outlets) else 1, word)
        return self.members()


class Esphome(Http, fencetool.VirtualHttp):
    dialect = "esphome"
    parameters = {"plug": "plug"}  # without a name the list has to be waited for
    second = "b"
    both = "a,b"
    tells_mac = {"version": "2026.6"}
    no_faults = ("welded", "dead_meter", "garbled_meter")
    version = "2026.10"  # knows switches by name; 2026.6 by object id too, 2024 by that alone
    # 2021 tells no names, and drops letters from its ids.
    assumed = False      # its switches are assumed_state
    another = ('"(name|id)": "[^"]*"', r'"\1": "switch-other"')
    ping_s = 1.6         # from the states to the next ping, and from one to another; 0: never
    stream = ("ping", "states", "pings")  # what /events holds; a number: that many states
    pause_s = 0.0        # between two states
    entities = ()        # the data of states that come before those of the switches

    def respond(self, method, path, fields):
        return self.falsify(self.respond_soundly(method, path, fields))

    def respond_soundly(self, method, path, fields):
        if method == "OPTIONS":
            tells = (self.version != "2026.10"
                     and "access-control-request-private-network" in fields)
            return 200, {"Private-Network-Access-ID": self.mac} if tells else {}, ""
        if path == "/events":
            return 200, {"Content-Type": "text/event-stream"}, ""
        _, domain, entity, action = (path.partition("?")[0] + "///").split("/")[:4]
        found = [outlet for outlet in self.outlets if unquote(entity) in self.names(outlet)]
        is_get_enough = self.version in ("2021", "2024")
        if domain != "switch" or not found or (action and method != "POST" and not is_get_enough):
            return 404, {}, "Not Found"
        if action:
            self.switch(found[0].number, {"turn_on": True, "turn_off": False}.get(
                action, not found[0].relay))
            return 200, {}, ""
        return 200, {"Content-Type": "application/json"}, json.dumps(self.describe(found[0]))

    def render(self, status, headers, body):
        answer = super().render(status, headers, body)
        is_stream = "text/event-stream" in headers.values()
        return re.sub(b"\r\nContent-Length: [0-9]*", b"", answer) if is_stream else answer

    def send_answer(self, handle, answer):
        super().send_answer(handle, answer)
        if b"text/event-stream" in answer:
            self.send_events(handle)

    def send_events(self, handle):
        """Send what the stream holds, and keep it open until the client has enough."""
        for part in self.stream:
            if part == "ping":
                self.send_event(handle, "ping", self.ping())
            elif part == "close":
                return
            elif part != "pings":
                self.send_states(handle, len(self.outlets) if part == "states" else part)
        while not self.stopped.wait(self.ping_s or 0.1):
            if self.ping_s and "pings" in self.stream:
                self.send_event(handle, "ping", self.ping())
            else:
                handle.sendall(b"")
                if self.is_gone(handle):
                    return

    def is_gone(self, handle):
        try:
            return handle.recv(1, socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def send_states(self, handle, count):
        for data in self.entities:
            self.send_event(handle, "state", data)
        for outlet in self.outlets[:count]:
            self.send_event(handle, "state", json.dumps(self.describe(outlet)))
            self.stopped.wait(self.pause_s)

    def send_event(self, handle, kind, data):
        data = data if isinstance(data, bytes) else data.encode("utf-8")
        handle.sendall(b"event: %s\r\ndata: %s\r\n\r\n" % (kind.encode(), data))

    def ping(self):
        return "" if self.version in ("2021", "2024") else '{"uptime":61}'

    def names(self, outlet):
        by_id = fencetool.render_identifier(outlet.alias)
        return {"2021": [re.sub("[^a-z0-9_-]", "", outlet.alias.lower().replace(" ", "_"))],
                "2024": [by_id], "2026.6": [by_id, outlet.alias]}.get(
            self.version, [outlet.alias])

    def describe(self, outlet):
        word = self.words()[outlet.number]
        members = {"id": "switch/" + outlet.alias, "name": outlet.alias, "domain": "switch",
                   "value": word == "ON" if word else 0, "state": word,
                   "assumed_state": self.assumed}
        if self.version != "2026.10":
            members["id"] = "switch-" + self.names(outlet)[0]
        if self.version == "2026.6":
            members["name_id"] = "switch/" + outlet.alias
        if self.version == "2021":
            members = {name: members[name] for name in ("id", "state", "value")}
        return members


PLAIN_PAGES = fencetool.VirtualPages(
    on="/on", off="/off", status="/state", page='{"outlet":1,"state":"%s"}',
    words={"ON": "ON", "OFF": "OFF"})
PDU_PAGES = fencetool.VirtualPages(
    "/Set.cmd?CMD=SetPower+P60=1", "/Set.cmd?CMD=SetPower+P60=0", "/Set.cmd?CMD=GetPower",
    "<html>P60=%s,P61=0,P62=1,P63=0</html>", {"ON": "1", "OFF": "0"})


class Switch(Http, fencetool.VirtualSwitch):
    parameters = {"power_on_url": "/on", "power_off_url": "/off", "status_url": "/state",
                  "status_on_regex": '^{"outlet":1,"state":"ON"}$',
                  "status_off_regex": '^{"outlet":1,"state":"OFF"}$'}
    two = ()
    tells_mac = None
    no_faults = ("welded", "dead_meter", "garbled_meter")
    harmless = Http.harmless - {"elsewhere"}  # the expressions match the whole reply
    readable = Http.readable - {"elsewhere"}
    pages = PLAIN_PAGES
    another = ('"outlet":1', '"outlet":2')
    broken = ()  # the whole answer instead of a status, while it is off

    def respond(self, method, path, fields):
        if self.broken and path == self.pages.status and not self.outlets[0].relay:
            return self.broken
        if self.fault == "wrong_type" and path == self.pages.status:
            return 200, {}, "null"
        return super().respond(method, path, fields)


def change(**members):
    """Return what replaces members of an object; those that become None are left out."""
    return lambda found: {name: value for name, value in dict(found, **members).items()
                          if value is not None}


SHELLY_LIES = {  # what is said of a relay that is off, by either generation
    "no member": change(ison=None, output=None),
    "output null": lambda found: dict(change(ison=None, output=None)(found), ison=0, output=0),
    "output text": lambda found: dict(found, **{name: "false" for name in ("ison", "output")
                                                if name in found}),
    "timer": lambda found: dict(found, **({"has_timer": True} if "ison" in found else {
        "timer_started_at": 1700000000.1, "timer_duration": 60}))}
SHELLY1_LIES = {"no timer told": change(has_timer=None),
                "another generation": lambda found: {"id": 0, "output": False, "apower": 0.0}}
SHELLY2_LIES = {"wrong id": change(id=1), "id text": change(id="0"), "no id": change(id=None),
                "another generation": lambda found: {"ison": False, "has_timer": False}}
METER1_LIES = {"invalid": change(is_valid=False), "validity not told": change(is_valid=None),
               "no power": change(power=None), "power text": change(power="0.00"),
               "load": change(power=85.3), "small load": change(power=1.0)}
METER2_LIES = {"no power": change(apower=None), "power text": change(apower="0.0"),
               "load": change(apower=85.1), "small load": change(apower=1.0),
               "fed back": change(apower=-85.1)}


class Shelly(Http, fencetool.VirtualShelly):
    """What the virtual Shellys of all generations have in common."""

    logins = ({"password": "s3cret"},)
    meter = {"metered": True}
    meters_each = True
    fault_options = meter
    lie = None        # what becomes of a relay's members while it is off
    meter_lie = None  # and of the meter's
    render_reply = staticmethod(json.dumps)
    status_pages = ()
    broken = ()       # the whole answer instead of a status, while it is off
    timer = False     # one that would switch on again runs, until a command comes
    auto_on_s = 0.0   # it comes back so long after each OFF
    profile = ""      # roller or cover: it moves a blind, and has no switch

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        if self.fault == "dead_meter":
            self.metered = False  # that is how it says clearly that it has none

    def knows_login(self, method, path, fields):
        return path == "/shelly" or super().knows_login(method, path, fields)

    def respond(self, method, path, fields):
        if self.broken and path in self.status_pages and not self.outlets[0].relay:
            return self.broken
        return super().respond(method, path, fields)

    def falsify(self, reply):
        status, headers, body = reply
        if status == 200:
            body = self.render_reply(json.loads(body))
        return super().falsify((status, headers, body))

    def obey(self, number, on):
        self.timer = bool(self.auto_on_s) and not on
        super().obey(number, on)
        if self.timer:
            self.run_later(self.auto_on_s, self.move, number, True)

    def deceive(self, outlet, members, lie):
        return lie(members) if lie and not outlet.relay else members

    def has_timer(self, outlet):
        return self.timer and not outlet.relay

    def show_state(self, outlet):
        word = self.words()[outlet.number]
        return word == "ON" if word else None


class Shelly1(Shelly):
    """A Shelly of the first generation, by its own replies."""

    title = "old shelly"
    no_faults = ("wrong_key",)  # relays have no names
    status_pages = ("/relay/0", "/status")
    one_meter = False  # for all relays
    counters = True    # beside the meter's watts; a Shelly 1 has none

    def find(self, page, query):
        match = re.fullmatch("/relay/([0-9])", page)
        if match and query in ({}, {"turn": "on"}, {"turn": "off"}):
            number = int(match.group(1)) + 1
            if query:
                self.obey(number, query["turn"] == "on")
            return self.relay(self.outlets[number - 1])
        pages = {"/shelly": self.identity, "/status": self.status, "/settings": self.settings}
        return pages[page]() if page in pages else None

    def identity(self):
        return {"type": "SHSW-25", "mac": self.bare_mac(), "auth": bool(self.password),
                "fw": "20230913-112234/v1.14.0-gcb84623"}

    def status(self):
        found = {"wifi_sta": {"connected": True, "ssid": "x"}, "mac": self.bare_mac(),
                 "uptime": 61}
        if self.profile:
            return dict(found, rollers=[{"state": "stop"}], relays=[], meters=[])
        meters = [self.show_meter(outlet) for outlet in self.outlets] if self.metered else []
        return dict(found, relays=[self.relay(outlet) for outlet in self.outlets],
                    meters=meters[:1] if self.one_meter else meters)

    def settings(self):
        return {"device": {"type": "SHSW-25", "mac": self.bare_mac()},
                "login": {"enabled": bool(self.password), "password": self.password},
                "mode": self.profile or "relay",
                "relays": [] if self.profile else [
                    {"name": outlet.alias, "auto_on": self.auto_on_s, "auto_off": 0.0}
                    for outlet in self.outlets]}

    def relay(self, outlet):
        return self.deceive(outlet, {
            "ison": self.show_state(outlet), "has_timer": self.has_timer(outlet),
            "timer_started": 0, "timer_duration": 0,
            "timer_remaining": 60 * self.has_timer(outlet), "overpower": False,
            "source": "http"}, self.lie)

    def show_meter(self, outlet):
        if self.fault == "garbled_meter":
            return {"power": 0.0, "is_valid": False}
        counted = {"timestamp": 1700000000, "counters": [0.0, 0.0, 0.0], "total": 0}
        return self.deceive(outlet, dict(
            {"power": self.show_watts(outlet), "is_valid": True},
            **counted if self.counters else {}), self.meter_lie)


class Shelly2(Shelly):
    """A Shelly of the second generation or a newer one, with the login table of firmware 2.0."""

    algorithm = "SHA-256"
    realm = "shellypro4pm-cc32e5000001"
    another = (r'"switch:[0-9]+": {"id": [0-9]+', '"switch:0": {"id": 7')
    status_pages = ("/rpc/Switch.GetStatus?id=0", "/rpc/Shelly.GetStatus")
    meter_rest_s = 46.0  # a zero counts so long after a command
    rest_s = 0.0         # so long after one it shows 0 W, whatever flows
    profile = "switch"
    outputs = ("switch",)  # of the components that it has, the kind of each
    nonces_kept, nonce_s, full_s = 32, 3600, 2.0
    guess_s = 2.0  # so long after a wrong answer it takes none
    clock = staticmethod(time.monotonic)

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.born = {}       # {nonce that is kept: when it was given out}
        self.full_until = 0  # the time up to which a full table refuses
        self.refused = 0     # requests, because of that
        self.slow_until = 0
        self.rests_until = 0.0

    def knows_login(self, method, path, fields):
        now = self.clock()
        self.born = {nonce: born for nonce, born in self.born.items()
                     if now - born < self.nonce_s}
        if path == "/shelly":
            return True
        is_right = super().knows_login(method, path, fields)
        nonce = re.findall('[ ,]nonce="([^"]*)"', fields.get("authorization", ""))
        if is_right and nonce[0] not in self.born:
            self.stale = ", stale=true"
        elif not is_right and nonce and nonce[0] in self.born:
            self.slow_until = now + self.guess_s
        return is_right and not self.stale

    def answer(self, method, path, fields):
        if self.clock() < self.slow_until and path != "/shelly":
            return 429, {}, "Too many failed authentication attempts"
        return super().answer(method, path, fields)

    def refuse_login(self):
        now = self.clock()
        if len(self.born) >= self.nonces_kept:
            self.full_until = self.full_until or now + self.full_s
            if now < self.full_until:
                self.refused += 1
                return 429, {}, "Too many requests"
            self.born.pop(min(self.born, key=self.born.get))
        self.full_until = 0
        reply = super().refuse_login()
        self.born[list(self.counts)[-1]] = now
        return reply

    def find(self, page, query):
        if page == "/rpc/Switch.GetStatus" and set(query) == {"id"}:
            return self.show_switch(self.outlets[int(query["id"])])
        page = "/shelly" if page == "/rpc/Shelly.GetDeviceInfo" else page
        return super().find(page, query)

    def obey(self, number, on):
        self.rests_until = self.clock() + self.rest_s
        super().obey(number, on)

    def identity(self):
        return {"name": None, "id": self.realm, "mac": self.bare_mac(), "slot": 0,
                "model": "SPSW-104PE16EU", "gen": 2, "ver": "2.0.0", "app": "Pro4PM",
                "fw_id": "20260701-112234/2.0.0-gcb84623", "auth_en": bool(self.password),
                "auth_domain": self.realm if self.password else None}

    def components(self, show):
        return super().components(show) if "switch" in self.outputs else {
            "%s:0" % kind: {"id": 0} for kind in self.outputs}

    def status(self):
        return dict(super().status(), ble={}, cloud={"connected": False})

    def settings(self):
        return dict(super().settings(), ble={"enable": False}, sys={"device": {
            "name": None, "mac": self.bare_mac(), "profile": self.profile}})

    def show_settings(self, outlet):
        return dict(super().show_settings(outlet), initial_state="off",
                    auto_on=bool(self.auto_on_s), auto_on_delay=self.auto_on_s or 60.0)

    def show_watts(self, outlet):
        if self.fault == "garbled_meter":
            return None
        return 0.0 if self.clock() < self.rests_until else super().show_watts(outlet)

    def show_switch(self, outlet):
        members = {"id": outlet.number - 1, "source": "init", "output": self.show_state(outlet),
                   "temperature": {"tC": 41.2, "tF": 106.2}}
        if self.has_timer(outlet):
            members.update(timer_started_at=1700000000.1, timer_duration=60)
        if self.metered:
            members = self.deceive(outlet, dict(
                members, apower=self.show_watts(outlet), voltage=230.1, current=0.0, aenergy={
                    "total": 0.0, "by_minute": [0.0, 0.0, 0.0], "minute_ts": 1700000000}),
                self.meter_lie)
        return self.deceive(outlet, members, self.lie)


class Shelly4(Shelly2):
    """One with four channels, of which the last is meant."""

    title = "shelly with four channels"
    two = ("a", "b", "c", "d")
    second = "d"
    in_many = True
    bearable = 7  # with the names, commands and readings take one answer more


# One virtual device for each dialect that fencetool.py speaks itself.
DEVICES = {device.dialect: device for device in (
    Kasa, Tasmota, Esphome, Shelly2, Switch)}
