//! `make run`: podd in a private arena with its default configuration runs a real pod, and shows it step by step.

use std::ffi::OsString;
use std::fs;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podd_e2e::cri::{self, Cri};
use podd_e2e::{arena, fixture, podd};
use podd_proto::v1 as pb;

/// What the pod's container runs: a small web server that says what it does.
const SERVER: &str = "echo \"serving as user $(id -u) on $(hostname)\"; echo 'hello from a pod' >/tmp/index.html; \
    exec httpd -f -v -p 8080 -h /tmp";

fn main() -> ExitCode {
    arena::stage_hook();
    let done = if arena::inside() {
        show().map(|()| 0)
    } else {
        arena::enter(&std::env::args_os().skip(1).collect::<Vec<OsString>>(), true)
    };
    match done {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("demo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints headings and tables, in colour where a person reads along.
struct Screen {
    colour: bool,
}

impl Screen {
    fn step(&self, text: &str) {
        let (on, off) = if self.colour {
            ("\x1b[1;36m", "\x1b[0m")
        } else {
            ("", "")
        };
        println!("\n{on}▸ {text}{off}");
    }

    fn row(&self, name: &str, value: &str) {
        let (on, off) = if self.colour {
            ("\x1b[2m", "\x1b[0m")
        } else {
            ("", "")
        };
        println!("  {on}{name:<22}{off} {value}");
    }

    fn timed<T>(&self, name: &str, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = what().with_context(|| name.to_owned())?;
        self.row(name, &format!("{:8.2} ms", begun.elapsed().as_secs_f64() * 1e3));
        Ok(done)
    }
}

fn show() -> Result<()> {
    let screen = Screen {
        colour: std::io::stdout().is_terminal(),
    };
    println!(
        "podd in a private arena: own mounts, network, processes and cgroups; the host notices nothing."
    );
    screen.step("A registry with a busybox image, and podd");
    let mut fixture = fixture::Fixture::start(true)?;
    let daemon = fixture.podd()?;
    let (cri, pid) = (daemon.cri().clone(), daemon.pid());
    let said = cri.version(pb::VersionRequest::default())?;
    screen.row(
        "runtime",
        &format!(
            "{} {}, CRI {}",
            said.runtime_name, said.runtime_version, said.runtime_api_version
        ),
    );
    screen.row("socket", podd::SOCKET);
    screen.row("process", &format!("{pid}, {} KiB resident", resident(pid)));
    for condition in cri
        .status(pb::StatusRequest::default())?
        .status
        .unwrap_or_default()
        .conditions
    {
        screen.row(&condition.r#type, if condition.status { "yes" } else { "no" });
    }
    let image = cri.image(podd::IMAGE)?.context("the image is not present")?;
    screen.row("image", &format!("{} ({} KiB)", podd::IMAGE, image.size / 1024));

    let mut pod = cri::pod_config("hello");
    pod.metadata.get_or_insert_default().namespace = "default".to_owned();
    fs::create_dir_all(&pod.log_directory)?;
    let ctr = cri::shell("web", SERVER);

    screen.step("A pod, in three calls");
    let pod_id = screen.timed("RunPodSandbox", || Ok(cri.run_pod(&pod)?))?;
    let id = screen.timed("CreateContainer", || Ok(cri.create(&pod_id, &pod, &ctr)?))?;
    screen.timed("StartContainer", || Ok(cri.start(&id)?))?;
    tables(&screen, &cri)?;
    probe(&screen, &cri, &pod_id, &id)?;
    screen.step("Its log, in the format the kubelet reads");
    let log = fs::read_to_string(cri::log_path(&pod, &ctr))?;
    log.lines().for_each(|line| println!("  {line}"));
    resources(&screen, &cri, &id)?;

    screen.step("And away again");
    screen.timed("StopContainer", || Ok(cri.stop(&id, 0)?))?;
    screen.timed("RemoveContainer", || Ok(cri.remove_ctr(&id)?))?;
    screen.timed("Stop, RemovePodSandbox", || Ok(cri.remove_pod(&pod_id)?))?;
    println!("\n`make arena` opens a shell beside such a podd; `make test` runs every check.");
    Ok(())
}

/// What `crictl pods` and `crictl ps` would print.
fn tables(screen: &Screen, cri: &Cri) -> Result<()> {
    screen.step("What it is");
    println!(
        "  {:<13} {:<10} {:<9} {:<18} ADDRESSES",
        "POD", "NAME", "NAMESPACE", "STATE"
    );
    for pod in cri.list_pod_sandbox(pb::ListPodSandboxRequest::default())?.items {
        let network = cri.pod(&pod.id)?.network.unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|a| a.ip);
        let addresses: Vec<_> = std::iter::once(network.ip).chain(others).collect();
        let (state, meta) = (pod.state(), pod.metadata.unwrap_or_default());
        let state = state.as_str_name();
        println!(
            "  {:.13} {:<10} {:<9} {state:<18} {}",
            pod.id,
            meta.name,
            meta.namespace,
            addresses.join(" ")
        );
    }
    println!(
        "  {:<13} {:<10} {:<19} {:<8} IMAGE",
        "CONTAINER", "NAME", "STATE", "USER"
    );
    for ctr in cri
        .list_containers(pb::ListContainersRequest::default())?
        .containers
    {
        let user = cri
            .container(&ctr.id)?
            .user
            .and_then(|u| u.linux)
            .unwrap_or_default();
        let name = ctr.metadata.as_ref().map_or("", |m| m.name.as_str());
        let image = ctr.image.as_ref().map_or("", |i| i.image.as_str());
        let user = format!("{}:{}", user.uid, user.gid);
        println!(
            "  {:.13} {name:<10} {:<19} {user:<8} {image}",
            ctr.id,
            ctr.state().as_str_name()
        );
    }
    Ok(())
}

/// An exec, and a request over the pod's network.
fn probe(screen: &Screen, cri: &Cri, pod: &str, id: &str) -> Result<()> {
    screen.step("An exec in it");
    let script =
        "ps -o pid,user,args; ip -o addr show dev eth0 | awk '{print $3, $4}'; wget -q -O- localhost:8080";
    // The server may still be on its way to its socket.
    for _ in 0..100 {
        if cri
            .exec(id, &["wget", "-q", "-O-", "localhost:8080"], 5)?
            .exit_code
            == 0
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let text = screen.timed("ExecSync", || cri.sh(id, script))?;
    text.lines().for_each(|line| println!("  {line}"));
    let address = cri.pod(pod)?.network.unwrap_or_default().ip;
    screen.row(
        "reached from outside",
        &format!("http://{address}:8080 says {:?}", get(&address)?.trim()),
    );
    Ok(())
}

fn get(address: &str) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((address, 8080)).context("connect to the pod")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned())
}

/// What the container's cgroup offers here, and what the daemon and its keeper cost.
fn resources(screen: &Screen, cri: &Cri, id: &str) -> Result<()> {
    screen.step("What its cgroup offers here");
    let shown = [
        ("cpu.stat", "usage_usec"),
        ("memory.current", ""),
        ("memory.max", ""),
        ("pids.current", ""),
        ("io.stat", ""),
        ("cgroup.events", "populated"),
    ];
    for (file, key) in shown {
        let read = cri.exec(id, &["cat", &format!("/sys/fs/cgroup/{file}")], 5)?;
        let text = String::from_utf8_lossy(&read.stdout).into_owned();
        let value = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        let missing = read.exit_code != 0;
        screen.row(
            file,
            if missing {
                "not offered: the host does not delegate the controller"
            } else {
                value
            },
        );
    }
    for pid in podd_e2e::census::pids() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("podinit") {
            screen.row(
                "podinit",
                &format!(
                    "{} KiB resident, the only process podd adds to a pod",
                    resident(pid)
                ),
            );
        }
    }
    Ok(())
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("VmRSS:"))
        .unwrap_or_default();
    line.split_whitespace()
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0)
}
