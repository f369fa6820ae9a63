"""What devices and programs echo of a password is shown nowhere, in whatever form they do it."""
import base64
import binascii
import functools
import html
import json
import os
import random
import re
import sys
import tempfile
import unittest
from urllib.parse import quote, unquote

from tests import virtual
from tests.support import PATIENT_LIMITS, AgentTest, at_once, on_stdin

WORKERS = 12  # most of each is waiting
LETTERS = random.Random(7)
LONG = "".join(LETTERS.choice("bcdfghjkmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ") for _ in range(200))
# No piece of these occurs by chance.
PASSWORDS = (
    "S3\tXq9zWv", "Vw\xa08Kj2Zp", "Qktimeoutz7Jh", "%41Zq%23kWx", 'Hq"7Jx"ZkQw', "Hw'4Bn&amp9Zx",
    "Jx&lt;7&Kq<Wz", "Tq\\x5aK\\u0041zJ", "G\xfc6\xdfK\xf6lZwq", "N4\U0001f600Zw8kJq",
    "Zx+Qw 7Jk/Vb", "end7ZqWk ", "Zq7", "\u20ac", LONG)
URLS = {"device": "url", "status_url": "/state", "power_off_url": "/off",
        "status_on_regex": "^NEVER ON$", "status_off_regex": "^NEVER OFF$"}
# How a device may write what it was sent.
FORMS = {
    "as it is": lambda text: text,
    "URL": lambda text: quote(text, safe=""),
    "URL, twice": lambda text: quote(quote(text, safe=""), safe=""),
    "URL in lower case": lambda text: re.sub(
        "%..", lambda match: match.group().lower(), quote(text, safe="")),
    "form": lambda text: quote(text, safe="").replace("%20", "+"),
    "URL of Latin-1": lambda text: quote(text.encode("latin-1", "replace"), safe=""),
    "HTML": html.escape,
    "HTML, decimal": lambda text: "".join("&#%d;" % ord(character) for character in text),
    "HTML, hexadecimal": lambda text: "".join("&#x%x;" % ord(character) for character in text),
    "JSON": lambda text: json.dumps(text).replace("/", "\\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "JSON in HTML": lambda text: html.escape(json.dumps(text)),
    "Python": lambda text: repr(text.encode("utf-8")),
    "UTF-8 taken for Latin-1": lambda text: text.encode("utf-8").decode("latin-1"),
    "Base64 of the login": lambda text: encode("admin:" + text),
    "Base64 in a URL": lambda text: quote(encode("admin:" + text), safe=""),
    "Base64 of more": lambda text: base64.urlsafe_b64encode(
        ("xx<%s>yy" % text).encode("utf-8")).decode("ascii"),
    "Base64 of JSON": lambda text: encode(json.dumps({"password": text})),
    "Base64 of a form, in Base64": lambda text: "v" + encode(encode(quote(text, safe="") + "&")),
}


def encode(text):
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def decode_base64(text):
    found = []
    for run in re.findall("[A-Za-z0-9+/_-]{4,}", text):
        for start in range(4):
            piece = run[start:].replace("-", "+").replace("_", "/")
            try:
                data = base64.b64decode(piece[:len(piece) // 4 * 4])
            except binascii.Error:
                continue
            found += [data.decode("utf-8", "replace"), data.decode("latin-1")]
    return "\n".join(found)


def decode_backslashes(text):
    text = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), text)
    text = re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match.group(1), 16)), text)
    return re.sub(r"\\(.)", lambda match: {"t": "\t", "n": "\n"}.get(*match.groups() * 2), text)


DECODERS = (unquote, lambda text: unquote(text, encoding="latin-1"), html.unescape,
            decode_backslashes, decode_base64, lambda text: text.replace("+", " "),
            lambda text: text.encode("latin-1", "ignore").decode("utf-8", "ignore"),
            lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def read_as_anybody_could(text):
    """Return all that can be read in a text by decoding it up to three times."""
    known, new = set(), {text}
    for _ in range(3):
        known |= new
        new = {decode(item) for item in new for decode in DECODERS} - known
    return known | new


def find_pieces(secret, text):
    """Return the pieces of a secret, of four characters or all of it, that a text gives away."""
    length = min(4, len(secret))
    pieces = {secret[start:start + length] for start in range(len(secret) - length + 1)}
    pieces -= {"time", "imeo", "meou", "eout"}  # words of our own
    return sorted(piece for item in read_as_anybody_could(text) for piece in pieces
                  if piece in item)


class Echoes(AgentTest):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def echo(self, render):
        """Start a device whose whole answer render() gives as bytes."""
        device = virtual.Switch()
        device.render = lambda status, headers, body: render()
        return self.start(device)

    def answer(self, answer):
        return self.echo(lambda: answer)

    def run_agent(self, echo, **parameters):
        """Return all that a run leaves: stdout, stderr and the debug file."""
        handle, log = tempfile.mkstemp(dir=self.folder)
        os.close(handle)
        given = dict(self.address(echo, **PATIENT_LIMITS), verbose_level="2", debug_file=log,
                     username="admin", action="status", **URLS)
        result = on_stdin("fence_http", dict(given, **parameters))
        self.assertEqual(result.code, 1, result)
        self.assertNotIn("internal error", result.err)
        with open(log, encoding="utf-8", errors="surrogateescape") as handle:
            return result.out + result.err + handle.read()

    def assert_hidden(self, secret, render, words):
        told = self.run_agent(self.echo(render), password=secret)
        self.assertIn(words, told)
        self.assertEqual(find_pieces(secret, told), [], told)

    def assert_hidden_everywhere(self, render, words, forms=FORMS):
        """render: from what is echoed, and an encoding, to an answer."""
        def call(secret, form, encoding):
            text = FORMS[form](secret)
            return lambda: self.assert_hidden(
                secret, lambda: render(text).encode(encoding, "replace"), words)
        at_once([call(secret, form, encoding) for secret in PASSWORDS for form in forms
                 for encoding in ("utf-8", "latin-1")[:1 + (form == "as it is")]], workers=WORKERS)

    def test_what_a_device_echoes_of_a_password_is_shown_nowhere(self):
        def call(secret, encoding):
            pages = [("x" * 75 + FORMS[form](secret) + " ", FORMS[form](secret))[number]
                     for form in FORMS for number in (0, 1)]
            page = "\n".join(pages).encode(encoding, "replace")
            return lambda: self.assert_hidden(secret, lambda: (
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page)) + page, "neither")
        at_once([call(secret, encoding) for secret in PASSWORDS
                 for encoding in ("utf-8", "latin-1")], workers=WORKERS)

    def test_what_a_device_echoes_of_a_password_in_the_first_words_of_a_page_is_shown_nowhere(self):
        self.assert_hidden_everywhere(
            lambda text: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s\n" % text, "neither",
            ("as it is", "HTML"))

    def test_what_a_device_echoes_of_a_password_with_a_403_is_shown_nowhere(self):
        self.assert_hidden_everywhere(
            lambda text: "HTTP/1.1 403 No\r\nConnection: close\r\n\r\n<p>" + text,
            "HTTP status 403", ("URL, twice",))

    def test_what_a_device_echoes_of_a_password_in_a_header_is_shown_nowhere(self):
        self.assert_hidden_everywhere(
            lambda text: 'HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm="%s"\r\n'
            "Content-Length: 0\r\n\r\n" % text, "refuses the login", ("as it is",))
        self.assert_hidden_everywhere(
            lambda text: "HTTP/1.1 302 No\r\nLocation: /login?%s\r\n"
            "Content-Length: 0\r\n\r\n" % text, "redirects", ("URL in lower case",))

    def test_what_a_device_echoes_of_a_password_where_http_should_be_is_shown_nowhere(self):
        self.assert_hidden_everywhere(lambda text: "login %s\r\n\r\n" % text, "not complete HTTP",
                                      ("as it is",))
        self.assert_hidden_everywhere(
            lambda text: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n\r\n" % text,
            "not complete HTTP", ("JSON",))

    def test_the_place_that_is_wrong_shows_no_part_of_a_password(self):
        for secret in ("Tr0ubZwr-qnd-3-hxrsKs", "Vw  8Kj2ZpQx"):
            broken = '{"POWER":"%s", "x":"%s"  "%s"}' % ("y" * 90, secret, secret)
            for answer in ("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (
                    len(broken), broken), "HTTP/1.1 403 No\r\n\r\n<p>wrong " + secret):
                device = self.answer(answer.encode())
                told = self.run_agent(device, password=secret, **dict(
                    dict.fromkeys(URLS, ""), device="tasmota", plug="1"))
                with self.subTest(secret, answer=answer):
                    self.assertEqual(find_pieces(secret, told), [], told)

    def test_the_query_of_a_url_is_shown_nowhere_and_its_path_is(self):
        cases = [(query, answer) for query in (
            "Sw_off=1,adminS3cretPw", "S3cretPw", "u=admin&x=S3cretPw", "login=admin:S3cretPw",
            "a=1;b=S3cretPw", "p=S3cret%50w") for answer in (
            b"HTTP/1.1 200 OK\r\n\r\nyou asked for %s", b"HTTP/1.1 403 No\r\n\r\n%s",
            b"HTTP/1.1 302 No\r\nLocation: /x?%s\r\n\r\n", b"%s")]

        def call(query, answer):
            device = self.answer(answer % query.encode())
            return lambda: self.run_agent(device, status_url="/state?" + query)
        for case, told in zip(cases, at_once([call(*case) for case in cases], WORKERS)):
            with self.subTest(case):
                self.assertEqual(find_pieces("S3cretPw", told), [], told)
                self.assertEqual(find_pieces("adminS3cretPw", told), [], told)
                self.assertIn("GET /state?***", told)

    def test_what_a_device_tells_under_the_name_of_a_secret_is_not_shown(self):
        # Shelly's first generation tells the key of its access point in /settings.
        told = {"wifi_ap": {"key": "Zq7Wk\"9x"}, "Password1": "Tq5x\u20acKz", "api_TOKEN": 73829164,
                "key": "off", "POWER1": "ON", "ssid": "lab"}
        page = json.dumps(told)
        for answer in (page, page[:40], page.replace(": ", " :\t"), page + "x" * 80,
                       "x\\\" " + page):
            for status in ("200 OK", "403 No"):
                device = self.answer(("HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (
                    status, len(answer), answer)).encode())
                shown = self.run_agent(device)
                with self.subTest(answer, status=status):
                    self.assertNotRegex(shown, "Zq7|9x|Tq5x|73829164")
                    self.assertIn("***", shown)
                    if "ssid" in answer:
                        self.assertRegex(shown, r'"key"\s*(:|\\t)+\s*"off"')
                        self.assertIn('"lab"', shown)

    def test_what_an_installed_agent_echoes_of_a_password_is_shown_nowhere(self):
        script = os.path.join(self.folder, "fence_echo")
        with open(script, "w") as handle:
            handle.write("#!%s\nimport html, json, sys\n"
                         "found = [line[9:-1] for line in sys.stdin if line[:9] == 'password=']\n"
                         "for text in (found[0], html.escape(found[0]), json.dumps(found[0])):\n"
                         "    print(text[:200] * 2)\n    sys.stderr.write(text + '\\n')\n"
                         "sys.exit(1)\n" % sys.executable)
        os.chmod(script, 0o700)
        secrets = [secret for secret in PASSWORDS if not set("\u20ac\U0001f600\xfc") & set(secret)]
        results = at_once([functools.partial(on_stdin, "fence_check", {
            "action": "status", "fence_method": script, "fence_ip": "127.0.0.1",
            "fence_pass": secret, "target_ips": "127.0.0.1", "ping_count": "3",
            "verbose_level": "2", "ping_timeout": "1", "verify_wait": "0"})
            for secret in secrets], WORKERS)
        for secret, result in zip(secrets, results):
            with self.subTest(secret):
                self.assertIn("exit code 1", result.out)
                self.assertEqual(find_pieces(secret, result.out + result.err), [], result)


if __name__ == "__main__":
    unittest.main()
