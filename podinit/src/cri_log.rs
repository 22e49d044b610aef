//! The CRI log format: one line of output becomes one record, a longer one several.
//!
//! ```text
//! 2016-10-06T00:17:09.669794202Z stdout P log content<newline>       F: the line ends here, P: it goes on
//! ```
//!
//! The kubelet joins P records with the F that follows. A line is split only where it is longer than a record may
//! be, as containerd and CRI-O do: a line that its application writes in pieces stays one record. Output that ends
//! without a newline ends with a P.

/// Longest content of one record; the kubelet's own default.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Which output a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Length of every record prefix.
pub const PREFIX: usize = 40;

/// Writes `TIMESTAMP STREAM TAG ` for a time in ns since 1970.
#[must_use]
pub fn prefix(time: u64, stream: Stream, ends: bool) -> [u8; PREFIX] {
    let mut bytes = *b"0000-00-00T00:00:00.000000000Z stdout F ";
    let (seconds, nanos) = (time / 1_000_000_000, time % 1_000_000_000);
    let (year, month, day) = civil(seconds / 86_400);
    let second = seconds % 86_400;
    let mut put = |at: usize, width: usize, mut value: u64| {
        for byte in bytes[at..at + width].iter_mut().rev() {
            *byte = b'0' + u8::try_from(value % 10).unwrap_or(0);
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 9, nanos);
    if stream == Stream::Stderr {
        bytes[31..37].copy_from_slice(b"stderr");
    }
    if !ends {
        bytes[38] = b'P';
    }
    bytes
}

/// Year, month and day of a day number since 1970 (Gregorian, no leap seconds: POSIX time).
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March 0000, so that the leap day is the last of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// One record of a chunk of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The content, with its newline if the record ends the line.
    pub content: &'a [u8],
    /// Whether the record ends a line.
    pub ends: bool,
}

/// The records that a chunk of output completes: whole lines, and full pieces of lines that are longer. What is
/// left is the beginning of a line, shorter than a record: [`Records::rest`].
#[derive(Clone, Debug)]
pub struct Records<'a>(&'a [u8]);

impl<'a> Records<'a> {
    /// The records of `chunk`.
    #[must_use]
    pub fn new(chunk: &'a [u8]) -> Self {
        Self(chunk)
    }

    /// What no record has taken yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        // A newline right behind a full record still belongs to it.
        let window = &self.0[..self.0.len().min(MAX_CONTENT + 1)];
        let (length, ends) = match newline(window) {
            Some(at) => (at + 1, true),
            None if window.len() > MAX_CONTENT => (MAX_CONTENT, false),
            None => return None,
        };
        let (content, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(Record { content, ends })
    }
}

/// Position of the first newline, eight bytes at a time.
fn newline(bytes: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let mut chunks = bytes.chunks_exact(8);
    let mut at = 0;
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or([0; 8])) ^ (ONES * u64::from(b'\n'));
        let found = word.wrapping_sub(ONES) & !word & HIGH;
        if found != 0 {
            return Some(at + (found.trailing_zeros() / 8) as usize);
        }
        at += 8;
    }
    chunks
        .remainder()
        .iter()
        .position(|byte| *byte == b'\n')
        .map(|rest| at + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_rfc3339_with_nanoseconds() {
        let cases = [
            (
                0,
                Stream::Stdout,
                true,
                "1970-01-01T00:00:00.000000000Z stdout F ",
            ),
            (
                1_475_713_029_669_794_202,
                Stream::Stderr,
                false,
                "2016-10-06T00:17:09.669794202Z stderr P ",
            ),
            (
                1_709_164_800_000_000_001,
                Stream::Stdout,
                true,
                "2024-02-29T00:00:00.000000001Z stdout F ",
            ),
            (
                951_868_799_999_999_999,
                Stream::Stdout,
                true,
                "2000-02-29T23:59:59.999999999Z stdout F ",
            ),
            (
                4_107_542_399_000_000_000,
                Stream::Stdout,
                true,
                "2100-02-28T23:59:59.000000000Z stdout F ",
            ),
            (
                4_107_542_400_000_000_000,
                Stream::Stdout,
                true,
                "2100-03-01T00:00:00.000000000Z stdout F ",
            ),
        ];
        for (time, stream, ends, expected) in cases {
            assert_eq!(std::str::from_utf8(&prefix(time, stream, ends)), Ok(expected));
        }
    }

    #[test]
    fn chunks_split_at_newlines_and_at_the_limit() {
        let full = [vec![b'x'; MAX_CONTENT], b"\n".to_vec()].concat();
        let over = [vec![b'x'; MAX_CONTENT + 1], b"\n".to_vec()].concat();
        let outline = |chunk: &[u8]| {
            let mut records = Records::new(chunk);
            let lengths: Vec<_> = records.by_ref().map(|r| (r.content.len(), r.ends)).collect();
            (lengths, records.rest().len())
        };
        assert_eq!(outline(b""), (vec![], 0));
        assert_eq!(outline(b"a\nbc\n\n"), (vec![(2, true), (3, true), (1, true)], 0));
        assert_eq!(outline(b"a\nprompt> "), (vec![(2, true)], 8));
        assert_eq!(outline(&full), (vec![(MAX_CONTENT + 1, true)], 0));
        assert_eq!(outline(&full[..MAX_CONTENT]), (vec![], MAX_CONTENT));
        assert_eq!(outline(&over), (vec![(MAX_CONTENT, false), (2, true)], 0));
    }

    #[test]
    fn no_byte_is_lost_whatever_the_chunks() {
        let letters = (b'a'..=b'z').cycle();
        let text: Vec<u8> = letters
            .take(100_000)
            .enumerate()
            .map(|(i, c)| if i % 97 == 0 { b'\n' } else { c })
            .collect();
        for size in [1, 7, 8, 9, 96, 97, 4096, 65_536] {
            let (mut joined, mut held) = (Vec::new(), Vec::new());
            for chunk in text.chunks(size) {
                held.extend_from_slice(chunk);
                let mut records = Records::new(&held);
                records
                    .by_ref()
                    .for_each(|record| joined.extend_from_slice(record.content));
                held = records.rest().to_vec();
            }
            joined.extend_from_slice(&held);
            assert_eq!(joined, text);
        }
    }
}
