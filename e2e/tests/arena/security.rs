//! What a container may do: identity, capabilities, seccomp, read-only and masked parts, limits.

use anyhow::{Result, ensure};
use pb::security_profile::ProfileType;
use podd_e2e::cri;
use podd_e2e::images::{self, Dialect, Entry, Image, Layer, Packing};
use podd_proto::v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, field, refused, skip};

cases!("security":
    default_capabilities, capabilities_added_and_dropped, seccomp_filter, seccomp_forbids, unconfined, no_new_privs,
    user_and_groups, user_by_name, strict_groups, group_alone_is_refused, huge_account_file, masked_paths, readonly_paths,
    read_only_root, privileged, privileged_needs_a_privileged_pod, open_file_limit, devices_of_a_container,
    devices_not_asked_for, device_to_read, device_when_privileged, device_of_the_terminal,
    cgroup_is_seen_as_root, nothing_of_podd_is_open, host_proc_is_not_writable, target_processes, target_must_run,
    apparmor_default, apparmor_by_name, apparmor_not_loaded, ambient_capabilities);

/// `/proc/self/status` of a container.
fn status(pod: &Pod, change: impl FnOnce(&mut pb::LinuxContainerSecurityContext)) -> Result<String> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("c{}", COUNT.fetch_add(1, Ordering::Relaxed));
    // cat itself: a shell would show its own state.
    let mut config = cri::command(&name, &["cat", "/proc/self/status"]);
    change(cri::security(&mut config));
    pod.output(&config)
}

fn capabilities(add: &[&str], drop: &[&str]) -> Option<pb::Capability> {
    let own = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
    Some(pb::Capability {
        add_capabilities: own(add),
        drop_capabilities: own(drop),
        ..Default::default()
    })
}

/// The capabilities a container gets when nothing is asked: chown, dac_override, fowner, fsetid, kill, setgid,
/// setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const DEFAULT: u64 = 0xa804_25fb;

fn caps(status: &str, name: &str) -> Result<u64> {
    Ok(u64::from_str_radix(field(status, name)?, 16)?)
}

fn default_capabilities(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("caps")?;
    let said = status(&pod, |_| {})?;
    for (name, expected) in [
        ("CapPrm", DEFAULT),
        ("CapEff", DEFAULT),
        ("CapBnd", DEFAULT),
        ("CapInh", 0),
        ("CapAmb", 0),
    ] {
        equal(name, format!("{:x}", caps(&said, name)?), format!("{expected:x}"))?;
    }
    let user = status(&pod, |s| s.run_as_user = Some(pb::Int64Value { value: 1000 }))?;
    equal("CapEff of a user", caps(&user, "CapEff")?, 0)?;
    equal("CapBnd of a user", caps(&user, "CapBnd")?, DEFAULT)?;
    pod.remove()
}

fn capabilities_added_and_dropped(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("caps")?;
    let (net_admin, net_raw, time) = (1 << 12, 1 << 13, 1 << 25);
    let table: [(&[&str], &[&str], u64); 6] = [
        (&["NET_ADMIN"], &[], DEFAULT | net_admin),
        (&["CAP_NET_ADMIN"], &["NET_RAW"], (DEFAULT | net_admin) & !net_raw),
        (&["net_admin"], &["cap_net_raw"], (DEFAULT | net_admin) & !net_raw),
        (&[], &["ALL"], 0),
        (&["SYS_TIME"], &["ALL"], time),
        (&["SYS_TIME", "NET_RAW"], &["ALL", "NET_RAW"], time),
    ];
    for (add, drop, expected) in table {
        let said = status(&pod, |s| s.capabilities = capabilities(add, drop))?;
        let (found, bound) = (caps(&said, "CapEff")?, caps(&said, "CapBnd")?);
        equal(
            &format!("add {add:?} drop {drop:?}"),
            format!("{found:x}"),
            format!("{expected:x}"),
        )?;
        equal("bounding set", bound, expected)?;
    }
    let host = std::fs::read_to_string("/proc/self/status")?;
    let all = status(&pod, |s| s.capabilities = capabilities(&["ALL"], &[]))?;
    equal("add ALL", caps(&all, "CapEff")?, caps(&host, "CapBnd")?)?;
    pod.remove()
}

fn profile(kind: ProfileType) -> Option<pb::SecurityProfile> {
    Some(pb::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: String::new(),
    })
}

fn seccomp_filter(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("seccomp")?;
    let said = status(&pod, |s| s.seccomp = profile(ProfileType::RuntimeDefault))?;
    equal("mode", field(&said, "Seccomp")?, "2")?;
    equal("filters", field(&said, "Seccomp_filters")?, "1")?;
    pod.remove()
}

fn seccomp_forbids(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("forbids")?;
    // Setting the clock takes a capability too: with it, only the filter stands in the way.
    let script = "unshare -U true 2>&1; mount -t tmpfs x /mnt 2>&1; echo done";
    let mut config = cri::shell("c", script);
    cri::security(&mut config).seccomp = profile(ProfileType::RuntimeDefault);
    let out = pod.output(&config)?;
    contains("unshare", &out.to_lowercase(), "not permitted")?;
    ensure!(!out.starts_with("done"), "neither call was refused: {out:?}");
    pod.remove()
}

fn unconfined(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("unconfined")?;
    let said = status(&pod, |s| s.seccomp = profile(ProfileType::Unconfined))?;
    equal("mode", field(&said, "Seccomp")?, "0")?;
    pod.remove()
}

fn no_new_privs(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("privs")?;
    for (asked, shown) in [(true, "1"), (false, "0")] {
        let said = status(&pod, |s| {
            s.no_new_privs = asked;
            s.seccomp = profile(ProfileType::RuntimeDefault);
        })?;
        equal(&format!("asked {asked}"), field(&said, "NoNewPrivs")?, shown)?;
    }
    pod.remove()
}

fn user_and_groups(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("user")?;
    let said = status(&pod, |s| {
        s.run_as_user = Some(pb::Int64Value { value: 1234 });
        s.run_as_group = Some(pb::Int64Value { value: 2345 });
        s.supplemental_groups = vec![77, 88];
    })?;
    equal("Uid", field(&said, "Uid")?, "1234\t1234\t1234\t1234")?;
    equal("Gid", field(&said, "Gid")?, "2345\t2345\t2345\t2345")?;
    let mut groups: Vec<_> = field(&said, "Groups")?.split_whitespace().collect();
    groups.retain(|g| *g != "2345");
    equal("Groups", groups, vec!["77", "88"])?;
    pod.remove()
}

fn user_by_name(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("name")?;
    let said = status(&pod, |s| s.run_as_username = "www-data".to_owned())?;
    equal("Uid", field(&said, "Uid")?, "33\t33\t33\t33")?;
    equal("Gid", field(&said, "Gid")?, "33\t33\t33\t33")?;
    contains("groups of the image's own file", field(&said, "Groups")?, "4242")?;
    let mut config = cri::shell("nobody-knows", "true");
    cri::security(&mut config).run_as_username = "nobody-knows".to_owned();
    let answer = pod.started(&config);
    ensure!(
        answer.is_err(),
        "a user that the image does not have was accepted"
    );
    pod.remove()
}

fn strict_groups(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("strict")?;
    let said = status(&pod, |s| {
        s.run_as_username = "www-data".to_owned();
        s.supplemental_groups = vec![77];
        s.supplemental_groups_policy = pb::SupplementalGroupsPolicy::Strict.into();
    })?;
    let groups = field(&said, "Groups")?;
    ensure!(
        !groups.contains("4242"),
        "a strict policy merged the image's groups: {groups}"
    );
    contains("groups", groups, "77")?;
    pod.remove()
}

/// A passwd file that would fill the memory of whoever reads it whole; it packs to a few KiB.
fn huge_account_file(env: &mut Env<'_>) -> Result<()> {
    let name = "docker.io/bad/accounts:latest";
    // Who reads all of it finds the user.
    let mut text = vec![b'#'; 64 << 20];
    text.extend_from_slice(b"\nwww-data:x:33:33::/:/bin/sh\n");
    let accounts = Entry::File("etc/passwd".to_owned(), 0o644, text);
    let layers = [images::base_layer()?, Layer::new(&[accounts], Packing::Gzip)?];
    let image = Image::new(&layers, &json!({}), Dialect::Oci);
    env.registry().push("bad/accounts", &["latest"], &image)?;
    let cri = env.cri()?;
    cri.pull(name)?;
    let pod = env.pod("accounts")?;
    let mut config = cri::shell("c", "true");
    config.image = Some(cri::spec(name));
    cri::security(&mut config).run_as_username = "www-data".to_owned();
    let said = cri.create(&pod.id, &pod.config, &config).err();
    let said = said.map(|status| status.message().to_owned()).unwrap_or_default();
    contains("a passwd file of 64 MiB", &said, "/etc/passwd: file too large")?;
    pod.remove()?;
    Ok(cri.remove(name)?)
}

fn group_alone_is_refused(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("group")?);
    let mut config = cri::shell("c", "true");
    cri::security(&mut config).run_as_group = Some(pb::Int64Value { value: 5 });
    refused(
        "group without user",
        Code::InvalidArgument,
        cri.create(&pod.id, &pod.config, &config),
    )?;
    pod.remove()
}

fn masked_paths(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("masked")?;
    let mut config = cri::shell(
        "c",
        "wc -c </proc/keys; ls -A /proc/scsi /sys/firmware | grep -v : ; echo end",
    );
    let paths = ["/proc/keys", "/proc/scsi", "/sys/firmware", "/no/such/path"];
    cri::security(&mut config).masked_paths = paths.map(str::to_owned).to_vec();
    let out = pod.output(&config)?;
    pod.remove()?;
    let kept: Vec<_> = out.lines().filter(|l| !l.trim().is_empty()).collect();
    equal("masked", kept, vec!["0", "end"])
}

fn readonly_paths(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("readonly")?;
    let mut config = cri::shell(
        "c",
        "echo x 2>&1 >/proc/sysrq-trigger; echo 1 2>&1 >/proc/sys/net/ipv4/ip_forward",
    );
    let paths = ["/proc/sys", "/proc/sysrq-trigger", "/no/such/path"];
    cri::security(&mut config).readonly_paths = paths.map(str::to_owned).to_vec();
    let (status, out) = pod.ran(&config)?;
    ensure!(status.exit_code != 0, "a read-only path was written: {out}");
    pod.remove()
}

fn read_only_root(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("root")?;
    let script = "touch /x 2>&1; touch /etc/x 2>&1; touch /dev/shm/ok && echo shm; touch /tmp/x 2>&1; true";
    let mut config = cri::shell("c", script);
    cri::security(&mut config).readonly_rootfs = true;
    let out = pod.output(&config)?;
    pod.remove()?;
    equal("refused writes", out.matches("Read-only file system").count(), 3)?;
    contains("/dev/shm", &out, "shm")
}

fn privileged_pod() -> pb::PodSandboxConfig {
    let mut config = cri::pod_config("privileged");
    config
        .linux
        .get_or_insert_default()
        .security_context
        .get_or_insert_default()
        .privileged = true;
    config
}

fn privileged(env: &mut Env<'_>) -> Result<()> {
    let pod = Pod::run(&env.cri()?, privileged_pod())?;
    let said = status(&pod, |s| s.privileged = true)?;
    let host = std::fs::read_to_string("/proc/self/status")?;
    equal("CapEff", caps(&said, "CapEff")?, caps(&host, "CapBnd")?)?;
    equal("Seccomp", field(&said, "Seccomp")?, "0")?;
    let mut config = cri::shell(
        "c",
        "mount -t tmpfs x /mnt && touch /mnt/y && ls /dev/kmsg /dev/full && mount | grep '/sys '",
    );
    cri::security(&mut config).privileged = true;
    let out = pod.output(&config)?;
    ensure!(
        !out.contains("(ro"),
        "sysfs is read-only in a privileged container: {out}"
    );
    pod.remove()
}

fn privileged_needs_a_privileged_pod(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("plain")?);
    let mut config = cri::shell("c", "true");
    cri::security(&mut config).privileged = true;
    let answer = cri.create(&pod.id, &pod.config, &config);
    ensure!(
        answer.is_err(),
        "a privileged container was made in a pod that is not"
    );
    pod.remove()
}

fn open_file_limit(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("limit")?;
    let out = pod.output(&cri::shell("c", "ulimit -Sn; ulimit -Hn; ulimit -c"))?;
    pod.remove()?;
    let limits: Vec<_> = out.lines().collect();
    ensure!(limits.len() == 3, "{out:?}");
    let soft: u64 = limits[0].parse()?;
    ensure!(soft >= 1024, "soft limit of open files is {soft}");
    Ok(())
}

fn devices_of_a_container(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("devices")?;
    let script = "cd /dev; ls -A | sort | tr '\\n' ' '; head -c4 /dev/zero | od -An -tx1; head -c1 /dev/urandom | wc -c; \
        echo x >/dev/full 2>/dev/null || echo full; readlink fd; stat -c %a null";
    let out = pod.output(&cri::shell("c", script))?;
    for name in "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split(' ') {
        contains("devices", &out, name)?;
    }
    for (name, forbidden) in [
        ("disks", "vda"),
        ("memory", "kmem"),
        ("kernel log", "kmsg"),
        ("kvm", "kvm"),
    ] {
        ensure!(!out.contains(forbidden), "{name} are in /dev: {out}");
    }
    contains("contents", &out, "00 00 00 00\n1\nfull\n/proc/self/fd\n666")?;
    pod.remove()
}

/// Makes a node and says `opened`, or what the kernel says instead. A subshell: a failed redirection ends it.
const OPEN_NODE: &str =
    "try() { n=/tmp/$1$2.$3; mknod $n $1 $2 $3 && ( : <$n ) 2>&1 && echo opened $1 $2 $3; }";

fn devices_not_asked_for(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("access")?);
    // Without a rule the kernel says so before it asks whether there is such a device.
    let script = format!("{OPEN_NODE}; try c 1 3; try b 254 0; try c 1 1; try c 5 1; true");
    let check = |out: &str| {
        contains("the null device under another name", out, "opened c 1 3")?;
        equal("devices", out.matches("opened ").count(), 1)?;
        equal("refused", out.matches("Operation not permitted").count(), 3)
    };
    check(&pod.output(&cri::shell("c", &script))?)?;
    let mut config = cri::shell("all-capabilities", &script);
    cri::security(&mut config).capabilities = capabilities(&["ALL"], &[]);
    check(&pod.output(&config)?)?;
    let id = pod.started(&cri::shell("exec", "sleep 1000"))?;
    check(&cri.sh(&id, &script)?)?;
    let usual =
        "for d in null zero full random urandom; do ( : </dev/$d ) && ( : >/dev/$d ) && echo $d; done";
    let out = pod.output(&cri::shell("usual", usual))?;
    equal(
        "usual devices",
        out.as_str(),
        "null\nzero\nfull\nrandom\nurandom\n",
    )?;
    pod.remove()
}

const TUN: &str = "/dev/net/tun";
/// A device that root may open in each way and that changes nothing then.
const LATENCY: &str = "/dev/cpu_dma_latency";

fn device_to_read(env: &mut Env<'_>) -> Result<()> {
    if !std::path::Path::new(LATENCY).exists() {
        return skip("this host has no /dev/cpu_dma_latency");
    }
    let pod = env.pod("read")?;
    let script = format!("( : <{LATENCY} ) && echo read; ( : >{LATENCY} ) 2>&1 && echo write; true");
    for (permissions, read, write) in [("r", true, false), ("w", false, true), ("rwm", true, true)] {
        let mut config = cri::shell(permissions, &script);
        config.devices = vec![pb::Device {
            container_path: LATENCY.to_owned(),
            host_path: LATENCY.to_owned(),
            permissions: permissions.to_owned(),
        }];
        let out = pod.output(&config)?;
        equal(
            permissions,
            (out.contains("read\n"), out.contains("write\n")),
            (read, write),
        )?;
        equal("refused", out.contains("Operation not permitted"), read && !write)?;
    }
    pod.remove()
}

fn device_when_privileged(env: &mut Env<'_>) -> Result<()> {
    if !std::path::Path::new(TUN).exists() {
        return skip("this host has no /dev/net/tun");
    }
    let pod = Pod::run(&env.cri()?, privileged_pod())?;
    let mut config = cri::shell(
        "c",
        &format!("{OPEN_NODE}; try c 10 200; ( : <{TUN} ) && echo its own"),
    );
    cri::security(&mut config).privileged = true;
    equal(
        "devices",
        pod.output(&config)?.as_str(),
        "opened c 10 200\nits own\n",
    )?;
    pod.remove()
}

fn device_of_the_terminal(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("terminal")?;
    let mut config = cri::shell(
        "c",
        "echo said >/dev/tty; ( : <>/dev/ptmx ) && ( : <>/dev/console ) && echo opened",
    );
    config.tty = true;
    let out = pod.output(&config)?;
    contains("terminal", &out, "said")?;
    contains("terminal", &out, "opened")?;
    pod.remove()
}

fn cgroup_is_seen_as_root(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("cgroup")?;
    let out = pod.output(&cri::shell(
        "c",
        "grep ^0:: /proc/self/cgroup; ls /sys/fs/cgroup/cgroup.procs; mkdir /sys/fs/cgroup/x",
    ));
    let out = match out {
        Ok(text) => anyhow::bail!("a container can make cgroups: {text}"),
        Err(e) => format!("{e:#}"),
    };
    contains("cgroup", &out, "0::/\n")?;
    contains("cgroup file system", &out, "/sys/fs/cgroup/cgroup.procs")?;
    pod.remove()
}

fn nothing_of_podd_is_open(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("fds")?;
    let out = pod.output(&cri::command("c", &["ls", "/proc/self/fd"]))?;
    // Standard input, output, error, and the directory that ls itself reads.
    equal("open files", out.as_str(), "0\n1\n2\n3\n")?;
    let executable = pod.output(&cri::command("d", &["readlink", "/proc/1/exe"]))?;
    equal("executable of process 1", executable.trim(), "/bin/readlink")?;
    pod.remove()
}

fn host_proc_is_not_writable(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("proc")?;
    let out = pod.output(&cri::shell("c", "mount | grep -E ' on /(proc|sys) '"))?;
    pod.remove()?;
    contains("sysfs", &out, "on /sys type sysfs (ro")?;
    ensure!(
        out.lines()
            .filter(|l| l.contains(" /proc "))
            .all(|l| l.contains("nosuid")),
        "{out}"
    );
    Ok(())
}

fn targets(pod: &Pod, target: &str) -> Result<pb::ContainerConfig> {
    let mut config = cri::shell("debugger", "cat /proc/1/cmdline | tr '\\0' ' '; exec sleep 1000");
    let options = cri::security(&mut config)
        .namespace_options
        .get_or_insert_default();
    options.pid = pb::NamespaceMode::Target.into();
    options.target_id = target.to_owned();
    ensure!(!pod.id.is_empty(), "no pod");
    Ok(config)
}

fn target_processes(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("target")?);
    let target = pod.started(&cri::command("app", &["sleep", "4321"]))?;
    let debugger = pod.started(&targets(&pod, &target)?)?;
    // A debugger sees and signals what it is to look at, and an exec in it does as well.
    let out = cri.sh(
        &debugger,
        "tr '\\0' ' ' </proc/1/cmdline; for p in 1 self; do readlink /proc/$p/ns/pid; done | uniq | wc -l",
    )?;
    equal(
        "process 1, and how many namespaces",
        out.as_str(),
        "sleep 4321 1\n",
    )?;
    let own = cri.sh(&target, "ls /proc | grep -c '^[0-9]'")?;
    ensure!(own.trim() != "1", "the target does not see the debugger: {own}");
    pod.remove()
}

fn target_must_run(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod, other) = (env.cri()?, env.pod("target")?, env.pod("other")?);
    let waits = pod.created(&cri::command("app", &["sleep", "1000"]))?;
    let strange = other.started(&cri::command("app", &["sleep", "1000"]))?;
    for (what, id, code) in [
        (
            "a container that does not run",
            waits.as_str(),
            Code::FailedPrecondition,
        ),
        (
            "a container of another pod",
            strange.as_str(),
            Code::InvalidArgument,
        ),
        ("no container", &"0".repeat(64), Code::InvalidArgument),
    ] {
        refused(what, code, cri.create(&pod.id, &pod.config, &targets(&pod, id)?))?;
    }
    other.remove()?;
    pod.remove()
}

fn ambient_capabilities(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("ambient")?;
    let said = status(&pod, |s| {
        s.run_as_user = Some(pb::Int64Value { value: 1000 });
        s.capabilities = Some(pb::Capability {
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
            ..Default::default()
        });
    })?;
    for name in ["CapAmb", "CapEff", "CapInh"] {
        equal(name, caps(&said, name)?, 1 << 10)?;
    }
    pod.remove()
}

/// Skips where the kernel does not enforce AppArmor, and outside of virtual machines, where its profiles are not ours.
fn needs_apparmor() -> Result<()> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").unwrap_or_default();
    if enabled.starts_with('Y') && std::path::Path::new("/sys/kernel/security/apparmor").is_dir() {
        return Ok(());
    }
    skip("AppArmor is not enabled on this kernel, or the profiles are the machine's own")
}

fn apparmor_default(env: &mut Env<'_>) -> Result<()> {
    needs_apparmor()?;
    let (cri, pod) = (env.cri()?, env.pod("apparmor")?);
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    let script = "cat /proc/self/attr/current; mount -t tmpfs x /mnt 2>&1; cat /proc/sysrq-trigger 2>&1; \
        sh -c 'sleep 100 & kill $!' && echo signalled";
    let mut config = cri::shell("admin", script);
    // With all capabilities and no filter, only the profile is in the way.
    cri::security(&mut config).capabilities = capabilities(&["ALL"], &[]);
    let out = pod.output(&config)?;
    equal(
        "exec",
        cri.sh(&id, "cat /proc/self/attr/current")?.as_str(),
        "podd-default (enforce)\n",
    )?;
    contains("label", &out, "podd-default (enforce)\n")?;
    equal(
        "denied",
        out.to_lowercase().matches("permission denied").count(),
        2,
    )?;
    contains("signal", &out, "signalled")?;
    let free = pod.output(&{
        let mut config = cri::shell("free", "cat /proc/self/attr/current");
        cri::security(&mut config).apparmor = profile(ProfileType::Unconfined);
        config
    })?;
    equal("unconfined", free.as_str(), "unconfined\n")?;
    // A confined container has to take the signal that stops it.
    cri.stop(&id, 0)?;
    pod.remove()
}

fn apparmor_by_name(env: &mut Env<'_>) -> Result<()> {
    needs_apparmor()?;
    let pod = env.pod("apparmor")?;
    for (name, old, new) in [
        ("old", "localhost/podd-default", None),
        ("new", "localhost/no-such-profile", Some("podd-default")),
    ] {
        let mut config = cri::shell(name, "cat /proc/self/attr/current");
        let security = cri::security(&mut config);
        #[expect(deprecated, reason = "old kubelets send the string form")]
        old.clone_into(&mut security.apparmor_profile);
        security.apparmor = new.map(|localhost_ref: &str| pb::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: localhost_ref.to_owned(),
        });
        equal(name, pod.output(&config)?.as_str(), "podd-default (enforce)\n")?;
    }
    pod.remove()
}

fn apparmor_not_loaded(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("apparmor")?);
    let mut config = cri::shell("c", "true");
    cri::security(&mut config).apparmor = Some(pb::SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: "no-such-profile".to_owned(),
    });
    let answer = cri.create(&pod.id, &pod.config, &config);
    let said = refused("an unloaded profile", Code::FailedPrecondition, answer)?;
    contains("message", &said, "no-such-profile")?;
    pod.remove()
}
