#!/bin/sh
# Make the virtual environment $1 with the first Python of 3.11 or newer that really runs.
set -eu

[ -x "$1/bin/python" ] && exit 0

for python in python3 python3.13 python3.12 python3.11 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        if "$python" -m venv "$1" 2>/dev/null; then
            exit 0
        fi
        rm -rf "$1"
        echo "error: $python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
done

case "$(uname -s)" in
    Darwin) command="brew install python@3.13" ;;
    *) command="apt-get install python3.11 python3.11-venv" ;;
esac
echo "error: Suri needs Python 3.11 or newer, and none was found; install one: $command" >&2
exit 1
