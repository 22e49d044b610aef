//! What the guest is asked to do, as it travels in the initramfs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Init;

/// Where the guest finds its job, before and after it has changed its root.
pub(super) const JOB: &str = "/job";
/// The same below the new root.
pub(super) const JOB_KEPT: &str = "/run/vm/job";

/// A command and its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Job {
    /// Process 1 of the guest.
    pub init: Init,
    /// The guest program, as a path of this machine.
    pub guest: PathBuf,
    /// A tree of unpacked packages that is laid over the root.
    pub layer: Option<PathBuf>,
    /// Where the command runs.
    pub directory: PathBuf,
    /// Environment of the command.
    pub env: Vec<(String, String)>,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Whether the command talks to a person.
    pub terminal: bool,
}

impl Job {
    /// `key=value`, each ended by a zero byte.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut fields = vec![
            format!("init={}", self.init),
            format!("guest={}", self.guest.display()),
            format!("directory={}", self.directory.display()),
        ];
        fields.extend(self.layer.iter().map(|l| format!("layer={}", l.display())));
        fields.extend(self.env.iter().map(|(k, v)| format!("env={k}={v}")));
        fields.extend(self.command.iter().map(|word| format!("word={word}")));
        fields.extend(self.terminal.then(|| "terminal=yes".to_owned()));
        fields
            .iter()
            .flat_map(|f| [f.as_bytes(), b"\0"].concat())
            .collect()
    }

    /// The reverse of [`Self::encode`].
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).context("the job is not UTF-8")?;
        let mut job = Self::default();
        for field in text.split_terminator('\0') {
            let (key, value) = field.split_once('=').context("a field without =")?;
            match key {
                "init" => job.init = value.parse()?,
                "guest" => job.guest = value.into(),
                "directory" => job.directory = value.into(),
                "layer" => job.layer = Some(value.into()),
                "env" => {
                    let (name, value) = value.split_once('=').context("a variable without =")?;
                    job.env.push((name.to_owned(), value.to_owned()));
                }
                "word" => job.command.push(value.to_owned()),
                "terminal" => job.terminal = true,
                _ => bail!("unknown field {key:?}"),
            }
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrives_as_it_was() {
        let job = Job {
            init: Init::Systemd,
            guest: "/target/guest".into(),
            layer: Some("/cache/layer".into()),
            directory: "/".into(),
            env: vec![("A".into(), "b=c\n".into())],
            command: vec!["sh".into(), "-c".into(), "echo 'x'\n".into(), String::new()],
            terminal: true,
        };
        assert_eq!(Job::decode(&job.encode()).unwrap(), job);
        assert!(Job::decode(b"what=ever\0").is_err());
    }
}
