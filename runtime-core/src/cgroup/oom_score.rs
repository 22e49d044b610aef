//! oom_score_adj of the processes of a cgroup: a property of processes that the CRI counts among the resources.

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::{Cgroup, CgroupError, files};

/// Looks at a cgroup until no process is found that has the old value; more than that are being forked on purpose.
const PASSES: usize = 16;

impl Cgroup {
    /// Gives `to` to every process here and below that has `from`; who has set its own keeps it.
    ///
    /// # Errors
    /// The kernel refuses; processes that were changed are not changed back, which the caller may do.
    pub fn change_oom_score_adj(&self, from: i32, to: i32) -> Result<(), CgroupError> {
        if from == to {
            return Ok(());
        }
        for _ in 0..PASSES {
            // A child forked meanwhile has its parent's old value, or is found to have the new one.
            if !self.pass(from, to)? {
                break;
            }
        }
        Ok(())
    }

    /// One look at every process; whether one was changed.
    fn pass(&self, from: i32, to: i32) -> Result<bool, CgroupError> {
        let mut changed = false;
        for pid in self.procs()? {
            changed |= self.change_one(pid, from, to)?;
        }
        for name in self.children()? {
            let below = self.path().join(&name)?;
            if let Some(below) = self.root().find(&below)? {
                changed |= below.pass(from, to)?;
            }
        }
        Ok(changed)
    }

    fn change_one(&self, pid: u32, from: i32, to: i32) -> Result<bool, CgroupError> {
        const FILE: &str = "oom_score_adj";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, format!("/proc/{pid}"), flags, Mode::empty());
        // The directory stays this very process, whoever has the number later; it must still be a member here.
        let process = match opened {
            Ok(process) => process,
            Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
            Err(source) => return Err(self.read_error(FILE, source)),
        };
        if !self.procs()?.contains(&pid) {
            return Ok(false);
        }
        let score = match files::read(&process, FILE) {
            Ok(score) => score,
            Err(Errno::NOENT | Errno::SRCH) => return Ok(false),
            Err(source) => return Err(self.read_error(FILE, source)),
        };
        if score.trim().parse() != Ok(from) {
            return Ok(false);
        }
        match files::write(&process, FILE, &to.to_string()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::SRCH) => Ok(false),
            Err(source) => Err(self.write_error(FILE, &to.to_string(), source)),
        }
    }
}
