//! What common images expect of a container: links in the way of mounts, standard streams that can be opened, low ports.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::layout::write_layout;
use magikvm_tests::terminal::Terminal;
use magikvm_tests::virtual_machine::{Driver, busybox};
use magikvm_tests::wait::until;
use serde_json::json;

const POD: &str = "common";
const IMAGE: &str = "test/common:1";
/// Prints by every name of its streams; ends once, so that it is started again.
const WRITES: &str = "echo out > /dev/stdout; echo error > /dev/stderr; echo linked > /var/log/access.log; echo number > /proc/self/fd/1; \
    [ -e /state/once ] && exec sleep 1000; touch /state/once; exit 3";
const ON_A_TERMINAL: &str = "echo out > /dev/stdout; echo error > /dev/stderr; echo tty > /dev/tty; echo console > /dev/console; \
    stat -L -c '%u:%g %a' /proc/self/fd/0; exec sleep 1000";

pub(crate) static GROUP: Group = Group {
    name: "common",
    title: "What common images expect",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "streams_of_an_ordinary_user",
            "A program that is not root opens its own standard streams by name, also after a restart and on a terminal.",
            streams_of_an_ordinary_user,
        )
        .of("`runAsUser`, `tty`"),
        Row::code(
            "streams_of_an_exec",
            "A command of an ordinary user opens its own standard streams by name: without input, with input and on a terminal.",
            streams_of_an_exec,
        )
        .of("`exec`"),
        Row::shell(
            "low_ports_and_ping_of_an_ordinary_user",
            "An ordinary user listens on port 80 and may open a socket for pings; the pod sets the kernel parameters that belong to it.",
            &[
                ("user", "httpd -p 80 -h /state && wget -qO- localhost/page; killall httpd", "page\n"),
                ("user", "cat /proc/sys/net/ipv4/ping_group_range", "0\t2147483647\n"),
                ("user", "cd /proc/sys; cat net/core/somaxconn kernel/msgmni fs/mqueue/msg_max", "512\n77\n12\n"),
            ],
        )
        .of("`securityContext.sysctls`")
        .differs(&[
            Difference {
                drivers: &[Driver::Containers, Driver::ContainersV2],
                why: "a user namespace has 65536 groups",
                says: "65535",
            },
            Difference {
                drivers: &[Driver::ContainersUser],
                why: "a user namespace has the user's group and the 65536 subordinate ones",
                says: "65536",
            },
        ]),
        Row::shell(
            "mounts_through_links",
            "A volume is mounted where the image's links lead within the container, and what they lead to is made.",
            &[
                ("linked", "cat /run/secrets/x/localtime; readlink /var/run", "zone\n/run\n"),
                ("linked", "cat /var/here/x/localtime /tmp/there/deep/x/localtime /tmp/four/localtime", "zone\nzone\nzone\n"),
                ("linked", "cat /usr/share/zoneinfo/Asia/Somewhere /mnt/nowhere/localtime; readlink /data", "zone\nzone\n/mnt/nowhere\n"),
                ("linked", "cat /etc/inside/localtime; cat /etc/empty; touch /dev/shm/x; ls /outer/shm", "zone\nzone\nx\n"),
            ],
        )
        .of("`volumeMounts[].mountPath`"),
        Row::shell(
            "files_of_the_pod_in_any_image",
            "The pod's hosts, hostname and resolv.conf are there, whatever the image has at their places.",
            &[
                ("linked", "grep -c localhost /etc/hosts; cat /etc/hostname; cat /etc/resolv.conf /run/systemd/stub.conf | wc -l", "2\ncommon\n0\n"),
                ("linked", "stat -c %F /etc/hosts /etc/hostname; readlink /etc/resolv.conf; ls -l /dev/null | head -c 1", "regular file\nregular file\n../run/systemd/stub.conf\nc"),
            ],
        ),
        Row::shell(
            "volumes_within_volumes",
            "A volume is mounted within another one, also a read-only one, and the mount point is made if it is missing.",
            &[
                ("linked", "cat /outer/in/conf/localtime /outer/file; touch /outer/x 2> /dev/null || echo refused", "zone\nzone\nrefused\n"),
                ("linked", "cat /conf/localtime /conf/extra; touch /conf/x 2> /dev/null || echo refused; touch /conf/inner/x && ls /conf/inner", "zone\nzone\nrefused\nwork\nx\n"),
                ("linked", "ls /nothing | wc -l; stat -c %F /nothing; cat /proc/1/cwd/../../localtime", "0\ndirectory\nzone\n"),
            ],
        )
        .of("`volumeMounts`"),
        Row::shell(
            "the_root_of_the_image",
            "The container's root directory has the mode and the owner that it has in the image.",
            &[("linked", "stat -c '%a %u:%g' /", "1777 1000:1000\n")],
        ),
    ],
};

fn start(subject: &Subject) {
    let layout = subject.file("common");
    let layer = busybox()
        .dir_of("./", 0o1777, 1000)
        .dir("tmp/run2/", 0o755)
        .dir("var/", 0o755)
        .dir("var/log/", 0o755)
        .dir("here/", 0o755)
        .dir("etc/empty/", 0o755)
        .dir("etc/hosts/", 0o755)
        .file("etc/hosts/full", 0o644, b"x")
        .link("var/log/access.log", "/dev/stdout")
        .link("var/run", "/run")
        .link("var/here", "../here")
        .link("there", "/tmp/there")
        .link("var/there", "/there")
        .link("var/four", "/tmp/four")
        .link("etc/localtime", "/usr/share/zoneinfo/Asia/Somewhere")
        .link("etc/resolv.conf", "../run/systemd/stub.conf")
        .link("etc/hostname", "/dev/null")
        .link("data", "/mnt/nowhere")
        .link("up", "../../../../../../etc/inside");
    write_layout(&layout, layer, &json!({ "Env": ["PATH=/bin"] }));
    subject.cmd(["image", "import", &format!("oci:{}:1", layout.display()), "--name", IMAGE]).ok();
    let user = json!({ "runAsUser": 1000, "runAsGroup": 1000 });
    let file = || json!({ "subPath": "localtime" });
    let pod = Pod::new(POD)
        .set("spec/restartPolicy", "Always")
        .set(
            "spec/securityContext",
            json!({ "sysctls": [
                { "name": "net.core.somaxconn", "value": "512" },
                { "name": "kernel.msgmni", "value": "77" },
                { "name": "fs/mqueue/msg_max", "value": "12" },
            ] }),
        )
        .volume("zone", json!({ "configMap": { "name": "zone" } }))
        .volume("state", json!({ "emptyDir": { "medium": "Memory" } }))
        .volume("outer", json!({ "emptyDir": { "medium": "Memory" } }))
        .container_of("user", IMAGE, &["sh", "-c", WRITES])
        .with("securityContext", user.clone())
        .mount("state", "/state", json!({}))
        .container_of("terminal", IMAGE, &["sh", "-c", ON_A_TERMINAL])
        .with("securityContext", user)
        .with("tty", true)
        .container_of("linked", IMAGE, &["sleep", "1000"])
        .with("workingDir", "/conf/inner/work")
        .mount("zone", "/var/run/secrets/x", json!({}))
        .mount("zone", "/var/here/x", json!({}))
        .mount("zone", "/var/there/deep/x", json!({}))
        .mount("zone", "/var/four", json!({}))
        .mount("zone", "/etc/localtime", file())
        .mount("zone", "/etc/empty", file())
        .mount("zone", "/data", json!({}))
        .mount("zone", "/up", json!({}))
        .mount("zone", "/conf", json!({}))
        .mount("zone", "/conf/extra", file())
        .mount("state", "/conf/inner", json!({ "subPath": "inner" }))
        .mount("zone", "/outer/in/conf", json!({}))
        .mount("zone", "/outer/file", file())
        .mount("outer", "/outer", json!({ "readOnly": true }))
        .mount("outer", "/dev/shm", json!({ "subPath": "shm" }))
        .mount("zone", "/nothing", json!({ "subPath": "no/such/key" }))
        .beside(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "zone" },
            "data": { "localtime": "zone\n" } }));
    subject.start(&pod);
    until("it has been started again", || subject.logs(POD, "user").lines().count() == 6);
    subject.sh(POD, "user", "echo page > /state/page");
}

fn streams_of_an_ordinary_user(subject: &Subject) {
    let logs = subject.cmd(["logs", POD, "-c", "user"]).ok();
    assert_eq!(logs.stdout, "out\nlinked\nnumber\n".repeat(2));
    assert_eq!(logs.stderr, "error\n".repeat(2));
    let expected = "out\r\nerror\r\ntty\r\nconsole\r\n1000:5 620\r\n";
    until("it has said all", || subject.logs(POD, "terminal").len() >= expected.len());
    assert_eq!(subject.logs(POD, "terminal"), expected);
}

fn streams_of_an_exec(subject: &Subject) {
    let script = "cat /dev/stdin; echo out > /dev/stdout; echo number > /proc/self/fd/1; echo error > /dev/stderr; \
        stat -L -c '%u %F' /proc/self/fd/1";
    let exec = |options: &[&str]| {
        subject.cmd(["exec"]).args(options).args([POD, "-c", "user", "--", "sh", "-c", script])
    };
    let without = exec(&[]).ok();
    assert_eq!((&*without.stdout, &*without.stderr), ("out\nnumber\n1000 fifo\n", "error\n"));
    assert_eq!(exec(&["-i"]).input("in\n").ok().stdout, "in\nout\nnumber\n1000 fifo\n");
    let script = "echo out > /dev/stdout; echo tty > /dev/tty; stat -L -c '%u:%g %a' /proc/self/fd/0";
    let on_terminal = subject.cmd(["exec", "-i", "-t", POD, "-c", "user", "--", "sh", "-c", script]);
    let mut terminal = Terminal::start(on_terminal, 30, 90);
    terminal.wait_for("out");
    terminal.wait_for("tty");
    terminal.wait_for("1000:5 620");
    assert_eq!(terminal.wait(), 0);
}
