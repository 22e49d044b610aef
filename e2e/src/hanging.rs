//! A file system that hangs when a test says so, as a disk or a file server does: FUSE, served by a thread of the test.
//!
//! Holds files and directories in memory; knows just what podd and the kernel ask of it (include/uapi/linux/fuse.h,
//! protocol 7.31, all numbers in the machine's byte order). It goes with its value, and with it every wait for it ends.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What a file system is asked, as far as a test may hold it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Finding a name, and what it is.
    Lookup,
    /// Writing.
    Write,
}

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const MKDIR: u32 = 9;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const CREATE: u32 = 35;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// Length of a request's header; `opcode` and `unique` are at 4 and 8, the inode at 16.
const HEADER: usize = 40;
const MAX_WRITE: u32 = 128 << 10;
const ROOT: u64 = 1;

#[derive(Default)]
struct Node {
    directory: bool,
    content: Vec<u8>,
    names: BTreeMap<Vec<u8>, u64>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<u64, Node>,
    held: Option<Ask>,
    waiting: Vec<Vec<u8>>,
}

/// The file system, mounted until this is dropped.
#[derive(Debug)]
pub struct Hanging {
    at: PathBuf,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    device: File,
    over: AtomicBool,
    state: Mutex<State>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Hanging {
    /// Mounts an empty one on a directory.
    ///
    /// # Errors
    /// The kernel has no FUSE, or refuses the mount.
    pub fn mount(at: &Path) -> Result<Self> {
        const O_NONBLOCK: i32 = 0o4000;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(O_NONBLOCK)
            .open("/dev/fuse")
            .context("open /dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("hanging"), at, Some("fuse"), flags, Some(options.as_str()))
            .with_context(|| format!("mount FUSE on {}", at.display()))?;
        let root = Node {
            directory: true,
            ..Node::default()
        };
        let state = State {
            nodes: BTreeMap::from([(ROOT, root)]),
            ..State::default()
        };
        let shared = Arc::new(Shared {
            device,
            over: AtomicBool::new(false),
            state: Mutex::new(state),
        });
        let served = Arc::clone(&shared);
        Ok(Self {
            at: at.to_owned(),
            server: Some(std::thread::spawn(move || served.serve())),
            shared,
        })
    }

    /// Whether this kernel can.
    #[must_use]
    pub fn possible() -> bool {
        Path::new("/dev/fuse").exists()
            && fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\tfuse\n"))
    }

    /// Answers none of these from now on.
    pub fn hold(&self, what: Ask) {
        self.shared.lock().held = Some(what);
    }

    /// How many questions wait for their answer.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.lock().waiting.len()
    }

    /// Answers everything, also what was held back.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        state.held = None;
        for request in std::mem::take(&mut state.waiting) {
            self.shared.answer(&mut state, &request);
        }
    }

    /// What a file of the root directory holds.
    #[must_use]
    pub fn content(&self, name: &str) -> Vec<u8> {
        let state = self.shared.lock();
        let node = state
            .nodes
            .get(&ROOT)
            .and_then(|root| root.names.get(name.as_bytes()));
        node.and_then(|node| state.nodes.get(node))
            .map(|node| node.content.clone())
            .unwrap_or_default()
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.release();
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut buffer = vec![0; MAX_WRITE as usize + 4096];
        while !self.over.load(Ordering::Relaxed) {
            match (&self.device).read(&mut buffer) {
                Ok(n) if n >= HEADER => {
                    let mut state = self.lock();
                    let request = &buffer[..n];
                    let held = match number(request, 4) {
                        LOOKUP | GETATTR => state.held == Some(Ask::Lookup),
                        WRITE => state.held == Some(Ask::Write),
                        _ => false,
                    };
                    if held {
                        state.waiting.push(request.to_vec());
                    } else {
                        self.answer(&mut state, request);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(e) if e.raw_os_error() == Some(ENOENT) || e.kind() == ErrorKind::Interrupted => {}
                // Unmounted.
                Ok(_) | Err(_) => return,
            }
        }
    }

    fn answer(&self, state: &mut State, request: &[u8]) {
        let answer = match number(request, 4) {
            FORGET | BATCH_FORGET | INTERRUPT => return,
            opcode => perform(state, opcode, long(request, 16), &request[HEADER..]),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).unwrap_or_default();
        let mut message = Vec::from(length.to_ne_bytes());
        message.extend(error.to_ne_bytes());
        message.extend(&request[8..16]);
        message.extend(body);
        // Who asked may have given up.
        let _ = (&self.device).write_all(&message);
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk::<4>()
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk::<8>()
        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn name(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn perform(state: &mut State, opcode: u32, inode: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
    match opcode {
        INIT => Ok(init()),
        LOOKUP => {
            let found = state
                .nodes
                .get(&inode)
                .and_then(|node| node.names.get(&name(body)));
            entry(state, *found.ok_or(ENOENT)?)
        }
        GETATTR | SETATTR => Ok([[0; 16].to_vec(), attributes(state, inode)?].concat()),
        MKDIR => {
            let made = make(state, inode, name(&body[8..]), true);
            entry(state, made)
        }
        CREATE => {
            let made = make(state, inode, name(&body[16..]), false);
            Ok([entry(state, made)?, vec![0; 16]].concat())
        }
        OPEN | OPENDIR => Ok(vec![0; 16]),
        RELEASE | RELEASEDIR | FLUSH => Ok(Vec::new()),
        READ => {
            let node = state.nodes.get(&inode).ok_or(ENOENT)?;
            let from = usize::try_from(long(body, 8)).unwrap_or(usize::MAX);
            let rest = node.content.get(from..).unwrap_or_default();
            Ok(rest[..rest.len().min(number(body, 16) as usize)].to_vec())
        }
        WRITE => {
            let node = state.nodes.get_mut(&inode).ok_or(ENOENT)?;
            let (at, data) = (usize::try_from(long(body, 8)).unwrap_or(usize::MAX), &body[40..]);
            let end = at.saturating_add(data.len());
            node.content.resize(node.content.len().max(end), 0);
            node.content[at..end].copy_from_slice(data);
            let written = u32::try_from(data.len()).unwrap_or_default();
            Ok([written.to_ne_bytes(), [0; 4]].concat())
        }
        _ => Err(ENOSYS),
    }
}

fn make(state: &mut State, parent: u64, name: Vec<u8>, directory: bool) -> u64 {
    let inode = ROOT + state.nodes.len() as u64;
    let node = Node {
        directory,
        ..Node::default()
    };
    state.nodes.insert(inode, node);
    if let Some(parent) = state.nodes.get_mut(&parent) {
        parent.names.insert(name, inode);
    }
    inode
}

/// `struct fuse_init_out`: no flags, so that nothing is cached, queued or split that a test counts on.
fn init() -> Vec<u8> {
    let mut out = [7u32, 31, 0, 0].map(u32::to_ne_bytes).concat();
    // Requests in the background, and when there are too many.
    out.extend([16u16, 12].map(u16::to_ne_bytes).concat());
    // Largest write, granularity of times.
    out.extend([MAX_WRITE, 1].map(u32::to_ne_bytes).concat());
    out.resize(64, 0);
    out
}

/// `struct fuse_entry_out`; nothing of it may be kept.
fn entry(state: &State, inode: u64) -> Result<Vec<u8>, i32> {
    let mut out = Vec::from(inode.to_ne_bytes());
    out.resize(40, 0);
    out.extend(attributes(state, inode)?);
    Ok(out)
}

/// `struct fuse_attr`.
fn attributes(state: &State, inode: u64) -> Result<Vec<u8>, i32> {
    let node = state.nodes.get(&inode).ok_or(ENOENT)?;
    let size = node.content.len() as u64;
    let mut out = [inode, size, size.div_ceil(512), 0, 0, 0]
        .map(u64::to_ne_bytes)
        .concat();
    let mode: u32 = if node.directory { 0o40755 } else { 0o100_644 };
    // Nanoseconds of three times, mode, links, owner, group, device, block size, flags.
    out.extend(
        [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]
            .map(u32::to_ne_bytes)
            .concat(),
    );
    Ok(out)
}
