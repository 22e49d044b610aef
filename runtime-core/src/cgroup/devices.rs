//! Which devices the processes of a cgroup may make, read and write.
//!
//! cgroup v2 has no files for that: a program of type `BPF_PROG_TYPE_CGROUP_DEVICE` is asked at each mknod(2) and
//! open(2) of a device (Documentation/admin-guide/cgroup-v2.rst, "Device controller"). Owns the way from OCI rules
//! to a loaded program; attaching is [`super::Cgroup::restrict_devices`]. Never decides what is allowed.
//!
//! # The law
//!
//! Each kind of access (read, write, mknod) is decided by the last rule that names the device and this kind; what
//! no rule names is denied. An open for reading and writing needs both. This is what cgroup v1 does with the same
//! list (Documentation/admin-guide/cgroup-v1/devices.rst), so that `r` and `w` in two rules are `rw`.
//!
//! # The program
//!
//! `struct bpf_cgroup_dev_ctx` is three words: access and type (`BPF_DEVCG_ACC_* << 16 | BPF_DEVCG_DEV_*`), major,
//! minor. Rules are asked in reverse; w3 holds what is still undecided, 1 is yes, 0 is no.
//!
//! ```text
//!         w2 = ctx[0]; w3 = w2 >> 16; w2 &= 0xffff; w4 = ctx[1]; w5 = ctx[2]
//! rule:   if w2 != TYPE goto next; if w4 != MAJOR goto next; if w5 != MINOR goto next     (no test where any will do)
//!         allow:  w3 &= ~ACCESS;           if w3 != 0 goto next; return 1
//!         deny:   w0 = w3; w0 &= ACCESS;   if w0 == 0 goto next; return 0
//! next:   …
//!         return 0
//! ```

use std::sync::Arc;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use super::CgroupError;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR` of linux/bpf.h.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
/// `BPF_DEVCG_ACC_MKNOD`, `_READ`, `_WRITE`.
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// Opcodes (Documentation/bpf/standardization/instruction-set.rst); all arithmetic is on 32 bits.
mod op {
    /// dst = *(u32 *)(src + off)
    pub(super) const LOAD: u8 = 0x61;
    /// dst = imm
    pub(super) const SET: u8 = 0xb4;
    /// dst = src
    pub(super) const COPY: u8 = 0xbc;
    /// dst &= imm
    pub(super) const AND: u8 = 0x54;
    /// dst >>= imm
    pub(super) const SHIFT: u8 = 0x74;
    /// if dst == imm goto off
    pub(super) const IF_EQUAL: u8 = 0x16;
    /// if dst != imm goto off
    pub(super) const UNLESS_EQUAL: u8 = 0x56;
    /// return r0
    pub(super) const EXIT: u8 = 0x95;
}

/// One rule; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn from_oci(rule: &LinuxDeviceCgroup) -> Result<Self, CgroupError> {
        let refused = |reason| CgroupError::DeviceRule {
            rule: rule.to_string(),
            reason,
        };
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some(BLOCK),
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHAR),
            Some(LinuxDeviceType::P) => return Err(refused("a FIFO is no device")),
        };
        // runc and crun know -1 as any.
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(n) => i32::try_from(n)
                .ok()
                .filter(|n| *n >= 0)
                .map(Some)
                .ok_or_else(|| refused("there is no such device number")),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or_default().chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(refused("access is made of r, w and m")),
            };
        }
        if access == 0 {
            return Err(refused("access is empty"));
        }
        Ok(Self {
            allow: rule.allow(),
            kind,
            major: number(rule.major())?,
            minor: number(rule.minor())?,
            access,
        })
    }

    /// Whether it leaves nothing to the rules before it.
    fn is_final(&self) -> bool {
        self.access == ALL && self.kind.is_none() && self.major.is_none() && self.minor.is_none()
    }

    /// The instructions of the rule; the last one falls through to what follows.
    fn assemble(&self) -> Vec<[u8; 8]> {
        let tests = [(2, self.kind), (4, self.major), (5, self.minor)];
        let tests: Vec<(u8, i32)> = tests
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        let verdict = match (self.allow, self.access) {
            // Nothing is left to ask, not even of an open for neither reading nor writing.
            (_, ALL) => answer(self.allow).to_vec(),
            (true, access) => [
                vec![instruction(op::AND, 3, 0, !access), skip_unless(3, 0, 2)],
                answer(true).to_vec(),
            ]
            .concat(),
            (false, access) => [
                vec![
                    instruction(op::COPY, 3 << 4, 0, 0),
                    instruction(op::AND, 0, 0, access),
                    instruction(op::IF_EQUAL, 0, 2, 0),
                ],
                answer(false).to_vec(),
            ]
            .concat(),
        };
        // At most two more tests and five instructions: the offsets are small.
        let mut left = tests.len() + verdict.len();
        let mut code = Vec::with_capacity(left);
        for (register, value) in tests {
            left -= 1;
            code.push(skip_unless(
                register,
                value,
                i16::try_from(left).unwrap_or(i16::MAX),
            ));
        }
        code.extend(verdict);
        code
    }
}

/// `struct bpf_insn`: opcode, source and destination register, offset, immediate value.
fn instruction(opcode: u8, registers: u8, offset: i16, value: i32) -> [u8; 8] {
    let ([o0, o1], [v0, v1, v2, v3]) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [opcode, registers, o0, o1, v0, v1, v2, v3]
}

fn skip_unless(register: u8, value: i32, over: i16) -> [u8; 8] {
    instruction(op::UNLESS_EQUAL, register, over, value)
}

fn answer(allow: bool) -> [[u8; 8]; 2] {
    [
        instruction(op::SET, 0, 0, i32::from(allow)),
        instruction(op::EXIT, 0, 0, 0),
    ]
}

/// Rules about devices, in the order of the OCI spec: later ones win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceRules(Vec<Rule>);

impl DeviceRules {
    /// Reads the rules of a spec. No rules at all deny everything.
    ///
    /// # Errors
    /// [`CgroupError::DeviceRule`] names the first that cannot be expressed.
    pub fn from_oci(rules: &[LinuxDeviceCgroup]) -> Result<Self, CgroupError> {
        rules
            .iter()
            .map(Rule::from_oci)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether every access to every device is allowed.
    #[must_use]
    pub fn allow_everything(&self) -> bool {
        // Anything denied after the last word about all devices takes away from it.
        let last = self.0.iter().rposition(Rule::is_final);
        last.is_some_and(|at| self.0[at..].iter().all(|rule| rule.allow))
    }

    /// The program, as the kernel loads it.
    fn assemble(&self) -> Vec<u8> {
        let mut code = vec![
            instruction(op::LOAD, 2 | 1 << 4, 0, 0),
            instruction(op::COPY, 3 | 2 << 4, 0, 0),
            instruction(op::SHIFT, 3, 0, 16),
            instruction(op::AND, 2, 0, 0xffff),
            instruction(op::LOAD, 4 | 1 << 4, 4, 0),
            instruction(op::LOAD, 5 | 1 << 4, 8, 0),
        ];
        for rule in self.0.iter().rev() {
            code.extend(rule.assemble());
            if rule.is_final() {
                // The kernel refuses code that is never reached.
                return code.concat();
            }
        }
        code.extend(answer(false));
        code.concat()
    }
}

/// A loaded program, shared by the containers with the same rules.
#[derive(Clone, Debug)]
pub struct DeviceProgram(Arc<OwnedFd>);

impl DeviceProgram {
    /// The program, for [`super::Cgroup::restrict_devices`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn load(rules: &DeviceRules) -> Result<Self, Errno> {
        sys::bpf::load_cgroup_device(&rules.assemble()).map(|fd| Self(Arc::new(fd)))
    }
}

/// What this kernel can do about devices, and the program that nearly all containers share.
#[derive(Debug)]
pub struct DeviceControl {
    usual: DeviceRules,
    program: Result<DeviceProgram, Errno>,
}

impl DeviceControl {
    /// Loads the program of the usual rules; whether that succeeds is what the kernel can do.
    #[must_use]
    pub fn probe(usual: DeviceRules) -> Self {
        let program = DeviceProgram::load(&usual);
        Self { usual, program }
    }

    /// Whether access to devices can be restricted at all.
    ///
    /// # Errors
    /// [`CgroupError::NoDeviceControl`].
    pub fn available(&self) -> Result<(), CgroupError> {
        self.usual_program().map(drop)
    }

    /// The program that enforces `rules`; `None` where they allow everything. Another than the usual one is loaded
    /// anew: its rules are the devices of one request.
    ///
    /// # Errors
    /// The kernel cannot restrict access to devices, or refuses this program.
    pub fn program(&self, rules: &DeviceRules) -> Result<Option<DeviceProgram>, CgroupError> {
        if rules.allow_everything() {
            return Ok(None);
        }
        let usual = self.usual_program()?;
        if *rules == self.usual {
            return Ok(Some(usual.clone()));
        }
        DeviceProgram::load(rules)
            .map(Some)
            .map_err(CgroupError::LoadDevices)
    }

    fn usual_program(&self) -> Result<&DeviceProgram, CgroupError> {
        self.program
            .as_ref()
            .map_err(|errno| CgroupError::NoDeviceControl(*errno))
    }
}

#[cfg(test)]
mod tests;
