//! The encoding of plans: what podd writes and a stage of the same version decodes in place.
//!
//! ```text
//! plan   := "PODDPLN1" step*
//! step   := opcode:u16 zero:u16 length:u32 payload[length]
//! string := length:u32 byte[length] NUL        list := count:u32 item*        integers little-endian
//! ```
//!
//! The stage that reads a plan came with it, so the format has no compatibility to keep.

use super::step::{Caps, Device, FileKind, GroupsPolicy, Hook, HookRoot, Layers, Step, UserRef};
use alloc::vec::Vec;
use core::ffi::CStr;

const MAGIC: &[u8; 8] = b"PODDPLN1";

/// Why bytes are not a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The magic is missing: another version, or not a plan.
    Magic,
    /// A field ends behind its step, or a step behind the plan.
    Truncated,
    /// A string without its NUL, or with one inside.
    String,
    /// An opcode or a choice that does not exist.
    Unknown(u16),
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Magic => f.write_str("not a plan of this version"),
            Self::Truncated => f.write_str("plan is cut short"),
            Self::String => f.write_str("plan holds a malformed string"),
            Self::Unknown(code) => write!(f, "plan holds the unknown code {code}"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// A plan being written.
#[derive(Debug)]
pub struct PlanBuf(Vec<u8>);

impl Default for PlanBuf {
    fn default() -> Self {
        Self::new()
    }
}

impl PlanBuf {
    /// An empty plan.
    #[must_use]
    pub fn new() -> Self {
        Self(MAGIC.to_vec())
    }

    /// Appends a step.
    pub fn push(&mut self, step: &Step<'_>) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 8]);
        let opcode = Writer(&mut self.0).step(step);
        let length = u32::try_from(self.0.len() - start - 8).unwrap_or(u32::MAX);
        self.0[start..start + 2].copy_from_slice(&opcode.to_le_bytes());
        self.0[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    }

    /// The encoded plan.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A decoded plan; its strings point into the bytes it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<'a> {
    /// The steps, in order.
    pub steps: Vec<Step<'a>>,
}

impl<'a> Plan<'a> {
    /// Decodes a whole plan, or says why it is none.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut rest = bytes.strip_prefix(MAGIC).ok_or(DecodeError::Magic)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let mut header = Reader(rest);
            let opcode = u16::from_le_bytes(header.array()?);
            let _zero: [u8; 2] = header.array()?;
            let length = header.u32()? as usize;
            let (payload, after) = header.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
            steps.push(Reader(payload).step(opcode)?);
            rest = after;
        }
        Ok(Self { steps })
    }
}

struct Writer<'b>(&'b mut Vec<u8>);

impl Writer<'_> {
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(v);
        self
    }

    fn text(&mut self, v: &CStr) -> &mut Self {
        self.bytes(v.to_bytes());
        self.0.push(0);
        self
    }

    fn texts(&mut self, v: &[&CStr]) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        for text in v {
            self.text(text);
        }
        self
    }

    fn pairs(&mut self, v: &[(&CStr, &CStr)]) -> &mut Self {
        self.u32(u32::try_from(v.len()).unwrap_or(u32::MAX));
        for (key, value) in v {
            self.text(key).text(value);
        }
        self
    }

    fn kind(&mut self, v: FileKind) -> &mut Self {
        self.u32(match v {
            FileKind::Directory => 0,
            FileKind::File => 1,
        })
    }

    fn user(&mut self, v: UserRef<'_>) -> &mut Self {
        match v {
            UserRef::Unset => self.u32(0),
            UserRef::Id(id) => self.u32(1).u32(id),
            UserRef::Name(name) => self.u32(2).text(name),
        }
    }

    fn device(&mut self, d: &Device<'_>) {
        self.text(d.path)
            .u32(d.mode)
            .u32(d.major)
            .u32(d.minor)
            .u32(d.uid)
            .u32(d.gid);
    }

    fn layers(&mut self, layers: &Layers<'_>) -> &mut Self {
        self.text(layers.base).texts(&layers.lowers).text(layers.context);
        self.u32(layers.writable.is_some().into());
        if let Some((upper, work)) = layers.writable {
            self.text(upper).text(work);
        }
        self
    }

    fn hook(&mut self, hook: &Hook<'_>) {
        self.text(hook.name)
            .text(hook.path)
            .texts(&hook.argv)
            .texts(&hook.env);
        self.bytes(hook.state).u32(hook.timeout_ms);
        self.u32((hook.root == HookRoot::Host).into());
        self.bytes(hook.filter).u32(hook.filter_flags);
    }

    /// Writes the payload and returns the opcode; [`Reader::step`] is the mirror image.
    fn step(&mut self, step: &Step<'_>) -> u16 {
        match step {
            Step::OomScoreAdj(v) => (self.u32(v.cast_unsigned()), 1).1,
            Step::Join { slot, namespaces } => (self.u32(*slot).u64(*namespaces), 2).1,
            Step::Clone {
                namespaces,
                into_cgroup,
            } => (self.u64(*namespaces).u32((*into_cgroup).into()), 3).1,
            Step::Unshare(namespaces) => (self.u64(*namespaces), 4).1,
            Step::NewSession => 5,
            Step::Hostname(name) => (self.text(name), 6).1,
            Step::Sysctl { key, value } => (self.text(key).text(value), 7).1,
            Step::RootOverlay(layers) => (self.layers(layers), 8).1,
            Step::MountNew {
                fstype,
                target,
                options,
                attrs,
                context,
            } => {
                self.text(fstype).text(target).u64(*attrs).pairs(options);
                self.text(context);
                9
            }
            Step::MountNest {
                source,
                target,
                kind,
                attrs,
            } => (self.text(source).text(target).kind(*kind).u64(*attrs), 10).1,
            Step::MountSlot {
                slot,
                target,
                kind,
                attrs,
                recursive,
                propagation,
            } => {
                self.u32(*slot)
                    .text(target)
                    .kind(*kind)
                    .u64(*attrs)
                    .u32((*recursive).into())
                    .u64(*propagation);
                11
            }
            Step::Mknod(device) => (self.device(device), 12).1,
            Step::Symlink { path, target } => (self.text(path).text(target), 13).1,
            Step::Console => 14,
            Step::Mask { path, context } => (self.text(path).text(context), 15).1,
            Step::ReadOnly(path) => (self.text(path), 16).1,
            Step::PivotRoot => 17,
            Step::RootReadOnly => 18,
            Step::Rlimit { resource, soft, hard } => (self.u32(*resource).u64(*soft).u64(*hard), 19).1,
            Step::WorkDir { path, create } => (self.text(path).u32((*create).into()), 20).1,
            Step::Identity {
                user,
                group,
                groups,
                policy,
            } => {
                self.user(*user).user(*group);
                self.u32(u32::try_from(groups.len()).unwrap_or(u32::MAX));
                for group in groups {
                    self.u32(*group);
                }
                self.u32(match policy {
                    GroupsPolicy::Merge => 0,
                    GroupsPolicy::Strict => 1,
                });
                21
            }
            Step::AppArmor(label) => (self.text(label), 22).1,
            Step::FindProgram { name, path } => (self.text(name).text(path), 23).1,
            Step::Become(caps) => {
                self.u64(caps.bounding)
                    .u64(caps.permitted)
                    .u64(caps.inheritable)
                    .u64(caps.ambient);
                24
            }
            Step::NoNewPrivileges => 25,
            Step::Gate => 26,
            Step::Seccomp { program, flags } => (self.bytes(program).u32(*flags), 27).1,
            Step::Exec { argv, env } => (self.texts(argv).texts(env), 28).1,
            Step::Hold { filter } => (self.bytes(filter), 29).1,
            _ => self.made(step),
        }
    }

    /// The steps of mounts that are made before they are attached, and of user namespaces.
    fn made(&mut self, step: &Step<'_>) -> u16 {
        match step {
            Step::MakeClone { slot, source } => (self.u32(*slot).text(source), 30).1,
            Step::MakeNew {
                slot,
                fstype,
                options,
                attrs,
                context,
                nodes,
            } => {
                self.u32(*slot).text(fstype).pairs(options).u64(*attrs);
                self.text(context);
                self.u32(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
                nodes.iter().for_each(|node| self.device(node));
                31
            }
            Step::MakeLayers {
                slot,
                layers,
                idmap,
                sub_path,
            } => {
                self.u32(*slot).layers(layers);
                self.u32((*idmap).into()).text(sub_path);
                32
            }
            Step::MapIds(slot) => (self.u32(*slot), 33).1,
            Step::MountLayers { slot, target, attrs } => (self.u32(*slot).text(target).u64(*attrs), 34).1,
            Step::RootSlot(slot) => (self.u32(*slot), 35).1,
            Step::OwnStdio { uid, gid } => (self.u32(*uid).u32(*gid), 36).1,
            Step::Chown { path, uid, gid } => (self.text(path).u32(*uid).u32(*gid), 37).1,
            Step::HostTree { slot, root } => (self.u32(*slot).text(root), 39).1,
            Step::Hook(hook) => (self.hook(hook), 40).1,
            Step::Relabel { path, context } => (self.text(path).text(context), 41).1,
            Step::Selinux { file, context } => (self.text(file).text(context), 42).1,
            // `step` has written every other one.
            _ => 38,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn bool(&mut self) -> Result<bool, DecodeError> {
        Ok(self.u32()? != 0)
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<&'a CStr, DecodeError> {
        let length = self.u32()? as usize;
        let length = length.checked_add(1).ok_or(DecodeError::Truncated)?;
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        CStr::from_bytes_with_nul(head).map_err(|_| DecodeError::String)
    }

    /// A list; its count is not trusted with an allocation.
    fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn kind(&mut self) -> Result<FileKind, DecodeError> {
        match self.u32()? {
            0 => Ok(FileKind::Directory),
            1 => Ok(FileKind::File),
            _ => Err(DecodeError::Unknown(1)),
        }
    }

    fn user(&mut self) -> Result<UserRef<'a>, DecodeError> {
        match self.u32()? {
            0 => Ok(UserRef::Unset),
            1 => Ok(UserRef::Id(self.u32()?)),
            2 => Ok(UserRef::Name(self.text()?)),
            _ => Err(DecodeError::Unknown(2)),
        }
    }

    fn device(&mut self) -> Result<Device<'a>, DecodeError> {
        Ok(Device {
            path: self.text()?,
            mode: self.u32()?,
            major: self.u32()?,
            minor: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
        })
    }

    fn hook(&mut self) -> Result<Hook<'a>, DecodeError> {
        Ok(Hook {
            name: self.text()?,
            path: self.text()?,
            argv: self.list(Self::text)?,
            env: self.list(Self::text)?,
            state: self.bytes()?,
            timeout_ms: self.u32()?,
            root: if self.bool()? {
                HookRoot::Host
            } else {
                HookRoot::Container
            },
            filter: self.bytes()?,
            filter_flags: self.u32()?,
        })
    }

    fn layers(&mut self) -> Result<Layers<'a>, DecodeError> {
        Ok(Layers {
            base: self.text()?,
            lowers: self.list(Self::text)?,
            context: self.text()?,
            writable: match self.bool()? {
                true => Some((self.text()?, self.text()?)),
                false => None,
            },
        })
    }

    fn mount(&mut self, opcode: u16) -> Result<Step<'a>, DecodeError> {
        Ok(match opcode {
            8 => Step::RootOverlay(self.layers()?),
            9 => {
                let (fstype, target, attrs) = (self.text()?, self.text()?, self.u64()?);
                let options = self.list(|r| Ok((r.text()?, r.text()?)))?;
                Step::MountNew {
                    fstype,
                    target,
                    options,
                    attrs,
                    context: self.text()?,
                }
            }
            10 => Step::MountNest {
                source: self.text()?,
                target: self.text()?,
                kind: self.kind()?,
                attrs: self.u64()?,
            },
            _ => Step::MountSlot {
                slot: self.u32()?,
                target: self.text()?,
                kind: self.kind()?,
                attrs: self.u64()?,
                recursive: self.bool()?,
                propagation: self.u64()?,
            },
        })
    }

    fn step(&mut self, opcode: u16) -> Result<Step<'a>, DecodeError> {
        Ok(match opcode {
            1 => Step::OomScoreAdj(self.u32()?.cast_signed()),
            2 => Step::Join {
                slot: self.u32()?,
                namespaces: self.u64()?,
            },
            3 => Step::Clone {
                namespaces: self.u64()?,
                into_cgroup: self.bool()?,
            },
            4 => Step::Unshare(self.u64()?),
            5 => Step::NewSession,
            6 => Step::Hostname(self.text()?),
            7 => Step::Sysctl {
                key: self.text()?,
                value: self.text()?,
            },
            8..=11 => self.mount(opcode)?,
            12 => Step::Mknod(self.device()?),
            13 => Step::Symlink {
                path: self.text()?,
                target: self.text()?,
            },
            14 => Step::Console,
            15 => Step::Mask {
                path: self.text()?,
                context: self.text()?,
            },
            16 => Step::ReadOnly(self.text()?),
            17 => Step::PivotRoot,
            18 => Step::RootReadOnly,
            19 => Step::Rlimit {
                resource: self.u32()?,
                soft: self.u64()?,
                hard: self.u64()?,
            },
            20 => Step::WorkDir {
                path: self.text()?,
                create: self.bool()?,
            },
            21 => Step::Identity {
                user: self.user()?,
                group: self.user()?,
                groups: self.list(Self::u32)?,
                policy: match self.u32()? {
                    0 => GroupsPolicy::Merge,
                    1 => GroupsPolicy::Strict,
                    _ => return Err(DecodeError::Unknown(3)),
                },
            },
            22 => Step::AppArmor(self.text()?),
            23 => Step::FindProgram {
                name: self.text()?,
                path: self.text()?,
            },
            24 => Step::Become(Caps {
                bounding: self.u64()?,
                permitted: self.u64()?,
                inheritable: self.u64()?,
                ambient: self.u64()?,
            }),
            25 => Step::NoNewPrivileges,
            26 => Step::Gate,
            27 => Step::Seccomp {
                program: self.bytes()?,
                flags: self.u32()?,
            },
            28 => Step::Exec {
                argv: self.list(Self::text)?,
                env: self.list(Self::text)?,
            },
            29 => Step::Hold {
                filter: self.bytes()?,
            },
            other => self.made(other)?,
        })
    }

    fn made(&mut self, opcode: u16) -> Result<Step<'a>, DecodeError> {
        Ok(match opcode {
            30 => Step::MakeClone {
                slot: self.u32()?,
                source: self.text()?,
            },
            31 => Step::MakeNew {
                slot: self.u32()?,
                fstype: self.text()?,
                options: self.list(|r| Ok((r.text()?, r.text()?)))?,
                attrs: self.u64()?,
                context: self.text()?,
                nodes: self.list(Self::device)?,
            },
            32 => Step::MakeLayers {
                slot: self.u32()?,
                layers: self.layers()?,
                idmap: self.bool()?,
                sub_path: self.text()?,
            },
            33 => Step::MapIds(self.u32()?),
            34 => Step::MountLayers {
                slot: self.u32()?,
                target: self.text()?,
                attrs: self.u64()?,
            },
            35 => Step::RootSlot(self.u32()?),
            36 => Step::OwnStdio {
                uid: self.u32()?,
                gid: self.u32()?,
            },
            37 => Step::Chown {
                path: self.text()?,
                uid: self.u32()?,
                gid: self.u32()?,
            },
            38 => Step::RootOfNamespace,
            39 => Step::HostTree {
                slot: self.u32()?,
                root: self.text()?,
            },
            40 => Step::Hook(self.hook()?),
            41 => Step::Relabel {
                path: self.text()?,
                context: self.text()?,
            },
            42 => Step::Selinux {
                file: self.text()?,
                context: self.text()?,
            },
            other => return Err(DecodeError::Unknown(other)),
        })
    }
}

#[cfg(test)]
mod tests;
