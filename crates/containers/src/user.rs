//! Who a container runs as: resolves an image's `User` with the image's `/etc/passwd` and `/etc/group`. Pure: the caller
//! passes the files as bytes.

/// Most bytes of `/etc/passwd` or `/etc/group` that are read.
pub(crate) const MAX_USER_FILE: u64 = 1 << 20;
/// Most supplementary groups (Linux NGROUPS_MAX).
const MAX_GROUPS: usize = 65_536;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// Home directory; `/` when the image does not define one.
    pub(crate) home: String,
}

/// Why an image's `User` can't be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    #[error("{0} is not a user or group id (0 to 4294967294)")]
    Number(String),
    /// The user namespace of the pod lacks it.
    #[error("{what} {id} does not exist in the pod, whose {what}s are {range}")]
    NotMapped { what: &'static str, id: u32, range: String },
}

/// Whether `user` can be resolved without the files; the home directory may still be in them.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        _ => Err(UserError::Number(text.to_owned())),
    }
}

/// Whether the groups that `/etc/group` gives a user count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    Always,
    /// As in Docker: not if the user's text names a group.
    UnlessGiven,
    Never,
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    file.split(|&b| b == b'\n').filter_map(|line| std::str::from_utf8(line).ok())
}

fn passwd(file: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).unwrap_or_default();
        let shell = fields.next().unwrap_or_default();
        Some(Passwd { name, uid, gid, home, shell })
    })
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn groups(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.trim_end_matches('\r').split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Group { name, gid, members: fields.next().unwrap_or_default() })
    })
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` and mixtures as other runtimes do: a name wins over a number with
/// the same text, and a number needs no file.
pub(crate) fn resolve(
    user: &str,
    passwd_file: &[u8],
    group_file: &[u8],
    listed: Listed,
) -> Result<User, UserError> {
    let (user_text, group_text) = user.split_once(':').unwrap_or((user, ""));
    let user_text = if user_text.is_empty() { "0" } else { user_text };
    let as_number = number(user_text)?;
    let by_name = passwd(passwd_file).find(|entry| entry.name == user_text);
    let entry = by_name.or_else(|| passwd(passwd_file).find(|entry| Some(entry.uid) == as_number));
    let (uid, mut gid, name, home) = match (entry, as_number) {
        (Some(entry), _) => (entry.uid, entry.gid, Some(entry.name), entry.home),
        (None, Some(uid)) => (uid, 0, None, ""),
        (None, None) => return Err(UserError::UnknownUser(user_text.to_owned())),
    };
    let mut supplementary = Vec::new();
    let counts = match listed {
        Listed::Always => true,
        Listed::UnlessGiven => group_text.is_empty(),
        Listed::Never => false,
    };
    if counts {
        let has = |group: &Group<'_>| {
            name.is_some_and(|name| group.members.split(',').any(|member| member.trim() == name))
        };
        supplementary.extend(groups(group_file).filter(has).map(|group| group.gid).take(MAX_GROUPS));
        supplementary.sort_unstable();
        supplementary.dedup();
    }
    if !group_text.is_empty() {
        gid = match (groups(group_file).find(|group| group.name == group_text), number(group_text)?) {
            (Some(group), _) => group.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::UnknownGroup(group_text.to_owned())),
        };
    }
    let home = if home.starts_with('/') { home } else { "/" };
    Ok(User { uid, gid, groups: supplementary, home: home.to_owned() })
}

/// The shell of a user who may have one.
pub(crate) fn shell(uid: u32, passwd_file: &[u8]) -> Option<String> {
    let shell = passwd(passwd_file).find(|entry| entry.uid == uid)?.shell;
    let none = ["/nologin", "/false"].iter().any(|end| shell.ends_with(end));
    (shell.starts_with('/') && !none && !shell.contains('\0')).then(|| shell.to_owned())
}

/// The users and groups of a user namespace (user_namespaces(7)).
#[derive(Debug, Clone, Default)]
pub(crate) struct IdMaps {
    users: String,
    groups: String,
}

impl IdMaps {
    /// Those of the calling process. `/proc` must be the supervisor's: that of a container is what the container has made of it.
    pub(crate) fn of_this_process() -> Self {
        let map = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        Self { users: map("/proc/self/uid_map"), groups: map("/proc/self/gid_map") }
    }

    #[cfg(test)]
    pub(crate) fn of_text(map: &str) -> Self {
        Self { users: map.to_owned(), groups: map.to_owned() }
    }

    /// Checks that a user and its groups exist.
    pub(crate) fn check(&self, uid: u32, gids: impl IntoIterator<Item = u32>) -> Result<(), UserError> {
        let check = |what, map: &str, id| match is_mapped(map, id) {
            true => Ok(()),
            false => Err(UserError::NotMapped { what, id, range: ranges(map) }),
        };
        check("user", &self.users, uid)?;
        gids.into_iter().try_for_each(|gid| check("group", &self.groups, gid))
    }
}

/// The first id of each range, and how many it has.
fn parsed(map: &str) -> impl Iterator<Item = (u32, u32)> {
    map.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().map(str::parse::<u32>);
        match (words.next(), words.next(), words.next()) {
            (Some(Ok(first)), _, Some(Ok(count))) => Some((first, count)),
            _ => None,
        }
    })
}

fn is_mapped(map: &str, id: u32) -> bool {
    parsed(map).any(|(first, count)| id.checked_sub(first).is_some_and(|at| at < count))
}

/// The ids of a map, for people.
fn ranges(map: &str) -> String {
    let mut all: Vec<(u64, u64)> =
        parsed(map).map(|(first, count)| (first.into(), u64::from(first) + u64::from(count))).collect();
    all.sort_unstable();
    all.dedup_by(|next, before| {
        let follows = next.0 <= before.1;
        if follows {
            before.1 = before.1.max(next.1);
        }
        follows
    });
    let shown = |&(first, end): &(u64, u64)| match end.saturating_sub(first) {
        0 | 1 => format!("{first} only"),
        _ => format!("{first} to {}", end - 1),
    };
    all.iter().map(shown).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] =
        b"# comment\nroot:x:0:0:root:/root:/bin/sh\n\nbroken\nweb:x:1000:1001:W:/srv/web:/bin/sh\n1000:x:7:8::/seven:\nnohome:x:5:5\n";
    const GROUP: &[u8] = b"root:x:0:\nstaff:x:50:web,root\nextra:x:60:web\n70:x:71:\n";

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> User {
        User { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn names_numbers_and_mixtures() {
        let cases = [
            ("", user(0, 0, &[50], "/root")),
            ("root", user(0, 0, &[50], "/root")),
            ("web", user(1000, 1001, &[50, 60], "/srv/web")),
            ("web:staff", user(1000, 50, &[], "/srv/web")),
            ("web:99", user(1000, 99, &[], "/srv/web")),
            ("2000", user(2000, 0, &[], "/")),
            ("2000:3000", user(2000, 3000, &[], "/")),
            (":staff", user(0, 50, &[], "/root")),
            ("1000", user(7, 8, &[], "/seven")),
            ("0:70", user(0, 71, &[], "/root")),
            ("nohome", user(5, 5, &[], "/")),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text, PASSWD, GROUP, Listed::UnlessGiven), Ok(expected), "{text:?}");
        }
    }

    #[test]
    fn groups_of_the_image_count_as_asked() {
        for (text, always) in [("web:staff", &[50, 60][..]), ("1000:9", &[]), ("web", &[50, 60])] {
            assert_eq!(resolve(text, PASSWD, GROUP, Listed::Always).unwrap().groups, always, "{text}");
            assert!(resolve(text, PASSWD, GROUP, Listed::Never).unwrap().groups.is_empty(), "{text}");
        }
    }

    fn of_number(text: &str) -> Result<User, UserError> {
        resolve(text, b"", b"", Listed::Always)
    }

    #[test]
    fn numbers_need_no_file_and_unknown_names_are_named() {
        assert_eq!(of_number("1000:1000"), Ok(user(1000, 1000, &[], "/")));
        assert_eq!(of_number(""), Ok(user(0, 0, &[], "/")));
        assert_eq!(of_number("nobody"), Err(UserError::UnknownUser("nobody".to_owned())));
        assert_eq!(of_number("0:wheel"), Err(UserError::UnknownGroup("wheel".to_owned())));
        assert_eq!(of_number("4294967295"), Err(UserError::Number("4294967295".to_owned())));
        assert_eq!(of_number("0:99999999999"), Err(UserError::Number("99999999999".to_owned())));
        assert_eq!(of_number("-1"), Err(UserError::UnknownUser("-1".to_owned())));
    }

    #[test]
    fn the_shell_is_the_users_own_if_it_is_one() {
        let file =
            b"root:x:0:0::/root:/bin/zsh\nweb:x:5:5::/:/usr/sbin/nologin\nbare:x:6:6:\nodd:x:7:7::/:sh\n";
        assert_eq!(shell(0, file).as_deref(), Some("/bin/zsh"));
        for uid in 5..9 {
            assert_eq!(shell(uid, file), None, "{uid}");
        }
    }

    proptest! {
        #[test]
        fn hostile_files_never_panic(user in ".{0,20}", passwd in any::<Vec<u8>>(), group in any::<Vec<u8>>()) {
            resolve(&user, &passwd, &group, Listed::Always).ok();
            shell(0, &passwd);
        }
    }

    #[test]
    fn only_ids_of_the_map_exist() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert!(is_mapped(map, 0) && is_mapped(map, 1) && is_mapped(map, 65_536));
        assert!(!is_mapped(map, 65_537) && !is_mapped("", 0));
    }

    #[test]
    fn an_id_that_does_not_exist_is_named_with_those_that_do() {
        let maps = IdMaps::of_text("0 1895825408 65536\n");
        assert_eq!(maps.check(65_535, [0, 65_535]), Ok(()));
        let says = |error: Result<(), UserError>| error.unwrap_err().to_string();
        assert_eq!(
            says(maps.check(70_000, [0])),
            "user 70000 does not exist in the pod, whose users are 0 to 65535"
        );
        assert_eq!(
            says(maps.check(0, [5, 70_001])),
            "group 70001 does not exist in the pod, whose groups are 0 to 65535"
        );
        let ordinary =
            IdMaps { users: "0 1000 1\n".to_owned(), groups: "0 1000 1\n1 100000 65536\n".to_owned() };
        assert!(says(ordinary.check(7, [])).ends_with("whose users are 0 only"));
        assert!(says(ordinary.check(0, [65_537])).ends_with("whose groups are 0 to 65536"));
        assert_eq!(ranges("10 1 5\n0 1 2\n"), "0 to 1, 10 to 14");
    }
}
