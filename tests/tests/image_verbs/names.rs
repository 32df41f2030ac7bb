//! Names and IDs, tags, removal, and error messages.

use crate::{image, import, inspect, listed, names, store};
use magikvm_tests::layout::{Tar, digest, image_config};
use magikvm_tests::snapshots::assert_golden;
use magikvm_tests::tools::files;
use magikvm_tests::{Host, Pod};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;

#[test]
fn an_image_is_meant_by_its_name_its_id_and_the_beginning_of_it() {
    let host = Host::bare();
    let id = import(&host, "team/app:1", "a");
    import(&host, "team/other:1", "b");
    let hex = id.trim_start_matches("sha256:");
    let texts = ["team/app:1", "docker.io/team/app:1", &id, hex, &hex[..12], &hex[..4], &id[..20]];
    for (number, text) in texts.into_iter().enumerate() {
        assert_eq!(inspect(&host, text)["id"], id.as_str(), "{text}");
        let name = format!("copy:{number}");
        let said = image(&host, &["tag", text, &name]).ok();
        assert_eq!((said.stdout, said.stderr), (format!("{name} {id}\n"), String::new()));
    }
    assert_eq!(inspect(&host, "copy:6")["names"].as_array().unwrap().len(), texts.len() + 1);
    assert_eq!(image(&host, &["ls", "-q"]).ok().stdout.matches(&id).count(), 1, "an id for each image");
    // Fewer digits are a name.
    image(&host, &["inspect", &hex[..3]]).fails(1).complains(&format!("there is no image {}", &hex[..3]));
    image(&host, &["tag", &hex[4..], "x"]).fails(1);
    let unknown = format!("sha256:{}", "0".repeat(64));
    for verb in [vec!["inspect"], vec!["rm"], vec!["verify"]] {
        let said = image(&host, &verb).arg(&unknown).fails(1);
        said.complains("there is no image with the id 0000000")
            .complains("Hint: List the ids with `magikvm image ls`");
    }
}

/// A name may look like an id; then it is the name.
#[test]
fn a_name_goes_before_an_id() {
    let host = Host::bare();
    let id = import(&host, "team/app:1", "a");
    let digits = id["sha256:".len()..][..8].to_owned();
    let other = import(&host, &digits, "b");
    assert_eq!(inspect(&host, &digits)["id"], other.as_str());
    image(&host, &["rm", &digits]).ok();
    assert_eq!(inspect(&host, &digits)["id"], id.as_str());
}

#[test]
fn the_beginning_of_two_ids_is_none_of_both() {
    let layer = || Tar::default().file("content", 0o644, b"x");
    let bytes = layer().finish();
    let config = |number: u32| json!({ "Labels": { "number": number.to_string() } });
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let alike = (0..100_000).find_map(|number| {
        let id = digest(&image_config(&bytes, &config(number)));
        let digits = id["sha256:".len()..][..4].to_owned();
        seen.insert(digits.clone(), number).map(|other| (digits, other, number))
    });
    let (digits, one, other) = alike.unwrap();
    let host = Host::bare();
    host.import("one", layer(), &config(one));
    host.import("other", layer(), &config(other));
    for verb in [vec!["inspect", &digits], vec!["rm", &digits], vec!["tag", &digits, "x"]] {
        let said = image(&host, &verb).fails(1).complains("matches several images").complains("Hint");
        assert_eq!(said.stderr.matches("sha256:").count(), 2, "{}", said.stderr);
    }
    assert_eq!(names(&host), ["one:latest", "other:latest"]);
    let id = inspect(&host, "one")["id"].as_str().unwrap().to_owned();
    image(&host, &["rm", &id["sha256:".len()..][..16]]).ok();
    assert_eq!(inspect(&host, &digits)["names"][0], "docker.io/library/other:latest");
}

#[test]
fn a_name_is_given_to_another_image() {
    let host = Host::fake();
    let used = inspect(&host, "test/app:1")["id"].as_str().unwrap().to_owned();
    let other = import(&host, "other", "b");
    // Its last name: the image goes.
    let gone = import(&host, "third", "c");
    image(&host, &["tag", "other", "third"]).ok();
    image(&host, &["inspect", &gone]).fails(1);
    assert_eq!(names(&host), ["other:latest", "test/app:1", "third:latest"]);

    // While a pod uses it, it stays without a name.
    host.start_fake(&Pod::simple("user"), "run");
    image(&host, &["tag", "other", "test/app:1"]).ok();
    let short = used["sha256:".len()..][..12].to_owned();
    assert_eq!(listed(&host).last(), Some(&("<none>".to_owned(), short)));
    assert_eq!(inspect(&host, &used)["names"], json!([]));
    assert_eq!(inspect(&host, "test/app:1")["id"], other.as_str());
    image(&host, &["rm", &used])
        .fails(1)
        .complains("is used by a pod")
        .complains("Hint: Find the pod with `magikvm ps`");
    assert_eq!(image(&host, &["prune"]).ok().stdout, "freed 0B\n");
    host.cmd(["rm", "-f", "user"]).ok();
    image(&host, &["rm", &used]).ok().prints(&format!("removed {used} ("));
    assert_eq!(names(&host), ["other:latest", "test/app:1", "third:latest"]);
    image(&host, &["tag", "missing", "other"]).fails(1).complains("there is no image missing");
    assert_eq!(inspect(&host, "other")["id"], other.as_str());
}

/// A pod keeps the image that its name meant at the start.
#[test]
fn a_tag_is_no_business_of_the_other_names() {
    let host = Host::bare();
    let id = import(&host, "app:1", "a");
    image(&host, &["tag", "app:1", "app:2"]).ok();
    image(&host, &["tag", "app:2", "app:2"]).ok();
    let before = files(&store(&host));
    let said = image(&host, &["rm", "app:1"]).ok();
    assert_eq!(said.stdout, "untagged app:1\n");
    assert_eq!(files(&store(&host)), before);
    let said = image(&host, &["rm", "app:2"]).ok().stdout;
    assert!(said.starts_with(&format!("removed app:2 ({id}, ")) && said.ends_with(" freed)\n"), "{said}");
    assert_eq!(files(&store(&host)), ["index.json", "lock"]);
}

#[test]
fn an_id_stands_for_all_names_and_the_others_are_removed_beside_an_error() {
    let host = Host::bare();
    let id = import(&host, "app:1", "a");
    image(&host, &["tag", "app:1", "elsewhere.example/app:2"]).ok();
    import(&host, "b", "b");
    import(&host, "c", "c");
    let said = image(&host, &["rm", &id, "missing", "b"]).fails(1).complains("there is no image missing");
    assert_eq!(said.stdout.lines().count(), 2, "{}", said.stdout);
    assert_eq!(names(&host), ["c:latest"]);
}

#[test]
fn inspect_shows_those_that_are_there_beside_an_error() {
    let host = Host::bare();
    let ids = [import(&host, "a", "a"), import(&host, "b", "b")];
    let said = image(&host, &["inspect", "a", "missing:7", "b"]).fails(1);
    let shown: Value = serde_json::from_str(&said.stdout).unwrap();
    let shown: Vec<&str> = shown.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(shown, ids);
    let said = said.complains("Error: there is no image missing:7");
    assert!(!said.stderr.contains("there is no image a"));
    let yaml = image(&host, &["inspect", "a", "missing:7", "b", "-o", "yaml"]).fails(1).stdout;
    for id in &ids {
        assert!(yaml.contains(&format!("\n  id: {id}\n")), "{yaml}");
    }
    let said = image(&host, &["inspect", "missing:7"]).fails(1);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap(), json!([]));

    // The reported facts about an image are correct.
    let one = inspect(&host, "a");
    let path = one["rootfs"]["path"].as_str().unwrap();
    let rootfs = fs::read(path).unwrap();
    assert_eq!(one["rootfs"]["sha256"].as_str(), Some(digest(&rootfs).as_str()));
    assert_eq!(one["rootfs"]["sizeBytes"].as_u64(), Some(rootfs.len() as u64));
    for part in one["layers"].as_array().unwrap().iter().chain([&one["manifest"]]) {
        let found = part["digest"].as_str().unwrap();
        let bytes = fs::read(crate::blob(&host, found)).unwrap();
        assert_eq!((digest(&bytes).as_str(), part["sizeBytes"].as_u64()), (found, Some(bytes.len() as u64)));
    }
    assert_eq!(one["digests"], json!([one["manifest"]["digest"]]));
    assert_eq!((&one["signedBy"], &one["config"]["Cmd"]), (&json!([]), &json!(["/bin/app"])));
}

#[test]
fn help_of_the_verbs() {
    let host = Host::bare();
    for verb in ["pull", "inspect", "tag", "prune", "export", "verify", "df"] {
        assert_golden(&format!("help-image-{verb}"), &image(&host, &[verb, "--help"]).ok().stdout);
    }
}

#[test]
fn wrong_words_are_said_so() {
    let host = Host::bare();
    import(&host, "app:1", "a");
    let wrong: [&[&str]; 21] = [
        &["lss"],
        &["pull"],
        &["pull", "--policy", "sometimes", "x"],
        &["pull", "--timeout", "0", "x"],
        &["pull", "--platform", "linux", "x"],
        &["ls", "-q", "-o", "json"],
        &["inspect"],
        &["tag", "app:1"],
        &["tag", "app:1", "Not A Name"],
        &["tag", "app:1", "x:"],
        &["rm"],
        &["prune", "--until", "5w"],
        &["prune", "--keep-storage", "1.5G"],
        &["prune", "--dry-rum"],
        &["import", "oci:x"],
        &["import", "oci:", "--name", "x"],
        &["export", "app:1", "docker:x"],
        &["export", "app:1", "oci-archive:"],
        &["verify"],
        &["verify", "--all", "app:1"],
        &["import", "oci:x", "--name", "x", "--compress", "zstd"],
    ];
    let mut said = String::new();
    for words in wrong {
        let output = image(&host, words).run();
        assert!(matches!(output.code, 1 | 2), "{words:?}: {}", output.transcript());
        said += &format!("$ magikvm image {}\n{}\n", words.join(" "), output.transcript());
    }
    assert_golden("image-wrong-words", &said);
    assert_eq!(names(&host), ["app:1"]);
}

#[test]
fn a_damaged_index_is_said_so_and_nothing_is_removed() {
    let host = Host::bare();
    import(&host, "app:1", "a");
    let index = store(&host).join("index.json");
    let good = fs::read_to_string(&index).unwrap();
    let newer = good.replacen("\"schema\":2", "\"schema\":99", 1);
    assert_ne!(good, newer);
    let damages = [
        (&good[..good.len() / 2], "cannot be read"),
        ("", "cannot be read"),
        ("{}", "cannot be read"),
        ("\0\0\0\0", "cannot be read"),
        (&newer, "was written by a newer magikvm"),
    ];
    let before = files(&store(&host));
    for (text, problem) in damages {
        fs::write(&index, text).unwrap();
        let verbs: [&[&str]; 8] = [
            &["ls"],
            &["df"],
            &["inspect", "app:1"],
            &["rm", "app:1"],
            &["tag", "app:1", "x"],
            &["prune", "--all"],
            &["verify", "--all"],
            &["pull", "--policy", "never", "app:1"],
        ];
        for verb in verbs {
            let said = image(&host, verb).fails(3).complains(problem).complains("data/images/index.json");
            assert!(["", "[]\n"].contains(&said.stdout.as_str()), "{verb:?}: {}", said.stdout);
        }
        assert_eq!(fs::read_to_string(&index).unwrap(), text);
    }
    fs::write(&index, good).unwrap();
    assert_eq!(files(&store(&host)), before);
    image(&host, &["verify", "--all"]).ok();
}
