//! What each plugin of a network is told about a pod. Pure.

use super::conf::{NetworkConf, PluginConf};
use crate::store::cni::{Attachment, Plugin};
use serde_json::{Map, Value, json};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The name of the pod's interface.
pub const INTERFACE: &str = "eth0";
/// The argument for plugins that carry ports of the host to a pod.
const PORTS: &str = "portMappings";

/// A port of the host that leads to the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub host_ip: IpAddr,
    pub host_port: u16,
    pub container_port: u16,
    /// As CNI writes it.
    pub protocol: &'static str,
}

/// The pod that joins a network.
#[derive(Debug, Clone, Copy)]
pub struct Joining<'a> {
    /// Its unique id.
    pub uid: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub ports: &'a [PortMapping],
    /// The directory that lasts as long as its record.
    pub dir: &'a Path,
}

/// No plugin of the network carries ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoPorts;

/// The connection of the pod. `programs` are those of the plugins, in their order.
pub fn attachment(
    conf: &NetworkConf,
    programs: Vec<PathBuf>,
    path: &[PathBuf],
    pod: Joining<'_>,
) -> Result<Attachment, NoPorts> {
    if !pod.ports.is_empty() && !conf.plugins.iter().any(|plugin| plugin.wants(PORTS)) {
        return Err(NoPorts);
    }
    let plugins = conf.plugins.iter().zip(programs).map(|(plugin, program)| Plugin {
        kind: plugin.kind.clone(),
        program,
        config: told(conf, plugin, pod.ports),
    });
    let path: Vec<String> = path.iter().map(|dir| dir.display().to_string()).collect();
    Ok(Attachment {
        network: conf.name.to_string(),
        container: pod.uid.to_owned(),
        interface: INTERFACE.to_owned(),
        args: format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={}",
            pod.namespace, pod.name, pod.uid
        ),
        path: path.join(":"),
        namespace: pod.dir.join("cni-namespace"),
        result: pod.dir.join("cni-result.json"),
        tells_result: conf.tells_result_at_end(),
        is_checked: conf.is_checked(),
        plugins: plugins.collect(),
    })
}

/// The configuration of a plugin without the result of the one before it.
fn told(conf: &NetworkConf, plugin: &PluginConf, ports: &[PortMapping]) -> Map<String, Value> {
    let mut config = plugin.config.clone();
    config.insert("name".to_owned(), conf.name.as_str().into());
    config.insert("cniVersion".to_owned(), conf.version.as_str().into());
    if plugin.wants(PORTS) && !ports.is_empty() {
        let mappings: Vec<Value> = ports
            .iter()
            .map(|port| {
                let mut mapping = json!({
                    "hostPort": port.host_port, "containerPort": port.container_port, "protocol": port.protocol,
                });
                // The address that stands for all is how plugins write that none was asked for.
                if !port.host_ip.is_unspecified() {
                    mapping["hostIP"] = port.host_ip.to_string().into();
                }
                mapping
            })
            .collect();
        config.insert("runtimeConfig".to_owned(), json!({ PORTS: mappings }));
    }
    config
}

#[cfg(test)]
mod tests {
    use super::super::conf::{Form, parse};
    use super::*;

    fn conf() -> NetworkConf {
        let text = br#"{"cniVersion":"0.4.0","name":"web","plugins":[{"type":"bridge"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        parse(text, Form::List).unwrap()
    }

    #[test]
    fn each_plugin_is_told_what_it_asks_for() {
        let ports = [PortMapping {
            host_ip: IpAddr::from([0, 0, 0, 0]),
            host_port: 8080,
            container_port: 80,
            protocol: "tcp",
        }];
        let pod =
            Joining { uid: "u-1", namespace: "shop", name: "web", ports: &ports, dir: Path::new("/run/pod") };
        let programs = vec!["/p/bridge".into(), "/p/portmap".into()];
        let made = attachment(&conf(), programs, &["/p".into(), "/q".into()], pod).unwrap();
        assert_eq!((made.path.as_str(), made.tells_result, made.is_checked), ("/p:/q", true, true));
        assert!(made.args.contains("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"), "{}", made.args);
        assert_eq!(
            Value::Object(made.plugins[0].config.clone()),
            json!({"type": "bridge", "name": "web", "cniVersion": "0.4.0"})
        );
        assert_eq!(
            made.plugins[1].config["runtimeConfig"],
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
        );
        let mut without = conf();
        without.plugins.pop();
        assert_eq!(attachment(&without, vec!["/p/bridge".into()], &[], pod), Err(NoPorts));
        let no_ports = Joining { ports: &[], ..pod };
        assert!(attachment(&without, vec!["/p/bridge".into()], &[], no_ports).is_ok());
    }
}
