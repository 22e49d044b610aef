//! Emits classic BPF, last instruction first, so that every jump target exists when the jump is made.
//!
//! Conditional jumps reach 255 instructions; where a target is further an unconditional jump, which reaches any, is
//! put in between. Knows the instructions (linux/bpf_common.h), nothing of system calls.

/// `BPF_MAXINSNS` of linux/bpf_common.h.
pub(super) const PROGRAM_MAX: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`.
pub(super) const LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`.
pub(super) const JUMP: u16 = 0x05;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub(super) const EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`.
pub(super) const GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`.
pub(super) const AT_LEAST: u16 = 0x35;
/// `BPF_ALU | BPF_AND | BPF_K`.
pub(super) const AND: u16 = 0x54;
/// `BPF_RET | BPF_K`.
pub(super) const RETURN: u16 = 0x06;

/// `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Insn {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub k: u32,
}

impl Insn {
    fn bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_le_bytes();
        let [k0, k1, k2, k3] = self.k.to_le_bytes();
        [c0, c1, self.jump_true, self.jump_false, k0, k1, k2, k3]
    }
}

/// An instruction that was emitted: what a jump can lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program from its end.
#[derive(Debug, Default)]
pub(super) struct Emitter {
    reversed: Vec<Insn>,
    /// The latest return of each value.
    returns: Vec<(u32, Label)>,
}

impl Emitter {
    /// An instruction that returns a value; a near one is used again.
    pub fn returns(&mut self, value: u32) -> Label {
        if let Some(&(_, label)) = self.returns.iter().find(|(known, _)| *known == value)
            && self.reversed.len() - label.0 < 128
        {
            return label;
        }
        let label = self.push(RETURN, value);
        self.returns.retain(|(known, _)| *known != value);
        self.returns.push((value, label));
        label
    }

    /// Loads a word of `struct seccomp_data`, and goes on at `next`.
    pub fn load(&mut self, offset: u32, next: Label) -> Label {
        self.before(next);
        self.push(LOAD, offset)
    }

    /// Masks the loaded word, and goes on at `next`.
    pub fn mask(&mut self, mask: u32, next: Label) -> Label {
        self.before(next);
        self.push(AND, mask)
    }

    /// Goes to one of two places by a test of the loaded word.
    pub fn branch(&mut self, test: u16, k: u32, then: Label, otherwise: Label) -> Label {
        if then == otherwise {
            return then;
        }
        // Each may put a jump in front of the other, so the first is asked to be nearer by one.
        let then = self.near(then, 1);
        let otherwise = self.near(otherwise, 0);
        let offset = |label: Label| u8::try_from(self.reversed.len() - 1 - label.0).unwrap_or(u8::MAX);
        let insn = Insn {
            code: test,
            jump_true: offset(then),
            jump_false: offset(otherwise),
            k,
        };
        self.reversed.push(insn);
        Label(self.reversed.len() - 1)
    }

    /// The program from its beginning, which is `entry`.
    pub fn finish(mut self, entry: Label) -> Vec<Insn> {
        self.before(entry);
        self.reversed.reverse();
        self.reversed
    }

    fn push(&mut self, code: u16, k: u32) -> Label {
        self.reversed.push(Insn {
            code,
            jump_true: 0,
            jump_false: 0,
            k,
        });
        Label(self.reversed.len() - 1)
    }

    /// Makes `label` the instruction that the next one emitted falls through to.
    fn before(&mut self, label: Label) {
        if label.0 + 1 != self.reversed.len() {
            self.jump(label);
        }
    }

    fn near(&mut self, label: Label, spare: usize) -> Label {
        let offset = self.reversed.len() - 1 - label.0;
        if offset + spare <= usize::from(u8::MAX) {
            label
        } else {
            self.jump(label)
        }
    }

    fn jump(&mut self, label: Label) -> Label {
        let offset = self.reversed.len() - 1 - label.0;
        self.push(JUMP, u32::try_from(offset).unwrap_or(u32::MAX))
    }
}

/// The program as the kernel takes it.
pub(super) fn encode(program: &[Insn]) -> Vec<u8> {
    program.iter().flat_map(|insn| insn.bytes()).collect()
}
