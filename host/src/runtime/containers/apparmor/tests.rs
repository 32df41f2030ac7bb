use super::*;
use crate::manifest;

const ADMIN: &str = "Name:\tx\nCapEff:\t000001ffffffffff\n";

/// A host with these files that root or an ordinary user asks, with or without the parser.
fn support(files: &[(&str, &str)], is_root: bool, has_parser: bool) -> Support {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let parser = has_parser.then(|| PathBuf::from("/sbin/apparmor_parser"));
    Support::of(root.path(), &Caller::of(root.path(), is_root, parser))
}

/// A host that has AppArmor and these profiles.
fn enabled(profiles: &str, is_root: bool, has_parser: bool) -> Support {
    let list = ("sys/kernel/security/apparmor/profiles", profiles);
    support(&[(ENABLED, "Y\n"), list, ("proc/self/status", ADMIN)], is_root, has_parser)
}

fn pod(containers: &[&str]) -> PodPlan {
    let container = |(index, security): (usize, &&str)| {
        format!("  - {{name: c{index}, image: b, securityContext: {security}}}\n")
    };
    let containers: String = containers.iter().enumerate().map(container).collect();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  runtimeClassName: pod-containers\n  containers:\n{containers}"
    );
    manifest::parse(text.as_bytes(), "x").unwrap_or_else(|problems| panic!("{problems}"))
}

const UNSET: &str = "{}";
const DEFAULT: &str = "{appArmorProfile: {type: RuntimeDefault}}";
const UNCONFINED: &str = "{appArmorProfile: {type: Unconfined}}";
const LOCAL: &str = "{appArmorProfile: {type: Localhost, localhostProfile: k8s/strict}}";

/// The names of the profiles of containers, and how often the default one was loaded.
fn names(
    containers: &[&str],
    support: &Support,
    outcome: Result<(), &str>,
) -> (Result<Profiles, String>, u32) {
    let loads = std::cell::Cell::new(0);
    let load = |_: &Enabled| {
        loads.set(loads.get() + 1);
        outcome.map_err(|why| Unavailable { reason: why.to_owned(), remedy: "Hope.".to_owned() })
    };
    let found = prepare_by(&pod(containers), support, &load).map_err(|error| error.to_string());
    (found, loads.get())
}

fn default_of(support: &Support) -> Option<String> {
    match support {
        Support::Enabled(enabled) => Some(enabled.default.name.clone()),
        Support::Absent => None,
    }
}

#[test]
fn root_of_a_host_with_apparmor_loads_the_default_once_for_all_containers() {
    let host = enabled("k8s/strict (enforce)\n", true, true);
    let all = [UNSET, DEFAULT, UNCONFINED, LOCAL, UNSET];
    let default = default_of(&host);
    let expected = [default.clone(), default.clone(), None, Some("k8s/strict".to_owned()), default].to_vec();
    assert_eq!(names(&all, &host, Ok(())), (Ok(Profiles { names: expected, warning: None }), 1));
    assert_eq!(names(&[UNCONFINED, LOCAL], &host, Ok(())).1, 0);
    assert_eq!(check(&pod(&all), &host), Ok(()));
}

#[test]
fn a_profile_that_fails_to_load_is_an_error_for_whoever_asks_for_it() {
    let host = enabled("", true, true);
    let (found, loads) = names(&[UNSET, UNSET], &host, Err("it is broken"));
    let found = found.unwrap();
    assert_eq!((found.names, loads), (vec![None, None], 1));
    assert_eq!(found.warning.as_deref(), Some("containers run without an AppArmor profile: it is broken"));
    let (found, loads) = names(&[UNSET, DEFAULT], &host, Err("it is broken"));
    assert_eq!(loads, 1);
    assert_eq!(
        found.unwrap_err(),
        "container c1: securityContext.appArmorProfile.type: the default profile cannot be had: it is broken"
    );
}

#[test]
fn without_the_parser_or_root_only_a_loaded_default_is_used() {
    for (is_root, has_parser, says) in
        [(true, false, "apparmor_parser is not installed"), (false, true, "only root can load profiles")]
    {
        let host = enabled("", is_root, has_parser);
        let none = Profiles { names: vec![None], warning: None };
        assert_eq!(names(&[UNSET], &host, Ok(())), (Ok(none), 0));
        let error = check(&pod(&[UNSET, DEFAULT]), &host).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("container c1: securityContext.appArmorProfile.type: "), "{text}");
        assert!(text.contains(says) && !error.why.remedy.is_empty(), "{text}");
        // Somebody has loaded it.
        let default = default_of(&host).unwrap();
        let host = enabled(&format!("x (complain)\n{default} (enforce)\n"), is_root, has_parser);
        assert_eq!(prepare(&pod(&[UNSET, DEFAULT]), &host).unwrap().names, vec![Some(default); 2]);
    }
}

#[test]
fn a_profile_of_the_host_must_be_loaded() {
    let host = enabled("k8s/stricter (enforce)\n", true, true);
    let error = check(&pod(&[UNSET, LOCAL]), &host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "container c1: securityContext.appArmorProfile.localhostProfile: the host has not loaded a profile \"k8s/strict\""
    );
    assert_eq!(error.why.remedy, "As root, load it with `apparmor_parser -r FILE`.");
    // Without the list of root, the directories tell the same; a profile in another one has both names.
    let policy = "sys/kernel/security/apparmor/policy/profiles";
    let (outer, inner) = (format!("{policy}/k8s.1/name"), format!("{policy}/k8s.1/profiles/hat.2/name"));
    let host = support(&[(ENABLED, "Y\n"), (&outer, "k8s/strict\n"), (&inner, "hat\n")], false, false);
    let of = |name: &str| {
        let security = format!("{{appArmorProfile: {{type: Localhost, localhostProfile: {name}}}}}");
        check(&pod(&[&security]), &host)
    };
    assert_eq!((of("k8s/strict"), of("k8s/strict//hat")), (Ok(()), Ok(())));
    assert!(of("hat").is_err());
}

#[test]
fn a_host_without_apparmor_has_no_profiles_and_needs_none() {
    for files in [&[][..], &[(ENABLED, "N\n")], &[("sys/kernel/security/apparmor/profiles", "")]] {
        let host = support(files, true, true);
        assert_eq!(host, Support::Absent);
        let (found, loads) = names(&[UNSET, DEFAULT, UNCONFINED], &host, Ok(()));
        assert_eq!((found.unwrap().names, loads), (vec![None; 3], 0));
        let error = check(&pod(&[LOCAL]), &host).unwrap_err().to_string();
        assert!(
            error.contains("\"k8s/strict\" cannot be used: the kernel of the host has no AppArmor"),
            "{error}"
        );
    }
}

#[test]
fn without_securityfs_nothing_is_known_and_nothing_can_be_loaded() {
    let host = support(&[(ENABLED, "Y\n"), ("proc/self/status", ADMIN)], true, true);
    assert_eq!(names(&[UNSET, UNCONFINED], &host, Ok(())).0.unwrap().names, vec![None; 2]);
    for asked in [DEFAULT, LOCAL] {
        let error = check(&pod(&[asked]), &host).unwrap_err();
        assert!(error.why.reason.contains("/sys/kernel/security/apparmor is not there"), "{error}");
        assert!(error.why.remedy.contains("mount -t securityfs"), "{error}");
    }
}

#[test]
fn whoever_is_bound_by_a_profile_leaves_it_to_containers() {
    let of = |label: &str| {
        let files = [
            (ENABLED, "Y\n"),
            ("sys/kernel/security/apparmor/profiles", "k8s/strict (enforce)\n"),
            ("proc/self/status", ADMIN),
            ("proc/self/attr/current", label),
        ];
        support(&files, true, true)
    };
    for free in ["unconfined\n", "magikvm (unconfined)\n", "magikvm (complain)\n"] {
        assert_eq!(names(&[UNSET], &of(free), Ok(())).1, 1, "{free}");
    }
    let bound = of("docker-default (enforce)\n");
    let (found, loads) = names(&[UNSET, UNCONFINED], &bound, Ok(()));
    assert_eq!((found.unwrap().names, loads), (vec![None, None], 0));
    let error = check(&pod(&[DEFAULT]), &bound).unwrap_err().to_string();
    assert!(error.contains("magikvm itself runs under the profile \"docker-default\""), "{error}");
}

#[test]
fn labels_are_told_without_their_mode() {
    for (text, label) in [
        ("unconfined\n", "unconfined"),
        ("magikvm (unconfined)\n", "magikvm"),
        ("a (b) (enforce)\0", "a (b)"),
        ("", "unconfined"),
    ] {
        assert_eq!(label_of(text), label);
    }
}
