#!/bin/sh
# Installs podd on this machine: install.sh [PODD_BINARY]. An existing configuration is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
binary=${1:-$here/../target/release/podd}
[ "$(id -u)" = 0 ] || { echo "install.sh: run as root" >&2; exit 1; }
[ -x "$binary" ] || { echo "install.sh: no binary at $binary: make build" >&2; exit 1; }

# A new file under the old name: the running daemon keeps the one it was started from.
install -D -m 755 "$binary" /usr/local/bin/podd.new
mv /usr/local/bin/podd.new /usr/local/bin/podd
[ -e /etc/podd/config.toml ] || install -D -m 644 "$here/config.toml" /etc/podd/config.toml
[ -e /etc/crictl.yaml ] || install -D -m 644 "$here/crictl.yaml" /etc/crictl.yaml
install -D -m 644 "$here/podd.service" /etc/systemd/system/podd.service
install -D -m 644 "$here/20-podd.conf" /etc/systemd/system/kubelet.service.d/20-podd.conf
/usr/local/bin/podd check-config

share=/usr/local/share
mkdir -p $share/man/man8 $share/bash-completion/completions $share/zsh/site-functions $share/fish/vendor_completions.d
/usr/local/bin/podd man $share/man/man8
/usr/local/bin/podd completions bash >$share/bash-completion/completions/podd
/usr/local/bin/podd completions zsh >$share/zsh/site-functions/_podd
/usr/local/bin/podd completions fish >$share/fish/vendor_completions.d/podd.fish

if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable podd.service
    systemctl restart podd.service
    echo "podd runs; its pods, if there were any, went on running"
else
    echo "installed; start it with: podd serve"
fi
