"""Virtual devices that are switched by the URLs of their web interface, as the README has them."""
import json
import re

import fencetool
from tests import virtual


def put(*path):
    """Return a function that replaces, in a reply, what is at the end of a path by its last word.

    An Ellipsis removes it.
    """
    *steps, last, value = path

    def lie(reply):
        reply = place = json.loads(json.dumps(reply))
        for step in steps:
            place = place[step]
        if value is Ellipsis:
            del place[last]
        else:
            place[last] = value
        return reply
    return lie


class Rest(virtual.Switch):
    """A switch whose status is JSON; subclasses tell it, and obey."""

    status_page = ""
    token = ""        # in the header that the subclass knows
    lie = None        # what becomes of the status while the relay is off
    meter_lie = None  # the same, of its load
    render_reply = staticmethod(json.dumps)

    def respond(self, method, path, fields):
        return self.falsify(self.respond_soundly(method, path, fields))

    def respond_soundly(self, method, path, fields):
        if (method, path) != ("GET", self.status_page):
            return self.obey(method, path, fields)
        is_off = not self.outlets[0].relay
        if self.broken and is_off:
            return self.broken
        if self.fault == "wrong_type":
            return 200, {}, "null"
        reply = self.tell()
        for lie in (self.lie, self.meter_lie):
            reply = lie(reply) if lie and is_off else reply
        return 200, {"Content-Type": "application/json"}, self.render_reply(reply)

    def watts(self):
        return fencetool.WATTS if self.outlets[0].powered else 0


class HomeAssistant(Rest):
    """Source: developers.home-assistant.io, REST API; read 2026-11. Seen: documents only."""

    status_page = "/api/states/switch.storage_b"

    def knows_login(self, method, path, fields):
        return fields.get("authorization") == "Bearer " + self.password

    def refuse_login(self):
        return 401, {}, "401: Unauthorized"

    def tell(self):
        return {"entity_id": "switch.storage_b", "state": "on" if self.outlets[0].relay else "off",
                "attributes": {"friendly_name": "Storage B: off"},
                "last_changed": "2026-11-28T20:00:00+00:00", "context": {"id": "1"}}

    def obey(self, method, path, fields):
        match = re.fullmatch("/api/services/switch/turn_(on|off)", path)
        if method != "POST" or not match or fields["content-type"] != "application/json":
            return 400, {}, "400: Bad Request"
        if json.loads(fields["body"]) == {"entity_id": "switch.storage_b"}:
            self.switch(1, match.group(1) == "on")
        return 200, {}, "[]"


class Netio(Rest):
    """Source: wiki.netio-products.com, JSON API; pypi.org/project/Netio; read 2026-11. Seen:
    documents only."""

    status_page = "/netio.json"

    def tell(self):
        outputs = [{"ID": number, "Name": "out_%d" % number, "State": 1, "Action": 6, "Delay": 500,
                    "Current": 0, "PowerFactor": 0.0, "Load": 120, "Energy": 13346833}
                   for number in range(1, 5)]
        outputs[0].update(State=int(self.outlets[0].relay), Load=self.watts())
        return {"Agent": {"Model": "4C", "NumOutputs": 4}, "GlobalMeasure": {"Voltage": 230.1},
                "Outputs": outputs}

    def obey(self, method, path, fields):
        if (method, path) != ("POST", "/netio.json"):
            return 404, {}, "Not Found"
        for output in json.loads(fields["body"])["Outputs"]:
            if output["ID"] == 1 and output["Action"] in (0, 1):
                self.switch(1, output["Action"] == 1)
        return 200, {}, self.render_reply(self.tell())


class DigitalLoggers(Rest):
    """Source: public clients of its REST API (state, physical_state, X-CSRF); read 2026-11. Seen:
    documents only."""

    algorithm = "MD5"
    status_page = "/restapi/relay/outlets/0/physical_state/"

    def tell(self):
        return self.outlets[0].relay

    def obey(self, method, path, fields):
        if (method, path) != ("PUT", "/restapi/relay/outlets/0/state/"):
            return 404, {}, "Not Found"
        if "x-csrf" not in fields:
            return 403, {}, "CSRF"
        word = fields["body"].partition("value=")[2]
        if fields["content-type"] != "application/x-www-form-urlencoded" or word not in (
                "true", "false"):
            return 400, {}, "Bad Request"
        self.switch(1, word == "true")
        return 204, {}, ""


class MyStrom(Rest):
    """Source: pypi.org/project/python-mystrom, its header Token; read 2026-11. Seen: documents
    only."""

    status_page = "/report"

    def knows_login(self, method, path, fields):
        return fields.get("token") == self.password

    def tell(self):
        return {"power": float(self.watts()), "Ws": 0.0, "relay": self.outlets[0].relay,
                "temperature": 21.5}

    def obey(self, method, path, fields):
        if method != "GET" or path not in ("/relay?state=0", "/relay?state=1"):
            return 404, {}, "Not Found"
        self.switch(1, path[-1] == "1")
        return 200, {}, ""


class Gude(Rest):
    """Source: support.hdanywhere.com (ov.html), public clients of statusjsn.js; read 2026-11.
    Seen: documents only."""

    status_page = "/statusjsn.js?components=1"

    def tell(self):
        outputs = [{"name": "Power Port %d" % number, "state": 1, "type": 1,
                    "batch": [0, 0, 0, 0, 0], "wdog": [0, 3, 5, 0, 0]} for number in range(1, 9)]
        outputs[0]["state"] = int(self.outlets[0].relay)
        return {"outputs": outputs}

    def obey(self, method, path, fields):
        match = re.fullmatch(r"/ov\.html\?cmd=1&p=1&s=([01])", path)
        if method != "GET" or not match:
            return 404, {}, "Not Found"
        self.switch(1, match.group(1) == "1")
        return 200, {}, "<html><body>Output 1: OFF</body></html>"


# What each of them can say of a relay that is off, and of its load.
HOME_ASSISTANT_LIES = {
    "unavailable": put("state", "unavailable"), "unknown": put("state", "unknown"),
    "null": put("state", None), "no member": put("state", ...), "false": put("state", False),
    "upper case": put("state", "OFF"), "blank": put("state", "off "),
    "a list": lambda reply: [reply]}
NETIO_LIES = {
    "text": put("Outputs", 0, "State", "0"), "false": put("Outputs", 0, "State", False),
    "null": put("Outputs", 0, "State", None), "fraction": put("Outputs", 0, "State", 0.0),
    "no member": put("Outputs", 0, "State", ...), "other": put("Outputs", 0, "State", 2),
    "no outputs": put("Outputs", []), "outputs a map": put("Outputs", {"0": {"State": 0}})}
NETIO_METER_LIES = {
    "load": put("Outputs", 0, "Load", 85), "fed back": put("Outputs", 0, "Load", -85),
    "text": put("Outputs", 0, "Load", "0"), "null": put("Outputs", 0, "Load", None),
    "no member": put("Outputs", 0, "Load", ...), "truth": put("Outputs", 0, "Load", False)}
DIGITAL_LOGGERS_LIES = {
    "text": lambda reply: "false", "zero": lambda reply: 0, "null": lambda reply: None,
    "a list": lambda reply: [False], "an object": lambda reply: {"state": False}}
MYSTROM_LIES = {
    "zero": put("relay", 0), "text": put("relay", "false"), "null": put("relay", None),
    "no member": put("relay", ...)}
MYSTROM_METER_LIES = {
    "load": put("power", 85.3), "small load": put("power", 1.1), "text": put("power", "0.0"),
    "null": put("power", None), "no member": put("power", ...)}
GUDE_LIES = {
    "text": put("outputs", 0, "state", "0"), "false": put("outputs", 0, "state", False),
    "no member": put("outputs", 0, "state", ...), "no outputs": put("outputs", [])}
