//! From a container's record to the plan, files and descriptors that its stage gets.
//!
//! Blocking; opens files of podd's own and volumes, starts nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use podd_images::Image;
use runtime_core::cgroup::{DeviceProgram, DeviceRules, Limits};
use runtime_core::compile::{
    self, ContainerInputs, ExecInputs, Identity, ImageMount, ProcessInputs, RootLayers, Volume, Who,
};
use runtime_core::plan::{FileKind, GroupsPolicy, TerminalSize, mount_flag};
use runtime_core::pod::{Missing, Relabel, Volumes};
use runtime_core::seccomp::{self, Filter};

use super::basis::{ExecBase, exec_base};
use super::labels::label_files;
use super::log::open_log;
use super::native::NativeError;
use super::{Engine, EngineError, hooks, plans, skeleton};
use crate::cdi::Edits;
use crate::model::{IdMaps, Seccomp};
use crate::selinux::Labels;
use crate::spec::{self, ImageDefaults, Inputs, PodFiles, devices};
use crate::state::store::{Container, Pod};

/// Where the nest shows podd's state directory.
const STORE: &str = "/store";

/// A directory of a container that stays empty.
const EMPTY: &str = "empty";

/// How long the disk of a volume or a log may take to answer.
pub(super) const VOLUME_DEADLINE: Duration = Duration::from_secs(30);

/// What a stage gets, and what is written to the cgroup when it is ready.
#[derive(Debug)]
pub struct Build {
    /// The sealed plan.
    pub plan: OwnedFd,
    /// The same, to explain failures.
    pub encoded: Vec<u8>,
    /// Limits of the container's cgroup.
    pub limits: Limits,
    /// What the container's cgroup allows of devices; everything without one.
    pub devices: Option<DeviceProgram>,
    /// Where podinit records the exit.
    pub directory: OwnedFd,
    /// The log file, where the request has one.
    pub log: Option<OwnedFd>,
    /// Detached mounts, in slot order.
    pub volumes: Vec<OwnedFd>,
}

/// Decides what the container is, prepares its directories and opens what it gets.
///
/// # Errors
/// The image or the host lacks what the request needs, or the kernel refuses a file.
pub fn build(engine: &Engine, pod: &Pod, container: &Container, image: &Image) -> Result<Build, EngineError> {
    let id = container.record.id;
    let directory = engine.state.records().container_dir(&pod.record.id, &id);
    make_directories(&directory, pod.config.namespaces.user)?;
    let labels = engine.labels(pod, &container.config)?;
    let built = decide(engine, pod, container, image, labels.as_ref())?;
    let nest_dir = in_nest(engine, &directory);
    let lowers = image.layers.iter().rev().map(u64::to_string);
    let root = RootLayers {
        base: in_nest(engine, engine.images.layers_dir()),
        lowers: lowers.chain([skeleton::NAME.to_owned()]).collect(),
        upper: format!("{nest_dir}/upper"),
        work: format!("{nest_dir}/work"),
    };
    let apart = labels.as_ref().filter(|labels| labels.apart);
    if let Some(labels) = apart {
        label_files(&engine.state.records().pod_dir(&pod.record.id), &labels.shared)?;
    }
    let (volumes, mut kinds) = open_volumes(engine, container, &built, labels.as_ref())?;
    // The host's tree is no volume of the plan.
    kinds.truncate(volumes.len() - usize::from(compile::needs_host_tree(&built.spec)));
    let process = ProcessInputs {
        identity: Some(built.identity.clone()),
        env: Some(built.env.clone()),
        host_caps: engine.native.host.capabilities,
        seccomp: engine.native.filters.of(&built.spec)?,
        into_cgroup: true,
    };
    let inputs = ContainerInputs {
        root,
        nest: built.nest.clone(),
        images: labelled_images(&built, &directory, &nest_dir)?,
        directories: built.directories.clone(),
        volumes: kinds,
        shm_context: apart.map(|labels| labels.shared.clone()),
        hooks: hooks::inputs(engine, container, &directory)?,
        process,
    };
    let encoded = compile::container(&built.spec, &inputs).map_err(NativeError::from)?;
    let limits = limits(&built.spec)?;
    let devices = device_program(engine, &built.spec)?;
    let basis = ExecBase::new(built.spec, built.env);
    basis.save(&directory)?;
    engine.native.execs.put(id, Arc::new(basis));
    Ok(Build {
        plan: plans::seal(&encoded)?,
        encoded,
        limits,
        devices,
        directory: open_directory(&directory)?,
        log: open_log(pod, container)?,
        volumes,
    })
}

fn decide(
    engine: &Engine,
    pod: &Pod,
    container: &Container,
    image: &Image,
    labels: Option<&Labels>,
) -> Result<spec::Built, EngineError> {
    let pod_dir = engine.state.records().pod_dir(&pod.record.id);
    let execution = &image.config.config;
    let defaults = ImageDefaults {
        user: &execution.user,
        env: &execution.env,
        entrypoint: &execution.entrypoint,
        cmd: &execution.cmd,
        working_dir: &execution.working_dir,
        volumes: Some(&execution.volumes),
    };
    let devices = devices::find(&container.config.devices).map_err(EngineError::Device)?;
    let (host_dir, nest_dir) = (pod_dir.to_string_lossy(), in_nest(engine, &pod_dir));
    let profile = localhost_profile(&container.config.security.seccomp)?;
    let no_edits = Edits::default();
    let cgroup = engine.native.container_cgroup(pod, &container.record.id)?;
    let inputs = Inputs {
        pod: &pod.config,
        container: &container.config,
        image: &defaults,
        host: &engine.native.host,
        files: PodFiles {
            host_dir: &host_dir,
            nest_dir: &nest_dir,
        },
        devices: &devices,
        cdi: container.record.cdi.as_deref().unwrap_or(&no_edits),
        labels,
        seccomp: profile.as_ref(),
        images: &image_layers(container),
        cgroup: cgroup.as_str(),
    };
    spec::build(&inputs).map_err(EngineError::Spec)
}

/// The layers of the images that a container mounts, from top to bottom, by path.
fn image_layers(container: &Container) -> BTreeMap<String, Vec<String>> {
    let volumes = container.record.image_volumes.iter();
    volumes
        .map(|volume| {
            let lowers = volume.layers.iter().rev().map(u64::to_string).collect();
            (volume.path.clone(), lowers)
        })
        .collect()
}

/// The image volumes of a container. One that is to have a context is an overlay, and that takes two layers: where the
/// image has one there is an empty one below.
fn labelled_images(
    built: &spec::Built,
    directory: &Path,
    nest_dir: &str,
) -> Result<BTreeMap<PathBuf, ImageMount>, NativeError> {
    let mut images = built.images.clone();
    let linux = built.spec.linux().as_ref();
    let labelled = linux.is_some_and(|linux| linux.mount_label().is_some());
    let single = images
        .values_mut()
        .filter(|image| labelled && image.lowers.len() == 1);
    let mut single = single.peekable();
    if single.peek().is_some() {
        make_directory(&directory.join(EMPTY), 0o755, None)?;
    }
    single.for_each(|image| image.lowers.push(format!("{nest_dir}/{EMPTY}")));
    Ok(images)
}

/// Reads the seccomp profile that a request names by its path on the node.
fn localhost_profile(seccomp: &Seccomp) -> Result<Option<LinuxSeccomp>, NativeError> {
    const LARGEST: u64 = 1 << 20;
    let Seccomp::Localhost(path) = seccomp else {
        return Ok(None);
    };
    let failed = |source| NativeError::Profile {
        path: path.into(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() > LARGEST {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    let reader = std::io::Read::take(std::io::BufReader::new(file), LARGEST);
    serde_json::from_reader(reader)
        .map(Some)
        .map_err(|e| failed(e.into()))
}

fn limits(spec: &Spec) -> Result<Limits, EngineError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    match resources {
        Some(resources) => Ok(Limits::from_oci(resources).map_err(NativeError::from)?),
        None => Ok(Limits::default()),
    }
}

/// The program for the spec's rules about devices; a spec without rules denies all.
fn device_program(engine: &Engine, spec: &Spec) -> Result<Option<DeviceProgram>, NativeError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    let rules = DeviceRules::from_oci(rules.map_or(&[], Vec::as_slice))?;
    Ok(engine.native.devices.program(&rules)?)
}

/// Opens the volumes of a spec through a disposable process; nothing is started where there are none.
fn open_volumes(
    engine: &Engine,
    container: &Container,
    built: &spec::Built,
    labels: Option<&Labels>,
) -> Result<(Vec<OwnedFd>, Vec<FileKind>), EngineError> {
    let wanted = compile::volumes(&built.spec, &built.nest).map_err(NativeError::from)?;
    let host_tree = compile::needs_host_tree(&built.spec);
    if wanted.is_empty() && !host_tree {
        return Ok((Vec::new(), Vec::new()));
    }
    let helper = Volumes::start(&engine.native.programs, VOLUME_DEADLINE).map_err(NativeError::from)?;
    let mut opened = Vec::with_capacity(wanted.len());
    for volume in wanted {
        // What a CDI device needs has to be there; an empty directory in its place would be a lie.
        let missing = match &container.record.cdi {
            Some(edits)
                if edits
                    .mounts
                    .iter()
                    .any(|m| Path::new(&m.destination) == volume.destination) =>
            {
                Missing::Refuse
            }
            _ => Missing::Create,
        };
        let relabel = labels
            .filter(|_| asks_for_label(container, volume.destination))
            .map(|labels| Relabel {
                context: &labels.mount,
                deadline: Duration::from_secs(engine.config.timeouts.create_seconds.into()),
            });
        let mount = helper
            .open(&volume, missing, relabel)
            .map_err(NativeError::from)?;
        opened.push((mount.mount, mount.kind));
    }
    if host_tree {
        let all = Volume {
            slot: 0,
            source: Path::new("/"),
            destination: Path::new("/"),
            recursive: true,
            propagation: mount_flag::PRIVATE,
        };
        let mount = helper
            .open(&all, Missing::Refuse, None)
            .map_err(NativeError::from)?;
        opened.push((mount.mount, mount.kind));
    }
    Ok(opened.into_iter().unzip())
}

/// Whether the request wants a volume labelled for the container.
fn asks_for_label(container: &Container, destination: &Path) -> bool {
    let mut mounts = container.config.mounts.iter();
    mounts.any(|mount| mount.selinux_relabel && Path::new(&mount.container_path) == destination)
}

/// A path of podd's state directory as the nest shows it.
fn in_nest(engine: &Engine, path: &Path) -> String {
    let below = path.strip_prefix(&engine.config.state_dir).unwrap_or(path);
    format!("{STORE}/{}", below.display())
}

/// The upper directory is the root of what the container writes, so that it is as open as an image's root.
fn make_directories(container: &Path, ids: Option<IdMaps>) -> Result<(), NativeError> {
    make_directory(&container.join("upper"), 0o755, ids)?;
    make_directory(&container.join("work"), 0o700, ids)
}

fn make_directory(path: &Path, mode: u32, ids: Option<IdMaps>) -> Result<(), NativeError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
    let made = std::fs::DirBuilder::new()
        .mode(mode)
        .create(path)
        .and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)))
        .and_then(|()| match ids {
            Some(ids) => chown(path, Some(ids.users.host), Some(ids.groups.host)),
            None => Ok(()),
        });
    made.map_err(|source| NativeError::File {
        operation: "make",
        path: path.to_owned(),
        source,
    })
}

fn open_directory(path: &Path) -> Result<OwnedFd, NativeError> {
    let opened = std::fs::File::open(path);
    Ok(opened
        .map_err(|source| NativeError::File {
            operation: "open",
            path: path.to_owned(),
            source,
        })?
        .into())
}

/// The plan of a further process in a container.
///
/// # Errors
/// What was decided when the container was created cannot be read again, or the command cannot become a plan.
pub fn exec_plan(
    engine: &Engine,
    container: &Container,
    args: Vec<String>,
    terminal: Option<TerminalSize>,
) -> Result<Vec<u8>, EngineError> {
    let base = exec_base(engine, container)?;
    let identity = container.record.identity.as_ref().map(|identity| Identity {
        user: Who::Id(identity.uid),
        group: Who::Id(identity.gid),
        groups: identity.groups.clone(),
        policy: GroupsPolicy::Strict,
    });
    let mut env = base.env().to_vec();
    if terminal.is_some() && !env.iter().any(|entry| entry.starts_with(b"TERM=")) {
        env.push(b"TERM=xterm".to_vec());
    }
    let process = ProcessInputs {
        identity,
        env: Some(env),
        host_caps: engine.native.host.capabilities,
        seccomp: engine.native.filters.of(base.spec())?,
        into_cgroup: true,
    };
    let inputs = ExecInputs {
        args,
        terminal,
        process,
    };
    Ok(compile::exec(&with_score(engine, container, base.spec()), &inputs).map_err(NativeError::from)?)
}

/// The spec with the oom_score_adj that the container has now, where an update has changed it.
pub fn with_score<'a>(engine: &Engine, container: &Container, spec: &'a Spec) -> Cow<'a, Spec> {
    let now = container
        .resources()
        .oom_score_adj
        .max(engine.native.host.least_oom_score_adj);
    match spec.process() {
        Some(process) if process.oom_score_adj() != Some(now) => {
            let mut process = process.clone();
            process.set_oom_score_adj(Some(now));
            let mut spec = spec.clone();
            spec.set_process(Some(process));
            Cow::Owned(spec)
        }
        _ => Cow::Borrowed(spec),
    }
}

/// Compiled seccomp filters: nearly all containers of a node share two or three.
#[derive(Debug, Default)]
pub struct Filters(Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>>);

impl Filters {
    const MOST: usize = 16;

    fn of(&self, spec: &Spec) -> Result<Option<Arc<Filter>>, EngineError> {
        let Some(profile) = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()) else {
            return Ok(None);
        };
        let mut filters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, filter)) = filters.iter().find(|(known, _)| known == profile) {
            return Ok(Some(Arc::clone(filter)));
        }
        let filter = Arc::new(seccomp::compile(profile).map_err(EngineError::Seccomp)?);
        if filters.len() >= Self::MOST {
            filters.remove(0);
        }
        filters.push((profile.clone(), Arc::clone(&filter)));
        Ok(Some(filter))
    }
}
