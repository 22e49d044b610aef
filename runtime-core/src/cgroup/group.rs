//! One cgroup: who is in it, how it is killed, what it counts.

use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::limits::{Limits, Phase, Value, Write};
use super::root::{children, controllers_of};
use super::update::id_set;
use super::{CgroupError, CgroupPath, CgroupRoot, Controllers, DeviceProgram, files};

/// An attribute that only the initial user namespace's root may read and write (xattr(7)).
const OWNER: &str = "trusted.podd.owner";

/// Counters of memory.events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// Times the limit was hit and reclaim failed.
    pub oom: u64,
    /// Processes that the kernel killed for want of memory, here and below.
    pub oom_kill: u64,
    /// Times the whole cgroup was killed at once (memory.oom.group).
    pub oom_group_kill: u64,
}

/// An open cgroup.
#[derive(Debug)]
pub struct Cgroup {
    root: CgroupRoot,
    dir: OwnedFd,
    path: CgroupPath,
}

impl Cgroup {
    pub(super) fn new(root: CgroupRoot, dir: OwnedFd, path: CgroupPath) -> Self {
        Self { root, dir, path }
    }

    /// Notes on the directory whose it is, for [`Cgroup::owner`].
    ///
    /// # Errors
    /// The kernel refuses the attribute.
    pub fn set_owner(&self, owner: &[u8]) -> Result<(), CgroupError> {
        fsetxattr(self.dir(), OWNER, owner, XattrFlags::empty()).map_err(|source| CgroupError::Write {
            path: self.path.clone(),
            file: OWNER.to_owned(),
            value: String::from_utf8_lossy(owner).into_owned(),
            source,
        })
    }

    /// What [`Cgroup::set_owner`] has noted; `None` where nobody has.
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn owner(&self) -> Result<Option<Vec<u8>>, CgroupError> {
        // No attribute of kernfs is longer.
        let mut value = Vec::with_capacity(64 << 10);
        match fgetxattr(self.dir(), OWNER, spare_capacity(&mut value)) {
            Ok(_) => Ok(Some(value)),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(source) => Err(self.read_error(OWNER, source)),
        }
    }

    /// Where it was opened.
    pub(super) fn root(&self) -> &CgroupRoot {
        &self.root
    }

    /// The directory, as `CLONE_INTO_CGROUP` takes it.
    #[must_use]
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The directory, given away.
    #[must_use]
    pub fn into_dir(self) -> OwnedFd {
        self.dir
    }

    /// Where it is below its root.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// Controllers that this cgroup has files of.
    ///
    /// # Errors
    /// cgroup.controllers cannot be read.
    pub fn controllers(&self) -> Result<Controllers, CgroupError> {
        controllers_of(self.dir(), &self.path, "cgroup.controllers")
    }

    /// Reads a file of the cgroup.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, file: &str) -> Result<String, CgroupError> {
        files::read(self.dir(), file).map_err(|source| self.read_error(file, source))
    }

    /// Sends SIGKILL to every process here and below, also to ones that are being forked (Linux 5.14).
    ///
    /// # Errors
    /// cgroup.kill cannot be written.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.write("cgroup.kill", "1")
    }

    /// Moves a process here.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Whether a live process is here or below. A cgroup that is gone has none.
    ///
    /// # Errors
    /// cgroup.events cannot be read or understood.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        match files::open_read(self.dir(), "cgroup.events") {
            Ok(events) => self.populated_in(events.as_fd()),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(source) => Err(self.read_error("cgroup.events", source)),
        }
    }

    /// Waits until no live process is here or below.
    ///
    /// # Errors
    /// [`CgroupError::Deadline`] when there still is one, or cgroup.events cannot be read.
    pub fn wait_empty(&self, deadline: Instant) -> Result<(), CgroupError> {
        let fail = |source| self.read_error("cgroup.events", source);
        let events = match files::open_read(self.dir(), "cgroup.events") {
            Ok(events) => events,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
            Err(source) => return Err(fail(source)),
        };
        loop {
            // Reading before polling arms the notification (kernfs counts events since the last read).
            if !self.populated_in(events.as_fd())? {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Deadline(self.path.clone()));
            }
            let timeout = Timespec::try_from(left).ok();
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(source) => return Err(fail(source)),
            }
        }
    }

    /// Processes that are members of this very cgroup.
    ///
    /// # Errors
    /// cgroup.procs cannot be read or understood.
    pub fn procs(&self) -> Result<Vec<u32>, CgroupError> {
        let text = self.read("cgroup.procs")?;
        text.lines()
            .map(|line| line.parse().map_err(|_| self.malformed("cgroup.procs")))
            .collect()
    }

    /// Names of the cgroups directly below.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn children(&self) -> Result<Vec<String>, CgroupError> {
        children(self.dir()).map_err(|source| self.read_error(".", source))
    }

    /// What ran out of memory here or below; `None` without the memory controller. To be read before the cgroup
    /// is removed: the counters go with it.
    ///
    /// # Errors
    /// memory.events cannot be read.
    pub fn memory_events(&self) -> Result<Option<MemoryEvents>, CgroupError> {
        match files::read(self.dir(), "memory.events") {
            Ok(text) => {
                let count = |key| files::keyed(&text, key).unwrap_or(0);
                Ok(Some(MemoryEvents {
                    oom: count("oom"),
                    oom_kill: count("oom_kill"),
                    oom_group_kill: count("oom_group_kill"),
                }))
            }
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(source) => Err(self.read_error("memory.events", source)),
        }
    }

    /// Refuses limits that need a controller this cgroup does not have, or processors and memory nodes that the
    /// cgroup above cannot give: the kernel would take those and silently use others.
    ///
    /// # Errors
    /// [`CgroupError::MissingController`] or [`CgroupError::NotGiven`] names the first.
    pub fn check(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.available(limits).map(drop)
    }

    /// The writes that can be done; one that cannot and asks for something is an error.
    pub(super) fn available<'a>(&self, limits: &'a Limits) -> Result<Vec<&'a Write>, CgroupError> {
        if limits.is_empty() {
            return Ok(Vec::new());
        }
        let available = self.controllers()?;
        let mut writes = Vec::with_capacity(limits.writes().len());
        for write in limits.writes() {
            if available.has(&write.controller) {
                self.check_given(write)?;
                writes.push(write);
            } else if !write.asks_nothing {
                return Err(CgroupError::MissingController {
                    path: self.path.clone(),
                    controller: write.controller.clone(),
                    file: write.file.clone(),
                });
            }
        }
        Ok(writes)
    }

    fn check_given(&self, write: &Write) -> Result<(), CgroupError> {
        let ("cpuset.cpus" | "cpuset.mems", Value::Text(list)) = (write.file.as_str(), &write.value) else {
            return Ok(());
        };
        let above = match self.path.parent() {
            Some(above) => self.root.find(&above)?,
            None => None,
        };
        let effective = format!("{}.effective", write.file);
        let Some(given) = above.and_then(|above| above.read(&effective).ok()) else {
            return Ok(());
        };
        match (id_set(list), id_set(&given)) {
            (Some(asked), Some(given)) if asked.is_subset(&given) => Ok(()),
            _ => Err(CgroupError::NotGiven {
                path: self.path.clone(),
                file: write.file.clone(),
                asked: list.clone(),
                given: given.trim().to_owned(),
            }),
        }
    }

    /// Writes limits of a cgroup that is being made, after checking all of them as [`Cgroup::check`] does. Limits of
    /// one that is in use are changed by [`Cgroup::update`].
    ///
    /// # Errors
    /// A controller is missing, or the kernel refuses a value; what was written before stays.
    pub fn apply(&self, limits: &Limits, phase: Phase) -> Result<(), CgroupError> {
        let writes = self.available(limits)?;
        writes
            .into_iter()
            .filter(|write| phase.covers(write.late))
            .try_for_each(|write| self.apply_one(write))
    }

    fn apply_one(&self, write: &Write) -> Result<(), CgroupError> {
        let value = write.value.resolve(|file| self.read(file))?;
        match files::write(self.dir(), &write.file, &value) {
            // A kernel without swap accounting: nothing was asked of it.
            Err(Errno::NOENT) if write.asks_nothing => Ok(()),
            other => other.map_err(|source| self.write_error(&write.file, &value, source)),
        }
    }

    /// Lets the processes here and below use only the devices that the program allows, until the cgroup is removed.
    /// To be called once, before there is a process: what is open already stays so.
    ///
    /// # Errors
    /// The kernel refuses, for instance because a cgroup above has a program that suffers no other.
    pub fn restrict_devices(&self, program: &DeviceProgram) -> Result<(), CgroupError> {
        sys::bpf::attach_cgroup_device(self.dir(), program.fd()).map_err(|source| {
            CgroupError::AttachDevices {
                path: self.path.clone(),
                source,
            }
        })
    }

    /// Removes this cgroup with everything below it; see [`CgroupRoot::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove(self, deadline: Instant) -> Result<(), CgroupError> {
        self.root.remove(&self.path, deadline)
    }

    fn populated_in(&self, events: BorrowedFd<'_>) -> Result<bool, CgroupError> {
        match files::read_all(events) {
            Ok(text) => match files::keyed(&text, "populated") {
                Some(populated) => Ok(populated != 0),
                None => Err(self.malformed("cgroup.events")),
            },
            // Removed while it was open.
            Err(Errno::NODEV) => Ok(false),
            Err(source) => Err(self.read_error("cgroup.events", source)),
        }
    }

    pub(super) fn write(&self, file: &str, value: &str) -> Result<(), CgroupError> {
        files::write(self.dir(), file, value).map_err(|source| self.write_error(file, value, source))
    }

    pub(super) fn read_error(&self, file: &str, source: Errno) -> CgroupError {
        CgroupError::Read {
            path: self.path.clone(),
            file: file.to_owned(),
            source,
        }
    }

    pub(super) fn write_error(&self, file: &str, value: &str, source: Errno) -> CgroupError {
        CgroupError::Write {
            path: self.path.clone(),
            file: file.to_owned(),
            value: value.to_owned(),
            source,
        }
    }

    pub(super) fn malformed(&self, file: &str) -> CgroupError {
        CgroupError::Malformed {
            path: self.path.clone(),
            file: file.to_owned(),
        }
    }
}
