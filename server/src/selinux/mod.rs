//! SELinux contexts of containers and of what they use.
//!
//! Owns which context what gets, and asks the kernel's policy whether there is such a context. Writes none of them: that
//! is for the stage (processes, mounts), for `podd-volumes` (volumes) and for the engine (a pod's files).

mod context;
mod level;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use runtime_core::pod::MAX_CONTEXT;

pub use context::{Context, is_level};
pub use level::Pairs;

use crate::config;
use crate::model::{ContainerConfig, ContainerPid, PodConfig, PodPid, SelinuxLabel, Share};

/// Where the kernel's interface is mounted.
const SELINUXFS: &str = "/sys/fs/selinux";
/// Where distributions keep the contexts of containers that do not come with the policy itself.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
/// What policies call these domains and files where no file says it.
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";
const LAYERS: &str = "system_u:object_r:container_ro_file_t:s0";
/// The domain of processes that are not to be held back.
const UNCONFINED: &str = "spc_t";

/// Why something cannot be labelled.
#[derive(Debug, thiserror::Error)]
pub enum SelinuxError {
    /// The policy has no such context.
    #[error("SELinux: this node's policy has no context {0:?}")]
    Unknown(String),
    /// The policy of this node was not made for containers.
    #[error(
        "SELinux: this node's policy has no context {0:?} for containers: install one that has, or set selinux.enabled to false"
    )]
    NoContainers(String),
    /// The kernel takes no longer one as the option of a mount.
    #[error("SELinux: the context {0:?} is longer than {MAX_CONTEXT} bytes")]
    TooLong(String),
    /// Every level belongs to a pod.
    #[error(
        "SELinux: each of the {0} levels belongs to a pod: raise selinux.categories, or name levels in requests"
    )]
    NoLevel(u32),
    /// The kernel, or a file of the policy, cannot be asked.
    #[error("SELinux: cannot use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What one container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    /// Context of its processes; none where the policy has no domain that suits: then that of podd's own children.
    pub process: Option<String>,
    /// Context of its root, of its own file systems, and of volumes that ask for one.
    pub mount: String,
    /// Context of what all containers of its pod may use, whatever their levels are.
    pub shared: String,
    /// Its level is not that of its pod, whose files are labelled for it.
    pub apart: bool,
}

/// A node with SELinux.
#[derive(Debug)]
pub struct Selinux {
    process: Context,
    file: Context,
    layers: Context,
    unconfined: Option<Context>,
    pairs: Pairs,
}

impl Selinux {
    /// Looks whether a policy is loaded, and which contexts it has for containers; none on a node without SELinux, or
    /// where the configuration says so.
    ///
    /// # Errors
    /// The policy does not know its own contexts of containers, or the kernel cannot be asked.
    pub fn open(config: config::Selinux) -> Result<Option<Self>, SelinuxError> {
        if !config.enabled || !policy_is_loaded() {
            return Ok(None);
        }
        let [process, file, layers] = defaults()?;
        let known = |context: &Context| match canonical(context) {
            Err(SelinuxError::Unknown(text)) => Err(SelinuxError::NoContainers(text)),
            other => other,
        };
        known(&process)?;
        known(&file)?;
        let layers = if canonical(&layers).is_ok() {
            layers
        } else {
            file.clone()
        };
        let unconfined = Context {
            kind: UNCONFINED.to_owned(),
            ..process.clone()
        };
        let unconfined = match canonical(&unconfined) {
            Ok(_) => Some(unconfined),
            Err(SelinuxError::Unknown(_)) => None,
            Err(e) => return Err(e),
        };
        Ok(Some(Self {
            process,
            file,
            layers,
            unconfined,
            pairs: Pairs::new(config.categories),
        }))
    }

    /// The level of a pod that names none, which is not one of `taken`; none under a policy without levels.
    ///
    /// # Errors
    /// There is no other, or the kernel gives no random numbers.
    pub fn free_level(&self, taken: impl Fn(&str) -> bool) -> Result<Option<String>, SelinuxError> {
        let Some(level) = &self.process.level else {
            return Ok(None);
        };
        let sensitivity = level.split([':', '-']).next().unwrap_or_default();
        let start = random().map_err(|source| SelinuxError::Io {
            path: "the kernel's random source".into(),
            source,
        })?;
        let mut all = self.pairs.from(start);
        let free = all.find_map(|(low, high)| {
            let level = format!("{sensitivity}:c{low},c{high}");
            (!taken(&level)).then_some(level)
        });
        free.map(Some)
            .ok_or_else(|| SelinuxError::NoLevel(self.pairs.count()))
    }

    /// Context of the files that a pod's containers share, for a pod of this level.
    ///
    /// # Errors
    /// The policy does not have what the request names.
    pub fn pod_files(&self, pod: &PodConfig, level: Option<&str>) -> Result<String, SelinuxError> {
        canonical(&self.processes(pod, level))?;
        mountable(&self.files(pod, level))
    }

    /// Context of what containers use of the node itself, whoever they are.
    #[must_use]
    pub fn shared(&self) -> String {
        self.file.to_string()
    }

    /// Context of the layers of images: every container may read and execute them. Kernels look at it below an overlay
    /// that has a context of its own when a program maps a file.
    #[must_use]
    pub fn layers(&self) -> String {
        self.layers.to_string()
    }

    /// What a container of a pod gets. The parts that it names win over those of its pod, and these over the policy's.
    ///
    /// # Errors
    /// The policy does not have what the request names.
    pub fn labels(
        &self,
        pod: &PodConfig,
        level: Option<&str>,
        container: &ContainerConfig,
    ) -> Result<Labels, SelinuxError> {
        let named = container.security.selinux.as_ref();
        let of_pod = self.processes(pod, level);
        let process = of_pod.clone().with(named);
        let file = Context {
            user: process.user.clone(),
            level: process.level.clone(),
            ..self.file.clone()
        };
        let shared = Context {
            user: process.user.clone(),
            ..self.file.clone()
        };
        // A wrong context is refused also where it would not be used.
        let own = canonical(&process)?;
        let labels = Labels {
            mount: mountable(&file)?,
            shared: mountable(&shared)?,
            apart: process.level != of_pod.level,
            process: Some(own),
        };
        if self.is_confined(pod, container) {
            return Ok(labels);
        }
        Ok(Labels {
            process: self.unconfined.as_ref().map(Context::to_string),
            ..labels
        })
    }

    /// Privileged containers are not confined, nor are those that are to work with the node's processes or ipc objects
    /// and name no domain: that of containers lets them see nothing of these.
    fn is_confined(&self, pod: &PodConfig, container: &ContainerConfig) -> bool {
        let security = &container.security;
        if security.privileged {
            return false;
        }
        let pid_of_node = match security.pid {
            ContainerPid::Node => true,
            ContainerPid::Pod => pod.namespaces.pid == PodPid::Node,
            _ => false,
        };
        let typed = |label: &Option<SelinuxLabel>| label.as_ref().is_some_and(|label| !label.kind.is_empty());
        !(pid_of_node || pod.namespaces.ipc == Share::Node)
            || typed(&security.selinux)
            || typed(&pod.security.selinux)
    }

    fn processes(&self, pod: &PodConfig, level: Option<&str>) -> Context {
        let mut context = self.process.clone();
        if context.level.is_some() {
            context.level = level.map(str::to_owned).or(context.level);
        }
        context.with(pod.security.selinux.as_ref())
    }

    fn files(&self, pod: &PodConfig, level: Option<&str>) -> Context {
        let process = self.processes(pod, level);
        Context {
            user: process.user,
            level: process.level,
            ..self.file.clone()
        }
    }
}

/// Before the first policy is loaded everything is `kernel`, and labels mean nothing.
fn policy_is_loaded() -> bool {
    let own = || fs::read("/proc/self/attr/current");
    Path::new(SELINUXFS).join("enforce").exists() && own().is_ok_and(|own| !own.starts_with(b"kernel\0"))
}

/// The contexts that the policy's makers chose for containers.
fn defaults() -> Result<[Context; 3], SelinuxError> {
    let text = match fs::read_to_string(CONTEXTS) {
        Ok(text) => text,
        Err(_) => of_policy().unwrap_or_default(),
    };
    let parse = |key, otherwise: &str| {
        let named = context::entry(&text, key).unwrap_or(otherwise);
        Context::parse(named).ok_or_else(|| SelinuxError::NoContainers(named.to_owned()))
    };
    Ok([
        parse("process", PROCESS)?,
        parse("file", FILE)?,
        parse("ro_file", LAYERS)?,
    ])
}

/// `lxc_contexts` of the policy that /etc/selinux/config names (selinux_config(5)).
fn of_policy() -> io::Result<String> {
    let config = fs::read_to_string("/etc/selinux/config")?;
    let kind = context::entry(&config, "SELINUXTYPE").unwrap_or("targeted");
    fs::read_to_string(Path::new("/etc/selinux").join(kind).join("contexts/lxc_contexts"))
}

/// The context as the kernel itself writes it: only so can it be told from another when it is read back.
fn canonical(context: &Context) -> Result<String, SelinuxError> {
    let path = Path::new(SELINUXFS).join("context");
    let failed = |source| SelinuxError::Io {
        path: path.clone(),
        source,
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    let text = context.to_string();
    match file.write(text.as_bytes()) {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            return Err(SelinuxError::Unknown(text));
        }
        other => other.map_err(failed)?,
    };
    let mut shown = String::new();
    file.take(1 << 16).read_to_string(&mut shown).map_err(failed)?;
    Ok(shown.trim_end_matches('\0').to_owned())
}

/// The same for one that becomes an option of mounts.
fn mountable(context: &Context) -> Result<String, SelinuxError> {
    let text = canonical(context)?;
    if text.len() > MAX_CONTEXT {
        return Err(SelinuxError::TooLong(text));
    }
    Ok(text)
}

fn random() -> io::Result<u32> {
    let mut bytes = [0u8; 4];
    // Up to 256 bytes come whole (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
