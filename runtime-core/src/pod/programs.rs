//! podinit and stage as sealed memory files, and the nest that they work in.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sys::memfd::{Use, sealed};

use super::helper::Helper;

/// Why the programs could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The kernel refused a memory file, or the file that stands in for it.
    #[error("cannot seal the program {name}")]
    Seal {
        /// podinit or stage.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The template mount namespace could not be made.
    #[error("cannot make the mount namespace for pods over {}: podd needs CAP_SYS_ADMIN in the host's mount namespace", store.display())]
    Nest {
        /// The state directory.
        store: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The state directory has a NUL in its name.
    #[error("{} cannot be a state directory", .0.display())]
    Path(PathBuf),
}

/// Everything a pod is started from.
#[derive(Debug)]
pub struct Programs {
    podinit: OwnedFd,
    stage: OwnedFd,
    nest: OwnedFd,
    null: OwnedFd,
}

impl Programs {
    /// Seals the programs and makes the nest over `store`, podd's state directory. Where memory files may not be
    /// executed (vm.memfd_noexec=2), `run_dir` gets files that only root can write instead. `context` is the SELinux
    /// context of what the nest has for containers, empty on a node without SELinux.
    ///
    /// # Errors
    /// The kernel refuses; podd cannot work then.
    pub fn prepare(
        podinit: &[u8],
        stage: &[u8],
        store: &Path,
        run_dir: &Path,
        context: &str,
    ) -> Result<Self, SealError> {
        let podinit = program("podinit", podinit, run_dir)?;
        let stage = program("stage", stage, run_dir)?;
        let failed = |source: io::Error| SealError::Nest {
            store: store.to_owned(),
            source,
        };
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(failed)?
            .into();
        let path =
            CString::new(store.as_os_str().as_bytes()).map_err(|_| SealError::Path(store.to_owned()))?;
        let context = CString::new(context).map_err(|e| failed(e.into()))?;
        let nest = make_nest(&podinit, &null, &path, &context).map_err(failed)?;
        Ok(Self {
            podinit,
            stage,
            nest,
            null,
        })
    }

    /// The podinit program.
    #[must_use]
    pub fn podinit(&self) -> BorrowedFd<'_> {
        self.podinit.as_fd()
    }

    /// The stage program.
    #[must_use]
    pub fn stage(&self) -> BorrowedFd<'_> {
        self.stage.as_fd()
    }

    /// The template mount namespace.
    #[must_use]
    pub fn nest(&self) -> BorrowedFd<'_> {
        self.nest.as_fd()
    }

    /// The null device.
    #[must_use]
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }
}

fn program(name: &'static str, content: &[u8], run_dir: &Path) -> Result<OwnedFd, SealError> {
    let failed = |source| SealError::Seal { name, source };
    let c_name = CString::new(name).map_err(|_| SealError::Path(name.into()))?;
    match sealed(&c_name, content, Use::Program) {
        Ok(fd) => Ok(fd),
        Err(sys::Errno::ACCESS) => root_only_file(&run_dir.join(name), content).map_err(failed),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// A program file that nobody else can open, replaced whole.
fn root_only_file(path: &Path, content: &[u8]) -> io::Result<OwnedFd> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o500)
        .open(path)?;
    io::Write::write_all(&mut file, content)?;
    drop(file);
    // Reopened for reading: a file that is open for writing cannot be executed.
    Ok(std::fs::File::open(path)?.into())
}

fn make_nest(podinit: &OwnedFd, null: &OwnedFd, store: &CString, context: &CString) -> io::Result<OwnedFd> {
    let argv = [c"podd-nest", store, context];
    let helper = Helper::start(podinit.as_fd(), null.as_fd(), &argv, &[])?;
    let (mut word, mut fds) = ([0u8; 16], Vec::new());
    let received = sys::fdpass::receive(&helper.socket, &mut word, &mut fds);
    let options = rustix::process::WaitIdOptions::EXITED;
    rustix::process::waitid(rustix::process::WaitId::PidFd(helper.pidfd.as_fd()), options)?;
    received?;
    fds.pop()
        .ok_or_else(|| io::Error::other("the helper ended before it had made the namespace"))
}
