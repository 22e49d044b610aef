//! What execs need of their container's creation: what was decided then, on disk beside the record and, of the containers
//! that were asked for last, in memory.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::Spec;

use super::Engine;
use super::native::NativeError;
use crate::model::ContainerId;
use crate::state::store::Container;

/// What was decided when the container was made. Blocks.
///
/// # Errors
/// It was not decided yet, or cannot be read.
pub fn exec_base(engine: &Engine, container: &Container) -> Result<Arc<ExecBase>, NativeError> {
    let id = container.record.id;
    if let Some(base) = engine.native.execs.get(&id) {
        return Ok(base);
    }
    let directory = engine.state.records().container_dir(&container.record.pod, &id);
    let base = Arc::new(ExecBase::load(&directory)?);
    engine.native.execs.put(id, Arc::clone(&base));
    Ok(base)
}

/// The spec and the environment of a container.
#[derive(Debug)]
pub struct ExecBase {
    spec: Spec,
    env: Vec<Vec<u8>>,
}

impl ExecBase {
    /// What a container was decided to be.
    #[must_use]
    pub fn new(spec: Spec, env: Vec<Vec<u8>>) -> Self {
        Self { spec, env }
    }

    /// The spec that the container was made from.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The environment that the application was given; each entry may hold any bytes.
    #[must_use]
    pub fn env(&self) -> &[Vec<u8>] {
        &self.env
    }

    /// Writes it to the container's directory: the spec as JSON, for people and hooks too; the environment, as
    /// `NAME=value` NUL. Blocks.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, directory: &Path) -> Result<(), NativeError> {
        let write = |name: &str, content: &[u8]| {
            let path = directory.join(name);
            // The environment may hold secrets.
            let mut options = std::fs::File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let written = options.open(&path).and_then(|mut file| file.write_all(content));
            written.map_err(|source| NativeError::File {
                operation: "write",
                path,
                source,
            })
        };
        let json = serde_json::to_vec(&self.spec).map_err(|e| NativeError::Kernel {
            operation: "encode the OCI spec",
            source: e.into(),
        })?;
        write("spec.json", &json)?;
        write("environment", &self.env.join(&0))?;
        match self.spec.hooks() {
            Some(_) => name_as_bundle(directory),
            None => Ok(()),
        }
    }

    fn load(directory: &Path) -> Result<Self, NativeError> {
        let read = |name: &str| {
            let path: PathBuf = directory.join(name);
            let content = std::fs::read(&path);
            content.map_err(|source| NativeError::File {
                operation: "read",
                path,
                source,
            })
        };
        let spec = serde_json::from_slice(&read("spec.json")?).map_err(|e| NativeError::File {
            operation: "read",
            path: directory.join("spec.json"),
            source: e.into(),
        })?;
        let environment = read("environment")?;
        let env = environment
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty());
        Ok(Self {
            spec,
            env: env.map(<[u8]>::to_vec).collect(),
        })
    }
}

/// The bases of the containers that were asked for last.
#[derive(Debug, Default)]
pub struct ExecBases(Mutex<HashMap<ContainerId, Arc<ExecBase>>>);

impl ExecBases {
    /// Probes run in few containers at a time; all others are read from disk again.
    const MOST: usize = 64;

    fn get(&self, id: &ContainerId) -> Option<Arc<ExecBase>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .cloned()
    }

    /// Keeps one in memory, in the place of any other where there are too many.
    pub fn put(&self, id: ContainerId, base: Arc<ExecBase>) {
        let mut bases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bases.len() >= Self::MOST
            && let Some(any) = bases.keys().next().copied()
        {
            bases.remove(&any);
        }
        bases.insert(id, base);
    }

    /// Forgets a removed container.
    pub fn forget(&self, id: &ContainerId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Gives the spec the name that hooks look for in a bundle (OCI runtime spec, bundle.md).
fn name_as_bundle(directory: &Path) -> Result<(), NativeError> {
    let path = directory.join("config.json");
    std::fs::hard_link(directory.join("spec.json"), &path).map_err(|source| NativeError::File {
        operation: "make",
        path,
        source,
    })
}
