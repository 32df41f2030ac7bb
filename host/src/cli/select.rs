//! Which pods a verb is for: names, namespaces and labels.

use super::error::{CliError, Kind};
use super::fields::FieldSelector;
use super::labels::Selector;
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::status;
use crate::store::record::Found;
use magikvm_proto::id::{Namespace, PodId, PodName};
use std::collections::BTreeSet;

/// kubectl's words for pods.
pub(super) const POD_WORDS: [&str; 3] = ["pod", "pods", "po"];

/// kubectl's words for what is not a pod, without their groups.
const OTHER_WORDS: &str = "all clusterrole clusterrolebinding clusterrolebindings clusterroles cm configmap configmaps crd crds cronjob cronjobs \
    customresourcedefinition customresourcedefinitions cj daemonset daemonsets deploy deployment deployments ds endpoints endpointslice \
    endpointslices ep ev event events horizontalpodautoscaler horizontalpodautoscalers hpa image images ing ingress ingresses job jobs limitrange \
    limitranges limits namespace namespaces netpol networkpolicies networkpolicy no node nodes ns pdb persistentvolume persistentvolumes \
    poddisruptionbudget poddisruptionbudgets pv quota rc replicaset replicasets replicationcontroller replicationcontrollers resourcequota \
    resourcequotas role rolebinding rolebindings roles rs sa sc secret secrets service serviceaccount serviceaccounts services statefulset \
    statefulsets storageclass storageclasses sts svc";
/// kubectl's words for volumes, and ours.
const VOLUME_WORDS: [&str; 5] =
    ["persistentvolumeclaim", "persistentvolumeclaims", "pvc", "volume", "volumes"];

/// The names of kubectl's arguments `pod web`, `pod/web` and `web`. The word for another kind is not taken for the name of a pod.
pub(super) fn names_of<'w>(
    words: &'w [String],
    pods: &PodRuntimeInterface,
) -> Result<&'w [String], CliError> {
    let Some((first, rest)) = words.split_first() else { return Ok(words) };
    if POD_WORDS.contains(&first.as_str()) {
        return Ok(rest);
    }
    let (word, is_whole) =
        first.split_once('/').map_or((first.as_str(), !rest.is_empty()), |(word, _)| (word, true));
    let kind = word.split('.').next().unwrap_or(word);
    let is_volume = VOLUME_WORDS.contains(&kind);
    if !is_whole || !(is_volume || OTHER_WORDS.split_whitespace().any(|other| other == kind)) {
        return Ok(words);
    }
    // A namespace may have the name of a kind.
    if first.contains('/') && first.parse().is_ok_and(|id| pods.find(&id).is_ok()) {
        return Ok(words);
    }
    let hint = if is_volume {
        "Volumes have the verbs of `magikvm volume`, as `magikvm volume rm NAME` and `magikvm volume inspect NAME`."
    } else {
        "Only pods run here. A pod of this name is written with `pod/` before it, as in `pod/web`."
    };
    Err(CliError::new(Kind::Code(2), format!("{word:?} is a kind and not a pod, and nothing was done"))
        .hint(hint))
}

/// A pod as the user names it: `NAME`, `NAMESPACE/NAME`, or `pod/NAME` as kubectl prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodArg {
    namespace: Option<Namespace>,
    name: PodName,
}

/// Parses the name of a pod for clap.
pub(super) fn pod_arg(text: &str) -> Result<PodArg, String> {
    let named = match text.split_once('/') {
        Some((word, rest)) if rest.contains('/') && POD_WORDS.contains(&word) => rest,
        _ => text,
    };
    let parsed = match named.split_once('/') {
        Some((namespace, name)) => namespace
            .parse()
            .and_then(|namespace| Ok(PodArg { namespace: Some(namespace), name: name.parse()? })),
        None => named.parse().map(|name| PodArg { namespace: None, name }),
    };
    parsed.map_err(|error| format!("a pod's name {error}"))
}

/// Parses several names that clap has not parsed, since other words may stand before them.
pub(super) fn pod_args<T: AsRef<str>>(words: &[T]) -> Result<Vec<PodArg>, CliError> {
    let parse = |word: &T| {
        let word = word.as_ref();
        pod_arg(word).map_err(|why| CliError::new(Kind::Code(2), format!("{word:?}: {why}")))
    };
    words.iter().map(parse).collect()
}

impl PodArg {
    /// The pod that is meant, where `given` is the namespace of the command line.
    pub(super) fn id(
        &self,
        given: Option<&Namespace>,
        pods: &PodRuntimeInterface,
    ) -> Result<PodId, CliError> {
        let name = self.name.clone();
        let plain = || PodId { namespace: given.cloned().unwrap_or_default(), name: name.clone() };
        let Some(namespace) = &self.namespace else { return Ok(plain()) };
        let full = PodId { namespace: namespace.clone(), name: name.clone() };
        if POD_WORDS.contains(&namespace.as_str())
            && given != Some(namespace)
            && matches!(pods.find(&full), Err(PodError::NotFound { .. }))
        {
            return Ok(plain());
        }
        match given.filter(|given| *given != namespace) {
            Some(given) => {
                let message = format!("pod {full} is not in the namespace {given} (-n)");
                Err(CliError::new(Kind::Code(2), message).hint("Omit `-n`, or the namespace in the name."))
            }
            None => Ok(full),
        }
    }
}

/// One pod on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct OnePod {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_arg)]
    pod: PodArg,
    /// Namespace of the pod, if its name has none [default: default]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
}

impl OnePod {
    pub(super) fn id(&self, pods: &PodRuntimeInterface) -> Result<PodId, CliError> {
        self.pod.id(self.namespace.as_ref(), pods)
    }
}

/// Several pods on the command line, of any namespace.
#[derive(Debug, clap::Args)]
pub(super) struct Several {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_name = "POD", value_parser = pod_arg)]
    pods: Vec<PodArg>,
    /// Instead of naming pods, choose all for which it is possible
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
}

/// What pods have to be like.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Filter {
    /// Only pods with these labels: KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY, !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(super) selector: Option<Selector>,
    /// Only pods with these fields: FIELD=VALUE or FIELD!=VALUE, separated by commas, as status.phase=Running
    #[arg(long, value_name = "SELECTOR")]
    pub(super) field_selector: Option<FieldSelector>,
    /// Only pods of this namespace; also the namespace of names that have none
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<Namespace>,
    /// Pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(super) all_namespaces: bool,
}

impl Filter {
    pub(super) fn fits(&self, found: &Found) -> bool {
        let is_of = |namespace: &Namespace| match &found.record {
            Some(record) => record.id.namespace == *namespace,
            None => found.name().split_once('/').is_some_and(|(first, _)| first == namespace.as_str()),
        };
        let labels = found.record.as_ref().and_then(|record| record.manifest.pointer("/metadata/labels"));
        self.namespace.as_ref().is_none_or(is_of)
            && self.selector.as_ref().is_none_or(|selector| selector.fits(labels))
            && self.field_selector.as_ref().is_none_or(|fields| fields.fits(&status::kubernetes(found)))
    }

    /// The option by which pods are chosen instead of by their names.
    pub(super) fn choice(&self) -> Option<&'static str> {
        match (&self.selector, &self.field_selector) {
            (Some(_), _) => Some("--selector"),
            (None, Some(_)) => Some("--field-selector"),
            (None, None) => None,
        }
    }

    /// Names and selectors are two ways to say the same.
    pub(super) fn without_names(&self) -> Result<(), CliError> {
        match self.choice() {
            None => Ok(()),
            Some(option) => {
                let message = format!("names and `{option}` cannot be used together");
                Err(CliError::new(Kind::Code(2), message).hint("Name them, or let the selector choose them."))
            }
        }
    }

    /// As kubectl has it: without a namespace, that of the name `default`.
    pub(super) fn of_one_namespace(&self) -> Self {
        let namespace = match (&self.namespace, self.all_namespaces) {
            (None, false) => Some(Namespace::default()),
            (namespace, _) => namespace.clone(),
        };
        Self { namespace, ..self.clone() }
    }
}

impl Several {
    /// Whether they are looked for instead of named.
    pub(super) fn is_search(&self) -> bool {
        self.all || self.filter.choice().is_some()
    }

    /// The named pods without repetitions, or those that fit and that `wanted` chooses.
    pub(super) fn choose(
        &self,
        pods: &PodRuntimeInterface,
        wanted: impl Fn(&Found) -> bool,
    ) -> Result<Vec<PodId>, CliError> {
        choose(pods, &self.pods, self.all, &self.filter, wanted)
    }
}

/// The named pods without repetitions; or, with `all` or a selector, those that fit and that `wanted` chooses.
pub(super) fn choose(
    pods: &PodRuntimeInterface,
    named: &[PodArg],
    all: bool,
    filter: &Filter,
    wanted: impl Fn(&Found) -> bool,
) -> Result<Vec<PodId>, CliError> {
    if !named.is_empty() {
        filter.without_names()?;
        return ids(pods, named, filter.namespace.as_ref());
    }
    if !all && filter.choice().is_none() {
        return Ok(Vec::new());
    }
    let found = pods.list()?;
    Ok(found.iter().filter(|found| filter.fits(found) && wanted(found)).filter_map(super::ps::id).collect())
}

/// The named pods without repetitions.
pub(super) fn ids(
    pods: &PodRuntimeInterface,
    named: &[PodArg],
    given: Option<&Namespace>,
) -> Result<Vec<PodId>, CliError> {
    let mut seen = BTreeSet::new();
    let mut ids = Vec::new();
    for pod in named {
        let id = pod.id(given, pods)?;
        if seen.insert(id.clone()) {
            ids.push(id);
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::layout::{Layout, Surroundings};

    #[test]
    fn a_name_has_a_namespace_or_gets_one() {
        let dir = tempfile::tempdir().unwrap();
        let around = Surroundings { root: Some(dir.path().to_owned()), ..Surroundings::default() };
        let pods = PodRuntimeInterface::new(Layout::new(&around).unwrap());
        let team: Namespace = "team".parse().unwrap();
        let id = |text: &str, given: Option<&Namespace>| {
            pod_arg(text).unwrap().id(given, &pods).map(|id| id.to_string()).map_err(|_| ())
        };
        for (text, given, expected) in [
            ("web", None, Ok("default/web")),
            ("web", Some(&team), Ok("team/web")),
            ("team/web", None, Ok("team/web")),
            ("team/web", Some(&team), Ok("team/web")),
            ("other/web", Some(&team), Err(())),
            // As kubectl prints it, unless there is a pod in a namespace of this name.
            ("pod/web", None, Ok("default/web")),
            ("pods/web", Some(&team), Ok("team/web")),
            ("pod/team/web", None, Ok("team/web")),
        ] {
            assert_eq!(id(text, given), expected.map(str::to_owned), "{text}");
        }
        std::fs::create_dir_all(dir.path().join("run/pods/pod_web")).unwrap();
        assert_eq!(id("pod/web", None), Ok("pod/web".to_owned()));
        for bad in ["a/b/c", "pod/", "/a", "", "pod/a/b/c"] {
            assert!(pod_arg(bad).is_err(), "{bad}");
        }
    }
}
