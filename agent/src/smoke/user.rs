//! Who runs the program: the image's `User`, by the image's own files.

/// Ids as the kernel knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Groups besides.
    pub(super) more: Vec<u32>,
}

/// Groups of one user that are taken; the kernel's own limit is far above.
const MAX_GROUPS: usize = 64;

/// Whether the files of the image have to be read for it.
pub(super) fn needs_files(user: &str) -> bool {
    !matches!(
        user,
        "" | "0" | "root" | "0:0" | "root:root" | "root:0" | "0:root"
    )
}

/// What `user` (`NAME`, `UID`, each with `:GROUP` or `:GID` or without) means with these
/// `/etc/passwd` and `/etc/group`. The error says what is not there.
///
/// As containerd's clients have it: a number needs no entry, and has the group of its entry, if
/// there is one, else 0; groups besides are those that list the user, unless a group is named.
pub(super) fn ids(user: &str, passwd: &str, group: &str) -> Result<Ids, String> {
    let (name, named_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = entries(passwd).find_map(|fields| {
        let uid: u32 = fields.get(2)?.parse().ok()?;
        let gid: u32 = fields.get(3)?.parse().ok()?;
        let matches = fields.first() == Some(&name) || name.parse() == Ok(uid);
        matches.then(|| (fields.first().copied().unwrap_or_default(), uid, gid))
    });
    let (login, uid, gid) = match (entry, name.parse()) {
        (Some(entry), _) => entry,
        (None, Ok(uid)) => ("", uid, 0),
        // Images without files of users know this one all the same.
        (None, Err(_)) if name == "root" => ("root", 0, 0),
        (None, Err(_)) => return Err(format!("no user `{name}` in the image's /etc/passwd")),
    };
    if let Some(wanted) = named_group {
        let found = entries(group).find_map(|fields| {
            let gid: u32 = fields.get(2)?.parse().ok()?;
            (fields.first() == Some(&wanted) || wanted.parse() == Ok(gid)).then_some(gid)
        });
        let gid = match (found, wanted.parse()) {
            (Some(gid), _) | (None, Ok(gid)) => gid,
            (None, Err(_)) if wanted == "root" => 0,
            (None, Err(_)) => return Err(format!("no group `{wanted}` in the image's /etc/group")),
        };
        return Ok(Ids {
            uid,
            gid,
            more: Vec::new(),
        });
    }
    let more = entries(group)
        .filter(|fields| {
            let members = fields.get(3).copied().unwrap_or_default();
            !login.is_empty() && members.split(',').any(|member| member == login)
        })
        .filter_map(|fields| fields.get(2)?.parse().ok())
        .filter(|more| *more != gid)
        .take(MAX_GROUPS)
        .collect();
    Ok(Ids { uid, gid, more })
}

fn entries(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.trim_end().split(':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# web:x:1:1::/:\nbroken\nweb:x:33:34:w:/:/bin/false\n7:x:70:71::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:4:other,web\nshadow:x:42:webmaster\n";

    #[test]
    fn names_and_numbers_are_looked_up() {
        let of =
            |user: &str| ids(user, PASSWD, GROUP).map(|found| (found.uid, found.gid, found.more));
        assert_eq!(of(""), Ok((0, 0, vec![])));
        assert_eq!(of("web"), Ok((33, 34, vec![4])));
        assert_eq!(of("33"), Ok((33, 34, vec![4])));
        assert_eq!(of("web:log"), Ok((33, 4, vec![])));
        assert_eq!(of("web:42"), Ok((33, 42, vec![])));
        assert_eq!(of("1000"), Ok((1000, 0, vec![])));
        assert_eq!(of("1000:1001"), Ok((1000, 1001, vec![])));
        assert_eq!(of(":log"), Ok((0, 4, vec![])));
        assert!(of("nobody").is_err_and(|why| why.contains("`nobody`")));
        assert!(of("web:none").is_err_and(|why| why.contains("`none`")));
        assert!(of("-1").is_err());
        assert_eq!(ids("root:root", "", ""), Ok(Ids::default()));
    }
}
