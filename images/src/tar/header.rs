//! The 512-byte tar header block: v7, POSIX ustar and old GNU layouts.
//!
//! Pure: bytes in, numbers and names out. Field offsets are those of POSIX.1-1988 `struct posix_header`.

use super::Kind;

pub(super) const BLOCK: usize = 512;

/// A header whose checksum was right.
#[derive(Debug)]
pub(super) struct Header {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub flag: u8,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Header, &'static str> {
        let stored = number(&block[148..156])?;
        let (unsigned, signed) = checksums(block);
        if stored != unsigned && stored != signed {
            return Err("a header has a wrong checksum");
        }
        let posix = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        let name = text(&block[0..100]);
        let prefix = if posix { text(&block[345..500]) } else { &[] };
        let path = if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        };
        let mut flag = block[156];
        // v7 has no directory flag: a trailing slash says it. Not so for '0', which has data (as in Go's reader).
        if flag == 0 && path.ends_with(b"/") {
            flag = b'5';
        }
        let device = if posix || gnu {
            (small(&block[329..337])?, small(&block[337..345])?)
        } else {
            (0, 0)
        };
        Ok(Header {
            path,
            link: text(&block[157..257]).to_vec(),
            flag,
            size: u64::try_from(number(&block[124..136])?).map_err(|_| "a header has a negative size")?,
            mode: u32::try_from(number(&block[100..108])? & 0o7777).map_err(|_| "a header has a bad mode")?,
            uid: small(&block[108..116])?,
            gid: small(&block[116..124])?,
            mtime: number(&block[136..148])?,
            device,
        })
    }

    /// The entry kind, or `None` for one that has no place in a layer.
    pub(super) fn kind(&self) -> Option<Kind> {
        Some(match self.flag {
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return None,
        })
    }
}

/// Why a header flag is refused.
pub(super) fn unsupported(flag: u8) -> &'static str {
    match flag {
        b'S' => "sparse files are not supported",
        b'M' | b'V' | b'N' | b'D' => "GNU multi-volume and dump records are not supported",
        _ => "unknown entry type",
    }
}

/// Sum of all bytes with the checksum field taken as spaces, unsigned and (some old writers) signed.
fn checksums(block: &[u8; BLOCK]) -> (i64, i64) {
    let mut unsigned = 0;
    let mut signed = 0;
    for (i, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&i) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    (unsigned, signed)
}

fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text, or GNU base-256 when the high bit of the first byte is set.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "a header has a malformed number";
    if field[0] & 0x80 != 0 {
        // Two's complement with the flag bit replaced by the sign (bit 6).
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value: i64 = if negative { -1 } else { 0 };
        for byte in std::iter::once(&first).chain(&field[1..]) {
            value = value.checked_mul(256).ok_or(BAD)? | i64::from(*byte);
        }
        return Ok(value);
    }
    let mut value: i64 = 0;
    let digits = field.trim_ascii_start();
    let end = digits
        .iter()
        .position(|b| matches!(b, 0 | b' '))
        .unwrap_or(digits.len());
    for digit in &digits[..end] {
        if !matches!(digit, b'0'..=b'7') {
            return Err(BAD);
        }
        value = value.checked_mul(8).ok_or(BAD)? + i64::from(digit - b'0');
    }
    Ok(value)
}

/// A user, group or device number: `u32::MAX` means "unchanged" to the kernel and is refused (CVE-2024-40635 class).
pub(super) fn id(value: i64) -> Option<u32> {
    u32::try_from(value).ok().filter(|v| *v != u32::MAX)
}

fn small(field: &[u8]) -> Result<u32, &'static str> {
    id(number(field)?).ok_or("a header has an owner or device number out of range")
}
