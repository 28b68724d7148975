#!/usr/bin/env bash
# Measures students and extraction on a GPU, for docs/reference/performance.md, in under 15 minutes.
# Usage: bash benchmarks/on_gpu.sh DATA TEACHER OUT
#
# DATA holds SuperGLUE in the official layout, TEACHER a classifier's encoder of 110 M parameters. Each part has a limit
# of seconds, and leaves a table or an error in OUT.
set -u
data=$1 teacher=$2 out=$3
here=$(dirname "$0")
mkdir -p "$out"

part() { # NAME SECONDS SCRIPT ARGUMENTS …
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" python "$here/$1" "${@:2}" > "$out/$name.md" 2> "$out/$name.err"
    echo "$name: exit status $?"
}

wic=(--data "$data" --task wic --dtype bfloat16)
students=(students.py "${wic[@]}" --rows 1024 --layers 6 --pooling mean --device cuda --rounds 2)
part careful 180 "${students[@]}" --only "careful live" "careful column" kdcache "one pass" "pass of 48"
part compiled 240 "${students[@]}" --only "compiled live" "compiled column" "one pass"
part passes 120 passes.py "${wic[@]}"
part replay 120 replay.py "${wic[@]}"
part extract 150 extract.py "$data" --device cuda --dtype bfloat16 --model "$teacher"
