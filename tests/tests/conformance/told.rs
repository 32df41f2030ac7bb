//! What a container is told by its manifest: variables, commands, names, files, resources. Each row names the page of Kubernetes'
//! documentation whose rules it holds.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::{Driver, busybox};
use magikvm_tests::wait::until;
use serde_json::{Value, json};
use std::time::Duration;

const POD: &str = "told";
const ENTRY: &str = "test/entry:1";
const IDLE: [&str; 2] = ["sleep", "1000"];
/// The variables of the container's process with this beginning, which a shell might not keep.
const RAW: &str = "tr '\\0' '\\n' < /proc/1/environ | grep '^odd' | sort";

pub(crate) static GROUP: Group = Group {
    name: "told",
    title: "What a container is told",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "values_of_variables",
            "A variable has the value that is written, which may be empty and is empty if it is missing.",
            &[("vars", "echo \"[$PLAIN] [$EMPTY] [$SPACED]\"; [ -n \"${MISSING+x}\" ] && echo set", "[one] [] [a  b]\nset\n")],
        )
        .of("`env[].value` (Define Environment Variables for a Container)"),
        Row::shell(
            "references_to_earlier_variables",
            "A reference is the value of a variable that is written before it; one to a later variable or to none stays as it is.",
            &[("vars", "echo \"$DEPENDENT $EARLY $UNKNOWN $SHELL_STYLE\"", "one-two $(LATER) $(NOBODY) $PLAIN\n")],
        )
        .of("`env[].value` (Define Dependent Environment Variables)"),
        Row::shell(
            "escaped_references",
            "Two dollar signs are one, and what follows is not a reference.",
            &[("vars", "echo \"$ESCAPED $PRICE\"", "$(PLAIN) $5\n")],
        )
        .of("`env[].value` (Define Dependent Environment Variables)"),
        Row::code(
            "references_in_command_and_args",
            "References are expanded in the command and in its arguments, also to variables of the pod's fields.",
            references_in_command_and_args,
        )
        .of("`command`, `args` (Define a Command and Arguments for a Container)"),
        Row::shell(
            "fields_of_the_pod",
            "Variables have the pod's name, namespace, a label, an annotation and its service account; a label that is not there is empty.",
            &[("vars", "echo \"$NAME $NAMESPACE $LABEL $NOTE $ACCOUNT [$NO_LABEL]\"", "told default shop it's \"so\" default []\n")],
        )
        .of("`fieldRef` (Expose Pod Information to Containers Through Environment Variables)"),
        Row::code(
            "the_pod_and_its_node",
            "Variables have the pod's uid, as its status has it, and the name of its node.",
            the_pod_and_its_node,
        )
        .of("`fieldRef` (Downward API: Available fields)"),
        Row::shell(
            "resources_of_another_container",
            "A resourceFieldRef may name another container, and a divisor rounds up.",
            &[("vars", "echo $THEIR_MEMORY $THEIR_MEBIBYTES $THEIR_CPU $THEIR_MILLIS", "20971520 20 1 125\n")],
        )
        .of("`resourceFieldRef` (Expose Pod Information to Containers Through Environment Variables: Use container fields)"),
        Row::shell(
            "keys_of_config_maps",
            "A variable is a key of a ConfigMap; one whose key or object is optional and missing does not exist.",
            &[("vars", "echo \"$COLOR\"; [ -z \"${NO_KEY+x}\" ] && [ -z \"${NO_OBJECT+x}\" ] && echo neither", "blue\nneither\n")],
        )
        .of("`configMapKeyRef` (Configure a Pod to Use a ConfigMap: Define container environment variables)"),
        Row::shell(
            "keys_of_secrets",
            "A variable is a key of a Secret, from `data` in base64 or from `stringData`.",
            &[("vars", "echo \"$USER_NAME:$PASSWORD\"", "admin:pass word\n")],
        )
        .of("`secretKeyRef` (Distribute Credentials Securely Using Secrets)"),
        Row::shell(
            "values_that_are_not_expanded",
            "What comes from a ConfigMap or a Secret is not expanded.",
            &[("vars", "echo \"$LITERAL\"", "$(PLAIN) $$\n")],
        )
        .of("`valueFrom` (ConfigMaps: Using ConfigMaps as environment variables)"),
        Row::shell(
            "whole_objects",
            "Each key of a ConfigMap or Secret becomes a variable, with the prefix before it.",
            &[("from", "env | grep -E '^(color|A_|S_)' | sort", "A_color=blue\nA_literal=$(PLAIN) $$\nA_shape=round\nS_password=pass word\nS_user=admin\ncolor=blue\n")],
        )
        .of("`envFrom` (Configure a Pod to Use a ConfigMap: Configure all key-value pairs in a ConfigMap as container environment variables)"),
        Row::shell(
            "the_later_source_wins",
            "Of two sources with one name the later one wins, and `env` wins over both.",
            &[("from", "echo $shape $size", "square large\n")],
        )
        .of("`envFrom`, `env` (API reference: Container, Environment variables)"),
        Row::shell(
            "names_that_no_shell_has",
            "Names of variables may have dots, dashes and digits at their beginning, as keys of ConfigMaps do.",
            &[("from", RAW, "odd-name.of=x\noddA=y\n")],
        )
        .of("`envFrom`, `env[].name` (API reference: EnvVar)"),
        Row::shell(
            "variables_of_the_runtime",
            "The host name, the path and the home directory are variables; the image's own variables are there too, and the manifest's win.",
            &[("vars", "echo $HOSTNAME $PATH $HOME $FROM", "db-0 /bin /root pod\n"), ("entry", "echo $FROM", "image\n")],
        )
        .of("`env` (Containers: Container environment)"),
        Row::code(
            "neither_command_nor_args",
            "Without command and arguments the image's entrypoint runs with the image's arguments.",
            |subject| runs(subject, "neither", "entry cmd\n"),
        )
        .of("`command`, `args` (Define a Command and Arguments for a Container: Notes)"),
        Row::code(
            "a_command_alone",
            "A command alone replaces the image's entrypoint, and the image's arguments are not used.",
            |subject| runs(subject, "command", "\n"),
        )
        .of("`command` (Define a Command and Arguments for a Container: Notes)"),
        Row::code(
            "args_alone",
            "Arguments alone replace those of the image, and its entrypoint runs with them.",
            |subject| runs(subject, "args", "entry mine\n"),
        )
        .of("`args` (Define a Command and Arguments for a Container: Notes)"),
        Row::code(
            "command_and_args",
            "With both, nothing of the image's is used.",
            |subject| runs(subject, "both", "b o t h\n"),
        )
        .of("`command`, `args` (Define a Command and Arguments for a Container: Notes)"),
        Row::shell(
            "the_working_directory",
            "A container begins in the directory of its image, or in that of its manifest, and so does a command of exec.",
            &[("entry", "pwd; readlink /proc/1/cwd", "/opt/app\n/opt/app\n"), ("vars", "pwd; readlink /proc/1/cwd", "/tmp\n/tmp\n")],
        )
        .of("`workingDir` (API reference: Container, Entrypoint)"),
        Row::shell(
            "lines_of_hosts",
            "Each alias of the host is a line of /etc/hosts, in every container.",
            &[
                ("vars", "grep -E 'local$|example' /etc/hosts | grep -v localhost | tr -s '\\t ' ' '", "127.0.0.1 foo.local bar.local\n10.1.2.3 mail.example\n"),
                ("entry", "grep -c mail.example /etc/hosts", "1\n"),
            ],
        )
        .of("`hostAliases` (Adding entries to Pod /etc/hosts with HostAliases)"),
        Row::shell(
            "name_servers_of_the_pod",
            "With the policy None the file resolv.conf has exactly the servers, domains and options of the manifest.",
            &[("vars", "grep -v '^#' /etc/resolv.conf", "search shop.example example\nnameserver 192.0.2.53\noptions ndots:2 edns0\n")],
        )
        .of("`dnsPolicy`, `dnsConfig` (DNS for Services and Pods: Pod's DNS Config)"),
        Row::shell(
            "host_name_and_subdomain",
            "The host name is that of the manifest, and /etc/hosts has the name with its subdomain, which is the pod's full name.",
            &[("vars", "hostname; grep -o 'db-0.*' /etc/hosts | tr '\\t' ' '", "db-0\ndb-0.db.default.svc.cluster.local db-0\n")],
        )
        .of("`hostname`, `subdomain` (DNS for Services and Pods: Pod's hostname and subdomain fields)"),
        Row::shell(
            "modes_of_files",
            "Files have the volume's mode, and those with a mode of their own have that one; modes may be decimal.",
            &[("vars", "cd /config; stat -L -c '%n %a' color exec/shape deep/er/size", "color 440\nexec/shape 755\ndeep/er/size 400\n")],
        )
        .of("`defaultMode`, `items[].mode` (Configure a Pod to Use a ConfigMap: Set permissions for project files)"),
        Row::shell(
            "only_the_keys_that_are_named",
            "With items only their keys are files, at their paths.",
            &[("vars", "cd /config; find . -type f -o -type l | grep -v '/\\.\\.' | sort; cat color", "./color\n./deep/er/size\n./exec/shape\nblue")],
        )
        .of("`items` (Configure a Pod to Use a ConfigMap: Add ConfigMap data to a specific path in the Volume)"),
        Row::shell(
            "bytes_of_files",
            "Binary data of a ConfigMap and of a Secret arrive byte for byte.",
            &[("vars", "od -An -tx1 /bytes/raw; od -An -tx1 /keys/raw; ls -A /none | wc -l", " 00 01 02 ff\n 00 ff\n0\n")],
        )
        .of("`binaryData`, `optional` (ConfigMaps: ConfigMap object)"),
        Row::shell(
            "requests_and_limits_in_the_control_group",
            "The request of the processor is a weight, the limit a quota, and the limit of memory a bound.",
            &[("vars", "cd /sys/fs/cgroup; cat cpu.max memory.max; [ $(cat cpu.weight) -gt 1 ] && [ $(cat cpu.weight) -lt 39 ] && echo weighed", "50000 100000\n33554432\nweighed\n")],
        )
        .of("`resources` (Resource Management for Pods and Containers: How Kubernetes applies resource requests and limits)")
        .differs(&[Difference {
            drivers: &[Driver::Containers],
            why: "the host has cgroup v1",
            says: "cpu.max",
        }]),
        Row::code(
            "the_class_of_the_pod",
            "A pod in which a request or limit is set, but not everywhere, is Burstable; its status has the containers' resources.",
            the_class_of_the_pod,
        )
        .of("`status.qosClass`, `allocatedResources` (Pod Quality of Service Classes)"),
    ],
};

fn from(name: &str, source: &str, of: Value) -> Value {
    let mut variable = json!({ "name": name });
    variable["valueFrom"][source] = of;
    variable
}

fn variables() -> Vec<Value> {
    let plain = |name: &str, value: &str| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| from(name, "fieldRef", json!({ "fieldPath": path }));
    let key = |name: &str, source: &str, of: &str, key: &str, optional: bool| {
        from(name, source, json!({ "name": of, "key": key, "optional": optional }))
    };
    let theirs = |name: &str, resource: &str, divisor: &str| {
        from(
            name,
            "resourceFieldRef",
            json!({ "containerName": "from", "resource": resource, "divisor": divisor }),
        )
    };
    vec![
        plain("PLAIN", "one"),
        plain("EMPTY", ""),
        plain("SPACED", "a  b"),
        json!({ "name": "MISSING" }),
        plain("DEPENDENT", "$(PLAIN)-two"),
        plain("EARLY", "$(LATER)"),
        plain("LATER", "late"),
        plain("UNKNOWN", "$(NOBODY)"),
        plain("SHELL_STYLE", "$PLAIN"),
        plain("ESCAPED", "$$(PLAIN)"),
        plain("PRICE", "$$5"),
        plain("FROM", "pod"),
        field("NAME", "metadata.name"),
        field("NAMESPACE", "metadata.namespace"),
        field("UID_OF_POD", "metadata.uid"),
        field("LABEL", "metadata.labels['app.kubernetes.io/name']"),
        field("NO_LABEL", "metadata.labels['nothing']"),
        field("NOTE", "metadata.annotations['example.com/note']"),
        field("ACCOUNT", "spec.serviceAccountName"),
        field("NODE", "spec.nodeName"),
        theirs("THEIR_MEMORY", "limits.memory", "0"),
        theirs("THEIR_MEBIBYTES", "limits.memory", "1Mi"),
        theirs("THEIR_CPU", "requests.cpu", "1"),
        theirs("THEIR_MILLIS", "requests.cpu", "1m"),
        key("COLOR", "configMapKeyRef", "looks", "color", false),
        key("NO_KEY", "configMapKeyRef", "looks", "nothing", true),
        key("NO_OBJECT", "secretKeyRef", "nothing", "nothing", true),
        key("USER_NAME", "secretKeyRef", "login", "user", false),
        key("PASSWORD", "secretKeyRef", "login", "password", false),
        key("LITERAL", "configMapKeyRef", "looks", "literal", false),
    ]
}

fn start(subject: &Subject) {
    subject.import(
        ENTRY,
        busybox().dir("opt/", 0o755).dir("opt/app/", 0o755),
        &json!({ "Env": ["PATH=/bin", "FROM=image"], "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"], "WorkingDir": "/opt/app" }),
    );
    let config = |name: &str, data: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data });
    let item = |key: &str, path: &str| json!({ "key": key, "path": path });
    let with_mode = |key: &str, path: &str, mode: u32| json!({ "key": key, "path": path, "mode": mode });
    let small = json!({ "limits": { "memory": "20Mi" } });
    let brief = |pod: Pod, name: &str| pod.container_of(name, ENTRY, &[]).with("resources", small.clone());
    let pod = Pod::new(POD)
        .set("metadata/labels", json!({ "app.kubernetes.io/name": "shop" }))
        .set("metadata/annotations", json!({ "example.com/note": "it's \"so\"" }))
        .set("spec/hostname", "db-0")
        .set("spec/subdomain", "db")
        .set("spec/hostAliases", json!([{ "ip": "127.0.0.1", "hostnames": ["foo.local", "bar.local"] }, { "ip": "10.1.2.3", "hostnames": ["mail.example"] }]))
        .set("spec/dnsPolicy", "None")
        .set("spec/dnsConfig", json!({ "nameservers": ["192.0.2.53"], "searches": ["shop.example", "example"],
            "options": [{ "name": "ndots", "value": "2" }, { "name": "edns0" }] }))
        .container("vars", &IDLE)
        .with("env", variables())
        .with("workingDir", "/tmp")
        .with("resources", json!({ "requests": { "cpu": "250m", "memory": "16Mi" }, "limits": { "cpu": "500m", "memory": "32Mi" } }))
        .volume("config", json!({ "configMap": { "name": "looks", "defaultMode": 288, "items": [
            item("color", "color"), with_mode("shape", "exec/shape", 0o755), with_mode("size", "deep/er/size", 256)] } }))
        .mount("config", "/config", json!({}))
        .volume("bytes", json!({ "configMap": { "name": "bytes" } }))
        .mount("bytes", "/bytes", json!({}))
        .volume("keys", json!({ "secret": { "secretName": "login" } }))
        .mount("keys", "/keys", json!({}))
        .volume("none", json!({ "secret": { "secretName": "nothing", "optional": true } }))
        .mount("none", "/none", json!({}))
        .container("from", &IDLE)
        .with("resources", json!({ "requests": { "cpu": "125m" }, "limits": { "memory": "20Mi" } }))
        .with("envFrom", json!([
            { "configMapRef": { "name": "looks" } },
            { "configMapRef": { "name": "more" } },
            { "prefix": "A_", "configMapRef": { "name": "first" } },
            { "prefix": "S_", "secretRef": { "name": "user" } },
            { "prefix": "N_", "secretRef": { "name": "nothing", "optional": true } },
        ]))
        .with("env", json!([{ "name": "size", "value": "large" }, { "name": "oddA", "value": "y" }]))
        .container("refs", &["echo", "$(PLAIN)", "$(NAME)"])
        .with("args", json!(["$$(PLAIN)", "x$(PLAIN)x", "$(NOBODY)", "$(ACCOUNT"]))
        .with("env", json!([{ "name": "PLAIN", "value": "one" }, from("NAME", "fieldRef", json!({ "fieldPath": "metadata.name" }))]))
        .with("resources", small.clone())
        .container_of("entry", ENTRY, &IDLE)
        .with("resources", small.clone());
    let pod = brief(pod, "neither");
    let pod = brief(pod, "command").with("command", json!(["/bin/echo"]));
    let pod = brief(pod, "args").with("args", json!(["mine"]));
    let pod =
        brief(pod, "both").with("command", json!(["/bin/echo", "b", "o"])).with("args", json!(["t", "h"]));
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
        "data": { "user": "YWRtaW4=", "raw": "AP8=" }, "stringData": { "password": "pass word" } });
    let user = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "user" },
        "stringData": { "user": "admin", "password": "pass word" } });
    let bytes = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "bytes" }, "binaryData": { "raw": "AAEC/w==" } });
    let looks = json!({ "color": "blue", "shape": "round", "size": "small", "literal": "$(PLAIN) $$" });
    let first = json!({ "color": "blue", "shape": "round", "literal": "$(PLAIN) $$" });
    let pod = pod
        .beside(config("looks", looks))
        .beside(config("more", json!({ "shape": "square", "odd-name.of": "x" })))
        .beside(config("first", first))
        .beside(secret)
        .beside(user)
        .beside(bytes);
    // Many containers start slowly on a busy host.
    subject.run(&pod).arg("-d").limit(Duration::from_secs(150)).ok();
}

/// Waits for what a container has printed.
fn runs(subject: &Subject, container: &str, prints: &str) {
    until("it has printed", || !subject.logs(POD, container).is_empty());
    assert_eq!(subject.logs(POD, container), prints);
}

fn references_in_command_and_args(subject: &Subject) {
    runs(subject, "refs", "one told $(PLAIN) xonex $(NOBODY) $(ACCOUNT\n");
}

fn the_pod_and_its_node(subject: &Subject) {
    let shown = subject.inspect(POD).expect("the pod is there");
    let told = subject.sh(POD, "vars", "echo $UID_OF_POD; echo $NODE");
    let (uid, node) = told.trim_end().split_once('\n').expect("two lines");
    assert_eq!(shown["metadata"]["uid"], uid);
    assert_eq!(uid.len(), 36, "{uid}");
    assert!(!node.is_empty());
}

fn the_class_of_the_pod(subject: &Subject) {
    let shown = subject.inspect(POD).expect("the pod is there");
    assert_eq!(shown["status"]["qosClass"], "Burstable");
    let vars = subject.statuses(POD).into_iter().find(|status| status["name"] == "vars").expect("vars");
    assert_eq!(vars["allocatedResources"], json!({ "cpu": "250m", "memory": "16Mi" }));
    assert_eq!(vars["resources"]["limits"], json!({ "cpu": "500m", "memory": "32Mi" }));
}
