//! The default profile as text. Its rules are in substance those of containerd's default profile.

use sha2::{Digest, Sha256};

/// The beginning of its name. The rest stands for its content: a loaded profile of this name has these rules, and pods of several versions of this
/// program do not replace each other's.
const PREFIX: &str = "magikvm-default-";
/// Stands for the name in the text of which the name is made.
const PLACEHOLDER: &str = "@NAME@";
/// Digits of the name that stand for the content.
const DIGITS: usize = 12;

const RULES: &str = r#"
profile @NAME@ flags=(attach_disconnected,mediate_deleted) {
  # What user, capabilities, namespaces and system calls allow, except for what follows.
  file,
  network,
  capability,
  umount,

  # The host, and the supervisor of the pod, end containers. Containers signal and trace each other, and nobody else.
@SIGNALS@
  signal (send, receive) peer=@NAME@,
  ptrace (read, readby, trace, tracedby) peer=@NAME@,
  # On hosts where the kernel joins this profile with none instead of changing to it.
  signal (send, receive) peer="@NAME@//&unconfined",
  ptrace (read, readby, trace, tracedby) peer="@NAME@//&unconfined",

  # Even a container with CAP_SYS_ADMIN sees no other files than those of its pod.
  deny mount,

  # Of /proc only files of processes can be written, and the limits of shared memory, which is the pod's own.
  deny /proc/* w,
  deny /proc/{[^1-9s],s[^y],sy[^s],sys[^/]}*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/k[^e]** w,
  deny /proc/sys/kernel/{[^s],s[^h],sh[^m]}** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # Of /sys only control groups.
  deny /sys/{[^f],f[^s]}*/** wklx,
  deny /sys/fs/{[^c],c[^g],cg[^r]}*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
"#;

/// What parsers are told of the features that the rules know, where they have the file of that name.
pub(super) const ABI: &str = "abi/3.0";

/// A profile that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) name: String,
    pub(super) text: String,
}

impl Profile {
    /// The one for containers whose supervisor runs under the AppArmor label `supervisor`. `knows_abi`: the host's parser has [`ABI`].
    pub(super) fn new(supervisor: &str, knows_abi: bool) -> Self {
        let abi = if knows_abi { format!("abi <{ABI}>,\n") } else { String::new() };
        let rules = format!("{abi}{}", RULES.trim_start()).replace("@SIGNALS@", &signals(supervisor));
        let digest = Sha256::digest(rules.as_bytes());
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let name = format!("{PREFIX}{}", &digits[..DIGITS]);
        Self { text: rules.replace(PLACEHOLDER, &name), name }
    }
}

/// Who may signal containers.
fn signals(supervisor: &str) -> String {
    let unconfined = "  signal (receive) peer=unconfined,";
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+/:&".contains(c);
    match supervisor {
        "unconfined" => unconfined.to_owned(),
        // Quotes and wild cards would mean something else in a rule.
        odd if odd.is_empty() || !odd.chars().all(is_plain) => "  signal (receive),".to_owned(),
        label => format!("{unconfined}\n  signal (receive) peer=\"{label}\","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stands_for_the_content() {
        let plain = Profile::new("unconfined", true);
        assert_eq!(plain, Profile::new("unconfined", true));
        assert_eq!(plain.name.len(), PREFIX.len() + DIGITS);
        for other in [Profile::new("unconfined", false), Profile::new("magikvm", true)] {
            assert_ne!(other.name, plain.name);
        }
        assert!(plain.text.starts_with("abi <abi/3.0>,\nprofile magikvm-default-"), "{}", plain.text);
        assert!(Profile::new("unconfined", false).text.starts_with("profile "));
        // Each placeholder has its text.
        assert!(!plain.text.contains(PLACEHOLDER) && !plain.text.contains("@SIGNALS@"));
        assert_eq!(plain.text.matches(&plain.name).count(), 5);
    }

    #[test]
    fn the_supervisor_may_signal_whatever_its_label_is() {
        let of = |label: &str| Profile::new(label, true).text;
        assert!(of("unconfined").contains("signal (receive) peer=unconfined,\n  signal (send, receive)"));
        assert!(of("magikvm").contains("signal (receive) peer=\"magikvm\",\n"));
        assert!(of("a//b//&c").contains("peer=\"a//b//&c\",\n"));
        for odd in ["a b", "a\"b", "a*", "", "é"] {
            assert!(of(odd).contains("  signal (receive),\n"), "{odd}");
        }
    }
}
