#!/usr/bin/env bash
# Makes packages of this tree, in target/package:
#
#   packaging/build.sh [--built DIRECTORY] [deb|rpm|tarball|sbom|all]...
#
# Without --built the program is compiled for it in target/package/cargo, with no path of this machine in
# it. With it DIRECTORY/release/tlsward is packed as it is: quick, for trying out a recipe.
# The same commit gives the same bytes: times are the commit's (or SOURCE_DATE_EPOCH's).
# Needs cargo-deb, cargo-generate-rpm and cargo-cyclonedx, each for what it is for; binutils, gzip, python3.
set -euo pipefail
export LC_ALL=C
umask 022
cd "$(dirname "$0")/.."

out=target/package
stage=$out/stage
target_dir=$out/cargo
built=""

main() {
    local wanted=()
    while (($#)); do
        case "$1" in
            --built)
                built=yes
                target_dir=${2:?"--built: which directory?"}
                shift
                ;;
            deb | rpm | tarball | sbom) wanted+=("$1") ;;
            all) wanted+=(deb rpm tarball sbom) ;;
            *) fail "what is $1? see the head of packaging/build.sh" ;;
        esac
        shift
    done
    ((${#wanted[@]})) || wanted=(all)
    export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
    [ -n "$SOURCE_DATE_EPOCH" ] || fail "not a git checkout: set SOURCE_DATE_EPOCH to the time of the release"
    version=$(cargo metadata --no-deps --format-version 1 |
        python3 -c 'import json, sys; print(next(p["version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "tlsward"))')
    mkdir -p "$out"
    for each in "${wanted[@]}"; do
        "make_$each"
    done
}

make_deb() {
    program
    stage_texts "$target_dir/release/tlsward"
    rm -f "$out"/*.deb "$out"/*.ddeb
    CARGO_TARGET_DIR=$target_dir cargo deb --quiet --no-build --locked --output "$out"
    say "$out"/*.deb "$out"/*.ddeb
}

# Compiles it, once.
program() {
    [ -z "$built" ] || return 0
    remapped_flags
    CARGO_TARGET_DIR=$target_dir cargo build --release --locked --package tlsward
    built=yes
}

# What the program itself prints: manual and completions.
stage_texts() {
    local tlsward=$1
    rm -rf "$stage"
    mkdir -p "$stage/completions"
    "$tlsward" man "$stage/man"
    gzip -9n "$stage"/man/*
    "$tlsward" completions bash >"$stage/completions/tlsward.bash"
    "$tlsward" completions zsh >"$stage/completions/_tlsward"
    "$tlsward" completions fish >"$stage/completions/tlsward.fish"
}

# Where the sources and the registry are on this machine is nobody's business, and would make every
# machine's program another.
remapped_flags() {
    local home=${CARGO_HOME:-$HOME/.cargo}
    local map=(--remap-path-prefix="$PWD=/usr/src/tlsward" --remap-path-prefix="$home=/usr/src/cargo")
    export RUSTFLAGS="${RUSTFLAGS:-} ${map[*]}"
    # For aws-lc, which is C.
    export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$PWD=/usr/src/tlsward -ffile-prefix-map=$home=/usr/src/cargo"
}

say() {
    (cd "$(dirname "$1")" && for each in "${@##*/}"; do
        printf '%s  %9d bytes  %s\n' "$(sha256sum "$each" | cut -c 1-16)" "$(stat -c %s "$each")" "$each"
    done)
}

fail() {
    echo "packaging/build.sh: $*" >&2
    exit 1
}

main "$@"
