//! Docker's credential helpers: `docker-credential-NAME get`, with the server on its input and JSON on its output.
//!
//! The program belongs to the user, but its output is capped, and it is killed when it takes too long or the pull is cancelled. Its error
//! output is not shown, since it may contain anything.

use super::login::{Login, Secret};
use serde::Deserialize;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tokio::net::unix::pipe;

/// A helper may ask a key ring, which may ask the user.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_OUTPUT: usize = 64 << 10;
/// The output of helpers that have no login.
const NOTHING: &str = "credentials not found in native keychain";
/// The user name that marks an identity token.
const TOKEN_USER: &str = "<token>";

/// Why a credential helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The name cannot be a program's name.
    #[error("{name:?} is not a name of a helper: use letters, digits, \"_\", \".\" and \"-\"")]
    Name { name: String },
    /// It did not start.
    #[error("cannot start {program}")]
    Start {
        program: String,
        #[source]
        source: io::Error,
    },
    /// The communication failed.
    #[error("cannot communicate with {program}")]
    Pipe {
        program: String,
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{program} did not answer within {seconds} s")]
    TimedOut { program: String, seconds: u64 },
    /// It printed too much.
    #[error("{program} printed more than {MAX_OUTPUT} bytes")]
    TooMuch { program: String },
    #[error("{program} failed ({status}): {message}")]
    Failed { program: String, status: ExitStatus, message: String },
    /// Its output is not a login.
    #[error("{program} printed no JSON with Username and Secret")]
    Answer { program: String },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: Secret,
}

/// Asks the helper; `None`: it has no login for the server.
pub(super) async fn get(
    name: &str,
    server: &str,
    path: Option<&OsStr>,
    timeout: Duration,
) -> Result<Option<Login>, HelperError> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(HelperError::Name { name: super::foreign::neutral(name) });
    }
    let program = format!("docker-credential-{name}");
    match tokio::time::timeout(timeout, run(&program, server, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(HelperError::TimedOut { program, seconds: timeout.as_secs() }),
    }
}

async fn run(program: &str, server: &str, path: Option<&OsStr>) -> Result<Option<Login>, HelperError> {
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let start = |source| HelperError::Start { program: program.to_owned(), source };
    let mut child = KilledWhenDropped(command.spawn().map_err(start)?);
    let piped = |source| HelperError::Pipe { program: program.to_owned(), source };
    if let Some(mut input) = child.0.stdin.take() {
        // A server's name fits into a pipe. A helper that ends without reading it has a reason.
        match input.write_all(server.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(piped(error)),
            _ => {}
        }
    }
    let output = match child.0.stdout.take() {
        Some(output) => read_all(output.into()).await.map_err(piped)?,
        None => Some(Vec::new()),
    };
    let output = output.ok_or_else(|| HelperError::TooMuch { program: program.to_owned() })?;
    let status = child.ended().await.map_err(piped)?;
    answer(program, status, &output)
}

fn answer(program: &str, status: ExitStatus, output: &[u8]) -> Result<Option<Login>, HelperError> {
    if !status.success() {
        let text = String::from_utf8_lossy(output);
        if text.contains(NOTHING) {
            return Ok(None);
        }
        let message = super::foreign::neutral(&text);
        return Err(HelperError::Failed { program: program.to_owned(), status, message });
    }
    let answer: Answer =
        serde_json::from_slice(output).map_err(|_| HelperError::Answer { program: program.to_owned() })?;
    Ok(match answer.username.as_str() {
        _ if answer.secret.reveal().is_empty() => None,
        TOKEN_USER => Some(Login::IdentityToken(answer.secret)),
        _ => Some(Login::Password { user: answer.username, password: answer.secret }),
    })
}

/// Everything up to the end; `None`: more than allowed.
async fn read_all(output: OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let output = pipe::Receiver::from_owned_fd(output)?;
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        output.readable().await?;
        match output.try_read(&mut buffer) {
            Ok(0) => return Ok(Some(bytes)),
            Ok(count) => bytes.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_OUTPUT {
            return Ok(None);
        }
    }
}

/// A cancellation drops the future that waits for the helper, and the helper with it.
struct KilledWhenDropped(Child);

impl KilledWhenDropped {
    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            // Its output has ended, so it should end as well; the timeout applies when it does not.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for KilledWhenDropped {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::block_on;
    use std::path::Path;
    use std::time::Instant;

    /// A child writes the file: another test's child that is starting could inherit a descriptor of ours, and a program that is open for
    /// writing does not start.
    fn write(dir: &Path, name: &str, script: &str) {
        let path = dir.join(format!("docker-credential-{name}"));
        let mut child = Command::new("sh")
            .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn ask(dir: &Path, name: &str, timeout: Duration) -> Result<Option<Login>, HelperError> {
        let path = format!("{}:/usr/bin:/bin", dir.display());
        block_on(get(name, "r.example:5000", Some(OsStr::new(&path)), timeout))
    }

    #[test]
    fn helpers_answer_by_json_and_by_saying_they_have_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let long = Duration::from_secs(30);
        write(
            dir.path(),
            "good",
            r#"read server; [ "$1" = get ] && echo "{\"ServerURL\":\"x\",\"Username\":\"$server\",\"Secret\":\"s\"}""#,
        );
        write(dir.path(), "token", r#"echo '{"Username":"<token>","Secret":"t"}'"#);
        write(dir.path(), "none", "echo 'credentials not found in native keychain'; exit 1");
        write(dir.path(), "fails", "printf 'the key ring is \\033[2Jlocked'; exit 3");
        write(dir.path(), "chatty", "yes 0123456789");
        write(dir.path(), "odd", "echo '[\"hunter2\"]'");
        let password =
            Login::Password { user: "r.example:5000".to_owned(), password: Secret::new("s".to_owned()) };
        assert_eq!(ask(dir.path(), "good", long).unwrap(), Some(password));
        let token = Login::IdentityToken(Secret::new("t".to_owned()));
        assert_eq!(ask(dir.path(), "token", long).unwrap(), Some(token));
        assert_eq!(ask(dir.path(), "none", long).unwrap(), None);
        let failed = ask(dir.path(), "fails", long).unwrap_err().to_string();
        assert!(failed.contains("the key ring is  [2Jlocked"), "{failed:?}");
        assert!(matches!(ask(dir.path(), "chatty", long), Err(HelperError::TooMuch { .. })));
        let odd = ask(dir.path(), "odd", long).unwrap_err();
        assert!(matches!(odd, HelperError::Answer { .. }) && !format!("{odd:?}").contains("hunter2"));
        assert!(matches!(ask(dir.path(), "missing", long), Err(HelperError::Start { .. })));
        assert!(matches!(ask(dir.path(), "../../bin/sh", long), Err(HelperError::Name { .. })));
    }

    #[test]
    fn a_helper_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        // It reports its number, and then never ends its output.
        write(dir.path(), "hangs", &format!("echo $$ > {}; exec sleep 1000", pid.display()));
        let begun = Instant::now();
        let mut timeout = Duration::from_millis(200);
        // On a busy host it may be killed before it reports its number.
        let pid: i32 = loop {
            assert!(matches!(ask(dir.path(), "hangs", timeout), Err(HelperError::TimedOut { .. })));
            match std::fs::read_to_string(&pid).unwrap_or_default().trim().parse() {
                Ok(pid) => break pid,
                Err(_) => timeout *= 2,
            }
        };
        assert!(begun.elapsed() < Duration::from_secs(60));
        let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
        assert_eq!(gone, Err(nix::errno::Errno::ESRCH));
    }
}
