//! What is run: arguments, environment, working directory.

use std::path::{Component, Path, PathBuf};

use runtime_core::compile::DEFAULT_PATH;

use super::{Inputs, SpecError};
use crate::model::Share;

/// argv, by the rules of Kubernetes: a command replaces the image's entrypoint and drops its cmd, arguments alone
/// replace its cmd.
pub(super) fn arguments(inputs: &Inputs<'_>) -> Result<Vec<String>, SpecError> {
    let (container, image) = (inputs.container, inputs.image);
    let (program, rest) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, _) => (container.command.as_slice(), container.args.as_slice()),
        (true, false) => (image.entrypoint, container.args.as_slice()),
        (true, true) => (image.entrypoint, image.cmd),
    };
    let argv = [program, rest].concat();
    match argv.first().filter(|name| !name.is_empty()) {
        None => Err(SpecError::NoCommand),
        Some(_) if argv.iter().any(|argument| argument.contains('\0')) => Err(SpecError::ImageNul("command")),
        Some(_) => Ok(argv),
    }
}

/// The working directory: the request's, the image's, or the root.
pub(super) fn directory(inputs: &Inputs<'_>) -> Result<String, SpecError> {
    let image = inputs.image.working_dir;
    if image.contains('\0') {
        return Err(SpecError::ImageNul("working directory"));
    }
    Ok(match &inputs.container.working_dir {
        Some(directory) => directory.clone(),
        // Builders write relative directories at times; they start at the root.
        None => format!("/{}", image.trim_start_matches('/')),
    })
}

/// What the image means as volumes: directories of the container's own layer, as an image need not have them. Paths
/// start at the root and end below it.
pub(super) fn volumes(inputs: &Inputs<'_>) -> Result<Vec<PathBuf>, SpecError> {
    /// Images have a handful.
    const MOST: usize = 256;
    let volumes = inputs.image.volumes.into_iter().flatten();
    if volumes.clone().count() > MOST {
        return Err(SpecError::ImageVolumes(MOST));
    }
    let mut paths = Vec::new();
    for volume in volumes {
        if volume.contains('\0') {
            return Err(SpecError::ImageNul("volume"));
        }
        let mut path = PathBuf::from("/");
        for part in Path::new(volume).components() {
            match part {
                Component::Normal(name) => path.push(name),
                Component::ParentDir => drop(path.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        if path.parent().is_some() {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The environment: podd's own, then the image's, then the request's, then that of CDI devices; the last value of a name counts and stands
/// where the name stood first.
pub(super) fn environment(inputs: &Inputs<'_>) -> Vec<Vec<u8>> {
    let mut env: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut set = |name: &[u8], value: &[u8]| match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value.to_vec(),
        None => env.push((name.to_vec(), value.to_vec())),
    };
    set(b"PATH", DEFAULT_PATH.as_bytes());
    if inputs.container.tty {
        set(b"TERM", b"xterm");
    }
    set(b"HOSTNAME", hostname(inputs).as_bytes());
    for variable in inputs.image.env {
        // What is no `NAME=value` cannot be one: an image is not to be trusted with more.
        if let Some((name, value)) = variable.split_once('=')
            && !name.is_empty()
            && !variable.contains('\0')
        {
            set(name.as_bytes(), value.as_bytes());
        }
    }
    for variable in &inputs.container.envs {
        set(variable.key.as_bytes(), &variable.value);
    }
    for variable in &inputs.cdi.env {
        if let Some((name, value)) = variable.split_once('=') {
            set(name.as_bytes(), value.as_bytes());
        }
    }
    env.into_iter()
        .map(|(name, value)| [name.as_slice(), b"=", value.as_slice()].concat())
        .collect()
}

/// The name that the container's uts namespace has.
fn hostname<'a>(inputs: &'a Inputs<'_>) -> &'a str {
    match (inputs.pod.namespaces.network, &inputs.pod.hostname) {
        (Share::Pod, Some(name)) => name,
        _ => &inputs.host.hostname,
    }
}
