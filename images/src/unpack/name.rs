//! What the name of a tar entry means: a place below the layer root, or an AUFS-style marker.
//!
//! Pure and lexical (OCI image-spec layer.md, "Whiteouts"). Symbolic links are the business of `tree`.

/// Prefix of a marker that hides a name of a lower layer.
const WHITEOUT: &[u8] = b".wh.";
/// Prefix of AUFS bookkeeping, which has no meaning in a layer (docker and containerd skip it too).
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where an entry goes. `parent` is a clean relative path, empty for the layer root.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Root,
    Entry { parent: Vec<u8>, base: Vec<u8> },
    Whiteout { parent: Vec<u8>, hidden: Vec<u8> },
    Opaque { parent: Vec<u8> },
    Skip,
}

/// The entry leaves the layer root.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Escapes;

impl Name {
    pub(super) fn of(path: &[u8]) -> Result<Name, Escapes> {
        let parts = clean(path)?;
        let Some((base, parent)) = parts.split_last() else {
            return Ok(Name::Root);
        };
        let join = || parent.join(&b'/');
        if *base == OPAQUE {
            return Ok(Name::Opaque { parent: join() });
        }
        if base.starts_with(AUFS) || parts[0].starts_with(AUFS) {
            return Ok(Name::Skip);
        }
        match base.strip_prefix(WHITEOUT) {
            Some(b"" | b"." | b"..") => Err(Escapes),
            Some(hidden) => Ok(Name::Whiteout {
                parent: join(),
                hidden: hidden.to_vec(),
            }),
            None => Ok(Name::Entry {
                parent: join(),
                base: base.to_vec(),
            }),
        }
    }
}

/// Lexical components of a path taken as relative to the layer root; `..` may not leave it.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, Escapes> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop().ok_or(Escapes)?;
            }
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let entry = |p: &[u8], b: &[u8]| {
            Ok(Name::Entry {
                parent: p.to_vec(),
                base: b.to_vec(),
            })
        };
        let cases: Vec<(&[u8], Result<Name, Escapes>)> = vec![
            (b"a", entry(b"", b"a")),
            (b"./a/b/", entry(b"a", b"b")),
            (b"/etc/passwd", entry(b"etc", b"passwd")),
            (b"a/./b//../c", entry(b"a", b"c")),
            (b"./", Ok(Name::Root)),
            (b"/", Ok(Name::Root)),
            (b"a/..", Ok(Name::Root)),
            (b"..", Err(Escapes)),
            (b"../x", Err(Escapes)),
            (b"a/../../x", Err(Escapes)),
            (b"/../x", Err(Escapes)),
            (
                b"d/.wh.x",
                Ok(Name::Whiteout {
                    parent: b"d".to_vec(),
                    hidden: b"x".to_vec(),
                }),
            ),
            (
                b"d/.wh..x",
                Ok(Name::Whiteout {
                    parent: b"d".to_vec(),
                    hidden: b".x".to_vec(),
                }),
            ),
            (
                b"d/.wh..wh..opq",
                Ok(Name::Opaque {
                    parent: b"d".to_vec(),
                }),
            ),
            (b".wh..wh..opq", Ok(Name::Opaque { parent: Vec::new() })),
            (b".wh..wh.plnk/1.2", Ok(Name::Skip)),
            (b".wh..wh.aufs", Ok(Name::Skip)),
            (b"d/.wh.", Err(Escapes)),
            (b"d/.wh..", Err(Escapes)),
            (b"d/.wh...", Err(Escapes)),
        ];
        for (path, want) in cases {
            assert_eq!(Name::of(path), want, "{}", String::from_utf8_lossy(path));
        }
    }
}
