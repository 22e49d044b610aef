//! What a stage tells podinit on its sync socket. Frozen like [`crate::wire`].
//!
//! ```text
//! report := kind:u32 step:u32 value:u32 length:u32 detail[length]      little-endian, 512 bytes at most
//! 1 Cloned   value = pid of the process that goes on; one fd: its pidfd
//! 2 Console  one fd: the terminal master
//! 3 Ready    detail = identity: uid:u32 gid:u32 group:u32*
//! 4 Failed   step = index in the plan, value = errno, detail = what the step was about
//! ```
//!
//! podinit reads the kind, and the pid of Cloned; Ready and Failed go to podd as they are.

use alloc::vec::Vec;

/// The largest report.
pub const MAX_REPORT: usize = 512;
const HEADER: usize = 16;
const MAX_DETAIL: usize = MAX_REPORT - HEADER;

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The process that will be the application exists.
    Cloned {
        /// Its pid as podinit sees it.
        pid: u32,
    },
    /// A terminal was opened; its master comes as an fd.
    Console,
    /// All is set up; waiting for one byte.
    Ready(Identity),
    /// A step failed; the stage ends.
    Failed(Failure),
}

/// Who the application runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids; a list too long for a report is cut.
    pub groups: Vec<u32>,
}

/// Which step failed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Index of the step in its plan; `u32::MAX` if the plan itself could not be read.
    pub step: u32,
    /// The kernel's errno.
    pub errno: u32,
    /// What it was about: a path, a name.
    pub subject: Vec<u8>,
}

impl Report {
    /// The bytes of the report; a detail that does not fit is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut detail = Vec::new();
        let (kind, step, value) = match self {
            Self::Cloned { pid } => (1u32, 0, *pid),
            Self::Console => (2, 0, 0),
            Self::Ready(identity) => {
                let numbers = [identity.uid, identity.gid]
                    .into_iter()
                    .chain(identity.groups.iter().copied());
                numbers
                    .take(MAX_DETAIL / 4)
                    .for_each(|n| detail.extend_from_slice(&n.to_le_bytes()));
                (3, 0, 0)
            }
            Self::Failed(failure) => {
                detail.extend(failure.subject.iter().take(MAX_DETAIL));
                (4, failure.step, failure.errno)
            }
        };
        let mut bytes = Vec::with_capacity(HEADER + detail.len());
        for word in [kind, step, value, u32::try_from(detail.len()).unwrap_or(0)] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&detail);
        bytes
    }

    /// The report in `bytes`, or `None` if there is none: the sender is not a stage.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |n: usize| Some(u32::from_le_bytes(bytes.get(n * 4..n * 4 + 4)?.try_into().ok()?));
        let (kind, step, value, length) = (word(0)?, word(1)?, word(2)?, word(3)? as usize);
        let detail = bytes.get(HEADER..HEADER.checked_add(length)?)?;
        match kind {
            1 => Some(Self::Cloned { pid: value }),
            2 => Some(Self::Console),
            3 => {
                let mut numbers = detail
                    .chunks_exact(4)
                    .map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]));
                let (uid, gid) = (numbers.next()?, numbers.next()?);
                Some(Self::Ready(Identity {
                    uid,
                    gid,
                    groups: numbers.collect(),
                }))
            }
            4 => Some(Self::Failed(Failure {
                step,
                errno: value,
                subject: detail.to_vec(),
            })),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_wire() {
        let reports = [
            Report::Cloned { pid: 4711 },
            Report::Console,
            Report::Ready(Identity {
                uid: 1000,
                gid: 50,
                groups: vec![50, 60],
            }),
            Report::Failed(Failure {
                step: 7,
                errno: 2,
                subject: b"/etc/hosts".to_vec(),
            }),
        ];
        for report in reports {
            assert_eq!(Report::decode(&report.encode()), Some(report));
        }
    }

    /// The stage comes with each request, from whatever podd there is, and podinit is older.
    #[test]
    fn reports_have_the_bytes_that_they_had_from_the_beginning() {
        let identity = Identity {
            uid: 1,
            gid: 2,
            groups: vec![3],
        };
        let failure = Failure {
            step: 4,
            errno: 13,
            subject: b"/x".to_vec(),
        };
        for (report, expected) in [
            (Report::Cloned { pid: 7 }, "01000000 00000000 07000000 00000000"),
            (Report::Console, "02000000 00000000 00000000 00000000"),
            (
                Report::Ready(identity),
                "03000000 00000000 00000000 0c000000 01000000 02000000 03000000",
            ),
            (
                Report::Failed(failure),
                "04000000 04000000 0d000000 02000000 2f78",
            ),
        ] {
            let bytes: String = report.encode().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(bytes, expected.replace(' ', ""), "{report:?}");
        }
    }

    #[test]
    fn long_details_are_cut_and_garbage_is_refused() {
        let long = Report::Failed(Failure {
            step: 0,
            errno: 1,
            subject: vec![b'x'; 4096],
        });
        assert_eq!(long.encode().len(), MAX_REPORT);
        assert_eq!(Report::decode(&[0; 16]), None);
        assert_eq!(Report::decode(b"short"), None);
        let mut lying = Report::Console.encode();
        lying[12] = 9;
        assert_eq!(Report::decode(&lying), None);
    }
}
