//! From CRI messages to the model: the only part of the model that sees the wire.
//!
//! Each message is read once, front to back, by a function that knows where it is ([`At`]), so that every refusal
//! names the field. Rules come from the comments of the CRI and from what kubelets send; a rule that exists for a
//! known attack says which.

mod container;
mod mounts;
mod network;
mod pod;
mod resources;
mod security;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use super::{Invalid, Refused, Unsupported};

/// Longest name of a pod, container or namespace that Kubernetes allows (RFC 1123 subdomain).
const NAME_MAX: usize = 253;
/// `PATH_MAX` of linux/limits.h, with the NUL.
const PATH_MAX: usize = 4096;

/// Where in a message the parser is.
#[derive(Clone, Copy, Debug)]
enum At<'a> {
    Root(&'static str),
    Field(&'a At<'a>, &'static str),
    Index(&'a At<'a>, usize),
    Key(&'a At<'a>, &'a str),
}

impl At<'_> {
    fn field<'a>(&'a self, name: &'static str) -> At<'a> {
        At::Field(self, name)
    }

    fn index(&self, index: usize) -> At<'_> {
        At::Index(self, index)
    }

    fn key<'a>(&'a self, key: &'a str) -> At<'a> {
        At::Key(self, key)
    }

    fn path(&self) -> String {
        match self {
            At::Root(name) => (*name).to_owned(),
            At::Field(above, name) => format!("{}.{name}", above.path()),
            At::Index(above, index) => format!("{}[{index}]", above.path()),
            At::Key(above, key) => format!("{}[{key:?}]", above.path()),
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> Refused {
        Invalid {
            field: self.path(),
            reason: reason.into(),
        }
        .into()
    }

    fn unsupported(&self, what: impl Into<String>) -> Refused {
        Unsupported {
            field: self.path(),
            what: what.into(),
        }
        .into()
    }

    /// A field that must be there.
    fn required<'m, T>(&self, value: Option<&'m T>) -> Result<&'m T, Refused> {
        value.ok_or_else(|| self.invalid("is missing"))
    }

    /// A value of one of the wire's enumerations.
    fn choice<T: TryFrom<i32>>(&self, value: i32) -> Result<T, Refused> {
        T::try_from(value).map_err(|_| self.invalid(format!("{value} is not a value of this enumeration")))
    }

    /// A name of Kubernetes. Names go into logs, labels and answers, never into paths; what could break a line is
    /// refused all the same. What else a name may hold is the API server's to say.
    fn name(&self, text: &str) -> Result<String, Refused> {
        if text.is_empty() {
            return Err(self.invalid("is empty"));
        }
        if text.len() > NAME_MAX {
            return Err(self.invalid(format!("is {} bytes long, {NAME_MAX} are allowed", text.len())));
        }
        if text.contains(char::is_control) {
            return Err(self.invalid(format!("{text:?} has a control character")));
        }
        Ok(text.to_owned())
    }

    /// Text that the kernel will see as a C string.
    fn no_nul(&self, text: &str) -> Result<String, Refused> {
        if text.contains('\0') {
            Err(self.invalid("holds a NUL byte"))
        } else {
            Ok(text.to_owned())
        }
    }

    /// A path from the root, in normal form.
    fn absolute(&self, text: &str) -> Result<String, Refused> {
        if !text.starts_with('/') {
            return Err(self.invalid(format!("{text:?} is not an absolute path")));
        }
        Ok(format!("/{}", self.parts(text)?.join("/")))
    }

    /// A path below something, in normal form.
    fn relative(&self, text: &str) -> Result<String, Refused> {
        if text.starts_with('/') {
            return Err(self.invalid(format!("{text:?} is an absolute path")));
        }
        Ok(self.parts(text)?.join("/"))
    }

    fn parts<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, Refused> {
        if text.len() >= PATH_MAX || text.split('/').any(|part| part.len() > 255) {
            return Err(self.invalid("is longer than a path may be"));
        }
        let parts: Vec<&str> = text
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
            .collect();
        if parts.contains(&"..") {
            return Err(self.invalid(format!("{text:?} climbs with `..`")));
        }
        if text.contains(|c: char| c.is_control()) {
            return Err(self.invalid(format!("{text:?} has a control character")));
        }
        Ok(parts)
    }
}

/// `None` for the empty string, which is how the wire says "not given".
fn given(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A map of the wire, in an order.
fn sorted(map: &HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
