//! The containers of a described pod.

use super::{NONE, Page, UNKNOWN};
use crate::manifest::RuntimeClass;
use serde_json::Value;

pub(super) fn all(page: &mut Page, pod: &Value) {
    for (title, list, statuses) in [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ] {
        let containers = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        let Some(containers) = containers.filter(|containers| !containers.is_empty()) else { continue };
        page.head(0, title);
        for container in containers {
            let status = pod.pointer(&format!("/status/{statuses}")).and_then(Value::as_array);
            let status = status.and_then(|all| all.iter().find(|one| one["name"] == container["name"]));
            one(page, pod, container, status.unwrap_or(&Value::Null));
        }
    }
}

fn one(page: &mut Page, pod: &Value, container: &Value, status: &Value) {
    let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
    page.head(1, container["name"].as_str().unwrap_or(UNKNOWN));
    page.line(2, "Image", &text(container, "image").unwrap_or_default());
    page.line(2, "Image ID", &text(status, "imageID").unwrap_or_default());
    ports(page, container);
    for (key, field) in [("Command", "command"), ("Args", "args")] {
        if let Some(words) = container[field].as_array() {
            page.list(2, key, words.iter().filter_map(Value::as_str));
        }
    }
    if let Some(policy) = container["restartPolicy"].as_str() {
        page.line(2, "Restart Policy", policy);
    }
    state(page, "State", &status["state"]);
    if status["lastState"].as_object().is_some_and(|last| !last.is_empty()) {
        state(page, "Last State", &status["lastState"]);
    }
    let ready = if status["ready"] == true { "True" } else { "False" };
    page.line(2, "Ready", ready);
    page.line(2, "Restart Count", &status["restartCount"].as_u64().unwrap_or(0).to_string());
    for (key, field) in [("Limits", "limits"), ("Requests", "requests")] {
        if let Some(entries) = container["resources"][field].as_object() {
            page.head(2, key);
            for (name, amount) in entries {
                page.line(3, name, &scalar(amount));
            }
        }
    }
    for (key, field) in
        [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
    {
        if container[field].is_object() {
            page.line(2, key, &probe(&container[field]));
        }
    }
    for (key, field) in [("Post Start", "postStart"), ("Pre Stop", "preStop")] {
        if container["lifecycle"][field].is_object() {
            page.line(2, key, &handler(&container["lifecycle"][field]));
        }
    }
    environment(page, container, pod);
    mounts(page, container);
}

fn ports(page: &mut Page, container: &Value) {
    let all = container["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let list = |field: &str| -> Vec<String> {
        let number = |port: &Value| port[field].as_u64().unwrap_or(0);
        all.iter()
            .map(|port| format!("{}/{}", number(port), port["protocol"].as_str().unwrap_or("TCP")))
            .collect()
    };
    let key = |one: &'static str, several: &'static str| if all.len() > 1 { several } else { one };
    if !all.is_empty() {
        page.line(2, key("Port", "Ports"), &list("containerPort").join(", "));
        page.line(2, key("Host Port", "Host Ports"), &list("hostPort").join(", "));
    }
}

fn state(page: &mut Page, key: &str, state: &Value) {
    let Some((kind, details)) = state.as_object().and_then(|state| state.iter().next()) else {
        return page.line(2, key, "Waiting");
    };
    let mut letters = kind.chars();
    let kind = letters.next().map_or(String::new(), |first| first.to_ascii_uppercase().to_string());
    page.line(2, key, &format!("{kind}{}", letters.as_str()));
    for (key, field) in [
        ("Reason", "reason"),
        ("Message", "message"),
        ("Exit Code", "exitCode"),
        ("Signal", "signal"),
        ("Started", "startedAt"),
        ("Finished", "finishedAt"),
    ] {
        if !details[field].is_null() {
            page.line(3, key, &scalar(&details[field]));
        }
    }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `http-get http://:8080/ready delay=0s timeout=1s period=10s #success=1 #failure=3`
pub(super) fn probe(probe: &Value) -> String {
    let number = |field: &str, default: u64| probe[field].as_u64().unwrap_or(default);
    format!(
        "{} delay={}s timeout={}s period={}s #success={} #failure={}",
        handler(probe),
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3),
    )
}

/// What a probe or hook does.
fn handler(handler: &Value) -> String {
    if let Some(command) = handler["exec"]["command"].as_array() {
        let words: Vec<&str> = command.iter().filter_map(Value::as_str).collect();
        return format!("exec [{}]", words.join(" "));
    }
    let of = |value: &Value| (value["host"].as_str().unwrap_or("").to_owned(), scalar(&value["port"]));
    if let Some(get) = handler.get("httpGet") {
        let (host, port) = of(get);
        let scheme = get["scheme"].as_str().unwrap_or("HTTP").to_ascii_lowercase();
        return format!("http-get {scheme}://{host}:{port}{}", get["path"].as_str().unwrap_or("/"));
    }
    if let Some(socket) = handler.get("tcpSocket") {
        let (host, port) = of(socket);
        return format!("tcp-socket {host}:{port}");
    }
    if let Some(grpc) = handler.get("grpc") {
        return format!("grpc <pod>:{} {}", scalar(&grpc["port"]), grpc["service"].as_str().unwrap_or(""));
    }
    if let Some(sleep) = handler.get("sleep") {
        return format!("sleep {}s", scalar(&sleep["seconds"]));
    }
    UNKNOWN.to_owned()
}

fn environment(page: &mut Page, container: &Value, pod: &Value) {
    if let Some(all) = container["envFrom"].as_array().filter(|all| !all.is_empty()) {
        page.head(2, "Environment Variables from");
        for from in all {
            for (kind, field) in [("ConfigMap", "configMapRef"), ("Secret", "secretRef")] {
                if let Some(name) = from[field]["name"].as_str() {
                    let optional = from[field]["optional"] == true;
                    page.line(3, name, &format!("{kind}  Optional: {optional}"));
                }
            }
        }
    }
    let all = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return page.line(2, "Environment", NONE);
    }
    page.head(2, "Environment");
    for variable in all {
        page.line(3, variable["name"].as_str().unwrap_or(UNKNOWN), &value_of(variable, container, pod));
    }
}

/// What a `resourceFieldRef` tells: the amount of its container's manifest, or that it is what the pod's node has. The node of a pod is its VM, and
/// the host for a pod without one.
fn amount(reference: &Value, container: &Value, pod: &Value) -> String {
    let resource = reference["resource"].as_str().unwrap_or(UNKNOWN);
    let lists = ["containers", "initContainers"].into_iter().filter_map(|list| pod["spec"][list].as_array());
    let named = |name: &str| lists.flatten().find(|one| one["name"] == name);
    let container = reference["containerName"].as_str().and_then(named).unwrap_or(container);
    let written = |list: &str, name: &str| match &container["resources"][list][name] {
        Value::Null => None,
        amount => Some(scalar(amount)),
    };
    let amount = match resource.split_once('.') {
        // A request defaults to the limit.
        Some(("requests", name)) => {
            written("requests", name).or_else(|| written("limits", name)).unwrap_or_else(|| "0".to_owned())
        }
        Some((list, name)) => written(list, name).unwrap_or_else(|| {
            match pod["spec"]["runtimeClassName"].as_str().map(str::parse::<RuntimeClass>) {
                Some(Ok(class)) if !class.has_vm() => "what the host has".to_owned(),
                _ => "what the VM has".to_owned(),
            }
        }),
        None => UNKNOWN.to_owned(),
    };
    format!("{amount} ({resource})")
}

/// The value of a variable, or where it comes from: what a Secret holds is not shown.
fn value_of(variable: &Value, container: &Value, pod: &Value) -> String {
    let from = &variable["valueFrom"];
    for (field, kind) in [("secretKeyRef", "secret"), ("configMapKeyRef", "config map")] {
        if let Some(reference) = from.get(field) {
            return format!(
                "<set to the key '{}' of {kind} '{}'>  Optional: {}",
                scalar(&reference["key"]),
                scalar(&reference["name"]),
                reference["optional"] == true
            );
        }
    }
    if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
        return format!("(v1:{path})");
    }
    if let Some(reference) = from.get("resourceFieldRef") {
        return amount(reference, container, pod);
    }
    if let Some(reference) = from.get("fileKeyRef") {
        return format!("<set to the key '{}' in a file>", scalar(&reference["key"]));
    }
    variable["value"].as_str().unwrap_or_default().to_owned()
}

fn mounts(page: &mut Page, container: &Value) {
    let all = container["volumeMounts"].as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return page.line(2, "Mounts", NONE);
    }
    page.head(2, "Mounts");
    for mount in all {
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let part = ["subPath", "subPathExpr"].iter().find_map(|field| mount[*field].as_str());
        let part = part.map_or(String::new(), |part| format!(",path=\"{part}\""));
        let name = mount["name"].as_str().unwrap_or(UNKNOWN);
        let place = mount["mountPath"].as_str().unwrap_or(UNKNOWN);
        let line = format!("{place} from {name} ({access}{part})");
        page.push(3, &crate::store::text::harmless(&line, &[]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn probes_and_variables_are_shown_as_kubectl_does() {
        let shown = probe(&json!({ "httpGet": { "port": 8080, "path": "/ready" }, "periodSeconds": 2 }));
        assert_eq!(shown, "http-get http://:8080/ready delay=0s timeout=1s period=2s #success=1 #failure=3");
        assert_eq!(handler(&json!({ "exec": { "command": ["cat", "/x"] } })), "exec [cat /x]");
        assert_eq!(handler(&json!({ "tcpSocket": { "port": "http" } })), "tcp-socket :http");
        assert_eq!(handler(&json!({ "sleep": { "seconds": 5 } })), "sleep 5s");
        let value_of = |variable: &Value| value_of(variable, &Value::Null, &Value::Null);
        let secret = json!({ "name": "A", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } });
        assert_eq!(value_of(&secret), "<set to the key 'k' of secret 's'>  Optional: false");
        assert_eq!(value_of(&json!({ "name": "A", "value": "b" })), "b");
    }
    #[test]
    fn a_resource_is_shown_with_its_amount_or_whose_it_is() {
        let container = json!({ "name": "a", "resources": { "limits": { "memory": "64Mi" } } });
        let other =
            json!({ "name": "b", "resources": { "limits": { "cpu": 2 }, "requests": { "cpu": "500m" } } });
        let shown = |class: &str, reference: Value| {
            let spec = json!({ "runtimeClassName": class, "containers": [container, other] });
            amount(&reference, &container, &json!({ "spec": spec }))
        };
        let vm = "pod-microvm-containers";
        assert_eq!(shown(vm, json!({ "resource": "limits.memory" })), "64Mi (limits.memory)");
        assert_eq!(shown(vm, json!({ "resource": "requests.memory" })), "64Mi (requests.memory)");
        assert_eq!(shown(vm, json!({ "resource": "requests.cpu" })), "0 (requests.cpu)");
        assert_eq!(shown(vm, json!({ "resource": "limits.cpu" })), "what the VM has (limits.cpu)");
        assert_eq!(
            shown("pod-containers", json!({ "resource": "limits.cpu" })),
            "what the host has (limits.cpu)"
        );
        let of_other = json!({ "containerName": "b", "resource": "limits.cpu" });
        assert_eq!(shown("pod-containers", of_other), "2 (limits.cpu)");
    }
}
