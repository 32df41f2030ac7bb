//! Access to registries, and which servers see a password.

use crate::{layers, left, mounted, pull, pulled, refused, registry_with, some_images};
use magikvm_tests::Host;
use magikvm_tests::images::Images;
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::registry::{Registry, RegistryOptions};
use serde_json::json;
use std::fs;
use std::path::PathBuf;

const PASSWORD: &str = "correct horse: battery";

fn guarded(images: &Images) -> Registry {
    let auth = Some(("ann".to_owned(), PASSWORD.to_owned()));
    let registry = Registry::start(RegistryOptions { auth, tls: false });
    registry.push(&images.layout(), "c", "team/app:1");
    registry.forget();
    registry
}

fn write(path: PathBuf, text: &str) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn home(host: &Host) -> PathBuf {
    host.root().parent().unwrap().join("home")
}

fn configure(host: &Host, toml: &str) {
    write(host.root().join("etc/registries.toml"), toml);
}

/// Files of a state directory except the configuration of the test.
fn left_beside_configuration(host: &Host) -> Vec<String> {
    left(&host.root()).into_iter().filter(|file| !file.starts_with("etc/")).collect()
}

#[test]
fn a_login_is_needed_and_a_wrong_one_is_said_so() {
    let registry = guarded(&some_images(1000));
    let host = Host::bare();
    let name = registry.name("team/app:1");
    refused(pull(&host, &name), &["access denied", &registry.host(), "Hint"]);
    let wrong = write(host.file("wrong.json"), &registry.auth_json("wrong-password"));
    let output = refused(
        pull(&host, &name).env("REGISTRY_AUTH_FILE", &wrong),
        &["access denied", &wrong.display().to_string()],
    );
    assert!(!output.stderr.contains("wrong-password"), "{}", output.stderr);
    let damaged = write(host.file("damaged.json"), r#"{"auths": {"x": "secret-text"#);
    let output =
        refused(pull(&host, &name).env("REGISTRY_AUTH_FILE", &damaged), &[&damaged.display().to_string()]);
    assert!(!output.stderr.contains("secret-text"), "{}", output.stderr);
    assert!(registry.requests().iter().all(|one| one.status != 200), "{:?}", registry.requests());
    assert_eq!(left(&host.root()), [""; 0]);
}

#[test]
fn logins_come_from_the_files_of_containers_and_docker_and_from_helpers() {
    let registry = guarded(&some_images(1000));
    let name = registry.name("team/app:1");
    let login = registry.auth_json(PASSWORD);

    let host = Host::bare();
    let file = write(host.file("auth.json"), &login);
    pull(&host, &name).env("REGISTRY_AUTH_FILE", &file).ok();
    drop(mounted(&host));
    let host = Host::bare();
    write(host.file("run/containers/auth.json"), &login);
    pull(&host, &name).env("XDG_RUNTIME_DIR", host.file("run")).ok();
    let host = Host::bare();
    write(home(&host).join(".docker/config.json"), &login);
    pulled(&host, &name);

    let host = Host::bare();
    let config = json!({ "credHelpers": { registry.host(): "test" } });
    write(home(&host).join(".docker/config.json"), &config.to_string());
    let answer = json!({ "ServerURL": registry.host(), "Username": "ann", "Secret": PASSWORD });
    let script = format!(
        "#!/bin/sh\nread -r registry\n[ \"$1 $registry\" = 'get {}' ] && echo '{answer}'\n",
        registry.host()
    );
    let helper = write(host.file("bin/docker-credential-test"), &script);
    fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", host.file("bin").display());
    pull(&host, &name).env("PATH", path).ok();

    // The scope of a login: neither its host nor its path matches more than it names.
    let host = Host::bare();
    let elsewhere = json!({ "auths": { "registry.example": { "auth": "YTpi" }, format!("{}/other", registry.host()): { "auth": "YTpi" } } });
    let file = write(host.file("auth.json"), &elsewhere.to_string());
    refused(pull(&host, &name).env("REGISTRY_AUTH_FILE", &file), &["access denied"]);
}

#[test]
fn an_own_authority_must_be_named() {
    let images = some_images(1000);
    let registry = Registry::start(RegistryOptions { auth: None, tls: true });
    registry.push(&images.layout(), "c", "app:1");
    registry.forget();
    let host = Host::bare();
    for name in [registry.name("app:1"), format!("localhost:{}/app:1", registry.port())] {
        let tls = || host.cmd(["image", "pull", &name]);
        refused(tls(), &["certificate", "ca-file"]);
        assert_eq!((registry.requests(), left_beside_configuration(&host)), (Vec::new(), Vec::new()));
    }
    refused(pull(&host, &registry.name("app:1")), &[&registry.host()]);

    let host_of = |name: &str| name.split('/').next().unwrap().to_owned();
    for name in [registry.name("app:1"), format!("localhost:{}/app:1", registry.port())] {
        let host = Host::bare();
        let ca = registry.ca().unwrap();
        configure(
            &host,
            &format!("[registry.\"{}\"]\nca-file = {:?}\n", host_of(&name), ca.display().to_string()),
        );
        host.cmd(["image", "pull", &name]).ok();
        drop(mounted(&host));
    }
    // The private CA of one registry does not apply to another one.
    let host = Host::bare();
    let other = Registry::start(RegistryOptions { auth: None, tls: true });
    let ca = other.ca().unwrap().display().to_string();
    configure(&host, &format!("[registry.\"{}\"]\nca-file = {ca:?}\n", registry.host()));
    refused(host.cmd(["image", "pull", &registry.name("app:1")]), &["certificate"]);
}

#[test]
fn plain_http_is_never_spoken_unasked() {
    let registry = registry_with(&some_images(1000), &["c"]);
    let host = Host::bare();
    let name = registry.name("app:c");
    refused(host.cmd(["image", "pull", &name]), &[&registry.host(), "plain-http"]);
    assert_eq!(registry.requests(), []);
    configure(&host, &format!("[registry.\"{}\"]\nplain-http = true\n", registry.host()));
    host.cmd(["image", "pull", &name]).ok();

    let host = Host::bare();
    configure(&host, "[registry.\"x.example\"]\nplain-htpp = true\n");
    refused(host.cmd(["image", "pull", "x.example/app"]), &["registries.toml:2", "plain-htpp"]);
    assert_eq!(left_beside_configuration(&host), [""; 0]);
}

#[test]
fn a_mirror_is_asked_first_and_need_not_have_everything() {
    let images = some_images(1000);
    let (mirror, registry) = (registry_with(&images, &["a"]), registry_with(&images, &["a", "c"]));
    let host = Host::bare();
    configure(
        &host,
        &format!(
            "[registry.\"{}\"]\nplain-http = true\nmirrors = [\"http://{}\"]\n",
            registry.host(),
            mirror.host()
        ),
    );
    host.cmd(["image", "pull", &registry.name("app:a")]).ok();
    assert_eq!(registry.requests(), []);
    assert_eq!(mirror.fetched_blobs().len(), 3);
    host.cmd(["image", "pull", &registry.name("app:c")]).ok();
    assert!(!registry.requests().is_empty());
    assert!(
        host.cmd(["image", "ls"]).ok().stdout.contains(&registry.name("app")),
        "not named after the mirror"
    );
}

/// A mirror with wrong bytes is passed over, and at the end everybody is named.
#[test]
fn a_mirror_that_lies_is_passed_over() {
    let images = some_images(100_000);
    let registry = registry_with(&images, &["c"]);
    let liar = || {
        let layers = layers(&images, "c");
        Proxy::start(registry.port(), move |request| {
            match layers.iter().any(|layer| request.path.ends_with(layer)) {
                true => Action::Damaged,
                false => Action::Forward,
            }
        })
    };
    let mirrors = [liar(), liar()];
    let host = Host::bare();
    let with = |registry: &str| {
        let names: Vec<_> = mirrors.iter().map(|mirror| format!("\"http://{}\"", mirror.host())).collect();
        let names = names.join(", ");
        configure(&host, &format!("[registry.\"{registry}\"]\nplain-http = true\nmirrors = [{names}]\n"));
    };
    with(&registry.host());
    let output = host.cmd(["image", "pull", &registry.name("app:c")]).ok();
    assert!(output.stderr.contains("Passing over a mirror"), "{}", output.transcript());
    host.cmd(["image", "verify", "--all"]).ok();
    let last = liar();
    with(&last.host());
    host.cmd(["image", "rm", &registry.name("app:c")]).ok();
    host.cmd(["image", "prune"]).ok();
    let mut output = refused(host.cmd(["image", "pull", &last.name("app:c")]), &["digest"]);
    for place in [&mirrors[0], &mirrors[1], &last] {
        output = output.complains(&place.host());
    }
}

/// The image that is in the store is offered when its registry cannot be reached.
#[test]
fn a_registry_that_is_down_leaves_the_image_that_is_here() {
    let images = some_images(1000);
    let mut registry = registry_with(&images, &["c"]);
    let host = Host::bare();
    let name = registry.name("app:c");
    pulled(&host, &name);
    registry.stop();
    refused(
        pull(&host, &name),
        &["cannot connect", "The image is in the store: `imagePullPolicy: IfNotPresent`"],
    );
    pull(&host, &name).args(["--policy", "missing"]).ok();
    host.cmd(["image", "rm", &name]).ok();
    let output = refused(pull(&host, &name), &["cannot connect"]);
    assert!(!output.stderr.contains("IfNotPresent"), "{}", output.transcript());
}

/// A registry whose layers are on another server, which sees neither a password nor a cookie.
#[test]
fn logins_do_not_travel_to_another_host() {
    let images = some_images(1000);
    let registry = guarded(&images);
    let layout = images.layout();
    let storage = Proxy::start(registry.port(), move |request| {
        let digest = request.path.rsplit('/').next().unwrap().to_owned();
        let body = fs::read(layout.join("blobs/sha256").join(digest)).unwrap();
        Action::Answer { status: 200, headers: Vec::new(), body }
    });
    for there in [storage.host(), format!("localhost:{}", storage.port())] {
        storage.forget();
        let proxy = Proxy::start(registry.port(), move |request| match request.is_blob() {
            true => {
                let digest = request.path.rsplit(':').next().unwrap();
                Action::redirect(format!("http://{there}/storage/{digest}"))
            }
            false => Action::Forward,
        });
        let host = Host::bare();
        let login = registry.auth_json(PASSWORD).replace(&registry.host(), &proxy.host());
        let file = write(host.file("auth.json"), &login);
        pull(&host, &proxy.name("team/app:1")).env("REGISTRY_AUTH_FILE", &file).ok();
        drop(mounted(&host));
        let blobs: Vec<_> = proxy.requests().into_iter().filter(|request| request.is_blob()).collect();
        assert!(blobs.iter().any(|request| request.header("authorization").is_some()), "{blobs:?}");
        let seen = storage.requests();
        assert_eq!(seen.len(), layers(&images, "c").len() + 1);
        for request in seen {
            for header in ["authorization", "proxy-authorization", "cookie"] {
                assert_eq!(request.header(header), None, "{request:?}");
            }
        }
    }
}

/// A token server of another host gets a login only over TLS.
#[test]
fn a_password_is_not_sent_where_the_registry_points() {
    let registry = registry_with(&some_images(1000), &["c"]);
    let thief = Proxy::start(registry.port(), |_| Action::Answer {
        status: 200,
        headers: Vec::new(),
        body: br#"{"token":"x"}"#.to_vec(),
    });
    let realm = format!("http://localhost:{}/token", thief.port());
    let proxy = Proxy::start(registry.port(), move |_| Action::Answer {
        status: 401,
        headers: vec![("WWW-Authenticate".to_owned(), format!("Bearer realm=\"{realm}\",service=\"s\""))],
        body: Vec::new(),
    });
    let host = Host::bare();
    let login = json!({ "auths": { proxy.host(): { "auth": "YW5uOnNlY3JldA==" } } });
    let file = write(host.file("auth.json"), &login.to_string());
    refused(
        pull(&host, &proxy.name("app:c")).env("REGISTRY_AUTH_FILE", &file),
        &[&proxy.host(), "localhost"],
    );
    assert_eq!(thief.requests(), []);
    assert_eq!(left(&host.root()), [""; 0]);
}
