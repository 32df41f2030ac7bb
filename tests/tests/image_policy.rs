//! `policy.toml` end to end: a real registry, signatures by cosign, and the state after a refusal.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::images::{Images, manifest};
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::registry::Registry;
use magikvm_tests::tools::files;
use magikvm_tests::{Cmd, Host, Output, Pod};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

const FORMS: [&str; 3] = ["tag", "referrer", "bundle"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/cosign").join(name)
}

/// Images of one layer each: `one`, `other`.
fn some_images() -> Images {
    let images = Images::new();
    images.empty("empty");
    images.noise("empty", "one", 1, 100_000);
    images.noise("empty", "other", 2, 100_000);
    images
}

/// A registry, a host that reaches it, and the policy of that host.
struct Scene {
    images: Images,
    registry: Registry,
    host: Host,
}

impl Scene {
    fn new() -> Self {
        let (images, registry) = (some_images(), Registry::plain());
        let host = host_of(&registry.host());
        Self { images, registry, host }
    }

    /// Puts an image into the repository `team/…`; returns its digest.
    fn push(&self, tag: &str, name: &str) -> String {
        let digest = self.registry.push(&self.images.layout(), tag, name);
        self.registry.forget();
        digest
    }

    /// A rule for `team/` of the registry.
    fn rule(&self, require: &str) {
        let prefix = self.registry.name("team");
        policy(&self.host, &format!("[[rule]]\nprefix = \"{prefix}\"\nrequire = {require}\n"));
    }

    /// Signs an image of a repository, under that repository's name.
    fn sign(&self, form: &str, repository: &str, digest: &str, key: &str) {
        self.sign_as(form, repository, digest, &self.registry.name(repository), key);
    }

    fn sign_as(&self, form: &str, repository: &str, digest: &str, name: &str, key: &str) {
        let url = format!("http://{}", self.registry.host());
        let sign = self.host.other(fixture("sign.sh")).args([form, &url, repository, digest, name]);
        sign.arg(fixture(key)).ok();
        self.registry.forget();
    }

    fn pull(&self, name: &str) -> Cmd {
        self.host.cmd(["image", "pull", &self.registry.name(name)])
    }

    fn pod(&self, name: &str, policy: &str) -> Pod {
        Pod::new("p").container_of("web", &self.registry.name(name), &["app"]).with("imagePullPolicy", policy)
    }

    fn run(&self, name: &str, policy: &str) -> Cmd {
        self.host.run_fake(&self.pod(name, policy), "exit=0").arg("--rm")
    }

    fn inspect(&self, name: &str) -> Value {
        let said = self.host.cmd(["image", "inspect", &self.registry.name(name)]).ok().stdout;
        serde_json::from_str::<Value>(&said).unwrap()[0].take()
    }

    /// A pull and a run are refused for these reasons, request no layer, and leave nothing.
    #[track_caller]
    fn refuses(&self, name: &str, texts: &[&str]) {
        self.registry.forget();
        let before = stored(&self.host);
        let commands =
            [(self.pull(name), 1), (self.run(name, "Always"), 125), (self.run(name, "IfNotPresent"), 125)];
        for (command, code) in commands {
            let mut said = command.fails(code);
            assert_eq!(said.stdout, "");
            for text in texts {
                said = said.complains(text);
            }
        }
        assert_eq!(stored(&self.host), before, "nothing of it is kept");
        let layers = ["one", "other"].map(|tag| layer(&self.images, tag));
        let fetched = self.registry.fetched_blobs();
        assert!(!fetched.iter().any(|blob| layers.contains(blob)), "{fetched:?}");
        assert_eq!(self.host.cmd(["ps", "-q"]).ok().stdout, "");
    }
}

/// A host that speaks plain HTTP to a registry and has the keys beside its policy.
fn host_of(registry: &str) -> Host {
    let host = Host::bare();
    let etc = host.root().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("registries.toml"), format!("[registry.\"{registry}\"]\nplain-http = true\n"))
        .unwrap();
    for key in ["team.pub", "other.pub"] {
        fs::copy(fixture(key), etc.join(key)).unwrap();
    }
    host
}

fn policy(host: &Host, text: &str) {
    fs::write(host.root().join("etc/policy.toml"), text).unwrap();
}

/// The files of the store except those of an empty one.
fn stored(host: &Host) -> Vec<String> {
    let mut files = files(&host.root().join("data/images"));
    files.retain(|file| !["index.json", "lock"].contains(&file.as_str()));
    files
}

fn layer(images: &Images, tag: &str) -> String {
    let manifest = manifest(&images.layout(), tag);
    manifest["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}

#[test]
fn a_signature_in_each_form_is_looked_for_and_found() {
    let scene = Scene::new();
    scene.rule("\"cosign-key\"\nkeys = [\"other.pub\", \"team.pub\"]");
    let mut keys = Vec::new();
    for form in FORMS {
        let (repository, name) = (format!("team/{form}"), format!("team/{form}:1"));
        let digest = scene.push("one", &name);
        let reference = scene.registry.name(&name);
        let unsigned = format!("{reference} has no signature in its registry, and the policy wants one");
        scene.refuses(
            &name,
            &[
                &unsigned,
                &format!(
                    "Hint: Sign it with `cosign sign --key cosign.key {}",
                    scene.registry.name(&repository)
                ),
            ],
        );
        assert_eq!(stored(&scene.host), [""; 0]);

        scene.sign(form, &repository, &digest, "team.pem");
        let said = scene.run(&name, "IfNotPresent").ok().complains("Signed with the key sha256:");
        assert_eq!(said.stdout, "web | hello from web\n");
        let signed_by = scene.inspect(&name)["signedBy"].clone();
        assert_eq!(signed_by.as_array().unwrap().len(), 1);
        keys.push(signed_by);
        scene.registry.forget();
        for policy in ["IfNotPresent", "Never"] {
            assert_eq!(scene.run(&name, policy).ok().stderr, "");
        }
        assert_eq!(scene.registry.requests(), []);
        scene.run(&name, "Always").ok();
        scene.pull(&name).ok();
        assert_eq!(scene.registry.fetched_blobs(), [""; 0], "{form}: it is the one that was checked");
        scene.host.cmd(["image", "rm", &reference]).ok();
    }
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[test]
fn a_signature_of_another_key_does_not_count() {
    let scene = Scene::new();
    let digest = scene.push("one", "team/app:1");
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    for form in FORMS {
        scene.sign(form, "team/app", &digest, "other.pem");
        scene.refuses(
            "team/app:1",
            &["is signed, but by none of the keys of the policy", "Hint: If that key"],
        );
    }
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\", \"other.pub\"]");
    scene.pull("team/app:1").ok();
    // The images of a key that is removed from the policy are not used any more, but stay visible.
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    for policy in ["IfNotPresent", "Always"] {
        scene.run("team/app:1", policy).fails(125).complains("by none of the keys");
    }
    let said = scene.run("team/app:1", "Never").fails(125).complains("container web: the image");
    said.complains("is in the store, but it was imported without a signature by a key of the policy");
    scene.sign("bundle", "team/app", &digest, "team.pem");
    scene.run("team/app:1", "IfNotPresent").ok();
    assert_eq!(
        scene.registry.fetched_blobs().iter().filter(|blob| **blob == layer(&scene.images, "one")).count(),
        0
    );
    scene.registry.forget();
    scene.run("team/app:1", "Never").ok();
    assert_eq!(scene.registry.requests(), []);
}

#[test]
fn a_signature_for_something_else_does_not_count() {
    let scene = Scene::new();
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    // Signed under another repository's name.
    let digest = scene.push("one", "team/copy:1");
    for form in &FORMS[..2] {
        scene.sign_as(form, "team/copy", &digest, &scene.registry.name("team/original"), "team.pem");
        scene.refuses(
            "team/copy:1",
            &["are for something else", "team/original", "--sign-container-identity"],
        );
    }
    // The signature of one image beside another.
    let (one, other) = (scene.push("one", "team/app:1"), scene.push("other", "team/app:2"));
    scene.sign("tag", "team/app", &one, "team.pem");
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    let url = format!("http://{}/v2/team/app/manifests/sha256-", scene.registry.host());
    let curl = || scene.host.other("curl").arg("-sSf");
    let get = curl().args(["-H", &format!("Accept: {MANIFEST}"), &format!("{url}{}.sig", &one[7..])]);
    let put = curl().args(["-X", "PUT", "--data-binary", "@-", "-H", &format!("Content-Type: {MANIFEST}")]);
    put.arg(format!("{url}{}.sig", &other[7..])).input(get.ok().stdout).ok();
    scene.refuses("team/app:2", &["are for something else", &one]);
    scene.pull("team/app:1").ok();
}

/// The signature of an index covers the manifests in it.
#[test]
fn a_signature_over_an_index_counts() {
    let scene = Scene::new();
    scene.images.set_architecture("one", "amd64");
    scene.images.set_architecture("other", "arm64");
    scene.images.index("index", &["one", "other"]);
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    let digest = scene.push("index", "team/app:1");
    scene.refuses("team/app:1", &["has no signature"]);
    scene.sign("tag", "team/app", &digest, "team.pem");
    for platform in ["linux/amd64", "linux/arm64"] {
        scene.pull("team/app:1").args(["--platform", platform]).ok();
    }
}

#[test]
fn what_is_rejected_is_not_even_asked_for() {
    let scene = Scene::new();
    let digest = scene.push("one", "team/app:1");
    scene.sign("tag", "team/app", &digest, "team.pem");
    let file = scene.host.root().join("etc/policy.toml").display().to_string();
    let prefix = scene.registry.name("team");
    scene.rule("\"reject\"");
    let by_rule = format!("the rule for {prefix:?} in line 2");
    scene.refuses(
        "team/app:1",
        &[&format!("the image policy {file} rejects"), &by_rule, "Hint: If it may be used"],
    );
    scene.rule("\"cosign-keyless\"");
    scene
        .refuses("team/app:1", &[&file, "does not support yet", &by_rule, "Hint: Sign the image with a key"]);
    policy(&scene.host, "default = \"reject\"\n");
    scene.refuses("team/app:1", &[&file, "no rule fits, and the default is \"reject\""]);
    assert_eq!(scene.registry.requests(), []);

    // Another name of the same host is another registry.
    policy(
        &scene.host,
        &format!(
            "default = \"reject\"\n[[rule]]\nprefix = {:?}\nrequire = \"accept\"\n",
            scene.registry.host()
        ),
    );
    scene.pull("team/app:1").ok();
    let elsewhere = format!("localhost:{}/team/app:1", scene.registry.port());
    scene.host.cmd(["image", "pull", "--plain-http", &elsewhere]).fails(1).complains("no rule fits");
    scene.host.cmd(["image", "pull", "busybox"]).fails(1).complains("no rule fits");
}

#[test]
fn a_policy_with_a_mistake_allows_nothing_and_says_where_it_is() {
    let scene = Scene::new();
    scene.push("one", "team/app:1");
    let rule = |rest: &str| format!("# a comment\n[[rule]]\nprefix = \"registry.example\"\n{rest}\n");
    let cases = [
        ("default = \"maybe\"\n".to_owned(), 1, "maybe"),
        ("\n\ndefualt = \"reject\"\n".to_owned(), 3, "defualt"),
        ("default = \"reject\"\n[[rule]\n".to_owned(), 2, ""),
        (rule(""), 2, "require"),
        (rule("require = \"cosign\""), 4, "cosign"),
        (rule("require = \"cosign-key\""), 3, "wants keys"),
        (rule("require = \"cosign-key\"\nkeys = []"), 3, "wants keys"),
        (rule("require = \"cosign-key\"\nkeys = [\"nothing.pub\"]"), 3, "nothing.pub"),
        (rule("require = \"cosign-key\"\nkeys = [\"policy.toml\"]"), 3, "is not a public key"),
        (rule("require = \"accept\"\nkeys = [\"team.pub\"]"), 3, "has keys"),
        (rule("require = \"accept\"") + &rule("require = \"reject\""), 7, "already, in line 3"),
        (
            "[[rule]]\nprefix = \"registry.example/app:1\"\nrequire = \"accept\"\n".to_owned(),
            2,
            "registry.example/app:1",
        ),
        (
            "[[rule]]\nprefix = \"docker.io/team\"\nrequire = \"accept\"\n".to_owned(),
            2,
            "docker.io/library/team",
        ),
    ];
    let file = scene.host.root().join("etc/policy.toml").display().to_string();
    for (text, line, problem) in cases {
        policy(&scene.host, &text);
        let at = format!("the image policy {file}, line {line}: ");
        scene.refuses("team/app:1", &[&at, problem]);
        let import = ["image", "import", &scene.images.source("one"), "--name", "x"];
        scene.host.cmd(import).fails(1).complains(&at);
    }
    assert_eq!(scene.registry.requests(), []);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    scene.refuses("team/app:1", &[&format!("cannot read the image policy {file}")]);
    fs::remove_dir(&file).unwrap();
    std::os::unix::fs::symlink("nowhere", &file).unwrap();
    scene.refuses("team/app:1", &[&format!("cannot read the image policy {file}")]);
}

#[test]
fn protected_names_are_not_given_away() {
    let scene = Scene::new();
    let digest = scene.push("one", "team/app:1");
    scene.sign("tag", "team/app", &digest, "team.pem");
    let image = |args: &[&str]| -> Output { scene.host.cmd(["image"]).args(args).run() };
    let (source, protected) = (scene.images.source("other"), scene.registry.name("team/app:2"));
    image(&["import", &source, "--name", "free"]).expect_code(0);
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    let before = stored(&scene.host);
    for args in [&["import", &source, "--name", &protected][..], &["tag", "free", &protected]] {
        let said = image(args).expect_code(1);
        assert_eq!(said.stdout, "");
        said.complains("the policy requires a signature for")
            .complains("Hint: Pull it with `magikvm image pull");
    }
    scene.rule("\"reject\"");
    for args in [&["import", &source, "--name", &protected][..], &["tag", "free", &protected]] {
        image(args).expect_code(1).complains("rejects").complains("in line 2");
    }
    assert_eq!(stored(&scene.host), before);

    // Conversely a name without a rule has no signatures.
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    scene.pull("team/app:1").ok();
    image(&["tag", &scene.registry.name("team/app:1"), "copy"]).expect_code(0);
    image(&["rm", &scene.registry.name("team/app:1")]).expect_code(0);
    scene.run("team/app:1", "Never").fails(125);
    let said = image(&["inspect", "copy"]).expect_code(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()[0]["signedBy"], json!([]));
}

#[test]
fn an_image_that_came_before_the_rule_is_not_run_under_it() {
    let scene = Scene::new();
    let digest = scene.push("one", "team/app:1");
    scene.pull("team/app:1").ok();
    let id = scene.inspect("team/app:1")["id"].clone();
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    scene.registry.forget();
    let said = scene.run("team/app:1", "Never").fails(125).complains("container web: ").complains("Hint: ");
    said.complains("is in the store, but it was imported without a signature by a key of the policy");
    assert_eq!(scene.registry.requests(), []);
    scene.run("team/app:1", "IfNotPresent").fails(125).complains("has no signature");
    assert!(!scene.registry.requests().is_empty(), "asked again");
    scene.refuses("team/app:1", &["has no signature"]);
    // By its digest, too.
    scene.refuses(&format!("team/app@{digest}"), &["has no signature"]);

    scene.sign("referrer", "team/app", &digest, "team.pem");
    scene.run("team/app:1", "IfNotPresent").ok();
    let fetched = scene.registry.fetched_blobs();
    assert!(!fetched.contains(&layer(&scene.images, "one")), "it is here: {fetched:?}");
    let one = scene.inspect("team/app:1");
    assert_eq!((&one["id"], one["signedBy"].as_array().unwrap().len()), (&id, 1));
    scene.run("team/app:1", "Never").ok();
    scene.rule("\"reject\"");
    for policy in ["Never", "IfNotPresent", "Always"] {
        scene.run("team/app:1", policy).fails(125).complains("rejects");
    }
}

/// A tag that moves to an unsigned image does not affect the signed one.
#[test]
fn a_tag_that_moves_to_an_unsigned_image_is_refused() {
    let scene = Scene::new();
    scene.rule("\"cosign-key\"\nkeys = [\"team.pub\"]");
    let digest = scene.push("one", "team/app:1");
    scene.sign("bundle", "team/app", &digest, "team.pem");
    scene.pull("team/app:1").ok();
    let id = scene.inspect("team/app:1")["id"].clone();
    scene.push("other", "team/app:1");
    scene.pull("team/app:1").fails(1).complains("has no signature");
    scene.run("team/app:1", "Always").fails(125).complains("has no signature");
    assert_eq!(scene.inspect("team/app:1")["id"], id);
    scene.run("team/app:1", "IfNotPresent").ok();
    let fetched = scene.registry.fetched_blobs();
    assert!(!fetched.contains(&layer(&scene.images, "other")), "{fetched:?}");
}

/// A registry that does not deliver the signatures is an error. The image does not count as unsigned, and the check is not skipped.
#[test]
fn a_registry_that_keeps_signatures_back_is_refused() {
    let scene = Scene::new();
    let digest = scene.push("one", "team/app:1");
    scene.sign("tag", "team/app", &digest, "team.pem");
    for answer in [Action::status(403), Action::status(404), Action::status(500)] {
        let is_there = answer != Action::status(404);
        let proxy = Proxy::start(scene.registry.port(), move |request| {
            match request.path.contains("/manifests/sha256-") || request.path.contains("/referrers/") {
                true => answer.clone(),
                false => Action::Forward,
            }
        });
        let host = host_of(&proxy.host());
        let prefix = proxy.name("team");
        policy(
            &host,
            &format!("[[rule]]\nprefix = {prefix:?}\nrequire = \"cosign-key\"\nkeys = [\"team.pub\"]\n"),
        );
        let said = host.cmd(["image", "pull", &proxy.name("team/app:1")]).fails(1);
        match is_there {
            true => drop(said.complains("cannot get the signatures")),
            false => drop(said.complains("has no signature")),
        }
        assert_eq!(stored(&host), [""; 0]);
        let layer = layer(&scene.images, "one");
        assert!(proxy.requests().iter().all(|request| !request.path.ends_with(&layer)));
    }
}
