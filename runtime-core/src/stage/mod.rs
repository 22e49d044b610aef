//! The interpreter of plans. It runs in the new process, in the order of the plan, and decides nothing.
//!
//! A step that fails is reported with its index, the errno and its subject; then the process ends.

mod hook;
mod identity;
mod layers;
mod mounts;
mod process;
mod root;

use crate::plan::{DecodeError, FileKind, Plan, Step};
use alloc::ffi::CString;
use alloc::vec::Vec;
use podinit::report::{Failure, Identity, Report};
use podinit::wire::slot;
use root::Root;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, FileType};
use rustix::io::Errno;

/// Why a step failed: the errno and what it was about.
#[derive(Debug)]
pub(crate) struct Fault {
    errno: Errno,
    subject: Vec<u8>,
}

pub(crate) type Outcome<T = ()> = Result<T, Fault>;

/// Adds its subject to a kernel error.
pub(crate) trait About<T> {
    fn about(self, subject: impl AsRef<[u8]>) -> Outcome<T>;
}

impl<T> About<T> for rustix::io::Result<T> {
    fn about(self, subject: impl AsRef<[u8]>) -> Outcome<T> {
        self.map_err(|errno| Fault {
            errno,
            subject: subject.as_ref().to_vec(),
        })
    }
}

/// What steps leave for later steps.
pub(crate) struct Stage {
    sync: OwnedFd,
    /// Mount fds, by slot; taken by the step that attaches them.
    mounts: Vec<Option<OwnedFd>>,
    namespaces: Vec<Option<OwnedFd>>,
    cgroup: Option<OwnedFd>,
    /// The container's root: the new overlay, or / once inside.
    root: Root,
    /// It is a new container's root and not one that an exec joined.
    owns_root: bool,
    identity: Identity,
    home: Option<CString>,
    program: Option<CString>,
}

/// Reads the plan and follows it. Returns, with an exit status, only when a step failed.
#[must_use]
pub fn run() -> u32 {
    use sys::privilege::{Privilege, set_privilege};
    const LOST: u32 = 65;
    let Ok(sync) = sys::rt::inherited(slot::SYNC) else {
        return LOST;
    };
    // Before anything of the container is near: nobody may trace this process or read what it holds (CVE-2019-5736).
    let plan = set_privilege(Privilege::Dumpable(false))
        .and_then(|()| sys::privilege::close_on_exec_from(slot::SYNC))
        .and_then(|()| sys::memfd::map_sealed(sys::rt::inherited(slot::PLAN)?));
    let plan = match plan.map(Plan::decode) {
        Ok(Ok(plan)) => plan,
        Ok(Err(error)) => return unreadable(&sync, &error),
        Err(errno) => {
            return report_failure(
                &sync,
                u32::MAX,
                &Fault {
                    errno,
                    subject: b"plan".to_vec(),
                },
            );
        }
    };
    sys::privilege::set_umask(0);
    let inherited = |number| sys::rt::inherited(number).ok();
    let mut stage = Stage {
        sync,
        namespaces: (slot::NET..=slot::TARGET).map(inherited).collect(),
        cgroup: inherited(slot::CGROUP),
        mounts: (slot::FIRST_MOUNT..).map_while(inherited).map(Some).collect(),
        root: Root::None,
        owns_root: false,
        identity: Identity::default(),
        home: None,
        program: None,
    };
    for (index, step) in plan.steps.iter().enumerate() {
        if let Err(fault) = stage.perform(step) {
            return report_failure(&stage.sync, u32::try_from(index).unwrap_or(u32::MAX), &fault);
        }
    }
    0
}

fn unreadable(sync: &OwnedFd, error: &DecodeError) -> u32 {
    let subject = alloc::format!("{error}").into_bytes();
    report_failure(
        sync,
        u32::MAX,
        &Fault {
            errno: Errno::PROTO,
            subject,
        },
    )
}

fn report_failure(sync: &OwnedFd, step: u32, fault: &Fault) -> u32 {
    const FAILED: u32 = 66;
    let errno = fault.errno.raw_os_error().unsigned_abs();
    let report = Report::Failed(Failure {
        step,
        errno,
        subject: fault.subject.clone(),
    });
    let _ = sys::fdpass::send(sync, &report.encode(), &[]);
    FAILED
}

impl Stage {
    fn report(&self, report: &Report, fds: &[BorrowedFd<'_>]) -> Outcome {
        sys::fdpass::send(&self.sync, &report.encode(), fds).about("sync socket")
    }

    fn perform(&mut self, step: &Step<'_>) -> Outcome {
        match step {
            Step::OomScoreAdj(value) => process::oom_score_adj(*value),
            Step::Join { slot, namespaces } => self.join(*slot, *namespaces),
            Step::Clone {
                namespaces,
                into_cgroup,
            } => self.clone_into(*namespaces, *into_cgroup),
            Step::Unshare(namespaces) => sys::clone::unshare(*namespaces).about("unshare"),
            Step::NewSession => process::session(),
            Step::Hostname(name) => rustix::system::sethostname(name.to_bytes()).about(name.to_bytes()),
            Step::Sysctl { key, value } => process::sysctl(key, value),
            Step::RootOverlay(layers) => {
                self.root = root::overlay(layers)?;
                self.owns_root = true;
                Ok(())
            }
            Step::MountNew {
                fstype,
                target,
                options,
                attrs,
                context,
            } => {
                let mount = mounts::make(fstype, options, *attrs, context)?;
                mounts::mount_slot(
                    &self.root,
                    &mount,
                    target,
                    FileKind::Directory,
                    &Default::default(),
                )
            }
            Step::MountNest {
                source,
                target,
                kind,
                attrs,
            } => mounts::mount_nest(&self.root, source, target, *kind, *attrs),
            Step::MountSlot {
                slot,
                target,
                kind,
                attrs,
                recursive,
                propagation,
            } => {
                let mount = self.take_mount(*slot)?;
                let change = sys::mount::Change {
                    set: *attrs,
                    propagation: *propagation,
                    recursive: *recursive,
                    ..Default::default()
                };
                mounts::mount_slot(&self.root, &mount, target, *kind, &change)
            }
            Step::MakeClone { .. }
            | Step::MakeNew { .. }
            | Step::MakeLayers { .. }
            | Step::MapIds(_)
            | Step::MountLayers { .. }
            | Step::RootSlot(_) => self.perform_made(step),
            Step::Mknod(device) => mounts::mknod(&self.root, device),
            Step::Symlink { path, target } => mounts::symlink(&self.root, path, target),
            Step::Console(size) => self.console(*size),
            Step::Mask { path, context } => mounts::mask(&self.root, path, context),
            Step::ReadOnly(path) => mounts::read_only(&self.root, path),
            Step::HostTree { slot, root } => hook::host_tree(&self.take_mount(*slot)?, &self.root, root),
            Step::Hook(hook) => self.hook(hook),
            Step::PivotRoot => self.root.pivot(),
            Step::RootReadOnly => self.root.set_read_only(),
            Step::Rlimit { resource, soft, hard } => {
                sys::privilege::set_rlimit(*resource, *soft, *hard).about(alloc::format!("rlimit {resource}"))
            }
            _ => self.perform_last(step),
        }
    }

    /// The steps of mounts that are made before they are attached.
    fn perform_made(&mut self, step: &Step<'_>) -> Outcome {
        match step {
            Step::MakeClone { slot, source } => {
                let mount = mounts::clone_of(CWD, source).about(source.to_bytes())?;
                self.put_mount(*slot, mount)
            }
            Step::MakeNew {
                slot,
                fstype,
                options,
                attrs,
                context,
                nodes,
            } => {
                let mount = mounts::make(fstype, options, *attrs, context)?;
                let within = Root::At(mount);
                nodes.iter().try_for_each(|node| mounts::mknod(&within, node))?;
                self.put_mount(*slot, within.into_fd()?)
            }
            Step::MakeLayers {
                slot,
                layers,
                idmap,
                sub_path,
            } => {
                let users = if *idmap { Some(self.users()?) } else { None };
                let mount = layers::stack(layers, users, sub_path)?;
                self.put_mount(*slot, mount)
            }
            Step::MapIds(slot) => {
                let mount = self.take_mount(*slot)?;
                layers::map_ids(mount.as_fd(), self.users()?)?;
                self.mounts[(slot - slot::FIRST_MOUNT) as usize] = Some(mount);
                Ok(())
            }
            Step::MountLayers { slot, target, attrs } => {
                let mount = self.take_mount(*slot)?;
                let stat = rustix::fs::fstat(&mount).about(target.to_bytes())?;
                let kind = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => FileKind::Directory,
                    _ => FileKind::File,
                };
                let change = sys::mount::Change {
                    set: *attrs,
                    ..Default::default()
                };
                mounts::mount_slot(&self.root, &mount, target, kind, &change)
            }
            Step::RootSlot(slot) => {
                self.root = root::attach(&self.take_mount(*slot)?)?;
                self.owns_root = true;
                Ok(())
            }
            _ => Err(Errno::NOSYS).about("step"),
        }
    }

    /// The steps from working directory to `execve`.
    fn perform_last(&mut self, step: &Step<'_>) -> Outcome {
        match step {
            Step::WorkDir { path, create } => process::work_dir(path, *create),
            Step::Identity {
                user,
                group,
                groups,
                policy,
            } => {
                let (identity, home) = identity::resolve(&self.root, *user, *group, groups, *policy)?;
                (self.identity, self.home) = (identity, home);
                Ok(())
            }
            Step::OwnDirectory(path) => process::own_directory(&self.root, path, &self.identity),
            Step::AppArmor(label) => process::apparmor(label),
            Step::Selinux { file, context } => process::selinux(file, context),
            Step::FindProgram { name, path } => {
                self.program = Some(process::find_program(name, path)?);
                Ok(())
            }
            Step::Become(caps) => process::become_user(&self.identity, *caps),
            Step::NoNewPrivileges => {
                sys::privilege::set_privilege(sys::privilege::Privilege::NoNewPrivileges)
                    .about("no_new_privs")
            }
            Step::Gate => self.gate(),
            Step::Seccomp { program, flags } => {
                sys::privilege::install_seccomp_filter(program, *flags).about("seccomp filter")
            }
            Step::Exec { argv, env } => self.exec(argv, env),
            Step::Hold { filter } => self.hold(filter),
            Step::OwnStdio { uid, gid } => process::own_stdio(*uid, Some(*gid)),
            Step::Chown { path, uid, gid } => process::chown(path, *uid, *gid),
            Step::Relabel { path, context } => process::relabel(path, context),
            Step::RootOfNamespace => process::become_root(),
            _ => Err(Fault {
                errno: Errno::NOSYS,
                subject: b"step".to_vec(),
            }),
        }
    }

    fn join(&mut self, number: u32, namespaces: u64) -> Outcome {
        let index = number.checked_sub(slot::NET).map(|index| index as usize);
        // A pod's user namespace is made by podd and comes as the first mount would.
        let held = index
            .and_then(|index| self.namespaces.iter().chain(&self.mounts).nth(index))
            .and_then(Option::as_ref);
        let held = held.ok_or(Errno::BADF).about("namespace of the pod")?;
        sys::clone::setns(held, namespaces).about("setns")?;
        if namespaces & sys::clone::flag::NEWNS != 0 {
            self.root = Root::open()?;
        }
        Ok(())
    }

    /// Goes on in a child that podinit, not this process, is the parent of; this process reports it and ends.
    fn clone_into(&mut self, namespaces: u64, into_cgroup: bool) -> Outcome {
        let cgroup = if into_cgroup {
            self.cgroup.as_ref().map(AsFd::as_fd)
        } else {
            None
        };
        if into_cgroup && cgroup.is_none() {
            return Err(Errno::BADF).about("cgroup");
        }
        let child = sys::clone::fork(namespaces | sys::clone::flag::PARENT, cgroup).about("clone3")?;
        let Some(child) = child else {
            self.cgroup = None;
            return Ok(());
        };
        let reported = self.report(&Report::Cloned { pid: child.pid }, &[child.pidfd.as_fd()]);
        sys::clone::exit(u32::from(reported.is_err()))
    }

    /// The pod's user namespace.
    fn users(&self) -> Outcome<BorrowedFd<'_>> {
        let index = (slot::USER - slot::NET) as usize;
        let held = self.namespaces.get(index).and_then(Option::as_ref);
        held.map(AsFd::as_fd)
            .ok_or(Errno::BADF)
            .about("user namespace of the pod")
    }

    /// Keeps a mount that was made under its number, which has to be the next one.
    fn put_mount(&mut self, number: u32, mount: OwnedFd) -> Outcome {
        if number as usize != slot::FIRST_MOUNT as usize + self.mounts.len() {
            return Err(Errno::BADF).about("mount slot");
        }
        self.mounts.push(Some(mount));
        Ok(())
    }

    fn take_mount(&mut self, number: u32) -> Outcome<OwnedFd> {
        let index = number.checked_sub(slot::FIRST_MOUNT).map(|index| index as usize);
        let held = index
            .and_then(|index| self.mounts.get_mut(index))
            .and_then(Option::take);
        held.ok_or(Errno::BADF).about("mount slot")
    }

    fn gate(&self) -> Outcome {
        self.report(&Report::Ready(self.identity.clone()), &[])?;
        let mut byte = [0u8; 1];
        loop {
            match rustix::io::read(&self.sync, &mut byte) {
                Err(Errno::INTR) => {}
                Ok(1) => return Ok(()),
                // podinit is gone: nobody will ever open the gate.
                _ => sys::clone::exit(67),
            }
        }
    }

    /// The end of a pod's namespace helper: it keeps the namespaces alive while podinit opens them, or stays as
    /// pid 1 of the pod's pid namespace and reaps the orphans of all containers. As such it is in reach of any
    /// container with CAP_SYS_PTRACE: it keeps no file system and no privilege that could be had through it, and a
    /// filter lets it do nothing but wait.
    fn hold(&mut self, filter: &[u8]) -> Outcome {
        if rustix::process::getpid().is_init() {
            root::leave_nest()?;
            process::become_nobody()?;
        }
        self.report(&Report::Ready(Identity::default()), &[])?;
        // Nothing more is said, and nobody who gets at this process may speak to podinit.
        let null = sys::rt::stdio()[0];
        rustix::io::dup3(null, &mut self.sync, rustix::io::DupFlags::CLOEXEC).about("sync socket")?;
        let _ = rustix::thread::set_name(c"podd-pod");
        sys::signal::set_blocked(sys::signal::SignalSet::ALL).about("signals")?;
        if !filter.is_empty() {
            sys::privilege::install_seccomp_filter(filter, 0).about("seccomp filter")?;
        }
        loop {
            // Blocks while there are children, and fails at once when there are none.
            while rustix::process::wait(rustix::process::WaitOptions::empty()).is_ok() {}
            sys::signal::wait_for(sys::signal::SignalSet::EMPTY.with(17)).about("signals")?;
        }
    }
}
