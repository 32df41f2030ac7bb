//! The input of a run: the documents of all its files as one set, whose Pods can use every object in it.

use super::documents;
use super::generated;
use super::ignored::{self, Ignored};
use super::k8s;
use super::kinds::{self, Meaning};
use super::node::Node;
use super::objects::{self, Claim, DEFAULT_NAMESPACE, Object, ObjectKind, Objects};
use super::plan::{PodPlan, RuntimeClass, VolumeSource};
use super::problem::{FieldPlace, Mark, Problem, ProblemCollector, Problems, quote};
use magikvm_proto::id::{NameError, Namespace, PodId, PodName};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

/// Most Pods of one input.
pub const MAX_INPUT_PODS: usize = 256;
/// Most ConfigMaps, Secrets and claims of one input.
const MAX_INPUT_OBJECTS: usize = 4096;
/// Most values of all documents, and most bytes in them, after aliases are followed. One file may have a fifth of the values.
const MAX_COST: (usize, usize) = (500_000, 16 << 20);
/// Most bytes of ConfigMaps and Secrets in the plans of all Pods. Each Pod has copies of what it uses.
const MAX_COPIED_BYTES: usize = 64 << 20;
/// Most documents that a message names.
const MAX_NAMED: usize = 4;

/// One file of an input.
#[derive(Debug)]
pub struct Source {
    /// The file's name as the user wrote it; every line of an error begins with it.
    pub origin: String,
    pub bytes: Vec<u8>,
    pub accepts: Accepts,
}

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    Everything,
    /// Objects of this kind, which an option asked for.
    Only {
        kind: ObjectKind,
        option: &'static str,
    },
}

/// Makes a name of its beginning for a Pod of this namespace (`metadata.generateName`). Reads no clock and no disk here; the caller may.
pub type NewName<'a> = dyn FnMut(&str, &str) -> Option<String> + 'a;

/// What is known of an input, whether or not it can run.
#[derive(Debug)]
pub struct Input {
    /// In the order in which they were given.
    pub files: Vec<InputFile>,
    /// In the order in which they are written.
    pub pods: Vec<InputPod>,
    pub claims: Vec<NamedClaim>,
    /// A problem of all files together.
    pub whole: Option<Problem>,
}

#[derive(Debug)]
pub struct InputFile {
    pub problems: Problems,
    /// ConfigMaps, Secrets and claims, as a message names them.
    pub objects: Vec<String>,
    /// Documents that have no effect here.
    pub ignored: Vec<Ignored>,
}

#[derive(Debug)]
pub struct InputPod {
    /// Index of its file.
    pub file: usize,
    /// Where it begins.
    pub at: Mark,
    /// How it is named in its file, valid or not.
    pub name: String,
    /// `None`: it has problems.
    pub plan: Option<PodPlan>,
    /// Whether its name was made of `generateName`.
    pub generated: bool,
    /// What it has beside, which changes nothing here.
    pub ignored: Vec<Ignored>,
}

/// An input that can run.
#[derive(Debug)]
pub struct Manifests {
    /// At least one, in the order in which they are written.
    pub pods: Vec<Parsed>,
    /// The claims of all files.
    pub claims: Vec<NamedClaim>,
    /// Documents that have no effect here.
    pub ignored: Vec<Ignored>,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone)]
pub struct NamedClaim {
    /// The namespace, if it says one.
    pub namespace: Option<Namespace>,
    pub name: String,
    pub claim: Claim,
}

/// A Pod that can run.
#[derive(Debug)]
pub struct Parsed {
    pub plan: PodPlan,
    /// Index of its file.
    pub file: usize,
    /// Whether its name was made of `generateName`.
    pub generated: bool,
    /// What it has beside, which changes nothing here.
    pub ignored: Vec<Ignored>,
}

/// The problems of several files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllProblems(pub Vec<Problems>);

impl std::error::Error for AllProblems {}

impl fmt::Display for AllProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problems) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problems.fmt(f)?;
        }
        Ok(())
    }
}

impl Input {
    /// The problems by file, and at last those of all files together.
    pub fn problems(&self) -> Vec<Problems> {
        let has_some = |problems: &&Problems| !problems.list.is_empty();
        let mut all: Vec<Problems> =
            self.files.iter().map(|file| &file.problems).filter(has_some).cloned().collect();
        let origins = self.files.iter().map(|file| file.problems.origin.as_str());
        all.extend(self.whole.clone().map(|problem| of_all(origins, problem)));
        all
    }

    /// The Pods, if the input has no problem at all.
    pub fn into_manifests(self) -> Result<Manifests, AllProblems> {
        let problems = self.problems();
        let count = self.pods.len();
        let pods: Vec<Parsed> = self
            .pods
            .into_iter()
            .filter_map(|pod| {
                Some(Parsed {
                    plan: pod.plan?,
                    file: pod.file,
                    generated: pod.generated,
                    ignored: pod.ignored,
                })
            })
            .collect();
        if !problems.is_empty() || pods.len() != count || pods.is_empty() {
            return Err(AllProblems(problems));
        }
        let mut all = Vec::new();
        for file in self.files {
            for Ignored { why, paths } in file.ignored {
                paths.iter().for_each(|path| ignored::add(&mut all, why, path));
            }
        }
        Ok(Manifests { pods, claims: self.claims, ignored: all })
    }
}

/// A problem of all files together.
fn of_all<'a>(mut origins: impl ExactSizeIterator<Item = &'a str>, problem: Problem) -> Problems {
    let origin = match (origins.len(), origins.next()) {
        (1, Some(origin)) => origin.to_owned(),
        (count, _) => format!("the input of {count} files"),
    };
    Problems { origin, list: vec![problem], dropped: 0 }
}

/// Reads all files of an input.
pub fn read(sources: &[Source], new_name: &mut NewName<'_>) -> Input {
    read_as(None, sources, new_name)
}

/// The same, with all Pods in this runtime class, if there is one, instead of those of their manifests.
pub fn read_as(class: Option<RuntimeClass>, sources: &[Source], new_name: &mut NewName<'_>) -> Input {
    let mut reader = Reader::default();
    for source in sources {
        reader.file(source);
    }
    reader.check_names(sources);
    reader.build(class, sources, new_name)
}

/// A Pod as written.
#[derive(Debug)]
struct Written {
    file: usize,
    root: Node,
}

impl Written {
    fn namespace(&self) -> &str {
        kinds::text_at(&self.root, "metadata.namespace").unwrap_or(DEFAULT_NAMESPACE)
    }

    fn name(&self) -> Option<&str> {
        kinds::text_at(&self.root, "metadata.name")
    }
}

#[derive(Debug, Default)]
struct Reader {
    reports: Vec<ProblemCollector>,
    pods: Vec<Written>,
    /// Documents without a kind, one of which may be meant as the Pod.
    nameless: Vec<Written>,
    /// Each with the index of its file.
    objects: Vec<(usize, Arc<Object>)>,
    /// Why a document is ignored, and its name.
    ignored: Vec<(usize, &'static str, String)>,
    cost: (usize, usize),
    whole: Option<Problem>,
}

impl Reader {
    fn file(&mut self, source: &Source) {
        let file = self.reports.len();
        let mut report = ProblemCollector::default();
        // What is beyond the limit is not kept.
        if self.whole.is_none() {
            for document in documents::read(&source.bytes, &mut report) {
                let (values, bytes) = documents::cost(&document);
                self.cost = (self.cost.0 + values, self.cost.1 + bytes);
                if self.cost.0 > MAX_COST.0 || self.cost.1 > MAX_COST.1 {
                    let message = format!(
                        "holds more than {} values or {} bytes together (aliases count each time)",
                        MAX_COST.0, MAX_COST.1
                    );
                    self.refuse(message, "run them in several parts");
                    break;
                }
                self.document(file, document, source.accepts, &mut report);
            }
        }
        self.reports.push(report);
    }

    fn refuse(&mut self, message: String, hint: &str) {
        let problem = Problem { path: String::new(), at: None, message, hint: hint.to_owned() };
        self.whole.get_or_insert(problem);
    }

    fn document(&mut self, file: usize, document: Node, accepts: Accepts, report: &mut ProblemCollector) {
        let meaning = kinds::meaning(&document);
        if let Accepts::Only { kind, option } = accepts
            && meaning != Meaning::Object(kind)
        {
            let found = kinds::named(&document);
            let message = format!("must be {kind}; {found} is not one");
            return report.add(
                &kinds::place(&document),
                message,
                format!("pass this file without `{option}`"),
            );
        }
        match meaning {
            Meaning::Pod if self.pods.len() == MAX_INPUT_PODS => {
                let message = format!("holds more than {MAX_INPUT_PODS} Pods");
                self.refuse(message, "run them in several parts");
            }
            Meaning::Pod => self.pods.push(Written { file, root: document }),
            Meaning::Object(_) if self.objects.len() == MAX_INPUT_OBJECTS => {
                let message = format!("holds more than {MAX_INPUT_OBJECTS} ConfigMaps, Secrets and claims");
                self.refuse(message, "run them in several parts");
            }
            Meaning::Object(kind) => {
                let object = objects::read(kind, &document, report);
                self.objects.extend(object.map(|object| (file, Arc::new(object))));
            }
            Meaning::Workload { template, line } => kinds::refuse_workload(&document, template, line, report),
            Meaning::Ignored(why) => self.ignored.push((file, why, kinds::named(&document))),
            Meaning::Unknown => kinds::refuse_unknown(&document, report),
            Meaning::Nameless => self.nameless.push(Written { file, root: document }),
        }
    }

    /// Reports what is there twice, what says no kind, and objects that no Pod can use.
    fn check_names(&mut self, sources: &[Source]) {
        if self.pods.is_empty() && !self.nameless.is_empty() {
            // Its check says what is missing.
            self.pods.push(self.nameless.remove(0));
        }
        for Written { file, root } in &self.nameless {
            let place = FieldPlace { path: String::new(), mark: root.mark };
            let hint = "write `kind: Pod`, `kind: ConfigMap` or `kind: Secret`";
            self.reports[*file].add(&place, "a document without a kind begins here", hint);
        }
        let mut firsts: BTreeMap<_, (usize, Mark)> = BTreeMap::new();
        for (file, object) in &self.objects {
            let Some((first, mark)) = firsts.insert(object.key(), (*file, object.mark)) else { continue };
            let place = FieldPlace { path: object.kind.to_string(), mark: object.mark };
            let message = format!("there is another {} {}", object.kind, quote(&object.name));
            let first = kinds::position(&sources[first].origin, mark);
            self.reports[*file].add(&place, message, format!("the other one is at {first}"));
        }
        let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (index, pod) in self.pods.iter().enumerate() {
            let Some(name) = pod.name() else { continue };
            let key = (pod.namespace(), name);
            if seen.insert(key) {
                continue;
            }
            let is_first = |other: &&Written| other.name().map(|name| (other.namespace(), name)) == Some(key);
            let first = self.pods[..index].iter().find(is_first);
            let first = first.map(|first| kinds::position(&sources[first.file].origin, first.root.mark));
            let place = FieldPlace { path: "metadata.name".to_owned(), mark: pod.root.mark };
            let message = format!("there is another Pod {}", quote(&format!("{}/{}", key.0, key.1)));
            let hint = format!("the other one is at {}", first.unwrap_or_default());
            self.reports[pod.file].add(&place, message, hint);
        }
        let namespaces: BTreeSet<&str> = self.pods.iter().map(Written::namespace).collect();
        for (file, object) in &self.objects {
            let Some((namespace, place)) = &object.namespace else { continue };
            let own = quote(namespace.as_str());
            let message = match namespaces.iter().collect::<Vec<_>>()[..] {
                [pod] if *pod != namespace.as_str() => format!("is {own}, and the Pod is in {}", quote(pod)),
                [] | [_] => continue,
                _ if namespaces.contains(namespace.as_str()) => continue,
                _ => format!("is {own}, and no Pod is in it"),
            };
            self.reports[*file].add(place, message, "leave it out: it is the Pod's");
        }
    }

    fn build(mut self, class: Option<RuntimeClass>, sources: &[Source], new_name: &mut NewName<'_>) -> Input {
        let mut pods = Vec::new();
        let mut copied = 0;
        let mut views: BTreeMap<String, Objects> = BTreeMap::new();
        for Written { file, mut root } in std::mem::take(&mut self.pods) {
            let name = kinds::named(&root);
            let namespace = kinds::text_at(&root, "metadata.namespace").unwrap_or(DEFAULT_NAMESPACE);
            let made = generated::wanted(&root).and_then(|prefix| new_name(namespace, prefix));
            let objects = views.entry(namespace.to_owned()).or_insert_with(|| {
                Objects::of(namespace, self.objects.iter().map(|(_, object)| object), sources.len())
            });
            let generated = made.is_some();
            if let Some(name) = made {
                generated::give(&mut root, name);
            }
            // Its own collector: problems of one Pod say nothing of another.
            let mut report = ProblemCollector::default();
            let mut plan = None;
            if copied <= MAX_COPIED_BYTES {
                plan = k8s::read(&root, objects, &mut report)
                    .and_then(|written| super::build::build(&written, objects, class, &mut report));
                copied += plan.as_ref().map_or(0, weight);
            }
            let plan = plan.filter(|_| report.is_empty());
            let ignored = self.reports[file].take_over(report);
            pods.push(InputPod { file, at: root.mark, name, plan, generated, ignored });
        }
        if copied > MAX_COPIED_BYTES {
            let message =
                format!("has Pods with more than {MAX_COPIED_BYTES} bytes of ConfigMaps and Secrets");
            self.refuse(message, "run them in several parts");
        }
        self.check_emptiness(&pods);
        let files = self.reports.into_iter().zip(sources).enumerate();
        let files = files.map(|(index, (report, source))| {
            let objects = self.objects.iter().filter(|(file, _)| *file == index);
            let mut ignored = Vec::new();
            for (_, why, name) in self.ignored.iter().filter(|(file, ..)| *file == index) {
                ignored::add(&mut ignored, why, name);
            }
            InputFile {
                problems: report.into_problems(&source.origin),
                objects: objects
                    .map(|(_, object)| format!("{} {}", object.kind, quote(&object.name)))
                    .collect(),
                ignored,
            }
        });
        let files = files.collect();
        let claims = self.objects.iter().filter_map(|(_, object)| {
            let namespace = object.namespace.as_ref().map(|(namespace, _)| namespace.clone());
            Some(NamedClaim { namespace, name: object.name.clone(), claim: object.claim.clone()? })
        });
        Input { files, pods, claims: claims.collect(), whole: self.whole }
    }

    /// Reports an input without a Pod, unless another problem tells why.
    fn check_emptiness(&mut self, pods: &[InputPod]) {
        if !pods.is_empty() || self.reports.iter().any(|report| !report.is_empty()) {
            return;
        }
        let objects =
            self.objects.iter().map(|(_, object)| format!("{} {}", object.kind, quote(&object.name)));
        let found: Vec<String> =
            objects.chain(self.ignored.iter().map(|(_, _, name)| name.clone())).collect();
        let what = match found.len() {
            0 => "it is empty".to_owned(),
            count if count <= MAX_NAMED => format!("it has only {}", found.join(", ")),
            count => format!("it has only {} and {} more", found[..MAX_NAMED].join(", "), count - MAX_NAMED),
        };
        self.refuse(format!("holds no Pod: {what}"), "a Pod begins with `apiVersion: v1` and `kind: Pod`");
    }
}

/// Bytes of objects that a plan has copies of.
fn weight(plan: &PodPlan) -> usize {
    let files = plan.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Files(files) => Some(files),
        _ => None,
    });
    let files: usize = files.flatten().map(|file| file.content.bytes().len()).sum();
    let variables = plan.containers.iter().flat_map(|container| &container.env);
    let secrets: usize = plan.pull_secrets.iter().map(|secret| secret.content.bytes().len()).sum();
    files + secrets + variables.map(|variable| variable.value.len()).sum::<usize>()
}

/// The name of a Pod in an input, whatever else is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Pod(PodId),
    /// Its name was made when it was run, of this beginning.
    Generated(String),
}

/// Reads only the names of the Pods, in the order in which they are written.
pub fn names(sources: &[Source]) -> Result<Vec<Named>, AllProblems> {
    let mut reader = Reader::default();
    for source in sources {
        reader.file(source);
    }
    let mut found = Vec::new();
    let mut problems = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let mut report = ProblemCollector::default();
        for pod in reader.pods.iter().filter(|pod| pod.file == index) {
            match named(pod) {
                Ok(name) => found.push(name),
                Err((path, message)) => {
                    report.add(&FieldPlace { path: path.to_owned(), mark: pod.root.mark }, message, "");
                }
            }
        }
        // Objects and kinds that cannot run make no difference to what can be removed, but what cannot be read may.
        report.take_over_syntax(&reader.reports[index]);
        if !report.is_empty() {
            problems.push(report.into_problems(&source.origin));
        }
    }
    if problems.is_empty() && found.is_empty() {
        // Whatever else is wrong, there is nothing to name.
        reader.reports.clear();
        reader.check_emptiness(&[]);
    }
    let origins = sources.iter().map(|source| source.origin.as_str());
    problems.extend(reader.whole.map(|problem| of_all(origins, problem)));
    if problems.is_empty() { Ok(found) } else { Err(AllProblems(problems)) }
}

fn named(pod: &Written) -> Result<Named, (&'static str, String)> {
    let wrong = |path: &'static str, text: &str, error: NameError| (path, format!("{} {error}", quote(text)));
    let Some(name) = pod.name() else {
        let prefix = generated::wanted(&pod.root);
        let prefix = prefix.ok_or_else(|| ("metadata.name", "is missing".to_owned()))?;
        return Ok(Named::Generated(prefix.to_owned()));
    };
    let namespace: Namespace =
        pod.namespace().parse().map_err(|error| wrong("metadata.namespace", pod.namespace(), error))?;
    let name: PodName = name.parse().map_err(|error| wrong("metadata.name", name, error))?;
    Ok(Named::Pod(PodId { namespace, name }))
}
