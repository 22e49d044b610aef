//! Archives, ordinary and hostile, unpacked into temporary directories. Needs root, as layers have owners and devices.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::*;

/// Minimal writer of ustar and PAX entries.
#[derive(Default)]
struct Archive(Vec<u8>);

#[derive(Clone)]
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    device: (u32, u32),
}

const PLAIN: Meta = Meta {
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1_700_000_000,
    device: (0, 0),
};
const DIR: Meta = Meta { mode: 0o755, ..PLAIN };

impl Archive {
    fn raw(mut self, name: &str, flag: u8, link: &str, data: &[u8], m: &Meta) -> Self {
        let mut b = [0u8; 512];
        b[..name.len()].copy_from_slice(name.as_bytes());
        let mut put = |at: usize, len: usize, v: u64| {
            b[at..at + len].copy_from_slice(format!("{v:0w$o}\0", w = len - 1).as_bytes());
        };
        put(100, 8, m.mode.into());
        put(108, 8, m.uid.into());
        put(116, 8, m.gid.into());
        put(124, 12, data.len() as u64);
        put(136, 12, m.mtime);
        put(329, 8, m.device.0.into());
        put(337, 8, m.device.1.into());
        b[156] = flag;
        b[157..157 + link.len()].copy_from_slice(link.as_bytes());
        b[257..265].copy_from_slice(b"ustar\x0000");
        b[148..156].fill(b' ');
        let sum: u32 = b.iter().map(|x| u32::from(*x)).sum();
        b[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(b);
        self.0.extend(data);
        self.0.resize(self.0.len().div_ceil(512) * 512, 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(name, b'0', "", data, &PLAIN)
    }

    fn dir(self, name: &str) -> Self {
        self.raw(name, b'5', "", b"", &DIR)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(name, b'2', target, b"", &PLAIN)
    }

    fn hard(self, name: &str, target: &str) -> Self {
        self.raw(name, b'1', target, b"", &PLAIN)
    }

    fn pax(self, pairs: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in pairs {
            let body = key.len() + value.len() + 3;
            let mut n = body + 1;
            while n != body + n.to_string().len() {
                n = body + n.to_string().len();
            }
            data.extend(format!("{n} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw("pax", b'x', "", &data, &PLAIN)
    }
}

struct Out {
    base: tempfile::TempDir,
    result: Result<Unpacked, Error>,
}

impl Out {
    fn path(&self, p: &str) -> PathBuf {
        self.base.path().join("work/root").join(p)
    }

    fn text(&self, p: &str) -> String {
        fs::read_to_string(self.path(p)).unwrap_or_else(|e| panic!("{p}: {e}"))
    }

    fn whiteout(&self, p: &str) -> bool {
        fs::symlink_metadata(self.path(p)).is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
    }

    fn opaque(&self, p: &str) -> bool {
        let mut buf = [0u8; 8];
        matches!(
            rustix::fs::lgetxattr(self.path(p), "trusted.overlay.opaque", &mut buf),
            Ok(1)
        ) && buf[0] == b'y'
    }

    fn ok(&self) -> &Unpacked {
        self.result.as_ref().unwrap_or_else(|e| panic!("{e}"))
    }
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: layers have devices and trusted attributes, which need root");
    }
    root
}

fn run_with(archive: Archive, limits: &Limits) -> Out {
    let base = tempfile::tempdir().unwrap();
    // A bait outside of the layer: nothing may ever touch it.
    fs::create_dir_all(base.path().join("work/root")).unwrap();
    fs::set_permissions(base.path().join("work/root"), Permissions::from_mode(0o755)).unwrap();
    fs::write(base.path().join("bait"), "safe").unwrap();
    let mut bytes = archive.0;
    bytes.resize(bytes.len() + 1024, 0);
    let result = unpack(&bytes[..], &base.path().join("work"), limits, Durability::None);
    assert_eq!(fs::read_to_string(base.path().join("bait")).unwrap(), "safe");
    let outside: Vec<_> = fs::read_dir(base.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(outside.len(), 2, "something was made outside: {outside:?}");
    if let Ok(unpacked) = &result {
        assert_eq!(unpacked.diff_id, Digest::sha256_of(&bytes));
    }
    Out { base, result }
}

fn run(archive: Archive) -> Out {
    run_with(archive, &Limits::default())
}

#[test]
fn ordinary_entries() {
    if !root() {
        return;
    }
    let suid = Meta {
        mode: 0o4755,
        uid: 7,
        gid: 8,
        ..PLAIN
    };
    let dev = Meta {
        mode: 0o666,
        device: (1, 3),
        ..PLAIN
    };
    let out = run(Archive::default()
        .raw(
            "tmp/",
            b'5',
            "",
            b"",
            &Meta {
                mode: 0o1777,
                mtime: 5,
                ..PLAIN
            },
        )
        .file("tmp/f", b"hello")
        .raw("bin/su", b'0', "", b"x", &suid)
        .symlink("link", "/etc/absolute")
        .hard("tmp/g", "./tmp/f")
        .raw("null", b'3', "", b"", &dev)
        .raw("fifo", b'6', "", b"", &PLAIN)
        .pax(&[
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/x"),
            ("mtime", b"3.5"),
        ])
        .file("attr", b""));
    let unpacked = out.ok();
    assert_eq!(out.text("tmp/g"), "hello");
    let tmp = fs::metadata(out.path("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 5));
    let su = fs::metadata(out.path("bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()),
        (0o4755, 7, 8, 1_700_000_000)
    );
    assert_eq!(
        fs::read_link(out.path("link")).unwrap(),
        PathBuf::from("/etc/absolute")
    );
    assert_eq!(fs::metadata(out.path("tmp/f")).unwrap().nlink(), 2);
    let null = fs::metadata(out.path("null")).unwrap();
    assert_eq!(
        (null.rdev(), null.mode() & 0o7777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert!(fs::metadata(out.path("fifo")).unwrap().file_type().is_fifo());
    let mut buf = [0u8; 16];
    assert_eq!(
        rustix::fs::lgetxattr(out.path("attr"), "user.a", &mut buf).unwrap(),
        1
    );
    assert!(rustix::fs::lgetxattr(out.path("attr"), "trusted.overlay.redirect", &mut buf).is_err());
    assert_eq!(fs::metadata(out.path("attr")).unwrap().mtime_nsec(), 500_000_000);
    assert_eq!(unpacked.implicit, vec![b"bin".to_vec()]);
    assert_eq!(unpacked.inodes, 8);
    assert_eq!(unpacked.bytes, 4 * 4096);
}

#[test]
fn capabilities_survive_chown() {
    if !root() {
        return;
    }
    // Version 2, effective, cap_net_raw permitted (linux/capability.h, struct vfs_cap_data).
    let cap = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let out = run(Archive::default()
        .pax(&[("SCHILY.xattr.security.capability", &cap)])
        .raw(
            "ping",
            b'0',
            "",
            b"x",
            &Meta {
                mode: 0o755,
                uid: 5,
                gid: 5,
                ..PLAIN
            },
        ));
    out.ok();
    let mut buf = [0u8; 32];
    assert_eq!(
        rustix::fs::lgetxattr(out.path("ping"), "security.capability", &mut buf).unwrap(),
        20
    );
    assert_eq!(buf[..20], cap);
}

#[test]
fn markers_hide_lower_layers_only_and_in_any_order() {
    if !root() {
        return;
    }
    let out = run(Archive::default()
        .dir("d")
        .file("d/keep", b"mine")
        .file("d/.wh..wh..opq", b"")
        .file("d/later", b"mine too")
        .file(".wh.gone", b"")
        .file("here", b"stays")
        .file(".wh.here", b"")
        .file(".wh.back", b"")
        .file("back", b"again")
        .dir("both")
        .file("both/x", b"x")
        .file(".wh.both", b"")
        .file(".wh.anew", b"")
        .dir("anew")
        .file(".wh.deep", b"")
        .file("deep/er/x", b"x")
        .file("new/.wh.sub", b"")
        .file("alone/.wh..wh..opq", b"")
        .file(".wh..wh.plnk/1.2", b"")
        .file(".wh..wh.aufs", b""));
    out.ok();
    assert!(out.opaque("d"));
    assert_eq!(
        (out.text("d/keep").as_str(), out.text("d/later").as_str()),
        ("mine", "mine too")
    );
    assert!(out.whiteout("gone"));
    assert_eq!(
        (out.text("here").as_str(), out.text("back").as_str()),
        ("stays", "again")
    );
    assert!(out.opaque("both") && out.opaque("anew") && out.opaque("deep") && !out.opaque("deep/er"));
    assert_eq!(
        (out.text("both/x").as_str(), out.text("deep/er/x").as_str()),
        ("x", "x")
    );
    assert!(out.whiteout("new/sub") && !out.opaque("new"));
    assert!(out.opaque("alone"));
    let names: Vec<_> = fs::read_dir(out.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        names.iter().all(|n| !n.to_string_lossy().starts_with(".wh.")),
        "{names:?}"
    );
}

#[test]
fn later_entries_replace_earlier_ones() {
    if !root() {
        return;
    }
    let out = run(Archive::default()
        .file("a", b"1")
        .file("a", b"2")
        .file("f", b"")
        .dir("f")
        .file("f/x", b"x")
        .dir("dir")
        .file("dir/x", b"x")
        .file("dir", b"file now")
        .dir("same")
        .file("same/kept", b"k")
        .raw("same", b'5', "", b"", &Meta { mode: 0o700, ..PLAIN })
        .symlink("s", "dir")
        .file("s", b"not through the link")
        .symlink("t", "same")
        .dir("t")
        .file("t/x", b"in t")
        .file("h", b"h")
        .hard("h", "h"));
    out.ok();
    assert_eq!(out.text("a"), "2");
    assert_eq!(out.text("f/x"), "x");
    assert_eq!(out.text("dir"), "file now");
    assert_eq!(out.text("same/kept"), "k");
    assert_eq!(fs::metadata(out.path("same")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(out.text("s"), "not through the link");
    assert!(!out.path("same/x").exists() && out.text("t/x") == "in t");
    assert_eq!(out.text("h"), "h");
}

#[test]
fn links_in_parents_resolve_inside_the_layer() {
    if !root() {
        return;
    }
    let out = run(Archive::default()
        .symlink("lib", "usr/lib")
        .file("lib/a", b"a")
        .symlink("abs", "/usr/abs")
        .file("abs/b", b"b")
        .symlink("up", "../../../../../usr")
        .file("up/c", b"c")
        .symlink("out", "../../bait-dir")
        .file("out/d", b"d")
        .symlink("chain", "abs/./../lib")
        .file("chain/e", b"e"));
    out.ok();
    assert_eq!(out.text("usr/lib/a"), "a");
    assert_eq!(out.text("usr/abs/b"), "b");
    assert_eq!(out.text("usr/c"), "c");
    assert_eq!(out.text("bait-dir/d"), "d");
    assert_eq!(out.text("usr/lib/e"), "e");
    assert!(!out.base.path().join("bait-dir").exists());
}

#[test]
fn escapes_and_nonsense_are_typed_errors() {
    if !root() {
        return;
    }
    let long = "x/".repeat(45) + "y";
    type Check = fn(&Error) -> bool;
    let cases: Vec<(&str, Archive, Check)> = vec![
        ("dotdot", Archive::default().file("../bait", b"!"), |e| {
            matches!(e, Error::EntryEscapes { .. })
        }),
        (
            "deep dotdot",
            Archive::default().file("a/../../bait", b"!"),
            |e| matches!(e, Error::EntryEscapes { .. }),
        ),
        (
            "absolute dotdot",
            Archive::default().file("/../bait", b"!"),
            |e| matches!(e, Error::EntryEscapes { .. }),
        ),
        (
            "whiteout of dotdot",
            Archive::default().file("a/.wh...", b""),
            |e| matches!(e, Error::EntryEscapes { .. }),
        ),
        ("hard link out", Archive::default().hard("x", "../../bait"), |e| {
            matches!(e, Error::EntryEscapes { .. })
        }),
        ("hard link to nothing", Archive::default().hard("x", "y"), |e| {
            matches!(e, Error::BadArchive { .. })
        }),
        ("hard link to root", Archive::default().hard("x", "/"), |e| {
            matches!(e, Error::BadArchive { .. })
        }),
        (
            "hard link through a link",
            Archive::default().symlink("up", "../..").hard("x", "up/bait"),
            |e| matches!(e, Error::BadArchive { .. }),
        ),
        (
            "hard link to a directory",
            Archive::default().dir("d").hard("x", "d"),
            |e| matches!(e, Error::UnsupportedEntry { .. }),
        ),
        (
            "file as parent",
            Archive::default().file("f", b"").file("f/x", b""),
            |e| matches!(e, Error::UnsupportedEntry { .. }),
        ),
        (
            "link loop",
            Archive::default().symlink("l", "l").file("l/x", b""),
            |e| matches!(e, Error::BadArchive { .. }),
        ),
        (
            "link growth",
            Archive::default()
                .symlink("l", &format!("l/{long}"))
                .file("l/x", b""),
            |e| matches!(e, Error::BadArchive { .. }),
        ),
        (
            "component too long",
            Archive::default().pax(&[("path", &[b'n'; 300])]).file("x", b""),
            |e| matches!(e, Error::BadArchive { .. }),
        ),
        ("empty link", Archive::default().symlink("l", ""), |e| {
            matches!(e, Error::BadArchive { .. })
        }),
        (
            "path too long",
            Archive::default()
                .pax(&[("path", &b"n/".repeat(2100))])
                .file("x", b""),
            |e| matches!(e, Error::TooLarge { .. }),
        ),
        (
            "attributes too large",
            Archive::default()
                .pax(&[("SCHILY.xattr.user.a", &[b'v'; 132_000])])
                .file("x", b""),
            |e| matches!(e, Error::TooLarge { .. }),
        ),
    ];
    for (what, archive, check) in cases {
        let out = run(archive);
        let error = out
            .result
            .as_ref()
            .err()
            .unwrap_or_else(|| panic!("{what}: accepted"));
        assert!(check(error), "{what}: {error}");
    }
}

#[test]
fn limits_hold() {
    if !root() {
        return;
    }
    let limits = Limits {
        layer_inodes: 3,
        layer_bytes: 16 << 10,
        ..Limits::default()
    };
    let many = (0..4).fold(Archive::default(), |a, i| a.file(&format!("f{i}"), b""));
    let nested = Archive::default().file("a/b/c/d", b"").file("x", b"");
    let big = Archive::default().file("f", &[0; 32 << 10]);
    for (what, archive) in [("files", many), ("parents", nested), ("bytes", big)] {
        assert!(
            matches!(run_with(archive, &limits).result, Err(Error::TooLarge { .. })),
            "{what}"
        );
    }
}

#[test]
fn checksums_find_damage() {
    if !root() {
        return;
    }
    let out = run(Archive::default()
        .file("a", b"aaaa")
        .file("b", b"old")
        .file("b", b"bbbb")
        .symlink("lib", "usr")
        .file("lib/c", b"cccc")
        .file("gone/x", b"x")
        .file("gone", b"g")
        .file("e", b"e")
        .symlink("e", "a")
        .file("empty", b""));
    out.ok();
    let sums = out.base.path().join("work/sums");
    let open = || std::os::fd::OwnedFd::from(fs::File::open(out.path("")).unwrap());
    assert_eq!(
        crate::sums::verify(&sums, &open(), 10).unwrap(),
        Vec::<String>::new()
    );
    fs::write(out.path("a"), "").unwrap();
    fs::write(out.path("usr/c"), "cccd").unwrap();
    fs::remove_file(out.path("empty")).unwrap();
    let mut damaged = crate::sums::verify(&sums, &open(), 10).unwrap();
    damaged.sort();
    assert_eq!(damaged, ["a", "empty", "lib/c"]);
    let bytes = fs::read(&sums).unwrap();
    for cut in 0..bytes.len() {
        fs::write(&sums, &bytes[..cut]).unwrap();
        assert!(crate::sums::verify(&sums, &open(), 10).is_err(), "torn at {cut}");
    }
}

/// The merged view of overlayfs is compared with a model that applies the layers one after the other.
#[test]
fn overlay_shows_what_the_layers_say() {
    if !root() {
        return;
    }
    let lower = run(Archive::default()
        .dir("d")
        .file("d/a", b"a")
        .file("d/b", b"b")
        .file("top", b"t")
        .dir("e")
        .file("e/x", b"x"));
    let upper = run(Archive::default()
        .file("d/.wh.a", b"")
        .file("d/c", b"c")
        .file(".wh.top", b"")
        .dir("e")
        .file("e/y", b"y")
        .file("e/.wh..wh..opq", b""));
    lower.ok();
    upper.ok();
    let merged = tempfile::tempdir().unwrap();
    let option = format!(
        "lowerdir={}:{}",
        upper.path("").display(),
        lower.path("").display()
    );
    let mounted = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &option])
        .arg(merged.path())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        println!("skipped: overlayfs cannot be mounted here");
        return;
    }
    let mut seen = BTreeMap::new();
    let mut todo = vec![merged.path().to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(merged.path()).unwrap().display().to_string();
            if path.is_dir() {
                todo.push(path);
            } else {
                seen.insert(name, fs::read_to_string(path).unwrap());
            }
        }
    }
    std::process::Command::new("umount")
        .arg(merged.path())
        .status()
        .unwrap();
    let want = [("d/b", "b"), ("d/c", "c"), ("e/y", "y")];
    assert_eq!(seen, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
}
