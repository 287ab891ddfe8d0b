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

# Whether RDMA can be built here: its bindings are made with cmake and libclang (with the headers that belong to it). HOMI_RDMA=no leaves it
# out.
can_build_rdma() {
    [ "${HOMI_RDMA:-}" != no ] && command -v cmake >/dev/null 2>&1 && command -v make >/dev/null 2>&1 || return
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    { compgen -G '/usr/lib*/llvm*/lib/libclang*.so*' || compgen -G '/usr/lib*/libclang*.so*' ||
        compgen -G '/usr/lib/*/libclang*.so*'; } >/dev/null || return
    { compgen -G '/usr/lib*/llvm*/lib/clang/*/include/stddef.h' ||
        compgen -G '/usr/lib*/clang/*/include/stddef.h'; } >/dev/null
}

# Features to build with, separated by commas: those given, and RDMA where it can be built. Says so on standard error.
features() {
    local all=("$@") IFS=,
    if can_build_rdma; then
        printf 'with RDMA: cmake and libclang are here\n' >&2
        all+=(homi-verbs/rdma homi-initiator/rdma homi-target/rdma)
    else
        printf 'without RDMA: that needs cmake, make and libclang (Debian and Ubuntu: apt-get install cmake make libclang-dev)\n' >&2
    fi
    printf '%s' "${all[*]}"
}

build_dir() {
    printf '%s' "${CARGO_TARGET_DIR:-build}"
}
