//! The records of pods and containers on disk.
//!
//! Owns their JSON and the directories they live in; decides nothing about them. Every call blocks.
//!
//! ```text
//! <state_dir>/boot-id                                     boot of the daemon that wrote last
//! <state_dir>/pods/<pod id>/pod.json                      PodRecord
//! <state_dir>/pods/<pod id>/containers/<id>/container.json  ContainerRecord
//! <state_dir>/quarantine/<id>.<n>                         what could not be read, for people
//! <state_dir>/trash/                                      what is being deleted
//! ```
//!
//! A record is written beside its place and exchanged for the one that is there, without fsync: it need not outlive the
//! machine (docs/state.md). The request of the CRI client is kept whole, as it was encoded, in base64; the other fields
//! are what podd added, and what people want to read.

mod error;
mod write;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

pub use error::RecordError;
use write::{exchange, replace};

use super::phase::{ContainerPhase, Nanos, PodPhase};
use super::reserve::Reserve;
use super::trash::Trash;
use crate::cdi::Edits;
use crate::model::{ContainerId, PodId, Resources, StopSignal};

/// The format this podd writes, and the only one it reads so far.
pub const VERSION: u32 = 1;

/// Bytes, in JSON as base64. The many versions of one record share them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Encoded(pub Arc<[u8]>);

impl TryFrom<String> for Encoded {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64.decode(text).map(|bytes| Self(bytes.into()))
    }
}

impl From<Encoded> for String {
    fn from(bytes: Encoded) -> Self {
        BASE64.encode(bytes.0)
    }
}

/// A process, safe against reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRef {
    /// Its number in the initial pid namespace.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of /proc/pid/stat.
    pub start_time: u64,
}

/// What podd remembers of a pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The pod's id.
    pub id: PodId,
    /// Boot of the kernel that the pod lives in; after a reboot nothing of it exists.
    pub boot_id: String,
    /// Name, namespace, uid and attempt as the kubelet gave them, for people.
    pub name: String,
    /// See `name`.
    pub namespace: String,
    /// See `name`.
    pub uid: String,
    /// See `name`.
    pub attempt: u32,
    /// The runtime handler that was asked for, empty for the default.
    pub runtime_handler: String,
    /// When the pod was asked for.
    pub created_at: Nanos,
    /// Where it is in its life.
    pub phase: PodPhase,
    /// Creating it failed and so did taking it back: it holds no name, and removing it tries again.
    #[serde(default)]
    pub leftover: bool,
    /// Fingerprint of the request, which tells a retry from a changed request.
    pub fingerprint: String,
    /// The RunPodSandboxRequest.
    pub request: Encoded,
    /// Its cgroup, seen from the root of the hierarchy.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// The scope unit that its cgroup is in, where systemd makes the cgroups of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// The SELinux level that it was given, where it names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux_level: Option<String>,
    /// Its place in the network; none for host-network pods and after it was given back.
    #[serde(default)]
    pub attachment: Option<podd_netplug::Attachment>,
    /// Its podinit.
    #[serde(default)]
    pub podinit: Option<ProcessRef>,
    /// Where an earlier podd counted the containers of the pod.
    #[serde(default, skip_serializing)]
    pub next_handle: IgnoredAny,
    /// What UpdatePodSandboxResources made of the resources and the overhead that the request asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<PodResources>,
}

/// Resources of a pod that are not its containers' own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodResources {
    /// What its containers use together.
    pub resources: Resources,
    /// What it uses beside them.
    pub overhead: Resources,
}

/// Who the application runs as, resolved from the request and the image's own passwd and group files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// An image that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageVolume {
    /// Where it is mounted in the container.
    pub path: String,
    /// Id of the image, `sha256:…`.
    pub image_id: String,
    /// Its layers, lowest first, as the image store names them.
    pub layers: Vec<u64>,
}

/// What podd remembers of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// [`VERSION`].
    pub version: u32,
    /// The container's id.
    pub id: ContainerId,
    /// The pod it belongs to.
    pub pod: PodId,
    /// Boot of the kernel that the container lives in.
    pub boot_id: String,
    /// The number by which podinit knows it, unique in the pod as its id is.
    pub handle: u32,
    /// Name and attempt as the kubelet gave them, for people.
    pub name: String,
    /// See `name`.
    pub attempt: u32,
    /// When the container was asked for.
    pub created_at: Nanos,
    /// Where it is in its life.
    pub phase: ContainerPhase,
    /// Creating it failed and so did taking it back: it holds no name, and removing it tries again.
    #[serde(default)]
    pub leftover: bool,
    /// Fingerprint of the request, which tells a retry from a changed request.
    pub fingerprint: String,
    /// The CreateContainerRequest.
    pub request: Encoded,
    /// Id of the image: the digest of its configuration, `sha256:…`.
    pub image_id: String,
    /// The image's first repository digest, or its id where it has none.
    pub image_ref: String,
    /// Its layers, lowest first, as the image store names them.
    pub layers: Vec<u64>,
    /// The images that it mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<ImageVolume>,
    /// What its CDI devices add to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cdi: Option<Box<Edits>>,
    /// Its log file, where the pod has a log directory.
    #[serde(default)]
    pub log_path: Option<PathBuf>,
    /// Its cgroup, seen from the root of the hierarchy.
    #[serde(default)]
    pub cgroup: Option<String>,
    /// The signal that asks it to stop, from the request or the image.
    pub stop_signal: StopSignal,
    /// Who its application runs as, once that is resolved.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// What UpdateContainerResources made of the resources that the request asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Resources>,
}

/// A directory tree of records.
#[derive(Debug)]
pub struct Records {
    root: PathBuf,
    trash: Trash,
    reserve: Reserve,
}

impl Records {
    /// Opens the records below `state_dir`, making the directories where they are missing.
    ///
    /// # Errors
    /// A directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<Self, RecordError> {
        make_dir(state_dir, 0o711)?;
        let trash = state_dir.join("trash");
        for dir in [&state_dir.join("pods"), &state_dir.join("quarantine"), &trash] {
            make_dir(dir, 0o700)?;
        }
        set_apart(&state_dir.join("pods"));
        Ok(Self {
            root: state_dir.to_owned(),
            trash: Trash::new(trash),
            reserve: Reserve::open(state_dir.join("reserve")),
        })
    }

    /// The directory of all pods.
    #[must_use]
    pub fn pods_dir(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The directory of a pod; what belongs to the pod alone lives in it and is deleted with it.
    #[must_use]
    pub fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.pods_dir().join(pod.as_str())
    }

    /// The directory of a container; what belongs to it alone lives in it and is deleted with it.
    #[must_use]
    pub fn container_dir(&self, pod: &PodId, container: &ContainerId) -> PathBuf {
        self.pod_dir(pod).join("containers").join(container.as_str())
    }

    /// Writes the record of a pod.
    ///
    /// # Errors
    /// The file system refused; the former record is whole.
    pub fn save_pod(&self, record: &PodRecord) -> Result<(), RecordError> {
        let ends = record.leftover || record.phase == PodPhase::NotReady;
        self.save(&self.pod_dir(&record.id), "pod.json", record, ends)
    }

    /// Writes the record of a container.
    ///
    /// # Errors
    /// The file system refused; the former record is whole.
    pub fn save_container(&self, record: &ContainerRecord) -> Result<(), RecordError> {
        self.save(
            &self.container_dir(&record.pod, &record.id),
            "container.json",
            record,
            record.leftover || !record.phase.is_alive(),
        )
    }

    /// Deletes a pod with all that is in its directory; one that is unknown counts as deleted. The directory is
    /// emptied in the background ([`Trash`]).
    ///
    /// # Errors
    /// The file system refused; the record is where it was.
    pub fn delete_pod(&self, pod: &PodId) -> Result<(), RecordError> {
        self.delete(&self.pod_dir(pod), pod.as_str())
    }

    /// Deletes a container with all that is in its directory; one that is unknown counts as deleted.
    ///
    /// # Errors
    /// As for [`Records::delete_pod`].
    pub fn delete_container(&self, pod: &PodId, container: &ContainerId) -> Result<(), RecordError> {
        self.delete(&self.container_dir(pod, container), container.as_str())
    }

    fn delete(&self, dir: &Path, name: &str) -> Result<(), RecordError> {
        self.trash
            .take(dir, name)
            .map_err(RecordError::io("move to the trash", dir))?;
        self.reserve.restore();
        Ok(())
    }

    /// What `ends` is written also when the disk is full; what is new leaves nothing then.
    fn save<T: Serialize>(&self, dir: &Path, name: &str, record: &T, ends: bool) -> Result<(), RecordError> {
        let mut text = serde_json::to_vec(record).map_err(|source| RecordError::Shape {
            path: dir.join(name),
            source,
        })?;
        text.push(b'\n');
        match exchange(dir, name, &text) {
            Err(RecordError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                make_dir(dir, 0o700)?;
                exchange(dir, name, &text).inspect_err(|_| {
                    let _ = fs::remove_dir(dir);
                })
            }
            Err(RecordError::Io { source, .. }) if ends && source.kind() == io::ErrorKind::StorageFull => {
                self.reserve.give_up();
                exchange(dir, name, &text)
            }
            done => done,
        }
    }

    /// Where deleted things are on their way out.
    #[must_use]
    pub fn trash(&self) -> &Trash {
        &self.trash
    }

    /// The ids of the pods on disk, in order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn pod_names(&self) -> Result<Vec<String>, RecordError> {
        list(&self.pods_dir())
    }

    /// The ids of a pod's containers on disk, in order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn container_names(&self, pod: &PodId) -> Result<Vec<String>, RecordError> {
        list(&self.pod_dir(pod).join("containers"))
    }

    /// Whether a directory holds no record and nothing else: podd ended between making it and writing its record,
    /// which comes before everything else.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_blank(&self, dir: &Path) -> Result<bool, RecordError> {
        let names = list(dir)?;
        Ok(names
            .iter()
            .all(|name| matches!(name.as_str(), "pod.json.new" | "container.json.new")))
    }

    /// Reads the record of the pod whose directory has this name.
    ///
    /// # Errors
    /// It cannot be read, or is not what its place says.
    pub fn load_pod(&self, name: &str) -> Result<PodRecord, RecordError> {
        let path = self.pods_dir().join(name).join("pod.json");
        let record: PodRecord = load(&path)?;
        if record.id.as_str() == name {
            Ok(record)
        } else {
            Err(RecordError::Misplaced { path })
        }
    }

    /// Reads the record of the container whose directory has this name.
    ///
    /// # Errors
    /// It cannot be read, or is not what its place says.
    pub fn load_container(&self, pod: &PodId, name: &str) -> Result<ContainerRecord, RecordError> {
        let path = self
            .pod_dir(pod)
            .join("containers")
            .join(name)
            .join("container.json");
        let record: ContainerRecord = load(&path)?;
        if record.id.as_str() == name && record.pod == *pod {
            Ok(record)
        } else {
            Err(RecordError::Misplaced { path })
        }
    }

    /// Moves the directory of an unreadable record to the quarantine, and says where it is now.
    ///
    /// # Errors
    /// The file system refused.
    pub fn quarantine(&self, dir: &Path) -> Result<PathBuf, RecordError> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for n in 0..u32::MAX {
            let place = self.root.join("quarantine").join(format!("{name}.{n}"));
            if !place.exists() {
                fs::rename(dir, &place).map_err(RecordError::io("quarantine", dir))?;
                return Ok(place);
            }
        }
        Err(RecordError::io("quarantine", dir)(
            io::ErrorKind::AlreadyExists.into(),
        ))
    }

    /// Whether a record of this name could not be read, in this start or an earlier one.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn is_quarantined(&self, name: &str) -> Result<bool, RecordError> {
        let names = list(&self.root.join("quarantine"))?;
        Ok(names
            .iter()
            .any(|it| it.split_once('.').is_some_and(|(known, _)| known == name)))
    }

    /// Moves the directory of a record that nobody needs to the trash.
    ///
    /// # Errors
    /// The file system refused.
    pub fn drop_dir(&self, dir: &Path) -> Result<(), RecordError> {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.delete(dir, &name)
    }

    /// The boot of the daemon that wrote last; none where nobody ever wrote.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn last_boot(&self) -> Result<Option<String>, RecordError> {
        let path = self.root.join("boot-id");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(RecordError::io("read", &path)(e)),
        }
    }

    /// Notes that records are of this boot from now on. Where that is noted already nothing is written: podd starts on a
    /// full disk too.
    ///
    /// # Errors
    /// The file system refused.
    pub fn set_boot(&self, boot_id: &str) -> Result<(), RecordError> {
        if self.last_boot()?.as_deref() == Some(boot_id) {
            return Ok(());
        }
        replace(&self.root, "boot-id", format!("{boot_id}\n").as_bytes())
    }

    /// Notes that podd has ended in order, in this boot. Nothing is flushed: a mark that is lost says less than one
    /// that is kept.
    ///
    /// # Errors
    /// The file system refused.
    pub fn set_clean(&self, boot_id: &str) -> Result<(), RecordError> {
        replace(&self.root, "clean", format!("{boot_id}\n").as_bytes())
    }

    /// Whether podd's last end was in order, in this boot; takes the note away. That it is gone reaches the disk with
    /// the flush before the next layer is committed, if not earlier, and before that a crash damages no layer.
    ///
    /// # Errors
    /// The file is there and cannot be read or removed.
    pub fn take_clean(&self, boot_id: &str) -> Result<bool, RecordError> {
        let path = self.root.join("clean");
        match fs::read_to_string(&path) {
            Ok(text) => {
                fs::remove_file(&path).map_err(RecordError::io("remove", &path))?;
                Ok(text.trim() == boot_id)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(RecordError::io("read", &path)(e)),
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), RecordError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(RecordError::io("make", path))
}

/// Tells ext4 that pods have as little to do with each other as the homes of users: it then begins each in another group of
/// blocks (`T` of chattr(1)). Beside the trees of pods that were just deleted, it would look at each of their inodes for
/// each new one. Other file systems have no such groups.
fn set_apart(pods: &Path) {
    let flagged = File::open(pods).and_then(|dir| {
        let flags = ioctl_getflags(&dir)?;
        if flags.contains(IFlags::TOPDIR) {
            return Ok(());
        }
        Ok(ioctl_setflags(&dir, flags | IFlags::TOPDIR)?)
    });
    if let Err(e) = flagged {
        tracing::debug!(dir = %pods.display(), "not set apart: {e}");
    }
}

fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    #[derive(Deserialize)]
    struct Header {
        version: u32,
    }
    let bytes = fs::read(path).map_err(RecordError::io("read", path))?;
    let shape = |source| RecordError::Shape {
        path: path.to_owned(),
        source,
    };
    let header: Header = serde_json::from_slice(&bytes).map_err(shape)?;
    if header.version != VERSION {
        return Err(RecordError::Version {
            path: path.to_owned(),
            found: header.version,
        });
    }
    serde_json::from_slice(&bytes).map_err(shape)
}

fn list(dir: &Path) -> Result<Vec<String>, RecordError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(RecordError::io("list", dir)(e)),
    };
    let names = entries.map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names
        .collect::<io::Result<_>>()
        .map_err(RecordError::io("list", dir))?;
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
pub(crate) mod tests;
