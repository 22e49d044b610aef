//! Extension records that precede an entry: PAX key/value pairs and GNU long names.
//!
//! A PAX record is `"<length> <key>=<value>\n"`, the length counting the whole record (POSIX.1-2001 pax). Pure.

use super::header::id;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What extension headers override in the next entry.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: bool,
    seen: bool,
}

impl Overrides {
    pub(super) fn is_empty(&self) -> bool {
        !self.seen && self.path.is_none() && self.link.is_none()
    }

    /// Adds the records of one `x` header.
    pub(super) fn merge_pax(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        self.seen = true;
        while !data.is_empty() {
            let (record, rest) = split_record(data).ok_or("a PAX record is malformed")?;
            data = rest;
            let eq = record
                .iter()
                .position(|b| *b == b'=')
                .ok_or("a PAX record has no value")?;
            self.set(&record[..eq], &record[eq + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value deletes the override.
        let given = !value.is_empty();
        match key {
            b"path" => self.path = given.then(|| value.to_vec()),
            b"linkpath" => self.link = given.then(|| value.to_vec()),
            b"size" if given => self.size = Some(decimal(value).ok_or("a PAX size is malformed")?),
            b"uid" if given => self.uid = Some(owner(value)?),
            b"gid" if given => self.gid = Some(owner(value)?),
            b"mtime" if given => self.mtime = Some(time(value).ok_or("a PAX time is malformed")?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    if name.is_empty() || name.contains(&0) {
                        return Err("a PAX attribute has a malformed name");
                    }
                    self.xattrs.retain(|(n, _)| n != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Cuts the first record: its `key=value` without length and newline, and what follows.
fn split_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length = usize::try_from(decimal(&data[..space])?).ok()?;
    if length < space + 3 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    Some((&data[space + 1..length - 1], &data[length..]))
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn owner(text: &[u8]) -> Result<u32, &'static str> {
    decimal(text)
        .and_then(|v| i64::try_from(v).ok())
        .and_then(id)
        .ok_or("a PAX owner is malformed or out of range")
}

/// `[-]seconds[.fraction]`; nanoseconds are kept, finer digits dropped.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds = i64::try_from(decimal(whole.as_bytes())?).ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut nanos = 0;
    for i in 0..9 {
        nanos = nanos * 10 + fraction.as_bytes().get(i).map_or(0, |d| u32::from(d - b'0'));
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let cases = [
            ("1700000000", Some((1_700_000_000, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("1.0000000019", Some((1, 1))),
            ("", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ];
        for (text, want) in cases {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn records() {
        let mut o = Overrides::default();
        o.merge_pax(b"12 path=abc\n14 uid=123456\n25 SCHILY.xattr.user.a=b\n")
            .unwrap();
        assert_eq!(o.path.as_deref(), Some(&b"abc"[..]));
        assert_eq!(o.uid, Some(123_456));
        assert_eq!(o.xattrs, vec![(b"user.a".to_vec(), b"b".to_vec())]);
        for bad in [
            &b"99 path=abc\n"[..],
            b"3 a\n",
            b"-1 a=b\n",
            b"0 a=b\n",
            b"7 a=b\n",
            b"path=abc\n",
            b"5 a=b",
            b"18 uid=4294967295\n",
            b"12 size=-12\n",
            b"18446744073709551616 a=b\n",
        ] {
            assert!(
                Overrides::default().merge_pax(bad).is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }
}
