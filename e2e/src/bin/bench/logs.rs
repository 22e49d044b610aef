//! How fast the output of a container reaches its log, beside a plain `cat` that reads the same pipe.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use podd_e2e::cri;
use podd_proto::v1 as pb;
use serde_json::{Map, Value, json};

use crate::measure::{Bench, rounded};

/// Lengths of lines in bytes, with their newline.
const LINES: [usize; 3] = [80, 1024, 16 * 1024];

/// Times each is measured; the median counts.
const ROUNDS: usize = 3;

impl Bench<'_> {
    /// MiB of output per second for lines of some lengths: through the runtime into a log, and through a pipe and
    /// `cat` into a file beside that log.
    pub fn logs(&self) -> Result<Value> {
        let mut out = Map::new();
        let dir = std::env::temp_dir().join("podd-bench");
        fs::create_dir_all(&dir)?;
        for length in LINES {
            let lines = Lines::new(&dir, length, self.options.logs)?;
            let (mut logged, mut copied) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                copied.push(lines.copied()?);
                logged.push(self.logged(&lines)?);
            }
            let (logged, copied) = (median(logged), median(copied));
            let said = json!({"mib_per_s": rounded(logged), "cat_mib_per_s": rounded(copied),
                "ratio": rounded(logged / copied)});
            out.insert(length.to_string(), said);
        }
        fs::remove_dir_all(&dir)?;
        Ok(Value::Object(out))
    }

    /// MiB per second of a container that writes all lines. Its clock is the runtime's own: from the start to the end
    /// of the process, when no more than a pipe of output can be on its way.
    fn logged(&self, lines: &Lines) -> Result<f64> {
        let mut config = cri::command("c", &["cat", "/lines"]);
        config.image = Some(cri::spec(&self.options.image));
        config.mounts = vec![pb::Mount {
            container_path: "/lines".to_owned(),
            host_path: lines.path.display().to_string(),
            readonly: true,
            ..Default::default()
        }];
        let pod_config = self.pod_config("logs");
        fs::create_dir_all(&pod_config.log_directory)?;
        let pod = self.cri.run_pod_with(&pod_config, &self.target.handler)?;
        let ctr = self.cri.create(&pod, &pod_config, &config)?;
        self.cri.start(&ctr)?;
        let status = self.cri.wait_exit(&ctr)?;
        ensure!(status.exit_code == 0, "cat ended with {}", status.exit_code);
        let log = fs::metadata(cri::log_path(&pod_config, &config))?.len();
        self.cri.remove_pod(&pod)?;
        fs::remove_dir_all(&pod_config.log_directory)?;
        ensure!(
            log > lines.bytes,
            "{log} bytes of log for {} of output",
            lines.bytes
        );
        let nanos = u64::try_from(status.finished_at - status.started_at)?;
        Ok(lines.rate(nanos))
    }
}

/// A file of lines.
struct Lines {
    path: PathBuf,
    bytes: u64,
}

impl Lines {
    fn new(dir: &Path, length: usize, mib: usize) -> Result<Self> {
        let path = dir.join("lines");
        let mut file = BufWriter::new(File::create(&path)?);
        let mut line = vec![b'x'; length];
        line[length - 1] = b'\n';
        let count = (mib << 20) / length;
        for _ in 0..count {
            file.write_all(&line)?;
        }
        file.flush()?;
        let bytes = u64::try_from(count * length)?;
        Ok(Self { path, bytes })
    }

    /// MiB per second when all lines took `nanos`.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn rate(&self, nanos: u64) -> f64 {
        self.bytes as f64 / f64::from(1 << 20) / (nanos as f64 / 1e9)
    }

    /// MiB per second of `cat lines | cat > file`, on the file system of the logs.
    fn copied(&self) -> Result<f64> {
        let target = Path::new("/var/log/pods/cat");
        let begun = Instant::now();
        let busybox = |input: Stdio, output: Stdio| {
            Command::new("/bin/busybox")
                .arg("cat")
                .stdin(input)
                .stdout(output)
                .spawn()
                .context("/bin/busybox cat")
        };
        let mut from = busybox(File::open(&self.path)?.into(), Stdio::piped())?;
        let pipe = from.stdout.take().context("a pipe")?;
        let mut to = busybox(pipe.into(), File::create(target)?.into())?;
        ensure!(from.wait()?.success() && to.wait()?.success(), "cat failed");
        let nanos = u64::try_from(begun.elapsed().as_nanos())?;
        let copied = fs::metadata(target)?.len();
        fs::remove_file(target)?;
        ensure!(copied == self.bytes, "{copied} of {} bytes copied", self.bytes);
        Ok(self.rate(nanos))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
