//! The steps a stage knows, in the order in which a container's plan uses them.
//!
//! Every path is absolute inside the container's root and is resolved beneath it (`openat2` with
//! `RESOLVE_IN_ROOT`), except where a field says that it is a path of the nest (docs/process-model.md).

use alloc::vec::Vec;
use core::ffi::CStr;

/// Index of an inherited file descriptor: 0 to 11 are fixed, mounts follow (docs/process-model.md).
pub type Slot = u32;

/// `CLONE_NEW*` bits, as clone3(2), unshare(2) and setns(2) take them.
pub type Namespaces = u64;

/// `MOUNT_ATTR_*` bits, as mount_setattr(2) and fsmount(2) take them.
pub type Attr = u64;

/// The mount attributes that plans use, from linux/mount.h.
pub mod attr {
    use super::Attr;
    /// Mount read-only.
    pub const RDONLY: Attr = 0x1;
    /// Ignore set-user-id and set-group-id bits and file capabilities.
    pub const NOSUID: Attr = 0x2;
    /// Ignore device nodes.
    pub const NODEV: Attr = 0x4;
    /// Refuse to execute programs.
    pub const NOEXEC: Attr = 0x8;
}

/// Mount propagation, as mount(2) and `mount_attr.propagation` take it.
pub mod mount_flag {
    /// Mounts neither leave nor enter.
    pub const PRIVATE: u64 = 1 << 18;
    /// Mounts enter, and do not leave.
    pub const SLAVE: u64 = 1 << 19;
    /// Mounts enter and leave.
    pub const SHARED: u64 = 1 << 20;
}

/// What a mount point has to be, and is created as when it is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A directory, mode 0755.
    Directory,
    /// An empty regular file, mode 0644.
    File,
}

/// The size of a terminal in characters; zeroes where nobody has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A device node in the container's /dev.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device<'a> {
    /// Absolute path in the container.
    pub path: &'a CStr,
    /// File type and permission bits (`S_IFCHR | 0666`).
    pub mode: u32,
    /// Device major number.
    pub major: u32,
    /// Device minor number.
    pub minor: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A user or group as the request or the image names it; names are looked up in the container's own files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserRef<'a> {
    /// Not given.
    Unset,
    /// A number.
    Id(u32),
    /// A name in /etc/passwd or /etc/group of the container's root.
    Name(&'a CStr),
}

/// How the image's /etc/group adds to the supplementary groups (KEP-3619).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupsPolicy {
    /// The groups that list the user in /etc/group are added.
    Merge,
    /// Only the groups of the request count.
    Strict,
}

/// Capability sets as bit masks, bit n is capability number n (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// What `execve` can ever grant.
    pub bounding: u64,
    /// Effective and permitted set of a root process (a non-root process keeps what is ambient).
    pub permitted: u64,
    /// Inheritable set; empty unless ambient capabilities are asked for (CVE-2022-24769).
    pub inheritable: u64,
    /// Ambient set.
    pub ambient: u64,
}

/// Layers of an overlay, and where changes go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers<'a> {
    /// Directory of the nest that layer names start from, such as `/store/layers`.
    pub base: &'a CStr,
    /// Layer directories from top to bottom, relative to `base`.
    pub lowers: Vec<&'a CStr>,
    /// Upper and work directory in the nest; without them the stack is read-only.
    pub writable: Option<(&'a CStr, &'a CStr)>,
    /// SELinux context of everything in the stack; empty leaves files the labels that they have.
    pub context: &'a CStr,
}

/// Which tree is / to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookRoot {
    /// The host's, that of [`Step::HostTree`].
    Host,
    /// The container's.
    Container,
}

/// A program to run in the container's namespaces, and to wait for (OCI runtime spec, config.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook<'a> {
    /// What it is called in the spec: `createContainer` or `startContainer`.
    pub name: &'a CStr,
    /// The program.
    pub path: &'a CStr,
    /// Arguments, argv[0] included.
    pub argv: Vec<&'a CStr>,
    /// Environment; it gets no other.
    pub env: Vec<&'a CStr>,
    /// The container's state, a JSON object without `pid`, which is added: it comes on stdin.
    pub state: &'a [u8],
    /// How long it may take, in ms.
    pub timeout_ms: u32,
    /// What is / to it.
    pub root: HookRoot,
    /// The seccomp filter that it runs under; none where it is empty.
    pub filter: &'a [u8],
    /// `SECCOMP_FILTER_FLAG_*`.
    pub filter_flags: u32,
}

/// One kernel step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Write /proc/self/oom_score_adj, while still privileged in the initial user namespace.
    OomScoreAdj(i32),
    /// setns(2) to what the slot holds: a namespace fd, or a pidfd with several flags.
    Join {
        /// Namespace fd or pidfd.
        slot: Slot,
        /// Which namespaces.
        namespaces: Namespaces,
    },
    /// clone3(2) with `CLONE_PARENT`: the rest of the plan runs in the child.
    Clone {
        /// New namespaces of the child.
        namespaces: Namespaces,
        /// Place the child in the cgroup of slot 5.
        into_cgroup: bool,
    },
    /// unshare(2).
    Unshare(Namespaces),
    /// setsid(2).
    NewSession,
    /// sethostname(2), 64 bytes at most.
    Hostname(&'a CStr),
    /// Write a sysctl; the key is a path below /proc/sys, such as `net/ipv4/ip_forward`.
    Sysctl {
        /// Path below /proc/sys.
        key: &'a CStr,
        /// What is written.
        value: &'a CStr,
    },
    /// Mount an overlay at the nest's /rootfs and make it the root for all later steps.
    RootOverlay(Layers<'a>),
    /// Attach a new file system of its own (proc, sysfs, tmpfs, devpts, mqueue, cgroup2).
    MountNew {
        /// File system type.
        fstype: &'a CStr,
        /// Where.
        target: &'a CStr,
        /// fsconfig(2) strings; an empty value is a flag.
        options: Vec<(&'a CStr, &'a CStr)>,
        /// Mount attributes.
        attrs: Attr,
        /// SELinux context for its root directory, where it cannot be mounted with one; or empty.
        context: &'a CStr,
    },
    /// Attach a clone of a path of the nest (pod files below /store/pods, the pod's /shm).
    MountNest {
        /// Path in the nest.
        source: &'a CStr,
        /// Where.
        target: &'a CStr,
        /// What the target is.
        kind: FileKind,
        /// Attributes to set.
        attrs: Attr,
    },
    /// Attach the detached mount that a slot holds (a volume).
    MountSlot {
        /// Mount fd.
        slot: Slot,
        /// Where.
        target: &'a CStr,
        /// What the target is.
        kind: FileKind,
        /// Attributes to set on the top mount, or on all when `recursive`.
        attrs: Attr,
        /// Apply `attrs` to submounts too.
        recursive: bool,
        /// One of [`mount_flag`].
        propagation: u64,
    },
    /// Clone a path of the nest, detached, as mount `slot`.
    MakeClone {
        /// The next mount slot.
        slot: Slot,
        /// Path in the nest.
        source: &'a CStr,
    },
    /// Make a file system with device nodes in it, detached, as mount `slot`: what a user namespace may not do.
    MakeNew {
        /// The next mount slot.
        slot: Slot,
        /// File system type.
        fstype: &'a CStr,
        /// fsconfig(2) strings; an empty value is a flag.
        options: Vec<(&'a CStr, &'a CStr)>,
        /// Mount attributes.
        attrs: Attr,
        /// SELinux context for its root directory, where it cannot be mounted with one; or empty.
        context: &'a CStr,
        /// Nodes to make; their paths start at the new file system's root.
        nodes: Vec<Device<'a>>,
    },
    /// Stack layers, detached, as mount `slot`: an image volume, or the root of a pod with a user namespace.
    MakeLayers {
        /// The next mount slot.
        slot: Slot,
        /// What is stacked.
        layers: Layers<'a>,
        /// Give the layers the ids of the pod's user namespace.
        idmap: bool,
        /// Directory or file of the stack to take, resolved inside it; empty means all.
        sub_path: &'a CStr,
    },
    /// Give the detached mount of a slot, and what is below it, the ids of the pod's user namespace.
    MapIds(Slot),
    /// Attach the detached mount of a slot that may be a directory or a file.
    MountLayers {
        /// Mount slot.
        slot: Slot,
        /// Where.
        target: &'a CStr,
        /// Attributes to set.
        attrs: Attr,
    },
    /// Attach the detached mount of a slot at the nest's /rootfs and make it the root for all later steps.
    RootSlot(Slot),
    /// Give the pipes on stdio to an owner, as the host numbers it.
    OwnStdio {
        /// User id on the host.
        uid: u32,
        /// Group id on the host.
        gid: u32,
    },
    /// Change the owner of a path of the nest.
    Chown {
        /// Path in the nest.
        path: &'a CStr,
        /// User id on the host.
        uid: u32,
        /// Group id on the host.
        gid: u32,
    },
    /// Give a path of the nest an SELinux context.
    Relabel {
        /// Path in the nest.
        path: &'a CStr,
        /// What it gets.
        context: &'a CStr,
    },
    /// Become user and group 0 of the user namespace that was joined, without supplementary groups.
    RootOfNamespace,
    /// mknod(2) in the container's root.
    Mknod(Device<'a>),
    /// symlink(2) in the container's root; an existing entry is left alone.
    Symlink {
        /// Where the link is.
        path: &'a CStr,
        /// What it says.
        target: &'a CStr,
    },
    /// Open a terminal in the container's /dev/pts, report its master, make its slave stdio and /dev/console.
    Console(TerminalSize),
    /// Hide a path if it exists: a file below the null device, a directory below an empty read-only tmpfs.
    Mask {
        /// Where.
        path: &'a CStr,
        /// SELinux context of that tmpfs; empty means what the policy says.
        context: &'a CStr,
    },
    /// Make a path read-only if it exists.
    ReadOnly(&'a CStr),
    /// Attach the host's tree, the detached mount of a slot, and move the container's root to a directory of it, where
    /// hooks look for it. Before the root is changed, which takes the tree away again.
    HostTree {
        /// Mount slot.
        slot: Slot,
        /// Directory of the host.
        root: &'a CStr,
    },
    /// Run a program in the container's namespaces and wait for it.
    Hook(Hook<'a>),
    /// pivot_root(2) into the container's root and drop the nest.
    PivotRoot,
    /// Make the root mount read-only.
    RootReadOnly,
    /// setrlimit(2).
    Rlimit {
        /// `RLIMIT_*` number.
        resource: u32,
        /// Soft limit; `u64::MAX` is unlimited.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Change to the working directory, creating it when asked.
    WorkDir {
        /// Where.
        path: &'a CStr,
        /// Create what is missing.
        create: bool,
    },
    /// Make a directory where the image has nothing; it belongs to who the process will be.
    OwnDirectory(&'a CStr),
    /// Resolve and report who the process will be; the identity takes effect with [`Step::Become`].
    Identity {
        /// User.
        user: UserRef<'a>,
        /// Primary group.
        group: UserRef<'a>,
        /// Supplementary groups of the request.
        groups: Vec<u32>,
        /// Whether the image's groups are added.
        policy: GroupsPolicy,
    },
    /// Write the AppArmor label for the next `execve` and read it back.
    AppArmor(&'a CStr),
    /// Write an SELinux attribute of this process, which holds until the next `execve`, and read it back.
    Selinux {
        /// Its file in the nest's procfs.
        file: &'a CStr,
        /// The context.
        context: &'a CStr,
    },
    /// Find the program in the container: the name as given or through PATH of `Exec`; behind the gate, where there is one.
    FindProgram {
        /// argv[0] as given.
        name: &'a CStr,
        /// The PATH to search when `name` has no slash.
        path: &'a CStr,
    },
    /// Take the identity and bounding, inheritable and ambient sets; what the seccomp step needs is kept until `execve`.
    Become(Caps),
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivileges,
    /// Report Ready and wait for one byte on the sync socket.
    Gate,
    /// Install a seccomp filter (an array of `struct sock_filter`).
    Seccomp {
        /// The program, 8 bytes an instruction.
        program: &'a [u8],
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: u32,
    },
    /// execve(2) of what `FindProgram` found. HOME is added from the user's entry when it is missing.
    Exec {
        /// Arguments, argv[0] included.
        argv: Vec<&'a CStr>,
        /// Environment.
        env: Vec<&'a CStr>,
    },
    /// Report Ready and wait to be killed: what a pod's namespace helper ends with.
    Hold {
        /// The filter under which pid 1 of a pod's pid namespace waits, as in `Seccomp`; empty for one that is no pid 1.
        filter: &'a [u8],
    },
}
