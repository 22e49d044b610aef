#!/bin/sh
# Removes podd from this machine. State and configuration stay unless --purge is given; drain the node first.
set -eu
[ "$(id -u)" = 0 ] || { echo "uninstall.sh: run as root" >&2; exit 1; }
if [ -d /run/systemd/system ]; then
    systemctl disable --now podd.service || true
fi
rm -f /usr/local/bin/podd /etc/systemd/system/podd.service /etc/systemd/system/kubelet.service.d/20-podd.conf
share=/usr/local/share
rm -f $share/man/man8/podd.8 $share/man/man8/podd-*.8 $share/bash-completion/completions/podd \
    $share/zsh/site-functions/_podd $share/fish/vendor_completions.d/podd.fish
rmdir /etc/systemd/system/kubelet.service.d 2>/dev/null || true
[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ "${1:-}" = --purge ]; then
    if grep -qsx podinit /proc/[0-9]*/comm; then
        echo "uninstall.sh: pods still run; nothing purged" >&2
        exit 1
    fi
    rm -rf /etc/podd /run/podd
    # A state directory that is a mount of its own stays, empty.
    find /var/lib/podd -mindepth 1 -delete
    rmdir /var/lib/podd 2>/dev/null || true
fi
