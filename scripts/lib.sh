# Shared by the scripts here: source it, then call what is needed.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 1
}

# The whole project needs Rust and a C compiler (for linking); nothing else for a first build.
need_toolchain() {
    command -v cargo >/dev/null 2>&1 ||
        fail "Rust is missing: install the stable toolchain with rustup"
    command -v cc >/dev/null 2>&1 ||
        fail "a C compiler is missing: install gcc or clang (Debian and Ubuntu: apt-get install gcc libc6-dev)"
    local wanted have
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(cargo --version | sed -E 's/^cargo ([0-9]+\.[0-9]+).*/\1/')
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $have is too old: this needs $wanted or later ('rustup update stable')"
}

build_dir() {
    printf '%s' "${CARGO_TARGET_DIR:-build}"
}
