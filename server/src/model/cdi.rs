//! Names of devices of the Container Device Interface.

use std::fmt;

/// A device by its qualified name, `vendor.com/class=device` (SPEC.md of CDI, "Kind" and "CDI Devices").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CdiName {
    kind: String,
    device: String,
}

/// Longest qualified name: a vendor of 253 bytes, a class of 63, and as much again for the device.
const LONGEST: usize = 768;

impl CdiName {
    /// Reads a qualified name; `None` where it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, device) = text.split_once('=')?;
        let valid = text.len() <= LONGEST && is_kind(kind) && is_device(device);
        valid.then(|| Self {
            kind: kind.to_owned(),
            device: device.to_owned(),
        })
    }

    /// `vendor.com/class`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The device's name within its kind.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl fmt::Display for CdiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

/// Whether a text is `vendor/class`, each beginning with a letter.
#[must_use]
pub fn is_kind(text: &str) -> bool {
    let letter = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic());
    text.split_once('/').is_some_and(|(vendor, class)| {
        [vendor, class]
            .iter()
            .all(|part| letter(part) && is_word(part, "-_."))
    })
}

/// Whether a text is the name of a device.
#[must_use]
pub fn is_device(text: &str) -> bool {
    is_word(text, "-_.:")
}

/// Letters and digits, and `between` them the given marks.
fn is_word(text: &str, between: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualified_names() {
        for good in [
            "vendor.com/net=eth0",
            "nvidia.com/gpu=0",
            "nvidia.com/gpu=GPU-8d2:1",
            "v/c=0",
            "a.b/c_d.e-f=all",
        ] {
            let name = CdiName::parse(good).unwrap();
            assert_eq!(name.to_string(), good);
        }
        assert_eq!(CdiName::parse("a.b/c=d").unwrap().kind(), "a.b/c");
        for bad in [
            "",
            "gpu",
            "/dev/null",
            "a/b",
            "a/b=",
            "=x",
            "a=b",
            "/b=c",
            "a/=c",
            "0a/b=c",
            "a/b/c=d",
            "a/b=c=d",
            "a/b=c d",
            "a-/b=c",
            "a/b=-c",
            "a/b=c/../d",
            "a/b=c\n",
            "ä/b=c",
        ] {
            assert_eq!(CdiName::parse(bad), None, "{bad:?}");
        }
        assert_eq!(CdiName::parse(&format!("a/b={}", "x".repeat(LONGEST))), None);
    }
}
