//! Exec and attach: a process' standard streams, carried to a client and back.

use std::time::Duration;

use bytes::BytesMut;
use runtime_core::plan::TerminalSize;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::spdy::{Connection, Opened};
use super::status::Status;
use super::stream::{CHUNK, Incoming, Link, Next, Outgoing};
use crate::engine::session::{Sink, Source, Stdio, Wanted};

/// How long a client may take to open the streams that it asked for.
const STREAMS: Duration = Duration::from_secs(30);

/// How long a command waits for the size of its terminal, which kubectl, crictl and podd tell first of all.
const FIRST_SIZE: Duration = Duration::from_millis(200);

/// How long output may be silent once the process has ended, while something that it left running holds it open.
const QUIET: Duration = Duration::from_secs(1);

/// How long such output may go on without a pause.
const DRAIN: Duration = Duration::from_secs(10);

/// What the process itself may have left in its pipe, unless root made that larger (/proc/sys/fs/pipe-max-size).
const LARGEST_PIPE: usize = 1 << 20;

/// Most bytes of one change of size, which is a line of JSON.
const MAX_RESIZE: usize = 4096;

/// The streams of a session.
#[derive(Debug)]
pub struct Streams {
    /// For the process to read.
    pub stdin: Option<Incoming>,
    /// What it writes.
    pub stdout: Option<Outgoing>,
    /// What it writes to standard error.
    pub stderr: Option<Outgoing>,
    /// Sizes of the client's terminal.
    pub resize: Option<Sizes>,
    /// For the status at the end.
    pub error: Outgoing,
}

impl Streams {
    /// The size of the client's terminal at the beginning; unknown where there is none, or the client does not tell
    /// it in time. What a command reads before is no size at all.
    pub async fn first_size(&mut self) -> TerminalSize {
        let Some(sizes) = &mut self.resize else {
            return TerminalSize::default();
        };
        let first = tokio::time::timeout(FIRST_SIZE, sizes.next()).await;
        first.ok().flatten().unwrap_or_default()
    }
}

/// A protocol of remote commands over SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    /// As the client asks for it.
    pub name: &'static str,
    /// There is a stream for sizes.
    resizes: bool,
    /// The last word on the error stream is JSON.
    pub json_status: bool,
}

/// The protocols over SPDY. Version 5 is not one of them: it says how WebSockets close.
pub const PROTOCOLS: [Protocol; 4] = [
    Protocol::new("v4.channel.k8s.io", true, true),
    Protocol::new("v3.channel.k8s.io", true, false),
    Protocol::new("v2.channel.k8s.io", false, false),
    Protocol::new("channel.k8s.io", false, false),
];

impl Protocol {
    const fn new(name: &'static str, resizes: bool, json_status: bool) -> Self {
        Self {
            name,
            resizes,
            json_status,
        }
    }
}

/// Waits for the streams that belong to a session; `None` when the client does not open them.
pub async fn gather(connection: &mut Connection, protocol: Protocol, wanted: Wanted) -> Option<Streams> {
    let resizes = wanted.terminal && protocol.resizes;
    let names = [
        ("error", true),
        ("stdin", wanted.stdin),
        ("stdout", wanted.stdout),
        ("stderr", wanted.stderr),
        ("resize", resizes),
    ];
    let mut missing: Vec<&str> = names.iter().filter(|n| n.1).map(|n| n.0).collect();
    let mut found: Vec<(&str, Opened)> = Vec::new();
    let all = async {
        while !missing.is_empty() {
            let opened = connection.next().await?;
            let at = missing
                .iter()
                .position(|name| opened.headers.get("streamtype") == Some(name));
            match at {
                Some(at) => found.push((missing.swap_remove(at), opened)),
                None => opened.outgoing.reset().await,
            }
        }
        Some(())
    };
    tokio::time::timeout(STREAMS, all).await.ok()??;
    let mut take = |name: &str| {
        let at = found.iter().position(|(found, _)| *found == name)?;
        Some(found.swap_remove(at).1)
    };
    Some(Streams {
        stdin: take("stdin").map(|opened| opened.incoming),
        stdout: take("stdout").map(|opened| opened.outgoing),
        stderr: take("stderr").map(|opened| opened.outgoing),
        resize: take("resize").map(|opened| Sizes::of(opened.incoming)),
        error: take("error")?.outgoing,
    })
}

/// What a session lasts as long as.
#[derive(Debug)]
pub enum Life<F> {
    /// A process of its own, whose end the future tells; then output may go on for a little.
    Process(F),
    /// The output. When that has ended, the future says why.
    Output(F),
}

/// A session whose client is ready.
#[derive(Debug)]
pub struct Session {
    /// Its streams.
    pub streams: Streams,
    /// Its connection.
    pub link: Link,
    /// Whether the status is JSON.
    pub json_status: bool,
}

impl Session {
    /// Carries everything until the session is over and its output is sent, or the client is gone. Then the
    /// process' streams are closed: it reads end of file, or its terminal hangs up.
    pub async fn run(self, stdio: Stdio, life: Life<impl Future<Output = Status>>) {
        let Self {
            streams,
            link,
            json_status,
        } = self;
        let error = streams.error.clone();
        let status = tokio::select! {
            status = carry(streams, stdio, life) => status,
            () = error.closed() => return,
        };
        finish(link, error, json_status, &status).await;
    }

    /// Ends a session that never began.
    pub async fn fail(self, message: String) {
        let Streams {
            stdout,
            stderr,
            error,
            ..
        } = self.streams;
        for output in [stdout, stderr].into_iter().flatten() {
            output.end().await;
        }
        finish(self.link, error, self.json_status, &Status::Failure(message)).await;
    }
}

async fn finish(link: Link, error: Outgoing, json_status: bool, status: &Status) {
    let bytes = status.encode(json_status);
    if !bytes.is_empty() {
        let _ = error.send(bytes).await;
    }
    error.end().await;
    drop(error);
    link.finish().await;
}

async fn carry(streams: Streams, stdio: Stdio, life: Life<impl Future<Output = Status>>) -> Status {
    let (over, is_over) = watch::channel(false);
    let screen = streams.stdout.clone();
    let outputs = async {
        tokio::join!(
            output(stdio.stdout, streams.stdout, is_over.clone()),
            output(stdio.stderr, streams.stderr, is_over.clone()),
        )
    };
    let terminal = stdio.terminal;
    // A terminal has no end of input: who ends it while attached has left, and the container goes on.
    let leaves = matches!(life, Life::Output(_)) && streams.resize.is_some();
    let left = async {
        if input(streams.stdin, stdio.stdin).await == Next::End && leaves {
            if let Some(screen) = screen {
                screen.end().await;
            }
            return Status::Success;
        }
        // Nothing more will come from the client, but the session goes on.
        std::future::pending().await
    };
    let resized = async {
        if let (Some(mut sizes), Some(terminal)) = (streams.resize, &terminal) {
            while let Some(size) = sizes.next().await {
                terminal.resize(size);
            }
        }
        std::future::pending().await
    };
    let lived = async {
        match life {
            Life::Process(ended) => {
                let told = async {
                    let status = ended.await;
                    let _ = over.send(true);
                    status
                };
                tokio::join!(told, outputs).0
            }
            Life::Output(verdict) => {
                outputs.await;
                verdict.await
            }
        }
    };
    tokio::select! {
        status = lived => status,
        status = left => status,
        status = resized => status,
    }
}

/// Sends what a process writes until its end; not much longer than the process itself lasts. Nobody may want it.
async fn output(source: Option<Source>, to: Option<Outgoing>, mut over: watch::Receiver<bool>) {
    if let Some(source) = source {
        copy(source, to.as_ref(), &mut over).await;
    }
    if let Some(to) = to {
        to.end().await;
    }
}

async fn copy(mut source: Source, to: Option<&Outgoing>, over: &mut watch::Receiver<bool>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let (mut deadline, mut late) = (None, 0);
    loop {
        buffer.reserve(CHUNK);
        let read = tokio::select! {
            biased;
            read = source.read(&mut buffer) => read,
            () = silent(over) => return,
        };
        let Ok(length @ 1..) = read else { return };
        let bytes = buffer.split().freeze();
        if let Some(to) = to
            && to.send(bytes).await.is_err()
        {
            return;
        }
        if *over.borrow() {
            late += length;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + DRAIN);
            if late > LARGEST_PIPE && Instant::now() > deadline {
                return;
            }
        }
    }
}

/// Waits until the process is over, and then a while.
async fn silent(over: &mut watch::Receiver<bool>) {
    // Without a sender there is no process whose end would matter.
    if over.wait_for(|over| *over).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(QUIET).await;
}

/// Passes on what the client sends. What a process does not want any more is dropped, so that the client is never
/// held up by it; the end of a stream closes a pipe, while a terminal has no end. How the input ended.
async fn input(from: Option<Incoming>, to: Option<Sink>) -> Next {
    let Some(mut from) = from else {
        return Next::Reset;
    };
    let mut to = to;
    loop {
        match from.next().await {
            Next::Data(bytes) => {
                if let Some(sink) = &mut to
                    && sink.write_all(&bytes).await.is_err()
                {
                    to = None;
                }
            }
            over => return over,
        }
    }
}

/// What a client says of its terminal.
#[derive(Debug, Deserialize)]
struct WireSize {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

/// The sizes that a client's terminal takes, JSON objects one after the other in whatever pieces they come.
#[derive(Debug)]
pub struct Sizes {
    from: Incoming,
    held: Vec<u8>,
}

impl Sizes {
    /// Reads them from a stream.
    pub const fn of(from: Incoming) -> Self {
        Self {
            from,
            held: Vec::new(),
        }
    }

    /// Waits for the next; `None` when no more will come. What it has read is kept when it is cancelled.
    async fn next(&mut self) -> Option<TerminalSize> {
        loop {
            if let Some(size) = next_size(&mut self.held) {
                return Some(size);
            }
            let Next::Data(bytes) = self.from.next().await else {
                return None;
            };
            self.held.extend_from_slice(&bytes);
        }
    }
}

/// Takes the first whole size out of `held`, where there is one; what can be no size is dropped.
fn next_size(held: &mut Vec<u8>) -> Option<TerminalSize> {
    let mut stream = serde_json::Deserializer::from_slice(held).into_iter::<WireSize>();
    let first = stream.next();
    let used = match &first {
        Some(Ok(_)) => stream.byte_offset(),
        Some(Err(e)) if e.is_eof() && held.len() <= MAX_RESIZE => 0,
        Some(Err(_)) | None => held.len(),
    };
    held.drain(..used);
    let WireSize { width, height } = first?.ok()?;
    Some(TerminalSize {
        rows: height,
        columns: width,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let size = |columns, rows| Some(TerminalSize { rows, columns });
        let mut held = br#"{"Width":80,"Height":24}{"Width":90,"Height":30}
            {"Width":100,"Hei"#
            .to_vec();
        assert_eq!(next_size(&mut held), size(80, 24));
        assert_eq!(next_size(&mut held), size(90, 30));
        assert_eq!(next_size(&mut held), None);
        held.extend_from_slice(br#"ght":50}"#);
        assert_eq!(next_size(&mut held), size(100, 50));
        assert_eq!(next_size(&mut held), None);
        for refused in [&b"garbage"[..], br#"{"Width":70000,"Height":1}"#] {
            held = refused.to_vec();
            assert!(next_size(&mut held).is_none() && held.is_empty());
        }
        held = [b" ".repeat(MAX_RESIZE + 1), b"{".to_vec()].concat();
        assert!(next_size(&mut held).is_none() && held.is_empty());
    }
}
