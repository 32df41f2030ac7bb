//! The manifest's settings of the pod's network.

use super::fields::{
    ANNOTATION_CNI, ANNOTATION_EGRESS_ALLOW, ANNOTATION_EGRESS_REACH, ANNOTATION_NETWORK, did_you_mean,
};
use super::k8s::{self, Written};
use super::names;
use super::plan::RuntimeClass;
use super::problem::{ProblemCollector, path_key, quote};
use crate::net::allow::{AllowList, HostName};
use crate::net::cni::NetworkName;
use crate::net::host::Resolv;
use crate::net::{Egress, Mode, Provider, Reach};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Why a pod of a class with VMs cannot have the network of the host.
const OTHER_HOST: &str = "a pod in a VM has no host but that VM";
/// There is no cluster: the first three mean the host's name servers.
const DNS_POLICIES: [&str; 4] = ["Default", "ClusterFirst", "ClusterFirstWithHostNet", "None"];
/// Limits of Kubernetes for `dnsConfig`.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;
/// Limits on options, aliases and their names, for which Kubernetes has none.
const MAX_OPTIONS: usize = 32;
const MAX_ALIASES: usize = 64;
const MAX_ALIAS_NAMES: usize = 64;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    #[serde(default)]
    pub provider: Provider,
    /// Outbound access.
    pub egress: Egress,
    pub dns: DnsSpec,
    /// Additional lines of `/etc/hosts`.
    pub aliases: Vec<HostAlias>,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
}

/// The source of a pod's name servers (`spec.dnsPolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DnsPolicy {
    #[default]
    Host,
    /// Only those of `dnsConfig`.
    None,
}

/// `dnsPolicy` and `dnsConfig`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsSpec {
    pub policy: DnsPolicy,
    pub nameservers: Vec<IpAddr>,
    pub searches: Vec<String>,
    /// Additional options, `name` or `name:value`.
    pub options: Vec<String>,
}

impl DnsSpec {
    /// Merges as Kubernetes does: the host's settings first, each entry once; an option of the pod replaces the host's of the same name.
    /// `forwarded`: servers that are asked through another address.
    pub fn merged(&self, host: &Resolv, forwarded: &[(IpAddr, IpAddr)]) -> Resolv {
        let base = match self.policy {
            DnsPolicy::Host => host.clone(),
            DnsPolicy::None => Resolv::default(),
        };
        let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
        let replaced = |option: &String| self.options.iter().any(|own| name(own) == name(option));
        let by_way_of = |server: &IpAddr| {
            forwarded.iter().find(|(behind, _)| behind == server).map_or(*server, |(_, forwarder)| *forwarder)
        };
        let mut merged = Resolv {
            nameservers: base.nameservers.into_iter().chain(self.nameservers.iter().map(by_way_of)).collect(),
            searches: base.searches.into_iter().chain(self.searches.iter().cloned()).collect(),
            options: base.options.into_iter().filter(|option| !replaced(option)).collect(),
        };
        merged.options.extend(self.options.iter().cloned());
        let mut seen = Vec::new();
        merged.nameservers.retain(|server| {
            !seen.contains(server) && {
                seen.push(*server);
                true
            }
        });
        let mut seen = Vec::new();
        merged.searches.retain(|search| {
            !seen.contains(search) && {
                seen.push(search.clone());
                true
            }
        });
        merged.nameservers.truncate(MAX_NAMESERVERS);
        merged
    }
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAlias {
    pub ip: IpAddr,
    pub names: Vec<String>,
}

pub(super) fn network(written: &Written, class: RuntimeClass, report: &mut ProblemCollector) -> NetworkSpec {
    let mut reader = Reader { written, report };
    let (dns, aliases) = (reader.dns(), reader.aliases());
    let egress = reader.egress(&dns);
    let subdomain = reader.subdomain();
    let provider = reader.provider(class);
    NetworkSpec { provider, egress, dns, aliases, subdomain }
}

struct Reader<'a> {
    written: &'a Written,
    report: &'a mut ProblemCollector,
}

impl<'a> Reader<'a> {
    fn problem(&mut self, path: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.report.add(&self.written.place(path), message, hint);
    }

    fn spec(&self) -> &'a k8s::Spec {
        &self.written.pod.spec
    }

    fn annotation(&self, name: &str) -> Option<(String, &'a str)> {
        let text = self.written.pod.metadata.annotations.get(name)?;
        Some((format!("metadata.annotations.{}", path_key(name)), text))
    }

    fn count(&mut self, path: &str, found: usize, max: usize) {
        if found > max {
            self.problem(path, format!("has {found} entries, at most {max} are allowed"), "");
        }
    }

    fn provider(&mut self, class: RuntimeClass) -> Provider {
        if !self.spec().host_network {
            return self.cni(class).map_or(Provider::Magikvm, Provider::Cni);
        }
        if let Some((path, _)) = self.annotation(ANNOTATION_CNI) {
            self.problem(&path, "cannot be used with hostNetwork: true", "leave out one of them");
        }
        if class != RuntimeClass::PodContainers {
            let hint = format!(
                "leave it out, or write runtimeClassName: {} and run with `--allow-host-network`",
                RuntimeClass::PodContainers
            );
            self.problem("spec.hostNetwork", format!("\"true\" is not supported: {OTHER_HOST}"), hint);
        }
        self.refuse_ours("hostNetwork: true");
        if self.spec().hostname.as_deref().is_some_and(|name| !name.is_empty()) {
            self.report.ignore("with the network of its host a pod has the host's name too", "spec.hostname");
        }
        Provider::Host
    }

    /// The network of CNI that the pod is to join.
    fn cni(&mut self, class: RuntimeClass) -> Option<NetworkName> {
        let (path, text) = self.annotation(ANNOTATION_CNI)?;
        if class != RuntimeClass::PodContainers {
            let hint = format!("leave it out, or write runtimeClassName: {}", RuntimeClass::PodContainers);
            let message = format!("is not possible for pods of the class {class}, whose network is in a VM");
            self.problem(&path, message, hint);
        }
        self.refuse_ours(ANNOTATION_CNI);
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.problem(&path, format!("{} {error}", quote(text)), "");
                None
            }
        }
    }

    /// Reports annotations that only our own network heeds: nothing would enforce them.
    fn refuse_ours(&mut self, beside: &str) {
        for name in [ANNOTATION_NETWORK, ANNOTATION_EGRESS_ALLOW, ANNOTATION_EGRESS_REACH] {
            if let Some((path, _)) = self.annotation(name) {
                let message = format!("has no effect with {beside}, because nothing filters such a network");
                self.problem(&path, message, "leave out one of them");
            }
        }
    }

    fn egress(&mut self, dns: &DnsSpec) -> Egress {
        let mode = self.annotation(ANNOTATION_NETWORK).and_then(|(path, text)| {
            let found = Mode::TABLE.iter().find(|(name, _)| *name == text).map(|&(_, mode)| mode);
            if found.is_none() {
                let known = Mode::TABLE.map(|(name, _)| name).join(", ");
                let hint = did_you_mean(text, Mode::TABLE.iter().map(|(name, _)| *name));
                self.problem(&path, format!("{} is not one of {known}", quote(text)), hint);
            }
            found
        });
        let allow = self.annotation(ANNOTATION_EGRESS_ALLOW).and_then(|(path, text)| {
            if let Some(mode) = mode.filter(|mode| !mode.has_filter()) {
                let message = format!("only the networks nat and passt have a filter, not {}", mode.as_str());
                self.problem(&path, message, format!("leave it out, or write {ANNOTATION_NETWORK}: nat"));
            }
            match AllowList::parse(text) {
                Ok(list) => Some(list),
                Err(wrong) => {
                    for error in wrong {
                        let hint = "entries are HOST, *.SUFFIX or a network as 10.0.0.0/8, each with :PORT or without, separated by commas";
                        self.problem(&path, error.to_string(), hint);
                    }
                    None
                }
            }
        });
        let mut reach = Vec::new();
        if let Some((path, text)) = self.annotation(ANNOTATION_EGRESS_REACH) {
            for word in text.split(',').map(str::trim) {
                match Reach::TABLE.iter().find(|(name, _)| *name == word) {
                    Some(&(_, one)) => reach.push(one),
                    None => {
                        let known = Reach::TABLE.map(|(name, _)| name).join(", ");
                        let hint = did_you_mean(word, Reach::TABLE.iter().map(|(name, _)| *name));
                        self.problem(&path, format!("{} is not one of {known}", quote(word)), hint);
                    }
                }
            }
        }
        reach.sort_unstable();
        reach.dedup();
        let nameservers = Some(dns.nameservers.clone()).filter(|servers| !servers.is_empty());
        Egress { mode, allow, reach, nameservers }
    }

    fn dns(&mut self) -> DnsSpec {
        let path = "spec.dnsPolicy";
        let policy = match self.spec().dns_policy.as_deref() {
            None | Some("" | "Default" | "ClusterFirst" | "ClusterFirstWithHostNet") => DnsPolicy::Host,
            Some("None") => DnsPolicy::None,
            Some(other) => {
                let message = format!("{} is not one of {}", quote(other), DNS_POLICIES.join(", "));
                let hint = did_you_mean(other, DNS_POLICIES.into_iter());
                self.problem(path, message, hint);
                DnsPolicy::Host
            }
        };
        let written = &self.spec().dns_config;
        let at = |field: &str, index: usize| format!("spec.dnsConfig.{field}[{index}]");
        self.count("spec.dnsConfig.nameservers", written.nameservers.len(), MAX_NAMESERVERS);
        self.count("spec.dnsConfig.searches", written.searches.len(), MAX_SEARCHES);
        self.count("spec.dnsConfig.options", written.options.len(), MAX_OPTIONS);
        let mut dns = DnsSpec { policy, ..DnsSpec::default() };
        for (index, text) in written.nameservers.iter().enumerate().take(MAX_NAMESERVERS) {
            match text.parse() {
                Ok(server) => dns.nameservers.push(server),
                Err(_) => {
                    self.problem(
                        &at("nameservers", index),
                        format!("{} is not an IP address", quote(text)),
                        "",
                    );
                }
            }
        }
        for (index, text) in written.searches.iter().enumerate().take(MAX_SEARCHES) {
            match HostName::new(text) {
                Some(_) => dns.searches.push(text.clone()),
                None if text == "." => dns.searches.push(text.clone()),
                None => self.problem(&at("searches", index), format!("{} is not a domain", quote(text)), ""),
            }
        }
        let bytes: usize = dns.searches.iter().map(|search| search.len() + 1).sum();
        if bytes > MAX_SEARCH_BYTES {
            let message = format!("are {bytes} bytes together, at most {MAX_SEARCH_BYTES} are allowed");
            self.problem("spec.dnsConfig.searches", message, "");
        }
        for (index, option) in written.options.iter().enumerate().take(MAX_OPTIONS) {
            let word = |text: &str| {
                !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_graphic())
            };
            match (option.name.as_deref(), option.value.as_deref()) {
                (Some(name), None) if word(name) => dns.options.push(name.to_owned()),
                (Some(name), Some(value)) if word(name) && word(value) => {
                    dns.options.push(format!("{name}:{value}"));
                }
                _ => self.problem(
                    &at("options", index),
                    "has no name, or contains blanks or control characters",
                    "",
                ),
            }
        }
        if policy == DnsPolicy::None && written.nameservers.is_empty() {
            let hint = "list the pod's name servers there";
            self.problem(path, "is None, and spec.dnsConfig.nameservers has none", hint);
        }
        dns
    }

    fn aliases(&mut self) -> Vec<HostAlias> {
        let written = &self.spec().host_aliases;
        self.count("spec.hostAliases", written.len(), MAX_ALIASES);
        let mut aliases = Vec::new();
        for (index, alias) in written.iter().enumerate().take(MAX_ALIASES) {
            let at = format!("spec.hostAliases[{index}]");
            self.count(&format!("{at}.hostnames"), alias.hostnames.len(), MAX_ALIAS_NAMES);
            for (number, name) in alias.hostnames.iter().enumerate() {
                if HostName::new(name).is_none() {
                    let message = format!("{} is not a host name", quote(name));
                    self.problem(&format!("{at}.hostnames[{number}]"), message, "");
                }
            }
            match alias.ip.as_deref().map(str::parse) {
                Some(Ok(ip)) => aliases.push(HostAlias { ip, names: alias.hostnames.clone() }),
                Some(Err(_)) => {
                    let text = quote(alias.ip.as_deref().unwrap_or_default());
                    self.problem(&format!("{at}.ip"), format!("{text} is not an IP address"), "");
                }
                None => self.problem(&format!("{at}.ip"), "is missing", ""),
            }
        }
        aliases
    }

    fn subdomain(&mut self) -> Option<String> {
        let text = self.spec().subdomain.as_deref().filter(|text| !text.is_empty())?;
        match names::hostname(text) {
            Ok(()) => Some(text.to_owned()),
            Err(message) => {
                self.problem("spec.subdomain", format!("{} {message}", quote(text)), "");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    fn parsed(metadata: &str, spec: &str) -> Result<NetworkSpec, String> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n{metadata}\nspec:\n  containers: [{{name: a, image: b}}]\n{spec}\n"
        );
        manifest::parse(text.as_bytes(), "x")
            .map(|plan| plan.network)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn annotations_are_read() {
        let spec = parsed(
            "  annotations:\n    magikvm.dev/network: passt\n    magikvm.dev/egress-allow: 'a.example:443, 10.0.0.0/8'\n    magikvm.dev/egress-reach: 'metadata, loopback'",
            "",
        )
        .unwrap();
        assert_eq!(spec.egress.mode, Some(Mode::Passt));
        assert_eq!(spec.egress.allow, Some(AllowList::parse("a.example:443,10.0.0.0/8").unwrap()));
        assert_eq!(spec.egress.reach, [Reach::Loopback, Reach::Metadata]);
        assert_eq!(parsed("", "").unwrap(), NetworkSpec::default());
    }

    #[test]
    fn other_networks_than_ours_are_for_pods_in_namespaces() {
        let containers = "  runtimeClassName: pod-containers";
        let host = format!("{containers}\n  hostNetwork: true");
        assert_eq!(parsed("", &host).unwrap().provider, Provider::Host);
        let cni = |more: &str| format!("  annotations: {{magikvm.dev/cni: web{more}}}");
        assert_eq!(parsed(&cni(""), containers).unwrap().provider, Provider::Cni("web".parse().unwrap()));
        let says = |metadata: &str, spec: &str, words: &str| {
            let said = parsed(metadata, spec).unwrap_err();
            assert!(said.contains(words), "{said}");
        };
        says(&cni(""), "", "is not possible for pods of the class pod-microvm-containers");
        says(&cni(""), &host, "cannot be used with hostNetwork: true");
        says("  annotations: {magikvm.dev/cni: a/b}", containers, "\"a/b\" is not a name of a CNI network");
        for ours in [
            "magikvm.dev/network: nat",
            "magikvm.dev/egress-allow: a.example",
            "magikvm.dev/egress-reach: host",
        ] {
            says(&cni(&format!(", {ours}")), containers, "has no effect with magikvm.dev/cni");
            says(&format!("  annotations: {{{ours}}}"), &host, "has no effect with hostNetwork: true");
        }
        let sysctl = "\n  securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: '1'}]}";
        says("", &format!("{host}{sysctl}"), "would change the network of the host");
        says("", &format!("{host}\n  hostnameOverride: a"), "cannot be used with hostNetwork: true");
    }

    #[test]
    fn what_can_not_be_is_told() {
        let cases = [
            ("magikvm.dev/network: host", "\"host\" is not one of nat, passt, none, tsi, user"),
            ("magikvm.dev/egress-allow: 'a b'", "is not a host name"),
            ("magikvm.dev/egress-reach: 'all'", "\"all\" is not one of loopback, host, link-local, metadata"),
            (
                "{magikvm.dev/network: none, magikvm.dev/egress-allow: a}",
                "only the networks nat and passt have a filter, not none",
            ),
        ];
        for (annotation, words) in cases {
            let lines = if annotation.starts_with('{') {
                format!("  annotations: {annotation}")
            } else {
                format!("  annotations:\n    {annotation}")
            };
            let said = parsed(&lines, "").unwrap_err();
            assert!(said.contains(words), "{said}");
        }
        let cases = [
            (
                "  dnsPolicy: default",
                "is not one of Default, ClusterFirst, ClusterFirstWithHostNet, None (did you mean Default?)",
            ),
            ("  dnsPolicy: None", "spec.dnsConfig.nameservers has none"),
            ("  dnsConfig: {nameservers: [x]}", "\"x\" is not an IP address"),
            ("  dnsConfig: {searches: ['a b']}", "is not a domain"),
            ("  dnsConfig: {options: [{value: a}]}", "has no name"),
            ("  dnsConfig: {options: [{name: \"a\\nnameserver\"}]}", "blanks or control characters"),
            ("  hostAliases: [{hostnames: [a]}]", "spec.hostAliases[0].ip: is missing"),
            ("  hostAliases: [{ip: 1.1.1.1, hostnames: ['a\\n']}]", "is not a host name"),
            ("  subdomain: A", "spec.subdomain"),
            (
                "  hostNetwork: true",
                "spec.hostNetwork: \"true\" is not supported: a pod in a VM has no host but that VM",
            ),
        ];
        for (spec, words) in cases {
            let said = parsed("", spec).unwrap_err();
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn what_the_pod_says_of_names_is_put_to_what_the_host_says() {
        let host = Resolv::parse("nameserver 10.0.2.3\nsearch lan\noptions ndots:1 edns0\n");
        let spec = "  dnsConfig: {nameservers: [192.0.2.1, 10.0.2.3], searches: [a.example, lan], options: [{name: ndots, value: '5'}, {name: rotate}]}";
        let dns = parsed("", spec).unwrap().dns;
        let text =
            "search lan a.example\nnameserver 10.0.2.3\nnameserver 192.0.2.1\noptions edns0 ndots:5 rotate\n";
        assert_eq!(dns.merged(&host, &[]).text(), text);
        let dns = parsed("", &format!("  dnsPolicy: None\n{spec}")).unwrap().dns;
        assert_eq!(
            dns.merged(&host, &[]).text(),
            "search a.example lan\nnameserver 192.0.2.1\nnameserver 10.0.2.3\noptions ndots:5 rotate\n"
        );
    }
}
