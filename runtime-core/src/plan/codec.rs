//! The encoding of plans: what podd writes and a stage of the same version decodes in place.
//!
//! ```text
//! plan   := "PODDPLN1" step*
//! step   := opcode:u16 zero:u16 length:u32 payload[length]
//! string := length:u32 byte[length] NUL        list := count:u32 item*        integers little-endian
//! ```
//!
//! The stage that reads a plan came with it, so the format has no compatibility to keep.

use super::step::{
    Caps, Device, FileKind, GroupsPolicy, Hook, HookRoot, Layers, Step, TerminalSize, UserRef,
};
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
        let opcode = step.write_fields(&mut self.0);
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
            let payload = <&[u8]>::read(&mut header)?;
            steps.push(Step::read_fields(opcode, &mut Reader(payload))?);
            rest = header.0;
        }
        Ok(Self { steps })
    }
}

/// Bytes that are not read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(*head)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }
}

/// What a step is made of.
trait Field<'a>: Sized {
    fn write(&self, to: &mut Vec<u8>);
    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

macro_rules! numbers {
    ($($number:ty),+) => {$(
        impl<'a> Field<'a> for $number {
            fn write(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
                Ok(Self::from_le_bytes(from.array()?))
            }
        }
    )+};
}

numbers!(u16, u32, u64, i32);

impl<'a> Field<'a> for bool {
    fn write(&self, to: &mut Vec<u8>) {
        u32::from(*self).write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(u32::read(from)? != 0)
    }
}

/// A length or a count. What does not fit makes a plan that no stage takes.
fn write_length(length: usize, to: &mut Vec<u8>) {
    u32::try_from(length).unwrap_or(u32::MAX).write(to);
}

impl<'a> Field<'a> for &'a [u8] {
    fn write(&self, to: &mut Vec<u8>) {
        write_length(self.len(), to);
        to.extend_from_slice(self);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let length = u32::read(from)? as usize;
        from.slice(length)
    }
}

impl<'a> Field<'a> for &'a CStr {
    fn write(&self, to: &mut Vec<u8>) {
        self.to_bytes().write(to);
        to.push(0);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let length = u32::read(from)? as usize;
        let bytes = from.slice(length.checked_add(1).ok_or(DecodeError::Truncated)?)?;
        CStr::from_bytes_with_nul(bytes).map_err(|_| DecodeError::String)
    }
}

impl<'a, T: Field<'a>> Field<'a> for Vec<T> {
    fn write(&self, to: &mut Vec<u8>) {
        write_length(self.len(), to);
        self.iter().for_each(|item| item.write(to));
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        // The count is not trusted with an allocation.
        let count = u32::read(from)?;
        let mut items = Self::new();
        for _ in 0..count {
            items.push(T::read(from)?);
        }
        Ok(items)
    }
}

impl<'a, A: Field<'a>, B: Field<'a>> Field<'a> for (A, B) {
    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        self.1.write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok((A::read(from)?, B::read(from)?))
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn write(&self, to: &mut Vec<u8>) {
        self.is_some().write(to);
        self.iter().for_each(|value| value.write(to));
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        bool::read(from)?.then(|| T::read(from)).transpose()
    }
}

/// Structures: their fields one after the other.
macro_rules! structures {
    ($($name:ty { $($field:ident),+ })+) => {$(
        impl<'a> Field<'a> for $name {
            fn write(&self, to: &mut Vec<u8>) {
                $(self.$field.write(to);)+
            }

            fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
                Ok(Self { $($field: Field::read(from)?),+ })
            }
        }
    )+};
}

structures! {
    TerminalSize { rows, columns }
    Caps { bounding, permitted, inheritable, ambient }
    Device<'a> { path, mode, major, minor, uid, gid }
    Layers<'a> { base, lowers, writable, context }
    Hook<'a> { name, path, argv, env, state, timeout_ms, root, filter, filter_flags }
}

/// One of several, each with fields of its own.
trait Choice<'a>: Sized {
    /// Writes the fields and returns the number that tells which it is.
    fn write_fields(&self, to: &mut Vec<u8>) -> u16;
    /// Reads the fields that belong to a number.
    fn read_fields(number: u16, from: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

impl<'a, T: Choice<'a>> Field<'a> for T {
    fn write(&self, to: &mut Vec<u8>) {
        let at = to.len();
        to.extend_from_slice(&[0; 4]);
        let number = u32::from(self.write_fields(to));
        to[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let number = u16::try_from(u32::read(from)?).unwrap_or(u16::MAX);
        Self::read_fields(number, from)
    }
}

macro_rules! choices {
    ($($name:ty {
        $($number:literal $choice:ident $(($value:ident))? $({ $($field:ident),+ })?,)+
    })+) => {$(
        #[allow(unused_variables, reason = "not every choice has fields")]
        impl<'a> Choice<'a> for $name {
            fn write_fields(&self, to: &mut Vec<u8>) -> u16 {
                match self {
                    $(Self::$choice $(($value))? $({ $($field),+ })? => {
                        $($value.write(to);)?
                        $($($field.write(to);)+)?
                        $number
                    })+
                }
            }

            fn read_fields(number: u16, from: &mut Reader<'a>) -> Result<Self, DecodeError> {
                Ok(match number {
                    $($number => Self::$choice
                        $(({ let $value = Field::read(from)?; $value }))?
                        $({ $($field: Field::read(from)?),+ })?,)+
                    other => return Err(DecodeError::Unknown(other)),
                })
            }
        }
    )+};
}

choices! {
    FileKind { 0 Directory, 1 File, }
    UserRef<'a> { 0 Unset, 1 Id(id), 2 Name(name), }
    GroupsPolicy { 0 Merge, 1 Strict, }
    HookRoot { 0 Container, 1 Host, }
    Step<'a> {
        1 OomScoreAdj(score),
        2 Join { slot, namespaces },
        3 Clone { namespaces, into_cgroup },
        4 Unshare(namespaces),
        5 NewSession,
        6 Hostname(name),
        7 Sysctl { key, value },
        8 RootOverlay(layers),
        9 MountNew { fstype, target, options, attrs, context },
        10 MountNest { source, target, kind, attrs },
        11 MountSlot { slot, target, kind, attrs, recursive, propagation },
        12 Mknod(device),
        13 Symlink { path, target },
        14 Console(size),
        15 Mask { path, context },
        16 ReadOnly(path),
        17 PivotRoot,
        18 RootReadOnly,
        19 Rlimit { resource, soft, hard },
        20 WorkDir { path, create },
        21 Identity { user, group, groups, policy },
        22 AppArmor(label),
        23 FindProgram { name, path },
        24 Become(caps),
        25 NoNewPrivileges,
        26 Gate,
        27 Seccomp { program, flags },
        28 Exec { argv, env },
        29 Hold { filter },
        30 MakeClone { slot, source },
        31 MakeNew { slot, fstype, options, attrs, context, nodes },
        32 MakeLayers { slot, layers, idmap, sub_path },
        33 MapIds(slot),
        34 MountLayers { slot, target, attrs },
        35 RootSlot(slot),
        36 OwnStdio { uid, gid },
        37 Chown { path, uid, gid },
        38 RootOfNamespace,
        39 HostTree { slot, root },
        40 Hook(hook),
        41 Relabel { path, context },
        42 Selinux { file, context },
        43 OwnDirectory(path),
    }
}

#[cfg(test)]
mod tests;
