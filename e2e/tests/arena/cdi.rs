//! Devices of the Container Device Interface: what a spec file adds to a container, and what is refused.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use podd_e2e::arena::WORK_DIR;
use podd_e2e::cri;
use podd_proto::v1 as pb;
use serde_json::{Value, json};
use tonic::Code;

use crate::case::{Env, cases, contains, equal, field, refused};
use crate::users;

cases!("cdi":
    everything_that_a_spec_adds, annotations_of_device_plugins, device_access_is_exact, unknown_devices,
    what_is_missing_on_the_host, the_dynamic_directory_wins, edits_outlive_spec_file_and_podd, in_a_user_namespace);

/// A vendor: spec files in the arena's own /etc and /run, and a directory with files to mount; gone with the value.
pub(crate) struct Vendor {
    /// On a real file system.
    pub dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Vendor {
    /// A vendor with one spec file whose device `a` has these edits.
    pub fn with(edits: &Value) -> Result<Self> {
        let vendor = Self::new()?;
        vendor.write("/etc/cdi/vendor.json", edits)
    }

    /// One without spec files.
    pub fn new() -> Result<Self> {
        let dir = PathBuf::from(format!("{WORK_DIR}/cdi-{}", cri::unique()));
        // Open to the roots of user namespaces.
        fs::DirBuilder::new().mode(0o755).create(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self {
            dir,
            files: Vec::new(),
        })
    }

    /// The same with a further spec file.
    pub fn write(mut self, path: &str, edits: &Value) -> Result<Self> {
        self.add(path, edits)?;
        Ok(self)
    }

    /// Adds a spec file whose device `a` has these edits.
    pub fn add(&mut self, path: &str, edits: &Value) -> Result<()> {
        let spec = json!({
            "cdiVersion": "0.7.0",
            "kind": "vendor.com/device",
            "devices": [{"name": "a", "containerEdits": edits}],
        });
        self.add_text(path, &spec.to_string())
    }

    fn write_text(mut self, path: &str, text: &str) -> Result<Self> {
        self.add_text(path, text)?;
        Ok(self)
    }

    fn add_text(&mut self, path: &str, text: &str) -> Result<()> {
        let path = PathBuf::from(path);
        fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new("/")))?;
        fs::write(&path, text)?;
        self.files.push(path);
        Ok(())
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A container with a device, by its field.
pub(crate) fn with(mut config: pb::ContainerConfig, name: &str) -> pb::ContainerConfig {
    config.cdi_devices.push(pb::CdiDevice {
        name: name.to_owned(),
    });
    config
}

const DEVICE: &str = "vendor.com/device=a";

fn everything_that_a_spec_adds(env: &mut Env<'_>) -> Result<()> {
    let vendor = Vendor::new()?;
    fs::write(vendor.dir.join("lib.so"), "library\n")?;
    let lib = vendor.dir.join("lib.so");
    let vendor = vendor.write(
        "/etc/cdi/vendor.json",
        &json!({
            "env": ["VENDOR=yes", "MODE=vendor"],
            "deviceNodes": [
                {"path": "/dev/vendor0", "hostPath": "/dev/zero", "fileMode": 0o640, "uid": 12, "gid": 34},
                {"path": "/opt/vendor/pipe", "type": "p", "fileMode": 0o600},
            ],
            "mounts": [
                {"hostPath": lib, "containerPath": "/opt/vendor/lib.so", "options": ["ro", "nosuid", "bind"]},
                {"hostPath": "tmpfs", "containerPath": "/opt/scratch", "type": "tmpfs", "options": ["size=1m", "noexec"]},
            ],
            "additionalGids": [0, 4242],
        }),
    )?;
    let script = "echo $VENDOR $MODE; stat -c '%F %t:%T %a %u:%g' /dev/vendor0 /opt/vendor/pipe; \
        head -c 2 /dev/vendor0 | od -An -tx1; cat /opt/vendor/lib.so; ( echo x >/opt/vendor/lib.so ) 2>&1; \
        grep -c ' /opt/scratch tmpfs rw,noexec' /proc/mounts; id -G";
    let pod = env.pod("edits")?;
    let mut config = with(cri::shell("c", script), DEVICE);
    config.envs = vec![pb::KeyValue {
        key: "MODE".to_owned(),
        value: b"request".to_vec(),
    }];
    let out = pod.output(&config)?;
    let lines: Vec<_> = out.lines().map(str::trim).collect();
    ensure!(lines.len() == 8, "{out}");
    equal("environment", lines[0], "yes vendor")?;
    equal("device", lines[1], "character special file 1:5 640 12:34")?;
    equal("fifo", lines[2], "fifo 0:0 600 0:0")?;
    equal("content of the device", lines[3], "00 00")?;
    equal("mounted file", lines[4], "library")?;
    contains("read-only", lines[5], "Read-only file system")?;
    equal("scratch", lines[6], "1")?;
    equal("groups", lines[7], "0 4242")?;
    equal(
        "the vendor's file",
        fs::read_to_string(vendor.dir.join("lib.so"))?.as_str(),
        "library\n",
    )?;
    pod.remove()
}

fn annotations_of_device_plugins(env: &mut Env<'_>) -> Result<()> {
    let _vendor = Vendor::with(&json!({"env": ["VENDOR=yes"]}))?;
    let pod = env.pod("annotation")?;
    let mut config = cri::shell("c", "echo $VENDOR");
    config
        .annotations
        .insert("cdi.k8s.io/vendor_device".to_owned(), DEVICE.to_owned());
    equal("environment", pod.output(&config)?.as_str(), "yes\n")?;
    let mut wrong = cri::shell("wrong", "true");
    wrong
        .annotations
        .insert("cdi.k8s.io/vendor_device".to_owned(), "device".to_owned());
    let cri = env.cri()?;
    let said = refused(
        "annotation",
        Code::InvalidArgument,
        cri.create(&pod.id, &pod.config, &wrong),
    )?;
    contains("message", &said, "cdi.k8s.io/vendor_device")?;
    pod.remove()
}

/// Makes a node and says what came of opening it to read, and to write.
const TRY: &str = "try() { n=/tmp/$1$2.$3; mknod $n $1 $2 $3; ( : <$n ) 2>&1; ( : >>$n ) 2>&1; echo end; }";

/// Nodes of a memory device and of one that need not be there: without a rule the kernel refuses them before it
/// looks for a driver.
fn device_access_is_exact(env: &mut Env<'_>) -> Result<()> {
    let _vendor = Vendor::with(&json!({"deviceNodes": [
        {"path": "/dev/v0", "type": "c", "major": 242, "minor": 11, "permissions": "rw"},
        {"path": "/dev/v1", "type": "c", "major": 242, "minor": 12, "permissions": "r"},
        {"path": "/dev/v2", "type": "c", "major": 242, "minor": 13, "permissions": "none"},
    ]}))?;
    let pod = env.pod("access")?;
    let script = format!("{TRY}; try c 242 11; try c 242 12; try c 242 13; try c 242 14; try b 242 11; true");
    let out = pod.output(&with(cri::shell("c", &script), DEVICE))?;
    let denied: Vec<usize> = out
        .split("end\n")
        .map(|said| said.matches("Operation not permitted").count())
        .collect();
    equal("refusals of reading and writing", denied, vec![0, 1, 2, 2, 2, 0])?;
    let plain = pod.output(&cri::shell("plain", &script))?;
    equal(
        "refusals without the device",
        plain.matches("Operation not permitted").count(),
        10,
    )?;
    pod.remove()
}

fn unknown_devices(env: &mut Env<'_>) -> Result<()> {
    let vendor = Vendor::with(&json!({"env": ["A=b"]}))?;
    let _vendor = vendor
        .write_text("/etc/cdi/broken.yaml", "cdiVersion: [")?
        .write_text(
            "/var/run/cdi/again.yaml",
            "cdiVersion: 0.3.0\nkind: other.com/device\ndevices: []\n",
        )?;
    let (cri, pod) = (env.cri()?, env.pod("unknown")?);
    let ask = |name: &str, code| {
        let config = with(cri::shell("c", "true"), name);
        refused(name, code, cri.create(&pod.id, &pod.config, &config))
    };
    let said = ask("vendor.com/device=b", Code::NotFound)?;
    contains("message", &said, "vendor.com/device=b is not known")?;
    ensure!(
        !said.contains("broken.yaml"),
        "a file of another kind is named: {said}"
    );
    let said = ask("other.com/device=a", Code::NotFound)?;
    contains("message", &said, "/etc/cdi/broken.yaml")?;
    contains("message", &said, "/var/run/cdi/again.yaml: it has no devices")?;
    ask("/dev/null", Code::InvalidArgument)?;
    let listed = cri.list_containers(pb::ListContainersRequest::default())?;
    equal("containers", listed.containers.len(), 0)?;
    // Nothing holds the name.
    pod.output(&with(cri::shell("c", "true"), DEVICE))?;
    pod.remove()
}

fn what_is_missing_on_the_host(env: &mut Env<'_>) -> Result<()> {
    let (cri, pod) = (env.cri()?, env.pod("missing")?);
    let ask = |edits: &Value, code| -> Result<String> {
        let _vendor = Vendor::with(edits)?;
        let config = with(cri::shell("c", "true"), DEVICE);
        refused(
            &edits.to_string(),
            code,
            cri.create(&pod.id, &pod.config, &config),
        )
    };
    let said = ask(
        &json!({"deviceNodes": [{"path": "/dev/vendor9"}]}),
        Code::FailedPrecondition,
    )?;
    contains("message", &said, "/dev/vendor9")?;
    let absent = format!("{WORK_DIR}/absent-{}", cri::unique());
    let mount = json!({"hostPath": absent, "containerPath": "/x", "options": ["bind"]});
    let said = ask(&json!({"mounts": [mount]}), Code::FailedPrecondition)?;
    contains("message", &said, &absent)?;
    ensure!(!Path::new(&absent).exists(), "the missing directory was made");
    let said = ask(&json!({"intelRdt": {"closID": "x"}}), Code::Unimplemented)?;
    contains("message", &said, "intelRdt")?;
    pod.remove()
}

fn the_dynamic_directory_wins(env: &mut Env<'_>) -> Result<()> {
    let vendor = Vendor::with(&json!({"env": ["FROM=etc"]}))?;
    let vendor = vendor.write("/var/run/cdi/claim.json", &json!({"env": ["FROM=run"]}))?;
    let (cri, pod) = (env.cri()?, env.pod("wins")?);
    let config = with(cri::shell("c", "echo $FROM"), DEVICE);
    equal("environment", pod.output(&config)?.as_str(), "run\n")?;
    let _vendor = vendor.write("/var/run/cdi/twice.json", &json!({"env": ["FROM=twice"]}))?;
    let said = refused(
        "twice",
        Code::FailedPrecondition,
        cri.create(&pod.id, &pod.config, &config),
    )?;
    contains(
        "message",
        &said,
        "/var/run/cdi/claim.json and /var/run/cdi/twice.json",
    )?;
    pod.remove()
}

fn edits_outlive_spec_file_and_podd(env: &mut Env<'_>) -> Result<()> {
    let pod = env.pod("outlives")?;
    let config = with(cri::shell("c", "echo $VENDOR; sleep 1000"), DEVICE);
    let id = {
        let _vendor = Vendor::with(&json!({"env": ["VENDOR=yes"]}))?;
        pod.created(&config)?
    };
    let podd = env.podd()?;
    podd.end(Signal::SIGKILL)?;
    podd.start_again()?;
    let cri = env.cri()?;
    cri.start(&id)?;
    equal(
        "environment of an exec",
        cri.sh(&id, "echo $VENDOR")?.as_str(),
        "yes\n",
    )?;
    pod.remove()
}

fn in_a_user_namespace(env: &mut Env<'_>) -> Result<()> {
    let vendor = Vendor::new()?;
    let lib = vendor.dir.join("lib.so");
    fs::write(&lib, "library\n")?;
    let _vendor = vendor.write(
        "/etc/cdi/vendor.json",
        &json!({
            "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/zero", "fileMode": 0o600, "gid": 34}],
            "mounts": [{"hostPath": lib, "containerPath": "/opt/lib.so", "options": ["ro", "bind"]}],
        }),
    )?;
    let pod = users::pod(env, "cdi")?;
    let script = "stat -c '%t:%T %a %u:%g' /dev/vendor0; head -c 1 /dev/vendor0 | od -An -tx1; \
        stat -c %u:%g /opt/lib.so; grep Uid /proc/self/status";
    let out = pod.output(&with(users::shell("c", script), DEVICE))?;
    let lines: Vec<_> = out.lines().map(str::trim).collect();
    equal("device", lines.first(), Some(&"1:5 600 0:34"))?;
    equal("content of the device", lines.get(1), Some(&"00"))?;
    equal("owner of the mounted file", lines.get(2), Some(&"0:0"))?;
    equal("user", field(&out, "Uid")?, "0\t0\t0\t0")?;
    pod.remove()
}
