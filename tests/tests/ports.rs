//! Host ports that lead to a pod, with the fake guest, which shares the host's ports: conflicts, verbs, ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// A server that returns its input when the input has ended. It ends with the process.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut told = Vec::new();
                if stream.read_to_end(&mut told).is_ok() {
                    stream.write_all(&told).ok();
                }
            });
        }
    });
    port
}

/// The answer to this input.
fn ask(address: &str, question: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(question.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map(|_| answer)
}

/// A port that is free at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn published(name: &str, host_port: u16, port: u16) -> Pod {
    let ports = json!([{ "containerPort": port, "hostPort": host_port, "hostIP": "127.0.0.1" }]);
    Pod::simple(name).with("ports", ports)
}

#[test]
fn a_port_of_the_host_leads_to_the_pod_as_long_as_it_lives() {
    let host = Host::fake();
    let before = host.holdings();
    let (app, port) = (echo(), free_port());
    let address = format!("127.0.0.1:{port}");
    host.start_fake(&published("web", port, app), "run");
    assert_eq!(ask(&address, "hello").unwrap(), "hello");
    let shown = host.inspect("web").unwrap();
    assert_eq!(shown["metadata"]["annotations"]["magikvm.dev/ports"], format!("{address}->{app}/tcp"));
    assert_eq!(shown["spec"]["containers"][0]["ports"][0]["hostPort"], port);
    host.cmd(["stop", "web"]).ok();
    assert!(TcpStream::connect(&address).is_err());
    let ended = host.inspect("web").unwrap();
    assert_eq!(ended["metadata"].get("annotations"), None);
    // The output of `inspect` is a valid manifest.
    host.cmd(["rm", "web"]).ok();
    std::fs::write(host.file("shown.json"), shown.to_string()).unwrap();
    host.cmd(["run", "--vmm", "fake", "-d"]).arg(host.file("shown.json")).ok();
    assert_eq!(ask(&address, "again").unwrap(), "again");
    host.cmd(["rm", "-f", "web"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_free_port_is_found_and_told() {
    let host = Host::fake();
    let app = echo();
    let run = host
        .run_fake(&Pod::simple("web"), "run")
        .args(["-d", "-p", &format!("127.0.0.1::{app}"), "-p", &format!("[::1]:0:{app}/tcp")])
        .ok();
    assert_eq!(run.stdout, "default/web\n");
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.stderr);
    for line in lines {
        let (address, port) = line.strip_prefix("Published ").unwrap().split_once("->").unwrap();
        assert_eq!(port, format!("{app}/tcp"));
        assert_ne!(address.parse::<SocketAddr>().unwrap().port(), 0);
        assert_eq!(ask(address, "hello").unwrap(), "hello");
    }
}

#[test]
fn who_wants_a_port_that_is_taken_is_told_who_has_it_and_nothing_is_made() {
    let host = Host::fake();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    let before = host.holdings();
    let failed = host.run_fake(&published("late", taken, 80), "run").arg("-d").fails(3);
    let failed = failed.complains("spec.containers[0].ports[0].hostPort: cannot listen on 127.0.0.1:");
    failed.complains("(stage: reserve)").complains(&format!("ss -ltnp 'sport = :{taken}'"));
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    host.assert_as_before(&before);
    drop(other);
    host.start_fake(&published("first", taken, 80), "run");
    let run = host.run_fake(&Pod::simple("second"), "run");
    run.args(["-d", "-p", &format!("127.0.0.1:{taken}:80")])
        .fails(3)
        .complains(&format!("--publish 127.0.0.1:{taken}:80: cannot listen"))
        .complains("Hint: Pod default/first uses it; stop that pod with `magikvm stop default/first`");
}

#[test]
fn what_cannot_be_published_is_refused_before_anything_is_made() {
    let host = Host::fake();
    let run = |ports: &[&str]| {
        let args = ports.iter().flat_map(|port| ["-p", port]);
        host.run_fake(&Pod::simple("web"), "run").arg("-d").args(args.collect::<Vec<_>>())
    };
    run(&["8080:80/sctp"]).fails(2).complains("is not a protocol that can be published");
    run(&["nobody:8080:80"]).fails(2).complains("is not an IP address");
    run(&["127.0.0.1:8081:80", "8081:81"]).fails(1).complains("are the same port of the host");
    run(&["127.0.0.1::53/udp"]).fails(1).complains("a UDP port needs a number");
    run(&["127.0.0.1:5300:53/udp"]).fails(1).complains("only the networks nat and passt carry UDP ports");
    run(&["192.0.2.77:8080:80"]).fails(3).complains("192.0.2.77 is not an address of the host");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
}

#[test]
fn a_killed_monitor_leaves_no_port() {
    let host = Host::fake();
    let (app, port) = (echo(), free_port());
    host.start_fake(&published("web", port, app), "run");
    kill(Pid::from_raw(host.process("web", "monitor")), Signal::SIGKILL).unwrap();
    host.wait_for_phase("web", "Lost");
    until("the port is free", || TcpListener::bind(("127.0.0.1", port)).is_ok());
    host.cmd(["rm", "web"]).ok();
}

/// The host addresses that a running command has printed.
fn forwarded(running: &mut Running) -> Vec<String> {
    running.wait_for_stdout("Forwarding from 127.0.0.1:");
    until("all lines", || running.stdout().ends_with('\n'));
    let lines = running.stdout();
    let addresses = lines.lines().filter_map(|line| line.strip_prefix("Forwarding from "));
    addresses.filter_map(|rest| rest.split_once(" -> ")).map(|(address, _)| address.to_owned()).collect()
}

#[test]
fn port_forward_leads_to_the_pod_until_it_is_ended() {
    let host = Host::fake();
    let (app, local) = (echo(), free_port());
    host.start_fake(&Pod::simple("web"), "run");
    let mut free = host.cmd(["port-forward", "web", &format!(":{app}")]).spawn();
    let mut named =
        host.cmd(["port-forward", "--address", "127.0.0.1", "web", &format!("{local}:{app}")]).spawn();
    for address in forwarded(&mut free).iter().chain(&forwarded(&mut named)) {
        assert_eq!(ask(address, "hello").unwrap(), "hello");
    }
    assert!(named.stdout().starts_with(&format!("Forwarding from 127.0.0.1:{local} -> {app}\n")));
    named.wait_for_stdout(&format!("Handling connection for {local}\n"));
    let taken = format!("{local}:{app}");
    host.cmd(["port-forward", "web", &taken]).fails(3).complains("Choose another local port");
    let own = free_port();
    host.run_fake(&published("holder", own, app), "run").arg("-d").ok();
    let refused = host.cmd(["port-forward", "web", &format!("{own}:{app}")]).fails(3);
    refused.complains("Pod default/holder has published it.");
    named.signal(Signal::SIGINT);
    named.wait().expect_code(0);
    assert!(TcpListener::bind(("127.0.0.1", local)).is_ok());
    host.cmd(["stop", "web"]).ok();
    free.wait().expect_code(1).complains("pod default/web has ended");
    host.cmd(["port-forward", "web", "80"]).fails(1).complains("pod default/web is not running");
}

#[test]
fn where_nothing_listens_only_the_connection_fails() {
    let host = Host::fake();
    let (app, nobody) = (echo(), free_port());
    host.start_fake(&Pod::simple("web"), "run");
    let ports = [format!(":{nobody}"), format!(":{app}")];
    let mut running = host.cmd(["port-forward", "--address", "127.0.0.1", "web"]).args(ports).spawn();
    until("both lines", || running.stdout().lines().count() == 2);
    let addresses = forwarded(&mut running);
    assert!(ask(&addresses[0], "hello").is_err());
    running.wait_for_stderr(&format!(
        "Error: a connection to port {nobody} was reset: nothing in the pod listens on port {nobody}"
    ));
    assert_eq!(ask(&addresses[1], "hello").unwrap(), "hello");
}
