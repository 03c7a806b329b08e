#!/usr/bin/env bash
# One command from a bare Debian 12 to a built, tested or running Shardwright. Safe to repeat: what is there is kept.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./bootstrap.sh COMMAND

  build             install the packages that are missing, build everything into build/bin/
  run ARGS...       build shardplan and run it, e.g. ./bootstrap.sh run compare scenarios/llama-2-7b-8xa100.json
  test              build and run all tests
  asan              the same under the address and undefined behaviour sanitizers (clang, build-asan/)
  tsan              the tests of what has threads (executor, search) under the thread sanitizer (clang, build-tsan/)
  fuzz [SECONDS]    run every fuzz target for so long, 20 seconds by default (clang, build-asan/)
  bench [ARGS...]   build and run the benchmarks; ARGS go to Google Benchmark
  format [--check]  clang-format all sources; --check changes nothing and fails where it would

Packages are installed with apt-get, as root or through sudo. CMAKE_BUILD_PARALLEL_LEVEL=N limits parallel compiles.
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Everything that is ever installed stands here. libclang-rt and llvm are only recommended by clang, but the
# sanitizers' runtime and readable stack traces need them.
packages_build=(g++ cmake ninja-build libfmt-dev nlohmann-json3-dev libyaml-cpp-dev libcli11-dev libgtest-dev librapidcheck-dev
                libeigen3-dev liburing-dev libopenmpi-dev openmpi-bin)
packages_bench=(libbenchmark-dev)
packages_clang=(clang libclang-rt-14-dev llvm)
packages_format=(clang-format-14)

say() { echo "== $*" >&2; }
die() { echo "bootstrap.sh: $*" >&2; exit 3; }
wrong() { echo "bootstrap.sh: $*" >&2; exit 2; }

# Runs a command without its output, which is shown only when the command fails.
quietly() {
    local log status=0
    log=$(mktemp)
    "$@" >"$log" 2>&1 || status=$?
    ((status == 0)) || cat "$log" >&2
    rm -f "$log"
    return "$status"
}

install_packages() {
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here; Debian calls what is needed: $*"
        return
    fi
    local package missing=() as_root=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "as root, please: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    quietly "${as_root[@]}" apt-get update || die "apt-get update failed"
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}" || die "apt-get install failed"
}

# build PRESET FOLDER TARGET...: progress goes to stderr, so that `run` leaves stdout to the program.
build() {
    local preset=$1 folder=$2
    shift 2
    (cd "$root" && cmake --preset "$preset" >/dev/null) || die "cmake --preset $preset failed"
    say "building $* into $folder/"
    cmake --build "$root/$folder" --target "$@" >&2
}

# Runs ctest and ends with one plain line of counts, made from ctest's own summary.
run_ctest() {
    local status=0 log jobs
    jobs=$(($(nproc) + ($(nproc) + 1) / 2)) # some tests mostly wait for processes
    log=$(mktemp)
    ctest --test-dir "$root/$1" --output-on-failure --no-tests=error --parallel "$jobs" |
        tee "$log" | grep -vE '^ +Start ' || status=$?
    sed -nE 's/.* ([0-9]+) tests? failed out of ([0-9]+).*/\1 \2/p' "$log" |
        while read -r failed total; do echo "$((total - failed)) passed, $failed failed"; done
    rm -f "$log"
    return "$status"
}

sources() {
    git -C "$root" -c safe.directory='*' ls-files '*.hpp' '*.cpp' '*.cu' '*.cuh' | sed "s|^|$root/|"
}

# fuzz_one BINARY SECONDS: what it found out is printed at its end, in one piece.
fuzz_one() {
    local binary=$1 seconds=$2 name work status=0
    name=$(basename "$binary")
    work=$root/build-asan/fuzz/$name # corpus found so far, log, and inputs that made it fail
    mkdir -p "$work/corpus"
    local options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$work/")
    [[ ! -f $root/tests/fuzz/$name.dict ]] || options+=(-dict="$root/tests/fuzz/$name.dict")
    "$binary" "${options[@]}" "$work/corpus" "$root/tests/fuzz/corpus/$name" >"$work/log" 2>&1 || status=$?
    if ((status == 0)); then
        echo "$name: $(grep '^Done' "$work/log")"
    else
        echo "$(tail -n 60 "$work/log")"$'\n'"$name FAILED; inputs that fail are in $work"
    fi
    return "$status"
}

# Every target, as many at a time as there are cores.
fuzz() {
    local seconds=$1 found=0 running=0 binary
    say "fuzzing $(basename -a "$root"/build-asan/bin/fuzz/* | tr '\n' ' ')for $seconds s each"
    for binary in "$root"/build-asan/bin/fuzz/*; do
        if ((running == $(nproc))); then
            wait -n || found=1
            running=$((running - 1))
        fi
        fuzz_one "$binary" "$seconds" &
        running=$((running + 1))
    done
    for ((; running > 0; running--)); do
        wait -n || found=1
    done
    return "$found"
}

command=${1:-help}
(($# == 0)) || shift
case $command in
build)
    install_packages "${packages_build[@]}"
    build release build all
    ;;
run)
    install_packages "${packages_build[@]}"
    build release build shardplan
    exec "$root/build/bin/shardplan" "$@"
    ;;
test)
    install_packages "${packages_build[@]}"
    build release build all
    run_ctest build
    ;;
asan)
    install_packages "${packages_build[@]}" "${packages_clang[@]}"
    build asan build-asan all
    run_ctest build-asan
    ;;
tsan)
    install_packages "${packages_build[@]}" "${packages_clang[@]}"
    build tsan build-tsan all
    run_ctest build-tsan
    ;;
fuzz)
    [[ ${1:-20} =~ ^[1-9][0-9]*$ ]] || wrong "fuzz takes a number of seconds, not '$1'"
    install_packages "${packages_build[@]}" "${packages_clang[@]}"
    build asan build-asan fuzz_targets
    fuzz "${1:-20}"
    ;;
bench)
    install_packages "${packages_build[@]}" "${packages_bench[@]}"
    build release build shardwright_benchmarks
    exec "$root/build/bin/shardwright_benchmarks" "$@"
    ;;
format)
    install_packages "${packages_format[@]}"
    case ${1:-} in
    "") sources | xargs clang-format-14 -i ;;
    --check) sources | xargs clang-format-14 --dry-run --Werror && echo "formatting: no drift" ;;
    *) wrong "format takes --check or nothing, not '$1'" ;;
    esac
    ;;
help | -h | --help)
    usage
    ;;
*)
    usage >&2
    exit 2
    ;;
esac
