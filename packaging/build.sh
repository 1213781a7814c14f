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

# Where .ci/run puts them.
export PATH=$PWD/target/tools/bin:$PATH
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
    host=$(rustc -vV | sed -n 's/^host: //p')
    mkdir -p "$out"
    for each in "${wanted[@]}"; do
        "make_$each"
    done
}

make_deb() {
    program
    stage "$target_dir/release/tlsward" "$host"
    rm -f "$out"/*.deb "$out"/*.ddeb
    CARGO_TARGET_DIR=$target_dir cargo deb --quiet --no-build --locked --output "$out" >/dev/null
    made "$out"/*.deb "$out"/*.ddeb
}

make_rpm() {
    program
    stage "$target_dir/release/tlsward" "$host"
    rm -f "$out"/*.rpm
    # It takes the times of files that are older than the commit: out of a copy in which all are as old.
    local copy=$out/rpm
    rm -rf "$copy"
    mkdir -p "$copy/$out"
    cp -r Cargo.toml README.md CHANGELOG.md LICENSE config.toml docs packaging systemd "$copy/"
    cp -r "$stage" "$copy/$out/"
    find "$copy" -exec touch --date="@$SOURCE_DATE_EPOCH" {} +
    (cd "$copy" && cargo generate-rpm --auto-req builtin --output ../) >/dev/null
    made "$out"/*.rpm
}

make_sbom() {
    local target=${1:-$host}
    python3 packaging/sbom.py "$target" "$out/tlsward-$version-$target.cdx.json"
    made "$out/tlsward-$version-$target.cdx.json"
}

# One directory, to be unpacked anywhere: packaging/INSTALL says where its parts go.
make_tarball() {
    local machine=${host%%-*}
    local target=$machine-unknown-linux-musl name=tlsward-$version-$machine-linux
    static_program "$target"
    stage "$target_dir/$target/release/tlsward" "$target"
    local root=$out/tarball/$name
    rm -rf "$out/tarball"
    mkdir -p "$root"/{bin,docs,systemd}
    cp "$stage/tlsward" "$root/bin/"
    cp -r "$stage/man" "$stage/completions" "$stage/copyright" "$stage/sbom.cdx.json" "$root/"
    cp -r packaging/INSTALL packaging/etc packaging/libexec packaging/sysusers.d packaging/tmpfiles.d "$root/"
    cp README.md CHANGELOG.md LICENSE "$root/"
    cp docs/*.md "$root/docs/"
    cp config.toml "$root/docs/config.toml"
    for unit in systemd/*; do
        sed 's:/usr/bin/tlsward:/usr/local/bin/tlsward:' "$unit" >"$root/$unit"
    done
    chmod -R u=rwX,go=rX "$root"
    tar --create --directory "$out/tarball" --sort=name --owner=0 --group=0 --numeric-owner --format=gnu \
        --mtime="@$SOURCE_DATE_EPOCH" "$name" | gzip -9n >"$out/$name.tar.gz"
    made "$out/$name.tar.gz"
}

# Compiles it, once.
program() {
    [ -z "$built" ] || return 0
    with_remapped_paths
    CARGO_TARGET_DIR=$target_dir cargo build --release --locked --package tlsward
    built=yes
}

# Everything else that goes into a package with this program: what it prints itself, and what is known of it.
stage() {
    local tlsward=$1 target=$2
    rm -rf "$stage"
    mkdir -p "$stage/completions"
    "$tlsward" man "$stage/man"
    gzip -9n "$stage"/man/*
    "$tlsward" completions bash >"$stage/completions/tlsward.bash"
    "$tlsward" completions zsh >"$stage/completions/_tlsward"
    "$tlsward" completions fish >"$stage/completions/tlsward.fish"
    python3 packaging/sbom.py "$target" "$stage/sbom.cdx.json"
    python3 packaging/copyright.py "$stage/sbom.cdx.json" "$stage/copyright"
    strip --strip-all -o "$stage/tlsward" "$tlsward"
}

# A program without any library (docs/decisions/0016-static-build.md): with rustup's library for musl where
# that is installed, else with one that is compiled here out of RUST_SRC, which is `library` of the sources of
# the very same version of Rust (Debian: rust-src). That also takes MUSL, the directory of libc.a and crt1.o
# (musl-dev), and LIBUNWIND, a libunwind.a (libunwind-19-dev).
static_program() {
    local target=$1 sysroot libraries
    sysroot=$(rustc --print sysroot)
    libraries=lib/rustlib/$target/lib
    local command=(cargo build --release --locked --package tlsward --bin tlsward --target "$target")
    with_remapped_paths
    # jemalloc calls __popcountdi2, which Rust's own runtime for musl need not have.
    export RUSTFLAGS="$RUSTFLAGS -C link-arg=-lgcc"
    export "CC_${target//-/_}=${MUSL_CC:-musl-gcc}"
    if ! [ -d "$sysroot/$libraries" ]; then
        [ -n "${RUST_SRC:-}" ] ||
            fail "no library for $target: rustup target add $target, or set RUST_SRC (see packaging/build.sh)"
        local musl=${MUSL:-/usr/lib/${target%%-*}-linux-musl} own=$PWD/$out/musl-sysroot
        rm -rf "$own"
        mkdir -p "$own/$libraries/self-contained"
        ln -s "$sysroot/lib/rustlib/$host" "$own/lib/rustlib/$host"
        cp "$musl"/{crt1,rcrt1,Scrt1,crti,crtn}.o "$musl/libc.a" \
            "${LIBUNWIND:?"where is libunwind.a?"}" "$own/$libraries/self-contained/"
        "${MUSL_CC:-musl-gcc}" -O2 -c packaging/fortify.c -o "$own/fortify.o"
        ar -rD "$own/$libraries/self-contained/$(basename "$LIBUNWIND")" "$own/fortify.o"
        for object in crtbegin crtbeginS crtend crtendS; do
            cp "$(cc -print-file-name=$object.o)" "$own/$libraries/self-contained/"
        done
        # The only way to have the standard library compiled by a released compiler.
        export RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT=$RUST_SRC
        RUSTFLAGS+=" --sysroot $own -C link-self-contained=yes --remap-path-prefix=$RUST_SRC=/usr/src/rust/library"
        command+=(-Z build-std=std,panic_unwind)
    fi
    CARGO_TARGET_DIR=$target_dir "${command[@]}"
    unset RUSTC_BOOTSTRAP __CARGO_TESTS_ONLY_SRC_ROOT RUSTFLAGS CFLAGS
}

# Where the sources and the registry are on this machine is nobody's business, and would make every
# machine's program another.
with_remapped_paths() {
    local home=${CARGO_HOME:-$HOME/.cargo}
    local map=(--remap-path-prefix="$PWD=/usr/src/tlsward" --remap-path-prefix="$home=/usr/src/cargo")
    export RUSTFLAGS="${map[*]}"
    # For aws-lc, which is C.
    export CFLAGS="-ffile-prefix-map=$PWD=/usr/src/tlsward -ffile-prefix-map=$home=/usr/src/cargo"
}

# Says what was made, and writes it into the list of checksums.
made() {
    (
        cd "$out"
        for each in "${@##*/}"; do
            printf '%9d bytes  %s\n' "$(stat -c %s "$each")" "$each"
        done
        find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%f\0' | sort -z | xargs -0 sha256sum >SHA256SUMS
    )
}

fail() {
    echo "packaging/build.sh: $*" >&2
    exit 1
}

main "$@"
