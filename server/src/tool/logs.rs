//! `podd logs`: what a container wrote.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use podd_proto::v1::ContainerState;

use super::cri::Cri;
use super::failure::Failure;
use super::log_file::{Entry, LogFile, Stream};
use super::node::Node;
use super::{text, time};

/// How often a followed log is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How often podd is asked whether the container still runs.
const ASK: Duration = Duration::from_secs(1);

/// Print the log of a container: its standard output and standard error to podd's own.
#[derive(Debug, Args)]
pub struct Logs {
    /// Name or id of the container.
    container: String,
    /// Go on with what comes, over rotations, until the container has ended.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what is not older: a time like 2026-01-31T12:00:00Z, or an age like 90s, 5m, 1h30m, 2d.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Begin each line with its time.
    #[arg(short, long)]
    timestamps: bool,
    /// Pass everything on to a terminal too, also what it would obey.
    #[arg(long)]
    raw: bool,
}

impl Logs {
    /// Prints.
    ///
    /// # Errors
    /// There is no such container, or its log cannot be read.
    pub fn run(self, cri: &Cri) -> Result<(), Failure> {
        let since = self
            .since
            .as_deref()
            .map(|text| time::since(text, time::now()))
            .transpose()?;
        let node = Node::read(cri)?;
        let container = node.container(&self.container)?;
        let (status, _) = cri.container(&container.id)?;
        if status.log_path.is_empty() {
            return Err(Failure::NoLog(container.title()));
        }
        let path = Path::new(&status.log_path);
        let failed = |source| Failure::Io {
            verb: "read the log",
            path: path.to_owned(),
            source,
        };
        let mut log = LogFile::open(path).map_err(failed)?;
        if let Some(lines) = self.tail {
            log.seek_tail(lines).map_err(failed)?;
        }
        let mut printer = Printer {
            since: since.map(time::stamp),
            timestamps: self.timestamps,
            out: Side::new(io::stdout().lock(), !self.raw && io::stdout().is_terminal()),
            err: Side::new(io::stderr().lock(), !self.raw && io::stderr().is_terminal()),
        };
        let follow = self.follow.then_some((cri, container.id.as_str()));
        print(&mut log, &mut printer, follow).and_then(|done| done.map_err(failed))
    }
}

/// Prints what is there, and what comes where a container is to be followed. The outer error is of podd or of the
/// output, the inner one of the log.
fn print<O: Write, E: Write>(
    log: &mut LogFile,
    printer: &mut Printer<O, E>,
    follow: Option<(&Cri, &str)>,
) -> Result<io::Result<()>, Failure> {
    let (mut line, mut asked, mut ended) = (Vec::new(), Instant::now(), false);
    loop {
        loop {
            match log.next(&mut line) {
                Ok(true) => printer.line(&line).map_err(Failure::Output)?,
                Ok(false) => break,
                Err(e) => return Ok(Err(e)),
            }
        }
        printer.flush().map_err(Failure::Output)?;
        let Some((cri, id)) = follow else {
            return Ok(Ok(()));
        };
        match log.turn() {
            Ok(true) => continue,
            Ok(false) if ended => return Ok(Ok(())),
            Ok(false) => std::thread::sleep(LOOK),
            Err(e) => return Ok(Err(e)),
        }
        if asked.elapsed() >= ASK {
            // podinit writes all of the log before it tells the end, so one more look finds everything.
            ended = match cri.container(id) {
                Ok((status, _)) => status.state() == ContainerState::ContainerExited,
                Err(e) if e.is_gone() => true,
                Err(e) => return Err(e),
            };
            asked = Instant::now();
        }
    }
}

struct Printer<O: Write, E: Write> {
    /// Entries with an earlier time are left out.
    since: Option<String>,
    timestamps: bool,
    out: Side<O>,
    err: Side<E>,
}

impl<O: Write, E: Write> Printer<O, E> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = Entry::parse(line) else {
            return self
                .err
                .write(b"podd: a line that is no entry of a log is left out\n");
        };
        if self.since.as_deref().is_some_and(|since| entry.time < since) {
            return Ok(());
        }
        match entry.stream {
            Stream::Out => self.out.entry(&entry, self.timestamps),
            Stream::Err => self.err.entry(&entry, self.timestamps),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.to.flush()?;
        self.err.to.flush()
    }
}

/// One of the two outputs.
struct Side<W: Write> {
    to: io::BufWriter<W>,
    /// It is a terminal, which must not obey a container.
    guarded: bool,
    /// The last entry was a part of a line.
    within: bool,
}

impl<W: Write> Side<W> {
    fn new(to: W, guarded: bool) -> Self {
        Self {
            to: io::BufWriter::new(to),
            guarded,
            within: false,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)
    }

    fn entry(&mut self, entry: &Entry<'_>, timestamps: bool) -> io::Result<()> {
        if timestamps && !self.within {
            self.write(entry.time.as_bytes())?;
            self.write(b" ")?;
        }
        if self.guarded {
            let content = text::guarded(&String::from_utf8_lossy(entry.content));
            self.write(content.as_bytes())?;
        } else {
            self.write(entry.content)?;
        }
        self.within = entry.partial;
        if entry.partial { Ok(()) } else { self.write(b"\n") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(lines: &[&str], since: Option<&str>, timestamps: bool, guarded: bool) -> (String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut printer = Printer {
            since: since.map(str::to_owned),
            timestamps,
            out: Side::new(&mut out, guarded),
            err: Side::new(&mut err, guarded),
        };
        for line in lines {
            printer.line(line.as_bytes()).unwrap();
        }
        printer.flush().unwrap();
        drop(printer);
        (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn streams_are_kept_apart_and_parts_joined() {
        let lines = [
            "1 stdout P a",
            "2 stderr F e",
            "3 stdout F b",
            "4 stdout F c\x1b[2J\x1b[31mred",
        ];
        let (out, err) = printed(&lines, None, false, false);
        assert_eq!((out.as_str(), err.as_str()), ("ab\nc\x1b[2J\x1b[31mred\n", "e\n"));
        let (out, _) = printed(&lines, None, true, true);
        assert_eq!(out, "1 ab\n4 c\\u{1b}[2J\x1b[31mred\x1b[0m\n");
        let (out, err) = printed(&lines, Some("3"), true, false);
        assert_eq!((out.lines().count(), err.as_str()), (2, ""));
        assert!(printed(&["?"], None, false, false).1.contains("no entry"));
    }
}
