//! Fields of a container's and of a pod's Linux context, from inside the container and from the node at once: what a
//! program sees of itself and what the kernel says of it could differ. docs/testing.md says where the other fields are.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, ensure};
use pb::security_profile::ProfileType;
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_proto::v1 as pb;
use serde_json::json;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, field, log_lines, refused};
use crate::users;

cases!("fields":
    as_inside_so_on_the_node, mounts_of_a_container_on_the_node, empty_lists_mask_nothing, seccomp_profile_of_a_file,
    profiles_in_the_old_form, context_of_the_pod_is_the_pods, spec_in_verbose_status);

/// Lines of /proc/PID/status that have the same meaning inside and outside.
const SAME: [&str; 12] = [
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Umask",
];

fn kept(status: &str) -> Result<BTreeMap<&'static str, String>> {
    let line = |name| Ok((name, field(status, name)?.to_owned()));
    SAME.into_iter().map(line).collect()
}

fn profile(kind: ProfileType, path: &str) -> Option<pb::SecurityProfile> {
    Some(pb::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.to_owned(),
    })
}

fn as_inside_so_on_the_node(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("seen")?);
    let mut config = cri::shell("c", "cat /proc/self/status; exec sleep 1000");
    let security = cri::security(&mut config);
    security.run_as_user = Some(pb::Int64Value { value: 1234 });
    security.run_as_group = Some(pb::Int64Value { value: 2345 });
    security.supplemental_groups = vec![77, 88];
    security.no_new_privs = true;
    security.seccomp = profile(ProfileType::RuntimeDefault, "");
    security.capabilities = Some(pb::Capability {
        add_capabilities: vec!["NET_ADMIN".to_owned()],
        drop_capabilities: vec!["CHOWN".to_owned(), "NET_RAW".to_owned()],
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
    });
    let id = pod.started(&config)?;
    let process = users::pid(env, &id)?;
    crate::case::eventually("the container said its state", || {
        Ok(log_lines(&pod.config, &config)?
            .iter()
            .any(|line| line.content.starts_with("Umask")))
    })?;
    crate::case::eventually("it sleeps", || {
        Ok(fs::read_to_string(format!("/proc/{process}/comm"))?.trim() == "sleep")
    })?;
    let said: Vec<String> = log_lines(&pod.config, &config)?
        .into_iter()
        .map(|line| line.content)
        .collect();
    let (inside, outside) = (
        kept(&said.join("\n"))?,
        kept(&fs::read_to_string(format!("/proc/{process}/status"))?)?,
    );
    pod.remove()?;
    equal("seen from both sides", &inside, &outside)?;
    let bind = 1_u64 << 10;
    for (name, expected) in [
        ("Uid", "1234\t1234\t1234\t1234".to_owned()),
        ("Gid", "2345\t2345\t2345\t2345".to_owned()),
        ("NoNewPrivs", "1".to_owned()),
        ("Seccomp", "2".to_owned()),
        ("CapAmb", format!("{bind:016x}")),
        ("CapEff", format!("{bind:016x}")),
    ] {
        equal(name, outside.get(name), Some(&expected))?;
    }
    let bound = u64::from_str_radix(&outside["CapBnd"], 16)?;
    equal(
        "bounding set: net_admin, chown, net_raw",
        [12, 0, 13].map(|cap| bound >> cap & 1),
        [1, 0, 0],
    )?;
    drop(cri);
    Ok(())
}

/// Mount point and options of each mount of a process.
fn mounts(process: u32) -> Result<BTreeMap<String, String>> {
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
    let words = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(words
        .map(|words| (words[4].to_owned(), words[5].to_owned()))
        .collect())
}

/// readonly_rootfs, masked_paths and readonly_paths, as the node sees the container's mounts.
fn mounts_of_a_container_on_the_node(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("mounts")?);
    let mut config = cri::shell("c", "exec sleep 1000");
    let security = cri::security(&mut config);
    security.readonly_rootfs = true;
    security.masked_paths = vec!["/proc/keys".to_owned(), "/proc/irq".to_owned()];
    security.readonly_paths = vec!["/proc/sys".to_owned()];
    let id = pod.started(&config)?;
    let found = mounts(users::pid(env, &id)?)?;
    let read_only = |path: &str| {
        found
            .get(path)
            .is_some_and(|options| options.split(',').any(|word| word == "ro"))
    };
    for path in ["/", "/proc/keys", "/proc/irq", "/proc/sys"] {
        ensure!(read_only(path), "{path} can be written: {:?}", found.get(path));
    }
    for path in ["/dev/shm", "/dev"] {
        ensure!(!read_only(path), "{path} cannot be written");
    }
    let inside = cri.sh(
        &id,
        "wc -c </proc/keys; ls -A /proc/irq; touch /x 2>&1; ( echo 1 >/proc/sys/kernel/domainname ) 2>&1; true",
    )?;
    equal(
        "refused inside",
        inside.matches("Read-only file system").count(),
        2,
    )?;
    ensure!(inside.starts_with("0\n"), "{inside}");
    pod.remove()
}

/// ProcMount Unmasked of a kubelet: both lists are empty.
fn empty_lists_mask_nothing(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("unmasked")?;
    let id = pod.started(&cri::shell("c", "exec sleep 1000"))?;
    let below: Vec<String> = mounts(users::pid(env, &id)?)?
        .into_keys()
        .filter(|point| point.starts_with("/proc/"))
        .collect();
    equal("mounts below /proc", below, Vec::new())?;
    let inside = env.cri()?.sh(
        &id,
        "test -r /proc/sys/kernel/osrelease && ( : >>/proc/sys/kernel/domainname ) && echo open",
    )?;
    equal("inside", inside.as_str(), "open\n")?;
    pod.remove()
}

/// A file with a profile, as a kubelet has them below its seccomp directory.
struct Profile(String);

impl Profile {
    fn new(content: &serde_json::Value) -> Result<Self> {
        let path = format!("{WORK_DIR}/profile-{}.json", cri::unique());
        fs::write(&path, content.to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Says what the filter lets through: mkdir, chmod, and uname to one side of a condition.
const ASKS: &str =
    "mkdir /tmp/d 2>&1; chmod 700 /tmp 2>&1; uname >/dev/null 2>&1; grep ^Seccomp: /proc/self/status; true";

fn seccomp_profile_of_a_file(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("file")?);
    let calls =
        |names: &[&str], errno: u32| json!({"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno});
    let file = Profile::new(&json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        // ENOSPC, EXDEV: nothing else would say so.
        "syscalls": [calls(&["mkdir", "mkdirat"], 28), calls(&["chmod", "fchmodat", "fchmodat2"], 18)],
    }))?;
    let mut config = cri::shell("c", ASKS);
    cri::security(&mut config).seccomp = profile(ProfileType::Localhost, &file.0);
    let out = pod.output(&config)?;
    contains("mkdir", &out, "No space left on device")?;
    contains("chmod", &out, "ross-device link")?;
    contains("filter", &out, "Seccomp:\t2")?;
    // An exec is under the same filter, and the node sees it.
    let mut config = cri::shell("d", "exec sleep 1000");
    cri::security(&mut config).seccomp = profile(ProfileType::Localhost, &file.0);
    let id = pod.started(&config)?;
    let out = cri.sh(&id, ASKS)?;
    contains("mkdir of an exec", &out, "No space left on device")?;
    let status = fs::read_to_string(format!("/proc/{}/status", users::pid(env, &id)?))?;
    equal("mode on the node", field(&status, "Seccomp")?, "2")?;
    for (content, path) in [(Some("{"), None), (None, Some("/no/such/profile.json"))] {
        let file = content.map(|text| Profile::new(&json!(text))).transpose()?;
        let path = path.unwrap_or_else(|| file.as_ref().map_or("", |file| file.0.as_str()));
        let mut config = cri::shell("bad", "true");
        cri::security(&mut config).seccomp = profile(ProfileType::Localhost, path);
        let answer = cri.create(&pod.id, &pod.config, &config);
        let said = answer.err().context("a profile that is none was taken")?;
        contains("message", said.message(), path)?;
    }
    pod.remove()
}

/// What kubelets before 1.24 send.
#[expect(deprecated, reason = "old kubelets send the string forms")]
fn profiles_in_the_old_form(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("old")?;
    let file = Profile::new(&json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }))?;
    for (path, mode, full) in [
        ("runtime/default".to_owned(), "2", false),
        ("docker/default".to_owned(), "2", false),
        ("unconfined".to_owned(), "0", false),
        (format!("localhost/{}", file.0), "2", true),
    ] {
        let mut config = cri::shell("c", ASKS);
        config.metadata.get_or_insert_default().name = path.replace('/', "-");
        config.log_path = format!("{}.log", path.replace('/', "-"));
        cri::security(&mut config).seccomp_profile_path = path.clone();
        let out = pod.output(&config)?;
        contains(&path, &out, &format!("Seccomp:\t{mode}"))?;
        equal(&path, out.contains("No space left on device"), full)?;
    }
    pod.remove()
}

/// User, groups, filter and read-only root of a pod are those of its own processes: containers bring theirs.
#[expect(deprecated, reason = "old kubelets send the string forms")]
fn context_of_the_pod_is_the_pods(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let mut config = cri::pod_config("context");
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.run_as_user = Some(pb::Int64Value { value: 1234 });
    security.run_as_group = Some(pb::Int64Value { value: 2345 });
    security.supplemental_groups = vec![77];
    security.supplemental_groups_policy = pb::SupplementalGroupsPolicy::Strict.into();
    security.readonly_rootfs = true;
    security.seccomp = profile(ProfileType::RuntimeDefault, "");
    security.apparmor = profile(ProfileType::Unconfined, "");
    let options = security.namespace_options.get_or_insert_default();
    options.pid = pb::NamespaceMode::Pod.into();
    let pod = Pod::run(&cri, config)?;
    let mut container = cri::shell(
        "c",
        "id -u; id -g; touch /x && echo written; grep ^Seccomp: /proc/self/status",
    );
    let options = cri::security(&mut container)
        .namespace_options
        .get_or_insert_default();
    options.pid = pb::NamespaceMode::Pod.into();
    cri::security(&mut container).seccomp = profile(ProfileType::Unconfined, "");
    equal(
        "container",
        pod.output(&container)?.as_str(),
        "0\n0\nwritten\nSeccomp:\t0\n",
    )?;
    pod.remove()?;
    let bad = |change: &dyn Fn(&mut pb::LinuxSandboxSecurityContext)| {
        let mut config = cri::pod_config("bad");
        change(
            config
                .linux
                .get_or_insert_default()
                .security_context
                .get_or_insert_default(),
        );
        cri.run_pod(&config)
    };
    let wide = Some(pb::Int64Value { value: 1 << 32 });
    refused(
        "run_as_user",
        Code::InvalidArgument,
        bad(&|s| s.run_as_user = wide),
    )?;
    refused(
        "run_as_group",
        Code::InvalidArgument,
        bad(&|s| s.run_as_group = Some(pb::Int64Value { value: 5 })),
    )?;
    refused(
        "supplemental_groups",
        Code::InvalidArgument,
        bad(&|s| s.supplemental_groups = vec![-1]),
    )?;
    refused(
        "policy",
        Code::InvalidArgument,
        bad(&|s| s.supplemental_groups_policy = 9),
    )?;
    refused(
        "seccomp",
        Code::InvalidArgument,
        bad(&|s| s.seccomp = profile(ProfileType::Localhost, "relative")),
    )?;
    refused(
        "seccomp_profile_path",
        Code::InvalidArgument,
        bad(&|s| s.seccomp_profile_path = "localhost/".to_owned()),
    )?;
    refused(
        "apparmor",
        Code::InvalidArgument,
        bad(&|s| s.apparmor = profile(ProfileType::Localhost, "")),
    )?;
    Ok(())
}

/// What scripts of operators read from the verbose status: the OCI spec, and namespaces by paths that can be opened.
fn spec_in_verbose_status(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("verbose")?);
    let mut config = cri::shell("c", "exec sleep 1000");
    config.annotations = [("of".to_owned(), "me".to_owned())].into();
    let id = pod.started(&config)?;
    let info = |id: &str| -> Result<serde_json::Value> {
        let request = pb::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: true,
        };
        let said = cri.container_status(request)?.info;
        Ok(serde_json::from_str(said.get("info").context("no info")?)?)
    };
    let said = info(&id)?;
    equal("privileged", &said["privileged"], &json!(false))?;
    let spec = &said["runtimeSpec"];
    equal(
        "args",
        &spec["process"]["args"],
        &json!(["sh", "-c", "exec sleep 1000"]),
    )?;
    equal("annotations", &spec["annotations"], &json!({"of": "me"}))?;
    ensure!(
        spec["linux"]["seccomp"].is_null(),
        "a filter that nobody asked for"
    );
    let request = pb::PodSandboxStatusRequest {
        pod_sandbox_id: pod.id.clone(),
        verbose: true,
    };
    let of_pod = cri.pod_sandbox_status(request)?.info;
    let of_pod: serde_json::Value = serde_json::from_str(of_pod.get("info").context("no info")?)?;
    let of_pod = &of_pod["runtimeSpec"];
    equal("host name", &of_pod["hostname"], &json!("verbose"))?;
    for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
        let wanted = fs::read_link(format!("/proc/{}/ns/{file}", said["pid"]))?;
        for spec in [spec, of_pod] {
            let listed = spec["linux"]["namespaces"].as_array().context("no namespaces")?;
            let found = listed.iter().find(|it| it["type"] == kind).context(kind)?;
            let path = found["path"]
                .as_str()
                .with_context(|| format!("{kind} has no path"))?;
            equal(kind, fs::read_link(path)?, wanted.clone())?;
        }
    }
    let own = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    let own = own.filter(|it| it["path"].is_null()).count();
    equal("namespaces of its own (mount, cgroup, pid)", own, 3)?;
    // Of one that is over, the spec is kept as long as its record.
    cri.stop(&id, 0)?;
    equal(
        "args later",
        &info(&id)?["runtimeSpec"]["process"]["args"][0],
        &json!("sh"),
    )?;
    pod.remove()
}
