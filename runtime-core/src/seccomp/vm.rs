//! Runs a filter as the kernel does, to see what it decides.

use super::bpf::{AND, AT_LEAST, EQUAL, GREATER, JUMP, LOAD, RETURN};

/// `struct seccomp_data`, without the instruction pointer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub number: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16.. => {
                let arg = self.args[(offset as usize - 16) / 8];
                u32::try_from(if offset.is_multiple_of(8) {
                    arg & 0xffff_ffff
                } else {
                    arg >> 32
                })
                .unwrap()
            }
            other => panic!("load of offset {other}"),
        }
    }
}

/// What the filter returns, and after how many instructions. Panics where the kernel would have refused the filter.
pub(super) fn run(program: &[u8], call: &Call) -> (u32, usize) {
    let (insns, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && !insns.is_empty() && insns.len() <= 4096);
    let (mut at, mut word, mut steps) = (0usize, 0u32, 0);
    loop {
        let insn = insns.get(at).expect("a jump leads out of the program");
        let code = u16::from_le_bytes([insn[0], insn[1]]);
        let (jump_true, jump_false) = (usize::from(insn[2]), usize::from(insn[3]));
        let k = u32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]);
        at += 1;
        steps += 1;
        let mut test = |holds: bool| at += if holds { jump_true } else { jump_false };
        match code {
            LOAD => word = call.word(k),
            AND => word &= k,
            JUMP => at += k as usize,
            EQUAL => test(word == k),
            GREATER => test(word > k),
            AT_LEAST => test(word >= k),
            RETURN => return (k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}
