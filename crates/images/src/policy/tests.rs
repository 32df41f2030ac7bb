use super::super::signature::KeyId;
use super::*;
use proptest::prelude::*;
use std::fs;

const TEAM: &str = include_str!("../../../../tests/fixtures/cosign/team.pub");
const OTHER: &str = include_str!("../../../../tests/fixtures/cosign/other.pub");

/// A policy beside the keys team.pub and keys/other.pub.
fn load(text: &str) -> Result<Policy, PolicyError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("keys")).unwrap();
    fs::write(dir.path().join("team.pub"), TEAM).unwrap();
    fs::write(dir.path().join("keys/other.pub"), OTHER).unwrap();
    fs::write(dir.path().join("private.pem"), "-----BEGIN ENCRYPTED COSIGN PRIVATE KEY-----\n").unwrap();
    let path = dir.path().join("policy.toml");
    fs::write(&path, text).unwrap();
    Policy::load(&path)
}

fn rule(prefix: &str, rest: &str) -> String {
    format!("[[rule]]\nprefix = \"{prefix}\"\n{rest}\n")
}

/// A policy's requirement in a word.
fn wants(policy: &Policy, image: &str) -> &'static str {
    match policy.requirement(&image.parse().unwrap()) {
        Requirement::Accept => "accept",
        Requirement::Reject { because: Because::Default, .. } => "reject by default",
        Requirement::Reject { .. } => "reject",
        Requirement::CosignKey(_) => "key",
        Requirement::Unsupported { .. } => "unsupported",
    }
}

/// The error's text without the directory.
fn problem(text: &str) -> String {
    let error = load(text).unwrap_err();
    let source = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    let text = error.to_string();
    let text = text.split_once("policy.toml, ").map_or(text.as_str(), |(_, text)| text);
    format!("{text}{source}")
}

#[test]
fn no_file_and_an_empty_file_accept_every_image() {
    let missing = Policy::load(Path::new("/nonexistent/policy.toml")).unwrap();
    for policy in [missing, load("").unwrap(), Policy::accept_all()] {
        assert_eq!(wants(&policy, "busybox"), "accept");
    }
}

#[test]
fn the_longest_prefix_decides_whatever_the_order() {
    let mut rules = [
        rule("registry.example", "require = \"reject\""),
        rule("registry.example/team", "require = \"cosign-key\"\nkeys = [\"team.pub\"]"),
        rule("registry.example/team/free", "require = \"accept\""),
        rule("docker.io/library", "require = \"cosign-keyless\""),
    ];
    for _ in 0..2 {
        rules.reverse();
        let policy = load(&format!("default = \"accept\"\n{}", rules.concat())).unwrap();
        assert_eq!(wants(&policy, "registry.example/app"), "reject");
        assert_eq!(wants(&policy, "registry.example/team/app:v1"), "key");
        assert_eq!(wants(&policy, "registry.example/team/free/app"), "accept");
        assert_eq!(wants(&policy, "registry.example/team/freedom"), "key");
        assert_eq!(wants(&policy, "busybox"), "unsupported");
        assert_eq!(wants(&policy, "user/app"), "accept");
    }
    let policy = load(&format!("default = \"reject\"\n{}", rules.concat())).unwrap();
    assert_eq!(wants(&policy, "user/app"), "reject by default");
    assert_eq!(wants(&policy, "registry.example/team/free/app"), "accept");
}

#[test]
fn keys_are_found_beside_the_policy_and_under_absolute_paths() {
    let dir = tempfile::tempdir().unwrap();
    let absolute = dir.path().join("absolute.pub");
    fs::write(&absolute, TEAM).unwrap();
    let keys = format!("require = \"cosign-key\"\nkeys = [\"keys/other.pub\", \"{}\"]", absolute.display());
    let policy = load(&rule("registry.example", &keys)).unwrap();
    let reference = "registry.example/app".parse().unwrap();
    let keys = policy.requirement(&reference).keys(&reference).unwrap().unwrap();
    let ids: Vec<KeyId> = keys.ids().collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn an_image_that_may_not_be_used_is_an_error_that_says_which_rule() {
    let text = rule("registry.example/a", "require = \"reject\"")
        + &rule("registry.example/b", "require = \"cosign-keyless\"");
    let policy = load(&format!("default = \"reject\"\n{text}")).unwrap();
    let error = |image: &str| {
        let reference = image.parse().unwrap();
        let error = policy.requirement(&reference).keys(&reference).unwrap_err();
        assert!(error.hint().is_some());
        error.to_string()
    };
    let said = error("registry.example/a/b");
    assert!(
        said.ends_with("rejects registry.example/a/b:latest: the rule for \"registry.example/a\" in line 3"),
        "{said}"
    );
    let said = error("registry.example/b");
    assert!(
        said.contains("requires a keyless cosign signature") && said.contains("not support yet"),
        "{said}"
    );
    assert!(said.ends_with("the rule for \"registry.example/b\" in line 6"), "{said}");
    assert!(error("busybox").ends_with("no rule fits, and the default is \"reject\""));
    assert!(
        Policy::accept_all()
            .requirement(&"a".parse().unwrap())
            .keys(&"a".parse().unwrap())
            .unwrap()
            .is_none()
    );
}

#[test]
fn what_a_policy_has_not_is_an_error_with_its_line_and_what_could_be_there() {
    for (text, expected) in [
        ("defualt = \"reject\"", "line 1: unknown field `defualt`, expected `default` or `rule`"),
        ("\ndefault = \"deny\"", "line 2: unknown variant `deny`, expected `accept` or `reject`"),
        ("default = true", "line 1: wanted string or table"),
        ("[rule]\nprefix = \"a.b\"", "line 1: invalid type: map, expected a sequence"),
        ("[[rules]]", "line 1: unknown field `rules`, expected `default` or `rule`"),
        ("default = \"accept\"\ndefault = \"reject\"", "line 2: duplicate key"),
        ("default = ", "line 1: "),
    ] {
        let problem = problem(text);
        assert!(problem.starts_with(expected), "{text:?}: {problem}");
    }
    let unknown = problem(&rule("a.b", "require = \"cosign\""));
    assert_eq!(
        unknown,
        "line 3: unknown variant `cosign`, expected one of `accept`, `reject`, `cosign-key`, `cosign-keyless`"
    );
    let unknown = problem(&rule("a.b", "require = \"accept\"\nkey = \"x\""));
    assert_eq!(unknown, "line 4: unknown field `key`, expected one of `prefix`, `require`, `keys`");
    assert_eq!(problem(&rule("a.b", "")), "line 1: missing field `require`");
    assert_eq!(problem("[[rule]]\nrequire = \"accept\""), "line 1: missing field `prefix`");
    assert!(
        problem(&rule("a.b", "require = \"cosign-key\"\nkeys = \"team.pub\""))
            .contains("expected a sequence")
    );
}

#[test]
fn rules_that_contradict_themselves_or_another_are_errors() {
    let accept = "require = \"accept\"";
    assert!(
        problem(&rule("busybox", accept)).contains("line 2: the rule for \"busybox\": a prefix begins with")
    );
    assert!(
        problem(&rule("docker.io/busybox", accept))
            .contains("\"docker.io/library/busybox\" for the official image")
    );
    let twice = rule("registry.example/a", accept) + &rule("REGISTRY.example:443/a/", accept);
    assert_eq!(problem(&twice), "line 5: there is a rule for \"registry.example/a\" already, in line 2");
    assert!(
        problem(&rule("a.b", &format!("{accept}\nkeys = [\"team.pub\"]")))
            .contains("only a rule with require")
    );
    assert!(problem(&rule("a.b", "require = \"cosign-key\"")).contains("wants keys"));
    assert!(problem(&rule("a.b", "require = \"cosign-key\"\nkeys = []")).contains("wants keys"));
    let many = format!("require = \"cosign-key\"\nkeys = [{}]", "\"team.pub\",".repeat(65));
    assert!(problem(&rule("a.b", &many)).contains("more than 64 keys"));
}

#[test]
fn a_key_that_cannot_be_used_is_an_error_that_names_file_and_rule() {
    let key = |file: &str| {
        problem(&rule("a.b/c", &format!("require = \"cosign-key\"\nkeys = [\"team.pub\", \"{file}\"]")))
    };
    let missing = key("gone.pub");
    assert!(
        missing.starts_with("line 2: a key of the rule for \"a.b/c\" cannot be used: cannot read"),
        "{missing}"
    );
    assert!(missing.ends_with("gone.pub"), "{missing}");
    assert!(
        key("private.pem")
            .contains("private.pem is not a public key for signatures of images: it is a private key")
    );
    assert!(key("policy.toml").contains("policy.toml is not a public key"));
}

#[test]
fn a_policy_that_is_no_text_no_file_or_endless_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Policy::load(dir.path()), Err(PolicyError::Read { .. })));
    assert!(matches!(Policy::load(Path::new("/dev/zero")), Err(PolicyError::TooLarge { .. })));
    let link = dir.path().join("link.toml");
    std::os::unix::fs::symlink("gone.toml", &link).unwrap();
    assert!(matches!(Policy::load(&link), Err(PolicyError::Read { .. })));
    let path = dir.path().join("policy.toml");
    fs::write(&path, b"# one\n# two\xff\n").unwrap();
    assert!(matches!(Policy::load(&path), Err(PolicyError::Form { line: 2, .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "[\\[\\]a-z=\" .\n]{0,80}") {
        let path = Path::new("/nonexistent/policy.toml");
        drop(Policy::parse(path, &bytes));
        drop(Policy::parse(path, text.as_bytes()));
        drop(Policy::parse(path, (rule("a.b", "require = \"reject\"") + &text).as_bytes()));
    }
}
