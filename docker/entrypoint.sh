#!/bin/sh
# What the container runs: tunnelwrap's command line, with two things done first.
#
#   serve     (alone, without a file) makes the gateway if there is none yet in the volume, and prints
#             its first client's configuration on standard output
#   serve, connect, relay, wrap
#             get the rights that they need though they do not run as root, or say what is missing
#
# For a new gateway; lists are separated by blanks. `tunnelwrap init --help` says more of each:
#
#   VPN_NAME      the name (or address) that clients connect to
#   VPN_ADDRESS   the address, if clients cannot look up that name
#   VPN_CLIENT    the first client's name; client
#   VPN_NETWORKS  what clients reach through the tunnel; everything
#   VPN_POOLS     addresses for clients
#   VPN_DNS       name servers for clients
#   VPN_PROXIES   proxies in front of the gateway, whose PROXY headers are believed
#   VPN_WEBSOCKET address and port for the WebSockets of a reverse proxy, which has TLS then
#   VPN_PATH      the secret path of WebSockets; a random one
set -efu

directory=${CONFIGURATION_DIRECTORY:-/etc/tunnelwrap}
gateway=$directory/gateway.toml
# A setpriv that has the rights of this image to hand on, as Docker gives none to who is not root.
setpriv=/usr/local/libexec/tunnelwrap/setpriv

fail() {
    printf 'tunnelwrap: %s\n' "$@" >&2
    exit 1
}

status_line() {
    sed -n "s/^$1:[[:space:]]*//p" "/proc/$$/status"
}

# Whether a set of capabilities of this process (CapEff, CapBnd) has one, by its number.
has() {
    [ $((0x$(status_line "$1") >> $2 & 1)) -eq 1 ]
}

make_gateway() {
    [ -n "${VPN_NAME:-}" ] || fail \
        "VPN_NAME: found nothing, expected the name or address that clients connect to" \
        "(there is no $gateway yet)"
    [ -w "$directory" ] || fail "$directory: cannot be written to; user $(id -u) needs to"
    client=${VPN_CLIENT:-client}
    set -- --directory "$directory" --client "$client"
    set -- "$@" --address "${VPN_ADDRESS:-$VPN_NAME}" --name "$VPN_NAME"
    for each in ${VPN_NETWORKS:-}; do set -- "$@" --network "$each"; done
    for each in ${VPN_POOLS:-}; do set -- "$@" --pool "$each"; done
    for each in ${VPN_DNS:-}; do set -- "$@" --dns "$each"; done
    for each in ${VPN_PROXIES:-}; do set -- "$@" --proxy "$each"; done
    if [ -n "${VPN_WEBSOCKET:-}" ]; then set -- "$@" --websocket "$VPN_WEBSOCKET"; fi
    if [ -n "${VPN_PATH:-}" ]; then set -- "$@" --websocket-path "$VPN_PATH"; fi
    tunnelwrap init "$@" >&2
    printf 'The first client, on standard output; it holds a private key, and so does this log:\n' >&2
    cat "$directory/$client/client.toml"
}

check_device() {
    [ -c /dev/net/tun ] || fail "no /dev/net/tun here: it takes --device /dev/net/tun"
    (: <>/dev/net/tun) 2>/dev/null || fail \
        "/dev/net/tun cannot be opened: it takes --device /dev/net/tun"
}

# The rights among $rights that this process does not have yet, as setpriv takes them.
missing_rights() {
    for each in $rights; do
        has CapEff "${each#*=}" || printf ',+%s' "${each%=*}"
    done
}

check_rights() {
    for each in $rights; do
        has CapEff "${each#*=}" || has CapBnd "${each#*=}" || fail \
            "this container lacks the right ${each%=*}: it takes --cap-add ${each%=*}"
    done
    [ -n "$missing" ] || return 0
    [ "$(status_line NoNewPrivs)" = 0 ] || fail \
        "user $(id -u) has no rights, and no-new-privileges keeps it from getting any:" \
        "leave that out, or run as root (user: 0) with these --cap-add alone: $missing"
    [ -x "$setpriv" ] || fail "user $(id -u) lacks rights ($missing), and there is no $setpriv"
}

rights="" # by name and number
case ${1:-} in
    serve | connect)
        check_device
        rights="net_admin=12 net_bind_service=10"
        ;;
    relay | wrap)
        # In a network of its own a container has all ports without a right. wrap --lan makes rules.
        if [ "$(status_line NoNewPrivs)" = 0 ]; then
            if has CapBnd 10; then rights=net_bind_service=10; fi
            if [ "$1" = wrap ] && has CapBnd 12; then rights="$rights net_admin=12"; fi
        fi
        ;;
esac
missing=$(missing_rights)
missing=${missing#,}
check_rights
if [ "${1:-}" = serve ] && [ $# -eq 1 ]; then
    [ -e "$gateway" ] || make_gateway
    set -- serve "$gateway"
fi
[ -n "$missing" ] || exec tunnelwrap "$@"
exec "$setpriv" "--inh-caps=$missing" "--ambient-caps=$missing" tunnelwrap "$@"
