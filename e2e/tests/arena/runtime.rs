//! Version, Status, RuntimeConfig, UpdateRuntimeConfig, and the socket itself.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podd_e2e::cri;
use podd_e2e::podd::{RUN_DIR, SOCKET, STATE_DIR};
use podd_proto::v1 as pb;

use crate::case::{Env, cases, equal};

cases!("runtime": version, status, cgroup_driver, pod_range, socket_mode, no_other_door,
    authority_of_a_path);

fn version(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.version(pb::VersionRequest::default())?;
    equal("kube API version", said.version.as_str(), "0.1.0")?;
    equal("runtime API version", said.runtime_api_version.as_str(), "v1")?;
    equal("runtime name", said.runtime_name.as_str(), "podd")?;
    ensure!(!said.runtime_version.is_empty(), "no runtime version");
    Ok(())
}

fn status(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.status(pb::StatusRequest { verbose: true })?;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let conditions = &said.status.as_ref().context("no status")?.conditions;
        let found = conditions
            .iter()
            .find(|c| c.r#type == kind)
            .with_context(|| format!("no {kind}"))?;
        ensure!(
            found.status,
            "{kind} is false: {} {}",
            found.reason,
            found.message
        );
    }
    ensure!(
        said.runtime_handlers.iter().any(|h| h.name.is_empty()),
        "the default handler is not listed"
    );
    said.features.context("no features")?;
    // Where clients of other runtimes look for it.
    let config = said.info.get("config").context("no configuration")?;
    let config: serde_json::Value = serde_json::from_str(config)?;
    equal(
        "longest line",
        &config["maxContainerLogLineSize"],
        &(16 << 10).into(),
    )?;
    equal("root", &config["rootDir"], &STATE_DIR.into())?;
    equal("state", &config["stateDir"], &RUN_DIR.into())?;
    equal(
        "the same, as podd names it",
        &config["state_dir"],
        &STATE_DIR.into(),
    )
}

/// What gRPC clients say that have no host to name: the path of the socket, percent-encoded and in Huffman's code (RFC
/// 7541), percent-encoded, or as it is; by the field's index, or, as the C family does, by its name.
fn authority_of_a_path(_: &mut Env<'_>) -> Result<()> {
    let encoded = b"\x93\x54\x58\x6c\xb6\xa5\x45\x86\xb3\xc9\x22\xa2\xc3\x59\xe4\x91\x74\x1c\x9d\x7f";
    for authority in [
        &[&[0x41][..], encoded].concat()[..],
        b"\x40\x0a:authority\x19%2Frun%2Fpodd%2Fpodd.sock",
        b"\x41\x13/run/podd/podd.sock",
        b"\x41\x09localhost",
    ] {
        let answer = version_from(authority).with_context(|| format!("authority {authority:x?}"))?;
        ensure!(answer.windows(4).any(|w| w == b"podd"), "answered {answer:x?}");
    }
    Ok(())
}

/// The message that answers a Version request with this `:authority`, a field as HPACK has it.
fn version_from(authority: &[u8]) -> Result<Vec<u8>> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap_or(u8::MAX);
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let block = [
        b"\x83\x86\x44\x22/runtime.v1.RuntimeService/Version",
        authority,
        b"\x40\x0ccontent-type\x10application/grpc\x40\x02te\x08trailers",
    ]
    .concat();
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(HEADERS, 4, 1, &block),
        frame(DATA, 1, 1, &[0; 5]),
    ];
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&request.concat())?;
    let mut answer = Vec::new();
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [_, high, low, kind, flags, ..] = head;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        stream.read_exact(&mut payload)?;
        match kind {
            DATA => answer.extend(payload),
            HEADERS if flags & 1 != 0 => return Ok(answer),
            3 | 7 => bail!("refused by frame {kind}: {payload:x?}"),
            _ => {}
        }
    }
}

fn cgroup_driver(env: &mut Env<'_>) -> Result<()> {
    let said = env.cri()?.runtime_config(pb::RuntimeConfigRequest::default())?;
    // Process 1 of an arena is not systemd.
    equal(
        "driver",
        said.linux.context("no Linux part")?.cgroup_driver(),
        pb::CgroupDriver::Cgroupfs,
    )
}

fn pod_range(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let set = |range: &str| {
        let network_config = Some(pb::NetworkConfig {
            pod_cidr: range.to_owned(),
        });
        let runtime_config = Some(pb::RuntimeConfig { network_config });
        cri.update_runtime_config(pb::UpdateRuntimeConfigRequest { runtime_config })
    };
    // What the kubelet sends when the node has no range yet: nothing changes.
    set("").context("an empty range")?;
    ensure!(set("10.88.0.0/33").is_err(), "an impossible range was accepted");
    Ok(())
}

fn socket_mode(_: &mut Env<'_>) -> Result<()> {
    let mode = std::fs::metadata(SOCKET)?.permissions().mode() & 0o777;
    equal("mode of the socket", format!("{mode:o}"), "660".to_owned())
}

/// While a pod runs: no directory that others may list or write to, no abstract socket, and nothing that listens to more
/// than this machine.
fn no_other_door(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("doors")?;
    pod.started(&cri::shell("c", "sleep 1000"))?;
    closed(Path::new(RUN_DIR), 5)?;
    // The directory itself is the machine's in an arena; what is in it is podd's.
    for entry in fs::read_dir(STATE_DIR)? {
        let path = entry?.path();
        if path.is_dir() {
            closed(&path, 4)?;
        }
    }
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let open = sockets.lines().find(|line| line.contains(" @"));
    ensure!(open.is_none(), "an abstract socket: {open:?}");
    for (table, this_machine) in [
        ("tcp", "0100007F:"),
        ("tcp6", "00000000000000000000000001000000:"),
    ] {
        let text = fs::read_to_string(format!("/proc/net/{table}"))?;
        for line in text.lines().skip(1) {
            let words: Vec<_> = line.split_whitespace().collect();
            // proc_pid_net(5): address, peer and state; 0A is LISTEN.
            if let [_, address, _, "0A", ..] = words[..] {
                ensure!(address.starts_with(this_machine), "{table} listens on {address}");
            }
        }
    }
    pod.remove()
}

/// Nobody but root may list or change `dir` and the directories below it, nor connect to a socket in them.
fn closed(dir: &Path, levels: u32) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let mode = fs::metadata(dir)?.permissions().mode();
    ensure!(mode & 0o066 == 0, "{} has mode {mode:o}", dir.display());
    for entry in fs::read_dir(dir)? {
        let (path, kind) = {
            let entry = entry?;
            (entry.path(), entry.file_type()?)
        };
        if kind.is_socket() {
            let mode = fs::metadata(&path)?.permissions().mode();
            // unix(7): connecting takes write permission.
            ensure!(mode & 0o002 == 0, "{} has mode {mode:o}", path.display());
        }
        // What is in a layer and in a container's own files has the modes that these want.
        let foreign = ["upper", "work", "layers", "shm"]
            .iter()
            .any(|name| path.ends_with(name));
        if kind.is_dir() && levels > 0 && !foreign {
            closed(&path, levels - 1)?;
        }
    }
    Ok(())
}
