//! Every refusal, by the field that it names; and that what kubelets send is taken.

mod containers;
mod pods;
mod security;

use podd_proto::v1;

use crate::model::{
    AppArmor, CgroupParent, ContainerConfig, ContainerPid, CpuQuota, PodConfig, PodPid, Propagation,
    ReadOnly, Refused, Resources, Seccomp, Share, SwapLimit, User,
};

fn pod() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web-0".into(),
            uid: "7a1b".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/default_web-0_7a1b".into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/besteffort/pod7a1b".into(),
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(v1::NamespaceOption::default()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: "main".into(),
            attempt: 0,
        }),
        image: Some(v1::ImageSpec {
            image: "busybox".into(),
            ..Default::default()
        }),
        log_path: "main/0.log".into(),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources::default()),
            security_context: Some(v1::LinuxContainerSecurityContext::default()),
        }),
        ..Default::default()
    }
}

/// A pod with one change.
fn pod_with(change: impl FnOnce(&mut v1::PodSandboxConfig)) -> Result<PodConfig, Refused> {
    let mut config = pod();
    change(&mut config);
    PodConfig::try_from(&config)
}

fn pod_linux(change: impl FnOnce(&mut v1::LinuxPodSandboxConfig)) -> Result<PodConfig, Refused> {
    pod_with(|config| change(config.linux.as_mut().unwrap()))
}

fn pod_context(change: impl FnOnce(&mut v1::LinuxSandboxSecurityContext)) -> Result<PodConfig, Refused> {
    pod_linux(|linux| change(linux.security_context.as_mut().unwrap()))
}

fn container_with(change: impl FnOnce(&mut v1::ContainerConfig)) -> Result<ContainerConfig, Refused> {
    let mut config = container();
    change(&mut config);
    ContainerConfig::try_from(&config)
}

fn context(change: impl FnOnce(&mut v1::LinuxContainerSecurityContext)) -> Result<ContainerConfig, Refused> {
    container_with(|config| change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap()))
}

fn resources(change: impl FnOnce(&mut v1::LinuxContainerResources)) -> Result<Resources, Refused> {
    let mut wire = v1::LinuxContainerResources::default();
    change(&mut wire);
    Resources::try_from(&wire)
}

fn mount(change: impl FnOnce(&mut v1::Mount)) -> Result<ContainerConfig, Refused> {
    let mut mount = v1::Mount {
        container_path: "/data".into(),
        host_path: "/srv/data".into(),
        ..Default::default()
    };
    change(&mut mount);
    container_with(|config| config.mounts = vec![mount])
}

/// The field that is refused, `?` behind it when it is only unsupported.
fn field<T: std::fmt::Debug>(result: Result<T, Refused>) -> String {
    match result.unwrap_err() {
        Refused::Invalid(invalid) => invalid.field,
        Refused::Unsupported(unsupported) => format!("{}?", unsupported.field),
    }
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn profile(kind: v1::security_profile::ProfileType, localhost_ref: &str) -> Option<v1::SecurityProfile> {
    Some(v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: localhost_ref.into(),
    })
}

#[test]
fn a_kubelets_pod_and_container_are_taken() {
    let pod = PodConfig::try_from(pod()).unwrap();
    assert_eq!(pod.metadata.attempt, 1);
    assert_eq!(
        pod.cgroup_parent,
        Some(CgroupParent::Path("kubepods/besteffort/pod7a1b".into()))
    );
    let container = ContainerConfig::try_from(container()).unwrap();
    assert_eq!(container.log_path.as_deref(), Some("main/0.log"));
    assert_eq!(container.security.seccomp, Seccomp::Unconfined);
    assert_eq!(container.security.apparmor, AppArmor::RuntimeDefault);
    assert_eq!(container.security.pid, ContainerPid::Pod);
    container.check_in(&pod).unwrap();
}

#[test]
fn pods_and_containers_need_a_name_on_one_line() {
    let named = pod_with(|pod| pod.metadata.as_mut().unwrap().name = "my pod/0".into());
    assert_eq!(named.unwrap().metadata.name, "my pod/0");
    assert_eq!(field(pod_with(|pod| pod.metadata = None)), "config.metadata");
    for (bad, path) in [
        ("", "name"),
        ("a\n", "name"),
        ("a\0b", "name"),
        (&"x".repeat(254), "name"),
    ] {
        let pod = pod_with(|pod| pod.metadata.as_mut().unwrap().name = bad.into());
        assert_eq!(field(pod), format!("config.metadata.{path}"));
        let container = container_with(|container| container.metadata.as_mut().unwrap().name = bad.into());
        assert_eq!(field(container), format!("config.metadata.{path}"));
    }
    assert_eq!(
        field(pod_with(|pod| pod.metadata.as_mut().unwrap().uid.clear())),
        "config.metadata.uid"
    );
    let namespace = pod_with(|pod| pod.metadata.as_mut().unwrap().namespace.clear());
    assert_eq!(field(namespace), "config.metadata.namespace");
    assert_eq!(
        field(container_with(|container| container.metadata = None)),
        "config.metadata"
    );
    assert_eq!(
        field(container_with(|container| container.image = None)),
        "config.image"
    );
    let image = container_with(|container| container.image = Some(v1::ImageSpec::default()));
    assert_eq!(field(image), "config.image.image");
}

#[test]
fn windows_is_another_system() {
    assert_eq!(
        field(pod_with(
            |pod| pod.windows = Some(v1::WindowsPodSandboxConfig::default())
        )),
        "config.windows?"
    );
    let container = container_with(|c| c.windows = Some(v1::WindowsContainerConfig::default()));
    assert_eq!(field(container), "config.windows?");
}
