//! A program on a separate terminal.

use crate::command::{Cmd, LIMIT};
use crate::wait::wait_for;
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A terminal and the program that runs on it.
#[derive(Debug)]
pub struct Terminal {
    keyboard: File,
    line: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
}

impl Terminal {
    /// Starts a command on a new terminal, which is its controlling one.
    pub fn start(cmd: Cmd, rows: u16, cols: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).expect("a pseudoterminal");
        let (keyboard, line) = (File::from(pair.master), File::from(pair.slave));
        let wanted = cmd.into_command();
        // `setsid --ctty` does between fork and exec what needs unsafe code here.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(wanted.get_program()).args(wanted.get_args()).env_clear();
        command.envs(wanted.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let end = || Stdio::from(line.try_clone().expect("one more descriptor"));
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("start setsid");
        let screen = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (keyboard.try_clone().expect("one more descriptor"), Arc::clone(&screen));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                to.lock().unwrap().extend_from_slice(&buffer[..read]);
            }
        });
        Self { keyboard, line, screen, child }
    }

    /// All that was shown so far.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    pub fn keys(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal is open");
    }

    /// Waits until a text was shown.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        wait_for(&format!("{text:?} on the terminal, which shows {:?}", self.shown()), LIMIT, || {
            self.shown().contains(text).then_some(())
        });
    }

    /// Resizes the terminal. A signal tells the program.
    pub fn resize(&self, rows: u16, cols: u16) {
        let line = self.line.try_clone().expect("one more descriptor");
        let arguments = ["rows".to_owned(), rows.to_string(), "cols".to_owned(), cols.to_string()];
        let done = Command::new("stty").args(arguments).stdin(line).status().expect("run stty");
        assert!(done.success());
    }

    /// The present output of `stty -a` for the terminal.
    pub fn settings(&self) -> String {
        let line = self.line.try_clone().expect("one more descriptor");
        let said = Command::new("stty").arg("-a").stdin(line).output().expect("run stty");
        String::from_utf8_lossy(&said.stdout).into_owned()
    }

    /// Sends a signal to the program. `setsid` has become the program, since it leads no group of processes.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("the program is there");
    }

    /// Waits for the program's end and returns its exit code.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        let what = format!("the end of the program on the terminal, which shows {:?}", self.shown());
        let status = wait_for(&what, LIMIT, || self.child.try_wait().expect("wait for a child"));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            // It does not matter any more whether the process is reaped.
            self.child.wait().ok();
        }
    }
}
