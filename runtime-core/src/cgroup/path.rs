//! Paths of cgroups: relative to the root that podd was given, in normal form.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A string is no path of a cgroup.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a cgroup path: no empty part, `.`, `..`, line break or NUL, 255 bytes a part")]
pub struct CgroupPathError(pub String);

/// Names from the root down, joined by `/`, without a slash at either end. Empty is the root itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// This cgroup's child (or further descendant) of a name.
    ///
    /// # Errors
    /// The name cannot be a cgroup's.
    pub fn join(&self, name: &str) -> Result<Self, CgroupPathError> {
        let below: Self = name.parse()?;
        if self.0.is_empty() {
            return Ok(below);
        }
        if below.0.is_empty() {
            return Err(CgroupPathError(name.to_owned()));
        }
        Ok(Self(format!("{}/{}", self.0, below.0)))
    }

    /// The cgroup above, `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        Some(Self(
            self.0
                .rsplit_once('/')
                .map_or_else(String::new, |(above, _)| above.to_owned()),
        ))
    }

    /// The last name, empty for the root.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The names from the root down.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The path as text, empty for the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A slash before the first name is allowed and means nothing, as in `cgroup_parent` of the CRI.
impl FromStr for CgroupPath {
    type Err = CgroupPathError;
    fn from_str(text: &str) -> Result<Self, CgroupPathError> {
        let inner = text.strip_prefix('/').unwrap_or(text);
        if inner.is_empty() {
            return Ok(Self::root());
        }
        let valid = |name: &str| {
            !name.is_empty()
                && name != "."
                && name != ".."
                && name.len() <= 255
                && !name.contains(['\0', '\n'])
        };
        if inner.split('/').all(valid) {
            Ok(Self(inner.to_owned()))
        } else {
            Err(CgroupPathError(text.to_owned()))
        }
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0)
    }
}
