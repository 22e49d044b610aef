//! podd as a tool that stays: logs that are followed, and sessions of exec and attach, also on a real terminal.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::{Winsize, openpty};
use podd_e2e::PATIENCE;
use podd_e2e::cri;
use podd_e2e::podd;
use podd_proto::v1 as pb;

use crate::case::{Env, cases, contains, equal, eventually};
use crate::tool::{Lines, command, fails, ran, sleeper};

cases!("tool_sessions":
    logs_in_parts, logs_over_a_rotation, codes_of_commands, commands_on_a_terminal, attached_and_left);

fn logs_in_parts(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("parts")?);
    let id = pod.started(&cri::shell(
        "c",
        "echo one; echo two; sleep 1.1; echo err >&2; printf '\\033[2Jend'",
    ))?;
    cri.wait_exit(&id)?;
    let done = ran(&["logs", "c"])?;
    equal(
        "output",
        done.stdout.as_slice(),
        b"one\ntwo\n\x1b[2Jend".as_slice(),
    )?;
    equal("errors", done.stderr.as_slice(), b"err\n".as_slice())?;
    let tail = ran(&["logs", "--tail", "2", "c"])?;
    equal(
        "tail",
        (tail.stdout.len(), tail.stderr.len()),
        (b"\x1b[2Jend".len(), 4),
    )?;
    let stamped = String::from_utf8(ran(&["logs", "-t", "--tail", "1", "c"])?.stdout)?;
    let time = stamped.split(' ').next().unwrap_or_default().to_owned();
    ensure!(time.ends_with('Z') && time.contains('T'), "{stamped}");
    equal(
        "since",
        ran(&["logs", "--since", &time, "c"])?.stdout.as_slice(),
        b"\x1b[2Jend".as_slice(),
    )?;
    equal(
        "since then",
        ran(&["logs", "--since", "1h", "c"])?.stdout,
        done.stdout,
    )?;
    equal(
        "followed to its end",
        ran(&["logs", "-f", "c"])?.stdout.len(),
        b"one\ntwo\n\x1b[2Jend".len(),
    )?;
    contains(
        "no time",
        &fails(&["logs", "--since", "soon", "c"], 1)?,
        "\"soon\" is neither a time",
    )?;
    pod.remove()
}

fn logs_over_a_rotation(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("followed")?);
    let config = cri::shell(
        "c",
        "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo line $i; sleep 0.002; done",
    );
    let id = pod.started(&config)?;
    let mut child = command(&["logs", "-f", "c"])?.stdout(Stdio::piped()).spawn()?;
    let lines = Lines::of(child.stdout.take().context("no output")?);
    let path = cri::log_path(&pod.config, &config);
    for turn in 0..2 {
        eventually("some lines", || {
            Ok(fs::metadata(&path).is_ok_and(|m| m.len() > 2000))
        })?;
        // What the kubelet does to rotate a log.
        fs::rename(&path, path.with_extension(format!("old{turn}")))?;
        std::thread::sleep(Duration::from_millis(250));
        cri.reopen_container_log(pb::ReopenContainerLogRequest {
            container_id: id.clone(),
        })?;
    }
    for n in 1..=1500 {
        equal("line", lines.next()?, format!("line {n}"))?;
    }
    equal("after the end", child.wait()?.code(), Some(0))?;
    drop(lines);
    pod.remove()
}

fn codes_of_commands(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("codes")?;
    let id = sleeper(&pod, "c")?;
    let exec = |script: &str| ran(&["exec", "c", "sh", "-c", script]);
    let done = exec("echo out; echo err >&2; exit 3")?;
    equal("code", done.status.code(), Some(3))?;
    equal(
        "output",
        (done.stdout.as_slice(), done.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..]),
    )?;
    equal("success", exec("true")?.status.code(), Some(0))?;
    equal("killed", exec("kill -9 $$")?.status.code(), Some(137))?;
    // What looks like an option behind the command is the command's.
    equal(
        "arguments",
        ran(&["exec", &id[..13], "echo", "-n", "--", "-it"])?
            .stdout
            .as_slice(),
        b"-- -it",
    )?;
    let missing = fails(&["exec", "c", "/no/such/program"], 125)?;
    contains("a program that is not there", &missing, "/no/such/program")?;
    contains(
        "no terminal",
        &fails(&["exec", "-it", "c", "sh"], 125)?,
        "-t needs a terminal",
    )?;

    // Megabytes through standard input and back.
    let bytes: Vec<u8> = (0..3_000_000u32)
        .map(|n| n.to_le_bytes()[usize::try_from(n % 3).unwrap_or(0)])
        .collect();
    let mut child = command(&["exec", "-i", "c", "cat"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let done = child.wait_with_output()?;
    ensure!(
        writer.join().is_ok_and(|sent| sent.is_ok()),
        "the input was not taken"
    );
    ensure!(
        done.stdout == bytes,
        "{} bytes came back of {}",
        done.stdout.len(),
        bytes.len()
    );
    pod.remove()
}

fn commands_on_a_terminal(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("terminal")?;
    sleeper(&pod, "c")?;
    let mut terminal = Terminal::open(80, 24)?;
    let before = terminal.modes()?;
    // A signal interrupts the shell's read. Control-C is the container's to handle.
    let script = "trap 'echo caught' INT; echo up; while :; do read l || continue; \
        case $l in size) stty size;; q) exit 7;; *) echo got $l;; esac; done";
    let mut child = terminal.run(&["exec", "-it", "c", "sh", "-c", script])?;
    terminal.until("up")?;
    ensure!(terminal.modes()? != before, "the terminal is not raw");
    terminal.asks("size\r", "24 80")?;
    terminal.resize(123, 45)?;
    terminal.asks("size\r", "45 123")?;
    terminal.asks("a\r", "got a")?;
    terminal.asks("\x03", "caught")?;
    terminal.write("q\r")?;
    equal("code", child.wait()?.code(), Some(7))?;
    equal("modes", terminal.modes()?, before.clone())?;

    // A signal that ends the tool leaves the terminal as it was, too.
    let mut child = terminal.run(&["exec", "-it", "c", "sleep", "1004"])?;
    eventually("the terminal is raw", || Ok(terminal.modes()? != before))?;
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
    child.wait()?;
    eventually("the terminal is as it was", || Ok(terminal.modes()? == before))?;
    pod.remove()
}

fn attached_and_left(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("attached")?;
    let mut config = cri::shell("c", "while read l; do echo got $l; [ $l = q ] && exit 0; done");
    (config.tty, config.stdin) = (true, true);
    let id = pod.started(&config)?;
    let mut terminal = Terminal::open(80, 24)?;
    let mut child = terminal.run(&["attach", "-it", "c"])?;
    terminal.asks("a\r", "got a")?;
    terminal.write("\x10\x11")?;
    equal("code of leaving", child.wait()?.code(), Some(0))?;
    let state = env.cri()?.container(&id)?.state();
    equal("the container", state, pb::ContainerState::ContainerRunning)?;
    let mut child = terminal.run(&["attach", "-it", "c"])?;
    terminal.asks("b\r", "got b")?;
    terminal.write("q\r")?;
    equal("code", child.wait()?.code(), Some(0))?;
    env.cri()?.wait_exit(&id)?;
    pod.remove()
}

/// A pseudo-terminal with the tool on its other side.
struct Terminal {
    master: File,
    slave: File,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> Result<Self> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pair = openpty(Some(&size), None)?;
        let (master, slave) = (File::from(pair.master), File::from(pair.slave));
        let (sender, output) = channel();
        let mut from = master.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            master,
            slave,
            output,
            seen: String::new(),
        })
    }

    /// Runs the tool in a session that has this terminal.
    fn run(&self, args: &[&str]) -> Result<Child> {
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(podd::binary()?)
            .args(args)
            .stdin(self.slave.try_clone()?)
            .stdout(self.slave.try_clone()?)
            .stderr(self.slave.try_clone()?)
            .spawn()?;
        Ok(child)
    }

    fn stty(&self, args: &[&str]) -> Result<String> {
        let done = Command::new("stty")
            .args(args)
            .stdin(self.slave.try_clone()?)
            .output()?;
        ensure!(
            done.status.success(),
            "stty: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(String::from_utf8(done.stdout)?)
    }

    fn modes(&self) -> Result<String> {
        self.stty(&["-g"])
    }

    fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        self.stty(&["cols", &columns.to_string(), "rows", &rows.to_string()])
            .map(drop)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        Ok(self.master.write_all(text.as_bytes())?)
    }

    /// Waits for a text, and forgets what came up to its end.
    fn until(&mut self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("{text:?} does not come, but {:?}", self.seen),
            }
        }
    }

    /// Writes again and again until the answer comes: sizes and input are streams of their own.
    fn asks(&mut self, question: &str, answer: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.write(question)?;
            let wait = Instant::now() + Duration::from_millis(500);
            while let Ok(bytes) = self
                .output
                .recv_timeout(wait.saturating_duration_since(Instant::now()))
            {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
                if self.seen.contains(answer) {
                    self.seen.clear();
                    return Ok(());
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{answer:?} does not come, but {:?}",
                self.seen
            );
        }
    }
}
