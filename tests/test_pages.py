"""device=url beyond URLs and expressions: methods, bodies, headers, members, packed replies."""
import base64
import functools
import gzip
import json
import os
import re
import tempfile
import unittest
import zlib

import fencetool
from fencetool import PowerState, ProtocolError, UsageError
from tests import support, virtual, virtual_pages
from tests.support import AgentTest, at_once, on_stdin

WORKERS = 8
TOKEN = "t0ken-Zq9xWv7Jk"
MEMBER = {"status_url": "/netio.json", "status_member": "$.Outputs[0].State",
          "status_on_value": "1", "status_off_value": "0"}
NETIO = dict(
    MEMBER, power_on_url="/netio.json", power_off_url="/netio.json",
    power_on_body='{"Outputs":[{"ID":1,"Action":1}]}',
    power_off_body='{"Outputs":[{"ID":1,"Action":0}]}')
MYSTROM = {"power_on_url": "/relay?state=1", "power_off_url": "/relay?state=0",
           "status_url": "/report", "status_member": "relay", "status_on_value": "true",
           "status_off_value": "false"}
DLI_OUTLET = "/restapi/relay/outlets/0/"
DLI = {"http_method": "PUT", "power_on_url": DLI_OUTLET + "state/",
       "power_off_url": DLI_OUTLET + "state/", "power_on_body": "value=true",
       "power_off_body": "value=false", "status_url": DLI_OUTLET + "physical_state/",
       "status_member": "$", "status_on_value": "true", "status_off_value": "false",
       "headers": "X-CSRF: x"}


class PageTest(AgentTest):
    def call(self, device, action, **parameters):
        found = dict(self.address(device), **support.PATIENT_LIMITS)
        return on_stdin("fence_http", dict(found, action=action, **parameters))

    def call_briefly(self, device, action, **parameters):
        return on_stdin("fence_http", dict(self.address(device), action=action, **parameters))

    def build(self, agent="fence_http", **parameters):
        row = fencetool.AGENTS[agent]
        settings = row.settings(dict({"ip": "127.0.0.1"}, **parameters), row.defaults)
        return fencetool.make_device(row, settings, fencetool.System("test"))


class Methods(PageTest):
    def test_url_method_and_body_are_sent_as_given(self):
        cases = (
            (NETIO, {}, "POST", "application/json"),
            (NETIO, {"http_method": "PUT"}, "PUT", "application/json"),
            (NETIO, {"content_type": "text/plain; charset=utf-8"}, "POST",
             "text/plain; charset=utf-8"),
            (NETIO, {"power_off_body": ' [{"ID": 1}]'}, "POST", "application/json"),
            (NETIO, {"power_off_body": "a=1&b=\u00fc"}, "POST",
             "application/x-www-form-urlencoded"))
        for parameters, more, method, kind in cases:
            given = dict(parameters, **more)
            device = self.start(virtual_pages.Netio())
            device.obey = functools.partial(self.obey, device)
            with self.subTest(more):
                self.assert_success(self.call(device, "off", **given))
                sent = [request for request in device.requests if request[0] != "GET"]
                self.assertEqual([(sent[0][0], sent[0][2]["content-type"], sent[0][2]["body"])],
                                 [(method, kind, given["power_off_body"])])
                asked = [fields for name, _, fields in device.requests if name == "GET"]
                self.assertEqual({fields.get("content-type") for fields in asked}, {None})

    def obey(self, device, method, path, fields):
        device.switch(1, False)
        return 200, {}, ""

    def test_a_login_by_digest_goes_with_a_body_and_a_put_without_one_is_empty(self):
        device = self.start(virtual_pages.DigitalLoggers(password="s3cret"))
        for action, code in (("off", 0), ("status", 2), ("on", 0)):
            self.assert_success(self.call(
                device, action, username="admin", password="s3cret", **DLI), code)
        device = self.start(virtual.Switch())
        self.assert_success(self.call(device, "off", http_method="PUT",
                                      **virtual.Switch.parameters))
        lengths = [(method, fields.get("content-length")) for method, _, fields in device.requests]
        self.assertEqual(set(lengths), {("GET", None), ("PUT", "0")})

    def test_what_switches_and_what_reads_must_differ_in_something(self):
        for more, words in (
                ({"power_on_body": NETIO["power_off_body"]}, "must differ"),
                ({"power_off_body": ""}, "must differ"),
                ({"power_on_body": "", "power_off_body": ""}, "must differ"),
                ({"http_method": "GET"}, "a GET has no body")):
            with self.subTest(more), self.assertRaisesRegex(UsageError, words):
                self.build(**{name: value for name, value in dict(NETIO, **more).items() if value})
        self.assertEqual(set(self.build(**NETIO).methods.values()), {"POST"})
        self.assertEqual(set(self.build(**MYSTROM).methods.values()), {"GET"})

    def test_each_url_may_have_a_method_of_its_own(self):
        device = self.start(virtual_pages.Netio())
        device.obey = lambda method, path, fields: (
            device.switch(1, path == "/on") or (200, {}, ""))
        device.respond_soundly = self.answer_by_post(device, device.respond_soundly)
        urls = dict(MEMBER, power_on_url="/on", power_off_url="/off", http_method="PUT",
                    status_method="POST", status_url="/netio.json")
        for more, on, off in (({}, "PUT", "PUT"), ({"power_off_method": "POST"}, "PUT", "POST"),
                              ({"power_on_method": "GET"}, "GET", "PUT")):
            device.requests = []
            for action in ("off", "on"):
                self.assert_success(self.call(device, action, **dict(urls, **more)))
            self.assertEqual({(method, path) for method, path, _ in device.requests},
                             {(on, "/on"), (off, "/off"), ("POST", "/netio.json")})
        for name, more in (("power_on_method", {"power_on_body": "a"}),
                           ("power_off_method", {"power_off_body": "a"})):
            with self.subTest(name), self.assertRaisesRegex(UsageError, "a GET has no body"):
                self.build(**dict(urls, **dict(more, **{name: "GET"})))

    def answer_by_post(self, device, respond):
        """Return a respond() whose status is asked for by POST, without a body."""
        def respond_by_post(method, path, fields):
            if path == device.status_page and (method, fields["body"]) == ("POST", ""):
                return respond("GET", path, fields)
            return device.obey(method, path, fields) if path in ("/on", "/off") else (404, {}, "")
        return respond_by_post

    def test_what_is_read_by_post_is_no_page_that_switches(self):
        # Without its body, a command may be one all the same.
        self.build(**NETIO)
        with self.assertRaisesRegex(UsageError, "must differ"):
            self.build(**dict(NETIO, status_method="POST"))
        with self.assertRaisesRegex(UsageError, "status_method: 'PUT' is not GET or POST"):
            self.build(**dict(NETIO, status_method="PUT"))


class Headers(PageTest):
    def test_a_header_can_add_nothing_but_itself(self):
        bad = ["X", "X:", ": y", "X y: z", "X: a\r\nY: b", "X: a\nY: b", "X: a\r", "\nX: a",
               "X: a\0b", "X: \u00fc", "X: a|", "|X: a", "X: a||Y: b", "X:a|x:b", "X: a\tb"]
        bad += ["%s: 5" % name for name in (
            "Content-Length", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive",
            "TE", "Trailer", "Upgrade", "Proxy-Authorization", "Proxy-Connection", "Host", "Expect",
            "Content-Type")]
        for text in bad:
            with self.subTest(text), self.assertRaises(UsageError):
                fencetool.parse_headers(text)
        device = self.start(virtual_pages.MyStrom())
        result = support.in_argv("fence_http", dict(
            self.address(device), action="status", headers="X: a%s\r\nHost: b" % TOKEN, **MYSTROM))
        self.assert_failure(result, "headers: number 1 is not 'Name: value'")
        self.assertNotIn(TOKEN, result.err)
        self.assertEqual(device.requests, [])

    def test_they_go_with_every_request_and_before_our_own(self):
        device = self.start(virtual_pages.MyStrom())
        self.assert_success(self.call(
            device, "off", headers=" X-A :  b: c; d |user-agent: me|Cookie: a=1; b=2", **MYSTROM))
        for _, _, fields in device.requests:
            self.assertEqual([fields[name] for name in ("x-a", "user-agent", "cookie")],
                             ["b: c; d", "me", "a=1; b=2"])

    def test_a_token_may_come_from_the_password_and_is_no_login_then(self):
        device = self.start(virtual_pages.HomeAssistant(password=TOKEN))
        urls = {"power_on_url": "/api/services/switch/turn_on",
                "power_off_url": "/api/services/switch/turn_off",
                "power_on_body": '{"entity_id":"switch.storage_b"}',
                "power_off_body": '{"entity_id":"switch.storage_b"}',
                "status_url": "/api/states/switch.storage_b", "status_member": "state",
                "status_on_value": "on", "status_off_value": "off"}
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "token")
            with open(path, "w", encoding="utf-8") as handle:
                handle.write("#!/bin/sh\necho %s\n" % TOKEN)
            os.chmod(path, 0o700)
            urls["headers"] = "Authorization: Bearer {password}"
            for more in ({"password": TOKEN}, {"password_script": path}):
                self.assert_success(self.call(device, "off", **dict(urls, **more)))
                self.assert_success(self.call(device, "validate-all", **dict(urls, **more)))
        device.password = "another"
        device.requests = []
        result = self.call(device, "off", password=TOKEN, **urls)
        self.assert_failure(result, "the device asks for a password")
        self.assertEqual(len(device.requests), 1)

    def test_two_logins_and_a_token_that_is_not_there_are_refused(self):
        for more, words in (
                ({"headers": "authorization: x y", "password": "s3cret"}, "two logins"),
                ({"headers": "Token: {password}"}, "none is given")):
            with self.assertRaisesRegex(UsageError, words):
                self.build(**dict(MYSTROM, **more))

    def test_a_password_that_no_header_can_hold_is_refused_before_anything_is_sent(self):
        for password in ("a%s\r\nX: y" % TOKEN, TOKEN + "\n", TOKEN + "\u00fc", TOKEN + "\0"):
            with self.subTest(password), self.assertRaisesRegex(
                    UsageError, "the password holds what no header can") as caught:
                self.build(headers="Token: {password}", password=password, **MYSTROM)
            self.assertNotIn(TOKEN, str(caught.exception))

    def test_no_value_of_a_header_is_shown_whatever_the_device_echoes(self):
        def echo(method, path, fields):
            return 404, {}, "you said %s and %s" % (fields["authorization"], fields["x-secret"])
        for headers, password in (
                ("Authorization: Bearer %s|X-Secret: %s" % (TOKEN, TOKEN[::-1]), ""),
                ("Authorization: Bearer {password}|X-Secret: a%s" % TOKEN[::-1], TOKEN)):
            device = self.start(virtual_pages.MyStrom())
            device.respond = echo
            handle, log = tempfile.mkstemp()
            os.close(handle)
            self.addCleanup(os.unlink, log)
            given = dict(MYSTROM, headers=headers, verbose_level="2", debug_file=log)
            given.update({"password": password} if password else {})
            result = self.call(device, "status", **given)
            self.assertEqual(result.code, 1)
            with open(log, encoding="utf-8") as handle:
                shown = result.out + result.err + handle.read()
            self.assertIn("you said ***", shown)
            for secret in (TOKEN, TOKEN[::-1]):
                self.assertNotIn(secret, shown)

    def test_no_part_of_a_header_is_shown_where_a_device_takes_it_apart(self):
        login = base64.b64encode(("admin:" + TOKEN).encode()).decode()
        for header in ("Authorization: Basic " + login, "Authorization: basic  " + login,
                       "Cookie: session=%s; path=/x" % TOKEN, 'X-Secret: a="%s", b="c"' % TOKEN,
                       "X-Secret: aaaa,%s" % TOKEN):
            device = self.start(virtual_pages.MyStrom(broken=(404, {}, "no login: %s" % TOKEN)))
            device.knows_login = lambda *asked: True
            device.outlets[0].relay = False
            result = self.call_briefly(device, "status", **dict(
                MYSTROM, headers=header, verbose_level="2"))
            with self.subTest(header):
                self.assertEqual(result.code, 1)
                self.assertIn("no login: ***", result.err)
                self.assertNotIn(TOKEN, result.err)
        for header in ("Authorization: Basic x", "Authorization: Basic " + "x" * 9, "X-CSRF: true"):
            self.assertTrue(self.build(headers=header, **MYSTROM))

    def test_a_short_value_is_no_secret_and_hides_nothing(self):
        device = self.start(virtual_pages.DigitalLoggers(broken=(404, {}, "no such outlet")))
        device.outlets[0].relay = False
        self.assert_failure(self.call_briefly(device, "status", **DLI), "no such outlet")

    def test_secrets_of_a_body_are_not_shown(self):
        body = '{"Outputs":[{"ID":1,"Action":0,"password":"%s"}]}' % TOKEN
        device = self.start(virtual_pages.Netio())
        device.obey = lambda method, path, fields: (404, {}, fields["body"].replace("secret", ""))
        number = '{"secret":%d}' % int(TOKEN.encode().hex()[:16], 16)
        for text in (body, "id=1&token=%s&on=0" % TOKEN, number):
            result = self.call_briefly(device, "off", **dict(
                NETIO, power_off_body=text, verbose_level="2"))
            self.assertEqual(result.code, 1)
            self.assertIn("***", result.err)
            self.assertNotIn(TOKEN, result.err)
            self.assertNotIn(number[10:-1], result.err)


class Members(PageTest):
    def test_a_path_leads_to_one_place(self):
        text = '{"relays":[{"on":true},{"on":false}],"a b":{"x-y:0":[[1,2]]},"":3,"$":4}'
        for path, value in (
                ("$.relays[0].on", True), ("relays[1].on", False), ('$["a b"]["x-y:0"][0][1]', 2),
                ('$["a b"].x-y:0[0][0]', 1), ('$["$"]', 4)):
            self.assertEqual(fencetool.find_member(text, fencetool.parse_member_path(path)), value)
        for path in ("$.relays[2].on", "$.relays.on", "$.relays[0][0]", "$.Relays[0].on", "$.x",
                     "$[0]", '$["a b"].x-y:0[0][0].z'):
            with self.assertRaisesRegex(ProtocolError, "has no " + re.escape(path)):
                fencetool.find_member(text, fencetool.parse_member_path(path))
        for path in ("", "$.", "$..a", "$[", "$[-1]", "$[a]", "$.a[?(@.ID==1)]", "$.*", "$.a b",
                     "[0]", "$['a']", '$[""]', "a.", "$.a\n"):
            with self.subTest(path), self.assertRaises(UsageError):
                fencetool.parse_member_path(path)

    def test_a_member_that_has_neither_value_is_no_state(self):
        def read(value, on, off):
            return fencetool.parse_status_member(
                '{"state":%s}' % value, fencetool.parse_member_path("state"),
                fencetool.parse_json_word(on), fencetool.parse_json_word(off))
        for on, off, written_on, written_off in (
                ("true", "false", "true", "false"), ("1", "0", "1", " 0 "),
                ('"1"', '"0"', '"1"', '"0"'), ("on", "off", '"on"', '"o\\u0066f"'),
                ("false", "true", "false", "true"), ("null", "0", "null", "0")):
            self.assertIs(read(written_on, on, off), PowerState.ON)
            self.assertIs(read(written_off, on, off), PowerState.OFF)
            for other in ('"unavailable"', '"unknown"', '"Off"', '"off "', "2", "-0.5", "0.0",
                          '"true"', '"false"', "[]", "{}", "NaN", '""', "[0]", '{"state":0}'):
                with self.subTest(on=on, off=off, other=other), self.assertRaises(ProtocolError):
                    read(other, on, off)
        for text in ('{"state":0,"state":1}', '{"state":0,"State":1}', '{"state":0', "[0]", "",
                     "<html>0</html>", '{"state":0} {"state":0}'):
            with self.subTest(text), self.assertRaises(ProtocolError):
                fencetool.parse_status_member(
                    text, fencetool.parse_member_path("state"), "1", "0")

    def test_a_number_without_an_end_is_no_state_and_no_load(self):
        words = ("1e999", "-1e999", "2.5E+400", "NaN", "Infinity", "-Infinity", '"NaN"',
                 '"Infinity"')
        for word in words:
            with self.subTest(word), self.assertRaisesRegex(UsageError, "status_off_value: "):
                self.build(**dict(MYSTROM, status_off_value=word))
        path = fencetool.parse_member_path("power")
        for word in words:
            text = '{"power":%s}' % word
            with self.subTest(word), self.assertRaisesRegex(ProtocolError, "is not a number"):
                fencetool.parse_watts(text, path)
            with self.subTest(word), self.assertRaisesRegex(ProtocolError, "and neither"):
                fencetool.parse_status_member(text, path, "1", fencetool.parse_json_word("1e308"))
        self.assertEqual(fencetool.parse_watts('{"power":1e308}', path), 1e9)

    def test_the_reason_shows_what_came_and_what_was_wanted(self):
        device = self.start(virtual_pages.MyStrom(lie=virtual_pages.put("relay", "false")))
        device.outlets[0].relay = False
        self.assert_failure(self.call_briefly(device, "status", **MYSTROM),
                            "relay is '\"false\"', and neither status_on_value ('true') nor "
                            "status_off_value ('false')")

    def test_one_way_to_read_a_status_is_given_and_all_of_it(self):
        for more, words in (
                ({"status_on_regex": "x"}, "two ways"), ({"status_off_value": ""}, "no status_off"),
                ({"status_member": ""}, "no status_member"), ({"status_on_value": ""}, "no status"),
                ({"status_off_value": "true"}, "are the same"),
                ({"status_off_value": "[0]"}, "not a single value"),
                ({"status_member": "$.a[x]"}, "status_member: '\\$.a\\[x\\]' is no way"),
                ({"content_type": "a\r\nb"}, "content_type: ")):
            given = {name: value for name, value in dict(MYSTROM, **more).items() if value}
            with self.subTest(more), self.assertRaisesRegex(UsageError, words):
                self.build(**given)


class Meters(PageTest):
    def test_a_load_is_a_load_no_load_is_no_proof_and_no_number_is_a_doubt(self):
        put = virtual_pages.put
        cases = (
            ({}, None, ""), ({"fault": "welded"}, None, "still draws 43 W"),
            ({"fault": "welded"}, "ignore", ""),
            ({}, "require", "nobody knows whether this meter measures while the relay is off"),
            ({"meter_lie": put("power", "0")}, None, "the load (power) is not a number: '\"0\"'"),
            ({"meter_lie": put("power", "0")}, "ignore", ""),
            ({"meter_lie": put("power", ...)}, None, "the reply has no power"),
            ({"meter_lie": put("power", -85.5)}, None, "still draws"),
            ({"meter_lie": put("power", 0.9)}, None, ""))
        calls = []
        for options, policy, _ in cases:
            device = self.start(virtual_pages.MyStrom(**options))
            more = {"power_meter": policy} if policy else {}
            calls.append(functools.partial(
                self.call_briefly, device, "off", watts_member="power", **dict(MYSTROM, **more)))
        for case, result in zip(cases, at_once(calls, WORKERS)):
            with self.subTest(case):
                if case[2]:
                    self.assert_failure(result, case[2])
                else:
                    self.assert_success(result)

    def test_a_meter_goes_with_two_expressions_too(self):
        device = self.start(virtual_pages.MyStrom(fault="welded"))
        urls = {name: MYSTROM[name] for name in ("power_on_url", "power_off_url", "status_url")}
        self.assert_failure(self.call_briefly(
            device, "off", status_on_regex='"relay": true', status_off_regex='"relay": false',
            watts_member="power", **urls), "still draws 43 W")


class Packed(PageTest):
    def pack(self, device, change=lambda packed: packed, coding="gzip"):
        """Let a device pack its answers, unasked."""
        render = device.render

        def render_packed(status, headers, body):
            head, _, data = render(status, dict(headers), body).partition(b"\r\n\r\n")
            data = change(gzip.compress(data))
            head = re.sub(b"Content-Length: [0-9]*", b"Content-Length: %d" % len(data), head)
            return head + b"\r\nContent-Encoding: " + coding.encode() + b"\r\n\r\n" + data
        device.render = render_packed
        return self.start(device)

    def test_what_a_server_packs_unasked_is_read(self):
        for coding in ("gzip", "GZIP", "x-gzip"):
            device = self.pack(virtual_pages.Netio(password="s3cret"), coding=coding)
            self.assert_success(self.call(
                device, "off", username="admin", password="s3cret", **NETIO))

    def test_a_packed_reply_is_unpacked_whole_and_within_bounds_or_refused(self):
        bomb = gzip.compress(b" " * 60000000 + b'{"relay":false}')
        self.assertLess(len(bomb), fencetool.MAX_REPLY_BYTES)
        off = gzip.compress(b'{"relay":false}')
        small_bomb = gzip.compress(b'{"relay":false}' + b" " * fencetool.MAX_REPLY_BYTES)
        cases = (
            (lambda packed: packed[:-1], "its end is missing"),
            (lambda packed: packed[:-8], "its end is missing"),
            (lambda packed: packed[:12], "its end is missing"),
            (lambda packed: packed + off, "something follows"),
            (lambda packed: packed + b"x", "something follows"),
            (lambda packed: packed[:-5] + b"\0" + packed[-4:], "damaged"),
            (lambda packed: zlib.compress(b'{"relay":false}'), "damaged"),
            (lambda packed: b'{"relay":false}', "damaged"),
            (lambda packed: small_bomb, "longer than 65536 bytes when it is unpacked"),
            (lambda packed: bomb, "longer than 65536 bytes when it is unpacked"))
        calls = []
        for change, _ in cases:
            device = virtual_pages.MyStrom()
            device.outlets[0].relay = False
            calls.append(functools.partial(
                self.call_briefly, self.pack(device, change), "status", **MYSTROM))
        for (_, words), result in zip(cases, at_once(calls, WORKERS)):
            self.assert_failure(result, words)

    def test_an_event_stream_is_not_unpacked(self):
        device = self.pack(virtual.Esphome(["Relay"]))
        self.assert_failure(on_stdin("fence_http", dict(
            self.address(device), **dict(support.PATIENT_LIMITS, device="esphome",
                                         action="monitor"))), "the event stream is compressed")

    def test_other_codings_are_refused(self):
        for coding in ("br", "deflate", "gzip, gzip"):
            device = self.pack(virtual_pages.MyStrom(), coding=coding)
            self.assert_failure(self.call(device, "status", **MYSTROM), "compressed by '%s'"
                                % coding)


class Elsewhere(PageTest):
    """The same in fence_check and in the cluster file."""

    def check(self, **parameters):
        return dict({"fence_method": "http", "fence_ip": "127.0.0.1", "nodename": "node",
                     "target_mgmt_ip": "10.0.0.6"}, **parameters)

    def test_fence_check_reads_the_member_the_meter_and_sends_the_headers(self):
        device = self.start(virtual_pages.MyStrom(password=TOKEN))
        read = {name: value for name, value in MYSTROM.items() if name.startswith("status")}
        checked = self.build("fence_check", **self.check(
            fence_ipport=str(device.address[1]), headers="Token: {password}", watts_member="power",
            fence_pass=TOKEN, **read))
        deadline = fencetool.System("test").deadline(60)
        outlet = checked.open(deadline)
        self.assertIs(outlet.state, PowerState.ON)
        self.assertEqual(outlet.read_meter(deadline).watts, fencetool.WATTS)
        self.assert_success(on_stdin("fence_check", self.check(
            action="validate-all", headers="Token: {password}", password="s3cret", **read)))

    def test_a_verifier_gets_what_reads_and_not_what_switches(self):
        path = os.path.join(support.ROOT, "tests", "fixtures", "clusters", "rest.yml")
        cluster, _ = fencetool.load_cluster(path, "", fencetool.System("test"))
        found = {row.id: row.options
                 for row in fencetool.build_configuration(cluster).primitives}
        power, verifier = found["fence-storage-a"], found["fence-verify-storage-a"]
        reading = {"status_member": "$.Outputs[0].State", "status_on_value": "1",
                   "status_method": "POST", "status_off_value": "0",
                   "watts_member": "$.Outputs[0].Load"}
        for options in (power, verifier):
            self.assertEqual({name: options.get(name) for name in reading}, reading)
        switching = {"power_on_body", "power_off_body", "content_type", "power_on_method",
                     "power_off_method"}
        self.assertLessEqual(switching, set(power))
        self.assertFalse((switching | {"http_method"}) & set(verifier))
        headers = "Authorization: Bearer {password}|X-CSRF: x"
        self.assertEqual({found[name]["headers"] for name in (
            "fence-storage-b", "fence-verify-storage-b")}, {headers})

    def test_check_config_tells_what_does_not_fit(self):
        good = ("stonith_nodes:\n  a: {method: http, ip: 10.9.9.9, mgmt_ip: 10.0.0.1, "
                "power_off_url: /x, status_url: /s, status_member: on, power_off_body: a, "
                "status_on_value: 'true', status_off_value: 'false'}\n"
                "  b: {method: http, ip: 10.9.9.9, mgmt_ip: 10.0.0.2, power_off_url: /x, "
                "power_off_body: b, status_url: /s, status_on_regex: up, status_off_regex: down}\n")
        good = good.replace("status_member: on", "status_member: $.on")
        self.assertEqual([item.text for item in fencetool.parse_cluster(
            "c.yml", good.encode())[1] if not item.is_warning], [])
        for old, new, words in (
                ("status_member: $.on, ", "", "go together"),
                ("status_off_value: 'false'", "delay: 3", "go together"),
                ("status_member: $.on", "status_on_regex: z, status_member: $.on", "two ways"),
                ("status_member: $.on", "status_member: '$.'", "is no way to a member"),
                ("power_off_body: b", "power_off_body: a", "are on the same outlet"),
                ("status_url: /s, status_member", "status_url: /x, status_method: POST, "
                 "status_member", "status_url must differ"),
                ("power_off_body: b, status_url: /s", "status_url: http://10.9.9.9/%78",
                 "status_url must differ"),
                ("power_off_body: b", "headers: x", "is not 'Name: value'"),
                ("status_off_value: 'false'", "status_off_value: false", "put it in quotes"),
                ("status_on_regex: up, ", "", "neither status_on_regex nor status_on_value")):
            self.assertEqual(good.count(old), 1, old)
            cluster, mistakes = fencetool.parse_cluster(
                "c.yml", good.replace(old, new).encode())
            with self.subTest(old=old, new=new):
                self.assertIsNone(cluster)
                self.assertIn(words, "\n".join(mistake.text for mistake in mistakes))

    def test_no_output_of_check_config_shows_a_header(self):
        text = ("stonith_nodes:\n  a: {method: http, ip: 10.9.9.9, mgmt_ip: 10.0.0.1, "
                "headers: 'Token %s'}\n" % TOKEN)
        _, mistakes = fencetool.parse_cluster("c.yml", text.encode())
        self.assertNotIn(TOKEN, json.dumps(mistakes))


if __name__ == "__main__":
    unittest.main()
