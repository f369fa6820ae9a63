"""The HTTP codecs: logins, Tasmota, ESPHome and status pages; pure."""
import hashlib
import json
import types
import unittest

import fencetool
from fencetool import PowerState, ProtocolError, Refused, UsageError

# nonce, cnonce and the like of PROTOCOLS.md 4.3 (RFC 7616 3.9.1 the last two), and the response.
RFC = {"realm": "http-auth@example.org", "qop": "auth, auth-int",
       "nonce": "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v",
       "opaque": "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"}
DIGESTS = (
    ({"realm": "Login Required", "nonce": "0123456789abcdef0123456789abcdef", "qop": "auth"},
     "admin", "s3cret", "POST", "/switch/Relay/turn_off", "f2c8e1aa",
     "80acc34d29097b12914b795afadd9839"),
    ({"realm": "shellyplus1pm-a8032ab636ec", "nonce": "1625038762", "qop": "auth",
      "algorithm": "SHA-256"},
     "admin", "s3cret", "GET", "/rpc/Switch.Set?id=0&on=false", "3313613977",
     "0f39e9cda530beb5f8550f5d6c0a2f945c3183b63a4b979037b4abafe5ef1693"),
    (dict(RFC, algorithm="MD5"), "Mufasa", "Circle of Life", "GET", "/dir/index.html",
     "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ", "8ca523f5e9506fed4657c9700eebdbec"),
    (dict(RFC, algorithm="SHA-256"), "Mufasa", "Circle of Life", "GET", "/dir/index.html",
     "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ",
     "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
)


# What configure-stonith.sh of ha-san-ansible passes to fence_http, by its method.
TASMOTA_URLS = {
    "power_off_url": "/cm?cmnd=Power%20OFF", "power_on_url": "/cm?cmnd=Power%20ON",
    "status_url": "/cm?cmnd=Power", "status_on_regex": "ON", "status_off_regex": "OFF"}
ESPHOME_URLS = {
    "power_off_url": "/switch/relay/turn_off", "power_on_url": "/switch/relay/turn_on",
    "status_url": "/switch/relay", "status_on_regex": '"state":"ON"',
    "status_off_regex": '"state":"OFF"'}
HTTP_URLS = {
    "power_off_url": "/off", "power_on_url": "/on", "status_url": "/state",
    "status_on_regex": "ON", "status_off_regex": "OFF"}


def reply(status=200, body="", **headers):
    named = {"Content-Length": str(len(body))}
    named.update({name.replace("_", "-"): value for name, value in headers.items()})
    return fencetool.HttpReply(status, named, body)


class Logins(unittest.TestCase):
    def test_digest_responses_are_those_of_the_published_vectors(self):
        for fields, user, password, method, path, cnonce, expected in DIGESTS:
            header = fencetool.build_digest_login(fields, user, password, method, path, cnonce, 1)
            self.assertIn('response="%s"' % expected, header)
            self.assertIn('uri="%s"' % path, header)
            self.assertIn("qop=auth, nc=00000001", header)

    def test_basic_is_the_one_of_rfc_7617(self):
        self.assertEqual(fencetool.build_basic_login("Aladdin", "open sesame"),
                         "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        self.assertEqual(fencetool.build_basic_login("test", "123\u00a3"), "Basic dGVzdDoxMjPCow==")

    def test_the_strongest_challenge_that_can_be_answered_is_taken(self):
        md5 = 'Digest realm="a, b", qop="auth,auth-int", nonce="n1", opaque="o"'
        sha = 'Digest realm="a", qop=auth, nonce="n2", algorithm=SHA-256'
        other = 'Digest realm="a", qop="auth", nonce="n3", algorithm=SHA-512-256'

        def parse(values):
            return fencetool.choose_digest(fencetool.parse_challenges(values))
        self.assertEqual(parse([md5])["realm"], "a, b")
        self.assertEqual(parse([md5, sha, other])["nonce"], "n2")
        self.assertEqual(parse(['Basic realm="x", ' + sha])["nonce"], "n2")
        self.assertEqual(parse([sha + ', Basic realm="x"'])["realm"], "a")
        self.assertEqual(parse([other + ", " + sha])["nonce"], "n2")
        self.assertEqual(parse([md5 + ", " + sha]), {
            "realm": "a", "qop": "auth", "nonce": "n2", "algorithm": "SHA-256"})
        self.assertEqual(parse(['digest realm = "a", nonce="n"'])["nonce"], "n")
        for hopeless in ([], [other], ['Basic realm="digest realm"'],
                         ['Digest realm="a", nonce="n", qop="auth-int"'],
                         ['Digest realm="a", nonce="n", algorithm=MD5-sess'], ["Negotiate ab=="]):
            self.assertIsNone(parse(hopeless), hopeless)

    def test_quotes_in_a_digest_are_escaped_and_read_back(self):
        _, fields = fencetool.parse_challenges([r'Digest realm="a\"b", qop="auth", nonce="n"'])[0]
        self.assertEqual(fields["realm"], 'a"b')
        self.assertIn(r'realm="a\"b"', fencetool.build_digest_login(
            fields, "u", "p", "GET", "/", "c", 1))

    def test_a_digest_without_qop_is_answered_as_in_rfc_2069(self):
        # The example of RFC 2069, 2.4, with the response of its erratum.
        _, fields = fencetool.parse_challenges([
            'Digest realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", '
            'opaque="5ccc069c403ebaf9f0171e9517f40e41"'])[0]
        header = fencetool.build_digest_login(
            fields, "Mufasa", "CircleOfLife", "GET", "/dir/index.html", "c", 7)
        self.assertIn('response="1949323746fe6a43ef61f9606e7febea"', header)
        for name in ("qop", "nc=", "cnonce"):
            self.assertNotIn(name, header)

    def test_a_realm_is_hashed_as_the_bytes_that_came(self):
        for realm in ("K\u00fcchen-PDU \u00c5".encode(), b"K\xfcche"):
            _, fields = fencetool.parse_challenges([
                'Digest realm="%s", nonce="n"' % realm.decode("latin-1")])[0]
            self.assertEqual(fields["realm"].encode("utf-8", "surrogateescape"), realm)
            secret, request = (hashlib.md5(text).hexdigest().encode()
                               for text in (b"u:" + realm + b":p", b"GET:/"))
            self.assertIn(hashlib.md5(secret + b":n:" + request).hexdigest(),
                          fencetool.build_digest_login(fields, "u", "p", "GET", "/", "c", 1))

    def test_secrets_in_the_query_of_a_url_are_found(self):
        self.assertEqual(fencetool.find_url_secrets(
            "/cm?user=a&password=s%20t&cmnd=Power&pw=x&token=y"), {"s%20t", "x", "y"})
        self.assertEqual(fencetool.find_url_secrets("/set.cmd?user=a+pass=b+cmd=getpower"), {"b"})
        self.assertEqual(fencetool.find_url_secrets(
            "/s?access_token=a&api_key=b&apikey=c&X-Auth=d&cmd=on"), {"a", "b", "c", "d"})


class Replies(unittest.TestCase):
    def test_only_a_plain_200_is_an_answer(self):
        self.assertEqual(fencetool.parse_http_body(reply(body="x")), "x")
        for bad, kind, words in (
                (reply(302, Location="http://portal/?a"), Refused, "http://portal/?a"),
                (reply(404), Refused, "404"), (reply(206, "OFF"), Refused, "206"),
                (reply(204), Refused, "204"), (reply(500), ProtocolError, "500"),
                (reply(101), Refused, "101"), (reply(700), Refused, "700"),
                (reply(body="OFF", Content_Encoding="br"), Refused, "compressed by 'br'"),
                (reply(body="OFF <input name=p type='password'>"), Refused, "captive portal")):
            with self.assertRaises(kind) as caught:
                fencetool.parse_http_body(bad)
            self.assertIn(words, str(caught.exception))

    def test_a_command_is_acknowledged_by_its_status_alone(self):
        fencetool.check_command_reply(reply(200, "<input type=password>"))
        fencetool.check_command_reply(reply(204), (200, 204))
        for bad, kind, words in (
                (reply(302, Location="/"), ProtocolError, "a redirect to '/'"),
                (reply(404, "no"), fencetool.StrangeReply, "404: 'no'"),
                (reply(201), Refused, "201"), (reply(502), ProtocolError, "502")):
            with self.assertRaises(kind) as caught:
                fencetool.check_command_reply(bad)
            self.assertIn(words, str(caught.exception))

    def test_the_first_words_of_a_body_are_told(self):
        for body, words in (
                ('{"code":-103,"message":"No handler"}', """: '{"code":-103,"message":"No ha"""),
                ("<html><head><title>Not\n Found</title></head>x", "404: 'Not Found'"),
                ("<!DOCTYPE html><style>a{}</style><h1>No such</h1><p>relay", ": 'No such relay'"),
                ("x" * 100, ": '%s...'" % ("x" * 80)), ("gateway timed out", "timed-out'"),
                ("", "404")):
            with self.assertRaises(Refused) as caught:
                fencetool.parse_http_body(reply(404, body))
            self.assertIn(words, str(caught.exception))

    def test_a_page_without_a_length_counts_only_when_it_is_whole_by_itself(self):
        for body, is_whole in (
                ('{"outlet":1}', True), (' [{"a": 1}]\r\n', True), ('{"outlet":1,', False),
                ('{\n"outlet":1,\n', False), ("<html>P60=0,P61=1</html>", True),
                ("<HTML>P60=0,P61=1", False), ("<html><b>OFF</b>", False),
                ("<?xml version='1.0'?>\n<response><led0>0</led0></response>", True),
                ("<!DOCTYPE html>\n<html lang=en>a</html>\r\n", True), ("OFF\r\n", True),
                ("OFF", False), ("1: ON\n2: OF", False), ("", True)):
            for headers in ({}, {"Content-Length": "9"}, {"Transfer-Encoding": "chunked"}):
                with self.subTest(body, **headers):
                    found = fencetool.HttpReply(200, headers, body)
                    if is_whole or headers:
                        self.assertEqual(fencetool.parse_http_body(found), body)
                    else:
                        with self.assertRaisesRegex(ProtocolError, "whether it was cut off"):
                            fencetool.parse_http_body(found)

    def test_a_busy_device_is_asked_again_after_the_time_that_it_wishes(self):
        for wish, seconds in (("", 2), ("1", 2), ("7", 7), (" 7 ", 7), ("60", 2), ("-5", 2),
                              ("Wed, 21 Oct 2026 07:28:00 GMT", 2), ("9" * 5000, 2)):
            headers = {"Retry-After": wish} if wish else {}
            self.assertEqual(fencetool.find_pause(headers, 45), seconds, wish)

    def test_a_status_page_must_match_exactly_one_expression(self):
        def parse(text):
            return fencetool.parse_status_page(text, "ON", "OFF")
        self.assertIs(parse("now ON"), PowerState.ON)
        self.assertIs(parse("now OFF"), PowerState.OFF)
        for text, words in (("ON or OFF", "both"), ("off", "neither"), ("", "neither")):
            with self.assertRaisesRegex(ProtocolError, "%s of status_on_regex" % words):
                parse(text)
        with self.assertRaises(ProtocolError) as caught:
            parse("x" * 100)
        self.assertIn("'%s...'" % ("x" * 80), str(caught.exception))

    def test_words_that_pacemaker_reads_are_never_passed_on(self):
        shown = fencetool.quote("Gateway Timeout, timed out, TIMEDOUT; timer")
        self.assertEqual(shown, "'Gateway Time-out, timed-out, TIMED-OUT; timer'")


class Tasmota(unittest.TestCase):
    def parse(self, text, relay):
        return fencetool.parse_tasmota_power(
            fencetool.parse_tasmota_reply(text, "Power"), relay)

    def test_only_the_own_member_of_a_relay_counts(self):
        for text, relay, state in (
                ('{"POWER":"ON"}', 1, "ON"), ('{"POWER1":"OFF"}', 1, "OFF"),
                ('{"POWER1":"OFF","POWER2":"ON"}', 2, "ON"), ('{"POWER12":"OFF"}', 12, "OFF"),
                ('{"POWER":"OFF","POWER2":"ON","LED":"ON"}', 1, "OFF"),
                ('{"POWER":"ON","POWER":"ON"}', 1, "ON")):
            self.assertEqual(self.parse(text, relay), PowerState[state], text)

    def test_relay_2_is_never_read_from_the_bare_power(self):
        for text in ('{"POWER":"OFF"}', '{"POWER1":"OFF"}', '{"POWER3":"OFF","POWER":"OFF"}'):
            with self.assertRaisesRegex(Refused, "no POWER2"):
                self.parse(text, 2)

    def test_replies_that_tell_no_power_state_are_errors(self):
        for text, kind in (
                ('{"POWER":"ON","POWER":"OFF"}', ProtocolError),
                ('{"POWER":"ON","POWER1":"OFF"}', ProtocolError),
                ('{"POWER":"Blink OFF"}', ProtocolError), ('{"POWER":"AUS"}', ProtocolError),
                ('{"POWER":"off"}', ProtocolError), ('{"POWER":false}', ProtocolError),
                ('{"POWER":0}', ProtocolError), ('{"POWER":["OFF"]}', ProtocolError),
                ('{}', ProtocolError), ('{"POWER":{"POWER":"OFF"}}', ProtocolError),
                ('["OFF"]', ProtocolError), ('{"POWER":"OFF"', ProtocolError),
                ('', ProtocolError), ('OFF', ProtocolError),
                ('{"WARNING":"Benutzer","POWER":"OFF"}', Refused),
                ('{"Command":"Unknown","POWER":"OFF"}', Refused), ('{"Command":"Error"}', Refused)):
            with self.assertRaises(kind, msg=text):
                self.parse(text, 1)

    def test_status_11_lists_the_relays(self):
        def relays(members):
            return [(outlet.number, outlet.alias, outlet.state.value)
                    for outlet in fencetool.parse_tasmota_relays({"StatusSTS": members})]
        self.assertEqual(relays({"POWER": "ON", "Wifi": {}}), [(1, "POWER", "ON")])
        self.assertEqual(relays({"POWER2": "OFF", "POWER1": "ON", "POWERx": "ON"}),
                         [(1, "POWER1", "ON"), (2, "POWER2", "OFF")])
        # What Tasmota says when it has lost a message may come the next time, and the rest not.
        for wrong, kind in (({}, ProtocolError), ({"StatusSTS": []}, ProtocolError),
                            ({"StatusSTS": {"POWERx": "ON"}}, Refused), ({"ison": True}, Refused)):
            with self.assertRaises(kind):
                fencetool.parse_tasmota_relays(wrong)

    def test_the_meter_is_read_as_numbers_only(self):
        def energy(members, relay=1, relays=1):
            return fencetool.parse_tasmota_energy({"StatusSNS": members}, relay, relays)
        self.assertIsNone(energy({"Time": "x"}))
        self.assertEqual(energy({"ENERGY": {"Power": 43.5, "Voltage": 230}}), (43.5, 230))
        self.assertEqual(energy({"ENERGY": {"Power": [3, -4], "Voltage": [0, 0]}}), (7, 0))
        for absurd in (10 ** 400, float("inf"), -5e12):
            self.assertEqual(energy({"ENERGY": {"Power": absurd, "Voltage": 230}}), (1e9, 230))
        for wrong in ("0", None, True, [None], {}, [], "NaN"):
            with self.assertRaises(ProtocolError, msg=wrong):
                energy({"ENERGY": {"Power": wrong, "Voltage": 230}})

    def test_of_several_relays_only_the_own_entry_of_the_meter_counts(self):
        def energy(power, relay=2, relays=2):
            return fencetool.parse_tasmota_energy(
                {"StatusSNS": {"ENERGY": {"Power": power, "Voltage": 230}}}, relay, relays)
        self.assertEqual(energy([43, 0]), (0, 230))
        self.assertEqual(energy([0, -43]), (43, 230))
        for power in (0, 43, [0], [0, 0, 0]):
            self.assertEqual(energy(power), (None, None))

    def test_a_name_with_a_backslash_spoils_no_other_member(self):
        for name, shown in ((r"C:\Downloads", r"C:\Downloads"), (r"\u00e4\x", "\u00e4\\x"),
                            (r"a\\b", r"a\b"), (r"a\"b", 'a"b')):
            members = fencetool.parse_tasmota_reply('{"SSId":"%s","POWER":"OFF"}' % name, "x")
            self.assertEqual(members, {"SSId": shown, "POWER": "OFF"})
        # A name that ends in one swallows the quote, and what follows is no JSON.
        for name in ("C:\\", 'a"b', '","POWER":"OFF'):
            with self.assertRaises(ProtocolError):
                fencetool.parse_tasmota_reply('{"POWER":"ON","SSId":"%s","B":"24:A1"}' % name, "x")

    def test_what_is_wrong_in_a_long_reply_is_shown(self):
        text = '{"A":"%s","SSId":"a"b","POWER":"OFF"}' % ("x" * 100)
        with self.assertRaisesRegex(ProtocolError, 'wrong behind .*"SSId":"a"'):
            fencetool.parse_tasmota_reply(text, "x")

    def test_a_number_that_is_none_is_no_reading_and_spoils_no_other(self):
        for name in ("NaN", "Infinity", "-Infinity"):
            members = fencetool.parse_json_object('{"Temperature":%s,"Power":43}' % name)
            self.assertEqual(members["Power"], 43)
            self.assertFalse(fencetool.is_number(members["Temperature"]))

    def test_the_mac_of_the_cable_counts_as_that_of_the_radio(self):
        radio, cable = "AA:BB:CC:00:00:01", "AA:BB:CC:00:00:02"

        def find(wanted, mac=radio, cable=cable):
            return fencetool.parse_tasmota_mac(
                {"StatusNET": {"Mac": mac, "Ethernet": {"Mac": cable}}},
                fencetool.parse_mac(wanted))
        self.assertEqual((find(radio), find(cable)), (radio, cable))
        self.assertEqual(find("AA:BB:CC:00:00:09"), radio)
        zero = "00:00:00:00:00:00"
        self.assertEqual((find(zero, zero), find(zero, zero, None)), (cable, ""))

    def test_urls_name_relay_and_state(self):
        for path, expected in (
                ("/cm?cmnd=Power%20OFF", ("", PowerState.OFF)),
                ("/cm?cmnd=POWER2+on", ("2", PowerState.ON)), ("/cm?cmnd=power1", ("1", None)),
                ("/cm?user=admin&password=x&cmnd=Power12%200", ("12", PowerState.OFF))):
            self.assertEqual(fencetool.parse_tasmota_url(path), expected)
        for path in ("/cm?cmnd=Power0%20OFF", "/cm?cmnd=Power%20TOGGLE", "/cm?cmnd=Power%2520OFF",
                     "/cm?cmnd=Backlog%20Power%20OFF", "/cm?cmnd=Power&cmnd=Power2", "/cm", "/x"):
            with self.assertRaises(UsageError, msg=path):
                fencetool.parse_tasmota_url(path)


class Esphome(unittest.TestCase):
    def test_object_ids_are_made_as_the_firmware_makes_them(self):
        for name, expected in (("Node 1 (Power)", "node_1__power_"), ("K\u00fcche", "k__che"),
                               ("Relay", "relay"), ("a-b_c", "a-b_c"), ("\ud800", "_ud800")):
            self.assertEqual(fencetool.render_identifier(name), expected)

    def test_names_are_percent_encoded_once(self):
        self.assertEqual(fencetool.build_esphome_path("Node 1 (Power)"),
                         "/switch/Node%201%20%28Power%29")
        self.assertEqual(fencetool.build_esphome_path("Desk/K\u00fcche,2"),
                         "/switch/Desk/K%C3%BCche%2C2")

    def test_urls_name_switch_and_state(self):
        for path, expected in (
                ("/switch/relay", ("relay", None)),
                ("/switch/relay/turn_off", ("relay", PowerState.OFF)),
                ("/switch/Node%201/turn_on", ("Node 1", PowerState.ON)),
                ("/switch/Desk/Relay?detail=all", ("Desk/Relay", None))):
            self.assertEqual(fencetool.parse_esphome_url(path), expected)
        for path in ("/switch/", "/switch", "/sensor/relay", "/switch/relay/toggle"):
            with self.assertRaises(UsageError, msg=path):
                fencetool.parse_esphome_url(path)

    def test_a_reply_of_the_switch_is_known_in_every_generation(self):
        for wanted, members in (
                ("relay", {"id": "switch-relay"}), ("Relay", {"id": "switch-relay"}),
                ("Relay", {"id": "switch-relay", "name": "Relay"}),
                ("relay", {"id": "switch-relay", "name_id": "switch/Relay", "name": "Relay"}),
                ("Relay", {"id": "switch/Relay"}), ("relay", {"id": "switch/Relay"}),
                ("K\u00fcche", {"id": "switch-k__che", "name": "K\u00fcche"}),
                ("Desk/Relay", {"id": "switch/Desk/Relay", "device": "Desk", "name": "Relay"}),
                ("Desk/Relay", {"id": "switch-relay", "device": "Desk", "name": "Relay"})):
            self.assertTrue(fencetool.is_esphome_reply_of(members, wanted), (wanted, members))

    def test_a_reply_of_another_switch_is_refused(self):
        for wanted, members in (
                ("relay", {}), ("relay", {"id": "switch-relay2"}),
                ("relay", {"id": "sensor-relay"}), ("relay", {"id": "relay"}),
                ("relay", {"id": "switch/relay2"}),
                ("K\u00fcche", {"id": "switch-k__che", "name": "K\u00f6che"}),
                ("Relay", {"id": "switch/relay"}), ("Relay", {"id": "switch/Desk/Relay"}),
                ("Relay", {"id": "switch-relay", "name": "Relay", "device": "Desk"}),
                ("Desk/Relay", {"id": "switch-relay", "name": "Relay"}),
                ("Desk/Relay", {"id": "switch/Relay", "device": "Desk"}),
                ("relay", {"id": "switch-relay", "name_id": "switch/Other"})):
            self.assertFalse(fencetool.is_esphome_reply_of(members, wanted), (wanted, members))
            text = json.dumps(dict(members, value=False, state="OFF"))
            with self.assertRaises(Refused, msg=text):
                fencetool.parse_esphome_switch(text, wanted)

    def test_value_and_state_must_agree_and_one_is_enough(self):
        parse = fencetool.parse_esphome_state
        self.assertIs(parse({"value": False, "state": "OFF"}), PowerState.OFF)
        self.assertIs(parse({"value": True}), PowerState.ON)
        self.assertIs(parse({"state": "OFF", "icon": "ON"}), PowerState.OFF)
        for wrong in ({}, {"value": False, "state": "ON"}, {"value": True, "state": "OFF"},
                      {"value": 0}, {"value": 0, "state": "OFF"}, {"value": None, "state": "OFF"},
                      {"value": "false"}, {"state": "off"}, {"state": None}, {"state": ["OFF"]}):
            with self.assertRaises(ProtocolError, msg=wrong):
                parse(wrong)

    def test_an_assumed_state_is_told(self):
        text = '{"id":"switch/R","value":true,"state":"ON","assumed_state":%s}'
        parse = fencetool.parse_esphome_switch
        self.assertEqual(parse(text % "true", "R"), (PowerState.ON, True, True))
        self.assertEqual(parse(text % "false", "R"), (PowerState.ON, False, True))

    def test_only_the_name_itself_is_exact(self):
        for wanted, members, is_exact in (
                ("relay", {"id": "switch-relay"}, False), ("Relay", {"id": "switch/Relay"}, True),
                ("relay", {"id": "switch-relay", "name": "Relay"}, False),
                ("relay", {"id": "switch-relay", "name_id": "switch/Relay"}, False),
                ("relay", {"id": "switch-relay", "name": "relay"}, True),
                ("Desk/Relay", {"id": "switch-relay", "device": "Desk", "name": "Relay"}, True)):
            text = json.dumps(dict(members, state="OFF"))
            self.assertIs(fencetool.parse_esphome_switch(text, wanted).is_exact, is_exact, text)

    def test_the_event_stream_lists_each_switch_once(self):
        def event(kind, **data):
            return "event: %s\r\ndata: %s\r\n\r\n" % (kind, json.dumps(data))
        stream = (
            "retry: 30000\r\n\r\n" + event("ping", title="plug")
            + event("state", id="sensor-power", state="3 W", value=3)
            + event("state", id="switch-relay", name="Relay", value=True, state="ON")
            + event("log", id="switch-x")
            + event("state", id="switch/Desk/Fan", name="Fan", device="Desk", value=False)
            + event("state", id="switch-relay", value=False, state="OFF")
            + 'event: state\r\ndata: {"id":"switch-cut","va')
        for text in (stream, stream.replace("\r\n", "\n")):
            self.assertEqual(
                [(outlet.number, outlet.alias, outlet.state.value)
                 for outlet in fencetool.parse_esphome_events(text).outlets],
                [("relay", "Relay", "ON"), ("Desk/fan", "Desk/Fan", "OFF")])
        self.assertEqual(fencetool.parse_esphome_events(""), ((), False, False))

    def test_the_list_has_ended_where_a_ping_stands_between_two_silences(self):
        parts = {"s": ":silence\n\n", "p": 'event: ping\r\ndata: {"uptime":9}\r\n\r\n',
                 "e": "event: ping\r\ndata: \r\n\r\n",
                 "l": "event: log\r\ndata: x\r\n\r\n",
                 "A": 'event: state\r\ndata: {"id":"switch-a","name":"A","value":true}\r\n\r\n',
                 "a": 'event: state\r\ndata: {"id":"switch-a","value":false}\r\n\r\n',
                 "B": 'event: state\r\ndata: {"id":"switch-a","name":"B","value":true}\r\n\r\n',
                 "T": 'event: state\r\ndata: {"id":"sensor-t","name":"T"}\r\n\r\n'}
        for order, names, has_ended, is_whole in (
                ("pA", "A", False, True), ("pAssss", "A", False, True), ("pAps", "A", False, True),
                ("pAssp", "A", False, True), ("pAsps", "A", False, True),
                ("pAsspss", "A", True, True), ("Asseess", "A", True, False),
                ("Asslplssl", "A", True, True), ("AsspAss", "A", True, True),
                ("Asspass", "A", True, True),
                ("AsspTss", "A", False, True), ("pAsspssBss", "AB", False, True),
                ("pAsspssBsspss", "AB", True, True), ("aAsspss", "A", True, True),
                ("psspss", "", True, True)):
            events = fencetool.parse_esphome_events("".join(parts[part] for part in order))
            self.assertEqual("".join(outlet.alias for outlet in events.outlets), names, order)
            self.assertEqual(events[1:], (has_ended, is_whole), order)


class Parameters(unittest.TestCase):
    def settings(self, **given):
        values = {"ip": "10.0.0.5", "ipport": 80, "ssl": False, "ssl_insecure": False,
                  "power_on_url": "", "power_off_url": "", "status_url": ""}
        values.update(given)
        return types.SimpleNamespace(**values)

    def choose(self, **urls):
        paths = fencetool.collect_url_paths(self.settings(**urls)).values()
        return fencetool.choose_dialect("http", "auto", paths).name

    def test_the_urls_tell_the_dialect(self):
        for url, dialect in (
                ("/cm?cmnd=Power%20OFF", "tasmota"), ("/cm?user=a&cmnd=Power", "tasmota"),
                ("http://10.0.0.5/cm?cmnd=Power", "tasmota"), ("/switch/relay", "esphome"),
                ("https://plug/switch/relay/turn_off", "esphome"), ("/relay/0?turn=off", "url"),
                ("/cm", "url"), ("/x?cmnd=Power", "url"), ("/switches/1", "url")):
            self.assertEqual(self.choose(status_url=url), dialect, url)

    def test_urls_of_two_dialects_or_none_are_usage_errors(self):
        for urls in ({}, {"power_off_url": "/cm?cmnd=Power%20OFF", "status_url": "/state"}):
            with self.assertRaises(UsageError):
                self.choose(**urls)

    def test_a_url_without_form_is_refused_without_being_shown(self):
        for text in ("off", "/a b", "/\u00e4", "http://u:s3cret@h/", "ftp://h/", "http://h"):
            with self.assertRaises(UsageError) as caught:
                fencetool.parse_url(text)
            self.assertNotIn("s3cret", str(caught.exception))

    def test_full_urls_lead_to_the_device_itself_only(self):
        find = fencetool.parse_device_url
        self.assertEqual(find("/a?b", self.settings()), "/a?b")
        self.assertEqual(find("http://10.0.0.5/a", self.settings()), "/a")
        self.assertEqual(find("http://[::1]:81/a", self.settings(ip="::1", ipport=81)), "/a")
        self.assertEqual(find("https://Plug/a", self.settings(ip="plug", ipport=443, ssl=True)),
                         "/a")
        for url, given in (
                ("http://10.0.0.6/a", {}), ("http://10.0.0.5:81/a", {}),
                ("https://10.0.0.5/a", {}),
                ("http://10.0.0.5:443/a", {"ipport": 443, "ssl": True})):
            with self.assertRaises(UsageError, msg=url):
                find(url, self.settings(**given))

    def test_expressions_that_match_everything_or_nothing_sensible_are_refused(self):
        self.assertTrue(fencetool.parse_pattern('"state":"ON"').search('{"state":"ON"}'))
        for text in ("(", ".*", "x?", "ON|", "^"):
            with self.assertRaises(UsageError, msg=text):
                fencetool.parse_pattern(text)


class Calls(unittest.TestCase):
    """Parameters of fence_http that cannot work, found before anything is sent."""

    def build(self, **given):
        agent = fencetool.AGENTS["fence_http"]
        values = {name: value for name, value in dict(HTTP_URLS, ip="127.0.0.1", **given).items()
                  if value}
        settings = fencetool.build_settings(values, agent.defaults)
        return fencetool.make_device(agent, settings, fencetool.System("test"))

    def test_every_contradiction_is_a_usage_error_that_says_which(self):
        cases = (
            ({"status_on_regex": "("}, "status_on_regex: '('"),
            ({"status_off_regex": ".*"}, "status_off_regex: '.*' matches anything"),
            ({"status_off_regex": ""}, "no status_off_regex"),
            ({"status_url": ""}, "no status_url"),
            ({"power_off_url": ""}, "no power_off_url"),
            ({"power_off_url": "/on"}, "must differ"), ({"status_url": "/off"}, "must differ"),
            ({"power_off_url": "off"}, "power_off_url: neither a path"),
            ({"power_off_url": "http://10.0.0.9/off"}, "power_off_url: it leads to 10.0.0.9:80"),
            ({"device": "tasmota"}, "power_on_url: it is not /cm?cmnd=Power"),
            ({"device": "zwave"}, "device: 'zwave'"), ({"http_method": "DELETE"}, "http_method"),
            (dict(TASMOTA_URLS, power_off_url="/cm?cmnd=Power%20ON"), "it switches ON"),
            (dict(TASMOTA_URLS, status_url="/cm?cmnd=Power%20OFF"), "it switches OFF"),
            (dict(TASMOTA_URLS, power_off_url="/cm?cmnd=Power"), "it switches nothing"),
            (dict(TASMOTA_URLS, status_url="/cm?cmnd=Power2"), "name different outlets"),
            (dict(ESPHOME_URLS, status_url="/switch/fan"), "name different outlets"),
            (dict(ESPHOME_URLS, plug="fan", nodename="n"), "name different outlets"),
            (dict(ESPHOME_URLS, power_off_url="/switch/relay/toggle"), "it is not /switch/NAME"),
            (dict(TASMOTA_URLS, status_url="/state"), "different kinds of device"),
            ({"plug": "a", "switch_name": "b"}, "name different outlets"))
        for case, words in cases:
            with self.subTest(case), self.assertRaises(UsageError) as caught:
                self.build(**case)
            self.assertIn(words, str(caught.exception))
        with self.assertRaisesRegex(UsageError, "nothing says what the device is"):
            self.build(power_on_url="", power_off_url="", status_url="")

    def test_the_urls_and_plug_name_the_outlet_together(self):
        for given, dialect, outlet in (
                (TASMOTA_URLS, "tasmota", ""), (ESPHOME_URLS, "esphome", "relay"),
                (dict(TASMOTA_URLS, plug="n", nodename="n"), "tasmota", "n"),
                (dict(TASMOTA_URLS, plug="2", nodename="n"), "tasmota", "2"),
                (dict(ESPHOME_URLS, plug="n", nodename="n"), "esphome", "relay"),
                (dict(ESPHOME_URLS, switch_name="relay", plug="n", nodename="n"), "esphome",
                 "relay"),
                ({}, "url", "")):
            device = self.build(**given)
            self.assertEqual((device.name, device.wanted), (dialect, outlet), given)

    def test_tls_brings_its_own_default_port(self):
        for given, port in (({}, 80), ({"ssl": "1"}, 443), ({"ssl_insecure": "1"}, 443),
                            ({"ssl": "1", "ipport": "80"}, 80), ({"ssl": "0"}, 80)):
            self.assertEqual(self.build(**given).settings.ipport, port)
