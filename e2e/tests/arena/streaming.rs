//! Exec, Attach and PortForward through real sessions: codes, streams, terminals, ends, several clients, tokens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use podd_client::Message;
use podd_e2e::cri::{self, Cri};
use podd_e2e::session::{DIALECTS, Dialect, Forward, Remote, Session, Wanted, exit_code};
use podd_proto::v1 as pb;
use tonic::Code;

use crate::case::{Env, Pod, cases, contains, equal, eventually, log_lines, refused};
use crate::lifecycle::{running, sleeper};

cases!("streaming":
    streams_and_codes, input_ends_and_output_goes_on, output_is_whole_at_the_end,
    terminal_has_the_clients_size, a_client_that_goes_ends_its_command, requests_that_cannot_be, tokens_are_used_once,
    tokens_are_counted, two_clients_attach, attach_misses_nothing, input_of_a_container, input_for_one_client,
    terminal_of_a_container, forwarded_ports, forwarding_ends_with_the_pod, ports_over_channels, leaving_a_terminal, restart_ends_sessions_only);

pub(crate) const INPUT: Wanted = Wanted {
    stdin: true,
    tty: false,
};
const TERMINAL: Wanted = Wanted {
    stdin: true,
    tty: true,
};
const OUTPUT: Wanted = Wanted {
    stdin: false,
    tty: false,
};

pub(crate) fn exec(cri: &Cri, dialect: Dialect, id: &str, script: &str, wanted: Wanted) -> Result<Remote> {
    Remote::open(&cri.exec_url(id, &["sh", "-c", script], wanted)?, dialect, wanted)
}

fn attach(cri: &Cri, dialect: Dialect, id: &str, wanted: Wanted) -> Result<Remote> {
    Remote::open(&cri.attach_url(id, wanted)?, dialect, wanted)
}

fn streams_and_codes(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "session")?;
    for dialect in DIALECTS {
        let mut done = exec(&cri, dialect, &id, "echo out; echo err >&2; exit 7", OUTPUT)?;
        equal("code", exit_code(&done.status()?)?, 7)?;
        equal("stdout", done.stdout.as_slice(), b"out\n")?;
        equal("stderr", done.stderr.as_slice(), b"err\n")?;
        let mut done = exec(&cri, dialect, &id, "true", OUTPUT)?;
        equal("code", exit_code(&done.status()?)?, 0)?;
        let mut killed = exec(&cri, dialect, &id, "kill -9 $$", OUTPUT)?;
        equal("code", exit_code(&killed.status()?)?, 137)?;
        let url = cri.exec_url(&id, &["/no/such/command"], OUTPUT)?;
        let status = Remote::open(&url, dialect, OUTPUT)?.status()?;
        contains("status", &status.to_string(), "/no/such/command")?;
        equal("reason", status["reason"].as_str(), Some("InternalError"))?;
    }
    pod.remove()
}

fn input_ends_and_output_goes_on(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "half")?;
    for dialect in DIALECTS {
        let mut half = exec(&cri, dialect, &id, "cat; sleep 0.3; echo end; exit 3", INPUT)?;
        half.write(b"one\n")?;
        half.until("one")?;
        half.write(b"two\n")?;
        half.end_input()?;
        equal("code", exit_code(&half.status()?)?, 3)?;
        equal("stdout", half.stdout.as_slice(), b"one\ntwo\nend\n")?;
        // A command that reads nothing is not in the way of its own end.
        let mut deaf = exec(&cri, dialect, &id, "sleep 0.3; echo deaf", INPUT)?;
        let writing = deaf.write_aside(vec![b'x'; 8 << 20]);
        equal("code", exit_code(&deaf.status()?)?, 0)?;
        drop(deaf);
        // The server may close before all was written, which is no failure.
        let _ = writing.join();
    }
    pod.remove()
}

fn output_is_whole_at_the_end(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "whole")?;
    for dialect in DIALECTS {
        for _ in 0..10 {
            let mut burst = exec(&cri, dialect, &id, "head -c 300000 /dev/zero", OUTPUT)?;
            // The command has long ended when the client begins to read.
            std::thread::sleep(Duration::from_millis(20));
            equal("code", exit_code(&burst.status()?)?, 0)?;
            equal("bytes", burst.stdout.len(), 300_000)?;
        }
        // What it leaves running holds the output open, but not the session.
        let begun = Instant::now();
        let mut parent = exec(&cri, dialect, &id, "sleep 30 & echo started", OUTPUT)?;
        equal("code", exit_code(&parent.status()?)?, 0)?;
        equal("stdout", parent.stdout.as_slice(), b"started\n")?;
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "it took {:?}",
            begun.elapsed()
        );
    }
    cri.stop(&id, 0)?;
    pod.remove()
}

fn terminal_has_the_clients_size(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "terminal")?;
    for dialect in DIALECTS {
        // A signal interrupts the shell's read.
        let script = "trap 'stty size' WINCH; tty; echo $TERM; \
            while :; do read l || continue; [ $l = q ] && exit 4; echo got $l; done";
        let mut shell = exec(&cri, dialect, &id, script, TERMINAL)?;
        shell.until("/dev/pts/")?;
        shell.until("xterm")?;
        shell.resize(123, 45)?;
        shell.write(b"a\n")?;
        shell.until("got a")?;
        shell.until("45 123")?;
        shell.resize(80, 24)?;
        shell.write(b"b\n")?;
        shell.until("24 80")?;
        shell.write(b"q\n")?;
        equal("code", exit_code(&shell.status()?)?, 4)?;
        // From its first instruction on, though the size is on a stream of its own and comes late. A machine that
        // stands still may make this client later than podd waits.
        eventually("the size is there from the start", || {
            let mut stty = exec(&cri, dialect, &id, "stty size", TERMINAL)?;
            std::thread::sleep(Duration::from_millis(50));
            stty.resize(77, 33)?;
            stty.status()?;
            Ok(stty.stdout == b"33 77\r\n")
        })?;
    }
    pod.remove()
}

fn a_client_that_goes_ends_its_command(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "gone")?;
    for dialect in DIALECTS {
        let mut pipe = exec(&cri, dialect, &id, "echo on; cat; sleep 0.1; : 7771", INPUT)?;
        let mut terminal = exec(&cri, dialect, &id, "echo on; sleep 7772", TERMINAL)?;
        pipe.until("on")?;
        terminal.until("on")?;
        // Not the numbers alone: ids of pods, which are in podinit's command line, hold any digits.
        let running = || [": 7771", "sleep 7772"].map(running);
        eventually("the commands run", || {
            Ok(running().iter().all(|count| *count > 0))
        })?;
        drop((pipe, terminal));
        eventually("the commands have ended", || Ok(running() == [0, 0]))?;
    }
    equal("the container", cri.sh(&id, "echo fine")?.as_str(), "fine\n")?;
    pod.remove()
}

fn requests_that_cannot_be(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "refused")?;
    let none = pb::AttachRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    refused("no stream", Code::InvalidArgument, cri.attach(none))?;
    let both = pb::AttachRequest {
        container_id: id.clone(),
        tty: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    refused("stderr of a terminal", Code::InvalidArgument, cri.attach(both))?;
    refused(
        "no command",
        Code::InvalidArgument,
        cri.exec_url(&id, &[], OUTPUT),
    )?;
    refused(
        "no container",
        Code::NotFound,
        cri.exec_url(&"0".repeat(64), &["true"], OUTPUT),
    )?;
    refused("no pod", Code::NotFound, cri.forward_url(&"0".repeat(64)))?;
    let port = pb::PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![0],
    };
    refused("port 0", Code::InvalidArgument, cri.port_forward(port))?;
    cri.stop(&id, 0)?;
    refused(
        "stopped",
        Code::FailedPrecondition,
        cri.exec_url(&id, &["true"], OUTPUT),
    )?;
    refused("stopped", Code::FailedPrecondition, cri.attach_url(&id, OUTPUT))?;
    pod.remove()
}

/// Uses a token up without beginning a session.
fn waste(url: &str) -> Result<String> {
    let wrong = url.replacen("/exec/", "/attach/", 1);
    let error = Session::open(&wrong, Dialect::Spdy, "v4.channel.k8s.io").err();
    Ok(error.context("a URL of another kind works")?.to_string())
}

fn tokens_are_used_once(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "token")?;
    let url = cri.exec_url(&id, &["true"], OUTPUT)?;
    equal(
        "code",
        exit_code(&Remote::open(&url, Dialect::Spdy, OUTPUT)?.status()?)?,
        0,
    )?;
    for url in [url, cri.exec_url(&id, &["true"], OUTPUT)? + "x"] {
        for dialect in DIALECTS {
            let error = Session::open(&url, dialect, "v4.channel.k8s.io").err();
            equal(
                "answer",
                error.map(|e| e.to_string()),
                Some("status 404".to_owned()),
            )?;
        }
    }
    let url = cri.exec_url(&id, &["true"], OUTPUT)?;
    equal("another kind", waste(&url)?.as_str(), "status 404")?;
    let url = cri.exec_url(&id, &["true"], OUTPUT)?;
    let error = Session::open(&url, Dialect::Spdy, "v9.channel.k8s.io").err();
    equal(
        "answer",
        error.map(|e| e.to_string()),
        Some("status 403".to_owned()),
    )?;
    pod.remove()
}

fn tokens_are_counted(env: &mut Env<'_>) -> Result<()> {
    let cri = env.cri()?;
    let (pod, id) = sleeper(env, "tokens")?;
    let mut urls = Vec::new();
    let answer = loop {
        match cri.exec_url(&id, &["true"], OUTPUT) {
            Ok(url) => urls.push(url),
            Err(status) => break status,
        }
        ensure!(urls.len() <= 1000, "{} tokens wait", urls.len());
    };
    equal("code", answer.code(), Code::ResourceExhausted)?;
    // Tests before this one may have left some.
    ensure!(urls.len() > 900, "only {} tokens wait", urls.len());
    for url in &urls {
        equal("answer", waste(url)?.as_str(), "status 404")?;
    }
    cri.exec_url(&id, &["true"], OUTPUT).map(|url| waste(&url))??;
    pod.remove()
}

/// A container that answers each line of its input, and its request.
fn answering(pod: &Pod, stdin_once: bool) -> Result<(String, pb::ContainerConfig)> {
    let mut config = cri::shell(
        "c",
        "while read l; do echo got $l; echo e$l >&2; done; echo end; exit 5",
    );
    config.stdin = true;
    config.stdin_once = stdin_once;
    Ok((pod.started(&config)?, config))
}

fn two_clients_attach(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("two")?);
    let (id, config) = answering(&pod, false)?;
    let mut clients = Vec::new();
    for dialect in DIALECTS {
        clients.push(attach(&cri, dialect, &id, INPUT)?);
    }
    // An answer shows that a client has joined.
    for (n, client) in clients.iter_mut().enumerate() {
        client.write(format!("join{n}\n").as_bytes())?;
        client.until(&format!("got join{n}"))?;
    }
    for n in 0..100 {
        clients[n % 2].write(format!("{n}\n").as_bytes())?;
    }
    for client in &mut clients {
        // The two inputs are two streams: the container may hear the end of either first.
        client.until("got 98\n")?;
        client.until("got 99\n")?;
        let text = String::from_utf8_lossy(&client.stdout).into_owned();
        let numbers = text
            .lines()
            .filter_map(|line| line.strip_prefix("got ")?.parse::<u32>().ok());
        let mut numbers: Vec<u32> = numbers.collect();
        numbers.sort_unstable();
        equal("lines", numbers, (0..100).collect())?;
    }
    drop(clients);
    // The container does not notice, and takes the next client.
    let mut next = attach(&cri, Dialect::Spdy, &id, INPUT)?;
    next.write(b"next\n")?;
    next.until("got next")?;
    cri.stop(&id, 0)?;
    equal("status", next.status()?["status"].as_str(), Some("Success"))?;
    let lines = log_lines(&pod.config, &config)?;
    let logged = lines.iter().filter(|line| line.stream == "stdout").count();
    equal("lines in the log", logged, 103)?;
    pod.remove()
}

fn attach_misses_nothing(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("seamless")?);
    let config = cri::shell(
        "c",
        "i=0; lines() { while [ $i -lt $1 ]; do i=$((i+1)); echo line $i; done; }; \
         lines 20000; until [ -e /go ]; do sleep 0.05; done; lines 60000",
    );
    let id = pod.started(&config)?;
    let mut clients = Vec::new();
    for dialect in DIALECTS.iter().cycle().take(6) {
        clients.push(attach(&cri, *dialect, &id, OUTPUT)?);
    }
    cri.sh(&id, "touch /go")?;
    // All but the reader must not wait for those that are read later.
    for mut client in clients {
        equal("status", client.status()?["status"].as_str(), Some("Success"))?;
        let log: String = log_lines(&pod.config, &config)?
            .iter()
            .map(|line| line.text())
            .collect();
        let seen = String::from_utf8_lossy(&client.stdout).into_owned();
        let joined = log.find(&seen[..seen.len().min(200)]);
        let same = joined.map(|at| {
            let pairs = log.as_bytes()[at..].iter().zip(seen.as_bytes());
            pairs.take_while(|(a, b)| a == b).count()
        });
        ensure!(
            !seen.is_empty() && log.ends_with(&seen),
            "{} bytes are no end of the log of {}: joined at {joined:?}, the same for {same:?}, then {:?}",
            seen.len(),
            log.len(),
            same.map(|same| seen[same..].chars().take(60).collect::<String>())
        );
    }
    pod.remove()
}

fn input_of_a_container(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("input")?);
    let (id, _) = answering(&pod, false)?;
    for dialect in DIALECTS {
        let mut client = attach(&cri, dialect, &id, INPUT)?;
        client.write(b"a\n")?;
        client.until("got a")?;
        // Without stdin_once the input outlives each of its clients.
        client.end_input()?;
    }
    let mut client = attach(&cri, Dialect::Spdy, &id, INPUT)?;
    client.write(b"b\n")?;
    client.until("got b")?;
    equal(
        "the container",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    pod.remove()
}

fn input_for_one_client(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("once")?);
    for dialect in DIALECTS {
        let (id, _) = answering(&pod, true)?;
        let mut client = attach(&cri, dialect, &id, INPUT)?;
        client.write(b"a\n")?;
        client.until("got a")?;
        client.end_input()?;
        equal("status", client.status()?["status"].as_str(), Some("Success"))?;
        equal("stdout", client.stdout.as_slice(), b"got a\nend\n")?;
        equal("stderr", client.stderr.as_slice(), b"ea\n")?;
        equal("code", cri.wait_exit(&id)?.exit_code, 5)?;
        cri.remove_ctr(&id)?;
    }
    let (id, _) = answering(&pod, true)?;
    let mut client = attach(&cri, Dialect::Spdy, &id, INPUT)?;
    client.write(b"a\n")?;
    client.until("got a")?;
    drop(client);
    equal("code after the client went", cri.wait_exit(&id)?.exit_code, 5)?;
    pod.remove()
}

fn terminal_of_a_container(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("tty")?);
    let mut config = cri::shell("c", "stty -echo; while read l; do echo $l $(stty size); done");
    (config.tty, config.stdin) = (true, true);
    let id = pod.started(&config)?;
    for (n, dialect) in DIALECTS.into_iter().enumerate() {
        let mut client = attach(&cri, dialect, &id, TERMINAL)?;
        client.resize(100 + u16::try_from(n)?, 30)?;
        // Sizes and input are different streams: wait for the former.
        let told = format!("30 10{n}");
        eventually("the terminal has its size", || {
            client.write(b"size\n")?;
            client.step()?;
            Ok(String::from_utf8_lossy(&client.stdout).contains(&told))
        })?;
    }
    equal(
        "the container",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    pod.remove()
}

const PAGE: &str = "mkdir -p /srv; echo hello >/srv/index.html; httpd -p 127.0.0.1:8080 -h /srv; \
    exec httpd -f -p '[::1]:8086' -h /srv";

/// Asks a forwarded port for a page.
pub(crate) fn page(forward: &mut Forward, port: u16) -> Result<(String, String)> {
    let pair = forward.connect(port)?;
    forward.write(pair, b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let (data, error) = forward.finish(pair)?;
    Ok((String::from_utf8(data)?, error))
}

pub(crate) fn serving(cri: &Cri, pod: &Pod) -> Result<()> {
    let id = pod.started(&cri::shell("web", PAGE))?;
    eventually("the servers listen", || {
        let asked = "wget -q -O- http://127.0.0.1:8080 && wget -q -O- 'http://[::1]:8086'";
        Ok(cri.exec(&id, &["sh", "-c", asked], 5)?.exit_code == 0)
    })
}

fn forwarded_ports(env: &mut Env<'_>) -> Result<()> {
    let (cri, own) = (env.cri()?, env.pod("forward")?);
    let mut config = cri::pod_config("host-forward");
    let linux = config.linux.get_or_insert_default();
    let options = linux
        .security_context
        .get_or_insert_default()
        .namespace_options
        .get_or_insert_default();
    options.network = pb::NamespaceMode::Node.into();
    config.hostname = String::new();
    let host = Pod::run(&cri, config)?;
    for pod in [own, host] {
        serving(&cri, &pod)?;
        let mut forward = Forward::open(&cri.forward_url(&pod.id)?)?;
        for port in [8080, 8086] {
            let (text, error) = page(&mut forward, port)?;
            contains("answer", &text, "\r\n\r\nhello\n")?;
            equal("error", error.as_str(), "")?;
        }
        let (_, error) = page(&mut forward, 9)?;
        contains("error", &error, "port 9")?;
        contains("error", &error, "refused")?;
        let (text, _) = page(&mut forward, 8080)?;
        contains("answer after a refused one", &text, "hello")?;
        drop(forward);
        pod.remove()?;
    }
    Ok(())
}

fn forwarding_ends_with_the_pod(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("ending")?);
    let server = cri::shell("c", "exec nc -lk -p 8080 -e cat");
    pod.started(&server)?;
    let mut forward = Forward::open(&cri.forward_url(&pod.id)?)?;
    let pair = forward.connect(8080)?;
    forward.write(pair, b"hello")?;
    pod.remove()?;
    // Whatever is told, the session is over; the census finds a namespace that is still held.
    while forward.finish(pair).is_ok() {}
    Ok(())
}

/// Clients in Python, JavaScript and Java name the ports in the request, and have two channels for each.
fn ports_over_channels(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("channels")?);
    serving(&cri, &pod)?;
    let ports = [8080_u16, 9, 8086];
    let url = || -> Result<String> {
        let request = pb::PortForwardRequest {
            pod_sandbox_id: pod.id.clone(),
            port: ports.map(i32::from).to_vec(),
        };
        Ok(cri.port_forward(request)?.url)
    };
    let mut session = podd_client::Session::open(
        &url()?,
        Dialect::WebSocket,
        "v4.channel.k8s.io",
        Some(Duration::from_secs(60)),
    )?;
    let begun = Instant::now();
    for channel in [0, 4] {
        session.pen.data(channel, b"GET /index.html HTTP/1.0\r\n\r\n")?;
    }
    let mut told = vec![Vec::new(); ports.len() * 2];
    let end = loop {
        match session.receive()? {
            Message::Data(channel, bytes) => told[usize::try_from(channel)?].extend_from_slice(&bytes),
            end => break end,
        }
    };
    // All three connections are over, and so is the session.
    equal("end", end, Message::Closed(Some(1000)))?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(10), "the session took {took:?} to end");
    for (place, port) in ports.into_iter().enumerate() {
        let text = |channel: usize| -> Result<String> {
            let (number, rest) = told[channel].split_at_checked(2).context("no port")?;
            equal("port", number, port.to_le_bytes().as_slice())?;
            Ok(String::from_utf8(rest.to_vec())?)
        };
        let (data, error) = (text(2 * place)?, text(2 * place + 1)?);
        if port == 9 {
            contains("error", &error, "refused")?;
            equal("data", data.as_str(), "")?;
        } else {
            contains("answer", &data, "\r\n\r\nhello\n")?;
            equal("error", error.as_str(), "")?;
        }
    }
    // A client that goes, and one that has named no port.
    let gone = Session::open(&url()?, Dialect::WebSocket, "v4.channel.k8s.io")?;
    drop(gone);
    let none = Session::open(
        &cri.forward_url(&pod.id)?,
        Dialect::WebSocket,
        "v4.channel.k8s.io",
    );
    equal(
        "without ports",
        none.err().map(|e| e.to_string()),
        Some("status 403".to_owned()),
    )?;
    pod.remove()
}

/// crictl's keys to detach end the input of the terminal.
fn leaving_a_terminal(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("leaving")?);
    let mut config = cri::shell("c", "while read l; do echo got $l; done");
    (config.tty, config.stdin) = (true, true);
    let id = pod.started(&config)?;
    for dialect in DIALECTS {
        let mut client = attach(&cri, dialect, &id, TERMINAL)?;
        client.write(b"a\n")?;
        client.until("got a")?;
        client.end_input()?;
        equal("status", client.status()?["status"].as_str(), Some("Success"))?;
        // Clients wait for the end of the output before they look at the status.
        equal(
            "end of the output",
            client.output_has_ended(),
            dialect == Dialect::Spdy,
        )?;
        // An exec in a terminal goes on.
        let mut shell = exec(&cri, dialect, &id, "sleep 0.3; echo done; exit 3", TERMINAL)?;
        shell.end_input()?;
        equal("code", exit_code(&shell.status()?)?, 3)?;
        contains("output", &String::from_utf8_lossy(&shell.stdout), "done")?;
    }
    equal(
        "the container",
        cri.container(&id)?.state(),
        pb::ContainerState::ContainerRunning,
    )?;
    pod.remove()
}

fn restart_ends_sessions_only(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("restart")?);
    let (id, _) = answering(&pod, false)?;
    let mut shell = exec(&cri, Dialect::Spdy, &id, "echo on; sleep 7773", TERMINAL)?;
    let mut attached = attach(&cri, Dialect::WebSocket, &id, INPUT)?;
    shell.until("on")?;
    attached.write(b"a\n")?;
    attached.until("got a")?;
    env.podd()?.end(Signal::SIGKILL)?;
    ensure!(
        shell.status().is_err() && attached.status().is_err(),
        "a session outlives podd"
    );
    eventually("the command has hung up", || Ok(running("sleep 7773") == 0))?;
    env.podd()?.start_again()?;
    let mut attached = attach(&cri, Dialect::WebSocket, &id, INPUT)?;
    attached.write(b"b\n")?;
    attached.until("got b")?;
    drop(attached);
    pod.remove()
}
