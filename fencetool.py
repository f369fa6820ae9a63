#!/usr/bin/python3 -IS
"""fencetool: cheap smart plugs as STONITH devices for Pacemaker, and proof that a node is dead.

Started as fence_kasa or fence_http this file is a fence agent: parameters come from stdin when
there are no arguments, else from the command line. As fence_check it switches nothing: second in a
fencing level, it proves that the node is dead. As "kasa" it is a cluster-glue external plugin.
"fencetool.py SUBCOMMAND" is for people; "fencetool.py fence_kasa ..." is the agent without its
link. The file needs Python 3.6 or newer and nothing else.

The one rule: "off" succeeds only on proof. No answer, half an answer, two answers, a wrong outlet
or a missing tool is a failure with a reason. A failure blocks a failover, which a person can mend;
a false success corrupts data, which nobody can.

Parts and sections; each uses only those above it (tests/test_layout.py proves it):
  1 WORDS    CONSTANTS, ERRORS, SECRETS, TEXT, PROOF, EVIDENCE, DIALECTS, PARAMETERS
  2 MACHINE  LOG, FILES AND PROGRAMS, KERNEL, NETWORK, DEVICE, LOGINS, HTTP, HTTP DEVICE
  3 DEVICES  KASA, KLAP, TAPO, TP-LINK, TASMOTA, ESPHOME, SHELLY, PAGES, INSTALLED AGENT
  4 FENCING  PACKETS, PROBES, FENCING, CHECKING, AGENTS
  ---------- the waterline: a fence agent's run needs nothing below it but for fence_check -n NODE
  5 CLUSTER  YAML, CLUSTER KEYS, CLUSTER FILE, PLAN, CLUSTER CHECKS, PCS DEVICES, PCS CLUSTER,
             OUTPUTS, CIB, DRIFT, FOUND DEVICES, IMPORT, WRITING
  6 PEOPLE   LOOK-UP, SIMULATOR AND DEMO, COMMANDS, ENTRY

To add a parameter, go to PARAMETERS: one row; agents take it by their rows in AGENTS.
To add a family of plugs, go to DIALECTS: one row; then a room of its own in part 3, named in the
map above (begin with the class that fits from DEVICE or HTTP, and with a room like TASMOTA), its
virtual device in tests/virtual.py, and its rows in README. tests/test_contract.py then runs over
it.
To add a command, go to COMMANDS: one cmd_ function and its row.

Exit codes of an agent: 0 done and confirmed (status: ON), 2 only for a status of OFF (fence_check:
proven dead), 1 anything else, usage errors included. Subcommands for people: 0 good, 1 bad, 2 usage
error.
"""


# PART 1: WORDS ====================================================================================

# SECTION: CONSTANTS -------------------------------------------------------------------------------
# Imports that every run needs, and fixed numbers with their units. Heavy modules are imported in
# the functions that need them: an agent run pays for nothing that it does not use.

import atexit
import enum
import errno
import io
import json
import os
import re
import socket
import struct
import sys
import time
import types
from collections import namedtuple
__version__ = "0.1.0"


def refuse_half_a_file():
    os.write(2, b"fencetool: this copy of fencetool.py ends too early: copy it again\n")
    os._exit(1)


if __name__ == "__main__":
    # SAFETY: a copy that was cut off ends without having done anything, and Python calls that a
    # success. A whole one ends in start(), which comes by here no more.
    # Test: test_half_a_file_is_never_a_success
    atexit.register(refuse_half_a_file)

EXIT_GOOD = 0
EXIT_BAD = 1
EXIT_OFF = 2    # agents: status says OFF, and nothing else
EXIT_USAGE = 2  # subcommands for people
LOG_ERR, LOG_WARNING, LOG_INFO = 3, 4, 6  # priorities of syslog(3)
LOG_DAEMON = 3 << 3
LOG_SOCKET = "/dev/log"
HTTP_PORT = 80
HTTPS_PORT = 443
MAX_REPLY_BYTES = 65536   # the largest honest replies are event streams of big ESPHome devices
MAX_STDIN_BYTES = 1048576
MAX_FILE_BYTES = 4194304
MAX_SHOWN_CHARACTERS = 80  # of a foreign reply in an error message
MAX_VALUE_CHARACTERS = 4096  # of one parameter, and of the password that a program prints
MAX_PARAMETERS = 1000      # of one call; Pacemaker gives some dozens
STDIN_SECONDS = 10         # Pacemaker writes all parameters at once
COMPUTING_SECONDS = 2      # of one search by somebody's regular expression
STDERR_PATIENCE_SECONDS = 0.5  # with a reader that is slow, and once only
SHORTEST_HIDDEN_SECRET = 4  # a shorter one is found everywhere: its gaps would tell it
TELLTALE_CHARACTERS = 8    # the beginning of a secret is hidden too, where the rest was cut off
# What the names of secret parameters hold, of any agent and in any URL, and what names none of it
# have: a program that prints a password, and an algorithm.
SECRET_NAMES = ("pass", "pw", "secret", "key", "token", "auth", "community", "_kg")
NO_SECRET_NAMES = ("_script", "_prot")
UNTIL_DEADLINE = -1        # tries without a limit of their own
READ_ATTEMPTS = 2          # of status, monitor and list: one lost reply must not fail a monitor
SHORTEST_EXCHANGE_SECONDS = 0.5  # with less, only the end of our own patience would be reported
SHORTEST_PAUSE_SECONDS = 0.2
OFF_READINGS = 2           # see confirm_power
REBOOT_OFF_SECONDS = 3.0   # see run_reboot
METER_SILENT_WATTS = 1.0   # meters show up to 0.9 W of noise on an open relay (HS110 capture)
CHILD_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
CLUSTER_FILE = "/etc/fencetool/cluster.yml"
SEEN_FILE = "/var/lib/fencetool/seen.json"  # when each address was last seen alive from here
# Challenges that the next action answers, too. In memory: a disk may hang while a node is fenced.
LOGINS_FOLDER = "/run/fencetool/logins"
LOGINS_AT_ONCE = 8  # of one device, on this machine
MAX_LOGIN_BYTES = 16384
SEEN_SECONDS = 60    # a record is not made anew more often
MOST_SEEN = 1000
FEWEST_ECHOES, MOST_ECHOES = 3, 100  # one lost packet is no silence, and a look is no flood
SHORTEST_LOOK_SECONDS = 1.0
ROUTED_LOOK_SECONDS = 4.0
ASKING_PART = 2 / 3                 # of a look; in the rest the last questions can be answered
LAST_QUESTIONS = 3    # to a witness, when the target has been asked for the last time
SHORT_TURNS = 10      # each so manyth turn asks how far away an address is
MOST_ROUTERS = 4      # on the way to a target, that are told apart
FEWEST_ANSWERS = 0.8  # of a witness, as a part of the questions: with fewer, the look is longer
SHORTEST_PROOF_SECONDS = 3.0  # of silence, where one look is not enough
MOST_LATE_READS = 10000             # of what has piled up while the process was held up


# SECTION: ERRORS ----------------------------------------------------------------------------------
# What can go wrong, and whether trying again may help: that policy sits on the class.

class FenceError(Exception):
    """Anything that keeps an action from its proof. The text says what happened and what to do."""
    retryable = False
    counts_as_try = True  # of those that an action has

    def __str__(self):
        # SAFETY: its text is kept as the doubt about an outlet, and no text is no doubt.
        # Test: test_an_error_without_a_text_is_still_a_doubt
        return super().__str__() or type(self).__name__


class UsageError(FenceError):
    """The caller's parameters cannot work; nothing has been sent to any device."""


class SyntaxMistake(UsageError):
    """A place in a file that cannot be read, or only by guessing."""

    def __init__(self, line, text):
        super().__init__(text)
        self.line = line


class Unreachable(FenceError):
    """No connection, no answer, or an answer that broke off: the outcome is not known."""
    retryable = True

    def __init__(self, text, was_closed=False):
        super().__init__(text)
        self.was_closed = was_closed  # by the device, before it answered anything


class SessionLost(Unreachable):
    """Another client has ended the session: the device has not obeyed, since it did not read what
    came. That is no fault of the device, and may happen any number of times."""
    counts_as_try = False


class ProtocolError(FenceError):
    """An answer that is not what the protocol says; a damaged reply may be whole the next time."""
    retryable = True


class Refused(FenceError):
    """The device answered clearly: no, or as another device, model or service would."""


class UnknownOutlet(Refused):
    """The device has no outlet of this name, as its whole list shows."""


class StrangeReply(Refused):
    """As another device or service answers, or this one while it starts: believed when it comes
    twice."""


class NotConfirmed(FenceError):
    """The command was sent, and the proof did not come in time."""


# SECTION: SECRETS ---------------------------------------------------------------------------------
# What no text that leaves the program may hold, and how it is found in whatever form a device may
# echo it.

# What no text that leaves the program may hold. It stands here, and is one set for the whole run,
# because who quotes foreign text must not have to think of it.
SECRETS = set()
NOT_SHOWN = ("(not shown: a password of less than %d characters cannot be hidden in it)"
             % SHORTEST_HIDDEN_SECRET)


# One character as a device may echo it: URL, JSON, Python, C, HTML, UTF-8 taken for Latin-1, and
# the halves of a pair that JSON makes of an emoji.
ESCAPE = (r"(?s)%u[0-9a-fA-F]{4}|%[0-9a-fA-F]{2}"
          r"|\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-3]?[0-7]{1,2}|.)"
          r"|&#[0-9]{1,7};?|&#[xX][0-9a-fA-F]{1,6};?|&[a-zA-Z]{2,8};"
          r"|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
          r"|[\ud800-\udbff][\udc00-\udfff]")
LETTER_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a"}
MOST_ESCAPES = 6  # of one character: JSON in a URL in a page, and so on
# What devices write for one another, and what stdin makes of bytes that are no UTF-8.
LIKENESSES = {ord(blank): " " for blank in "+\t\n\v\f\r\x85\xa0"}
LIKENESSES.update({0xdc00 + byte: chr(byte) for byte in range(0x80, 0x100)})


def is_secret_name(name):
    """Return whether a parameter of this name, of any agent or in any URL, may be a secret."""
    name = name.lower()
    if name.endswith(NO_SECRET_NAMES) or name == "auth":  # fence_ipmilan's: md5, none
        return False
    return any(word in name for word in SECRET_NAMES)


# A member of JSON whose name may be that of a secret, with its value, which may be cut off.
TOLD_MEMBER = r'(?i)"([^"\\]{0,60}(?:%s)[^"\\]{0,60})"\s*:\s*("(?:[^"\\]|\\.)*"?|[0-9]{4,})' % (
    "|".join(SECRET_NAMES))


def redact_foreign(text):
    """Return what a device told without our secrets, and without its own: its Wi-Fi's key, say.

    Those are known by the names of their members, and change nothing but what is shown.
    """
    # SAFETY: ours first, while the text is as it came: half of one would not be found.
    # Test: test_what_a_device_tells_under_the_name_of_a_secret_is_not_shown
    return re.sub(TOLD_MEMBER, hide_told_value, redact(text, SECRETS, may_be_cut=True))


def hide_told_value(member):
    name, value = member.groups()
    is_plain = value.strip('"').lower() in PLAIN_VALUES | {""}
    return member.group() if is_plain or not is_secret_name(name) else '"%s": "***"' % name


def can_hide(secrets):
    """Return whether all secrets are long enough to be replaced without being shown by that."""
    return all(len(secret.strip()) >= SHORTEST_HIDDEN_SECRET for secret in secrets)


def redact(text, secrets, may_be_cut=False):
    """Return text with every secret replaced, in whatever form a device may have echoed it.

    may_be_cut: the text may end in the middle of a secret.
    """
    if not secrets:
        return text
    at, pieces = 0, []
    for first, last in sorted(find_secret_places(text, collect_forms(secrets), may_be_cut)):
        if first >= at:
            pieces += [text[at:first], "***"]
        at = max(at, last)
    return "".join(pieces) + text[at:]


def collect_forms(secrets):
    """Return the words to be looked for: the secrets, decoded too, and parts of them."""
    words = set()
    for secret in secrets:
        words.update(decoded for decoded, _ in decode_escapes(secret))
        # What a device drops, or writes as "?", leaves the pieces between.
        for lost in (r"[^\x00-\xff]", r"[^ -~]|[<>\"'&%\\]"):
            words.update(piece for piece in re.split(lost, secret)
                         if len(piece.strip()) >= SHORTEST_HIDDEN_SECRET)
    # One or two characters are left: replaced everywhere, they would show themselves.
    return {word for word in (fold_likenesses(word).strip() for word in words) if len(word) > 2}


def find_secret_places(text, words, may_be_cut=False, depth=2):
    """Return [(start, end)] of what tells a word; depth: so many times Base64 within Base64."""
    found = []
    for decoded, places in decode_escapes(text):
        folded = fold_likenesses(decoded)
        spans = [span for word in words for span in find_all(folded, word)]
        spans += [find_beginning(folded, word) for word in words if may_be_cut]
        for skipped in range(4 if depth else 0):
            spans += find_in_base64(decoded, words, skipped, depth - 1)
        found += [(places[first], places[last]) for first, last in spans if last > first]
    return found


def find_in_base64(text, words, skipped, depth):
    """Return [(start, end)] of the Base64 in a text that tells a word once it is decoded.

    skipped: so many characters that only look like a part of it stand before it.
    """
    import base64
    import bisect
    spans, starts, pieces, size = [], [], [], 0
    for match in re.finditer("[A-Za-z0-9+/_-]{6,}", text):
        code = match.group()[skipped:].replace("-", "+").replace("_", "/")
        code = code[:-1] if len(code) % 4 == 1 else code
        spans.append(match.span())
        starts.append(size)
        pieces.append(base64.b64decode(code + "=" * (-len(code) % 4)).decode("latin-1") + "\n")
        size += len(pieces[-1])
    found = find_secret_places("".join(pieces), words, depth=depth) if pieces else []
    return [spans[number] for first, last in found for number in range(
        bisect.bisect_right(starts, first) - 1, bisect.bisect_left(starts, last))]


def fold_likenesses(text):
    return text.translate(LIKENESSES)


def decode_escapes(text):
    """Return [(text, places)]: as it stands, then decoded once, twice and so on.

    places: where each of its characters begins in the text as it stands, and where that ends.
    """
    rounds = [(text, range(len(text) + 1))]
    while len(rounds) <= MOST_ESCAPES:
        text, places = rounds[-1]
        at, pieces, found = 0, [], []
        for match in re.finditer(ESCAPE, text):
            character = decode_escape(match.group())
            if len(character) == 1:
                pieces += [text[at:match.start()], character]
                found += places[at:match.start() + 1]
                at = match.end()
        if not at:
            break
        rounds.append(("".join(pieces) + text[at:], found + list(places[at:])))
    return rounds


def decode_escape(token):
    """Return the one character that was written as this token, or the token if it means none."""
    mark, letter = token[0], token[1]
    if mark == "&":
        import html
        return html.unescape(token)
    if mark == "%" or (letter in "xuU" and len(token) > 2 and mark == "\\"):
        return chr(min(int(token.lstrip("%\\xuU"), 16), 0x10ffff))
    if mark == "\\":
        is_octal = letter in "01234567"
        return chr(int(token[1:], 8)) if is_octal else LETTER_ESCAPES.get(letter, letter)
    if mark >= "\ud800":
        return token.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return token.encode("latin-1").decode("utf-8", "replace")


def find_all(text, word):
    """Return [(start, end)] of a word in a text, also where the end of a long one is missing."""
    found, at = [], text.find(word[:TELLTALE_CHARACTERS])
    while at >= 0:
        last = at + min(len(word), TELLTALE_CHARACTERS)
        while last < len(text) and text[last] == word[last - at:last - at + 1]:
            last += 1
        found.append((at, last))
        at = text.find(word[:TELLTALE_CHARACTERS], last)
    return found


def find_beginning(text, word):
    """Return (start, end) of the most of a word with which a text ends; both equal without any."""
    for length in range(min(len(word), len(text)), SHORTEST_HIDDEN_SECRET - 1, -1):
        if text.endswith(word[:length]):
            return len(text) - length, len(text)
    return 0, 0


# Values in a URL's query that are no secrets: hidden, they would be missing in lines of our own.
PLAIN_VALUES = {"0", "1", "on", "off", "yes", "no", "true", "false", "toggle", "open", "close",
                "closed", "status", "state", "power", "reboot", "reset", "cycle", "monitor", "list",
                "outlet", "relay", "switch", "plug", "device", "action", "target"}


def find_url_secrets(url):
    """Return the values in a URL's query whose names say that they are secret."""
    return {value for name, value in re.findall(r"([\w-]+)=([^&+;]+)", url.partition("?")[2])
            if is_secret_name(name) and value.lower() not in PLAIN_VALUES}


def find_body_secrets(body):
    """Return the values in the body of a request, JSON or a form, whose names say the same."""
    found = set()

    def collect(pairs):
        found.update(str(value) for name, value in pairs
                     if type(value) in (str, int) and is_secret_name(name))
        return dict(pairs)

    try:
        json.loads(body, object_pairs_hook=collect)
    except (ValueError, RecursionError):
        return find_url_secrets("?" + body)
    return {value for value in found if value.lower() not in PLAIN_VALUES}


def find_query_values(url):
    """Return the query of a URL and all in it that may be a login, whatever its name is."""
    query = url.partition("?")[2]
    pieces = [piece.partition("=") for piece in re.split("[&+;,]", query)]
    values = {query} | {value if equals else name for name, equals, value in pieces}
    return {value for value in values
            if len(value) >= SHORTEST_HIDDEN_SECRET and value.lower() not in PLAIN_VALUES}


def find_header_values(value):
    """Return the value of a header and all in it that may be a login, as a device may decode it."""
    import base64
    import binascii
    found = {value} | set(re.split("[ ;,]+", value)) | set(re.split('[ ;,="]+', value))
    basic = re.fullmatch("(?i)basic +([A-Za-z0-9+/=]+)", value)
    try:
        login = base64.b64decode(basic.group(1)).decode("latin-1") if basic else ""
    except binascii.Error:  # it is no login, then
        login = ""
    found |= {login, login.partition(":")[2]}
    return {text for text in found
            if len(text.strip()) >= SHORTEST_HIDDEN_SECRET and text.lower() not in PLAIN_VALUES}


# SECTION: TEXT ------------------------------------------------------------------------------------
# Text to values and back: parsing, rendering, quoting, escaping, hiding secrets. Pure.

def parse_whole_number(text):
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise UsageError("%s is not a whole number" % quote(text))
    return int(text)


def parse_seconds(text):
    """Return seconds as float for 5, 5s, 1500ms, 1m; raise UsageError for anything else."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)(ms|sec|s|min|m)?", text.strip())
    if not match:
        raise UsageError("%s is not a time (use 5, 5s, 1500ms or 1m)" % quote(text))
    unit = {"ms": 0.001, "m": 60.0, "min": 60.0}.get(match.group(2), 1.0)
    return float(match.group(1)) * unit


def parse_boolean(text):
    word = text.strip().lower()
    if word in ("1", "yes", "on", "true"):
        return True
    if word in ("0", "no", "off", "false"):
        return False
    raise UsageError("%s is neither yes nor no (use 1 or 0)" % quote(text))


def parse_mac(text):
    """Return a MAC address as 12 lower-case hex digits, whatever separators it came with."""
    digits = re.sub("[:. -]", "", text).lower()
    if not re.fullmatch("[0-9a-f]{12}", digits):
        raise UsageError("%s is not a MAC address (use CC:32:E5:00:00:01)" % quote(text))
    return digits


def parse_url(text):
    """Return a path or URL as it stands. The text is never shown: it may hold a password."""
    if not re.fullmatch(r"(https?://[^/?#@\s]+)?/[!\"$-~]*", text):
        raise UsageError("neither a path that begins with / nor a URL http://host/path; blanks and "
                         "the like are written %20, a login goes into username and password")
    return text


def parse_pattern(text):
    """Return a regular expression; one that matches nothing at all would match any reply."""
    try:
        expression = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError("%s is not a regular expression: %s" % (quote(text), error)) from None
    if expression.search(""):
        raise UsageError("%s matches anything, even an empty reply" % quote(text))
    return expression


# Set by the agent itself, meant for one connection alone, or given by a parameter of their own.
NO_OWN_HEADERS = {
    "connection", "content-length", "content-type", "expect", "host", "keep-alive",
    "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade"}
HEADER_VALUE = "[!-~](?:[ -~]*[!-~])?"


def parse_headers(text):
    """Return {name: value} of "Name: value|Name: value". No value is shown: it may be a secret."""
    headers = {}
    for number, item in enumerate(text.split("|"), 1):
        # SAFETY: a line end in a value would begin another header, or another request.
        # Test: test_a_header_can_add_nothing_but_itself
        match = re.fullmatch(" *([A-Za-z0-9_-]+) *: *(%s) *" % HEADER_VALUE, item)
        if not match:
            raise UsageError("number %d is not 'Name: value' in printable ASCII (| separates two)"
                             % number)
        name, value = match.groups()
        if name.lower() in NO_OWN_HEADERS:
            raise UsageError("%s is not for you to set (content_type, ip and the length of the "
                             "body do that)" % name)
        if name.lower() in map(str.lower, headers):
            raise UsageError("%s comes twice" % name)
        headers[name] = value
    return headers


def parse_content_type(text):
    if not re.fullmatch(HEADER_VALUE, text):
        raise UsageError("%s is not a content type (use application/json)" % quote(text))
    return text


# The way to one value of a JSON reply. text: as it was given. steps: names of members, numbers of
# a list's items.
MemberPath = namedtuple("MemberPath", "text steps")
MEMBER_STEP = r'\.([A-Za-z0-9_:-]+)|\[([0-9]{1,4})\]|\["([^"\\]+)"\]'


def parse_member_path(text):
    """Return the MemberPath of $.relays[0]["is on"]; $ alone is the whole reply."""
    path = text if text[:1] == "$" else "$." + text
    if not re.fullmatch(r"\$(?:%s)*" % MEMBER_STEP, path):
        raise UsageError("%s is no way to a member of JSON (use $.relays[0].on, or $.a[\"b c\"])"
                         % quote(text))
    steps = []
    for name, number, quoted in re.findall(MEMBER_STEP, path):
        steps.append(int(number) if number else name + quoted)
    return MemberPath(text, steps)


# What no number is: Python's names of what JSON does not know, and of what it knows no end to.
NO_NUMBERS = ("NaN", "Infinity", "-Infinity")


def parse_json_number(text):
    """Return a number with a fraction or an exponent; one that is too large as its name."""
    value = float(text)
    return value if abs(value) < float("inf") else ("-" if value < 0 else "") + "Infinity"


def parse_json_word(text):
    """Return a single value of JSON as render_json writes it; a word without quotes is a text."""
    try:
        value = json.loads(text, parse_constant=str, parse_float=parse_json_number)
    except (ValueError, RecursionError):
        value = text
    # SAFETY: a number that is none would be equal to any other such.
    # Test: test_a_number_without_an_end_is_no_state_and_no_load
    if isinstance(value, (dict, list)) or value in NO_NUMBERS:
        raise UsageError("%s is not a single value (use true, 1 or \"on\")" % quote(text))
    return render_json(value)


# Without regular expressions: every run of an agent comes by here, and each costs it a part of a
# millisecond.
NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
IPV6_CHARACTERS = set("0123456789abcdefABCDEF:.")


def split_address(text, port):
    """Return (host, port) of "host", "host:port", "::1" or "[::1]:port"; raise UsageError."""
    host, own_port = text, ""
    has_brackets = text[:1] == "[" and "]" in text
    if has_brackets:
        host, _, own_port = text[1:].partition("]")
    elif text.count(":") == 1:
        host, own_port = text.split(":")
        own_port = ":" + own_port
    is_port = not own_port or re.fullmatch(":[0-9]{1,5}", own_port)
    if not is_port or not is_host(host, has_brackets or ":" in host):
        raise UsageError("ip: %s is not an address" % quote(text))
    if is_number_of_a_host(host) and not is_ipv4(host):
        # The C library takes 10.20.20 for 10.20.0.20 and 010.1.1.1 for 8.1.1.1: another device.
        raise UsageError("ip: %s is not an address of four numbers" % quote(text))
    port = int(own_port[1:]) if own_port else port
    if not 1 <= port <= 65535:
        raise UsageError("%s is not a port number (1 to 65535)" % port)
    return host, port


def is_host(text, is_ipv6):
    """Return whether this can be the name or address of a host; IPv6 may name a zone (%eth0)."""
    address, percent, zone = text.partition("%") if is_ipv6 else (text, "", "")
    if percent and not (zone and set(zone) <= NAME_CHARACTERS):
        return False
    return bool(address) and set(address) <= (IPV6_CHARACTERS if is_ipv6 else NAME_CHARACTERS)


def is_number_of_a_host(host):
    """Return whether the C library reads this as a number, and asks no name server."""
    last = host.rpartition(".")[2].lower()
    return last.isdigit() or (last[:2] == "0x" and set(last[2:]) <= IPV6_CHARACTERS)


def is_ipv4(host):
    return host.count(".") == 3 and all(map(is_usual_number, host.split(".")))


def is_usual_number(text):
    """Return whether this is a number of up to three digits, without a zero in front."""
    return text.isdigit() and len(text) <= 3 and text == str(int(text))


def address_family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def parse_ip(text):
    """Return the address as the kernel writes it: fd77::2 for FD77:0::2; raise UsageError.

    A name is none: it may mean another host when it matters.
    """
    try:
        packed = socket.inet_pton(address_family(text), text)
    except (OSError, ValueError):
        raise UsageError("%s is not an IP address" % quote(text)) from None
    if re.match("(?i)fe[89ab].:", text):
        raise UsageError("%s is link-local: it does not say on which link" % quote(text))
    return socket.inet_ntop(address_family(text), packed)


def split_list(text):
    return [item.strip() for item in text.split(",") if item.strip()]


def render_identifier(name):
    """Return a name as devices make identifiers from it: a-z, 0-9, _ and -, all else a _ a byte."""
    return re.sub(b"[^a-z0-9_-]", b"_", name.encode("utf-8", "backslashreplace").lower()).decode()


def render_mac(digits):
    return ":".join(digits[i:i + 2] for i in range(0, 12, 2)).upper()


def render_address(host, port):
    return "[%s]:%d" % (host, port) if ":" in host else "%s:%d" % (host, port)


def render_url(scheme, host, port):
    """Return the beginning of a URL; port: "" for the usual one."""
    host = "[%s]" % host.split("%")[0] if ":" in host else host
    return "%s://%s%s" % (scheme, host, port and ":%d" % port)


def render_seconds(seconds):
    return "%g s" % round(seconds, 1)


def quote(text, limit=MAX_SHOWN_CHARACTERS):
    """Return foreign text as one printable line in quotes, cut to `limit` characters."""
    # SAFETY: Pacemaker takes these words on an agent's stderr for its own, whoever said them.
    # Test: test_words_that_pacemaker_reads_are_never_passed_on
    return hide_timer_words(quote_own(text, limit))


def quote_own(text, limit=MAX_SHOWN_CHARACTERS):
    """Do the same with what a person reads who has written it, letter for letter."""
    # SAFETY: redacted before anything else changes it: half a password is not found any more, nor
    # is one whose TAB has become \\t.
    # Test: test_what_a_device_echoes_of_a_password_is_shown_nowhere
    if not can_hide(SECRETS):
        return NOT_SHOWN
    text = redact_foreign(text)
    shown = text if len(text) <= limit else text[:limit] + "..."
    return "'%s'" % one_line(shown)


def one_line(text):
    """Return text without control characters, so that a log line stays one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def percent_encode(text):
    """Return text as one segment or value of a URL: nothing but unreserved characters stays."""
    from urllib.parse import quote as encode
    try:
        return encode(text, safe="", errors="surrogateescape")
    except UnicodeEncodeError:
        raise Refused("the name %s holds half a character: rename it" % quote(text)) from None


def decode_fully(text):
    """Return text percent-decoded until nothing is left: a sloppy device does it twice."""
    from urllib.parse import unquote_plus
    before = None
    while before != text:
        before, text = text, unquote_plus(text)
    return text


def escape_xml(text):
    for character, name in (("&", "amp"), ("<", "lt"), (">", "gt"), ('"', "quot"), ("'", "apos")):
        text = text.replace(character, "&%s;" % name)
    return text


def hide_timer_words(text):
    """Return text without the words by which Pacemaker takes a failure for its own timer's."""
    return re.sub("(?i)(timed?) ?(out)", r"\1-\2", text)


def parse_json(text):
    """Return the JSON value in text; raise ProtocolError for anything else."""
    try:
        # NaN and infinities, 1e999 too, would pass every comparison with a limit: each becomes its
        # name, a text, which no reading accepts. Another sensor's NaN spoils nothing else.
        return json.loads(text, object_pairs_hook=refuse_doubles, parse_constant=str,
                          parse_float=parse_json_number)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("the reply is not JSON: %s" % show_place(
            text, getattr(error, "pos", 0))) from None


def parse_json_object(text):
    """Return the JSON object in text as a dict; raise ProtocolError for anything else."""
    reply = parse_json(text)
    if not isinstance(reply, dict):
        raise ProtocolError("the reply is not a JSON object: %s" % quote(text))
    return reply


def refuse_doubles(pairs):
    """Return the members of an object; a name that comes twice with two values is an error.

    SAFETY: in whatever case: no device that is known tells two things by names that differ in
    nothing else, and which of RELAY_STATE and relay_state is true, nobody knows.
    Test: test_names_that_differ_in_case_alone_and_have_two_values_are_an_error
    """
    members, known_values = {}, {}
    for name, value in pairs:
        members.setdefault(name, value)
        known = known_values.setdefault(name.lower(), value)
        # Compared as text: 0, false and 0.0 are equal in Python and different answers.
        if known is not value and render_json(known) != render_json(value):
            raise ProtocolError("the reply holds %s twice, with two values" % quote(name))
    return members


def show_place(text, position):
    """Return the beginning of a text, and the place in it that is wrong if that is further on."""
    if position < MAX_SHOWN_CHARACTERS:
        return quote(text)
    # SAFETY: redacted as a whole, since a secret without its beginning is not found.
    # Test: test_the_place_that_is_wrong_shows_no_part_of_a_password
    if not can_hide(SECRETS):
        return NOT_SHOWN
    before = redact_foreign(text[:position])[-20:]
    return "%s (wrong behind %s)" % (quote(text), quote(before))


def render_json(value):
    return json.dumps(value, sort_keys=True)


def is_number(value):
    # Not isinstance: True is an int in Python, and no number in JSON.
    return type(value) in (int, float)


JSON_TYPES = {dict: "an object", list: "a list", str: "a text", int: "a whole number",
              bool: "true or false"}


def require_member(reply, name, wanted, where):
    """Return reply[name] if it is there and of the wanted type; raise ProtocolError if not."""
    if name not in reply:
        raise ProtocolError("%s holds no %s" % (where, name))
    if type(reply[name]) is not wanted:
        raise ProtocolError("%s: %s should be %s and is %s" % (
            where, name, JSON_TYPES[wanted], quote(json.dumps(reply[name]))))
    return reply[name]


def find_member(text, path):
    """Return the value that a MemberPath leads to in a JSON text; raise ProtocolError if none is.
    """
    value = parse_json(text)
    for step in path.steps:
        if not has_step(value, step):
            raise ProtocolError("the reply has no %s: %s" % (path.text, quote(text)))
        value = value[step]
    return value


def has_step(value, step):
    if isinstance(step, int):
        return isinstance(value, list) and step < len(value)
    return isinstance(value, dict) and step in value


def limit_watts(value):
    """Return watts that can be added up; an absurd reading is a load, not a meter that failed."""
    return max(-1e9, min(value, 1e9))


# SECTION: PROOF -----------------------------------------------------------------------------------
# Every decision about the success of a fence: which outlet is meant, when a power state is
# confirmed, what a meter proves. Pure.

class PowerState(enum.Enum):
    """What a device says about one outlet. Not knowing it is an error, never a third state."""
    ON = "ON"
    OFF = "OFF"


# One relay of a device, as the device itself describes it. number: as printed on the case, from 1;
# of an ESPHome switch its object id. identifiers: the names that the protocol gives it.
Outlet = namedtuple("Outlet", "number alias identifiers state")


def select_outlet(outlets, wanted, label, doubt_about_list=""):
    """Return the one Outlet that `wanted` names; raise Refused unless it is exactly one.

    wanted: number on the case, alias or identifier; "" or `label` (the cluster's name for the
    target) when the caller named none, which selects an only outlet, or one with that alias.
    doubt_about_list: why there may be more outlets than these, "" when these are all.
    """
    # SAFETY: the only one of a list that may go on is not the only one.
    # Test: test_the_only_outlet_of_a_list_that_may_go_on_is_not_taken_for_the_only_one
    if len(outlets) == 1 and wanted in ("", label) and not doubt_about_list:
        return outlets[0]
    if doubt_about_list and not wanted:
        raise Refused("no outlet was named (plug), and the device may have more than it lists: %s; "
                      "%s" % (doubt_about_list, describe_outlets(outlets)))
    if not outlets:
        raise Refused("the device lists no outlets")
    if not wanted:
        raise Refused("no outlet was named (plug), and the device has several; %s"
                      % describe_outlets(outlets))
    found = [outlet for outlet in outlets if is_named(outlet, wanted, label)]
    if len(found) > 1:
        raise Refused("plug %s names %d outlets of this device, use a number or an id; %s"
                      % (quote(wanted), len(found), describe_outlets(outlets)))
    if doubt_about_list and not found:
        raise Refused("plug %s names no outlet that this device lists, and it may have more: %s; %s"
                      % (quote(wanted), doubt_about_list, describe_outlets(outlets)))
    if not found and is_padded_number(wanted):
        raise UnknownOutlet(
            "plug %s is no number as on the case (which would be %d), and less than a whole id; %s"
            % (quote(wanted), int(wanted), describe_outlets(outlets)))
    if not found:
        raise UnknownOutlet("plug %s names no outlet of this device; %s"
                            % (quote(wanted), describe_outlets(outlets)))
    if is_number_of_another(found[0], wanted):
        raise Refused("plug %s is the alias of outlet %s, and not its number: use its id, or "
                      "rename it" % (quote(wanted), found[0].number))
    return found[0]


def is_named(outlet, wanted, label):
    """Return whether a name means this outlet; the label means one by its alias alone."""
    if outlet.alias == wanted:
        return True
    if wanted == label:
        return False
    if wanted == str(outlet.number):
        return True
    # SAFETY: protocols count from 0: who writes 01 may mean the first outlet, and its id is that of
    # the second. Test: test_a_number_with_a_zero_in_front_names_no_outlet
    return wanted.lower() in outlet.identifiers and not is_padded_number(wanted)


def is_padded_number(text):
    """Return whether this is a small number with zeros in front: 00, 01, 001."""
    return text[:1] == "0" and 1 < len(text) < 4 and text.isdecimal()


def is_number_of_another(outlet, wanted):
    """An alias that looks like a number, and is another one than the outlet has on the case."""
    return wanted.isdigit() and outlet.alias == wanted and wanted != str(outlet.number)


def describe_outlets(outlets):
    if not outlets:
        return "the device lists no outlets"
    return "its outlets are: " + ", ".join(
        "%s (%s)" % (outlet.number, quote(outlet.alias, 40)) for outlet in outlets)


def split_names(wanted, label):
    """Return the names in a list like "1, 5"; () where it is none, or the label of the target."""
    if "," not in wanted or wanted == label:
        return ()
    return tuple(name.strip() for name in wanted.split(","))


def check_name_in_list(name, wanted, label):
    """Raise UnknownOutlet for what is no outlet's name where several are named."""
    if not name:
        raise UnknownOutlet("plug %s has a comma with no outlet beside it" % quote(wanted))
    if name == label:
        raise UnknownOutlet("plug %s names the node itself, which is no outlet in a list"
                            % quote(wanted))


# A target with several power supplies hangs on several outlets of one device. What follows is of
# each of them, by the name that the caller gave it; of one outlet alone that name is "".

def combine_states(states):
    """Return the PowerState of what these outlets feed together."""
    # SAFETY: one that is on feeds it. Test: test_status_is_off_only_when_all_outlets_are
    return PowerState.OFF if set(states) == {PowerState.OFF} else PowerState.ON


def find_doubt(doubts):
    """Return the first of {name of an outlet: doubt, or ""} with its outlet; "" without any."""
    return next((tell_outlet(name, doubt) for name, doubt in doubts.items() if doubt), "")


def tell_outlet(name, text):
    """Return the text with the outlet that it is about, where there are several."""
    return ": ".join(part for part in ("outlet %s" % name if name else "", text) if part)


def parse_state_words(words, subject):
    """Return the PowerState that all words (at least one) say: each is "ON" or "OFF"."""
    if not words or words.count(words[0]) < len(words) or words[0] not in ("ON", "OFF"):
        raise ProtocolError("%s is neither ON nor OFF: %s" % (subject, quote(json.dumps(words))))
    return PowerState[words[0]]


def readings_needed(wanted):
    """Return how many readings of a state in a row confirm it.

    OFF takes two: the first reading after a command may be old, a pulse timer may switch back, and
    a computer's power supply bridges the first second.
    """
    return OFF_READINGS if wanted is PowerState.OFF else 1


def doubt_about_state(state, wanted, unacknowledged, waited):
    """Return why one reading after a command does not show the wanted state, or "" if it does.

    unacknowledged: why the device has not acknowledged the command, "" when it has. waited: the
    time that it had to obey, as text.
    """
    if state is wanted:
        return ""
    if unacknowledged:
        return "the device did not acknowledge %s: %s" % (wanted.value, unacknowledged)
    return ("the device acknowledged %s and still reports %s after %s (is its relay locked or "
            "stuck, or does something switch it back?)" % (wanted.value, state.value, waited))


# What the meter of one outlet told. watts: None when it told nothing that can be used. obstacle:
# why no load proves nothing here, "" for a meter that also measures while its relay is off.
# is_passing: the obstacle ends by itself, so that a later reading will prove something.
MeterReading = namedtuple("MeterReading", "watts obstacle is_passing")
MeterReading.__new__.__defaults__ = (False,)
NO_METER = MeterReading(None, "the device has none for this outlet")


def doubt_about_meter(reading, policy):
    """Return why an outlet that reports OFF cannot be believed, or "" when it can.

    policy: auto (what was read counts, a meter that is not there is no doubt), ignore (not even a
    reading counts) or require (a reading must be there, of a meter that reads while it is off). A
    meter that is there and whose answer cannot be read is an error, and comes not so far as here.
    """
    if policy == "ignore":
        return ""
    # SAFETY: before anything else: a load that is shown is a load, whatever the settings say.
    # Test: test_a_load_that_is_shown_is_a_load_whatever_the_settings_say
    if shows_load(reading):
        return ("the relay reports OFF, but the outlet still draws %.0f W (is the relay welded, or "
                "was another outlet switched?)" % reading.watts)
    return doubt_about_required_meter(reading) if policy == "require" else ""


def doubt_about_required_meter(reading):
    """Return why this meter could not prove that there is no load, or "" when it could."""
    if reading.watts is not None and not reading.obstacle:
        return ""
    return "no power meter gave a reading, and power_meter=require wants one: %s" % reading.obstacle


def doubt_about_usable_meter(reading):
    """Return why this meter never will prove that there is no load, or "" when it will."""
    return "" if reading.is_passing else doubt_about_required_meter(reading)


def rest_reading(reading, rest_s, quiet_s):
    """Return a reading as it counts so long after the last command that may have been.

    rest_s: so long after one the meter may show 0 W, whatever flows.

    SAFETY: neither for nor against; and a load is a load at any time.
    Test: test_a_zero_that_may_be_the_meters_rest_is_no_proof
    """
    if reading.obstacle or shows_load(reading) or quiet_s >= rest_s:
        return reading
    return MeterReading(reading.watts, "for %s after a command it may show 0 W, whatever flows"
                        % render_seconds(rest_s), is_passing=True)


def shows_load(reading):
    return reading.watts is not None and abs(reading.watts) > METER_SILENT_WATTS


def remember_load(load, reading, doubt):
    """Return the doubt about a load after one more reading.

    SAFETY: a meter that falls silent after it has shown a load has shown a welded relay.
    Test: test_a_load_that_was_seen_is_not_forgotten_when_the_meter_falls_silent
    """
    # A gated meter may show the load of before once, and 0 W from then on: that is no silence.
    return load if load and reading.watts is None else doubt


def doubt_about_time(seconds_left):
    """Return why what was read cannot count any more, or "" when it came in time."""
    # SAFETY: a process that was stopped in between holds an answer of long ago.
    # Test: test_a_reading_that_ends_after_the_time_is_none
    return "" if seconds_left else "the answer was read only after the time was up"


# SECTION: EVIDENCE --------------------------------------------------------------------------------
# What each observation about a target proves, and what all of them add up to. Pure, and the one
# place where a node becomes dead.

class Finding(enum.Enum):
    """What one observation says about the target, or all of them together."""
    DEAD = "dead"
    ALIVE = "alive"
    UNKNOWN = "unknown"


# How a target is proven dead. One look gives
#   - what the fence device says about the outlet, judged by judge_power, and
#   - a Sight of every address of the target and of every witness; each address of the target is
#     judged by judge_address, beside its witnesses.
# Each of them becomes one Evidence, and judge adds all Evidence up to the Verdict.
#
# An answer is easy: who answers is alive. The difficulty is silence, which a broken cable on this
# side brings about as well as a dead target. So silence counts only over a path that is proven to
# work. A *route* is what this machine's kernel says about packets to an address: a belief. The
# *path* is all that the packets pass, switches and firewalls included. What proves it, the best
# first:
#   - a witness: another address that takes the same route, and that still answers when the target
#     has been asked for the last time; behind a router, one that is not that router;
#   - where nobody has named a witness, the fence device, if it is in the same network; else the
#     carrier of a wire, and ARP, which no IP firewall filters;
#   - on a cable from node to node, the lost carrier itself: it is the other node that feeds it.
POWER, NETWORK = "power", "network"

# One observation about the target. source: POWER or NETWORK. subject: what was observed. seen: what
# it showed. reason: what else a reader should know, or "".
Evidence = namedtuple("Evidence", "source finding subject seen reason")

# What all Evidence adds up to; blockers: the Evidence that keeps it from dead.
Verdict = namedtuple("Verdict", "finding blockers")
Target = namedtuple("Target", "network address")

# The networks that have names of their own. key: of a node in the cluster file; name: in that file;
# title: in what people read; parameter: of fence_check. All that the file calls otherwise are
# client networks. has_devices: the fence devices are in this one.
NetworkRow = namedtuple("NetworkRow", "key name title parameter has_devices")
NETWORKS = (
    NetworkRow(key="mgmt_ip", name="mgmt", title="Management", parameter="target_mgmt_ip",
               has_devices=True),
    NetworkRow(key="storage_ip", name="storage", title="Storage", parameter="target_storage_ip",
               has_devices=False),
    NetworkRow(key="client_ips", name="client", title="Client", parameter="target_client_ips",
               has_devices=False))


def network_key(name):
    """Return a network's name as names are compared: in any case, and mgmt is Management."""
    titles = {network.name: network.title for network in NETWORKS}
    return titles.get(name.lower(), name).lower()


def describe_target(target):
    return "%s %s" % (target.network, target.address)


# What the kernel says about packets to one address.
#   interface, index: of the link that they leave by.
#   mac, source:      our own addresses there (bytes); mac is b"" on a link that has neither ARP nor
#                     neighbour discovery.
#   gateway:          the router (bytes); b"" where the network is attached to the link.
#   has_carrier:      the other end of the link is there.
#   carrier_changes:  how often the carrier came or went since the link exists (bytes).
#   is_port:          it belongs to a bridge, a bond or the like.
#   odd_way:          what makes it uncertain that packets take this way and answers come back, or
#                     "": several next hops, a rule by mark, IPsec, a source address of another
#                     network.
#   dead_port:        the name of a port that forwards nothing, where the link is a bridge, or "".
#   link_kind:        "" for a network card, "dormant" for a link that still waits (for a login at
#                     the switch, say), else what the kernel calls it; with what it stands on, if
#                     its carrier is that one's: "bridge", "bond", "macvlan on bridge".
Route = namedtuple("Route", "interface index mac source gateway has_carrier carrier_changes "
                            "is_port odd_way dead_port link_kind")
CABLE_LINKS = ("", "veth")                     # their carrier is fed by the other end alone
WIRED_LINKS = CABLE_LINKS + ("bond", "team")   # their carrier is that of a wire, or of several


# Who can prove the path to an address, as Sights. named: those that the caller names for its
# network; where there are any, nothing else will do. devices: the fence device, if it can be seen.
Witnesses = namedtuple("Witnesses", "named devices")


class Sight:
    """What one look saw of one address, of the target or of a witness."""

    def __init__(self, address):
        self.address = address
        self.family = address_family(address)
        self.packed = socket.inet_pton(self.family, address)
        # Whether its silence may count at all.
        self.route = None        # the Route, if there is one and it held for the whole look
        self.obstacle = ""       # the first reason why its silence would mean nothing
        self.uses_arp = False    # it is asked by ARP too, which no IP firewall filters
        self.asks_neighbour = False  # it is asked by ARP or neighbour discovery too
        # What came back. Each of these alone is life.
        self.echoed = False      # it answered an ICMP echo
        self.rejected = False    # it refused one with an ICMP error of its own
        self.neighbour = False   # it answered ARP or neighbour discovery
        self.was_heard = False   # its network card sent something, to whomever
        self.was_alive = False   # it was seen alive from here, now or at any time before
        # What is asked of a witness alone.
        self.answered_last = False  # it answered when the target had been asked for the last time
        self.is_forwarded = False   # it is attached, and a router takes its packets on all the same
        self.answers = set()        # sequences of the echoes that it answered
        # How far away it is: the fewest hops in which an echo reached it, as far as that was tried,
        # and how many routers on the way have told of themselves.
        self.hops = MOST_ROUTERS + 1
        self.routers = 0
        # By ARP in this look, and of a target also by the kernel's table of before.
        self.macs = set()
        self.port = 0  # the link that is the bridge's port on which these were last heard

    def answered(self):
        return self.echoed or self.rejected or self.neighbour or self.was_heard

    def is_attached(self):
        """Return whether it can be asked without a router, by ARP or neighbour discovery."""
        return self.route is not None and bool(self.route.mac) and not self.route.gateway

    def shares_route(self, other):
        """Return whether packets to both, which have a route, leave in the same way."""
        return self.family == other.family and (
            (self.route.interface, self.route.gateway, self.route.source)
            == (other.route.interface, other.route.gateway, other.route.source))

    def add_obstacle(self, reason):
        """Note why its silence would mean nothing; the first reason is the one that is told."""
        self.obstacle = self.obstacle or reason

    def lose_route(self, reason):
        """Note that there is no route, which outweighs any other obstacle."""
        self.route = None
        self.obstacle = reason


def judge(evidence):
    """Return the Verdict over all evidence about one target."""
    # SAFETY: one sign of life outweighs everything, and dead is only what every observation agrees
    # on: exactly one device, which says OFF, and at least one silent network.
    # Test: test_dead_needs_every_observation_to_agree
    alive = [item for item in evidence if item.finding is Finding.ALIVE]
    if alive:
        return Verdict(Finding.ALIVE, alive)
    unknown = [item for item in evidence if item.finding is not Finding.DEAD]
    sources = [item.source for item in evidence]
    is_complete = sources.count(POWER) == 1 and sources.count(NETWORK) >= 1
    if unknown or not is_complete:
        return Verdict(Finding.UNKNOWN, unknown)
    return Verdict(Finding.DEAD, [])


# One rule of evidence. observed: what was observed, as README has it. finding: what that proves.
# tell: a function of what was seen; it returns what a reader should know beside that ("" for
# nothing), or None where the rule does not fit. The first rule that fits is the one that counts.
Rule = namedtuple("Rule", "observed finding tell")


def apply_rules(rules, *seen):
    """Return (finding, reason) by the first rule that fits, or None where none does."""
    for rule in rules:
        reason = rule.tell(*seen)
        if reason is not None:
            return rule.finding, reason
    return None


def judge_power(state, reading, policy):
    """Return (finding, reason) for what a device says about the target's outlet.

    reading, policy: see doubt_about_meter.
    """
    return apply_rules(POWER_RULES, state, reading, policy)


def tell_on(state, reading, policy):
    return "" if state is PowerState.ON else None


def tell_load(state, reading, policy):
    if state is PowerState.OFF and shows_load(reading):
        return doubt_about_meter(reading, policy) or None
    return None


def tell_doubt_about_meter(state, reading, policy):
    if state is PowerState.OFF:
        return doubt_about_meter(reading, policy) or None
    return None


def tell_off(state, reading, policy):
    return "" if state is PowerState.OFF else None


def tell_nothing_known(state, reading, policy):
    return ""


# SAFETY: only a positive OFF is evidence of death; a load that is still drawn is evidence of life:
# the relay is welded, or another outlet was switched.
# Test: test_only_a_positive_off_is_evidence_of_death
POWER_RULES = (
    Rule("the device says ON", Finding.ALIVE, tell_on),
    Rule("it says OFF, and its meter still shows a load", Finding.ALIVE, tell_load),
    Rule("it says OFF, and a meter that has to be read cannot be read", Finding.UNKNOWN,
         tell_doubt_about_meter),
    Rule("it says OFF", Finding.DEAD, tell_off),
    Rule("anything else: no answer, half an answer, two answers, another device, a missing agent",
         Finding.UNKNOWN, tell_nothing_known))


def combine_findings(findings):
    """Return what the findings about each outlet that feeds a target say about the target."""
    # SAFETY: one outlet that is alive, or in doubt, outweighs all that are dead.
    # Test: test_the_power_is_dead_only_when_all_outlets_are
    return next(worst for worst in (Finding.ALIVE, Finding.UNKNOWN, Finding.DEAD)
                if worst in findings)


def judge_address(sight, witnesses, is_direct):
    """Return (finding, what was seen, reason) for one address of the target after one look.

    witnesses: the Witnesses of its network. is_direct: it is one cable from node to node.
    """
    alive = apply_rules(LIFE_RULES, sight)
    if alive:
        return alive[0], "reachable", alive[1]
    finding, reason = judge_silence(sight, witnesses, is_direct)
    if finding is Finding.DEAD:
        finding, reason = apply_rules(RECORD_RULES, sight) or (finding, add_record(reason, sight))
    return finding, "unreachable", reason


def judge_silence(sight, witnesses, is_direct):
    """Return (finding, reason): what silence of this address proves.

    Asked about an address that answers, as monitor does, it tells what its silence would be worth.
    """
    return apply_rules(SILENCE_RULES, sight, witnesses, is_direct)


def tell_echo(sight):
    return "" if sight.echoed else None


def tell_rejection(sight):
    return "it rejects ICMP echo with an error of its own" if sight.rejected else None


def tell_neighbour(sight):
    means = "ARP" if sight.family == socket.AF_INET else "neighbour discovery"
    return means + " only: ICMP is filtered" if sight.neighbour else None


def tell_frames(sight):
    return "its network card sends frames: ICMP and ARP are filtered" if sight.was_heard else None


LIFE_RULES = (
    Rule("the address answers an echo", Finding.ALIVE, tell_echo),
    Rule("it refuses an echo with an ICMP error of its own", Finding.ALIVE, tell_rejection),
    Rule("it answers ARP or neighbour discovery, and no echo", Finding.ALIVE, tell_neighbour),
    Rule("it answers nothing, and its network card sends anything to anybody", Finding.ALIVE,
         tell_frames))


def tell_no_route(sight, witnesses, is_direct):
    if sight.route:
        return None
    return "no usable route from this machine: " + sight.obstacle


def tell_obstacle(sight, witnesses, is_direct):
    return sight.obstacle or None


def tell_odd_way(sight, witnesses, is_direct):
    if not sight.route.odd_way:
        return None
    return "the way to it cannot be judged: " + sight.route.odd_way


def tell_dead_port(sight, witnesses, is_direct):
    # SAFETY: the node may be behind that port, and each witness behind another one.
    # Test: test_a_dead_port_of_an_own_bridge_needs_a_witness_on_the_nodes_port
    port = sight.route.dead_port
    beside = [witness for witness in choose_witnesses(sight, witnesses)
              if sight.port and witness.port == sight.port]
    if not port or (beside and not doubt_about_witnesses(sight, beside)):
        return None
    return ("port %s of this machine's own bridge forwards nothing, and no witness answers on the "
            "port that the node was last heard on" % port)


def tell_dead_cable(sight, witnesses, is_direct):
    # On a direct cable that is the proof, and no witness could answer.
    if sight.route.has_carrier or not is_direct or not is_end_of_cable(sight.route):
        return None
    return "the other end of the direct cable is dead: %s has no carrier" % sight.route.interface


def tell_no_carrier(sight, witnesses, is_direct):
    if sight.route.has_carrier:
        return None
    return "this machine's own link is down: %s has no carrier" % sight.route.interface


def tell_witness(sight, witnesses, is_direct):
    chosen = choose_witnesses(sight, witnesses)
    return "" if chosen and not doubt_about_witnesses(sight, chosen) else None


def tell_silent_witnesses(sight, witnesses, is_direct):
    chosen = choose_witnesses(sight, witnesses)
    return doubt_about_witnesses(sight, chosen) if chosen else None


def tell_carrier_alone(sight, witnesses, is_direct):
    if need_of_witness(sight):
        return None
    return ("no witness known: judged by the route and the carrier of %s alone"
            % sight.route.interface)


def tell_need_of_witness(sight, witnesses, is_direct):
    return ("a witness on the same route is needed, because %s: add one to witness_ips"
            % need_of_witness(sight))


# SAFETY: own failures look exactly like a dead target, so silence needs a path that is known to
# work: a route, a carrier, and the answer of a witness that takes the same route. Where no witness
# is known only ARP is believed, which no IP firewall on either side filters.
# Test: test_silence_counts_only_over_a_proven_path
SILENCE_RULES = (
    Rule("no usable route leads to it, or the route or the carrier changed during the look",
         Finding.UNKNOWN, tell_no_route),
    Rule("something on this side is in the way: a packet that could not be sent or found no room "
         "here, no permission, an ICMP error of a router (but \"host unreachable\"), answers that "
         "would come over another network of the node", Finding.UNKNOWN, tell_obstacle),
    Rule("its packets may take another way: several next hops, a rule by mark, IPsec, an own "
         "address of another network", Finding.UNKNOWN, tell_odd_way),
    Rule("a port of this machine's own bridge forwards nothing, and no witness answers on the port "
         "that the node was last heard on", Finding.UNKNOWN, tell_dead_port),
    Rule("no carrier, on a network in `direct_networks`: the other node feeds it", Finding.DEAD,
         tell_dead_cable),
    Rule("no carrier", Finding.UNKNOWN, tell_no_carrier),
    Rule("a witness answers on the same route to the end of the look", Finding.DEAD, tell_witness),
    Rule("there are witnesses, and none of them does", Finding.UNKNOWN, tell_silent_witnesses),
    Rule("there is no witness, and it is attached by IPv4 and a wire, and was asked by ARP",
         Finding.DEAD, tell_carrier_alone),
    Rule("there is no witness, and it is anything else: behind a router, IPv6, a bridge, a tunnel",
         Finding.UNKNOWN, tell_need_of_witness))


NEVER_SEEN = "it was never seen alive from this machine"


def add_record(reason, sight):
    """Return the reason for a death with a remark where the address was never seen alive."""
    return "; ".join(filter(None, (reason, "" if sight.was_alive else NEVER_SEEN)))


def tell_no_record(sight):
    if sight.asks_neighbour or sight.was_alive:
        return None
    return NEVER_SEEN + ": is it the node's, and does it answer echo? (fence_check -o status " \
                        "while the node is up)"


# SAFETY: a mistyped address, or a node that answers no echo, is silent for ever. Of one that is
# asked by ARP or neighbour discovery too, the record is a remark only.
# Test: test_a_routed_address_that_was_never_seen_alive_cannot_be_dead
RECORD_RULES = (
    Rule("it would be dead, is asked by echo alone, and was never seen alive from this machine",
         Finding.UNKNOWN, tell_no_record),)


def choose_witnesses(sight, witnesses):
    """Return the Sights that have to prove the path to an address, if there are any."""
    # SAFETY: who names a witness says that less will not do. The fence device counts in its own
    # network alone, also where it is named for another one.
    # Test: test_nothing_stands_in_for_a_witness_that_is_named
    devices = [device for device in witnesses.devices
               if device.route and device.shares_route(sight)]
    named = [witness for witness in witnesses.named
             if witness in devices or witness not in witnesses.devices]
    return named or [device for device in devices if not device.is_forwarded]


def is_end_of_cable(route):
    """Return whether it is the other end alone that feeds the carrier of this route's link."""
    # A bridge, a bond or a macvlan also loses it when its own port is switched off here.
    return not route.gateway and route.link_kind in CABLE_LINKS


def doubt_about_witnesses(sight, witnesses):
    """Return "" when one of them proves the path, else what is wrong with each."""
    # One is enough: a witness may be down for reasons of its own.
    doubts = [doubt_about_witness(sight, witness) for witness in witnesses]
    return "" if "" in doubts else "; ".join(doubts)


def doubt_about_witness(sight, witness):
    """Return why one witness does not prove the path to an address, or "" when it does."""
    if not witness.route:
        return "there is no path to witness %s: %s" % (witness.address, witness.obstacle)
    if not witness.shares_route(sight):
        return "witness %s is not on the same route" % witness.address
    # SAFETY: a router answers for each of its addresses, whatever has become of the wire there.
    # Test: test_a_router_is_no_witness_of_what_is_behind_it
    if sight.route.gateway and witness.hops <= max(1, sight.routers):
        return ("witness %s is a router on the way to it, or no farther away than one, and says "
                "nothing about the wire behind it: name an address there" % witness.address)
    # SAFETY: a router that answers ARP for others may do so on this side of the broken wire.
    # Test: test_a_witness_behind_proxy_arp_is_none
    if witness.is_forwarded:
        return ("witness %s is behind a router that answers ARP for it: name an address that is "
                "attached" % witness.address)
    # SAFETY: one that answered earlier has seen nothing of a path that broke since.
    # Test: test_a_witness_that_falls_silent_in_the_look_proves_nothing
    if not witness.answered_last:
        return "witness %s is silent too, so the path to it may be broken" % witness.address
    return ""


def doubt_about_macs(sight, witnesses):
    """Return why a witness seems to be the target itself, or "" when none does.

    A second address of the node answers as long as the node lives, so this is seen only then.
    """
    for witness in witnesses.named:
        if witness.macs & sight.macs:
            return ("witness %s has the MAC address of the node itself: name another one"
                    % witness.address)
    return ""


def add_doubts_of_way_back(sights):
    """Give each address of one target that is behind a router the doubt about its answers' way.

    The target answers to our own address. If it is itself in the network of that, its answers come
    over the cable there, and that one cable silences both networks.
    """
    attached = {other.route.source: other.address for other in sights
                if other.route and not other.route.gateway}
    for sight in sights:
        if sight.route and sight.route.gateway and sight.route.source in attached:
            sight.add_obstacle("its answers would come by way of %s, so its silence says no more "
                               "than the silence there" % attached[sight.route.source])


def need_of_witness(sight):
    """Return why route and carrier are not enough to believe this silence, or "" when they are."""
    route = sight.route
    if route.is_port:
        return "%s is a port of another link, which may have no use for its packets" % (
            route.interface)
    # What decides is the lowest link, the one whose carrier it is.
    if route.link_kind.rpartition(" on ")[2] not in WIRED_LINKS:
        return "the carrier of %s (%s) does not show a cut cable" % (
            route.interface, route.link_kind)
    if sight.uses_arp:
        return ""
    if route.gateway:
        return "the address is behind a router"
    if sight.family == socket.AF_INET6:
        return "IPv6 has no ARP, and firewalls can filter its neighbour discovery"
    if not route.mac:
        return "%s is a link without ARP" % route.interface
    return "arp_check is 0"


# What to do first, by the evidence that stands against death.
FIRST_LOOKS = {
    (POWER, Finding.ALIVE): "the outlet still has power: did the power agent in this fencing level "
                            "switch the right outlet?",
    (POWER, Finding.UNKNOWN): "check the fence device and this machine's connection to it",
    (NETWORK, Finding.ALIVE): "the node is still running: is it the right outlet, or is there a "
                              "UPS or a second power supply?",
    (NETWORK, Finding.UNKNOWN): "check this machine's link, route and firewall, and the witness"}


def render_evidence(item):
    remark = " (%s)" % item.reason if item.reason else ""
    return "%s: %s%s" % (item.subject, item.seen, remark)


def render_blockers(verdict):
    """Return which evidence stands against death, and what to do first."""
    if not verdict.blockers:
        return "the evidence is incomplete"
    first = verdict.blockers[0]
    reasons = [render_evidence(item) for item in verdict.blockers]
    return "; ".join(reasons + [FIRST_LOOKS[first.source, first.finding]])


# SECTION: DIALECTS --------------------------------------------------------------------------------
# A dialect is what a family of plugs speaks: one row each. Choices, ports, keys of the cluster
# file, help and errors are derived from the rows; a family's facts and code are in its room.

# name: as device= and the rooms of part 3 call it. title: the object of a sentence. method: its
# word in the cluster file and in fence_method. agent: who speaks it; "" where the cluster file
# names the agent. port: that the device listens on; 0 where an installed agent knows it. urls: a
# pattern of the paths that only it has (device=auto takes them from device=url: make it narrow),
# and url_form how such a path is shown. keys: of the cluster file, beside
# those that every method takes; required: of all keys (password_script serves as a password).
# fixed: parameters that its agent gets each time. comes_back: whether a node is powered on again
# after it was fenced, unless power_on tells. meter_rest: the seconds after a command in which a
# meter of its may show 0 W, whatever flows; most have none. longest_password: in bytes, 0 for any.
# is_inside: the device is a part of the node, and has no power when that has none.
Dialect = namedtuple(
    "Dialect",
    "name title method agent port urls url_form keys required fixed comes_back meter_rest "
    "longest_password is_inside")
Dialect.__new__.__defaults__ = (0, 0, False)

DIALECTS = {row.name: row for row in (
    Dialect(
        name="ipmi", title="IPMI", method="ipmi", agent="fence_ipmilan", port=0,
        urls="", url_form="", keys=(), required=("ip", "user", "password"),
        fixed={"lanplus": "1"}, comes_back=True,
        longest_password=20, is_inside=True),  # IPMI 2.0, 22.30
    Dialect(
        name="kasa", title="TP-Link Kasa and Tapo plugs and strips", method="kasa",
        agent="fence_kasa", port=9999, urls="", url_form="",
        keys=("mac", "outlet", "power_meter", "protocol"), required=("ip",), fixed={},
        comes_back=False),
    Dialect(
        name="tasmota", title="Tasmota", method="tasmota", agent="fence_http", port=HTTP_PORT,
        urls=r"/cm\?(.*&)?cmnd=", url_form="/cm?cmnd=",
        keys=("mac", "outlet", "power_meter", "ssl", "ssl_insecure"), required=("ip",),
        fixed={"device": "tasmota"}, comes_back=False),
    Dialect(
        name="esphome", title="ESPHome", method="esphome", agent="fence_http", port=HTTP_PORT,
        urls="/switch/", url_form="/switch/",
        keys=("mac", "outlet", "switch_name", "power_meter", "ssl", "ssl_insecure"),
        required=("ip",), fixed={"device": "esphome"}, comes_back=False),
    # Without urls: who has written URLs has written what proves a state, too, and it counts on.
    Dialect(
        name="shelly", title="Shelly", method="shelly", agent="fence_http", port=HTTP_PORT,
        urls="", url_form="", keys=("mac", "outlet", "power_meter", "ssl", "ssl_insecure"),
        required=("ip",), fixed={"device": "shelly"}, comes_back=False, meter_rest=46),
    Dialect(
        name="url", title="any other HTTP power switch", method="http", agent="fence_http",
        port=HTTP_PORT, urls="", url_form="",
        keys=("power_on_url", "power_off_url", "status_url", "status_on_regex",
              "status_off_regex", "status_member", "status_on_value", "status_off_value",
              "watts_member", "http_method", "power_on_method", "power_off_method",
              "status_method", "power_on_body", "power_off_body", "content_type", "headers",
              "power_meter", "ssl", "ssl_insecure"),
        required=("ip", "power_off_url", "status_url", "status_on_regex", "status_off_regex"),
        fixed={}, comes_back=False),
    Dialect(
        name="agent", title="an installed fence agent", method="agent", agent="", port=0,
        urls="", url_form="", keys=("agent", "outlet"), required=("agent",),
        fixed={}, comes_back=True))}
DIALECTS_BY_METHOD = {row.method: row for row in DIALECTS.values()}
BY_URL = "http"  # the method that tells the dialect by the URLs, unless device names it
# The protocols of TP-Link's plugs, with their ports.
KASA_PROTOCOLS = {"legacy": DIALECTS["kasa"].port, "klap": HTTP_PORT}
AGENT_NAME = "fence_[A-Za-z0-9_-]+"
FOREIGN_AGENT = r"(/\S*/)?" + AGENT_NAME  # how fence_method names an installed agent


def dialects_of(agent):
    """Return the rows that one of our own agents speaks."""
    return [row for row in DIALECTS.values() if row.agent == agent]


def list_titles(agent):
    """Return the titles of an agent's dialects as a part of a sentence."""
    *most, last = [row.title for row in dialects_of(agent)]
    return " and ".join([", ".join(most), last] if most else [last])


def choose_dialect(method, device, urls):
    """Return the row that a method, the parameter device and the paths of the URLs mean.

    Raises UsageError for a method that does not exist and for URLs of more than one family.
    """
    if method == BY_URL:
        return DIALECTS[device if device != "auto" else tell_dialect_by_urls(urls)]
    if method in list_methods():
        return DIALECTS_BY_METHOD[method]
    if re.fullmatch(FOREIGN_AGENT, method):
        return DIALECTS["agent"]
    raise UsageError("fence_method: %s is none of %s, or the name of an installed agent (fence_...)"
                     % (quote(method), ", ".join(list_methods())))


def list_methods():
    """Return the words that fence_method knows; for any other agent it takes the agent's name."""
    return [row.method for row in DIALECTS.values() if row.agent]


def tell_dialect_by_urls(urls):
    """Return the name of the dialect that all these paths belong to."""
    found = sorted({tell_dialect_by_url(path) for path in urls})
    if not found:
        known = " or ".join("device=" + row.name for row in dialects_of("fence_http")
                            if row.method != BY_URL)
        raise UsageError("nothing says what the device is: set %s, or power_on_url, power_off_url "
                         "and status_url" % known)
    if len(found) > 1:
        raise UsageError("the URLs belong to different kinds of device (%s): set device, or mend "
                         "the URLs" % ", ".join(found))
    return found[0]


def tell_dialect_by_url(path):
    for row in DIALECTS.values():
        if row.urls and re.match(row.urls, path):
            return row.name
    return DIALECTS_BY_METHOD[BY_URL].name


def parse_page(path):
    """Return (path, set of its query's parts) of a URL as the most lenient web server takes it."""
    page, _, query = decode_fully(path.partition("#")[0]).partition("?")
    steps = []
    for step in page.partition("#")[0].split("/"):
        if step == "..":
            del steps[-1:]
        elif step not in ("", "."):
            steps.append(step)
    return steps, set(re.split("[&;]", query.partition("#")[0])) - {""}


def check_pages(paths, bodies, status_method):
    """Raise UsageError unless what reads, what switches on and what switches off are different.

    paths: {URL parameter: path}; bodies: {URL parameter: body} of those that have one.
    """
    # SAFETY: a web server that knows no parameters of a page ignores them: reading a switching page
    # with more of them would switch. Test: test_no_spelling_of_a_switching_url_is_read
    status_path, status_parts = parse_page(paths["status_url"])
    switching = [parse_page(path) + (bodies.get(name, ""),)
                 for name, path in paths.items() if path and name != "status_url"]
    for path, parts, body in switching:
        # What has to have a body is not done by a question that can have none.
        needs_body = body and status_method == "GET"
        is_read = not needs_body and path == status_path and parts <= status_parts
        if is_read or switching.count((path, parts, body)) > 1:
            raise UsageError("power_on_url, power_off_url and status_url must differ, or the "
                             "bodies of the first two: a URL that toggles, or switches when it is "
                             "read, proves nothing")


# SECTION: PARAMETERS ------------------------------------------------------------------------------
# Every parameter is one row: stdin names, options, defaults, metadata and help follow. All settings
# have one shape: every parameter of every agent, typed, with its default where it was not given.

STRING, INTEGER, SECONDS, BOOLEAN = "string", "integer", "second", "boolean"
SELECT, MAC, URL, PATTERN = "select", "mac", "url", "pattern"
HEADERS, CONTENT_TYPE, MEMBER, WORD = "headers", "content type", "member", "word"

Param = namedtuple("Param", "name kind letter default aliases secret choices help")


def param(name, kind, help, letter="", default="", aliases="", secret=False, choices=()):
    return Param(name=name, kind=kind, letter=letter, default=default,
                 aliases=tuple(aliases.split()), secret=secret, choices=tuple(choices), help=help)


# The parameters, by the agents that take them.
DEVICE_PARAMS = (  # fence_kasa and fence_http
    param("ip", STRING, "Address or name of the device", letter="a", aliases="ipaddr"),
    param("ipport", INTEGER, "TCP port of the device", letter="u"),
    param("username", STRING, "User name, if the device asks for one", letter="l", aliases="login"),
    param("inet4_only", BOOLEAN, "Use IPv4 only", letter="4"),
    param("inet6_only", BOOLEAN, "Use IPv6 only", letter="6"))
HTTP_METHODS = ("GET", "POST", "PUT")
HTTP_PARAMS = (  # fence_http
    param("ssl", BOOLEAN, "Use TLS, and verify the certificate (default port: 443)", letter="z",
          aliases="ssl_secure"),
    param("ssl_insecure", BOOLEAN, "Use TLS with any certificate (default port: 443)"),
    param("device", SELECT, "What the device speaks; auto tells it by the URLs (%s; any other URL "
          "is taken as it stands)" % ", ".join("%s: %s..." % (row.name, row.url_form)
                                               for row in DIALECTS.values() if row.urls),
          default="auto", choices=["auto"] + [row.name for row in dialects_of("fence_http")]),
    param("power_on_url", URL, "Path (or full URL on the same host) that switches on"),
    param("power_off_url", URL, "Path (or full URL on the same host) that switches off"),
    param("http_method", SELECT, "Method of the two switching URLs (for device=url); auto is GET, "
          "and POST where one of them has a body", default="auto",
          choices=("auto",) + HTTP_METHODS),
    param("power_on_method", SELECT, "Method of the URL that switches on, where http_method is not "
          "that of both", choices=HTTP_METHODS),
    param("power_off_method", SELECT, "Method of the URL that switches off, where http_method is "
          "not that of both", choices=HTTP_METHODS),
    param("power_on_body", STRING, "Body of the request that switches on (for device=url)"),
    param("power_off_body", STRING, "Body of the request that switches off (for device=url)"),
    param("content_type", CONTENT_TYPE, "Content type of the bodies; without it application/json "
          "for a body that begins with { or [, else that of a form"))
STATUS_PARAMS = (  # fence_http and fence_check
    param("switch_name", STRING, "Name or object id of the ESPHome switch: same as plug"),
    param("status_url", URL, "Path (or full URL on the same host) that tells the power state"),
    param("status_method", SELECT, "Method of status_url (for device=url); a POST has no body",
          default="GET", choices=("GET", "POST")),
    param("status_on_regex", PATTERN, "Regex that only a status of ON matches (for device=url)"),
    param("status_off_regex", PATTERN, "Regex that only a status of OFF matches (for device=url)"),
    param("status_member", MEMBER, "Member of a JSON status that tells the power state, as "
          "$.relays[0].on; instead of the two expressions (for device=url)"),
    param("status_on_value", WORD, "Value of status_member that means ON: true, 1, \"on\""),
    param("status_off_value", WORD, "Value of status_member that means OFF: false, 0, \"off\""),
    param("watts_member", MEMBER, "Member of a JSON status that is the load in watts (for "
          "device=url)"),
    param("headers", HEADERS, "Own headers of all requests, Name: value|Name: value; {password} in "
          "a value stands for the password (for device=url)", secret=True))
KASA_PARAMS = (  # fence_kasa and fence_check
    param("protocol", SELECT, "What a TP-Link plug speaks: legacy (port 9999), or klap (port 80, "
          "with username and password of the TP-Link account); auto takes what answers, or by "
          "ipport klap for 80, and legacy for any but 80 and 9999", default="auto",
          choices=("auto",) + tuple(KASA_PROTOCOLS)),)
CHECK_PARAMS = (  # fence_check
    param("fence_method", STRING, "What the fence device speaks: %s, or the name of any installed "
          "fence agent" % ", ".join(list_methods())),
    param("fence_ip", STRING, "Address or name of the fence device"),
    param("fence_ipport", INTEGER, "Port of the fence device"),
    param("fence_user", STRING, "User name at the fence device"),
    param("fence_pass", STRING, "Password at the fence device; as password or password_script "
          "Pacemaker hides it in its own outputs", secret=True),
    param("fence_plug", STRING, "Outlet to be read, or several (1,5), if the node's name does not "
          "mean it"),
    param("fence_options", STRING, "More parameters of the device: name=value,...", secret=True),
    param("target_mgmt_ip", STRING, "The node's address in the management network"),
    param("target_storage_ip", STRING, "The node's address in the storage network"),
    param("target_client_ips", STRING, "The node's addresses in client networks: address,...",
          aliases="target_client_ip"),
    param("target_ips", STRING, "The node's addresses in any other networks: name=address,..."),
    param("witness_ips", STRING, "Addresses that must answer for silence in that network to "
          "count: name=address,... (names: mgmt, storage, client and those of target_ips)"),
    param("direct_networks", STRING, "Names of networks that are one cable from node to node: a "
          "lost carrier is the other node's silence there"),
    param("verify_wait", SECONDS, "Seconds that off gives the node to go down", default="10"),
    param("early_exit", SECONDS, "Seconds of proof (3 or more) after which off ends early; 0: no",
          default="0"),
    param("ping_count", INTEGER, "Questions to each address in one look", default="60"),
    param("ping_timeout", SECONDS, "Seconds of one look", default="1.5"),
    param("arp_check", BOOLEAN, "Ask by ARP and neighbour discovery too: it shows a node that "
          "drops ICMP", default="1"),
    param("config", STRING, "Cluster file that holds the parameters of the node"))
COMMON_PARAMS = (  # all agents
    param("action", STRING, "Fencing action", letter="o", aliases="option"),
    param("device_mac", MAC, "MAC address of the device; any other device at this address, or one "
          "that cannot tell its MAC, is refused before anything is switched"),
    param("plug", STRING, "Outlet to switch: the number printed on the case, its alias or its id. "
          "The fenced node's name is the cluster's label, and no outlet unless one carries it; of "
          "several outlets exactly one must match. Several that feed one node: 1,5. For "
          "fence_check: the node's name", letter="n", aliases="port"),
    param("password", STRING, "Password, where the device asks for one", letter="p",
          aliases="passwd", secret=True),
    param("password_script", STRING, "Program that prints the password", letter="S",
          aliases="passwd_script"),
    param("power_meter", SELECT, "What a power meter in the device says about an outlet that "
          "reports OFF: auto (a load fails the action, no reading does not), ignore, or require "
          "(no reading fails it too)", default="auto", choices=("auto", "ignore", "require")),
    param("delay", SECONDS, "Seconds to wait before off and reboot", default="0"),
    param("login_timeout", SECONDS, "Seconds to wait for a connection", default="5"),
    param("shell_timeout", SECONDS, "Seconds to wait for the answer to one request", default="10"),
    param("power_timeout", SECONDS, "Seconds the device has to confirm a new state", default="30"),
    param("power_wait", SECONDS, "Seconds between a command and the first look", default="0"),
    param("stonith_status_sleep", SECONDS, "Seconds between two looks at the power state, and "
          "before a failed request is repeated", default="1"),
    param("disable_timeout", STRING, "Accepted and ignored: the agent's own limits always hold"),
    param("retry_on", INTEGER, "How often a failed power-on is repeated", default="1"),
    param("separator", STRING, "Separator of the fields that list prints", letter="C", default=","),
    param("quiet", BOOLEAN, "Write nothing to stderr", letter="q"),
    param("verbose", BOOLEAN, "Tell each step on stderr; twice: also each message", letter="v"),
    param("verbose_level", INTEGER, "0 silent, 1 steps, 2 messages too", default="0"),
    param("debug_file", STRING, "File to which each step is appended", letter="D", aliases="debug"),
    param("version", BOOLEAN, "Print the version and exit", letter="V"),
    param("help", BOOLEAN, "Print this help and exit", letter="h"),
    param("nodename", STRING, "Name of the node to be fenced; Pacemaker sets it"))
FOREIGN_PARAMS = (  # fence_http under the names of other agents; no setting comes of them
    param("notls", BOOLEAN, "Accepted and ignored: TLS is negotiated", letter="t"),
    param("gnutlscli_path", STRING, "Accepted and ignored: no other program is asked"),
    param("plug_separator", STRING, "Accepted and ignored", default=","),
    param("web", BOOLEAN, "Accepted and ignored"))
PARAMS = (DEVICE_PARAMS + KASA_PARAMS + HTTP_PARAMS + STATUS_PARAMS + CHECK_PARAMS
          + COMMON_PARAMS)
PARAMS_BY_NAME = {row.name: row for row in PARAMS}

# How a kind of parameter is read from text, and its name in the metadata.
PARSERS = {STRING: str, SELECT: str, INTEGER: parse_whole_number, SECONDS: parse_seconds,
           BOOLEAN: parse_boolean, MAC: parse_mac, URL: parse_url, PATTERN: parse_pattern,
           HEADERS: parse_headers, CONTENT_TYPE: parse_content_type, MEMBER: parse_member_path,
           WORD: parse_json_word}
CONTENT_TYPES = dict.fromkeys((MAC, URL, PATTERN, HEADERS, CONTENT_TYPE, MEMBER, WORD), STRING)
# The URLs of a device, and the state that each one leads to.
URL_PARAMS = {"power_on_url": PowerState.ON, "power_off_url": PowerState.OFF, "status_url": None}
TIME_LIMITS = ("login_timeout", "shell_timeout", "power_timeout")


def parse_stdin(text):
    """Return [(name, value)] from lines "name=value"; values stay raw, their blanks included."""
    # Quotes are part of a value: Pacemaker adds none, and status_on_regex may begin with one.
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:  # not shown: it may be the second line of a password
            raise UsageError("line %d on stdin is not name=value" % number)
        pairs.append((name.strip().replace("-", "_"), value))
    if len(pairs) > MAX_PARAMETERS:
        raise UsageError("more than %d parameters on stdin" % MAX_PARAMETERS)
    return pairs


def parse_argv(arguments, params):
    """Return [(name, value)] from options, by the rules of getopt as all fence agents have them."""
    import getopt
    rows = {"--" + spelling.replace("_", "-"): row for row in params
            for spelling in (row.name,) + row.aliases}
    longs = [name[2:] + ("" if row.kind == BOOLEAN else "=") for name, row in rows.items()]
    letters = "".join(row.letter + ("" if row.kind == BOOLEAN else ":")
                      for row in params if row.letter)
    rows.update({"-" + row.letter: row for row in params if row.letter})
    try:
        options, words = getopt.gnu_getopt(arguments, letters, longs)
    except getopt.GetoptError as error:
        raise UsageError("%s (see --help)" % error) from None
    if words:
        # Not shown: it may be the second word of a password.
        position = len(arguments) - len(words) + 1
        raise UsageError("argument %d is no option (see --help)" % position)
    pairs = [(rows[option].name, "1" if rows[option].kind == BOOLEAN else value)
             for option, value in options]
    count = pairs.count(("verbose", "1"))  # -v -v is verbose_level=2
    return pairs + [("verbose_level", str(count))] if count > 1 else pairs


def collect_values(pairs, params):
    """Return ({name: value}, [unknown names]); empty values count as not given."""
    # A parameter given twice with two values is a doubt about the device or the target.
    canonical = {spelling: row.name for row in params for spelling in (row.name,) + row.aliases}
    given = {}
    unknown = []
    for spelling, value in pairs:
        if spelling not in canonical:
            unknown.append(spelling)
        elif len(value) > MAX_VALUE_CHARACTERS:
            raise UsageError("%s has more than %d characters" % (spelling, MAX_VALUE_CHARACTERS))
        elif value != "" and value not in given.setdefault(canonical[spelling], []):
            given[canonical[spelling]].append(value)
    if len(given.get("plug", ())) > 1:
        # Pacemaker sends port=NODE beside a configured plug=3: the label yields.
        label = given.get("nodename", [""])[0]
        given["plug"] = [value for value in given["plug"] if value != label]
    for name, found in given.items():
        if len(found) > 1:
            raise UsageError("%s is given twice (an old name counts as the same), with different "
                             "values" % name)
    return {name: found[0] for name, found in given.items()}, unknown


def parse_value(name, parse, text):
    """Return parse(text); a UsageError gets the parameter's name in front."""
    try:
        return parse(text)
    except UsageError as error:
        raise UsageError("%s: %s" % (name, error)) from None


def build_settings(values, defaults):
    """Return the typed settings of one run; raise UsageError that names a bad parameter.

    values: {name: text} that was given. defaults: {name: text} that go before those of the rows.
    """
    settings = types.SimpleNamespace(**{
        row.name: build_setting(row, values.get(row.name, defaults.get(row.name, row.default)))
        for row in PARAMS})
    settings.family = choose_family(settings)
    settings.options = {}  # of an installed agent, see build_check_settings
    settings.first_outlet = 1  # the number of a device's first outlet, see other_agent
    settings.targets, settings.witnesses, settings.direct_keys = [], [], set()  # see take_networks
    check_times(settings)
    take_switch_name(settings)
    if defaults.get("ipport"):
        take_address(settings, values.get("ipport", ""))
    return settings


def build_setting(row, text):
    """Return the value of one parameter; without a text it is "", or False of a yes or no."""
    if not text:
        return False if row.kind == BOOLEAN else ""
    if row.kind == SELECT and text not in row.choices:
        raise UsageError("%s: %s is not %s" % (row.name, quote(text), " or ".join(row.choices)))
    return parse_value(row.name, PARSERS[row.kind], text)


def choose_family(settings):
    """Return the address family that names are looked up in."""
    if settings.inet4_only and settings.inet6_only:
        raise UsageError("inet4_only and inet6_only exclude each other")
    if settings.inet4_only:
        return socket.AF_INET
    return socket.AF_INET6 if settings.inet6_only else socket.AF_UNSPEC


def check_times(settings):
    """Raise UsageError for time limits that no action can work with."""
    for name in TIME_LIMITS:
        if getattr(settings, name) <= 0:
            raise UsageError("%s must be more than 0 seconds" % name)
    if settings.stonith_status_sleep < SHORTEST_PAUSE_SECONDS:
        raise UsageError("stonith_status_sleep must be %s or more: two looks at one moment are one"
                         % render_seconds(SHORTEST_PAUSE_SECONDS))
    # OFF takes two looks, and the second begins only where there is time for its answer.
    needed_s = (settings.power_wait + settings.stonith_status_sleep
                + SHORTEST_EXCHANGE_SECONDS)
    if needed_s >= settings.power_timeout:
        raise UsageError("power_wait and stonith_status_sleep leave no time for a second look "
                         "within power_timeout: make it longer")
    needed_s += find_meter_rest(settings)
    if needed_s >= settings.power_timeout:
        raise UsageError("power_meter=require needs a power_timeout of more than %s here: the "
                         "meter may rest so long after a command" % render_seconds(needed_s))


def find_meter_rest(settings):
    """Return the seconds after a command that a meter which is required may rest."""
    row = DIALECTS.get(settings.device) or DIALECTS_BY_METHOD.get(settings.fence_method)
    return row.meter_rest if row and settings.power_meter == "require" else 0


def take_switch_name(settings):
    """Let switch_name be the plug; two that differ are refused."""
    if not settings.switch_name:
        return
    if settings.plug not in ("", settings.nodename, settings.switch_name):
        raise UsageError("plug %s and switch_name %s name different outlets"
                         % (quote(settings.plug), quote(settings.switch_name)))
    settings.plug = settings.switch_name


def take_address(settings, given_port):
    """Take ip apart where it holds a port too; two ports that differ are refused."""
    if not given_port:
        settings.ipport = HTTPS_PORT if uses_tls(settings) else find_usual_port(settings)
    if settings.ip:
        settings.ip, settings.ipport = split_address(settings.ip, settings.ipport)
    if given_port not in ("", str(settings.ipport)):
        raise UsageError("ip and ipport name different ports, %d and %s: leave one out"
                         % (settings.ipport, quote(given_port)))


def find_usual_port(settings):
    """Return the port that protocol, device or the URLs mean; else the agent's own stays."""
    if settings.protocol in KASA_PROTOCOLS:
        return KASA_PROTOCOLS[settings.protocol]
    if settings.fence_method not in ("", BY_URL):
        return settings.ipport
    names = {settings.device}
    if settings.device == "auto":
        names = {tell_dialect_by_url(path) for path in collect_url_paths(settings).values()}
    return DIALECTS[names.pop()].port if len(names) == 1 else settings.ipport


def uses_tls(settings):
    return settings.ssl or settings.ssl_insecure


def parse_device_url(url, settings):
    """Return the path of a URL parameter; a full URL must lead to the device itself."""
    match = re.fullmatch("(https?)://([^/]+)(/.*)", url)
    if not match:
        return url
    scheme, address, path = match.groups()
    host, port = split_address(address, HTTPS_PORT if scheme == "https" else HTTP_PORT)
    if (host.lower(), port) != (settings.ip.lower(), settings.ipport):
        raise UsageError("it leads to %s, and the device is %s (ip, ipport)" % (
            render_address(host, port), render_address(settings.ip, settings.ipport)))
    if (scheme == "https") != uses_tls(settings):
        raise UsageError("it is a %s URL, which contradicts ssl and ssl_insecure" % scheme)
    return path


def collect_url_paths(settings):
    """Return {URL parameter: path} of those that are given, without looking at their hosts."""
    return {name: strip_host(getattr(settings, name)) for name in URL_PARAMS
            if getattr(settings, name)}


def strip_host(url):
    """Return the path of a URL, or of a path."""
    return re.sub("^https?://[^/]*", "", url)


def take_networks(settings):
    """Turn fence_check's lists into Targets, and refuse those that could prove nothing.

    SAFETY: no targets or a misspelled network would end in silence where there is life.
    Test: test_parameters_that_could_prove_nothing_are_usage_errors
    """
    settings.targets = [
        Target(network.title, parse_value(network.parameter, parse_ip, address))
        for network in NETWORKS
        for address in split_list(getattr(settings, network.parameter))]
    settings.targets += parse_named_addresses("target_ips", settings.target_ips)
    if not settings.targets:
        raise UsageError("no address of the node was given (%s, target_ips): nothing could be "
                         "proven" % ", ".join(network.parameter for network in NETWORKS))
    settings.witnesses = parse_named_addresses("witness_ips", settings.witness_ips)
    settings.direct_keys = {network_key(name) for name in split_list(settings.direct_networks)}
    known = {network_key(target.network) for target in settings.targets}
    named = {network_key(witness.network) for witness in settings.witnesses}
    for name in sorted((named | settings.direct_keys) - known):
        raise UsageError("witness_ips or direct_networks name the network %s, in which the node "
                         "has no address (it is in: %s)" % (quote(name), ", ".join(sorted(known))))
    for name in sorted(named & settings.direct_keys):
        raise UsageError("the network %s is in direct_networks, where nobody but the two nodes can "
                         "answer, and has a witness in witness_ips: leave one out" % quote(name))
    own = {target.address for target in settings.targets}
    for witness in settings.witnesses:
        if witness.address in own:
            raise UsageError("witness_ips: %s is an address of the node itself" % witness.address)


def check_look(settings):
    """Raise UsageError for a look too short for an answer: it would find silence everywhere."""
    if (not FEWEST_ECHOES <= settings.ping_count <= MOST_ECHOES
            or settings.ping_timeout < SHORTEST_LOOK_SECONDS):
        raise UsageError("one look must have %d to %d questions, and take %s or more" % (
            FEWEST_ECHOES, MOST_ECHOES, render_seconds(SHORTEST_LOOK_SECONDS)))
    if 0 < settings.early_exit < SHORTEST_PROOF_SECONDS:
        raise UsageError("early_exit must be 0 or %s or more: a shorter silence proves nothing"
                         % render_seconds(SHORTEST_PROOF_SECONDS))
    # The first look may come so late, and only from then on nobody can have switched unseen.
    wait = max(settings.verify_wait, settings.early_exit) + find_meter_rest(settings)
    if wait + settings.ping_timeout >= settings.power_timeout:
        raise UsageError("verify_wait or early_exit, and one look after it, do not fit into the %s "
                         "of the whole confirmation" % render_seconds(settings.power_timeout))


def parse_named_addresses(parameter, text):
    """Return the Targets of "name=address,..."; an address alone is in the network "Network"."""
    found = []
    for item in split_list(text):
        name, _, address = item.partition("=") if "=" in item else ("Network", "=", item)
        if not name.strip():
            raise UsageError("%s: %s has no name before its =" % (parameter, quote(item)))
        found.append(Target(name.strip(), parse_value(parameter, parse_ip, address.strip())))
    return found


def parse_options(text):
    """Return {name: value} of fence_options, "name=value,..."; raise UsageError."""
    pairs = [item.partition("=") for item in split_list(text)]
    options = {name.strip().replace("-", "_"): value for name, _, value in pairs}
    if not all(name and equals for name, equals, _ in pairs):
        raise UsageError("fence_options is not a list name=value,...")
    if {"action", "option"} & set(options):
        raise UsageError("fence_options names an action, and fence_check only reads the device")
    return options


# What fence_check's parameters are called in the settings of its fence device.
DEVICE_NAMES = {"fence_ip": "ip", "fence_ipport": "ipport", "fence_user": "username",
                "fence_pass": "password", "fence_plug": "plug"}


def build_check_settings(values, defaults):
    """Return the settings of fence_check, which are also those of the device that it reads.

    fence_options add parameters of the device and replace none of fence_check's own. As with the
    power agents, the node's name selects the outlet unless fence_plug names another.
    """
    if len({values[name] for name in ("fence_pass", "password") if name in values}) > 1:
        raise UsageError("fence_pass and password are both given, with different values")
    dialect = DIALECTS_BY_METHOD.get(values.get("fence_method", ""))
    port = dialect.port if dialect else 0
    options = parse_options(values.get("fence_options", ""))
    label = values.get("nodename") or values.get("plug", "")
    for name in DEVICE_NAMES:  # here, under the name that was given
        build_setting(PARAMS_BY_NAME[name], values.get(name, ""))
    own = dict(values, nodename=label, plug=label)
    own.update({name: values[alias] for alias, name in DEVICE_NAMES.items() if alias in values})
    device = collect_device_options(options) if port else {}
    settings = build_settings(dict(device, **own), dict(defaults, ipport=str(port or "")))
    settings.options = options
    check_protocol(settings)
    take_networks(settings)
    check_look(settings)
    return settings


def check_protocol(settings):
    """Raise UsageError for a protocol of TP-Link's plugs beside a method that knows none."""
    method = DIALECTS["kasa"].method
    if settings.protocol != "auto" and settings.fence_method != method:
        raise UsageError("protocol=%s is for fence_method=%s, and fence_method is %s: leave one out"
                         % (settings.protocol, method, quote(settings.fence_method)))


def collect_device_options(options):
    """Return {parameter: text} of fence_options for a device that this file speaks to itself."""
    found, unknown = collect_values(options.items(), PARAMS)
    taken = KASA_PARAMS + STATUS_PARAMS + CHECK_PARAMS + COMMON_PARAMS
    own = {row.name for row in taken} & set(found)
    if unknown:
        raise UsageError("fence_options: there is no parameter %s" % ", ".join(map(quote, unknown)))
    if own:
        raise UsageError("fence_options: %s is a parameter of fence_check itself"
                         % ", ".join(sorted(map(quote, own))))
    return found


# PART 2: MACHINE ==================================================================================

# SECTION: LOG -------------------------------------------------------------------------------------
# The clock, and where words go: stdout, stderr, syslog, the debug file. No secret leaves here.


class Deadline:
    """A moment on the system's clock that no wait, retry or socket may outlast."""

    def __init__(self, clock, seconds):
        self.clock = clock
        self.seconds = seconds
        self.end = clock() + seconds

    def left(self):
        return max(0.0, self.end - self.clock())

    def within(self, seconds):
        """Return the earlier of this deadline and `seconds` from now."""
        return Deadline(self.clock, min(seconds, self.left()))


# Where each kind of words goes. syslog: the priority there, None for not there. verbose_level: from
# which it is told on stderr; 0 is always, unless quiet. All of them go to the debug file.
# SAFETY: a success must be silent on stderr, Pacemaker logs anything there as a warning.
# Test: test_a_success_is_silent_on_stderr
Channel = namedtuple("Channel", "syslog verbose_level mark")
CHANNELS = {
    "tell": Channel(None, 0, ""),               # a reason, to whoever called
    "error": Channel(LOG_ERR, 0, ""),           # a reason that no event records
    "event": Channel(LOG_INFO, 1, ""),          # what was done
    "warn": Channel(LOG_WARNING, 1, "warning: "),
    "debug": Channel(None, 1, ""),              # a step
    "message": Channel(None, 2, "")}            # what went over the wire


class Log:
    """Where one run of the program leaves its words: stdout, stderr, syslog and a debug file."""

    def __init__(self, name):
        self.name = name
        self.secrets = SECRETS
        self.secrets.clear()
        self.verbose_level = 0
        self.quiet = False
        self.debug_file = ""
        self.stderr_patience_s = STDERR_PATIENCE_SECONDS

    clock = staticmethod(time.monotonic)  # it never jumps; time of day is only for people
    sleep = staticmethod(time.sleep)
    now = staticmethod(time.time)

    def deadline(self, seconds):
        return Deadline(self.clock, seconds)

    def write(self, text):
        """Write the answer to stdout as UTF-8, whatever the locale is."""
        data = (redact(text, self.secrets) + "\n").encode("utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(1, data):]
        except OSError as error:
            raise Unreachable("cannot write the answer to stdout: %s" % error.strerror) from error

    def announce(self, text):
        """Write to stdout what the exit code says too; nobody has to read it."""
        # SAFETY: Pacemaker reads the exit code. An outlet that is proven OFF is no failure.
        # Test: test_a_full_stdout_makes_no_failure_of_an_off
        data = (redact(text, self.secrets) + "\n").encode("utf-8", "backslashreplace")
        if not write_at_once(1, data, 0):
            self.warn("stdout took no answer: %s" % text)

    def tell(self, text):
        self._log("tell", text)

    def error(self, text):
        self._log("error", text)

    def event(self, text):
        self._log("event", text)

    def warn(self, text):
        self._log("warn", text)

    def debug(self, text):
        self._log("debug", text)

    def message(self, text):
        self._log("message", text)

    def _log(self, kind, text):
        channel = CHANNELS[kind]
        is_told = self.verbose_level >= channel.verbose_level and not (
            self.quiet and channel.verbose_level == 0)
        if not is_told and channel.syslog is None and not self.debug_file:
            return  # before it is redacted: most steps are told to nobody
        is_foreign = kind == "message"  # and not in quotes
        if is_foreign:
            text = redact_foreign(text) if can_hide(self.secrets) else NOT_SHOWN
        text = channel.mark + one_line(redact(text, self.secrets))
        text = hide_timer_words(text) if is_foreign else text
        line = ("%s: %s\n" % (self.name, text)).encode("utf-8", "backslashreplace")
        if channel.syslog is not None:
            self._write_syslog(channel.syslog, text.encode("utf-8", "backslashreplace"))
        if is_told and not write_at_once(2, line, self.stderr_patience_s):
            self.stderr_patience_s = 0
        if self.debug_file:
            self._append_debug(line)

    def _write_syslog(self, priority, text):
        """Send one line to the log daemon, if it takes it at once."""
        # SAFETY: not through syslog(3), which waits for ever when the daemon hangs.
        # Test: test_a_log_daemon_that_hangs_does_not_hold_up_a_fence
        head = "<%d>%s %s[%d]: " % (LOG_DAEMON | priority, time.strftime("%b %e %H:%M:%S"),
                                    self.name, os.getpid())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handle:
                handle.setblocking(False)
                handle.connect(LOG_SOCKET)
                handle.send(head.encode("ascii") + text)
        except OSError:
            pass  # no daemon, or one that does not read; stderr and exit code say it too

    def _append_debug(self, line):
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ").encode("ascii")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            with open(os.open(os.fsencode(self.debug_file), flags, 0o600), "wb", 0) as handle:
                handle.write(stamp + line)
        except (OSError, ValueError) as error:
            # A log that cannot be written must not keep a node from being fenced.
            self.debug_file = ""
            self.warn("cannot write the debug file: %s" % error)


def write_at_once(descriptor, data, patience_s):
    """Write what a descriptor takes within `patience_s` seconds; return whether that was all."""
    # SAFETY: a reader that went away, or one that never reads, must not stop a fence. The flags of
    # the descriptor stay: others share them.
    # Test: test_a_stderr_that_nobody_reads_does_not_hold_up_a_fence
    import select
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    try:
        while data:
            if not poll.poll(patience_s * 1000):
                return False
            # Where there is room, this much goes in without waiting.
            data = data[os.write(descriptor, data[:select.PIPE_BUF]):]
    except OSError:
        return False
    return True


# SECTION: FILES AND PROGRAMS ----------------------------------------------------------------------
# Files that people name, and programs of this machine.


class FilesAndPrograms:
    """What one run reads, writes and starts on this machine."""

    def read_stdin(self):
        """Return all that stands on stdin; only a person at a terminal may take his time."""
        import select
        limit = self.deadline(STDIN_SECONDS)
        if os.isatty(0):
            limit = None
            write_at_once(2, b"reading name=value lines from the terminal, end with Ctrl-D "
                             b"(--help tells the options)\n", 0)
        data = bytearray()
        while len(data) <= MAX_STDIN_BYTES:
            if limit and not select.select([0], [], [], limit.left())[0]:
                raise UsageError("stdin had not ended after %s: parameters come as lines "
                                 "name=value, and then its end" % render_seconds(STDIN_SECONDS))
            piece = os.read(0, 65536)
            if not piece:
                return data.decode("utf-8", "surrogateescape")
            data += piece
        raise UsageError("more than %d bytes of parameters on stdin" % MAX_STDIN_BYTES)

    def read_file(self, path):
        """Return the bytes of a file that a person named."""
        try:
            with open(path, "rb") as handle:
                data = handle.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise UsageError("cannot read %s: %s" % (path, error.strerror)) from error
        if len(data) > MAX_FILE_BYTES:
            raise UsageError("%s has more than %d bytes" % (path, MAX_FILE_BYTES))
        return data

    def list_directory(self, path):
        try:
            return sorted(os.listdir(path))
        except OSError as error:
            raise UsageError("cannot read %s: %s" % (path, error.strerror)) from error

    def write_script(self, path, text):
        """Put text into a file that only its owner may read and run."""
        self.replace_file(path, text, 0o700)

    def replace_file(self, path, text, mode):
        """Put text into a file; it is there whole or not."""
        import tempfile
        if os.path.exists(path) and not os.path.isfile(path):
            raise FenceError("cannot write %s: it is not a regular file" % path)  # like /dev/null
        path = os.path.realpath(path)  # a link stays one
        try:
            handle, new_path = tempfile.mkstemp(dir=os.path.dirname(path))
            try:
                with open(handle, "wb") as file:
                    file.write(text.encode("utf-8"))
                    os.fchmod(handle, mode)
                    file.flush()
                    os.fsync(handle)
                os.rename(new_path, path)
            except OSError:
                os.unlink(new_path)
                raise
        except OSError as error:
            raise FenceError("cannot write %s: %s" % (path, error.strerror)) from error

    def read_sightings(self):
        """Return {address: when it was last seen alive from here, in seconds of the epoch}."""
        if not os.path.isfile(SEEN_FILE):
            return {}
        try:
            found = json.loads(self.read_file(SEEN_FILE).decode("utf-8"))
            return {address: when for address, when in found.items() if is_number(when)}
        except (UsageError, ValueError, AttributeError, RecursionError):
            return {}  # it cannot be read, or is damaged: then it begins anew

    def write_sightings(self, sightings):
        newest = sorted(sightings.items(), key=lambda item: item[1])[-MOST_SEEN:]
        try:
            os.makedirs(os.path.dirname(SEEN_FILE), 0o700, exist_ok=True)
        except OSError as error:
            raise FenceError("cannot make %s: %s" % (
                os.path.dirname(SEEN_FILE), error.strerror)) from error
        self.replace_file(SEEN_FILE, render_json(dict(newest)), 0o600)

    def run(self, argv, stdin_text, deadline):
        """Run a program and return (exit code, stdout, stderr); raise Unreachable if it hangs."""
        # The environment is a clean one: a child that inherited PCMK_service would run without its
        # time limits. The child stays in our process group, where Pacemaker's SIGKILL reaches it.
        import subprocess
        try:
            child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, env=CHILD_ENVIRONMENT, close_fds=True,
                                     bufsize=0)
        except OSError as error:
            hint = " (is its package installed?)" if error.errno == errno.ENOENT else ""
            raise Unreachable("cannot run %s: %s%s" % (argv[0], error.strerror, hint)) from error
        pipes = (child.stdin, child.stdout, child.stderr)
        try:
            out, err = exchange_with_child(
                pipes, stdin_text.encode("utf-8", "surrogateescape"), deadline)
            child.wait(deadline.left())
        except subprocess.TimeoutExpired as error:
            raise Unreachable("%s did not end within %s"
                              % (argv[0], render_seconds(deadline.seconds))) from error
        except ProtocolError as error:
            raise ProtocolError("%s %s" % (argv[0], error)) from error
        finally:
            # Not until all pipes are closed: a grandchild may hold them for longer than we have.
            child.kill()  # which does nothing to one that has ended
            child.wait()
            for pipe in pipes:
                pipe.close()
        return (child.returncode, out.decode("utf-8", "surrogateescape"),
                err.decode("utf-8", "surrogateescape"))

    def compute(self, function, deadline, what):
        """Return function(), which may be a search by anybody's regular expression, in time.

        SAFETY: some expressions take for ever on some pages, and an action must end with a reason.
        Test: test_an_expression_that_would_take_for_ever_is_told
        """
        import signal

        def stop(number, frame):
            raise ProtocolError("%s takes too long: make it simpler (no repetition within a "
                                "repetition)" % what)

        # Python's own search looks for signals while it works; in the main thread, and nothing of
        # ours computes in another.
        try:
            before = signal.signal(signal.SIGALRM, stop)
        except ValueError:
            return function()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        try:
            signal.setitimer(signal.ITIMER_REAL, max(
                0.001, deadline.within(COMPUTING_SECONDS).left()))
            return function()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class KeptLogins:
    """What one action leaves to the next of its logins: the fields of a challenge, and its count.

    It can be lost at any time, and then the next action begins anew. A device has a few places for
    it, each a file: an action holds one by a lock, which ends with the process at the latest, and
    what goes on at the same time takes the next.
    """

    held_login = None  # the file

    def take_login(self, name):
        """Return what was kept under this name, and keep it no more; None without any."""
        # Two at once would give one answer twice, which a device takes for a guess.
        for number in range(0 if self.held_login else LOGINS_AT_ONCE):
            try:
                self.held_login = open_locked("%s/%s.%d" % (LOGINS_FOLDER, name, number))
                text = self.held_login.read(MAX_LOGIN_BYTES)
                self.held_login.truncate(0)
                return parse_kept_login(text)
            except OSError as error:
                self.debug("this place for a login is not free: %s" % error)
        return None

    def keep_login(self, login):
        """Leave (fields, count) in the place that is held; None for nothing."""
        try:
            with self.held_login as file:
                file.seek(0)
                file.write(json.dumps(login).encode("utf-8"))
        except OSError as error:
            self.debug("a login is not kept: %s" % error)
        self.held_login = None


def open_locked(path):
    """Return a file of our own that nobody else has; raise OSError where that is not so."""
    import fcntl
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    # Whatever else may be at that place, a pipe or a link, is neither waited for nor followed.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    file = open(os.open(path, flags, 0o600), "r+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file


def parse_kept_login(text):
    """Return (fields, count), or None for what is damaged."""
    try:
        fields, count = json.loads(text.decode("utf-8"))
        return {name: str(value) for name, value in fields.items()}, int(count)
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def exchange_with_child(pipes, data, deadline):
    """Write data to a child's stdin, and return what came from its stdout and stderr."""
    import selectors
    import subprocess
    stdin, stdout, stderr = pipes
    came = {stdout: bytearray(), stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for pipe in pipes:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_WRITE if pipe is stdin
                              else selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline.left())
            if not deadline.left():
                raise subprocess.TimeoutExpired("", deadline.seconds)
            for key, _ in ready:
                if key.fileobj is stdin:
                    data = write_to_child(stdin, data)
                    is_done = not data
                else:
                    piece = key.fileobj.read(65536)
                    came[key.fileobj] += piece or b""
                    is_done = piece == b""
                if is_done:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
            if any(len(text) > MAX_FILE_BYTES for text in came.values()):
                raise ProtocolError("prints more than %d bytes" % MAX_FILE_BYTES)
    return bytes(came[stdout]), bytes(came[stderr])


def write_to_child(stdin, data):
    """Return what is left of data after one write; nothing when the child reads no more."""
    try:
        return data[os.write(stdin.fileno(), data[:65536]):]
    except BlockingIOError:
        return data
    except OSError:
        return b""


# SECTION: KERNEL ----------------------------------------------------------------------------------
# What the kernel says about routes and links, one question over netlink at a time.
# Source: linux/rtnetlink.h, linux/if_link.h, linux/fib_rules.h, linux/xfrm.h; read 2026-11. Seen:
# Linux 6.18.

# The numbers of ICMP in one family. request, reply: types of an echo. errors: the types that quote
# the packet they are about. exceeded: of these, the type of a router that takes it no farther.
# silence: the (type, code) of "host unreachable", nobody is there.
# others: what is listened to besides, a neighbour's advertisement. hops: (level, type) of the
# option that limits a packet's way.
IcmpNumbers = namedtuple(
    "IcmpNumbers", "protocol request reply errors exceeded silence others hops")
ICMP = {socket.AF_INET: IcmpNumbers(protocol=socket.IPPROTO_ICMP, request=8, reply=0,
                                    errors=(3, 11), exceeded=11, silence=(3, 1), others=(),
                                    hops=(socket.IPPROTO_IP, socket.IP_TTL)),
        socket.AF_INET6: IcmpNumbers(protocol=socket.IPPROTO_ICMPV6, request=128, reply=129,
                                     errors=(1, 3), exceeded=3, silence=(1, 3), others=(136,),
                                     hops=(socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT))}

# What the kernel is asked about routes and links: messages, and attributes of the answers.
GET_LINK, GET_ADDRESS, GET_ROUTE, GET_NEIGHBOUR, GET_RULE, GET_POLICY = 18, 22, 26, 30, 34, 21
NETLINK_ERROR, NETLINK_DONE = 2, 3
REQUEST, DUMP = 1, 0x300
NETLINK_ROUTE, NETLINK_XFRM = 0, 6
KERNEL_PATIENCE_SECONDS = 1
LINK_BODY = "BxHiII"       # family, type, index, flags, changed flags
ROUTE_BODY = "BBBBBBBBI"   # family, lengths of target and source, ..., type of route, flags
ADDRESS_BODY = "BBBBI"     # family, bits of the network, flags, scope, index of the link
ADDRESS_PEER, ADDRESS_LOCAL = 1, 2  # the first is the other end, or the same as the second
LINK_MAC, LINK_NAME, LINK_BELOW, LINK_MASTER, LINK_INFO = 1, 3, 5, 10, 18
LINK_CHANGES, LINK_ELSEWHERE = 35, 37
ROUTE_TARGET, ROUTE_INTERFACE, ROUTE_GATEWAY, ROUTE_SOURCE, ROUTE_NEXT_HOPS = 1, 4, 5, 7, 9
ROUTE_MARK, ROUTE_VIA, ROUTE_PROTOCOL, ROUTE_GROUP = 16, 18, 27, 30
ROUTE_BITS = "bits"        # of the network that a route is for: not an attribute, but a field
AS_IN_TABLE = 0x2000       # flag: the route as it was entered, and not the way of one packet
RULE_MARK = 10
NEIGHBOUR_BODY = "BxxxiHBB"  # family, index of the link, state, flags, type
NEIGHBOUR_ADDRESS, NEIGHBOUR_MAC, NEIGHBOUR_MASTER = 1, 2, 9
# An IPsec policy: selector (target, source, ports, family, bits, protocol), ..., direction.
POLICY_BODY = "16s16sHHHHHBBBxxxiI64x32xIIB3x"
POLICY_OUT, POLICY_PRIORITY, POLICY_TEMPLATE = 1, 12, 5
BRIDGE_FAMILY, PORT_FACTS, PORT_STATE, PORT_FORWARDS = 7, 12, 1, 3
BOND_FACTS, BOND_MIIMON, BOND_ARP_INTERVAL = 2, 3, 7
# Types of route, and why one of them leads to no other machine; "" for the one that does.
ROUTE_TYPES = {1: "",
               2: "it is this machine's own address; is the check running on the target itself?",
               3: "it is a broadcast address, not a node's",
               5: "it is a multicast address, not a node's"}
ETHERNET = 1
STACKED_LINKS = ("vlan", "macvlan", "ipvlan")  # have the carrier of the link that they stand on
IFF_RUNNING, IFF_NOARP, IFF_LOWER_UP = 0x40, 0x80, 0x10000
# Errors for what a kernel was built without, or tells root alone.
UNKNOWN_TO_KERNEL = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL, errno.EPERM)


def explain_os_error(error):
    """Return what the kernel says went wrong with a packet, a route or a link."""
    # SAFETY: "Connection timed out", its words for ETIMEDOUT, are those by which Pacemaker knows
    # its own timer. Test: test_what_the_kernel_says_never_sounds_like_pacemakers_timer
    return hide_timer_words(one_line(error.strerror or str(error)))


def parse_netlink(data, body_format):
    """Return (fields, {attribute: bytes}) of an answer; raise OSError with the kernel's error."""
    length, kind = struct.unpack_from("IH", data)
    if kind == NETLINK_ERROR:
        code = -struct.unpack_from("i", data, 16)[0]
        raise OSError(code, os.strerror(code))
    body_bytes = struct.calcsize(body_format)
    return (struct.unpack_from(body_format, data, 16),
            parse_attributes(data[16 + (body_bytes + 3) // 4 * 4:length]))


def parse_attributes(data):
    """Return {attribute: bytes} of a row of them."""
    attributes = {}
    position = 0
    while position + 4 <= len(data):
        size, name = struct.unpack_from("HH", data, position)
        attributes[name & 0x3FFF] = data[position + 4:position + size]
        position += max(4, (size + 3) & ~3)
    return attributes


def parse_link_kind(info):
    """Return what the kernel calls a kind of virtual link, or "" for a network card."""
    word = re.match(b"(?s)..\\x01\\0([a-z0-9_-]+)\0", info)  # its first attribute, text
    return word.group(1).decode("ascii") if word else ""


def is_watched_bond(facts):
    """Return whether a bond looks at its links: else its carrier stays when they are gone."""
    found = parse_attributes(facts)
    return any(any(found.get(name, b"")) for name in (BOND_MIIMON, BOND_ARP_INTERVAL))


def _ask_route(family, target, mark=0, flags=0):
    """Return the attributes of the kernel's route for an echo; raise Unreachable without one."""
    question = struct.pack(ROUTE_BODY, family, len(target) * 8, 0, 0, 0, 0, 0, 0, flags)
    question += struct.pack("HH", 4 + len(target), ROUTE_TARGET) + target
    question += struct.pack("HHBxxx", 5, ROUTE_PROTOCOL, ICMP[family].protocol)
    question += struct.pack("HHI", 8, ROUTE_MARK, mark) if mark else b""
    fields, found = _ask_kernel(GET_ROUTE, ROUTE_BODY, question)
    found[ROUTE_BITS] = fields[1]
    doubt = ROUTE_TYPES.get(fields[7], "the kernel's route to it is of type %d" % fields[7])
    if doubt:
        raise Unreachable(doubt)
    if ROUTE_INTERFACE not in found and not flags:
        raise Unreachable("the kernel's route to it names no interface")
    return found


def _ask_link(index):
    """Return (kind of hardware, flags, attributes) of a link."""
    question = struct.pack(LINK_BODY, 0, 0, index, 0, 0)
    fields, facts = _ask_kernel(GET_LINK, LINK_BODY, question)
    return fields[1], fields[3], facts


def _find_link_kind(facts):
    """Return the kind of a link, and of all that lends it its carrier: "vlan on bond"."""
    info = facts.get(LINK_INFO, b"")
    kind = parse_link_kind(info)
    if kind == "bond" and not is_watched_bond(parse_attributes(info).get(BOND_FACTS, b"")):
        return "bond without miimon"
    # What stands on a link of another namespace (a container's) cannot be asked further.
    if kind not in STACKED_LINKS or LINK_BELOW not in facts or LINK_ELSEWHERE in facts:
        return kind
    _, _, facts_below = _ask_link(struct.unpack("i", facts[LINK_BELOW])[0])
    return "%s on %s" % (kind, _find_link_kind(facts_below))


def _find_way(family, target, mark):
    """Return (interface, gateway, source) of the way that an echo with this mark takes."""
    found = _ask_route(family, target, mark)
    return (found[ROUTE_INTERFACE], found.get(ROUTE_GATEWAY, found.get(ROUTE_VIA, b"")),
            found.get(ROUTE_SOURCE, bytes(len(target))))


def _find_odd_way(family, target, index, way):
    """Return what makes it uncertain that an echo takes this way and is answered on it, or ""."""
    table = _ask_route(family, target, flags=AS_IN_TABLE)
    # A nexthop object (FRR makes one for every route) that is no group is told with its interface.
    is_group = ROUTE_GROUP in table and ROUTE_INTERFACE not in table
    if ROUTE_NEXT_HOPS in table or is_group:
        return "the route to it has several next hops"
    marks = {struct.unpack("I", facts[RULE_MARK])[0] for fields, facts in _list(
        GET_RULE, ROUTE_BODY, family) if RULE_MARK in facts}
    for mark in sorted(marks - {0}):
        if _find_way(family, target, mark) != way:
            return "a rule gives packets with the mark %d another route" % mark
    if _is_under_ipsec(family, target):
        return "an IPsec policy is in force for it"
    if not way[1] and not (_is_of_route(family, way[2], table)
                           or _has_own_network(family, index, way[2], target)):
        return "this machine's own address there is of another network"
    return ""


def _is_of_route(family, source, table):
    """Return whether our own IPv6 address is of the network that a route is for."""
    # It may be a /128 (DHCPv6, or an address that a cluster moves), and tell no network itself.
    bits = table[ROUTE_BITS]
    return family == socket.AF_INET6 and bits > 0 and is_in_network(
        source, table.get(ROUTE_TARGET, b""), bits)


def _is_under_ipsec(family, target):
    """Return whether the first policy that fits packets to an address transforms them."""
    # One without a template lets them pass as they are: "bypass".
    found = [(fields[POLICY_PRIORITY], POLICY_TEMPLATE in facts) for fields, facts in _list(
        GET_POLICY, POLICY_BODY, family, NETLINK_XFRM) if _is_policy_for(family, target, fields)]
    return bool(found) and min(found)[1]


def _is_policy_for(family, target, fields):
    network, own_family, bits, direction = fields[0], fields[6], fields[7], fields[-1]
    return own_family == family and direction == POLICY_OUT and is_in_network(
        target, network[:len(target)], bits)


def _find_dead_port(index):
    """Return the name of a port of the bridge with this index that forwards nothing, or ""."""
    # The kernel tells of the ports of all bridges at once.
    for _, facts in _list(GET_LINK, LINK_BODY, BRIDGE_FAMILY):
        state = parse_attributes(facts.get(PORT_FACTS, b"")).get(PORT_STATE)
        # Without a state it is no port of a bridge: network cards tell here of their bond, too.
        is_dead = state not in (None, bytes([PORT_FORWARDS]))
        if is_dead and facts.get(LINK_MASTER) == struct.pack("I", index):
            return _parse_link_name(facts)
    return ""


def _parse_link_name(facts):
    return facts.get(LINK_NAME, b"").rstrip(b"\0").decode("ascii", "backslashreplace")


def _has_own_network(family, index, source, target):
    """Return whether our address on a link is one of the network that the target is in."""
    for fields, facts in _list(GET_ADDRESS, ADDRESS_BODY, family):
        bits, link = fields[1], fields[4]
        own = facts.get(ADDRESS_LOCAL, facts.get(ADDRESS_PEER))
        is_inside = is_in_network(target, facts.get(ADDRESS_PEER, own), bits)
        if link == index and own == source and is_inside:
            return True
    return False


def is_in_network(address, network, bits):
    """Return whether two addresses (bytes) begin with the same bits."""
    shift = 8 * len(address) - bits
    return len(address) == len(network) and (
        int.from_bytes(address, "big") >> shift == int.from_bytes(network, "big") >> shift)


def _list(kind, body_format, family, protocol=NETLINK_ROUTE):
    """Return [(fields, {attribute: bytes})] of all rows of one kind that the kernel has.

    What it does not know at all (IPsec, rules, bridges) it has none of.
    """
    body = struct.pack("B", family) + bytes(struct.calcsize(body_format) - 1)
    if protocol == NETLINK_XFRM:
        body = b""
    found = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as handle:
            answers = _send_to_kernel(handle, kind, REQUEST | DUMP, body)
            while struct.unpack_from("IH", answers)[1] != NETLINK_DONE:
                found.append(parse_netlink(answers, body_format))
                length = struct.unpack_from("I", answers)[0]
                answers = answers[(length + 3) & ~3:] or _hear_kernel(handle)
    except OSError as error:
        if error.errno not in UNKNOWN_TO_KERNEL:
            raise
    return found


def _ask_kernel(kind, body_format, body):
    """Return (fields, {attribute: bytes}) of the kernel's answer; its errors raise OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as handle:
        return parse_netlink(_send_to_kernel(handle, kind, REQUEST, body), body_format)


def _send_to_kernel(handle, kind, flags, body):
    handle.settimeout(KERNEL_PATIENCE_SECONDS)
    handle.send(struct.pack("IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    return _hear_kernel(handle)


def _hear_kernel(handle):
    try:
        return handle.recv(MAX_REPLY_BYTES)
    except socket.timeout as error:
        raise Unreachable("the kernel did not answer within %s"
                          % render_seconds(KERNEL_PATIENCE_SECONDS)) from error


def find_neighbour(family, index, target):
    """Return the MAC by which the kernel last knew a neighbour, alive or not, or b""."""
    try:
        for fields, facts in _list(GET_NEIGHBOUR, NEIGHBOUR_BODY, family):
            if fields[1] == index and facts.get(NEIGHBOUR_ADDRESS) == target:
                return facts.get(NEIGHBOUR_MAC, b"")
    except OSError as error:
        raise Unreachable(explain_os_error(error)) from error
    return b""


def find_bridge_port(bridge, mac):
    """Return the index of the port of a bridge (an index) that a MAC was last heard on, or 0."""
    try:
        for fields, facts in _list(GET_NEIGHBOUR, NEIGHBOUR_BODY, BRIDGE_FAMILY):
            is_of_bridge = facts.get(NEIGHBOUR_MASTER) == struct.pack("I", bridge)
            if is_of_bridge and facts.get(NEIGHBOUR_MAC) == mac:
                return fields[1]
    except OSError as error:
        raise Unreachable(explain_os_error(error)) from error
    return 0


def find_route(family, target):
    """Return the Route of packets to target (bytes); raise Unreachable where there is none."""
    try:
        way = _find_way(family, target, 0)
        index = struct.unpack("i", way[0])[0]
        hardware, flags, facts = _ask_link(index)
        link_kind = _find_link_kind(facts)
        odd_way = _find_odd_way(family, target, index, way)
        dead_port = _find_dead_port(index)
    except OSError as error:
        raise Unreachable(explain_os_error(error)) from error
    is_up, is_running = bool(flags & IFF_LOWER_UP), bool(flags & IFF_RUNNING)
    if is_up and not is_running:
        link_kind = "dormant"
    mac = b""
    if hardware == ETHERNET and not flags & IFF_NOARP:
        mac = facts.get(LINK_MAC, b"")
    return Route(
        interface=_parse_link_name(facts),
        index=index, mac=mac, source=way[2], gateway=way[1], has_carrier=is_up and is_running,
        carrier_changes=facts.get(LINK_CHANGES), is_port=LINK_MASTER in facts, odd_way=odd_way,
        dead_port=dead_port, link_kind=link_kind)


# SECTION: NETWORK ---------------------------------------------------------------------------------
# Names, connections and packets. OSError becomes FenceError here; no call outlasts its Deadline.

# Signs of life. Source: RFC 792 and 4443 (echo and errors), RFC 826 (ARP), RFC 4861 (neighbour
# discovery), linux/rtnetlink.h, linux/if_link.h; read 2026-11. Seen: Linux 6.18.
ETHERTYPE_ARP = 0x0806
# Source: asm-generic/socket.h, linux/sock_diag.h. The last word is the number of lost packets.
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_MEMINFO, MEMINFO_WORDS = 26, 33, 55, 9
PACKET_BUFFER_BYTES = 4194304
SOL_RAW, ICMP_FILTER = 255, 1
FRAMES = -1               # the "family" of a PacketSocket that hears whatever one machine sends
ETHERTYPE_ALL = 3
HEAD_START_SECONDS = 0.25   # of the first of two ports; a network of one's own answers sooner
PREFERENCE_SECONDS = 1.0    # for which the first is still awaited when the second is open
# Source: linux/filter.h. Instructions of a filter: load a word, a half, a byte, the length of an
# IPv4 header, a byte behind that; jump if equal, if not less; return.
LOAD_WORD, LOAD_HALF, LOAD_BYTE, LOAD_LENGTH, LOAD_BEHIND = 0x20, 0x28, 0x30, 0xB1, 0x50
JUMP_EQUAL, JUMP_NOT_LESS, RETURN = 0x15, 0x35, 0x06
# Where a filter finds the MAC that a frame comes from, its protocol, and for whom it is.
FRAME_SOURCE, FRAME_PROTOCOL, FRAME_RECEIVER = 0xFFE00006, 0xFFFFF000, 0xFFFFF004
FOR_OTHERS = 3             # and above: for another machine, or on its way out
ETHERTYPES = {socket.AF_INET: 0x0800, socket.AF_INET6: 0x86DD}
IPV6_HEADER_BYTES = 40


def build_filter(steps):
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def build_mac_filter(mac):
    """Return the instructions that let through the frames of one MAC and nothing else."""
    first, last = struct.unpack(">IH", mac)
    return build_filter((
        (LOAD_WORD, 0, 0, FRAME_SOURCE), (JUMP_EQUAL, 0, 3, first),
        (LOAD_HALF, 0, 0, FRAME_SOURCE + 4), (JUMP_EQUAL, 0, 1, last),
        (RETURN, 0, 0, 64), (RETURN, 0, 0, 0)))


def build_tap_filter(family):
    """Return the instructions that let through IP packets that can be an answer to us."""
    numbers = ICMP[family]
    kinds = (numbers.reply,) + numbers.errors + numbers.others
    # An advertisement to somebody else says nothing of the way from here.
    steps = [(LOAD_HALF, 0, 0, FRAME_PROTOCOL), (JUMP_EQUAL, 1, 0, ETHERTYPES[family]),
             (RETURN, 0, 0, 0), (LOAD_BYTE, 0, 0, FRAME_RECEIVER),
             (JUMP_NOT_LESS, 0, 1, FOR_OTHERS), (RETURN, 0, 0, 0)]
    if family == socket.AF_INET:
        steps += [(LOAD_BYTE, 0, 0, 9), (JUMP_EQUAL, 0, len(kinds) + 2, numbers.protocol),
                  (LOAD_LENGTH, 0, 0, 0), (LOAD_BEHIND, 0, 0, 0)]
    else:
        steps += [(LOAD_BYTE, 0, 0, 6), (JUMP_EQUAL, 0, len(kinds) + 1, numbers.protocol),
                  (LOAD_BYTE, 0, 0, IPV6_HEADER_BYTES)]
    steps += [(JUMP_EQUAL, len(kinds) - number, 0, kind) for number, kind in enumerate(kinds)]
    return build_filter(steps + [(RETURN, 0, 0, 0), (RETURN, 0, 0, MAX_REPLY_BYTES)])


def parse_ip_packet(family, packet):
    """Return (what is in a packet behind its IP header, its sender)."""
    if family == socket.AF_INET and len(packet) >= 20:
        header_bytes, sender = (packet[0] & 15) * 4, packet[12:16]  # it tells its length in words
    elif family == socket.AF_INET6 and len(packet) >= IPV6_HEADER_BYTES:
        header_bytes, sender = IPV6_HEADER_BYTES, packet[8:24]
    else:
        return b"", ""
    return packet[header_bytes:], socket.inet_ntop(family, sender)


def build_icmp_filter(family):
    """Return (level, option, value) that let through what can be an answer and nothing else."""
    # Source: linux/icmp.h, linux/icmpv6.h: a bit that is set blocks a type. What is blocked takes
    # no room, and is no packet that found none.
    numbers = ICMP[family]
    level, count = (SOL_RAW, 1) if family == socket.AF_INET else (socket.IPPROTO_ICMPV6, 8)
    words = [0xFFFFFFFF] * count
    for kind in (numbers.reply,) + numbers.errors + numbers.others:
        words[kind // 32] ^= 1 << kind % 32
    return level, ICMP_FILTER, struct.pack("%dI" % count, *words)


class PacketSocket:
    """A socket for single packets that never blocks."""

    def __init__(self, handle, family, is_raw):
        handle.setblocking(False)
        try:
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, PACKET_BUFFER_BYTES)
        except OSError:
            pass  # without root; what overflows is noticed
        self.handle = handle
        self.known_drops = 0
        self.family = family
        self.is_raw = is_raw
        self.fileno = handle.fileno
        self.close = handle.close

    def send(self, packet, address, hops=0):
        """Send one packet; raise Unreachable when it did not even leave this machine.

        hops: how many routers and hosts may take it on, where that is not left to the kernel.
        """
        limits = []
        if hops:
            limits = [ICMP[self.family].hops + (struct.pack("i", hops),)]
        try:
            self.handle.sendmsg([packet], limits, 0, address)
        except OSError as error:
            hint = "; does its own firewall forbid it?" if error.errno == errno.EPERM else ""
            raise Unreachable("this machine cannot send to it: %s%s"
                              % (explain_os_error(error), hint)) from error

    def receive(self):
        """Return (packet without IP header, sender); (b"", "") when an error came instead."""
        try:
            packet, address = self.handle.recvfrom(MAX_REPLY_BYTES)
        except OSError:
            return b"", ""
        if self.family == FRAMES:
            return packet, address[4]
        if self.family == socket.AF_INET and self.is_raw:
            return parse_ip_packet(self.family, packet)
        return packet, address[0].partition("%")[0]

    def count_drops(self):
        """Return how many packets this socket had no room for since the last time it was asked."""
        try:
            facts = self.handle.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * MEMINFO_WORDS)
        except OSError:
            return 0  # Linux before 4.12 does not tell
        drops = struct.unpack("%dI" % (len(facts) // 4), facts)[-1]
        drops, self.known_drops = drops - self.known_drops, drops
        return drops


class TapSocket(PacketSocket):
    """Hears answers as they come in from any link, before this machine's own IP looks at them."""

    def receive(self):
        try:
            return parse_ip_packet(self.family, self.handle.recv(MAX_REPLY_BYTES))
        except OSError:
            return b"", ""


class Connection:
    """A TCP connection; each call ends by its deadline, also against a peer that drips bytes."""

    def __init__(self, handle):
        self.handle = handle
        # The address that was connected to, with the zone of a link-local one.
        self.peer = socket.getnameinfo(handle.getpeername(),
                                       socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]

    def send(self, data, deadline):
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            self.handle.sendall(data)
        except OSError as error:
            failure = os_failure("the connection broke off while a request was sent", error,
                                 deadline)
            failure.was_closed = isinstance(error, ConnectionError)
            raise failure from error

    def start_tls(self, name, verified, deadline):
        """Encrypt from here on; verified: the certificate must be good, and for this name."""
        import ssl
        context = ssl.create_default_context()
        if not verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            self.handle = context.wrap_socket(self.handle, server_hostname=name)
        except (OSError, ValueError) as error:  # a wrong certificate is a ValueError in Python 3.6
            if isinstance(error, ValueError) or "CERTIFICATE" in str(getattr(error, "reason", "")):
                raise Refused("the certificate is not trusted: %s (ssl_insecure=1 accepts any)"
                              % quote(str(error))) from error
            if getattr(error, "reason", "") in NO_TLS_REASONS:
                raise StrangeReply("no TLS: this port answers without it (is ssl right for it?)"
                                   ) from error
            raise os_failure("no TLS", error, deadline, "does this port speak TLS?") from error

    def receive_some(self, count, deadline):
        """Return at most `count` bytes as they come; none when the device closed the connection."""
        if not deadline.left():
            raise Unreachable("no complete answer came before the time (%s) was up"
                              % render_seconds(deadline.seconds))
        try:
            self.handle.settimeout(max(0.001, deadline.left()))
            return self.handle.recv(count)
        except OSError as error:
            raise os_failure("no complete answer", error, deadline) from error

    def receive(self, count, deadline):
        """Return exactly `count` bytes, in however many pieces they come."""
        data = b""
        while len(data) < count:
            try:
                piece = self.receive_some(count - len(data), deadline)
            except Unreachable as error:
                raise Unreachable(
                    "%s (%d of %d bytes came)" % (error, len(data), count),
                    was_closed=isinstance(error.__cause__, ConnectionError) and not data) from error
            if not piece:
                raise Unreachable("the device closed the connection after %d of %d bytes of its "
                                  "answer" % (len(data), count), was_closed=not data)
            data += piece
        return data

    def holds_unasked_bytes(self):
        self.handle.setblocking(False)
        try:
            return bool(self.handle.recv(1))
        except OSError:
            return False

    def close(self):
        self.handle.close()


def os_failure(what, error, deadline, hint=""):
    """Return the Unreachable that says what failed, why by the OSError, and what to look at."""
    # socket.timeout is no TimeoutError before Python 3.10; it never has an errno.
    is_late = isinstance(error, socket.timeout) or error.errno == errno.ETIMEDOUT
    reason = explain_os_error(error)
    if is_late:
        reason = "nothing came within %s" % render_seconds(deadline.seconds)
    return Unreachable("%s: %s%s" % (what, reason, " (%s)" % hint if hint else ""))


def connect_failure(error, deadline, refused_hint):
    """Return the Unreachable of a connection that was not opened; refused_hint: see connect."""
    hint = CONNECT_HINTS.get(error.errno)
    if refused_hint and error.errno == errno.ECONNREFUSED:
        hint = "%s; %s" % (hint, refused_hint)
    failure = os_failure("no connection", error, deadline, hint)
    failure.__cause__ = error
    return failure


class Attempt:
    """A TCP connection that is being opened, beside another one perhaps."""

    def __init__(self, family, address):
        self.port = address[1]
        self.is_open = False
        self.error = socket.timeout()  # while it is pending, and why it has ended
        self.handle = socket.socket(family, socket.SOCK_STREAM)
        self.handle.setblocking(False)
        self._take_result(self.handle.connect_ex(address))

    def _take_result(self, code):
        self.is_open = code == 0
        if code not in (0, errno.EINPROGRESS):
            self.error = OSError(code, os.strerror(code))

    def is_pending(self):
        return not self.is_open and self.error.errno is None

    def settle(self):
        """Take in the result, which is there."""
        self._take_result(self.handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def take(self, deadline):
        """Return the Connection."""
        try:
            self.handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Connection(self.handle)
        except OSError as error:  # it is gone again
            self.handle.close()
            raise connect_failure(error, deadline, "") from error


def wait_for_attempts(attempts, deadline):
    """Wait until one of them has ended, for better or worse, or the time is up."""
    import select
    handles = {attempt.handle: attempt for attempt in attempts if attempt.is_pending()}
    for handle in select.select([], list(handles), [], deadline.left())[1]:
        handles[handle].settle()


def race_attempts(family, addresses, deadline):
    """Return the Attempts at the first address, and at the second where that was needed."""
    first = Attempt(family, addresses[0])
    wait_for_attempts([first], deadline.within(HEAD_START_SECONDS))
    if first.is_open:
        return [first]
    second = Attempt(family, addresses[1])
    while deadline.left() and not (first.is_open or second.is_open):
        if not (first.is_pending() or second.is_pending()):
            break
        wait_for_attempts([first, second], deadline)
    if second.is_open:
        wait_for_attempts([first], deadline.within(PREFERENCE_SECONDS))
    return [first, second]


NO_TLS_REASONS = ("WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL")  # OpenSSL's words
CONNECT_HINTS = {
    errno.ECONNREFUSED: "is it this device's address and port? a hung plug needs its own power cut",
    None: "is the plug powered, is a firewall between?",  # a time limit of ours
    errno.EHOSTUNREACH: "is the plug powered and in its Wi-Fi?",
    errno.ENETUNREACH: "this machine has no route to that network"}


def open_filtered(interface, ethertype, steps):
    """Return a socket for what a filter lets through, of one interface or ("") of all, or None."""
    import array
    held = array.array("B", steps)
    try:
        # Protocol 0 hears nothing until it is bound, so the filter is there first. All interfaces
        # cannot be bound to: what comes before the filter is older than any question.
        handle = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM,
                               0 if interface else socket.htons(ethertype))
        handle.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack(
            "HP", len(steps) // 8, held.buffer_info()[0]))
        if interface:
            handle.bind((interface, ethertype))
    except OSError:
        return None
    return handle


class Network:
    """What one run asks of the network and of the kernel."""

    def resolve(self, host, port, family, deadline):
        """Return [(family, socket address)] of a host, at most one address a family."""
        # With two, a command could go to one device and the proof come from another.
        try:
            # As bytes: text would load the IDNA codec, a twentieth of a whole run.
            found = socket.getaddrinfo(host.encode("ascii"), port, family, socket.SOCK_STREAM, 0,
                                       socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = self._resolve_name(host, port, family, deadline)
        for one_family in (socket.AF_INET, socket.AF_INET6):
            addresses = sorted({item[4][0] for item in found if item[0] == one_family})
            if len(addresses) > 1:
                raise Refused("%s has %d addresses (%s): give the device's own one as ip"
                              % (quote(host), len(addresses), ", ".join(addresses)))
        return [(item[0], item[4]) for item in found]

    def _resolve_name(self, host, port, family, deadline):
        # In a thread: getaddrinfo knows no time limit, and a dead name server takes half a minute.
        import threading
        answer = []

        def ask():
            try:
                answer.append(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:  # the name has an empty or too long part
                answer.append(error)
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(deadline.left())
        if not answer:
            raise Unreachable("looking up %s: no name server answered within %s (give the device's "
                              "address as ip)"
                              % (quote(host), render_seconds(deadline.seconds)))
        if isinstance(answer[0], Exception):
            raise Unreachable("looking up %s: there is no address for that name (give the device's "
                              "address as ip)" % quote(host)) from answer[0]
        return answer[0]

    def connect(self, host, port, family, deadline, refused_hint=""):
        """Return a Connection to the first address of host that accepts one.

        refused_hint: what else a closed port may mean here.
        """
        failure = None
        for one_family, address in self.resolve(host, port, family, deadline):
            handle = None
            try:
                handle = socket.socket(one_family, socket.SOCK_STREAM)
                handle.settimeout(max(0.001, deadline.left()))
                handle.connect(address)
                handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Connection(handle)
            except OSError as error:
                if handle:
                    handle.close()
                failure = failure or connect_failure(error, deadline, refused_hint)
        raise failure

    def connect_preferred(self, host, ports, family, deadline, refused_hint=""):
        """Return (Connection, its port, why it is not the first of two ports, "" if it is).

        The second is tried beside the first when that has not answered at once, and taken when the
        first is closed or stays silent: a device that has the first open pays nothing.
        """
        failure = None
        for one_family, address in self.resolve(host, ports[0], family, deadline):
            addresses = [(address[0], port) + address[2:] for port in ports]
            try:
                attempts = race_attempts(one_family, addresses, deadline)
            except OSError as error:  # this machine has no sockets for it, or none left
                failure = failure or connect_failure(error, deadline, "")
                continue
            chosen = next((attempt for attempt in attempts if attempt.is_open), None)
            for attempt in attempts:
                if attempt is not chosen:
                    attempt.handle.close()
            reasons = ["port %d: %s" % (attempt.port, connect_failure(
                attempt.error, deadline, refused_hint if attempt is attempts[0] else ""))
                for attempt in attempts if attempt is not chosen]
            if chosen:
                return chosen.take(deadline), chosen.port, reasons[0] if reasons else ""
            failure = failure or Unreachable("; ".join(reasons))
        raise failure

    def ask_by_datagram(self, host, port, family, message, deadline):
        """Return the answer to one datagram, b"" when none comes."""
        for one_family, address in self.resolve(host, port, family, deadline):
            with socket.socket(one_family, socket.SOCK_DGRAM) as handle:
                try:
                    handle.settimeout(max(0.001, deadline.left()))
                    handle.connect(address)  # or anybody's datagram could be the answer
                    handle.send(message)
                    return handle.recv(MAX_REPLY_BYTES)
                except OSError:
                    continue
        return b""

    find_route = staticmethod(find_route)
    find_neighbour = staticmethod(find_neighbour)
    find_bridge_port = staticmethod(find_bridge_port)

    def open_echo(self, family):
        """Return a PacketSocket for ICMP, raw where that is permitted; None where none is."""
        for is_raw, kind in ((True, socket.SOCK_RAW), (False, socket.SOCK_DGRAM)):
            try:
                handle = socket.socket(family, kind, ICMP[family].protocol)
            except OSError:
                continue
            if family == socket.AF_INET6:  # neighbours believe nothing that a router could forward
                for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
                    handle.setsockopt(socket.IPPROTO_IPV6, option, 255)
            if is_raw:
                handle.setsockopt(*build_icmp_filter(family))
            return PacketSocket(handle, family, is_raw)
        return None

    def open_arp(self, interface):
        """Return a PacketSocket for ARP on one interface, or None where there can be none."""
        try:
            handle = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETHERTYPE_ARP))
            handle.bind((interface, ETHERTYPE_ARP))
        except OSError:
            return None
        return PacketSocket(handle, socket.AF_PACKET, True)

    def open_frames(self, interface, mac):
        """Return a PacketSocket for all frames that one MAC sends, or None where there is none."""
        handle = open_filtered(interface, ETHERTYPE_ALL, build_mac_filter(mac))
        return PacketSocket(handle, FRAMES, True) if handle else None

    def open_tap(self, family):
        """Return a TapSocket for answers to us, or None where there can be none."""
        # As one for all protocols it hears before nft's netdev tables and tc, too.
        handle = open_filtered("", ETHERTYPE_ALL, build_tap_filter(family))
        return TapSocket(handle, family, True) if handle else None

    def wait_readable(self, handles, seconds):
        """Return those of the PacketSockets that have something to read within the time."""
        import select
        return select.select(handles, [], [], max(0.0, seconds))[0]


class System(Log, FilesAndPrograms, KeptLogins, Network):
    """This machine, as one run of the program sees it."""


# SECTION: DEVICE ----------------------------------------------------------------------------------
# What all devices have in common, and which class speaks to which. Knows no family of plugs.

ROOMS = {}  # {name of a dialect: the class that speaks it}; each room of part 3 enters its own


def speaks(*dialects):
    """Enter a class of part 3 into ROOMS, under the names of its rows in DIALECTS."""
    def enter(room):
        ROOMS.update(dict.fromkeys(dialects, room))
        return room

    return enter


class Device:
    """What switches power, before anything is known of it. One object serves one action.

    A class of part 3 has list_outlets(deadline), which returns Outlets, and open(deadline), which
    proves which device and which outlet this is and returns an OpenedOutlet: nothing can be
    switched or read but through that. Where a device may have several outlets, open goes by way of
    open_named, which takes a list of names too. Every call takes the action's Deadline and raises
    FenceError: Refused for an answer that asking again will not change, and an error that is
    retryable for one that may be better the next time.
    """

    name = ""  # of the device's family, for messages

    def __init__(self, system, settings):
        self.system = system
        self.settings = settings
        self.label = settings.nodename  # the cluster's name for the target
        self.wanted = settings.plug     # the outlet that the caller named, "" for none
        self.names = split_names(settings.plug, self.label)  # if it is a list of several
        self.is_list = False            # no outlet's own name is that list: asked once an action

    def describe(self):
        return "%s %s" % (self.name, render_address(self.settings.ip, self.settings.ipport))

    def close(self):
        """Free the device for others: some serve one client at a time."""

    def prove_usable(self, deadline):
        """Raise unless an action could work now; return its OpenedOutlet, or None of several.

        Pacemaker's monitor names no outlet. Of several, every action will be told which is meant.
        """
        if not self.wanted and self.count_outlets(deadline) > 1:
            return None
        return self.open(deadline)

    def open_named(self, open_one):
        """Return the OpenedOutlet that the caller named; open_one(name) opens that of one name.

        An outlet's own name may hold a comma, so the whole text is looked up first.
        """
        if not self.names:
            return open_one(self.wanted)
        whole = self._open_whole(open_one)
        try:
            group = self._open_all(open_one)
        except UnknownOutlet as error:
            if whole:
                return whole
            raise UnknownOutlet("%s (taken as a list, because no outlet is called %s)"
                                % (error, quote(self.wanted))) from error
        # SAFETY: one outlet or several, to choose would be a guess.
        # Test: test_a_text_that_is_a_name_and_a_list_is_refused
        if whole:
            raise Refused("plug %s is the name of one outlet, and a list of others: use their ids, "
                          "or rename it" % quote(self.wanted))
        return group

    def _open_whole(self, open_one):
        """Return the outlet whose own name is the whole list, or None."""
        if not self.is_list:
            try:
                return open_one(self.wanted)
            except UnknownOutlet:
                self.is_list = True
        return None

    def _open_all(self, open_one):
        """Return the OutletGroup of all that the caller named; raise Refused for a name too many.

        SAFETY: two names of one outlet leave another one on, which nobody looks at.
        Test: test_two_names_of_one_outlet_are_refused_before_anything_is_sent
        """
        outlets, known = {}, {}
        for name in self.names:
            check_name_in_list(name, self.wanted, self.label)
            outlet = open_one(name)
            if outlet.identity in known:
                raise Refused("plug %s names one outlet twice, as %s and as %s" % (
                    quote(self.wanted), quote(known[outlet.identity]), quote(name)))
            known[outlet.identity] = name
            outlets[name] = outlet
        return OutletGroup(self, outlets)

    def count_outlets(self, deadline):
        return len(self.list_outlets(deadline))

    def check_mac(self, text):
        """Raise Refused unless the MAC that the device tells is the configured one."""
        wanted = self.settings.device_mac
        if not wanted:
            return
        try:
            found = parse_mac(text if isinstance(text, str) else "")
        except UsageError:
            raise Refused("the device does not tell its MAC address, and device_mac=%s is "
                          "configured" % render_mac(wanted)) from None
        if found != wanted:
            raise Refused("another device has this address now: its MAC is %s, device_mac is %s"
                          % (render_mac(found), render_mac(wanted)))


class OpenedOutlet:
    """One outlet of a device, after both have been proven to be the ones that are meant.

    state: what the device said of it while it was opened, and doubt why that says nothing, "" if it
    does. identity: what tells it from the other outlets of the device, whatever name it was called
    by. A class of part 3 has read(deadline),
    which returns a PowerState, and send(wanted, deadline), which commands one. The reply to a
    command is the device's word about its intentions; read is what it says of the outlet
    afterwards. Both make sure first that it is still the same device: a new connection may lead to
    another one.
    """

    def __init__(self, device, state, identity="", doubt=""):
        self.device = device
        self.state = state
        self.identity = identity
        self.doubt = doubt

    def state_at_opening(self):
        """Return the PowerState; raise ProtocolError where that was in doubt."""
        if self.doubt:
            raise ProtocolError(self.doubt)
        return self.state

    def ask_each(self, ask):
        """Return {name: ask(name, outlet)} of the outlets that this one stands for, see PROOF."""
        return {"": ask("", self)}

    def read_meter(self, deadline):
        """Return the MeterReading of what the outlet draws now.

        Without watts it is what the device says clearly: it has no meter for this outlet. Any other
        answer, and none, is an error: a meter that cannot be read is not one that is not there.
        """
        return NO_METER

    def close(self):
        self.device.close()


class OutletGroup(OpenedOutlet):
    """Several outlets of one device, which feed one target: what is done is done to each of them.

    outlets: {name: OpenedOutlet}.
    """

    def __init__(self, device, outlets):
        self.device = device
        self.outlets = outlets

    def state_at_opening(self):
        states = self.ask_each(lambda name, outlet: outlet.state_at_opening())
        return combine_states(list(states.values()))

    def ask_each(self, ask):
        answers = {}
        for name, outlet in self.outlets.items():
            try:
                answers[name] = ask(name, outlet)
            except FenceError as error:
                raise type(error)(tell_outlet(name, str(error))) from error
        return answers


# SECTION: LOGINS ----------------------------------------------------------------------------------
# How a web server is told who asks, by Basic and by Digest. Sends nothing, knows no family of
# plugs. Names and passwords are UTF-8, whatever charset says; the hash of a username (userhash) is
# left out, as a client may: it hides nothing here.
# Source: RFC 7616, RFC 7617, and RFC 2069 for a Digest without qop; read 2026-11. Seen: documents
# only.

DIGEST_ALGORITHMS = ("SHA-256", "SHA-256-SESS", "MD5", "MD5-SESS")  # the strongest first
MAX_CHALLENGE_CHARACTERS = 4000

# scheme: in lower case. fields: {name in lower case: value}.
Challenge = namedtuple("Challenge", "scheme fields")


def build_basic_login(username, password):
    import base64
    text = "%s:%s" % (username, password)
    return "Basic " + base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def parse_challenges(values):
    """Return the Challenges in WWW-Authenticate headers; one header may hold several."""
    found = []
    for value in values:
        # The bytes that came are what is hashed; most are UTF-8, and http.client reads latin-1.
        text = value.encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        items = re.findall(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', text[:MAX_CHALLENGE_CHARACTERS])
        for item in items:
            scheme, name, quoted, plain = re.match(
                r'\s*(?:([^\s="]+)(?:\s+(?!=)|$))?(?:([\w-]+)\s*=\s*'
                r'(?:"((?:[^"\\]|\\.)*)"|([^\s"]*)))?', item).groups("")
            if scheme:
                found.append(Challenge(scheme.lower(), {}))
            if found and name:
                found[-1].fields.setdefault(
                    name.lower(), re.sub(r"\\(.)", r"\1", quoted) or plain)
    return found


def choose_digest(challenges):
    """Return the fields of the strongest Digest that can be answered, or None."""
    found = {}
    for scheme, fields in challenges:
        if scheme == "digest" and is_answerable(fields):
            found.setdefault(fields.get("algorithm", "MD5").upper(), fields)
    return next((found[name] for name in DIGEST_ALGORITHMS if name in found), None)


def is_answerable(fields):
    ways = fields.get("qop", "")
    if not ways:  # RFC 2069, which has no sessions
        return not fields.get("algorithm", "").upper().endswith("-SESS")
    return "auth" in re.split("[ ,]+", ways.lower())


def build_digest_login(fields, username, password, method, path, cnonce, count):
    """Return the Authorization header that answers a Digest challenge for the count-th request."""
    import hashlib
    name, session, _ = fields.get("algorithm", "MD5").upper().partition("-SESS")
    make = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}[name]

    def digest(*parts):
        return make(":".join(parts).encode("utf-8", "surrogateescape")).hexdigest()

    realm, nonce, nc = fields.get("realm", ""), fields.get("nonce", ""), "%08x" % count
    secret = digest(username, realm, password)
    secret = digest(secret, nonce, cnonce) if session else secret
    proof = (nonce, nc, cnonce, "auth") if fields.get("qop") else (nonce,)
    shown = [("username", username), ("realm", realm), ("nonce", nonce), ("uri", path),
             ("response", digest(secret, *(proof + (digest(method, path),))))]
    shown += [(name, fields[name]) for name in ("opaque",) if name in fields]
    shown += [("cnonce", cnonce)] if fields.get("qop") else []
    texts = ['%s="%s"' % (name, re.sub(r'(["\\])', r"\\\1", text)) for name, text in shown]
    texts += ["algorithm=" + fields["algorithm"]] if "algorithm" in fields else []
    texts += ["qop=auth", "nc=" + nc] if fields.get("qop") else []
    return "Digest " + ", ".join(texts)


class Login:
    """Who asks, told as the device wants it, for all requests of one action.

    One challenge serves the whole action, its nonce with a count that rises: a Shelly keeps 32
    nonces for an hour, and answers 429 when they are all given away. It may serve the next, too.
    The password goes out as Basic only where it is asked for so, or where the family of plugs never
    asks.
    """

    def __init__(self, username, password, is_sent_unasked):
        self.username = username
        self.password = password
        self.is_sent_unasked = is_sent_unasked
        self.allows_basic = True  # False: whoever asks for it is not the device
        self.tried = []
        self.forget()

    def forget(self, is_basic=False):
        """Begin anew, as with the action's first request; is_basic: with Basic, though unasked.

        Some boards answer a stranger with their sign-in page, or 403, and never ask.
        """
        self.is_basic = self.allows_basic and (is_basic or self.is_sent_unasked)
        self.digest = None  # the fields of the challenge that is answered, with its own cnonce
        self.cnonce = ""    # one for all counts: a -sess algorithm hashes the first
        self.count = 0

    def recall(self, fields, count):
        """Go on answering a challenge that an earlier action has answered so often."""
        # What was kept may be damaged, and then it is none.
        self.digest = choose_digest([Challenge("digest", fields)])
        self.cnonce, self.count = os.urandom(8).hex(), count

    def kept(self):
        """Return (fields, count) for recall, or None where nothing can be answered any more."""
        is_session = self.digest and self.digest.get("algorithm", "").upper().endswith("-SESS")
        return (self.digest, self.count) if self.digest and not is_session else None

    def build(self, method, path):
        """Return the Authorization header of the next request, "" for none."""
        if not self.password or not (self.digest or self.is_basic):
            return ""
        way = "Digest " + self.digest.get("algorithm", "MD5") if self.digest else "Basic"
        self.tried += [way] if way not in self.tried else []
        if not self.digest:
            return build_basic_login(self.username, self.password)
        self.count += 1  # also when the answer gets lost: the device may have counted
        try:
            return build_digest_login(self.digest, self.username, self.password, method, path,
                                      self.cnonce, self.count)
        except ValueError as error:  # a machine in FIPS mode has no MD5
            raise Refused("this machine refuses the hash of the device's login: %s" % error
                          ) from error

    def take(self, challenges, is_first):
        """Get ready to answer a 401; return False when there is nothing new to answer.

        is_first: the first 401 to this request. It may mean that the nonce, which was good for the
        requests before, is no longer; the next 401 means that only with stale=true.
        """
        fields = choose_digest(challenges)
        if not self.password:
            return False
        if fields:
            self.digest, self.cnonce, self.count = fields, os.urandom(8).hex(), 0
            return is_first or fields.get("stale", "").lower() == "true"
        if not self.allows_basic:
            return False
        # A 401 that names no way is taken for Basic, which most small boards mean.
        is_asked = "basic" in [scheme for scheme, _ in challenges]
        is_asked = is_asked or not (challenges or self.digest)
        is_new = self.digest is not None or not self.is_basic
        self.digest, self.is_basic = None, True
        return is_asked and is_new

    def refusal(self, asked, said):
        """Return the Refused that tells why a 401 is the end. asked, said: of the device, as text.
        """
        if not self.password:
            return Refused("the device asks for a password (set username and password)")
        if not self.tried:
            return Refused("the device asks for a login that is not supported: %s; it can be "
                           "%sDigest with qop auth or none and algorithm %s"
                           % (asked, "Basic, or " if self.allows_basic else "",
                              ", ".join(sorted(DIGEST_ALGORITHMS))))
        return Refused("the device refuses the login of user %s (tried: %s; it asks for: %s%s)" % (
            quote(self.username), " and ".join(self.tried), asked, said and "; it says: " + said))


# SECTION: HTTP ------------------------------------------------------------------------------------
# One exchange over urllib. Knows no family of plugs.

# What a device is asked. body: text, "" for none.
HttpQuestion = namedtuple("HttpQuestion", "method path body")

# status: a number. headers: with get() and get_all(). body: text.
HttpReply = namedtuple("HttpReply", "status headers body")


# How to listen to an event stream, which does not end by itself. is_enough: of the text that has
# come, asked at each silence of silence_s. deadline: of the stream alone, the headers have theirs.
Listening = namedtuple("Listening", "silence_s deadline is_enough")
SILENCE = ":silence"  # marks one in the text, as a comment between two events


def send_http_request(connect, request, deadline, listening=None):
    """Send one request, made by build_http_request; return its HttpReply, whatever its status.

    connect: returns the Connection. listening: the answer is an event stream.
    """
    return show_http_body(send_http_bytes(connect, request, deadline, listening))


def show_http_body(reply):
    """Return an HttpReply whose body came as bytes with a body of text."""
    return reply._replace(body=reply.body.decode(errors="backslashreplace"))


def send_http_bytes(connect, request, deadline, listening=None):
    """Do the same; return an HttpReply whose body is bytes."""
    import http.client
    stream = HttpStream(deadline)
    opener = build_opener(stream)
    stream.connection = connect()
    try:
        response = opener.open(request)
        found = read_http_body(response, stream, listening)
    except http.client.RemoteDisconnected as error:
        raise Unreachable("the device closed the connection without an answer",
                          was_closed=True) from error
    except http.client.BadStatusLine as error:
        raise explain_first_line(error.line) from error
    except (http.client.HTTPException, ValueError) as error:
        raise ProtocolError("the answer is not complete HTTP: %s" % quote(
            "%s %s" % (type(error).__name__, error))) from error
    finally:
        stream.connection.close()
    return HttpReply(response.status, response.headers, found)


def build_http_request(method, url, body, headers):
    """Return the request as urllib takes it; body: bytes, or None of one that has none."""
    import urllib.request  # slow, so before the connection: a small device has only one
    return urllib.request.Request(url, body, headers, method=method)


def find_content_type(body):
    is_json = body.lstrip()[:1] in ("{", "[")
    return "application/json" if is_json else "application/x-www-form-urlencoded"


def explain_first_line(line):
    """Return the error that says what an answer without a status line is."""
    if line[:2] == "\x15\x03":  # an alert of TLS
        return StrangeReply("this port speaks TLS (set ssl=1, or ssl_insecure=1)")
    text = "the answer is not complete HTTP, it begins with %s" % quote(line)
    if line[:5] == "HTTP/"[:len(line)]:
        return ProtocolError(text)
    return StrangeReply(text + " (is ipport that of a web server?)")


def build_opener(stream):
    """Return an opener of urllib that speaks HTTP over this stream, and can do nothing else.

    It holds no handler of urllib's own: it follows no redirect, asks no proxy, keeps no cookie, and
    hands on every status as it came.
    """
    import http.client
    import urllib.request

    class StreamConnection(http.client.HTTPConnection):
        def connect(self):
            self.sock = stream

    class StreamHandler(urllib.request.AbstractHTTPHandler):
        def open_stream(self, request):
            return self.do_open(StreamConnection, request)

        http_open = https_open = open_stream
        http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    opener = urllib.request.OpenerDirector()
    opener.add_handler(StreamHandler())
    return opener


class HttpStream(io.RawIOBase):
    """What urllib takes for its socket: no read outlasts the deadline or a reply's size."""

    def __init__(self, deadline):
        self.connection = None
        self.deadline = deadline
        self.room_bytes = MAX_REPLY_BYTES
        self.reader = None
        self.is_over = False

    def sendall(self, data):
        self.connection.send(data, self.deadline)

    def makefile(self, mode):
        self.reader = KeptReader(self)
        return self.reader

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.is_over:
            return 0
        piece = self.connection.receive_some(len(buffer), self.deadline)
        self.room_bytes -= len(piece)
        if self.room_bytes < 0:
            raise ProtocolError("the answer is longer than %d bytes (is this the right device and "
                                "port?)" % MAX_REPLY_BYTES)
        buffer[:len(piece)] = piece
        return len(piece)

    def take_rest(self):
        """Return what has come behind the reply, without waiting for more."""
        self.is_over = True
        return self.reader.read()

    def close(self):
        """urllib closes before the body is read; who made the connection ends it."""


class KeptReader(io.BufferedReader):
    """What http.client reads from, and closes at the end of a reply, whatever is left in it."""

    def close(self):
        pass


def read_http_body(response, stream, listening):
    """Return the bytes of a reply's body; raise unless it is whole and of a sane length."""
    check_http_framing(response.headers)
    is_packed = response.headers.get("Content-Encoding", "").lower() in GZIP_NAMES
    if listening is not None and response.status == 200:
        if is_packed:
            raise StrangeReply("the event stream is compressed, which was not asked for")
        return read_event_stream(response, stream, listening)
    body = response.read()  # raises IncompleteRead when less came than the headers say
    # SAFETY: two answers to one question; a line end too many is no answer.
    # Test: test_a_second_answer_behind_the_first_is_a_doubt
    if stream.take_rest().strip():
        raise ProtocolError("more came than one answer: %d bytes, and then the next" % len(body))
    return unpack_body(body) if is_packed and body else body


GZIP_NAMES = ("gzip", "x-gzip")  # which some servers send unasked


def unpack_body(packed):
    """Return the bytes that were packed by gzip: whole, and no more than any reply may have."""
    import zlib
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)  # 16: with the head and the sum of gzip
    try:
        body = unpacker.decompress(packed, MAX_REPLY_BYTES)
    except zlib.error as error:
        raise ProtocolError("the answer is damaged: %s" % error) from error
    # SAFETY: a few bytes may be packed from gigabytes, and half of them can read as a state.
    # Test: test_a_packed_reply_is_unpacked_whole_and_within_bounds_or_refused
    if unpacker.unconsumed_tail:
        raise ProtocolError("the answer is longer than %d bytes when it is unpacked (is this the "
                            "right device and port?)" % MAX_REPLY_BYTES)
    if unpacker.unused_data or not unpacker.eof:
        raise ProtocolError("the answer is damaged: it was packed by gzip, and %s" % (
            "something follows" if unpacker.eof else "its end is missing"))
    return body


def check_http_framing(headers):
    """Raise ProtocolError unless the headers tell one sane length, or none."""
    lengths = {text.strip() for text in headers.get_all("Content-Length") or ["0"]}
    codings = [text.lower() for text in headers.get_all("Transfer-Encoding") or []]
    is_one_length = len(lengths) == 1 and re.fullmatch("[0-9]+", min(lengths))
    if headers.defects or not is_one_length or codings not in ([], ["chunked"], ["identity"]):
        raise ProtocolError("the headers of the answer contradict themselves")
    # As text: Python takes a number of thousands of digits for no number, and so for no length.
    digits = min(lengths).lstrip("0")
    if len(digits) > len(str(MAX_REPLY_BYTES)) or int(digits or 0) > MAX_REPLY_BYTES:
        raise ProtocolError("the answer claims a length of %s bytes (is this the right device and "
                            "port?)" % (digits if len(digits) < 20 else quote(digits, 20)))


def read_event_stream(response, stream, listening):
    """Return the bytes of an event stream until they are enough, it ends, or the time is up."""
    body, piece = b"", None
    while piece != b"":
        stream.deadline = listening.deadline.within(listening.silence_s)
        try:
            piece = response.read1(MAX_REPLY_BYTES)
            body += piece
        except Unreachable:
            is_over = not listening.deadline.left()
            if is_over and not body:
                raise
            if is_over or stream.deadline.left():  # with time left it was no silence, it broke off
                return body
            body = mark_silence(body)
            if listening.is_enough(body.decode(errors="backslashreplace")):
                return body
    return body


# What follows a reply that is no answer; README tells it under "What is asked again". A login that
# is refused (401) ends the action at once. So does a StrangeReply that comes twice: a device, or a
# proxy before it, says "not found" for a moment while it starts, and a wrong address does so for
# ever. From a page that has given a good answer in this action it is no more than a doubt.
ASKED_LATER = (408, 429, 503)  # without a login, after a pause: a Shelly whose nonces are used up
LATER_SECONDS = 2.0
FOLLOWS = {3: StrangeReply, 4: StrangeReply, 5: ProtocolError}  # by the first digit of the status
MOST_LOGIN_ANSWERS = 2  # to one request


def mark_silence(body):
    """Return the bytes of an event stream with a mark at their end, unless an event goes on."""
    is_between = body.endswith((b"\n\n", b"\n\r\n"))
    return body + b"%s\n\n" % SILENCE.encode() if is_between else body


def parse_http_body(reply):
    """Return the text of an HttpReply; raise unless it can be the device's own answer."""
    check_http_answer(reply)
    coding = reply.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("identity",) + GZIP_NAMES:
        raise StrangeReply("the reply is compressed by %s, which was not asked for (a captive "
                           "portal?)" % quote(coding))
    if re.search(r"(?i)<input[^>]{1,200}type\s?=\s?['\"]?password", reply.body):
        raise StrangeReply("a page that asks for a password came instead of an answer (captive "
                           "portal, set-up mode or sign-in page)")
    if not (is_framed(reply.headers) or is_whole_by_itself(reply.body)):
        raise ProtocolError("the reply has no length and ends in the middle of a line, so nobody "
                            "can tell whether it was cut off: %s" % describe_body(reply.body))
    return reply.body


def check_command_reply(reply, statuses=(200,)):
    """Raise unless the reply acknowledges a command; what it did is for the status to say.

    Small boards answer a command with their page, or a redirect to it, when they have obeyed.
    """
    if 300 <= reply.status < 400:
        raise ProtocolError("the device answers the command with a redirect to %s, which is not "
                            "followed" % quote(reply.headers.get("Location", "")))
    check_http_status(reply, statuses)


def check_http_answer(reply):
    """Raise unless the status says that this is the answer."""
    if 300 <= reply.status < 400:
        raise StrangeReply("the device redirects to %s, which is not followed (are address, port "
                           "and ssl right?)" % quote(reply.headers.get("Location", "")))
    check_http_status(reply, (200,))


def check_http_status(reply, statuses):
    if reply.status not in statuses:
        said = describe_body(reply.body)
        failure = FOLLOWS.get(reply.status // 100, StrangeReply)
        raise failure("the device answers with HTTP status %d%s" % (
            reply.status, said and ": " + said))


def describe_body(text):
    """Return the first words of a reply in quotes, of a page its title or its text; "" for none."""
    if not can_hide(SECRETS):
        return NOT_SHOWN
    # Before anything else changes the text: two blanks of a password may become one.
    words = text = redact_foreign(text[:4000])
    title = re.search("(?is)<title[^>]*>(.*?)</title", words)
    if title or is_page(text):
        words = title.group(1) if title else re.sub("(?is)<style.*?</style>|<[^>]*>", " ", words)
    words = " ".join(words.split())
    return quote(words) if words else ""


def refuse_page(reply):
    """Raise StrangeReply for a page, of a device that never answers with one."""
    if reply.status == 200 and is_page(reply.body):
        raise StrangeReply("a web page came instead of an answer: %s (captive portal, set-up mode, "
                           "or another device?)" % describe_body(reply.body))


def is_page(text):
    return text.lstrip()[:1] == "<"


def is_framed(headers):
    """Return whether the headers say where the body ends; an event stream has no end."""
    is_chunked = headers.get("Transfer-Encoding", "").lower() == "chunked"
    is_stream = headers.get("Content-Type", "").startswith("text/event-stream")
    return is_chunked or is_stream or "Content-Length" in headers


def is_whole_by_itself(text):
    """Return whether a body that ends with its connection shows that nothing was cut off.

    SAFETY: JSON has to be whole, a page ends its first element, anything else ends its line. What
    is honest and has no length does so: the pages of HTTP/1.0 boards (Aviosys), OpenBeken's JSON.
    Test: test_a_page_without_a_length_counts_only_when_it_is_whole_by_itself
    """
    shown = text.strip()
    if shown[:1] in ("{", "["):
        try:
            return json.loads(shown) is not None
        except (ValueError, RecursionError):
            return False
    element = re.match(r"(?:<[?!][^>]*>\s*)*<([\w:-]+)", shown)
    if element and shown.lower().endswith("</%s>" % element.group(1).lower()):
        return True
    return not shown or text.endswith("\n")


def find_pause(headers, seconds_left):
    """Return the seconds after which a device that is busy is asked again."""
    wish = headers.get("Retry-After", "").strip()
    seconds = float(wish) if re.fullmatch("[0-9]{1,6}", wish) else 0
    return max(LATER_SECONDS, seconds) if seconds < seconds_left else LATER_SECONDS


# SECTION: HTTP DEVICE -----------------------------------------------------------------------------
# What all devices with a web server have in common. Knows no family of plugs.

def render_origin(settings):
    """Return the beginning of a device's URLs: scheme, host, and a port that is not usual."""
    scheme, usual = ("https", HTTPS_PORT) if uses_tls(settings) else ("http", HTTP_PORT)
    return render_url(scheme, settings.ip, "" if settings.ipport == usual else settings.ipport)


def find_closed_hint(error, closed_hint, is_encrypted):
    """Return what it may mean that the device ended the connection, "" if it did not."""
    is_closed = getattr(error, "was_closed", False)
    is_ended = is_closed or isinstance(error.__cause__, ConnectionResetError)
    hints = [closed_hint] if is_closed and closed_hint else []
    if is_ended and not is_encrypted:
        hints.append("does this port want TLS, ssl=1?")
    return " (%s)" % "; ".join(hints) if hints else ""


def build_http_headers(origin, question, login, content_type):
    # No Origin: ESPHome refuses foreign ones. The Referer is for Tasmota's SetOption128 0.
    headers = {"Referer": origin + "/", "User-Agent": "fencetool/" + __version__}
    if question.body:
        headers["Content-Type"] = content_type or find_content_type(question.body)
    if question.method == "OPTIONS":
        headers["Access-Control-Request-Private-Network"] = "true"
    if login:
        headers["Authorization"] = login.encode("utf-8", "surrogateescape")
    return headers


class HttpDevice(Device):
    """What all devices with a web server have in common: the login, one connection a request.

    A room asks by exchange(), which knows the login; take_outlet_from_urls() is for a family whose
    URLs name an outlet; read_mac() is written where the device tells its MAC by a request of its
    own, and check_identity() then comes before each reading and command.
    """

    default_username = ""
    sends_login_unasked = False  # to a family that never asks for one
    answers_in_pages = False     # a page (HTML) can be its answer
    open_pages = ()              # that never need a login: they tell whom it would go to
    closed_hint = ""             # what it may mean that it answers nothing
    own_headers = {}             # of all its requests, {name: value}
    content_type = ""            # of bodies, "" for what they look like

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.address = settings.ip
        self.username = settings.username or self.default_username
        self.login = Login(self.username, settings.password, self.sends_login_unasked)
        self.good_pages = set()  # that have given a good answer
        self.paths = {name: parse_value(name, lambda url: parse_device_url(url, settings),
                                        getattr(settings, name)) for name in URL_PARAMS}
        for path in self.paths.values():
            system.secrets.update(find_url_secrets(path))

    def take_outlet_from_urls(self, parse):
        """Let the URLs name the outlet, as the caller's plug would; contradictions are refused.

        parse: of a path to (name of the outlet, PowerState or None).
        """
        named = set()
        for name, state in URL_PARAMS.items():
            if self.paths[name]:
                outlet, meant = parse_value(name, parse, self.paths[name])
                if meant is not state:
                    raise UsageError("%s: it switches %s" % (
                        name, meant.value if meant else "nothing"))
                named.add(outlet)
        if self.wanted not in ("", self.label):
            named = named - {""} | {self.wanted}
        if len(named) > 1:
            raise UsageError("the URLs and plug name different outlets: %s"
                             % ", ".join(map(quote, sorted(named))))
        self.wanted = "".join(named) or self.wanted

    def read_mac(self, deadline):
        """Return the MAC that the device tells; most cannot."""
        return ""

    def check_identity(self, deadline):
        if self.settings.device_mac:
            self.check_mac(self.read_mac(deadline))

    def exchange(self, method, path, parse, deadline, listening=None, body=""):
        """Return parse(reply) of one request; an error of either tells what was asked.

        A device that is busy is asked again until the deadline, after a strange reply once.
        """
        try:
            return self._ask_with_patience(
                HttpQuestion(method, path, body), parse, deadline, listening)
        except FenceError as error:
            hint = find_closed_hint(error, self.closed_hint, uses_tls(self.settings))
            raise type(error)("%s %s: %s%s" % (
                method, self.shown_path(path), error, hint)) from error

    def _ask_with_patience(self, question, parse, deadline, listening):
        page = question.path.partition("?")[0]
        strange_replies = 0
        while True:
            try:
                reply = self._ask(question, deadline, listening)
                if reply.status not in ASKED_LATER:
                    if not self.answers_in_pages:
                        refuse_page(reply)
                    answer = parse(reply)
                    self.good_pages.add(page)
                    return answer
                pause = find_pause(reply.headers, deadline.left())
                failure = ProtocolError("the device is busy, and was until the time was up: HTTP "
                                        "status %d %s" % (reply.status, describe_body(reply.body)))
            except StrangeReply as error:
                if page in self.good_pages:
                    raise ProtocolError(str(error)) from error
                strange_replies += 1
                pause, failure = LATER_SECONDS, error
            if strange_replies > 1 or deadline.left() <= pause + SHORTEST_EXCHANGE_SECONDS:
                raise failure
            self.system.debug("asked again in %s: %s" % (render_seconds(pause), failure))
            self.login.forget(is_basic=bool(strange_replies) and not self.login.tried)
            self.system.sleep(pause)

    def _ask(self, question, deadline, listening):
        """Return the HttpReply to one request, after the login that the device asks for."""
        for answers in range(MOST_LOGIN_ANSWERS + 1):
            reply = self._send(question, deadline, listening)
            if reply.status != 401:
                return reply
            asked = reply.headers.get_all("WWW-Authenticate") or []
            if not self.login.take(parse_challenges(asked), is_first=not answers):
                break
        raise self.login.refusal(quote(", ".join(asked), 200) if asked else "nothing",
                                 describe_body(reply.body))

    def path_with_login(self, path):
        """Return the path as it is sent; what is shown and logged is the path without a login."""
        return path

    def shown_path(self, path):
        return path

    def _send(self, question, deadline, listening):
        method, path, _ = question
        origin = render_origin(self.settings)
        login = "" if path in self.open_pages else self.login.build(
            method, self.path_with_login(path))
        headers = build_http_headers(origin, question, login, self.content_type)
        headers.update(self.own_headers)
        self.system.message("%s <- %s %s" % (self.describe(), method, self.shown_path(path)))
        limit = deadline.within(self.settings.shell_timeout)
        body = None
        if method in ("POST", "PUT"):
            body = question.body.encode("utf-8", "surrogateescape")
        request = build_http_request(method, origin + self.path_with_login(path), body, headers)
        reply = send_http_request(lambda: self._connect(limit), request, limit, listening)
        self.system.message("%s -> %d %s" % (self.describe(), reply.status, reply.body))
        return reply

    def _connect(self, deadline):
        # SAFETY: a name is looked up once an action; the proof must come from the device that was
        # switched. Test: test_a_name_that_changes_its_address_changes_no_device
        settings = self.settings
        connection = self.system.connect(self.address, settings.ipport, settings.family,
                                         deadline.within(settings.login_timeout))
        try:
            self.address = connection.peer
            if uses_tls(settings):
                connection.start_tls(settings.ip, not settings.ssl_insecure, deadline)
            return connection
        except FenceError:
            connection.close()
            raise


class HttpOutlet(OpenedOutlet):
    """An outlet behind a web server.

    A class of part 3 has read_state, send_command and, where there is a meter, read_power_meter.
    """

    def read(self, deadline):
        self.device.check_identity(deadline)
        return self.read_state(deadline)

    def send(self, wanted, deadline):
        self.device.check_identity(deadline)
        self.send_command(wanted, deadline)

    def read_meter(self, deadline):
        self.device.check_identity(deadline)
        return self.read_power_meter(deadline)

    def read_power_meter(self, deadline):
        return NO_METER


# PART 3: DEVICES ==================================================================================

# SECTION: KASA ------------------------------------------------------------------------------------
# TP-Link Kasa plugs and strips over their legacy protocol: JSON under an autokey XOR on TCP port
# 9999, each message behind its length in four bytes. There is no login, and no number that ties a
# reply to its request. A strip is a device with children; a request without a child's id goes to
# its first outlet or to all of them, by firmware.
# Source: python-kasa 0.12 kasa/transports/xortransport.py and its device captures, softScheck
# tplink-smartplug; read 2026-10. Seen: documents only.

KASA_FIRST_KEY = 171
KASA_CLOSED_HINT = ("newer firmware closes this port unless Third-Party Compatibility is on in the "
                    "app, and speaks KLAP on port 80")

# doubt_about_list: why there may be more outlets than these, "" when these are all.
KasaInfo = namedtuple("KasaInfo", "mac device_id outlets is_strip has_meter doubt_about_list")


def encrypt_kasa(plain):
    """Return the bytes under the autokey XOR: each cipher byte is the key of the next one."""
    key = KASA_FIRST_KEY
    cipher = bytearray()
    for byte in plain:
        key ^= byte
        cipher.append(key)
    return bytes(cipher)


def decrypt_kasa(cipher):
    keys = bytes([KASA_FIRST_KEY]) + cipher
    return bytes(byte ^ key for byte, key in zip(cipher, keys))


def build_kasa_message(request):
    """Return a request (dict) as one datagram; a frame has its length before it."""
    return encrypt_kasa(json.dumps(request, separators=(",", ":")).encode("utf-8"))


def build_kasa_frame(request):
    message = build_kasa_message(request)
    return struct.pack(">I", len(message)) + message


def build_kasa_request(module, method, arguments, child_id=None):
    """Return the request for one method; child_id addresses one outlet of a strip.

    SAFETY: exactly one id, or none for a device without children: with several ids or none, strips
    have switched their first outlet or all of them (python-kasa #637, softScheck PR #79).
    Test: test_a_strip_is_switched_with_exactly_one_child_id
    """
    request = {} if child_id is None else {"context": {"child_ids": [child_id]}}
    request[module] = {method: arguments}
    return request


def parse_kasa_length(header):
    """Return the length of the reply behind a header; StrangeReply where no Kasa device can be.

    HTTP, SSH, TLS and the like begin with letters or version numbers, and claim millions of bytes.
    """
    length = struct.unpack(">I", header)[0]
    if length > MAX_REPLY_BYTES:
        raise StrangeReply("the reply claims a length of %d bytes (does another service listen on "
                           "this port?)" % length)
    if length < 2:
        # Seen from sick devices, and from some that had just started (python-kasa #187).
        raise ProtocolError("the reply claims a length of %d bytes, which is no answer" % length)
    return length


def parse_kasa_message(message):
    """Return the JSON object in a reply's payload; StrangeReply for another protocol."""
    plain = decrypt_kasa(message)
    if plain[:1] != b"{":
        raise StrangeReply("the reply of %d bytes is not Kasa's protocol (does another service "
                           "listen on this port?)" % len(message))
    # An alias may come in another encoding than UTF-8, and harms nothing but itself.
    return parse_json_object(plain.decode("utf-8", "surrogateescape"))


# What a device answers that has no such module, method, or outlet. Asking again changes nothing; of
# all other codes nobody knows that.
KASA_MISSING = (-1, -2, -2001, -10008)
KASA_INVALID = -3


def parse_kasa_answer(reply, module, method):
    """Return (err_code, result) of one method; raise ProtocolError unless the reply is one answer.

    SAFETY: where two err_codes differ, or an error comes with a result, nobody knows which counts.
    Test: test_an_answer_that_contradicts_itself_is_no_success
    """
    where = "the reply to %s" % method
    part = require_member(reply, module, dict, where)
    # An error sits in the method's result, or in the module's place when it lacks the module.
    is_of_module = method not in part and "err_code" in part
    result = part if is_of_module else require_member(part, method, dict, where)
    code = require_member(result, "err_code", int, where)
    for level in (reply, part):
        if "err_code" in level and require_member(level, "err_code", int, where) != code:
            raise ProtocolError("%s holds two error codes, %d and %d"
                                % (where, level["err_code"], code))
    if code == 0 and is_of_module:
        raise ProtocolError("%s holds no %s" % (where, method))
    if code != 0 and not set(result) <= {"err_code", "err_msg"}:
        raise ProtocolError("%s is error %d, and holds a result all the same" % (where, code))
    return code, result


def describe_kasa_error(method, code, result):
    return "the device refuses %s with error %d %s" % (
        method, code, quote(str(result.get("err_msg", ""))))


def parse_kasa_result(reply, module, method):
    """Return the result object of one method in a reply; err_code must be 0."""
    code, result = parse_kasa_answer(reply, module, method)
    if code in KASA_MISSING or code == KASA_INVALID:
        raise Refused(describe_kasa_error(method, code, result))
    if code != 0:
        raise ProtocolError(describe_kasa_error(method, code, result))
    return result


def parse_kasa_relay(value, where):
    """Return the PowerState of a relay: the integer 0 or 1, and neither false nor "0"."""
    text = json.dumps(value)
    if text not in ("0", "1"):
        raise ProtocolError("%s is neither 0 nor 1: %s" % (where, quote(text)))
    return PowerState.ON if text == "1" else PowerState.OFF


def parse_kasa_description(info):
    """Return the KasaInfo in a sysinfo result; raise ProtocolError where it contradicts itself."""
    where = "the device's description"
    device_id = require_member(info, "deviceId", str, where)
    if not device_id:
        raise ProtocolError("%s has an empty deviceId" % where)
    kind = str(info.get("type", info.get("mic_type", "")))
    if "BULB" in kind.upper():
        raise Refused("the device is a bulb (%s), not a plug" % quote(kind))
    is_strip = "children" in info
    if is_strip is ("relay_state" in info):
        raise Refused("%s holds %s of relay_state (a plug) and children (a strip)"
                      % (where, "both" if is_strip else "neither"))
    outlets = (parse_kasa_children(info, device_id) if is_strip
               else parse_kasa_plug(info, device_id))
    has_meter = "ENE" in str(info.get("feature", "")).split(":")
    return KasaInfo(mac=info.get("mac", info.get("mic_mac")), device_id=device_id, outlets=outlets,
                    is_strip=is_strip, has_meter=has_meter, doubt_about_list="")


def parse_kasa_plug(info, device_id):
    state = parse_kasa_relay(info["relay_state"], "relay_state")
    return (Outlet(1, parse_kasa_alias(info), (device_id, device_id.lower()), state),)


def parse_kasa_alias(info):
    return info["alias"] if isinstance(info.get("alias"), str) else ""


def parse_kasa_children(info, device_id):
    """Return the outlets of a strip by their numbers, in the order of the case.

    The order of the list is not that on the case (HS300 1.0.21 lists 00,01,02,03,05,04).
    """
    children = require_member(info, "children", list, "the device's description")
    count = require_member(info, "child_num", int, "the device's description")
    if not children or count != len(children):
        raise ProtocolError("the device lists %d outlets and says that it has %d"
                            % (len(children), count))
    outlets = [parse_kasa_child(child, device_id) for child in children]
    if len({outlet.number for outlet in outlets}) != len(outlets):
        raise ProtocolError("two outlets have the same number: %s" % describe_outlets(outlets))
    return tuple(sorted(outlets))


def parse_kasa_child(child, device_id):
    """Return one Outlet; its number on the case is the last two digits of its id, plus one."""
    if not isinstance(child, dict):
        raise ProtocolError("an outlet is not an object: %s" % quote(json.dumps(child)))
    identifier = require_member(child, "id", str, "an outlet")
    # The bare number comes first or last, the whole id does not: both forms name the outlet.
    if not re.fullmatch("[0-9A-Za-z_]*[0-9]{2}", identifier):
        raise ProtocolError("the outlet id %s does not end in two digits" % quote(identifier))
    suffix = identifier[-2:]
    identifiers = (identifier, identifier.lower(), (device_id + suffix).lower())
    state = parse_kasa_relay(child.get("state"), "the state of outlet %s" % quote(identifier))
    return Outlet(int(suffix) + 1, parse_kasa_alias(child), identifiers, state)


KASA_POWER_UNITS = {"power_mw": 0.001, "power": 1.0}  # all others, and hardware 1
KASA_SAME_WATTS = 0.1  # that the same reading may differ by in both units


def parse_kasa_watts(result):
    """Return watts from a meter result, in either unit or in both of them."""
    values = []
    for name in [name for name in KASA_POWER_UNITS if name in result]:
        if not is_number(result[name]):
            raise ProtocolError("the meter's %s is not a number: %s"
                                % (name, quote(json.dumps(result[name]))))
        values.append(limit_watts(result[name]) * KASA_POWER_UNITS[name])
    if not values:
        raise ProtocolError("the meter tells neither of power and power_mw")
    if max(values) - min(values) > KASA_SAME_WATTS:
        raise ProtocolError("the meter tells both %g W and %g W" % (max(values), min(values)))
    return max(values, key=abs)


def check_kasa_slot(result, number):
    """Raise ProtocolError where a meter says that it measured another outlet of a strip.

    The HS300 of hardware 2 tells a slot_id, which no document explains: all its captures are of
    requests without a child's id, and say 0. It is taken for the outlet's index or for its number.
    """
    slot = result.get("slot_id", number)
    if type(slot) is not int or slot not in (number - 1, number):
        raise ProtocolError("the meter's answer is about slot_id %s, and outlet %d was asked "
                            "(power_meter=ignore does without the meter)"
                            % (quote(json.dumps(slot)), number))


def parse_kasa_meter(reply, number):
    """Return the MeterReading in a reply to the meter's question; number: of a strip's outlet."""
    code, result = parse_kasa_answer(reply, "emeter", "get_realtime")
    if code in KASA_MISSING:
        return MeterReading(None, describe_kasa_error("get_realtime", code, result))
    result = parse_kasa_result(reply, "emeter", "get_realtime")
    if number is not None:
        check_kasa_slot(result, number)
    return MeterReading(parse_kasa_watts(result), "")


def parse_kasa_sysinfo(reply):
    return parse_kasa_description(parse_kasa_result(reply, "system", "get_sysinfo"))


class IotPayload:
    """What a plug is asked in Kasa's own JSON, whatever carries it. See TP-LINK."""

    may_answer_once = True

    def describe(self, ask):
        """Return the KasaInfo; asked alone: mixed queries have crashed devices."""
        return ask(build_kasa_request("system", "get_sysinfo", {}), parse_kasa_sysinfo)

    def switch(self, ask, child_id, wanted):
        state = {"state": 1 if wanted is PowerState.ON else 0}
        ask(build_kasa_request("system", "set_relay_state", state, child_id),
            lambda reply: parse_kasa_result(reply, "system", "set_relay_state"))

    def read_meter(self, ask, child_id, number):
        """Return the MeterReading; number: of a strip's outlet, None of a plug."""
        return ask(build_kasa_request("emeter", "get_realtime", {}, child_id),
                   lambda reply: parse_kasa_meter(reply, number))

    def read_meter_with_description(self, ask, child_id, number):
        """Return (KasaInfo, MeterReading) of one message.

        Mixed queries have crashed devices: it is for those alone that leave no other way.
        """
        # Under a child's id, strips describe themselves as without (pyHS100 #160, HA #54234).
        request = build_kasa_request("emeter", "get_realtime", {}, child_id)
        return ask(dict(request, system={"get_sysinfo": {}}),
                   lambda reply: (parse_kasa_sysinfo(reply), parse_kasa_meter(reply, number)))


class KasaConnection:
    """The legacy protocol as a transport (see TP-LINK): one TCP connection is one session."""

    carries_smart = False

    def __init__(self, system, settings, describe, port):
        self.system = system
        self.settings = settings
        self.describe = describe  # returns the device's name and address, for messages
        self.port = port
        self.opened = None        # a Connection for the first session, if there is one already
        self.session = None       # the Connection in use
        self.answers = 0          # that came over it

    def open(self, deadline):
        self.session, self.opened = self.opened, None
        if not self.session:
            self.session = self.system.connect(
                self.settings.ip, self.port, self.settings.family,
                deadline.within(self.settings.login_timeout), KASA_CLOSED_HINT)
        self.answers = 0

    def close(self):
        if self.session:
            self.session.close()
            self.session = None

    def ask(self, request, deadline):
        """Send one request, once; return the reply, a dict."""
        self.system.message("%s <- %s" % (self.describe(), json.dumps(request)))
        limit = deadline.within(self.settings.shell_timeout)
        self._check_silence()
        self.session.send(build_kasa_frame(request), limit)
        message = self.session.receive(
            parse_kasa_length(self.session.receive(4, limit)), limit)
        self.system.message("%s -> %s" % (self.describe(), decrypt_kasa(message).decode(
            "utf-8", "backslashreplace")))
        self._check_silence()
        self.answers += 1
        return parse_kasa_message(message)

    def _check_silence(self):
        # SAFETY: with two answers to one request, nobody knows which of them is true.
        # Test: test_two_answers_to_one_question_are_none
        if self.session.holds_unasked_bytes():
            raise ProtocolError("the device sent more than one answer to one request")


# SECTION: KLAP ------------------------------------------------------------------------------------
# TP-Link's protocol over HTTP: a handshake that proves to both sides that the other one knows the
# account's password, and then messages under AES-128-CBC. What travels in it is none of its
# concern. The standard library has no AES, so it is here, for KLAP and for nothing else.
# Source: FIPS 197 and NIST SP 800-38A (AES, CBC), RFC 5652 6.3 (padding); python-kasa 0.12
# kasa/transports/klaptransport.py; read 2026-11. Seen: documents only.

AES_BLOCK_BYTES = 16
AES_ROUNDS = 10

# round_tables: the substitution of a byte, spread by the mixing of its column, for each place in a
# word; last_table: the bare substitution, since the last round mixes nothing.
AesTables = namedtuple("AesTables", "round_tables last_table")


def double_in_field(byte):
    """Return a byte times two in the field of AES."""
    return byte << 1 ^ (0x11B if byte & 0x80 else 0)


def build_substitution():
    """Return the S-box: each byte's inverse in the field, its bits mixed."""
    powers = [1]  # of 3, whose powers are all bytes but 0
    while len(powers) < 255:
        powers.append(powers[-1] ^ double_in_field(powers[-1]))
    substitution = [0x63] * 256
    for exponent, byte in enumerate(powers):
        inverse = powers[-exponent % 255]
        mixed = 0x63
        for turn in range(5):
            mixed ^= (inverse << turn | inverse >> 8 - turn) & 0xFF
        substitution[byte] = mixed
    return substitution


def build_aes_tables(substitution, factors):
    """Return the AesTables of one direction; factors: of the first row when columns are mixed."""
    words = []
    for byte in substitution:
        multiples = [byte]
        while len(multiples) < 4:
            multiples.append(double_in_field(multiples[-1]))
        word = 0
        for factor in factors:
            part = 0
            for bit, multiple in enumerate(multiples):
                part ^= multiple if factor >> bit & 1 else 0
            word = word << 8 | part
        words.append(word)
    round_tables = [[word >> shift | word << 32 - shift & 0xFFFFFFFF for word in words]
                    for shift in (0, 8, 16, 24)]
    return AesTables(round_tables, substitution)


AES_TABLES = []  # the pair of encryption and of decryption, from its first use on


def find_aes_tables():
    """Return the AesTables (of encryption, of decryption)."""
    if not AES_TABLES:
        substitution = build_substitution()
        inverse = [0] * 256
        for byte, substitute in enumerate(substitution):
            inverse[substitute] = byte
        # As one: another thread that comes in between sees both, or none and makes its own.
        AES_TABLES.append((build_aes_tables(substitution, (2, 1, 1, 3)),
                           build_aes_tables(inverse, (14, 9, 13, 11))))
    return AES_TABLES[0]


def expand_aes_key(key):
    """Return the keys of all rounds, each as four words."""
    substitution = find_aes_tables()[0].last_table
    words = list(struct.unpack(">4I", key))
    constant = 1
    while len(words) < 4 * (AES_ROUNDS + 1):
        word = words[-1]
        if len(words) % 4 == 0:
            turned = struct.pack(">I", word << 8 & 0xFFFFFFFF | word >> 24)
            word = int.from_bytes(bytes(substitution[byte] for byte in turned), "big")
            word ^= constant << 24
            constant = double_in_field(constant)
        words.append(words[-4] ^ word)
    return [tuple(words[at:at + 4]) for at in range(0, len(words), 4)]


def invert_aes_keys(round_keys):
    """Return the keys of all rounds as decryption takes them: backwards, and mixed inversely.

    Its words come backwards too, here and in each block: then its rows move as in encryption, and
    transform_aes_block does both.
    """
    encryption, decryption = find_aes_tables()
    found = [tuple(reversed(words)) for words in reversed(round_keys)]
    for number in range(1, AES_ROUNDS):
        mixed = []
        for word in found[number]:
            parts = [table[encryption.last_table[byte]] for table, byte in zip(
                decryption.round_tables, struct.pack(">I", word))]
            mixed.append(parts[0] ^ parts[1] ^ parts[2] ^ parts[3])
        found[number] = tuple(mixed)
    return found


def transform_aes_block(block, round_keys, tables):
    """Return four words encrypted, or decrypted, as keys and tables are of the one or the other."""
    table0, table1, table2, table3 = tables.round_tables
    w0, w1, w2, w3 = (word ^ key for word, key in zip(block, round_keys[0]))
    for k0, k1, k2, k3 in round_keys[1:-1]:
        w0, w1, w2, w3 = (
            table0[w0 >> 24] ^ table1[w1 >> 16 & 255] ^ table2[w2 >> 8 & 255] ^ table3[w3 & 255]
            ^ k0,
            table0[w1 >> 24] ^ table1[w2 >> 16 & 255] ^ table2[w3 >> 8 & 255] ^ table3[w0 & 255]
            ^ k1,
            table0[w2 >> 24] ^ table1[w3 >> 16 & 255] ^ table2[w0 >> 8 & 255] ^ table3[w1 & 255]
            ^ k2,
            table0[w3 >> 24] ^ table1[w0 >> 16 & 255] ^ table2[w1 >> 8 & 255] ^ table3[w2 & 255]
            ^ k3)
    last = tables.last_table
    words = (w0, w1, w2, w3, w0, w1, w2)
    return tuple((last[words[at] >> 24] << 24 | last[words[at + 1] >> 16 & 255] << 16
                  | last[words[at + 2] >> 8 & 255] << 8 | last[words[at + 3] & 255]) ^ key
                 for at, key in enumerate(round_keys[-1]))


def split_aes_blocks(data):
    return [struct.unpack(">4I", data[at:at + AES_BLOCK_BYTES])
            for at in range(0, len(data), AES_BLOCK_BYTES)]


def encrypt_aes_cbc(key, iv, plain):
    """Return the bytes padded and under AES-128-CBC; key and iv are of 16 bytes."""
    padding = AES_BLOCK_BYTES - len(plain) % AES_BLOCK_BYTES
    round_keys, tables = expand_aes_key(key), find_aes_tables()[0]
    chain = struct.unpack(">4I", iv)
    found = []
    for block in split_aes_blocks(plain + bytes([padding]) * padding):
        mixed = [word ^ link for word, link in zip(block, chain)]
        chain = transform_aes_block(mixed, round_keys, tables)
        found.append(struct.pack(">4I", *chain))
    return b"".join(found)


def decrypt_aes_cbc(key, iv, cipher):
    """Return the bytes without their padding; raise ProtocolError where that is not as it must be.
    """
    if not cipher or len(cipher) % AES_BLOCK_BYTES:
        raise ProtocolError("%d bytes are no whole blocks of %d" % (len(cipher), AES_BLOCK_BYTES))
    round_keys, tables = invert_aes_keys(expand_aes_key(key)), find_aes_tables()[1]
    chain = struct.unpack(">4I", iv)
    found = []
    for block in split_aes_blocks(cipher):
        words = transform_aes_block(block[::-1], round_keys, tables)[::-1]
        found.append(struct.pack(">4I", *[word ^ link for word, link in zip(words, chain)]))
        chain = block
    plain = b"".join(found)
    padding = plain[-1]
    if not 1 <= padding <= AES_BLOCK_BYTES or plain[-padding:] != bytes([padding]) * padding:
        raise ProtocolError("what was decrypted does not end as it must")
    return plain[:-padding]


KLAP_SEED_BYTES, KLAP_HASH_BYTES = 16, 32
KLAP_COOKIE = "TP_SESSIONID"
KLAP_LAST_SEQUENCE = 2147483647
# The P100 refuses a connection that comes sooner behind an answer (python-kasa #676, #930).
KLAP_PAUSE_SECONDS = 0.25
# By chance as long as this, so that two clients do not meet again and again.
SHORTEST_LOSS_SECONDS, LONGEST_LOSS_SECONDS = 0.1, 0.5
DISCOVERY_PORT, DISCOVERY_SECONDS, DISCOVERY_HEADER_BYTES = 20002, 1.0, 16
# Version 2, type 0, operation 1 and a checksum: a question without a body.
DISCOVERY_PROBE = bytes.fromhex("020000010000000000000000463cb5d3")
COMPATIBILITY_HINT = ("turn on Third-Party Compatibility in the Tapo or Kasa app (Me > Third-Party "
                      "Services), again after each update of the firmware")

KlapLogin = namedtuple("KlapLogin", "username password")
# What devices have that no account has been set up on, and some that have been.
KLAP_DEFAULTS = (KlapLogin("kasa@tp-link.net", "kasaSetup"), KlapLogin("test@tp-link.net", "test"),
                 KlapLogin("", ""))
# A login as one version of the protocol hashes it. login: a KlapLogin.
KlapProof = namedtuple("KlapProof", "version login auth_hash")


def build_klap_proof(version, login):
    """Return the KlapProof of a login; raise ValueError where this machine refuses the hash."""
    import hashlib
    inner = hashlib.md5 if version == 1 else hashlib.sha1
    outer = hashlib.md5 if version == 1 else hashlib.sha256
    both = b"".join(inner(text.encode("utf-8", "surrogateescape")).digest() for text in login)
    return KlapProof(version, login, outer(both).digest())


def hash_klap(*parts):
    import hashlib
    return hashlib.sha256(b"".join(parts)).digest()


def build_klap_hash(proof, own_seed, other_seed):
    """Return what proves to the other side that this one knows the login."""
    if proof.version == 1:
        return hash_klap(own_seed, proof.auth_hash)
    return hash_klap(own_seed, other_seed, proof.auth_hash)


def find_klap_proof(logins, local_seed, remote_seed, server_hash):
    """Return the KlapProof of the login and version by which the device has proven itself.

    One answer tells which it is, so nothing has to be tried on the device. Raises Refused when it
    is none of them.
    """
    import hmac
    refused = []
    for version in (2, 1):
        try:
            proofs = [build_klap_proof(version, login) for login in logins]
        except ValueError as error:  # a machine in FIPS mode has no MD5
            refused.append("; this machine refuses the hash of version %d of the protocol: %s"
                           % (version, error))
            continue
        for proof in proofs:
            if hmac.compare_digest(build_klap_hash(proof, local_seed, remote_seed), server_hash):
                return proof
    given = logins[0]
    if given in KLAP_DEFAULTS:
        raise Refused("the device wants the login of a TP-Link account: set username and password "
                      "to those that it was set up with%s" % "".join(refused))
    raise Refused("the device refuses the login of user %s: it has to be the TP-Link account that "
                  "the device was set up with (capital letters of the e-mail address count; after "
                  "a change of the password remove the device in the app and add it again)%s"
                  % (quote(given.username), "".join(refused)))


def parse_klap_challenge(reply):
    """Return (remote seed, server hash) of the answer to the first step."""
    if reply.status == 403:
        raise StrangeReply("the device lets no other program in (HTTP status 403): "
                           + COMPATIBILITY_HINT)
    check_http_answer(show_http_body(reply))
    if len(reply.body) != KLAP_SEED_BYTES + KLAP_HASH_BYTES:
        shown = show_http_body(reply).body
        # Source: HA #162220, python-kasa. The older scheme answers so, and JSON to some.
        if "200 OK" in shown or '"error_code"' in shown:
            raise StrangeReply("the device speaks the older protocol of Tapo (AES, "
                               "securePassthrough), which is not supported: update its firmware")
        raise StrangeReply("the answer of %d bytes is not KLAP's (a web page or a captive "
                           "portal?) %s" % (len(reply.body), describe_body(shown)))
    return reply.body[:KLAP_SEED_BYTES], reply.body[KLAP_SEED_BYTES:]


def parse_klap_cookie(headers):
    """Return the number of the session; its time limit rides in the same header."""
    lines = headers.get_all("Set-Cookie") or []
    found = {match for line in lines
             for match in re.findall(r"(?:^|;)\s*%s=([^;\s]+)" % KLAP_COOKIE, line)}
    if len(found) != 1:
        raise ProtocolError("the device gives %s session (cookie %s)"
                            % ("more than one" if found else "no", KLAP_COOKIE))
    return found.pop()


def parse_discovery(message):
    """Return the word that a device announces for its protocol, "" for anything else."""
    try:
        reply = json.loads(message[DISCOVERY_HEADER_BYTES:].decode("utf-8"))
        # Anybody may have sent it, and it becomes a part of a reason.
        return re.fullmatch("[A-Z0-9_]{1,16}", reply["result"]["mgt_encrypt_schm"][
            "encrypt_type"]).group()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""


class KlapSession:
    """The keys of one session, which follow from both seeds and the login."""

    def __init__(self, proof, local_seed, remote_seed, cookie):
        secret = local_seed + remote_seed + proof.auth_hash
        self.version = proof.version
        self.cookie = cookie
        self.client_hash = build_klap_hash(proof, remote_seed, local_seed)
        self.key = hash_klap(b"lsk", secret)[:AES_BLOCK_BYTES]
        vector = hash_klap(b"iv", secret)
        self.vector = vector[:12]
        self.sequence = struct.unpack(">i", vector[-4:])[0]
        self.signer = hash_klap(b"ldk", secret)[:28]

    def seal(self, plain):
        """Return the body of the next request."""
        self.sequence += 1
        return self.seal_answer(plain)

    def seal_answer(self, plain):
        """Return the body that a device answers the last request with."""
        cipher = encrypt_aes_cbc(self.key, self._vector(), plain)
        return self._sign(cipher) + cipher

    def unseal(self, body):
        """Return what the answer to the last request says; raise ProtocolError for any other.

        SAFETY: a signature holds for one request of one session: an answer to another one, of
        another device or of a proxy, is none.
        Test: test_a_reply_counts_only_with_the_signature_of_its_own_request
        """
        import hmac
        signature, cipher = body[:KLAP_HASH_BYTES], body[KLAP_HASH_BYTES:]
        if not hmac.compare_digest(signature, self._sign(cipher)):
            text = body.decode("utf-8", "backslashreplace")
            # Only now: a signature may begin like a page.
            raise ProtocolError("the answer of %d bytes is not signed by the device%s" % (
                len(body), ": " + describe_body(text) if is_page(text) else ""))
        return decrypt_aes_cbc(self.key, self._vector(), cipher)

    def _number(self):
        return struct.pack(">i", self.sequence)

    def _vector(self):
        return self.vector + self._number()

    def _sign(self, cipher):
        return hash_klap(self.signer, self._number(), cipher)


class KlapTransport:
    """KLAP as a transport (see TP-LINK): a handshake begins a session, each request is a POST."""

    def __init__(self, system, settings, describe, port):
        self.system = system
        self.settings = settings
        self.describe = describe  # returns the device's name and address, for messages
        self.port = port
        self.opened = None        # a Connection for the first request, if there is one already
        self.address = settings.ip
        self.session = None       # the KlapSession
        self.answers = 0          # to the requests of the session
        self.has_answered = False   # to anything, in this action
        self.has_been_open = False  # a session, in this action
        self.pause_s = 0          # before each request
        self.answered_at = system.clock()

    @property
    def carries_smart(self):
        return self.session.version > 1  # there is none with version 1

    def close(self):
        self.session = None
        if self.opened:
            self.opened.close()
            self.opened = None

    def open(self, deadline):
        """Begin a session. Strange replies are believed when they come twice."""
        try:
            self._open_once(deadline)
            return
        except StrangeReply as error:
            if self.has_been_open:  # and then it is no more than a doubt
                raise ProtocolError(str(error)) from error
            failure, pause = error, LATER_SECONDS
        except Unreachable as error:
            if not error.was_closed:
                raise
            failure, pause = error, 0
        if deadline.left() <= pause + SHORTEST_EXCHANGE_SECONDS:
            raise failure
        self.system.debug("a session is tried again: %s" % failure)
        self.system.sleep(pause)
        try:
            self._open_once(deadline)
        except StrangeReply as error:
            announced = tell_announced(self.system, self.address, self.settings.family, deadline)
            raise StrangeReply("%s%s" % (error, announced)) from error

    def _open_once(self, deadline):
        local_seed = os.urandom(KLAP_SEED_BYTES)
        reply = self._post("handshake1", local_seed, "", deadline)
        remote_seed, server_hash = parse_klap_challenge(reply)
        cookie = parse_klap_cookie(reply.headers)
        given = KlapLogin(self.settings.username, self.settings.password)
        proof = find_klap_proof((given,) + KLAP_DEFAULTS, local_seed, remote_seed, server_hash)
        if proof.login != given:
            self.system.warn("%s takes a login that everybody knows: is it set up in the app?"
                             % self.describe())
        session = KlapSession(proof, local_seed, remote_seed, cookie)
        reply = self._post("handshake2", session.client_hash, cookie, deadline)
        if reply.status != 200:
            text = ("the device ends the session before it began (HTTP status %d): does another "
                    "client log in all the time?" % reply.status)
            if reply.status == 403:
                self._lose_session(text, deadline)
            raise ProtocolError(text)
        self.session, self.answers, self.has_been_open = session, 0, True

    def ask(self, request, deadline):
        """Send one request, once; return the reply, a dict."""
        if self.session.sequence >= KLAP_LAST_SEQUENCE:
            raise Unreachable("the numbers of this session are used up", was_closed=True)
        self.system.message("%s <- %s" % (self.describe(), json.dumps(request)))
        body = self.session.seal(json.dumps(request, separators=(",", ":")).encode("utf-8"))
        reply = self._post("request?seq=%d" % self.session.sequence, body, self.session.cookie,
                           deadline)
        plain = self._read(reply, deadline)
        self.answers += 1
        self.system.message("%s -> %s" % (self.describe(), plain.decode(
            "utf-8", "backslashreplace")))
        return parse_json_object(plain.decode("utf-8", "surrogateescape"))

    def _read(self, reply, deadline):
        """Return what the answer to a request says.

        Firmware forgets a session, or answers the first request of one alone (python-kasa #784,
        #1580, #1715): what is no answer behind a good one is the end of the session.

        SAFETY: status 403 alone says that the request was not read. Behind any other answer it may
        have been obeyed, and what is asked again then has its limit.
        Test: test_only_status_403_is_a_session_lost_to_another_client
        """
        if reply.status == 403:
            self._lose_session("the device has ended the session (HTTP status 403): does another "
                               "client (the app, Home Assistant) use it?", deadline)
        try:
            check_http_answer(show_http_body(reply))
            return self.session.unseal(reply.body)
        except (ProtocolError, StrangeReply) as error:
            if self.answers:
                raise Unreachable(str(error), was_closed=True) from error
            raise ProtocolError(str(error)) from error

    def _lose_session(self, text, deadline):
        pause_by_chance(self.system, deadline)
        raise SessionLost(text, was_closed=bool(self.session and self.answers))

    def _post(self, step, body, cookie, deadline):
        """Return the HttpReply of one step, its body as bytes."""
        headers = {"Content-Type": "application/octet-stream",
                   "User-Agent": "fencetool/" + __version__}
        if cookie:
            headers["Cookie"] = "%s=%s" % (KLAP_COOKIE, cookie)
        url = "%s/app/%s" % (render_url("http", self.settings.ip, self.port), step)
        waited = self.system.clock() - self.answered_at
        if waited < self.pause_s:
            self.system.sleep(self.pause_s - waited)
        limit = deadline.within(self.settings.shell_timeout)
        try:
            request = build_http_request("POST", url, body, headers)
            reply = send_http_bytes(lambda: self._connect(limit), request, limit)
        except Unreachable as error:
            if not self.has_answered or not is_ended_connection(error):
                raise
            self.pause_s = KLAP_PAUSE_SECONDS
            raise Unreachable(str(error), was_closed=True) from error
        self.system.message("%s -> %s: HTTP status %d" % (
            self.describe(), step.partition("?")[0], reply.status))
        self.has_answered, self.answered_at = True, self.system.clock()
        return reply

    def _connect(self, deadline):
        def connect(limit):
            return self.system.connect(self.address, self.port, self.settings.family, limit)
        connection, self.opened = self.opened, None
        if not connection and self.has_answered:
            connection = connect(deadline.within(self.settings.login_timeout))
        connection = connection or connect_awake(self.system, self.settings, deadline, connect)
        self.address = connection.peer  # a name is looked up once an action
        return connection


def tell_announced(system, address, family, deadline):
    """Return what a device says of its protocol, as the end of a reason."""
    announced = parse_discovery(system.ask_by_datagram(
        address, DISCOVERY_PORT, family, DISCOVERY_PROBE, deadline.within(DISCOVERY_SECONDS)))
    return "; it announces the protocol %s" % quote(announced) if announced else ""


def pause_by_chance(system, deadline):
    """Wait behind a session that was lost: clients that go on at once throw out each other."""
    chance = os.urandom(1)[0] / 255
    pause = SHORTEST_LOSS_SECONDS + chance * (LONGEST_LOSS_SECONDS - SHORTEST_LOSS_SECONDS)
    system.sleep(min(pause, deadline.left()))


def is_ended_connection(error):
    """Return whether an Unreachable tells that the device has refused or ended a connection."""
    return error.was_closed or isinstance(error.__cause__, ConnectionError)


def connect_awake(system, settings, deadline, connect):
    """Return connect(limit), tried again behind a datagram when nobody was there.

    After a power failure the web server of a P110 is closed for minutes, unless the app looks for
    devices (home-assistant-tapo-p100 #958).
    """
    try:
        return connect(deadline.within(settings.login_timeout))
    except Unreachable as error:
        system.debug("%s is asked by a datagram whether it is there: %s" % (settings.ip, error))
    system.ask_by_datagram(settings.ip, DISCOVERY_PORT, settings.family, DISCOVERY_PROBE,
                           deadline.within(DISCOVERY_SECONDS))
    return connect(deadline.within(settings.login_timeout))


# SECTION: TAPO ------------------------------------------------------------------------------------
# What Tapo plugs and newer Kasa ones are asked over KLAP: JSON that TP-Link calls SMART. Each reply
# has its error_code, at every level. A strip lists its outlets in any order; their position is the
# number on the case.
# Source: python-kasa 0.12 kasa/smart, kasa/exceptions.py and its device captures; read 2026-11.
# Seen: documents only.

TAPO_UNKNOWN_METHOD = -1002
TAPO_SESSION_ERRORS = (9999, -40401, -40413)
TAPO_LOGIN_ERRORS = (1003, 1100, 1111, -1005, -1501)
TAPO_METER_COMPONENT = "energy_monitoring"
MOST_TAPO_OUTLETS = 100

# One way to ask a meter. unit_watts: that the member counts in; current_power has two units.
# UNVERIFIED: that these meters measure while the relay is off; a load that they show is one.
TapoMeter = namedtuple("TapoMeter", "method member unit_watts")
TAPO_METERS = (TapoMeter("get_emeter_data", "power_mw", 0.001),
               TapoMeter("get_energy_usage", "current_power", 0.001),
               TapoMeter("get_current_power", "current_power", 1.0))


def build_tapo_request(method, params, child_id=None):
    """Return the request for one method; child_id: of the outlet of a strip that it is for."""
    request = {"method": method}
    if params:
        request["params"] = params
    if child_id is None:
        return request
    return {"method": "control_child", "params": {"device_id": child_id, "requestData": request}}


def parse_tapo_answer(reply, method, child_id=None):
    """Return (error_code, result) of one method, whose reply is inside that of a child's strip.

    SAFETY: the outer error_code says nothing about the inner one.
    Test: test_an_error_inside_a_success_is_an_error
    """
    where = "the reply to %s" % method
    if child_id is not None:
        outer = parse_tapo_result(reply, "control_child")
        reply = require_member(outer, "responseData", dict, where)
    code = require_member(reply, "error_code", int, where)
    result = require_member(reply, "result", dict, where) if "result" in reply else {}
    if code != 0 and result:
        raise ProtocolError("%s is error %d, and holds a result all the same" % (where, code))
    return code, result


def parse_tapo_result(reply, method, child_id=None):
    """Return the result of one method; every error_code in its reply must be 0."""
    code, result = parse_tapo_answer(reply, method, child_id)
    text = "the device refuses %s with error %d" % (method, code)
    if code in TAPO_SESSION_ERRORS:
        raise Unreachable(text + ": the session has expired", was_closed=True)
    if code in TAPO_LOGIN_ERRORS:
        raise Refused(text + ", which is about the login or the protocol")
    if code != 0:
        raise ProtocolError(text)
    return result


def parse_tapo_state(members, where):
    """Return the PowerState of a relay: true or false, and neither 0 nor "false"."""
    return PowerState.ON if require_member(members, "device_on", bool, where) else PowerState.OFF


def parse_tapo_alias(members):
    """Return the name that the user gave; one that cannot be read harms nothing but itself."""
    import binascii
    try:
        return binascii.a2b_base64(members["nickname"]).decode("utf-8", "surrogateescape")
    except (LookupError, ValueError, AttributeError, TypeError):
        return ""


def parse_tapo_plug(info, device_id):
    state = parse_tapo_state(info, "the device's description")
    return (Outlet(1, parse_tapo_alias(info), (device_id, device_id.lower()), state),)


def parse_tapo_child(child, device_id):
    """Return one Outlet of a strip, by its position: the number on the case."""
    if not isinstance(child, dict):
        raise ProtocolError("an outlet is not an object: %s" % quote(json.dumps(child)))
    identifier = require_member(child, "device_id", str, "an outlet")
    where = "outlet %s" % quote(identifier)
    number = require_member(child, "position", int, where)
    if not identifier or number < 1:
        raise ProtocolError("%s has no id, or no position on the case: %d" % (where, number))
    if child.get("original_device_id", device_id) != device_id:
        raise ProtocolError("%s says that it belongs to another device" % where)
    return Outlet(number, parse_tapo_alias(child), (identifier, identifier.lower()),
                  parse_tapo_state(child, where))


def parse_tapo_children(children, device_id):
    outlets = [parse_tapo_child(child, device_id) for child in children]
    for names in ({outlet.number for outlet in outlets},
                  {outlet.identifiers[1] for outlet in outlets}):
        if len(names) != len(outlets):
            raise ProtocolError("two outlets have the same number or id: %s"
                                % describe_outlets(outlets))
    return tuple(sorted(outlets))


def doubt_about_tapo_list(children):
    """Return why a strip may have more outlets than it lists, "" when these are all.

    Each outlet tells how many the case has, in slot_number. Where several are listed that proves
    nothing (the P306 says 5, and has 4), and nothing hangs on it: one of them is named.

    SAFETY: a list and its count may both lack the same outlet, and the one that is left would be
    taken for the only one.
    Test: test_the_only_outlet_that_is_listed_is_not_the_only_one_of_the_case
    """
    if len(children) != 1:
        return ""
    told = json.dumps(children[0].get("slot_number"))
    return "" if told == "1" else "it lists one, whose slot_number is %s" % quote(told)


def parse_tapo_components(members):
    """Return whether a component_list holds a power meter; raise ProtocolError for a damaged one.

    SAFETY: a list that cannot be read as a whole names no meter, and does not say that none is
    there. Test: test_a_list_of_components_that_cannot_be_read_leaves_no_meter_out
    """
    where = "the list of components"
    items = require_member(members, "component_list", list, where)
    if not items:
        raise ProtocolError("%s is empty" % where)
    for item in items:
        if not isinstance(item, dict):
            raise ProtocolError("%s holds what is no object: %s" % (where, quote(json.dumps(item))))
    names = [require_member(item, "id", str, "an entry of " + where) for item in items]
    if "" in names:
        raise ProtocolError("an entry of %s has an empty id" % where)
    return TAPO_METER_COMPONENT in names


def parse_tapo_metered(items):
    """Return {id of an outlet: whether its components hold a power meter} of a strip's list."""
    metered = {}
    for item in items:
        if not isinstance(item, dict):
            raise ProtocolError("the components of an outlet are no object: %s"
                                % quote(json.dumps(item)))
        identifier = require_member(item, "device_id", str, "the components of an outlet")
        if identifier in metered:
            raise ProtocolError("the components of outlet %s come twice" % quote(identifier))
        metered[identifier] = parse_tapo_components(item)
    return metered


def parse_tapo_watts(reply, meter, child_id):
    """Return (error_code, watts) from the reply to one TapoMeter; no watts: not told in this way.
    """
    code, result = parse_tapo_answer(reply, meter.method, child_id)
    if code in TAPO_SESSION_ERRORS + TAPO_LOGIN_ERRORS:
        parse_tapo_result(reply, meter.method, child_id)
    if code != 0 or meter.member not in result:
        return code, None
    if not is_number(result[meter.member]):
        raise ProtocolError("the meter's %s is not a number: %s"
                            % (meter.member, quote(json.dumps(result[meter.member]))))
    return code, limit_watts(result[meter.member]) * meter.unit_watts


class SmartPayload:
    """What a plug is asked in SMART JSON. See TP-LINK."""

    may_answer_once = False

    def __init__(self, system):
        import binascii
        self.system = system
        self.terminal = binascii.b2a_base64(os.urandom(16)).decode().strip()
        self.has_component = None  # whether the device itself names a meter; None: it does not tell
        self.metered = None        # ids of the outlets that may have a meter; None: not asked yet

    def is_understood(self, ask):
        """Return whether the device speaks SMART; the other one answers {}."""
        reply = ask(self._build("component_nego"), dict)
        if "error_code" not in reply:
            return False
        code, result = parse_tapo_answer(reply, "component_nego")
        if code in TAPO_SESSION_ERRORS + TAPO_LOGIN_ERRORS:
            parse_tapo_result(reply, "component_nego")
        if code == 0:
            self.has_component = parse_tapo_components(result)
        return True

    def describe(self, ask):
        """Return the KasaInfo."""
        info = ask(self._build("get_device_info"),
                   lambda reply: parse_tapo_result(reply, "get_device_info"))
        device_id = require_member(info, "device_id", str, "the device's description")
        kind = str(info.get("type", ""))
        if "BULB" in kind.upper():
            raise Refused("the device is a bulb (%s), not a plug" % quote(kind))
        is_strip = "device_on" not in info
        children = self._read_list(ask, "get_child_device_list", "child_device_list") \
            if is_strip else []
        outlets = (parse_tapo_children(children, device_id) if is_strip
                   else parse_tapo_plug(info, device_id))
        if self.metered is None:
            self.metered = self._find_metered(ask, outlets if is_strip else ())
        return KasaInfo(mac=info.get("mac"), device_id=device_id, outlets=outlets,
                        is_strip=is_strip, has_meter=bool(self.metered),
                        doubt_about_list=doubt_about_tapo_list(children))

    def switch(self, ask, child_id, wanted):
        params = {"device_on": wanted is PowerState.ON}
        ask(self._build("set_device_info", params, child_id),
            lambda reply: parse_tapo_result(reply, "set_device_info", child_id))

    def read_meter(self, ask, child_id, number):
        """Return the MeterReading; number: of a strip's outlet, None of a plug."""
        if child_id not in self.metered:
            return NO_METER
        codes = set()
        for meter in TAPO_METERS:
            code, watts = self._read_watts(ask, meter, child_id)
            if watts is not None:
                return MeterReading(watts, "")
            codes.add(code)
        # SAFETY: a meter that fails is not one that is not there.
        # Test: test_only_the_answer_that_a_method_is_unknown_means_no_meter
        if codes != {TAPO_UNKNOWN_METHOD}:
            raise ProtocolError("the meter tells no power, in none of its ways (error codes %s)"
                                % ", ".join(map(str, sorted(codes))))
        return MeterReading(None, "the device knows none of %s" % ", ".join(
            meter.method for meter in TAPO_METERS))

    def _read_watts(self, ask, meter, child_id):
        return ask(self._build(meter.method, None, child_id),
                   lambda reply: parse_tapo_watts(reply, meter, child_id))

    def _find_metered(self, ask, children):
        """Return the ids of the outlets that may have a meter; that of a plug is None."""
        if not children:
            return () if self.has_component is False else (None,)
        every = [child.identifiers[0] for child in children]
        if self.has_component is None:
            return every
        try:
            metered = parse_tapo_metered(self._read_list(
                ask, "get_child_device_component_list", "child_component_list"))
        except ProtocolError as error:  # then each outlet is asked
            self.system.debug("the strip does not tell which outlets have a meter: %s" % error)
            return every
        return [identifier for identifier in every if metered.get(identifier, True)]

    def _read_list(self, ask, method, name):
        """Return the items of a list that comes in pages; raise unless it is whole.

        SAFETY: an outlet that is missing from the list would make another one the only one.
        Test: test_a_list_of_outlets_that_is_not_whole_is_an_error
        """
        found, count = [], None
        while count is None or len(found) < count:
            page = self._read_page(ask, method, len(found))
            items = require_member(page, name, list, "the list of outlets")
            total = require_member(page, "sum", int, "the list of outlets")
            is_odd = page.get("start_index", len(found)) != len(found) or not items
            if is_odd or total > MOST_TAPO_OUTLETS or total != (total if count is None else count):
                raise ProtocolError("the list of outlets is not whole: %d of %d came"
                                    % (len(found), total))
            found, count = found + items, total
        if len(found) != count:
            raise ProtocolError("the device lists %d outlets and says that it has %d"
                                % (len(found), count))
        return found

    def _read_page(self, ask, method, count):
        """Return what follows the first items, as many as count says."""
        return ask(self._build(method, {"start_index": count}),
                   lambda reply: parse_tapo_result(reply, method))

    def _build(self, method, params=None, child_id=None):
        request = build_tapo_request(method, params, child_id)
        return dict(request, request_time_milis=int(self.system.now() * 1000),
                    terminal_uuid=self.terminal)


# SECTION: TP-LINK ---------------------------------------------------------------------------------
# What is true of all of TP-Link's plugs and strips: who they are is proven before anything counts.
# How a question gets there, and what it says, are two things apart:
#   transport  carries a request (dict) to the device and brings the reply (dict). open(deadline)
#              begins a session, ask(request, deadline) asks in it, once, close() ends it. session
#              stands for it, None for none: behind a new one there may be another device. answers
#              counts what came in it; carries_smart tells what payloads it may carry.
#   payload    knows the requests and replies: describe(ask) returns a KasaInfo, switch(ask,
#              child_id, wanted) and read_meter(ask, child_id, number) are about one outlet.
#              ask(request, parse) asks one question of the session that is open.

class TransportChoice:
    """Which transport leads to a device that has not told yet who it is.

    port: of the one that was chosen last. detour: why that is not the preferred one, "" if it is.
    is_undecided: it was chosen because its port is open, and for nothing else. is_second: the other
    one is tried behind it. failures: the last of each.
    """

    def __init__(self, system, settings, describe):
        self.system = system
        self.settings = settings
        self.describe = describe  # see KlapTransport
        self.port = settings.ipport
        self.detour = ""
        self.is_undecided = False
        self.is_second = False
        self.failures = [None, None]

    def choose(self, deadline):
        """Return a new transport."""
        settings = self.settings
        name, ports = settings.protocol, list(KASA_PROTOCOLS.values())
        by_port = dict(zip(ports, KASA_PROTOCOLS))
        self.detour, self.is_undecided = "", False
        if self.is_second:
            return self._make(by_port[ports[1]], ports[1])
        if name == "auto" and settings.ipport != ports[0]:
            name = by_port.get(settings.ipport, "legacy")  # the port says which is meant
        if name != "auto":
            return self._make(name, settings.ipport)
        connection, port, self.detour = connect_awake(
            self.system, settings, deadline, lambda limit: self.system.connect_preferred(
                settings.ip, ports, settings.family, limit, KASA_CLOSED_HINT))
        transport = self._make(by_port[port], port)
        transport.opened = connection
        self.is_undecided = port == ports[0]
        return transport

    def check_second(self, found):
        """Raise Refused where the preferred port may be that of the plug that is meant.

        SAFETY: behind a router there may be two plugs at one address. One that does not answer is
        still the one, unless the MAC says that it is the other.
        Test: test_a_silent_port_is_not_taken_for_a_strangers_without_a_mac
        """
        failure = self.failures[0]
        if not isinstance(failure, StrangeReply) and not self.settings.device_mac:
            raise Refused("a plug with the MAC %s answers, and nothing says that it is the one: "
                          "set device_mac" % quote(str(found.mac)))
        self.system.warn("the first port of %s is not that of the plug: %s (protocol=klap leaves "
                         "it alone)" % (self.settings.ip, failure))

    def build_failure(self):
        """Return the error that tells of both ports, as far as the second has been tried."""
        first, second = self.failures
        if not second:
            return first
        self.port, second_port = KASA_PROTOCOLS.values()
        # What is not Kasa's protocol says nothing of the plug.
        return type(second if isinstance(first, StrangeReply) else first)(
            "port %d: %s; port %d: %s; protocol=klap or protocol=legacy settles it"
            % (self.port, first, second_port, second))

    def _make(self, name, port):
        self.port = port
        return TRANSPORTS[name](self.system, self.settings, self.describe, port)


@speaks("kasa")
class KasaDevice(Device):
    """A plug or strip of TP-Link's, in one session for all requests as long as that lasts."""

    name = "kasa"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.choice = TransportChoice(system, settings, self.describe)
        self.transport = None     # chosen by the first question, as the payload is
        self.payload = None
        self.answers_once = None  # whether it ends each session behind an answer; None: not known
        self.description = None   # the KasaInfo that came last

    @property
    def session(self):
        return self.transport and self.transport.session

    def describe(self):
        return "%s %s" % (self.name, render_address(self.settings.ip, self.choice.port))

    def list_outlets(self, deadline):
        return self.read_description(deadline).outlets

    def open(self, deadline):
        self.read_description(deadline)
        return self.open_named(lambda name: KasaOutlet(self, name))

    def find_outlet(self, name):
        """Return the Outlet of a name that the caller gave, as the device has just described it."""
        found = self.description
        return select_outlet(found.outlets, name, self.label, found.doubt_about_list)

    def read_description(self, deadline):
        """Return the KasaInfo as the device tells it now, in the session that is open or a new one.
        """
        if not self.description:
            return self.find_description(deadline)
        # Devices end idle sessions.
        is_reused = self.session is not None
        try:
            return self.ask_description(deadline)
        except Unreachable as error:
            if not (is_reused and error.was_closed):
                raise
        return self.ask_description(deadline)

    def find_description(self, deadline):
        """Return the first KasaInfo, over the other protocol where the preferred one brings none.

        What listens on its port may be anything.
        """
        choice = self.choice
        try:
            return self.ask_preferred(deadline)
        except FenceError as error:
            if not choice.is_undecided:
                raise
            choice.failures[0] = error
        if deadline.left() > SHORTEST_EXCHANGE_SECONDS:
            choice.is_second = True
            try:
                return self.ask_description(deadline)
            except FenceError as error:
                choice.failures[1] = error
            finally:
                choice.is_second = False
        raise choice.build_failure()

    def ask_preferred(self, deadline):
        try:
            return self.ask_description(deadline)
        except StrangeReply:
            if not self.choice.is_undecided:
                raise
        # SAFETY: what came once may have come from a plug that is sick for a moment.
        # Test: test_what_is_no_kasa_is_believed_when_it_comes_twice
        return self.ask_description(deadline)

    def ask_description(self, deadline):
        return self.exchange(
            lambda ask: self.accept(self.payload.describe(ask)), deadline)

    def exchange(self, run, deadline):
        """Return run(ask), whose questions all go through one session; an error ends that."""
        def ask(request, parse):
            reply = self.transport.ask(request, deadline)
            if self.transport.answers > 1:
                self.answers_once = False
            return parse(reply)
        try:
            self.open_session(ask, deadline)
            return run(ask)
        except FenceError as error:
            # Replies carry no number: on a connection that missed one, the next is the wrong one.
            self.close()
            if not self.description:
                self.forget_choice(error)
            raise

    def open_session(self, ask, deadline):
        """Begin a session unless one is open; the first one decides how the device is spoken to."""
        if not self.transport:
            self.transport = self.choice.choose(deadline)
        if not self.session:
            self.transport.open(deadline)
        if not self.payload:
            smart = SmartPayload(self.system) if self.transport.carries_smart else None
            self.payload = smart if smart and smart.is_understood(ask) else IotPayload()

    def forget_choice(self, error):
        """Let the next question choose anew, of a device that has not told yet who it is.

        The error gets all reasons: what was tried first is what a person expects.
        """
        if self.choice.detour:
            error.args = ("%s; before that %s" % (error, self.choice.detour),)
        self.transport = self.payload = self.answers_once = None

    def accept(self, found):
        """Return a KasaInfo; raise Refused unless it is of the device that is meant."""
        self.check_mac(found.mac)
        if self.choice.is_second:
            self.choice.check_second(found)
        known = self.description or found
        for name in ("device_id", "mac", "is_strip", "has_meter"):
            if getattr(found, name) != getattr(known, name):
                raise Refused("another device answered in the middle of the action: its %s was %s "
                              "and is %s" % (name, quote(str(getattr(known, name))),
                                             quote(str(getattr(found, name)))))
        self.description = found
        return found

    def find_out_whether_it_answers_once(self, deadline):
        """Ask for the description again, in a session in which it has come: that is harmless.

        A device that breaks the connection at another question is not one that answers once.
        """
        try:
            self.ask_description(deadline)
        except Unreachable as error:
            if not error.was_closed:
                raise
            self.answers_once = True

    def close(self):
        if self.transport:
            self.transport.close()


TRANSPORTS = {"legacy": KasaConnection, "klap": KlapTransport}  # by their names in KASA_PROTOCOLS


class KasaOutlet(OpenedOutlet):
    """The relay of a plug, or one outlet of a strip, which its child id names on the wire."""

    def __init__(self, device, wanted):
        outlet = device.find_outlet(wanted)
        super().__init__(device, outlet.state, outlet.number)
        self.wanted = wanted  # the name by which the caller means it
        self.number = outlet.number if device.description.is_strip else None
        self.child_id = self._child_id_of(outlet)
        self.proven_in = device.session  # where device and outlet have told who they are

    def _child_id_of(self, outlet):
        return outlet.identifiers[0] if self.device.description.is_strip else None

    def read(self, deadline):
        self.device.read_description(deadline)
        return self._prove()

    def _prove(self):
        """Return the outlet's state, and raise Refused for another outlet, as just described."""
        self.proven_in = None
        outlet = self.device.find_outlet(self.wanted)
        if self._child_id_of(outlet) != self.child_id:
            raise Refused("plug %s has become another outlet in the middle of the action: its id "
                          "was %s and is %s" % (quote(self.wanted), quote(self.child_id),
                                                quote(self._child_id_of(outlet))))
        self.proven_in = self.device.session
        return outlet.state

    def send(self, wanted, deadline):
        def switch(ask):
            self.device.payload.switch(ask, self.child_id, wanted)
            return True
        if not self._ask_proven(switch, deadline):
            # A device that answers once a session cannot prove itself in that of the command, and
            # one question more could not call the command back. So it comes right behind the
            # proof; and what is read back proves itself again.
            self.read(deadline)
            self.device.close()
            self.device.exchange(switch, deadline)
            self.device.close()

    def read_meter(self, deadline):
        if not self.device.description.has_meter:
            return NO_METER

        def read(ask):
            return self.device.payload.read_meter(ask, self.child_id, self.number)
        reading = self._ask_proven(read, deadline) or self._read_meter_with_description(deadline)
        if reading.obstacle:
            self.device.system.warn("the power meter of %s gives no reading: %s"
                                    % (self.device.describe(), reading.obstacle))
        return reading

    def _ask_proven(self, run, deadline):
        """Return run(ask), whose questions go through a session in which this outlet is proven.

        Return None, and nothing has been answered, for a device that answers once a session.

        SAFETY: a new session may lead to another device, which obeys a command or tells what its
        own meter shows. Test: test_nothing_is_sent_to_what_has_taken_over_the_address
        """
        while not self.device.answers_once:
            session = self.device.session
            if not self._is_proven():
                self.read(deadline)
            # Another outlet of a list may have opened the session, long ago.
            is_new = self.device.session is not session
            if is_new and self._could_answer_once():
                self.device.find_out_whether_it_answers_once(deadline)
                continue
            try:
                return self.device.exchange(run, deadline)
            except Unreachable as error:
                if is_new or not error.was_closed:  # devices end idle sessions
                    raise
        return None

    def _is_proven(self):
        return self.device.session is not None and self.proven_in is self.device.session

    def _could_answer_once(self):
        return self.device.answers_once is None and self.device.payload.may_answer_once

    def _read_meter_with_description(self, deadline):
        """Return the MeterReading of a device that answers once a session.

        SAFETY: of two devices that answer in turn, one would report OFF, and the other no load.
        Test: test_a_load_is_not_hidden_by_the_meter_of_a_device_that_answers_in_turn
        """
        def read(ask):
            found, reading = self.device.payload.read_meter_with_description(
                ask, self.child_id, self.number)
            self.device.accept(found)
            self._prove()
            return reading
        self.device.close()
        try:
            return self.device.exchange(read, deadline)
        finally:
            self.device.close()


# SECTION: TASMOTA ---------------------------------------------------------------------------------
# Tasmota, and OpenBeken as far as it does the same: commands as /cm?cmnd=, replies in JSON.
# `plug` is the relay's number, or its FriendlyName, which costs a request of its own before each
# command and each reading. By default the firmware reports 0 W as soon as its relay is off,
# whatever flows; SetOption21 1 makes the meter measure always.
# Source: Tasmota documentation (Commands) and firmware source xdrv_01_9_webserver.ino,
# OpenBK7231T_App json_interface.c; read 2026-10. Seen: documents only.

def parse_tasmota_url(path):
    """Return (relay as text, "" for a bare Power; PowerState or None) of a /cm?cmnd= URL."""
    from urllib.parse import parse_qs
    page, _, query = path.partition("?")
    commands = parse_qs(query).get("cmnd", [""])
    match = re.fullmatch("(?i)power([1-9][0-9]?)?(?: (on|off|1|0))?", commands[0].strip())
    if page != "/cm" or len(commands) != 1 or not match:
        raise UsageError("it is not /cm?cmnd=Power, with a relay's number and ON or OFF (for any "
                         "other URL set device=url)")
    state = {"on": PowerState.ON, "1": PowerState.ON, "off": PowerState.OFF, "0": PowerState.OFF}
    return match.group(1) or "", state.get((match.group(2) or "").lower())


def parse_tasmota_reply(text, command):
    """Return the members of a reply; firmware before 8.2 refuses with status 200."""
    if re.match("[A-Z]+[0-9]* = ", text):
        raise Refused("the device answers as Tasmota up to 5.10 does (%s), which is too old: "
                      "update it" % quote(text, 20))
    members = parse_json_object(mend_tasmota_text(text))
    if "WARNING" in members:
        raise Refused("the device refuses the command: %s (are username and password right?)"
                      % quote(str(members["WARNING"])))
    if "Command" in members:
        raise Refused("the device answers %s to the command %s (does it have that relay?)"
                      % (quote(str(members["Command"])), command))
    return members


def mend_tasmota_text(text):
    """Return text with each backslash doubled that begins no escape of JSON.

    The Wi-Fi's name stands in Status 11 as it is. Pairs are taken from the left, so that no quote
    changes its meaning: a name that ends in a backslash is not JSON before and not afterwards.
    """
    return re.sub(r'\\(["\\/bfnrt]|u[0-9A-Fa-f]{4})?',
                  lambda match: match.group() if match.group(1) else r"\\", text)


def parse_tasmota_power(members, relay):
    """Return the PowerState of one relay (a number from 1), from no other relay's member.

    SAFETY: the bare POWER is relay 1 and no other: OpenBeken answers with it whatever is asked.
    Test: test_relay_2_is_never_read_from_the_bare_power
    """
    names = ("POWER", "POWER1") if relay == 1 else ("POWER%d" % relay,)
    words = [members[name] for name in names if name in members]
    if not words:
        # Another relay's answer stays that; without any, the answer may have been lost on its way.
        is_another = any(name.startswith("POWER") for name in members)
        raise (Refused if is_another else ProtocolError)(
            "the reply holds no %s (OpenBeken answers for another relay): %s"
            % (names[-1], quote(json.dumps(members))))
    return parse_state_words(words, "%s (is StateText changed, or does the relay blink?)"
                             % names[-1])


def parse_tasmota_relays(members):
    """Return the relays in the reply to Status 11 as Outlets."""
    # An empty reply is what Tasmota says when it has lost its messages; anything else stays.
    if members and "StatusSTS" not in members:
        raise Refused("the reply to Status 11 holds no StatusSTS (is this a Tasmota?): %s"
                      % quote(json.dumps(members)))
    states = require_member(members, "StatusSTS", dict, "the reply to Status 11")
    names = {int(key[5:] or 1): key for key in states if re.fullmatch("POWER([1-9][0-9]?)?", key)}
    if not names:
        raise Refused("the reply to Status 11 holds no POWER: the device has no relay")
    return tuple(Outlet(number, name, (), parse_tasmota_power(states, number))
                 for number, name in sorted(names.items()))


MOST_FRIENDLY_NAMES = 8  # that the firmware keeps, whatever number of relays it has


def count_tasmota_relays(relays):
    """Return how many relays the device has, by the highest number: its list may lack some.

    SAFETY: names and meters come as bare lists, and by their places belong to relays.
    Test: test_a_list_of_relays_with_a_hole_gives_no_relay_the_name_of_another
    """
    return relays[-1].number if len(relays) > 1 else 1


def parse_tasmota_names(members, relays):
    """Return ([name of each relay], name of the device) in the reply to Status.

    SAFETY: one name for several relays (OpenBeken), or more names than relays, is no relay's.
    Test: test_names_that_do_not_fit_the_relays_are_no_names
    """
    status = require_member(members, "Status", dict, "the reply to Status")
    names = status.get("FriendlyName")
    names = names if isinstance(names, list) else [names]
    is_fitting = len(names) == min(relays, MOST_FRIENDLY_NAMES)
    if not is_fitting or not all(isinstance(name, str) for name in names):
        raise Refused("the device has %d relays, and its FriendlyName is %s: give the relay's "
                      "number as plug" % (relays, quote(json.dumps(names))))
    return names, str(status.get("DeviceName") or "")


def name_tasmota_relays(relays, names, device_name):
    """Return Outlets that can be called by these names too.

    The device's own name is that of an only relay; of several, it is by default the first's.
    """
    if len(relays) == 1:
        called = (relays[0].alias, device_name) if device_name else (relays[0].alias,)
        return (relays[0]._replace(alias=names[0], identifiers=tuple(map(str.lower, called))),)
    return tuple(relay._replace(alias=names[relay.number - 1], identifiers=(relay.alias.lower(),))
                 if relay.number <= len(names) else relay for relay in relays)


def parse_tasmota_mac(members, wanted):
    """Return the MAC in the reply to Status 5: of an ESP32 with a cable that one may be wanted."""
    network = require_member(members, "StatusNET", dict, "the reply to Status 5")
    cable = network.get("Ethernet")
    found = [network.get("Mac"), cable.get("Mac") if isinstance(cable, dict) else None]
    told = [mac for mac in found if isinstance(mac, str) and re.search("[1-9A-Fa-f]", mac)]
    fitting = [mac for mac in told if re.sub("[:-]", "", mac).lower() == wanted]
    return (fitting + told + [""])[0]


def parse_tasmota_energy(members, relay, relays):
    """Return (watts, volts) that the reply to Status 10 tells of one relay of so many.

    Both are None where one meter measures several relays. Without a meter it is None.

    SAFETY: what one meter shows of several relays belongs to none of them.
    Test: test_of_several_relays_only_the_own_entry_of_the_meter_counts
    """
    where = "the reply to Status 10"
    sensors = require_member(members, "StatusSNS", dict, where)
    if "ENERGY" not in sensors:
        return None
    energy = require_member(sensors, "ENERGY", dict, where)
    readings = {name: list_tasmota_phases(energy, name) for name in ("Power", "Voltage")
                if name == "Power" or energy.get(name) is not None}
    volts = sum(readings.get("Voltage", ()))
    if relays == 1:
        return limit_watts(sum(readings["Power"])), volts
    if len(readings["Power"]) == relays:
        return readings["Power"][relay - 1], volts
    return None, None


def list_tasmota_phases(energy, name):
    """Return a reading, which is one number or a list with one for each phase or relay."""
    values = energy.get(name)
    values = values if isinstance(values, list) else [values]
    if not values or not all(is_number(value) for value in values):
        raise ProtocolError("the meter's %s is not a number: %s"
                            % (name, quote(json.dumps(values))))
    return [abs(limit_watts(value)) for value in values]


@speaks("tasmota")
class TasmotaDevice(HttpDevice):
    """A Tasmota device, and what its list of relays is read from."""

    name = "tasmota"
    default_username = "admin"
    sends_login_unasked = True  # Tasmota sends no challenge; OpenBeken takes the same
    closed_hint = "with SetOption128 0 it wants its own address as ip"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.take_outlet_from_urls(parse_tasmota_url)

    def list_outlets(self, deadline):
        relays = self.read_relays(deadline)
        self.check_identity(deadline)
        try:
            names = self.ask_names(count_tasmota_relays(relays), deadline)
            return name_tasmota_relays(relays, *names)
        except (Refused, ProtocolError) as error:  # a list without names is still one
            self.system.debug(str(error))
            return relays

    def count_outlets(self, deadline):
        return len(self.read_relays(deadline))

    def read_relays(self, deadline):
        self.check_identity(deadline)
        return self.ask("Status 11", parse_tasmota_relays, deadline)

    def read_names(self, relays, deadline):
        self.check_identity(deadline)
        return self.ask_names(relays, deadline)

    def ask_names(self, relays, deadline):
        return self.ask("Status", lambda members: parse_tasmota_names(members, relays), deadline)

    def open(self, deadline):
        relays = self.read_relays(deadline)
        return self.open_named(lambda name: self.open_relay(name, relays, deadline))

    def open_relay(self, wanted, relays, deadline):
        """Return the TasmotaRelay of one name, out of the Outlets of all relays."""
        names, count = None, count_tasmota_relays(relays)
        if self.is_called_by_name(wanted, relays):
            names = self.read_names(count, deadline)
            relays = name_tasmota_relays(relays, *names)
        outlet = select_outlet(relays, wanted, self.label)
        return TasmotaRelay(self, outlet, count, names)

    def is_called_by_name(self, wanted, relays):
        """Return whether the names decide; a number, and what the firmware calls it, needs none."""
        if wanted in ("", self.label):
            return bool(wanted) and len(relays) > 1
        return not re.fullmatch("[0-9, ]+|POWER[0-9]*", wanted)

    def read_mac(self, deadline):
        return self.ask("Status 5", lambda members: parse_tasmota_mac(
            members, self.settings.device_mac), deadline)

    def path_with_login(self, path):
        # In the query too: firmware before 9 knows no other way. A header is enough for the rest.
        if not self.settings.password:
            return path
        return path.replace("?", "?user=%s&password=%s&" % (
            percent_encode(self.username), percent_encode(self.settings.password)), 1)

    def ask(self, command, parse, deadline):
        """Return parse(members) of the reply to one command."""
        return self.exchange("GET", "/cm?cmnd=" + command.replace(" ", "%20"), lambda reply: parse(
            parse_tasmota_reply(parse_http_body(reply), command)), deadline)


class TasmotaRelay(HttpOutlet):
    """One relay of a Tasmota device, by its number."""

    def __init__(self, device, outlet, relays, names):
        super().__init__(device, outlet.state, outlet.number)
        self.number = outlet.number
        self.relays = relays  # how many the device has
        self.names = names    # of the relays and the device, where one of them was asked for
        self.meter_setting = ""  # what the device says to SetOption21

    def check_names(self, deadline):
        """Raise Refused unless all names are as they were when this relay was found by its own."""
        # SAFETY: who swaps two names means another relay by them from then on.
        # Test: test_a_name_that_moves_to_another_relay_is_a_doubt
        if self.names and self.device.read_names(self.relays, deadline) != self.names:
            raise Refused("plug %s may have become another outlet in the middle of the action: the "
                          "names of the relays were changed" % quote(self.device.wanted))

    def read_state(self, deadline):
        self.check_names(deadline)
        return self._ask_power("Power%d" % self.number, deadline)

    def send_command(self, wanted, deadline):
        self.check_names(deadline)
        command = "Power%d %s" % (self.number, wanted.value)
        state = self._ask_power(command, deadline)
        if state is not wanted:
            raise ProtocolError("the device answers %s to %s (locked by PowerOnState 4 or "
                                "PowerLock?)" % (state.value, command))

    def read_power_meter(self, deadline):
        """Return what the meter says; that there is no load it proves with SetOption21 1 alone."""
        self.check_names(deadline)
        energy = self.device.ask("Status 10", lambda members: parse_tasmota_energy(
            members, self.number, self.relays), deadline)
        if energy is None:
            return NO_METER
        watts, volts = energy
        return MeterReading(watts, self._find_obstacle(watts, volts, deadline))

    def _find_obstacle(self, watts, volts, deadline):
        if watts is None:
            return "one meter measures several relays"
        if self.relays > 1:
            return "it does not say which entry of its list is which relay's"
        if not self.meter_setting:
            self.meter_setting = self.device.ask(
                "SetOption21", lambda members: str(members.get("SetOption21")), deadline)
        if self.meter_setting != "ON":
            return "it reads nothing while its relay is off (SetOption21 1 changes that)"
        # Without a voltage the chip does not answer, or it sits behind the relay.
        return "" if volts > 0 or watts > 0 else "it shows no voltage"

    def _ask_power(self, command, deadline):
        return self.device.ask(
            command, lambda members: parse_tasmota_power(members, self.number), deadline)


# SECTION: ESPHOME ---------------------------------------------------------------------------------
# The switches of ESPHome's web_server. A switch is called by its object id (made from its name) up
# to 2025.12, by its name from 2026.7, by both between. /events streams the states of all entities;
# a switch is changed by POST. There is no meter: sensors do not tell to which switch they belong.
#
# The stream does not say where its list ends. A ping comes about every ten seconds, whatever else
# is sent; behind the list, with silence before and after it, it is the end. Firmware up to 2024
# loses what its queue cannot take, and then pings as well; what tells its uptime in the pings keeps
# every entity until it could be sent. Old firmware finds a switch by an id that two names can
# share, and answers with the first.
# Source: esphome components/web_server of 2024.11, 2026.6 and 2026.10, esphome/issues 962 and
# esphome pull request 3310; read 2026-11. Seen: documents only.

EVENTS_SILENCE_SECONDS = 0.5
EVENTS_SECONDS = 13.0  # a ping that comes too early for one is followed by the next after ten
QUIET = 4              # silences in a row, after which nothing more of the list is expected
ESPHOME_ACTIONS = ("turn_on", "turn_off", "toggle")

# What one reply tells of a switch. is_assumed: the relay's state is not known to the device either.
# is_exact: the reply carries the very name that was asked for, not only an id that fits.
EsphomeReply = namedtuple("EsphomeReply", "state is_assumed is_exact")
# What an event stream has told so far. has_ended: it went on after the list of entities. is_whole:
# the firmware leaves out none.
EsphomeEvents = namedtuple("EsphomeEvents", "outlets has_ended is_whole")


def parse_esphome_url(path):
    """Return (switch, PowerState or None) of a /switch/ URL."""
    from urllib.parse import unquote_plus
    match = re.fullmatch(r"/switch/([^?]+?)(?:/(turn_on|turn_off|toggle))?/*(?:\?.*)?", path)
    if not match or match.group(2) == "toggle":
        raise UsageError("it is not /switch/NAME, /switch/NAME/turn_on or /switch/NAME/turn_off "
                         "(for any other URL set device=url)")
    state = {"turn_on": PowerState.ON, "turn_off": PowerState.OFF}
    return unquote_plus(match.group(1)), state.get(match.group(2))


def build_esphome_path(switch):
    """Return the path under which a switch is read.

    SAFETY: firmware of 2024 executes GET /switch/NAME/turn_off, and a name may come to that.
    Test: test_what_reads_a_switch_can_never_be_a_path_that_switches
    """
    steps = [render_identifier(step) for step in decode_fully(switch).split("/")]
    if set(steps) & set(ESPHOME_ACTIONS):
        raise UsageError("the switch %s is named like a command (%s), and reading it might switch: "
                         "rename it" % (quote(switch), ", ".join(ESPHOME_ACTIONS)))
    return "/switch/" + "/".join(map(percent_encode, switch.split("/")))


def parse_esphome_switch(text, switch):
    """Return the EsphomeReply, which must be that of the switch asked for.

    SAFETY: old firmware finds a switch by an id that two names can share, and answers with the
    first. Test: test_a_reply_of_another_switch_is_refused
    """
    members = parse_json_object(text)
    if not is_esphome_reply_of(members, switch):
        raise Refused("another switch answered: %s instead of %s"
                      % (quote(str(members.get("name", text))), quote(switch)))
    if not {"state", "value"} & set(members):
        raise Refused("the reply tells no state of %s: %s" % (quote(switch), quote(text)))
    names = [members["name"]] if "name" in members else []
    names += [members[key].rpartition("/")[2] for key in ("id", "name_id")
              if str(members.get(key)).startswith("switch/")]
    wanted = switch.rpartition("/")[2]
    return EsphomeReply(parse_esphome_state(members), members.get("assumed_state") is True,
                        names != [] and names.count(wanted) == len(names))


def is_esphome_reply_of(members, switch):
    """Return whether all that a reply says about its switch (at least one thing) fits `switch`."""
    device, _, wanted = switch.rpartition("/")
    claims = [fits_esphome_id(str(members[key]), device, wanted)
              for key in ("id", "name_id") if key in members]
    if "name" in members:
        claims.append(fits_esphome_name(str(members["name"]), wanted))
    if device or "device" in members:
        claims.append(members.get("device") == device)
    return bool(claims) and all(claims)


def fits_esphome_id(identifier, device, wanted):
    """Old firmware says switch-OBJECT_ID, newer says switch/NAME or switch/DEVICE/NAME."""
    if identifier.startswith("switch-"):
        return identifier[7:] == render_identifier(wanted)
    owner, _, name = identifier.rpartition("/")
    return owner == ("switch/" + device).rstrip("/") and fits_esphome_name(name, wanted)


def fits_esphome_name(name, wanted):
    return wanted in (name, render_identifier(name))


def parse_esphome_state(members):
    """Return the PowerState; `value` (true, false) and `state` (ON, OFF) must agree."""
    words = [members["state"]] if "state" in members else []
    if "value" in members:
        words.append({"true": "ON", "false": "OFF"}.get(json.dumps(members["value"])))
    return parse_state_words(words, "the state of the switch in %s" % quote(json.dumps(members)))


def parse_esphome_events(text):
    """Return the EsphomeEvents of what has come of a stream, with its silences."""
    known, steps, pings = {}, "", ""  # known: {id: {name: its Outlet, or None}}
    for event in re.split(r"\r?\n\r?\n", text)[:-1]:
        kind = re.search(r"(?m)^event: ?(ping|state)\r?$", event)
        data = re.search(r"(?m)^data: ?(.*?)\r?$", event)
        if event == SILENCE:
            steps += "s"
        elif kind and kind.group(1) == "ping":
            steps += "p"
            pings += data.group(1) if data else ""
        elif kind and data and add_esphome_entity(known, data.group(1)):
            steps = ""
    outlets = [outlet for names in known.values() for outlet in names.values() if outlet]
    return EsphomeEvents(tuple(outlets), bool(re.search("ssp+ss", steps)), '"uptime"' in pings)


def add_esphome_entity(known, data):
    """Add what a state event tells to the known entities; return whether it was not known yet."""
    identifier, name, outlet = parse_esphome_entity(data)
    names = known.setdefault(identifier, {})
    if name in names or (names and not name):
        return False
    names.pop("", None)  # a change that came before the list had come to it
    names[name] = outlet
    return True


def parse_esphome_entity(data):
    """Return (id, name, Outlet or None) of a state event; a change alone comes without the name.

    Only what switches say is read any further: a text sensor may hold half a letter.
    """
    other = re.match(r'\{"(?:id|name_id)": ?"((?!switch[-/])[a-z_]+[-/][^"]*)"', data)
    if other:
        name = re.search(r'"name": ?"([^"]*)"', data)
        return other.group(1), name.group(1) if name else "", None
    members = parse_json_object(data)
    identifier = str(members.get("id", ""))
    is_switch = re.match("switch[-/]", identifier)
    outlet = parse_esphome_outlet(identifier, members) if is_switch else None
    return identifier, str(members.get("name", "")), outlet


def parse_esphome_outlet(identifier, members):
    """Return one switch of the stream as an Outlet, with its object id for its number."""
    name = str(members.get("name", identifier[7:].rpartition("/")[2]))
    prefix = "%s/" % members["device"] if members.get("device") else ""
    return Outlet(prefix + render_identifier(name), prefix + name, (), parse_esphome_state(members))


def select_esphome_outlet(events, wanted, label):
    """Return the Outlet that is meant; raise Refused unless the list proves which one that is.

    SAFETY: an id that two names share is the first one's, and a list that may go on may hold the
    other. Test: test_two_names_behind_one_id_are_refused_and_named
    """
    if not events.outlets:
        raise Refused("the device serves no switch (internal: true?)" if events.has_ended
                      else "the device has told of no switch (internal: true?)")
    doubt = "" if events.has_ended else "its list had not ended when the time was up"
    if not events.is_whole:
        doubt = "old firmware, whose pings tell no uptime, leaves out what its queue cannot take"
    outlets = events.outlets
    if len(outlets) == 1 and not doubt:
        outlets = (outlets[0]._replace(identifiers=("1",)),)
    try:
        outlet = select_outlet(outlets, wanted, label, doubt)
    except Refused as error:
        likely = shorten_identifier(wanted)
        if likely not in [known.number for known in outlets]:
            raise
        raise type(error)("%s; is %s meant, which firmware of 2021 makes of that name?"
                          % (error, quote(likely))) from error
    same = [known for known in outlets if known.number == outlet.number]
    if len(same) > 1:
        raise Refused("%d switches of the device share the id %s, rename one: %s" % (
            len(same), quote(outlet.number), ", ".join(quote(known.alias) for known in same)))
    if not events.has_ended:
        raise Refused("the list of the device has not ended, so another switch may share the id %s "
                      "(the exact name as plug needs no list)" % quote(outlet.number))
    return outlet


def shorten_identifier(name):
    """Return the object id that firmware of 2021 makes of a name: it drops letters."""
    return re.sub("[^a-z0-9_-]", "", name.lower().replace(" ", "_"))


@speaks("esphome")
class EsphomeDevice(HttpDevice):
    """An ESPHome device; `plug` is the name or object id of a switch, or DEVICE/NAME."""

    name = "esphome"

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.take_outlet_from_urls(parse_esphome_url)
        for name in filter(None, (self.wanted,) + self.names):
            build_esphome_path(name)
        self.events = None  # the EsphomeEvents that proved an outlet
        self.chosen = {}    # {name: that Outlet}: a lost answer costs no second list

    def list_outlets(self, deadline):
        self.check_identity(deadline)
        return self._listen(deadline, lambda events: True).outlets

    def open(self, deadline):
        self.check_identity(deadline)
        return self.open_named(lambda name: self._open_switch(name, deadline))

    def _open_switch(self, name, deadline):
        """Return the EsphomeSwitch that a name means, "" for an only one."""
        if name and name not in self.chosen:
            switch, is_exact = self._find_switch(name, deadline)
            if is_exact:
                return switch
            # The list would add nothing: ids hold no comma, and a name is found by itself.
            if not switch and self.names and name == self.wanted:
                raise UnknownOutlet("plug %s names no switch of this device" % quote(name))
        if name not in self.chosen:
            self._choose(name, self.events or self._listen(deadline, self._is_decided))
        alias = self.chosen[name].alias
        switch, _ = self._find_switch(alias, deadline)
        if not switch:
            raise Refused("the device lists the switch %s, and answers that it does not know it"
                          % quote(alias))
        return switch

    def prove_usable(self, deadline):
        # As any device does it, with one look at the stream, which takes its time.
        if not self.wanted and not self.chosen:
            self.check_identity(deadline)
            events = self._listen(deadline, self._is_decided)
            if len(events.outlets) > 1:
                return None
            self._choose(self.wanted, events)
        return self.open(deadline)

    def _listen(self, deadline, is_enough_when_quiet):
        """Return the EsphomeEvents of a stream that has ended, or of one that is quiet."""
        def is_enough(text):
            events = parse_esphome_events(text)
            is_quiet = text.endswith((SILENCE + "\n\n") * QUIET)
            return events.has_ended or (is_quiet and is_enough_when_quiet(events))

        return self.exchange("GET", "/events", lambda reply: parse_esphome_events(
            parse_http_body(reply)), deadline, Listening(
                EVENTS_SILENCE_SECONDS, deadline.within(EVENTS_SECONDS), is_enough))

    def _is_decided(self, events):
        """Return whether the rest of a list could change nothing any more."""
        # Where no switch was named, two are as many as more, and what has holes is never whole.
        is_one_named = self.wanted not in ("", "1", self.label)
        return not is_one_named and (len(events.outlets) > 1 or not events.is_whole)

    def _choose(self, name, events):
        """Note the Outlet that the list proves, where a name alone did not prove which it is."""
        try:
            self.chosen[name] = select_esphome_outlet(events, name, self.label)
            self.events = events
        except Refused as error:
            if events.has_ended or self._is_decided(events):
                raise
            raise ProtocolError(str(error)) from error  # the next stream may tell more

    def _find_switch(self, name, deadline):
        """Return (EsphomeSwitch, whether its reply carries exactly this name).

        The switch is None when the device knows it neither by name nor by id.
        """
        owner, _, own_name = name.rpartition("/")
        object_id = (owner + "/" if owner else "") + render_identifier(own_name)
        for spelling in (name, object_id) if object_id != name else (name,):
            path = build_esphome_path(spelling)
            found = self.exchange("GET", path + "?detail=all", lambda reply: (
                None if reply.status == 404 else self.parse_switch(reply, name)), deadline)
            if found:
                return EsphomeSwitch(self, found.state, name, path), found.is_exact
        return None, False

    def parse_switch(self, reply, name):
        found = parse_esphome_switch(parse_http_body(reply), name)
        if found.is_assumed:
            self.system.warn("switch %s has an assumed_state: it reports what it was told to do, "
                             "and nobody knows its relay" % quote(name))
        return found

    def read_mac(self, deadline):
        return self.exchange("OPTIONS", "/", lambda reply: reply.headers.get(
            "Private-Network-Access-ID"), deadline)


class EsphomeSwitch(HttpOutlet):
    """One switch, by the path under which the device has answered for it."""

    def __init__(self, device, state, name, path):
        super().__init__(device, state, name)
        self.name = name
        self.path = path

    def read_state(self, deadline):
        return self.device.exchange("GET", self.path + "?detail=all", lambda reply: (
            self.device.parse_switch(reply, self.name)), deadline).state

    def send_command(self, wanted, deadline):
        # Answered before it is done; the body is empty.
        self.device.exchange("POST", "%s/turn_%s" % (self.path, wanted.value.lower()),
                             check_command_reply, deadline)


# SECTION: SHELLY ----------------------------------------------------------------------------------
# Shelly's switches: generation 1 with paths such as /relay/0, all later ones by GET /rpc/METHOD.
# `plug` is the channel, counted from 1 as in the list, or its name; the protocol counts from 0, and
# so do the callers of fence_shelly_gen2.
# GET /shelly needs no login and tells generation and MAC: it comes before each command and each
# reading, so that neither a command nor a password goes to what has taken over the address. What
# tells the states, /status and Shelly.GetStatus, tells the MAC too, and is the whole list.
#
# Firmware 2.0 keeps 32 challenges, for an hour each; while all are taken it refuses a new one for
# 2 s. Three actions a minute would take them all, so each goes on with the challenge of one before,
# which is kept by the device's address. Who finds none asks for a new one, and so does who is told
# by a 401 that the device has forgotten it.
#
# A relay that is off may come back by itself. While a timer runs, the status shows it, and such an
# OFF is none; auto_on starts one at each OFF, so a channel that has it is refused. Switch.Set
# replies what was before the command. Meters measure also while the relay is off; those of the
# later generations may show 0 W for 45 s after a command. A Shelly 1 and 1L tell as watts what
# somebody has set by hand, and no counters beside it. Schedules, inputs, scripts, the cloud and
# webhooks are not looked at.
# Source: Shelly API documentation of both families, ioBroker.shelly issue 1594; for the login table
# of firmware 2.0 home-assistant/core 177257 and 178327; read 2026-11. Seen: documents only.

FIRST_SHELLY = 1  # the generation without /rpc

ShellyIdentity = namedtuple("ShellyIdentity", "generation mac")

# How a generation speaks. status, settings: paths, and *_owner: the members that lead to the object
# with the device's MAC in their replies. command: of the path that switches, with the channel from
# 0 and one of words, {PowerState: text}; acknowledged: the member of a good reply to it. state: of
# a channel, true for ON. find_channels: of a reply to {channel from 0: its members}. find_timer: of
# a channel that is off. parse_meter: of the reply to status, and a channel. meter_rest: see there.
ShellyWays = namedtuple(
    "ShellyWays", "status status_owner settings settings_owner command words acknowledged state "
                  "find_channels find_timer parse_meter meter_rest")
SHELLY_TIMER = "a timer runs, and will switch it on again (a new OFF ends it)"


def parse_shelly_url(path):
    """Return (channel from 1 as text, "" for a whole status; PowerState or None) of a URL."""
    if path in ("/status", "/rpc/Shelly.GetStatus"):
        return "", None
    reads = re.fullmatch(r"(?:/relay/|/rpc/Switch\.GetStatus\?id=)([0-9])", path)
    switches = re.fullmatch(r"/relay/([0-9])\?turn=(on|off)", path) or re.fullmatch(
        r"/rpc/Switch\.Set\?id=([0-9])&on=(true|false)", path)
    if not reads and not switches:
        raise UsageError("it is not /relay/N, /relay/N?turn=off, /rpc/Switch.GetStatus?id=N or "
                         "/rpc/Switch.Set?id=N&on=false (for any other URL set device=url)")
    channel = str(int((reads or switches).group(1)) + 1)
    if reads:
        return channel, None
    return channel, PowerState.ON if switches.group(2) in ("on", "true") else PowerState.OFF


def parse_shelly_identity(text):
    """Return the ShellyIdentity in the reply to /shelly; the first generation tells none."""
    members = parse_json_object(text)
    generation = members.get("gen", FIRST_SHELLY)
    if type(generation) is not int or not {"gen", "type"} & set(members):
        raise Refused("this is no Shelly: %s" % quote(text))
    return ShellyIdentity(generation, parse_shelly_mac(members, (), "the reply"))


def parse_shelly_mac(members, owner, where):
    """Return the MAC that an object of a reply tells; owner: the members that lead to it."""
    for name in owner:
        members = require_member(members, name, dict, where)
    try:
        return parse_mac(require_member(members, "mac", str, where))
    except UsageError as error:
        raise ProtocolError("%s: mac: %s" % (where, error)) from error


def find_shelly_relays(members):
    """Return {channel: members} of the relays in a reply of the first generation."""
    relays = members.get("relays", [])
    if type(relays) is not list or not all(type(relay) is dict for relay in relays):
        raise ProtocolError("relays is no list of objects: %s" % quote(json.dumps(relays)))
    return dict(enumerate(relays))


def find_shelly_switches(members):
    """Return {channel: members} of the switches in a reply of a later generation."""
    found = {}
    for key in members:
        match = re.fullmatch("switch:(0|[1-9][0-9]{0,2})", key)
        if match:
            channel, switch = int(match.group(1)), require_member(members, key, dict, "the reply")
            # SAFETY: what calls itself another switch is not this one's state.
            # Test: test_a_switch_that_calls_itself_another_is_not_read
            if require_member(switch, "id", int, key) != channel:
                raise ProtocolError("%s calls itself %s" % (key, switch["id"]))
            found[channel] = switch
    return found


def find_shelly_relay_timer(relay):
    """Return why an OFF of the first generation will end by itself, or ""."""
    has_timer = require_member(relay, "has_timer", bool, "the relay")
    return SHELLY_TIMER if has_timer or relay.get("timer_remaining") else ""


def find_shelly_switch_timer(switch):
    """Return why an OFF of a later generation will end by itself, or ""."""
    return SHELLY_TIMER if any(name.startswith("timer_") for name in switch) else ""


def parse_shelly_meters(status, channel):
    """Return the MeterReading of a channel from the reply to /status."""
    meters = status.get("meters", [])
    if type(meters) is not list or not all(type(meter) is dict for meter in meters):
        raise ProtocolError("meters is no list of objects: %s" % quote(json.dumps(meters)))
    if not meters:
        return NO_METER
    if len(meters) != len(find_shelly_relays(status)):
        return MeterReading(None, "one meter measures several relays")
    meter = meters[channel]
    if not require_member(meter, "is_valid", bool, "the meter"):
        raise ProtocolError("the meter says that its reading is not valid")
    return MeterReading(parse_shelly_watts(meter, "power"), "" if "counters" in meter else
                        "its watts are set by hand, and not measured")


def parse_shelly_switch_meter(status, channel):
    """Return the MeterReading of a channel from the reply to Shelly.GetStatus."""
    switch = find_shelly_switches(status)[channel]
    if "apower" not in switch:
        return NO_METER
    return MeterReading(parse_shelly_watts(switch, "apower"), "")


def has_shelly_meter(status, channel, ways):
    """Return whether the status tells of a meter; one that cannot be read is one."""
    try:
        return ways.parse_meter(status, channel) != NO_METER
    except ProtocolError:
        return True


def parse_shelly_watts(members, name):
    watts = members.get(name)
    if not is_number(watts):
        raise ProtocolError("the meter's %s is not a number: %s" % (name, quote(json.dumps(watts))))
    return limit_watts(watts)


SHELLY_WAYS = ShellyWays(
    status="/status", status_owner=(), settings="/settings", settings_owner=("device",),
    command="/relay/%d?turn=%s", words={PowerState.ON: "on", PowerState.OFF: "off"},
    acknowledged="ison", state="ison", find_channels=find_shelly_relays,
    find_timer=find_shelly_relay_timer, parse_meter=parse_shelly_meters, meter_rest=0)
SHELLY_RPC_WAYS = ShellyWays(
    status="/rpc/Shelly.GetStatus", status_owner=("sys",), settings="/rpc/Shelly.GetConfig",
    settings_owner=("sys", "device"), command="/rpc/Switch.Set?id=%d&on=%s",
    words={PowerState.ON: "true", PowerState.OFF: "false"}, acknowledged="was_on", state="output",
    find_channels=find_shelly_switches, find_timer=find_shelly_switch_timer,
    parse_meter=parse_shelly_switch_meter, meter_rest=DIALECTS["shelly"].meter_rest)


def parse_shelly_state(members, ways):
    is_on = require_member(members, ways.state, bool, "the channel")
    return PowerState.ON if is_on else PowerState.OFF


def parse_shelly_outlets(status, settings, ways, first):
    """Return the channels as Outlets: those of the status, which have to be those of the settings.

    first: the number of the first channel, as the agent's callers count.

    SAFETY: what moves a blind, or dims a lamp, is no switch, and a list with a hole is no list.
    Test: test_a_shelly_without_switches_is_refused_with_what_it_has
    """
    channels, known = ways.find_channels(status), ways.find_channels(settings)
    owner = settings
    for name in ways.settings_owner:
        owner = require_member(owner, name, dict, "the settings")
    profile = owner.get("profile", settings.get("mode"))
    if not channels or profile in ("cover", "roller"):
        others = sorted(name for name in status if re.match("cover|light|rgb|cct|roller", name))
        raise Refused("the device has no switch: its profile or mode is %s, and it has %s" % (
            quote(str(profile)), ", ".join(map(quote, others)) or "no other output"))
    if set(channels) != set(known):
        raise ProtocolError("the device tells the states of %d channels, and the settings of %d"
                            % (len(channels), len(known)))
    names = find_shelly_names(settings, ways)
    return tuple(Outlet(channel + first, names[channel], (), parse_shelly_state(members, ways))
                 for channel, members in sorted(channels.items()))


def find_shelly_names(settings, ways):
    """Return {channel: name} from the settings."""
    return {channel: str(members.get("name") or "")
            for channel, members in ways.find_channels(settings).items()}


def has_shelly_auto_on(settings, channel, ways):
    """Return whether a channel switches itself on again after each OFF.

    SAFETY: it starts a timer, which the reading behind an OFF may be too early to see.
    Test: test_a_channel_that_switches_itself_on_again_is_refused
    """
    value = ways.find_channels(settings)[channel].get("auto_on", False)
    if type(value) not in (bool, int, float):
        raise ProtocolError("auto_on is neither yes nor no nor seconds: %s"
                            % quote(json.dumps(value)))
    return value > 0


@speaks("shelly")
class ShellyDevice(HttpDevice):
    """A Shelly of any generation, and who it is."""

    name = "shelly"
    default_username = "admin"
    open_pages = ("/shelly",)

    def __init__(self, system, settings):
        super().__init__(system, settings)
        self.take_outlet_from_urls(parse_shelly_url)
        self.identity = None  # the ShellyIdentity of the first answer: no other device's counts

    @property
    def ways(self):
        """The ShellyWays of the device that was identified."""
        return SHELLY_WAYS if self.identity.generation == FIRST_SHELLY else SHELLY_RPC_WAYS

    def list_outlets(self, deadline):
        settings, outlets, _ = self._read_all(deadline)
        for outlet in outlets:
            if has_shelly_auto_on(settings, self.find_channel(outlet), self.ways):
                self.system.warn("channel %d of %s cannot fence: it has auto_on"
                                 % (outlet.number, self.describe()))
        return outlets

    def open(self, deadline):
        settings, outlets, status = self._read_all(deadline)
        channels = self.ways.find_channels(status)

        def open_one(name):
            outlet = select_outlet(outlets, name, self.label)
            if has_shelly_auto_on(settings, self.find_channel(outlet), self.ways):
                raise Refused("channel %d switches itself on again after each OFF: switch its "
                              "auto_on off" % outlet.number)
            doubt = self.doubt_about_off(outlet.state, channels[self.find_channel(outlet)])
            is_called_by_name = len(outlets) > 1 and outlet.alias == name
            names = find_shelly_names(settings, self.ways) if is_called_by_name else None
            return ShellyChannel(self, outlet, doubt, status, names)
        return self.open_named(open_one)

    def check_identity(self, deadline):
        """Raise Refused unless the device is the one that is configured, and that of before."""
        # SAFETY: without device_mac too: the proof must come from the device that was switched.
        # Test: test_another_shelly_in_the_middle_of_an_action_is_neither_switched_nor_believed
        found = self.exchange("GET", "/shelly", lambda reply: parse_shelly_identity(
            parse_http_body(reply)), deadline)
        self.check_mac(found.mac)
        self.identity = self.identity or found
        self._check_same(found)
        # SAFETY: later generations never ask for a password in the clear; another device may.
        # Test: test_a_later_generation_gets_no_password_in_the_clear_whatever_asks_for_it
        self.login.allows_basic = found.generation == FIRST_SHELLY
        self._recall_login()

    def _recall_login(self):
        """Go on with the challenge of an earlier action: the device has few."""
        if self.settings.password and not self.login.digest:
            kept = self.system.take_login(render_address(self.address, self.settings.ipport))
            if kept:
                self.login.recall(*kept)

    def close(self):
        if self.system.held_login:
            self.system.keep_login(self.login.kept())
            self.login.forget()

    def _check_same(self, found):
        if found != self.identity:
            raise Refused("another device answered in the middle of the action: %s, after %s"
                          % (render_mac(found.mac), render_mac(self.identity.mac)))

    def read_status(self, deadline):
        return self._read(self.ways.status, self.ways.status_owner, deadline)

    def read_settings(self, deadline):
        return self._read(self.ways.settings, self.ways.settings_owner, deadline)

    def doubt_about_off(self, state, members):
        """Return why an OFF of a channel will end by itself, "" when it will not, or for an ON.

        SAFETY: an OFF that will end by itself is none.
        Test: test_an_off_under_a_running_timer_is_none
        """
        timer = self.ways.find_timer(members) if state is PowerState.OFF else ""
        return timer and "the relay is OFF, but %s" % timer

    def _read_all(self, deadline):
        """Return (settings, Outlets, status) of the whole device."""
        self.check_identity(deadline)
        settings = self.read_settings(deadline)
        status = self.read_status(deadline)
        return settings, parse_shelly_outlets(
            status, settings, self.ways, self.settings.first_outlet), status

    def find_channel(self, outlet):
        return outlet.number - self.settings.first_outlet

    def _read(self, path, owner, deadline):
        """Return the members of a reply, which tells from which device it comes."""
        members = self.exchange("GET", path, lambda reply: parse_json_object(
            parse_http_body(reply)), deadline)
        self._check_same(self.identity._replace(mac=parse_shelly_mac(members, owner, path)))
        return members


class ShellyChannel(HttpOutlet):
    """One channel of a Shelly."""

    def __init__(self, device, outlet, doubt, status, names):
        super().__init__(device, outlet.state, outlet.number, doubt)
        self.channel = device.find_channel(outlet)
        self.channels = set(device.ways.find_channels(status))  # all that the device has
        self.has_meter = has_shelly_meter(status, self.channel, device.ways)
        self.names = names        # of them all, where this one was asked for by its own
        # Who has commanded before that, nobody knows.
        self.quiet_since = device.system.clock()

    def check_names(self, deadline):
        """Raise Refused unless all names are as they were when this channel was found by its own.

        SAFETY: who swaps two names means another channel by them from then on.
        Test: test_a_name_that_moves_to_another_channel_is_a_doubt
        """
        if self.names and self.names != find_shelly_names(
                self.device.read_settings(deadline), self.device.ways):
            raise Refused("plug %s may have become another outlet in the middle of the action: the "
                          "names of the channels were changed" % quote(self.device.wanted))

    def read_state(self, deadline):
        self.check_names(deadline)
        members = self._find(self.device.read_status(deadline))
        state = parse_shelly_state(members, self.device.ways)
        doubt = self.device.doubt_about_off(state, members)
        if doubt:
            raise ProtocolError(doubt)
        return state

    def send_command(self, wanted, deadline):
        self.check_names(deadline)
        ways = self.device.ways
        try:
            self.device.exchange("GET", ways.command % (self.channel, ways.words[wanted]),
                                 self._check_acknowledgement, deadline)
        finally:  # it may have obeyed, whatever came back
            self.quiet_since = self.device.system.clock()
            self.doubt = ""  # a command ends the timer

    def _check_acknowledgement(self, reply):
        # Whichever state it tells, it is the one before or the one that is meant to be.
        check_command_reply(reply)
        require_member(parse_json_object(reply.body), self.device.ways.acknowledged, bool,
                       "the reply")

    def read_power_meter(self, deadline):
        status = self.device.read_status(deadline)
        self._find(status)
        ways = self.device.ways
        reading = ways.parse_meter(status, self.channel)
        # SAFETY: a meter that was there does not go away by itself.
        # Test: test_a_meter_that_goes_away_in_the_middle_of_an_action_is_a_doubt
        if self.has_meter and reading == NO_METER:
            raise ProtocolError("the meter that the channel had before is not told of any more")
        return rest_reading(reading, ways.meter_rest,
                            self.device.system.clock() - self.quiet_since)

    def _find(self, status):
        channels = self.device.ways.find_channels(status)
        # SAFETY: the first generation tells of its channels by their places alone.
        # Test: test_a_status_that_has_lost_a_channel_is_no_state_of_another
        if set(channels) != self.channels:
            raise ProtocolError("the device told of %d channels before, and now of %d"
                                % (len(self.channels), len(channels)))
        return channels[self.channel]


# SECTION: PAGES -----------------------------------------------------------------------------------
# Any device with one URL that switches on, one that switches off, and one that tells the state. Two
# expressions, of which a status must match exactly one, or two values of a member of JSON, are all
# that tells its answer from another page.

STATUS_WAYS = (("status_on_regex", "status_off_regex"),
               ("status_member", "status_on_value", "status_off_value"))
# Of a meter that nobody has described: a load is a load, and no load proves nothing.
UNKNOWN_METER = "nobody knows whether this meter measures while the relay is off"


def parse_status_page(text, on_pattern, off_pattern):
    """Return the PowerState of a status reply, which must match exactly one expression."""
    patterns = ((PowerState.ON, on_pattern), (PowerState.OFF, off_pattern))
    found = [state for state, pattern in patterns if re.search(pattern, text)]
    if len(found) != 1:
        raise ProtocolError("the reply matches %s of status_on_regex and status_off_regex: %s"
                            % ("both" if found else "neither", quote(text)))
    return found[0]


def parse_status_member(text, path, on_value, off_value):
    """Return the PowerState of a status reply by a member of it; the values are JSON, as text.

    SAFETY: "unavailable" is not off, and neither are null, and 0 where false is meant.
    Test: test_a_member_that_has_neither_value_is_no_state
    """
    value = render_json(find_member(text, path))
    if value not in (on_value, off_value):
        raise ProtocolError("%s is %s, and neither status_on_value (%s) nor status_off_value (%s)"
                            % (path.text, quote(value), quote(on_value), quote(off_value)))
    return PowerState.ON if value == on_value else PowerState.OFF


def parse_watts(text, path):
    """Return the load that a member of a status reply tells."""
    value = find_member(text, path)
    if not is_number(value):
        raise ProtocolError("the load (%s) is not a number: %s"
                            % (path.text, quote(render_json(value))))
    return limit_watts(value)


def check_status_way(settings):
    """Raise UsageError unless exactly one of STATUS_WAYS is given, and all of it."""
    ways = [way for way in STATUS_WAYS if any(getattr(settings, name) for name in way)]
    if len(ways) > 1:
        raise UsageError("status_member and the two expressions are two ways to read one status: "
                         "leave one out")
    needed = ["status_url"] + list(ways[0] if ways else STATUS_WAYS[0])
    if not settings.fence_method:  # fence_check only reads
        needed.insert(0, "power_off_url")
    for name in needed:
        if not getattr(settings, name):
            raise UsageError("no %s given, and device=url needs it" % name)
    if settings.status_member and settings.status_on_value == settings.status_off_value:
        raise UsageError("status_on_value and status_off_value are the same")


def choose_switching_method(settings, own_method, body):
    """Return the HTTP method of one switching URL; own_method: of it alone, "" for http_method."""
    method = own_method or settings.http_method
    if method == "auto":
        method = "POST" if settings.power_on_body or settings.power_off_body else "GET"
    if body and method == "GET":
        raise UsageError("a GET has no body: leave its method (http_method) out, or set POST or "
                         "PUT")
    return method


@speaks("url")
class UrlDevice(HttpDevice):
    """A device by its URLs alone; they say what is switched, and none tells a MAC address."""

    name = "url"
    answers_in_pages = True

    def __init__(self, system, settings):
        super().__init__(system, settings)
        check_status_way(settings)
        self.bodies = {"power_on_url": settings.power_on_body,
                       "power_off_url": settings.power_off_body}
        check_pages(self.paths, self.bodies, settings.status_method)
        self.methods = {
            "power_on_url": choose_switching_method(
                settings, settings.power_on_method, settings.power_on_body),
            "power_off_url": choose_switching_method(
                settings, settings.power_off_method, settings.power_off_body)}
        self.content_type = settings.content_type
        self.own_headers = self.fill_headers()
        for path in self.paths.values():
            system.secrets.update(find_query_values(path))
        for body in self.bodies.values():
            system.secrets.update(find_body_secrets(body))
        if self.wanted not in ("", self.label):
            raise UsageError("plug %s: the URLs alone say what is switched" % quote(self.wanted))

    def fill_headers(self):
        """Return the caller's headers with the password in its place, and hide their values."""
        settings = self.settings
        given = settings.headers or {}
        has_login = "authorization" in map(str.lower, given)
        is_filled = any("{password}" in value for value in given.values())
        if is_filled and not (settings.password or settings.password_script):
            raise UsageError("headers: {password} stands for the password, and none is given")
        if has_login and settings.password and not is_filled:
            raise UsageError("headers: Authorization and a password are two logins: leave one out")
        if is_filled:  # it is no password to be asked for
            self.login.password = ""
        headers = {name: value.replace("{password}", settings.password)
                   for name, value in given.items()}
        for value in headers.values():
            if settings.password and not re.fullmatch(HEADER_VALUE, value):
                raise UsageError("headers: the password holds what no header can: a line end, or "
                                 "what is not ASCII")
            self.system.secrets.update(find_header_values(value))
        return headers

    def list_outlets(self, deadline):
        return (Outlet(1, self.label, (), self.open(deadline).state),)

    def open(self, deadline):
        self.check_identity(deadline)
        return UrlOutlet(self, self.read_page(deadline))

    def read_page(self, deadline):
        settings = self.settings
        if settings.status_member:
            return self.ask_status(lambda text: parse_status_member(
                text, settings.status_member, settings.status_on_value,
                settings.status_off_value), deadline)
        return self.ask_status(lambda text: self.system.compute(
            lambda: parse_status_page(text, settings.status_on_regex, settings.status_off_regex),
            deadline, "status_on_regex or status_off_regex"), deadline)

    def ask_status(self, parse, deadline):
        """Return parse(text) of the status reply."""
        return self.exchange(self.settings.status_method, self.paths["status_url"],
                             lambda reply: parse(parse_http_body(reply)), deadline)

    def shown_path(self, path):
        """Return the path without its query, which may hold a login under any name."""
        page, mark, _ = path.partition("?")
        return page + mark + "***" if mark else page


class UrlOutlet(HttpOutlet):
    """What the URLs of a device switch and tell."""

    def read_state(self, deadline):
        return self.device.read_page(deadline)

    def send_command(self, wanted, deadline):
        name = "power_on_url" if wanted is PowerState.ON else "power_off_url"
        device = self.device
        if not device.paths[name]:
            raise UsageError("no %s was given, so the device cannot be switched that way" % name)
        device.exchange(
            device.methods[name], device.paths[name],
            lambda reply: check_command_reply(reply, (200, 201, 202, 204)), deadline,
            body=device.bodies[name])

    def read_power_meter(self, deadline):
        path = self.device.settings.watts_member
        if not path:
            return NO_METER
        watts = self.device.ask_status(lambda text: parse_watts(text, path), deadline)
        return MeterReading(watts, UNKNOWN_METER)


# SECTION: INSTALLED AGENT -------------------------------------------------------------------------
# Any fence agent of this machine, asked for the state of its outlet and never to switch it.
# Source: FenceAgentAPI.md of fence-agents; read 2026-10.

def parse_agent_status(code, text):
    """Return the PowerState that another fence agent tells by its exit code and its output.

    SAFETY: both must say the same. Exit code 2 is a usage error of many programs, and an agent may
    print a state before it fails. Test: test_an_agents_exit_code_and_words_must_agree
    """
    words = set(re.findall("(?m)^Status: (.*?)\\s*$", text))
    state = {EXIT_GOOD: PowerState.ON, EXIT_OFF: PowerState.OFF}.get(code)
    if state and words == {state.value}:
        return state
    raise ProtocolError("the agent ended with exit code %d and printed %s"
                        % (code, quote(text.strip())))


@speaks("ipmi", "agent")
class InstalledAgent(Device):
    """A fence agent that is run as Pacemaker runs it; fence_method is its name or its dialect's."""

    def describe(self):
        return ("%s %s" % (self.settings.fence_method, self.settings.ip)).rstrip()

    def prove_usable(self, deadline):
        """Raise unless it tells the outlet's state, or its monitor succeeds where none is named."""
        if self.wanted:
            return self.open(deadline)
        code, _, err = self._run("monitor", deadline)
        if code != EXIT_GOOD:
            raise Unreachable("its monitor failed with exit code %d: %s"
                              % (code, quote(err.strip())))
        return None

    def open(self, deadline):
        return AgentOutlet(self, self.read_status(deadline))

    def read_status(self, deadline):
        code, out, err = self._run("status", deadline)
        try:
            return parse_agent_status(code, out)
        except ProtocolError as error:
            raise ProtocolError("%s; it says: %s" % (error, quote(err.strip()))) from error

    def _run(self, action, deadline):
        """Run the agent as Pacemaker does: the password goes over its stdin, never its argv."""
        settings = self.settings
        dialect = DIALECTS_BY_METHOD.get(settings.fence_method, DIALECTS["agent"])
        names = ("ip", "ipport", "plug", "username", "password", "nodename")
        parameters = {name: getattr(settings, name) for name in names}
        parameters.update(dialect.fixed)
        parameters.update(settings.options, action=action)
        lines = ["%s=%s" % item for item in parameters.items() if item[1] != ""]
        if any("\n" in line for line in lines):
            raise Refused("a parameter for the agent has a line break in it")
        return self.system.run([dialect.agent or settings.fence_method], "\n".join(lines) + "\n",
                               deadline.within(settings.login_timeout + settings.shell_timeout))


class AgentOutlet(OpenedOutlet):
    """The outlet that an installed agent was given."""

    def read(self, deadline):
        return self.device.read_status(deadline)

    def send(self, wanted, deadline):
        raise Refused("an installed agent is asked for its status here, and never to switch")


# PART 4: FENCING ==================================================================================

# SECTION: PACKETS ---------------------------------------------------------------------------------
# What is asked of addresses and answered, as bytes, and what each packet shows of an address. Sends
# nothing.

ARP_HEADER = struct.pack(">HHBB", 1, 0x0800, 6, 4)  # Ethernet, IPv4, and their address lengths
ARP_REQUEST, ARP_REPLY = 1, 2
BROADCAST_MAC = b"\xff" * 6
NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT = 135, 136
LOOK_SEQUENCES = 1024    # echoes of one look have sequences of their own, so many of them
SHORT_SEQUENCE = 0xFC00  # and above: of echoes that so few routers forward as it is above this


def build_echo(family, marker, sequence):
    """Return an echo request; marker: 8 bytes that its answer, and no other, brings back."""
    # Two of them are the identifier too: that is all of a request that every ICMP error quotes.
    body = marker[:2] + struct.pack(">H", sequence) + marker
    words = struct.unpack(">6H", body) + (ICMP[family].request << 8,)
    # The remainder is the ones' complement sum. For ICMPv6 the kernel fills in its own.
    return struct.pack(">BBH", ICMP[family].request, 0, 0xFFFF - sum(words) % 0xFFFF) + body


def parse_echo_reply(family, message):
    """Return (marker, sequence) that an echo reply brings back, (b"", 0) for any other message."""
    if len(message) < 16 or message[:2] != bytes([ICMP[family].reply, 0]):
        return b"", 0
    return message[8:16], struct.unpack(">H", message[6:8])[0]


def parse_icmp_error(family, message):
    """Return ((type, code), target, identifier, sequence) of the echo that an ICMP error is about.

    None for any other message.
    """
    if len(message) < 9 or message[0] not in ICMP[family].errors:
        return None
    quoted = message[8:]  # the packet that it is about: its IP header, and some of its body
    if family == socket.AF_INET:
        header_bytes, protocol, target = (quoted[0] & 15) * 4, quoted[9:10], quoted[16:20]
    else:
        header_bytes, protocol, target = 40, quoted[6:7], quoted[24:40]
    echo = quoted[header_bytes:header_bytes + 8]
    is_echo = protocol == bytes([ICMP[family].protocol]) and echo[:1] == bytes(
        [ICMP[family].request])
    if not is_echo or len(echo) < 8:
        return None
    return tuple(message[:2]), target, echo[4:6], struct.unpack(">H", echo[6:8])[0]


def build_arp_request(mac, source, target):
    """Return "who has target", from our MAC and address; all are bytes."""
    return ARP_HEADER + struct.pack(">H", ARP_REQUEST) + mac + source + bytes(6) + target


def parse_arp_sender(message):
    """Return the address that sent an ARP packet, be it a reply or a request, or b""."""
    return message[14:18] if message[:6] == ARP_HEADER else b""


def parse_arp_mac(message):
    """Return the MAC of who sent an ARP packet."""
    return message[8:14]


def is_arp_answer(message, mac):
    """Return whether an ARP packet is a reply to the one who has this MAC."""
    return message[6:8] == struct.pack(">H", ARP_REPLY) and message[18:24] == mac


def build_neighbour_solicitation(mac, target):
    """Return (message, address to send it to) that asks target for its MAC."""
    group = b"\xff\x02" + bytes(9) + b"\x01\xff" + target[13:]  # its solicited-node address
    return (struct.pack(">BBHI", NEIGHBOUR_SOLICITATION, 0, 0, 0) + target + b"\x01\x01" + mac,
            socket.inet_ntop(socket.AF_INET6, group))


def parse_neighbour_advertisement(message):
    """Return the address that an advertisement speaks for, or b"" for any other message."""
    return message[8:24] if message[:2] == bytes([NEIGHBOUR_ADVERTISEMENT, 0]) else b""


def is_solicited(advertisement):
    """Return whether an advertisement answers a question, and was not sent to all unasked."""
    return bool(advertisement[4:5]) and bool(advertisement[4] & 0x40)


class Markers:
    """What the answers to our echoes bring back: one marker an address, for a whole action.

    Many looks may go on at once, and this machine hears the answers to all of them.
    """

    def __init__(self):
        self.random = os.urandom(6)
        self.addresses = []
        self.looks = 0

    def of(self, address):
        """Return 8 bytes; the first two are all that every ICMP error quotes of them."""
        if address not in self.addresses:
            self.addresses.append(address)
        return struct.pack(">H", self._first() + self.addresses.index(address)) + self.random

    def begin_look(self):
        """Return the sequence that the echoes of one more look begin with."""
        self.looks += 1
        return self.looks % (SHORT_SEQUENCE // LOOK_SEQUENCES) * LOOK_SEQUENCES

    def of_short(self, address):
        """Return the marker of echoes that die on the way if it is long."""
        return self.of(address)[:2] + bytes(byte ^ 0xFF for byte in self.random)

    def _first(self):
        """Return where the numbers of this action begin, so that most differ from others'."""
        return struct.unpack(">H", self.random[:2])[0] & 0x7FFF


class Listener:
    """Notes in the Sights of one look what each packet that comes in shows.

    An answer to an echo is matched by its marker, every other packet by the address it speaks for.
    """

    def __init__(self, sights, targets, markers, router_errors):
        self.sights = {sight.packed: sight for sight in sights}
        self.targets = targets              # addresses of the target
        self.router_errors = router_errors  # see Look
        self.markers = markers
        self.by_marker = {markers.of(sight.address): sight for sight in sights}
        self.by_short_marker = {markers.of_short(sight.address): sight for sight in sights}
        self.last_sequences = range(0)      # of the echoes that witnesses get at the end of a look

    def take(self, family, packet, sender):
        """Note what one packet shows; family: of the socket that it came from."""
        if family == FRAMES:
            self._take_frame(sender)
        elif family == socket.AF_PACKET:
            self._take_arp(packet, sender)
        elif packet:
            self._take_icmp(family, packet, sender)

    def _take_frame(self, mac):
        for sight in self.sights.values():
            if sight.address in self.targets and mac in sight.macs:
                sight.was_heard = True

    def _take_arp(self, packet, interface):
        sight = self.sights.get(parse_arp_sender(packet))
        if sight and sight.route:
            is_answer = interface == sight.route.interface and is_arp_answer(
                packet, sight.route.mac)
            sight.macs.add(parse_arp_mac(packet))
            self._note_neighbour(sight, is_answer)

    def _take_icmp(self, family, packet, sender):
        self._take_echo_reply(*parse_echo_reply(family, packet), sender)
        if family == socket.AF_INET6:
            neighbour = self.sights.get(parse_neighbour_advertisement(packet))
            if neighbour:
                self._note_neighbour(neighbour, is_solicited(packet))
        error = parse_icmp_error(family, packet)
        if error:
            self._take_icmp_error(family, error, sender)

    def _take_echo_reply(self, marker, sequence, sender):
        found = self.by_short_marker.get(marker)
        if found:
            found.hops = min(found.hops, max(1, sequence - SHORT_SEQUENCE))
            found.echoed = found.echoed or found.address in self.targets
        sight = self.by_marker.get(marker)
        # SAFETY: only the target could have got the marker, whatever address its answer comes from.
        # Of a witness that would say nothing: its answer comes by the way that is in question.
        # Test: test_an_answer_from_another_address_of_the_target_is_life
        if sight and (sight.address in self.targets or sight.address == sender):
            sight.echoed = True
            sight.answers.add(sequence)
            sight.answered_last = sight.answered_last or sequence in self.last_sequences

    def _take_icmp_error(self, family, error, sender):
        """Note an error about an echo: from the address itself it is life."""
        kind, target, identifier, sequence = error
        sight = self.sights.get(target)
        if not sight or identifier != self.markers.of(sight.address)[:2]:
            return
        is_exceeded = kind[0] == ICMP[family].exceeded
        if socket.inet_pton(family, sender) == target:
            # Whatever it is about: a node that hands its packets on to a container may tell that.
            sight.rejected = True
            sight.answered_last = sight.answered_last or sequence in self.last_sequences
        elif sequence > SHORT_SEQUENCE:
            if is_exceeded:
                sight.routers = max(sight.routers, sequence - SHORT_SEQUENCE)
        elif is_exceeded and sight.address not in self.targets and sight.is_attached():
            sight.is_forwarded = True
        elif kind != ICMP[family].silence:
            # "Host unreachable" is what a router says of a dead target: no more than its silence.
            # Everything else tells of a path that does not work.
            reason = "%s does not forward packets to it: ICMP type %d, code %d" % (
                (sender,) + kind)
            sight.add_obstacle(reason)
            self.router_errors[sight.address] = reason

    def _note_neighbour(self, sight, is_answer):
        """Any packet of a target is life; of a witness only an answer to our question counts."""
        # SAFETY: what is overheard proves the path from it to us, and not from us to it.
        # Test: test_a_witness_that_is_only_overheard_proves_nothing
        if is_answer or sight.address in self.targets:
            sight.neighbour = True
        if is_answer and self.last_sequences:
            sight.answered_last = True


# SECTION: PROBES ----------------------------------------------------------------------------------
# Packets to addresses, and what one look saw of each. What it means is judged in EVIDENCE.

class Asker:
    """Asks addresses, by sockets that are opened when they are first needed.

    One serves all looks of an action: an answer that comes after its look counts for the next one.
    """

    def __init__(self, system, arp_check):
        self.system = system
        self.arp_check = arp_check
        self.markers = Markers()
        self.distances = {}     # {address: its hops, routers and is_forwarded}, see Sight
        self.by_family = {}     # sockets for ICMP; None where there can be none
        self.taps = {}          # sockets that hear answers which do not come in there; the same
        self.by_interface = {}  # sockets for ARP; the same
        self.by_mac = {}        # sockets for all that a target sends; the same
        self.known_macs = {}    # {address of a target: its MAC}

    def opened(self):
        groups = (self.by_family, self.taps, self.by_interface, self.by_mac)
        handles = [handle for group in groups for handle in group.values()]
        return [handle for handle in handles if handle]

    def count_drops(self):
        """Return how many packets there was no room for since the last time it was asked."""
        return sum(handle.count_drops() for handle in self.opened())

    def close(self):
        for handle in self.opened():
            handle.close()

    def choose_questions(self, sight):
        """Find out how an address can be asked, and what then its silence is worth."""
        if sight.family not in self.by_family:
            self.by_family[sight.family] = self.system.open_echo(sight.family)
            self.taps[sight.family] = self.system.open_tap(sight.family)
        # SAFETY: this machine's own firewall may drop an answer, and its rp_filter one that comes
        # back by another link. Test: test_silence_that_no_tap_has_heard_proves_nothing
        if not self.taps[sight.family]:
            sight.add_obstacle("no packet socket can be opened, so this machine's own firewall may "
                               "hide its answers: run it as root")
        echo = self.by_family[sight.family]
        if not echo or not echo.is_raw:
            sight.add_obstacle("no raw ICMP socket can be opened, so silence proves nothing: "
                               "run it as root")
        sight.asks_neighbour = self._may_ask_neighbour(sight)
        sight.uses_arp = sight.family == socket.AF_INET and sight.asks_neighbour
        if sight.uses_arp:
            self._open_arp(sight)

    def _open_arp(self, sight):
        interface = sight.route.interface
        if interface not in self.by_interface:
            self.by_interface[interface] = self.system.open_arp(interface)
        if not self.by_interface[interface]:
            sight.add_obstacle("no ARP socket can be opened on %s, so silence proves nothing: "
                               "run it as root" % interface)

    def listen_to(self, sight):
        """Hear whatever an attached target sends, where the kernel has known its MAC."""
        route = sight.route
        if not sight.is_attached():
            return
        # The kernel forgets the MAC of who does not answer it: it is remembered for the action.
        mac = self.system.find_neighbour(sight.family, route.index, sight.packed)
        if mac:
            self.known_macs[sight.address] = mac
        mac = self.known_macs.get(sight.address, b"")
        if len(mac) != len(BROADCAST_MAC) or mac == route.mac:
            return
        sight.macs.add(mac)
        key = (route.interface, mac)
        if key not in self.by_mac:
            self.by_mac[key] = self.system.open_frames(*key)

    def _may_ask_neighbour(self, sight):
        return bool(self.arp_check) and sight.is_attached()

    def ask(self, sight, sequence, hops=0):
        """Send one echo, and one question to the neighbour where it can be asked.

        hops: see PacketSocket.send.
        """
        echo = self.by_family[sight.family]
        if echo:
            self._send(sight, echo, build_echo(
                sight.family, self.markers.of(sight.address), sequence), (sight.address, 0), hops)
        if not self._may_ask_neighbour(sight):
            return
        if sight.uses_arp:
            self._ask_by_arp(sight)
        elif echo and echo.is_raw:
            self._ask_by_discovery(sight, echo)

    def ask_how_far(self, sight):
        """Send echoes that die on the way if it has more than so many routers."""
        echo = self.by_family[sight.family]
        if not echo or not sight.route.gateway:
            return
        # SAFETY: a router tells each machine few errors in a second: one that has told of itself is
        # not asked again, so that it can tell of itself on the way to others.
        # Test: test_routers_that_tell_few_errors_are_found_on_the_way_to_every_network
        for hops in range(sight.routers + 1, MOST_ROUTERS + 1):
            packet = build_echo(sight.family, self.markers.of_short(sight.address),
                                SHORT_SEQUENCE + hops)
            self._send(sight, echo, packet, (sight.address, 0), hops)

    def _ask_by_arp(self, sight):
        route = sight.route
        arp = self.by_interface[route.interface]
        if arp:
            packet = build_arp_request(route.mac, route.source, sight.packed)
            self._send(sight, arp, packet, (route.interface, ETHERTYPE_ARP, 0, 0, BROADCAST_MAC))

    def _ask_by_discovery(self, sight, echo):
        """Ask as IPv6 does instead of by ARP: its question travels as ICMP."""
        packet, group = build_neighbour_solicitation(sight.route.mac, sight.packed)
        self._send(sight, echo, packet, (group, 0, 0, sight.route.index))

    def _send(self, sight, handle, packet, receiver, hops=0):
        try:
            handle.send(packet, receiver, hops)
        except Unreachable as error:
            sight.add_obstacle(str(error))


class Inquiry:
    """The questions of one look, at all addresses at once, and the time to hear the answers."""

    def __init__(self, system, asker, listener, sights, settings):
        self.system = system
        self.asker = asker
        self.listener = listener
        self.sights = sights
        self.targets = listener.targets
        self.first_sequence = asker.markers.begin_look()
        self.seconds = settings.ping_timeout
        self.turns = settings.ping_count

    def lengthen(self, seconds):
        """Take so many seconds at least, and ask as often in each of them."""
        self.turns = int(self.turns * max(1, seconds / self.seconds))
        self.seconds = max(self.seconds, seconds)

    def run(self):
        """Ask at even intervals, so that a burst of losses does not take all questions."""
        self._ask_turns(range(self.turns))
        # SAFETY: what a witness on the way loses, a living target may lose, too.
        # Test: test_a_look_is_longer_where_a_witness_loses_answers
        if self._is_lossy():
            self._ask_turns(range(self.turns, 2 * self.turns))
        self._ask_witnesses_last()

    def _ask_turns(self, turns):
        # Counted, not timed: a process that was held up for a while still asks every question.
        for turn in turns:
            if self._has_found_life():
                return
            for sight in self._asked():
                if not (sight.address in self.targets and sight.echoed):
                    self._ask(sight, self.first_sequence + turn)
            if turn % SHORT_TURNS == SHORT_TURNS // 2:
                for sight in self._asked():
                    self.asker.ask_how_far(sight)
            self._listen(self.seconds * ASKING_PART / self.turns)

    def _has_found_life(self):
        return all(sight.echoed for sight in self._asked() if sight.address in self.targets)

    def _is_lossy(self):
        """Return whether a witness that answers has left too many echoes without an answer."""
        fewest = FEWEST_ANSWERS * self.turns
        return not self._has_found_life() and any(
            0 < len(sight.answers) < fewest for sight in self._asked_witnesses())

    def _ask(self, sight, sequence):
        # A witness that is attached needs no router: what one forwards was never attached.
        is_near = sight.address not in self.targets and sight.is_attached()
        self.asker.ask(sight, sequence, hops=1 if is_near else 0)

    def _ask_witnesses_last(self):
        """Ask the witnesses again, now that the target has been asked for the last time."""
        first = self.first_sequence + 2 * self.turns
        self.listener.last_sequences = range(first, first + LAST_QUESTIONS)
        for sequence in self.listener.last_sequences:
            # Before, so that their answers are there before; of a target that lives, too: monitor
            # has to know the routers on the way to it.
            for sight in self._asked():
                self.asker.ask_how_far(sight)
            for witness in self._asked_witnesses():
                if not witness.answered_last:
                    self._ask(witness, sequence)
            self._listen(self.seconds * (1 - ASKING_PART) / LAST_QUESTIONS)

    def _listen(self, seconds):
        """Take in what comes in this time, and all that has piled up by its end."""
        end = self.system.clock() + seconds
        late_reads = 0
        handles = self.asker.opened()
        while not self._is_complete():
            ready = self.system.wait_readable(handles, end - self.system.clock())
            if not ready:
                return
            for handle in ready:
                self.listener.take(handle.family, *handle.receive())
            if self.system.clock() > end:
                late_reads += 1
            if late_reads > MOST_LATE_READS:
                raise Unreachable("more packets come in than can be read, so nothing can be "
                                  "judged: is this machine's network flooded?")

    def _is_complete(self):
        """Return whether nothing more can be learned from listening."""
        return all(self._is_settled(sight) for sight in self._asked())

    def _is_settled(self, sight):
        # Of a target only the echo: an early ARP reply does not say that ICMP is filtered.
        return sight.echoed if sight.address in self.targets else sight.answered_last

    def _asked(self):
        """Return the Sights that packets can be sent to: without a carrier none would leave."""
        # SAFETY: one that turned out to be forwarded would use up what its router tells of others.
        # Test: test_what_is_behind_proxy_arp_is_no_witness_in_any_look
        return [sight for sight in self.sights
                if sight.route and sight.route.has_carrier and not sight.is_forwarded]

    def _asked_witnesses(self):
        return [sight for sight in self._asked() if sight.address not in self.targets]


class Look:
    """One look at all addresses at once: each is asked several times, in several ways.

    In this order: ask the kernel for the routes, open the sockets, ask and listen, ask the
    witnesses once more, ask the kernel again. Whatever goes wrong on this side becomes an obstacle
    of the Sight, never an answer.
    """
    # SAFETY: router_errors, {address: what a router said about it}, are those of all looks of an
    # action: a router tells an error once in a while only, and the path is just silent then.
    # Test: test_what_a_router_said_holds_for_the_whole_action

    def __init__(self, system, settings, asker, router_errors, device_addresses):
        self.system = system
        self.settings = settings
        self.asker = asker
        self.targets = {target.address for target in settings.targets}
        addresses = self.targets.union(
            device_addresses, (witness.address for witness in settings.witnesses))
        # The target first: a router tells few errors, and those about the target count most.
        self.sights = [Sight(address) for address in sorted(
            addresses, key=lambda address: (address not in self.targets, address))]
        for sight in self.sights:
            sight.hops, sight.routers, sight.is_forwarded = asker.distances.get(
                sight.address, (sight.hops, sight.routers, sight.is_forwarded))
            if sight.address in router_errors:
                sight.add_obstacle(router_errors[sight.address])
        self.listener = Listener(self.sights, self.targets, asker.markers, router_errors)
        self.inquiry = Inquiry(system, asker, self.listener, self.sights, settings)

    def run(self):
        """Return {address: Sight}."""
        for sight in self.sights:
            self._find_route(sight)
        self._choose_length()
        for sight in self._routed():
            self.asker.choose_questions(sight)
            if sight.address in self.targets and self.settings.arp_check:
                self.asker.listen_to(sight)
        self._catch_up()
        self.inquiry.run()
        self._note_drops()
        self._find_forwarded()
        self._find_ports()
        for sight in self._routed():
            if not self.asker.by_family[sight.family]:
                run_ping(self.system, self.settings, sight)
        for sight in self.sights:
            self._check_route(sight)
            self.asker.distances[sight.address] = (
                sight.hops, sight.routers, sight.is_forwarded)
        return {sight.address: sight for sight in self.sights}

    def _routed(self):
        """Return the Sights that there is a route to; the others cannot be asked."""
        return [sight for sight in self.sights if sight.route]

    def _find_route(self, sight):
        try:
            sight.route = self.system.find_route(sight.family, sight.packed)
        except Unreachable as error:
            sight.lose_route(str(error))

    def _choose_length(self):
        # SAFETY: a router that has lost sight of a node asks for it by ARP, once in a second, and
        # the question or its answer may get lost.
        # Test: test_a_look_behind_a_router_is_longer_than_its_search_for_the_node
        if any(sight.route.gateway for sight in self._routed() if sight.address in self.targets):
            self.inquiry.lengthen(ROUTED_LOOK_SECONDS)

    def _check_route(self, sight):
        # SAFETY: a link that was gone for a part of the look has hidden answers.
        # Test: test_a_link_that_flaps_during_the_look_proves_nothing
        before = sight.route
        self._find_route(sight)
        if sight.route != before:
            sight.lose_route("its route or carrier changed while the answers were awaited")

    def _catch_up(self):
        """Take in what has come since the look before; what found no room then is lost."""
        handles = self.asker.opened()
        end = self.system.clock() + self.inquiry.seconds
        ready = self.system.wait_readable(handles, 0)
        while ready and self.system.clock() < end:
            for handle in ready:
                self.listener.take(handle.family, *handle.receive())
            ready = self.system.wait_readable(handles, 0)
        self.asker.count_drops()

    def _find_forwarded(self):
        """Find out who is behind a router that has told so of others, and not of each."""
        # SAFETY: it tells few errors in a second.
        # Test: test_who_answers_arp_by_the_mac_of_a_forwarded_one_is_forwarded_too
        macs = set().union(*[sight.macs for sight in self.sights if sight.is_forwarded])
        for sight in self.sights:
            if sight.address not in self.targets and not sight.echoed and sight.macs & macs:
                sight.is_forwarded = True

    def _find_ports(self):
        """Find out on which port of an own bridge each was heard, where one of them is dead."""
        for sight in self._routed():
            for mac in sight.macs if sight.route.dead_port else ():
                sight.port = sight.port or self.system.find_bridge_port(sight.route.index, mac)

    def _note_drops(self):
        # SAFETY: an answer may have been among them.
        # Test: test_packets_that_found_no_room_are_a_doubt
        drops = self.asker.count_drops()
        if drops:
            for sight in self.sights:
                sight.add_obstacle("this machine had no room for %d packets, and an answer may "
                                   "have been among them" % drops)


def run_ping(system, settings, sight):
    """Where no ICMP socket is permitted, the ping program may still show life, never death."""
    try:
        code, _, _ = system.run(["ping", "-n", "-c", "1", "-W", "1", sight.address], "",
                                system.deadline(settings.shell_timeout))
        sight.echoed = code == 0
    except Unreachable as error:
        system.debug("cannot ask %s by ping: %s" % (sight.address, error))


def find_device_addresses(system, address):
    """Return the addresses of a fence device that can be a witness: one, or none."""
    # It is a witness for what is attached to the same interface, and for nothing behind a router.
    # SAFETY: like every witness it must answer the look itself; that it has answered over TCP, or
    # that its agent has spoken, says nothing about ICMP and ARP in that second.
    # Test: test_the_fence_device_is_a_witness_only_when_it_answers_the_look
    try:
        sight = Sight(address)
        sight.route = system.find_route(sight.family, sight.packed)
    except (OSError, Unreachable):  # a name, or an address that only the agent knows how to reach
        return []
    return [socket.inet_ntop(sight.family, sight.packed)] if sight.is_attached() else []


# SECTION: FENCING ---------------------------------------------------------------------------------
# What each action of a device agent means. Talks to devices through Device and OpenedOutlet alone;
# when success may be said is decided in PROOF. Returns (exit code, text for stdout) or raises
# FenceError.

class Job:
    """One action on one device: what it needs, its one deadline, and its attempts for the log."""

    def __init__(self, system, device, settings):
        self.system = system
        self.device = device
        self.settings = settings
        self.attempts = 0
        self.deadline = system.deadline(
            settings.login_timeout + settings.shell_timeout + settings.power_timeout)

    def close(self):
        self.device.close()

    def pause(self, deadline):
        """Wait between two looks; return False when there is no time for another whole one."""
        if deadline.left() <= self.settings.stonith_status_sleep + SHORTEST_EXCHANGE_SECONDS:
            return False
        self.system.sleep(self.settings.stonith_status_sleep)
        return True

    def retry(self, exchange, tries):
        """Return what exchange() returns; repeat it on errors that say a repetition may help.

        tries: how often, not counting those that were lost to other clients.
        """
        while True:
            self.attempts += 1
            try:
                result = exchange(self.deadline)
                check_time(self.deadline)
                return result
            except FenceError as error:
                self.system.debug("attempt %d: %s" % (self.attempts, error))
                if error.counts_as_try:
                    tries -= 1
                if not error.retryable or not tries or not self.pause(self.deadline):
                    raise


def check_time(deadline):
    """Raise Unreachable for an answer that was read when the time was up."""
    doubt = doubt_about_time(deadline.left())
    if doubt:
        raise Unreachable(doubt)


def run_off(job):
    outlet = open_outlet(job)
    switch_off(job, outlet)
    return EXIT_GOOD, describe_change(outlet, PowerState.OFF)


def run_on(job):
    outlet = open_outlet(job)
    switch_on(job, outlet)
    return EXIT_GOOD, describe_change(outlet, PowerState.ON)


def run_reboot(job):
    """Off with proof, then on. A failing ON is told loudly; it is a success for the fence API.

    SAFETY: the outlet stays off for REBOOT_OFF_SECONDS. A relay that opens for a tenth of a second
    is bridged by the capacitors of a power supply: the node would live on, reported as rebooted.
    Test: test_reboot_keeps_the_outlet_off_long_enough_to_cut_a_power_supply
    """
    outlet = open_outlet(job)
    switch_off(job, outlet)
    has_time = job.deadline.left() > REBOOT_OFF_SECONDS + job.settings.shell_timeout
    if has_time:
        job.system.sleep(REBOOT_OFF_SECONDS)
        check_still_off(job, outlet)
    try:
        if not has_time:
            raise NotConfirmed("no time is left to switch it on")
        switch_on(job, outlet)
    except FenceError as error:
        job.system.error("reboot %s: the outlet is OFF, and stays OFF until somebody switches it "
                         "on: %s" % (job.device.describe(), error))
    return EXIT_GOOD, "Success: Rebooted"


def check_still_off(job, outlet):
    """Raise NotConfirmed unless the outlet is off at the end of its time without power."""
    # SAFETY: a pulse timer, or another controller, may have closed the relay in between.
    # Test: test_a_relay_that_comes_back_by_itself_is_no_reboot
    def look_at(name, one):
        state = job.retry(one.read, UNTIL_DEADLINE)
        doubt = doubt_about_state(state, PowerState.OFF, "", render_seconds(REBOOT_OFF_SECONDS))
        return doubt or job.retry(
            lambda deadline: read_load(job, one, deadline, ""), UNTIL_DEADLINE)
    try:
        doubt = find_doubt(outlet.ask_each(look_at))
    except FenceError as error:
        doubt = str(error)
    if doubt:
        raise NotConfirmed("the outlet was OFF, and %s later that is in doubt: %s" % (
            render_seconds(REBOOT_OFF_SECONDS), doubt))


def run_status(job):
    state = job.retry(job.device.open, READ_ATTEMPTS).state_at_opening()
    return (EXIT_GOOD if state is PowerState.ON else EXIT_OFF), "Status: " + state.value


def run_monitor(job):
    """Prove that the device could be used now, whatever its state; Pacemaker names no outlet."""
    job.retry(lambda deadline: prove_usable(job, deadline), READ_ATTEMPTS)
    return EXIT_GOOD, ""


def prove_usable(job, deadline):
    outlet = job.device.prove_usable(deadline)
    if outlet and job.settings.power_meter == "require":
        require_meter(outlet, deadline)


def run_list(job, with_state=False):
    lines = []
    for outlet in job.retry(job.device.list_outlets, READ_ATTEMPTS):
        fields = [str(outlet.number), one_line(outlet.alias)]
        fields += [outlet.state.value] if with_state else []
        lines.append(job.settings.separator.join(fields))
    return EXIT_GOOD, "\n".join(lines)


def run_list_status(job):
    return run_list(job, with_state=True)


def open_outlet(job):
    """Return the OpenedOutlet that will be switched; asked again until the deadline.

    It comes before any command: a strip that is switched without an outlet's id may cut all of its
    outlets.
    """
    return job.retry(job.device.open, UNTIL_DEADLINE)


def describe_change(outlet, wanted):
    was_so = outlet.ask_each(lambda name, one: one.state is wanted)
    return "Success: %s %s" % ("Already" if all(was_so.values()) else "Powered", wanted.value)


def switch_off(job, outlet):
    """Switch the outlet off; a meter that is required must give a reading before anything moves."""
    if job.settings.power_meter == "require":
        job.retry(lambda deadline: require_meter(outlet, deadline), UNTIL_DEADLINE)
    confirm_power(job, outlet, PowerState.OFF)


def switch_on(job, outlet):
    """Switch the outlet on, again when that is not confirmed, as often as retry_on says."""
    for tries_left in range(max(0, job.settings.retry_on), -1, -1):
        try:
            return confirm_power(job, outlet, PowerState.ON)
        except NotConfirmed:
            if not tries_left or not job.pause(job.deadline):
                raise


def confirm_power(job, outlet, wanted):
    """Send the command until it is acknowledged, and look until the outlet is in that state.

    Of several outlets all are commanded before any is looked at, and all must be so in one look.

    The command is sent whatever state was seen: OFF may be repeated, and a relay's reported state
    may be stale. The acknowledgement proves nothing and is not needed: a device that breaks the
    connection after it obeyed is read on a new one.

    SAFETY: nothing but readings of `wanted` without a doubt lead out of here without an exception.
    Test: test_no_fault_of_a_plug_is_ever_taken_for_a_proof
    """
    deadline = job.deadline
    is_acknowledged, agreed = False, 0
    problems, loads = {}, {}  # {name of an outlet: text, see read_doubt}
    while True:
        if not is_acknowledged:
            problems = send_commands(job, outlet, wanted, deadline)
        if not is_acknowledged and not any(problems.values()):
            is_acknowledged = True
            deadline = job.deadline.within(job.settings.power_timeout)
            job.system.sleep(min(job.settings.power_wait, deadline.left()))
        doubt = read_doubts(job, outlet, wanted, deadline, problems, loads)
        agreed = 0 if doubt else agreed + 1
        if agreed == readings_needed(wanted):
            return
        if not job.pause(deadline):
            raise NotConfirmed(doubt or "the device reported %s only once, and the time was up "
                               "before it could be asked again" % wanted.value)
        job.system.debug("not confirmed yet: %s" % (doubt or "one more look"))


def send_commands(job, outlet, wanted, deadline):
    """Command the state of each outlet; return what send_command says of each, by its name.

    SAFETY: one that does not answer must not leave the others on.
    Test: test_an_outlet_that_does_not_answer_keeps_no_other_one_on
    """
    return outlet.ask_each(lambda name, one: send_command(job, one, wanted, deadline))


def send_command(job, outlet, wanted, deadline):
    """Command the state; return why the device has not acknowledged it (yet), "" when it has."""
    job.attempts += 1
    try:
        outlet.send(wanted, deadline)
        return ""
    except FenceError as error:
        if not error.retryable:
            raise
        return str(error)


def read_doubts(job, outlet, wanted, deadline, problems, loads):
    """Return why the outlets cannot all be said to be `wanted` now, "" when they can.

    loads: what read_doubt said of each, by its name; it is brought up to date here.
    """
    def read_one(name, one):
        doubt, loads[name] = read_doubt(
            job, one, wanted, deadline, problems[name], loads.get(name, ""))
        return doubt

    return find_doubt(outlet.ask_each(read_one))


def read_doubt(job, outlet, wanted, deadline, problem, load):
    """Return why the outlet cannot be said to be `wanted` now, "" when it can, and its load.

    problem: what kept the command from being acknowledged. load: the doubt about a load that was
    seen before, which stays until it is seen to be gone.
    """
    try:
        state = ask_twice(job, outlet.read, deadline)
        doubt = doubt_about_state(state, wanted, problem, render_seconds(deadline.seconds))
        if not doubt and wanted is PowerState.OFF:
            load = read_load(job, outlet, deadline, load)
        return doubt or load or doubt_about_time(deadline.left()), load
    except FenceError as error:
        if not error.retryable:
            raise
        return str(error), load


def read_load(job, outlet, deadline, load):
    """Return the doubt about a load, after one more reading of the meter; see remember_load."""
    policy = job.settings.power_meter
    if policy == "ignore":
        return ""
    reading = ask_twice(job, outlet.read_meter, deadline)
    if reading.obstacle:
        job.system.debug("the power meter of %s proves nothing: %s" % (
            job.device.describe(), reading.obstacle))
    return remember_load(load, reading, doubt_about_meter(reading, policy))


def ask_twice(job, ask, deadline):
    """Return what ask(deadline) returns; a lost answer alone must not cost a whole look."""
    try:
        return ask(deadline)
    except FenceError as error:
        if not error.retryable or not deadline.left():
            raise
        job.system.debug("asked again: %s" % error)
    return ask(deadline)


def require_meter(outlet, deadline):
    """Raise Refused unless each outlet's meter gives a reading that will prove something."""
    doubt = find_doubt(outlet.ask_each(
        lambda name, one: doubt_about_usable_meter(one.read_meter(deadline))))
    if doubt:
        raise Refused(doubt)


# SECTION: CHECKING --------------------------------------------------------------------------------
# What each action of fence_check means: whether the target is dead. It reads, and switches nothing.

class CheckJob(Job):
    """One action of fence_check: its device is only read, and its looks share what they learn."""

    def __init__(self, system, device, settings):
        super().__init__(system, device, settings)
        self.asker = Asker(system, settings.arp_check)
        self.outlet = None       # the OpenedOutlet, once the first look has found it
        self.router_errors = {}  # {address: what a router said about it}, see Look
        self.look_began = 0.0    # when the addresses were asked first in the latest look

    def close(self):
        super().close()
        self.asker.close()

    def read_power(self, deadline):
        """Return {name: PowerState}; the first look finds the outlets, the others read those.

        SAFETY: found anew, a name that has moved could mean an outlet that feeds nothing.
        Test: test_an_alias_that_moves_to_another_outlet_between_two_looks_is_a_doubt
        """
        if self.outlet:
            return self.outlet.ask_each(lambda name, one: one.read(deadline))
        self.outlet = self.device.open(deadline)
        return self.outlet.ask_each(lambda name, one: one.state_at_opening())


def collect_evidence(job):
    """Return the Evidence of one look: the device first, then all addresses at once."""
    evidence = [observe_power(job)]
    for target, sight, witnesses, is_direct in look_at_networks(job):
        finding, seen, reason = judge_address(sight, witnesses, is_direct)
        evidence.append(Evidence(source=NETWORK, finding=finding, subject=describe_target(target),
                                 seen=seen, reason=reason))
    for item in evidence:
        job.system.debug("%s: %s" % (item.finding.value, render_evidence(item)))
    return evidence


def observe_power(job):
    """Return what the fence device says about the outlet, as Evidence, whatever goes wrong."""
    address = " @ " + job.settings.ip if job.settings.ip else ""
    subject = "STONITH device (%s%s)" % (job.settings.fence_method, address)
    try:
        states = job.retry(job.read_power, READ_ATTEMPTS)
        judged = job.outlet.ask_each(lambda name, one: judge_outlet(job, one, states[name]))
    except FenceError as error:
        return Evidence(source=POWER, finding=Finding.UNKNOWN, subject=subject,
                        seen="power=unknown",
                        reason=hide_timer_words(redact(str(error), job.system.secrets)))
    finally:
        job.device.close()
    finding = combine_findings([finding for finding, _ in judged.values()])
    told = {name: reason for name, (found, reason) in judged.items() if found is finding}
    state = combine_states([states[name] for name in told])
    reasons = [tell_outlet(name, reason) for name, reason in told.items()]
    return Evidence(source=POWER, finding=finding, subject=subject,
                    seen="power=" + state.value.lower(), reason="; ".join(filter(None, reasons)))


def judge_outlet(job, outlet, state):
    """Return (finding, reason) for one outlet in this state, after a look at its meter."""
    reading, policy = NO_METER, job.settings.power_meter
    if state is PowerState.OFF and policy != "ignore":
        reading = job.retry(outlet.read_meter, READ_ATTEMPTS)
    return judge_power(state, reading, policy)


def look_at_networks(job):
    """Yield (Target, its Sight, its Witnesses, whether it is one cable) of one look."""
    settings = job.settings
    job.look_began = job.system.clock()
    devices = find_device_addresses(job.system, settings.ip)
    sights = Look(job.system, settings, job.asker, job.router_errors, devices).run()
    add_doubts_of_way_back([sights[target.address] for target in settings.targets])
    record_life(job, [sights[target.address] for target in settings.targets])
    # Named for a network that it is not in, the device would be a witness that never answers.
    device_elsewhere = {settings.ip} - set(devices)
    for target in settings.targets:
        key = network_key(target.network)
        named = [sights[witness.address] for witness in settings.witnesses
                 if network_key(witness.network) == key
                 and witness.address not in device_elsewhere]
        known = [sights[address] for address in devices if address != target.address]
        yield (target, sights[target.address], Witnesses(named=named, devices=known),
               key in settings.direct_keys)


def record_life(job, sights):
    """Record which addresses of the target are alive, and note which ever were."""
    known = job.system.read_sightings()
    now = int(job.system.now())
    alive = {sight.address for sight in sights if sight.answered()}
    for sight in sights:
        sight.was_alive = sight.address in alive or sight.address in known
    fresh = {address: now for address in alive
             if not 0 <= now - known.get(address, -SEEN_SECONDS) < SEEN_SECONDS}
    if fresh:
        try:
            job.system.write_sightings(dict(known, **fresh))
        except FenceError as error:
            job.system.warn("who is alive was not recorded, and behind a router only who was seen "
                            "alive can be proven dead: %s" % error)


def record_evidence(job, evidence):
    """Write what the verdict stands on to the log: it is read at three in the morning."""
    for item in evidence:
        job.system.event("evidence target=%s finding=%s %s" % (
            job.settings.nodename or "-", item.finding.value, render_evidence(item)))


def describe_node(settings):
    return settings.nodename or "the node"


def run_check_off(job, collect=collect_evidence):
    """Return success when the target is proven dead, within power_timeout."""
    # One look counts, after verify_wait; with early_exit as many, from the start, as fill that time
    # without a doubt. A target that lives on, or is in doubt, is looked at until the time is over.
    settings = job.settings
    limit = job.deadline.within(settings.power_timeout)
    life_may_end = job.system.clock() + settings.verify_wait
    needed_s = settings.early_exit
    if not settings.early_exit:
        job.system.sleep(settings.verify_wait)
    proven_since = None  # the start of the first look of those, up to now, that all proved death
    while True:
        job.look_began = job.system.clock()
        evidence = collect(job)
        verdict = judge(evidence)
        # SAFETY: a device that is slow to tell its state adds nothing to the silence of the node.
        # Test: test_the_time_that_a_device_takes_to_tell_is_no_silence_of_the_node
        if verdict.finding is Finding.ALIVE and job.look_began >= life_may_end:
            needed_s = silence_after_life(settings)
        if verdict.finding is Finding.DEAD:
            proven_since = job.look_began if proven_since is None else proven_since
            proven_seconds = job.system.clock() - proven_since
            if proven_seconds >= needed_s:
                record_evidence(job, evidence)
                return EXIT_GOOD, "Success: %s is proven dead" % describe_node(settings)
            doubt = "the proof had held for only %s of the %s that it needs when the action " \
                    "had to end" % (render_seconds(proven_seconds), render_seconds(needed_s))
            has_time = limit.left() > 0
        else:
            proven_since = None
            doubt = render_blockers(verdict)
            has_time = job.pause(limit)
        if not has_time:
            record_evidence(job, evidence)
            raise NotConfirmed("not proven dead: " + doubt)


def silence_after_life(settings):
    """Return how many seconds of proof are needed of a node that was alive when it had to be dead.

    SAFETY: it has refuted the OFF, and a node that merely stalls is silent for some seconds, too.
    Test: test_life_after_verify_wait_is_not_forgotten
    """
    return max(settings.verify_wait, settings.early_exit, SHORTEST_PROOF_SECONDS)


# SAFETY: exit code 2 is a proof of death; what is not known has none of the others' words.
# Test: test_status_exits_2_only_for_a_node_that_is_proven_dead
STATUS_ANSWERS = {Finding.ALIVE: ("ON", EXIT_GOOD), Finding.DEAD: ("OFF", EXIT_OFF),
                  Finding.UNKNOWN: ("UNKNOWN", EXIT_BAD)}


def run_check_status(job):
    evidence = collect_evidence(job)
    verdict = judge(evidence)
    record_evidence(job, evidence)
    word, code = STATUS_ANSWERS[verdict.finding]
    node = describe_node(job.settings)
    lines = ["fence_check status for %s:" % node]
    lines += ["  " + render_evidence(item) for item in evidence]
    if verdict.finding is Finding.UNKNOWN:
        job.system.tell("cannot tell whether %s is alive or dead: %s"
                        % (node, render_blockers(verdict)))
    return code, "\n".join(lines + ["Status: " + word])


def run_check_monitor(job):
    """Prove that this machine could tell now whether the target is dead, whatever it is."""
    run_monitor(job)
    job.device.close()
    doubts = []
    for target, sight, witnesses, is_direct in look_at_networks(job):
        worth, doubt = judge_silence(sight, witnesses, is_direct)
        if worth is Finding.DEAD:
            doubt = doubt_about_macs(sight, witnesses)
        if doubt:
            doubts.append("%s: %s" % (describe_target(target), doubt))
        elif not sight.was_alive:
            # No failure: a node that hangs must not take its verifier away.
            job.system.warn("%s is silent, and %s: is it the node's address?" % (
                describe_target(target), NEVER_SEEN))
    if doubts:
        raise Refused("if the node were dead, this machine could not prove it: %s; %s" % (
            "; ".join(doubts), FIRST_LOOKS[NETWORK, Finding.UNKNOWN]))
    return EXIT_GOOD, ""


def run_check_on(job):
    return EXIT_GOOD, "Success: nothing to do"


def refuse_check_reboot(job):
    # SAFETY: outside a fencing level Pacemaker would take a success for the fence itself.
    # Test: test_reboot_is_always_refused
    raise Refused("fence_check only proves, it cannot reboot a node: make it the second device of "
                  "a fencing level, where Pacemaker calls it with off")


# SECTION: AGENTS ----------------------------------------------------------------------------------
# The fence agents: names, parameters, actions and texts, as rows; metadata and help from the rows;
# the run of one action; and the same as cluster-glue's plugin.

# What needs no device, what a device agent does with its device, and what fence_check does, whose
# device is a witness.
TEXT_ACTIONS = {"metadata": None, "manpage": None, "validate-all": None}
DEVICE_ACTIONS = {"on": run_on, "off": run_off, "reboot": run_reboot, "status": run_status,
                  "monitor": run_monitor, "list": run_list, "list-status": run_list_status,
                  **TEXT_ACTIONS}
CHECK_ACTIONS = {"on": run_check_on, "off": run_check_off, "reboot": refuse_check_reboot,
                 "status": run_check_status, "monitor": run_check_monitor, **TEXT_ACTIONS}
DELAYED = (run_off, run_reboot, run_check_off)        # the parameter delay holds
ANSWERING = (run_status, run_list, run_list_status, run_check_status)  # stdout is what is asked for
WITHOUT_DEVICE = (run_check_on, refuse_check_reboot)  # nothing is asked, no password needed
# Where a repeated spelling of the same action leads.
ACTION_ALIASES = {"meta-data": "metadata", "enable": "on", "disable": "off"}

# method: of its device, as fence_method has them; "" where the call names it. settings: the
# function that makes them of the values and the defaults. job: the class of what an action needs.
Agent = namedtuple(
    "Agent", "name method shortdesc longdesc params defaults required actions settings job")


def device_agent(name, method, params, over):
    """Return the row of an agent that switches the dialects that are its own."""
    titles = list_titles(name)
    first = dialects_of(name)[0]
    longdesc = ("%s switches %s over %s. It reports success only when the device itself has "
                "confirmed the new power state and, where the outlet has a power meter that can "
                "tell, the load is gone." % (name, titles, over))
    return Agent(
        name=name, method=method, shortdesc="Fence agent for " + titles, longdesc=longdesc,
        params=params, defaults={"ipport": str(first.port)}, required=("ip",),
        actions=DEVICE_ACTIONS, settings=build_settings, job=Job)


# Agents that others have made for one family each: fence_http takes their names and parameters, so
# that a cluster that used them needs no other change. They are linked only where nobody else's are
# installed. first_outlet: the number of the first outlet, as their callers count. defaults: theirs
# that differ from ours.
# Source: fence-agents 4.17 fence_shelly_gen2 (the protocol's id as it stands), fence_tasmota and
# fence_esphome of a fork of it; read 2026-11.
OtherName = namedtuple("OtherName", "name dialect first_outlet defaults")
OTHER_NAMES = {row.name: row for row in (
    OtherName("fence_tasmota", "tasmota", 1, {}),
    OtherName("fence_esphome", "esphome", 1, {"username": "admin"}),
    OtherName("fence_shelly_gen2", "shelly", 0, {}))}
OTHER_PARAMS = DEVICE_PARAMS + tuple(
    row for row in HTTP_PARAMS if row.name in ("ssl", "ssl_insecure")) + (
    COMMON_PARAMS + FOREIGN_PARAMS)


def other_agent(row):
    """Return the row of fence_http under another name."""
    dialect = DIALECTS[row.dialect]
    longdesc = ("%s is fence_http for %s alone, under the name and with the parameters of another "
                "agent. It reports success only when the device itself has confirmed the new power "
                "state and, where the outlet has a power meter that can tell, the load is gone."
                % (row.name, dialect.title))

    def build_preset_settings(values, defaults):
        settings = build_settings(dict(values, device=dialect.name), defaults)
        settings.first_outlet = row.first_outlet
        return settings
    return Agent(
        name=row.name, method=BY_URL, shortdesc="Fence agent for " + dialect.title,
        longdesc=longdesc, params=OTHER_PARAMS,
        defaults=dict(row.defaults, ipport=str(dialect.port)), required=("ip",),
        actions=DEVICE_ACTIONS, settings=build_preset_settings, job=Job)


AGENTS = {agent.name: agent for agent in (
    device_agent("fence_kasa", "kasa", DEVICE_PARAMS + KASA_PARAMS + COMMON_PARAMS,
                 "their local protocols"),
    device_agent("fence_http", BY_URL, DEVICE_PARAMS + HTTP_PARAMS + STATUS_PARAMS + COMMON_PARAMS,
                 "their web servers"),
    Agent(name="fence_check", method="", shortdesc="Proof that a fenced node is dead",
          longdesc="fence_check switches nothing. Second in a fencing level, it lets a failover go "
          "on only when the node is proven dead: the fence device says OFF, at least one of its "
          "networks is silent over a path known to work, and nothing at all shows life or is in "
          "doubt.", params=KASA_PARAMS + STATUS_PARAMS + CHECK_PARAMS + COMMON_PARAMS,
          defaults={"action": "status"}, required=("fence_method",),
          actions=CHECK_ACTIONS, settings=build_check_settings, job=CheckJob))}
AGENTS.update((row.name, other_agent(row)) for row in OTHER_NAMES.values())


def names_of(agent):
    """Return the names of the parameters that an agent takes."""
    return {row.name for row in agent.params}


def render_metadata(agent):
    """Return the agent's description as fence-agents' lib/metadata.rng wants it."""
    lines = ['<?xml version="1.0" encoding="utf-8"?>',
             '<resource-agent name="%s" shortdesc="%s">\n<longdesc>%s</longdesc>' % (
                 agent.name, escape_xml(agent.shortdesc), escape_xml(agent.longdesc)),
             "<vendor-url></vendor-url>", "<parameters>"]
    for row in agent.params:
        if row.name == "nodename":
            continue  # Pacemaker sets it; listed, administrators would
        lines += render_metadata_parameter(agent, row, row.name, row.aliases)
        for alias in row.aliases:
            lines += render_metadata_parameter(agent, row, alias, ())
    lines += ["</parameters>", "<actions>"]
    lines += ['<action name="%s"%s/>' % (action, ' automatic="0"' if action == "on" else "")
              for action in agent.actions]
    return "\n".join(lines + ["</actions>", "</resource-agent>"])


def render_metadata_parameter(agent, row, name, obsoletes):
    default = agent.defaults.get(row.name, row.default)
    marks = ' obsoletes="%s"' % obsoletes[0] if obsoletes else ""
    marks += ' deprecated="1"' if name != row.name else ""
    required = int(row.name in agent.required or row.name == "action")
    content = '<content type="%s"' % CONTENT_TYPES.get(row.kind, row.kind)
    content += ' default="%s"' % escape_xml(default) if default else ""
    lines = ['<parameter name="%s" unique="0" required="%d"%s>' % (name, required, marks),
             '<getopt mixed="%s"/>' % escape_xml(render_option(row))]
    options = ['<option value="%s"/>' % escape_xml(choice) for choice in row.choices]
    lines += [content + ">"] + options + ["</content>"] if options else [content + "/>"]
    return lines + ['<shortdesc lang="en">%s</shortdesc>' % escape_xml(row.help), "</parameter>"]


def render_option(row):
    long_form = "--" + row.name.replace("_", "-")
    if row.kind != BOOLEAN:
        long_form += "=[%s]" % row.name.upper()
    return "-%s, %s" % (row.letter, long_form) if row.letter else long_form


def render_help(agent):
    import textwrap
    lines = ["Usage: %s [options]" % agent.name,
             "Without options, parameters are read from stdin as lines name=value.", "",
             agent.longdesc, "", "Actions: " + ", ".join(agent.actions), "", "Options:"]
    lines = [piece for line in lines for piece in textwrap.wrap(line, 95) or [""]]
    for row in agent.params:
        default = agent.defaults.get(row.name, row.default)
        text = row.help + (" (default: %s)" % default if default else "")
        if row.aliases:
            text += " (old name: %s)" % ", ".join(row.aliases)
        lines.append("  " + render_option(row))
        lines += textwrap.wrap(text, 95, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines + ["", "Example, as Pacemaker calls it:",
                              "  printf 'ip=10.20.20.202\\naction=status\\n' | %s" % agent.name])


def run_agent(agent, pairs, system, find_parameters=None):
    """Run one call of a fence agent; return its exit code.

    find_parameters(node, values, system): returns what the cluster knows about a node that the call
    only names, [[{name: value} of a fence device] of a level]; None where that is not offered.
    """
    values, unknown = collect_values(pairs, agent.params)
    action = values.get("action", agent.defaults.get("action", "")).lower()
    action = ACTION_ALIASES.get(action, action)
    text = render_about(agent, action, values)
    if text:
        system.write(text)
        return EXIT_GOOD
    levels = [[(values, unknown)]]
    if find_parameters:
        levels = add_known_values(agent, values, unknown, find_parameters, system)
    codes = [[run_call(agent, action, call, system) for call in calls] for calls in levels]
    return combine_codes(action, codes, system)


def run_call(agent, action, call, system):
    """Run an action with (values, unknown names); return its exit code."""
    values, unknown = call
    system.secrets.update(find_secrets(values))
    set_up_log(system, values)
    report_unknown(unknown, system)
    check_call(agent, action, values)
    settings = read_settings(agent, values, system)
    if action == "validate-all":
        check_password_script(settings)
        make_device(agent, settings, system)
        return EXIT_GOOD
    return run_action(agent, action, settings, system)


def combine_codes(action, levels, system):
    """Return one exit code for [[code of a fence device] of a level]; of a status, tell it too."""
    found = [code for codes in levels for code in codes]
    if action != "status":
        # SAFETY: a code of 1 does not tell doubt from life, and who was seen alive is not dead
        # because another level has not seen it.
        # Test: test_a_node_with_two_plugs_is_dead_only_when_both_are_off
        return max(found)
    code = combine_status(levels)
    if len(found) > 1:
        words = {known: word for word, known in STATUS_ANSWERS.values()}
        system.write("Status by its %d fence devices: %s" % (len(found), words[code]))
    return code


def combine_status(levels):
    """Return the code of a status: 0 alive, 1 not known, 2 dead.

    SAFETY: dead is who is so by all devices of one level, and whom no other level sees alive: a BMC
    that answers has power. Test: test_a_node_with_two_plugs_is_dead_only_when_both_are_off
    """
    found = {min(codes) for codes in levels}
    return EXIT_BAD if {EXIT_GOOD, EXIT_OFF} <= found else max(found)


def read_settings(agent, values, system):
    """Return the settings of a call; an expression is tried on an empty text when it is read."""
    def read():
        return agent.settings(values, agent.defaults)

    if not any(row.kind == PATTERN and row.name in values for row in agent.params):
        return read()
    return system.compute(read, system.deadline(COMPUTING_SECONDS), "a regular expression")


def add_known_values(agent, values, unknown, find_parameters, system):
    """Return [[(values, unknown names)]] with what the cluster knows of a node that is only named.
    """
    node = values.get("nodename") or values.get("plug")
    if not node or {"fence_method", "fence_ip"} & set(values):
        return [[(values, unknown)]]
    levels = []
    for devices in find_parameters(node, values, system):
        known = [collect_values(found.items(), agent.params) for found in devices]
        levels.append([(dict(found, **values), unknown + strange) for found, strange in known])
    return levels


def set_up_log(system, values):
    """Let the call say how much is told; before anything else can fail."""
    def setting(name):
        return build_setting(PARAMS_BY_NAME[name], values.get(name, ""))

    system.quiet = setting("quiet")
    system.debug_file = setting("debug_file")
    system.verbose_level = max(setting("verbose_level") or 0, int(setting("verbose")))


def report_unknown(unknown, system):
    """Ignore unknown names, as fence agents do; but none that may mean one of ours.

    SAFETY: a network of the node that nobody looks at is one that nobody found alive.
    Test: test_a_misspelt_network_is_refused
    SAFETY: with Device_Mac= ignored, any device at the address would be believed.
    Test: test_a_name_that_is_nearly_a_parameter_is_refused
    """
    known = {strip_name(spelling): spelling for row in PARAMS
             for spelling in (row.name,) + row.aliases} if unknown else {}
    for name in unknown:
        if strip_name(name) in known:
            raise UsageError("there is no parameter %s (is %s meant?)"
                             % (quote(name), known[strip_name(name)]))
        if re.match("target|witness|direct", name):
            raise UsageError("there is no parameter %s (is it misspelt?)" % quote(name))
    # Not what looks like no name: it may be the second line of a password.
    shown = sorted(name for name in unknown if re.fullmatch("[a-z][a-z0-9_]{0,39}", name))
    if unknown:
        system.debug("ignored unknown parameters: %s" % ", ".join(
            shown + ["and %d more" % (len(unknown) - len(shown))] * (shown != sorted(unknown))))


def strip_name(name):
    return re.sub("[^a-z0-9]", "", name.lower())


def render_about(agent, action, values):
    """Return what the call asks to be told about the agent itself, or "" when it asks to act.

    Metadata comes before the settings are looked at: it is asked for with nothing else.
    SAFETY: version=1 in a cluster's configuration must not make every off a success.
    Test: test_version_and_help_beside_an_action_are_refused
    """
    texts = {"help": render_help, "version": lambda agent: __version__}
    asked = [name for name in texts if parse_boolean(values.get(name, "0"))]
    if asked and "action" in values:
        raise UsageError("%s and an action exclude each other" % asked[0])
    if asked:
        return texts[asked[0]](agent)
    return render_metadata(agent) if action in ("metadata", "manpage") else ""


def find_secrets(values):
    """Return the values that no log may hold; options of other agents are known by their names."""
    secrets = {values[row.name] for row in PARAMS if row.secret and row.name in values}
    options = values.get("fence_options", "")
    if len(options) < SHORTEST_HIDDEN_SECRET:
        secrets.discard(options)
    for item in split_list(options):
        name, _, value = item.partition("=")
        if value and is_secret_name(name):
            secrets.add(value)
    return secrets


def check_call(agent, action, values):
    """Raise UsageError unless the call names an action of the agent and what it needs."""
    if not action:
        raise UsageError("no action given (use -o status, or action=status on stdin)")
    if action not in agent.actions:
        raise UsageError("unsupported action %s (one of: %s)"
                         % (quote(action), ", ".join(agent.actions)))
    needed = agent.required
    if values.get("fence_method") in list_methods():
        needed += ("fence_ip",)  # other agents may know their device without an address
    for name in needed:
        if name not in values:
            row = PARAMS_BY_NAME[name]
            raise UsageError("no %s given (use %s, or %s= on stdin): %s"
                             % (name, render_option(row), name, row.help.lower()))


def check_password_script(settings):
    words = settings.password_script.split()
    if "\0" in settings.password_script:
        raise UsageError("password_script holds a NUL")
    if words and not (os.path.isabs(words[0]) and os.access(words[0], os.X_OK)):
        raise UsageError("password_script: %s is not the full path of a program that can be run "
                         "(does it exist, with mode 0700?)" % quote(words[0]))
    for path in filter(os.path.isfile, words if os.geteuid() == 0 else ()):
        doubt = doubt_about_owner(path)
        if doubt:
            raise UsageError("password_script: %s, and root would run it (chown root, chmod go-w)"
                             % doubt)


def doubt_about_owner(path):
    """Return why others than root could change what root runs from this path, "" if none could."""
    import stat
    places = set()
    for place in (os.path.abspath(path), os.path.realpath(path)):
        while place not in places:
            places.add(place)
            place = os.path.dirname(place)
    for place in sorted(places):
        found = os.stat(place)
        is_shared = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid)
        if found.st_uid != 0:
            return "%s belongs to another user than root" % quote(place)
        # In a directory like /tmp, nobody removes or renames what root owns.
        if is_shared and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
            return "others than root may write to %s" % quote(place)
    return ""


def read_password(settings, system):
    """Replace the password by what password_script prints, as fence-agents do (through sh)."""
    if not settings.password_script:
        return
    check_password_script(settings)
    code, out, _ = system.run(["/bin/sh", "-c", settings.password_script], "",
                              system.deadline(settings.login_timeout))
    if code != 0 or not out.strip():
        # What it said is not shown: a script that is traced tells the password there.
        raise UsageError("password_script ended with exit code %d and printed %s (run it by hand)"
                         % (code, "a password" if out.strip() else "nothing"))
    if len(out) > MAX_VALUE_CHARACTERS:
        raise UsageError("password_script prints more than %d characters (run it by hand)"
                         % MAX_VALUE_CHARACTERS)
    settings.password = out.rstrip()
    system.secrets.add(settings.password)


def make_device(agent, settings, system):
    """Return the agent's device; raises UsageError for parameters that it cannot work with."""
    method = agent.method or settings.fence_method
    dialect = choose_dialect(method, settings.device, collect_url_paths(settings).values())
    return ROOMS[dialect.name](system, settings)


def run_action(agent, name, settings, system):
    """Run one action on the agent's device; write its answer and the event's log line."""
    action = agent.actions[name]
    if action not in WITHOUT_DEVICE:
        read_password(settings, system)
    device = make_device(agent, settings, system)
    if action in DELAYED:
        system.sleep(settings.delay)
    job = agent.job(system, device, settings)
    started = system.clock()
    code, text, failure = EXIT_BAD, "", None
    try:
        code, text = action(job)
    except FenceError as error:
        failure = error
    finally:
        job.close()
    outcome = "failed: %s" % failure if failure else text.replace("\n", "; ") or "ok"
    record_action(name, job, (system.clock() - started) * 1000, outcome)
    if failure:
        system.tell("%s %s: %s: %s" % (name, name_target(settings), device.describe(), failure))
    elif text and action in ANSWERING:
        system.write(text)
    elif text:
        system.announce(text)
    return code


def name_target(settings):
    return settings.nodename or settings.plug or "-"


def record_action(name, job, took_ms, outcome):
    """Leave the one line in the log that tells everything about an action."""
    job.system.event("action=%s target=%s device=%s plug=%s ms=%d attempts=%d outcome=%s" % (
        name, name_target(job.settings), job.device.describe().replace(" ", "@"),
        job.settings.plug or "-", took_ms, job.attempts, outcome))


# The external plugin of cluster-glue: verbs in argv, parameters in the environment.
# Source: cluster-glue 1.0.12 lib/plugins/stonith/external.c; seen: `stonith -t external/kasa`.

PLUGIN = "kasa"  # the name of its file; it is fence_kasa
PLUGIN_PARAMS = ("ip", "ipport", "protocol", "username", "password", "password_script", "plug",
                 "device_mac", "power_timeout")
PLUGIN_ACTIONS = {"on": "on", "off": "off", "reset": "reboot", "status": "monitor"}


def run_plugin(words, environment, system):
    """Run one call of the cluster-glue plugin; return its exit code."""
    agent = AGENTS["fence_" + PLUGIN]
    verb, host = (words + ["", ""])[:2]
    hosts = environment.get("hostlist", "").replace(",", " ").split()
    texts = {
        "getconfignames": "\n".join(("hostlist",) + PLUGIN_PARAMS), "gethosts": "\n".join(hosts),
        "getinfo-devid": agent.name, "getinfo-devname": agent.name,
        "getinfo-devdescr": agent.longdesc, "getinfo-devurl": "see fencetool --help",
        "getinfo-xml": render_plugin_parameters(agent)}
    if verb in texts:
        system.write(texts[verb])
        return EXIT_GOOD
    if verb not in PLUGIN_ACTIONS:
        raise UsageError("unsupported action %s of a cluster-glue plugin" % quote(verb) if verb
                         else "no action given (this is the cluster-glue plugin)")
    if [host] != hosts and verb != "status":
        raise UsageError("%s is not the one node of the hostlist (%s); nothing was switched"
                         % (quote(host), " ".join(hosts)))
    pairs = [(key, environment[key]) for key in PLUGIN_PARAMS + ("ipaddr",) if key in environment]
    return run_agent(agent, pairs + [("action", PLUGIN_ACTIONS[verb]), ("nodename", host)], system)


def render_plugin_parameters(agent):
    agent = agent._replace(required=("hostlist",) + agent.required)
    rows = [param("hostlist", STRING, "Nodes to be fenced")]
    rows += [row for row in agent.params if row.name in PLUGIN_PARAMS]
    lines = [line for row in rows for line in render_metadata_parameter(agent, row, row.name, ())
             if not line.startswith("<getopt")]
    return "\n".join(["<parameters>"] + lines + ["</parameters>"])


# PART 5: CLUSTER ==================================================================================
# The waterline: an agent's run needs nothing below this line, but for fence_check -n NODE, which
# comes here through find_check_parameters.

# SECTION: YAML ------------------------------------------------------------------------------------
# The part of YAML that cluster files use, and JSON. It never guesses: what two readers might take
# in two ways is a mistake that names the construct. Pure.
#
# Four classes share the work. YamlPlace holds the lines, and how far they have been read.
# YamlScalars parses single values, YamlFlow what stands in brackets, and YamlBlocks all that hangs
# together by its indentation. Each method parses what begins at the place, and leaves the place
# behind it. Patterns are text: re compiles them when a file is read, and an agent's start pays for
# none.

# kind: MAP ({key: YamlNode}), LIST, PLAIN (a scalar without quotes) or TEXT. foreign: the construct
# that is not read, like a tag; values that nobody needs may hold one.
YamlNode = namedtuple("YamlNode", "kind value line foreign")
MAP, LIST, PLAIN, TEXT = "map", "list", "plain", "text"

YAML_CHARACTERS = ("[\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd"
                   "\U00010000-\U0010ffff]*")
YAML_MARKS = ("---", "...")  # of a document's begin and end
YAML_QUOTED = {"'": "'(?:[^']|'')*'", '"': r'(?s)"(?:[^"\\]|\\.)*"'}
YAML_ESCAPE = r"(?s)\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|(.))"
YAML_ESCAPES = {"\\": "\\", '"': '"', "/": "/", "n": "\n", "t": "\t", " ": " ", "\n": ""}
YAML_PROPERTY = r"(!!?[A-Za-z][A-Za-z0-9_/.:]*|&[A-Za-z0-9_-]+)(?: +|$)"
YAML_ALIAS = r"\*[A-Za-z0-9_-]+"

# Inside brackets a plain scalar may hold a colon only between two characters, and no "?".
YAML_FLOW_PLAIN = (r"(?:[^\t ,\[\]{}#&*!|>'\"%@`?:-]|-(?=-?[A-Za-z0-9.]))"
                   r"(?:[^\t ,\[\]{}#?:]|:(?=[^\t ,\[\]{}#?:])| +(?=[^\t ,\[\]{}#?:]))*")
YAML_INDICATORS = ",[]{}#&*!|>'\"%@`"
YAML_NULLS = ("", "~", "null", "Null", "NULL")
YAML_TRUTH = "no|No|NO|false|False|FALSE|off|Off|OFF|yes|Yes|YES|true|True|TRUE|on|On|ON"

# Plain scalars that are no text, or not in all versions of YAML; integers are the same in all.
YAML_AMBIGUOUS = (
    r"(?i)(?!(0|-?[1-9][0-9]*)$)([-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"
    r"|[-+]?0(b[01_]+|o[0-7_]+|x[0-9A-F_]+)|[-+]?\.(inf|nan)|[yn=]|<<"
    r"|[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?)")


def parse_yaml(text):
    """Return the maps of all documents in a text, as YamlNodes; raise SyntaxMistake."""
    return YamlBlocks(YamlPlace(text)).parse_documents()


def is_null(node):
    return node.kind == PLAIN and node.value in YAML_NULLS and not node.foreign


def is_ambiguous(text):
    """Whether a plain scalar is a truth value, a number or a date, at least to some readers."""
    return bool(re.fullmatch(YAML_TRUTH, text) or re.fullmatch(YAML_AMBIGUOUS, text))


def is_mark(line):
    return line[:3] in YAML_MARKS and line[3:4] in ("", " ")


def is_entry(line, at):
    """Whether an entry of a list begins at this column."""
    return line[at:at + 1] == "-" and line[at + 1:at + 2] in ("", " ")


def build_map(members, line):
    foreign = "a map with a merge key (<<)" if "<<" in members else ""
    return YamlNode(MAP, members, line, foreign)


def match_at(pattern, text, at):
    return re.compile(pattern).match(text, at)


class YamlPlace:
    """The lines of one text, and the place up to which they have been read."""
    # lines: without their line breaks. row: the index of the next line. at: the index of the next
    # character in it; it counts inside brackets and quotes only. is_json: strings have its escapes.

    def __init__(self, text):
        self.is_json = text.lstrip(" \t\r\n")[:1] in ("{", "[")
        if self.is_json:
            require_json(text)
            text = text.replace("\t", " ")  # strict JSON has tabs between its words only
        self.lines = [line[:-1] if line.endswith("\r") else line for line in text.split("\n")]
        self.row = self.at = 0
        for row, line in enumerate(self.lines):
            if not re.fullmatch(YAML_CHARACTERS, line):
                self.fail("this line contains a control character or an unusual line break", row)

    @property
    def line(self):
        return self.lines[self.row]

    def fail(self, text, row=None):
        raise SyntaxMistake((self.row if row is None else row) + 1, text)

    def next_indent(self):
        """Go to the next line with content; return its indentation, -1 at a document's end."""
        while self.row < len(self.lines):
            line = self.line
            text = line.lstrip(" ")
            if text.startswith("\t"):
                self.fail("a tab in the indentation (use spaces)")
            if text and text[0] != "#":
                return -1 if is_mark(line) else len(line) - len(text)
            self.row += 1
        return -1

    def next_in_flow(self):
        """Go to the next character inside brackets; return it."""
        while True:
            line = self.line
            rest = line[self.at:].lstrip(" ")
            self.at = len(line) - len(rest)
            is_comment = rest[:1] == "#" and (self.at == 0 or line[self.at - 1] == " ")
            if rest and not is_comment:
                return rest[0]
            is_last = self.row + 1 == len(self.lines)
            if is_last or is_mark(self.lines[self.row + 1]):
                self.fail("this bracket or brace is not closed")
            self.row, self.at = self.row + 1, 0


class YamlScalars:
    """Single values: plain, in quotes, and the block scalars | and >."""
    # parent: the indentation of the value's key; lines that are indented by more continue a value.

    def __init__(self, place):
        self.place = place

    def parse_plain(self, text, parent):
        """Parse a scalar without quotes; of several lines it is foreign."""
        place = self.place
        if text[0] in YAML_INDICATORS or re.match("[-?:]( |$)", text):
            place.fail("a value must not begin with %s (put it in quotes)" % quote_own(text[0]))
        value, foreign, last = self.cut_plain(text), "", place.row
        place.row += 1
        while place.next_indent() > parent:
            skipped = "".join(place.lines[last + 1:place.row])
            if " #" in text or skipped.strip(" "):
                place.fail("this value goes on after a comment (put it on one line)")
            text, foreign, last = place.line, "a value over several lines", place.row
            self.cut_plain(text)
            place.row += 1
        return YamlNode(PLAIN, value, last + 1, foreign)

    def cut_plain(self, text):
        """Return a plain scalar without the comment and the blanks behind it."""
        text = re.split(" +#", text)[0].rstrip(" ")
        if "\t" in text or re.search(":( |$)", text):
            self.place.fail("a value must not contain a tab, or a colon with a space after it (put "
                            "it in quotes)")
        return text

    def parse_quoted(self):
        place = self.place
        pattern = YAML_QUOTED[place.line[place.at]]
        match = match_at(pattern, place.line, place.at)
        if match:
            place.at = match.end()
            return YamlNode(TEXT, self.unquote(match.group(0)), place.row + 1, "")
        rest = [place.line[place.at:]] + place.lines[place.row + 1:]
        match = re.match(pattern, "\n".join(rest))
        rows = match.group(0).split("\n") if match else []
        if not match or any(is_mark(row) for row in rows[1:]):
            place.fail("this quote is not closed")
        self.unquote(match.group(0))
        place.row, place.at = place.row + len(rows) - 1, len(rows[-1])
        return YamlNode(TEXT, "", place.row + 1, "a quoted value over several lines")

    def unquote(self, token):
        """Return the text of a quoted scalar."""
        if self.place.is_json:
            return json.loads(token)
        if token[0] == "'":
            return token[1:-1].replace("''", "'")
        return re.sub(YAML_ESCAPE, self.parse_escape, token[1:-1])

    def parse_escape(self, match):
        digits = match.group(1) or match.group(2)
        if digits and not 0xd800 <= int(digits, 16) <= 0xdfff:
            return chr(int(digits, 16))
        if match.group(3) not in YAML_ESCAPES:
            self.place.fail(r"the escape %s is not known in double quotes (a backslash is \\)"
                            % quote_own(match.group(0)))
        return YAML_ESCAPES[match.group(3)]

    def parse_block_scalar(self, header, parent):
        """Parse a | or > scalar; without its line break, and of one line, it is a usable value."""
        place = self.place
        match = re.fullmatch(r"[|>]([+-]?)(?: +#.*| *)", header)
        if not match:
            place.fail("a block scalar must begin with |, |-, > or >-, and nothing after it")
        rows, indent = [], None
        place.row += 1
        for line in place.lines[place.row:]:
            width = len(line) - len(line.lstrip(" "))
            if width < len(line):
                if indent is None:
                    indent = max(width, parent + 1)
                if width < indent:
                    break
            begins_with_blanks = indent is None and width > parent + 1
            if begins_with_blanks or is_mark(line):
                place.fail("a block scalar must not begin with a line of spaces, or go on to a "
                           "document mark")
            rows.append("" if indent is None else line[indent:])
        place.row += len(rows)
        text = "\n".join(rows).rstrip("\n")
        is_one_line = match.group(1) == "-" and "\n" not in text
        return YamlNode(TEXT, text, place.row, "" if is_one_line else (
            "a block scalar with a line break (|- and one line have none)"))


class YamlFlow:
    """Values inside brackets and braces, over as many lines as they take."""

    def __init__(self, place, scalars):
        self.place = place
        self.scalars = scalars

    def parse_value(self):
        """Parse brackets with all inside, a quoted or a plain scalar, or an alias."""
        place = self.place
        first, row = place.next_in_flow(), place.row
        if first in YAML_QUOTED:
            return self.scalars.parse_quoted()
        if first in "[{":
            place.at += 1
            return self.parse_map() if first == "{" else self.parse_list()
        match = match_at(YAML_ALIAS if first == "*" else YAML_FLOW_PLAIN, place.line, place.at)
        if not match:
            place.fail("inside brackets a value must not begin with %s (put it in quotes)"
                       % quote_own(first))
        place.at = match.end()
        return YamlNode(PLAIN, match.group(0), row + 1, "an alias (*)" if first == "*" else "")

    def parse_list(self):
        first, entries = self.place.row + 1, []
        while self.place.next_in_flow() != "]":
            entries.append(self.parse_value())
            self.end_entry("]")
        self.place.at += 1
        return YamlNode(LIST, entries, first, "")

    def parse_map(self):
        place = self.place
        first, members = place.row + 1, {}
        while place.next_in_flow() != "}":
            row = place.row
            key = self.parse_key(members)
            members[key] = YamlNode(PLAIN, "", row + 1, "")
            if place.next_in_flow() not in ",}":
                members[key] = self.parse_value()._replace(line=row + 1)
            self.end_entry("}")
        place.at += 1
        return build_map(members, first)

    def parse_key(self, members):
        """Return the key at the place, and go behind its colon."""
        place, row = self.place, self.place.row
        if place.next_in_flow() in "[{*":
            place.fail("a key must not begin with a bracket (put a Jinja expression in quotes)")
        key = self.parse_value().value
        if place.next_in_flow() != ":" or place.row != row:
            place.fail("inside braces the key %s has no value" % quote_own(key), row)
        if key in members:
            place.fail("inside braces the key %s comes twice" % quote_own(key), row)
        place.at += 1
        return key

    def end_entry(self, bracket):
        found = self.place.next_in_flow()
        if found == ",":
            self.place.at += 1
        elif found != bracket:
            self.place.fail("a comma or %s is missing before %s" % (bracket, quote_own(found)))


class YamlBlocks:
    """Documents, and the maps and lists in them that hang together by their indentation."""
    # list_at: the indentation of a value's key, where a list may stand too.

    def __init__(self, place):
        self.place = place
        self.scalars = YamlScalars(place)
        self.flow = YamlFlow(place, self.scalars)

    def parse_documents(self):
        """Return the maps of all documents."""
        place, documents = self.place, []
        while True:
            if place.next_indent() >= 0:
                documents.append(self.parse_document())
            if place.row == len(place.lines):
                return documents
            if not re.fullmatch("--- *(?: #.*)?", place.line):
                place.fail("the only document mark that may stand here is ---, and nothing after "
                           "it")
            place.row += 1

    def parse_document(self):
        place = self.place
        try:
            root = self.parse_block(0)
        except RecursionError:
            place.fail("values are nested too deep")
        if root.kind != MAP or root.foreign or place.next_indent() >= 0:
            place.fail("not a map: the file must consist of keys (name: value)",
                       min(place.row, root.line - 1))
        return root

    def parse_block(self, least, list_at=None):
        """Parse the value that begins on the next line, indented by `least`, else it is empty."""
        place = self.place
        row, indent = place.row, place.next_indent()
        is_list = indent >= 0 and is_entry(place.line, indent)
        if indent < least and not (is_list and indent == list_at):
            return YamlNode(PLAIN, "", row + 1, "")
        if is_list:
            return self.parse_list(indent)
        if self.split_key(place.line[indent:]):
            return self.parse_map(indent)
        return self.parse_value(indent, least - 1)

    def parse_list(self, column):
        place = self.place
        first, entries = place.row + 1, []
        while place.next_indent() == column and is_entry(place.line, column):
            row, line = place.row, place.line
            # With the dash blanked, the entry is a block of its own that may begin on this line.
            place.lines[row] = line[:column] + " " + line[column + 1:]
            entries.append(self.parse_block(column + 1)._replace(line=row + 1))
        if place.next_indent() > column:
            place.fail("this indentation fits neither the list nor its entries")
        return YamlNode(LIST, entries, first, "")

    def parse_map(self, column):
        place = self.place
        first, members = place.row + 1, {}
        while place.next_indent() == column:
            row, found = place.row, self.split_key(place.line[column:])
            if not found:
                place.fail("not a key (name: value)")
            key, length = found
            if key in members:
                place.fail("the key %s comes twice" % quote_own(key))
            node = self.parse_member(column, column + length)
            members[key] = node._replace(line=row + 1)
        if place.next_indent() > column:
            place.fail("this indentation fits no key above it")
        return build_map(members, first)

    def parse_member(self, column, behind_colon):
        """Parse the value of a key: on its own line, or on those below it."""
        place = self.place
        text = place.line[behind_colon:].lstrip(" ")
        if text and text[0] != "#":
            return self.parse_value(len(place.line) - len(text), column, column)
        place.row += 1
        return self.parse_block(column + 1, column)

    def split_key(self, text):
        """Return (key, length up to behind its colon) of "key: ...", else None."""
        if text[0] in YAML_QUOTED:
            match = re.match(YAML_QUOTED[text[0]], text)
            colon = match and match_at(" *:(?= |$)", text, match.end())
            return (self.scalars.unquote(match.group(0)), colon.end()) if colon else None
        if re.match("[?:]( |$)", text):
            self.place.fail("a complex key (a line that begins with ? or :) is not supported")
        match = re.match("(.*?) *:(?= |$)", text)
        is_value = text[0] in YAML_INDICATORS or is_entry(text, 0)
        if not match or is_value or " #" in match.group(0):
            return None
        return self.scalars.cut_plain(match.group(1)), match.end()

    def parse_value(self, at, parent, list_at=None):
        """Parse the value at this column; lines indented by more than `parent` may continue it."""
        place, row = self.place, self.place.row
        foreign, at = self.skip_properties(at)
        text = place.line[at:]
        if foreign and (not text or text[0] == "#"):
            place.row += 1
            node = self.parse_block(parent + 1, list_at)
        elif text[0] in "|>":
            node = self.scalars.parse_block_scalar(text, parent)
        elif text[0] in "'\"[{" or (text[0] == "*" and not foreign):
            node = self.parse_flow(at)
        else:
            node = self.scalars.parse_plain(text, parent)
        return node._replace(line=row + 1, foreign=foreign or node.foreign)

    def skip_properties(self, at):
        """Return the tag and the anchor at this column, and the column behind them."""
        found = ""
        match = match_at(YAML_PROPERTY, self.place.line, at)
        while match and match.group(1)[0] not in found:
            found, at = found + match.group(1), match.end()
            match = match_at(YAML_PROPERTY, self.place.line, at)
        return found, at

    def parse_flow(self, at):
        """Parse brackets or a quoted scalar that are a whole value, and go to the next line."""
        place = self.place
        place.at = at
        node = self.flow.parse_value()
        if not re.fullmatch(" *| +#.*", place.line[place.at:]):
            place.fail("unexpected text after the end of the value")
        place.row += 1
        return node


def require_json(text):
    """Raise SyntaxMistake unless the text is strict JSON."""
    def refuse(name):
        raise ValueError("%s is not a number" % name)

    try:
        json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise SyntaxMistake(getattr(error, "lineno", 1), "not JSON: %s" % error) from None


# SECTION: CLUSTER KEYS ----------------------------------------------------------------------------
# The keys of a cluster file, and what a single value of each may be. Pure.
#
# A key is one row: what it holds, and the parameters that it becomes. Which keys a method takes and
# needs is told by its row of DIALECTS, the networks by those of NETWORKS: nothing here, nor in the
# sections below, names a family of plugs.

# What a key of the cluster file holds, beside the kinds of PARAMETERS. Some hold many values: of
# which kind of YamlNode those are, and how a message tells it.
NODES, DEVICES, LEVELS = NESTED = "nodes", "devices", "levels"  # maps with keys of their own
ADDRESS, PORT, WHOLE_SECONDS = "address", "port", "whole seconds"
NAMES, NAMED_ADDRESSES, OPTIONS, OUTLETS = "names", "named addresses", "options", "outlets"
ID, IDS = "id", "ids"
COLLECTIONS = {NAMES: (LIST, "a list [a, b]"), IDS: (LIST, "a list [a, b]"),
               NAMED_ADDRESSES: (MAP, "a map {name: address}"),
               OPTIONS: (MAP, "a map {name: value}")}

# power: the parameter of the power agent; verify: that of fence_check, or FENCE_OPTIONS, through
# which the power agent's goes.
ClusterKey = namedtuple("ClusterKey", "name kind power verify default")
FENCE_OPTIONS = "fence_options"


def cluster_key(name, kind=STRING, power="", verify="", default=""):
    return ClusterKey(name=name, kind=kind, power=power, verify=verify, default=default)


# In a network of its own a node has one address; the others have names, and go into target_ips.
*OWN_NETWORKS, CLIENT_NETWORKS = NETWORKS
NETWORK_KEYS = tuple(cluster_key(network.key, ADDRESS) for network in OWN_NETWORKS) + (
    cluster_key(CLIENT_NETWORKS.key, NAMED_ADDRESSES),)

# Longer than two monitors of a verifier are apart, so that a failure is seen by people and metrics
# before it is forgotten; so short that a device is watched again soon after it has come back.
FAILURE_SECONDS = "600"
CLUSTER_KEYS = (
    cluster_key("stonith_nodes", NODES),
    cluster_key("stonith_fence_verify", BOOLEAN, default="1"),
    cluster_key("stonith_verify_wait", WHOLE_SECONDS, default="10"),
    cluster_key("stonith_early_exit", WHOLE_SECONDS, default="0"),
    cluster_key("stonith_failure_timeout", WHOLE_SECONDS, default=FAILURE_SECONDS),
    cluster_key("stonith_quorum_device", BOOLEAN, default="0"),
    cluster_key("stonith_direct_networks", NAMES, default=()),
    cluster_key("stonith_witness_ips", NAMED_ADDRESSES, default={}))
# Of a node itself; the others are of its fence device, and where it has several, of each of them.
OWN_KEYS = NETWORK_KEYS + (
    cluster_key("remote", BOOLEAN),
    cluster_key("verify", BOOLEAN),
    cluster_key("power_on", BOOLEAN),
    cluster_key("delay", WHOLE_SECONDS),
    cluster_key("before", IDS),
    cluster_key("devices", DEVICES),
    cluster_key("levels", LEVELS))
DEVICE_KEYS = (
    cluster_key("method"),
    cluster_key("agent"),
    cluster_key("ip", ADDRESS, power="ip", verify="fence_ip"),
    cluster_key("port", PORT, power="ipport", verify="fence_ipport"),
    cluster_key("user", power="username", verify="fence_user"),
    cluster_key("password", power="password", verify="password"),
    cluster_key("password_script", power="password_script", verify="password_script"),
    cluster_key("mac", MAC, power="device_mac", verify="device_mac"),
    cluster_key("outlet", OUTLETS, power="plug", verify="fence_plug"),
    cluster_key("switch_name", power="switch_name", verify="switch_name"),
    cluster_key("ssl", BOOLEAN, power="ssl", verify=FENCE_OPTIONS),
    cluster_key("ssl_insecure", BOOLEAN, power="ssl_insecure", verify=FENCE_OPTIONS),
    cluster_key("power_on_url", power="power_on_url"),
    cluster_key("power_off_url", power="power_off_url"),
    cluster_key("status_url", power="status_url", verify="status_url"),
    cluster_key("status_on_regex", power="status_on_regex", verify="status_on_regex"),
    cluster_key("status_off_regex", power="status_off_regex", verify="status_off_regex"),
    cluster_key("status_member", power="status_member", verify="status_member"),
    cluster_key("status_on_value", power="status_on_value", verify="status_on_value"),
    cluster_key("status_off_value", power="status_off_value", verify="status_off_value"),
    cluster_key("watts_member", power="watts_member", verify="watts_member"),
    cluster_key("http_method", power="http_method"),
    cluster_key("power_on_method", power="power_on_method"),
    cluster_key("power_off_method", power="power_off_method"),
    cluster_key("status_method", power="status_method", verify="status_method"),
    cluster_key("power_on_body", power="power_on_body"),
    cluster_key("power_off_body", power="power_off_body"),
    cluster_key("content_type", power="content_type"),
    cluster_key("headers", power="headers", verify="headers"),
    cluster_key("power_meter", power="power_meter", verify="power_meter"),
    cluster_key("protocol", power="protocol", verify="protocol"),
    cluster_key("off_timeout", WHOLE_SECONDS),
    cluster_key("options", OPTIONS))
NODE_KEYS = OWN_KEYS + DEVICE_KEYS
# Keys that some methods take and others do not.
SPECIAL_KEYS = {key for dialect in DIALECTS.values() for key in dialect.keys}
# What tells the outlets of a device apart.
OUTLET_KEYS = ("outlet", "switch_name", "power_off_url", "power_off_body")
# Where the second is given, the first is not needed.
STATUS_VALUES = {"status_on_regex": "status_on_value", "status_off_regex": "status_off_value"}
STAND_INS = dict(STATUS_VALUES, password="password_script")
NAMED_AGENT = "agent"  # the method of a node whose agent the file names
NO_DEVICE = "none"     # the method of a node that nothing can fence
METHODS = tuple(DIALECTS_BY_METHOD) + (NO_DEVICE,)
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,200}"  # of a node, a network or an option

# Pacemaker 2.1.5 writes these characters without their escapes, and loses them (cibadmin shows).
DAMAGED_VALUE = "[^\x00-\x7f].*[&<>\"']"


def describe_yaml(node):
    if is_null(node):
        return "an empty value"
    return node.foreign or {MAP: "a map", LIST: "a list"}.get(node.kind, "a single value")


# Of a password that only another program can read (Ansible's vault).
WAY_OUT = " (use password_script: a program on every node that prints it)"


def find_way_out(row, node):
    """Return what else a person can do who wrote a list or a vault's value; "" for nothing."""
    if row.name == "password":
        return WAY_OUT
    if row in DEVICE_KEYS and node.kind == LIST:
        return " (several fence devices: devices: [{...}, {...}])"
    return ""


def parse_text(row, node):
    """Return the text of one value as it is handed on; raise UsageError with what is wrong."""
    # No message here shows the value: it may be a password.
    text = node.value
    if node.foreign or node.kind in (MAP, LIST):
        raise UsageError("this must be a single value, not %s%s" % (
            describe_yaml(node), find_way_out(row, node)))
    if is_null(node):
        return ""
    is_truth = row.kind == BOOLEAN and re.fullmatch(YAML_TRUTH, text)
    if node.kind == PLAIN and is_ambiguous(text) and not is_truth:
        raise UsageError("YAML may take this for a number, a date or a truth value (put it in "
                         "quotes)")
    if re.search(r"\{[{%#]", text):
        raise UsageError("this is a Jinja expression, which only Ansible can fill in%s" % (
            WAY_OUT if row.name == "password" else " (write the value itself)"))
    if "\t" in text or not re.fullmatch(YAML_CHARACTERS, text):
        raise UsageError("this contains a line break or a control character (write it on one line)")
    if re.search(DAMAGED_VALUE, text):
        raise UsageError("Pacemaker 2.1 damages a value that has one of & < > \" ' after a "
                         "non-ASCII character (use other characters, or password_script)")
    return parse_by_kind(row, text) if text else ""


def parse_by_kind(row, text):
    """Return a value in its usual form, as text; raise UsageError if it has none."""
    if row.kind in KEY_PARSERS:
        return KEY_PARSERS[row.kind](text)
    param = PARAMS_BY_NAME.get(row.power)
    if param:
        PARSERS[param.kind](text)
        if param.choices and text not in param.choices:
            raise UsageError("%s is not one of %s" % (quote_own(text), ", ".join(param.choices)))
    return text


def parse_machine_address(text):
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    usual = socket.inet_ntop(family, socket.inet_pton(family, parse_ip(text)))
    if re.match(r"(0|127|22[4-9]|2[345]\d)\.|::1?$|::ffff:|ff", usual):
        raise UsageError("%s is not the address of one machine in a network" % quote_own(text))
    return usual


def parse_port(text):
    if not re.fullmatch("[1-9][0-9]{0,4}", text) or int(text) > 65535:
        raise UsageError("%s is not a port number (1 to 65535)" % quote_own(text))
    return text


def parse_whole_seconds(text):
    if parse_seconds(text) % 1:
        raise UsageError("%s is not a whole number of seconds" % quote_own(text))
    return "%d" % parse_seconds(text)


def parse_switch(text):
    return "1" if parse_boolean(text) else "0"


def parse_usual_mac(text):
    return render_mac(parse_mac(text))


def parse_device_id(text):
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9._-]*", text):
        raise UsageError("%s is not the id of a fence device" % quote_own(text))
    return text


KEY_PARSERS = {ADDRESS: parse_machine_address, PORT: parse_port, BOOLEAN: parse_switch,
               WHOLE_SECONDS: parse_whole_seconds, MAC: parse_usual_mac, ID: parse_device_id}


# SECTION: CLUSTER FILE ----------------------------------------------------------------------------
# From the YAML of a cluster file, and of the host_vars beside it, to a Cluster. Pure: it is given
# texts.
#
# KeyReader parses each value by its row, as text that an agent takes, and ClusterReader finds the
# nodes with their levels and devices; what is wrong goes with its line into the Report, and reading
# goes on, so that one run tells all. A node that has the keys of its device itself has one level of
# one device: what looks at devices finds them in the levels.

# networks: {how a network's name is compared: its name}. values and places: {key: value} and {key:
# (file, line)}.
Cluster = namedtuple("Cluster", "nodes values places networks")

# values, places: of the node's keys that are given; place: of the node itself. networks: {name: own
# address}. levels: its FenceLevels, none of a node without a fence device.
ClusterNode = namedtuple("ClusterNode", "name values place places networks levels")

# before: ids of devices that others have made, which come first. devices: FenceDevices; none where
# the level is of those others alone.
FenceLevel = namedtuple("FenceLevel", "before devices")

# A node with one of its fence devices: what looks at a device looks at it as at its node. suffix:
# of the device's id, behind the node's name. dialect: a row of DIALECTS. values, places: of the
# node's keys and the device's; place: of the device. name, networks: those of the node.
FenceDevice = namedtuple("FenceDevice", "name suffix dialect values place places networks")
Mistake = namedtuple("Mistake", "file line is_warning text")


class Report:
    """Collects the mistakes in the files of a cluster. A place is (file, line)."""

    def __init__(self):
        self.mistakes = set()

    def error(self, place, text):
        self.mistakes.add(Mistake(place[0], place[1], False, text))

    def warn(self, place, text):
        self.mistakes.add(Mistake(place[0], place[1], True, text))

    def is_told(self, node, key):
        """Whether what a node has as this key has been reported as a mistake."""
        place = node.places.get(key)
        return any((item.file, item.line) == place and item.text.startswith("%s: " % key)
                   for item in self.mistakes)

    def has_errors(self):
        return any(not mistake.is_warning for mistake in self.mistakes)


def render_mistake(mistake):
    return "%s:%d: %s%s" % (mistake.file, mistake.line, "warning: " if mistake.is_warning else "",
                            mistake.text)


def parse_members(file, data, report):
    """Return {key: YamlNode} of all documents in the bytes of a file."""
    members = {}
    try:
        for document in parse_yaml(data.decode("utf-8-sig")):
            for key in set(members) & set(document.value):
                report.error((file, document.value[key].line),
                             "the key %s comes twice" % quote_own(key))
            members.update(document.value)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report.error((file, line), "this line is not UTF-8")
    except SyntaxMistake as mistake:
        report.error((file, mistake.line), str(mistake))
    return members


class KeyReader:
    """Turns the members of one map after the other into values, by the rows of their keys."""
    # file: the name of the file whose members are being parsed.

    def __init__(self, report):
        self.report = report
        self.file = ""

    def error(self, node, text):
        self.report.error((self.file, node.line), text)

    def collect_places(self, members):
        return {key: (self.file, node.line) for key, node in members.items()}

    def parse_keys(self, members, rows):
        """Return {key: value} of what the members hold; an empty value counts as not given."""
        values, known = {}, {row.name: row for row in rows}
        for key, node in members.items():
            if key not in known:
                self.error(node, explain_unknown_key(key, known))
            elif known[key].kind in COLLECTIONS:
                values[key] = self.parse_collection(known[key], node)
            elif known[key].kind == OUTLETS:
                values[key] = self.parse_outlets(known[key], node)
            elif known[key].kind not in NESTED:
                values[key] = self.parse_single(known[key], node)
        return {key: value for key, value in values.items() if value}

    def parse_single(self, row, node):
        """Return the text of one value; empty after a mistake."""
        try:
            return parse_text(row, node)
        except UsageError as error:
            self.error(node, "%s: %s" % (row.name, error))
            return ""

    def parse_outlets(self, row, node):
        """Return one outlet, or a list of those that feed one node, as plug takes them."""
        if node.kind != LIST or node.foreign:
            return self.parse_single(row, node)
        names = [self.parse_single(row, entry) for entry in node.value]
        is_clean = all(name and "," not in name for name in names)
        if not names or not is_clean or len(set(names)) < len(names):
            self.error(node, "%s: a list holds outlets that differ, each by a name without a comma"
                       % row.name)
        return ",".join(names)

    def parse_collection(self, row, node):
        """Return a tuple of texts or {name: text}; empty after a mistake."""
        if is_null(node):
            return ()
        wanted, written = COLLECTIONS[row.kind]
        if node.kind != wanted or node.foreign:
            self.error(node, "%s: this must be %s, not %s"
                       % (row.name, written, describe_yaml(node)))
            return ()
        if node.kind == LIST:
            kind = ID if row.kind == IDS else STRING
            return tuple(self.parse_single(cluster_key(row.name, kind), entry)
                         for entry in node.value)
        kind = ADDRESS if row.kind == NAMED_ADDRESSES else STRING
        values = {}
        for name, entry in node.value.items():
            self.check_name(row, name, entry)
            # The parameters of our agents are known, whoever they are options of.
            values[name] = self.parse_single(cluster_key(row.name, kind, power=name), entry)
        return {name: text for name, text in values.items() if text}

    def check_name(self, row, name, entry):
        """Report a name in a map that nothing can have, or that another key's network has."""
        if not re.fullmatch(NAME, name):
            self.error(entry, "%s: %s is not a name (use letters, digits, '.', '_' and '-')"
                       % (row.name, quote_own(name)))
        owner = next((network.key for network in OWN_NETWORKS
                      if network_key(network.name) == network_key(name)), "")
        if owner and row in NETWORK_KEYS:
            self.error(entry, "%s: give the address in the network %s as %s"
                       % (row.name, quote_own(name), owner))

    def parse_maps(self, key, node):
        """Return the maps that a list must hold, as YamlNodes."""
        if node.kind != LIST or node.foreign or not node.value:
            found = "an empty one" if node.kind == LIST else describe_yaml(node)
            self.error(node, "%s: this must be a list of maps [{method: ...}, {method: ...}], not "
                       "%s" % (key, found))
            return []
        maps = [entry for entry in node.value if entry.kind == MAP and not entry.foreign]
        for entry in node.value:
            if entry not in maps:
                self.error(entry, "%s: each of the list must be a map {method: ...}, not %s"
                           % (key, describe_yaml(entry)))
        return maps


class ClusterReader(KeyReader):
    """Finds the nodes of a cluster in its files, and the levels and fence devices of each."""

    def build_cluster(self, file, members, hosts):
        """Return the Cluster of a file's members; None without nodes."""
        self.file = file
        entries = members.get("stonith_nodes")
        if not entries:
            self.report.error((file, 1), "stonith_nodes is missing: it must be a map of the nodes "
                              "and their fence devices")
            return None
        if entries.kind != MAP or entries.foreign:
            self.error(entries, "stonith_nodes must be a map of the nodes and their fence devices, "
                       "not %s" % describe_yaml(entries))
            return None
        own = {key: node for key, node in members.items() if key.startswith("stonith_")}
        values = {row.name: row.default for row in CLUSTER_KEYS}
        values.update(self.parse_keys(own, CLUSTER_KEYS))
        places = self.collect_places(own)
        nodes = {name: self.parse_node(name, entry) for name, entry in entries.value.items()}
        for name, host_file, host_members in hosts:
            self.file = host_file
            self.add_host(nodes, name, host_members)
        for node in nodes.values():
            node.networks.update(collect_networks(node.values))
        networks = {network_key(name): name for node in nodes.values() for name in node.networks}
        return Cluster(tuple(nodes.values()), values, places, networks)

    def parse_node(self, name, entry):
        place = (self.file, entry.line)
        if not re.fullmatch(NAME, name) or name in YAML_NULLS or is_ambiguous(name):
            self.error(entry, "%s cannot be the name of a node: use letters, digits, '.', '_' and "
                       "'-', and no word that YAML takes for something else" % quote_own(name))
        node = ClusterNode(name=name, values={"options": {}}, place=place, places={}, networks={},
                           levels=())
        if entry.kind != MAP or entry.foreign:
            self.error(entry, "node %s must be a map of keys (method: ...), not %s"
                       % (quote_own(name), describe_yaml(entry)))
            return node
        node.values.update(self.parse_keys(entry.value, NODE_KEYS))
        node.places.update(self.collect_places(entry.value))
        return node._replace(levels=self.parse_levels(node, entry.value))

    def parse_levels(self, node, members):
        """Return the FenceLevels of a node; none where nothing can fence it."""
        before = node.values.get("before", ())
        if LEVELS in members:
            self.check_strays(LEVELS, members, DEVICE_KEYS + (cluster_key(DEVICES),))
            entries = self.parse_maps(LEVELS, members[LEVELS])
        elif DEVICES in members:
            self.check_strays(DEVICES, members, DEVICE_KEYS)
            entries = [YamlNode(MAP, {DEVICES: members[DEVICES]}, members[DEVICES].line, "")]
        else:
            device = self.build_device(node, "", node.values, node.places, node.place)
            before = tuple(dict.fromkeys(before))
            return (FenceLevel(before, (device,)),) if device.dialect else ()
        found = [self.parse_level(node, number, entry) for number, entry in enumerate(entries, 1)]
        return tuple(level._replace(before=tuple(dict.fromkeys(before + level.before)))
                     for level in found)

    def parse_level(self, node, number, entry):
        """Return the FenceLevel of the keys of one device, or of a list of devices."""
        members = dict(entry.value)
        own = {key: members.pop(key) for key in ("before",) if key in members}
        before = self.parse_keys(own, OWN_KEYS).get("before", ())
        maps = [YamlNode(MAP, members, entry.line, "")] if members or not before else []
        if DEVICES in members:
            self.check_strays(DEVICES, members, DEVICE_KEYS)
            # For what it tells: whatever else stands here would be left out without a word.
            self.parse_keys(members, DEVICE_KEYS + (cluster_key(DEVICES, DEVICES),))
            maps = self.parse_maps(DEVICES, members[DEVICES])
        devices = [self.parse_device(node, device_suffix(number, place), one)
                   for place, one in enumerate(maps, 1)]
        return FenceLevel(before, tuple(device for device in devices if device.dialect))

    def parse_device(self, node, suffix, entry):
        """Return one of several devices of a node; its values are the node's too."""
        own = self.parse_keys(entry.value, DEVICE_KEYS)
        if own.get("method") == NO_DEVICE:
            self.error(entry.value["method"], "%s: a device has a method (leave one that is not "
                       "there out)" % node.name)
        values = {**node.values, **own}
        places = {**node.places, **self.collect_places(entry.value)}
        return self.build_device(node, suffix, values, places, (self.file, entry.line))

    def build_device(self, node, suffix, values, places, place):
        method = values.get("method", NAMED_AGENT if "agent" in values else "")
        wrong = find_wrong_method(method, values)
        if wrong:
            self.report.error(places.get("method", place), "%s %s" % (node.name, wrong))
        return FenceDevice(
            name=node.name, suffix=suffix, dialect=DIALECTS_BY_METHOD.get(method), values=values,
            place=place, places=places, networks=node.networks)

    def check_strays(self, key, members, rows):
        """Report keys of one device beside a list of several."""
        for row in rows:
            if row.name in members:
                self.error(members[row.name], "%s stands beside %s: it goes into the map of the "
                           "device that it is about" % (row.name, key))

    def add_host(self, nodes, name, members):
        """Add the networks of a host_vars file; a host that has some is a node of the cluster."""
        networks = {row.name: members[row.name] for row in NETWORK_KEYS if row.name in members}
        if networks and name not in nodes:
            without_device = {"method": YamlNode(TEXT, NO_DEVICE, 1, "")}
            nodes[name] = self.parse_node(name, YamlNode(MAP, without_device, 1, ""))
        for key, value in self.parse_keys(networks, NETWORK_KEYS).items():
            node, place = nodes[name], (self.file, networks[key].line)
            node.places.setdefault(key, place)
            if node.values.setdefault(key, value) != value:
                self.report.error(place, "%s of %s differs from the one at %s:%d (remove the wrong "
                                  "one)" % ((key, name) + node.places[key]))


def suggest(word, known):
    import difflib
    near = difflib.get_close_matches(word, known, 1)
    return ", did you mean %s?" % near[0] if near else ""


def explain_unknown_key(key, known):
    if key in [row.name for row in OWN_KEYS]:
        return "the key %s does not belong here: it is one of the node itself" % quote_own(key)
    return "unknown key %s%s" % (quote_own(key), suggest(key, known))


def device_suffix(level, number):
    """Return what stands behind a node's name in the id of its device of this level and number."""
    return "".join(["-level%d" % level] * (level > 1) + ["-device%d" % number] * (number > 1))


def find_wrong_method(method, values):
    """Return what is wrong with the method of a node, "" where nothing is."""
    if not method:
        return "has no method: give it one of %s; or agent: fence_xyz" % ", ".join(METHODS)
    if method not in METHODS:
        return "has the unknown method %s%s (known: %s; or give agent: fence_xyz instead)" % (
            quote_own(method), suggest(method, METHODS), ", ".join(METHODS))
    if method != NAMED_AGENT and "agent" in values:
        return "has the method %s and an agent: remove one of them" % quote_own(method)
    return ""


def collect_networks(values):
    """Return {name of a network: own address} from the values of a node."""
    networks = {network.name: values[network.key] for network in OWN_NETWORKS
                if network.key in values}
    return {**networks, **values.get(CLIENT_NETWORKS.key, {})}


# SECTION: PLAN ------------------------------------------------------------------------------------
# From a Cluster to one Configuration: what the cluster should hold. Pure.
#
# Each fence device of a node gets a power device and a verifier, and bans that say where each of
# them must not run. A level has its power devices, and behind all of them their verifiers: only
# together do these tell that the node has no power. How long each may take is decided first, for a
# device at a time (plan_times), because each limit follows from another one.

# What this and the other sections ask about a Cluster.

def find_node(cluster, name):
    for node in cluster.nodes:
        if node.name == name:
            return node
    raise UsageError("no node %s (there are: %s)" % (
        quote_own(name), ", ".join(node.name for node in cluster.nodes)))


def find_networks(cluster, name):
    """Return the networks that a name in the file means: one, or all that clients use."""
    if network_key(name) in cluster.networks:
        return [cluster.networks[network_key(name)]]
    clients = set(cluster.networks.values()) - {network.name for network in OWN_NETWORKS}
    return sorted(clients) if name.lower() == CLIENT_NETWORKS.name else []


def find_direct_networks(cluster):
    return {network for name in cluster.values["stonith_direct_networks"]
            for network in find_networks(cluster, name)}


def find_verifiers(cluster, node):
    """Return the nodes that may verify that this one is dead: they see all its networks."""
    return [other for other in find_members(cluster)
            if other.name != node.name and node.networks.keys() <= other.networks.keys()]


def find_members(cluster):
    """Return the nodes that run fence devices: remote and guest nodes of Pacemaker do not."""
    return [node for node in cluster.nodes if not is_remote(node)]


def is_remote(node):
    return node.values.get("remote") == "1"


def nodes_with_device(cluster):
    return [node for node in cluster.nodes if list_devices(node)]


def list_devices(node):
    return [device for level in node.levels for device in level.devices]


def is_verified(cluster, node):
    return node.values.get("verify", cluster.values["stonith_fence_verify"]) == "1"


def has_own_agent(node):
    """Whether one of the agents in this file switches the device: its time limits are known."""
    return node.dialect.agent in AGENTS


OFF_TIMEOUT_SECONDS = 60   # that Pacemaker gives a power device, unless off_timeout says another
VERIFY_SPARE_SECONDS = 45  # that Pacemaker gives a verifier beyond the agent's own limit
LOOK_SECONDS = 20          # that fence_check may need after verify_wait
SPARE_SECONDS = 5          # between the limit of one of our agents and what Pacemaker gives
RACE_DELAY_SECONDS = 10    # head start in a fence race: slow plugs take seconds to obey
LIBRARY_SECONDS = "20"     # power_timeout of installed agents, by default of fence-agents' library
MONITOR_TIMEOUT_SECONDS = 40  # or more, see monitor_timeout
POWER_MONITOR_SECONDS, VERIFIER_MONITOR_SECONDS = 60, 300  # from one monitor to the next
EXCHANGE_LIMITS = ("login_timeout", "shell_timeout")  # of TIME_LIMITS: as slow as the device
MAX_NODE_WITNESSES = 3  # in a network: each of them is asked at every look

# A fence device: options {name: value}, and its monitor's interval in seconds.
Primitive = namedtuple("Primitive", "id agent options interval")

# devices: ids of the primitives of a level of a node, in the order of their execution; those that
# others have made come first.
Level = namedtuple("Level", "node index devices")

# nodes: names of the nodes that must not run a device.
Ban = namedtuple("Ban", "device nodes is_verifier")

# nodes: names; remotes: those of them that are remote or guest nodes. meta: (name, value) of the
# meta attributes that each of its devices has. head_starts: see there.
Configuration = namedtuple(
    "Configuration", "nodes remotes primitives levels bans properties meta head_starts")
Configuration.__new__.__defaults__ = ((),)

# What makes fencing a node wait, so that it survives a fence race: options of a device that change.
HeadStart = namedtuple("HeadStart", "node device options")

# Marks in the CIB what this tool made: a meta attribute, which pcs, crmsh and Pacemaker keep and no
# agent sees. Names alone would not do: a person may call a device like we do.
OWNER = ("managed-by", "fencetool")
DEVICE_PREFIX, VERIFIER_PREFIX = "fence-", "fence-verify-"  # of ids, before a node's name
# Of cluster options. Where both are set, Pacemaker 3.0.2 takes the new name; before, it knows the
# old one only.
OLD_PREFIX, NEW_PREFIX = "stonith-", "fencing-"
LEVEL_SUFFIX = "-level[2-9](-device.*)?$"  # of the ids of another level than the first


def build_configuration(cluster):
    primitives, levels, bans = [], [], []
    for node in nodes_with_device(cluster):
        able = {other.name for other in find_verifiers(cluster, node)}
        unable = tuple(other.name for other in cluster.nodes if other.name not in able)
        for index, level in enumerate(node.levels, 1):
            powers, verifiers = build_devices(cluster, node, level)
            for power in powers:
                # Allowed everywhere else: the power-on after a reboot must not depend on which
                # node is DC.
                bans.append(Ban(power.id, (node.name,), is_verifier=False))
            bans += [Ban(verifier.id, unable, is_verifier=True) for verifier in verifiers]
            # SAFETY: all of them behind all power devices, so that they look at what is left on.
            # Test: test_the_verifier_is_the_last_device_of_its_level
            devices = powers + verifiers
            primitives += devices
            ids = level.before + tuple(device.id for device in devices)
            levels.append(Level(node.name, index, ids))
    require_different_bans(bans)
    return Configuration(
        nodes=tuple(node.name for node in cluster.nodes),
        remotes=tuple(node.name for node in cluster.nodes if is_remote(node)),
        primitives=tuple(primitives), levels=tuple(levels), bans=tuple(bans),
        meta=build_meta(cluster), properties=build_properties(primitives))


def build_meta(cluster):
    # A device whose monitor and start have failed on every node stays stopped, for Pacemaker
    # forgets no failure by itself. It would be asked to fence all the same, but nobody would watch
    # it any more: a plug that was out of Wi-Fi for a while must come back without a person.
    seconds = cluster.values["stonith_failure_timeout"]
    return (OWNER,) + ((("failure-timeout", seconds + "s"),) if int(seconds) else ())


def build_properties(primitives):
    return ((OLD_PREFIX + "enabled", "true"),
            (OLD_PREFIX + "timeout", "%ds" % find_longest(primitives)))


def find_longest(primitives):
    """Return the seconds that Pacemaker gives the slowest device."""
    return max(int(device.options["pcmk_off_timeout"]) for device in primitives)


def build_devices(cluster, node, level):
    """Return ([power device], [verifier]) of a level of a node."""
    # SAFETY: a verifier for each of them, since a node lives on with any one of its supplies.
    # Test: test_each_of_several_devices_has_a_verifier_of_its_own
    powers, verifiers = [], []
    for device in level.devices:
        times = plan_times(cluster, device)
        powers.append(build_power_device(device, times))
        if is_verified(cluster, node):
            verifiers.append(build_verifier(cluster, device, times))
    if "power_on" not in node.values and not all(row.dialect.comes_back for row in level.devices):
        for power in powers:  # with any one of them the node would be back
            power.options["pcmk_reboot_action"] = "off"
    for verifier in verifiers[1:]:
        # Behind the first, which has waited until the node was down.
        verifier.options.setdefault("early_exit", "%d" % SHORTEST_PROOF_SECONDS)
    return powers, verifiers


def require_different_bans(bans):
    ids = sorted(ban_id(ban, node) for ban in bans for node in ban.nodes)
    for one, other in zip(ids, ids[1:]):
        if one == other:
            raise UsageError("two location constraints would have the id %s: rename a node" % one)


def ban_id(ban, node):
    # Not as pcs names one: a person's own ban of the same node must not be taken for ours.
    return "%s-ban-%s-%s" % (OWNER[1], ban.device, node)


def plan_times(cluster, node):
    """Return the times of a node's devices, by their names; all but the limits in seconds."""
    # delay: that fencing this node waits. power_given: that Pacemaker gives the power device for
    # one action, of which it needs power_needed. power_limits: {parameter: seconds as text} of its
    # agent, where it is one of ours, that differ from the defaults. verify_*: of the verifier.
    first = list_devices(find_node(cluster, node.name))[0]
    delay = find_delay(cluster, node) if node.suffix == first.suffix else 0
    # A delay comes on top: before 2.1.6, Pacemaker's own timers do not count it.
    rest = find_required_rest(node)
    power_given = int(node.values.get("off_timeout", OFF_TIMEOUT_SECONDS + delay + rest))
    if has_own_agent(node):
        power_limits = find_power_limits(node, power_given - delay)
        power_needed = agent_seconds(power_limits)
    else:
        power_limits = {}
        power_needed = parse_seconds(node.values["options"].get("power_timeout", LIBRARY_SECONDS))
    verify_limits = find_verify_limits(cluster, node)
    verify_needed = agent_seconds(verify_limits)
    return types.SimpleNamespace(
        delay=delay, power_given=power_given, power_needed=power_needed + delay,
        power_limits=power_limits, verify_needed=verify_needed, verify_limits=verify_limits,
        verify_given=int(node.values.get("off_timeout", verify_needed + VERIFY_SPARE_SECONDS)))


def could_race(cluster):
    """Whether two nodes could fence each other at once: nothing else decides who survives."""
    # Remote nodes fence nobody, and have no vote.
    members = find_members(cluster)
    return (len(members) == 2 and all(map(list_devices, members))
            and cluster.values["stonith_quorum_device"] == "0")


def has_delay(cluster):
    """Whether the file itself decides a race of members."""
    return any("delay" in node.values for node in find_members(cluster) if list_devices(node))


def build_script_configuration(cluster):
    """Return the Configuration for a script that sees which nodes are members of the cluster.

    Nodes of the file may have no vote: a remote node, a host that has an address here. So whether
    two members could race, and who has to win, is left to the script: by the head starts.
    """
    decided = cluster._replace(values=dict(cluster.values, stonith_quorum_device="1"))
    configuration = build_configuration(decided)
    if has_delay(cluster) or cluster.values["stonith_quorum_device"] == "1":
        return configuration
    return configuration._replace(head_starts=tuple(
        build_head_start(decided, node) for node in nodes_with_device(cluster)))


def build_head_start(cluster, node):
    device = list_devices(node)[0]
    waiting = device._replace(values=dict(device.values, delay=str(RACE_DELAY_SECONDS)))
    times = plan_times(cluster, waiting)
    if times.power_given <= times.power_needed:
        # What off_timeout gives is for the device alone: the delay comes on top.
        waiting.values["off_timeout"] = str(times.power_given + RACE_DELAY_SECONDS)
        times = plan_times(cluster, waiting)
    before = build_power_device(device, plan_times(cluster, device))
    after = build_power_device(waiting, times)
    # pcmk_off_timeout always: the script needs it for the time limit of the cluster.
    changed = {name: value for name, value in after.options.items()
               if name == "pcmk_off_timeout" or before.options.get(name) != value}
    return HeadStart(node.name, after.id, changed)


def give_head_start(configuration, members):
    """Return what a script makes of a Configuration where these are the members of the cluster."""
    targets = {level.node for level in configuration.levels}
    could_both_die = len(members) == 2 and targets.issuperset(members)
    row = next((row for row in configuration.head_starts if row.node in members), None)
    if row is None or not could_both_die:
        return configuration
    first = next(device for device in configuration.primitives if device.id == row.device)
    delayed = first._replace(options={**first.options, **row.options})
    primitives = tuple(delayed if device is first else device
                       for device in configuration.primitives)
    return configuration._replace(primitives=primitives, properties=build_properties(primitives))


def find_delay(cluster, node):
    """Return the seconds that fencing this node waits; two nodes that race need a winner."""
    is_race = could_race(cluster) and not has_delay(cluster)
    if is_race and node.name == find_members(cluster)[0].name:
        return RACE_DELAY_SECONDS
    return int(node.values.get("delay", "0"))


def find_required_rest(node):
    """Return the seconds that a meter which is required may rest after a command."""
    return node.dialect.meter_rest if node.values.get("power_meter") == "require" else 0


def find_power_limits(node, seconds):
    """Return the limits of one of our agents that has this many seconds for an action."""
    options = node.values["options"]
    rest = find_required_rest(node)
    usual = parse_seconds(PARAMS_BY_NAME["power_timeout"].default)
    limits = {"power_timeout": "%d" % (usual + rest)} if rest else {}
    limits.update({name: options[name] for name in TIME_LIMITS if name in options})
    if "off_timeout" in node.values and "power_timeout" not in options:
        # What off_timeout adds is time for the device to confirm.
        others = agent_seconds(dict(limits, power_timeout="0")) + SPARE_SECONDS
        limits["power_timeout"] = "%d" % max(1, seconds - others)
    return limits


def find_verify_limits(cluster, node):
    """Return those of fence_check, which asks the same device: a slow one is slow for both."""
    options = node.values["options"]
    limits = {name: options[name] for name in EXCHANGE_LIMITS
              if parse_seconds(options.get(name, "0"))}  # other agents take 0 for no limit
    longest = max(int(cluster.values[key]) for key in ("stonith_verify_wait", "stonith_early_exit"))
    needed = longest + LOOK_SECONDS + find_required_rest(node)
    if needed > parse_seconds(PARAMS_BY_NAME["power_timeout"].default):
        limits["power_timeout"] = str(needed)
    return limits


def agent_seconds(limits):
    """Return how long an action of our agents may take with these limits (name: text)."""
    return sum(parse_seconds(limits.get(key, PARAMS_BY_NAME[key].default)) for key in TIME_LIMITS)


def monitor_timeout(device):
    """Return the seconds that a monitor may take: more than a connection and two slow answers."""
    answer = device.options.get("shell_timeout", PARAMS_BY_NAME["shell_timeout"].default)
    needed = agent_seconds(dict(device.options, power_timeout=answer))
    return max(MONITOR_TIMEOUT_SECONDS, int(needed) + SPARE_SECONDS)


def collect_options(node, column):
    """Return {parameter: value} from the node's keys, by a column of NODE_KEYS."""
    options = {}
    for row in NODE_KEYS:
        parameter = getattr(row, column)
        if parameter not in ("", FENCE_OPTIONS) and row.name in node.values:
            options[parameter] = node.values[row.name]
    for name, stand_in in STAND_INS.items():
        if stand_in in options:
            options.pop(name, None)
    return options


def name_power_device(device):
    return DEVICE_PREFIX + device.name + device.suffix


def name_verifier(device):
    return VERIFIER_PREFIX + device.name + device.suffix


def build_power_device(node, times):
    options = dict(node.dialect.fixed, **collect_options(node, "power"))
    options.update(node.values["options"], **times.power_limits)
    options.update(build_host_options(node.name, options.pop("plug", "")))
    for action in ("off", "on", "reboot"):
        options["pcmk_%s_timeout" % action] = str(times.power_given)
    if node.values.get("power_on", "1" if node.dialect.comes_back else "0") == "0":
        options["pcmk_reboot_action"] = "off"
    if times.delay:
        options["pcmk_delay_base"] = str(times.delay)
    agent = node.values.get("agent", node.dialect.agent)
    return Primitive(name_power_device(node), agent, options, POWER_MONITOR_SECONDS)


def build_host_options(name, outlet):
    """Return the options by which Pacemaker's agents learn the outlet of a node."""
    # What pcmk_host_map can hold: a comma there is a part of what the agent gets.
    if re.fullmatch("[A-Za-z0-9._,-]+", outlet):
        return {"pcmk_host_map": "%s:%s" % (name, outlet)}
    if not outlet:
        return {"pcmk_host_list": name}
    # Without "none", agents get the node's name beside the outlet, and take whichever comes last.
    return {"plug": outlet, "pcmk_host_list": name, "pcmk_host_argument": "none"}


def build_verifier(cluster, node, times):
    """Return the fence_check device that proves the death of a node."""
    # SAFETY: without pcmk_reboot_action. Outside of its level it is asked for a reboot, and
    # refuses; asked for an off instead it could be believed alone.
    # Test: test_a_verifier_is_never_asked_for_an_off_outside_of_its_level
    options = collect_options(node, "verify")
    options[FENCE_OPTIONS] = ",".join("%s=%s" % item for item in find_fence_options(node).items())
    options.update(build_targets(cluster, node), **times.verify_limits)
    options.update(
        fence_method=node.values.get("agent", node.dialect.method), pcmk_host_list=node.name,
        verify_wait=cluster.values["stonith_verify_wait"], pcmk_off_timeout=str(times.verify_given),
        pcmk_off_retries="1")  # a second try would only repeat the wait
    if int(cluster.values["stonith_early_exit"]):
        options["early_exit"] = cluster.values["stonith_early_exit"]
    given = {name: value for name, value in options.items() if value}
    return Primitive(name_verifier(node), "fence_check", given, VERIFIER_MONITOR_SECONDS)


def find_fence_options(node):
    """Return {name: value} of what fence_check hands on to the agent that it asks."""
    found = {row.power: node.values[row.name] for row in NODE_KEYS
             if row.verify == FENCE_OPTIONS and row.name in node.values}
    for name, value in node.values["options"].items():
        is_for_pacemaker = name.startswith("pcmk_")
        is_for_check = name in names_of(AGENTS["fence_check"])
        # An installed agent has these limits of its own, and fence_check waits for it.
        is_for_both = name in EXCHANGE_LIMITS and not has_own_agent(node)
        if not is_for_pacemaker and (is_for_both or not is_for_check):
            found[name] = value
    return found


def build_targets(cluster, node):
    """Return the parameters of fence_check that say where a node would show life."""
    direct = find_direct_networks(cluster) & set(node.networks)
    witnesses = ["%s=%s" % (network, address) for network in node.networks
                 if network not in direct for address in find_witnesses(cluster, node, network)]
    others = dict(node.networks)
    targets = {own.parameter: others.pop(own.name, "") for own in OWN_NETWORKS}
    targets["target_ips"] = ",".join("%s=%s" % item for item in others.items())
    return dict(targets, witness_ips=",".join(witnesses), direct_networks=",".join(sorted(direct)))


def find_witnesses(cluster, node, network):
    """Return the addresses that must answer for a node's silence in a network to count."""
    found = [address for name, address in cluster.values["stonith_witness_ips"].items()
             if network in find_networks(cluster, name) and address != node.networks[network]]
    # Another node is a witness only where a third one may be the verifier: nobody's own address
    # proves a path.
    verifiers = find_verifiers(cluster, node)
    peers = [other for other in cluster.nodes
             if other.name != node.name and verifiers != [other]]
    found += [other.networks[network] for other in peers
              if network in other.networks][:MAX_NODE_WITNESSES]
    # fence_check leaves out the device where it would not reach it in the same way.
    if "ip" in node.values and network in [row.name for row in NETWORKS if row.has_devices]:
        found.append(node.values["ip"])
    return list(dict.fromkeys(found))


def build_firewall(cluster, name):
    """Return the addresses of the fence devices that a node must not reach, and those it must."""
    own = list_device_addresses(find_node(cluster, name))
    others = {address for node in cluster.nodes if node.name != name
              for address in list_device_addresses(node)}
    return types.SimpleNamespace(node=name, opened=sorted(others), closed=sorted(own - others))


def list_device_addresses(node):
    return {device.values["ip"] for device in list_devices(node) if "ip" in device.values}


# SECTION: CLUSTER CHECKS --------------------------------------------------------------------------
# Whether a Cluster whose file could be parsed makes sense, and its plan can work. Pure.
#
# Each check_ function asks one question, and puts what is wrong into the Report: those of
# DEVICE_CHECKS for one node with a fence device, those of CLUSTER_CHECKS for the whole.

# Parameters that would undo what makes the configuration safe, and why each must not be given.
# SAFETY: with version=1 or help=1, fence agents end an off with success and switch nothing.
# Test: test_options_cannot_make_an_agent_lie_or_lead_to_another_device
RESERVED_OPTIONS = (
    ("action|option|version|help|nodename|missing_as_off",
     "would make the agent do something else than it is asked for"),
    ("method", "must stay onoff, its default: a cycle proves no OFF"),
    ("plug|port|port_as_ip|pcmk_host_.*", "is written by fencetool (give outlet and ip)"),
    ("delay|pcmk_delay_.*", "is written by fencetool (give delay): one at random can be the same "
     "on both sides of a race"),
    ("pcmk_[a-z]+_action", "is written by fencetool (give power_on)"),
    ("pcmk_(off|on|reboot)_timeout", "is written by fencetool (give off_timeout)"))

# What Pacemaker itself takes of any fence device, and keeps from its agent.
PACEMAKER_OPTION = "pcmk_((off|on|reboot|status|list|monitor)_(timeout|retries)|action_limit)"

MOST_LEVELS = 9  # higher ones are ignored, or refused from Pacemaker 3.0 on

# Fence agents cut blanks at the end of a value and a pair of quotes around it.
MANGLED_VALUE = '".*"|.* '


def parse_cluster(file, data, host_files=()):
    """Return (Cluster, [Mistake]); the Cluster is None when a mistake is more than a warning."""
    # data: the bytes of the file; host_files: (node, file, data) of --host-vars.
    report = Report()
    members = parse_members(file, data, report)
    hosts = [(node, path, parse_members(path, text, report)) for node, path, text in host_files]
    cluster = None
    if not report.has_errors():
        cluster = ClusterReader(report).build_cluster(file, members, hosts)
    if cluster:
        for check in CLUSTER_CHECKS:
            check(cluster, report)
        for device in list_all_devices(cluster):
            for check in DEVICE_CHECKS:
                check(cluster, device, report)
    return None if report.has_errors() else cluster, sorted(report.mistakes)


def list_all_devices(cluster):
    return [device for node in cluster.nodes for device in list_devices(node)]


def place_of(node, key):
    return node.places.get(key, node.place)


def check_required_keys(cluster, node, report):
    method = node.dialect.method
    needed = {key: "method " + method for key in node.dialect.required}
    if node.values.get("power_on") == "1" and "power_on_url" in node.dialect.keys:
        needed.setdefault("power_on_url", "power_on: true")
    for key, needer in needed.items():
        stand_in = STAND_INS.get(key)
        is_told = report.is_told(node, key) or report.is_told(node, stand_in)
        if key not in node.values and stand_in not in node.values and not is_told:
            what = "neither %s nor %s" % (key, stand_in) if stand_in else "no " + key
            report.error(node.place, "%s has %s, which %s needs" % (node.name, what, needer))


def check_agent(cluster, node, report):
    agent = node.values.get("agent", "")
    methods = [dialect.method for dialect in dialects_of(agent)]
    if agent in AGENTS and methods:
        report.error(node.places["agent"], "%s has a method of its own: instead of agent, give "
                     "method: %s" % (agent, " or ".join(methods)))
    elif agent in AGENTS and agent not in OTHER_NAMES:
        report.error(node.places["agent"], "%s cannot switch a node off: name the agent of its "
                     "device, or a method" % agent)
    elif agent and not re.fullmatch(AGENT_NAME, agent):
        report.error(node.places["agent"], "%s is not the name of a fence agent (fence_xyz)"
                     % quote_own(agent))


def check_one_outlet(cluster, node, report):
    if "outlet" in node.values and "switch_name" in node.values:
        report.error(node.places["outlet"], "outlet and switch_name both name the switch: remove "
                     "one of them")


def check_status_keys(cluster, node, report):
    """A status is read in one way: by two expressions, or by a member of JSON and its values."""
    wanted = ["status_member"] + list(STATUS_VALUES.values())
    given = [key for key in wanted if key in node.values]
    if given and given != wanted:
        report.error(node.places[given[0]], "%s go together: one is missing" % ", ".join(wanted))
    for key in STATUS_VALUES:
        if given and key in node.values:
            report.error(node.places[key], "%s and %s are two ways to tell one state: remove one "
                         "of them" % (key, given[0]))


def check_urls(cluster, node, report):
    """A URL that reads and switches is refused by the power agent, and a verifier would ask it."""
    paths = {name: strip_host(node.values.get(name, "")) for name in URL_PARAMS}
    if not (paths["status_url"] and paths["power_off_url"]):
        return
    bodies = {name: node.values.get(name.replace("_url", "_body"), "") for name in URL_PARAMS}
    try:
        check_pages(paths, bodies, node.values.get("status_method") or "GET")
    except UsageError as error:
        report.error(node.places["status_url"], str(error))


def check_options(cluster, node, report):
    """Options that cannot be passed to an agent, or that follow from other keys."""
    for name, text in node.values["options"].items():
        wrong = find_wrong_option(node, name)
        if not wrong and (max(text) > "~" or "," in text):
            wrong = "contains a comma or a non-ASCII character, which cannot be handed on"
        if not wrong and name.startswith("pcmk_") and not re.fullmatch("-?[0-9]+", text):
            wrong = "must be a plain number (before 2.1.8, Pacemaker takes 1min for one second)"
        if wrong:
            report.error(node.places["options"], "options: %s %s" % (quote_own(name), wrong))


def find_wrong_option(node, name):
    """Return why a parameter cannot be among the options of a node; "" where it can."""
    agent, key = node.dialect.agent, name.replace("-", "_")  # agents take either
    why = [text for pattern, text in RESERVED_OPTIONS if re.fullmatch(pattern, key)]
    if why:
        return why[0] + " (remove it here)"
    if key in find_taken_parameters(node):
        return "is set by another key of the node, or by its method (remove it here)"
    is_for_pacemaker = key.startswith("pcmk_")
    if is_for_pacemaker and not re.fullmatch(PACEMAKER_OPTION, name):
        return "is no parameter of Pacemaker"
    if has_own_agent(node) and not is_for_pacemaker and name not in names_of(AGENTS[agent]):
        return "is unknown to %s%s" % (agent, suggest(name, names_of(AGENTS[agent])))
    return ""


def find_taken_parameters(node):
    """Return the names of the parameters that follow from other keys, in all their spellings."""
    # An installed agent may have parameters of its own that are called like a key of ours.
    own = has_own_agent(node)
    taken = set(node.dialect.fixed) if own else set()
    for row in NODE_KEYS:
        if row.power and (own or row.name not in SPECIAL_KEYS):
            taken.update((row.power,) + PARAMS_BY_NAME[row.power].aliases)
    return taken


def check_mangled_values(cluster, node, report):
    if has_own_agent(node):
        return
    for key, text in node.values.items():
        if isinstance(text, str) and re.fullmatch(MANGLED_VALUE, text):
            report.error(node.places[key], "%s: fence agents cut off a space at the end of a value "
                         "and quotes around it (for a password, use password_script)" % key)


def check_password(cluster, node, report):
    longest = node.dialect.longest_password
    if longest and len(node.values.get("password", "").encode("utf-8")) > longest:
        report.warn(node.places["password"], "%s takes %d bytes of a password at most, and this is "
                    "longer: its BMC will refuse it, or know only its beginning"
                    % (node.dialect.title, longest))
    if "password" in node.values and "password_script" not in node.values:
        unchanged = "; and it still is CHANGEME" if "CHANGEME" in node.values["password"] else ""
        report.warn(node.places["password"], "pcs, the CIB and its backups will show this password "
                    "to root on every node (better: password_script: PROGRAM)" + unchanged)


def check_time_limits(cluster, node, report):
    """The limits of one of our agents must fit together."""
    if has_own_agent(node):
        limits = plan_times(cluster, node).power_limits
        key = "options" if "options" in node.places else "off_timeout"
        try:
            own = dict(node.dialect.fixed, power_meter=node.values.get("power_meter", ""))
            build_settings(dict(node.values["options"], **dict(limits, **own)), {})
        except UsageError as error:
            report.error(place_of(node, key), "%s: %s" % (key, error))


def check_off_timeout(cluster, node, report):
    """What Pacemaker gives must be longer than what the agents' own limits add up to."""
    times, place = plan_times(cluster, node), place_of(node, "off_timeout")
    if is_verified(cluster, node) and times.verify_given <= times.verify_needed:
        report.error(place, "off_timeout must be more than %d s: the verifier may take that long"
                     % times.verify_needed)
    if times.power_given <= times.power_needed:
        report.error(place, "off_timeout must be more than %d s: the agent's own limits and the "
                     "delay add up to that" % times.power_needed)


def check_with_agent(cluster, node, report):
    """Our own agent must take what it gets: what it refuses, it would refuse at every action."""
    if not has_own_agent(node) or report.has_errors():  # then it would say the same again
        return
    device = build_power_device(node, plan_times(cluster, node))
    agent = AGENTS[device.agent]
    values = {name: text for name, text in device.options.items() if not name.startswith("pcmk_")}
    values.setdefault("plug", node.values.get("outlet", node.name))
    values.update(nodename=node.name, action="off")
    # Before it is opened a device asks nobody: all that it needs is a place for its secrets.
    nowhere = types.SimpleNamespace(secrets=set())
    try:
        settings = agent.settings(collect_values(values.items(), agent.params)[0], agent.defaults)
        make_device(agent, settings, nowhere)
    except UsageError as error:
        report.error(node.place, "%s would refuse what it gets for %s: %s"
                     % (agent.name, node.name, error))


DEVICE_CHECKS = (
    check_required_keys, check_agent, check_one_outlet, check_status_keys, check_urls,
    check_options, check_mangled_values, check_password, check_time_limits, check_off_timeout,
    check_with_agent)


def check_size(cluster, report):
    place = cluster.places["stonith_nodes"]
    if len(cluster.nodes) < 2:
        report.error(place, "a cluster needs at least two nodes: one cannot fence itself")
    elif len(find_members(cluster)) < 2:
        report.error(place, "a cluster needs at least two nodes that are not remote: one cannot "
                     "fence itself, and remote nodes fence nobody")
    if not nodes_with_device(cluster):
        report.error(place, "no node has a fence device")


def check_names(cluster, report):
    devices = list_all_devices(cluster)
    owners = {name_verifier(device): "the verifier of " + device.name for device in devices}
    for device in devices:
        taken = owners.setdefault(name_power_device(device), "a device of " + device.name)
        if taken != "a device of " + device.name:
            report.error(device.place, "rename this node: its device would be %s, which is %s"
                         % (name_power_device(device), taken))
    for node in cluster.nodes:
        if re.search(LEVEL_SUFFIX, node.name):
            report.error(node.place, "rename this node: its device %s%s would look like one of "
                         "another level" % (DEVICE_PREFIX, node.name))


def check_levels(cluster, report):
    """Levels are such as Pacemaker takes, and what others have made is not ours."""
    own = {name for device in list_all_devices(cluster)
           for name in (name_power_device(device), name_verifier(device))}
    for node in cluster.nodes:
        if len(node.levels) > MOST_LEVELS:
            report.error(node.places["levels"], "levels: Pacemaker takes %d at most" % MOST_LEVELS)
        if node.levels and not list_devices(node):
            report.error(node.place, "%s has no fence device of its own: what others have made "
                         "needs none of fencetool" % node.name)
        named = {name for level in node.levels for name in level.before}
        for name in named & own:
            report.error(place_of(node, "before"), "before: %s is made by fencetool itself: give "
                         "its keys as one of the devices instead" % name)


def check_level_devices(cluster, report):
    """Tell what the devices of one level do to each other, and what nobody verifies."""
    for node in nodes_with_device(cluster):
        for number, level in enumerate(node.levels, 1):
            place = place_of(node, "levels")
            if not level.devices:
                report.warn(place, "%s: level %d is of %s alone: what succeeds there is believed, "
                            "and nobody verifies it (right for kdump; heuristics alone would call "
                            "every node dead)" % (node.name, number, ", ".join(level.before)))
            inside = [device for device in level.devices if device.dialect.is_inside]
            if inside and len(level.devices) > 1:
                report.warn(inside[0].place, "%s: a BMC that shares a level loses its own power "
                            "with the node's, and its verifier then reads nothing: give it a level "
                            "of its own (levels: [{...}, {...}])" % node.name)


def check_verification(cluster, report):
    for node in nodes_with_device(cluster):
        if is_verified(cluster, node):
            check_verifiers(cluster, node, report)
        elif "verify" in node.values and cluster.values["stonith_fence_verify"] == "1":
            report.warn(node.places["verify"], "nobody proves that %s is dead: its fence agent is "
                        "believed, and if that is wrong (another outlet, a welded relay, a second "
                        "power supply) two nodes write the same data" % node.name)


def check_verifiers(cluster, node, report):
    note = "; a remote node verifies nobody" if any(map(is_remote, cluster.nodes)) else ""
    if not node.networks:
        keys = ", ".join(row.name for row in NETWORK_KEYS)
        report.error(node.place, "nobody could verify that %s is dead: it has none of %s (add "
                     "them, or use --host-vars)" % (node.name, keys))
    elif not find_verifiers(cluster, node):
        report.error(node.place, "nobody could verify that %s is dead: no other node is in all its "
                     "networks (%s)%s" % (node.name, ", ".join(node.networks), note))


def check_nodes_without_device(cluster, report):
    for node in cluster.nodes:
        if not node.levels:
            report.warn(node.place, "%s counts as a cluster node and has no fence device: if it "
                        "fails, nothing is recovered until somebody confirms that it is down (pcs "
                        "stonith confirm %s)" % (node.name, node.name))


def check_keys(cluster, report):
    """Each key is one that the device's method takes."""
    without = [node for node in cluster.nodes if not {DEVICES, LEVELS} & set(node.places)
               and not node.levels]
    taken = [(device, device.dialect.method, device.dialect.keys)
             for device in list_all_devices(cluster)] + [(node, NO_DEVICE, ()) for node in without]
    for device, method, keys in taken:
        for key in (SPECIAL_KEYS & set(device.values)) - set(keys):
            report.error(device.places[key], "%s has no meaning for method %s (remove it)"
                         % (key, method))
        if not keys and method == NO_DEVICE and device.values.get("before"):
            report.error(device.places["before"], "before has no meaning for method %s (remove it)"
                         % method)


def check_addresses(cluster, report):
    """Own addresses are single, and nobody's fence device has one of them."""
    owners = {}
    for node in cluster.nodes:
        for address in node.networks.values():
            if address in owners:
                report.error(node.place, "%s and %s have the same address %s"
                             % (owners[address].name, node.name, address))
            owners[address] = node
    for device in list_all_devices(cluster):
        owner = owners.get(device.values.get("ip"))
        if owner and owner.name == device.name:
            report.error(device.places["ip"], "the fence device of %s has the address of the node "
                         "itself, which cannot fence itself" % device.name)
        elif owner:
            report.error(device.places["ip"], "the fence device of %s has the address of %s"
                         % (device.name, owner.name))


def check_shared_devices(cluster, report):
    """Nodes on one device, and devices of one level, must be on outlets that differ."""
    users = {}  # {device: [(node, level, port, outlets)] of those before}
    for node in nodes_with_device(cluster):
        for level in node.levels:
            for device in level.devices:
                key, port, outlets = find_outlets(device)
                for other, other_level, other_port, other_outlets in users.setdefault(key, []):
                    is_apart = other is node and other_level is not level
                    if is_apart or not (could_share(port, other_port)
                                        and could_share(outlets, other_outlets)):
                        continue
                    report_shared(other, device, report)
                users[key].append((node, level, port, outlets))


def report_shared(other, device, report):
    shown = device.values.get("ip", device.dialect.method)
    if other.name == device.name:
        told = "two devices of %s are the same outlet of %s" % (device.name, shown)
    else:
        told = "%s and %s are on the same outlet of %s" % (other.name, device.name, shown)
    report.error(place_of(device, "ip"), told + ", or one of them names no outlet (give each its "
                 "own)")


def find_outlets(node):
    """Return (device, {port}, {outlet}) that nodes have in common which are switched together."""
    # Outlets have several spellings; without an address (a cloud) the agent is the device. A text
    # with commas may be a list, or the name of one outlet.
    given = [node.values[key] for key in OUTLET_KEYS if key in node.values]
    texts = [re.sub("^https?://[^/:]*(:%d)?(?=/)" % HTTP_PORT, "", text) for text in given]
    if "power_off_url" in node.values:
        texts = ["".join(texts)]  # one URL may switch many, by what its body says
    else:
        texts += split_list(",".join(texts))
    outlets = {render_identifier(text) for text in texts}
    ports = {node.values["port"]} if "port" in node.values else set()
    if "ip" in node.values:
        return node.values["ip"], ports, outlets
    options = sorted(node.values["options"].items())
    device = node.values.get("agent"), str(options)
    return device, ports, outlets or {render_identifier(node.name)}


def could_share(some, others):
    return not some or not others or bool(some & others)


def check_networks(cluster, report):
    for key in ("stonith_direct_networks", "stonith_witness_ips"):
        for name in cluster.values[key]:
            if not find_networks(cluster, name):
                report.error(cluster.places[key], "%s: no node has a network %s%s" % (
                    key, quote_own(name), suggest(name, cluster.networks.values())))
    for network in find_direct_networks(cluster):
        if sum(network in node.networks for node in cluster.nodes) > 2:
            report.error(cluster.places["stonith_direct_networks"], "stonith_direct_networks: more "
                         "than two nodes are in the network %s, and one cable has two ends"
                         % quote_own(network))


def check_race(cluster, report):
    if not could_race(cluster):
        return
    first, second = find_members(cluster)
    place = cluster.places["stonith_nodes"]
    if not has_delay(cluster):
        report.warn(place, "two nodes without a quorum device could fence each other at once: "
                    "fencing %s waits %d s, so that it survives (a delay on either node decides "
                    "otherwise)" % (first.name, find_delay(cluster, first)))
    elif find_delay(cluster, first) == find_delay(cluster, second):
        report.warn(place, "both nodes have the same delay, and could fence each other at once "
                    "(give one of them a longer one)")


def check_early_exit(cluster, report):
    seconds = int(cluster.values["stonith_early_exit"])
    if 0 < seconds < SHORTEST_PROOF_SECONDS:
        report.error(cluster.places["stonith_early_exit"], "stonith_early_exit must be 0 or %d or "
                     "more: a shorter silence proves nothing" % SHORTEST_PROOF_SECONDS)


CLUSTER_CHECKS = (
    check_size, check_names, check_nodes_without_device, check_keys, check_addresses,
    check_shared_devices, check_networks, check_race, check_early_exit, check_levels,
    check_level_devices, check_verification)


# SECTION: PCS DEVICES -----------------------------------------------------------------------------
# What is the same in every script for pcs: a fixed head of shell functions. OUTPUTS puts the lists
# and commands of one cluster behind it.

# All is in functions that the last lines call: half a script does nothing.
PCS_HEAD = r"""#!/bin/sh
# Run it as root on one node of the cluster, and again after every change of the cluster file. In a
# copy of the cluster's configuration it makes anew what it has made before, and it hands in the
# difference as one change at the end: when anything fails, the cluster keeps what it has, and it is
# at no moment without its fencing.
#   --dry-run   show what would change, and change nothing
#   --cib FILE  work on a CIB in a file instead of the cluster's: a rehearsal
#   --adopt     take over devices of the same names, and levels, that somebody else has made

# Values stand in single quotes on purpose; lists of ids and nodes hold no blanks.
# shellcheck disable=SC1003,SC2016,SC2086
set -eu
set -f
umask 077
export LC_ALL=C.UTF-8

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# end CODE: it is the last that the script does.
end() {
    rm -rf "$work"
    [ "$1" -eq 0 ] || [ -n "$pushed" ] || echo "Nothing has been changed." >&2
}

# query OPTION...: call cibadmin for the copy. What it says of a failure may hold the whole CIB.
query() {
    code=0
    CIB_file=$copy cibadmin "$@" >"$work/answer" 2>"$work/problem" || code=$?
    if [ "$code" -ne 0 ] && [ "$code" -ne 105 ]; then # 105: there is none
        fail "$(grep . "$work/problem" | tail -n 1) (cibadmin $*)"
    fi
}

# find_values XPATH ELEMENT ATTRIBUTE: put the attribute of what the copy has there into $found.
find_values() {
    query --query --xpath "$1"
    found=$(sed -n "s/^ *<$2 \(.* \)*$3=\"\([^\"]*\)\".*/\2/p" "$work/answer")
}

# is_among WORD WORD...: whether the first is one of the others.
is_among() {
    word=$1
    shift
    case " $* " in *" $word "*) ;; *) return 1 ;; esac
}

read_options() {
    file="" dry_run=no adopted=""
    while [ $# -gt 0 ]; do
        case $1 in
        --dry-run) dry_run=yes ;;
        --adopt) adopted=$devices ;;
        --cib) file=${2:?--cib needs a file} && shift ;;
        *)
            sed -n '/^# Run it/,/^$/s/^# //p' "$0" >&2
            exit 2
            ;;
        esac
        shift
    done
}

copy_cib() {
    work=$(mktemp -d) pushed=""
    trap 'end $?' EXIT
    trap 'exit 1' HUP INT TERM
    before=$work/before.xml copy=$work/after.xml
    if [ -n "$file" ]; then cp "$file" "$before"; else pcs cluster cib "$before"; fi
    cp "$before" "$copy"
}

# create DEVICE AGENT WORD...: pcs says on stderr what is wrong.
create() {
    pcs -f "$copy" stonith create "$@" && return
    if ! command -v "$2" >/dev/null; then
        fail "the agent $2 of $1 is not installed on this node: install it on every node" \
            "(fencetool's own: sh install.sh; others are in the packages fence-agents*)"
    fi
    fail "pcs could not make $1"
}

# check_value DEVICE NAME VALUE: Pacemaker 2.0 stores what is not ASCII damaged, and says nothing.
check_value() {
    stored=$(CIB_file=$copy crm_resource --resource "$1" --get-parameter "$2" 2>"$work/problem") ||
        fail "cannot read $2 of $1 back: $(tail -n 1 "$work/problem")"
    [ "$stored" = "$3" ] || fail "this version of Pacemaker stores $2 of $1 damaged:" \
        "write it in ASCII (a password: password_script)"
}

# What was made before, by its mark, goes with all that hangs on it; configure makes it anew.
remove_own() {
    find_values "//primitive[meta_attributes/nvpair[@name='${mark%=*}' and @value='${mark#*=}']]" \
        primitive id
    own="$found $adopted"
    refuse_mixed_levels
    query --query --xpath "//resources/*[.//primitive[@class='stonith']][not(@class)] | //tag |
        //constraints/*[not(self::rsc_location[@rsc])] | //acl_permission[@reference]"
    users=$(cat "$work/answer")
    find_values "//rsc_location[not(starts-with(@id, '${mark#*=}-'))]" rsc_location rsc
    constrained=$found
    for id in $own; do
        [ -z "$users" ] || refuse_uses_of "$id"
        if is_among "$id" $constrained; then set_constraints_aside "$id"; fi
        find_index "$id"
        for part in \
            "fencing-level[@index=$index][contains(concat(',', @devices, ','), ',$id,')]" \
            "rsc_location[@rsc='$id']" "primitive[@id='$id']"; do
            query --delete-all --force --xpath "//$part"
        done
    done
    for level in $placed_alone; do
        remove_level "${level%:*}" "[@devices='${level##*:}']"
    done
    if [ -n "$adopted" ]; then
        for level in $levels; do
            remove_level "$level" ""
        done
    fi
}

# remove_level NODE:NUMBER CONDITION
remove_level() {
    query --delete-all --force \
        --xpath "//fencing-level[@target='${1%:*}'][@index='${1#*:}']$2"
}

# find_index ID: put the number of the level that a device of ours is made for into $index.
find_index() {
    index=1
    case $1 in *-level[2-9] | *-level[2-9]-device*)
        index=${1##*-level}
        index=${index%%-*}
        ;;
    esac
}

# A level that holds a device of ours which was made for it is ours. The file knows what else is in.
refuse_mixed_levels() {
    indexes=""
    for id in $own; do
        find_index "$id"
        is_among "$index" $indexes || indexes="$indexes $index"
    done
    for number in $indexes; do
        find_values "//fencing-level[@index=$number]" fencing-level devices
        for ids in $found; do
            ids=$(echo "$ids" | tr , ' ')
            refuse_mixed_level $ids
        done
    done
}

refuse_mixed_level() {
    is_ours=no stranger=""
    for id in "$@"; do
        find_index "$id"
        if is_among "$id" $own; then
            [ "$index" != "$number" ] || is_ours=yes
        elif ! is_among "$id" $placed_before; then
            stranger=$id
        fi
    done
    if [ "$is_ours" = yes ] && [ -n "$stranger" ] && [ -z "$adopted" ]; then
        fail "$stranger stands in the level of $*, and fencetool has not put it there: name it in" \
            "the cluster file (before: [$stranger]), or let --adopt take it out"
    fi
}

# Devices of others that the file puts into levels: what they are, the file cannot tell.
check_others() {
    [ -n "$placed_before" ] || return 0
    find_values "//primitive[@class='stonith' or @template]" primitive id
    for id in $placed_before; do
        is_among "$id" $found ||
            fail "there is no fence device $id, named in the cluster file (before): make it first"
    done
    find_agents fence_heuristics
    for level in $placed_alone; do
        for id in $(echo "${level##*:}" | tr , ' '); do
            is_among "$id" $found || continue 2
        done
        fail "level ${level%:*} is of heuristics alone (${level##*:}), and would pass for a fence" \
            "that nobody has made: take it out, or give it a device"
    done
    find_agents fence_kdump
    for id in $found; do
        if is_among "$id" $placed_with_ours; then
            echo "warning: $id waits for a crash dump: its level fails when the node has died in" \
                "another way, and the power device ends the dump; give it a level of its own" >&2
        fi
    done
}

# find_agents NAME: put the ids of the devices whose agent begins so into $found.
find_agents() {
    find_values "//primitive[starts-with(@type, '$1')
        or @template=//template[starts-with(@type, '$1')]/@id]" primitive id
}

# Remote and guest nodes run no fence device. What follows from that is decided from the file.
refuse_remote_nodes() {
    grep -q remote "$copy" || return 0
    find_values "//nodes/node[@type='remote']" node uname
    remote_nodes=$found
    find_values "//primitive[(@provider='pacemaker' and @type='remote')
        or @template=//template[@provider='pacemaker' and @type='remote']/@id]" primitive id
    remote_nodes="$remote_nodes $found"
    find_values "//meta_attributes/nvpair[@name='remote-node']" nvpair value
    for node in $remote_nodes $found; do
        if is_among "$node" $known_nodes && ! is_among "$node" $remotes; then
            fail "$node is a remote or guest node, which fences and verifies nobody: give it" \
                "remote: true in the cluster file, and make this script anew"
        fi
    done
}

# A device cannot be made anew while something else in the configuration needs it.
refuse_uses_of() {
    query --query --xpath "//resources/*[.//primitive/@id='$1'][not(@id='$1')] |
        //constraints/*[@rsc='$1' or @with-rsc='$1' or @first='$1' or @then='$1' or
        .//resource_ref/@id='$1'][not(self::rsc_location[@rsc])] |
        //tag[obj_ref/@id='$1'] | //acl_permission[@reference='$1']"
    user=$(sed -n 's/^ *<\([a-z_]*\) \(.* \)*id="\([^"]*\)".*/\1 \3/p' "$work/answer" | head -n 1)
    if [ -n "$user" ]; then
        fail "$1 is in $user, which fencetool has not made: remove it there" \
            "(cibadmin --query --xpath \"//*[@id='${user#* }']\" shows it)"
    fi
}

# Where else a device may run is for others to say, too.
set_constraints_aside() {
    others="//rsc_location[@rsc='$1'][not(starts-with(@id, '${mark#*=}-'))]"
    find_values "$others" rsc_location id
    if [ -n "$found" ] && is_among "$1" $devices; then
        sed '/xpath-query/d' "$work/answer" >"$work/constraints-of-$1"
    elif [ -n "$found" ]; then
        echo "warning: $1 goes, and what others have made for it goes too:" $found >&2
    fi
}

# place DEVICE NODE...: keep it from these nodes. What others have set aside for it comes back.
place() {
    device=$1 wanted="" old="" named=""
    shift
    if [ -e "$work/constraints-of-$device" ]; then
        wanted=$(cat "$work/constraints-of-$device")
        named=$(printf '%s\n' "$wanted" | sed -n 's/^ *<rsc_location .* node="\([^"]*\)".*/\1/p')
    fi
    for node in "$@"; do
        add_constraint ban -INFINITY
        # COMPAT: up to 0.1.0 they were called as pcs calls those of anybody.
        old="$old or @id='location-$device-$node--INFINITY'"
    done
    if [ "$is_opt_in" = yes ]; then # there a device runs nowhere unless it is allowed to
        for node in $members; do
            is_among "$node" "$@" $named || add_constraint allow 0
        done
    fi
    printf '<constraints>%s</constraints>' "$wanted" >"$work/constraints"
    query --modify --allow-create --scope constraints --xml-file "$work/constraints"
    if [ -e "$work/constraints-of-$device" ]; then
        query --delete-all --force --xpath "//rsc_location[@rsc='$device'][${old# or }]"
        warn_of_constraints
    fi
}

add_constraint() {
    wanted="$wanted<rsc_location id=\"${mark#*=}-$1-$device-$node\" rsc=\"$device\""
    wanted="$wanted node=\"$node\" score=\"$2\"/>"
}

warn_of_constraints() {
    find_values "//rsc_location[@rsc='$device'][not(starts-with(@id, '${mark#*=}-'))]
        [starts-with(@score, '-') or rule]" rsc_location id
    for id in $found; do
        echo "warning: $id was not made by fencetool: it may keep $device from a node" >&2
    done
}

refuse_names_that_are_taken() {
    find_values //primitive primitive id
    for id in $found; do
        if is_among "$id" $devices; then
            fail "$id was not made by fencetool: rename it, or take it over with --adopt"
        fi
    done
    for index in 1 2 3 4 5 6 7 8 9; do
        case " $levels " in *":$index "*) ;; *) continue ;; esac
        find_values "//fencing-level[@index='$index']" fencing-level target
        for node in $found; do
            if is_among "$node:$index" $levels; then
                fail "level $index of $node was not made by fencetool: remove it first (pcs" \
                    "stonith level); devices that are to come first, name in the file (before)"
            fi
        done
    done
}

warn_of_levels() {
    others="not(@target) or @index!=1 and not(contains(@devices, '$verifier_prefix'))"
    find_values "//fencing-level[$others]" fencing-level id
    for id in $found; do # it is tried when level 1 fails; one for a pattern of nodes never is
        echo "warning: level $id was not made by fencetool: nobody verifies what it fences" >&2
    done
}
"""


# SECTION: PCS CLUSTER -----------------------------------------------------------------------------
# The rest of that head: what the script finds out about the cluster, the cluster's options, and how
# all of it is handed in.

PCS_CLUSTER = r"""
# Nodes that the cluster file does not know are kept from verifying: nobody knows what they see.
find_strangers() {
    strangers=""
    find_values //nodes/node node uname
    for node in $found; do
        if ! is_among "$node" $known_nodes; then
            strangers="$strangers $node"
            echo "warning: node $node is not in the cluster file: it gets no fence device" >&2
        fi
    done
    for node in $known_nodes; do
        is_among "$node" $found $remotes || # a remote node has its entry only once it has run
            echo "warning: node $node is in the cluster file, but not in the cluster" >&2
    done
}

# What the cluster says of itself: its members, and whether what may run must be allowed to.
find_members() {
    find_values "//nodes/node[not(@type) or @type='member' or @type='normal']" node uname
    members=$found is_opt_in=no
    find_values "//cluster_property_set/nvpair[@name='symmetric-cluster']" nvpair value
    for value in $found; do
        case $value in [Ff]* | [Nn]* | [Oo][Ff]* | 0) is_opt_in=yes ;; esac
    done
}

# Two members that fence each other at once both die, unless one of them has to wait.
decide_race() {
    set -- $members
    [ $# -eq 2 ] && is_among "$1" $targets && is_among "$2" $targets || return 0
    find_values "//crm_config//nvpair[@name='priority-fencing-delay']" nvpair value
    case $found in
    "" | 0 | 0[!0-9]*) ;;
    *)
        [ -z "$racers" ] || echo "note: priority-fencing-delay=$found decides fence races where" \
            "the nodes differ in the priority of what they run: no delay is added" >&2
        [ -z "$delayed" ] || echo "warning: the delay of $delayed comes on top of that: both" \
            "nodes could wait alike" >&2
        return 0
        ;;
    esac
    for node in $racers; do
        if is_among "$node" "$@"; then
            find_head_start "$node"
            pcs -f "$copy" stonith update $changes
            needed=${changes#*pcmk_off_timeout=}
            [ "$longest" -ge "${needed%% *}" ] || longest=${needed%% *}
            echo "note: of two members without a quorum device $node survives a fence race:" \
                "fencing it waits" >&2
            return 0
        fi
    done
}

# Since 3.0.2, Pacemaker calls these options fencing-*. Where one is set by its new name, the old
# one does not count. Where both say the same nobody may know which counts, and both are set.
find_names() {
    families=stonith
    find_values "//crm_config//nvpair[@name='stonith-enabled']" nvpair value
    old=$found
    find_values "//crm_config//nvpair[@name='fencing-enabled']" nvpair value
    new=$found
    find_values "//crm_config//nvpair[starts-with(@name, 'fencing-')]" nvpair name
    if crm_attribute --list-options=cluster --all --output-as=xml 2>/dev/null |
        grep -q 'name="fencing-enabled"'; then
        families=fencing
    elif [ -n "$new" ] && [ "$new" = "$old" ]; then
        families="stonith fencing"
    elif [ -n "$found" ]; then
        families=fencing
    fi
}

# find_seconds TIME: put what Pacemaker takes it for into $seconds; fail where nobody could.
find_seconds() {
    digits=$(printf '%s\n' "$1" | sed -n 's/^ *0*\([0-9][0-9]*\) *[A-Za-z]*$/\1/p')
    unit=$(printf '%s\n' "$1" | sed 's/^[ 0-9]*//' | tr '[:upper:]' '[:lower:]')
    case ${digits:+$unit} in
    "") [ -n "$digits" ] && seconds=$digits ;;
    s | sec) seconds=$digits ;;
    m | min) seconds=$((digits * 60)) ;;
    h | hr) seconds=$((digits * 3600)) ;;
    ms | msec) seconds=$((digits / 1000)) ;;
    us | usec) seconds=$((digits / 1000000)) ;;
    *) return 1 ;;
    esac
}

# Fencing is switched on. Its time limit is raised, and never lowered: devices of others need it.
enable_fencing() {
    limit=${longest}s
    for name in stonith-timeout fencing-timeout; do
        find_values "//crm_config//nvpair[@name='$name']" nvpair value
        while read -r value; do
            if [ -n "$value" ] && ! find_seconds "$value"; then
                echo "warning: $name=$value stays: it should be ${longest}s or more" >&2
                limit=$value
            elif [ -n "$value" ] && [ "$seconds" -gt "$longest" ]; then
                longest=$seconds limit=$value
            fi
        done <<END
$found
END
    done
    set --
    for family in $families; do
        set -- "$@" "$family-enabled=true" "$family-timeout=$limit"
    done
    # With --force pcs writes the new names, too, of which older versions of it know nothing.
    pcs -f "$copy" property set --force "$@" 2>"$work/problem" || fail "$(cat "$work/problem")"
    if [ "$families" = fencing ]; then
        query --delete-all --force --xpath \
            "//crm_config//nvpair[@name='stonith-enabled' or @name='stonith-timeout']"
    fi
    find_values "//cluster_property_set[nvpair[@name='stonith-enabled' or @name='fencing-enabled']
        [@value!='true']]" cluster_property_set id
    if [ -n "$found" ]; then # whichever of several sets counts, this one must not
        fail "the cluster options in $found say that fencing is not enabled: remove that"
    fi
}

# Fencing that only switches off powers nobody on again.
warn_of_action() {
    action=reboot
    for name in stonith-action fencing-action; do
        find_values "//crm_config//nvpair[@name='$name']" nvpair value
        if [ -n "$found" ]; then action=$found action_name=$name; fi
    done
    if [ "$action" != reboot ] && [ -n "$coming_back" ]; then
        echo "warning: $action_name=$action: these stay off after a fence, whatever power_on" \
            "says: $coming_back (pcs property set $action_name=reboot)" >&2
    fi
}

prepare() {
    read_options "$@"
    copy_cib
    refuse_remote_nodes
    remove_own
    refuse_names_that_are_taken
    check_others
    warn_of_levels
    find_strangers
    find_members
    find_names
    warn_of_action
}

# Levels of others are theirs, and pcs has judged ours as it added them. One that needs what is not
# there does nothing any more, and keeps nothing from being configured.
warn_of_stale_levels() {
    find_values //primitive primitive id
    ids=$found
    find_values //fencing-level fencing-level devices
    for device in $(echo "$found" | tr , '\n' | sort -u); do
        is_among "$device" $ids ||
            warn_of_stale_level "no device $device" \
                "contains(concat(',', @devices, ','), ',$device,')"
    done
    warn_of_stale_level "no such node" "@target and not(@target=//nodes/node/@uname)"
}

warn_of_stale_level() {
    find_values "//fencing-level[$2]" fencing-level id
    for id in $found; do
        echo "warning: level $id is stale, for there is $1: remove it" \
            "(cibadmin --delete --xpath \"//fencing-level[@id='$id']\")" >&2
    done
}

# tell_in_words: what would change, where fencetool is here and knows how to tell it.
tell_in_words() {
    tool=$(command -v fencetool || readlink -f "$(command -v fence_check)" 2>/dev/null) || tool=""
    case $tool in
    */fencetool | */fencetool.py)
        "$tool" check-config --cib "$work/before.xml" --plan "$work/after.xml" 2>/dev/null || true
        ;;
    esac
}

finish() {
    warn_of_stale_levels
    for state in before after; do # sorted: what was made when does not matter
        copy=$work/$state.xml query --query --scope configuration
        sort "$work/answer" >"$work/$state"
    done
    if cmp -s "$work/before" "$work/after"; then
        echo "Nothing to change." >&2
        return
    fi
    tell_in_words
    diff -U 0 "$work/before" "$work/after" |
        sed -e '/name="[^"]*_script"/b' \
            -e '/name="[^"]*\(@secrets@\)[^"]*"/s/ value="[^"]*/ value="***/' \
            -e 's,//[^/"]*@,//***@,g'
    if [ "$dry_run" = yes ]; then
        echo "Nothing has been changed: this is what would change." >&2
    elif [ -n "$file" ]; then
        cp "$copy" "$file.new"
        pushed=$file
        mv "$file.new" "$file"
    else
        pushed=cluster
        # What it says of a failure may hold the whole CIB.
        pcs cluster cib-push "$copy" diff-against="$before" >"$work/answer" 2>&1 ||
            { grep '^Error\|^Call' "$work/answer" >&2; exit 1; } # --dry-run tells what came through
    fi
}
""".replace("@secrets@", r"\|".join(SECRET_NAMES + ("_url", "_body", "headers", FENCE_OPTIONS)))


# SECTION: OUTPUTS ---------------------------------------------------------------------------------
# From what the cluster should hold to texts: a script for pcs, crmsh, CIB XML, nftables, Ansible.
# Pure.
#
# OUTPUTS, at the end, has one row a format: build_ takes what is written from the Cluster (mostly
# the Configuration), and render_ makes the text, with the name of the cluster file in its first
# line.


def render_pcs(configuration, source):
    head = (PCS_HEAD + PCS_CLUSTER).split("\n")
    head[1:1] = [render_banner(source, "configure-stonith.sh"), SECRETS_NOTE]
    lines = ["%s='%s'" % item for item in build_lists(configuration)] + ["", "configure() {"]
    for device in configuration.primitives:
        lines += wrap_words(
            ["create", device.id, device.agent]
            + [render_sh("%s=%s" % option) for option in device.options.items()]
            + ["op monitor interval=%ds timeout=%ds" % (device.interval, monitor_timeout(device)),
               "meta"] + ["%s=%s" % pair for pair in configuration.meta])
        for name, value in device.options.items():
            if max(value) > "~":
                lines += wrap_words(["check_value", device.id, name, render_sh(value)])
    for ban in configuration.bans:
        strangers = ("$strangers",) if ban.is_verifier else ()
        lines += wrap_words(("place", ban.device) + ban.nodes + strangers)
    for level in configuration.levels:
        lines += wrap_words(('pcs -f "$copy" stonith level add %d' % level.index, level.node)
                            + level.devices)
    lines += ["    decide_race", "    enable_fencing", "}", ""]
    lines += render_head_starts(configuration) + ['prepare "$@"', "configure", "finish", ""]
    return "\n".join(head + lines)


def render_head_starts(configuration):
    """Return the shell function that puts into $changes what gives a node a head start."""
    lines = ["find_head_start() {", "    changes=''", "    case $1 in"]
    for row in configuration.head_starts:
        options = " ".join("%s=%s" % option for option in row.options.items())
        lines.append("    %s) changes='%s %s' ;;" % (row.node, row.device, options))
    return lines + ["    esac", "}", ""]


def find_coming_back(configuration):
    """Return the names of the nodes that are powered on again after a fence by any level."""
    off = {device.id for device in configuration.primitives
           if device.options.get("pcmk_reboot_action") == "off"}
    staying = {level.node for level in configuration.levels if off & set(level.devices)}
    fenced = {level.node for level in configuration.levels}
    return [name for name in configuration.nodes if name in fenced - staying]


def build_lists(configuration):
    """Return [(variable of the script, its words)].

    placed_*: of devices that others have made, and that the file puts into levels.
    """
    own = [device.id for device in configuration.primitives]
    split = [(level, [name for name in level.devices if name not in own])
             for level in configuration.levels]
    alone = ["%s:%d:%s" % (level.node, level.index, ",".join(names))
             for level, names in split if len(names) == len(level.devices)]
    mixed = {name for level, names in split for name in names if len(names) < len(level.devices)}
    placed = sorted({name for _, names in split for name in names})
    levels = ["%s:%d" % level[:2] for level in configuration.levels]
    racers = [row.node for row in configuration.head_starts]
    delayed = [device.id for device in configuration.primitives
               if "pcmk_delay_base" in device.options]
    fenced = {level.node for level in configuration.levels}
    targets = [name for name in configuration.nodes if name in fenced]
    lists = (("mark", ["=".join(OWNER)]), ("verifier_prefix", [VERIFIER_PREFIX]),
             ("known_nodes", configuration.nodes), ("remotes", configuration.remotes),
             ("targets", targets), ("levels", levels), ("devices", own),
             ("coming_back", find_coming_back(configuration)), ("delayed", delayed),
             ("racers", racers),
             ("longest", [str(find_longest(configuration.primitives))]),
             ("placed_before", placed),
             ("placed_alone", alone), ("placed_with_ours", sorted(mixed)))
    return [(name, " ".join(words)) for name, words in lists]


SECRETS_NOTE = "# It may hold passwords: mode 0700, and not into a repository."


def render_banner(source, what):
    return "# %s, made by fencetool %s from %s." % (what, __version__, one_line(source))


def render_sh(text):
    """Return text as one word of a shell command."""
    safe = re.fullmatch("[A-Za-z0-9_./:=,@%+-]+", text)
    return text if safe else "'%s'" % text.replace("'", r"'\''")


def wrap_words(words):
    """Return shell words as the lines of one indented command."""
    lines = ["   "]
    for word in words:
        if len(lines[-1]) + len(word) > 95:
            lines[-1] += " \\"
            lines.append("       ")
        lines[-1] += " " + word
    return lines


def render_crmsh(configuration, source):
    """Return lines for `crm configure load update`, which removes nothing but levels."""
    lines = [render_banner(source, "Fencing, for: crm configure load update FILE"), SECRETS_NOTE,
             "# fencing_topology replaces ALL fencing levels of the cluster, those of others too.",
             "# From Pacemaker 3.0.2 on, write fencing-enabled and fencing-timeout instead, unless",
             "# crmsh does so itself. Where the cluster has a longer timeout, keep that."]
    lines += [render_crmsh_primitive(device, configuration.meta)
              for device in configuration.primitives]
    lines += ["location %s %s -inf: %s" % (ban_id(ban, node), ban.device, node)
              for ban in configuration.bans for node in ban.nodes]
    # In fencing_topology a comma means the same level, and a blank the next one.
    levels = ["%s%s" % ("%s: " % level.node if level.index == 1 else "", ",".join(level.devices))
              for level in configuration.levels]
    properties = ["%s=%s" % item for item in configuration.properties]
    return "\n".join(lines + [" ".join(["fencing_topology"] + levels),
                              " ".join(["property"] + properties), ""])


def render_crmsh_primitive(device, meta):
    words = ["primitive %s stonith:%s params" % (device.id, device.agent)]
    for name, value in device.options.items():
        if max(value) > "~" or re.search(r'\\(["\\]|$)', value):
            raise FenceError("crmsh 4.4 cannot store %s of %s: it has a non-ASCII character, or a "
                             "backslash at its end or before a quote (use --format pcs or cib)"
                             % (name, device.id))
        words.append('%s="%s"' % (name, re.sub(r'(["\\])', r"\\\1", value)))
    words.append("op monitor interval=%ds timeout=%ds meta" % (
        device.interval, monitor_timeout(device)))
    return " ".join(words + ["%s=%s" % pair for pair in meta])


def render_cib(configuration, source):
    """Return the configuration as a CIB, with the ids that pcs gives; XML has no first line."""
    lines = ['<cib validate-with="pacemaker-3.0" admin_epoch="0" epoch="1" num_updates="0">',
             "<configuration>", '<crm_config><cluster_property_set id="cib-bootstrap-options">',
             render_nvpairs("cib-bootstrap-options", name_in_both_ways(configuration.properties)),
             "</cluster_property_set></crm_config>", "<nodes/>", "<resources>"]
    for device in configuration.primitives:
        lines += render_cib_primitive(device, configuration.meta)
    lines += ["</resources>", "<constraints>"]
    lines += ['<rsc_location id="%s" node="%s" rsc="%s" score="-INFINITY"/>'
              % (ban_id(ban, node), node, ban.device)
              for ban in configuration.bans for node in ban.nodes]
    lines += ["</constraints>", "<fencing-topology>"]
    lines += ['<fencing-level id="fl-%s-%d" index="%d" target="%s" devices="%s"/>'
              % (level.node, level.index, level.index, level.node, ",".join(level.devices))
              for level in configuration.levels]
    return "\n".join(lines + ["</fencing-topology>", "</configuration>", "<status/>", "</cib>", ""])


def name_in_both_ways(properties):
    """Return cluster options under their names up to Pacemaker 3.0.1, and under those since."""
    # Where it knows the new ones, those alone count; before, it ignores them.
    return properties + tuple((name.replace(OLD_PREFIX, NEW_PREFIX), value)
                              for name, value in properties)


def render_cib_primitive(device, meta):
    lines = ['<primitive id="%s" class="stonith" type="%s">' % (device.id, device.agent)]
    for kind, pairs in (("instance_attributes", device.options.items()),
                        ("meta_attributes", meta)):
        set_id = "%s-%s" % (device.id, kind)
        lines.append('<%s id="%s">%s</%s>' % (kind, set_id, render_nvpairs(set_id, pairs), kind))
    monitor = '<op id="%s-monitor-interval-%ds" interval="%ds" name="monitor" timeout="%ds"/>' % (
        device.id, device.interval, device.interval, monitor_timeout(device))
    return lines + ["<operations>%s</operations>" % monitor, "</primitive>"]


def render_nvpairs(set_id, pairs):
    return "".join('<nvpair id="%s-%s" name="%s" value="%s"/>' % (
        set_id, name, name, escape_xml(value)) for name, value in pairs)


def render_nftables(firewall, source):
    """Return a table for one node: it reaches the fence devices of the others and not its own."""
    # COMPAT: for nft 0.9 (Debian 11), to which a chain's name "out" is a word of its own.
    lines = [render_banner(source, "Firewall of %s, for: nft -f FILE" % firewall.node),
             "# It closes the node's own fence device, unless that switches other nodes too. What",
             "# another table drops stays dropped.",
             "table inet fence_guard", "delete table inet fence_guard",
             "table inet fence_guard {", "    chain output {",
             "        type filter hook output priority -10; policy accept;"]
    for verdict, addresses in (("reject", firewall.closed), ("accept", firewall.opened)):
        for address in addresses:
            family = "ip6" if ":" in address else "ip"
            lines.append("        %s daddr %s counter %s" % (family, address, verdict))
    return "\n".join(lines + ["    }", "}", ""])


ANSIBLE_PLAY = """
- name: Fencing with fencetool
  hosts: %s
  become: true
  tasks:
    - name: Make a directory for what is to be installed
      ansible.builtin.file: {path: /root/fencetool, state: directory, mode: "0700"}
    - name: Copy fencetool and its installer
      ansible.builtin.copy: {src: "{{ item }}", dest: /root/fencetool/, mode: "0600"}
      loop: [fencetool.py, install.sh]
    - name: Install fencetool
      ansible.builtin.command: sh /root/fencetool/install.sh
      register: installed
      changed_when: "'nothing to do' not in installed.stdout"
    - name: Copy the fencing configuration to one node
      ansible.builtin.copy: {src: configure-stonith.sh, dest: /root/, mode: "0700"}
      diff: false
      run_once: true
    - name: Configure the fencing of the cluster
      ansible.builtin.command: /root/configure-stonith.sh
      register: configured
      changed_when: "'Nothing to change.' not in configured.stderr"
      run_once: true
"""


def render_ansible(configuration, source):
    """Return a playbook that installs this tool on all members and runs the script on the first."""
    lines = [render_banner(source, "Playbook"), "# Beside it: fencetool.py, install.sh, and "
             "configure-stonith.sh (gen-config -o configure-stonith.sh)."]
    members = [node for node in configuration.nodes if node not in configuration.remotes]
    return "\n".join(lines) + ANSIBLE_PLAY % json.dumps(",".join(members))


# The formats of gen-config: (build, render). What is for one node is built for its name too.
OUTPUTS = {
    "pcs": (build_script_configuration, render_pcs), "crmsh": (build_configuration, render_crmsh),
    "cib": (build_configuration, render_cib), "nftables": (build_firewall, render_nftables),
    "ansible": (build_configuration, render_ansible)}
NODE_OUTPUTS = ("nftables",)


def render_output(form, cluster, node, source):
    """Return the text of one format; node: the name of the one that a NODE_OUTPUT is for."""
    build, render = OUTPUTS[form]
    plan = build(cluster, node) if form in NODE_OUTPUTS else build(cluster)
    return render(plan, source)


# SECTION: CIB -------------------------------------------------------------------------------------
# What a CIB holds of fencing. Pure.
#
# parse_fencing makes of any CIB one element for each thing that has a value.

# kind, owner, name: a device and one of its PARAMETERS; a target and the index of a LEVEL.
Element = namedtuple("Element", "kind owner name")
AGENT, PARAMETER, META, OPERATION = "agent", "parameter", "meta attribute", "operation"
LOCATION, WISH = "location", "location of others"  # WISH: with an id that is not of our making
LEVEL, PROPERTY, DEFAULT = "level", "cluster option", "resource default"
CLUSTER_NODE, MENTION = "node", "mention"

# elements: {Element: [values]}, of more than one where it stands there twice. nodes: their names.
# mentions: {(tag, id): device} of what somebody has made of a device: groups, orders, rules.
# remotes: names of the nodes that are remote or guest nodes.
Fencing = namedtuple("Fencing", "elements nodes remotes mentions")

# element: what differs; wanted, found: None where there is none, and secrets hidden. is_judged:
# False for what is only named, as it is not ours. text: one line; advice: what to do.
Difference = namedtuple("Difference", "element wanted found is_judged text advice")

HIDDEN = "(not shown)"
CIB_SECRET = "lrm://"  # stands for a value that cibsecret keeps on the nodes
RUN_SCRIPT = "run the script of gen-config, or change the cluster file"
FENCING_ACTIONS = (OLD_PREFIX + "action", NEW_PREFIX + "action")
# What stands beside the devices: (kind, name, value), and what follows. What may be meant so for a
# while is a note.
HINDRANCES = {
    (DEFAULT, "target-role", "stopped"): "each fence device is disabled",
    (PROPERTY, "maintenance-mode", "true"): "no dead node is fenced before that ends",
    (PROPERTY, "startup-fencing", "false"): "a node that was never seen counts as dead, unfenced"}
CLUSTER_UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "ms": 0.001,
                 "msec": 0.001, "us": 0.000001, "usec": 0.000001}
VERIFIER = "fence_check"
# Of a node that is a remote or guest node in the cluster alone (True), or in the file alone.
REMOTE_NODES = {
    True: ("node %s is a remote or guest node, which fences and verifies nobody",
           "give it remote: true in the cluster file"),
    False: ("node %s is no remote or guest node in the cluster", "remove remote: true")}


def parse_fencing(data):
    """Return the Fencing of a CIB, or of its configuration; raise UsageError if it is none."""
    from xml.etree import ElementTree
    try:
        tree = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise UsageError("it is not XML: %s" % error) from None
    if tree.tag not in ("cib", "configuration"):
        raise UsageError("it is no CIB, but <%s>" % one_line(tree.tag))
    found = {}
    templates = {template.get("id"): template for template in tree.iter("template")}
    sources = [(primitive, templates.get(primitive.get("template"), primitive))
               for primitive in tree.iter("primitive")]
    sources = [source for source in sources if source[1].get("class") == "stonith"]
    for primitive, template in sources:
        for element, value in list_device_elements(primitive, template):
            found.setdefault(element, []).append(value)
    devices = {primitive.get("id", "") for primitive, _ in sources}
    for element, value in list_cluster_elements(tree, devices):
        found.setdefault(element, []).append(value)
    remotes = list_remotes(tree)
    nodes = [node.get("uname", "") for node in tree.iterfind(".//nodes/node")]
    names = tuple(dict.fromkeys(nodes + remotes)) if nodes else ()
    return Fencing(found, names, tuple(remotes), dict(list_mentions(tree, devices)))


def list_remotes(tree):
    """Return the names of remote and guest nodes, as each of them may be told."""
    found = [node.get("uname", "") for node in tree.iterfind(".//nodes/node")
             if node.get("type") == "remote"]
    templates = {template.get("id"): template for template in tree.iter("template")}
    sources = [(item.get("id", ""), templates.get(item.get("template"), item))
               for item in tree.iter("primitive")]
    found += [name for name, source in sources
              if (source.get("provider"), source.get("type")) == ("pacemaker", "remote")]
    return found + [pair.get("value", "") for pair in tree.iterfind(".//meta_attributes/nvpair")
                    if pair.get("name") == "remote-node"]


def list_device_elements(primitive, template):
    """Return [(Element, value)] of a fence device; without a template it is its own."""
    name = primitive.get("id", "")
    own = list_parts(name, primitive)
    given = {element for element, _ in own}
    inherited = list_parts(name, template) if template is not primitive else []
    return [(Element(AGENT, name, ""), template.get("type", ""))] + own + [
        (element, value) for element, value in inherited if element not in given]


def list_parts(name, place):
    """Return [(Element, value)] of what stands in a primitive or a template."""
    found = []
    for kind, path in ((PARAMETER, "instance_attributes"), (META, "meta_attributes")):
        found += [(Element(kind, name, pair.get("name", "")), pair.get("value", ""))
                  for pair in place.iterfind(path + "/nvpair")]
    for operation in place.iter("op"):
        found += [(Element(OPERATION, name, "%s %s" % (operation.get("name", ""), key)), value)
                  for key, value in operation.attrib.items() if key not in ("id", "name")]
    return found


def list_cluster_elements(tree, devices):
    """Return [(Element, value)] of what stands beside the fence devices."""
    found = []
    for place in tree.iter("rsc_location"):
        device, node = place.get("rsc"), place.get("node")
        if device in devices and node:
            is_ours = place.get("id") == ban_id(Ban(device, (node,), is_verifier=False), node)
            found.append((Element(LOCATION if is_ours else WISH, device, node),
                          place.get("score", "INFINITY")))
    for level in tree.iter("fencing-level"):
        found.append((Element(LEVEL, render_level_target(level), level.get("index", "")),
                      level.get("devices", "")))
    for pair in tree.iterfind(".//cluster_property_set/nvpair"):
        found.append((Element(PROPERTY, "", pair.get("name", "")), pair.get("value", "")))
    for pair in tree.iterfind(".//rsc_defaults/meta_attributes/nvpair"):
        found.append((Element(DEFAULT, "", pair.get("name", "")), pair.get("value", "")))
    return found


def render_level_target(level):
    """Return the node of a level, or in words the nodes that it is for; no node has blanks."""
    pattern, attribute = level.get("target-pattern"), level.get("target-attribute")
    if pattern:
        return "nodes like " + pattern
    if attribute:
        return "nodes with %s=%s" % (attribute, level.get("target-value"))
    return level.get("target", "")


def list_mentions(tree, devices):
    """Return [((tag, id), device)] of what somebody has made of fence devices."""
    found = []
    for tag in ("group", "clone", "master", "bundle"):
        for item in tree.iter(tag):
            inside = [primitive.get("id", "") for primitive in item.iter("primitive")]
            found += [((tag, item.get("id", "")), name) for name in inside if name in devices]
    for tag in ("rsc_location", "rsc_colocation", "rsc_order", "rsc_ticket", "tag",
                "acl_permission"):
        for item in tree.iter(tag):
            parts = list(item.iter("resource_ref")) + list(item.iter("obj_ref"))
            named = set(item.attrib.values()) | {part.get("id", "") for part in parts}
            named |= match_devices(item.get("rsc-pattern"), devices)
            is_plain = tag == "rsc_location" and item.get("node") and item.get("rsc")
            found += [((tag, item.get("id", "")), name) for name in named & devices if not is_plain]
    return found


def match_devices(pattern, devices):
    """Return the devices that a location for a pattern may be about; what is unclear is."""
    if not pattern:
        return set()
    try:
        return {device for device in devices
                if pattern[0] == "!" or re.search(pattern, device)}
    except (re.error, OverflowError, RecursionError):
        return set(devices)


# SECTION: DRIFT -----------------------------------------------------------------------------------
# How what a CIB holds of fencing differs from what is wanted. Pure.
#
# What a cluster file wants is read in the same way, from the CIB that OUTPUTS makes of it: so
# whatever is planned anew is compared without another word here. Each compare_ function yields the
# Differences of one kind.

def plan_fencing(cluster, live):
    """Return the Fencing that the script for a Cluster would make of what a cluster holds."""
    if not live.nodes:  # nobody knows who its members are
        configuration = build_configuration(cluster)
    elif has_priority_delay(live):
        configuration = build_script_configuration(cluster)
    else:
        configuration = give_head_start(build_script_configuration(cluster), list_members(live))
    wanted = parse_fencing(render_cib(configuration, ""))
    return wanted._replace(nodes=configuration.nodes, remotes=configuration.remotes)


def has_priority_delay(live):
    """Whether Pacemaker itself lets one of two nodes wait."""
    value = first_value(live, PROPERTY, "", "priority-fencing-delay") or "0"
    return not re.fullmatch("0([^0-9].*)?", value)


def list_device_ids(fencing):
    return [element.owner for element in fencing.elements if element.kind == AGENT]


def first_value(fencing, kind, owner, name):
    """Return the value of an element, None where there is none."""
    return fencing.elements.get(Element(kind, owner, name), [None])[0]


def is_own(fencing, device):
    return first_value(fencing, META, device, OWNER[0]) == OWNER[1]


def compare_fencing(wanted, live):
    """Return the Differences of what is wanted and what a cluster holds."""
    return [item for compare in COMPARISONS for item in compare(wanted, live)]


def build_difference(element, wanted, found, text, advice=RUN_SCRIPT, is_judged=True):
    return Difference(element=element, wanted=hide_value(element, wanted),
                      found=hide_value(element, found), is_judged=is_judged,
                      text=one_line(text), advice=one_line(advice))


def is_hidden(element, value):
    return element.kind == PARAMETER and (holds_secrets(element.name) or holds_login(value))


def holds_login(value):
    """Whether a value is a URL with a login in it, whatever its name (connection_uri)."""
    return bool(re.search("//[^/]*@", value or ""))


def hide_value(element, value):
    return HIDDEN if value is not None and is_hidden(element, value) else value


def holds_secrets(name):
    """Whether a value of this name, of any agent, may be a secret or hold one."""
    is_text = name.endswith(("_url", "_body")) or name in ("headers", FENCE_OPTIONS)
    return is_text or is_secret_name(name)


def compare_devices(wanted, live):
    """Devices that are missing, of another agent, left over, or not ours."""
    placed = list_placed(wanted)
    for device in sorted(placed - set(list_device_ids(live))):
        yield build_difference(Element(AGENT, device, ""), device, None, "%s is missing, and the "
                               "cluster file puts it into a level" % device, "make it, or take it "
                               "out of before in the cluster file")
    for device in sorted(placed & set(list_device_ids(live))):
        role = first_value(live, META, device, "target-role")
        if (role or "").lower() == "stopped":
            yield build_difference(Element(META, device, "target-role"), None, role, "%s is "
                                   "disabled, and so fails the level that the cluster file puts it "
                                   "into" % device, "pcs stonith enable %s" % device)
    for device in list_device_ids(wanted):
        agent, found = [first_value(side, AGENT, device, "") for side in (wanted, live)]
        element = Element(AGENT, device, "")
        if found is None:
            yield build_difference(element, agent, None, "%s (%s) is missing" % (device, agent))
        elif found != agent:
            yield build_difference(element, agent, found, "%s has the agent %s instead of %s"
                                   % (device, found, agent))
    for device in sorted(set(list_device_ids(live)) - set(list_device_ids(wanted)) - placed):
        yield describe_stranger(device, wanted, live)


def list_placed(wanted):
    """Return the ids of the devices in levels that others have to make."""
    return {device for element, values in wanted.elements.items() if element.kind == LEVEL
            for device in values[0].split(",")} - set(list_device_ids(wanted))


def describe_stranger(device, wanted, live):
    """Return the Difference of a device that the plan does not know."""
    agent = first_value(live, AGENT, device, "")
    element = Element(AGENT, device, "")
    if is_own(live, device):
        return build_difference(element, None, agent, "%s (%s) is left over: the cluster file has "
                                "no such device" % (device, agent))
    address = find_address(live, device)
    twins = [own for own in list_device_ids(wanted) if find_address(wanted, own) == address]
    same = ", at the same address as %s" % ", ".join(twins) if address and twins else ""
    return build_difference(element, None, agent, "%s (%s) is not ours%s" % (device, agent, same),
                            "if it is needed no more: pcs stonith delete %s" % device,
                            is_judged=False)


def find_address(fencing, device):
    return (first_value(fencing, PARAMETER, device, "ip")
            or first_value(fencing, PARAMETER, device, "ipaddr"))


def compare_parts(wanted, live):
    """Parameters, meta attributes and operations of the devices that are there."""
    common = set(list_device_ids(wanted)) & set(list_device_ids(live))
    keys = [element for element in wanted.elements if element.owner in common]
    keys += [element for element in live.elements
             if element.owner in common and element not in wanted.elements]
    for element in keys:
        if element.kind in (PARAMETER, META, OPERATION):
            values, found = [side.elements.get(element, []) for side in (wanted, live)]
            if values != found:
                yield describe_part(element, values, found)


def describe_part(element, values, found):
    """Return the Difference of a part of a device, of which wanted and found are lists."""
    what = "%s: %s %s" % (element.owner, element.kind, element.name)
    wanted, value = [side[0] if side else None for side in (values, found)]
    advice = RUN_SCRIPT
    if (element.kind, element.name) == (META, OWNER[0]):
        text = "%s was not made by fencetool: it has no mark %s=%s" % ((element.owner,) + OWNER)
        advice = "run the script with --adopt, or rename the device"
    elif len(found) > 1:
        text = "%s stands there %d times" % (what, len(found))
    elif value is None:
        text = "%s is missing, and should be %s" % (what, show_value(element, wanted))
    elif wanted is None:
        text = "%s is %s, and should not be there" % (what, show_value(element, value))
    elif value.startswith(CIB_SECRET):
        text = "%s is kept by cibsecret, and cannot be compared" % what
        advice = "use password_script, or put up with the script bringing the password back"
    else:
        text = "%s is %s, and should be %s" % (what, show_value(element, value),
                                               show_value(element, wanted, "another one"))
    return build_difference(element, wanted, value, text, advice)


def show_value(element, value, hidden=""):
    """Return a value as a message shows it; hidden: words for a secret, where one says more."""
    if is_hidden(element, value):
        return hidden or HIDDEN
    return quote(value, MAX_VALUE_CHARACTERS)


def compare_levels(wanted, live):
    targets = {element.owner for element in wanted.elements if element.kind == LEVEL}
    left_over = set(list_device_ids(live)) - set(list_device_ids(wanted))
    left_over = {device for device in left_over if is_own(live, device)}
    for element, values in wanted.elements.items():
        found = live.elements.get(element, [])
        if element.kind == LEVEL and found != values:
            yield describe_level(element, values, found)
    for element, found in live.elements.items():
        if element.kind != LEVEL or element in wanted.elements:
            continue
        what = "level %s of %s (%s)" % (element.name, element.owner, "; ".join(found))
        if left_over & set(",".join(found).split(",")):
            yield build_difference(element, None, found[0], what + " is left over")
            continue
        meaning = "what succeeds there is believed" if element.owner in targets else "it stays"
        yield build_difference(element, None, found[0], "%s is not ours: %s" % (what, meaning),
                               "see to it that a verifier stands last in it, or remove it",
                               is_judged=False)


def describe_level(element, values, found):
    what = "level %s of %s" % (element.name, element.owner)
    advice = RUN_SCRIPT
    if not found:
        text = "%s is missing, and should be %s" % (what, values[0])
    elif len(found) > 1:
        text = "%s stands there %d times, which Pacemaker puts together: %s" % (
            what, len(found), ",".join(found))
        advice = "remove one of them (pcs stonith level remove)"
    else:
        text = "%s is %s, and should be %s" % (what, found[0], values[0])
    return build_difference(element, values[0], found[0] if found else None, text, advice)


def compare_locations(wanted, live):
    """Where devices must not run, and where somebody else wants them to run or not."""
    bans = {element: scores[0] for element, scores in wanted.elements.items()
            if element.kind == LOCATION}
    bans.update(ban_strangers(wanted, live))
    present = set(list_device_ids(wanted)) & set(list_device_ids(live))
    for element, score in bans.items():
        found = find_scores(live, element.owner, element.name)
        if element.owner in present and score not in found:
            text = "%s has no location of score %s on %s" % (element.owner, score, element.name)
            yield build_difference(element, score, found[0] if found else None, text)
    for element, found in live.elements.items():
        is_extra = element not in bans and element not in wanted.elements
        is_extra = is_extra and element.name not in live.remotes  # they run no device anyway
        if is_extra and element.kind in (LOCATION, WISH) and element.owner in present:
            is_needed = is_opt_in(live) and not found[0].startswith("-")
            text = "%s has a %s of score %s on %s" % (
                element.owner, element.kind, ", ".join(found), element.name)
            difference = build_difference(element, None, found[0], text, is_judged=(
                element.kind == LOCATION))
            yield from () if is_needed else (difference,)
    for device in sorted(present | (list_placed(wanted) & set(list_device_ids(live)))):
        if live.nodes and not any(may_run(live, device, node) for node in list_members(live)):
            yield build_difference(Element(LOCATION, device, ""), None, None,
                                   "%s may run on no node: it fences nobody" % device,
                                   "look at its location constraints, and at symmetric-cluster")


def ban_strangers(wanted, live):
    """Return {Element: score} for nodes that the plan does not know: nobody knows what they see."""
    strangers = [node for node in list_members(live) if node not in wanted.nodes]
    verifiers = [device for device in list_device_ids(wanted)
                 if first_value(wanted, AGENT, device, "") == VERIFIER]
    return {Element(LOCATION, device, node): "-INFINITY"
            for device in verifiers for node in strangers}


def list_members(live):
    """Return the names of the nodes that run fence devices."""
    return [node for node in live.nodes if node not in live.remotes]


def find_scores(live, device, node):
    """Return the scores of all locations of a device on a node, whoever made them."""
    return [score for kind in (LOCATION, WISH)
            for score in live.elements.get(Element(kind, device, node), ())]


def may_run(live, device, node):
    scores = find_scores(live, device, node)
    is_banned = any(score.startswith("-") for score in scores)
    return not is_banned and bool(scores or not is_opt_in(live))


def is_opt_in(live):
    """Whether a device runs nowhere unless a location allows it."""
    value = first_value(live, PROPERTY, "", "symmetric-cluster") or ""
    return value.lower() in ("0", "no", "n", "off", "false", "f")


def compare_properties(wanted, live):
    for element, values in wanted.elements.items():
        twin = Element(PROPERTY, "", rename_property(element.name))
        is_twin = twin in wanted.elements and element.name.startswith(NEW_PREFIX)
        if element.kind != PROPERTY or is_twin:
            continue
        found = [(name, value) for name in (element.name, twin.name)
                 for value in live.elements.get(Element(PROPERTY, "", name), ())]
        for name, value in found:
            if not suffices(value, values[0]):
                yield build_difference(Element(PROPERTY, "", name), values[0], value,
                                       "%s is %s, and should be %s" % (
                                           name, quote(value), quote(values[0])))
        if not found:
            yield build_difference(element, values[0], None, "%s is not set, and should be %s"
                                   % (element.name, quote(values[0])))
    yield from find_contrary_actions(wanted, live)
    yield from find_hindrances(live)


def find_hindrances(live):
    """What keeps a cluster from fencing, whatever devices and levels it has."""
    for element, values in live.elements.items():
        meaning = HINDRANCES.get((element.kind, element.name, values[0].lower()))
        if meaning:
            yield build_difference(element, None, values[0], "%s %s is %s: %s" % (
                element.kind, element.name, quote(values[0]), meaning), "change it, unless it is "
                "meant so for now", is_judged=element.kind == DEFAULT)


def rename_property(name):
    """Return the name that Pacemaker 3.0.2 has given to a cluster option, or had before."""
    for old, new in ((OLD_PREFIX, NEW_PREFIX), (NEW_PREFIX, OLD_PREFIX)):
        if name.startswith(old):
            return new + name[len(old):]
    return name


def suffices(value, wanted):
    """Whether a cluster option does what is wanted: a time may be longer, for others' devices."""
    seconds = [parse_cluster_time(text) for text in (value, wanted)]
    if None not in seconds:
        return seconds[0] >= seconds[1]
    try:
        return parse_boolean(value) == parse_boolean(wanted)
    except UsageError:
        return value == wanted


def parse_cluster_time(text):
    """Return the seconds that Pacemaker takes a text for, None for no time."""
    match = re.fullmatch(" *([0-9]+) *([a-z]*) *", text.lower())
    if not match or match.group(2) not in CLUSTER_UNITS:
        return None
    return int(match.group(1)) * CLUSTER_UNITS[match.group(2)]


def find_contrary_actions(wanted, live):
    """A cluster that only switches off leaves nodes off that should come back."""
    returning = [device for device in list_device_ids(wanted)
                 if first_value(wanted, AGENT, device, "") != VERIFIER
                 and first_value(wanted, PARAMETER, device, "pcmk_reboot_action") != "off"]
    for name in FENCING_ACTIONS:
        value = first_value(live, PROPERTY, "", name)
        if returning and value in ("off", "poweroff"):
            yield build_difference(Element(PROPERTY, "", name), None, value,
                                   "%s is %s: no node comes back after a fence, and %s should"
                                   % (name, quote(value), ", ".join(returning)),
                                   "pcs property unset %s, or power_on: false" % name)


def compare_nodes(wanted, live):
    targets = {element.owner for element in wanted.elements if element.kind == LEVEL}
    for name in wanted.nodes:
        if live.nodes and name not in live.nodes:
            yield build_difference(Element(CLUSTER_NODE, name, ""), name, None,
                                   "node %s is not in the cluster" % name, "rename or remove it in "
                                   "the cluster file", is_judged=name in targets)
    for name in live.nodes:
        if name not in wanted.nodes:
            yield build_difference(Element(CLUSTER_NODE, name, ""), None, name, "node %s is not in "
                                   "the cluster file: it gets no fence device" % name, "add it "
                                   "(method: none, if it has no device)")
    for name in live.nodes:
        is_remote_there, is_remote_here = [name in side.remotes for side in (live, wanted)]
        if name in wanted.nodes and is_remote_there != is_remote_here:
            text, advice = REMOTE_NODES[is_remote_there]
            yield build_difference(Element(CLUSTER_NODE, name, ""), name, name, text % name, advice)


def compare_mentions(wanted, live):
    """Groups, clones, orders and the like that somebody has made of our devices."""
    for (tag, name), device in sorted(live.mentions.items()):
        if device not in list_device_ids(wanted) or (tag, name) in wanted.mentions:
            continue
        is_place = tag == "rsc_location"
        advice = ("look at what it does, or remove it" if is_place else "remove it: a fence device "
                  "needs none, and keeps the script from changing it")
        text = "%s stands in the %s %s, which is not ours" % (device, tag, name)
        yield build_difference(Element(MENTION, device, name), None, tag, text, advice,
                               is_judged=not is_place)


COMPARISONS = (compare_devices, compare_parts, compare_levels, compare_locations,
               compare_properties, compare_nodes, compare_mentions)


def render_difference(difference):
    """Return one line: what it is, and what to do."""
    mark = "" if difference.is_judged else "note: "
    return "%s%s (%s)" % (mark, difference.text, difference.advice)


# SECTION: FOUND DEVICES ---------------------------------------------------------------------------
# What fences each node, as a CIB has it: levels, and power devices with their verifiers. Pure.
#
# A node has the power devices of its levels, each with a verifier of that level, or without a
# level the device whose host list names it.

# options: {name: value} under the names of today. hosts: {node: outlet, "" where none is named}.
FoundDevice = namedtuple("FoundDevice", "id agent options hosts")

# A level of a node. devices: ids as the CIB has them. before: those of them that switch nothing
# off. pairs: (power device, its verifier or None).
FoundLevel = namedtuple("FoundLevel", "devices before pairs")
LIBRARY_PARAMS = tuple(PARAMS_BY_NAME[name] for name in (  # in all agents of fence-agents
    "ip", "ipport", "username", "password", "password_script", "plug", "action"))
# Agents that switch nothing off, and stand in a level for another reason.
IDLE_AGENTS = ("fence_kdump", "fence_heuristics_ping", "fence_watchdog", "fence_sbd")


def collect_device(live, device):
    """Return the FoundDevice of this id."""
    agent = first_value(live, AGENT, device, "")
    params = AGENTS[agent].params if agent in AGENTS else LIBRARY_PARAMS
    names = canonical_names(params)
    options = {}
    for element, values in live.elements.items():
        if (element.kind, element.owner) == (PARAMETER, device) and values[0]:
            options.setdefault(names.get(element.name, element.name), values[0])
    return FoundDevice(device, agent, options, read_hosts(options))


def canonical_names(params):
    return {spelling: row.name for row in params for spelling in (row.name,) + row.aliases}


def read_hosts(options):
    hosts = dict.fromkeys(re.findall("[^,; \t]+", options.get("pcmk_host_list", "")), "")
    hosts.update(re.findall("([^:; \t]+):([^; \t]*)", options.get("pcmk_host_map", "")))
    return hosts


def find_levels(source):
    """Find the levels of each node, and tell of devices that are nobody's."""
    found = {name: find_node_levels(source, name) for name in source.names}
    # The script makes devices in the order of the file.
    order = {device.id: number for number, device in enumerate(source.devices)}
    firsts = {name: order[power.id] for name, levels in found.items()
              for level in reversed(levels) for power, _ in level.pairs[:1]}
    source.levels = {name: found[name] for name in sorted(firsts, key=firsts.get)}
    source.pairs = {(name, device_suffix(number, place)): pair
                    for name, levels in source.levels.items()
                    for number, level in enumerate(levels, 1)
                    for place, pair in enumerate(level.pairs, 1)}
    for element, ids in list_levels(source.live):
        if element.owner not in source.levels:
            source.notes.append("level %s of %s (%s) is not carried over: the file has levels of "
                                "nodes with a device of their own" % (
                                    element.name, element.owner, ",".join(ids)))
    if not source.pairs:
        raise FenceError("nothing to import: the CIB has no fence device for any of its nodes")
    tell_unused(source)


def list_levels(live):
    """Return [(Element, ids of its devices)] of all levels."""
    return [(element, ",".join(values).split(",")) for element, values in live.elements.items()
            if element.kind == LEVEL]


def order_level(index):
    """Return what sorts the numbers of levels, and puts up with what is none."""
    return len(index), index


def find_node_levels(source, name):
    """Return the FoundLevels of a node in their order."""
    lists = {element.name: ids for element, ids in list_levels(source.live)
             if element.owner == name}
    if not lists:
        return find_level_by_hosts(source, name)
    found = [(index, sort_level(source, name, lists[index]))
             for index in sorted(lists, key=order_level)]
    found = [(index, level) for index, level in found if level.before or level.pairs]
    for number, (index, level) in enumerate(found, 1):
        if index != str(number):
            source.notes.append("level %s of %s (%s) becomes its level %d" % (
                index, name, ",".join(level.devices), number))
    return [level for _, level in found]


def sort_level(source, name, ids):
    """Return the FoundLevel of these ids."""
    known = {device.id: device for device in source.devices}
    for missing in set(ids) - set(known):
        source.notes.append("%s is not carried over: a level of %s names it, and there is no such "
                            "device" % (missing, name))
    devices = [known[device] for device in dict.fromkeys(ids) if device in known]
    before = tuple(device.id for device in devices if device.agent in IDLE_AGENTS)
    return FoundLevel(tuple(ids), before, pair_devices(source, name, devices))


def find_level_by_hosts(source, name):
    """Return the one level of a node that no level is of, as Pacemaker would take any device."""
    devices = [device for device in source.devices if name in device.hosts]
    powers = [device for device in devices if device.agent not in (VERIFIER,) + IDLE_AGENTS]
    for device in powers[1:]:
        source.notes.append("%s (%s) is not carried over: %s has another one, %s, and no level "
                            "that says what to do with both" % (
                                device.id, device.agent, name, powers[0].id))
    pairs = pair_devices(source, name, [row for row in devices if row not in powers[1:]])
    ids = [device.id for pair in pairs for device in pair if device]
    return [FoundLevel(tuple(ids), (), pairs)] if pairs else []


def pair_devices(source, name, devices):
    """Return [(power device, verifier or None)] of the devices of a level."""
    rest = [device for device in devices if device.agent == VERIFIER]
    pairs = []
    for power in devices:
        if power.agent not in (VERIFIER,) + IDLE_AGENTS:
            pairs.append((power, choose_verifier(power, power.hosts.get(name, ""), rest)))
            rest = [device for device in rest if device is not pairs[-1][1]]
    for verifier in rest:
        source.notes.append("%s (%s) is not carried over: there is no device of %s that it could "
                            "be the verifier of" % (verifier.id, verifier.agent, name))
    return pairs


def choose_verifier(power, outlet, verifiers):
    """Return the one that looks at this device, or else the first; None where there is none."""
    outlets = (power.options.get("plug", outlet), outlet)
    return min(verifiers, default=None, key=lambda verifier: (
        verifier.options.get("fence_ip") != power.options.get("ip"),
        verifier.options.get("fence_plug", "") not in outlets))


def tell_unused(source):
    used = {device for levels in source.levels.values() for level in levels
            for device in level.devices}
    told = " ".join(source.notes)
    for device in source.devices:
        if device.id in used or device.id + " (" in told:
            continue
        why = "no level and no host list names a node for it"
        if device.agent in IDLE_AGENTS:
            why = "it switches nothing off, and no level names it"
        elif device.hosts:
            why = "nothing that it could stand for is known of %s" % ", ".join(device.hosts)
        source.notes.append("%s (%s) is not carried over: %s" % (device.id, device.agent, why))


def read_targets(options):
    """Return {network: address} of the target_ parameters of fence_check."""
    targets = {own.name: options[own.parameter] for own in OWN_NETWORKS
               if own.parameter in options}
    for number, address in enumerate(split_list(options.get(CLIENT_NETWORKS.parameter, "")), 1):
        targets["%s-%d" % (CLIENT_NETWORKS.name, number)] = address
    for number, item in enumerate(split_list(options.get("target_ips", "")), 1):
        name, equals, address = item.partition("=")
        targets[name if equals else "network-%d" % number] = address if equals else name
    return targets


def read_witnesses(options):
    """Return {network: [address]} of witness_ips of fence_check."""
    found = {}
    for item in split_list(options.get("witness_ips", "")):
        network, _, address = item.partition("=")
        found.setdefault(network, []).append(address)
    return found


# SECTION: IMPORT ----------------------------------------------------------------------------------
# The way back of PLAN: from what a CIB holds to a Cluster. Pure.
#
# Each key takes back the parameter that it becomes, by its row. What is left is planned anew and
# compared with the CIB: whatever differs then could not be carried over, and is told, so that
# nothing gets lost in silence.

HOST_PARAMETERS = ("pcmk_host_list", "pcmk_host_map", "pcmk_host_check", "pcmk_host_argument")
ACTION_TIMEOUTS = ("pcmk_off_timeout", "pcmk_on_timeout", "pcmk_reboot_timeout")
DELAYS = ("pcmk_delay_base", "delay")
PASSWORD_PROGRAM = "/etc/fencetool/password-%s"  # that somebody has to write


def import_cluster(live):
    """Return (Cluster, [note]) of the Fencing of a CIB; raise FenceError without fence devices."""
    # notes: what could not be carried over. names: of all nodes. levels: {node: [FoundLevel]} of
    # those with a device. pairs: {(node, suffix): (power device, verifier or None)} of all levels.
    targets = [element.owner for element in live.elements if element.kind == LEVEL]
    source = types.SimpleNamespace(
        live=live, notes=[], names=live.nodes or tuple(dict.fromkeys(targets)), levels={}, pairs={},
        devices=[collect_device(live, device) for device in list_device_ids(live)])
    find_levels(source)
    cluster = build_imported_cluster(source)
    tell_losses(source, cluster)
    return cluster, list(dict.fromkeys(source.notes))


def is_set(value):
    """Whether a boolean of an agent is on."""
    try:
        return parse_boolean(value or "0")
    except UsageError:
        return False


def has_same_meaning(value, wanted):
    """Whether a value is what gen-config writes, or another word for it."""
    return value == wanted or (wanted == "1" and is_set(value))


def find_dialect(power, verifier):
    """Return the row of DIALECTS that a power device belongs to, as its verifier names it."""
    method = verifier.options.get("fence_method", "") if verifier else ""
    rows = [row for row in DIALECTS.values()
            if row.agent == power.agent and has_fixed(row, power.options)]
    if power.agent not in AGENTS and re.fullmatch(FOREIGN_AGENT, method):
        rows = []
    elif power.agent not in AGENTS:
        rows = [row for row in rows if not find_missing_keys(row, power.options)]
    return max(rows, key=lambda row: len(row.fixed), default=DIALECTS[NAMED_AGENT])


def has_fixed(dialect, options):
    return all(has_same_meaning(options.get(name), value)
               for name, value in dialect.fixed.items())


def find_missing_keys(dialect, options):
    """Return the keys that a dialect needs and nothing stands for in a device's options."""
    parameters = {row.name: row.power for row in NODE_KEYS}
    return [key for key in dialect.required if parameters[key] not in options
            and parameters.get(STAND_INS.get(key)) not in options]


def build_imported_cluster(source):
    values = {row.name: find_common_value(source, row) or row.default for row in CLUSTER_KEYS}
    is_proven = any(verifier for _, verifier in source.pairs.values())
    values["stonith_fence_verify"] = "1" if is_proven else "0"
    if not is_proven:
        source.notes.append("nothing proves that a node is dead: give the nodes mgmt_ip and the "
                            "like, and remove stonith_fence_verify")
    without = [name for name in source.names if name not in source.levels]
    nodes = [build_imported_node(source, name, is_proven) for name in [*source.levels, *without]]
    cluster = Cluster(tuple(nodes), values, {}, {})
    import_networks(source, cluster)
    import_witnesses(source, cluster)
    for node in nodes:
        cluster.networks.update((network_key(name), name) for name in node.networks)
    settle_own(source, cluster)
    for device in list_all_devices(cluster):
        fit_times(source, cluster, device)
    return cluster


def find_common_value(source, row):
    """Return what a time of the whole file is called in the devices, "" where none has it."""
    # The keys of such times are called as what they become.
    name = row.name.partition("_")[2]
    if row.kind != WHOLE_SECONDS:
        return ""
    firsts = [pair for levels in source.levels.values() for level in levels
              for pair in level.pairs[:1]]  # those behind have an early_exit of their own
    found = [device.options.get(name) or first_value(
        source.live, META, device.id, name.replace("_", "-"))
        for pair in firsts for device in pair if device]
    return next((render_usual(row, value) for value in found if value), "")


def find_verifier_options(source, device):
    """Return the parameters of the verifier of a FenceDevice; nothing where it has none."""
    verifier = source.pairs[device.name, device.suffix][1]
    return verifier.options if verifier else {}


def has_verifier(source, name):
    return any(verifier for level in source.levels.get(name, ()) for _, verifier in level.pairs)


def build_imported_node(source, name, is_proven):
    """Return the ClusterNode of this name; is_proven: whether the death of any node is."""
    levels = source.levels.get(name, ())
    values = {"options": {}}
    if name in source.live.remotes:
        values["remote"] = "1"
    if not levels:
        values["method"] = NO_DEVICE
    elif is_proven and not has_verifier(source, name):
        values["verify"] = "0"
    values.update(find_habits(levels))
    node = ClusterNode(name=name, values=values, place=("", 0), places={}, networks={}, levels=())
    return node._replace(levels=tuple(
        FenceLevel(level.before, tuple(
            build_imported_device(source, node, device_suffix(number, place))
            for place in range(1, len(level.pairs) + 1)))
        for number, level in enumerate(levels, 1)))


def build_imported_device(source, node, suffix):
    power, verifier = source.pairs[node.name, suffix]
    dialect = find_dialect(power, verifier)
    options = {key: value for key, value in power.options.items()
               if key not in HOST_PARAMETERS + ACTION_TIMEOUTS + tuple(dialect.fixed)}
    take_host(source, node.name, power, options)
    values = dict(node.values, options={})
    values.update({"agent": power.agent} if dialect.name == NAMED_AGENT
                  else {"method": dialect.method})
    if power.agent in OTHER_NAMES:
        source.notes.append(suggest_method(power, OTHER_NAMES[power.agent]))
    take_secret(source, node.name + suffix, options, values)
    drop_habits(source, power, options, is_first=power is first_power(source, node.name))
    for row in DEVICE_KEYS:
        is_taken = row.name in dialect.keys or row.name not in SPECIAL_KEYS
        if is_taken and row.power in options:
            values[row.name] = render_usual(row, options.pop(row.power))
    device = FenceDevice(
        name=node.name, suffix=suffix, dialect=dialect, values=values, place=("", 0),
        places={"options": ("", 0)}, networks=node.networks)
    take_options(source, power, device, sort_options(options, verifier))
    return device


def first_power(source, name):
    return next(power for level in source.levels[name] for power, _ in level.pairs)


def suggest_method(power, row):
    """Return a note on an agent that others have made too."""
    counts = "" if row.first_outlet else " (outlets then count from 1)"
    return "%s: method: %s instead of agent: %s gives it the limits and the proof of %s%s" % (
        power.id, DIALECTS[row.dialect].method, power.agent, DIALECTS[row.dialect].agent, counts)


def take_host(source, name, power, options):
    """Put the outlet of a node into plug, wherever it stands."""
    outlet = power.hosts.get(name, "")
    if is_set(options.pop("port_as_ip", "")):
        options["ip"] = outlet or options.get("ip", "")
    elif options.get("plug", "dynamic") == "dynamic":
        options["plug"] = outlet
    if options.get("plug") in ("", name):
        del options["plug"]  # the label, which Pacemaker passes anyway
    if len(power.hosts) > 1:
        source.notes.append("%s stands for %s: each node gets a device of its own"
                            % (power.id, ", ".join(power.hosts)))


def take_secret(source, name, options, values):
    if options.get("password", "").startswith(CIB_SECRET):
        del options["password"]
        values["password_script"] = PASSWORD_PROGRAM % name
        source.notes.append("the password of %s is kept by cibsecret: write %s, which prints it"
                            % (name, values["password_script"]))


def find_habits(levels):
    """Return power_on and delay of a node, where they differ from what is usual for its devices."""
    found = [[(find_dialect(*pair), pair[0].options) for pair in level.pairs] for level in levels]
    devices = [device for level in found for device in level]
    # A level leaves the node off where one of its methods does.
    usual = [all(dialect.comes_back for dialect, _ in level) for level in found for _ in level]
    comes_back = [options.get("pcmk_reboot_action") != "off" for _, options in devices]
    is_able = all("power_on_url" in options or "power_on_url" not in dialect.keys
                  for dialect, options in devices)
    habits = {}
    if comes_back != usual and (is_able or not all(comes_back)):
        habits["power_on"] = "1" if all(comes_back) else "0"
    if devices and read_delay(devices[0][1]):
        habits["delay"] = read_delay(devices[0][1])
    return habits


def read_delay(options):
    """Return how long a device waits, "" for not at all."""
    # A map of nodes is no delay of one: the comparison tells it.
    delays = [options[name] for name in DELAYS if is_delay(options.get(name, ""))]
    return next((parse_whole_seconds(delay) for delay in delays
                 if parse_whole_seconds(delay) != "0"), "")


def is_delay(text):
    try:
        return bool(parse_whole_seconds(text))
    except UsageError:
        return False


def drop_habits(source, power, options, is_first):
    """Take out of a device's options what find_habits has made keys of the node of."""
    if read_delay(options) and not is_first:
        source.notes.append("%s: parameter delay is not carried over: fencing a node waits before "
                            "its first device" % power.id)
    done = [name for name in DELAYS if is_delay(options.get(name, ""))] + ["pcmk_reboot_action"]
    done += ["method"] if options.get("method") == "onoff" else []
    for name in done:
        options.pop(name, None)


def sort_options(options, verifier):
    """Return options as a verifier hands them on, in this order: pcs sorts those of a device."""
    handed_on = verifier.options.get(FENCE_OPTIONS, "") if verifier else ""
    names = [item.partition("=")[0] for item in split_list(handed_on)]
    return dict(sorted(options.items(), key=lambda item: (
        names.index(item[0]) if item[0] in names else len(names))))


def take_options(source, power, device, options):
    """Carry over as options what can be one; the checks of a cluster file decide."""
    for name, value in options.items():
        report = Report()
        check_options(None, device._replace(values={"options": {name: value}}), report)
        if report.has_errors():
            source.notes.append("%s: parameter %s is not carried over: %s" % (
                power.id, name, min(report.mistakes).text))
        else:
            device.values["options"][name] = value


def import_networks(source, cluster):
    for device in list_all_devices(cluster):
        for network, address in read_targets(find_verifier_options(source, device)).items():
            add_network(find_node(cluster, device.name), network, address)


def import_witnesses(source, cluster):
    """Tell the witnesses of the file from the addresses of nodes that have no verifier."""
    lists, known, direct = {}, set(), {}
    for device in list_all_devices(cluster):
        known.update(device.networks.values(), [device.values.get("ip", "")])
        options = find_verifier_options(source, device)
        direct.update(dict.fromkeys(split_list(options.get("direct_networks", ""))))
        for network in device.networks:
            lists.setdefault(network, [])
        for network, addresses in read_witnesses(options).items():
            lists.setdefault(network, []).append(addresses)
    cluster.values["stonith_direct_networks"] = tuple(direct)
    cluster.values["stonith_witness_ips"] = {}
    for network, found in lists.items():
        unknown = list(dict.fromkeys(address for addresses in found for address in addresses
                                     if address not in known))
        leads = all(addresses[0] in unknown[:1] for addresses in found)
        place_addresses(source, cluster, network, unknown, leads)


def place_addresses(source, cluster, network, unknown, leads):
    """Give addresses in a network to the file's witness, and to nodes without a verifier."""
    # leads: the first stands first in all lists, as what the file names does.
    blind = [node for node in cluster.nodes if not has_verifier(source, node.name)]
    needed = [node for node in blind if must_see(source, node.name, network, cluster)]
    if leads and len(unknown) > len(needed):
        witness = unknown.pop(0)
        cluster.values["stonith_witness_ips"][network] = witness
        perhaps = [node.name for node in blind[len(unknown):]]
        if perhaps:
            source.notes.append("%s in the network %s is taken for a witness: if it is the address "
                                "of %s, write it there" % (witness, network, " or ".join(perhaps)))
    takers = needed + [node for node in blind if node not in needed]
    is_guess = len(needed if len(needed) == len(unknown) else takers) > 1
    for node, address in zip(takers, unknown):
        add_network(node, network, address)
        if is_guess:
            source.notes.append("%s in the network %s is taken for the address of %s, which "
                                "is a guess" % (address, network, node.name))
    for address in unknown[len(takers):]:
        source.notes.append("the witness %s=%s is not carried over: the file has one of a network"
                            % (network, address))
    for node in needed[len(unknown):]:
        source.notes.append("the address of %s in the network %s is not in the CIB: without it, "
                            "%s will verify nobody there" % (node.name, network, node.name))


def must_see(source, name, network, cluster):
    """Whether a node may verify a node in this network, and so has an address there."""
    verifiers = [source.pairs[device.name, device.suffix][1] for device in list_all_devices(cluster)
                 if device.name != name and network in device.networks]
    return any(may_run(source.live, verifier.id, name) for verifier in verifiers if verifier)


def settle_own(source, cluster):
    """Tell what the file that gen-config took said, where only something missing shows it."""
    powers = [power.id for power, _ in source.pairs.values()]
    if not all(is_own(source.live, power) for power in powers):
        return
    if could_race(cluster) and not has_delay(cluster):
        cluster.values["stonith_quorum_device"] = "1"  # neither node waits
    if not any(first_value(source.live, META, power, "failure-timeout") for power in powers):
        cluster.values["stonith_failure_timeout"] = "0"


def fit_times(source, cluster, device):
    """Find the off_timeout and power_timeout from which the times of the CIB follow."""
    power = source.pairs[device.name, device.suffix][0]
    given = power.options.get("pcmk_off_timeout", "")
    limit = device.values["options"].pop("power_timeout", "")
    choices = [("", ""), (given, ""), ("", limit), (given, limit)]  # the shortest first
    best = min(choices, key=lambda choice: find_misfits(source, cluster, device, choice, limit))
    set_times(device, *best)


def set_times(device, off_timeout, power_timeout):
    for values, name, value in ((device.values, "off_timeout", off_timeout),
                                (device.values["options"], "power_timeout", power_timeout)):
        values.pop(name, None)
        if value:
            values[name] = value


def find_misfits(source, cluster, device, choice, limit):
    """Return of each time, the weightiest first, whether it differs from that of the CIB."""
    power, verifier = source.pairs[device.name, device.suffix]
    set_times(device, *choice)
    try:
        times = plan_times(cluster, device)
    except (UsageError, ValueError):  # what is no time in the CIB either
        return [True]
    given = find_verifier_options(source, device).get("pcmk_off_timeout")
    return [str(times.power_given) != power.options.get("pcmk_off_timeout"),
            bool(verifier) and str(times.verify_given) != given,
            times.power_limits.get("power_timeout", choice[1]) != limit]


def tell_losses(source, cluster):
    """Note what gen-config would make otherwise than the CIB has it, and what it leaves alone."""
    strangers = [device.id for pair in source.pairs.values() for device in pair
                 if device and not is_own(source.live, device.id)]
    if strangers:
        source.notes.append("gen-config makes devices of its own; these stay until they are taken "
                            "over or removed: " + ", ".join(dict.fromkeys(strangers)))
    try:
        wanted = plan_fencing(cluster, source.live)
    except (FenceError, ValueError) as error:
        source.notes.append("no configuration follows from this: %s" % error)
        return
    added = []
    powers = [name_power_device(device) for device in list_all_devices(cluster)]
    for item in compare_fencing(wanted, rename_devices(source, cluster)):
        element = item.element
        # What the plan does not have of a power device, the importer has told or understood.
        is_done = item.wanted is None and element.owner in powers and element.kind == PARAMETER
        if is_done or element.name in HOST_PARAMETERS + OWNER[:1]:
            continue
        if item.found is None:
            added.append(element.owner if element.kind == AGENT
                         else "%s %s" % (element.kind, element.name))
        elif not has_same_meaning(item.found, item.wanted):
            source.notes.append("gen-config would change it: " + item.text)
    if added:
        source.notes.append("gen-config would add what is not there: "
                            + ", ".join(dict.fromkeys(added)))


def rename_devices(source, cluster):
    """Return the Fencing of the CIB with the names that gen-config gives to the devices."""
    names, elements = {}, {}
    for node in nodes_with_device(cluster):
        for index, (found, level) in enumerate(zip(source.levels[node.name], node.levels), 1):
            own = {}
            for (power, verifier), device in zip(found.pairs, level.devices):
                own[power.id] = name_power_device(device)
                if verifier:
                    own[verifier.id] = name_verifier(device)
            for device, name in own.items():
                names.setdefault(device, []).append(name)
            names.update((device, [device]) for device in found.before)
            renamed = [own.get(device, device) for device in found.devices]
            elements[Element(LEVEL, node.name, str(index))] = [",".join(renamed)]
    for element, values in source.live.elements.items():
        for name in names.get(element.owner, ()):
            elements[element._replace(owner=name, name=find_name(element))] = values
        if element.kind == PROPERTY:
            elements[element] = values
    mentions = {key: names[device][0] for key, device in source.live.mentions.items()
                if device in names}
    return source.live._replace(elements=elements, mentions=mentions)


def find_name(element):
    """Return the name of today of a parameter."""
    if element.kind != PARAMETER:
        return element.name
    return canonical_names(LIBRARY_PARAMS).get(element.name, element.name)


def add_network(node, network, address):
    """Give a node an address in a network, among its values too."""
    node.networks[network] = address
    own = {row.name: row.key for row in OWN_NETWORKS}
    if network in own:
        node.values[own[network]] = address
    else:
        node.values.setdefault(CLIENT_NETWORKS.key, {})[network] = address


def render_usual(row, text):
    """Return a value in its usual form, or as it is where it has none: reading the file tells."""
    try:
        return KEY_PARSERS[row.kind](text) if row.kind in KEY_PARSERS else text
    except UsageError:
        return text


# SECTION: WRITING ---------------------------------------------------------------------------------
# From a Cluster to the text of its file, which CLUSTER FILE reads as the same. Pure.

NOT_FILLED_IN = "{{ not_shown }}"  # a mistake, until somebody writes the value


def render_cluster_file(cluster, notes, shows_secrets):
    """Return the text of a cluster file; without secrets, with what stands for them."""
    lines = ["# Made by fencetool %s import, from the fence devices of a cluster." % __version__]
    lines += ["# " + one_line(note) for note in notes]
    for row in CLUSTER_KEYS:
        if row.kind != NODES and cluster.values[row.name] != row.default:
            lines.append("%s: %s" % (row.name, render_yaml_value(row, cluster.values[row.name])))
    lines.append("stonith_nodes:")
    for node in cluster.nodes:
        lines += render_cluster_node(node, shows_secrets)
    return "\n".join(lines + [""])


def render_cluster_node(node, shows_secrets):
    """Return the lines of a node: its keys, with those of its device or with its levels."""
    devices = list_devices(node)
    lines = ["%s:" % node.name] + ["  " + line for line in render_keys(node, OWN_KEYS, True)]
    if len(node.levels) > 1:
        lines.append("  levels:")
        for level in node.levels:
            lines += indent_entry("    ", render_level(level, shows_secrets))
    else:
        for level in node.levels:
            lines += ["  " + line for line in render_level(level, shows_secrets)]
    if not devices:
        lines += ["  " + line for line in render_keys(node, DEVICE_KEYS, shows_secrets)]
    return ["  " + line for line in lines]


def render_level(level, shows_secrets):
    """Return the lines of what stands before its devices, and of its device or devices."""
    before = ", ".join(map(render_yaml, level.before))
    lines = ["before: [%s]" % before] if before else []
    found = [render_keys(device, DEVICE_KEYS, shows_secrets) for device in level.devices]
    if len(found) == 1:
        return lines + found[0]
    if found:
        lines.append("devices:")
    return lines + [line for keys in found for line in indent_entry("  ", keys)]


def indent_entry(indent, lines):
    """Return the lines of an entry of a list."""
    return [indent + ("  " if number else "- ") + line for number, line in enumerate(lines)]


def render_keys(node, rows, shows_secrets):
    return [render_key(node, row, shows_secrets) for row in rows if node.values.get(row.name)]


def render_key(node, row, shows_secrets):
    """Return the line of a key of a device; nobody can use it before a secret is filled in."""
    value = node.values[row.name]
    name = row.name
    if row.kind == OPTIONS:
        value = {option: text if shows_secrets else hide_secret(option, text)
                 for option, text in value.items()}
    elif not shows_secrets and name == "password":
        name, value = "password_script", PASSWORD_PROGRAM % (node.name + node.suffix)
    elif not shows_secrets and row.power:
        value = hide_secret(row.power, value)
    return "%s: %s" % (name, render_yaml_value(row, value))


def hide_secret(name, value):
    """Return a value of a device, or what stands for one that may hold a secret."""
    is_bare_url = name.endswith("_url") and "?" not in value
    is_secret = holds_login(value) or (holds_secrets(name) and not is_bare_url)
    return NOT_FILLED_IN if is_secret else value


def render_yaml_value(row, value):
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s: %s" % (render_yaml(name), render_yaml(text))
                                  for name, text in value.items())
    if isinstance(value, tuple):
        return "[%s]" % ", ".join(render_yaml(text) for text in value)
    if row.kind == BOOLEAN:
        return {"1": "true", "0": "false"}.get(value, render_yaml(value))
    return render_yaml(value)


def render_yaml(text):
    """Return a text as a YAML scalar that everybody reads as this text."""
    is_plain = re.fullmatch("[A-Za-z0-9/][A-Za-z0-9_./-]*", text)
    if is_plain and not is_ambiguous(text) and text not in YAML_NULLS:
        return text
    return "'%s'" % text.replace("'", "''")


# PART 6: PEOPLE ===================================================================================

# SECTION: LOOK-UP ---------------------------------------------------------------------------------
# Reads cluster files, and finds what fence_check -n NODE does not have to be told, because the
# cluster knows it.
#
# A cluster file is read together with the host_vars beside it, where Ansible keeps the addresses of
# the nodes. fence_check takes the parameters that gen-config would write; where there is no cluster
# file, it takes those of the fence_check devices for the node in the running cluster's CIB.


def load_cluster(path, host_vars, system):
    """Return (Cluster or None, [Mistake]) of a cluster file and a directory of host_vars."""
    data = system.read_file(path)
    found = list_host_files(host_vars, system) if host_vars else []
    return parse_cluster(path, data, [
        (node, file, system.read_file(file)) for node, file in found
        if is_host_file(os.path.basename(file), node, data)])


def list_host_files(host_vars, system):
    """Return [(node, path)] of NODE, NODE.yml and NODE/anything in a directory of host_vars."""
    found = []
    for name in system.list_directory(host_vars):
        path = os.path.join(host_vars, name)
        if os.path.isdir(path):
            found += [(name, os.path.join(path, part)) for part in system.list_directory(path)]
        else:
            found.append((re.sub(r"\.(yml|yaml|json)$", "", name), path))
    return found


def is_host_file(name, node, cluster_data):
    """Whether Ansible reads a file of host_vars: backups, hidden files and the like it does not."""
    if re.fullmatch(r"(?!\.).*\.(yml|yaml|json)|[^.]*[^.~]", name):
        return True
    # A node's name may have a domain, and then so has its file: the cluster file knows the name.
    return name == node and node.encode() in cluster_data


def find_check_parameters(node, values, system):
    """Return [[parameters of fence_check for a fence device] of a level] of a node.

    They come from the cluster file, else from the cluster.
    """
    path = values.get("config", CLUSTER_FILE)
    if "config" in values or os.path.exists(path):
        return read_check_parameters(path, node, system)
    query = ["cibadmin", "--query", "--local", "--xpath", "//primitive[@type='fence_check']"]
    code, out, err = system.run(query, "", system.deadline(10))
    if code != 0:
        raise UsageError("cannot find the parameters of %s: %s does not exist, and the cluster has "
                         "no fence_check device (cibadmin: %s)"
                         % (quote(node), CLUSTER_FILE, quote(err.strip())))
    return parse_check_parameters(out, node)


def read_check_parameters(path, name, system):
    """Return the same from a cluster file."""
    cluster, mistakes = load_cluster(path, "", system)
    if not cluster:
        mistake = next(item for item in mistakes if not item.is_warning)
        raise UsageError(hide_timer_words(render_mistake(mistake)))
    try:
        node = find_node(cluster, name)
    except UsageError as error:
        raise UsageError(hide_timer_words("%s: %s" % (path, error))) from None
    if not list_devices(node):
        raise UsageError("%s has no fence device for %s" % (path, quote(name)))
    return [[build_check_parameters(cluster, device) for device in level.devices]
            for level in node.levels if level.devices]


def build_check_parameters(cluster, device):
    options = build_verifier(cluster, device, plan_times(cluster, device)).options
    return {option: value for option, value in options.items() if not option.startswith("pcmk_")}


def parse_check_parameters(text, node):
    """Return the same from a part of the CIB: of the fence_check devices that are for the node."""
    from xml.etree import ElementTree
    levels = {}  # {what the id says of a level: [parameters]}
    try:
        tree = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise UsageError("cibadmin did not print XML: %s" % quote(text)) from None
    for primitive in tree.iter("primitive"):
        pairs = {pair.get("name"): pair.get("value", "")
                 for pair in primitive.iterfind("instance_attributes/nvpair")}
        hosts = re.split("[,; \t]+", pairs.get("pcmk_host_list", ""))
        hosts += re.findall("([^:; \t]+):", pairs.get("pcmk_host_map", ""))
        if node in hosts:
            level = re.search(LEVEL_SUFFIX, primitive.get("id", ""))
            levels.setdefault(level and level.group(0)[:len("-level2")], []).append(pairs)
    if not levels:
        raise UsageError("the CIB has no fence_check device for %s" % quote(node))
    return list(levels.values())


CIB_SECONDS = 30
NOT_RUNNING = 102  # cibadmin's exit code: it cannot connect to the cluster


def read_fencing(path, system):
    """Return the Fencing of a saved CIB; without a path, of the cluster that runs here."""
    if path:
        data, source = system.read_file(path), path
    else:
        data, source = query_cib(system), "cibadmin"
    try:
        return parse_fencing(data)
    except UsageError as error:
        raise UsageError("%s: %s" % (source, error)) from None


def query_cib(system):
    """Return the configuration of the cluster that runs here, as bytes."""
    command = ["cibadmin", "--query", "--local", "--scope", "configuration"]
    try:
        code, out, err = system.run(command, "", system.deadline(CIB_SECONDS))
    except FenceError as error:
        raise UsageError("cannot ask the cluster for its CIB: %s" % error) from error
    if code == NOT_RUNNING:
        raise UsageError("the cluster is not running here: start it (pcs cluster start), ask on a "
                         "node where it runs, or name a saved CIB with --cib FILE")
    if code != 0:
        raise UsageError("cannot ask the cluster for its CIB, which root may: cibadmin: %s"
                         % quote(err.strip()))
    return out.encode("utf-8", "surrogateescape")


# SECTION: SIMULATOR AND DEMO ----------------------------------------------------------------------
# Virtual plugs on real sockets, with faults to order, and the demo that shows them. Used by no
# agent. A virtual device keeps apart what its relay reports and what its contact does.

FAULTS = {
    "ignore": "acknowledges every command and switches nothing",
    "welded": "reports OFF while the contact stays closed",
    "portal": "answers everything with the sign-in page of a captive portal (HTTP)"}
WATTS = 43.0  # that a node draws


class VirtualDevice:
    """A device that listens on loopback (or another address) until stop()."""
    # options: values for the attributes of the class, in the classes below too. on_power(number,
    # powered) is called when a contact changes. requests: every request that came, decoded.
    # commands: how many of them were to switch.
    dialect = ""  # a name of DIALECTS
    mac = "CC:32:E5:00:00:01"
    metered = False
    fault = ""  # a name of FAULTS

    def __init__(self, aliases=("plug",), **options):
        import threading
        # relay: what the firmware reports; powered: whether the contact really carries power.
        self.outlets = [types.SimpleNamespace(number=number, alias=alias, relay=True, powered=True)
                        for number, alias in enumerate(aliases, 1)]
        for name, value in options.items():
            getattr(self, name)  # a misspelt option is an AttributeError
            setattr(self, name, value)
        self.on_power = lambda number, powered: None
        self.requests = []
        self.commands = 0
        self.address = ("", 0)
        self.lock = threading.RLock()

    @property
    def agent(self):
        """The name of the fence agent that this device is for."""
        return DIALECTS[self.dialect].agent

    def start(self, host="127.0.0.1", port=0):
        """Listen on TCP (port 0: any free one)."""
        import socketserver
        family = address_family(host)

        class Server(socketserver.ThreadingTCPServer):
            address_family = family
            daemon_threads = True
            request_queue_size = 16

            def handle_error(self, request, client_address):
                pass  # the client went away, or a fault breaks the connection
        self.server = Server((host, port), lambda handle, *_: self.converse(handle), False)
        self.server.server_bind()
        self.address = (host, self.server.server_address[1])
        self.listen()

    def listen(self):
        import threading
        self.server.server_activate()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def switch(self, number, on):
        """Obey a command for one outlet."""
        self.commands += 1
        if self.fault != "ignore":
            self.move(number, on)

    def move(self, number, on):
        outlet = self.outlets[number - 1]
        outlet.relay = on
        powered = on or self.fault == "welded"
        if outlet.powered is not powered:
            outlet.powered = powered
            self.on_power(number, powered)

    def send_answer(self, handle, answer):
        handle.sendall(answer)


KASA_REFUSAL = {"err_code": -1, "err_msg": "module not support"}


class VirtualKasa(VirtualDevice):
    """A Kasa plug, or a strip when it has several aliases."""
    # The list of outlets is reversed, as real firmware keeps no order.
    dialect = "kasa"
    device_id = "8006" + "0A" * 18

    def converse(self, handle):
        with handle.makefile("rb") as stream:
            for header in iter(lambda: stream.read(4), b""):
                answer = self.answer(stream.read(struct.unpack(">I", header)[0]))
                self.send_answer(handle, struct.pack(">I", len(answer)) + answer)

    def answer(self, message):
        """Return the reply to one message; raise OSError to break the connection instead."""
        request = json.loads(decrypt_kasa(message).decode("utf-8"))
        with self.lock:
            self.requests.append(request)
            chosen = request.pop("context", {}).get("child_ids", [])
            reply = {module: self._call_all(module, methods, chosen)
                     for module, methods in request.items()}
        return build_kasa_message(reply)

    def _call_all(self, module, methods, chosen):
        return {method: self._call(module, method, arguments or {}, chosen)
                for method, arguments in methods.items()}

    def _call(self, module, method, arguments, chosen):
        handler = getattr(self, "_%s_%s" % (module, method), None)
        return handler(arguments, chosen) if handler else dict(KASA_REFUSAL)

    def _system_get_sysinfo(self, arguments, chosen):
        is_strip = len(self.outlets) > 1
        info = {"deviceId": self.device_id, "mac": self.mac, "mic_type": "IOT.SMARTPLUGSWITCH",
                "model": "HS300(US)" if is_strip else "KP115(EU)", "err_code": 0,
                "feature": "TIM:ENE" if self.metered else "TIM"}
        children = [{"id": self._child_id(outlet), "alias": outlet.alias,
                     "state": int(outlet.relay)} for outlet in reversed(self.outlets)]
        if is_strip:
            return dict(info, alias="virtual strip", child_num=len(children), children=children)
        return dict(info, alias=children[0]["alias"], relay_state=children[0]["state"])

    def _child_id(self, outlet):
        return "%s%02d" % (self.device_id, outlet.number - 1)

    def _chosen_outlet(self, chosen):
        """Return the outlet a request means: without an id, a strip takes its first one."""
        meant = chosen or [self._child_id(self.outlets[0])]
        return next((item for item in self.outlets if self._child_id(item) == meant[0]), None)

    def _system_set_relay_state(self, arguments, chosen):
        outlet = self._chosen_outlet(chosen)
        if outlet is None or arguments.get("state") not in (0, 1):
            return {"err_code": -3, "err_msg": "invalid argument"}
        self.switch(outlet.number, bool(arguments["state"]))
        return {"err_code": 0}

    def _emeter_get_realtime(self, arguments, chosen):
        outlet = self._chosen_outlet(chosen)
        if not self.metered or outlet is None:
            return dict(KASA_REFUSAL)
        watts = WATTS if outlet.powered else 0
        return {"current_ma": int(watts / 0.23), "power_mw": int(watts * 1000), "total_wh": 26889,
                "voltage_mv": 230000, "err_code": 0}


class VirtualKlap(VirtualKasa):
    """The same with newer firmware: its old port is closed, and it speaks KLAP on another."""

    login = KlapLogin("admin@example.com", "s3cret")
    session = None  # the KlapSession: it keeps one

    def converse(self, handle):
        from http.client import parse_headers
        with handle.makefile("rb") as stream:
            path = stream.readline().decode("latin-1").split(" ")[1]
            body = stream.read(int(parse_headers(stream).get("Content-Length", 0)))
        with self.lock:
            status, reply = self.take_step(path.partition("?")[0], body)
        lines = ["HTTP/1.1 %d Whatever" % status, "Set-Cookie: %s=1;TIMEOUT=86400" % KLAP_COOKIE,
                 "Connection: close", "Content-Length: %d" % len(reply)]
        self.send_answer(handle, "\r\n".join(lines + ["", ""]).encode("latin-1") + reply)

    def take_step(self, page, body):
        """Return (status, body) of the answer to one step of the protocol."""
        if page == "/app/handshake1":
            proof, seed = build_klap_proof(2, self.login), os.urandom(KLAP_SEED_BYTES)
            self.session = KlapSession(proof, body, seed, "")
            return 200, seed + build_klap_hash(proof, body, seed)
        if page == "/app/handshake2":
            return (200 if body == self.session.client_hash else 403), b""
        self.session.sequence += 1
        plain = self.session.unseal(body)
        # What Tapo plugs are asked, these answer with {} (python-kasa #1648).
        answer = b"{}" if b'"method"' in plain else decrypt_kasa(self.answer(encrypt_kasa(plain)))
        return 200, self.session.seal_answer(answer)


PORTAL_PAGE = ("<!DOCTYPE html><html><title>Sign in: Wi-Fi ON or OFF</title><form>"
               "<input id=psk name=psk type=password></form></html>")


class VirtualHttp(VirtualDevice):
    """A web server; subclasses answer in their dialect."""
    # requests: (method, path, header fields by their lower-case names, and "body").
    password = ""  # of the user admin
    challenge = 'Basic realm="Login Required"'

    def converse(self, handle):
        from http.client import parse_headers
        with handle.makefile("rb") as stream:
            words = stream.readline().decode("latin-1").split(" ")
            if len(words) != 3:
                return
            fields = {name.lower(): value for name, value in parse_headers(stream).items()}
            length = int(fields.get("content-length", 0))
            fields["body"] = stream.read(length).decode("utf-8", "replace")
        with self.lock:
            self.requests.append((words[0], words[1], fields))
            reply = self.answer(words[0], words[1], fields)
        self.send_answer(handle, self.render(*reply))

    def answer(self, method, path, fields):
        """Return (status, headers, body); raise OSError to break the connection instead."""
        if self.fault == "portal":
            return 200, {"Content-Type": "text/html"}, PORTAL_PAGE
        if self.password and not self.knows_login(method, path, fields):
            return self.refuse_login()
        return self.respond(method, path, fields)

    def knows_login(self, method, path, fields):
        return fields.get("authorization") == build_basic_login("admin", self.password)

    def refuse_login(self):
        return 401, {"WWW-Authenticate": self.challenge}, ""

    def respond(self, method, path, fields):
        """Return (status, headers, body) of a request that may be answered."""
        raise NotImplementedError

    def words(self):
        """Return {number: "ON" or "OFF"} as the device reports its relays."""
        return {outlet.number: "ON" if outlet.relay else "OFF" for outlet in self.outlets}

    def render(self, status, headers, body):
        data = body.encode("utf-8")
        lines = ["HTTP/1.1 %d Whatever" % status, "Connection: close"]
        lines += ["%s: %s" % header for header in headers.items()]
        lines.append("Content-Length: %d" % len(data))
        return "\r\n".join(lines + ["", ""]).encode("latin-1") + data


class VirtualTasmota(VirtualHttp):
    """A Tasmota device."""

    dialect = "tasmota"

    def knows_login(self, method, path, fields):
        query = parse_query(path)
        return ((query.get("user"), query.get("password")) == ("admin", self.password)
                or super().knows_login(method, path, fields))

    def refuse_login(self):
        return 401, {}, '{"WARNING":"Need user=<username>&password=<password>"}'

    def respond(self, method, path, fields):
        members = self.run_command(parse_query(path).get("cmnd", "").lower())
        return 200, {"Content-Type": "application/json"}, json.dumps(members)

    def run_command(self, command):
        match = re.fullmatch("power([0-9]*)(?: (on|off))?", command)
        if match:
            return self.power(int(match.group(1) or 1), match.group(2))
        if command == "status 10":
            return {"StatusSNS": self.sensors()}
        return {"status": {"Status": {"DeviceName": "virtual", "FriendlyName": [
                    outlet.alias for outlet in self.outlets][:MOST_FRIENDLY_NAMES]}},
                "status 5": {"StatusNET": {"Hostname": "plug", "Mac": self.mac}},
                "status 11": {"StatusSTS": dict(self.members(), UptimeSec=61)},
                "setoption21": {"SetOption21": "OFF"}}.get(command, {"Command": "Unknown"})

    def members(self):
        return {self.member(number): word for number, word in self.words().items()}

    def member(self, number):
        return "POWER" if len(self.outlets) == 1 else "POWER%d" % number

    def power(self, number, word):
        if number > len(self.outlets):
            return {"Command": "Error"}
        if word:
            self.switch(number, word == "on")
        if word and self.fault == "ignore":
            return {self.member(number): word.upper()}
        return {self.member(number): self.members()[self.member(number)]}

    def sensors(self, while_off=False):
        """while_off: whether the meter goes on measuring (SetOption21 1)."""
        if not self.metered:
            return {"Time": "2026-01-01T00:00:00"}
        shown = while_off or any(outlet.relay for outlet in self.outlets)
        watts = WATTS * sum(outlet.powered for outlet in self.outlets) if shown else 0
        return {"ENERGY": {"Total": 3.185, "Power": watts, "Voltage": 230 if shown else 0}}


class VirtualShelly(VirtualHttp):
    """A Shelly of the second generation or a newer one."""

    dialect = "shelly"

    def bare_mac(self):
        return self.mac.replace(":", "")

    def respond(self, method, path, fields):
        members = self.find(path.partition("?")[0], parse_query(path))
        if members is None:
            return 404, {}, '{"code":404,"message":"No handler for \\"output\\":false"}'
        return 200, {"Content-Type": "application/json"}, json.dumps(members)

    def find(self, page, query):
        """Return the members of a reply, or None where there is no such page."""
        if page == "/rpc/Switch.Set":
            outlet = self.outlets[int(query["id"])]
            before = outlet.relay
            self.obey(outlet.number, query["on"] == "true")
            return {"was_on": before}
        pages = {"/shelly": self.identity, "/rpc/Shelly.GetStatus": self.status,
                 "/rpc/Shelly.GetConfig": self.settings}
        return pages[page]() if page in pages else None

    def obey(self, number, on):
        self.switch(number, on)

    def identity(self):
        return {"id": "shellypro4pm-cc32e5000001", "mac": self.bare_mac(), "gen": 2}

    def status(self):
        return dict(self.components(self.show_switch), sys={"mac": self.bare_mac(), "uptime": 61})

    def settings(self):
        return dict(self.components(self.show_settings), sys={"device": {"mac": self.bare_mac()}})

    def components(self, show):
        """Return {key: members} of all outputs; show: of one."""
        return {"switch:%d" % (outlet.number - 1): show(outlet) for outlet in self.outlets}

    def show_switch(self, outlet):
        members = {"id": outlet.number - 1, "output": self.words()[outlet.number] == "ON"}
        return dict(members, apower=self.show_watts(outlet)) if self.metered else members

    def show_watts(self, outlet):
        return WATTS if outlet.powered else 0.0

    def show_settings(self, outlet):
        return {"id": outlet.number - 1, "name": outlet.alias, "auto_on": False}


def parse_query(path):
    from urllib.parse import parse_qsl
    return dict(parse_qsl(path.partition("?")[2]))


# A switch by its web pages: paths of on, off and status, and the status page with its words.
VirtualPages = namedtuple("VirtualPages", "on off status page words")
SHELLY_PAGES = VirtualPages(
    on="/relay/0?turn=on", off="/relay/0?turn=off", status="/relay/0",
    page='{"ison":%s,"has_timer":false,"source":"http"}', words={"ON": "true", "OFF": "false"})
ESPHOME_PAGES = VirtualPages(
    on="/switch/relay/turn_on", off="/switch/relay/turn_off", status="/switch/relay?detail=all",
    page='{"id":"switch/relay","name":"relay","state":"%s"}', words={"ON": "ON", "OFF": "OFF"})


class VirtualSwitch(VirtualHttp):
    """A switch of whatever make, by its pages."""

    dialect = "url"
    pages = SHELLY_PAGES

    def respond(self, method, path, fields):
        pages = self.pages
        if path in (pages.on, pages.off):
            self.switch(1, path == pages.on)
            return 200, {}, '{"was_on":true}'
        if path != pages.status:
            return 404, {}, "Not Found: OFF"
        return 200, {}, pages.page % pages.words[self.words()[1]]


class VirtualOutput(VirtualHttp):
    """An output of a PDU: one page tells its state in JSON, and takes commands as bodies."""

    dialect = "url"

    def respond(self, method, path, fields):
        if path != "/netio.json":
            return 404, {}, "Not Found"
        if method == "POST":
            self.switch(1, json.loads(fields["body"])["Outputs"][0]["Action"] == 1)
        outputs = [{"ID": outlet.number, "State": int(outlet.relay)} for outlet in self.outlets]
        return 200, {}, json.dumps({"Outputs": outputs})


# One step of the demo. device: key of a virtual device; expected: exit code; shows: what the output
# must hold; lesson: what the reader should take from it.
DemoStep = namedtuple("DemoStep", "device parameters expected shows lesson")

DEMO_PARAMETERS = "nodename=storage-b\nstonith_status_sleep=0.2\n"
DEMO_STEPS = (
    DemoStep(
        device="plug", parameters="action=status", expected=0, shows="Status: ON",
        lesson="a node runs on this plug"),
    DemoStep(
        device="plug", parameters="action=off", expected=0, shows="Success: Powered OFF",
        lesson="commanded, then seen OFF twice"),
    DemoStep(
        device="plug", parameters="action=status", expected=2, shows="Status: OFF",
        lesson="exit code 2 means OFF, and nothing else"),
    DemoStep(
        device="plug", parameters="action=reboot", expected=0, shows="Success: Rebooted",
        lesson="off with proof, a pause, on again"),
    DemoStep(
        device="strip", parameters="action=off\nplug=2", expected=0, shows="Success: Powered OFF",
        lesson="one outlet of a strip"),
    DemoStep(
        device="strip", parameters="action=list-status", expected=0, shows="3,spare,ON",
        lesson="the other outlets were left alone"),
    DemoStep(
        device="six", parameters="action=off\nplug=1,5", expected=0, shows="Success: Powered OFF",
        lesson="a server with two power supplies: off when both of its outlets are"),
    DemoStep(
        device="klap", parameters="action=off\nprotocol=klap\nusername=admin@example.com\n"
        "password=s3cret", expected=0, shows="Success: Powered OFF",
        lesson="a plug that has lost port 9999 to an update: KLAP, with the account's login"),
    DemoStep(
        device="liar", parameters="action=off\npower_timeout=1.5", expected=1,
        shows="still reports ON",
        lesson="a plug that acknowledges and does not switch: NOT fenced"),
    DemoStep(
        device="welded", parameters="action=off\npower_timeout=1.5", expected=1,
        shows="still draws 43 W",
        lesson="a relay that reports OFF with its contact welded: NOT fenced"),
    DemoStep(
        device="tasmota", parameters="action=off\ndevice=tasmota\nplug=2\npassword=s3cret",
        expected=0, shows="Success: Powered OFF",
        lesson="relay 2 of a Tasmota device with a password"),
    DemoStep(
        device="esphome", parameters="action=off\npower_off_url=/switch/relay/turn_off\n"
        "status_url=/switch/relay", expected=0, shows="Success: Powered OFF",
        lesson="ESPHome, by its URLs"),
    DemoStep(
        device="shelly", parameters="action=off\ndevice=shelly\nplug=storage-b", expected=0,
        shows="Success: Powered OFF", lesson="a channel of a Shelly by its name"),
    DemoStep(
        device="output", parameters="action=off\npower_off_url=/netio.json\n"
        'power_off_body={"Outputs":[{"ID":1,"Action":0}]}\nstatus_url=/netio.json\n'
        "status_member=$.Outputs[0].State\nstatus_on_value=1\nstatus_off_value=0",
        expected=0, shows="Success: Powered OFF",
        lesson="any device with URLs, here with a body, and a state in JSON"),
    DemoStep(
        device="switch", parameters="action=off\npower_off_url=/relay/0?turn=off\n"
        'status_url=/relay/0\nstatus_on_regex="ison":true\nstatus_off_regex="ison":false',
        expected=1, shows="sign-in page", lesson="the same with expressions, but its Wi-Fi is a "
        "captive portal now: NOT fenced"))


def cmd_demo(arguments, system):
    """Fence virtual nodes on this machine: no hardware, no root, nothing leaves loopback."""
    system.write("The plugs are simulated (threads on 127.0.0.1), the agent is a real process.\n")
    devices = {
        "plug": VirtualKasa(["storage-b"]), "liar": VirtualKasa(["storage-b"], fault="ignore"),
        "strip": VirtualKasa(["storage-a", "storage-b", "spare"]),
        "six": VirtualKasa(["b left", "a left", "spare", "a right", "b right", "spare"]),
        "klap": VirtualKlap(["storage-b"]), "output": VirtualOutput(["1", "2"]),
        "welded": VirtualKasa(["storage-b"], metered=True, fault="welded"),
        "tasmota": VirtualTasmota(["POWER1", "POWER2"], password="s3cret"),
        "shelly": VirtualShelly(["storage-a", "storage-b"], metered=True),
        "esphome": VirtualSwitch(pages=ESPHOME_PAGES), "switch": VirtualSwitch(fault="portal")}
    try:
        for device in devices.values():
            device.start()
        wrong = [number for number, step in enumerate(DEMO_STEPS, 1)
                 if not run_demo_step(number, step, devices[step.device], system)]
    finally:
        for device in devices.values():
            device.stop()
    if wrong:
        system.write("%d of %d steps did not go as told." % (len(wrong), len(DEMO_STEPS)))
        return EXIT_BAD
    system.write("All %d steps went as told. Next, with a real plug (give it a fixed address):\n"
                 "  sh install.sh\n  fence_kasa -a ADDRESS -o status" % len(DEMO_STEPS))
    return EXIT_GOOD


def run_demo_step(number, step, device, system):
    """Run one step and show it; return whether it went as told."""
    parameters = "ip=%s\nipport=%d\n%s%s\n" % (device.address + (DEMO_PARAMETERS, step.parameters))
    system.write("%d. %s\n   $ printf '%s' | %s" % (
        number, step.lesson, parameters.replace("\n", "\\n").replace("%", "%%"), device.agent))
    agent = [sys.executable, "-IS", os.path.abspath(__file__), device.agent]
    code, out, err = system.run(agent, parameters, system.deadline(60))
    for line in (out + err).splitlines():
        system.write("   " + line)
    good = code == step.expected and step.shows in out + err
    system.write("   exit code %d: %s\n" % (code, "as told" if good else "NOT as told (%d, %s)"
                                            % (step.expected, step.shows)))
    return good


# SECTION: COMMANDS --------------------------------------------------------------------------------
# What people call: one cmd_ function a subcommand; it returns the exit code.

HOST_VARS_OPTION = (("--host-vars",), {
    "metavar": "DIR", "help": "directory of NODE.yml files with %s (Ansible's host_vars)"
    % ", ".join(row.name for row in NETWORK_KEYS)})
CIB_OPTION = (("--cib",), {"metavar": "FILE", "help": "a saved CIB (pcs cluster cib FILE), "
                           "instead of the cluster that runs here"})
CHECK_OPTIONS = (
    (("cluster",), {"nargs": "?", "default": CLUSTER_FILE, "help": "cluster file (%(default)s)"}),
    HOST_VARS_OPTION, (("--json",), {"action": "store_true", "help": "for machines"}),
    (("--live",), {"action": "store_true", "help": "compare the cluster that runs here with the "
                   "file, too"}),
    CIB_OPTION,
    (("--plan",), {"metavar": "FILE", "help": "tell what would change a saved CIB (--cib) into "
                   "this one, instead"}))
OTHERS_OPTION = (
    (("--others",), {"action": "store_true", "help": "those that others have made too, instead"}),)
GENERATE_OPTIONS = (
    (("words",), {"nargs": "*", "metavar": "CLUSTER", "help": "cluster file (%s)" % CLUSTER_FILE}),
    HOST_VARS_OPTION,
    (("--format",), {"choices": OUTPUTS, "default": "pcs", "help": "pcs: a script (the default); "
                     "crmsh, cib: the same for other tools; nftables: the firewall of one node; "
                     "ansible: a playbook that installs fencetool and runs the script"}),
    (("--node",), {"default": "", "help": "the node that the firewall is for"}),
    (("-o", "--output"), {"metavar": "FILE", "help": "write there, mode 0700, not to stdout"}))
IMPORT_OPTIONS = (
    CIB_OPTION,
    (("--show-secrets",), {"action": "store_true", "help": "write passwords and the like on stdout "
                           "too, not only into a file"}),
    (("-o", "--output"), {"metavar": "FILE", "help": "write there, mode 0600, with passwords"}))


def cmd_check_config(options, system):
    """Report every mistake in a cluster file, with its line, and with --live where the cluster
    differs from it; exit code 1 if there is one."""
    if options.plan:
        return compare_plan(options, system)
    cluster, mistakes = load_cluster(options.cluster, options.host_vars, system)
    shown = {"good": bool(cluster), "mistakes": [mistake._asdict() for mistake in mistakes]}
    lines = [render_mistake(mistake) for mistake in mistakes]
    errors = sum(not mistake.is_warning for mistake in mistakes)
    lines.append("%s: %s" % (options.cluster, render_counts(
        (errors, "mistake"), (len(mistakes) - errors, "warning"))))
    if cluster and (options.live or options.cib):
        live = read_fencing(options.cib, system)
        differences = compare_fencing(plan_fencing(cluster, live), live)
        judged = sum(item.is_judged for item in differences)
        shown.update(good=not judged, differences=[show_difference(item) for item in differences])
        lines += [render_difference(item) for item in differences]
        lines.append("%s: %s" % (options.cib or "the cluster", render_counts(
            (judged, "difference"), (len(differences) - judged, "note"))))
    elif options.live or options.cib:
        lines.append("the cluster was not compared: correct the mistakes first")
    system.write(json.dumps(shown, indent=2) if options.json else "\n".join(lines))
    return EXIT_GOOD if shown["good"] else EXIT_BAD


def compare_plan(options, system):
    """Tell in words what a change of one CIB into another would do, as the script asks for it."""
    if not options.cib:
        raise UsageError("--plan is compared with --cib FILE: name both")
    differences = compare_fencing(read_fencing(options.plan, system),
                                  read_fencing(options.cib, system))
    if options.json:
        system.write(json.dumps([show_difference(item) for item in differences], indent=2))
    elif differences:
        system.write("\n".join(item.text for item in differences))
    return EXIT_BAD if differences else EXIT_GOOD


def show_difference(difference):
    """Return a Difference for JSON."""
    return dict(difference._asdict(), element=difference.element._asdict())


def render_counts(*counts):
    """Return 1 mistake, 2 warnings of (1, "mistake"), (2, "warning")."""
    return ", ".join("%d %s%s" % (count, word, "" if count == 1 else "s")
                     for count, word in counts)


def cmd_gen_config(options, system):
    """Write the fencing configuration of a cluster: a script for pcs, or what --format says."""
    form, node, path = parse_generate_words(options)
    if node and form not in NODE_OUTPUTS:
        raise UsageError("--node goes with --format %s only: the others are for the whole cluster"
                         % " and ".join(NODE_OUTPUTS))
    if form in NODE_OUTPUTS and not node:
        raise UsageError("--format %s is for one node: name it with --node NODE" % form)
    cluster, mistakes = load_cluster(path, options.host_vars, system)
    for mistake in mistakes:
        system.tell(render_mistake(mistake))
    if not cluster:
        raise FenceError("nothing was written: correct the mistakes in %s first" % path)
    text = render_output(form, cluster, node, path)
    if options.output:
        system.write_script(options.output, text)
    else:
        system.write(text.rstrip("\n"))
    return EXIT_GOOD


def parse_generate_words(options):
    """Return (format, node, path of the cluster file) of a call of gen-config."""
    words, form, node = list(options.words), options.format, options.node
    # COMPAT: "nftables NODE [CLUSTER]" and "ansible [CLUSTER]" were words before they were formats;
    # for scripts written until 0.1.0.
    if words[:1] in (["nftables"], ["ansible"]):
        form = words.pop(0)
        if words and form in NODE_OUTPUTS and not node:
            node = words.pop(0)
    path = words.pop(0) if words else CLUSTER_FILE
    if words:
        raise UsageError("%s is one argument too many (see gen-config --help)" % quote(words[0]))
    return form, node, path


def cmd_import(options, system):
    """Write a cluster file that holds the fence devices of a cluster; what it cannot hold is told.

    The exit code is 1 if somebody has to complete the file.
    """
    if options.output and os.path.lexists(options.output):
        raise UsageError("%s exists: name another file, and compare" % options.output)
    cluster, notes = import_cluster(read_fencing(options.cib, system))
    shows_secrets = bool(options.show_secrets or options.output)
    text = render_cluster_file(cluster, notes, shows_secrets)
    path = options.output or "the cluster file"
    cluster, mistakes = parse_cluster(path, text.encode("utf-8", "surrogateescape"))
    if PASSWORD_PROGRAM.partition("%")[0] in text:
        notes.append("the programs %s are for you to write: they print a password (or import with "
                     "-o FILE or --show-secrets)" % PASSWORD_PROGRAM.replace("%s", "NODE"))
    for note in notes:
        system.tell("note: " + one_line(note))
    for mistake in mistakes:
        system.tell(render_mistake(mistake))
    if options.output:
        system.replace_file(options.output, text, 0o600)
    else:
        system.write(text.rstrip("\n"))
    return EXIT_GOOD if cluster else EXIT_BAD


def cmd_agents(options, system):
    """Print the names of the fence agents in this file: install.sh makes a link for each."""
    names = [name for name in AGENTS if (name in OTHER_NAMES) == options.others]
    system.write("\n".join(names))
    return EXIT_GOOD


# Each subcommand with its options; its help is its function's docstring.
COMMANDS = {"demo": (cmd_demo, ()), "check-config": (cmd_check_config, CHECK_OPTIONS),
            "gen-config": (cmd_gen_config, GENERATE_OPTIONS),
            "import": (cmd_import, IMPORT_OPTIONS),
            "agents": (cmd_agents, OTHERS_OPTION)}


def run_command(arguments, system):
    import argparse
    parser = argparse.ArgumentParser(
        prog="fencetool", allow_abbrev=False, description=__doc__.split("\n\n")[0],
        epilog="Agents: %s (fencetool.py AGENT --help tells their options)." % ", ".join(AGENTS))
    parser.add_argument("--version", action="version", version="fencetool " + __version__)
    subparsers = parser.add_subparsers(dest="command", metavar="SUBCOMMAND")
    for name, (run, rows) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=run.__doc__, allow_abbrev=False,
                                          description=run.__doc__)
        for names, settings in rows:
            subparser.add_argument(*names, **settings)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        sys.stdout.flush()
        return stop.code
    if not options.command:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    return COMMANDS[options.command][0](options, system)


# SECTION: ENTRY -----------------------------------------------------------------------------------
# From the name and the arguments that the program was started with to one exit code.

def main(argv, environment):
    """Run the program and return its exit code; nothing but exit codes and lines leaves here."""
    name, arguments = read_call(argv)
    is_agent = name in AGENTS or name == PLUGIN
    system = System(name if is_agent else "fencetool")
    try:
        if name == PLUGIN:
            return run_plugin(arguments, environment, system)
        if is_agent:
            return run_agent(AGENTS[name], read_pairs(AGENTS[name], arguments, system), system,
                             find_check_parameters if name == "fence_check" else None)
        return run_command(arguments, system)
    except FenceError as error:
        system.error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) and not is_agent else EXIT_BAD
    except KeyboardInterrupt:
        system.error("interrupted; what was under way is not confirmed")
    except Exception as error:  # a defect of ours: still one line, and no exit code of success
        system.error(describe_defect(error))
    return EXIT_BAD


def read_call(argv):
    """Return (name, arguments); the name is that of an agent, however the program was started."""
    # The bytes as they were given: in the C locale Python 3.6 takes them for ASCII.
    words = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in argv[1:]]
    name = os.path.basename(argv[0])
    if name not in AGENTS and words and words[0] in AGENTS:
        return words[0], words[1:]
    return name, words


def read_pairs(agent, arguments, system):
    """Return the parameters of an agent's call as [(name, value)], from argv or from stdin."""
    if arguments:
        return parse_argv(arguments, agent.params)
    pairs = parse_stdin(system.read_stdin())
    if "action" not in collect_values(pairs, agent.params)[0]:
        # SAFETY: an off that has lost its action must not become the status of a person.
        # Test: test_a_call_on_stdin_without_an_action_is_refused
        raise UsageError("no action given (action=status on stdin, or -o status)")
    return pairs


def describe_defect(error):
    """Return one line for an exception that should not have come, with the place it came from."""
    import traceback
    place = traceback.extract_tb(error.__traceback__)[-1]
    return "internal error, please report it: %s: %s (%s line %d)" % (
        type(error).__name__, quote(str(error)), place.name, place.lineno)


def open_missing_descriptors():
    # SAFETY: with stderr closed, the connection to the plug would become stderr.
    # Test: test_closed_descriptors_are_no_hazard
    while os.open(os.devnull, os.O_RDWR) < 3:
        pass


def start():
    """Run the program and end the process; what install.sh puts at /usr/sbin/fencetool calls it."""
    open_missing_descriptors()
    # Not sys.exit: a name server that never answers must not hold the process in its thread, and
    # nothing is left to clean up.
    os._exit(main(sys.argv, os.environ))


if __name__ == "__main__":
    start()
