//! Stop signals: the CRI's enumeration, the image's text and the kernel's number of one signal.

use serde::{Deserialize, Serialize};

/// Names in the order of the CRI's enumeration, which begins at 1, with the numbers of x86 and Arm (signal(7)).
/// Real-time signals follow in the order of their numbers.
const NAMED: [(&str, u8); 34] = [
    ("ABRT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("IOT", 6),
    ("KILL", 9),
    ("PIPE", 13),
    ("POLL", 29),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// First and last real-time signal as the C library counts them.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal by its Linux number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct StopSignal(u8);

impl StopSignal {
    /// What is sent when neither the request nor the image says otherwise.
    pub const TERM: Self = Self(15);

    /// The number that kill(2) takes.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// Reads what an image config says: a name with or without `SIG`, in any case, or a number.
    #[must_use]
    pub fn from_image(text: &str) -> Option<Self> {
        let upper = text.trim().to_ascii_uppercase();
        if let Ok(number) = upper.parse::<u8>() {
            return Self::try_from(number).ok();
        }
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let offset = |rest: &str, sign| rest.strip_prefix(sign)?.parse::<u8>().ok();
        if let Some(rest) = name.strip_prefix("RTMIN") {
            let above = if rest.is_empty() {
                Some(0)
            } else {
                offset(rest, '+')
            };
            return above.filter(|n| *n <= RTMAX - RTMIN).map(|n| Self(RTMIN + n));
        }
        if let Some(rest) = name.strip_prefix("RTMAX") {
            let below = if rest.is_empty() {
                Some(0)
            } else {
                offset(rest, '-')
            };
            return below.filter(|n| *n <= RTMAX - RTMIN).map(|n| Self(RTMAX - n));
        }
        NAMED
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| Self(*number))
    }

    /// The signal behind a value of the CRI's enumeration; `None` for values that it does not have.
    pub(super) fn from_cri(value: i32) -> Option<Self> {
        let index = usize::try_from(value).ok()?.checked_sub(1)?;
        let real_time = || {
            u8::try_from(value - 1)
                .ok()
                .filter(|n| (RTMIN..=RTMAX).contains(n))
        };
        NAMED
            .get(index)
            .map(|(_, number)| *number)
            .or_else(real_time)
            .map(Self)
    }

    /// The value of the CRI's enumeration; of two names for one signal the first.
    #[must_use]
    pub fn to_cri(self) -> i32 {
        let named = NAMED.iter().position(|(_, number)| *number == self.0);
        named
            .and_then(|at| i32::try_from(at).ok())
            .unwrap_or_else(|| self.number())
            + 1
    }
}

impl From<StopSignal> for u8 {
    fn from(signal: StopSignal) -> Self {
        signal.0
    }
}

impl TryFrom<u8> for StopSignal {
    type Error = &'static str;
    fn try_from(number: u8) -> Result<Self, Self::Error> {
        // 32 and 33 are the C library's own.
        match number {
            1..=31 | RTMIN..=RTMAX => Ok(Self(number)),
            _ => Err("not a signal"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podd_proto::v1::Signal;

    #[test]
    fn every_value_of_the_cri_is_the_signal_of_its_name() {
        assert_eq!(StopSignal::from_cri(0), None);
        assert_eq!(StopSignal::from_cri(66), None);
        assert_eq!(StopSignal::from_cri(-1), None);
        for value in 1..=65 {
            let wire = Signal::try_from(value).unwrap();
            let name = wire
                .as_str_name()
                .trim_start_matches("SIGNAL_")
                .replace("PLUS", "+")
                .replace("MINUS", "-");
            let signal = StopSignal::from_cri(value).unwrap();
            assert_eq!(StopSignal::from_image(&name), Some(signal), "{name}");
            assert_eq!(StopSignal::from_cri(signal.to_cri()), Some(signal), "{name}");
        }
        assert_eq!(StopSignal::TERM.to_cri(), Signal::Sigterm as i32);
    }

    #[test]
    fn images_write_signals_in_many_ways() {
        for (text, number) in [
            ("SIGQUIT", 3),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            (" TERM ", 15),
        ] {
            assert_eq!(StopSignal::from_image(text).unwrap().number(), number, "{text}");
        }
        for bad in [
            "", "SIG", "0", "32", "65", "SIGNOPE", "RTMIN+31", "RTMIN3", "RTMAX+1", "-9",
        ] {
            assert_eq!(StopSignal::from_image(bad), None, "{bad}");
        }
    }
}
