//! Who a container runs as: the request's user and groups, looked up in the image's own passwd and group files.
//!
//! The files are hostile input of bounded size: lines that do not parse are skipped, numbers that do not fit 31
//! bits are no ids (CVE-2024-40635).

use crate::plan::{GroupsPolicy, UserRef};
use alloc::vec::Vec;
use core::ffi::CStr;
use podinit::report::Identity;

/// Largest user or group id: the kernel's -1 and -2 and everything negative in 32 bits are out.
pub const MAX_ID: u32 = i32::MAX.cast_unsigned();

/// Content of /etc/passwd and /etc/group; empty where the image has none (passwd(5), group(5)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Accounts<'a> {
    /// /etc/passwd.
    pub passwd: &'a [u8],
    /// /etc/group.
    pub group: &'a [u8],
}

/// A user of /etc/passwd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// Which name the image does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName(pub Vec<u8>);

/// Who it will be, and its home directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved<'a> {
    /// User, group and supplementary groups; these begin with the primary group.
    pub identity: Identity,
    /// Home directory; / for a user without an entry.
    pub home: &'a [u8],
}

impl<'a> Accounts<'a> {
    /// Resolves the request. A user without an entry has group 0, as in Docker and containerd.
    pub fn resolve(
        &self,
        user: UserRef<'_>,
        group: UserRef<'_>,
        groups: &[u32],
        policy: GroupsPolicy,
    ) -> Result<Resolved<'a>, UnknownName> {
        let (uid, entry) = self.user(user)?;
        let gid = match group {
            UserRef::Unset => entry.map_or(0, |user| user.gid),
            UserRef::Id(gid) => gid,
            UserRef::Name(name) => self.gid(name)?,
        };
        let mut all = alloc::vec![gid];
        if let (GroupsPolicy::Merge, Some(user)) = (policy, entry) {
            all.extend(
                self.groups()
                    .filter(|(_, _, members)| members.split(|b| *b == b',').any(|m| m == user.name))
                    .map(|g| g.1),
            );
        }
        all.extend_from_slice(groups);
        let mut seen: Vec<u32> = Vec::with_capacity(all.len());
        for gid in all {
            if !seen.contains(&gid) {
                seen.push(gid);
            }
        }
        let home = entry
            .map(|user| user.home)
            .filter(|home| home.first() == Some(&b'/'))
            .unwrap_or(b"/");
        Ok(Resolved {
            identity: Identity {
                uid,
                gid,
                groups: seen,
            },
            home,
        })
    }

    fn user(&self, user: UserRef<'_>) -> Result<(u32, Option<User<'a>>), UnknownName> {
        let by_id = |id: u32| (id, self.users().find(|user| user.uid == id));
        match user {
            UserRef::Unset => Ok(by_id(0)),
            UserRef::Id(id) => Ok(by_id(id)),
            UserRef::Name(name) => match self.users().find(|user| user.name == name.to_bytes()) {
                Some(user) => Ok((user.uid, Some(user))),
                None => number(name.to_bytes()).map(by_id).ok_or_else(|| unknown(name)),
            },
        }
    }

    fn gid(&self, name: &CStr) -> Result<u32, UnknownName> {
        let by_name = self
            .groups()
            .find(|(group, _, _)| *group == name.to_bytes())
            .map(|(_, gid, _)| gid);
        by_name
            .or_else(|| number(name.to_bytes()))
            .ok_or_else(|| unknown(name))
    }

    fn users(&self) -> impl Iterator<Item = User<'a>> + use<'a> {
        self.passwd.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let (name, _password) = (fields.next()?, fields.next()?);
            let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
            let (_comment, home) = (fields.next()?, fields.next()?);
            Some(User { name, uid, gid, home })
        })
    }

    /// Name, id and member list of each group.
    fn groups(&self) -> impl Iterator<Item = (&'a [u8], u32, &'a [u8])> + use<'a> {
        self.group.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let (name, _password, gid) = (fields.next()?, fields.next()?, number(fields.next()?)?);
            Some((name, gid, fields.next().unwrap_or_default()))
        })
    }
}

fn unknown(name: &CStr) -> UnknownName {
    UnknownName(name.to_bytes().to_vec())
}

fn number(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id <= MAX_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNTS: Accounts<'static> = Accounts {
        passwd: b"root:x:0:0:root:/root:/bin/sh\nbroken\n:::\nwww:x:33:34:w:/var/www:/bin/false\n\
                  wrap:x:4294967296:0::/:\nminus:x:4294967295:0::/:\nrelative:x:7:7::home:\n",
        group: b"root:x:0:\nwww:x:34:\nlogs:x:40:root,www\nmore:x:41:wwwx\n42:x:43:\n",
    };

    fn resolve(
        user: UserRef<'_>,
        group: UserRef<'_>,
        policy: GroupsPolicy,
    ) -> Result<(u32, u32, Vec<u32>), UnknownName> {
        let resolved = ACCOUNTS.resolve(user, group, &[40, 99], policy)?;
        Ok((
            resolved.identity.uid,
            resolved.identity.gid,
            resolved.identity.groups,
        ))
    }

    #[test]
    fn users_and_groups_resolve_as_the_image_says() {
        use GroupsPolicy::{Merge, Strict};
        use UserRef::{Id, Name, Unset};
        let cases = [
            (Unset, Unset, Merge, Ok((0, 0, vec![0, 40, 99]))),
            (Name(c"www"), Unset, Merge, Ok((33, 34, vec![34, 40, 99]))),
            (Name(c"www"), Unset, Strict, Ok((33, 34, vec![34, 40, 99]))),
            (Id(33), Id(5), Merge, Ok((33, 5, vec![5, 40, 99]))),
            (Id(1000), Unset, Merge, Ok((1000, 0, vec![0, 40, 99]))),
            (Name(c"1000"), Name(c"logs"), Strict, Ok((1000, 40, vec![40, 99]))),
            (Name(c"root"), Name(c"42"), Strict, Ok((0, 43, vec![43, 40, 99]))),
            (
                Name(c"nobody"),
                Unset,
                Merge,
                Err(UnknownName(b"nobody".to_vec())),
            ),
            (Name(c"wrap"), Unset, Merge, Err(UnknownName(b"wrap".to_vec()))),
            (Name(c"minus"), Unset, Merge, Err(UnknownName(b"minus".to_vec()))),
            (
                Name(c"4294967296"),
                Unset,
                Merge,
                Err(UnknownName(b"4294967296".to_vec())),
            ),
            (
                Id(0),
                Name(c"absent"),
                Merge,
                Err(UnknownName(b"absent".to_vec())),
            ),
        ];
        for (user, group, policy, expected) in cases {
            assert_eq!(
                resolve(user, group, policy),
                expected,
                "{user:?} {group:?} {policy:?}"
            );
        }
    }

    #[test]
    fn homes_are_absolute() {
        let home = |user| {
            ACCOUNTS
                .resolve(user, UserRef::Unset, &[], GroupsPolicy::Strict)
                .map(|r| r.home)
        };
        assert_eq!(home(UserRef::Id(33)), Ok(b"/var/www".as_slice()));
        assert_eq!(home(UserRef::Id(7)), Ok(b"/".as_slice()));
        assert_eq!(home(UserRef::Id(12345)), Ok(b"/".as_slice()));
    }
}
