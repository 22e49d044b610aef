//! Runs the command: its output to one port, its exit code to another.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::super::job::{JOB_KEPT, Job};
use crate::PATIENCE;
use crate::arena;

/// How long output may still come after the command, from what it left behind.
const REST: Duration = Duration::from_secs(5);

/// Runs the kept job to its end and tells the host.
pub(super) fn run() -> Result<()> {
    let job = Job::decode(&fs::read(JOB_KEPT).context("read the job")?)?;
    let mut status = port("podd.status")?;
    let code = if job.terminal {
        execute(on_terminal(&job)?)?
    } else {
        with_output(&job)?
    };
    writeln!(status, "{code}").context("tell the exit code")
}

fn with_output(job: &Job) -> Result<i32> {
    let mut out = port("podd.out")?;
    // A port can be opened once only, so the command cannot have it as its /dev/stderr.
    let (mut reader, writer) = io::pipe()?;
    let (over, ended) = mpsc::channel();
    std::thread::spawn(move || {
        pump(&mut reader, &mut out);
        let _ = over.send(());
    });
    let mut command = command(job)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let code = execute(command)?;
    let _ = ended.recv_timeout(REST);
    Ok(code)
}

/// Copies until one side ends. Not `io::copy`, which splices: what comes so is lost in the driver of the ports.
fn pump(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => return,
            Ok(_) => {}
        }
    }
}

/// The command as the leader of a session that has the console as its terminal.
fn on_terminal(job: &Job) -> Result<Command> {
    let console = OpenOptions::new().read(true).write(true).open("/dev/hvc0")?;
    let mut with = job.clone();
    with.command
        .splice(0..0, ["setsid", "-c", "-w"].map(str::to_owned));
    let mut command = command(&with)?;
    command
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console);
    Ok(command)
}

fn command(job: &Job) -> Result<Command> {
    let Some((program, args)) = job.command.split_first() else {
        bail!("no command given")
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .envs(job.env.iter().map(|(k, v)| (k, v)))
        .current_dir(&job.directory);
    Ok(command)
}

/// Runs a command to its end, reaping for the whole system where this is process 1.
fn execute(mut command: Command) -> Result<i32> {
    let name = command.get_program().to_owned();
    let child = command
        .spawn()
        .with_context(|| format!("start {}", name.display()))?;
    // The pipe's end that the command holds is in `command` too.
    drop(command);
    arena::reap_until(Pid::from_raw(child.id().cast_signed()))
}

/// Opens the virtio port of this name.
fn port(name: &str) -> Result<File> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(path) = find_port(name) {
            let opened = OpenOptions::new().write(true).open(&path);
            return opened.with_context(|| format!("open {}", path.display()));
        }
        if Instant::now() > deadline {
            bail!("no port {name}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn find_port(name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?.flatten();
    ports
        .filter(|port| fs::read_to_string(port.path().join("name")).is_ok_and(|n| n.trim() == name))
        .map(|port| Path::new("/dev").join(port.file_name()))
        .find(|path| path.exists())
}
