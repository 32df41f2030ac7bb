//! Finds and executes a program inside a container and reports the result: the kernel closes the report pipe
//! on success, and a failure is written to it.

use magikvm_supervisor::{Failure, FailureKind};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{AccessFlags, access, execve, pipe2};
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// `PATH` if a configuration has none, as in other runtimes.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The worker's end of the report pipe.
pub(super) struct Report {
    read: File,
    write: Option<OwnedFd>,
}

impl Report {
    pub(super) fn new() -> Result<Self, Failure> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        Ok(Self { read: File::from(read), write: Some(write) })
    }

    /// The descriptor number of the end that the new process writes to; the same in every copy of this process.
    pub(super) fn raw(&self) -> RawFd {
        self.write.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }

    /// The end that the new process writes to.
    pub(super) fn writer(&mut self) -> Option<OwnedFd> {
        self.write.take()
    }

    /// What the new process wrote: nothing once its program runs. Blocks until then.
    pub(super) fn outcome(mut self) -> Result<(), Failure> {
        drop(self.write.take());
        let mut bytes = Vec::new();
        (&mut self.read).take(64 << 10).read_to_end(&mut bytes)?;
        if bytes.is_empty() { Ok(()) } else { Err(read_failure(&bytes)) }
    }
}

fn read_failure(bytes: &[u8]) -> Failure {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Failure::new(FailureKind::Other, String::from_utf8_lossy(bytes).into_owned()))
}

/// Writes a failure for [`Report::outcome`].
pub(super) fn report(writer: OwnedFd, failure: &Failure) {
    let bytes = serde_json::to_vec(failure).unwrap_or_else(|_| failure.message.clone().into_bytes());
    File::from(writer).write_all(&bytes).ok();
}

/// Looks a program up as a shell would. Runs as the container's user, in its root and working directory.
pub(super) fn find(args: &[String], env: &[String]) -> Result<CString, Failure> {
    let program = args
        .first()
        .filter(|program| !program.is_empty())
        .ok_or_else(|| missing("", "the command is empty"))?;
    if program.contains('/') {
        return match access(program.as_str(), AccessFlags::X_OK) {
            Ok(()) => c_string(program),
            Err(Errno::EACCES) => Err(Failure::new(
                FailureKind::NotExecutable,
                format!("program {program:?} may not be executed"),
            )),
            Err(errno) => Err(missing(program, errno.desc())),
        };
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for directory in path.split(':') {
        let candidate = format!("{}/{program}", if directory.is_empty() { "." } else { directory });
        match access(candidate.as_str(), AccessFlags::X_OK) {
            Ok(()) if std::fs::metadata(&candidate).is_ok_and(|found| found.is_file()) => {
                return c_string(&candidate);
            }
            Err(Errno::EACCES) => denied = true,
            _ => {}
        }
    }
    if denied {
        return Err(Failure::new(
            FailureKind::NotExecutable,
            format!("program {program:?} may not be executed (PATH={path})"),
        ));
    }
    Err(missing(program, &format!("not in PATH={path}")))
}

fn missing(program: &str, why: &str) -> Failure {
    Failure::new(FailureKind::NoProgram, format!("program {program:?} not found in the container: {why}"))
}

fn c_string(text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::new(FailureKind::Other, format!("{text:?} contains NUL")))
}

/// Becomes the program; returns only if that failed.
pub(super) fn execute(args: &[String], env: &[String]) -> Failure {
    let start = || -> Result<Failure, Failure> {
        let program = find(args, env)?;
        let args = args.iter().map(|text| c_string(text)).collect::<Result<Vec<_>, _>>()?;
        let mut env = env.iter().map(|text| c_string(text)).collect::<Result<Vec<_>, _>>()?;
        if !env.iter().any(|entry| entry.to_bytes().starts_with(b"PATH=")) {
            env.push(c_string(&format!("PATH={DEFAULT_PATH}"))?);
        }
        let Err(errno) = execve(&program, &args, &env);
        // As in shells: what is there and does not run is not executable, whatever the reason.
        let kind = if errno == Errno::ENOENT { FailureKind::NoProgram } else { FailureKind::NotExecutable };
        // ENOENT for a file that exists: its interpreter is missing.
        let hint = if errno == Errno::ENOENT { " (does its interpreter exist in the image?)" } else { "" };
        Ok(Failure::new(kind, format!("cannot execute {program:?}: {}{hint}", errno.desc())))
    };
    start().unwrap_or_else(|failure| failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn programs_are_found_like_a_shell_finds_them() {
        let env = strings(&["A=b", "PATH=/nonexistent:/bin:/usr/bin"]);
        assert!(find(&strings(&["sh"]), &env).unwrap().to_str().unwrap().ends_with("/sh"));
        assert_eq!(find(&strings(&["/bin/sh"]), &env).unwrap(), c"/bin/sh".to_owned());
        assert!(find(&strings(&["sh"]), &[]).is_ok());
    }

    #[test]
    fn a_missing_program_is_named() {
        let failure = find(&strings(&["no-such-thing"]), &strings(&["PATH=/bin"])).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoProgram);
        assert!(
            failure.message.contains("\"no-such-thing\"") && failure.message.contains("PATH=/bin"),
            "{failure}"
        );
        assert_eq!(find(&strings(&["/no/such"]), &[]).unwrap_err().kind, FailureKind::NoProgram);
        assert_eq!(find(&[], &[]).unwrap_err().kind, FailureKind::NoProgram);
        let file = tempfile::NamedTempFile::new().unwrap();
        let denied = find(&[file.path().display().to_string()], &[]).unwrap_err();
        assert!(denied.message.contains("may not be executed"), "{denied}");
        assert_eq!(denied.kind, FailureKind::NotExecutable);
    }

    #[test]
    fn a_report_carries_the_failure_whole() {
        let mut report_pipe = Report::new().unwrap();
        let failure = Failure::new(FailureKind::NoProgram, "program \"x\" not found");
        report(report_pipe.writer().unwrap(), &failure);
        assert_eq!(report_pipe.outcome(), Err(failure));
        assert_eq!(Report::new().unwrap().outcome(), Ok(()));
    }
}
