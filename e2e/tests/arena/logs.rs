//! Container logs in the CRI's format.

use std::fs;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;

use crate::case::{Env, LogLine, cases, equal, eventually, log_lines, parse_log};

cases!("logs":
    streams_and_order, long_lines_are_split, line_without_end, binary_content, reopen, rotations_under_load, reopen_of_exited_is_refused,
    no_log_path, log_goes_on_without_the_directory_entry, mode_is_private, terminal);

fn streams_and_order(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("streams")?);
    let config = cri::shell(
        "c",
        "echo one; sleep 0.05; echo two >&2; sleep 0.05; echo; echo three",
    );
    cri.wait_exit(&pod.started(&config)?)?;
    let lines = log_lines(&pod.config, &config)?;
    let short: Vec<_> = lines
        .iter()
        .map(|l| (l.stream.as_str(), l.content.as_str(), l.partial))
        .collect();
    let expected = [
        ("stdout", "one", false),
        ("stderr", "two", false),
        ("stdout", "", false),
        ("stdout", "three", false),
    ];
    equal("lines", short.as_slice(), expected.as_slice())?;
    ensure!(
        lines.is_sorted_by_key(|l| l.time.clone()),
        "times go back: {lines:?}"
    );
    pod.remove()
}

fn long_lines_are_split(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("long")?);
    let config = cri::shell("c", "head -c 40000 /dev/zero | tr '\\0' x; echo; echo end");
    cri.wait_exit(&pod.started(&config)?)?;
    let lines = log_lines(&pod.config, &config)?;
    ensure!(
        lines.iter().all(|l| l.content.len() <= 16 << 10),
        "an entry is longer than 16 KiB"
    );
    ensure!(lines.iter().any(|l| l.partial), "no entry is marked partial");
    let whole: String = lines.iter().map(LogLine::text).collect();
    equal("content", whole, format!("{}\nend\n", "x".repeat(40_000)))?;
    pod.remove()
}

fn line_without_end(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("noend")?);
    let config = cri::shell("c", "printf tail");
    cri.wait_exit(&pod.started(&config)?)?;
    let lines = log_lines(&pod.config, &config)?;
    // As containerd writes it. The kubelet adds a newline to an F, and the termination message would have it.
    let text: String = lines.iter().map(LogLine::text).collect();
    equal("content", text.as_str(), "tail")?;
    pod.remove()
}

fn binary_content(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("binary")?);
    let config = cri::shell("c", "printf '\\377\\000\\r\\n'");
    cri.wait_exit(&pod.started(&config)?)?;
    let raw = fs::read(cri::log_path(&pod.config, &config))?;
    ensure!(
        raw.ends_with(b" stdout F \xff\0\r\n"),
        "{:?}",
        String::from_utf8_lossy(&raw)
    );
    pod.remove()
}

fn reopen(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("rotate")?);
    let config = cri::shell(
        "c",
        "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; sleep 0.002; done",
    );
    let id = pod.started(&config)?;
    let (path, old) = (
        cri::log_path(&pod.config, &config),
        cri::log_path(&pod.config, &config).with_extension("old"),
    );
    eventually("some lines", || {
        Ok(fs::metadata(&path).is_ok_and(|m| m.len() > 1000))
    })?;
    // What the kubelet does to rotate a log.
    fs::rename(&path, &old)?;
    cri.reopen_container_log(pb::ReopenContainerLogRequest {
        container_id: id.clone(),
    })?;
    eventually("lines in the new file", || {
        Ok(fs::metadata(&path).is_ok_and(|m| m.len() > 100))
    })?;
    cri.wait_exit(&id)?;
    let all = fs::read_to_string(&old)? + &fs::read_to_string(&path)?;
    let found: Vec<_> = parse_log(&all)?.into_iter().map(|l| l.content).collect();
    let expected: Vec<_> = (1..=2000).map(|i| format!("line {i}")).collect();
    ensure!(
        found == expected,
        "{} of 2000 lines, in order: {}",
        found.len(),
        found.is_sorted()
    );
    pod.remove()
}

/// A hundred rotations of a log that is being written as fast as its container can: every line is there, once, in
/// order and whole.
fn rotations_under_load(env: &mut Env<'_>) -> Result<()> {
    const ROTATIONS: usize = 100;
    let (cri, pod) = (env.cri()?, env.pod("load")?);
    let config = cri::shell("c", "exec seq 1 1000000000");
    let id = pod.started(&config)?;
    let path = cri::log_path(&pod.config, &config);
    let part = |at: usize| path.with_extension(at.to_string());
    for at in 0..ROTATIONS {
        eventually("output", || Ok(fs::metadata(&path).is_ok_and(|m| m.len() > 0)))?;
        fs::rename(&path, part(at))?;
        cri.reopen_container_log(pb::ReopenContainerLogRequest {
            container_id: id.clone(),
        })?;
    }
    cri.stop(&id, 0)?;
    let mut whole = Vec::new();
    for at in 0..ROTATIONS {
        whole.append(&mut fs::read(part(at))?);
    }
    whole.append(&mut fs::read(&path)?);
    let lines = parse_log(std::str::from_utf8(&whole)?)?;
    ensure!(lines.len() > ROTATIONS, "{} lines in all", lines.len());
    // The process was killed: its last write may have ended inside a line.
    for (number, line) in lines[..lines.len() - 1].iter().enumerate() {
        ensure!(
            !line.partial && line.content == (number + 1).to_string(),
            "line {} of {} is {:?}",
            number + 1,
            lines.len(),
            line.content
        );
    }
    pod.remove()
}

fn reopen_of_exited_is_refused(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("exited")?);
    let id = pod.started(&cri::shell("c", "true"))?;
    cri.wait_exit(&id)?;
    let answer = cri.reopen_container_log(pb::ReopenContainerLogRequest { container_id: id });
    crate::case::refused("reopen after the end", tonic::Code::FailedPrecondition, answer)?;
    pod.remove()
}

fn no_log_path(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("nolog")?);
    let mut config = cri::shell("c", "head -c 1000000 /dev/zero; exit 3");
    config.log_path = String::new();
    let status = cri.wait_exit(&pod.started(&config)?)?;
    equal("exit code", status.exit_code, 3)?;
    pod.remove()
}

fn log_goes_on_without_the_directory_entry(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("deleted")?);
    let config = cri::shell(
        "c",
        "echo first; sleep 0.2; head -c 300000 /dev/zero | tr '\\0' y; exit 5",
    );
    let id = pod.started(&config)?;
    let path = cri::log_path(&pod.config, &config);
    eventually("the log", || Ok(path.exists()))?;
    fs::remove_file(&path)?;
    equal("exit code", cri.wait_exit(&id)?.exit_code, 5)?;
    pod.remove()
}

fn mode_is_private(env: &mut Env<'_>) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let (cri, pod) = (env.cri()?, env.pod("mode")?);
    let config = cri::shell("c", "echo x");
    cri.wait_exit(&pod.started(&config)?)?;
    let mode = fs::metadata(cri::log_path(&pod.config, &config))?
        .permissions()
        .mode();
    ensure!(mode & 0o027 == 0, "the log has mode {mode:o}");
    pod.remove()
}

fn terminal(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("tty")?);
    let mut config = cri::shell(
        "c",
        "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal; echo err >&2",
    );
    config.tty = true;
    let id = pod.started(&config)?;
    let status = cri.wait_exit(&id)?;
    equal("exit code", status.exit_code, 0)?;
    let lines = log_lines(&pod.config, &config)?;
    let text: String = lines.iter().map(LogLine::text).collect();
    let device = text.lines().next().context("no output")?.trim();
    ensure!(
        device.starts_with("/dev/pts/") || device == "/dev/console",
        "terminal {device:?}"
    );
    crate::case::contains("output", &text, "terminal")?;
    ensure!(
        lines.iter().all(|l| l.stream == "stdout"),
        "a terminal has one stream"
    );
    pod.remove()
}
