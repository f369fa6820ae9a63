"""The Kasa codec, with vectors computed by another implementation."""
import json
import unittest

import fencetool
from fencetool import FenceError, PowerState, ProtocolError, Refused

# (request, frame): from python-kasa's own cipher.
VECTORS = (
    ({"system": {"get_sysinfo": {}}},
     "0000001dd0f281f88bff9af7d5ef94b6d1b4c09fec95e68fe187e8caf08bf68bf6"),
    ({"system": {"set_relay_state": {"state": 0}}},
     "0000002ad0f281f88bff9af7d5ef94b6c5a0d48bf99cf091e8b7c4b0d1a5c0e2d8a381f286"
     "e793f6d4eedea3dea3"),
    ({"system": {"set_relay_state": {"state": 1}}},
     "0000002ad0f281f88bff9af7d5ef94b6c5a0d48bf99cf091e8b7c4b0d1a5c0e2d8a381f286"
     "e793f6d4eedfa2dfa2"),
    ({"context": {"child_ids": ["00"]}, "system": {"set_relay_state": {"state": 0}}},
     "00000049d0f291fe90e481f98daf95eeccafc7aec2a6f990f487a59fc4e6d6e6c499e4c8ea99e093e782efcdf78c"
     "aeddb8cc93e184e889f0afdca8c9bdd8fac0bb99ea9eff8beeccf6c6bbc6bb"),
)
PLUG = {"deviceId": "8006AA", "alias": "Rack", "mac": "CC:32:E5:00:00:01", "relay_state": 0,
        "feature": "TIM", "mic_type": "IOT.SMARTPLUGSWITCH", "err_code": 0}
STRIP = {"deviceId": "8006AA", "alias": "Strip", "mac": "CC:32:E5:00:00:01", "feature": "TIM:ENE",
         "child_num": 3, "err_code": 0, "children": [
             {"id": "8006AA01", "alias": "b", "state": 1},
             {"id": "8006AA02", "alias": "c", "state": 0},
             {"id": "8006AA00", "alias": "a", "state": 0}]}


def changed(info, **members):
    found = json.loads(json.dumps(info))
    found.update(members)
    return {name: value for name, value in found.items() if value is not None}


class Frames(unittest.TestCase):
    def test_requests_become_the_published_bytes(self):
        for request, frame in VECTORS:
            self.assertEqual(fencetool.build_kasa_frame(request).hex(), frame)

    def test_decryption_undoes_encryption_for_every_byte(self):
        plain = bytes(range(256)) * 3
        self.assertEqual(fencetool.decrypt_kasa(fencetool.encrypt_kasa(plain)), plain)

    def test_a_strip_is_switched_with_exactly_one_child_id(self):
        request = fencetool.build_kasa_request("system", "set_relay_state", {"state": 0}, "00")
        self.assertEqual(fencetool.build_kasa_frame(request).hex(), VECTORS[3][1])
        self.assertNotIn("context", fencetool.build_kasa_request("system", "get_sysinfo", {}))

    def test_absurd_lengths_are_refused(self):
        for header in ("48545450", "00010001", "ffffffff"):  # no Kasa device, now or later
            with self.subTest(header), self.assertRaises(Refused):
                fencetool.parse_kasa_length(bytes.fromhex(header))
        for header in ("00000000", "00000001"):
            with self.subTest(header), self.assertRaises(ProtocolError):
                fencetool.parse_kasa_length(bytes.fromhex(header))
        self.assertEqual(fencetool.parse_kasa_length(bytes.fromhex("0000002d")), 45)


class Results(unittest.TestCase):
    def parse(self, reply):
        return fencetool.parse_kasa_result(
            fencetool.parse_kasa_message(fencetool.encrypt_kasa(reply.encode("utf-8"))),
            "system", "set_relay_state")

    def test_only_an_error_code_of_zero_is_success(self):
        self.assertEqual(self.parse('{"system":{"set_relay_state":{"err_code":0}}}'),
                         {"err_code": 0})

    def test_a_clear_no_is_refused_wherever_it_stands(self):
        for reply in ('{"system":{"err_code":-1,"err_msg":"module not support"}}',
                      '{"system":{"set_relay_state":{"err_code":-2}}}',
                      '{"system":{"set_relay_state":{"err_code":-3,"err_msg":"invalid"}}}'):
            with self.subTest(reply), self.assertRaises(Refused):
                self.parse(reply)

    def test_an_error_that_nobody_knows_is_no_success_and_may_pass(self):
        for code in (-7, -8, 1, 255):
            with self.subTest(code), self.assertRaises(ProtocolError) as caught:
                self.parse('{"system":{"set_relay_state":{"err_code":%d}}}' % code)
            self.assertIn("with error %d" % code, str(caught.exception))

    def test_an_answer_that_contradicts_itself_is_no_success(self):
        for reply in ('{"system":{"set_relay_state":{"err_code":0}},"err_code":-1}',
                      '{"system":{"set_relay_state":{"err_code":0},"err_code":-1}}',
                      '{"system":{"set_relay_state":{"err_code":-1},"err_code":0}}',
                      '{"system":{"set_relay_state":{"err_code":0}},"err_code":"0"}',
                      '{"system":{"set_relay_state":{"err_code":0,"ERR_CODE":-1}}}',
                      '{"system":{"set_relay_state":{"err_code":-1,"power_mw":0}}}',
                      '{"system":{"set_relay_state":{"err_code":-7,"relay_state":0}}}'):
            with self.subTest(reply), self.assertRaises(ProtocolError):
                self.parse(reply)
        self.assertEqual(self.parse('{"system":{"set_relay_state":{"err_code":0}},"err_code":0}'),
                         {"err_code": 0})

    def test_everything_else_is_no_success(self):
        for reply in ("{}", "{", "{]", '{"system":{}}', '{"system":[]}', '{"system":null}',
                      '{"system":{"set_relay_state":{}}}', '{"system":{"get_sysinfo":{}}}',
                      '{"system":{"set_relay_state":{"err_code":"0"}}}',
                      '{"system":{"set_relay_state":{"err_code":false}}}',
                      '{"system":{"set_relay_state":{"err_code":0.0}}}',
                      '{"system":{"set_relay_state":{"err_code":null}}}',
                      '{"system":{"err_code":0}}',
                      '{"emeter":{"set_relay_state":{"err_code":0}}}'):
            with self.subTest(reply), self.assertRaises(ProtocolError):
                self.parse(reply)

    def test_what_is_no_object_at_all_is_another_protocol(self):
        for message in (b"HTTP/1.1 400 Bad Request", b"", b"SSH-2.0-OpenSSH_9.2",
                        fencetool.encrypt_kasa(b"[]"), fencetool.encrypt_kasa(b"x")):
            with self.subTest(message), self.assertRaises(Refused) as caught:
                fencetool.parse_kasa_message(message)
            self.assertIn("not Kasa's protocol", str(caught.exception))

    def test_an_alias_in_another_encoding_harms_nothing_but_itself(self):
        found = fencetool.parse_kasa_message(fencetool.encrypt_kasa(b'{"alias":"K\xfcche","a":1}'))
        self.assertEqual(found, {"alias": "K\udcfcche", "a": 1})


class Descriptions(unittest.TestCase):
    def test_a_plug_has_one_outlet(self):
        found = fencetool.parse_kasa_description(PLUG)
        self.assertEqual(len(found.outlets), 1)
        self.assertEqual((found.outlets[0].number, found.outlets[0].alias, found.outlets[0].state),
                         (1, "Rack", PowerState.OFF))
        self.assertFalse(found.is_strip or found.has_meter)

    def test_the_outlets_of_a_strip_are_ordered_by_their_ids_not_by_the_list(self):
        found = fencetool.parse_kasa_description(STRIP)
        self.assertEqual([(outlet.number, outlet.alias, outlet.identifiers[0])
                          for outlet in found.outlets],
                         [(1, "a", "8006AA00"), (2, "b", "8006AA01"), (3, "c", "8006AA02")])
        self.assertTrue(found.is_strip and found.has_meter)

    def test_both_forms_of_a_child_id_name_the_same_outlet(self):
        short = changed(STRIP, children=[dict(child, id=child["id"][-2:])
                                         for child in STRIP["children"]])
        for info in (STRIP, short):
            outlets = fencetool.parse_kasa_description(info).outlets
            for wanted in ("8006AA02", "8006aa02"):
                self.assertEqual(fencetool.select_outlet(outlets, wanted, "").alias, "c")
            # Two digits end the id of one outlet, and look like the number of another.
            for wanted in ("00", "01", "02"):
                with self.assertRaises(Refused):
                    fencetool.select_outlet(outlets, wanted, "")

    def test_a_state_is_the_integer_0_or_1(self):
        for value in (True, False, "0", "1", 2, -1, 0.0, [0], {}):
            with self.subTest(value), self.assertRaises(ProtocolError):
                fencetool.parse_kasa_description(changed(PLUG, relay_state=value))
            broken = changed(STRIP)
            broken["children"][0]["state"] = value
            with self.subTest(value), self.assertRaises(ProtocolError):
                fencetool.parse_kasa_description(broken)

    def test_descriptions_that_contradict_themselves_are_refused(self):
        children = STRIP["children"]
        for name, members in (
                ("count", dict(child_num=2)),
                ("empty", dict(children=[], child_num=0)), ("no list", dict(children={})),
                ("no state", dict(children=[{"id": "00"}], child_num=1)),
                ("no id", dict(children=[{"state": 0}], child_num=1)),
                ("no number", dict(children=[{"id": "ab", "state": 0}], child_num=1)),
                ("twice", dict(children=[children[0], children[0]], child_num=2)),
                ("no object", dict(children=[0], child_num=1)),
                ("no count", dict(child_num=None)),
                ("true for 1", dict(children=[children[0]], child_num=True)),
                ("no id of the device", dict(deviceId=None)), ("empty id", dict(deviceId=""))):
            with self.subTest(name), self.assertRaises(ProtocolError):
                fencetool.parse_kasa_description(changed(STRIP, **members))

    def test_what_is_neither_a_plug_nor_a_strip_is_another_kind_of_device(self):
        for members in (dict(children=None), dict(relay_state=0)):
            with self.assertRaises(Refused):
                fencetool.parse_kasa_description(changed(STRIP, **members))

    def test_an_alias_that_is_no_text_names_nothing(self):
        outlet = fencetool.parse_kasa_description(dict(PLUG, alias=None)).outlets[0]
        self.assertEqual(outlet.alias, "")

    def test_a_bulb_is_refused(self):
        with self.assertRaises(Refused):
            fencetool.parse_kasa_description(changed(PLUG, mic_type="IOT.SMARTBULB"))


class Meters(unittest.TestCase):
    def test_both_generations_give_watts(self):
        self.assertEqual(fencetool.parse_kasa_watts({"power_mw": 62430}), 62.43)
        self.assertEqual(fencetool.parse_kasa_watts({"power": 7.67}), 7.67)
        self.assertEqual(fencetool.parse_kasa_watts({"power": 43.2, "power_mw": 43217}), 43.217)

    def test_what_is_no_number_is_no_reading(self):
        for result in ({}, {"power": "0"}, {"power_mw": None}, {"power": True}, {"current": 0},
                       {"power": 43.0, "power_mw": 0}, {"power": "0", "power_mw": 0},
                       {"power": 0, "power_mw": [0]}, {"power": 0.9, "power_mw": 0}):
            with self.subTest(result), self.assertRaises(ProtocolError):
                fencetool.parse_kasa_watts(result)

    def test_a_meter_says_which_outlet_it_measured_or_nothing_about_that(self):
        for slot, number, fits in (
                (0, 1, True), (1, 1, True), (2, 3, True), (3, 3, True), (None, 3, True),
                (0, 3, False), (1, 3, False), (4, 3, False), ("2", 3, False), (2.0, 3, False),
                (True, 1, False), (-1, 1, False)):
            answer = dict({"power_mw": 0, "err_code": 0}, **(
                {} if slot is None else {"slot_id": slot}))
            reply = {"emeter": {"get_realtime": answer}}
            with self.subTest(slot=slot, number=number):
                if fits:
                    self.assertEqual(fencetool.parse_kasa_meter(reply, number),
                                     fencetool.MeterReading(0, ""))
                else:
                    with self.assertRaises(ProtocolError):
                        fencetool.parse_kasa_meter(reply, number)

    def test_only_a_clear_no_is_a_meter_that_is_not_there(self):
        for code in (-1, -2, -2001, -10008):
            for part in ({"err_code": code}, {"get_realtime": {"err_code": code}}):
                reading = fencetool.parse_kasa_meter({"emeter": part}, None)
                self.assertIsNone(reading.watts)
                self.assertIn("error %d" % code, reading.obstacle)
        for reply in ({}, {"emeter": None}, {"emeter": {}}, {"emeter": {"err_code": -7}},
                      {"emeter": {"err_code": -3}}, {"emeter": {"err_code": -1.0}},
                      {"emeter": {"get_realtime": {"err_code": "-1"}}},
                      {"emeter": {"get_realtime": {"err_code": -1, "power_mw": 43000}}},
                      {"system": {"err_code": -1}}):
            with self.subTest(reply), self.assertRaises(FenceError):
                fencetool.parse_kasa_meter(reply, None)

    def test_an_absurd_reading_is_a_load(self):
        for result in ({"power_mw": 10 ** 400}, {"power": 1e12}, {"power": -1e12}):
            with self.subTest(result):
                watts = fencetool.parse_kasa_watts(result)
                self.assertIn("still draws", fencetool.doubt_about_meter(
                    fencetool.MeterReading(watts, ""), "auto"))
