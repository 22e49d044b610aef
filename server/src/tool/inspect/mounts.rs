//! What is mounted in a container: /proc/PID/mountinfo (proc_pid_mountinfo(5)).

use serde::Serialize;

/// Most mounts that are shown.
const MOST: usize = 2048;

/// A mount.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    /// Where, in the container.
    pub target: String,
    /// The file system.
    pub kind: String,
    /// What it calls its source.
    pub source: String,
    /// Which of its directories.
    pub root: String,
    /// Options of the mount, and then of the file system.
    pub options: String,
    /// `shared:N`, `master:N` and the like; empty for a private mount.
    pub propagation: String,
}

/// The mounts in a text, the first [`MOST`] of them.
#[must_use]
pub fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount).take(MOST).collect()
}

fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, target, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut rest = after.split(' ');
    let (kind, source, super_options) = (rest.next()?, rest.next()?, rest.next()?);
    Some(Mount {
        target: unescape(target),
        kind: unescape(kind),
        source: unescape(source),
        root: unescape(root),
        options: format!("{};{}", unescape(options), unescape(super_options)),
        propagation: fields.collect::<Vec<_>>().join(" "),
    })
}

/// Space, tab, line feed and backslash are octal.
fn unescape(text: &str) -> String {
    let (mut out, mut bytes) = (Vec::with_capacity(text.len()), text.as_bytes().iter());
    while let Some(byte) = bytes.next() {
        let digits = bytes.as_slice().first_chunk::<3>();
        match digits.filter(|d| *byte == b'\\' && matches!(d, [b'0'..=b'3', b'0'..=b'7', b'0'..=b'7'])) {
            Some(&[a, b, c]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                bytes.nth(2);
            }
            None => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = "36 35 98:0 /mnt1 /mnt\\0402\\134 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            garbage\n37 35 0:5 / /proc rw - proc proc rw\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        let want = Mount {
            target: "/mnt 2\\".to_owned(),
            kind: "ext3".to_owned(),
            source: "/dev/root".to_owned(),
            root: "/mnt1".to_owned(),
            options: "rw,noatime;rw,errors=continue".to_owned(),
            propagation: "master:1 shared:2".to_owned(),
        };
        assert_eq!(mounts[0], want);
        assert_eq!(mounts[1].propagation, "");
        assert_eq!(unescape("\\04"), "\\04");
        assert_eq!(unescape("\\777é\\011"), "\\777é\t");
        assert_eq!(parse(&"1 1 0:1 / / rw - a b c\n".repeat(MOST + 5)).len(), MOST);
    }
}
