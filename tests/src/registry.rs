//! A real registry (Debian's `docker-registry`) on a loopback port, filled by skopeo. Its access log shows the requests.

use crate::command::{Cmd, Output};
use crate::proxy::free_port;
use crate::wait::wait_for;
use serde_json::{Value, json};
use std::cell::Cell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the registry may take to answer.
const START: Duration = Duration::from_secs(20);
/// How long copying an image into it may take.
const PUSH: Duration = Duration::from_secs(300);
/// Attempts with other ports when another program took the free one first.
const PORTS: usize = 5;
/// Lines of the registry's log that a failed test shows.
const LOG_LINES: usize = 40;
/// User agent of the tests' own requests, which are left out of the list of requests.
const OUR_AGENT: &str = "fixture";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// It lets in only this user with this password.
    pub auth: Option<(String, String)>,
    /// It speaks TLS, with a certificate for `localhost` and 127.0.0.1 from a private CA.
    pub tls: bool,
}

/// A running registry, which ends with the value. The thread that starts it must live as long as it is needed.
#[derive(Debug)]
pub struct Registry {
    dir: tempfile::TempDir,
    options: RegistryOptions,
    port: u16,
    child: Child,
    forgotten_lines: Cell<usize>,
    questions: Cell<u32>,
}

/// One answered request from the registry's access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// `GET`, `HEAD` and others.
    pub method: String,
    pub path: String,
    pub status: u16,
    /// Bytes of the answer's body that were written.
    pub bytes: u64,
    pub agent: String,
}

impl Logged {
    /// The hexadecimal digest, if it is a blob that was asked for with GET.
    pub fn fetched_blob(&self) -> Option<&str> {
        let (_, digest) = self.path.split_once("/blobs/sha256:")?;
        (self.method == "GET").then_some(digest)
    }
}

impl Registry {
    /// A registry for everybody, without TLS.
    #[track_caller]
    pub fn plain() -> Self {
        Self::start(RegistryOptions::default())
    }

    /// Starts one and waits until it answers.
    #[track_caller]
    pub fn start(options: RegistryOptions) -> Self {
        let dir =
            tempfile::Builder::new().prefix("magikvm-registry-").tempdir().expect("a temporary directory");
        if let Some((user, password)) = &options.auth {
            fs::write(dir.path().join("htpasswd"), format!("{user}:{}\n", bcrypt(password))).unwrap();
        }
        if options.tls {
            make_certificates(dir.path());
        }
        let port = free_port();
        let child = serve(dir.path(), &options, port);
        let (forgotten_lines, questions) = (Cell::new(0), Cell::new(0));
        let mut registry = Self { dir, options, port, child, forgotten_lines, questions };
        for _ in 0..PORTS {
            if registry.is_ready() {
                return registry;
            }
            // Another program took the port first.
            registry.port = free_port();
            registry.child = serve(registry.dir.path(), &registry.options, registry.port);
        }
        panic!("docker-registry does not start");
    }

    /// Waits until it answers; false when it has ended.
    fn is_ready(&mut self) -> bool {
        wait_for("an answer of docker-registry", START, || {
            if self.child.try_wait().expect("wait for a child").is_some() {
                return Some(false);
            }
            matches!(self.ask("").trim(), "200" | "401").then_some(true)
        })
    }

    /// Asks for `/v2/`; the status of the answer, `000` for none.
    fn ask(&self, query: &str) -> String {
        let url = format!("{}://{}/v2/{query}", if self.options.tls { "https" } else { "http" }, self.host());
        let ca = self.ca();
        let mut cmd = Cmd::new("curl").env("PATH", PATH).args(["-s", "-A", OUR_AGENT, "-o", "/dev/null"]);
        if let Some(ca) = &ca {
            cmd = cmd.arg("--cacert").arg(ca);
        }
        cmd.args(["-w", "%{http_code}", "--max-time", "10", &url]).run().stdout
    }

    /// Where it listens; the first part of its images' names.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The whole name of an image in it.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the private CA, if the registry speaks TLS.
    pub fn ca(&self) -> Option<PathBuf> {
        self.options.tls.then(|| self.dir.path().join("certificates/ca.crt"))
    }

    /// An auth.json for this registry with the right user and the password given.
    pub fn auth_json(&self, password: &str) -> String {
        let (user, _) = self.options.auth.as_ref().expect("a registry with passwords");
        let encoded =
            Cmd::new("base64").env("PATH", PATH).arg("-w0").input(format!("{user}:{password}")).ok();
        json!({ "auths": { self.host(): { "auth": encoded.stdout } } }).to_string()
    }

    /// Copies an image of an OCI layout into it, byte for byte, and returns the digest of its manifest or index.
    #[track_caller]
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let digest = self.dir.path().join("digest");
        let mut cmd = Cmd::new("skopeo").env("PATH", PATH).env("HOME", self.dir.path()).limit(PUSH);
        cmd =
            cmd.args(["--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", "--digestfile"]);
        cmd = cmd.arg(&digest);
        cmd = match &self.options.auth {
            Some((user, password)) => cmd.args(["--dest-creds", &format!("{user}:{password}")]),
            None => cmd.arg("--dest-no-creds"),
        };
        cmd = match self.options.tls {
            true => cmd.arg("--dest-cert-dir").arg(self.dir.path().join("certificates")),
            false => cmd.arg("--dest-tls-verify=false"),
        };
        cmd.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{}", self.name(name))).ok();
        fs::read_to_string(digest).unwrap().trim().to_owned()
    }

    /// The path of a blob in its storage: to damage or remove it.
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.dir.path().join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// The requests since the last [`Registry::forget`], in the order in which their answers ended.
    #[track_caller]
    pub fn requests(&self) -> Vec<Logged> {
        self.lines()[self.forgotten_lines.get()..].to_vec()
    }

    /// Forgets the requests so far.
    #[track_caller]
    pub fn forget(&self) {
        self.forgotten_lines.set(self.lines().len());
    }

    /// Which blobs were fetched since the last [`Registry::forget`], once for each time, sorted.
    #[track_caller]
    pub fn fetched_blobs(&self) -> Vec<String> {
        let requests = self.requests();
        let mut blobs: Vec<_> = requests.iter().filter_map(Logged::fetched_blob).map(str::to_owned).collect();
        blobs.sort();
        blobs
    }

    #[track_caller]
    fn lines(&self) -> Vec<Logged> {
        // A line is written after the answer. The line of one more request comes after the lines of all that were answered before it.
        self.questions.set(self.questions.get() + 1);
        let question = format!("?question={}", self.questions.get());
        assert!(matches!(self.ask(&question).trim(), "200" | "401"), "{}", self.log());
        let lines = wait_for("the registry's access log", START, || {
            let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
            let lines: Option<Vec<Logged>> = text.lines().map(logged).collect();
            lines.filter(|lines| lines.iter().any(|line| line.path.ends_with(&question)))
        });
        lines.into_iter().filter(|line| line.agent != OUR_AGENT).collect()
    }

    /// The end of the registry's log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("registry.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Ends the registry, as `Drop` does, but its address stays available.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            // It does not matter any more whether the process is reaped.
            self.child.wait().ok();
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("docker-registry at {} said:\n{}", self.host(), self.log());
        }
    }
}

fn serve(dir: &Path, options: &RegistryOptions, port: u16) -> Child {
    let below = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let mut config: Value = json!({
        "version": "0.1",
        "log": { "level": "info", "accesslog": { "disabled": false } },
        "storage": { "filesystem": { "rootdirectory": below("data") }, "delete": { "enabled": true } },
        "http": { "addr": format!("127.0.0.1:{port}"), "secret": "fixture" },
    });
    if options.auth.is_some() {
        config["auth"] = json!({ "htpasswd": { "realm": "fixture", "path": below("htpasswd") } });
    }
    if options.tls {
        let part = |name: &str| below(&format!("certificates/{name}"));
        config["http"]["tls"] = json!({ "certificate": part("server.pem"), "key": part("server.private") });
    }
    // JSON is YAML too.
    fs::write(dir.join("config.yml"), config.to_string()).unwrap();
    let log =
        |name: &str| Stdio::from(File::options().create(true).append(true).open(dir.join(name)).unwrap());
    // It must not outlive a test that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(dir.join("config.yml"));
    command.env_clear().env("PATH", PATH).stdin(Stdio::null());
    let child = command.stdout(log("access.log")).stderr(log("registry.log")).spawn();
    child.expect("setpriv and docker-registry; install them, or run ci/test.sh")
}

fn logged(line: &str) -> Option<Logged> {
    // 127.0.0.1 - - [time] "GET /v2/ HTTP/1.1" 200 2 "referer" "agent"
    let parts: Vec<&str> = line.split('"').collect();
    let [_, request, answer, _, _, agent, _] = parts.as_slice() else { return None };
    let (mut request, mut answer) = (request.split(' '), answer.split_ascii_whitespace());
    Some(Logged {
        method: request.next()?.to_owned(),
        path: request.next()?.to_owned(),
        status: answer.next()?.parse().ok()?,
        bytes: answer.next()?.parse().ok()?,
        agent: (*agent).to_owned(),
    })
}

/// The only form of passwords that the registry takes. Perl is on every Debian system and makes it with its C library.
fn bcrypt(password: &str) -> String {
    let salted = "print crypt($ARGV[0], q($2y$04$abcdefghijklmnopqrstuu))";
    Cmd::new("perl").env("PATH", PATH).args(["-e", salted, "--", password]).ok().stdout
}

/// A private CA (`ca.crt`) and a certificate of the server, in `certificates`. skopeo takes every `.crt` there for a CA and every `.cert` for a
/// client's certificate, so that the server's certificate has another name.
fn make_certificates(dir: &Path) {
    let certificates = dir.join("certificates");
    fs::create_dir(&certificates).unwrap();
    let config = "[req]\ndistinguished_name = name\nprompt = no\n[name]\nCN = localhost\n\
        [authority]\nbasicConstraints = critical, CA:TRUE\nkeyUsage = critical, keyCertSign\n\
        [server]\nbasicConstraints = critical, CA:FALSE\nkeyUsage = critical, digitalSignature\n\
        extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost, IP:127.0.0.1\n";
    fs::write(certificates.join("openssl.cnf"), config).unwrap();
    let make = |arguments: &[&str]| -> Output {
        let new = ["req", "-x509", "-days", "2", "-nodes", "-config", "openssl.cnf", "-newkey", "ec"];
        let curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let cmd = Cmd::new("openssl").env("PATH", PATH).current_dir(&certificates);
        cmd.args(new).args(curve).args(arguments).ok()
    };
    make(&[
        "-extensions",
        "authority",
        "-subj",
        "/CN=test authority",
        "-keyout",
        "ca.private",
        "-out",
        "ca.crt",
    ]);
    let signed = ["-CA", "ca.crt", "-CAkey", "ca.private"];
    make(
        &[&["-extensions", "server", "-keyout", "server.private", "-out", "server.pem"][..], &signed]
            .concat(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::Images;

    #[test]
    fn it_takes_images_and_tells_what_it_was_asked_for() {
        let images = Images::new();
        images.empty("empty");
        images.noise("empty", "noise", 1, 100_000);
        let auth = Some(("user".to_owned(), "secret".to_owned()));
        for tls in [false, true] {
            let registry = Registry::start(RegistryOptions { auth: auth.clone(), tls });
            let digest = registry.push(&images.layout(), "noise", "some/app:1");
            assert!(registry.blob_path(&digest).is_file());
            let pushed = registry.requests();
            assert!(pushed.iter().any(|one| one.method == "PUT" && one.path == "/v2/some/app/manifests/1"));
            registry.forget();
            assert_eq!((registry.requests(), registry.fetched_blobs()), (Vec::new(), Vec::new()));

            let there = tempfile::tempdir().unwrap();
            let auth_file = there.path().join("auth.json");
            let copy = |password: &str| {
                fs::write(&auth_file, registry.auth_json(password)).unwrap();
                let cmd =
                    Cmd::new("skopeo").env("PATH", PATH).args(["--insecure-policy", "copy", "--authfile"]);
                let cmd =
                    cmd.arg(&auth_file).arg("--src-cert-dir").arg(registry.dir.path().join("certificates"));
                let cmd = if tls { cmd } else { cmd.arg("--src-tls-verify=false") };
                let from = format!("docker://{}", registry.name("some/app:1"));
                cmd.arg(from).arg(format!("dir:{}", there.path().join("image").display())).run()
            };
            assert_ne!(copy("wrong").code, 0);
            assert_eq!(copy("secret").expect_code(0).code, 0);
            let fetched = registry.fetched_blobs();
            assert_eq!(fetched.len(), 2, "configuration and layer: {fetched:?}");
            let requests = registry.requests();
            let layer = requests.iter().find(|one| one.bytes > 100_000).expect("the layer");
            assert_eq!((layer.status, layer.agent.starts_with("skopeo")), (200, true), "{layer:?}");
        }
    }
}
