//! A container's log in the CRI's format, read from the file that podinit writes.
//!
//! ```text
//! 2016-10-06T00:17:09.669794202Z stdout P content      P: the line goes on in the stream's next entry, F: it ends
//! ```
//!
//! What a container wrote may be anything; an entry is read as far as [`LONGEST`] and no more of it is kept.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Most bytes of an entry; podinit ends one after 16 KiB.
const LONGEST: u64 = 256 << 10;

/// Which stream an entry is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Out,
    /// Standard error.
    Err,
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// RFC 3339; the text of all times in a log compares as time does.
    pub time: &'a str,
    /// The stream.
    pub stream: Stream,
    /// The line goes on in the next entry of the stream, or nothing ended it.
    pub partial: bool,
    /// What the container wrote, without line feed.
    pub content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// The entry of a line; `None` for what is none.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut fields = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Out,
            b"stderr" => Stream::Err,
            _ => return None,
        };
        // Tags may be more one day, with colons between; the first is P or F.
        let tag = fields.next()?.split(|b| *b == b':').next()?;
        Some(Self {
            time,
            stream,
            partial: tag == b"P",
            content: fields.next().unwrap_or_default(),
        })
    }
}

/// An open log, and the path that the next file will have after a rotation.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: BufReader<File>,
    inode: (u64, u64),
    /// Where the next entry begins.
    at: u64,
    /// There is a new file.
    turned: bool,
}

impl LogFile {
    /// Opens a log at its beginning.
    ///
    /// # Errors
    /// It is not there, or is no file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Whatever is there in place of a log must not make us wait.
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Self {
            path: path.to_owned(),
            file: BufReader::with_capacity(64 << 10, file),
            inode: (metadata.dev(), metadata.ino()),
            at: 0,
            turned: false,
        })
    }

    /// Puts the next line into `line`; `false` where there is no whole one, or not yet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        line.clear();
        let mut length = (&mut self.file).take(LONGEST).read_until(b'\n', line)? as u64;
        if line.last() != Some(&b'\n') && length == LONGEST {
            length += skip_line(&mut self.file)?;
            line.push(b'\n');
        }
        if line.last() == Some(&b'\n') {
            self.at += length;
            return Ok(true);
        }
        // A part of a line: podinit has not written the rest yet.
        line.clear();
        if length > 0 {
            self.file.seek(SeekFrom::Start(self.at))?;
        }
        Ok(false)
    }

    /// Goes to where the last `count` lines of the container begin.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn seek_tail(&mut self, count: usize) -> io::Result<()> {
        let mut starts = std::collections::VecDeque::new();
        let (mut line, mut begins) = (Vec::new(), true);
        let mut at = self.at;
        while self.next(&mut line)? {
            if begins {
                starts.push_back(at);
                if starts.len() > count {
                    starts.pop_front();
                }
            }
            begins = Entry::parse(&line).is_none_or(|entry| !entry.partial);
            at = self.at;
        }
        self.at = starts.front().copied().unwrap_or(at);
        self.file.seek(SeekFrom::Start(self.at)).map(drop)
    }

    /// After [`Self::next`] has come to an end: goes on with the new file after a rotation, and to the beginning of
    /// one that was cut. `true` where there may be more now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn turn(&mut self) -> io::Result<bool> {
        if self.file.get_ref().metadata()?.len() < self.at {
            self.at = 0;
            self.file.seek(SeekFrom::Start(0))?;
            return Ok(true);
        }
        // Between the kubelet's rename and podinit's new file there is none, and the old one is still written.
        let Ok(metadata) = fs::metadata(&self.path) else {
            return Ok(false);
        };
        if (metadata.dev(), metadata.ino()) == self.inode {
            return Ok(false);
        }
        // Once more to the end of the old one, which podinit has left by now.
        if self.turned {
            *self = Self::open(&self.path)?;
        } else {
            self.turned = true;
        }
        Ok(true)
    }
}

/// Reads on behind the next line feed, and says how far that was.
fn skip_line(file: &mut impl BufRead) -> io::Result<u64> {
    let mut length = 0;
    loop {
        let buffer = file.fill_buf()?;
        let (used, found) = match buffer.iter().position(|b| *b == b'\n') {
            Some(at) => (at + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        file.consume(used);
        length += used as u64;
        if found {
            return Ok(length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn rest(log: &mut LogFile) -> Vec<String> {
        let (mut lines, mut line) = (Vec::new(), Vec::new());
        while log.next(&mut line).unwrap() {
            let entry = Entry::parse(&line).unwrap();
            lines.push(String::from_utf8_lossy(entry.content).into_owned());
        }
        lines
    }

    #[test]
    fn entries_are_taken_apart() {
        let entry = Entry::parse(b"2016-10-06T00:17:09.669794202Z stderr P a b\n").unwrap();
        let want = Entry {
            time: "2016-10-06T00:17:09.669794202Z",
            stream: Stream::Err,
            partial: true,
            content: b"a b",
        };
        assert_eq!(entry, want);
        assert_eq!(Entry::parse(b"t stdout F:x \xff").unwrap().content, b"\xff");
        assert_eq!(Entry::parse(b"t stdout F").unwrap().content, b"");
        for bad in [&b""[..], b"t", b"t stdlog F x", b"\xff stdout F x", b"t stdout"] {
            assert_eq!(Entry::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_tail_counts_lines_of_the_container() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(
            &path,
            "t stdout F 1\nt stdout P 2\nt stdout P b\nt stdout F c\nt stdout F 3\nt stdout F unfini",
        )
        .unwrap();
        let mut log = LogFile::open(&path).unwrap();
        for (count, want) in [
            (0, vec![]),
            (1, vec!["3"]),
            (2, vec!["2", "b", "c", "3"]),
            (9, vec!["1", "2", "b", "c", "3"]),
        ] {
            let mut log = LogFile::open(&path).unwrap();
            log.seek_tail(count).unwrap();
            assert_eq!(rest(&mut log), want, "{count}");
        }
        log.seek_tail(1).unwrap();
        assert_eq!(rest(&mut log), ["3"]);
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"shed\n")
            .unwrap();
        assert_eq!(rest(&mut log), ["unfinished"]);
    }

    #[test]
    fn a_rotated_log_is_read_to_its_end_first() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("0.log"), directory.path().join("0.log.1"));
        fs::write(&path, "t stdout F 1\n").unwrap();
        let mut log = LogFile::open(&path).unwrap();
        assert_eq!(rest(&mut log), ["1"]);
        assert!(!log.turn().unwrap());
        fs::rename(&path, &old).unwrap();
        File::options()
            .append(true)
            .open(&old)
            .unwrap()
            .write_all(b"t stdout F 2\n")
            .unwrap();
        assert!(!log.turn().unwrap());
        assert_eq!(rest(&mut log), ["2"]);
        fs::write(&path, "t stdout F 3\n").unwrap();
        assert!(log.turn().unwrap());
        File::options()
            .append(true)
            .open(&old)
            .unwrap()
            .write_all(b"t stdout F late\n")
            .unwrap();
        assert_eq!(rest(&mut log), ["late"]);
        assert!(log.turn().unwrap());
        assert_eq!(rest(&mut log), ["3"]);
        fs::write(&path, "t stdout F\n").unwrap();
        assert!(log.turn().unwrap());
        assert_eq!(rest(&mut log), [""]);
    }

    #[test]
    fn endless_lines_and_other_files_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let endless = "x".repeat(3 * usize::try_from(LONGEST).unwrap());
        fs::write(&path, format!("t stdout F {endless}\nt stdout F next\n")).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        let mut line = Vec::new();
        assert!(log.next(&mut line).unwrap());
        assert_eq!(line.len() as u64, LONGEST + 1);
        assert_eq!(rest(&mut log), ["next"]);
        assert!(LogFile::open(Path::new("/dev/null")).is_err());
        assert!(LogFile::open(directory.path()).is_err());
    }
}
