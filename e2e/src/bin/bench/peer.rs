//! containerd as a peer: started in the arena beside the same registry, where Debian's packages of it are installed.
//!
//! What a node runs: one containerd, a shim and a pause container for each pod, an OCI runtime executed for each
//! step, the CNI bridge plugin. Its configuration is the smallest that does the work that podd does.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri::Cri;
use podd_e2e::images::{self, Dialect, Image};
use podd_e2e::registry::{self, Registry};
use podd_proto::v1::VersionRequest;
use serde_json::json;

use crate::processes::Processes;
use crate::target::Target;

const SOCKET: &str = "/run/containerd/containerd.sock";
const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// Where Debian and other distributions install the CNI plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// The OCI runtimes it is measured with, as far as they are installed.
const RUNTIMES: [&str; 2] = ["crun", "runc"];
const PODS: &str = "bench-peer";

/// A running containerd; it is killed with the value, its shims with the arena.
pub struct Containerd {
    child: Child,
    runtimes: Vec<&'static str>,
    version: String,
}

impl Containerd {
    /// Starts it, where it, a runtime and the CNI plugins are installed; otherwise says what is missing.
    ///
    /// # Errors
    /// Where it is installed and does not come up.
    pub fn start(registry: &mut Registry) -> Result<std::result::Result<Self, String>> {
        let Some(binary) = in_path("containerd") else {
            return Ok(Err("containerd is not installed".to_owned()));
        };
        let runtimes: Vec<_> = RUNTIMES
            .into_iter()
            .filter(|name| in_path(name).is_some())
            .collect();
        if runtimes.is_empty() {
            return Ok(Err("neither crun nor runc is installed".to_owned()));
        }
        let Some(plugins) = PLUGINS
            .into_iter()
            .find(|dir| Path::new(dir).join("bridge").exists())
        else {
            return Ok(Err("the CNI plugins are not installed".to_owned()));
        };
        registry.push("pause", &["3.10"], &pause()?)?;
        let work = Path::new(WORK_DIR).join("containerd");
        configure(&work, &runtimes, plugins)?;
        let log = fs::File::create(work.join("log"))?;
        let child = Command::new(binary)
            .arg("--config")
            .arg(work.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let mut started = Self {
            child,
            runtimes,
            version: String::new(),
        };
        started.version = started.wait_ready(&work)?;
        Ok(Ok(started))
    }

    /// What is measured: containerd with each of the runtimes.
    ///
    /// # Errors
    /// Where no client can be made.
    pub fn targets(&self) -> Result<Vec<Target>> {
        let target = |runtime: &&str| {
            Ok(Target {
                name: format!("containerd {} + {runtime}", self.version),
                cri: Cri::new(Path::new(SOCKET))?,
                processes: Processes {
                    daemon: "containerd --config".to_owned(),
                    // A pause container is told by the argument that no other process has.
                    procs: "containerd-shim|sleep 2147483647".to_owned(),
                },
                handler: (*runtime).to_owned(),
                cgroup_parent: format!("/{PODS}"),
                restart: None,
            })
        };
        self.runtimes.iter().map(target).collect()
    }

    fn wait_ready(&mut self, work: &Path) -> Result<String> {
        let cri = Cri::new(Path::new(SOCKET))?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(version) = cri.version(VersionRequest::default()) {
                return Ok(version.runtime_version);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(work.join("log")).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                bail!(
                    "containerd does not answer\n{}",
                    lines[lines.len().saturating_sub(20)..].join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes its configuration, the network's, and the registry's in place of the public ones.
fn configure(work: &Path, runtimes: &[&str], plugins: &str) -> Result<()> {
    let (hosts, net) = (work.join("hosts"), work.join("net"));
    for host in registry::MIRRORED {
        let dir = hosts.join(host);
        fs::create_dir_all(&dir)?;
        let address = registry::ADDRESS;
        let text = format!(
            "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join("hosts.toml"), text)?;
    }
    fs::create_dir_all(&net)?;
    // Without masquerading, for which some kernels lack what iptables asks for: this only takes work away from it.
    let network = json!({"cniVersion": "1.0.0", "name": "bench", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true,
         "hairpinMode": true, "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.89.0.0/16"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    fs::write(net.join("10-bench.conflist"), network.to_string())?;

    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    // Without controllers its pause container cannot have the weight it asks for: this only takes work away from it.
    let no_cgroups = !controllers.contains("cpu");
    let plugin = "plugins.\"io.containerd.grpc.v1.cri\"";
    let mut text = format!(
        "version = 2\nroot = \"{work}/root\"\nstate = \"/run/containerd\"\n\
         [{plugin}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\ndisable_cgroup = {no_cgroups}\n\
         [{plugin}.cni]\nbin_dir = \"{plugins}\"\nconf_dir = \"{net}\"\n\
         [{plugin}.registry]\nconfig_path = \"{hosts}\"\n\
         [{plugin}.containerd]\ndefault_runtime_name = \"{first}\"\n",
        work = work.display(),
        net = net.display(),
        hosts = hosts.display(),
        first = runtimes[0],
    );
    for name in runtimes {
        let _ = write!(
            text,
            "[{plugin}.containerd.runtimes.{name}]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{plugin}.containerd.runtimes.{name}.options]\nBinaryName = \"{name}\"\nSystemdCgroup = false\n"
        );
    }
    fs::write(work.join("config.toml"), text).context("write containerd's configuration")
}

/// What a pod of containerd is held by: an image whose process only sleeps.
fn pause() -> Result<Image> {
    let run = json!({"Cmd": ["/bin/sleep", "2147483647"]});
    Ok(Image::new(&[images::base_layer()?], &run, Dialect::Oci))
}

/// An executable of the search path.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}
