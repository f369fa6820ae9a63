"""The SMART payload of virtual Tapo and newer Kasa devices; virtual_klap.py carries it.

The shapes are those of captures: P110 1.3.0, P304M 1.0.3, P300 1.0.13.
"""
import base64
import json

import fencetool

PARAMETERS_ERROR, UNKNOWN_METHOD, DECODE_ERROR = -1008, -1002, -1003
DEVICE_ERROR = -1301
COMMAND = "set_device_info"

# What a client asks for besides: {method: result}. Nothing in it moves a relay.
SMART_RESULTS = {
    "get_device_usage": {"time_usage": {"today": 61, "past7": 61, "past30": 61},
                         "power_usage": {"today": 0, "past7": 0, "past30": 0},
                         "saved_power": {"today": 0, "past7": 0, "past30": 0}},
    "get_device_time": {"region": "Europe/Berlin", "time_diff": 60, "timestamp": 1700000000},
    "get_connect_cloud_state": {"status": 1},
    "get_auto_update_info": {"enable": False, "random_range": 120, "time": 180},
    "get_led_info": {"led_rule": "always", "led_status": True, "night_mode": {
        "end_time": 420, "night_mode_type": "sunrise_sunset", "start_time": 1140}},
    "get_auto_off_config": {"delay_min": 120, "enable": False},
    "get_schedule_rules": {"enable": True, "rule_list": [], "schedule_rule_max_count": 32,
                           "start_index": 0, "sum": 0},
    "get_countdown_rules": {"enable": True, "rule_list": [], "countdown_rule_max_count": 1},
    "get_antitheft_rules": {"enable": True, "rule_list": [], "antitheft_rule_max_count": 1},
    "get_next_event": {},
    "get_emeter_vgain_igain": {"igain": 11101, "vgain": 125403},
    "get_protection_power": {"enabled": False, "protection_power": 0},
}
PLUG_COMPONENTS = (
    ("device", 2), ("firmware", 2), ("quick_setup", 3), ("time", 1), ("schedule", 2),
    ("countdown", 2), ("antitheft", 1), ("account", 1), ("synchronize", 1), ("led", 1),
    ("cloud_connect", 1), ("iot_cloud", 1), ("device_local_time", 1), ("default_states", 1),
    ("auto_off", 2), ("localSmart", 1))
STRIP_COMPONENTS = PLUG_COMPONENTS[:4] + PLUG_COMPONENTS[7:13] + (
    ("child_device", 2), ("control_child", 2))
CHILD_COMPONENTS = PLUG_COMPONENTS[4:7] + (("default_states", 1), ("auto_off", 2))
METER_COMPONENT = ("energy_monitoring", 2)
METERS = ("get_energy_usage", "get_current_power", "get_emeter_data")


class SmartError(Exception):
    """The error_code with which a method answers."""


def encode_name(name):
    return base64.b64encode(name.encode("utf-8")).decode("ascii")


class SmartFirmware(fencetool.VirtualDevice):
    """What a SMART plug says; its requests are kept as objects."""

    dialect = "kasa"
    device_id = "8022" + "0A" * 18
    model = "P110"
    family = "SMART.TAPOPLUG"
    has_emeter = True   # where it has a meter at all: it tells milliwatts as emeter data too
    batch = 5           # methods in one multipleRequest; 0: it knows none (P100)
    results = SMART_RESULTS
    error_codes = ()    # of its next replies, as a list
    members = {}        # that get_device_info tells besides, or otherwise
    meter_members = {}  # {method: what its meter tells otherwise, None for members that it leaves
    # out}; None for a method that it does not know

    def answer(self, message):
        request = json.loads(message.decode("utf-8"))
        with self.lock:
            self.requests.append(request)
            if self.error_codes:
                reply = {"error_code": self.error_codes.pop(0)}
            else:
                reply = self.call(request.get("method"), request.get("params"), None)
        return json.dumps(reply, separators=(",", ":")).encode("utf-8")

    def call(self, method, params, outlet):
        """Return the reply to one method; outlet: that of the child that is asked, or None."""
        if self.fault == "expired":
            return {"error_code": 9999}
        try:
            result = self.run(method, params or {}, outlet)
        except SmartError as error:
            return {"error_code": error.args[0]}
        return {"error_code": 0} if result is None else {"result": result, "error_code": 0}

    def run(self, method, params, outlet):
        handler = getattr(self, "_%s" % method, None)
        if handler:
            return handler(params, outlet)
        if method in self.results:
            return self.results[method]
        raise SmartError(UNKNOWN_METHOD)

    def _multipleRequest(self, params, outlet):
        requests = params.get("requests", ())
        if not self.batch:
            raise SmartError(DECODE_ERROR)
        responses = []
        for request in requests[:self.batch]:
            reply = self.call(request.get("method"), request.get("params"), outlet)
            responses.append(dict(reply, method=request.get("method")))
            if reply["error_code"]:
                break
        return {"responses": responses}

    def _component_nego(self, params, outlet):
        return {"component_list": [{"id": name, "ver_code": version}
                                   for name, version in self.components(outlet)]}

    def components(self, outlet):
        return PLUG_COMPONENTS + ((METER_COMPONENT,) if self.metered else ())

    def _get_device_info(self, params, outlet):
        info = self.describe_relay(self.outlets[0])
        info.update(self.describe_device(), avatar="plug", nickname=encode_name(
            self.outlets[0].alias), default_states={"type": "last_states", "state": {}})
        return dict(info, **self.members)

    def describe_device(self):
        return {"device_id": self.device_id, "fw_ver": "1.3.0 Build 230905 Rel.152200",
                "hw_ver": "1.0", "hw_id": "A" * 32, "fw_id": "0" * 32, "oem_id": "B" * 32,
                "type": self.family, "model": self.model, "mac": self.mac.replace(":", "-"),
                "ip": self.address[0], "ssid": encode_name("virtual"), "rssi": -53,
                "signal_level": 2, "region": "Europe/Berlin", "time_diff": 60, "lang": "de_DE",
                "specs": "", "has_set_location_info": False}

    def describe_relay(self, outlet):
        on = int(outlet.relay) if self.fault == "wrong_type" else outlet.relay
        return {"device_on": on, "on_time": 7 if outlet.relay else 0, "auto_off_status": "off",
                "auto_off_remain_time": 0, "overheat_status": "normal",
                "power_protection_status": "normal", "overcurrent_status": "normal",
                "charging_status": "normal"}

    def _set_device_info(self, params, outlet):
        self.switch_by(params, self.outlets[0])

    def switch_by(self, params, outlet):
        if not isinstance(params.get("device_on"), bool):
            raise SmartError(PARAMETERS_ERROR)
        if self.fault == "refuses":
            raise SmartError(DEVICE_ERROR)
        self.switch(outlet.number, params["device_on"])

    def _get_energy_usage(self, params, outlet):
        return self.tell_meter("get_energy_usage", outlet, {
            "today_runtime": 61, "month_runtime": 61, "today_energy": 3, "month_energy": 3,
            "local_time": "2026-01-01 12:00:00", "electricity_charge": [0, 0, 0],
            "current_power": 1000 * self.watts(outlet)})

    def _get_current_power(self, params, outlet):
        return self.tell_meter("get_current_power", outlet,
                               {"current_power": int(self.watts(outlet))})

    def _get_emeter_data(self, params, outlet):
        if not self.has_emeter:
            raise SmartError(UNKNOWN_METHOD)
        watts = self.watts(outlet)
        return self.tell_meter("get_emeter_data", outlet, {
            "current_ma": int(watts / 0.23), "energy_wh": 3, "power_mw": int(1000 * watts),
            "voltage_mv": 230000})

    def watts(self, outlet):
        return fencetool.WATTS if (outlet or self.outlets[0]).powered else 0

    def tell_meter(self, method, outlet, members):
        """Return what the meter tells: milliwatts as energy usage, but watts as current power."""
        changed = self.meter_members.get(method, {})
        if not self.metered or self.fault == "dead_meter" or changed is None:
            raise SmartError(UNKNOWN_METHOD)
        if self.fault == "garbled_meter":
            members = {name: str(value) for name, value in members.items()}
        return {name: value for name, value in dict(members, **changed).items()
                if value is not None}


class SmartStripFirmware(SmartFirmware):
    """What a SMART strip says: its list is reversed, as that of the P300, and comes in pages."""

    model = "P304M"
    has_emeter = False  # the P210M is a strip that has
    page = 10     # outlets in one answer of the list
    order = None  # of the list, by the numbers on the case; None: the last one first

    def components(self, outlet):
        own = STRIP_COMPONENTS if outlet is None else CHILD_COMPONENTS
        return own + ((METER_COMPONENT,) if self.metered else ())

    def child_id(self, outlet):
        return "%s%02d" % (self.device_id, outlet.number - 1)

    def _get_device_info(self, params, outlet):
        if outlet:
            return self.describe_child(outlet)
        return dict(self.describe_device(), avatar="plug", nickname="", **self.members)

    def describe_child(self, outlet):
        child = dict(self.describe_device(), **self.describe_relay(outlet))
        del child["ip"], child["ssid"], child["rssi"], child["signal_level"]
        position = 1 if self.fault == "twins" else outlet.number
        child.update(
            device_id=self.child_id(outlet), original_device_id=self.device_id,
            category="plug.powerstrip.sub-plug", position=position, avatar="plug",
            slot_number=len(self.outlets), nickname=encode_name(outlet.alias),
            mac=self.mac.replace(":", ""), bind_count=1, status_follow_edge=True,
            default_states={"type": "custom", "state": {"on": False}})
        return child

    def _set_device_info(self, params, outlet):
        # What a strip makes of a command without a child is not known: the worst is all of them.
        for meant in [outlet] if outlet else self.outlets:
            self.switch_by(params, meant)

    def list_children(self, start, name, describe):
        """Return one page of a list of the outlets."""
        order = list(self.order or range(len(self.outlets), 0, -1))
        if self.fault == "shuffled" and start == 0:
            self.order = order[1:] + order[:1]  # the next time
        if self.fault in ("cut_list", "short_list"):
            order = order[:-1]
        shown = [describe(self.outlets[number - 1]) for number in order[start:start + self.page]]
        total = len(order) if self.fault == "short_list" else len(self.outlets)
        return {name: shown, "start_index": start, "sum": total}

    def _get_child_device_list(self, params, outlet):
        return self.list_children(params.get("start_index", 0), "child_device_list",
                                  self.describe_child)

    def _get_child_device_component_list(self, params, outlet):
        return self.list_children(
            params.get("start_index", 0), "child_component_list", lambda child: dict(
                self._component_nego({}, child), device_id=self.child_id(child)))

    def _control_child(self, params, outlet):
        found = [one for one in self.outlets if self.child_id(one) == params.get("device_id")]
        if not found:
            raise SmartError(PARAMETERS_ERROR)
        inner = params.get("requestData") or {}
        if self.fault == "inner_error" and inner.get("method") == COMMAND:
            return {"responseData": {"error_code": DEVICE_ERROR}}
        return {"responseData": self.call(inner.get("method"), inner.get("params"), found[0])}

    def _get_energy_usage(self, params, outlet):
        found = super()._get_energy_usage(params, outlet)
        return {name: value for name, value in found.items() if name != "current_power"}

    def watts(self, outlet):
        return super().watts(outlet) if outlet else 0
