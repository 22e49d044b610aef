//! Requests that must be refused: the right code, a message that helps, and nothing left behind.

use anyhow::{Context, Result, ensure};
use podd_e2e::cri::{self, Cri};
use podd_proto::v1 as pb;
use tonic::{Code, Status};

use crate::case::{Env, Pod, cases, contains, equal, refused};

cases!("errors":
    pods, containers, unknown_ids, unknown_ids_of_idempotent_calls, wrong_state, unbuilt_calls_name_themselves,
    failed_create_leaves_no_name, host_path_that_is_a_file_where_a_directory_is_needed);

type Change<T> = (&'static str, Code, fn(&mut T));

fn pods(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let table: [Change<pb::RunPodSandboxRequest>; 10] = [
        ("unknown handler", Code::InvalidArgument, |r| {
            r.runtime_handler = "no-such-handler".to_owned()
        }),
        ("no configuration", Code::InvalidArgument, |r| r.config = None),
        ("no metadata", Code::InvalidArgument, |r| {
            config(r).metadata = None
        }),
        ("no name", Code::InvalidArgument, |r| metadata(r).name.clear()),
        ("no uid", Code::InvalidArgument, |r| metadata(r).uid.clear()),
        ("systemd-shaped parent", Code::InvalidArgument, |r| {
            config(r).linux.get_or_insert_default().cgroup_parent = "kubepods-pod1.slice".to_owned();
        }),
        ("parent outside", Code::InvalidArgument, |r| {
            config(r).linux.get_or_insert_default().cgroup_parent = "/../../outside".to_owned();
        }),
        ("relative log directory", Code::InvalidArgument, |r| {
            config(r).log_directory = "logs".to_owned()
        }),
        ("host name with a slash", Code::InvalidArgument, |r| {
            config(r).hostname = "a/b".to_owned()
        }),
        ("host name that is the node's", Code::InvalidArgument, |r| {
            let linux = config(r).linux.get_or_insert_default();
            let security = linux.security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().network = pb::NamespaceMode::Node.into();
        }),
    ];
    for (what, code, change) in table {
        let mut request = pb::RunPodSandboxRequest {
            config: Some(cri::pod_config("refused")),
            runtime_handler: String::new(),
        };
        change(&mut request);
        let message = refused(what, code, cri.run_pod_sandbox(request))?;
        ensure!(!message.is_empty(), "{what}: no message");
    }
    equal(
        "pods",
        cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?
            .items
            .len(),
        0,
    )
}

fn config(request: &mut pb::RunPodSandboxRequest) -> &mut pb::PodSandboxConfig {
    request.config.get_or_insert_default()
}

fn metadata(request: &mut pb::RunPodSandboxRequest) -> &mut pb::PodSandboxMetadata {
    config(request).metadata.get_or_insert_default()
}

/// What each refused CreateContainer changes in a request that would succeed.
const CONTAINERS: &[Change<pb::ContainerConfig>] = &[
    ("missing image", Code::NotFound, |c| {
        c.image = Some(cri::spec("gcr.io/no/such/image:latest"))
    }),
    ("no image", Code::InvalidArgument, |c| c.image = None),
    ("no metadata", Code::InvalidArgument, |c| c.metadata = None),
    ("no name", Code::InvalidArgument, |c| {
        c.metadata.get_or_insert_default().name.clear()
    }),
    ("unknown capability", Code::InvalidArgument, |c| {
        let add_capabilities = vec!["NO_SUCH_THING".to_owned()];
        cri::security(c).capabilities = Some(pb::Capability {
            add_capabilities,
            ..Default::default()
        });
    }),
    ("log path outside", Code::InvalidArgument, |c| {
        c.log_path = "../../../tmp/outside.log".to_owned()
    }),
    ("absolute log path", Code::InvalidArgument, |c| {
        c.log_path = "/tmp/outside.log".to_owned()
    }),
    ("relative mount target", Code::InvalidArgument, |c| {
        c.mounts = vec![volume("/tmp", "data")]
    }),
    ("relative mount source", Code::InvalidArgument, |c| {
        c.mounts = vec![volume("tmp", "/data")]
    }),
    ("mount over the root", Code::InvalidArgument, |c| {
        c.mounts = vec![volume("/tmp", "/")]
    }),
    ("relative working directory", Code::InvalidArgument, |c| {
        c.working_dir = "here".to_owned()
    }),
    ("negative user", Code::InvalidArgument, |c| {
        cri::security(c).run_as_user = Some(pb::Int64Value { value: -5 });
    }),
    ("seccomp profile that is not there", Code::InvalidArgument, |c| {
        cri::security(c).seccomp = Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::Localhost.into(),
            localhost_ref: "/no/such/profile.json".to_owned(),
        });
    }),
    ("relative masked path", Code::InvalidArgument, |c| {
        cri::security(c).masked_paths = vec!["proc".to_owned()]
    }),
    ("variable without a name", Code::InvalidArgument, |c| {
        c.envs = vec![pb::KeyValue {
            key: String::new(),
            value: b"x".to_vec(),
        }];
    }),
    ("NUL in a command", Code::InvalidArgument, |c| {
        c.command = vec!["a\0b".to_owned()]
    }),
];

fn volume(host: &str, container: &str) -> pb::Mount {
    pb::Mount {
        host_path: host.to_owned(),
        container_path: container.to_owned(),
        ..Default::default()
    }
}

fn containers(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("refused")?);
    let mut wrong = Vec::new();
    for (what, code, change) in CONTAINERS {
        let mut config = cri::shell("c", "true");
        change(&mut config);
        match refused(what, *code, cri.create(&pod.id, &pod.config, &config)) {
            Ok(message) => ensure!(!message.is_empty(), "{what}: no message"),
            Err(e) => wrong.push(format!("{e:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    equal(
        "containers",
        cri.list_containers(pb::ListContainersRequest::default())?
            .containers
            .len(),
        0,
    )?;
    pod.remove()
}

/// An id of the right shape that nothing has.
const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn code<T>(answer: Result<T, Box<Status>>) -> Code {
    answer.err().map_or(Code::Ok, |e| e.code())
}

/// A call about the thing of that id; the code of its answer.
type Call = fn(&Cri, String) -> Code;

fn unknown_ids(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let table: [(&str, Call); 7] = [
        ("PodSandboxStatus", |c, id| {
            code(c.pod_sandbox_status(pb::PodSandboxStatusRequest {
                pod_sandbox_id: id,
                verbose: false,
            }))
        }),
        ("ContainerStatus", |c, id| {
            code(c.container_status(pb::ContainerStatusRequest {
                container_id: id,
                verbose: false,
            }))
        }),
        ("StartContainer", |c, id| code(c.start(&id))),
        ("ExecSync", |c, id| code(c.exec(&id, &["true"], 1))),
        ("ReopenContainerLog", |c, id| {
            code(c.reopen_container_log(pb::ReopenContainerLogRequest { container_id: id }))
        }),
        ("CreateContainer", |c, id| {
            code(c.create(&id, &cri::pod_config("x"), &cri::shell("c", "true")))
        }),
        ("an id that is none", |c, _| code(c.start("../../etc/passwd"))),
    ];
    for (what, call) in table {
        let found = call(&cri, UNKNOWN.to_owned());
        let right =
            found == Code::NotFound || (what == "an id that is none" && found == Code::InvalidArgument);
        ensure!(right, "{what}: {found:?}, expected NotFound");
    }
    Ok(())
}

fn unknown_ids_of_idempotent_calls(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let id = || UNKNOWN.to_owned();
    cri.stop(UNKNOWN, 0).context("StopContainer")?;
    cri.remove_ctr(UNKNOWN).context("RemoveContainer")?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest { pod_sandbox_id: id() })
        .context("StopPodSandbox")?;
    cri.remove_pod_sandbox(pb::RemovePodSandboxRequest { pod_sandbox_id: id() })
        .context("RemovePodSandbox")?;
    Ok(())
}

fn wrong_state(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("state")?);
    let id = pod.started(&cri::shell("c", "true"))?;
    cri.wait_exit(&id)?;
    refused(
        "start of an exited container",
        Code::FailedPrecondition,
        cri.start(&id),
    )?;
    cri.stop_pod_sandbox(pb::StopPodSandboxRequest {
        pod_sandbox_id: pod.id.clone(),
    })?;
    let late = cri.create(&pod.id, &pod.config, &cri::shell("late", "true"));
    refused("create in a stopped pod", Code::FailedPrecondition, late)?;
    pod.remove()
}

/// Whatever is not built yet answers so, and says what it is. Who builds one takes it from the list.
fn unbuilt_calls_name_themselves(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let table: [(&str, Option<Box<Status>>); 3] = [
        (
            "CheckpointContainer",
            cri.checkpoint_container(pb::CheckpointContainerRequest::default())
                .err(),
        ),
        (
            "CheckpointPod",
            cri.checkpoint_pod(pb::CheckpointPodRequest::default()).err(),
        ),
        (
            "RestorePod",
            cri.restore_pod(pb::RestorePodRequest::default()).err(),
        ),
    ];
    for (name, answer) in table {
        let status = answer.with_context(|| format!("{name} is built: test what it does"))?;
        equal("code", status.code(), Code::Unimplemented)?;
        contains("message", status.message(), name)?;
    }
    Ok(())
}

fn failed_create_leaves_no_name(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("name")?);
    let mut config = cri::shell("c", "true");
    config.image = Some(cri::spec("gcr.io/no/such/image:latest"));
    refused(
        "missing image",
        Code::NotFound,
        cri.create(&pod.id, &pod.config, &config),
    )?;
    // The kubelet retries under the same name and attempt once the image is there.
    config.image = Some(cri::spec(podd_e2e::podd::IMAGE));
    pod.created(&config)?;
    pod.remove()
}

fn host_path_that_is_a_file_where_a_directory_is_needed(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod): (Cri, Pod) = (env.cri()?, env.pod("file")?);
    let mut config = cri::shell("c", "true");
    config.mounts = vec![volume("/etc/hostname/below", "/data")];
    let answer = cri.create(&pod.id, &pod.config, &config);
    let status = answer.err().context("a path below a file was mounted")?;
    contains("message", status.message(), "/etc/hostname")?;
    equal(
        "containers",
        cri.list_containers(pb::ListContainersRequest::default())?
            .containers
            .len(),
        0,
    )?;
    pod.remove()
}
