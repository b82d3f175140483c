# shellcheck shell=bash
# What the scripts share: where things are cached, and Debian packages. To be sourced, not run.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=$repository/.cache

say() {
    echo "${0##*/}: $*" >&2
}

die() {
    say "$*"
    exit "${failure_status:-1}"
}

# A short name (a hash) of everything that determines the contents of a cached directory.
content_name() {
    printf '%s\n' "$@" | sha256sum | cut --characters=1-16
}

# Runs moat, which is built first if it never was.
run_moat() {
    local moat=$repository/target/release/moat
    [[ -x $moat ]] || (cd "$repository" && cargo build --release --quiet --package moat) >&2 ||
        die "cargo could not build moat; its message is above"
    "$moat" "$@"
}

# The lock NAME, held until this process and everything it started has ended.
take_lock() {
    local descriptor
    mkdir -p "$cache/locks"
    exec {descriptor}>"$cache/locks/$1"
    flock --nonblock "$descriptor" || {
        say "waiting for another run, which holds the lock '$1'"
        flock "$descriptor"
    }
}

# Runs a command as root, directly or with a sudo that needs no password; fails if neither works.
as_root() {
    if ((EUID == 0)); then
        "$@"
    else
        sudo --non-interactive "$@"
    fi
}

# Makes sure that these Debian packages are installed.
need_packages() {
    local package missing=()
    for package; do
        [[ $(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]} > 0)) || return 0
    as_root true 2>/dev/null ||
        die "packages are missing; install them as root, then run this again: apt-get install ${missing[*]}"
    say "installing ${missing[*]}"
    (
        take_lock "package manager"
        retry_with_fresh_lists as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install --yes --no-install-recommends "${missing[@]}" >"$cache/packages.log" 2>&1
    ) || {
        tail --lines=10 "$cache/packages.log" >&2
        die "apt-get could not install ${missing[*]}; the end of its output is above, all of it in $cache/packages.log"
    }
}

# Runs a command that reads the package lists; if it fails, once more with fresh lists, for an old
# list names files that the mirror no longer has, and a new machine may have no list at all.
retry_with_fresh_lists() {
    "$@" || {
        say "refreshing the package lists"
        as_root apt-get update --quiet --quiet >&2 && "$@"
    }
}

# Downloads the newest version of a package into a directory, without installing it.
download_package() {
    local package=$1 directory=$2
    say "downloading $package"
    # The sandbox user of apt may not write to the directory.
    (cd "$directory" && apt-get download --quiet --quiet -o APT::Sandbox::User=root "$package") >&2
}
