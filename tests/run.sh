#!/usr/bin/env bash
# Installs what the tests need, builds, and runs every check: format, lints, licences, tests. As root and as an ordinary user.
# usage: tests/run.sh [--no-install]
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
die() { printf 'tests/run.sh: error: %s\n' "$*" >&2; exit 1; }

install=yes
case "${1-}" in
    "") ;;
    --no-install) install=no ;;
    *) die "unknown argument $1; usage: tests/run.sh [--no-install]" ;;
esac

am_root=no
[ "$(id -u)" -ne 0 ] || am_root=yes

missing_packages() { # of the groups named
    local package group rest
    while read -r package group rest; do
        case "$package" in "" | \#*) continue ;; esac
        [[ " $* " == *" $group "* ]] || continue
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s\n' "$package"
    done < tests/packages.txt
}

apt_install() { # PACKAGE...
    # Lists may be old or absent: fetch them only when needed.
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || {
        apt-get update
        DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    }
}

say "packages"
command -v dpkg-query >/dev/null || die "this script installs Debian packages (tests/packages.txt); on another system install their like and run cargo nextest run --workspace"
installing=
if [ $am_root = yes ]; then
    mapfile -t missing < <(missing_packages build all root)
    [ ${#missing[@]} -eq 0 ] || [ $install = yes ] || die "missing packages: ${missing[*]}; run without --no-install, or apt-get install them"
    mapfile -t missing < <(missing_packages build)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    # The tests alone need the others, which come while the processors compile.
    mapfile -t missing < <(missing_packages all root)
    if [ ${#missing[@]} -gt 0 ]; then
        printf 'installed meanwhile: %s\n' "${missing[*]}"
        packages_log=$(mktemp)
        apt_install "${missing[@]}" > "$packages_log" 2>&1 < /dev/null &
        installing=$!
        # No half of a package is left, whatever ends this script.
        trap 'wait; rm -f "$packages_log"' EXIT
    fi
else
    mapfile -t missing < <(missing_packages build all)
    [ ${#missing[@]} -eq 0 ] || die "missing packages: ${missing[*]}
Only root can install them:
    sudo apt-get install --no-install-recommends ${missing[*]}"
fi

say "toolchain"
# A login without a profile still finds what rustup installed.
command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
command -v cargo >/dev/null || die "cargo is missing: install Rust 1.88 or newer from https://rustup.rs"
cargo --version

say "format"
cargo fmt --all --check

say "lints and build"
# Clippy is the compiler here: whatever is looked at is compiled by the same pass. `cargo clippy` would go through everything, the
# dependencies included, once more, which took as long as compiling it. That is how it has cargo call it itself.
command -v clippy-driver >/dev/null || die "clippy-driver is missing: rustup component add clippy"
export RUSTC_WORKSPACE_WRAPPER=clippy-driver
export CLIPPY_ARGS='-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__'
# The tests first, and all in one call: the programs are few crates in a row, and others keep the processors at work beside them.
nextest=no
! cargo nextest --version >/dev/null 2>&1 || nextest=yes
if [ $nextest = yes ]; then
    cargo nextest run --workspace --locked --no-run
else
    cargo test --workspace --locked --no-run
fi
cargo xtask build --debug

say "licences and advisories"
cargo xtask licences

if [ -n "$installing" ]; then
    say "packages that were installed meanwhile"
    wait "$installing" || { cat "$packages_log"; die "apt-get failed; what it said is above"; }
fi

say "tests"
# Tests that can only run as root carry as_root in their name, and those that need a kernel which mounts EROFS images from
# files (Linux 6.12) file_backed; no other test may be left out.
status=0
images_mount=yes
if [ $am_root = yes ] && ! target/debug/berth --state /tmp doctor | grep -q 'a trial one was mounted from its file'; then
    images_mount=no
fi
# Many tests wait for clusters of theirs: three more at a time than there are processors keep these at work.
export NEXTEST_TEST_THREADS=${NEXTEST_TEST_THREADS-$(($(nproc) + 3))}
if [ $nextest = yes ]; then
    if [ $am_root = yes ] && [ $images_mount = yes ]; then
        cargo nextest run --workspace --no-fail-fast || status=$?
    elif [ $am_root = yes ]; then
        cargo nextest run --workspace --no-fail-fast -E 'not test(/file_backed/)' || status=$?
        printf '\nNot run, because this kernel mounts no EROFS images from files (Linux 6.12):\n'
        cargo nextest list --workspace -E 'test(/file_backed/)' 2>/dev/null
    else
        cargo nextest run --workspace --no-fail-fast -E 'not test(/as_root/)' || status=$?
        printf '\nNot run, because they need root:\n'
        cargo nextest list --workspace -E 'test(/as_root/)' 2>/dev/null
    fi
else
    printf 'cargo-nextest is not installed; running cargo test, one test at a time\n'
    if [ $am_root = yes ] && [ $images_mount = yes ]; then
        cargo test --workspace --no-fail-fast -- --test-threads=1 || status=$?
    elif [ $am_root = yes ]; then
        cargo test --workspace --no-fail-fast -- --test-threads=1 --skip file_backed || status=$?
        printf '\nNot run, because this kernel mounts no EROFS images from files (Linux 6.12):\n'
        cargo test --workspace --quiet -- --list 2>/dev/null | grep 'file_backed.*: test$'
    else
        cargo test --workspace --no-fail-fast -- --test-threads=1 --skip as_root || status=$?
        printf '\nNot run, because they need root:\n'
        cargo test --workspace --quiet -- --list 2>/dev/null | grep 'as_root.*: test$'
    fi
fi

# A build of its own: nothing that is released has the second engine's packages.
if [ $am_root = yes ]; then
    say "the same cases with both engines of berth oci"
    tests/oci/engines.sh || status=$?
else
    printf 'tests/oci/engines.sh: not run, because libcontainer needs root\n'
fi

say "done"
[ $status -eq 0 ] || die "tests failed; each failure is above"
printf 'all checks passed in %s s, as %s\n' "$SECONDS" "$(id -un)"
