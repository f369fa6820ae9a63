#!/bin/sh
# Installs fencetool and the links under which Pacemaker and cluster-glue start it as an agent.
#
# The released file goes unchanged into a directory of its own, where Python compiles it once and
# not at every start; the program is a launcher of a few lines, to which the agents are linked.
# Everything is checked on a private copy first; what is put in place was written and run beside its
# target, and gets there by a rename. So the old version works until the new one does, whatever
# happens between.
# `sh install.sh --help` tells the options.
set -eu

SYSTEM_BIN=/usr/sbin                                  # the only place where Pacemaker looks
PLUGIN_DIR=/usr/lib/stonith/plugins/external          # cluster-glue's, where it is installed
SYSTEM_PATH=/usr/sbin:/usr/bin:/sbin:/bin
COMMANDS='cat chmod cksum cmp cp cut date find grep ln ls mkdir mktemp mv readlink rm rmdir sed
tail tr'
# Of all versions up to this one.
RELEASED_AGENTS='fence_kasa fence_http fence_check fence_tasmota fence_esphome fence_shelly_gen2'
NEWLINE='
'

usage() {
    cat <<'END'
usage: sh install.sh [--check | --uninstall] [options]

Installs fencetool.py in /usr/lib/fencetool and compiles it there; /usr/sbin/fencetool is a small
launcher of it, with a link to that for each fence agent in it. Under a name that agents of others
have too, a link is made only where no such agent is, whatever --force says. Where cluster-glue is
installed, also its plugin external/kasa.

  --from WHERE    what to install: a directory that holds fencetool.py, the file itself, or the
                  http(s) URL of either (a URL that ends in .py or has a ? is the file itself).
                  Default: the directory of install.sh
  --sha256 HEX    refuse any file that has another hash. An http:// URL needs it: sha256sum tells it
                  of a copy known to be right. Without it, https:// is left for nothing but https
  --prefix DIR    the directory for the programs (default: /usr/sbin, where Pacemaker looks);
                  fencetool.py itself then goes into DIR/.fencetool
  --force         replace files that are not fencetool's, and keep a copy of each
  --check         tell what is installed, whether its compiled copy and every link are right, and
                  whether it is the same file as the one at hand; changes nothing
  --uninstall     remove what install.sh made, and nothing else
  --dry-run       run every check and tell what would be done; changes nothing
  --help          this text

DESTDIR=DIR in the environment puts everything under DIR, links as they must be without it.
The Python to be used is the one in the first line of fencetool.py: /usr/bin/python3.
wget, curl or python3 fetches a URL, whichever is there.
Root neither runs nor replaces anything in a place that another user can change, and takes such
directories out of PATH; what to install, --from tells, is root's own choice.
Exit code: 0 good, 1 bad, 2 usage error.

examples:
  sh install.sh
  sh install.sh --from https://example.org/fencetool-1.0.0/ --sha256 0123...
  sh install.sh --check
END
}

# --- words -------------------------------------------------------------------------------------

say() {
    printf '%s\n' "$*"
}

note() {
    printf 'install.sh: %s\n' "$*" >&2
}

die() {
    note "$*"
    exit 1
}

usage_error() {
    note "$* (sh install.sh --help tells the options)"
    exit 2
}

# --- the command line --------------------------------------------------------------------------

parse_options() {
    mode=install from='' sha256='' prefix=$SYSTEM_BIN force=no dry_run=no
    while [ $# -gt 0 ]; do
        case $1 in
            --from=* | --sha256=* | --prefix=*) take_value "${1%%=*}" "${1#*=}" ;;
            --from | --sha256 | --prefix)
                [ $# -ge 2 ] || usage_error "$1 needs a value"
                take_value "$1" "$2"
                shift ;;
            --check | --uninstall) take_mode "${1#--}" ;;
            --force) force=yes ;;
            --dry-run) dry_run=yes ;;
            -h | --help) usage; exit 0 ;;
            *) usage_error "unknown option $1" ;;
        esac
        shift
    done
    if [ "$mode" = uninstall ] && [ -n "$from$sha256" ]; then
        usage_error "--uninstall takes neither --from nor --sha256"
    fi
}

take_value() {
    [ -n "$2" ] || usage_error "$1 needs a value"
    case $1 in
        --from) from=$2 ;;
        --sha256) sha256=$2 ;;
        --prefix) prefix=$2 ;;
    esac
}

take_mode() {
    case $mode in
        install | "$1") mode=$1 ;;
        *) usage_error "--check and --uninstall exclude each other" ;;
    esac
}

check_options() {
    sha256=$(printf '%s' "$sha256" | tr 'A-F' 'a-f')
    if [ -n "$sha256" ] && ! printf '%s\n' "$sha256" | grep -Eqx '[0-9a-f]{64}'; then
        usage_error "--sha256 needs 64 hexadecimal digits, not '$sha256'"
    fi
    case $from in
        http://*) [ -n "$sha256" ] || die_unproven ;;
    esac
    check_absolute --prefix "$prefix"
    destdir=${DESTDIR:-}
    [ -z "$destdir" ] || check_absolute DESTDIR "$destdir"
    prefix=${prefix%/}
    destdir=${destdir%/}
    bin_dir=$destdir$prefix
    plugin_dir=$destdir$PLUGIN_DIR
    program=$bin_dir/fencetool
    place_library
}

die_unproven() {
    die "over http nothing proves who sent $from: give --sha256 (sha256sum tells it of a copy" \
        "known to be right), or an https URL"
}

# The launcher finds the library by the way to it from its own place, so that what was put below
# DESTDIR works there and elsewhere. Two prefixes never share one: each can be removed alone.
place_library() {
    if [ "$prefix" = "$SYSTEM_BIN" ]; then
        library_way=../lib/fencetool final_library=${SYSTEM_BIN%/*}/lib/fencetool
    else
        library_way=.fencetool final_library=$prefix/.fencetool
    fi
    library=$destdir$final_library
    file=$library/fencetool.py
    copies=$library/__pycache__
}

check_absolute() {
    case $2 in
        *"$NEWLINE"*) usage_error "$1 must not contain a newline" ;;
        /?*) ;;
        *) usage_error "$1 must be an absolute path below /, not '$2'" ;;
    esac
}

check_commands() {
    for command in $COMMANDS; do
        command -v "$command" >/dev/null || die "$command is missing: install it first"
    done
}

# --- what other users can change ---------------------------------------------------------------

# Root must run nothing that another user can change, and a directory that he can change leads root
# anywhere. Nobody else is at risk from his own files: for him nothing of this is checked.
# Sets caller, and PATH to what root can trust of it.
choose_path() {
    given_path=${PATH:-$SYSTEM_PATH}:
    PATH=$SYSTEM_PATH
    caller=$(id -u)
    trusted_path=
    while [ -n "$given_path" ]; do
        directory=${given_path%%:*}
        given_path=${given_path#*:}
        if [ "$caller" -ne 0 ] || { [ -d "$directory" ] && is_roots "$directory"; }; then
            trusted_path=$trusted_path:$directory
        fi
    done
    PATH=${trusted_path#:}
}

# is_roots PATH: it and each directory and link on the way to it can be changed by root only. In a
# sticky directory such as /tmp, others cannot touch what is root's. What is not there is nobody's.
# Sets foreign to what others can change.
is_roots() {
    [ "$caller" -eq 0 ] || return 0
    foreign=$1
    case $1 in
        /*) ;;
        *) return 1 ;;
    esac
    part=$1
    set -- /
    while [ -n "$part" ]; do
        [ ! -e "$part" ] || set -- "$@" "$part"
        part=${part%/*}
    done
    others=$(find "$@" -prune \( ! -user 0 -o ! -type l \( -perm -020 -o -perm -002 \) \
        ! \( -type d -perm -1000 \) \)) || return 1
    if [ -n "$others" ]; then
        foreign=${others%%"$NEWLINE"*}
        return 1
    fi
    for part in "$@"; do
        [ ! -L "$part" ] || is_roots "$(link_target "$part")" || return 1
    done
}

link_target() {
    target=$(readlink "$1")
    case $target in
        /*) printf '%s\n' "$target" ;;
        *) printf '%s/%s\n' "${1%/*}" "$target" ;;
    esac
}

check_roots() {
    for path in "$@"; do
        is_roots "$path" || die "others than root can change $foreign: root runs and replaces" \
            "nothing there; mend its owner and mode (chown root, chmod go-w)"
    done
}

# --- the file to install -----------------------------------------------------------------------

# Everything up to the first change happens on a private copy, so that what was checked is what
# gets installed, even if the original changes meanwhile.
take_source() {
    new=$work/fencetool.py
    [ -n "$from" ] || from=$(script_dir)
    case $from in
        http://* | https://*) fetch "$(file_url "$from")" ;;
        *://*) die "cannot fetch $from: only http and https are known" ;;
        *) copy_source ;;
    esac
    check_hash "$new" "$source"
    check_file "$new" "$source"
    version=$found_version agents=$found_agents others=$found_others
    write_launcher "$new" >"$work/launcher" || die "cannot write to $work: is there space?"
}

script_dir() {
    case $0 in
        */*) printf '%s\n' "${0%/*}" ;;
        *) printf '.\n' ;;
    esac
}

copy_source() {
    source=$from
    if [ -d "$from" ]; then
        source=$from/fencetool.py
    fi
    [ -f "$source" ] || die "no fencetool.py at $source: name its place with --from"
    [ -r "$source" ] || die "cannot read $source: mend its mode"
    cat <"$source" >"$new" || die "cannot copy $source to $work: is there space?"
}

file_url() {
    case $1 in
        *.py | *\?*) printf '%s\n' "$1" ;;
        */) printf '%sfencetool.py\n' "$1" ;;
        *) printf '%s/fencetool.py\n' "$1" ;;
    esac
}

fetch() {
    source=$1
    # Nothing but the certificates on the whole way says whose file it is, unless its hash is known.
    if [ -n "$sha256" ]; then
        protocols=http,https hint=
    else
        protocols=https hint=' (without --sha256, over nothing but https)'
    fi
    tried=
    for tool in curl wget python3; do
        command -v "$tool" >/dev/null || continue
        if [ "$tool" = wget ] && [ "$protocols" = https ] && ! is_gnu_wget; then
            tried="$tried (not every wget checks certificates: give --sha256, or install curl)"
        elif fetch_with "$tool" </dev/null 2>"$work/stderr"; then
            return 0
        else
            tried="$tried ($tool: $(reason))"
        fi
    done
    [ -n "$tried" ] || die "cannot fetch $source: install wget, curl or python3"
    die "cannot fetch $source$hint:$tried"
}

is_gnu_wget() {
    wget --version 2>/dev/null </dev/null | grep -q '^GNU Wget 1'
}

# -q: no ~/.curlrc, which may say that certificates are not to be checked.
fetch_with() {
    case $1 in
        curl)
            curl -q -fsSL --proto "=$protocols" --proto-redir "=$protocols" \
                --connect-timeout 20 --max-time 300 -o "$new" "$source" ;;
        wget) fetch_with_wget ;;
        python3) fetch_with_python ;;
    esac
}

# GNU wget follows a redirect from https to http even with --https-only (1.21), so it gets none to
# follow. The one of busybox 1.35 crashes when it is given -T.
fetch_with_wget() {
    if [ "$protocols" = https ]; then
        wget --check-certificate --max-redirect=0 -T 20 -O "$new" "$source"
    elif is_gnu_wget; then
        wget -T 20 -O "$new" "$source"
    else
        wget -O "$new" "$source"
    fi
}

# read() without a size is the form that notices a connection that ended too early.
fetch_with_python() {
    python3 -IS -c '
import sys, urllib.request
url, path, protocols = sys.argv[1:]

class Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, reply, code, message, headers, target):
        if target.split(":")[0].lower() not in protocols.split(","):
            sys.exit("it redirects to " + ascii(target))
        return super().redirect_request(request, reply, code, message, headers, target)

try:
    with urllib.request.build_opener(Redirects).open(url, timeout=20) as reply:
        body = reply.read()
    with open(path, "wb") as target:
        target.write(body)
except Exception as error:
    sys.exit(str(error) or type(error).__name__)
' "$source" "$new" "$protocols"
}

check_hash() {
    [ -n "$sha256" ] || return 0
    hash=$(hash_of "$1")
    [ "$hash" = "$sha256" ] || die "$2 has the sha256 $hash, not the one of --sha256: do not use it"
}

hash_of() {
    if command -v sha256sum >/dev/null; then
        sha256sum <"$1" | cut -c 1-64
    else
        hash_python=$(command -v python3 || printf '/usr/bin/python3\n')
        [ -x "$hash_python" ] || die "cannot tell a sha256: install sha256sum or python3"
        "$hash_python" -IS -c '
import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' <"$1"
    fi
}

# Sets python and found_version, found_agents, found_others. $2 is what to call it in messages.
check_file() {
    is_fencetool "$1" || die "$2 is not fencetool.py: is the place right?"
    ! is_launcher "$1" || die "$2 only starts fencetool.py: name the place of that file"
    python=$(python_of "$1")
    check_python "$2"
    ask "$python" -IS "$1" --version || die "$2 --version failed: $(reason)"
    case $answer in
        'fencetool '[0-9]*) found_version=${answer#fencetool } ;;
        *) die "$2 does not tell its version: it is damaged, fetch it again" ;;
    esac
    ask "$python" -IS "$1" agents || die "$2 agents failed: $(reason)"
    take_agents "$answer" || die "$2 does not name its agents: it is damaged, fetch it again"
    take_others "$python" "$1"
}

# Names that agents of others have too; versions before know none. Sets found_others.
take_others() {
    own_agents=$found_agents found_others=
    if ask "$1" -IS "$2" agents --others && take_agents "$answer"; then
        found_others=$found_agents
    fi
    found_agents=$own_agents
}

python_of() {
    sed -n '1s/^#! *\(\/[^[:space:]]*\).*$/\1/p' "$1"
}

# The names become paths: one with a slash in it could make a link anywhere.
take_agents() {
    case $1 in
        *[!a-z0-9_'
']*) return 1 ;;
    esac
    found_agents=
    for name in $1; do
        case $name in
            fence_?*) found_agents="$found_agents$name " ;;
            *) return 1 ;;
        esac
    done
    [ -n "$found_agents" ]
}

# The first line of its description is what tells every fencetool.py, and every launcher of one,
# from other files: on the second line, in versions 0.1.0 on the fifth or sixth.
is_fencetool() {
    has_description '"""fencetool: ' "$1"
}

is_launcher() {
    has_description '"""fencetool: the launcher' "$1"
}

has_description() {
    [ -f "$2" ] && [ -r "$2" ] || return 1
    lines=0
    while [ "$lines" -lt 6 ] && IFS= read -r line; do
        lines=$((lines + 1))
        case $lines:$line in
            [256]:"$1"*) return 0 ;;
        esac
    done <"$2"
    return 1
}

# -I is unknown to a Python that is too old to tell so; -E and -S every Python knows.
check_python() {
    case $python in
        */python3*) ;;
        *) die "the first line of $1 names no python3: it is damaged, fetch it again" ;;
    esac
    [ -x "$python" ] ||
        die "$python is missing: install Python 3.6 or newer with the system's package manager"
    check_roots "$python"
    "$python" -ES -c 'import sys; sys.exit(sys.version_info < (3, 6))' </dev/null 2>/dev/null ||
        die "$python is $("$python" -V </dev/null 2>&1 || :), fencetool needs Python 3.6 or newer"
}

# Runs a program away from our own stdin: an agent may wait there for its parameters.
ask() {
    answer=$("$@" </dev/null 2>"$work/stderr")
}

# The last line, but for curl, which has advice below it.
reason() {
    said=$(grep '^curl: (' "$work/stderr" || sed '/^[[:space:]]*$/d' "$work/stderr" | tail -n 1)
    printf '%s\n' "${said:-it did not tell why}"
}

# --- the launcher and the compiled copy --------------------------------------------------------

# The file whose launcher it is tells the Python.
write_launcher() {
    cat <<END
$(sed -n 1p "$1")
"""fencetool: the launcher, made by install.sh. It runs fencetool.py in LIBRARY.

It takes the compiled copy there if that is whole, made from this very file and by this very Python,
and else compiles the file. What is wrong with the copy makes no difference but in time.
"""
import gc
import os
import sys

LIBRARY = os.path.normpath(os.path.join(
    os.path.dirname(os.path.realpath(__file__)), "$library_way"))
FILE = LIBRARY + "/fencetool.py"
sys.dont_write_bytecode = True  # a fence is no time to write to a system directory


def import_copy():
    """Return what starts the program; raise any exception at all if the copy is not good."""
    import zlib
    with open("%s/__pycache__/fencetool.%s.pyc" % (LIBRARY, sys.implementation.cache_tag),
              "rb") as copy:
        data = copy.read()
    # SAFETY: Python itself would run damaged instructions, and ignores what follows them: the sum.
    # Test: test_copy_with_a_wrong_byte_anywhere_is_not_run
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ImportError("damaged")
    sys.path.append(LIBRARY)  # last: no module of Python's is looked for in it
    gc.disable()              # definitions are no garbage: to look through them takes 1 ms
    import fencetool
    if hasattr(gc, "freeze"):  # from Python 3.7 on
        gc.freeze()
    return fencetool.start


def compile_file():
    try:
        with open(FILE, "rb") as source:
            return compile(source.read(), FILE, "exec")
    except Exception as error:
        sys.exit("fencetool: cannot run %s: %s: install fencetool again"
                 % (FILE, getattr(error, "strerror", None) or error))


try:
    start = import_copy()
except Exception:
    start = None
gc.enable()
# SAFETY: nothing has run yet but definitions, and from here on nothing is tried twice. A program
# that comes back has not ended as it should: half a file must not pass for a success.
# Test: test_program_that_fails_is_not_run_a_second_time, test_half_a_file_is_no_success
if start:
    start()
else:
    exec(compile_file(), {"__name__": "__main__", "__file__": FILE})
sys.exit("fencetool: %s is not whole: install fencetool again" % FILE)
END
}

# The copy ends with its own checksum, which is how the launcher knows that it is whole. Its head
# holds the size and the time of the file. Sets copy_name, which tells the Python.
compile_copy() {
    ask "$python" -IS -c '
import importlib.util, os, py_compile, sys, zlib
file, final = sys.argv[1:]
copy = py_compile.compile(file, importlib.util.cache_from_source(file), final, doraise=True)
with open(copy, "rb") as handle:
    checksum = zlib.crc32(handle.read())
with open(copy, "ab") as handle:
    handle.write(checksum.to_bytes(4, "little"))
    handle.flush()
    os.fsync(handle.fileno())
os.chmod(copy, 0o644)
print(os.path.basename(copy))' "$1" "$final_library/fencetool.py" ||
        die "cannot compile fencetool.py in $library: $(reason)"
    copy_name=$answer
}

# reason tells what is wrong with it.
is_copy_good() {
    ask "$python" -IS -c '
import importlib.machinery, importlib.util, os, sys, zlib

class Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, *_, **__):
        sys.exit("it is not of this very file")

path = importlib.util.cache_from_source(sys.argv[1])
version = "%d.%d" % sys.version_info[:2]
try:
    with open(path, "rb") as copy:
        data = copy.read()
        status = os.fstat(copy.fileno())
except FileNotFoundError:
    sys.exit("there is none for Python " + version)
except OSError as error:
    sys.exit("%s: %s" % (path, error.strerror))
if data[:4] != importlib.util.MAGIC_NUMBER:
    sys.exit("it is damaged, or of another Python than this " + version)
if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
    sys.exit("it is damaged, or not made by install.sh")
if status.st_mode & 0o777 != 0o644:
    sys.exit("it has not the mode 644")
if os.getuid() == 0 and status.st_uid != 0:
    sys.exit("others than root can change it")
Loader("fencetool", sys.argv[1]).get_code("fencetool")
print(version)' "$file"
}

# --- what is there already ---------------------------------------------------------------------

is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# What install.sh makes, and nothing else: each thing at its own place, a link only under the name
# of an agent that fencetool has or had.
is_own() {
    case $1 in
        *"$NEWLINE"*) return 1 ;;
        "$program" | "$file") [ ! -L "$1" ] && is_fencetool "$1" ;;
        "$plugin_dir/kasa") is_link_to "$1" "$prefix/fencetool" ;;
        "$copies"/fencetool.*.pyc) [ ! -L "$1" ] && [ -f "$1" ] ;;
        "$bin_dir"/*) is_known "${1##*/}" && is_link_to_program "$1" ;;
        *) return 1 ;;
    esac
}

is_link_to_program() {
    is_link_to "$1" fencetool || is_link_to "$1" "$prefix/fencetool"
}

is_known() {
    case " $known " in
        *" $1 "*) return 0 ;;
    esac
    return 1
}

# Sets known. The installed file tells its agents, in 0.1.0 the program does; a run that was killed
# has noted what the file told that it may have replaced.
find_known() {
    known="$RELEASED_AGENTS $agents$others"
    for path in "$file" "$program"; do
        told=$(tell_agents "$path") || told=
        known="$known $told"
    done
    for path in "$bin_dir"/.fencetool-new.*/agents; do
        if [ -f "$path" ] && is_roots "$path" && read -r told <"$path"; then
            known="$known $told"
        fi
    done
}

tell_agents() {
    is_own "$1" && ! is_launcher "$1" && is_roots "$1" || return 1
    teller=$(python_of "$1")
    [ -x "$teller" ] && is_roots "$teller" && ask "$teller" -IS "$1" agents || return 1
    take_agents "$answer" || return 1
    take_others "$teller" "$1"
    printf '%s\n' "$found_agents$found_others"
}

# An agent of a package, or of anybody else, keeps its name, whatever --force says: only a name that
# is free, or ours already, gets a link. Sets agents to all that are to be there.
leave_taken_names() {
    for name in $others; do
        if is_there "$bin_dir/$name" && ! is_own "$bin_dir/$name"; then
            say "left as it is: $bin_dir/$name, another agent of that name"
        else
            agents="$agents$name "
        fi
    done
}

is_link_to() {
    [ -L "$1" ] && [ "$(readlink "$1")" = "$2" ]
}

# is_same_program PATH WANTED: a regular file of that content that everybody may run.
is_same_program() {
    [ ! -L "$1" ] && [ -f "$1" ] && cmp -s "$1" "$2" && is_program "$1"
}

is_program() {
    [ -n "$(find "$1" -perm 755)" ] && is_roots "$1"
}

is_library_right() {
    is_same_program "$file" "$new" && is_copy_good
}

is_program_right() {
    is_same_program "$program" "$work/launcher"
}

is_agent() {
    case " $agents " in
        *" $1 "*) return 0 ;;
    esac
    return 1
}

# Links of an earlier version to agents that this one does not have.
is_stale() {
    is_own "$1" && ! is_agent "${1##*/}"
}

is_all_right() {
    is_library_right && is_program_right || return 1
    for name in $agents; do
        is_link_to "$bin_dir/$name" fencetool || return 1
    done
    for path in "$bin_dir"/fence_*; do
        ! is_stale "$path" || return 1
    done
    [ ! -d "$plugin_dir" ] || is_link_to "$plugin_dir/kasa" "$prefix/fencetool"
}

check_targets() {
    for path in "$library" "$copies"; do
        if is_there "$path" && { [ -L "$path" ] || [ ! -d "$path" ]; }; then
            die "$path is not a directory: move it away first"
        fi
    done
    for path in "$file" "$copies"/fencetool.*.pyc "$program"; do
        check_target "$path"
    done
    for name in $agents; do
        check_target "$bin_dir/$name"
    done
    if [ -d "$plugin_dir" ]; then
        check_target "$plugin_dir/kasa"
    fi
}

check_target() {
    if ! is_there "$1" || is_own "$1"; then
        return 0
    fi
    case $1 in
        *"$NEWLINE"*) die "a file in $copies has a newline in its name: move it away first" ;;
    esac
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        die "$1 is a directory: move it away first"
    fi
    [ "$force" = yes ] ||
        die "$1 is not fencetool's: move it away, or use --force, which keeps a copy"
}

check_writable() {
    for dir in "$bin_dir" "$library" "$copies" "$plugin_dir"; do
        if [ -d "$dir" ] && [ ! -w "$dir" ]; then
            die "cannot write to $dir: run this as root"
        fi
    done
}

# --- changes that can be taken back ------------------------------------------------------------

# A directory of our own beside each target: a rename out of it is atomic, and neither Pacemaker
# nor cluster-glue (which lists even hidden files as plugins) takes anything in it for an agent.
make_stages() {
    make_directory "$bin_dir"
    make_directory "$copies"
    clear_leftovers_of "$$"     # of a dead run that had our number
    stage=$bin_dir/.fencetool-new.$$
    mkdir "$stage" || die "cannot write to $bin_dir: run this as root"
    printf '%s\n' "$known" >"$stage/agents" || die "cannot write to $bin_dir: is there space?"
    library_stage=$library/.fencetool-new.$$
    mkdir "$library_stage" || die "cannot write to $library: run this as root"
    if [ -d "$plugin_dir" ]; then
        plugin_stage=$plugin_dir/.fencetool-new.$$
        mkdir "$plugin_stage" || die "cannot write to $plugin_dir: run this as root"
    fi
    remove_leftovers
}

# With its parents; a run that fails removes those that it made, the newest first.
make_directory() {
    if [ -z "$1" ] || [ -d "$1" ]; then
        return 0
    fi
    make_directory "${1%/*}"
    made=$1$NEWLINE$made
    mkdir "$1" || die "cannot make the directory $1: run this as root"
}

remove_made() {
    while [ -n "$made" ]; do
        path=${made%%"$NEWLINE"*}
        made=${made#*"$NEWLINE"}
        [ ! -d "$path" ] || rmdir "$path" || left_behind "$path"
    done
}

# A run that was killed could not clean up; a run that is still going on is left alone.
remove_leftovers() {
    [ -n "$stage" ] || clear_leftovers_of "$$"
    for leftover in "$bin_dir"/.fencetool-new.* "$library"/.fencetool-new.* \
        "$plugin_dir"/.fencetool-new.*; do
        number=${leftover##*.}
        case $number in
            '' | *[!0-9]*) ;;
            *) kill -0 "$number" 2>/dev/null || clear_leftovers_of "$number" ;;
        esac
    done
}

clear_leftovers_of() {
    for leftover in "$bin_dir" "$library" "$plugin_dir"; do
        leftover=$leftover/.fencetool-new.$1
        if [ -d "$leftover" ] && [ ! -L "$leftover" ]; then
            rm -rf "$leftover" || die "cannot remove $leftover: run this as root"
        fi
    done
}

# replace TARGET NEW: the rename; what was there is noted first, and kept if it is not ours.
replace() {
    keep "$1"
    if [ -d "$1" ]; then
        rm -f "$1"      # a link to a directory, which mv would move into instead of replacing it
    fi
    mv -f "$2" "$1" || die "cannot replace $1"
    say "wrote $1"
}

remove() {
    keep "$1"
    rm -f "$1" || die "cannot remove $1"
    say "removed $1"
}

keep() {
    if is_there "$1" && ! is_own "$1"; then
        keep_backup "$1"
    fi
    remember "$1"
}

# Every regular file /usr/sbin/fence_* is an agent to Pacemaker, and every one in cluster-glue's
# directory a plugin. Hence the dot, and hence all copies stay beside the program.
keep_backup() {
    backup=$(backup_name "$1")
    remember "$backup"
    copy_as_is "$1" "$backup" || die "cannot keep a copy of $1 as $backup: is there space?"
    say "kept $1 as $backup"
}

backup_name() {
    name=${1##*/}
    [ "$1" != "$plugin_dir/kasa" ] || name=external-kasa
    free=$bin_dir/.$name.saved-$(date +%Y%m%d-%H%M%S)
    while is_there "$free"; do
        free=${free}x
    done
    printf '%s\n' "$free"
}

# A second name for the same file needs no space and cannot be half written.
copy_as_is() {
    if [ -L "$1" ]; then
        ln -s "$(readlink "$1")" "$2"
    elif ! ln "$1" "$2" 2>/dev/null; then
        original=$(state_of "$1") && cp -p "$1" "$2" && has_state "$2" "$original"
    fi
}

# Tells mode, owner, group, size and checksum of a file, or what else is there.
state_of() {
    if [ -L "$1" ]; then
        printf 'link to %s\n' "$(readlink "$1")"
    elif [ -f "$1" ]; then
        listing=$(ls -ldn "$1") && checksum=$(cksum <"$1") || return 1
        printf '%s\n' "$listing" | tr -s ' ' | cut -d ' ' -f 1,3-5
        printf '%s\n' "$checksum"
    elif [ -e "$1" ]; then
        printf 'neither file nor link\n'
    else
        printf 'nothing\n'
    fi
}

has_state() {
    found_state=$(state_of "$1") && [ "$found_state" = "$2" ]
}

# The journal holds one line for each change, the newest first: a number, what was at the path, and
# the path. What was there is kept in the stage under that number.
remember() {
    changes=$((changes + 1))
    was=free
    if is_there "$1"; then
        was=taken
        copy_as_is "$1" "$stage/before.$changes" || die "cannot save $1 in $stage: is there space?"
    fi
    journal="$changes $was $1$NEWLINE$journal"
}

# SAFETY: nothing here may need space. bash keeps a here-document in a file, and a loop over one
# that could not be written ends as if all was done; set -e means nothing within a condition.
# Test: test_full_temporary_directory_in_the_middle_is_taken_back
undo() {
    undone=yes
    while [ -n "$journal" ]; do
        change=${journal%%"$NEWLINE"*}
        journal=${journal#*"$NEWLINE"}
        number=${change%% *} change=${change#* }
        was=${change%% *} path=${change#* }
        if ! take_back; then
            note "cannot put back $path"
            undone=no
        fi
    done
    [ "$undone" = yes ]
}

take_back() {
    saved=$stage/before.$number
    original=nothing
    if [ "$was" = free ]; then
        rm -f "$path"
    else
        is_there "$saved" && original=$(state_of "$saved") || return 1
        # What was not changed yet stays: mv would move into a link to a directory.
        has_state "$path" "$original" || mv -f "$saved" "$path"
    fi
    has_state "$path" "$original"
}

cleanup() {
    trap '' HUP INT PIPE TERM
    journal_was=$journal left=no
    if undo; then
        clear_away "$stage"
        clear_away "$library_stage"
        clear_away "$plugin_stage"
        remove_made
        if [ -n "$journal_was" ] && [ "$left" = no ]; then
            note "taken back: all is as it was before"
        fi
    else
        note "not everything is as it was before: what was there is in $stage"
    fi
    clear_away "$work"
}

stop() {
    note "interrupted"
    exit "$1"
}

clear_away() {
    [ -z "$1" ] || rm -rf "$1" || left_behind "$1"
}

left_behind() {
    left=yes
    note "left behind: $1"
}

prepare() {
    stage='' library_stage='' plugin_stage='' work='' journal='' made='' changes=0
    agents='' others=''
    umask 022
    LC_ALL=C
    export LC_ALL
    trap cleanup EXIT
    trap 'stop 129' HUP
    trap 'stop 130' INT
    trap 'stop 141' PIPE
    trap 'stop 143' TERM
    TMPDIR=${TMPDIR:-/tmp}
    is_roots "$TMPDIR" || TMPDIR=/tmp
    work=$(mktemp -d "$TMPDIR/fencetool-install.XXXXXX") ||
        die "cannot make a temporary directory: set TMPDIR to one with space"
}

# --- install -----------------------------------------------------------------------------------

install() {
    take_source
    find_known
    leave_taken_names
    check_targets
    if is_all_right; then
        check_agents "$bin_dir"
        [ "$dry_run" = yes ] || remove_leftovers
        say "fencetool $version is already installed in $bin_dir: nothing to do"
    elif [ "$dry_run" = yes ]; then
        tell_plan
    else
        check_writable
        make_stages
        write_new
        put_in_place
        check_installed
        journal='' made=''
        say "fencetool $version installed in $bin_dir; fence agents: ${agents% }"
    fi
    [ "$prefix" = "$SYSTEM_BIN" ] || note "note: Pacemaker finds agents only in $SYSTEM_BIN"
}

tell_plan() {
    is_same_program "$file" "$new" || tell_write "$file" "fencetool $version"
    is_library_right || say "would compile $file"
    is_program_right || tell_write "$program" "launcher"
    for name in $agents; do
        is_link_to "$bin_dir/$name" fencetool || tell_write "$bin_dir/$name" "link to fencetool"
    done
    for path in "$bin_dir"/fence_*; do
        ! is_stale "$path" || say "would remove $path (this version has no such agent)"
    done
    if [ -d "$plugin_dir" ] && ! is_link_to "$plugin_dir/kasa" "$prefix/fencetool"; then
        tell_write "$plugin_dir/kasa" "link to $prefix/fencetool"
    fi
}

tell_write() {
    if is_there "$1" && ! is_own "$1"; then
        say "would keep $1 as $(backup_name "$1")"
    fi
    say "would write $1 ($2)"
}

# Written and run where it will be used: a full disk, a mount with noexec or a missing
# interpreter shows here, while the old version is still in its place.
write_new() {
    stage_bin=$stage/bin
    mkdir "$stage_bin" "$stage/lib" || die "cannot write to $bin_dir: is there space?"
    write_program "$new" "$library_stage/fencetool.py" "$library"
    compile_copy "$library_stage/fencetool.py"
    write_program "$work/launcher" "$stage_bin/fencetool" "$bin_dir"
    ln -s "$library_stage" "$stage_bin/$library_way" || die "cannot make links in $bin_dir"
    ask "$stage_bin/fencetool" --version ||
        die "the new fencetool does not run in $bin_dir: $(reason)"
    for name in $agents; do
        ln -s fencetool "$stage_bin/$name" || die "cannot make links in $bin_dir"
    done
    check_agents "$stage_bin"
    if [ -n "$plugin_stage" ]; then
        ln -s "$prefix/fencetool" "$plugin_stage/kasa" || die "cannot make links in $plugin_dir"
    fi
}

# write_program FROM TO DIRECTORY: the directory is what to call the place in messages.
write_program() {
    cp "$1" "$2" || die "cannot write to $3: is there space?"
    chmod 755 "$2" || die "cannot set the mode of a file in $3"
    cmp -s "$1" "$2" || die "cannot write to $3: is there space?"
    sync_file "$2"
}

# A node may lose its power at any moment, here of all places: without this some file systems
# would come back with the new name and no content.
sync_file() {
    "$python" -IS -c 'import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))' "$1" ||
        die "cannot write $1 to the disk"
}

# The file first, then its launcher: old links work with it, new ones only from then on.
put_in_place() {
    is_library_right || put_library_in_place
    is_program_right || replace "$program" "$stage_bin/fencetool"
    for name in $agents; do
        is_link_to "$bin_dir/$name" fencetool || replace "$bin_dir/$name" "$stage_bin/$name"
    done
    for path in "$bin_dir"/fence_*; do
        ! is_stale "$path" || remove "$path"
    done
    if [ -n "$plugin_stage" ] && ! is_link_to "$plugin_dir/kasa" "$prefix/fencetool"; then
        replace "$plugin_dir/kasa" "$plugin_stage/kasa"
    fi
}

# Python takes a copy for good that has the size of the file, and its time in seconds: no copy of
# the old file may be there when the new one is.
put_library_in_place() {
    for path in "$copies"/fencetool.*.pyc; do
        ! is_there "$path" || remove "$path"
    done
    replace "$file" "$library_stage/fencetool.py"
    replace "$copies/$copy_name" "$library_stage/__pycache__/$copy_name"
}

check_installed() {
    check_agents "$bin_dir"
    is_copy_good || die "$file: its compiled copy is not good: $(reason)"
    is_all_right || die "something in $bin_dir or $library is not what was put there"
}

check_agents() {
    for name in $agents; do
        answers_metadata "$1/$name" || die "$1/$name -o metadata failed: $(reason)"
    done
}

answers_metadata() {
    ask "$1" -o metadata || return 1
    case $answer in
        *'<resource-agent'*'</resource-agent>'*) return 0 ;;
    esac
    echo "its answer is no metadata" >"$work/stderr"
    return 1
}

# --- check -------------------------------------------------------------------------------------

check() {
    problems=0
    if ! is_there "$program"; then
        bad "fencetool is not installed in $bin_dir"
    elif [ -L "$program" ] || ! is_own "$program"; then
        bad "$program is not fencetool's"
    elif is_launcher "$program" && ! is_own "$file"; then
        bad "$file, which $program starts, is missing or is not fencetool's"
    else
        check_roots "$program" "$file" "$copies"/fencetool.*.pyc
        find_known
        report_program
        report_links
        report_source
    fi
    [ "$problems" -eq 0 ] || die "$problems problem(s) found: install again to mend them"
}

good() {
    say "ok   $*"
}

bad() {
    say "BAD  $*"
    problems=$((problems + 1))
}

report_program() {
    installed=$program
    ! is_launcher "$program" || installed=$file
    check_file "$installed" "$installed"
    version=$found_version agents=$found_agents others=$found_others
    leave_taken_names
    installed_hash=$(hash_of "$installed")
    good "$installed: fencetool $version, sha256 $installed_hash"
    [ -n "$(find "$installed" -perm 755)" ] || bad "$installed has not the mode 755"
    if [ "$installed" = "$file" ]; then
        report_copy
        report_launcher
    else
        bad "$program is fencetool.py itself, which starts slower than by a launcher"
    fi
}

report_copy() {
    if is_copy_good; then
        good "$copies: compiled by Python $answer"
    else
        bad "$file has no good compiled copy and starts slower: $(reason)"
    fi
}

report_launcher() {
    write_launcher "$file" >"$work/launcher" || die "cannot write to $work: is there space?"
    if is_program_right; then
        good "$program starts it"
    elif cmp -s "$program" "$work/launcher"; then
        bad "$program has not the mode 755"
    else
        bad "$program is not the launcher that this install.sh makes"
    fi
}

report_links() {
    for name in $agents; do
        report_link "$bin_dir/$name" fencetool
        if is_link_to "$bin_dir/$name" fencetool && ! answers_metadata "$bin_dir/$name"; then
            bad "$bin_dir/$name -o metadata failed: $(reason)"
        fi
    done
    for path in "$bin_dir"/fence_*; do
        ! is_stale "$path" || bad "$path is a link to an agent that fencetool $version has not"
    done
    if [ -d "$plugin_dir" ]; then
        report_link "$plugin_dir/kasa" "$prefix/fencetool"
    else
        good "no plugin external/kasa needed: there is no $plugin_dir"
    fi
}

report_link() {
    if is_link_to "$1" "$2"; then
        good "$1 -> $2"
    elif is_there "$1"; then
        bad "$1 is not a link to $2"
    else
        bad "$1 is missing"
    fi
}

# Without --from, --check is as useful where install.sh was the only file that was copied.
report_source() {
    if [ -z "$from" ] && [ ! -f "$(script_dir)/fencetool.py" ]; then
        if [ -z "$sha256" ]; then
            say "     no fencetool.py at hand to compare with"
        elif [ "$installed_hash" = "$sha256" ]; then
            good "it has the hash of --sha256"
        else
            bad "it has not the hash of --sha256"
        fi
        return 0
    fi
    take_source
    if cmp -s "$new" "$installed"; then
        good "same file as $source"
    else
        bad "not the same file as $source (fencetool $version)"
    fi
}

# --- uninstall ---------------------------------------------------------------------------------

# The links go first: an agent that is gone is a plainer answer than a link to nothing.
uninstall() {
    removed=no
    find_known
    for path in "$plugin_dir/kasa" "$bin_dir"/fence_* "$program" "$copies"/fencetool.*.pyc \
        "$file"; do
        if is_own "$path"; then
            uninstall_path "$path"
        fi
    done
    if [ "$dry_run" = no ]; then
        remove_leftovers
        uninstall_library
    fi
    [ "$removed" = yes ] || say "nothing of fencetool's in $bin_dir: nothing to do"
    for path in "$bin_dir"/fence_*; do
        if is_link_to_program "$path" && ! is_own "$path"; then
            say "left as it is: $path, a link that install.sh did not make"
        fi
    done
    for path in "$bin_dir"/.*.saved-*; do
        ! is_there "$path" || say "left as it is: $path, a copy that --force kept"
    done
}

uninstall_path() {
    removed=yes
    if [ "$dry_run" = yes ]; then
        say "would remove $1"
        return 0
    fi
    rm -f "$1" || die "cannot remove $1: run this as root"
    say "removed $1"
}

# Even where nothing is left in it: a run that was killed may have made no more than that.
uninstall_library() {
    [ ! -d "$copies" ] || rmdir "$copies" 2>/dev/null || :
    [ -d "$library" ] || return 0
    if rmdir "$library" 2>/dev/null; then
        removed=yes
        say "removed $library"
    else
        say "left as it is: $library, which is not empty"
    fi
}

main() {
    choose_path
    parse_options "$@"
    check_commands
    check_options
    check_roots "$bin_dir" "$copies" "$plugin_dir"
    prepare
    case $mode in
        install) install ;;
        check) check ;;
        uninstall) uninstall ;;
    esac
}

# Half a download ends before the closing brace, and then nothing at all is run.
{ main "$@"; }
