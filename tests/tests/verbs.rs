//! The verbs and habits of kubectl, with the fake guest: get, apply, delete, describe, top, restart, selectors, namespaces, formats.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::terminal::Terminal;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Host, Pod};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn labelled(name: &str, labels: Value) -> Pod {
    Pod::simple(name).set("metadata/labels", labels)
}

/// Three pods of two namespaces: `web` and `db` in `default`, `web` in `team`.
fn three() -> Host {
    let host = Host::fake();
    host.start_fake(&labelled("web", json!({ "app": "shop", "tier": "front" })), "run");
    host.start_fake(&labelled("db", json!({ "app": "shop", "tier": "back" })), "run");
    let other = labelled("web", json!({ "app": "blog" })).set("metadata/namespace", "team");
    host.run_fake(&other, "run").arg("-d").ok();
    host
}

fn names(host: &Host, args: &[&str]) -> Vec<String> {
    host.cmd(args).ok().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn pods_are_listed_by_names_namespaces_and_labels() {
    let host = three();
    let ps = |args: &[&str]| names(&host, &[&["ps", "-q"], args].concat());
    assert_eq!(ps(&[]), ["default/db", "default/web", "team/web"]);
    assert_eq!(ps(&["-A"]), ps(&[]));
    assert_eq!(ps(&["-n", "team"]), ["team/web"]);
    assert_eq!(ps(&["-l", "app=shop"]), ["default/db", "default/web"]);
    assert_eq!(ps(&["-l", "app in (blog, shop), tier notin (back)"]), ["default/web", "team/web"]);
    assert_eq!(ps(&["-l", "!tier"]), ["team/web"]);
    assert_eq!(ps(&["-l", "app!=blog,tier=front"]), ["default/web"]);
    assert_eq!(
        ps(&["--field-selector", "metadata.name=web,status.phase=Running"]),
        ["default/web", "team/web"]
    );
    assert_eq!(
        ps(&["--field-selector=metadata.namespace!=team", "-l", "app"]),
        ["default/db", "default/web"]
    );
    assert_eq!(ps(&["--field-selector", "status.phase!=Running"]), [""; 0]);
    host.cmd(["ps", "--field-selector", "spec.nodeName=a"])
        .fails(2)
        .complains("pods are not selected by \"spec.nodeName\"");
    assert_eq!(ps(&["--sort-by", "{.metadata.labels.tier}"]), ["team/web", "default/db", "default/web"]);
    assert_eq!(ps(&["--sort-by=.metadata.creationTimestamp"]).len(), 3);
    host.cmd(["ps", "--sort-by", ".metadata.nothing"])
        .fails(1)
        .complains("nothing has a value at .metadata.nothing");
    host.cmd(["ps", "--sort-by", ".metadata["]).fails(2).complains("character 11");
    host.cmd(["ps", "-l", "app in shop"]).fails(2).complains("character 8 of the selector: expected `(`");
    host.cmd(["ps", "-n", "Team"]).fails(2);
    host.cmd(["ps", "-A", "-n", "team"]).fails(2);

    // kubectl's word looks at one namespace.
    let get = |args: &[&str]| names(&host, &[&["get"], args, &["-o", "name"]].concat());
    assert_eq!(get(&["pods"]), ["pod/db", "pod/web"]);
    assert_eq!(get(&["po", "-A"]), ["pod/db", "pod/web", "pod/team/web"]);
    assert_eq!(get(&["pod", "-n", "team"]), ["pod/team/web"]);
    assert_eq!(get(&["pods", "web", "team/web"]), ["pod/web", "pod/team/web"]);
    assert_eq!(get(&["pods/web", "pods/db"]), ["pod/web", "pod/db"]);
    assert_eq!(get(&["pods", "-l", "tier"]), ["pod/db", "pod/web"]);
    assert_eq!(get(&["pods", "-A", "--sort-by=.metadata.namespace"]), ["pod/db", "pod/web", "pod/team/web"]);
    let events = names(&host, &["get", "events", "--sort-by=.reason", "-o", "jsonpath={.items[*].reason}"]);
    let mut sorted: Vec<&str> = events[0].split(' ').collect();
    sorted.sort_unstable();
    assert_eq!(events[0], sorted.join(" "));
    host.cmd(["get", "images", "--field-selector", "metadata.name=a"])
        .fails(2)
        .complains("neither labels nor fields");
    host.cmd(["get", "pvc", "--field-selector", "metadata.name=a"])
        .fails(2)
        .complains("volumes have no fields");
    assert_eq!(get(&["pods", "web", "-n", "team"]), ["pod/team/web"]);
    let table = host.cmd(["get", "pods"]).ok().stdout;
    assert!(
        table.starts_with("NAME ") && table.contains("default/db ") && !table.contains("team/"),
        "{table}"
    );
    assert_eq!(host.cmd(["get", "pods", "--no-headers"]).ok().stdout.lines().count(), 2);
    let nothing = host.cmd(["get", "pods", "-n", "empty"]).ok();
    assert_eq!(
        (nothing.stdout.as_str(), nothing.stderr.as_str()),
        ("", "No resources found in empty namespace.\n")
    );
    let some = host.cmd(["get", "pods", "nobody", "db", "-o", "name"]).fails(1);
    assert_eq!(some.stdout, "pod/db\n");
    some.complains("there is no pod default/nobody");
    host.cmd(["get", "services"]).fails(2).complains("there are no \"services\" here");
    host.cmd(["get", "pods", "web", "-l", "app"]).fails(2).complains("cannot be used together");
}

#[test]
fn every_format_of_kubectl_is_there() {
    let host = three();
    let get = |args: &[&str]| host.cmd(["get", "pods"]).args(args).ok().stdout;
    let list: Value = serde_json::from_str(&get(&["-o", "json"])).unwrap();
    assert_eq!((&list["kind"], list["items"].as_array().unwrap().len()), (&json!("PodList"), 2));
    let one: Value = serde_json::from_str(&get(&["web", "-o", "json"])).unwrap();
    assert_eq!((&one["kind"], &one["metadata"]["name"]), (&json!("Pod"), &json!("web")));
    assert!(get(&["web", "-o", "yaml"]).contains("\n  name: web\n"));
    let path = |template: &str| get(&["-o", &format!("jsonpath={template}")]);
    assert_eq!(path("{.items[*].metadata.name}"), "db web");
    assert_eq!(
        path("{range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}"),
        "db\tRunning\nweb\tRunning\n"
    );
    assert_eq!(path("{.items[?(@.metadata.labels.tier==\"front\")].metadata.name}"), "web");
    assert_eq!(get(&["web", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"]), "True");
    let columns = get(&["-o", "custom-columns=NAME:.metadata.name,TIER:.metadata.labels.tier,NO:.x.y"]);
    assert_eq!(columns, "NAME   TIER    NO\ndb     back    <none>\nweb    front   <none>\n");
    assert_eq!(
        host.cmd(["inspect", "web", "-o", "jsonpath={.metadata.name}"]).ok().stdout,
        "web",
        "inspect has the same formats"
    );
    assert!(get(&["-o", "wide"]).lines().next().unwrap().ends_with("IP   IMAGES"));
    for (format, why) in [
        ("table", "it is one of wide, name"),
        ("jsonpath={.a", "character 4 of the JSONPath: expected '}'"),
        ("custom-columns=A", "is not HEAD:PATH"),
    ] {
        host.cmd(["ps", "-o", format]).fails(2).complains(why);
    }
    host.cmd(["inspect", "web", "-o", "wide"]).fails(2).complains("it is one of json");
}

#[test]
fn events_volumes_and_images_are_listed_too() {
    let host = three();
    let events = host.cmd(["get", "events", "web"]).ok().stdout;
    assert!(events.starts_with("LAST SEEN   TYPE     REASON    OBJECT            MESSAGE\n"), "{events}");
    assert!(events.contains("Normal   Started   pod/default/web   Started container web\n"), "{events}");
    let all: Value =
        serde_json::from_str(&host.cmd(["get", "events", "-A", "-o", "json"]).ok().stdout).unwrap();
    let of = |namespace: &str| {
        all["items"].as_array().unwrap().iter().any(|event| event["involvedObject"]["namespace"] == namespace)
    };
    assert!(of("default") && of("team"), "{all}");
    let reasons = host.cmd(["get", "ev", "-n", "team", "-o", "jsonpath={.items[*].reason}"]).ok().stdout;
    assert!(reasons.starts_with("Pulled Created Started"), "{reasons}");
    assert_eq!(host.cmd(["get", "images", "-o", "name"]).ok().stdout, "image/test/app:1\n");
    assert!(host.cmd(["get", "images"]).ok().stdout.contains("test/app:1"));
    host.cmd(["get", "images", "nope:1"]).fails(1);
    assert_eq!(host.cmd(["get", "volumes"]).ok().stderr, "No resources found in default namespace.\n");
    host.cmd(["volume", "import", "data"]).input(vec![0; 1024]).ok();
    assert_eq!(host.cmd(["get", "pvc", "-o", "name"]).ok().stdout, "persistentvolumeclaim/data\n");
    assert!(host.cmd(["get", "volumes", "data"]).ok().stdout.contains("data"));
    host.cmd(["get", "pvc", "nope"]).fails(1).complains("there is no volume default/nope");
    host.cmd(["get", "events", "-w"]).fails(2).complains("events -f");
}

#[test]
fn changes_are_watched() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("one"), "run");
    let mut table = host.cmd(["ps", "-w"]).spawn();
    table.wait_for_stdout("default/one");
    let mut names =
        host.cmd(["get", "pods", "--watch", "-o", "jsonpath={.metadata.name}:{.status.phase} "]).spawn();
    host.start_fake(&Pod::simple("two"), "run");
    table.wait_for_stdout("default/two");
    host.cmd(["stop", "one"]).ok();
    table.wait_for_stdout("Failed");
    names.wait_for_stdout("one:Failed");
    host.cmd(["rm", "one"]).ok();
    table.wait_for_stdout("default/one   Removed");
    assert_eq!(table.stdout().matches("NAME").count(), 1, "{}", table.stdout());
    for watching in [table, names] {
        watching.signal(Signal::SIGINT);
        watching.wait().expect_code(130);
    }
}

#[test]
fn verbs_for_several_pods_choose_by_labels_and_namespaces() {
    let host = three();
    host.cmd(["pause", "-l", "app=blog"]).ok();
    assert!(host.cmd(["ps", "-n", "team"]).ok().stdout.contains("Paused"));
    host.cmd(["resume", "-n", "team", "web"]).ok();
    host.cmd(["stop", "-l", "tier=back"]).ok();
    assert_eq!((host.phase("db"), host.phase("web")), ("Failed".to_owned(), "Running".to_owned()));
    let none = host.cmd(["stop", "-l", "tier=nothing"]).ok();
    assert_eq!(none.stderr, "There is no such pod, so none was stopped.\n");
    host.cmd(["stop", "web", "-l", "tier"])
        .fails(2)
        .complains("names and `--selector` cannot be used together");
    host.cmd(["stop", "-n", "team", "other/web"]).fails(2).complains("is not in the namespace team");
    host.cmd(["stop", "-n", "team", "--all"]).ok();
    assert_eq!(host.phase("web"), "Running", "it is in another namespace");
    host.cmd(["wait", "--all", "-n", "team", "--timeout", "10s"]).ok();
    host.cmd(["rm", "-n", "team", "--all"]).ok();
    assert_eq!(names(&host, &["ps", "-q"]), ["default/db", "default/web"]);
    // As kubectl prints it.
    assert_eq!(
        host.cmd(["wait", "--for=condition=Ready", "pod/web"]).ok().stdout,
        "pod/default/web condition met\n"
    );
    assert_eq!(
        host.cmd(["wait", "--for=condition=Ready", "-l", "tier=front"]).ok().stdout,
        "pod/default/web condition met\n"
    );
}

#[test]
fn what_is_waited_for_must_exist() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("web"), "run");
    let wait = |what: &str| host.cmd(["wait", "--timeout", "10s", "web", &format!("--for={what}")]);
    wait("condition=Raedy").fails(2).complains(
        "a pod has no condition \"Raedy\"; it has PodScheduled, PodReadyToStartContainers, Initialized, ContainersReady, Ready",
    );
    wait("condition=Ready=Maybe").fails(2).complains("True, False or Unknown");
    for kind in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "ready"] {
        wait(&format!("condition={kind}")).ok();
    }
    wait("jsonpath={.status.phase}=Running").ok();
    wait("jsonpath={.status.containerStatuses[?(@.name==\"web\")].ready}=true").ok();
    wait("jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True").ok();
    wait("jsonpath={.a[}").fails(2).complains("character 5 of the JSONPath");
    wait("jsonpath={.a}=b=c").fails(1);
}

#[test]
fn the_logs_of_several_pods_have_their_names() {
    let host = three();
    let expected = ["db/web  | hello from web", "web/web | hello from web"];
    until("the logs are there", || host.cmd(["logs", "-A", "--all"]).ok().stdout.lines().count() == 3);
    let lines = names(&host, &["logs", "-l", "app=shop"]);
    assert_eq!(lines, expected);
    assert_eq!(names(&host, &["logs", "db", "web"]), expected);
    assert_eq!(names(&host, &["logs", "-n", "team", "web"]), ["hello from web"]);
    let mut following = host.cmd(["logs", "-f", "-l", "app=shop"]).spawn();
    following.wait_for_stdout("web/web | hello");
    host.cmd(["stop", "-l", "app=shop"]).ok();
    let followed = following.wait().expect_code(0);
    assert_eq!(followed.stdout.lines().count(), 2);
    let some = host.cmd(["logs", "db", "nobody"]).fails(1).complains("there is no pod default/nobody");
    assert_eq!(some.stdout, "db/web  | hello from web\n");
    host.cmd(["logs"]).fails(2).complains("no pod was named");
    host.cmd(["logs", "-p", "db", "-c", "web"]).fails(1).complains("\"web\"");
}

#[test]
fn the_log_of_the_run_before_can_be_printed() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("again").set("spec/restartPolicy", "Always"), "exit=1");
    until("it was restarted", || {
        host.inspect("again").unwrap()["status"]["containerStatuses"][0]["restartCount"] != 0
    });
    until("both runs are logged", || host.cmd(["logs", "again"]).ok().stdout.lines().count() >= 2);
    assert_eq!(host.cmd(["logs", "--previous", "again"]).ok().stdout, "hello from web\n");
    assert_eq!(host.cmd(["logs", "-p", "again", "-c", "web"]).ok().stdout, "hello from web\n");
}

fn apply(host: &Host, pod: &Pod) -> Cmd {
    host.cmd(["apply", "--vmm", "fake", "-f"]).arg(host.manifest(pod)).env("MAGIKVM_FAKE", "run")
}

#[test]
fn apply_runs_what_is_not_there_and_changes_nothing_else() {
    let host = Host::fake();
    let before = host.holdings();
    let pod = labelled("web", json!({ "app": "a" })).beside(json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "conf" }, "data": { "a": "1" },
    }));
    let pod =
        pod.volume("conf", json!({ "configMap": { "name": "conf" } })).mount("conf", "/conf", json!({}));
    assert_eq!(apply(&host, &pod).ok().stdout, "pod/web created\n");
    let uid = host.inspect("web").unwrap()["metadata"]["uid"].clone();
    let unchanged = apply(&host, &pod).ok();
    assert_eq!((unchanged.stdout.as_str(), unchanged.stderr.as_str()), ("pod/web unchanged\n", ""));
    assert_eq!(apply(&host, &pod).arg("--replace").ok().stdout, "pod/web unchanged\n");
    assert_eq!(host.inspect("web").unwrap()["metadata"]["uid"], uid);

    // Another pod of the same input is not run either.
    let changed = pod.set("metadata/labels/app", "b");
    std::fs::write(host.file("two.yaml"), format!("{}\n---\n{}", Pod::simple("new").text(), changed.text()))
        .unwrap();
    let both =
        || host.cmd(["apply", "--vmm", "fake", "-f"]).arg(host.file("two.yaml")).env("MAGIKVM_FAKE", "run");
    let refused = both().fails(1).complains("pod default/web is there with another manifest");
    refused.complains("Hint: Stop it and run the new one with `magikvm apply --replace`");
    assert_eq!(names(&host, &["ps", "-q"]), ["default/web"]);
    assert_eq!(both().arg("--replace").ok().stdout, "pod/new created\npod/web replaced\n");
    assert_ne!(host.inspect("web").unwrap()["metadata"]["uid"], uid);
    assert_eq!(host.inspect("web").unwrap()["metadata"]["labels"]["app"], "b");
    assert_eq!(both().ok().stdout, "pod/new unchanged\npod/web unchanged\n");

    // What a ConfigMap holds is part of the pod.
    let other = changed.text().replace("\"a\": \"1\"", "\"a\": \"2\"");
    host.cmd(["apply", "--vmm", "fake", "-f", "-"]).input(other).fails(1).complains("another manifest");

    // One that has ended is there, as in a cluster.
    host.cmd(["stop", "new"]).ok();
    let ended = both().ok();
    assert_eq!(ended.stdout, "pod/new unchanged\npod/web unchanged\n");
    ended.complains("Pod default/new has ended (Failed). Run it again with `magikvm restart default/new`.");
    assert_eq!(both().arg("--replace").ok().stdout, "pod/web unchanged\npod/new replaced\n");
    host.cmd(["delete", "-f"]).arg(host.file("two.yaml")).ok();
    host.assert_as_before(&before);
}

#[test]
fn delete_stops_and_removes() {
    let host = three();
    // kubectl's words for other kinds are not the names of pods.
    for words in
        [&["service", "web"][..], &["deployment.apps", "web"], &["pvc", "web"], &["svc/web"], &["pvc/web"]]
    {
        host.cmd([&["delete"], words].concat()).fails(2).complains("nothing was done");
        host.cmd([&["describe"], words].concat()).fails(2);
    }
    host.cmd(["delete", "gateway", "web"]).fails(1).complains("Nothing was deleted");
    host.cmd(["delete", "-f", "x.yaml", "--field-selector", "metadata.name=web"]).fails(2);
    assert_eq!(names(&host, &["ps", "-q"]).len(), 3);
    let before = names(&host, &["ps", "-q"]).len();
    assert_eq!(before, 3);
    assert_eq!(host.cmd(["delete", "pod", "db"]).ok().stdout, "pod \"db\" deleted\n");
    host.cmd(["delete", "db"]).fails(1).complains("there is no pod default/db");
    host.cmd(["delete", "pod/db", "--ignore-not-found"]).ok();
    host.cmd(["delete", "pod"]).fails(2).complains("names no pod");
    host.cmd(["delete"]).fails(2);
    host.cmd(["delete", "web", "--all"]).fails(2).complains("names and `--all`");
    host.cmd(["delete", "--grace-period", "999999", "web"]).fails(2);
    // The namespace `default`, as in kubectl.
    assert_eq!(host.cmd(["delete", "pods", "--all"]).ok().stdout, "pod \"web\" deleted\n");
    assert_eq!(names(&host, &["ps", "-q"]), ["team/web"]);
    assert_eq!(host.cmd(["delete", "pods", "-l", "app"]).ok().stderr, "No resources found.\n");
    assert_eq!(host.cmd(["delete", "-l", "app=blog", "-A"]).ok().stdout, "pod \"team/web\" deleted\n");

    // A guest that does not end on request takes its whole time unless it is killed.
    let slow = Pod::simple("slow").set("spec/terminationGracePeriodSeconds", 200);
    host.start_fake(&slow, "immortal");
    let deleted = host.cmd(["delete", "slow", "--force"]).ok();
    assert!(deleted.took < std::time::Duration::from_secs(20), "{:?}", deleted.took);
    host.start_fake(&Pod::simple("a"), "run");
    host.cmd(["delete", "a", "--now"]).ok();
    host.start_fake(&Pod::simple("b"), "run");
    let file = host.manifest(&Pod::simple("b"));
    assert_eq!(host.cmd(["delete", "-f"]).arg(&file).ok().stdout, "pod \"b\" deleted\n");
    host.cmd(["delete", "-f"]).arg(&file).fails(1).complains("there is no pod default/b");
}

#[test]
fn describe_shows_a_pod_for_people() {
    let host = Host::fake();
    let pod = labelled("shop", json!({ "app": "shop" }))
        .init_script("first", "x", None)
        .with("resources/limits/memory", "64Mi")
        .with("readinessProbe", json!({ "exec": { "command": ["cat"] }, "periodSeconds": 2 }))
        .with("env", json!([{ "name": "PLAIN", "value": "text" }, { "name": "HIDDEN", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }]))
        .volume("data", json!({ "emptyDir": { "sizeLimit": "1Mi" } }))
        .mount("data", "/data", json!({ "readOnly": true }))
        .beside(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "k": "swordfish" } }));
    host.start_fake(&pod, "run");
    host.cmd(["wait", "--for=condition=Ready", "--timeout", "20s", "shop"]).ok();
    let shown = host.cmd(["describe", "pod", "shop"]).ok().stdout;
    for text in [
        "Name:              shop\n",
        "Labels:            app=shop\n",
        "Status:            Running\n",
        "\nInit Containers:\n  first:\n",
        "      Reason:        Completed\n      Exit Code:     0\n",
        "\nContainers:\n  web:\n    Image:           test/app:1\n",
        "    State:           Running\n      Started:       ",
        "    Ready:           True\n    Restart Count:   0\n    Limits:\n      memory:        64Mi\n",
        "    Readiness:       exec [cat] delay=0s timeout=1s period=2s #success=1 #failure=3\n",
        "      PLAIN:         text\n",
        "<set to the key 'k' of secret 's'>  Optional: false",
        "    Mounts:\n      /data from data (ro)\n",
        "\nConditions:\n  Type                        Status\n",
        "  Ready                       True\n",
        "\nVolumes:\n  data:\n    Type:            EmptyDir (a temporary directory of the pod)\n",
        "    SizeLimit:       1Mi\n",
        "QoS Class:         Burstable\n",
        "\nEvents:\n  Type     Reason ",
        "Started container web",
    ] {
        assert!(shown.contains(text), "{text:?} in\n{shown}");
    }
    assert!(!shown.contains("swordfish"), "{shown}");
    assert!(!host.cmd(["describe", "shop", "--no-events"]).ok().stdout.contains("Events:"));
    host.start_fake(&Pod::simple("other"), "exit=3");
    host.wait_for_phase("other", "Failed");
    let both = host.cmd(["describe", "pods"]).ok().stdout;
    assert_eq!(both.matches("Name:  ").count(), 2, "{both}");
    assert!(both.contains("Reason:            Error (3)\n"), "{both}");
    host.cmd(["describe", "nobody"]).fails(1).complains("there is no pod default/nobody");
}

#[test]
fn top_shows_what_pods_use() {
    let host = three();
    let top = |args: &[&str]| host.cmd(["top", "pod", "--interval", "100ms"]).args(args).ok().stdout;
    assert_eq!(
        top(&[]),
        "NAME          CPU(cores)   MEMORY(bytes)\ndefault/db    0m           5Mi\ndefault/web   0m           5Mi\n"
    );
    assert_eq!(top(&["team/web", "--no-headers"]), "team/web   0m   5Mi\n");
    assert_eq!(
        top(&["web", "--containers"]),
        "POD           NAME   CPU(cores)   MEMORY(bytes)\ndefault/web   web    0m           5Mi\n"
    );
    assert_eq!(top(&["-A", "-l", "app=blog", "--no-headers"]).lines().count(), 1);
    host.cmd(["top", "nodes"]).fails(2).complains("there are no nodes here");
    host.cmd(["stop", "db"]).ok();
    assert_eq!(top(&["--no-headers"]).lines().count(), 1, "a pod that has ended uses nothing");
    host.cmd(["top", "pod", "db"]).fails(1).complains("is not running");
}

#[test]
fn a_pod_is_restarted_as_it_was_run() {
    let host = Host::fake();
    let before = host.holdings();
    let pod = labelled("web", json!({ "app": "a" })).beside(json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "s" }, "stringData": { "k": "swordfish" },
    }));
    let pod = pod.with("envFrom", json!([{ "secretRef": { "name": "s" } }]));
    host.start_fake(&pod, "run");
    let uid = || host.inspect("web").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let first = uid();
    let restart = || host.cmd(["restart", "web"]).env("MAGIKVM_FAKE", "run");
    assert_eq!(restart().ok().stdout, "default/web\n");
    let second = uid();
    assert_ne!(first, second);
    assert_eq!(host.phase("web"), "Running");
    host.cmd(["stop", "web"]).ok();
    assert_eq!(host.cmd(["restart", "-l", "app=a"]).env("MAGIKVM_FAKE", "run").ok().stdout, "default/web\n");
    assert_eq!(host.phase("web"), "Running", "one that has ended runs again");
    let request = host.pod_dir("web").join("request.json");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&request.metadata().unwrap()) & 0o777, 0o600);
    host.cmd(["restart", "nobody"]).fails(1).complains("there is no pod default/nobody");
    assert_eq!(host.cmd(["restart"]).ok().stderr, "No pod was named, so none was restarted.\n");
    host.cmd(["rm", "-f", "web"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_restart_that_fails_keeps_the_old_pod() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("web"), "run");
    until("its log is there", || !host.cmd(["logs", "web"]).ok().stdout.is_empty());
    let uid = host.inspect("web").unwrap()["metadata"]["uid"].clone();
    for point in ["reserve", "prepare", "ready"] {
        let failed =
            host.cmd(["restart", "web"]).env("MAGIKVM_FAKE", "run").env("MAGIKVM_FAULT", point).fails(70);
        failed.complains("its status and logs are kept").complains("fault injected");
        assert_eq!(host.inspect("web").unwrap()["metadata"]["uid"], uid, "{point}");
        assert_eq!(host.phase("web"), "Failed");
        assert_eq!(host.cmd(["logs", "web"]).ok().stdout, "hello from web\n");
    }
    host.cmd(["restart", "web"]).env("MAGIKVM_FAKE", "run").ok();
    assert_eq!(host.phase("web"), "Running");
    host.cmd(["rm", "-f", "web"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_restart_that_is_killed_loses_no_pod() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("web"), "run");
    let uid = host.inspect("web").unwrap()["metadata"]["uid"].clone();
    for point in ["reserve", "ready"] {
        let hold = host.file("hold");
        std::fs::write(&hold, "").unwrap();
        let restarting = host
            .cmd(["restart", "web"])
            .env("MAGIKVM_FAKE", "run")
            .env("MAGIKVM_FAULT", format!("{point}=hold"))
            .env("MAGIKVM_HOLD", &hold)
            .spawn();
        let reached = hold.with_extension("reached");
        until("the new pod is being started", || reached.exists());
        restarting.signal(Signal::SIGKILL);
        restarting.wait().expect_code(137);
        std::fs::remove_file(&hold).unwrap();
        std::fs::remove_file(&reached).unwrap();
        // The monitor of the new pod goes on alone, and the old pod goes when the new one runs.
        host.wait_for_phase("web", "Running");
        assert_eq!(names(&host, &["ps", "-q"]), ["default/web"], "{point}");
        assert_ne!(host.inspect("web").unwrap()["metadata"]["uid"], uid, "{point}");
        let left = std::fs::read_dir(host.root().join("run/pods")).unwrap();
        let left = left
            .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".restart-"));
        assert_eq!(left.count(), 0, "{point}");
        host.cmd(["restart", "web"]).env("MAGIKVM_FAKE", "run").ok();
        assert_eq!(host.phase("web"), "Running");
    }
    host.cmd(["rm", "-f", "web"]).ok();
    host.assert_as_before(&before);
}

/// A pod whose readiness probe fails.
fn never_ready(name: &str) -> Pod {
    Pod::simple(name)
        .with("readinessProbe", json!({ "exec": { "command": ["exit", "1"] }, "periodSeconds": 1 }))
}

#[test]
fn a_wait_for_readiness_has_an_end() {
    let host = Host::fake();
    let run = |name: &str| host.run_fake(&never_ready(name), "run").args(["-d", "--wait-ready"]);
    let late = run("late").args(["--wait-timeout", "1s"]).fails(1);
    late.complains("pod default/late is not ready after 1s; it goes on running");
    assert_eq!(host.phase("late"), "Running");
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let name = format!("cancelled-{code}");
        // Before it waits, a signal would cancel the start.
        let mut waiting = Terminal::start(run(&name), 24, 80);
        waiting.wait_for("Waiting until pod");
        waiting.signal(signal);
        assert_eq!(waiting.wait(), code);
        waiting.wait_for("the pod goes on running");
        assert_eq!(host.phase(&name), "Running");
    }
    let mut terminal = Terminal::start(run("shown").args(["--wait-timeout", "3s"]), 24, 80);
    terminal.wait_for("Waiting until pod default/shown is ready (");
    terminal.wait_for(" s): 0/1 containers");
    assert_eq!(terminal.wait(), 1);
    host.cmd(["rm", "-af"]).ok();
}
